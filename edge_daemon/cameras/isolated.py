"""A camera in a process of its own, which can be killed: the contract of `base.Camera`, and a bound on every call.

Libraries of cameras hang: in a read (FFmpeg, V4L2), in a register access (GigE Vision), in their own shutdown. A
thread that hangs cannot be ended; a process can. So the daemon keeps this proxy, the library lives in `child`, and
one that does not answer in time is killed and, at the next `open`, started anew.

No process is ever asked for two frames at once, so one slot of shared memory serves (`channel`). What came before a
reconnect or a trigger is told by numbers and times: each request has a number that its answer echoes, and both
processes stamp by the same monotonic clock.
"""

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from edge_daemon.cameras.base import CameraSilent, EndOfFrames, FrameLost, Past
from edge_daemon.cameras.channel import Channel, ChannelClosed, Message, SlotError, SlotReader
from edge_daemon.cameras.config import CameraConfig
from edge_daemon.cameras.waiting import Clock
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError

_NS_PER_S = 1_000_000_000
# The process is to answer so much before the caller's time is over, so that "no frame" comes in time as well.
_HEAD_START_NS = 2_000_000
# A request that does not want to wait still waits for the answer: two wake-ups and a copy on a busy PC.
_DRAIN_NS = 20_000_000
# A free-running camera may lag behind by its buffers; what lay somewhere for longer was frozen in between.
_STALE_NS = _NS_PER_S
# Loading Python and the libraries takes 0.3 s; a PC that starts up with a cold disk takes its time.
_START_NS = 15 * _NS_PER_S
_GOODBYE_S, _REAP_S = 0.12, 0.05

# One thread each: a camera's process must not compete with the model for cores.
_CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",  # its messages may hold the password of a stream
}


@dataclass(frozen=True, slots=True)
class Limits:
    """open_ns: longest time to connect, once the process runs; hang_ns: how long after its time an answer may be
    missing before the process is killed."""

    open_ns: int = 5 * _NS_PER_S
    hang_ns: int = _NS_PER_S


@dataclass(slots=True)
class _Pending:
    """The one request for a frame that has no answer yet."""

    seq: int
    until_ns: int
    answer: Message | None = None


class IsolatedCamera:
    """The camera `config` describes, in a process of its own.

    simulated, waits_for_host: as the contract says; known here without asking. Errors of the camera come as they
    are; a process that hangs, dies, or talks nonsense is a CameraError. `trigger` only sends: what goes wrong with it
    is raised by the `grab` that follows. A failed `open` leaves the process running, so that trying again every half
    second costs little; `close` ends it.
    """

    def __init__(
        self,
        name: str,
        config: CameraConfig,
        clock_ns: Clock,
        *,
        simulated: bool,
        waits_for_host: bool,
        limits: Limits | None = None,
        module: str = "edge_daemon.cameras.child",
    ) -> None:
        self._name = name
        self._config = config
        self._clock_ns = clock_ns
        self._simulated, self._waits_for_host = simulated, waits_for_host
        self._limits = limits or Limits()
        self._module = module
        self._child: _Child | None = None
        self._is_open = False
        self._past = Past()
        self._ended: str | None = None
        self._pending: _Pending | None = None
        self._not_before_ns = 0
        self._asked = False  # whether this process was ever triggered
        self._awaited = False  # whether the last trigger still waits for its frame
        self._silent = False  # whether an answer is overdue
        self._trigger_seq = 0
        self._settings: Mapping[str, str | int | float | bool] = {}
        self._counted: Mapping[str, int] = {}  # by the processes that are gone
        self._counting: Mapping[str, int] = {}  # by the one that runs
        self._own = {"processes_started": 0, "processes_lost": 0, "stale_frames": 0}

    @property
    def name(self) -> str:
        return self._name

    @property
    def simulated(self) -> bool:
        return self._simulated

    @property
    def waits_for_host(self) -> bool:
        return self._waits_for_host

    @property
    def overdue(self) -> bool:
        return self._pending is not None

    @property
    def pid(self) -> int | None:
        """The camera's process; None while there is none."""
        child = self._child
        return None if child is None else child.pid

    def open(self) -> None:
        """Start the process where none runs, and let it connect. Raises CameraError, in bounded time."""
        if self._is_open:
            return
        child = self._child or self._start()
        now_ns = self._clock_ns()
        until_ns = now_ns + self._limits.open_ns + (0 if child.ever_answered else _START_NS)
        request = {"ask": "open", "name": self._name, "config": self._config.model_dump(mode="json"),
                   "past": {"frames": self._past.frames, "triggers": self._past.triggers}}  # fmt: skip
        seq = self._send(child, request)
        answer = self._await(child, seq, until_ns)
        if answer is None:
            raise self._given_up(child, f"could not be opened within {(until_ns - now_ns) / _NS_PER_S:.1f} s")
        self._settings = answer.get("settings", {})
        self._pending, self._asked = None, False
        self._not_before_ns = now_ns
        self._is_open = True

    def close(self) -> None:
        """End the process: at once when it hangs, otherwise as soon as it has let go of its camera. Takes 0.2 s at
        most. From another thread it ends the call under way, which then raises CameraError."""
        self._is_open = False
        child, self._child = self._child, None
        if child is not None:
            self._settle(child, lost=not child.end(willing=not self._silent))

    def trigger(self) -> None:
        child = self._require_open()
        request: Message = {"ask": "trigger", "settings": not self._asked}
        self._pending = None  # what it brings was asked for before: its number is never waited for again
        if self._awaited:
            self._frame_is_lost()
        self._past = Past(self._past.frames, self._past.triggers + 1)
        self._not_before_ns, self._asked, self._awaited = self._clock_ns(), True, True
        self._trigger_seq = self._send(child, request)

    def grab(self, timeout_ns: int) -> Frame | None:
        child = self._require_open()
        until_ns = self._clock_ns() + max(0, timeout_ns)
        if self._ended is not None:
            raise EndOfFrames(self._ended)
        if self._past.triggers and not self._asked:
            # Reconnected: the new process knows of no trigger, and nothing that was asked for is left.
            self._await(child, -1, until_ns)
            return None
        while (answer := self._next_answer(child, until_ns)) is not None:
            frame = self._frame(child, answer) if answer.get("frame") else None
            if frame is not None or self._clock_ns() >= until_ns:
                return frame
        return None

    def check(self, timeout_ns: int) -> None:
        child = self._require_open()
        until_ns = self._clock_ns() + timeout_ns
        seq = self._send(child, {"ask": "check", "until_ns": until_ns})
        if self._await(child, seq, until_ns) is None:
            self._silent = True
            raise CameraSilent(
                f"camera {self._name}: its process gives no sign of life within {timeout_ns / 1e6:.0f} ms"
            )

    def counters(self) -> Mapping[str, int]:
        return {**_sum(self._counted, self._counting), **self._own}

    def settings(self) -> Mapping[str, str | int | float | bool]:
        return self._settings if self._is_open else {}

    # -- frames --------------------------------------------------------------------------------------

    def _next_answer(self, child: "_Child", until_ns: int) -> Message | None:
        """The answer to the request for a frame that is under way, or to a new one. None when it is not there by
        `until_ns`; it may still come to a later grab."""
        now_ns = self._clock_ns()
        if self._pending is None:
            early_ns = min(_HEAD_START_NS, (until_ns - now_ns) // 10)
            seq = self._send(child, {"ask": "grab", "until_ns": until_ns - max(0, early_ns)})
            self._pending = _Pending(seq, until_ns)
        pending = self._pending
        answer = pending.answer or self._await(child, pending.seq, max(until_ns, now_ns + _DRAIN_NS))
        if answer is not None:
            self._pending = None
        elif self._clock_ns() > pending.until_ns + self._limits.hang_ns:
            raise self._given_up(child, f"answers nothing for {self._limits.hang_ns / _NS_PER_S:.1f} s")
        return answer

    def _frame(self, child: "_Child", answer: Message) -> Frame | None:
        """The frame that this answer announces; None when it was exposed before the trigger or the reconnect. A part
        may have been on one of a free run that is too old: raises FrameLost."""
        try:
            frame = child.frame(answer["seq"], self._name)
        except SlotError as exc:
            raise self._given_up(child, f"sent a frame that cannot be used ({exc})") from exc
        self._past = Past(max(self._past.frames, frame.frame_id), self._past.triggers)
        now_ns = self._clock_ns()
        if not self._not_before_ns <= frame.arrived_ns <= now_ns:
            self._own["stale_frames"] += 1
            return None
        # Where a frame lay before its library handed it over, only the camera's own clock knows for how long.
        age_ns = now_ns - frame.exposed_at_the_latest_ns
        if not self._past.triggers and age_ns > _STALE_NS + self._exposure_ns():
            self._own["stale_frames"] += 1
            age_s = age_ns / _NS_PER_S
            raise FrameLost(f"camera {self._name}: frame {frame.frame_id} came {age_s:.1f} s late; it is lost")
        self._awaited = False
        return frame

    def _exposure_ns(self) -> int:
        exposure_us = self._settings.get("exposure_us", 0)
        return round(exposure_us * 1_000) if isinstance(exposure_us, int | float) else 0

    def _frame_is_lost(self) -> None:
        """One frame will never come: the next one has the number after it."""
        self._past = Past(self._past.frames + 1, self._past.triggers)
        self._awaited = False

    # -- the process ---------------------------------------------------------------------------------

    def _start(self) -> "_Child":
        try:
            self._child = _Child(self._module, self._clock_ns)
        except OSError as exc:
            raise CameraError(
                f"camera {self._name}: no process can be started for it ({exc}); the PC has run out of memory, "
                "processes or open files"
            ) from exc
        self._own["processes_started"] += 1
        return self._child

    def _send(self, child: "_Child", request: Message) -> int:
        """Returns the request's number. Raises CameraError."""
        try:
            return child.send(request)
        except ChannelClosed as exc:
            raise self._died(child) from exc

    def _await(self, child: "_Child", seq: int, until_ns: int) -> Message | None:
        """The answer to request `seq`, None when it is not there in time. Raises what an answer reports."""
        while True:
            try:
                answer = child.receive(until_ns)
            except ChannelClosed as exc:
                raise self._died(child) from exc
            if answer is None:
                return None
            self._silent = False
            if "counters" in answer:
                self._counting = answer["counters"]
            if "settings" in answer:
                self._settings = answer["settings"]
            if "error" in answer:
                self._raise(child, answer, seq)
            if answer.get("seq") == seq:
                return answer
            if self._pending is not None and answer.get("seq") == self._pending.seq:
                self._pending.answer = answer

    def _raise(self, child: "_Child", answer: Message, seq: int) -> None:
        """An error holds for the request that is under way and for what was sent after it; only a lost frame of an
        earlier trigger means nothing to the part at hand."""
        if answer["error"] == "lost" and answer.get("seq", 0) < self._trigger_seq <= seq:
            return
        if self._pending is not None and answer.get("seq") == self._pending.seq:
            self._pending = None
        message = str(answer.get("message"))
        match answer["error"]:
            case "lost":
                self._frame_is_lost()
                raise FrameLost(message)
            case "end":
                self._ended = message
                raise EndOfFrames(message)
            case "camera":
                raise CameraError(message)
        if not self._is_open:  # what cannot be opened for a defect could not be in a new process either
            raise CameraError(f"camera {self._name}: opening it failed in a way nobody foresaw ({message})")
        raise self._given_up(child, f"failed in a way nobody foresaw ({message})")

    def _died(self, child: "_Child") -> CameraError:
        if self._child is not child:
            return CameraError(f"camera {self._name}: asked for a frame while it is closed; open it first")
        return self._given_up(child, child.how_it_ended())

    def _given_up(self, child: "_Child", what: str) -> CameraError:
        """Kill the process."""
        self._is_open = False
        if self._child is child:
            self._child = None
        child.kill()
        self._settle(child, lost=True)
        return CameraError(
            f"camera {self._name}: its process {what}; it is started anew. Check cable, power and network of the camera"
        )

    def _settle(self, child: "_Child", lost: bool) -> None:
        """Keep what the process counted, and see that nothing is left of it. What it was asked for is lost with it: a
        picture that makes its decoder hang is passed over."""
        if self._pending is not None or self._awaited:
            self._frame_is_lost()
        self._pending, self._silent = None, False
        self._counting = child.last_words or self._counting
        self._own["processes_lost"] += lost
        self._counted, self._counting = _sum(self._counted, self._counting), {}
        child.reap()

    def _require_open(self) -> "_Child":
        child = self._child
        if not self._is_open or child is None:
            raise CameraError(f"camera {self._name}: asked for a frame while it is closed; open it first")
        return child


class _Child:
    """One process of a camera, with socket, memory and a handle to wait for its end. Raises OSError when it cannot
    be started."""

    def __init__(self, module: str, clock_ns: Clock) -> None:
        ours, theirs = socket.socketpair()
        try:
            # A session of its own: Ctrl-C at a terminal is for the daemon.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **_CHILD_ENVIRONMENT},
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = Channel(ours, clock_ns)
        self._slot = SlotReader()
        self._handle = os.pidfd_open(self._process.pid)
        self._calls = threading.Lock()  # held by whoever talks; who closes waits for it
        self._seq = 0
        self._released = False
        self.ever_answered = False
        self.last_words: Mapping[str, int] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: Message) -> int:
        """Returns the request's number. Raises ChannelClosed."""
        with self._calls:
            self._require_channel()
            self._seq += 1
            self._channel.send({**request, "seq": self._seq})
            return self._seq

    def receive(self, until_ns: int) -> Message | None:
        """The next message; None when there is none by then. Raises ChannelClosed."""
        with self._calls:
            self._require_channel()
            answer = self._channel.receive(until_ns)
            if answer is not None and answer.get("memory"):
                self._attach()
        self.ever_answered = self.ever_answered or answer is not None
        return answer

    def frame(self, seq: int, camera: str) -> Frame:
        """The frame that answers request `seq`. Raises SlotError."""
        with self._calls:
            if self._released:
                raise SlotError("the camera was closed meanwhile")
            return self._slot.read(seq, camera)

    def end(self, willing: bool) -> bool:
        """Let it close its camera and end; kill it when that takes too long, or it is known not to be willing. False
        when it was killed."""
        ended = False
        if willing and self._calls.acquire(blocking=False):
            try:
                if not self._released:
                    ended = self._ended_by_itself()
            finally:
                self._calls.release()
        if not ended:
            self.kill()
        self._release()
        return ended

    def _ended_by_itself(self) -> bool:
        try:
            self._channel.send({"ask": "end", "seq": 0})
            if not self._over(_GOODBYE_S):
                return False
            while (words := self._channel.receive(0)) is not None:
                self.last_words = words.get("counters", self.last_words)
        except ChannelClosed:
            pass
        return self._over(0.0)

    def kill(self) -> None:
        """End it now. Whoever waits for an answer gets ChannelClosed."""
        self._process.kill()
        self._over(_REAP_S)
        self._release()

    def reap(self) -> None:
        """Now, or where even SIGKILL has to wait (a busy PC, a driver inside the kernel) as soon as it has ended: the
        line does not wait for that."""
        if self._released and self._process.poll() is not None:
            return
        threading.Thread(target=self._reap_at_its_end, name=f"ending-{self.pid}", daemon=True).start()

    def _reap_at_its_end(self) -> None:
        self._process.wait()
        while not self._released:
            self._release()

    def how_it_ended(self) -> str:
        """In words, for a message."""
        self._over(_REAP_S)
        status = self._process.poll()
        if status is None:
            return "hung up without ending"
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"

    def _over(self, timeout_s: float) -> bool:
        """Whether it has ended, waiting so long for it."""
        if self._process.poll() is None and not self._released:
            waiting = select.poll()
            waiting.register(self._handle, select.POLLIN)
            waiting.poll(timeout_s * 1000)
        return self._process.poll() is not None

    def _release(self) -> None:
        # A thread that is inside a call comes out at once: its peer is dead. In the kernel's hands (a driver that
        # even SIGKILL waits for) it is not; then its own next call finds the channel closed.
        self._channel.hang_up()
        if self._calls.acquire(timeout=_REAP_S):
            try:
                if not self._released:
                    self._released = True
                    self._channel.close()
                    self._slot.close()
                    os.close(self._handle)
            finally:
                self._calls.release()

    def _attach(self) -> None:
        try:
            self._slot.attach(self._channel.take_descriptor())
        except SlotError as exc:
            raise ChannelClosed(str(exc)) from exc

    def _require_channel(self) -> None:
        if self._released:
            raise ChannelClosed("closed")


def _sum(counted: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {name: counted.get(name, 0) + more.get(name, 0) for name in {**counted, **more}}
