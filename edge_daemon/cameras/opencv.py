"""USB cameras, network streams and video files through OpenCV.

A live camera is read all the time by a thread of its own, so that nothing piles up in its buffers; a video file is
read when asked. All of it lives in a process that can be killed (`isolated`).

Old frames that look new, as seen with OpenCV 5 (FFmpeg 8) and an RTSP server:
- a read that ran into its timeout returns an old frame as a good one, twice (for V4L2 see opencv issue 10927): a slow
  read is a failed read, and the connection is made anew;
- after opening come all frames that the analysis of the stream took in, up to 0.8 s old: none counts until the
  stream runs level with its own time stamps;
- a JPEG picture (MJPEG) of which only the upper half came is handed out whole, with the lower half of the picture
  before, which is of another part: such streams are decoded here (`JpegCapture`);
- after a short stall, or when decoding falls behind, frames come late one after another, each of them quickly: how
  far a frame lags behind the best seen is told by its time stamp (`Lag`).
"""

import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.pictures import decode_picture
from edge_daemon.cameras.base import EndOfFrames, Past
from edge_daemon.cameras.config import RtspConfig, UsbConfig, VideoConfig
from edge_daemon.cameras.exposures import Exposures
from edge_daemon.cameras.waiting import Clock, Pause, Waiter
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError, PictureError

LiveConfig = UsbConfig | RtspConfig

_NS_PER_MS = 1_000_000
# How long `close` waits for a reader that is inside the driver; after that the reader ends by itself.
_JOIN_S = 0.1
# A camera that is not there is found out in this time, before FFmpeg is asked, which takes seconds. Each try is a new
# one: a connection under way repeats its first packet after 1, 3 and 7 s, and would miss a camera that has come back.
_REACH_S = 0.4
_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}


class Capture(Protocol):
    """What is used of cv2.VideoCapture."""

    def isOpened(self) -> bool: ...  # noqa: N802
    def read(self) -> tuple[bool, Any]: ...
    def grab(self) -> bool: ...
    def get(self, propId: int) -> float: ...  # noqa: N803
    def release(self) -> None: ...


class JpegCapture:
    """A stream of single JPEG pictures, each decoded from what came of it alone."""

    def __init__(self, raw: Capture) -> None:
        """raw: a capture that hands out the pictures as they were sent."""
        self._raw = raw

    def isOpened(self) -> bool:  # noqa: N802
        return self._raw.isOpened()

    def read(self) -> tuple[bool, Any]:
        """Raises PictureError for a picture that is damaged or not all there."""
        ok, sent = self._raw.read()
        if not ok or sent is None:
            return False, None
        pixels = decode_picture(np.asarray(sent).tobytes(), "the picture")
        return True, cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR if pixels.ndim == 2 else cv2.COLOR_RGB2BGR)

    def grab(self) -> bool:
        return self._raw.grab()

    def get(self, propId: int) -> float:  # noqa: N803
        return self._raw.get(propId)

    def release(self) -> None:
        self._raw.release()


class VideoCamera:
    """A video file. Frame i + 1 is picture i of it; a triggered one gives a picture for each trigger."""

    def __init__(
        self, name: str, config: VideoConfig, clock_ns: Clock, pause_s: Pause | None = None, past: Past | None = None
    ) -> None:
        past = past or Past()
        self._name = name
        self._config = config
        self._waiter = Waiter(clock_ns, pause_s)
        self._exposures = Exposures(past.frames, rate_hz=0, exposure_ns=0, triggers=past.triggers)
        self._capture: Capture | None = None
        self._next = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def simulated(self) -> bool:
        return True

    @property
    def waits_for_host(self) -> bool:
        return True

    @property
    def overdue(self) -> bool:
        return False

    def open(self) -> None:
        """Raises CameraError when there is no such file, or no video in it."""
        if self._capture is not None:
            return
        if not self._config.path.is_file():
            raise CameraError(f"camera {self._name}: there is no file {self._config.path}; check the path")
        try:
            capture = cv2.VideoCapture(str(self._config.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        except cv2.error as exc:
            raise CameraError(f"camera {self._name}: {self._config.path} cannot be opened ({exc})") from exc
        if not capture.isOpened():
            capture.release()
            raise CameraError(f"camera {self._name}: {self._config.path} is no video that can be read; check the file")
        self._waiter.start()
        self._exposures.restart()
        self._capture, self._next = capture, 0

    def close(self) -> None:
        self._waiter.stop()
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()

    def trigger(self) -> None:
        self._require_open()
        self._exposures.trigger(self._waiter.now_ns)

    def grab(self, timeout_ns: int) -> Frame | None:
        capture = self._require_open()
        now_ns = self._waiter.now_ns
        exposure = self._exposures.next(now_ns, draining=timeout_ns <= 0)
        if exposure is None:
            self._waiter.until(now_ns + timeout_ns)
            return None
        picture = self._read(capture, exposure.index)
        self._exposures.fetched(exposure)
        pixels = as_pixels(self._name, picture, self._config.mono)
        return Frame(self._name, exposure.index + 1, pixels, self._waiter.now_ns)

    def check(self, timeout_ns: int) -> None:  # noqa: ARG002  # answers at once
        self._require_open()

    def counters(self) -> Mapping[str, int]:
        return {}

    def settings(self) -> Mapping[str, str | int | float | bool]:
        return {}

    def _read(self, capture: Capture, index: int) -> Any:
        """Picture `index`; those before it are passed over. Raises EndOfFrames."""
        try:
            while self._next < index and capture.grab():
                self._next += 1
            ok, picture = capture.read() if self._next == index else (False, None)
        except cv2.error as exc:
            raise CameraError(f"camera {self._name}: {self._config.path} cannot be read any further ({exc})") from exc
        if not ok or picture is None:
            raise EndOfFrames(f"camera {self._name}: {self._how_it_ended(capture)}")
        self._next += 1
        return picture

    def _how_it_ended(self, capture: Capture) -> str:
        promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if self._next < promised:
            return f"{self._config.path} breaks off after {self._next} of {promised} frames; the file is damaged"
        return f"all {self._next} frames of {self._config.path} were shown"

    def _require_open(self) -> Capture:
        if self._capture is None:
            raise CameraError(f"camera {self._name}: asked for a frame while it is closed; open it first")
        return self._capture


class LiveCamera:
    """A USB camera or a network stream."""

    def __init__(
        self,
        name: str,
        config: LiveConfig,
        clock_ns: Clock,
        past: Past | None = None,
        open_capture: Callable[[LiveConfig], Capture] | None = None,
    ) -> None:
        past = past or Past()
        self._name = name
        self._config = config
        self._clock_ns = clock_ns
        self._open_capture = open_capture or _open_capture
        self._reader: _LiveReader | None = None
        self._frames = past.frames
        self._stale = 0
        self._triggered = past.triggers > 0
        self._settings: Mapping[str, str | int | float | bool] = {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def simulated(self) -> bool:
        return False

    @property
    def waits_for_host(self) -> bool:
        return False

    @property
    def overdue(self) -> bool:
        return False

    def open(self) -> None:
        """Connect, check the size, and wait for the first frame that is not an old one. Raises CameraError, after
        `open_timeout_ms` where the library keeps to it."""
        if self._reader is not None:
            return
        until_ns = self._clock_ns() + self._config.open_timeout_ms * _NS_PER_MS
        where = shown_source(self._config)
        try:
            capture = self._open_capture(self._config)
        except (cv2.error, OSError) as exc:
            raise CameraError(
                f"camera {self._name}: {where} does not answer ({exc}); check cable, power, address and network"
            ) from exc
        problem = _problem_after_opening(capture, self._config)
        if problem:
            capture.release()
            raise CameraError(f"camera {self._name}: {where} {problem}")
        self._settings = read_back(capture, self._config)
        reader = _LiveReader(self._name, self._config, capture, self._clock_ns, self._frames)
        reader.start()
        try:
            reader.wait_until_level(until_ns)
        except CameraError:
            self._frames = reader.close()
            raise
        self._reader = reader

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            self._frames = reader.close()
            self._stale += reader.stale

    def trigger(self) -> None:
        reader = self._require_open()
        self._triggered = True
        reader.expect()

    def grab(self, timeout_ns: int) -> Frame | None:
        found = self._require_open().take(timeout_ns, self._triggered)
        if found is None:
            return None
        number, picture, arrived_ns = found
        return Frame(self._name, number, as_pixels(self._name, picture, self._config.mono), arrived_ns)

    def check(self, timeout_ns: int) -> None:  # noqa: ARG002  # answers at once
        self._require_open().check()

    def counters(self) -> Mapping[str, int]:
        reader = self._reader
        completed, stale = (self._frames, 0) if reader is None else (reader.arrived, reader.stale)
        return {"completed": completed, "stale": self._stale + stale}

    def settings(self) -> Mapping[str, str | int | float | bool]:
        return {} if self._reader is None else self._settings

    def _require_open(self) -> "_LiveReader":
        if self._reader is None:
            raise CameraError(f"camera {self._name}: asked for a frame while it is closed; open it first")
        return self._reader


class Lag:
    """How far frames lag behind the best that their stream has shown. No I/O: times are arguments.

    A frame's time stamp and its arrival differ by a constant, the stream's latency, as long as nothing holds frames
    up. The smallest difference seen is the best; whatever is above it was held up for so long. Clocks of stream and
    PC drift apart, at most by a thousandth: so the best rises by a thousandth of the time.
    """

    def __init__(self) -> None:
        self._best_ns: float | None = None
        self._last: tuple[int, int] | None = None  # stamp, arrival
        self._level = 0

    @property
    def is_level(self) -> bool:
        """Whether the stream runs in real time: three frames in a row that hardly came earlier than the best before
        them. While it catches up with what was collected before, every frame does."""
        return self._level >= 3

    def of(self, stamp_ns: int, arrived_ns: int) -> int:
        """Lag of one frame, in nanoseconds. A stamp that went back, or stood still, begins a new count."""
        difference_ns = arrived_ns - stamp_ns
        last, self._last = self._last, (stamp_ns, arrived_ns)
        if last is None or self._best_ns is None or stamp_ns <= last[0]:
            self._best_ns, self._level = difference_ns, 0
            return 0
        best_ns = self._best_ns + (arrived_ns - last[1]) / 1000
        earlier_ns = best_ns - difference_ns
        self._level = self._level + 1 if earlier_ns < (stamp_ns - last[0]) / 8 else 0
        self._best_ns = min(best_ns, difference_ns)
        return round(max(0.0, -earlier_ns))


class _LiveReader:
    """Reads a live source for ever; keeps the newest frame, and the first one after a trigger.

    Numbers of frames go on from `numbered_from`; a frame that nobody fetched in time leaves a gap. The thread owns
    the capture and releases it, even when it comes out of the driver long after `close`.
    """

    def __init__(self, name: str, config: LiveConfig, capture: Capture, clock_ns: Clock, numbered_from: int) -> None:
        self._name, self._config, self._capture, self._clock_ns = name, config, capture, clock_ns
        self._read_timeout_ns = config.read_timeout_ms * _NS_PER_MS
        self._changed = threading.Condition()
        self._stop = False
        self._failure: str | None = None
        self.arrived = numbered_from  # number of the newest frame
        self.stale = 0
        self._lag = Lag()
        self._level = False
        self._seen_first = False
        self._newest: tuple[int, Any, int] | None = None  # not yet taken
        self._expected: tuple[int, int] | None = None  # first number, and time of exposure, that answers the trigger
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
        return self.arrived

    def wait_until_level(self, until_ns: int) -> None:
        """Return when the stream runs in real time. Raises CameraError when it has failed, or does not get there."""
        with self._changed:
            left_s = max(0.0, (until_ns - self._clock_ns()) / 1e9)
            self._changed.wait_for(lambda: self._level or self._failure or self._stop, left_s)
            if self._level:
                return  # what has failed since is told to who asks next
            self._failure = self._failure or "gives no frame in real time after connecting"
            self._raise_failure()

    def expect(self) -> None:
        """Trigger: frames under way now were exposed before it. Raises CameraError when the source has failed."""
        with self._changed:
            self._raise_failure()
            self._expected = self.arrived + self._config.frames_in_flight + 1, self._clock_ns()
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
        if not self._failure and stuck_ns > self._read_timeout_ns:
            self._failure = f"answers nothing for {stuck_ns / 1e9:.1f} s"
        if self._failure:
            raise CameraError(
                f"camera {self._name}: {shown_source(self._config)} {self._failure}; the daemon reconnects, "
                "check cable, power and network"
            )

    def _run(self) -> None:
        try:
            while self._read_once():
                pass
        except Exception as exc:  # whatever a driver throws must reach who waits for the frame
            self._fail(f"failed while reading: {exc}")
        finally:
            self._capture.release()

    def _read_once(self) -> bool:
        started_ns = self._clock_ns()
        with self._changed:
            if self._stop or self._failure:
                return False
            self._reading_since_ns = started_ns
        try:
            ok, picture = self._capture.read()
        except PictureError:
            return self._fail("sent a picture that is damaged or not all there; it is refused")
        arrived_ns = self._clock_ns()
        if not ok or picture is None:
            return self._fail("gives no frame any more")
        took_ns = arrived_ns - started_ns
        # The first read may wait for a key frame; its picture is thrown away in any case.
        if took_ns > self._read_timeout_ns // 2 and self._level:
            return self._fail(f"took {took_ns / 1e6:.0f} ms for a frame, which may be an old one; it is refused")
        stamp_ms = self._capture.get(cv2.CAP_PROP_POS_MSEC)
        # Without stamps nothing can be told, and only the number of frames in flight protects a trigger.
        lag_ns = self._lag.of(round(stamp_ms * _NS_PER_MS), arrived_ns) if stamp_ms > 0 else 0
        if lag_ns > self._read_timeout_ns // 2:
            return self._fail(f"lags behind by {lag_ns / 1e6:.0f} ms; its frames are old ones")
        return self._keep(picture, arrived_ns, lag_ns, self._lag.is_level or stamp_ms <= 0)

    def _keep(self, picture: Any, arrived_ns: int, lag_ns: int, level: bool) -> bool:
        with self._changed:
            if self._stop or self._failure:
                return False
            self._reading_since_ns = arrived_ns
            # A stream that has no stamp for its first picture may have one for its second.
            first, self._seen_first = not self._seen_first, True
            if not level or first:
                self.stale += 1
                self._newest = None
                return True
            self._level = True
            self.arrived += 1
            found = (self.arrived, picture, arrived_ns)
            self._newest = found
            if self._expected is not None:
                number, asked_ns = self._expected
                if self.arrived >= number and arrived_ns - lag_ns >= asked_ns:
                    self._answer, self._expected = found, None
            self._changed.notify_all()
        return True

    def _fail(self, what: str) -> bool:
        with self._changed:
            self._failure = self._failure or what
            self._newest = self._answer = None
            self._changed.notify_all()
        return False


def shown_source(config: LiveConfig) -> str:
    """The source for messages, without the password that a URL may carry."""
    if isinstance(config, RtspConfig):
        return re.sub(r"//[^/]*@", "//***@", config.url)
    return f"device {config.device}" if isinstance(config.device, int) else config.device


def _open_capture(config: LiveConfig) -> Capture:
    """cv2.VideoCapture with what the configuration asks for; the caller checks whether it opened. Raises OSError when
    nobody listens at the address."""
    if isinstance(config, RtspConfig):
        address = urlsplit(config.url)
        port = address.port or _PORTS[address.scheme.lower()]
        socket.create_connection((address.hostname or "", port), _REACH_S).close()
        parameters = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, config.open_timeout_ms,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC, config.read_timeout_ms,
            cv2.CAP_PROP_N_THREADS, 1,  # more of them hold frames back
        ]  # fmt: skip
        stream = cv2.VideoCapture(config.url, cv2.CAP_FFMPEG, parameters)
        single_jpegs = stream.isOpened() and _fourcc(stream) == "MJPG" and stream.set(cv2.CAP_PROP_FORMAT, -1)
        return JpegCapture(stream) if single_jpegs else stream
    capture = cv2.VideoCapture(config.device, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    if capture.isOpened():
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        for key, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, config.width),
            (cv2.CAP_PROP_FRAME_HEIGHT, config.height),
            (cv2.CAP_PROP_FPS, config.fps),
        ):
            if value is not None:
                capture.set(key, value)
    return capture


def _problem_after_opening(capture: Capture, config: LiveConfig) -> str:
    if not capture.isOpened():
        if isinstance(config, UsbConfig):
            return "does not answer, or is in use elsewhere; `v4l2-ctl --list-devices` shows what there is"
        return "gives no stream; check the address, the password and the camera"
    if isinstance(config, UsbConfig) and config.width is not None:
        size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if size != (config.width, config.height):
            return (
                f"gives {size[0]}x{size[1]} px, not {config.width}x{config.height} as the configuration asks; "
                "name a size that it has, or leave width and height out"
            )
    return ""


def read_back(capture: Capture, config: LiveConfig) -> Mapping[str, str | int | float | bool]:
    """What the driver says of the picture now. A stream says nothing of exposure, gain and colours; a video device
    what its controls are, where they are not left to an automatic, whose values are none of ours."""
    found: dict[str, str | int | float | bool] = {
        "width": int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        "height": int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        "fps": round(capture.get(cv2.CAP_PROP_FPS), 3),
        "fourcc": _fourcc(capture),
        "mono": config.mono,
    }
    if isinstance(config, UsbConfig):
        controls = {name: capture.get(control) for name, control in _CONTROLS.items()}
        for automatic, values_when_off, governed in _AUTOMATICS:
            if controls[automatic] not in (*values_when_off, _NO_CONTROL):
                controls.pop(governed)
        found |= {name: value for name, value in controls.items() if value != _NO_CONTROL}
    return found


def _fourcc(capture: Capture) -> str:
    """Name of the stream's encoding, empty when it has none."""
    letters = int(capture.get(cv2.CAP_PROP_FOURCC))
    return "".join(chr(letters >> shift & 0xFF) for shift in (0, 8, 16, 24)) if letters > 0 else ""


# Of a video device (V4L2), in its driver's own units.
_CONTROLS = {
    "exposure_auto": cv2.CAP_PROP_AUTO_EXPOSURE, "exposure": cv2.CAP_PROP_EXPOSURE, "gain": cv2.CAP_PROP_GAIN,
    "balance_auto": cv2.CAP_PROP_AUTO_WB, "balance_kelvin": cv2.CAP_PROP_WB_TEMPERATURE,
    "focus_auto": cv2.CAP_PROP_AUTOFOCUS, "focus": cv2.CAP_PROP_FOCUS, "zoom": cv2.CAP_PROP_ZOOM,
    "brightness": cv2.CAP_PROP_BRIGHTNESS, "contrast": cv2.CAP_PROP_CONTRAST, "gamma": cv2.CAP_PROP_GAMMA,
    "saturation": cv2.CAP_PROP_SATURATION, "hue": cv2.CAP_PROP_HUE, "sharpness": cv2.CAP_PROP_SHARPNESS,
    "backlight": cv2.CAP_PROP_BACKLIGHT,
}  # fmt: skip
_NO_CONTROL = -1.0  # what OpenCV says of one that the device does not have
# V4L2 calls a manual exposure 1 (and 2, where only the iris is automatic).
_AUTOMATICS = (
    ("exposure_auto", (1.0, 2.0), "exposure"), ("balance_auto", (0.0,), "balance_kelvin"),
    ("focus_auto", (0.0,), "focus"),
)  # fmt: skip


def as_pixels(name: str, picture: Any, mono: bool) -> NDArray[np.uint8]:
    """OpenCV's BGR, BGRA or grey picture -> (H, W, 3) RGB or (H, W) grey. Raises CameraError for any other."""
    array = np.asarray(picture)
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if array.dtype != np.uint8 or channels not in (1, 3, 4):
        raise CameraError(f"camera {name}: gives pictures of {array.dtype} {array.shape}; only 8 bit grey or colour")
    if channels == 1:
        return np.ascontiguousarray(array.reshape(array.shape[:2]))
    code = {(3, False): cv2.COLOR_BGR2RGB, (3, True): cv2.COLOR_BGR2GRAY,
            (4, False): cv2.COLOR_BGRA2RGB, (4, True): cv2.COLOR_BGRA2GRAY}[channels, mono]  # fmt: skip
    return np.asarray(cv2.cvtColor(array, code), np.uint8)
