"""A line PC that boots: this very system in a container, with the units of the repository, in a throw-away overlay.

systemd is process 1 in there (systemd-nspawn), so `Type=notify`, watchdog, restarts and the sandbox of the units are
the real ones. Needs root and Debian's systemd-container.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = Path("/opt/edge-daemon")
_PYTHON = "/opt/python"
_PATIENCE_S = 60.0
_CONFINING = (
    *("User", "Group", "Supplementary", "NoNew", "Protect", "Private", "RestrictAddress", "RestrictNamespaces"),
    *("RestrictRealtime", "RestrictSUIDSGID", "Lock", "MemoryDeny", "Capability", "SystemCall", "RemoveIPC", "Device"),
)

# Started instead of the console script that pip makes. It differs in one thing: told its process id in a file, its
# model hangs for ever, while every other thread goes on.
_LAUNCHER = """\
#!{installed}/.venv/bin/python
import os, pathlib, sys, threading, time
sys.path.insert(0, "{installed}")

def hang_when_told(told=pathlib.Path("/etc/edge-test-hang")):
    while not (told.exists() and told.read_text() == str(os.getpid())):
        time.sleep(0.02)
    from edge_daemon.engines.sessions import OnnxExtractor
    OnnxExtractor.extract = lambda *_: threading.Event().wait()

if __name__ == "__main__":
    if "run" in sys.argv:
        threading.Thread(target=hang_when_told, daemon=True).start()
    from edge_daemon.{module} import main
    sys.exit(main())
"""
_PROGRAMS = {"edge-daemon": "cli", "edge-ctl": "ctl", "edge-gateway": "gateway.cli"}


def why_not() -> str:
    """What keeps this machine from booting a container; empty when nothing does."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in ("systemd-nspawn", "nsenter", "mount") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: systemd-container)"
    if not Path("/lib/systemd/systemd").exists():
        return "needs systemd (Debian: systemd)"
    return ""


class Booted:
    """A container that runs. `root`: its file system, as seen from here."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._leader = leader

    def run(self, *command: str, check: bool = True, timeout_s: float = _PATIENCE_S) -> str:
        """What a command in the container says on standard output."""
        enter = ["nsenter", "--target", str(self._leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        if Path(command[0]).is_relative_to(INSTALLED):
            clean["LD_LIBRARY_PATH"] = f"{_PYTHON}/lib"
        done = subprocess.run([*enter, *command], capture_output=True, text=True, timeout=timeout_s, env=clean)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def run_confined(self, unit: str, code: str) -> str:
        """What Python says that runs as this unit does: its user, and all that the unit forbids."""
        text = (ROOT / "systemd" / f"{unit}.service").read_text()
        settings = [line for line in text.splitlines() if line.startswith(_CONFINING) and "=" in line]
        options = [word for setting in settings for word in ("--property", setting)]
        library = f"--setenv=LD_LIBRARY_PATH={_PYTHON}/lib"
        python = f"{INSTALLED}/.venv/bin/python"
        return self.run("systemd-run", "--wait", "--pipe", "--quiet", library, *options, python, "-c", code)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Entries of the container's journal that match, oldest first."""
        self.run("journalctl", "--sync")
        text = self.run("journalctl", "--quiet", "--all", "--output=json", *matches, check=False)
        return [json.loads(line) for line in text.splitlines()]

    def wait(self, what: str, is_so: Callable[[], object]) -> None:
        """Until it is so; fails with the end of the journal when it does not come."""
        give_up = time.monotonic() + _PATIENCE_S
        while not is_so():
            if time.monotonic() > give_up:
                last = self.run("journalctl", "--quiet", "--no-pager", "--lines=60", check=False)
                raise AssertionError(f"this did not come: {what}\n{last}")

    def kill(self, pid: str, signal_name: str) -> None:
        self.run("kill", f"-{signal_name}", pid)


@contextmanager
def booted(folder: Path, prepare: Callable[[Path], None]) -> Iterator[Booted]:
    """Boots; `prepare` is given the container's root before. Raises OSError when this machine does not allow it."""
    with _overlay(folder) as root:
        binds = _install(root)
        prepare(root)
        command = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"]
        options = [f"--directory={root}", "--machine=edge-line", *binds, "systemd.unit=basic.target"]
        with (folder / "boot.log").open("wb") as log:
            nspawn = subprocess.Popen([*command, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            leader = _leader(nspawn, folder / "boot.log")
            try:
                it = Booted(root, leader)
                it.wait("systemd is up", lambda: _is_up(it))
                yield it
            finally:
                os.kill(leader, signal.SIGKILL)
        finally:
            _end(nspawn)


def _is_up(it: Booted) -> bool:
    return it.run("systemctl", "is-active", "basic.target", check=False).strip() == "active"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """It ends when its container does; where it does not, it is ended."""
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _overlay(folder: Path) -> Iterator[Path]:
    """All of this system, changes to which go to memory and are lost."""
    layers = folder / "layers"
    layers.mkdir(parents=True)
    _mount("-t", "tmpfs", "tmpfs", str(layers))
    try:
        for name in ("upper", "work", "root"):
            (layers / name).mkdir()
        options = f"lowerdir=/,upperdir={layers / 'upper'},workdir={layers / 'work'}"
        _mount("-t", "overlay", "overlay", "-o", options, str(layers / "root"))
        try:
            yield layers / "root"
        finally:
            subprocess.run(["umount", "--lazy", str(layers / "root")], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(layers)], check=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(done.stderr.strip())


def _install(root: Path) -> list[str]:
    """As the documentation says: the repository in /opt/edge-daemon, its units in /etc/systemd/system. Returns what the
    container must see of the running Python, which may lie in a home folder that units may not enter."""
    installed = root / INSTALLED.relative_to("/")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    venv = installed / ".venv"
    site = venv / "lib" / version / "site-packages"
    for path in (site, venv / "bin", installed / "edge_daemon", root / _PYTHON[1:]):
        path.mkdir(parents=True, exist_ok=True)
    (venv / "pyvenv.cfg").write_text(f"home = {_PYTHON}/bin\ninclude-system-site-packages = false\n")
    (venv / "bin" / "python").symlink_to(f"{_PYTHON}/bin/{version}")
    for program, module in _PROGRAMS.items():
        script = venv / "bin" / program
        script.write_text(_LAUNCHER.format(installed=INSTALLED, module=module))
        script.chmod(0o755)
    units = root / "etc/systemd/system"
    for unit in (ROOT / "systemd").glob("*.service"):
        shutil.copy(unit, units)
        drop_in = units / f"{unit.name}.d" / "test.conf"
        drop_in.parent.mkdir()
        library = f"[Service]\nEnvironment=LD_LIBRARY_PATH={_PYTHON}/lib PYTHONDONTWRITEBYTECODE=1\n"
        drop_in.write_text(f"{library}WatchdogSec=3\nTimeoutAbortSec=2\nTimeoutStopSec=2\n")
    users = ["systemd-sysusers", f"--root={root}", str(ROOT / "systemd/edge-daemon.sysusers.conf")]
    subprocess.run(users, check=True, capture_output=True)
    (root / "etc/edge-daemon").mkdir()
    pairs = (
        (sys.base_prefix, _PYTHON),
        (sysconfig.get_path("purelib"), str(INSTALLED / site.relative_to(installed))),
        (str(ROOT / "edge_daemon"), str(INSTALLED / "edge_daemon")),
    )
    return [f"--bind-ro={there}:{here}" for there, here in pairs]


def _leader(nspawn: "subprocess.Popen[bytes]", log: Path) -> int:
    """Process 1 of the container, by its number here."""
    give_up = time.monotonic() + _PATIENCE_S
    while nspawn.poll() is None and time.monotonic() < give_up:
        for pid in _descendants(nspawn.pid):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
            if len(numbers) > 1 and numbers[-1] == "1" and "Name:\tsystemd\n" in status:
                return pid
    nspawn.kill()
    raise OSError(f"no container boots here: {log.read_text(errors='replace')[-500:]}")


def _descendants(pid: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield int(child)
        yield from _descendants(int(child))
