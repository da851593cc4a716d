"""What goes wrong with a GigE camera, on the real library against a camera process that is killed, frozen and robbed.

At the level of the camera: what the line sees of it is tested with the daemon.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_daemon.cameras.base import FrameLost
from edge_daemon.cameras.genicam import GenicamCamera
from edge_daemon.cameras.gige import AravisLink, gige_camera
from edge_daemon.cameras.open import make_camera
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError
from tests.fakes.gige import FakeCamera, fake_camera, gige_config

MS = 1_000_000
PATIENCE_NS = 10_000 * MS
NOTICED_NS = 1_000 * MS
MakeCamera = Callable[..., GenicamCamera]
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


@pytest.fixture
def fake() -> Iterator[FakeCamera]:
    with fake_camera(started=False) as camera:
        yield camera


@pytest.fixture
def make(fake: FakeCamera) -> Iterator[MakeCamera]:  # noqa: ARG001
    made: list[GenicamCamera] = []

    def opened(**keys: Any) -> GenicamCamera:
        made.append(gige_camera("top", gige_config(**keys), time.monotonic_ns))
        return made[-1]

    yield opened
    for camera in made:
        camera.close()
    for thread in threading.enumerate():  # destructors of cameras that are gone
        if thread.name.endswith("-leftover"):
            thread.join(30)


def reopened(camera: GenicamCamera) -> None:
    """Open as the reader does, until it works."""
    until_ns = time.monotonic_ns() + PATIENCE_NS
    while time.monotonic_ns() < until_ns:
        with contextlib.suppress(CameraError):
            return camera.open()
    return camera.open()


def first_frame(camera: GenicamCamera) -> Frame:
    """A frame of some trigger, within three."""
    for _ in range(3):
        with contextlib.suppress(FrameLost):
            camera.trigger()
            if (frame := camera.grab(1_000 * MS)) is not None:
                return frame
    raise AssertionError("three triggers and no frame")


def noticed_after_ns(camera: GenicamCamera, triggered: bool) -> int:
    """Time until the camera, asked like an idle or a busy one, says that it is gone."""
    began_ns = time.monotonic_ns()
    while time.monotonic_ns() - began_ns < PATIENCE_NS:
        try:
            if triggered:
                camera.grab(PATIENCE_NS)  # the frame may have come before the fault
            else:
                camera.check(400 * MS)
        except CameraError:
            return time.monotonic_ns() - began_ns
    raise AssertionError("nothing was noticed")


def test_absent_at_start_it_is_found_when_it_comes(fake: FakeCamera, make: MakeCamera) -> None:
    camera = make()
    with pytest.raises(CameraError, match="no camera has serial GV07; cameras that answer: none"):
        camera.open()
    fake.start()
    reopened(camera)
    assert first_frame(camera).frame_id == 1


@pytest.mark.parametrize("triggered", [True, False], ids=["awaited", "idle"])
@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_camera_that_dies_or_freezes_is_noticed_within_a_second_and_let_go_of_at_once(
    fake: FakeCamera, make: MakeCamera, how: str, triggered: bool
) -> None:
    fake.start()
    camera = make()
    camera.open()
    first_frame(camera)
    if triggered:
        camera.trigger()
    fake.freeze() if how == "freeze" else fake.kill()
    assert noticed_after_ns(camera, triggered) < NOTICED_NS
    began_ns = time.monotonic_ns()
    camera.close()
    assert time.monotonic_ns() - began_ns < NOTICED_NS


@pytest.mark.parametrize("frozen_s", [2.0, 10.0])
def test_after_a_freeze_it_comes_back_and_old_frames_do_not(
    fake: FakeCamera, make: MakeCamera, frozen_s: float
) -> None:
    """The longer one outlives the library's own time-out of six seconds."""
    fake.start()
    camera = make()
    camera.open()
    before = first_frame(camera)
    camera.trigger()
    fake.freeze()
    frozen_ns = time.monotonic_ns()
    assert noticed_after_ns(camera, triggered=True) < NOTICED_NS
    camera.close()
    while time.monotonic_ns() - frozen_ns < frozen_s * 1e9:
        with pytest.raises(CameraError):
            camera.open()
    fake.thaw()
    reopened(camera)
    thawed_ns = time.monotonic_ns()
    after = first_frame(camera)
    assert after.frame_id > before.frame_id
    assert after.exposed_ns is None or after.exposed_ns + after.exposed_uncertainty_ns >= thawed_ns


def test_back_with_another_address_it_is_found_by_its_serial(fake: FakeCamera, make: MakeCamera) -> None:
    fake.start()
    camera = make()
    camera.open()
    before = first_frame(camera)
    fake.kill()
    noticed_after_ns(camera, triggered=False)
    camera.close()
    fake.ip = "127.0.0.3"
    fake.start()
    reopened(camera)
    assert first_frame(camera).frame_id > before.frame_id


def test_a_camera_that_restarts_before_anybody_noticed_is_not_under_our_control_any_more(
    fake: FakeCamera, make: MakeCamera
) -> None:
    fake.start()
    camera = make()
    camera.open()
    first_frame(camera)
    fake.kill()
    fake.start()
    with pytest.raises(CameraError, match=r"control of .*GV07.* is lost"):
        camera.check(400 * MS)


def test_lost_packets_make_lost_frames_and_never_a_picture_with_holes(fake: FakeCamera, make: MakeCamera) -> None:
    fake.lost_per_mille = 30
    fake.start()
    camera = make(trigger="free_run", rate_hz=100, region=[0, 0, 128, 96], exposure_us=10_000)
    camera.open()
    whole, lost = 0, 0
    while lost < 5 or whole < 5:
        try:
            frame = camera.grab(PATIENCE_NS)
        except FrameLost as error:
            assert "incomplete" in str(error)  # noqa: PT017
            lost += 1
            continue
        assert frame is not None
        # The fake draws a ramp: level = x + y + id modulo 255. A hole would show the frame that was there before.
        steps = frame.pixels.astype(int)
        assert {int(step) % 255 for step in (steps[:, 1:] - steps[:, :-1]).reshape(-1)} == {1}
        assert {int(step) % 255 for step in (steps[1:] - steps[:-1]).reshape(-1)} == {1}
        whole += 1
    counters = camera.counters()
    assert counters["incomplete_frames"] >= lost
    assert counters["completed"] >= whole


@pytest.mark.parametrize(
    ("node", "value", "words"),
    [
        ("Width", 32, r"sends 32x48 px of Mono8, and was set to 64x48 px of Mono8"),
        ("Width", 640, r"sends 640x48 px of Mono8|larger than the 3072 bytes it was set to"),
        ("PixelFormat", "BayerRG8", r"sends 64x48 px of BayerRG8, and was set to 64x48 px of Mono8"),
    ],
)
def test_another_size_or_format_than_was_set_ends_the_camera(
    fake: FakeCamera, make: MakeCamera, node: str, value: int | str, words: str
) -> None:
    fake.start()
    camera = make()
    camera.open()
    first_frame(camera)
    assert isinstance(camera._link, AravisLink)
    camera._link._device.execute_command("AcquisitionStop")
    camera._link.nodes.write(node, value)
    camera._link._device.execute_command("AcquisitionStart")
    camera.trigger()
    with pytest.raises(CameraError, match=words) as raised:
        camera.grab(PATIENCE_NS)
    assert not isinstance(raised.value, FrameLost)


def test_a_clock_that_jumps_is_noticed_and_not_believed_until_it_fits_again(
    fake: FakeCamera, make: MakeCamera, tmp_path: Path
) -> None:
    if not FAKETIME.exists():
        pytest.skip("needs libfaketime, to move the clock of the camera process")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    fake.environment = {
        "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    fake.start()
    camera = make(trigger="free_run", rate_hz=50, exposure_us=10)
    camera.open()
    good = [camera.grab(PATIENCE_NS) for _ in range(5)]
    assert {frame.clock_quality for frame in good if frame} == {"camera"}
    offset.write_text("+0.7")  # less than the heartbeat's time-out, which the fake keeps by the same clock
    qualities = []
    while "host" not in qualities or qualities[-1] != "camera":
        frame = camera.grab(PATIENCE_NS)
        assert frame is not None
        qualities.append(frame.clock_quality)
        assert (frame.exposed_ns is None) == (frame.clock_quality == "host")
        assert len(qualities) < 200
    assert camera.counters()["clock_jumps"] == 1


def test_fifty_cameras_unplugged_leave_no_process_socket_thread_or_megabyte_behind(fake: FakeCamera) -> None:
    """As the daemon runs them: in a process of their own, which is killed."""
    camera = make_camera("top", gige_config(ip="127.0.0.1"), time.monotonic_ns)

    def footprint() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    def resident_kb() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

    before, before_kb, ids = footprint(), 0, [0]
    for cycle in range(int(os.environ.get("EDGE_TEST_UNPLUGS", "10"))):
        fake.start()
        camera.open()
        camera.trigger()
        frame = camera.grab(PATIENCE_NS)
        assert frame is not None
        ids.append(frame.frame_id)
        fake.kill()
        with pytest.raises(CameraError):
            camera.check(400 * MS)
        camera.close()
        assert footprint() == before
        if cycle == 2:
            before_kb = resident_kb()
    assert ids == sorted(set(ids))
    assert resident_kb() - before_kb < 1_024
