"""A camera reader between pulses on a wire and its station, in virtual time: frames first, then what time decides."""

from collections import deque
from collections.abc import Mapping

import numpy as np
import pytest

from edge_daemon.cameras.base import CameraSilent, FrameLost
from edge_daemon.core.decision import Evaluation
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError
from edge_daemon.pipeline.reader import CameraReader
from tests.unit.test_station import MS, FakeClock, Line, PulsedLine


class WiredCamera:
    """Frames that are due at a time; waiting for one moves the clock."""

    name = "top"
    simulated = False
    waits_for_host = False
    overdue = False

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.due: deque[tuple[int, Frame | CameraError]] = deque()
        self.exposures = 0
        self.silence: deque[CameraError] = deque()

    def open(self) -> None: ...

    def close(self) -> None: ...

    def trigger(self) -> None:
        raise AssertionError("nobody triggers a camera on a wire")

    def check(self, timeout_ns: int) -> None:  # noqa: ARG002
        if self.silence:
            raise self.silence.popleft()

    def counters(self) -> Mapping[str, int]:
        return {}

    def settings(self) -> Mapping[str, str | int | float | bool]:
        return {}

    def pulse(self, in_ms: float, what: str = "frame") -> None:
        """An exposure `in_ms` from now, and its frame 3 ms later."""
        self.exposures += 1
        exposed_ns = self.clock.now + round(in_ms * MS)
        arrived_ns = exposed_ns + 3 * MS
        pixels = np.zeros((2, 2, 3), np.uint8)
        frame = Frame("top", self.exposures, pixels, arrived_ns, self.exposures, exposed_ns, exposed_ns)
        self.due.append((arrived_ns, frame if what == "frame" else FrameLost("incomplete")))

    def grab(self, timeout_ns: int) -> Frame | None:
        until_ns = self.clock.now + (timeout_ns or 20 * MS if self.overdue else timeout_ns)
        if not self.due or self.due[0][0] > until_ns:
            self.clock.now = until_ns
            return None
        due_ns, what = self.due.popleft()
        self.clock.now = max(self.clock.now, due_ns)
        if isinstance(what, CameraError):
            raise what
        return what


class Wire:
    """The loop of a reader, one turn at a time."""

    def __init__(self, **config: object) -> None:
        self.line = PulsedLine(deadline_ms=100, queue=5, **config)
        self.camera = WiredCamera(self.line.clock)
        self.events: list[str] = []
        self.reader = CameraReader(
            self.camera, self.line.station, 0, self.line.clock, lambda name, _: self.events.append(name), _raise
        )
        Line.ready(self.line)
        self.run(900)

    def run(self, ms: float) -> None:
        until_ns = self.line.clock.now + round(ms * MS)
        while self.line.clock.now < until_ns:
            try:
                self.reader._serve_pulses()
            except FrameLost:
                self.events.append("frame_lost")
            while len(self.line.work) > self.judged:
                self.line.judged(Evaluation.OK, self.judged)
                self.judged += 1

    judged = 0

    def part(self, number: int, what: str = "frame") -> None:
        self.line.trigger(str(number))
        self.camera.pulse(3, what)
        self.run(40)


def _raise(error: BaseException) -> None:
    raise error


def test_parts_are_judged_after_silence_and_an_event_says_that_they_can_be() -> None:
    wire = Wire()
    assert wire.events == ["in_step"]
    for number in (1, 2, 3):
        wire.part(number)
    assert wire.line.reasons() == {"1": "OK", "2": "OK", "3": "OK"}


def test_an_incomplete_frame_costs_its_own_part_and_the_line_stays_in_step() -> None:
    wire = Wire()
    wire.part(1)
    wire.part(2, "lost")
    wire.part(3)
    assert wire.line.reasons() == {"1": "OK", "2": "no_frame", "3": "OK"}
    assert wire.events == ["in_step", "frame_lost"]


def test_frames_that_waited_while_the_pc_was_held_up_are_handed_in_before_any_part_is_given_up() -> None:
    wire = Wire()
    for number in (1, 2):
        wire.line.trigger(str(number))
        wire.camera.pulse(3)
        wire.line.clock.now += 30 * MS
    assert wire.line.outbox.records == []
    wire.run(40)
    assert wire.line.reasons() == {"1": "OK", "2": "OK"}


def test_a_camera_that_does_not_answer_says_nothing_about_frames() -> None:
    """Its process is held up, and the part's frame lies there: that none was given does not mean that none came."""
    wire = Wire()
    wire.line.trigger("1")
    wire.camera.pulse(3)
    held_up, wire.camera.due = wire.camera.due, deque()
    wire.camera.overdue = True
    wire.run(60)
    assert wire.line.outbox.records == []
    wire.camera.due, wire.camera.overdue = held_up, False
    wire.run(40)
    assert wire.line.reasons() == {"1": "OK"}


def test_a_part_without_a_frame_is_given_up_as_soon_as_none_can_come() -> None:
    wire = Wire()
    began_ns = wire.line.clock.now
    wire.line.trigger("1")
    while not wire.line.outbox.records:
        wire.reader._serve_pulses()
    assert wire.line.reasons() == {"1": "no_frame"}
    assert wire.line.clock.now - began_ns <= 51 * MS, "one look that had begun before, and 25 ms"


def test_a_frame_that_nobody_announced_is_told_and_silence_mends_it() -> None:
    wire = Wire()
    wire.camera.pulse(3)
    wire.run(60)
    assert wire.events == ["in_step", "out_of_step"]
    assert not wire.line.ready_now()
    wire.run(800)
    assert wire.events == ["in_step", "out_of_step", "in_step"]
    wire.part(1)
    assert wire.line.reasons() == {"1": "OK"}


def test_a_camera_that_gives_no_sign_of_life_drops_trigger_ready_and_asks_for_silence() -> None:
    wire = Wire()
    wire.camera.silence.append(CameraSilent("nothing"))
    wire.run(600)
    assert not wire.line.ready_now()
    wire.run(800)
    assert wire.line.ready_now()


@pytest.mark.parametrize("fault", [CameraError("gone"), CameraSilent("nothing")])
def test_a_camera_that_is_gone_ends_the_turn(fault: CameraError) -> None:
    wire = Wire()
    wire.camera.silence.extend([CameraSilent("nothing"), fault])
    with pytest.raises(CameraError):
        wire.run(600)
