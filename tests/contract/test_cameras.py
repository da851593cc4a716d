"""What every camera does, run against every kind of camera; then what each kind adds."""

import math
import queue
import re
import shutil
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from edge_daemon.artefact.camera import CAMERA_FILE, CameraFile, write_camera_file
from edge_daemon.cameras.base import Camera, EndOfFrames, FrameLost
from edge_daemon.cameras.config import (
    CameraConfig,
    FolderConfig,
    RtspConfig,
    SimulatedConfig,
    UsbConfig,
    VideoConfig,
)
from edge_daemon.cameras.exposures import BUFFERED_FRAMES
from edge_daemon.cameras.folder import FolderCamera
from edge_daemon.cameras.isolated import IsolatedCamera
from edge_daemon.cameras.open import make_camera
from edge_daemon.cameras.opencv import Lag, LiveCamera, VideoCamera, shown_source
from edge_daemon.cameras.simulated import SimulatedCamera, defect_script
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError
from edge_daemon.simulation.render import render

MS = 1_000_000
PATIENCE_NS = 5_000 * MS  # for frames that surely come
PICTURES = 6
MJPG = 0x47504A4D  # the four letters, first one lowest


@dataclass
class FakeTime:
    """A clock that only waiting moves."""

    now: int = 1_000 * MS

    def now_ns(self) -> int:
        return self.now

    def pause_s(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


@dataclass
class Bench:
    """A camera on the bench, with its time."""

    camera: Camera
    time: FakeTime | None = None


@dataclass
class StreamingCapture:
    """Stands for a live cv2.VideoCapture: grey level = number of the picture. `steps` scripts the reads; a step is
    a callable that the read runs first, and what it returns is what the read says (None: a good picture)."""

    steps: list[Callable[[], Any]] = field(default_factory=list)
    pace: threading.Event = field(default_factory=threading.Event)
    opened: bool = True
    released: threading.Event = field(default_factory=threading.Event)
    reads: int = 0

    def isOpened(self) -> bool:  # noqa: N802
        return self.opened

    def read(self) -> tuple[bool, Any]:
        said = None
        if self.steps:
            said = self.steps.pop(0)()
        else:
            self.pace.wait(0.001)
        if said is not None:
            return bool(said[0]), said[1]
        self.reads += 1
        return True, np.full((48, 64, 3), self.reads % 256, np.uint8)

    def grab(self) -> bool:
        return True

    def get(self, propId: int) -> float:  # noqa: N803
        return {cv2.CAP_PROP_FRAME_WIDTH: 64.0, cv2.CAP_PROP_FRAME_HEIGHT: 48.0}.get(propId, 0.0)

    def release(self) -> None:
        self.released.set()


def hold(what: threading.Event | threading.Semaphore) -> None:
    """A read that waits inside the driver."""
    if isinstance(what, threading.Event):
        what.wait(20)
    else:
        what.acquire(timeout=20)


def grey(level: int) -> NDArray[np.uint8]:
    return np.full((48, 64), level, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures whose grey level is 10 times their number; `img10` would sort before `img2` as text."""
    path = tmp_path / "pictures"
    (path / "deep").mkdir(parents=True)
    for number, name in enumerate(["a1.png", "deep/b2.png", "deep/b10.png", "z1.png", "z2.png", "z10.png"], 1):
        cv2.imwrite(str(path / name), grey(10 * number))
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, MJPG, 25.0, (64, 48))
    for number in range(1, PICTURES + 1):
        writer.write(cv2.merge([grey(10 * number)] * 3))
    writer.release()
    return path


FINITE = ["folder", "folder_preloaded", "video"]
COUNTED = ["simulated", *FINITE]  # those whose clock is ours


@pytest.fixture(params=[*COUNTED, "live", "isolated", "isolated_video"])
def bench(request: pytest.FixtureRequest, folder: Path, video: Path) -> Iterator[Bench]:
    fake = FakeTime()
    match request.param:
        case "simulated":
            config = SimulatedConfig(kind="simulated", product="board", size=(96, 64), exposure_ms=3)
            made = Bench(SimulatedCamera("top", config, fake.now_ns, fake.pause_s), fake)
        case "folder" | "folder_preloaded":
            replay = FolderConfig(kind="folder", path=folder, preload=request.param == "folder_preloaded")
            made = Bench(FolderCamera("top", replay, fake.now_ns, fake.pause_s), fake)
        case "video":
            made = Bench(VideoCamera("top", VideoConfig(kind="video", path=video), fake.now_ns, fake.pause_s), fake)
        case "isolated":
            table = {"kind": "simulated", "product": "board", "size": (96, 64), "exposure_ms": 3, "isolated": True}
            made = Bench(make_camera("top", SimulatedConfig.model_validate(table), time.monotonic_ns))
        case "isolated_video":
            made = Bench(make_camera("top", VideoConfig(kind="video", path=video), time.monotonic_ns))
        case _:
            live = UsbConfig(kind="usb", device=0)
            made = Bench(LiveCamera("top", live, time.monotonic_ns, open_capture=lambda _: StreamingCapture()))
    yield made
    made.camera.close()


def asks(camera: Camera) -> list[Callable[[], object]]:
    """Everything that an open camera can be asked."""
    return [camera.trigger, lambda: camera.grab(MS), lambda: camera.check(MS)]


# --- every camera --------------------------------------------------------------------------------


def test_constructing_a_camera_starts_nothing_and_a_closed_one_says_so(bench: Bench) -> None:
    for ask in asks(bench.camera):
        with pytest.raises(CameraError, match="top"):
            ask()


def test_opening_and_closing_twice_is_harmless(bench: Bench) -> None:
    bench.camera.close()
    bench.camera.open()
    bench.camera.open()
    assert bench.camera.grab(PATIENCE_NS) is not None
    bench.camera.close()
    bench.camera.close()


def test_after_close_neither_trigger_nor_grab_works(bench: Bench) -> None:
    bench.camera.open()
    bench.camera.trigger()
    bench.camera.close()
    for ask in asks(bench.camera):
        with pytest.raises(CameraError, match="closed"):
            ask()


def test_frames_are_read_only_8_bit_pictures_with_their_identity(bench: Bench) -> None:
    bench.camera.open()
    frame = bench.camera.grab(PATIENCE_NS)
    assert frame is not None
    assert frame.camera == bench.camera.name == "top"
    assert frame.pixels.dtype == np.uint8
    assert frame.pixels.ndim == 2 or frame.pixels.shape[2] == 3
    with pytest.raises(ValueError, match="read-only"):
        frame.pixels[0, 0] = 1


def test_free_running_ids_and_arrivals_rise(bench: Bench) -> None:
    bench.camera.open()
    frames = [bench.camera.grab(PATIENCE_NS) for _ in range(5)]
    ids = [f.frame_id for f in frames if f]
    arrivals = [f.arrived_ns for f in frames if f]
    assert len(ids) == 5
    assert ids == sorted(set(ids))
    assert ids[0] >= 1
    assert arrivals == sorted(arrivals)


def test_a_trigger_gives_exactly_one_frame_and_none_comes_without(bench: Bench) -> None:
    bench.camera.open()
    bench.camera.trigger()
    assert bench.camera.grab(PATIENCE_NS) is not None
    assert bench.camera.grab(20 * MS) is None
    bench.camera.trigger()
    assert bench.camera.grab(PATIENCE_NS) is not None


def test_draining_ends_and_exposes_nothing(bench: Bench) -> None:
    bench.camera.open()
    while bench.camera.grab(0) is not None:
        assert bench.time is None  # only a live camera has frames that nobody asked for
    bench.camera.trigger()
    first = bench.camera.grab(PATIENCE_NS)
    assert first is not None
    assert bench.time is None or first.frame_id == 1
    assert bench.camera.grab(0) is None


def test_a_triggered_camera_stays_triggered_after_a_reconnect(bench: Bench) -> None:
    bench.camera.open()
    bench.camera.trigger()
    bench.camera.grab(PATIENCE_NS)
    bench.camera.close()
    bench.camera.open()
    assert bench.camera.grab(20 * MS) is None


def test_a_trigger_that_was_not_answered_before_a_reconnect_is_never_answered_after_it(bench: Bench) -> None:
    bench.camera.open()
    bench.camera.trigger()
    bench.camera.close()
    bench.camera.open()
    assert bench.camera.grab(20 * MS) is None


def test_frame_ids_go_on_rising_across_a_reconnect(bench: Bench) -> None:
    bench.camera.open()
    first = bench.camera.grab(PATIENCE_NS)
    bench.camera.close()
    bench.camera.open()
    second = bench.camera.grab(PATIENCE_NS)
    assert first is not None
    assert second is not None
    assert second.frame_id > first.frame_id


def test_grab_after_two_triggers_gives_the_frame_of_the_second(bench: Bench) -> None:
    bench.camera.open()
    for _ in range(2):
        bench.camera.trigger()
    first = bench.camera.grab(PATIENCE_NS)
    assert first is not None
    if bench.time is not None:  # pictures are counted: the first trigger's one is lost, not handed to the second
        assert first.frame_id == 2
    assert bench.camera.grab(20 * MS) is None


@pytest.mark.parametrize("bench", [*FINITE, "isolated_video"], indirect=True)
def test_a_finite_replay_ends_with_an_error_of_its_own_and_stays_ended(bench: Bench) -> None:
    bench.camera.open()
    for _ in range(PICTURES):
        assert bench.camera.grab(PATIENCE_NS) is not None
    for _ in range(2):
        with pytest.raises(EndOfFrames, match="6"):
            bench.camera.grab(PATIENCE_NS)
    bench.camera.close()
    bench.camera.open()
    bench.camera.trigger()
    with pytest.raises(EndOfFrames):
        bench.camera.grab(PATIENCE_NS)


def test_an_open_camera_answers_when_asked_for_a_sign_of_life(bench: Bench) -> None:
    bench.camera.open()
    bench.camera.check(5_000 * MS)
    bench.camera.close()
    with pytest.raises(CameraError, match="closed"):
        bench.camera.check(MS)


def test_counters_and_settings_can_be_asked_for_at_any_time(bench: Bench) -> None:
    assert all(isinstance(count, int) for count in bench.camera.counters().values())
    assert bench.camera.settings() == {}
    bench.camera.open()
    assert bench.camera.grab(PATIENCE_NS) is not None
    bench.camera.close()
    assert all(isinstance(count, int) for count in bench.camera.counters().values())
    assert bench.camera.settings() == {}


@pytest.mark.parametrize("bench", COUNTED, indirect=True)
def test_waiting_in_vain_takes_the_timeout_and_no_longer(bench: Bench) -> None:
    assert bench.time is not None
    bench.camera.open()
    bench.camera.trigger()
    bench.camera.grab(PATIENCE_NS)
    before = bench.time.now
    assert bench.camera.grab(250 * MS) is None
    assert bench.time.now - before == 250 * MS


# --- simulated -----------------------------------------------------------------------------------


def test_a_folder_has_the_settings_that_its_pictures_were_taken_with(folder: Path) -> None:
    said = CameraFile(camera="top", kind="gige", taken_utc="", software="", settings={"exposure_us": 5000.0})
    camera = FolderCamera("parts", FolderConfig(kind="folder", path=folder), FakeTime().now_ns)
    camera.open()
    assert camera.settings() == {}
    camera.close()
    write_camera_file(folder, said)
    camera.open()
    assert camera.settings() == {"exposure_us": 5000.0}
    camera.close()
    (folder / CAMERA_FILE).write_text("{")
    with pytest.raises(CameraError, match=r"parts: .*camera\.json"):
        camera.open()
    assert camera.settings() == {}


def simulated(fake: FakeTime, **keys: Any) -> SimulatedCamera:
    table = {"kind": "simulated", "product": "cap", "size": [64, 64], **keys}
    camera = SimulatedCamera("sim", SimulatedConfig.model_validate(table), fake.now_ns, fake.pause_s)
    camera.open()
    return camera


def ids(camera: Camera, count: int, timeout_ns: int = 100 * MS) -> list[int | str | None]:
    """What `count` grabs give: frame id, None, or the word error."""
    seen: list[int | str | None] = []
    for _ in range(count):
        try:
            frame = camera.grab(timeout_ns)
            seen.append(None if frame is None else frame.frame_id)
        except CameraError:
            seen.append("error")
    return seen


def test_the_simulated_frame_is_the_rendered_part_of_its_index() -> None:
    camera = simulated(FakeTime(), seed=3, first_index=40, defect_rate=0.5)
    frame = camera.grab(MS)
    assert frame is not None
    assert frame.frame_id == 41
    truth = defect_script(SimulatedConfig(kind="simulated", product="cap", seed=3, defect_rate=0.5)).truth(40)
    assert np.array_equal(frame.pixels, render("cap", 3, 40, (64, 64), truth).pixels)


def test_listed_defects_overrule_the_rate() -> None:
    keys = {"kind": "simulated", "product": "cap", "defect_rate": 1.0, "defects": {"3": "good", "4": "chip"}}
    script = defect_script(SimulatedConfig.model_validate(keys))
    assert script.truth(3) is None
    assert script.truth(4) == "chip"
    assert script.truth(5) is not None


def test_a_dropped_frame_leaves_a_gap_when_running_free() -> None:
    assert ids(simulated(FakeTime(), faults=[{"frame": 2, "action": "drop"}]), 3) == [1, 3, 4]


def test_a_dropped_frame_is_no_frame_for_its_trigger_and_the_next_trigger_gets_its_own() -> None:
    camera = simulated(FakeTime(), faults=[{"trigger": 2, "action": "drop"}])
    seen = []
    for _ in range(3):
        camera.trigger()
        seen += ids(camera, 1)
    assert seen == [1, None, 3]


def test_an_incomplete_frame_is_an_error_once_and_the_camera_goes_on() -> None:
    assert ids(simulated(FakeTime(), faults=[{"frame": 2, "action": "error"}]), 4) == [1, "error", 3, 4]


def test_a_disconnected_camera_fails_until_it_is_opened_again_after_its_time() -> None:
    fake = FakeTime()
    camera = simulated(fake, faults=[{"frame": 2, "action": "disconnect", "seconds": 3}])
    assert ids(camera, 3) == [1, "error", "error"]
    with pytest.raises(CameraError, match="must be reopened"):
        camera.trigger()
    camera.close()
    with pytest.raises(CameraError, match="cannot be reached"):
        camera.open()
    fake.pause_s(3)
    camera.open()
    assert ids(camera, 2) == [3, 4]


def test_a_hanging_camera_exceeds_the_timeout_and_then_delivers_late() -> None:
    fake = FakeTime()
    camera = simulated(fake, faults=[{"frame": 1, "action": "hang", "seconds": 2}])
    before = fake.now
    frame = camera.grab(100 * MS)
    assert frame is not None
    assert frame.arrived_ns - before == 2_000 * MS


def test_closing_from_elsewhere_ends_a_hang_at_once() -> None:
    table = {"kind": "simulated", "product": "cap", "size": [64, 64],
             "faults": [{"frame": 1, "action": "hang", "seconds": 3600}]}  # fmt: skip
    camera = SimulatedCamera("sim", SimulatedConfig.model_validate(table), time.monotonic_ns)
    camera.open()
    ended: list[BaseException] = []

    def grab() -> None:
        try:
            camera.grab(MS)
        except CameraError as error:
            ended.append(error)

    thread = threading.Thread(target=grab)
    thread.start()
    camera.close()
    thread.join(20)
    assert not thread.is_alive()
    assert "closed" in str(ended[0])


def test_black_and_wrong_size_are_delivered_as_they_are() -> None:
    camera = simulated(FakeTime(), faults=[{"frame": 1, "action": "black"}, {"frame": 2, "action": "wrong_size"}])
    black, small = camera.grab(MS), camera.grab(MS)
    assert black is not None
    assert small is not None
    assert not black.pixels.any()
    assert small.pixels.shape == (32, 32, 3)


def taken(camera: Camera, triggers: int) -> list[list[Frame]]:
    """Everything that comes after each trigger and before the next one."""
    answers = []
    for _ in range(triggers):
        camera.trigger()
        frames = []
        while (frame := camera.grab(10 * MS)) is not None:
            frames.append(frame)
        answers.append(frames)
    return answers


@pytest.mark.parametrize(
    ("action", "seen"),
    [
        ("doubled", [[1], [2, 2], [3]]),
        ("late", [[1], [], [2, 3]]),
        ("swapped", [[1], [], [3, 2]]),
        ("stale", [[1], [1, 2], [3]]),
    ],
)
def test_frames_in_the_wrong_order_say_when_they_were_exposed(action: str, seen: list[list[int]]) -> None:
    answers = taken(simulated(FakeTime(), faults=[{"trigger": 2, "action": action}]), 3)
    assert [[frame.frame_id for frame in frames] for frames in answers] == seen
    exposed = {frame.frame_id: frame.exposed_ns for frames in answers for frame in frames}
    assert [exposed[number] for number in sorted(exposed)] == sorted(exposed.values())  # type: ignore[type-var]
    assert len(set(exposed.values())) == 3


def test_a_frozen_picture_is_repeated_bit_by_bit_under_new_numbers() -> None:
    first, second, third, fourth = (
        frames[0] for frames in taken(simulated(FakeTime(), faults=[{"frame": 2, "action": "repeat", "count": 2}]), 4)
    )
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.pixels, third.pixels)
    assert not np.array_equal(first.pixels, fourth.pixels)
    assert [f.frame_id for f in (first, second, third, fourth)] == [1, 2, 3, 4]


def test_the_camera_s_own_counter_wraps_and_the_frame_ids_go_on() -> None:
    frames = taken(simulated(FakeTime(), faults=[{"frame": 2, "action": "id_wrap"}]), 4)
    assert [(f[0].frame_id, f[0].device_frame_id) for f in frames] == [(1, 1), (2, 65_535), (3, 1), (4, 2)]


def test_a_clock_that_jumps_puts_the_exposure_where_it_cannot_have_been() -> None:
    faults = [{"frame": 2, "action": "clock_jump", "seconds": 5}, {"frame": 3, "action": "clock_jump", "seconds": -5}]
    right, ahead, behind = (frames[0] for frames in taken(simulated(FakeTime(), faults=faults), 3))
    assert right.exposed_ns is not None
    assert ahead.exposed_ns is not None
    assert behind.exposed_ns is not None
    assert right.exposed_ns <= right.arrived_ns
    assert ahead.exposed_ns - ahead.arrived_ns > 4_000 * MS
    assert behind.arrived_ns - behind.exposed_ns > 4_000 * MS


def test_light_focus_and_position_go_wrong_visibly() -> None:
    spoiled = ["dark", "blur", "shift", "wrong_format"]
    faults = [{"frame": number, "action": action} for number, action in enumerate(spoiled, 2)]
    pictures = [frames[0].pixels for frames in taken(simulated(FakeTime(), faults=faults, size=[128, 128]), 6)]
    good, dark, blurred, shifted, grey_one, after = pictures
    assert dark.mean() < 0.5 * good.mean()
    sharpness = [float(cv2.Laplacian(p, cv2.CV_64F).var()) for p in (good, blurred)]
    assert sharpness[1] < 0.5 * sharpness[0]
    assert shifted.shape == good.shape
    assert grey_one.shape == (128, 128)
    assert after.shape == good.shape


def test_a_camera_may_come_back_with_another_size() -> None:
    fake = FakeTime()
    camera = simulated(fake, faults=[{"frame": 2, "action": "return_smaller", "seconds": 1}])
    assert ids(camera, 2) == [1, "error"]
    camera.close()
    fake.pause_s(1)
    camera.open()
    frame = camera.grab(MS)
    assert frame is not None
    assert frame.pixels.shape == (32, 32, 3)
    assert camera.settings()["width"] == 32


def test_exposure_takes_its_time_and_a_grab_that_gives_up_early_may_come_back() -> None:
    fake = FakeTime()
    camera = simulated(fake, exposure_ms=30)
    camera.trigger()
    triggered_ns = fake.now
    assert camera.grab(10 * MS) is None
    frame = camera.grab(100 * MS)
    assert frame is not None
    assert frame.arrived_ns == triggered_ns + 30 * MS


def test_free_run_keeps_its_rate_and_a_late_host_loses_the_oldest_frames() -> None:
    fake = FakeTime()
    camera = simulated(fake, rate_hz=10)
    assert not camera.waits_for_host
    start_ns = fake.now
    assert ids(camera, 3, 200 * MS) == [1, 2, 3]
    assert fake.now - start_ns == 200 * MS
    assert camera.grab(50 * MS) is None
    fake.now = start_ns + 2_000 * MS  # the host was busy; frame 21 is being exposed now
    assert ids(camera, 2, 0) == [21 - BUFFERED_FRAMES + 1, 21 - BUFFERED_FRAMES + 2]


def test_a_simulated_camera_says_that_it_is_one() -> None:
    assert simulated(FakeTime()).simulated


# --- folder --------------------------------------------------------------------------------------


def replay(path: Path, fake: FakeTime | None = None, **keys: Any) -> FolderCamera:
    time_ = fake or FakeTime()
    config = FolderConfig.model_validate({"kind": "folder", "path": path, **keys})
    return FolderCamera("replay", config, time_.now_ns, time_.pause_s)


def levels(camera: Camera, count: int) -> list[int]:
    frames = [camera.grab(MS) for _ in range(count)]
    return [int(f.pixels.flat[0]) for f in frames if f is not None]


def test_pictures_come_in_the_order_of_their_paths_and_each_frame_knows_its_file(folder: Path) -> None:
    camera = replay(folder)
    camera.open()
    assert levels(camera, PICTURES) == [10, 20, 30, 40, 50, 60]
    assert camera.path_of(3) == folder / "deep" / "b10.png"
    for unknown in (0, 7):
        with pytest.raises(CameraError, match=str(unknown)):
            camera.path_of(unknown)


def test_a_looping_replay_starts_over_and_its_ids_go_on(folder: Path) -> None:
    camera = replay(folder, loop=True)
    camera.open()
    assert ids(camera, 8) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert camera.path_of(8) == camera.path_of(2)


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("damage", [b"", b"no picture at all", None], ids=["empty", "text", "truncated"])
def test_an_unreadable_picture_is_one_lost_frame_named_in_the_error(
    folder: Path, preload: bool, damage: bytes | None
) -> None:
    victim = folder / "deep" / "b2.png"
    victim.write_bytes(victim.read_bytes()[:-20] if damage is None else damage)
    camera = replay(folder, preload=preload)
    camera.open()
    assert ids(camera, 1) == [1]
    with pytest.raises(FrameLost, match=r"frame 2 is lost.*b2\.png"):
        camera.grab(MS)
    assert ids(camera, 4) == [3, 4, 5, 6]


def test_reconnecting_after_an_unreadable_picture_does_not_replay_what_was_shown(folder: Path) -> None:
    (folder / "deep" / "b2.png").write_bytes(b"")
    camera = replay(folder)
    camera.open()
    assert ids(camera, 2) == [1, "error"]
    camera.close()
    camera.open()
    assert ids(camera, 4) == [3, 4, 5, 6]


@pytest.mark.parametrize("preload", [False, True])
def test_a_folder_that_vanishes_is_a_lost_camera_that_comes_back(folder: Path, tmp_path: Path, preload: bool) -> None:
    camera = replay(folder, preload=preload)
    camera.open()
    assert ids(camera, 1) == [1]
    shutil.move(folder, tmp_path / "elsewhere")
    with pytest.raises(CameraError, match="gone"):
        camera.grab(MS)
    camera.close()
    with pytest.raises(CameraError, match="gone"):
        camera.open()
    shutil.move(tmp_path / "elsewhere", folder)
    camera.open()
    assert ids(camera, 2) == [2, 3]


def test_a_single_file_that_vanishes_is_one_lost_frame(folder: Path) -> None:
    camera = replay(folder)
    camera.open()
    (folder / "a1.png").unlink()
    assert ids(camera, 2) == ["error", 2]


def test_no_folder_no_picture_and_no_match_are_errors_at_opening(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for camera in (replay(tmp_path / "none"), replay(tmp_path / "empty"), replay(folder, pattern="*_top.png")):
        with pytest.raises(CameraError, match="replay"):
            camera.open()


def test_pattern_and_depth_choose_the_pictures(folder: Path) -> None:
    shallow, matching = replay(folder, recursive=False), replay(folder, pattern="?10.png")
    shallow.open()
    matching.open()
    assert levels(shallow, 4) == [10, 40, 50, 60]
    assert levels(matching, 2) == [30, 60]


def test_more_pictures_than_memory_is_given_to_are_refused_at_opening(tmp_path: Path) -> None:
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((600, 1000), np.uint8))
    camera = replay(tmp_path, preload=True, preload_limit_mb=1)
    with pytest.raises(CameraError, match="preload_limit_mb"):
        camera.open()


def test_a_replay_at_a_rate_waits_for_its_time(folder: Path) -> None:
    fake = FakeTime()
    camera = replay(folder, fake, rate_hz=4)
    camera.open()
    start_ns = fake.now
    assert not camera.waits_for_host
    assert ids(camera, 3, 500 * MS) == [1, 2, 3]
    assert fake.now - start_ns == 500 * MS
    assert camera.grab(100 * MS) is None


def test_triggers_take_the_pictures_one_by_one_whatever_the_rate_and_however_late(folder: Path) -> None:
    fake = FakeTime()
    camera = replay(folder, fake, rate_hz=30)
    camera.open()
    seen: list[int | str | None] = []
    for _ in range(3):
        fake.pause_s(10)
        assert camera.grab(0) is None
        camera.trigger()
        seen += ids(camera, 1)
    assert seen == [1, 2, 3]


def test_a_picture_of_another_size_is_delivered_as_it_is(folder: Path) -> None:
    cv2.imwrite(str(folder / "a1.png"), np.zeros((20, 30, 3), np.uint8))
    camera = replay(folder)
    camera.open()
    frame = camera.grab(MS)
    assert frame is not None
    assert frame.pixels.shape == (20, 30, 3)


# --- OpenCV --------------------------------------------------------------------------------------


def recorded(video: Path, **keys: Any) -> VideoCamera:
    fake = FakeTime()
    config = VideoConfig.model_validate({"kind": "video", "path": video, **keys})
    return VideoCamera("cv", config, fake.now_ns, fake.pause_s)


def test_a_video_gives_its_frames_in_order_as_rgb_or_grey(video: Path) -> None:
    for mono, shape in ((False, (48, 64, 3)), (True, (48, 64))):
        camera = recorded(video, mono=mono)
        camera.open()
        frames = [camera.grab(MS) for _ in range(PICTURES)]
        camera.close()
        assert [f.pixels.shape for f in frames if f] == [shape] * PICTURES
        assert [round(float(f.pixels.mean()), -1) for f in frames if f] == [10, 20, 30, 40, 50, 60]
        assert [f.frame_id for f in frames if f] == [1, 2, 3, 4, 5, 6]


def test_a_video_that_is_cut_off_plays_up_to_there_and_says_so(video: Path, capfd: pytest.CaptureFixture[str]) -> None:
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    camera = recorded(video)
    camera.open()
    with pytest.raises(EndOfFrames, match=r"line\.avi"):  # noqa: PT012
        for _ in range(PICTURES + 1):
            camera.grab(MS)
    camera.close()
    capfd.readouterr()


def test_red_stays_red(tmp_path: Path) -> None:
    path = tmp_path / "red.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, MJPG, 25.0, (64, 48))
    writer.write(np.full((48, 64, 3), (0, 0, 250), np.uint8))
    writer.release()
    camera = recorded(path)
    camera.open()
    frame = camera.grab(MS)
    camera.close()
    assert frame is not None
    red, green, blue = frame.pixels.reshape(-1, 3).mean(axis=0)
    assert red > 200 > 60 > max(green, blue)


def test_a_video_that_is_not_there_or_no_video_is_refused_by_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "notes.avi"
    text.write_text("no video")
    for camera, word in (
        (recorded(tmp_path / "none.avi"), "no file"),
        (recorded(text), "no video"),
    ):
        with pytest.raises(CameraError, match=word):
            camera.open()
    capfd.readouterr()  # what the decoder itself has to say


def live(capture: StreamingCapture, clock: Callable[[], int] = time.monotonic_ns, **keys: Any) -> LiveCamera:
    config = RtspConfig.model_validate({"kind": "rtsp", "url": "rtsp://user:secret@cam/1", **keys})
    return LiveCamera("cam", config, clock, open_capture=lambda _: capture)


def test_only_live_sources_count_as_parts_that_are_here_now(video: Path) -> None:
    assert recorded(video).simulated
    assert not live(StreamingCapture()).simulated


# A stream's first picture never counts; with the second it is known to run.
AT_ONCE: list[Callable[[], Any]] = [lambda: None, lambda: None]


class StampedStream(StreamingCapture):
    """A stream whose pictures bear time stamps: (stamp, milliseconds until the read returns) of each. It waits for
    more when all were read; None ends it."""

    def __init__(self, *script: tuple[float, float]) -> None:
        super().__init__()
        self.time = FakeTime()
        self.stamp_ms = 0.0
        self.idle = threading.Event()
        self._script: queue.SimpleQueue[tuple[float, float] | None] = queue.SimpleQueue()
        self.goes_on(*script)

    def goes_on(self, *script: tuple[float, float] | None) -> None:
        self.idle.clear()
        for step in script:
            self._script.put(step)

    def read(self) -> tuple[bool, Any]:
        if self._script.empty():
            self.idle.set()
        step = self._script.get(timeout=20)
        if step is None:
            return False, None
        self.stamp_ms = step[0]
        self.time.now += round(step[1] * MS)
        self.reads += 1
        return True, np.full((48, 64, 3), self.reads % 256, np.uint8)

    def get(self, propId: int) -> float:  # noqa: N803
        return self.stamp_ms if propId == cv2.CAP_PROP_POS_MSEC else super().get(propId)


LEVEL = [(40.0 * number, 40.0) for number in range(1, 11)]


def test_pictures_that_were_collected_before_connecting_never_count() -> None:
    collected = [(40.0 * number, 0.5) for number in range(20)]
    running = [(800.0 + 40 * number, 40.0) for number in range(6)]
    stream = StampedStream(*collected, *running)
    camera = live(stream, stream.time.now_ns)
    camera.open()
    assert stream.idle.wait(20)
    frame = camera.grab(MS)
    stream.goes_on(None)
    camera.close()
    assert frame is not None
    assert int(frame.pixels[0, 0, 0]) == 26
    assert frame.frame_id == camera.counters()["completed"]
    assert camera.counters()["stale"] >= 20


def test_pictures_that_a_stall_held_up_never_answer_a_trigger_after_it() -> None:
    stream = StampedStream(*LEVEL)
    camera = live(stream, stream.time.now_ns, frames_in_flight=2, read_timeout_ms=2_000)
    camera.open()
    assert stream.idle.wait(20)
    stream.time.now += 400 * MS
    camera.trigger()
    stream.goes_on(*[(400.0 + 40 * number, 0.0) for number in range(1, 11)])  # all at once, the last one is new
    frame = camera.grab(PATIENCE_NS)
    stream.goes_on(None)
    camera.close()
    assert frame is not None
    assert int(frame.pixels[0, 0, 0]) == 20


def test_a_stream_that_falls_behind_is_connected_anew() -> None:
    stream = StampedStream(*LEVEL, *[(400.0 + 40 * number, 100.0) for number in range(1, 12)])
    camera = live(stream, stream.time.now_ns, read_timeout_ms=1_000)
    camera.open()
    assert stream.released.wait(20)
    with pytest.raises(CameraError, match="lags behind by"):
        camera.grab(MS)
    camera.close()


def test_lag_forgives_clocks_that_drift_but_not_a_delay() -> None:
    lag = Lag()
    worst_ns = max(lag.of(n * 40 * MS, round(n * 40 * MS * 1.0005)) for n in range(1, 5_000))
    assert worst_ns < MS
    assert lag.is_level
    assert lag.of(5_000 * 40 * MS, round(5_000 * 40 * MS * 1.0005) + 300 * MS) > 299 * MS
    assert lag.of(40 * MS, 10**15) == 0  # the stream's clock began anew
    assert not lag.is_level


def test_a_trigger_is_answered_by_the_first_frame_that_was_not_under_way() -> None:
    gate = threading.Semaphore(0)
    capture = StreamingCapture(steps=[*AT_ONCE, *[lambda: hold(gate)] * 8])
    camera = live(capture, frames_in_flight=2, read_timeout_ms=60_000)
    camera.open()
    first = camera.grab(PATIENCE_NS)
    assert first is not None
    assert int(first.pixels[0, 0, 0]) == 2
    camera.trigger()  # pictures 3 and 4 may have been exposed before this
    gate.release(8)
    frame = camera.grab(PATIENCE_NS)
    camera.close()
    assert frame is not None
    assert int(frame.pixels[0, 0, 0]) == 5
    assert capture.released.wait(20)


def test_a_slow_read_is_a_failed_read_and_its_picture_never_comes_out() -> None:
    fake = FakeTime()

    def stall() -> None:
        fake.now += 1_500 * MS

    capture = StreamingCapture(steps=[*AT_ONCE, stall])
    camera = live(capture, fake.now_ns, read_timeout_ms=2_000)
    camera.open()
    assert capture.released.wait(20)  # the reader gave up
    for _ in range(2):
        with pytest.raises(CameraError, match="old one"):
            camera.grab(MS)
    with pytest.raises(CameraError, match="old one"):
        camera.trigger()
    camera.close()


def test_a_read_that_hangs_neither_holds_up_the_grab_nor_the_close() -> None:
    fake, gate = FakeTime(), threading.Event()
    capture = StreamingCapture(steps=[*AT_ONCE, lambda: hold(gate)])
    camera = live(capture, fake.now_ns, read_timeout_ms=2_000)
    camera.open()
    assert camera.grab(MS) is not None
    assert camera.grab(MS) is None
    camera.check(MS)
    fake.now += 2_001 * MS
    for ask in asks(camera):
        with pytest.raises(CameraError, match="answers nothing"):
            ask()
    camera.close()
    assert not capture.released.is_set()
    gate.set()
    assert capture.released.wait(20)  # the reader cleans up behind itself when the driver lets go


@pytest.mark.parametrize(
    ("step", "word"),
    [(lambda: (False, None), "no frame any more"), (lambda: 1 / 0, "failed while reading")],
    ids=["ends", "raises"],
)
def test_a_stream_that_breaks_off_is_an_error_until_reopened(step: Callable[[], Any], word: str) -> None:
    broken = StreamingCapture(steps=[*AT_ONCE, step])
    captures = [broken, StreamingCapture()]
    config = UsbConfig(kind="usb", device=0)
    camera = LiveCamera("cam", config, time.monotonic_ns, open_capture=lambda _: captures.pop(0))
    camera.open()
    assert broken.released.wait(20)
    for _ in range(2):
        with pytest.raises(CameraError, match=word):
            camera.grab(PATIENCE_NS)
    camera.close()
    camera.open()
    assert camera.grab(PATIENCE_NS) is not None
    camera.close()


def test_pictures_of_another_depth_are_refused() -> None:
    gate = threading.Event()
    deep = (True, np.zeros((48, 64), np.uint16))
    capture = StreamingCapture(steps=[lambda: deep, lambda: deep, lambda: hold(gate)])
    camera = live(capture)
    camera.open()
    with pytest.raises(CameraError, match="uint16"):
        camera.grab(PATIENCE_NS)
    gate.set()
    camera.close()


def test_messages_never_show_the_password_of_a_stream() -> None:
    capture = StreamingCapture(opened=False)
    camera = live(capture)
    with pytest.raises(CameraError, match="gives no stream") as caught:
        camera.open()
    assert "secret" not in str(caught.value)
    assert capture.released.is_set()
    at_in_password = RtspConfig(kind="rtsp", url="rtsp://user:a@b@cam/1")
    assert shown_source(at_in_password) == "rtsp://***@cam/1"


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "gige"},
        {"kind": "simulated"},
        {"kind": "simulated", "product": "teapot"},
        {"kind": "simulated", "product": "cap", "defect_rate": 1.1},
        {"kind": "simulated", "product": "cap", "size": [8, 512]},
        {"kind": "simulated", "product": "cap", "size": [100, 512]},
        {"kind": "simulated", "product": "cap", "defects": {"-1": "chip"}},
        {"kind": "simulated", "product": "cap", "faults": [{"action": "drop"}]},
        {"kind": "simulated", "product": "cap", "faults": [{"frame": 1, "trigger": 1, "action": "drop"}]},
        {"kind": "simulated", "product": "cap", "faults": [{"frame": 1, "action": "hang"}]},
        {"kind": "simulated", "product": "cap", "faults": [{"frame": 1, "action": "drop", "seconds": 1}]},
        {"kind": "folder"},
        {"kind": "folder", "path": "x", "product": "cap"},
        {"kind": "folder", "path": "x", "rate_hz": math.nan},
        {"kind": "simulated", "product": "cap", "faults": [{"frame": 1, "action": "crash"}]},
        {"kind": "simulated", "product": "cap", "faults": [{"frame": 1, "action": "hang", "seconds": -1}]},
        {"kind": "simulated", "product": "cap", "faults": [{"frame": 1, "action": "hang", "seconds": 1, "count": 2}]},
        {"kind": "usb", "device": -1},
        {"kind": "usb", "device": ""},
        {"kind": "usb", "device": True},
        {"kind": "usb", "device": "clip.avi"},
        {"kind": "usb", "device": 0, "width": 640},
        {"kind": "rtsp", "url": "clip.avi"},
        {"kind": "rtsp", "url": "file:///etc/passwd"},
        {"kind": "video", "path": "clip.avi", "fps": 10},
    ],
)
def test_a_wrong_camera_table_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(CameraConfig).validate_python(table)


def test_each_table_makes_its_camera(folder: Path, video: Path) -> None:
    tables: list[tuple[dict[str, Any], type]] = [
        ({"kind": "simulated", "product": "weave"}, SimulatedCamera),
        ({"kind": "folder", "path": str(folder)}, FolderCamera),
        ({"kind": "video", "path": str(video)}, IsolatedCamera),
        ({"kind": "usb", "device": 0}, IsolatedCamera),
        ({"kind": "rtsp", "url": "rtsp://192.0.2.1/live"}, IsolatedCamera),
        ({"kind": "simulated", "product": "weave", "isolated": True}, IsolatedCamera),
    ]
    for table, kind in tables:
        camera = make_camera("c1", TypeAdapter(CameraConfig).validate_python(table), time.monotonic_ns)
        assert type(camera) is kind
        assert camera.name == "c1"


def test_every_key_of_the_camera_tables_is_documented() -> None:
    for model in (SimulatedConfig, FolderConfig, VideoConfig, UsbConfig, RtspConfig):
        assert [name for name, info in model.model_fields.items() if not info.description] == []


def test_the_tables_on_the_page_about_cameras_are_valid() -> None:
    page = Path(__file__).resolve().parents[2] / "deploy" / "docs" / "cameras.md"
    texts = re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.M | re.S)
    tables = [table for text in texts for table in tomllib.loads(text)["cameras"].values()]
    kinds = {TypeAdapter(CameraConfig).validate_python(table).kind for table in tables}
    assert kinds >= {"simulated", "folder", "video", "usb", "rtsp"}
