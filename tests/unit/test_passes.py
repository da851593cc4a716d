"""What feeds the service manager's watchdog: only what comes all the way through model and search."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest

from edge_daemon.core.align import Pose
from edge_daemon.core.decision import Evidence, Thresholds
from edge_daemon.detectors.base import Prepared
from edge_daemon.edges.clock import SystemClock
from edge_daemon.errors import NotLocatedError, ProviderError
from edge_daemon.pipeline.compute import Compute
from edge_daemon.pipeline.golden import GoldenSample
from tests.unit.test_compute import Bench, FakeDetector, FakeExtractor, FakeStation, IdleStation


class Watched(FakeStation):
    """Counts how often the idle thread of the model came by."""

    polls = 0

    def golden_due(self, _now_ns: int) -> None:
        with self.done:
            self.polls += 1
            self.done.notify_all()

    def wait_for_polls(self, count: int) -> None:
        with self.done:
            until = self.polls + count
            assert self.done.wait_for(lambda: self.polls >= until, timeout=10)


class WatchedBench(Bench):
    station: Watched

    def __init__(self) -> None:
        super().__init__(max_batch=1)
        self.station = Watched()
        self.compute = Compute([cast(Any, self.station)], SystemClock(), 1, 0, self.fatal.append)


@contextmanager
def bench() -> Iterator[WatchedBench]:
    it = WatchedBench()
    yield it
    it.compute.close()


def test_what_feeds_the_watchdog_goes_through_both_threads_while_there_is_nothing_to_judge() -> None:
    with bench() as it:
        assert it.compute.passes == 0
        it.compute.start()
        it.station.wait_for_polls(3)
        assert it.compute.passes >= 1


def test_nothing_feeds_the_watchdog_while_the_search_hangs_although_the_model_turns() -> None:
    with bench() as it:
        entered, let_go = threading.Event(), threading.Event()
        detector = FakeDetector(FakeExtractor())
        judged = detector.judge

        def hangs(features: np.ndarray, thresholds: Thresholds, pose: Pose | None = None) -> Evidence:
            entered.set()
            let_go.wait(10)
            return judged(features, thresholds, pose)

        detector.judge = hangs  # type: ignore[method-assign]
        it.compute.start()
        it.submit(detector, 1)
        assert entered.wait(10)
        before = it.compute.passes
        it.station.wait_for_polls(5)
        assert it.compute.passes == before
        let_go.set()
        it.station.wait_for(1)
        it.station.wait_for_polls(3)
        assert it.compute.passes > before


def test_nothing_feeds_the_watchdog_while_the_model_hangs() -> None:
    with bench() as it:
        entered, let_go = threading.Event(), threading.Event()
        detector = FakeDetector(FakeExtractor())
        extracted = detector.extractor.extract

        def hangs(batch: np.ndarray) -> np.ndarray:
            entered.set()
            let_go.wait(10)
            return extracted(batch)

        detector.extractor.extract = hangs  # type: ignore[method-assign]
        it.submit(detector, 1)
        it.compute.start()
        assert entered.wait(10)
        for brightness in range(5):
            it.submit(detector, brightness)
        assert it.compute.passes == 0
        let_go.set()
        it.station.wait_for(6)
        assert it.compute.passes >= 5  # the sixth is told before it is counted


def test_a_frame_that_is_brought_to_size_for_ever_is_known() -> None:
    with bench() as it:
        seen: list[int | None] = []
        detector = FakeDetector(FakeExtractor())

        def prepare(_pixels: np.ndarray) -> Prepared:
            seen.append(it.compute.preparing_since_ns)
            raise NotLocatedError("no part")

        detector.prepare = prepare  # type: ignore[method-assign]
        it.submit(detector, 1)
        assert seen[0] is not None
        assert it.compute.preparing_since_ns is None


@pytest.mark.parametrize("judges", [True, False])
def test_an_engine_that_judges_golden_samples_wrongly_does_not_feed_the_watchdog_by_turning(judges: bool) -> None:
    class Halted(IdleStation):
        polls = 0

        def golden_due(self, now_ns: int) -> GoldenSample | None:  # type: ignore[override]
            with self.done:
                self.polls += 1
                self.done.notify_all()
            return super().golden_due(now_ns)

    extractor = FakeExtractor()
    extractor.fails_at = ProviderError("the card is gone")
    station = Halted(FakeDetector(extractor), 3)
    station.judges = judges
    compute = Compute([cast(Any, station)], SystemClock(), 1, 0, lambda _error: None)
    compute.start()
    with station.done:
        assert station.done.wait_for(lambda: len(station.errors) >= 3, timeout=10)
        before, polled = compute.passes, station.polls
        assert station.done.wait_for(lambda: station.polls >= polled + 4, timeout=10)
    assert (compute.passes > before) is not judges
    compute.close()
