"""What every test gets: nothing may be left running or open, properties are reproducible in CI, and real data
are asked for by name and skipped with a reason where they are not."""

import gc
import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# A deadline on an example is a timing test of the machine, not of the code.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# For tests that import onnxruntime before anything of ours: see edge_daemon/__init__.py.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Inherited by every process that a test starts, so that grandchildren are found too.
RUN_MARK_NAME = "EDGE_TEST_RUN_MARK"
os.environ[RUN_MARK_NAME] = uuid.uuid4().hex

# Processes that were looked at and are not of this run, as long as they live: to look at all of them takes 7 ms, three
# times a test.
_FOREIGN: set[int] = set()
_KERNEL_PID = 2  # the parent of the system's own threads

# What closes on its own thread (a ZeroMQ reaper, a process that is ending) is given this long.
_GRACE_S = 3.0
_WATCHED_FILES = ("socket:", "pipe:", "anon_inode:[eventpoll]", "/")
_HARMLESS_FILES = ("/dev/", "/proc/", "/sys/")


@dataclass(frozen=True)
class Leftovers:
    """Names of what is running or open now and was not before, each once per occurrence."""

    threads: list[str]
    processes: list[str]
    files: list[str]

    def __bool__(self) -> bool:
        return bool(self.threads or self.processes or self.files)

    def __str__(self) -> str:
        return "; ".join(
            f"{what} left behind: {', '.join(names)}"
            for what, names in (("threads", self.threads), ("processes", self.processes), ("files", self.files))
            if names
        )


@dataclass(frozen=True)
class Surroundings:
    """What runs and what is open at one moment."""

    threads: frozenset[threading.Thread]
    processes: frozenset[int]
    files: Counter[str]

    @classmethod
    def now(cls) -> "Surroundings":
        return cls(frozenset(threading.enumerate()), frozenset(_processes_of_this_run()), Counter(_open_files()))

    def new_since(self, before: "Surroundings") -> Leftovers:
        return Leftovers(
            threads=sorted(
                thread.name
                for thread in self.threads - before.threads
                if type(thread).__name__ != "TMonitor"  # tqdm's, one for the whole process
            ),
            processes=sorted(_describe_process(pid) for pid in self.processes - before.processes),
            files=sorted((self.files - before.files).elements()),
        )


def leftovers_since(before: Surroundings) -> Leftovers:
    """What is new, after what is merely still closing has had its time."""
    found = Surroundings.now().new_since(before)
    if not found:
        return found
    gc.collect()  # an object that only the collector closes still warns, and a warning is an error
    give_up = time.monotonic() + _GRACE_S
    while (found := Surroundings.now().new_since(before)) and time.monotonic() < give_up:
        threading.Event().wait(0.01)
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a thread, a process, a socket or a file. `@pytest.mark.may_leave(reason)` exempts."""
    before = Surroundings.now()
    yield
    if request.node.get_closest_marker("may_leave"):
        return
    found = leftovers_since(before)
    for pid in _processes_of_this_run() - before.processes:
        os.kill(pid, signal.SIGKILL)
    assert not found, str(found)


def _processes_of_this_run() -> set[int]:
    """Children of this process and every process that inherited this run's mark. Empty where there is no /proc."""
    multiprocessing.active_children()  # reaps those that ended
    keepers = {os.getpid(), *_multiprocessing_keepers()}
    mark = f"{RUN_MARK_NAME}={os.environ[RUN_MARK_NAME]}".encode()
    running = {int(name) for name in os.listdir("/proc") if name.isdecimal()} if os.path.isdir("/proc") else set()
    _FOREIGN.intersection_update(running)
    found = set()
    for pid in running - keepers - _FOREIGN:
        entry = Path("/proc") / str(pid)
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == _KERNEL_PID:
                _FOREIGN.add(pid)
            elif parent == os.getpid() or mark in (entry / "environ").read_bytes().split(b"\0"):
                found.add(pid)
            else:
                _FOREIGN.add(pid)
        except (OSError, ValueError):
            continue  # ended while we looked, or not ours to read
    return found


def _multiprocessing_keepers() -> list[int]:
    """Helper processes that multiprocessing keeps for the life of the interpreter."""
    from multiprocessing import forkserver, resource_tracker

    keepers = (
        getattr(resource_tracker._resource_tracker, "_pid", None),
        getattr(forkserver._forkserver, "_forkserver_pid", None),
    )
    return [pid for pid in keepers if pid is not None]


def _describe_process(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = ""
    return f"{pid} ({command or 'ended, but nobody waited for it'})"


def _open_files() -> list[str]:
    """Sockets, pipes, event polls and regular files open in this process, by what /proc calls them."""
    found = []
    for entry in Path("/proc/self/fd").glob("*"):
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith(_WATCHED_FILES) and not target.startswith(_HARMLESS_FILES):
            found.append(target)
    return found


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real pictures and weights: EDGE_TEST_DATA, or `shared` beside the repository. Skips without."""
    folder = Path(os.environ.get("EDGE_TEST_DATA", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs real pictures: no folder {folder}; set EDGE_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def shared_file(shared_data: Path) -> Callable[[str], Path]:
    """A file or folder of the shared data by its relative path. Skips with the name of what is missing."""

    def find(relative: str) -> Path:
        path = shared_data / relative
        if not path.exists():
            pytest.skip(f"needs {relative} in {shared_data}; set EDGE_TEST_DATA to a folder that has it")
        return path

    return find


@pytest.fixture(scope="session")
def bottle_dir(shared_file: Callable[[str], Path]) -> Path:
    """MVTec AD `bottle` in its own layout (train/good, test/*, ground_truth/*), 512 px."""
    return shared_file("data/mvtec_bottle_512")


@pytest.fixture(scope="session")
def resnet18_weights(shared_file: Callable[[str], Path]) -> Path:
    """ImageNet ResNet-18 through layer 3, timm key names, safetensors."""
    return shared_file("weights/resnet18_imagenet_to_layer3.safetensors")
