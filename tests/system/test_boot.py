"""The units under a real systemd: ready, watched, restarted, drained, reloaded, and told apart in the journal."""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.container import INSTALLED, Booted, booted, why_not
from tests.system.conftest import SmallLine

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"booting a container {why_not()}")

CONFIG = """
line = "line-7"
[cameras.top]
kind = "folder"
path = "/etc/edge-daemon/parts"
loop = true
[stations.st1]
deadline_ms = 700
views = [{ camera = "top", recipe = "/etc/edge-daemon/flange.recipe" }]
"""

SLOW = """
[cameras.slow]
kind = "simulated"
product = "flange"
size = [128, 128]
exposure_ms = 4000
[stations.slow]
deadline_ms = 15000
exposed_within_ms = 15000
views = [{ camera = "slow", recipe = "/etc/edge-daemon/flange.recipe" }]
"""

GATEWAY = """
[modbus]
port = 502
[stations.st1]
unit = 1
window_ms = 800
"""


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, small_line: SmallLine) -> Iterator[Booted]:
    """A PC with both services enabled by nobody: each test starts what it needs."""

    def prepare(root: Path) -> None:
        etc = root / "etc/edge-daemon"
        shutil.copy(small_line.recipe, etc / "flange.recipe")
        shutil.copytree(small_line.test / "test" / "good", etc / "parts")
        (etc / "edge.toml").write_text(CONFIG)
        (etc / "gateway.toml").write_text(GATEWAY)

    try:
        with booted(tmp_path_factory.mktemp("boot"), prepare) as it:
            yield it
    except OSError as error:
        pytest.skip(f"this machine boots no container: {error}")


@pytest.fixture
def daemon(line: Booted) -> Booted:
    """The daemon runs, and its stations take triggers."""
    line.run("systemctl", "start", "edge-daemon")
    wait_until_ready(line)
    return line


def wait_until_ready(line: Booted, status: str = "st1 Ready") -> None:
    line.wait("the stations take triggers", lambda: line.show("edge-daemon", "StatusText") == status)


@contextmanager
def configured(line: Booted, text: str) -> Iterator[None]:
    """Another configuration for what is started within."""
    file = line.root / "etc/edge-daemon/edge.toml"
    file.write_text(text)
    try:
        yield
    finally:
        file.write_text(CONFIG)


def pid_of(line: Booted, unit: str = "edge-daemon") -> str:
    return line.show(unit, "MainPID")


def restarts(line: Booted, unit: str = "edge-daemon") -> int:
    return int(line.show(unit, "NRestarts"))


def ctl(line: Booted, *arguments: str) -> str:
    return line.run(f"{INSTALLED}/.venv/bin/edge-ctl", *arguments)


def test_a_start_returns_when_the_line_is_ready_and_runs_as_its_own_user(line: Booted) -> None:
    line.run("systemctl", "start", "edge-daemon")
    assert line.show("edge-daemon", "ActiveState") == "active"
    assert "st1" in ctl(line, "status")  # at once: the sockets are bound
    wait_until_ready(line)
    assert line.run("ps", "-o", "user=", "-p", pid_of(line)).strip() == "edge"


def test_a_line_of_the_log_is_found_by_station_and_trigger(daemon: Booted) -> None:
    ctl(daemon, "trigger", "st1", "--trigger-id", "4711", "--job", "another-product")
    found: list[dict[str, object]] = []
    daemon.wait("its line", lambda: found.extend(daemon.journal("STATION=st1", "TRIGGER_ID=4711")) or found)
    assert found[0]["REASON"] == "job_mismatch"
    assert found[0]["PRIORITY"] == "4"
    assert found[0]["_SYSTEMD_UNIT"] == "edge-daemon.service"
    assert len(str(found[0]["RECIPE_SET"])) == 64
    assert "MESSAGE" in daemon.journal("STATION=st1", "EVENT=camera_connected")[0]


def test_a_reload_is_done_by_the_daemon_that_runs(daemon: Booted) -> None:
    before = pid_of(daemon)
    daemon.run("systemctl", "reload", "edge-daemon")
    daemon.wait("it said so", lambda: daemon.journal("EVENT=reload", f"_PID={before}"))
    daemon.wait("it is active", lambda: daemon.show("edge-daemon", "ActiveState") == "active")
    assert pid_of(daemon) == before


def test_a_daemon_whose_model_hangs_is_restarted_and_says_where_it_hung(daemon: Booted) -> None:
    before, pid = restarts(daemon), pid_of(daemon)
    (daemon.root / "etc/edge-test-hang").write_text(pid)
    daemon.wait("the watchdog restarts it", lambda: restarts(daemon) > before)
    wait_until_ready(daemon)
    told = "\n".join(str(entry["MESSAGE"]) for entry in daemon.journal(f"_PID={pid}"))
    assert "Fatal Python error: Aborted" in told
    assert "_extract_golden" in told


@pytest.mark.parametrize("signal", ["STOP", "KILL"])
def test_a_daemon_that_is_frozen_or_killed_comes_back(daemon: Booted, signal: str) -> None:
    before, pid = restarts(daemon), pid_of(daemon)
    daemon.kill(pid, signal)
    daemon.wait("it is restarted", lambda: restarts(daemon) > before)
    wait_until_ready(daemon)
    assert pid_of(daemon) != pid


def test_a_stop_answers_the_part_in_flight(daemon: Booted) -> None:
    with configured(daemon, CONFIG + SLOW):
        daemon.run("systemctl", "restart", "edge-daemon")
        wait_until_ready(daemon, "st1 Ready; slow Ready")
        ctl(daemon, "trigger", "slow", "--trigger-id", "in-flight")
        daemon.run("systemctl", "stop", "edge-daemon")
    assert daemon.show("edge-daemon", "Result") == "success"
    exported = daemon.run(
        f"{INSTALLED}/.venv/bin/edge-daemon", "journal", "export", "--format", "jsonl", "--station", "slow"
    )
    (record,) = [line for line in exported.splitlines() if '"in-flight"' in line]
    assert '"Completed"' in record


def test_a_wrong_configuration_stays_down_and_the_journal_says_why(daemon: Booted) -> None:
    daemon.run("systemctl", "stop", "edge-daemon")
    with configured(daemon, CONFIG + "\n[wrong]\n"):
        daemon.run("systemctl", "start", "edge-daemon", check=False)
    assert daemon.show("edge-daemon", "ActiveState") == "failed"
    assert daemon.show("edge-daemon", "ExecMainStatus") == "78"
    assert restarts(daemon) == 0
    told = [str(entry["MESSAGE"]) for entry in daemon.journal("_SYSTEMD_UNIT=edge-daemon.service")]
    assert any("wrong" in message and "✗" in message for message in told[-10:])


def test_the_gateway_lives_through_the_daemons_restart_and_is_watched_itself(daemon: Booted) -> None:
    daemon.run("systemctl", "start", "edge-gateway")
    gateway = pid_of(daemon, "edge-gateway")
    daemon.run("systemctl", "restart", "edge-daemon")
    assert pid_of(daemon, "edge-gateway") == gateway
    daemon.kill(gateway, "STOP")
    daemon.wait("the watchdog restarts it", lambda: restarts(daemon, "edge-gateway") > 0)
    daemon.wait("it serves", lambda: daemon.show("edge-gateway", "ActiveState") == "active")
    assert pid_of(daemon, "edge-gateway") != gateway
    daemon.run("systemctl", "stop", "edge-gateway")


def test_a_recipe_is_imported_by_the_user_of_the_daemon(daemon: Booted) -> None:
    program = f"{INSTALLED}/.venv/bin/edge-daemon"
    as_edge = ("runuser", "-u", "edge", "--", "env", "LD_LIBRARY_PATH=/opt/python/lib", program)
    daemon.run(*as_edge, "store", "import", "/etc/edge-daemon/flange.recipe")
    with configured(daemon, CONFIG.replace("/etc/edge-daemon/flange.recipe", "flange")):
        daemon.run("systemctl", "restart", "edge-daemon")
        wait_until_ready(daemon)


def test_a_client_enrolled_while_the_line_runs_gets_in_with_a_reload(daemon: Booted) -> None:
    with configured(daemon, CONFIG + '[security]\ncurve = "always"\n'):
        ctl(daemon, "keys", "init")
        daemon.run("systemctl", "restart", "edge-daemon")
        wait_until_ready(daemon)
        ctl(daemon, "keys", "enrol", "anna", "--role", "operator", "--out", "/root/anna.key")
        stranger = daemon.run(f"{INSTALLED}/.venv/bin/edge-ctl", "--key", "/root/anna.key", "status", check=False)
        assert "st1" not in stranger
        daemon.run("systemctl", "reload", "edge-daemon")
        daemon.wait("it said so", lambda: daemon.journal("EVENT=reload", f"_PID={pid_of(daemon)}"))
        assert "st1" in ctl(daemon, "--key", "/root/anna.key", "status")
    daemon.run("systemctl", "restart", "edge-daemon")


_LIBRARIES = {
    "ctypes": "import ctypes; print(ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda x: x + 1)(2))",
    "cv2": "import cv2; print(cv2.VideoCapture('/nothing').isOpened() or 3)",
    "gi": """
import gi, sys
try:
    gi.require_version("Aravis", "0.8")
except ValueError:
    sys.exit(print("missing"))
from gi.repository import Aravis, GLib
loop = GLib.MainLoop()
GLib.idle_add(loop.quit)
loop.run()
Aravis.update_device_list()
print(Aravis.get_n_devices() + 3)""",
    "harvesters": """
import genicam, pathlib
from harvesters.core import Harvester
harvester = Harvester()
harvester.add_file(str(next(pathlib.Path(genicam.__file__).parent.glob("*.cti"))))
harvester.update()
camera = harvester.create(0)
camera.start()
camera.fetch(timeout=10).queue()
camera.destroy()
print(len(harvester.device_info_list))
harvester.reset()""",
}


@pytest.mark.parametrize("library", _LIBRARIES)
def test_what_cameras_are_reached_by_works_within_the_units_limits(line: Booted, library: str) -> None:
    """Callbacks from C are made by writing code and running it, unless the library knows of MemoryDenyWriteExecute."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    said = line.run_confined("edge-daemon", _LIBRARIES[library]).strip()
    if said == "missing":
        pytest.skip("needs Aravis (Debian: gir1.2-aravis-0.8)")
    assert said == "3"


def test_the_servers_secret_is_handed_over_by_systemd_when_there_is_one(daemon: Booted) -> None:
    store = daemon.root / "etc/credstore"
    store.mkdir(exist_ok=True, mode=0o700)
    (store / "edge-daemon.server.key").write_text("secret")
    daemon.run("systemctl", "restart", "edge-daemon")
    given = f"/proc/{pid_of(daemon)}/root/run/credentials/edge-daemon.service/server.key"
    assert daemon.run("cat", given) == "secret"
    (store / "edge-daemon.server.key").unlink()
