"""A network camera that sends single JPEG pictures and breaks off in the middle of one."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from edge_daemon.cameras.config import RtspConfig
from edge_daemon.cameras.open import make_camera
from edge_daemon.errors import CameraError

MS = 1_000_000
PATIENCE_NS = 10_000 * MS
PERIOD_S = 0.04
LEVELS = (40, 200)


class HalfServer:
    """Dark and bright pictures in turn, 25 a second (MJPEG over HTTP). Once `halves` is set, each bright one stops in
    the middle; `ends`: with the marker of its end all the same, as of a camera that had no time to encode the rest."""

    def __init__(self) -> None:
        self.halves, self.ends = threading.Event(), False
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        texture = np.random.default_rng(5).integers(0, 20, (240, 320), dtype=np.uint8)
        self._pictures = [cv2.imencode(".jpg", texture + np.uint8(level))[1].tobytes() for level in LEVELS]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/live"

    def close(self) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n")
            number = 0
            while not self._stop.wait(PERIOD_S):
                connection.sendall(self._part(number % 2))
                number += 1

    def _part(self, which: int) -> bytes:
        picture = self._pictures[which]
        if which and self.halves.is_set():
            picture = picture[: len(picture) // 2] + (b"\xff\xd9" if self.ends else b"")
        head = f"--b\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
        return head.encode() + picture + b"\r\n"


@pytest.fixture
def server() -> Iterator[HalfServer]:
    one = HalfServer()
    yield one
    one.close()


@pytest.mark.parametrize("ends", [False, True], ids=["broken off", "ended too soon"])
def test_half_a_picture_never_comes_with_the_other_half_of_the_part_before(server: HalfServer, ends: bool) -> None:
    server.ends = ends
    config = RtspConfig.model_validate({"kind": "rtsp", "url": server.url, "mono": True})
    camera = make_camera("top", config, time.monotonic_ns)
    halves, said = [], ""
    try:
        camera.open()
        assert camera.grab(PATIENCE_NS) is not None
        server.halves.set()
        for _ in range(30):
            frame = camera.grab(PATIENCE_NS)
            assert frame is not None
            halves.append((round(float(frame.pixels[:100].mean())), round(float(frame.pixels[140:].mean()))))
    except CameraError as error:
        said = str(error)
    finally:
        camera.close()
    dark, bright = (level + 10 for level in LEVELS)
    assert all(abs(lower - dark) > 20 for upper, lower in halves if abs(upper - bright) <= 20), halves
    assert ("damaged or not all there" in said) == (not ends), "only a picture without its end is known for what it is"
    assert len(halves) == 30 or not ends
