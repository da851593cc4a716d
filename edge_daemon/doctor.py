"""What `edge-daemon doctor` looks at: what line engineers trip over on a PC, each finding with what to do.

`check` asks whether the daemon could start; this asks why it is slow, loses frames, or will stop next month. It looks
at the whole PC, changes nothing, and may run beside the daemon.
"""

import contextlib
import fcntl
import ipaddress
import os
import resource
import shutil
import socket
import sqlite3
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

from edge_daemon.check import Report, check
from edge_daemon.config import Config, load_config
from edge_daemon.edges.clock import kernel_clock_quality
from edge_daemon.errors import ConfigError
from edge_daemon.threads import physical_cores, thread_pools

_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B  # netdevice(7)

# Cameras that stream over the network, by the kind of their table.
_NETWORK_KINDS = frozenset({"gige", "gentl"})
_JUMBO_MTU = 8000  # GigE Vision packets of 8 KB and more; a switch or card that says 9000 gives some of it away
_RECEIVE_BUFFER_BYTES = 8 << 20  # a burst of some frames while the receiver waits for a core

_LOW_SPACE_BYTES, _NO_SPACE_BYTES = 10 << 30, 1 << 30
_FSYNC_TURNS = 100
_FSYNC_BLOCK_BYTES = 8192  # two pages: what one commit of a few records appends to the write-ahead log
_OPEN_FILES = 1024
_LARGE_JOURNAL_BYTES = 20 << 30
_LARGEST_CLOCK_ERROR_US = 100_000

Level = Literal["ok", "hint", "error"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding. topic: what was looked at; level: `ok`, `hint` (worth doing) or `error` (will hurt)."""

    topic: str
    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface with an IPv4 address. physical: a card, not a bridge or a tunnel."""

    name: str
    network: ipaddress.IPv4Network
    mtu: int
    physical: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the facts are read: the real PC by default."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    interfaces: Callable[[], tuple[Interface, ...]] = field(default=lambda: read_interfaces())
    clock_quality: Callable[[], tuple[str, int]] = kernel_clock_quality
    fsync_ms: Callable[[Path], list[float]] = field(default=lambda folder: time_fsync(folder))
    pools: Callable[[], Mapping[str, str | int]] = thread_pools
    check: Callable[[Path], Report] = check


def examine(path: Path, machine: Machine | None = None) -> tuple[Diagnosis, ...]:
    """Everything about this PC and the configuration at `path`, in the order in which it is worth reading."""
    machine = machine or Machine()
    try:
        config = load_config(path, recipes_must_exist=False)
    except ConfigError:
        config = None
    found = list(_configuration(path, machine.check(path)))
    if config is not None:
        found += _disk(config, machine)
        found += _journal(config.journal_path)
        found += _network(config, machine)
        found += _camera_rights(config, machine)
        found += _provider(config, machine)
    found += _clock(machine)
    found += _pools(machine)
    found += _cpu(machine)
    found += _limits()
    return tuple(found)


# ---------------------------------------------------------------- configuration


def _configuration(path: Path, report: Report) -> Iterator[Diagnosis]:
    for finding in report.findings:
        yield Diagnosis("config", finding.level, finding.text)
    if report.ok:
        count = len(report.recipes)
        judge = "1 recipe judges its" if count == 1 else f"{count} recipes judge their"
        yield Diagnosis("config", "ok", f"{path}: complete; {judge} golden samples rightly")


# ---------------------------------------------------------------- disk and journal


def _disk(config: Config, machine: Machine) -> Iterator[Diagnosis]:
    folder = _existing(config.journal_path.parent)
    free = shutil.disk_usage(folder).free
    shown = f"{free / 2**30:.1f} GB free"
    if free < _NO_SPACE_BYTES:
        yield Diagnosis("disk", "error", f"{folder}: {shown}; no part can be recorded soon: make space now")
    elif free < _LOW_SPACE_BYTES:
        yield Diagnosis("disk", "hint", f"{folder}: {shown}; make space, or move state_dir to a larger disk")
    else:
        yield Diagnosis("disk", "ok", f"{folder}: {shown}")
    if not os.access(folder, os.W_OK):
        yield Diagnosis("disk", "error", f"{folder}: cannot be written by this user; nothing can be recorded")
        return
    p99 = _quantile(machine.fsync_ms(folder), 0.99)
    budget = config.journal.commit_budget_ms
    text = f"{folder}: a record is on the disk within {p99:.1f} ms (99 of 100)"
    if p99 > budget:
        yield Diagnosis(
            "disk", "error", f"{text}, more than journal.commit_budget_ms ({budget:g}): verdicts will be withdrawn; "
            "use a disk of its own, an SSD with power-loss protection, or a larger budget"
        )  # fmt: skip
    elif p99 > budget / 4:
        yield Diagnosis("disk", "hint", f"{text}; a busy disk will pass the budget of {budget:g} ms at times")
    else:
        yield Diagnosis("disk", "ok", text)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(p for p in (folder, *folder.parents) if p.is_dir())


def time_fsync(folder: Path) -> list[float]:
    """Milliseconds of a hundred appends, each made durable, in a file that is gone afterwards."""
    taken = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(_FSYNC_TURNS):
            file.write(os.urandom(_FSYNC_BLOCK_BYTES))
            file.flush()
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - started) * 1e3)
    return taken


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _journal(path: Path) -> Iterator[Diagnosis]:
    if not path.exists():
        yield Diagnosis("journal", "ok", f"{path}: not there yet; the first start makes it")
        return
    size = path.stat().st_size
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2)) as journal:
            boots, boot = journal.execute("SELECT count(*), max(number) FROM boot").fetchone()
            unfinished = journal.execute("SELECT count(*) FROM intent WHERE boot < ?", (boot or 0,)).fetchone()[0]
            problem = journal.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        text = (
            f"{path}: cannot be read ({error}); the daemon moves a damaged journal aside at its start: keep that file"
        )
        yield Diagnosis("journal", "error", text)
        return
    if problem != "ok":
        text = f"{path}: is damaged ({problem}); copy it away, then restart the daemon, which starts a new one"
        yield Diagnosis("journal", "error", text)
    elif size > _LARGE_JOURNAL_BYTES:
        text = f"{path}: {size / 2**30:.0f} GB; it starts slowly. At a stop, move it away: a new one is begun"
        yield Diagnosis("journal", "hint", text)
    else:
        yield Diagnosis(
            "journal",
            "ok",
            f"{path}: sound, {size / 2**20:.1f} MB, {boots} start{'' if boots == 1 else 's'} of the daemon",
        )
    if unfinished:
        text = f"{path}: {unfinished} trigger(s) of earlier boots without outcome; the next start fails them on record"
        yield Diagnosis("journal", "hint", text)


# ---------------------------------------------------------------- network


def read_interfaces(sys: Path = Path("/sys")) -> tuple[Interface, ...]:
    """Every interface that is up with an IPv4 address, without the loopback."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                address = socket.inet_ntoa(fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, request)[20:24])
                mask = socket.inet_ntoa(fcntl.ioctl(asked.fileno(), _SIOCGIFNETMASK, request)[20:24])
                mtu = int((sys / "class/net" / name / "mtu").read_text())
            except (OSError, ValueError):
                continue  # no address
            network = ipaddress.IPv4Network(f"{address}/{mask}", strict=False)
            if not network.is_loopback:
                found.append(Interface(name, network, mtu, (sys / "class/net" / name / "device").exists()))
    return tuple(found)


def _network(config: Config, machine: Machine) -> Iterator[Diagnosis]:
    cameras = sorted(name for name, camera in config.cameras.items() if camera.kind in _NETWORK_KINDS)
    if not cameras:
        return
    interfaces = machine.interfaces()
    for one, other in combinations(interfaces, 2):
        if one.network.overlaps(other.network):
            yield Diagnosis(
                "network", "error", f"{one.name} ({one.network}) and {other.name} ({other.network}) share a subnet: "
                "packets for a camera leave by the wrong card; give each card that has cameras a subnet of its own"
            )  # fmt: skip
    for card in interfaces:
        if card.physical and card.mtu < _JUMBO_MTU:
            yield Diagnosis(
                "network", "hint", f"{card.name}: MTU {card.mtu}; with cameras on it, 9000 takes a sixth of the "
                f"interrupts (`ip link set {card.name} mtu 9000`, switches included), then packet_size as large"
            )  # fmt: skip
    yield _receive_buffer(machine)


def _receive_buffer(machine: Machine) -> Diagnosis:
    try:
        largest = int((machine.proc / "sys/net/core/rmem_max").read_text())
    except (OSError, ValueError):
        return Diagnosis("network", "hint", "net.core.rmem_max cannot be read; whether bursts are lost is not known")
    shown = f"net.core.rmem_max is {largest / 2**20:.1f} MB"
    if largest < _RECEIVE_BUFFER_BYTES:
        text = f"{shown}: packets are lost when the receiver waits for a core; `sysctl -w net.core.rmem_max=33554432`"
        return Diagnosis("network", "hint", f"{text}, and the same line in /etc/sysctl.d/")
    return Diagnosis("network", "ok", shown)


def _camera_rights(config: Config, machine: Machine) -> Iterator[Diagnosis]:
    """Devices that are there and may not be opened by this user."""
    for name, camera in config.cameras.items():
        source = getattr(camera, "device", None)
        if isinstance(source, int):
            device = machine.dev / f"video{source}"
        elif isinstance(source, str) and source.startswith("/dev/"):
            device = machine.dev / source.removeprefix("/dev/")
        else:
            continue
        if not device.exists():
            yield Diagnosis("cameras", "error", f"cameras.{name}: there is no {device}; check cable and power")
        elif not os.access(device, os.R_OK | os.W_OK):
            text = f"cameras.{name}: {device} may not be opened by this user; add it to the group `video`"
            yield Diagnosis("cameras", "error", text)
        else:
            yield Diagnosis("cameras", "ok", f"cameras.{name}: {device} may be opened")


# ---------------------------------------------------------------- what computes


def _provider(config: Config, machine: Machine) -> Iterator[Diagnosis]:
    wanted = config.engine.provider
    driver = machine.proc / "driver/nvidia/version"
    if wanted == "cpu":
        if (machine.dev / "nvidia0").exists():
            text = 'an NVIDIA card is here and engine.provider is "cpu"; "cuda" would use it'
            yield Diagnosis("provider", "hint", text)
        return
    if not driver.exists():
        text = f"engine.provider is {wanted!r} and no NVIDIA driver is loaded (`nvidia-smi`); install it, then restart"
        yield Diagnosis("provider", "error", text)
    else:
        yield Diagnosis("provider", "ok", driver.read_text(errors="replace").splitlines()[0].strip())


def _clock(machine: Machine) -> Iterator[Diagnosis]:
    quality, error_us = machine.clock_quality()
    if quality == "unknown":
        yield Diagnosis("clock", "hint", "the kernel does not say whether the clock is synchronised")
    elif quality == "unsynchronised":
        text = "is not synchronised: records of two PCs cannot be put in order; enable chrony or systemd-timesyncd"
        yield Diagnosis("clock", "hint", f"the clock {text}")
    elif error_us > _LARGEST_CLOCK_ERROR_US:
        text = f"the clock may be {error_us / 1e3:.0f} ms off; look at the time server (`chronyc tracking`)"
        yield Diagnosis("clock", "hint", text)
    else:
        yield Diagnosis("clock", "ok", f"synchronised ({quality}), within {error_us / 1e3:.1f} ms")


def _pools(machine: Machine) -> Iterator[Diagnosis]:
    cores, pools = physical_cores(), machine.pools()
    large = {name: size for name, size in pools.items() if name.endswith("_NUM_THREADS") and _number(size) > cores}
    for name, size in large.items():
        text = f"{name} is {size} on {cores} cores: threads take turns, and a frame waits for all; leave it unset"
        yield Diagnosis("threads", "hint", text)
    if pools.get("OMP_WAIT_POLICY") == "ACTIVE":
        text = "OMP_WAIT_POLICY is ACTIVE: a pool that spins takes the cores from the next step; leave it unset"
        yield Diagnosis("threads", "hint", text)
    elif not large:
        yield Diagnosis("threads", "ok", f"pools of {pools.get('OMP_NUM_THREADS', cores)} on {cores} cores")


def _number(value: str | int) -> int:
    try:
        return int(value)
    except ValueError:
        return 0


def _cpu(machine: Machine) -> Iterator[Diagnosis]:
    governors = set()
    for file in (machine.sys / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"):
        with contextlib.suppress(OSError):
            governors.add(file.read_text().strip())
    if governors & {"powersave", "conservative"}:
        text = f"the CPU governor is {', '.join(sorted(governors))}: the first frames after a pause are slow; "
        yield Diagnosis("cpu", "hint", text + "`cpupower frequency-set -g performance`")
    elif governors:
        yield Diagnosis("cpu", "ok", f"governor {', '.join(sorted(governors))}")


def _limits() -> Iterator[Diagnosis]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        text = f"at most {soft} open files: many subscribers and cameras need more; set LimitNOFILE=65536 in the unit"
        yield Diagnosis("limits", "hint", text)
