"""The process of one isolated camera: `python -m edge_daemon.cameras.child SOCKET PARENT`.

Serves the daemon's requests one by one over the inherited socket, until it is told to end, or the daemon is gone. It
imports what its kind of camera needs and nothing else. See `isolated` for the other side.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Literal

from pydantic import TypeAdapter

from edge_daemon.cameras.base import Camera, EndOfFrames, FrameLost, Past
from edge_daemon.cameras.channel import Channel, ChannelClosed, Message, SlotWriter
from edge_daemon.cameras.config import CameraConfig
from edge_daemon.errors import CameraError

_PR_SET_PDEATHSIG = 1
_COUNTERS_EVERY_NS = 250_000_000

# For FFmpeg's streams. TCP: over UDP a lost packet is a picture that looks complete and is smeared. The others keep it
# from collecting frames before the first one is handed out (0.8 s of them by default, 0.05 s so).
STREAM_OPTIONS = "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay|analyzeduration;500000|fpsprobesize;0"

MakeCamera = Callable[[str, CameraConfig, Past], tuple[Camera, int]]


class Server:
    """Answers requests for one camera. Every request has a number, which its answer echoes."""

    def __init__(self, channel: Channel, make: MakeCamera, clock_ns: Callable[[], int]) -> None:
        self._channel = channel
        self._make = make
        self._clock_ns = clock_ns
        self._slot = SlotWriter()
        self._camera: Camera | None = None
        self._numbered_from = 0
        self._counters_told_ns = 0

    def serve(self) -> None:
        """Until told to end, or the daemon is gone."""
        try:
            while (request := self._channel.receive(None)) is not None and request["ask"] != "end":
                self._answer(request)
        except ChannelClosed:
            pass  # the daemon has given this camera up, or is gone itself
        finally:
            if self._camera is not None:
                with contextlib.suppress(ChannelClosed):
                    self._channel.send({"seq": 0, "counters": dict(self._camera.counters())})
                self._camera.close()

    def _answer(self, request: Message) -> None:
        answer: Message = {"seq": request["seq"]}
        descriptor = None
        try:
            descriptor = self._do(request, answer)
        except CameraError as error:
            kind = {FrameLost: "lost", EndOfFrames: "end"}.get(type(error), "camera")
            answer |= {"error": kind, "message": str(error)}
        except Exception as error:
            # Whatever a camera's library does must reach the log, and end here and not the daemon.
            traceback.print_exc()
            answer |= {"error": "defect", "message": f"{type(error).__name__}: {error}"}
        self._add_counters(answer, at_once=request["ask"] == "check")
        try:
            self._channel.send(answer, descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _do(self, request: Message, answer: Message) -> int | None:
        """Carry the request out. Returns the descriptor that goes with the answer. Raises CameraError."""
        if request["ask"] == "open":
            camera = self._opened(request)
            answer["settings"] = dict(camera.settings())
            return None
        if self._camera is None:
            raise CameraError("the camera's process was asked for a frame before it opened the camera")
        match request["ask"]:
            case "trigger":
                self._camera.trigger()
                if request.get("settings"):
                    answer["settings"] = dict(self._camera.settings())
            case "check":
                self._camera.check(max(0, request["until_ns"] - self._clock_ns()))
            case "grab":
                return self._grab(request, answer)
        return None

    def _opened(self, request: Message) -> Camera:
        if self._camera is None:
            config: CameraConfig = TypeAdapter(CameraConfig).validate_python(request["config"])
            self._camera, self._numbered_from = self._make(request["name"], config, Past(**request["past"]))
        self._camera.open()
        return self._camera

    def _grab(self, request: Message, answer: Message) -> int | None:
        assert self._camera is not None
        # A request whose time is over while it waited still fetches what is there.
        frame = self._camera.grab(max(0, request["until_ns"] - self._clock_ns()))
        if frame is None:
            return None
        descriptor = self._slot.write(request["seq"], frame, self._numbered_from)
        answer |= {"frame": True, "memory": descriptor is not None}
        return descriptor

    def _add_counters(self, answer: Message, at_once: bool) -> None:
        now_ns = self._clock_ns()
        if self._camera is not None and (at_once or now_ns - self._counters_told_ns >= _COUNTERS_EVERY_NS):
            self._counters_told_ns = now_ns
            answer["counters"] = dict(self._camera.counters())


def make_camera_here(name: str, config: CameraConfig, past: Past) -> tuple[Camera, int]:
    """(camera, what its frame ids are counted from) of this process. Libraries are imported for its kind alone."""
    match config.kind:
        case "simulated":
            from edge_daemon.cameras.simulated import SimulatedCamera

            return SimulatedCamera(name, config, time.monotonic_ns, past=past, end_process=_end_itself), 0
        case "video":
            from edge_daemon.cameras.opencv import VideoCamera

            return VideoCamera(name, config, time.monotonic_ns, past=past), 0
        case "usb" | "rtsp":
            # OpenCV reads the variable when it opens a stream.
            os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = STREAM_OPTIONS
            from edge_daemon.cameras.opencv import LiveCamera

            return LiveCamera(name, config, time.monotonic_ns, past=past), 0
        case "gige":
            from edge_daemon.cameras.gige import gige_camera

            return gige_camera(name, config, time.monotonic_ns, past), 0
        case "gentl":
            from edge_daemon.cameras.gentl import gentl_camera

            return gentl_camera(name, config, time.monotonic_ns, past), 0
        case "folder":
            raise CameraError(f"camera {name}: a folder is read by the daemon itself")


def _end_itself(how: Literal["crash", "freeze"]) -> None:
    """What a library can do to its process, on demand."""
    os.kill(os.getpid(), signal.SIGKILL if how == "crash" else signal.SIGSTOP)


def _die_with(parent: int) -> None:
    """End when the thread that started this process ends, which SIGKILL to the daemon implies. Should it have ended
    before this call, nobody would tell: hence the second look."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def main() -> None:
    """Serve until the end; leaves without the interpreter's tidying, which a camera library may turn into a hang."""
    inherited, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    for meant_for_the_daemon in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(meant_for_the_daemon, signal.SIG_IGN)
    faulthandler.enable(all_threads=False)
    channel = Channel(socket.socket(fileno=inherited), time.monotonic_ns)
    status = 0
    try:
        Server(channel, make_camera_here, time.monotonic_ns).serve()
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
