"""Streams of a real RTSP server that is killed, frozen and replaced: whatever it does, no picture is taken for one that
was made later, and the camera comes back by itself."""

import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_daemon.cameras.base import Camera
from edge_daemon.cameras.config import RtspConfig
from edge_daemon.cameras.open import make_camera
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError

SERVER = Path(__file__).resolve().parents[1] / "fakes" / "rtsp_server.py"
PYTHON = "/usr/bin/python3"  # Debian's, which has the bindings of GStreamer
MS = 1_000_000
PATIENCE_NS = 10_000 * MS
COLUMNS, BITS = 8, 40


def server_can_run() -> bool:
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        return subprocess.run([PYTHON, "-c", probe], capture_output=True, timeout=60).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(
    not server_can_run(), reason="needs Debian's python3-gi, gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-good"
)


class Server:
    """The server's process on a port of its own; may be killed, frozen and started again."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, width: int = 320, height: int = 240) -> None:
        command = [PYTHON, str(SERVER), str(self.port), str(width), str(height)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 60)[0]
        assert self.process.stdout.readline() == b"ready\n"

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def camera(self, **keys: int) -> Camera:
        config = RtspConfig(kind="rtsp", url=f"rtsp://127.0.0.1:{self.port}/live", **keys)  # type: ignore[arg-type]
        return make_camera("door", config, time.monotonic_ns)


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.kill()


@pytest.fixture
def camera(server: Server) -> Iterator[Camera]:
    server.start()
    one = server.camera()
    yield one
    one.close()


def made_ns(frame: Frame) -> int:
    """When the picture was made, to the millisecond: the blocks of the server read again."""
    grey = cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    bits = 0
    for bit in range(BITS):
        row, column = divmod(bit, COLUMNS)
        y, x = row * height // 5 + height // 10, column * width // COLUMNS + width // 16
        bits |= int(np.median(grey[y - 4 : y + 4, x - 4 : x + 4]) > 128) << bit
    return bits * MS


def fetch(camera: Camera) -> Frame:
    frame = camera.grab(PATIENCE_NS)
    assert frame is not None
    return frame


def asked(camera: Camera) -> Frame:
    """The answer to a trigger, which must show what was there after it."""
    asked_ns = time.monotonic_ns()
    camera.trigger()
    frame = fetch(camera)
    assert made_ns(frame) >= asked_ns - 2 * MS, "the picture was made before the trigger"
    return frame


def lost(camera: Camera) -> tuple[str, list[Frame]]:
    """What is said when the camera is lost, and the frames that came before that."""
    frames = []
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        try:
            frame = camera.grab(50 * MS)
            camera.check(500 * MS)
        except CameraError as error:
            return str(error), frames
        if frame is not None:
            frames.append(frame)
    raise AssertionError("the camera was not lost")


def reopened(camera: Camera) -> None:
    camera.close()
    give_up = time.monotonic() + 20
    while True:
        try:
            camera.open()
        except CameraError:
            assert time.monotonic() < give_up
            threading.Event().wait(0.1)
        else:
            return


def test_pictures_come_as_they_are_made(camera: Camera) -> None:
    camera.open()
    frames = [fetch(camera) for _ in range(5)]
    ages_ms = [(frame.arrived_ns - made_ns(frame)) / MS for frame in frames]
    assert min(ages_ms) >= 0
    assert max(ages_ms) < 500  # without care the first ones are 800 ms old
    ids = [frame.frame_id for frame in frames]
    assert ids == sorted(set(ids))
    assert camera.settings()["width"] == 320


def test_triggers_are_answered_by_pictures_made_after_them_from_the_first_on(camera: Camera) -> None:
    camera.open()
    ids = [asked(camera).frame_id for _ in range(4)]
    assert ids == sorted(set(ids))
    assert camera.grab(100 * MS) is None


def test_a_freeze_shorter_than_the_time_out_brings_no_old_picture_to_a_trigger(camera: Camera, server: Server) -> None:
    camera.open()
    asked(camera)
    server.signal(signal.SIGSTOP)
    threading.Event().wait(0.3)  # the length of the freeze is what is tested
    server.signal(signal.SIGCONT)
    for _ in range(4):
        asked(camera)


def test_a_frozen_server_is_a_lost_camera_and_what_it_sends_afterwards_is_new(camera: Camera, server: Server) -> None:
    camera.open()
    asked(camera)
    server.signal(signal.SIGSTOP)
    camera.trigger()
    said, frames = lost(camera)
    server.signal(signal.SIGCONT)
    assert "door" in said
    assert frames == []
    reopened(camera)
    assert camera.grab(100 * MS) is None  # the trigger's part is gone
    asked(camera)


def test_a_killed_server_is_a_lost_camera_that_comes_back_with_another_size(camera: Camera, server: Server) -> None:
    camera.open()
    before = asked(camera)
    server.kill()
    said, _ = lost(camera)
    assert "door" in said
    camera.close()
    began = time.monotonic()
    with pytest.raises(CameraError, match="does not answer"):
        camera.open()
    assert time.monotonic() - began < 10
    server.start(width=640, height=480)
    reopened(camera)
    after = asked(camera)
    assert after.pixels.shape == (480, 640, 3)
    assert after.frame_id > before.frame_id


def test_a_server_that_takes_the_connection_and_says_nothing_is_refused_in_time(server: Server) -> None:
    server.start()
    server.signal(signal.SIGSTOP)
    camera = server.camera(open_timeout_ms=300)
    with pytest.raises(CameraError):
        camera.open()
    camera.close()
    assert getattr(camera, "pid") is None  # noqa: B009  # of the proxy, not of the contract


def test_a_decoder_frozen_in_its_process_is_a_lost_camera(camera: Camera) -> None:
    camera.open()
    asked(camera)
    pid = getattr(camera, "pid")  # noqa: B009
    os.kill(pid, signal.SIGSTOP)
    camera.trigger()
    said, frames = lost(camera)
    assert "no sign of life" in said
    assert frames == []
    reopened(camera)
    asked(camera)
