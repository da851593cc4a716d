"""Which frame of a device answers which request. No I/O and no clock: time is an argument."""

from dataclasses import dataclass
from typing import Literal

from edge_daemon.core.device_clock import DeviceClock
from edge_daemon.core.frame import ClockQuality

# GigE Vision 1.x counts in 16 bits and leaves 0 out (65535 is followed by 1); 2.0 in 64.
_LARGEST_SHORT_ID = 65_535
# A step back of less than half the range is an old frame, not a way round it.
_HALF = _LARGEST_SHORT_ID // 2
# Frames that may be under way when a free-running camera without a clock is asked: one exposed, one read out.
FRAMES_UNDER_WAY = 2
# Two commands are further apart than this, or are for the same part.
TELLS_APART_NS = 5_000_000
# One frame from before its command was under way; as many answers to commands come from a clock that went back.
OLDER_IN_A_ROW = 2

Mode = Literal["free_run", "commanded", "line"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a frame is, and whether it may be delivered.

    frame_id: of this camera object, rising over reconnects. `answers`: this is the frame to deliver; otherwise `why`
    says why it is not.
    """

    frame_id: int
    answers: bool
    why: Literal["", "older", "unrequested", "repeated", "numbered_before"] = ""
    exposed_ns: int | None = None
    uncertainty_ns: int = 0
    clock_quality: ClockQuality = "host"


@dataclass(slots=True)
class Answers:
    """Numbers the frames of one camera and matches them with triggers.

    mode: `free_run` (frames come by themselves; once triggered, only those exposed after a trigger count),
    `commanded` (the device exposes when told) or `line` (a pulse on a wire asks; binding is somebody else's).
    """

    mode: Mode
    clock: DeviceClock
    frame_id: int = 0
    triggered: bool = False
    missing: int = 0
    older: int = 0
    unrequested: int = 0
    repeated: int = 0
    _device_id: int | None = None
    _wide: bool = False
    _asked_ns: int | None = None
    _after_unanswered: bool = False
    _to_skip: int = 0
    _older_in_a_row: int = 0

    @property
    def waiting(self) -> bool:
        """Whether a trigger has had no answer yet."""
        return self._asked_ns is not None

    def restart(self) -> None:
        """Opened anew: nothing that was asked for before is answered, and the device may count from anywhere."""
        self.resynchronised()
        self.clock.restart()

    def resynchronised(self) -> None:
        """The stream began anew, the clock goes on: what was asked for before is never answered."""
        self._device_id = self._asked_ns = None
        self._after_unanswered = False

    def must_resynchronise(self, now_ns: int) -> bool:
        """Whether the answer to an earlier command could be taken for that to the next one: it may still come, and the
        device's clock does not tell them apart."""
        if self.mode != "commanded" or not self.waiting:
            return False
        uncertainty_ns = self.clock.uncertainty_ns(now_ns)
        return uncertainty_ns is None or uncertainty_ns > TELLS_APART_NS

    def ask(self, now_ns: int) -> None:
        """A trigger goes out now. Whatever was asked for before is not wanted any more."""
        self._after_unanswered = self.waiting
        self.triggered = True
        self._asked_ns, self._to_skip = now_ns, FRAMES_UNDER_WAY

    def lost(self, device_id: int | None) -> Identity:
        """A frame came incomplete: it answers a pending trigger as well as one that never came. None: its number is not
        known. It stays a gap in front of the next complete one, and does not move the count: with packets lost, frames
        numbered before it may come complete after it."""
        if device_id is not None and self._step(device_id) <= 0:
            return Identity(self.frame_id, False, "numbered_before")
        if self.mode == "commanded" and self._asked_ns is None:
            self.unrequested += 1
            return Identity(self.frame_id, False, "unrequested")
        if self.mode == "free_run" and self.triggered:  # whether it was exposed in time cannot be known
            return Identity(self.frame_id, False, "older")
        self._asked_ns = None
        return Identity(self.frame_id, True)

    def frame(
        self, device_id: int, exposed_device_ns: int | None, arrived_ns: int, waited: bool, ptp: bool = False
    ) -> Identity:
        """A complete frame. exposed_device_ns: start of exposure by the device's clock; waited: it was in no queue
        before it arrived here."""
        step = self._step(device_id)
        if step <= 0:
            self.repeated += step == 0
            self.older += step < 0
            return Identity(self.frame_id, False, "repeated" if step == 0 else "numbered_before")
        self._count(device_id, step)
        sure_ns = self._asked_ns if self.mode == "commanded" else None
        exposed = self._exposed(exposed_device_ns, arrived_ns, waited)
        if why := self._refused(exposed):
            return Identity(self.frame_id, False, why)
        if exposed_device_ns is not None and sure_ns is not None and exposed is not None and not self._after_unanswered:
            self.clock.frame(exposed_device_ns, arrived_ns, False, asked_ns=sure_ns)
            exposed = self.clock.monotonic(exposed_device_ns, arrived_ns)
        self._asked_ns, self._older_in_a_row = None, 0
        if exposed is None:
            return Identity(self.frame_id, True)
        return Identity(self.frame_id, True, "", exposed[0], exposed[1], "ptp" if ptp else "camera")

    def _exposed(self, device_ns: int | None, arrived_ns: int, waited: bool) -> tuple[int, int] | None:
        if device_ns is None:
            return None
        self.clock.frame(device_ns, arrived_ns, waited)
        return self.clock.monotonic(device_ns, arrived_ns)

    def _refused(self, exposed: tuple[int, int] | None) -> Literal["", "older", "unrequested"]:
        if self.mode == "line" or (self.mode == "free_run" and not self.triggered):
            return ""
        if self._asked_ns is None:
            self.unrequested += self.mode == "commanded"
            return "unrequested"
        if self.mode == "free_run" and exposed is None:
            self._to_skip -= 1
            old = self._to_skip >= 0
        elif exposed is not None and (self.mode == "free_run" or self._after_unanswered):
            old = exposed[0] - exposed[1] < self._asked_ns  # one that is surely later comes by itself
        else:
            old = exposed is not None and exposed[0] + exposed[1] < self._asked_ns
        if not old:
            return ""
        self.older += 1
        self._older_in_a_row += 1
        if self.mode == "commanded" and self._older_in_a_row >= OLDER_IN_A_ROW:
            self._older_in_a_row = 0
            self.clock.suspect()
        return "older"

    def _step(self, device_id: int) -> int:
        """By how many frames the device has gone on; 0 for the same frame again, negative for an older one."""
        if self._device_id is None:
            return 1
        self._wide = self._wide or device_id > _LARGEST_SHORT_ID
        step = device_id - self._device_id
        if self._wide or abs(step) <= _HALF:
            return step
        return step + _LARGEST_SHORT_ID if step < 0 else step - _LARGEST_SHORT_ID

    def _count(self, device_id: int, step: int) -> None:
        self._device_id = device_id
        self.missing += step - 1
        self.frame_id += step
