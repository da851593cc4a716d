"""A camera in a process of its own: whatever that process does, every call ends in time, no frame is taken for
another, and nothing is left behind."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_daemon.cameras.base import CameraSilent, FrameLost
from edge_daemon.cameras.channel import SlotError, SlotReader, SlotWriter
from edge_daemon.cameras.config import SimulatedConfig
from edge_daemon.cameras.isolated import IsolatedCamera, Limits
from edge_daemon.cameras.open import make_camera
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError

ROOT = Path(__file__).resolve().parents[2]
MS = 1_000_000
PATIENCE_NS = 20_000 * MS

Make = Callable[..., IsolatedCamera]


@pytest.fixture
def make() -> Iterator[Make]:
    """Opens isolated simulated cameras, closed at the end."""
    made: list[IsolatedCamera] = []

    def one(**keys: Any) -> IsolatedCamera:
        table = {"kind": "simulated", "product": "cap", "size": [96, 64], "isolated": True, **keys}
        camera = make_camera("top", SimulatedConfig.model_validate(table), time.monotonic_ns)
        assert isinstance(camera, IsolatedCamera)
        made.append(camera)
        camera.open()
        return camera

    yield one
    for camera in made:
        camera.close()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Opens cameras whose process misbehaves as the name says."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made: list[IsolatedCamera] = []

    def one(behaviour: str, connect: bool = True, **limits: int) -> IsolatedCamera:
        camera = IsolatedCamera(
            behaviour,
            SimulatedConfig(kind="simulated", product="cap", isolated=True),
            time.monotonic_ns,
            simulated=True,
            waits_for_host=True,
            limits=Limits(**limits),
            module="tests.fakes.camera_child",
        )
        made.append(camera)
        if connect:
            camera.open()
        return camera

    yield one
    for camera in made:
        camera.close()


def process_of(camera: IsolatedCamera) -> int:
    assert camera.pid is not None
    return camera.pid


def is_gone(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not true() and time.monotonic() < give_up:
        threading.Event().wait(0.005)
    assert true()


def lost(ask: Callable[[], object]) -> str:
    """Asks until the camera is lost, and returns what is said then. Nothing may come before."""
    for _ in range(2_000):
        try:
            assert ask() is None
        except CameraError as error:
            return str(error)
    raise AssertionError("the camera was not lost")


def fetch(camera: IsolatedCamera) -> Frame:
    frame = camera.grab(PATIENCE_NS)
    assert frame is not None
    return frame


# --- frames --------------------------------------------------------------------------------------


def test_pictures_and_identities_arrive_as_the_camera_gave_them(make: Make) -> None:
    isolated = make(seed=4)
    table = {"kind": "simulated", "product": "cap", "size": [96, 64], "seed": 4}
    plain = make_camera("top", SimulatedConfig.model_validate(table), time.monotonic_ns)
    plain.open()
    for _ in range(3):
        theirs, ours = plain.grab(PATIENCE_NS), fetch(isolated)
        assert theirs is not None
        assert np.array_equal(ours.pixels, theirs.pixels)
        assert (ours.frame_id, ours.device_frame_id) == (theirs.frame_id, theirs.device_frame_id)
        assert ours.clock_quality == "camera"
        assert ours.exposed_ns == ours.device_ns
    plain.close()


def test_no_answer_is_told_from_no_frame(make: Make) -> None:
    camera = make(rate_hz=0.01)
    fetch(camera)
    assert camera.grab(50 * MS) is None
    assert not camera.overdue
    os.kill(process_of(camera), signal.SIGSTOP)
    assert camera.grab(MS) is None
    assert camera.overdue
    os.kill(process_of(camera), signal.SIGCONT)
    wait_until(lambda: camera.grab(MS) is None and not camera.overdue)


def test_sizes_and_formats_may_change_from_frame_to_frame(make: Make) -> None:
    faults = [{"frame": 2, "action": "wrong_size"}, {"frame": 3, "action": "wrong_format"},
              {"frame": 4, "action": "return_smaller"}]  # fmt: skip
    camera = make(faults=faults)
    assert [fetch(camera).pixels.shape for _ in range(3)] == [(64, 96, 3), (32, 48, 3), (64, 96)]
    with pytest.raises(CameraError, match="connection lost"):
        camera.grab(PATIENCE_NS)


def test_a_frame_survives_the_frames_after_it_and_the_process(make: Make) -> None:
    camera = make()
    first = fetch(camera)
    kept = first.pixels.copy()
    fetch(camera)
    camera.close()
    assert np.array_equal(first.pixels, kept)
    with pytest.raises(ValueError, match="read-only"):
        first.pixels[0, 0] = 1


@pytest.mark.parametrize("shape", [(2000, 8000, 3), (1, 1), (7, 5, 3), (4096, 1)])
def test_any_size_goes_through_the_slot(shape: tuple[int, ...]) -> None:
    writer, reader = SlotWriter(), SlotReader()
    frame = Frame("c", 3, np.resize(np.arange(251, dtype=np.uint8), shape), 12, 65535, 2**63, -7, 5, "ptp")
    descriptor = writer.write(9, frame, numbered_from=40)
    assert descriptor is not None
    reader.attach(descriptor)
    found = reader.read(9, "c")
    assert np.array_equal(found.pixels, frame.pixels)
    assert (found.frame_id, found.device_frame_id, found.device_ns, found.exposed_ns) == (43, 65535, 2**63, -7)
    assert (found.arrived_ns, found.exposed_uncertainty_ns, found.clock_quality) == (12, 5, "ptp")
    assert writer.write(10, frame) is None  # the same memory serves
    with pytest.raises(SlotError, match="request 10"):
        reader.read(9, "c")
    reader.close()


def test_a_slot_whose_writer_died_in_the_middle_holds_no_frame() -> None:
    writer, reader = SlotWriter(), SlotReader()
    frame = Frame("c", 1, np.zeros((8, 8), np.uint8), 1)
    descriptor = writer.write(1, frame)
    assert descriptor is not None
    reader.attach(descriptor)

    class Dies:
        nbytes, size, shape, ndim = 64, 64, (8, 8), 2

        def __array__(self, *_: object, **__: object) -> Any:
            raise KeyboardInterrupt

    half = Frame("c", 2, np.zeros((8, 8), np.uint8), 1)
    object.__setattr__(half, "pixels", Dies())
    with pytest.raises(KeyboardInterrupt):
        writer.write(2, half)
    for seq in (1, 2):
        with pytest.raises(SlotError):
            reader.read(seq, "c")
    reader.close()


@pytest.mark.parametrize(
    "behaviour",
    ["garbage", "no_object", "endless", "half_a_message", "no_memory", "no_descriptor", "slot_unsealed", "slot_tiny",
     "slot_too_short", "slot_of_another_request", "slot_huge", "slot_channels", "slot_quality", "slot_torn"],
)  # fmt: skip
def test_a_process_that_talks_nonsense_is_a_lost_camera_and_its_frame_no_frame(fake: Make, behaviour: str) -> None:
    camera = fake(behaviour)
    with pytest.raises(CameraError, match=behaviour):
        camera.grab(PATIENCE_NS)
    assert camera.pid is None
    assert camera.counters()["processes_lost"] == 1


@pytest.mark.parametrize("behaviour", ["slot_old", "slot_from_the_future"])
def test_a_frame_from_before_the_connection_or_from_no_time_at_all_is_not_delivered(fake: Make, behaviour: str) -> None:
    camera = fake(behaviour)
    wait_until(lambda: camera.grab(5 * MS) is None and camera.counters()["stale_frames"] >= 1)


# --- time ----------------------------------------------------------------------------------------


def test_a_frozen_process_holds_up_no_call_and_is_killed_by_close(make: Make) -> None:
    camera = make()
    fetch(camera)
    pid = process_of(camera)
    os.kill(pid, signal.SIGSTOP)
    assert camera.grab(30 * MS) is None
    camera.trigger()  # only sent
    assert camera.grab(30 * MS) is None
    with pytest.raises(CameraSilent, match="no sign of life within 20 ms"):
        camera.check(20 * MS)
    camera.close()
    wait_until(lambda: is_gone(pid))
    assert camera.counters()["processes_lost"] == 1


def test_a_silence_that_goes_on_is_a_lost_camera(fake: Make) -> None:
    camera = fake("silent", hang_ns=20 * MS)
    assert "answers nothing" in lost(lambda: camera.grab(5 * MS))
    assert camera.pid is None


def test_an_opening_that_hangs_ends_in_its_time(fake: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_daemon.cameras.isolated._START_NS", 0)
    with pytest.raises(CameraError, match="could not be opened within"):
        fake("silent_at_open", open_ns=100 * MS)


def test_a_process_that_does_not_want_to_end_is_killed(fake: Make) -> None:
    camera = fake("never_ends")
    pid = process_of(camera)
    camera.close()
    wait_until(lambda: is_gone(pid))


def test_frames_that_were_asked_for_before_a_freeze_never_answer_a_trigger_after_it(make: Make) -> None:
    camera = make(exposure_ms=1)
    camera.trigger()
    assert fetch(camera).frame_id == 1
    os.kill(process_of(camera), signal.SIGSTOP)
    camera.trigger()  # of a part that will be gone
    assert camera.grab(10 * MS) is None
    os.kill(process_of(camera), signal.SIGCONT)
    asked_ns = time.monotonic_ns()
    camera.trigger()
    frame = fetch(camera)
    assert frame.frame_id == 3
    assert frame.exposed_ns is not None
    assert frame.exposed_ns >= asked_ns
    assert camera.grab(5 * MS) is None


def test_a_free_running_frame_that_a_freeze_kept_for_too_long_is_lost_and_says_so(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = make(rate_hz=200)
    fetch(camera)
    monkeypatch.setattr("edge_daemon.cameras.isolated._STALE_NS", -1)
    with pytest.raises(FrameLost, match="late"):
        camera.grab(PATIENCE_NS)
    assert camera.counters()["stale_frames"] == 1


def test_a_frame_that_lay_in_its_library_is_as_old_as_the_cameras_clock_says(fake: Make) -> None:
    """It was handed over just now, and so it seems to have arrived just now."""
    camera = fake("slot_lain")
    with pytest.raises(FrameLost, match=r"frame 1 came 10\.\d s late"):
        camera.grab(PATIENCE_NS)
    assert camera.counters()["stale_frames"] == 1


# --- the end of a process ------------------------------------------------------------------------


def test_a_killed_process_is_an_error_at_once_and_the_next_one_goes_on_counting(make: Make) -> None:
    camera = make()
    last = fetch(camera).frame_id
    pid = process_of(camera)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))
    with pytest.raises(CameraError, match="signal 9"):
        camera.grab(PATIENCE_NS)
    with pytest.raises(CameraError, match="closed"):
        camera.grab(MS)
    camera.close()
    camera.open()
    assert fetch(camera).frame_id > last
    assert process_of(camera) != pid


@pytest.mark.parametrize("action", ["crash", "freeze"])
def test_a_scripted_end_happens_once(make: Make, action: str) -> None:
    camera = make(faults=[{"trigger": 1, "action": action}])
    camera.trigger()
    lost(lambda: camera.grab(10 * MS) or camera.check(50 * MS))
    camera.close()
    camera.open()
    assert camera.grab(10 * MS) is None  # still a triggered one, and that trigger is past
    camera.trigger()
    assert fetch(camera).frame_id == 2


def test_a_camera_that_cannot_be_opened_is_tried_again_in_the_same_process(fake: Make) -> None:
    camera = fake("absent_twice", connect=False)
    pids = []
    for _ in range(2):
        with pytest.raises(CameraError, match="nobody there"):
            camera.open()
        pids.append(process_of(camera))
        with pytest.raises(CameraError, match="closed"):
            camera.grab(MS)
    camera.open()
    assert camera.grab(MS) is None
    assert {*pids} == {process_of(camera)}


def test_closing_from_another_thread_ends_the_call_under_way(make: Make) -> None:
    camera = make()
    camera.trigger()
    fetch(camera)
    said: list[str] = []

    def wait() -> None:
        try:
            camera.grab(3_600_000 * MS)
        except CameraError as error:
            said.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    camera.close()
    thread.join(20)
    assert not thread.is_alive()
    assert "closed" in said[0]


def test_a_process_does_not_mind_signals_meant_for_the_daemon_and_its_group(make: Make) -> None:
    camera = make()
    fetch(camera)
    pid = process_of(camera)
    assert os.getpgid(pid) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    fetch(camera)
    assert process_of(camera) == pid


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_never_survives_the_daemon_even_frozen(how: signal.Signals) -> None:
    script = """
import sys, time
from edge_daemon.cameras.config import SimulatedConfig
from edge_daemon.cameras.open import make_camera
config = SimulatedConfig(kind="simulated", product="cap", size=(64, 64), isolated=True)
camera = make_camera("top", config, time.monotonic_ns)
camera.open()
print(camera.pid, flush=True)
camera.grab(10**9)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        daemon.send_signal(how)
        daemon.wait(20)
        wait_until(lambda: is_gone(pid))


def test_a_password_stands_neither_in_the_command_line_nor_in_the_environment(make: Make) -> None:
    camera = make(seed=771177)
    entry = Path("/proc") / str(process_of(camera))
    assert b"771177" not in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()


# --- nothing is left behind ----------------------------------------------------------------------


def test_fifty_reconnects_leave_no_thread_descriptor_process_or_memory(fake: Make) -> None:
    camera = fake("quiet")
    cycles = int(os.environ.get("EDGE_SOAK_CYCLES", "50"))

    def cycle(number: int) -> None:
        match number % 3:
            case 0:
                camera.close()
            case 1:
                os.kill(process_of(camera), signal.SIGKILL)
            case 2:
                os.kill(process_of(camera), signal.SIGSTOP)
        lost(lambda: camera.grab(MS) or camera.check(2 * MS))
        camera.close()
        camera.open()

    def ended() -> None:
        """What was killed and has not ended yet is waited for by a thread of its own."""
        for thread in threading.enumerate():
            if thread.name.startswith("ending-"):
                thread.join(20)

    for number in range(6):  # what is made once for good
        cycle(number)
    ended()
    threads, files, memory_kb = threading.active_count(), open_files(), resident_kb()
    for number in range(cycles):
        cycle(number)
    ended()
    assert threading.active_count() == threads
    assert open_files() == files
    assert resident_kb() - memory_kb < 1_000 + cycles
    assert camera.counters()["processes_started"] == cycles + 7
    assert camera.counters()["completed"] == cycles + 7


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
