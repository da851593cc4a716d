"""USB cameras, network streams and video files through OpenCV.

A live camera is read by a thread of its own, so that a read that hangs never holds up who asked for the
frame. Video files are read when asked. Hard-hanging drivers need a reader that can be killed: it takes
the place of `_LiveReader`, which is all that the camera knows of the reading.

Slow reads (seen with OpenCV's FFmpeg and an RTSP server that froze; opencv issue 10927 for V4L2): a read
that ran into its timeout returns an *old* frame as a good one. So a slow read is a failed read.
"""

import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.cameras.base import EndOfFrames, Past
from edge_daemon.cameras.config import OpenCVConfig
from edge_daemon.cameras.exposures import Exposures
from edge_daemon.cameras.waiting import Clock, Pause, Waiter
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError

_NS_PER_MS = 1_000_000
# How long `close` waits for a reader that is inside the driver; after that the reader ends by itself.
_JOIN_S = 0.5


class Capture(Protocol):
    """What is used of cv2.VideoCapture."""

    def isOpened(self) -> bool: ...  # noqa: N802
    def read(self) -> tuple[bool, Any]: ...
    def grab(self) -> bool: ...
    def get(self, propId: int) -> float: ...  # noqa: N803
    def release(self) -> None: ...


OpenCapture = Callable[[OpenCVConfig], Capture]


class OpenCVCamera:
    """A live source (device, URL) or a recorded one (file), by what the configuration names."""

    def __init__(
        self,
        name: str,
        config: OpenCVConfig,
        clock_ns: Clock,
        pause_s: Pause | None = None,
        open_capture: OpenCapture | None = None,
        past: Past | None = None,
    ) -> None:
        past = past or Past()
        self._name = name
        self._config = config
        self._waiter = Waiter(clock_ns, pause_s)
        self._clock_ns = clock_ns
        self._open_capture = open_capture or _open_capture
        self._source: _LiveReader | _Recording | None = None
        self._live_frames = past.frames
        self._triggered = past.triggers > 0
        self._exposures = Exposures(past.frames, rate_hz=0, exposure_ns=0, triggers=past.triggers)

    @property
    def name(self) -> str:
        return self._name

    @property
    def simulated(self) -> bool:
        return self._config.is_file

    @property
    def waits_for_host(self) -> bool:
        return self._config.is_file

    def open(self) -> None:
        """Connect and check the size. Raises CameraError, after `open_timeout_ms` where the backend keeps to it."""
        if self._source is not None:
            return
        where = shown_source(self._config)
        if self._config.is_file and not Path(_file_path(self._config)).is_file():
            raise CameraError(f"camera {self._name}: there is no file {where}; check the path")
        try:
            capture = self._open_capture(self._config)
        except cv2.error as exc:
            raise CameraError(f"camera {self._name}: {where} cannot be opened ({exc}); check the source") from exc
        problem = _problem_after_opening(capture, self._config)
        if problem:
            capture.release()
            raise CameraError(f"camera {self._name}: {where} {problem}")
        self._waiter.start()
        if self._config.is_file:
            self._exposures.restart()
            self._source = _Recording(self._name, self._config, capture)
        else:
            self._source = _LiveReader(self._name, self._config, capture, self._clock_ns, self._live_frames)
            self._source.start()

    def close(self) -> None:
        self._waiter.stop()
        source, self._source = self._source, None
        if isinstance(source, _LiveReader):
            self._live_frames = source.close()
        elif source is not None:
            source.close()

    def check(self, timeout_ns: int) -> None:  # noqa: ARG002  # answers at once
        source = self._require_open()
        if isinstance(source, _LiveReader):
            source.check()

    def counters(self) -> Mapping[str, int]:
        return {}

    def settings(self) -> Mapping[str, str | int | float | bool]:
        return {}

    def trigger(self) -> None:
        source = self._require_open()
        self._triggered = True
        if isinstance(source, _LiveReader):
            source.expect()
        else:
            self._exposures.trigger(self._waiter.now_ns)

    def grab(self, timeout_ns: int) -> Frame | None:
        source = self._require_open()
        if isinstance(source, _LiveReader):
            found = source.take(timeout_ns, self._triggered)
            if found is None:
                return None
            number, picture, arrived_ns = found
            return Frame(self._name, number, _as_pixels(self._name, picture, self._config.mono), arrived_ns)
        now_ns = self._waiter.now_ns
        exposure = self._exposures.next(now_ns, draining=timeout_ns <= 0)
        if exposure is None:
            self._waiter.until(now_ns + timeout_ns)
            return None
        picture = source.read(exposure.index)
        self._exposures.fetched(exposure)
        pixels = _as_pixels(self._name, picture, self._config.mono)
        return Frame(self._name, exposure.index + 1, pixels, self._waiter.now_ns)

    def _require_open(self) -> "_LiveReader | _Recording":
        if self._source is None:
            raise CameraError(f"camera {self._name}: asked for a frame while it is closed; open it first")
        return self._source


class _Recording:
    """A video file, read frame by frame when asked."""

    def __init__(self, name: str, config: OpenCVConfig, capture: Capture) -> None:
        self._name, self._config, self._capture = name, config, capture
        self._next = 0

    def read(self, index: int) -> Any:
        """Frame `index`; those before it are passed over. Raises EndOfFrames."""
        where = shown_source(self._config)
        try:
            while self._next < index and self._capture.grab():
                self._next += 1
            ok, picture = self._capture.read() if self._next == index else (False, None)
        except cv2.error as exc:
            raise CameraError(f"camera {self._name}: {where} cannot be read any further ({exc})") from exc
        if not ok or picture is None:
            raise EndOfFrames(f"camera {self._name}: all {self._next} frames of {where} were shown")
        self._next += 1
        return picture

    def close(self) -> None:
        self._capture.release()


class _LiveReader:
    """Reads a live source for ever; keeps the newest frame, and the first one after a trigger.

    Numbers of frames go on from `numbered_from`; a frame that nobody fetched in time leaves a gap. The thread owns
    the capture and releases it, even when it comes out of the driver long after `close`.
    """

    def __init__(self, name: str, config: OpenCVConfig, capture: Capture, clock_ns: Clock, numbered_from: int) -> None:
        self._name, self._config, self._capture, self._clock_ns = name, config, capture, clock_ns
        self._changed = threading.Condition()
        self._stop = False
        self._failure: str | None = None
        self._arrived = numbered_from  # number of the newest frame
        self._newest: tuple[int, Any, int] | None = None  # not yet taken
        self._expected: int | None = None  # first number that answers the trigger
        self._answer: tuple[int, Any, int] | None = None
        self._reading_since_ns = clock_ns()
        self._thread = threading.Thread(target=self._run, name=f"camera-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> int:
        """Stop; returns the number of the newest frame."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join(_JOIN_S)
        return self._arrived

    def expect(self) -> None:
        """Trigger: frames under way now were exposed before it. Raises CameraError when the source has failed."""
        with self._changed:
            self._raise_failure()
            self._expected = self._arrived + self._config.frames_in_flight + 1
            self._answer = None

    def check(self) -> None:
        """Raises CameraError when the source has failed, or one read takes too long."""
        with self._changed:
            self._raise_failure()

    def take(self, timeout_ns: int, triggered: bool) -> tuple[int, Any, int] | None:
        """(number, picture as OpenCV gives it, arrival), each at most once; None after the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready(triggered) or self._failure or self._stop, timeout_ns / 1e9)
            self._raise_failure()
            if triggered:
                found, self._answer = self._answer, None
            else:
                found, self._newest = self._newest, None
            return found

    def _ready(self, triggered: bool) -> bool:
        return (self._answer if triggered else self._newest) is not None

    def _raise_failure(self) -> None:
        stuck_ns = self._clock_ns() - self._reading_since_ns
        if not self._failure and stuck_ns > self._config.read_timeout_ms * _NS_PER_MS:
            self._failure = f"answers nothing for {stuck_ns / 1e9:.1f} s"
        if self._failure:
            raise CameraError(
                f"camera {self._name}: {shown_source(self._config)} {self._failure}; the daemon reconnects, "
                "check cable, power and network"
            )

    def _run(self) -> None:
        try:
            slow_ns = self._config.read_timeout_ms * _NS_PER_MS  # nothing can be stale right after opening
            while self._read_once(slow_ns):
                slow_ns = self._config.read_timeout_ms * _NS_PER_MS // 2
        except Exception as exc:  # whatever a driver throws must reach who waits for the frame
            self._fail(f"failed while reading: {exc}")
        finally:
            self._capture.release()

    def _read_once(self, slow_ns: int) -> bool:
        started_ns = self._clock_ns()
        with self._changed:
            if self._stop or self._failure:
                return False
            self._reading_since_ns = started_ns
        ok, picture = self._capture.read()
        arrived_ns = self._clock_ns()
        if not ok or picture is None:
            return self._fail("gives no frame any more")
        if arrived_ns - started_ns > slow_ns:
            return self._fail(
                f"took {(arrived_ns - started_ns) / 1e6:.0f} ms for a frame, which may be an old one; it is refused"
            )
        with self._changed:
            if self._stop or self._failure:
                return False
            self._arrived += 1
            found = (self._arrived, picture, arrived_ns)
            self._newest = found
            if self._expected is not None and self._arrived >= self._expected:
                self._answer, self._expected = found, None
            self._reading_since_ns = arrived_ns
            self._changed.notify_all()
        return True

    def _fail(self, what: str) -> bool:
        with self._changed:
            self._failure = self._failure or what
            self._newest = self._answer = None
            self._changed.notify_all()
        return False


def shown_source(config: OpenCVConfig) -> str:
    """The source for messages, without the password that a URL may carry."""
    if isinstance(config.device, int):
        return f"device {config.device}"
    return re.sub(r"//[^/]*@", "//***@", config.device)


def _file_path(config: OpenCVConfig) -> str:
    return str(config.device).removeprefix("file://")


def _open_capture(config: OpenCVConfig) -> Capture:
    """cv2.VideoCapture with what the configuration asks for; the caller checks whether it opened."""
    backend = _backend(config)
    source = _file_path(config) if config.is_file else config.device
    timeouts = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        config.open_timeout_ms,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        config.read_timeout_ms,
    ]
    # Only FFmpeg knows these; V4L2 refuses to open when it is given them.
    parameters = timeouts if backend == cv2.CAP_FFMPEG else []
    capture = cv2.VideoCapture(source, backend, parameters)
    if config.is_device and capture.isOpened():
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        for key, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, config.width),
            (cv2.CAP_PROP_FRAME_HEIGHT, config.height),
            (cv2.CAP_PROP_FPS, config.fps),
        ):
            if value is not None:
                capture.set(key, value)
    return capture


def _backend(config: OpenCVConfig) -> int:
    match config.backend:
        case "v4l2":
            return cv2.CAP_V4L2
        case "ffmpeg":
            return cv2.CAP_FFMPEG
        case "any":
            return cv2.CAP_ANY
    if not config.is_device:
        return cv2.CAP_FFMPEG
    return cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY


def _problem_after_opening(capture: Capture, config: OpenCVConfig) -> str:
    if not capture.isOpened():
        if config.is_file:
            return "is no video that can be read; check the file"
        if config.is_device:
            return "does not answer, or is in use elsewhere; `v4l2-ctl --list-devices` shows what there is"
        return "does not answer; check the address, the password and the network"
    if config.width is not None:
        size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if size != (config.width, config.height):
            return (
                f"gives {size[0]}x{size[1]} px, not {config.width}x{config.height} as the configuration asks; "
                "name a size that it has, or leave width and height out"
            )
    return ""


def _as_pixels(name: str, picture: Any, mono: bool) -> NDArray[np.uint8]:
    """OpenCV's BGR, BGRA or grey picture -> (H, W, 3) RGB or (H, W) grey."""
    array = np.asarray(picture)
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if array.dtype != np.uint8 or channels not in (1, 3, 4):
        raise CameraError(f"camera {name}: gives pictures of {array.dtype} {array.shape}; only 8 bit grey or colour")
    if channels == 1:
        return np.ascontiguousarray(array.reshape(array.shape[:2]))
    code = {(3, False): cv2.COLOR_BGR2RGB, (3, True): cv2.COLOR_BGR2GRAY,
            (4, False): cv2.COLOR_BGRA2RGB, (4, True): cv2.COLOR_BGRA2GRAY}[channels, mono]  # fmt: skip
    return np.asarray(cv2.cvtColor(array, code), np.uint8)
