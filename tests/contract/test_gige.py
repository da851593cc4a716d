"""GigE Vision cameras, through Aravis, against its fake camera as a process of its own."""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edge_daemon.cameras import gvcp
from edge_daemon.cameras.base import FrameLost
from edge_daemon.cameras.config import GigeConfig
from edge_daemon.cameras.genicam import GenicamCamera
from edge_daemon.cameras.gige import AravisLink, gige_camera
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError
from tests.fakes.gige import (
    ACQUISITION_REGISTER,
    EXPOSURE_REGISTER,
    FakeCamera,
    gige_config,
    gige_network,
    other_client,
    send_picture,
    write_as_its_controller,
)

MS = 1_000_000
PATIENCE_NS = 5_000 * MS
MakeCamera = Callable[..., GenicamCamera]


@pytest.fixture
def network() -> Iterator[None]:
    with gige_network():
        yield


@pytest.fixture
def fake(network: None) -> Iterator[FakeCamera]:  # noqa: ARG001
    camera = FakeCamera()
    camera.start()
    yield camera
    camera.kill()


@pytest.fixture
def make(network: None) -> Iterator[MakeCamera]:  # noqa: ARG001
    made: list[GenicamCamera] = []

    def make_camera(**keys: Any) -> GenicamCamera:
        made.append(gige_camera("top", gige_config(**keys), time.monotonic_ns))
        return made[-1]

    yield make_camera
    for camera in made:
        camera.close()
    for thread in threading.enumerate():  # destructors of cameras that are gone
        if thread.name.endswith("-leftover"):
            thread.join(20)


def shown(camera: GenicamCamera) -> Frame:
    """Trigger, and the frame."""
    camera.trigger()
    frame = camera.grab(PATIENCE_NS)
    assert frame is not None
    return frame


def tried(camera: GenicamCamera) -> list[Frame]:
    """Trigger, and the frame if one comes."""
    try:
        camera.trigger()
        frame = camera.grab(500 * MS)
    except FrameLost:
        return []
    return [frame] if frame else []


def link_of(camera: GenicamCamera) -> AravisLink:
    """The open camera behind the contract, as somebody who meddles with it has it."""
    assert isinstance(camera._link, AravisLink)
    return camera._link


# --- the contract ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["free_run", "software"])
def test_what_every_camera_does(fake: FakeCamera, make: MakeCamera, mode: str) -> None:  # noqa: ARG001
    camera = make(trigger=mode)
    for ask in (camera.trigger, lambda: camera.grab(MS), lambda: camera.check(MS)):
        with pytest.raises(CameraError, match=r"top.*closed"):
            ask()
    assert (camera.settings(), camera.simulated, camera.waits_for_host) == ({}, False, False)
    camera.close()
    camera.open()
    camera.open()
    first, second = shown(camera), shown(camera)
    assert second.frame_id > first.frame_id >= 1
    assert second.arrived_ns > first.arrived_ns
    assert (first.camera, first.pixels.shape, first.pixels.dtype) == ("top", (48, 64), np.uint8)
    with pytest.raises(ValueError, match="read-only"):
        first.pixels[0, 0] = 1
    assert camera.grab(60 * MS) is None
    camera.check(1_000 * MS)
    camera.trigger()
    camera.close()
    camera.close()
    assert camera.settings() == {}
    camera.open()
    assert camera.grab(100 * MS) is None, "what was asked for before a reconnect is never delivered after it"
    # The fake still has the trigger, and a new one while it makes that frame is lost on it.
    third = next(frame for _ in range(3) for frame in tried(camera) if frame is not None)
    assert third.frame_id > second.frame_id


def test_free_running_frames_rise_and_say_when_they_were_exposed(fake: FakeCamera, make: MakeCamera) -> None:  # noqa: ARG001
    camera = make(trigger="free_run", rate_hz=100, exposure_us=2_000)
    camera.open()
    frames = [camera.grab(PATIENCE_NS) for _ in range(8)]
    good = [frame for frame in frames if frame]
    assert [frame.frame_id for frame in good] == list(range(1, 9))
    for before, frame in itertools.pairwise(good):
        assert frame.device_ns is not None
        assert before.device_ns is not None
        assert frame.device_ns > before.device_ns
    for frame in good:
        assert frame.clock_quality == "camera"
        assert frame.exposed_ns is not None
        assert frame.exposed_ns - frame.exposed_uncertainty_ns <= frame.arrived_ns
        assert frame.exposed_uncertainty_ns <= 126 * MS


def test_the_device_counts_on_in_sixteen_bits_and_our_numbers_never_wrap(fake: FakeCamera, make: MakeCamera) -> None:  # noqa: ARG001
    """The fake begins at 65401 and goes from 65535 to 1."""
    camera = make(trigger="free_run", rate_hz=500, buffers=32)
    camera.open()
    seen = []
    while len(seen) < 200:
        frame = camera.grab(PATIENCE_NS)
        assert frame is not None
        seen.append((frame.frame_id, frame.device_frame_id))
    numbers, devices = [frame for frame, _ in seen], [device for _, device in seen]
    assert 65_535 in devices
    assert devices[devices.index(65_535) + 1] == 1
    assert [b - a for a, b in itertools.pairwise(numbers)] == [
        (b - a) % 65_535 for a, b in itertools.pairwise(devices)
    ], "a step of ours is a step of the device, the wrap included"
    assert camera.counters()["missing_frames"] == numbers[-1] - len(seen) - (numbers[0] - 1)


def test_triggers_faster_than_the_camera_never_get_a_frame_of_an_earlier_one(
    fake: FakeCamera,  # noqa: ARG001
    make: MakeCamera,
) -> None:
    """The fake looks for triggers 25 times a second: several in one period make one frame."""
    camera = make()
    camera.open()
    for _ in range(6):  # until the clocks are related to a few milliseconds
        shown(camera)
    camera.trigger()
    for _ in range(3):
        asked_ns = time.monotonic_ns()
        try:
            camera.trigger()
            frame = camera.grab(150 * MS)
        except FrameLost:
            continue
        if frame is not None:
            assert frame.exposed_ns is not None
            assert frame.exposed_ns + frame.exposed_uncertainty_ns >= asked_ns
        camera.trigger()
    after = [camera for _ in range(2) if camera.grab(100 * MS) is not None]
    assert len(after) <= 1, "one frame for the last trigger, and no more"


def test_a_frame_that_nobody_asked_for_is_counted_and_not_delivered(fake: FakeCamera, make: MakeCamera) -> None:  # noqa: ARG001
    camera = make()
    camera.open()
    shown(camera)
    link_of(camera).nodes.execute("TriggerSoftware")
    while camera.counters()["completed"] < 2:
        assert camera.grab(10 * MS) is None
    assert camera.grab(0) is None
    assert camera.counters()["unrequested_frames"] == 1


def test_a_line_triggers_and_software_may_not(fake: FakeCamera, make: MakeCamera) -> None:  # noqa: ARG001
    camera = make(trigger="hardware", line="Line0")
    camera.open()
    assert camera.settings()["line"] == "Line0"
    assert link_of(camera).nodes.read("TriggerMode") == "On"
    assert camera.grab(60 * MS) is None
    with pytest.raises(CameraError, match=r"top.*Line0.*software"):
        camera.trigger()
    camera.check(1_000 * MS)


def test_closing_from_elsewhere_ends_a_wait(fake: FakeCamera, make: MakeCamera) -> None:  # noqa: ARG001
    camera = make()
    camera.open()
    waiting = threading.Event()
    seen: list[object] = []

    def wait() -> None:
        waiting.set()
        try:
            seen.append(camera.grab(60_000 * MS))
        except CameraError as error:
            seen.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait(5)
    camera.close()
    thread.join(20)
    assert not thread.is_alive()
    assert seen[0] is None or "closed" in str(seen[0])
    with pytest.raises(CameraError, match="closed"):
        camera.grab(MS)


# --- which camera ----------------------------------------------------------------------------------


def test_cameras_are_found_by_serial_or_address_and_only_the_right_one_is_taken(make: MakeCamera) -> None:
    fakes = [FakeCamera("GV06", "127.0.0.1"), FakeCamera("GV07", "127.0.0.2")]
    try:
        for one in fakes:
            one.start()
        assert {(camera.serial, camera.ip) for camera in gvcp.discover(0.3)} == {
            ("GV06", "127.0.0.1"),
            ("GV07", "127.0.0.2"),
        }
        for keys, ip in (({"serial": "GV07"}, "127.0.0.2"), ({"ip": "127.0.0.1"}, "127.0.0.1")):
            camera = make(**keys)
            camera.open()
            assert link_of(camera).description.endswith(ip)
            camera.close()
        with pytest.raises(
            CameraError, match=r"top.*no camera has serial GV99.*GV06, at 127.0.0.1.*GV07, at 127.0.0.2"
        ):
            make(serial="GV99").open()
        with pytest.raises(CameraError, match=r"top.*no camera has name left"):
            make(device_name="left").open()
    finally:
        for one in fakes:
            one.kill()


def test_two_cameras_with_one_serial_are_told_and_none_is_taken(make: MakeCamera) -> None:
    fakes = [FakeCamera("GV07", "127.0.0.1"), FakeCamera("GV07", "127.0.0.2")]
    try:
        for one in fakes:
            one.start()
        with pytest.raises(CameraError, match=r"two cameras have serial GV07.*127.0.0.1.*127.0.0.2"):
            make().open()
    finally:
        for one in fakes:
            one.kill()


@pytest.mark.parametrize("keys", [{}, {"serial": "1", "ip": "10.0.0.2"}, {"device_name": ""}, {"ip": "camera"}])
def test_a_table_names_exactly_one_camera(keys: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        GigeConfig.model_validate({"kind": "gige", **keys})


# --- settings --------------------------------------------------------------------------------------


def test_settings_are_written_read_back_and_reset_on_open(fake: FakeCamera, make: MakeCamera) -> None:  # noqa: ARG001
    first = make(region=[16, 8, 320, 240], exposure_us=1234.7, gain_raw=3, packet_delay_ns=8_000, packet_size=1_444)
    first.open()
    assert first.settings() == {
        "pixel_format": "Mono8", "region": "320x240+16+8", "trigger": "software", "exposure_us": 1234.0, "gain_raw": 3,
        "gain_auto": "Off", "binning_x": 1, "binning_y": 1,
    }  # fmt: skip
    assert shown(first).pixels.shape == (240, 320)
    first.close()
    second = make(region=None)
    second.open()
    assert second.settings()["region"] == "2048x2048+0+0"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"exposure_us": 59_000_000}, r"exposure_us = 59000000.*10 to 1e\+07"),
        ({"region": [0, 0, 4096, 48]}, r"width of region = 4096.*1 to 2048"),
        ({"pixel_format": "Mono12"}, r"pixel_format = Mono12.*Mono16"),
        ({"gain_db": 2.0}, r"gain_db = 2.*no Gain.*gain_raw"),
        ({"trigger": "hardware", "line": "Line9"}, r"line = Line9.*Line0"),
        (
            {"trigger": "hardware", "line": "Line0", "activation": "FallingEdge"},
            r"activation = FallingEdge.*RisingEdge",
        ),
        ({"trigger": "hardware", "line": "Line0", "delay_us": 5.0}, r"delay_us = 5.*no TriggerDelay"),
        ({"trigger": "hardware", "line": "Line0", "debounce_us": 5.0}, r"debounce_us = 5.*no LineDebouncerTime"),
        ({"ptp": True}, r"ptp = True.*no PtpEnable"),
    ],
)
def test_what_the_camera_cannot_do_is_refused_by_name(
    fake: FakeCamera,  # noqa: ARG001
    make: MakeCamera,
    keys: dict[str, Any],
    words: str,
) -> None:
    camera = make(**keys)
    with pytest.raises(CameraError, match=rf"top: {words}"):
        camera.open()
    assert camera.settings() == {}
    with pytest.raises(CameraError, match="closed"):
        camera.grab(MS)


@pytest.mark.parametrize(("name", "shape"), [("Mono16", (48, 64)), ("BayerRG8", (48, 64, 3)), ("RGB8", (48, 64, 3))])
def test_other_formats_come_as_grey_or_rgb_of_eight_bits(
    fake: FakeCamera,  # noqa: ARG001
    make: MakeCamera,
    name: str,
    shape: tuple[int, ...],
) -> None:
    camera = make(pixel_format=name)
    camera.open()
    frame = shown(camera)
    assert (frame.pixels.shape, frame.pixels.dtype) == (shape, np.uint8)
    assert frame.pixels.any()


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gi", None)
    with pytest.raises(CameraError, match=r"top.*gir1\.2-aravis-0\.8.*edge-daemon\[gige\]"):
        gige_camera("top", gige_config(), time.monotonic_ns).open()


def test_a_second_controller_is_told_at_once_and_the_camera_is_ours_when_it_lets_go(
    fake: FakeCamera,
    make: MakeCamera,
) -> None:
    camera = make()
    with other_client(fake.ip):
        began_ns = time.monotonic_ns()
        for _ in range(3):
            with pytest.raises(CameraError, match=r"GV07, at 127\.0\.0\.1 is controlled by another program"):
                camera.open()
        assert time.monotonic_ns() - began_ns < 2_000 * MS
    until_ns = time.monotonic_ns() + PATIENCE_NS
    while camera.settings() == {} and time.monotonic_ns() < until_ns:
        with contextlib.suppress(CameraError):
            camera.open()
    assert shown(camera).pixels.shape == (48, 64)


def test_opening_and_closing_leaves_nothing_behind(fake: FakeCamera, make: MakeCamera) -> None:  # noqa: ARG001
    def footprint() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    camera = make()
    for cycle in range(53):
        camera.open()
        camera.trigger()
        camera.close()
        if cycle == 2:
            before = footprint()
    assert footprint() == before


@pytest.mark.parametrize("sender", ["127.0.0.1", "127.0.0.3"])
def test_a_picture_that_another_camera_sends_to_our_port_is_never_taken_for_this_one_s(
    fake: FakeCamera, make: MakeCamera, sender: str
) -> None:
    """One that a daemon left sending when it was killed, and whose port was given out anew."""
    camera = make()
    camera.open()
    before = shown(camera)
    assert before.device_ns is not None
    assert before.device_frame_id is not None
    camera.trigger()
    link = link_of(camera)
    later_ns = before.device_ns + time.monotonic_ns() - before.arrived_ns + 20 * MS
    packet_bytes = link._camera.gv_get_packet_size()
    send_picture(sender, link._stream.get_port(), before.device_frame_id + 1, later_ns, packet_bytes)
    frame = camera.grab(PATIENCE_NS)
    assert frame is not None
    assert (frame.pixels == 200).all() == (sender == fake.ip), "as our own camera it would have been believed"


# --- a camera that is there and of no use ------------------------------------------------------------


def until_lost(camera: GenicamCamera) -> str:
    """Asks for signs of life until there is something wrong with one, and returns what."""
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        try:
            camera.check(1_000 * MS)
        except CameraError as error:
            return str(error)
    raise AssertionError("every sign of life was good")


def test_settings_that_somebody_else_changes_end_the_camera_and_it_is_set_anew(
    fake: FakeCamera, make: MakeCamera
) -> None:
    camera = make(exposure_us=10_000)
    camera.open()
    shown(camera)
    write_as_its_controller(fake.ip, EXPOSURE_REGISTER, 5_000)
    assert "exposure_us is 5000 in the camera, 10000 in what it was set to" in until_lost(camera)
    camera.close()
    camera.open()
    for _ in range(3):
        camera.check(1_000 * MS)
    assert camera.settings()["exposure_us"] == 10_000


def test_a_camera_that_runs_free_and_sends_nothing_is_lost_although_it_answers(
    fake: FakeCamera, make: MakeCamera
) -> None:
    camera = make(trigger="free_run", rate_hz=50)
    camera.open()
    assert camera.grab(PATIENCE_NS) is not None
    write_as_its_controller(fake.ip, ACQUISITION_REGISTER, 0)
    while camera.grab(200 * MS) is not None:  # what was under way
        pass
    began_ns = time.monotonic_ns()
    assert "answers, but has sent no picture" in until_lost(camera)
    assert time.monotonic_ns() - began_ns > 500 * MS, "a pause is no reason"
    camera.close()
    camera.open()
    assert camera.grab(PATIENCE_NS) is not None


def test_pictures_that_nobody_fetches_are_signs_of_life_too(make: MakeCamera, fake: FakeCamera) -> None:  # noqa: ARG001
    """A station with triggers may let a camera run free, and no part may come for long."""
    camera = make(trigger="free_run", rate_hz=50, buffers=2)
    camera.open()
    give_up_ns = time.monotonic_ns() + 2 * camera._starved_ns
    while time.monotonic_ns() < give_up_ns:
        camera.check(1_000 * MS)
