"""Which part a frame shows, when pulses on a wire start the exposures (DESIGN 5.7).

A pulse carries no id. Somebody who knows the part (gateway, PLC) announces each pulse by message; the camera numbers
its exposures and tells when they were. A frame is bound to an announcement only when two things that know nothing of
each other agree: the *time* leaves exactly one announcement, and the *count* of exposures since the last bound frame
equals the count of announcements. First-in first-out would use the count alone: one lost frame would shift every
verdict by a part. Time alone would believe a clock that jumped, or a network that holds frames back, by one part.

Any doubt fails every announcement concerned, judges the frame for nobody, and puts the binder out of step. Nothing in
a stream of evenly spaced parts tells a camera that missed a pulse from one that is a part late; silence does. So the
binder is in step again after a stretch without any announcement or frame, longer than any frame is ever late; until
then every announced part fails. A station drops Trigger Ready meanwhile, which is what makes the silence.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

FrameT = TypeVar("FrameT")

# Announcements that are remembered after their end, so that a late frame of theirs is known for what it is.
_REMEMBERED = 256


class BindFault(Enum):
    """Why an announced part has no frame of its own."""

    NO_FRAME = "no frame came within the window"
    AMBIGUOUS = "more than one announcement lies within the time uncertainty of a frame"
    COUNT = "the camera's counter and the announcements do not agree"
    SECOND_FRAME = "a second frame was exposed within its window"
    STRAY = "a frame came that nobody announced"
    CLOCK = "the camera's clock contradicts the arrival of a frame"
    OUT_OF_STEP = "after a doubt, silence must come first"
    STREAM = "the camera's stream began anew"


@dataclass(frozen=True, slots=True)
class BindingWindow:
    """What the plant states about its pulses; nanoseconds.

    earliest_ns, latest_ns: the exposure begins this long after the announcement arrived, at least and at most;
    earliest may be negative, for announcements that come after their pulse.
    shortest_delay_ns, longest_delay_ns: from the start of the exposure to the complete frame on this PC. They bound
    what a camera's clock may say, and are all there is to go by where it has none.
    quiet_ns: silence that puts the binder in step again; longer than any frame is ever late.
    """

    earliest_ns: int
    latest_ns: int
    shortest_delay_ns: int
    longest_delay_ns: int
    quiet_ns: int

    def __post_init__(self) -> None:
        if not self.earliest_ns <= self.latest_ns:
            raise ValueError("the earliest exposure must not come after the latest")
        if not 0 <= self.shortest_delay_ns <= self.longest_delay_ns:
            raise ValueError("the shortest delay must be at least 0 and not above the longest")
        if not self.quiet_ns >= self.gives_up_ns:
            raise ValueError("the silence must last at least until the frame of the last announcement is given up")

    @property
    def gives_up_ns(self) -> int:
        """No frame of an announcement is decided later than this after it."""
        return self.latest_ns + self.longest_delay_ns + max(0, -self.earliest_ns)


@dataclass(frozen=True, slots=True)
class Exposed(Generic[FrameT]):
    """A frame as the binder sees it. Times are this PC's monotonic nanoseconds.

    count: rises by one with every exposure of the camera, also with those whose frame was lost on the way.
    exposed_ns: start of the exposure, None where only the arrival is known; uncertainty_ns: how far off, either way.
    """

    frame: FrameT
    count: int
    arrived_ns: int
    exposed_ns: int | None
    uncertainty_ns: int = 0


@dataclass(frozen=True, slots=True)
class Bound(Generic[FrameT]):
    """The frame shows the part of this announcement, unless a second one turns up: judge it, publish nothing yet."""

    key: str
    frame: FrameT


@dataclass(frozen=True, slots=True)
class Confirmed:
    """No second frame can turn up any more: what was bound to this announcement may be published."""

    key: str


@dataclass(frozen=True, slots=True)
class Unbound:
    """The part of this announcement has no frame, and will have none."""

    key: str
    fault: BindFault


@dataclass(frozen=True, slots=True)
class Stray(Generic[FrameT]):
    """A frame that nobody announced; it is judged for nobody."""

    frame: FrameT


Decision = Bound[FrameT] | Confirmed | Unbound | Stray[FrameT]


@dataclass(slots=True)
class _Announcement:
    key: str
    ordinal: int
    at_ns: int
    ended: bool
    bound: bool = False  # and not yet confirmed


@dataclass(slots=True)
class _Waiting(Generic[FrameT]):
    """A frame whose announcements may not all have arrived yet."""

    exposed: Exposed[FrameT]
    first_ns: int
    last_ns: int


@dataclass(slots=True)
class FrameBinder(Generic[FrameT]):
    """Announcements and frames of one camera, bound one to one. Pure: time is an argument, and must not go back.

    Every announced key that was not refused gets either `Bound` and then `Confirmed`, or `Unbound`, perhaps after a
    `Bound`: when a second frame turns up, what was bound before is in doubt too. Judging takes longer than that as a
    rule, so waiting for the confirmation before publishing costs little.

    `tick` believes that every frame which arrived before its `now_ns` has been handed in: whoever calls it fetches
    frames first. Nothing else concludes anything from a frame's absence, silence included: frames of before may lie
    in a buffer while nobody fetches them.
    """

    window: BindingWindow
    began_ns: int
    """When the stream began; like any doubt, that must be followed by silence."""
    _announced: "deque[_Announcement]" = field(default_factory=deque)
    _waiting: "deque[_Waiting[FrameT]]" = field(default_factory=deque)
    last_doubt: BindFault | None = None
    """Why it was out of step last."""
    _in_step: bool = False
    _reference: tuple[int, int] | None = None  # (ordinal, count) of the last bound frame; None right after silence
    _first: int = 0  # ordinal of the first announcement after silence
    _last_count: int | None = None
    _ordinals: int = 0
    _last_event_ns: int = 0
    _fetched_ns: int = 0  # every frame that arrived before has been handed in

    def __post_init__(self) -> None:
        self._last_event_ns = self._fetched_ns = self.began_ns

    @property
    def in_step(self) -> bool:
        """Whether an announcement made now could be bound: false from a doubt until the end of the silence."""
        return self._in_step or self._silent

    def announce(self, key: str, at_ns: int, *, refused: bool = False) -> list[Decision[FrameT]]:
        """A pulse for this part was, is, or will be given. refused: its trigger was not accepted (missed), but the
        exposure will take place all the same and must not be taken for another part's."""
        decisions: list[Decision[FrameT]] = []
        self._begin_after_silence()
        self._ordinals += 1
        self._last_event_ns = max(self._last_event_ns, at_ns)
        ended = refused or not self._in_step
        if ended and not refused:
            decisions.append(Unbound(key, BindFault.OUT_OF_STEP))
        self._announced.append(_Announcement(key, self._ordinals, at_ns, ended))
        while len(self._announced) > _REMEMBERED and self._announced[0].ended:
            self._announced.popleft()
        return decisions

    def exposed(self, exposed: Exposed[FrameT], now_ns: int) -> list[Decision[FrameT]]:
        """A complete frame has arrived, and is handed in now."""
        self._begin_after_silence()
        self._last_event_ns = max(self._last_event_ns, now_ns)
        decisions = self._decide_due(now_ns)
        interval = self._when(exposed)
        if interval is None:
            return [*decisions, *self._doubt(self._open(), BindFault.CLOCK), Stray(exposed.frame)]
        self._waiting.append(_Waiting(exposed, *interval))
        return decisions + self._decide_due(now_ns)

    def tick(self, now_ns: int) -> list[Decision[FrameT]]:
        """What time alone decides: frames for which no further announcement can come, parts without a frame."""
        self._fetched_ns = max(self._fetched_ns, now_ns)
        decisions = self._decide_due(now_ns)
        for announcement in self._announced:
            if now_ns <= announcement.at_ns + self.window.gives_up_ns:
                break  # as are all after it
            if announcement.bound:
                announcement.bound = False
                decisions.append(Confirmed(announcement.key))
            elif not announcement.ended:
                announcement.ended = True
                decisions.append(Unbound(announcement.key, BindFault.NO_FRAME))
        return decisions

    def interrupted(self, now_ns: int) -> list[Decision[FrameT]]:
        """The stream was interrupted: whatever was announced has no frame, and the count may begin anew."""
        decisions = self._doubt(self._open(), BindFault.STREAM)
        decisions += [Stray(waiting.exposed.frame) for waiting in self._waiting]
        self._waiting.clear()
        self._last_event_ns = max(self._last_event_ns, now_ns)
        return decisions

    def forget(self, key: str) -> None:
        """The inspection of this announcement has ended for another reason; its frame is nobody's now."""
        for announcement in self._announced:
            if announcement.key == key:
                announcement.ended, announcement.bound = True, False

    def next_ns(self) -> int | None:
        """When `tick` has something to decide at the earliest; None for nothing in sight."""
        times = [a.at_ns + self.window.gives_up_ns + 1 for a in self._announced if a.bound or not a.ended]
        times += [self._waiting[0].last_ns - self.window.earliest_ns + 1] if self._waiting else []
        return min(times, default=None)

    # -- one frame -----------------------------------------------------------------------------------

    def _when(self, exposed: Exposed[FrameT]) -> tuple[int, int] | None:
        """Interval in which the exposure began; None when the camera's clock contradicts the arrival."""
        first_ns = exposed.arrived_ns - self.window.longest_delay_ns
        last_ns = exposed.arrived_ns - self.window.shortest_delay_ns
        if exposed.exposed_ns is None:
            return first_ns, last_ns
        first_ns = max(first_ns, exposed.exposed_ns - exposed.uncertainty_ns)
        last_ns = min(last_ns, exposed.exposed_ns + exposed.uncertainty_ns)
        return (first_ns, last_ns) if first_ns <= last_ns else None

    def _decide_due(self, now_ns: int) -> list[Decision[FrameT]]:
        """Frames for which no further announcement can come, in the order of arrival: the count compares each with the
        one before."""
        decisions: list[Decision[FrameT]] = []
        while self._waiting and now_ns > self._waiting[0].last_ns - self.window.earliest_ns:
            decisions += self._decide(self._waiting.popleft().exposed)
        return decisions

    def _decide(self, exposed: Exposed[FrameT]) -> list[Decision[FrameT]]:
        nobodys: list[Decision[FrameT]] = [Stray(exposed.frame)]
        if not self._in_step:
            return nobodys
        backwards = self._last_count is not None and exposed.count <= self._last_count
        self._last_count = exposed.count
        candidates = self._candidates(exposed)
        if not candidates:
            return self._doubt(self._open(), BindFault.STRAY) + nobodys
        announcement = candidates[0]
        if len(candidates) > 1:
            return self._doubt(candidates, BindFault.AMBIGUOUS) + nobodys
        if backwards or not self._count_agrees(announcement, exposed.count):
            fault = BindFault.SECOND_FRAME if announcement.bound else BindFault.COUNT
            return self._doubt(candidates, fault) + nobodys
        self._reference = (announcement.ordinal, exposed.count)
        if announcement.ended:  # refused, given up or failed meanwhile: its frame, for nobody
            return nobodys
        announcement.ended = announcement.bound = True
        return [Bound(announcement.key, exposed.frame)]

    def _candidates(self, exposed: Exposed[FrameT]) -> list[_Announcement]:
        """All announcements, ended ones too, in whose window the exposure may have begun."""
        interval = self._when(exposed)
        if interval is None:  # cannot be: such a frame never waits
            return []
        found: list[_Announcement] = []
        for announcement in reversed(self._announced):
            if announcement.at_ns + self.window.latest_ns < interval[0]:
                break  # and all before it
            if announcement.at_ns + self.window.earliest_ns <= interval[1]:
                found.append(announcement)
        return found[::-1]

    def _count_agrees(self, announcement: _Announcement, count: int) -> bool:
        """Whether counter and announcements moved alike since the last bound frame; after silence the first
        announcement and the first frame leave nothing to confuse."""
        if self._reference is None:
            return announcement.ordinal == self._first
        ordinal, counted = self._reference
        return announcement.ordinal - ordinal == count - counted

    def _doubt(self, concerned: list[_Announcement], fault: BindFault) -> list[Decision[FrameT]]:
        """Out of step: those concerned fail, and with them all that is not yet confirmed."""
        self._in_step, self._reference, self.last_doubt = False, None, fault
        decisions: list[Decision[FrameT]] = []
        for announcement in self._announced:
            named = announcement in concerned
            if announcement.bound or not announcement.ended:
                decisions.append(Unbound(announcement.key, fault if named else BindFault.OUT_OF_STEP))
            announcement.ended, announcement.bound = True, False
        return decisions

    def _open(self) -> list[_Announcement]:
        return [announcement for announcement in self._announced if announcement.bound or not announcement.ended]

    def _begin_after_silence(self) -> None:
        """The next announcement and the next frame belong together, whichever comes first."""
        if not self._in_step and self._silent:
            self._in_step, self._reference, self._first, self._last_count = True, None, self._ordinals + 1, None

    @property
    def _silent(self) -> bool:
        return not self._waiting and self._fetched_ns - self._last_event_ns > self.window.quiet_ns
