"""A camera reader and frames that come too late, too early or twice: none is taken for another part's."""

import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pytest

from edge_daemon.cameras.base import FrameLost
from edge_daemon.core.frame import Frame
from edge_daemon.edges.clock import SystemClock
from edge_daemon.errors import CameraError
from edge_daemon.pipeline.reader import CameraReader
from tests.unit.test_station import Line

CLOCK = SystemClock()


class ScriptedCamera:
    """Gives what the test puts in: frames that lie in its buffer, and answers to triggers."""

    name = "top"
    simulated = False
    waits_for_host = False

    def __init__(self) -> None:
        self.buffer: deque[Frame] = deque()
        self.answers: deque[list[Frame] | CameraError] = deque()
        self.opened = 0
        self.checks: queue.SimpleQueue[int] = queue.SimpleQueue()
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
        answer = self.answers.popleft()
        if isinstance(answer, CameraError):
            raise answer
        self.buffer.extend(answer)

    def check(self, timeout_ns: int) -> None:
        self.checks.put(timeout_ns)
        if self.silence:
            raise self.silence.popleft()

    def counters(self) -> Mapping[str, int]:
        return {"completed": 7}

    def settings(self) -> Mapping[str, str | int | float | bool]:
        return self.set_to

    def grab(self, timeout_ns: int) -> Frame | None:
        if self.buffer:
            return self.buffer.popleft()
        threading.Event().wait(min(timeout_ns, 1_000_000) / 1e9)
        return None


class Running:
    """A reader at work on a station whose work and records arrive in queues."""

    def __init__(self) -> None:
        self.line = Line(deadline_ms=60_000, queue=5)
        self.camera = ScriptedCamera()
        self.events: list[str] = []
        self.work: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self.records: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.line.clock = CLOCK  # type: ignore[assignment]
        self.line.station._clock = CLOCK
        self.reader = CameraReader(
            self.camera, self.line.station, 100_000_000, CLOCK, lambda name, _: self.events.append(name), raise_it
        )
        self.line.station.attach(
            lambda work: self.work.put(work.frame), {"top": self.reader.request}, False, lambda: None, None
        )
        conclude = self.line.outbox.conclude

        def told(draft: object) -> None:
            conclude(draft)  # type: ignore[arg-type]
            self.records.put(self.line.last.reason)

        self.line.outbox.conclude = told  # type: ignore[method-assign, assignment]


def fresh(frame: Frame, ahead_ns: int = 10_000_000_000) -> Frame:
    """The same frame, arrived later than any trigger of the test."""
    return Frame(frame.camera, frame.frame_id, frame.pixels, frame.arrived_ns + ahead_ns)


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
