"""A camera reader and frames that come too late, too early or twice: none is taken for another part's."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from edge_daemon.cameras.base import Camera, CameraSilent, FrameLost
from edge_daemon.cameras.config import SimulatedConfig
from edge_daemon.cameras.open import make_camera
from edge_daemon.core.decision import Reason
from edge_daemon.core.frame import Frame
from edge_daemon.edges.clock import SystemClock
from edge_daemon.errors import CameraError
from edge_daemon.pipeline.inspection import OpenInspection, ViewOutcome
from edge_daemon.pipeline.reader import CameraReader
from tests.unit.test_station import Line

CLOCK = SystemClock()
# A time that the camera fills in when it is triggered.
THEN_NS = 2**61


class ScriptedCamera:
    """Gives what the test puts in: frames that lie in its buffer, and answers to triggers."""

    name = "top"
    simulated = False
    waits_for_host = False
    overdue = False

    def __init__(self) -> None:
        self.buffer: deque[Frame] = deque()
        self.answers: deque[list[Frame] | CameraError] = deque()
        self.opened = 0
        self.when_asked: Callable[[], object] | None = None
        self.when_triggered: Callable[[], object] | None = None
        self.waited_until_ns = 0
        self.silence: deque[CameraError] = deque()
        self.set_to: dict[str, str | int | float | bool] = {"gain_db": 3.0}
        self.exposed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._ids = iter(range(1, 1000))

    def frame(self, age_ns: int = 0) -> Frame:
        return Frame(self.name, next(self._ids), np.zeros((2, 2, 3), np.uint8), CLOCK.monotonic_ns() - age_ns)

    def open(self) -> None:
        self.opened += 1

    def close(self) -> None:
        self.buffer.clear()

    def trigger(self) -> None:
        if self.when_triggered is not None:
            self.when_triggered()
        answer = self.answers.popleft()
        if isinstance(answer, CameraError):
            raise answer
        self.buffer.extend(map(stamped, answer))

    def check(self, timeout_ns: int) -> None:  # noqa: ARG002
        if self.silence:
            raise self.silence.popleft()
        if self.when_asked is not None:
            self.when_asked()

    def counters(self) -> Mapping[str, int]:
        return {"completed": 7}

    def settings(self) -> Mapping[str, str | int | float | bool]:
        return self.set_to

    def grab(self, timeout_ns: int) -> Frame | None:
        if self.buffer:
            return self.buffer.popleft()
        self.waited_until_ns = CLOCK.monotonic_ns() + timeout_ns
        threading.Event().wait(min(timeout_ns, 1_000_000) / 1e9)
        return None


class Running:
    """A reader at work on a station whose work and records arrive in queues."""

    def __init__(self, deadline_ms: int = 60_000, frame_wait_ns: int = 100_000_000, exposures: int = 1) -> None:
        self.line = Line(exposures=exposures, deadline_ms=deadline_ms, queue=5)
        self.frame_wait_ns = frame_wait_ns
        self.camera = ScriptedCamera()
        self.events: list[str] = []
        self.work: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self.records: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.line.clock = CLOCK  # type: ignore[assignment]
        self.line.station._clock = CLOCK
        self.use(self.camera)
        conclude = self.line.outbox.conclude

        def told(draft: object) -> None:
            conclude(draft)  # type: ignore[arg-type]
            self.records.put(self.line.last.reason)

        self.line.outbox.conclude = told  # type: ignore[method-assign, assignment]

    def use(self, camera: Camera) -> None:
        self.reader = CameraReader(
            camera, self.line.station, self.frame_wait_ns, CLOCK, lambda name, _: self.events.append(name), raise_it
        )
        self.line.station.attach(
            lambda work: self.work.put(work.frame), {"top": self.reader.request}, False, lambda: None, None
        )


def fresh(frame: Frame) -> Frame:
    """The same frame, as the answer to a trigger: there as soon as it is triggered."""
    return replace(frame, arrived_ns=THEN_NS)


def stamped(frame: Frame) -> Frame:
    """The frame with the times that were left to the moment of its trigger."""
    now_ns = CLOCK.monotonic_ns()
    arrived_ns = now_ns if frame.arrived_ns == THEN_NS else frame.arrived_ns
    return replace(frame, arrived_ns=arrived_ns, exposed_ns=now_ns if frame.exposed_ns == THEN_NS else frame.exposed_ns)


def raise_it(error: BaseException) -> None:
    raise error


@pytest.fixture
def running() -> Iterator[Running]:
    with started(Running()) as it:
        yield it


@contextmanager
def started(it: Running) -> Iterator[Running]:
    it.line.ready()
    it.reader.start()
    try:
        yield it
    finally:
        assert it.reader.close()


def test_the_frame_of_a_trigger_is_judged(running: Running) -> None:
    running.camera.answers.append([fresh(running.camera.frame())])
    running.line.trigger("1")
    assert running.work.get(timeout=5).frame_id == 1


def test_frames_that_lie_in_the_buffer_are_not_taken_for_the_new_part(running: Running) -> None:
    old = [running.camera.frame(), running.camera.frame()]
    running.camera.buffer.extend(old)
    running.camera.answers.append([fresh(running.camera.frame())])
    running.line.trigger("1")
    assert running.work.get(timeout=5).frame_id == 3
    status = running.line.station.status("", 0, None, 0)
    assert status.details["untriggered_frames"] == {"top": 2}


def test_a_frame_older_than_its_trigger_is_not_taken_even_after_it(running: Running) -> None:
    stale = running.camera.frame(age_ns=1_000_000_000)
    running.camera.answers.append([stale, fresh(running.camera.frame())])
    running.line.trigger("1")
    assert running.work.get(timeout=5).frame_id == 2


def test_no_frame_within_the_window_fails_the_part_and_the_late_frame_harms_no_other(running: Running) -> None:
    running.camera.answers.append([])
    running.line.trigger("1")
    assert running.records.get(timeout=5) == "no_frame"
    running.camera.buffer.append(running.camera.frame())  # the first part's, far too late
    running.camera.answers.append([fresh(running.camera.frame())])
    running.line.trigger("2")
    assert running.work.get(timeout=5).frame_id == 2
    assert len(running.line.outbox.records) == 1


def test_a_lost_frame_fails_its_part_and_the_camera_goes_on(running: Running) -> None:
    running.camera.answers.append(FrameLost("incomplete"))
    running.camera.answers.append([fresh(running.camera.frame())])
    running.line.trigger("1")
    assert running.records.get(timeout=5) == "camera"
    running.line.trigger("2")
    assert running.work.get(timeout=5).frame_id == 1
    assert running.camera.opened == 1


def test_a_lost_camera_fails_all_that_wait_and_is_opened_again(running: Running) -> None:
    running.camera.answers.append(CameraError("cable pulled"))
    running.line.trigger("1")
    assert running.records.get(timeout=5) == "camera"
    give_up = CLOCK.monotonic_ns() + 5_000_000_000
    while not (running.camera.opened == 2 and running.line.ready_now()) and CLOCK.monotonic_ns() < give_up:
        threading.Event().wait(0.005)
    assert running.line.ready_now()
    assert "camera_lost" in running.events
    running.camera.answers.append([fresh(running.camera.frame())])
    running.line.trigger("2")
    assert running.work.get(timeout=5).frame_id == 1


def wait_until(true: Callable[[], bool]) -> None:
    give_up = CLOCK.monotonic_ns() + 20_000_000_000
    while not true() and CLOCK.monotonic_ns() < give_up:
        threading.Event().wait(0.005)
    assert true()


def test_a_frame_exposed_before_its_trigger_is_not_taken_however_late_it_comes(running: Running) -> None:
    late = fresh(running.camera.frame())
    late = replace(late, exposed_ns=CLOCK.monotonic_ns() - 1_000_000_000)
    jumped = replace(fresh(running.camera.frame()), exposed_ns=2**62)
    true = replace(fresh(running.camera.frame()), exposed_ns=THEN_NS)
    running.camera.answers.append([late, jumped, true])
    running.line.trigger("1")
    assert running.work.get(timeout=5).frame_id == 3


def test_a_camera_that_brings_no_frame_and_says_nothing_fails_the_part_and_drops_ready_before_it_is_asked_again(
    running: Running,
) -> None:
    asked_again = threading.Event()
    running.camera.answers.append([])
    running.camera.silence.append(CameraSilent("silent"))
    running.camera.when_asked = asked_again.wait
    running.line.trigger("1")
    assert running.records.get(timeout=5) == "camera"
    assert not running.line.ready_now()
    running.camera.when_asked = None
    asked_again.set()
    wait_until(running.line.ready_now)
    assert running.camera.opened == 1
    assert "camera_lost" not in running.events


def test_a_camera_that_stays_silent_is_opened_anew_also_when_no_part_comes(running: Running) -> None:
    wait_until(running.line.ready_now)
    running.camera.silence.extend([CameraSilent("silent"), CameraSilent("still silent")])
    wait_until(lambda: running.camera.opened == 2 and running.line.ready_now())
    assert running.events == ["camera_connected", "camera_lost", "camera_connected"]


def test_a_camera_that_answers_and_brings_no_frame_three_times_in_a_row_is_opened_anew(running: Running) -> None:
    """Whatever stopped its stream, only opening sets it going again."""
    given = [[], [], [fresh(running.camera.frame())], [], [], []]
    running.camera.answers.extend(given)
    for number, answer in enumerate(given):
        assert running.camera.opened == 1
        running.line.trigger(str(number))
        if answer:
            running.work.get(timeout=5)
        else:
            assert running.records.get(timeout=5) == "no_frame"
    wait_until(lambda: running.camera.opened == 2 and running.line.ready_now())
    assert running.events == ["camera_connected", "camera_lost", "camera_connected"]


def test_a_camera_that_brings_every_frame_is_asked_all_the_same_whether_it_is_still_what_it_was(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_daemon.pipeline.reader._LOOK_NS", 0)
    wait_until(running.line.ready_now)
    running.camera.silence.append(CameraError("somebody else changes its settings"))
    running.camera.answers.append([fresh(running.camera.frame())])
    running.line.trigger("1")
    assert running.work.get(timeout=5).frame_id == 1, "its frame was taken before"
    wait_until(lambda: running.camera.opened == 2)


def test_the_window_for_a_frame_closes_before_the_deadline() -> None:
    with started(Running(deadline_ms=300, frame_wait_ns=10**12)) as it:
        it.camera.answers.append([])
        accepted_ns = CLOCK.monotonic_ns()
        it.line.trigger("1")
        assert it.records.get(timeout=5) == "no_frame"
        assert it.camera.waited_until_ns < accepted_ns + 300_000_000


def test_a_view_that_has_failed_is_not_exposed_any_more(running: Running) -> None:
    wait_until(running.line.ready_now)
    now_ns = CLOCK.monotonic_ns()
    held = OpenInspection("a", "1", None, 1, "production", None, now_ns, CLOCK.utc(), now_ns + 60_000_000_000)
    held.outcomes["top"] = ViewOutcome.failed(Reason.CAMERA)
    running.reader.request(held)
    running.camera.answers.append([fresh(running.camera.frame())])
    running.line.trigger("2")
    assert running.work.get(timeout=5).frame_id == 1
    assert not running.camera.answers  # one exposure, not two


def test_counters_and_settings_reach_status_and_results(running: Running) -> None:
    wait_until(running.line.ready_now)
    running.camera.answers.append([])
    running.line.trigger("1")
    running.records.get(timeout=5)
    first = running.line.last.provenance.camera_settings_digest
    assert len(first) == 64
    assert running.line.station.status("", 0, None, 0).details["camera_counters"] == {"top": {"completed": 7}}
    running.camera.set_to = {"gain_db": 4.0}
    running.camera.answers.extend([[], []])
    for trigger_id in ("2", "3"):  # the first one shows that they have changed
        running.line.trigger(trigger_id)
        running.records.get(timeout=5)
    assert running.line.last.provenance.camera_settings_digest not in ("", first)


def test_a_process_that_freezes_fails_the_pending_part_in_time_and_comes_back() -> None:
    table = {"kind": "simulated", "product": "cap", "size": [64, 64], "isolated": True,
             "faults": [{"trigger": 2, "action": "freeze"}]}  # fmt: skip
    it = Running(deadline_ms=10_000, frame_wait_ns=300_000_000)
    it.use(make_camera("top", SimulatedConfig.model_validate(table), CLOCK.monotonic_ns))
    with started(it):
        wait_until(lambda: "camera_connected" in it.events)
        it.line.trigger("1")
        assert it.work.get(timeout=5).frame_id == 1
        it.line.trigger("2")
        assert it.records.get(timeout=5) == "camera"
        assert not it.line.ready_now()
        assert it.line.outbox.records[-1].late is False
        wait_until(it.line.ready_now)
        it.line.trigger("3")
        assert it.work.get(timeout=5).frame_id == 3
        assert "camera_lost" in it.events


class Behind(SystemClock):
    """What was accepted by this clock has waited for 251 ms by the reader's."""

    def monotonic_ns(self) -> int:
        return super().monotonic_ns() - 251_000_000


def test_a_part_that_waited_too_long_for_its_camera_is_not_exposed(running: Running) -> None:
    """The reader was held up by the part before; by now another one may lie there."""
    wait_until(running.line.ready_now)
    running.line.station._clock = Behind()
    running.camera.answers.append([fresh(running.camera.frame())])
    running.line.trigger("1")
    assert running.records.get(timeout=5) == "exposed_late"
    assert len(running.camera.answers) == 1  # nothing was exposed
    assert running.work.empty()


@pytest.mark.parametrize("after_ms", [5_000, None])
def test_a_picture_exposed_too_long_after_its_trigger_is_not_judged(running: Running, after_ms: int | None) -> None:
    """None: a camera without a clock, of which only the arrival is known."""
    late = running.camera.frame(age_ns=-10_000_000_000)
    exposed_ns = None if after_ms is None else late.arrived_ns - after_ms * 1_000_000
    running.camera.answers.append([replace(late, exposed_ns=exposed_ns)])
    running.line.trigger("1")
    assert running.records.get(timeout=5) == "exposed_late"
    assert running.work.empty()


def test_an_uncertain_time_of_exposure_is_taken_at_its_latest(running: Running) -> None:
    doubtful = replace(running.camera.frame(age_ns=-10_000_000_000), exposed_ns=THEN_NS)
    running.camera.answers.append([replace(doubtful, exposed_uncertainty_ns=1_000_000_000)])
    running.line.trigger("1")
    assert running.records.get(timeout=5) == "exposed_late"


def test_a_slow_transfer_does_not_make_a_picture_late(running: Running) -> None:
    slow = replace(running.camera.frame(age_ns=-10_000_000_000), exposed_ns=THEN_NS)
    running.camera.answers.append([slow])
    running.line.trigger("1")
    assert running.work.get(timeout=5).frame_id == slow.frame_id


def test_every_exposure_of_a_part_is_taken_before_the_first_is_looked_at() -> None:
    """What is done with a picture takes time, and the part moves on meanwhile."""
    it = Running(exposures=2)
    done: list[str] = []
    it.camera.when_triggered = lambda: done.append("exposed")
    it.line.station.attach(lambda work: done.append(work.view), {"top": it.reader.request}, False, lambda: None, None)
    with started(it):
        it.camera.answers.extend([[fresh(it.camera.frame())], [fresh(it.camera.frame())]])
        it.line.trigger("1")
        wait_until(lambda: len(done) == 4)
    assert done == ["exposed", "exposed", "top", "top#2"]


@pytest.mark.parametrize("second", [[], FrameLost("incomplete"), CameraError("cable pulled")])
def test_what_was_taken_is_judged_and_the_part_fails_when_its_second_exposure_is_missing(
    second: list[Frame] | CameraError,
) -> None:
    it = Running(exposures=2)
    with started(it):
        it.camera.answers.extend([[fresh(it.camera.frame())], second])
        it.line.trigger("1")
        assert it.work.get(timeout=5).frame_id == 1
        inspection = next(iter(it.line.station._open.values()))
        wait_until(lambda: "top#2" in inspection.outcomes)
    assert inspection.outcomes["top#2"].verdict.judged is False
    assert "top" not in inspection.outcomes
