"""What all GenICam cameras do, whichever library brings their frames: the camera contract over a `Link`."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from edge_daemon.cameras.answers import Answers, Identity, Mode
from edge_daemon.cameras.base import FrameLost, Past
from edge_daemon.cameras.config import GenicamConfig
from edge_daemon.cameras.genicam_settings import (
    EXPOSURE,
    RATE,
    NodeError,
    Nodes,
    Setup,
    Value,
    Watch,
    first,
    latched_clock_ns,
    ptp_locked,
)
from edge_daemon.cameras.waiting import Clock
from edge_daemon.core.device_clock import DeviceClock
from edge_daemon.core.frame import Frame
from edge_daemon.core.pixel_format import Bytes, PixelFormat, format_named, shown_format, to_pixels
from edge_daemon.errors import CameraError, PictureError

log = logging.getLogger(__name__)

_NS_PER_MS = 1_000_000
# A wait is cut into pieces, so that a camera that dies is noticed while its frame is awaited.
_SLICE_NS = 100 * _NS_PER_MS
# Without a sign of life for so long the camera is asked for one; both together stay below a second.
_SILENT_NS = 250 * _NS_PER_MS
_ANSWER_NS = 400 * _NS_PER_MS
# Before a command less is believed: sent to a camera that is gone, it hangs.
_LATELY_NS = 5 * _NS_PER_MS
_CLOCK_EVERY_NS = 2_000 * _NS_PER_MS
# What one sign of life may spend on settings that somebody else may have changed: a trigger may be waiting.
_WATCH_NS = 4 * _NS_PER_MS
# A camera that runs free and sends nothing for so long, and the time of so many of its frames, is starved, when two
# looks in a row say so: after a PC was held up, what came meanwhile may not have been taken in at the first. With two
# looks a second, as the reader has them, Trigger Ready drops within two seconds.
_STARVED_NS, _STARVED_FRAMES, _STARVED_LOOKS = 600 * _NS_PER_MS, 3, 2
# A camera takes so much longer for its first picture.
_START_NS = 1_000 * _NS_PER_MS
# Opening waits for the first sign of pictures, where that does not take longer than this.
_LONGEST_START_NS = 5_000 * _NS_PER_MS
# So many frames in a row that the camera numbers backwards are no latecomers: it began to count anew.
_BACKWARDS = 3


@dataclass(frozen=True, slots=True)
class RawFrame:
    """What a library hands over, copied out of its buffers.

    problem: why the picture is incomplete, empty when it is complete. device_frame_id: None only where it is incomplete
    and the number is not known. device_ns: the device's time stamp; None without one.
    """

    problem: str
    data: bytes
    width: int
    height: int
    format_code: int
    device_frame_id: int | None
    device_ns: int | None


class Link(Protocol):
    """An open camera through one library. Every call but `close` may raise CameraError."""

    @property
    def description(self) -> str:
        """Maker, model, serial and address, for messages."""
        ...

    @property
    def nodes(self) -> Nodes: ...

    def start(self) -> None:
        """A new stream with empty buffers, and acquisition."""
        ...

    def stop(self) -> None:
        """End acquisition and drop the stream with everything in it; also when nothing runs."""
        ...

    def restart(self) -> None:
        """Stop and start acquisition, so that nothing exposed before comes any more; quicker than `stop`, `start`."""
        ...

    def pop(self, timeout_ns: int) -> RawFrame | None:
        """The next buffer of the stream, complete or not; None after the timeout. 0 does not wait."""
        ...

    def stirs(self) -> bool:
        """Whether the stream has brought anything since this was asked before, or holds something to fetch."""
        ...

    def assure(self, timeout_ns: int) -> None:
        """Returns when the camera gives a sign of life and is under our control; raises CameraError otherwise."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Of the streams of this link so far, and of nothing before."""
        ...

    def close(self) -> None:
        """Let go. Never raises and never waits for a camera that is gone."""
        ...


class Connector(Protocol):
    """Finds and opens one camera; lives as long as the camera object and may remember where the camera was."""

    @property
    def simulated(self) -> bool: ...

    def __call__(self) -> Link:
        """Raises CameraError."""
        ...


class GenicamCamera:
    """A camera that speaks GenICam. `trigger` in its configuration says what makes it expose:

    `software`: `trigger()`; nothing comes without. `free_run`: itself; after the first `trigger()` only the first
    frame exposed after each counts. `hardware`: a pulse on its input line; `trigger()` is refused.
    """

    def __init__(
        self, name: str, config: GenicamConfig, clock_ns: Clock, connect: Connector, past: Past | None = None
    ) -> None:
        past = past or Past()
        self._name, self._config, self._clock_ns, self._connect = name, config, clock_ns, connect
        modes: dict[str, Mode] = {"software": "commanded", "free_run": "free_run", "hardware": "line"}
        self._answers = Answers(modes[config.trigger], DeviceClock(0), past.frames, past.triggers > 0)
        self._link: Link | None = None
        self._in_use = threading.RLock()
        self._closing = threading.Event()
        self._settings: Mapping[str, Value] = {}
        self._format: PixelFormat | None = None
        self._size = 0, 0
        self._exposure_ns = 0
        self._heard_ns = self._clock_read_ns = self._stirred_ns = 0
        self._starved_ns = _STARVED_NS
        self._still = 0
        self._watch: Watch | None = None
        self._ptp_locked = False
        self._backwards = 0
        self._incomplete = 0
        self._past_counters: Counter[str] = Counter()

    @property
    def name(self) -> str:
        return self._name

    @property
    def simulated(self) -> bool:
        return self._connect.simulated

    @property
    def waits_for_host(self) -> bool:
        return False

    @property
    def overdue(self) -> bool:
        return False

    def open(self) -> None:
        """Find the camera, take control, write and read back its settings, start the stream. Raises CameraError."""
        with self._in_use:
            if self._link is None:
                self._closing.clear()
                self._open()

    def _open(self) -> None:
        link = self._connect()
        try:
            link.stop()  # a client that died may have left it streaming
            setup = Setup(self._name, link.nodes, self._config)
            setup.apply()
            self._settings = setup.verified()
            self._watch = setup.watched()
            self._remember(link.nodes)
            self._answers.restart()
            link.start()
            self._await_pictures(link)
            if self._closing.is_set():
                raise CameraError(f"camera {self._name}: was closed while it opened")
        except BaseException:
            self._settings = {}
            link.close()
            raise
        self._link = link
        self._heard_ns = self._clock_ns()
        self._read_clock(link)
        log.info("camera %s: %s, %s", self._name, link.description, dict(self._settings))

    def close(self) -> None:
        """Also from another thread: then a call that waits lets go within a tenth of a second."""
        self._closing.set()
        if self._in_use.acquire(timeout=0.05):
            try:
                self._let_go()
            finally:
                self._in_use.release()

    def trigger(self) -> None:
        """Expose now. Raises CameraError, also when a line triggers this camera."""
        with self._using() as link:
            if self._answers.mode == "line":
                raise CameraError(
                    f"camera {self._name}: is triggered by its input {self._config.line} and cannot be triggered by "
                    'software; give it `trigger = "software"`, or its station a hardware trigger'
                )
            if self._answers.mode == "free_run":
                self._answers.ask(self._clock_ns())
                return
            self._drain(link)
            self._assure_lately(link, _LATELY_NS)
            self._empty(link)
            self._answers.ask(self._clock_ns())
            try:
                link.nodes.execute("TriggerSoftware")
            except NodeError as exc:
                raise CameraError(f"camera {self._name}: {link.description} takes no trigger ({exc})") from exc

    def grab(self, timeout_ns: int) -> Frame | None:
        with self._using() as link:
            until_ns = self._clock_ns() + timeout_ns
            while True:
                raw, waited = self._next(link, until_ns - self._clock_ns())
                if raw is not None:
                    frame = self._judged(raw, waited)
                    if frame is not None:
                        return frame
                elif self._clock_ns() >= until_ns or self._closing.is_set():
                    return None
                self._assure_lately(link)

    def check(self, timeout_ns: int) -> None:
        """Also raises CameraError when the camera is there and of no use: its settings are not what they were, or it
        runs free and sends nothing."""
        with self._using() as link:
            link.assure(timeout_ns)
            self._heard_ns = self._clock_ns()
            self._require_pictures(link)
            self._look_at_settings(link.nodes)
            self._read_clock(link)

    def counters(self) -> Mapping[str, int]:
        counted = Counter(self._past_counters)
        if (link := self._link) is not None:
            counted.update(link.counters())
        answers = self._answers
        counted.update(
            clock_jumps=answers.clock.jumps, missing_frames=answers.missing, old_frames=answers.older,
            repeated_frames=answers.repeated, unrequested_frames=answers.unrequested,
            incomplete_frames=self._incomplete,
        )  # fmt: skip
        return dict(counted)

    def settings(self) -> Mapping[str, Value]:
        return dict(self._settings)

    # -- frames ----------------------------------------------------------------------------------------

    def _next(self, link: Link, left_ns: int) -> tuple[RawFrame | None, bool]:
        """(frame, whether it came while we waited)."""
        raw = link.pop(0)
        if raw is not None or left_ns <= 0 or self._closing.is_set():
            return raw, False
        return link.pop(min(left_ns, _SLICE_NS)), True

    def _judged(self, raw: RawFrame, waited: bool) -> Frame | None:
        """The frame to deliver; None when this one is not it. Raises FrameLost and CameraError."""
        arrived_ns = self._heard_ns = self._stirred_ns = self._clock_ns()
        self._still = 0
        if raw.problem or raw.device_frame_id is None:
            self._incomplete += 1
            identity = self._answers.lost(raw.device_frame_id)
            if identity.answers:
                raise FrameLost(
                    f"camera {self._name}: frame {identity.frame_id} came incomplete ({raw.problem}) and is lost; "
                    "check cable, switch and packet size if this repeats"
                )
            return None
        device_ns = raw.device_ns
        if device_ns is not None and self._config.timestamp_at == "exposure_end":
            device_ns -= self._exposure_ns
        jumps = self._answers.clock.jumps
        identity = self._answers.frame(raw.device_frame_id, device_ns, arrived_ns, waited, self._ptp_locked)
        if self._answers.clock.jumps != jumps:
            log.warning("camera %s: its clock jumped; frames are stamped by this PC until it fits again", self._name)
        self._count_backwards(raw, identity)
        if not identity.answers:
            return None
        return Frame(
            self._name, identity.frame_id, self._pixels(raw), arrived_ns,
            device_frame_id=raw.device_frame_id, device_ns=raw.device_ns, exposed_ns=identity.exposed_ns,
            exposed_uncertainty_ns=identity.uncertainty_ns, clock_quality=identity.clock_quality,
        )  # fmt: skip

    def _pixels(self, raw: RawFrame) -> Bytes:
        expected = self._format
        if expected is None or raw.format_code != expected.code or (raw.width, raw.height) != self._size:
            wanted = f"{self._size[0]}x{self._size[1]} px of {expected.name if expected else 'nothing'}"
            sent = f"{raw.width}x{raw.height} px of {shown_format(raw.format_code)}"
            raise CameraError(
                f"camera {self._name}: sends {sent}, and was set to {wanted}; somebody else changes its settings"
            )
        try:
            return to_pixels(raw.data, expected, raw.width, raw.height)
        except PictureError as exc:
            raise FrameLost(f"camera {self._name}: frame {raw.device_frame_id} is lost: {exc}") from exc

    def _count_backwards(self, raw: RawFrame, identity: Identity) -> None:
        self._backwards = self._backwards + 1 if identity.why == "numbered_before" else 0
        if self._backwards >= _BACKWARDS:
            raise CameraError(
                f"camera {self._name}: counts its frames backwards (now {raw.device_frame_id}); it has restarted"
            )

    def _empty(self, link: Link) -> None:
        """Let nothing of an earlier trigger come any more, where it could not be told from the next one. That takes
        time; whether the exposure then comes too late for its part, `exposed_within_ms` says, as of any other."""
        if self._answers.must_resynchronise(self._clock_ns()):
            link.restart()
            self._answers.resynchronised()

    def _drain(self, link: Link) -> None:
        """Take what lies in the stream: an answer that came too late is nobody's."""
        while (raw := link.pop(0)) is not None:
            try:
                self._judged(raw, waited=False)
            except FrameLost:
                continue

    # -- signs of life, clocks -----------------------------------------------------------------------------

    def _assure_lately(self, link: Link, silent_ns: int = _SILENT_NS) -> None:
        """Ask a camera that has been silent for so long. Raises CameraError when it is gone."""
        if self._clock_ns() - self._heard_ns >= silent_ns:
            link.assure(_ANSWER_NS)
            self._heard_ns = self._clock_ns()

    def _await_pictures(self, link: Link) -> None:
        """Of a camera that runs free, take the first picture: it was exposed before anybody could say that the camera
        is there. Raises CameraError when none comes."""
        self._stirred_ns, self._still = self._clock_ns() + _START_NS, 0
        if self._answers.mode == "free_run" and self._starved_ns <= _LONGEST_START_NS:
            while link.pop(_SLICE_NS) is None and not self._closing.is_set():
                self._require_fed(link)

    def _require_pictures(self, link: Link) -> None:
        """Raises CameraError for a camera that should send by itself and does not: its parts go by unseen."""
        if self._answers.mode != "free_run" or link.stirs():
            self._stirred_ns, self._still = self._clock_ns(), 0
            return
        self._still += 1
        if self._still >= _STARVED_LOOKS:
            self._require_fed(link)

    def _require_fed(self, link: Link) -> None:
        if (silent_ns := self._clock_ns() - self._stirred_ns) > self._starved_ns:
            raise CameraError(
                f"camera {self._name}: {link.description} runs free and answers, but has sent no picture for "
                f"{silent_ns / 1e9:.1f} s; check that no firewall keeps its packets (UDP) from this PC, packet_size, "
                "and that no other program stops it"
            )

    def _look_at_settings(self, nodes: Nodes) -> None:
        """As many as there is time for, at least one. Raises CameraError."""
        if (watch := self._watch) is None:
            return
        until_ns = self._clock_ns() + _WATCH_NS
        for _ in watch.as_set:
            watch.look(nodes)
            if self._clock_ns() >= until_ns:
                return

    def _read_clock(self, link: Link) -> None:
        """Relate the camera's clock to ours where it can be asked; only of a camera that has just answered."""
        if self._clock_ns() - self._clock_read_ns < _CLOCK_EVERY_NS and self._clock_read_ns:
            return
        self._clock_read_ns = self._clock_ns()
        try:
            before_ns = self._clock_ns()
            device_ns = latched_clock_ns(link.nodes)
            after_ns = self._clock_ns()
            if device_ns is not None:
                self._answers.clock.read(device_ns, before_ns, after_ns)
            self._ptp_locked = self._config.ptp and ptp_locked(link.nodes)
        except NodeError as exc:
            log.warning("camera %s: its clock cannot be read (%s)", self._name, exc)

    def _remember(self, nodes: Nodes) -> None:
        self._format = format_named(str(self._settings["pixel_format"]))
        width, _, rest = str(self._settings["region"]).partition("x")
        self._size = int(width), int(rest.split("+")[0])
        exposure = first(nodes, EXPOSURE)
        self._exposure_ns = round(float(nodes.read(exposure)) * 1_000) if exposure else 0
        transfer_ns = round(self._config.longest_transfer_ms * _NS_PER_MS)
        self._answers.clock.longest_way_ns = transfer_ns + self._exposure_ns
        hertz = 0.0
        with suppress(NodeError):
            rate = first(nodes, RATE)
            hertz = float(nodes.read(rate)) if rate else 0.0
        period_ns = max(self._exposure_ns, round(1e9 / hertz) if hertz > 0 else 0)
        self._starved_ns = _STARVED_NS + _STARVED_FRAMES * period_ns

    # -- lifecycle ---------------------------------------------------------------------------------------

    @contextmanager
    def _using(self) -> Iterator[Link]:
        with self._in_use:
            link = self._link
            if link is None or self._closing.is_set():
                raise CameraError(f"camera {self._name}: asked for a frame while it is closed; open it first")
            try:
                yield link
            finally:
                if self._closing.is_set():  # `close` came from another thread and could not wait
                    self._let_go()

    def _let_go(self) -> None:
        link, self._link = self._link, None
        self._settings = {}
        if link is not None:
            link.close()
            self._past_counters.update(link.counters())
