"""The compute thread: what shares a model run, and what a failure does to the parts concerned and to no others."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edge_daemon.core.align import Pose
from edge_daemon.core.decision import Evaluation, Evidence, Reason, Thresholds, ViewVerdict
from edge_daemon.core.frame import Frame
from edge_daemon.detectors.base import Prepared
from edge_daemon.edges.clock import SystemClock
from edge_daemon.errors import EdgeError, NotLocatedError, PictureError
from edge_daemon.pipeline.compute import Compute
from edge_daemon.pipeline.golden import GoldenSample, GoldenTurns
from edge_daemon.pipeline.inspection import ViewOutcome
from edge_daemon.pipeline.station import Work
from edge_daemon.threads import CoreSharing


class FakeExtractor:
    """Gives each picture's brightness; remembers the batches."""

    provider = "fake"

    def __init__(self, name: str = "graph") -> None:
        self.key = (name, 4, 4)
        self.batches: list[int] = []
        self.fails_at: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()

    def extract(self, batch: np.ndarray) -> np.ndarray:
        self.gate.wait(5)
        self.batches.append(len(batch))
        if self.fails_at is not None:
            raise self.fails_at
        return batch.mean(axis=(1, 2, 3), dtype=np.float32)[:, None, None, None]


class FakeDetector:
    """The score is the brightness; OK up to 100. A picture of another size is refused."""

    def __init__(self, extractor: FakeExtractor) -> None:
        self.extractor = extractor
        self.thresholds = Thresholds(100, 100, 100)

    def prepare(self, pixels: np.ndarray) -> Prepared:
        if pixels.shape != (4, 4, 3):
            raise PictureError("another size")
        return Prepared(pixels[None])

    def judge(self, features: np.ndarray, _thresholds: Thresholds, _pose: Pose | None = None) -> Evidence:
        return Evidence(float(features.max()), float(features.max()), (), "exact")


class FakeStation:
    """Collects outcomes by frame id."""

    name = "st1"

    judges = True

    def __init__(self) -> None:
        self.outcomes: dict[int, ViewOutcome] = {}
        self.engine_failures: list[tuple[str, str, int]] = []
        self.done = threading.Condition()

    def view_done(self, inspection: Any, camera: str, outcome: ViewOutcome) -> None:
        with self.done:
            assert outcome.frame is not None
            assert outcome.frame.frame_id not in self.outcomes, "two outcomes for one frame"
            inspection.outcomes[camera] = outcome
            self.outcomes[outcome.frame.frame_id] = outcome
            self.done.notify_all()

    def golden_due(self, _now_ns: int) -> None:
        return None

    def golden_between_parts(self, _now_ns: int) -> None:
        return None

    def can_wait(self, _now_ns: int, _wait_ns: int) -> bool:
        return True

    def engine_failed(self, _inspection: Any, view: str, error: str) -> bool:
        self.engine_failures.append((view, error, len(self.outcomes)))
        return len(self.engine_failures) == 1

    def wait_for(self, count: int) -> list[ViewOutcome]:
        with self.done:
            assert self.done.wait_for(lambda: len(self.outcomes) >= count, timeout=10)
            return [self.outcomes[i] for i in sorted(self.outcomes)]


class Bench:
    def __init__(self, max_batch: int, wait_ms: float = 1000) -> None:
        self.station = FakeStation()
        self.fatal: list[BaseException] = []
        self.events: list[str] = []
        self.compute = Compute(
            [cast(Any, self.station)],
            SystemClock(),
            max_batch,
            int(wait_ms * 1e6),
            self.fatal.append,
            on_event=lambda name, event, message: self.events.append(f"{name} {event}: {message}"),
        )
        self.ids = iter(range(1, 1000))

    def submit(self, detector: FakeDetector, brightness: int, shape: tuple[int, ...] = (4, 4, 3)) -> Any:
        manifest = SimpleNamespace(bank=SimpleNamespace(rows=1))
        views = {"top": SimpleNamespace(detector=detector, recipe=SimpleNamespace(manifest=manifest))}
        inspection = SimpleNamespace(recipe_set=SimpleNamespace(views=views), outcomes={}, finished=False)
        frame = Frame("top", next(self.ids), np.full(shape, brightness, np.uint8), 0)
        self.compute.submit(Work(cast(Any, self.station), cast(Any, inspection), "top", frame))
        return inspection


@contextmanager
def bench(max_batch: int, wait_ms: float = 1000) -> Iterator[Bench]:
    it = Bench(max_batch, wait_ms)
    yield it
    it.compute.close()


def evaluations(outcomes: list[ViewOutcome]) -> list[Evaluation]:
    return [o.verdict.evaluation for o in outcomes]


def test_a_full_batch_goes_at_once_and_each_frame_gets_its_own_verdict() -> None:
    with bench(max_batch=3, wait_ms=60_000) as it:
        detector = FakeDetector(FakeExtractor())
        for brightness in (10, 200, 30):
            it.submit(detector, brightness)
        it.compute.start()
        assert evaluations(it.station.wait_for(3)) == [Evaluation.OK, Evaluation.NOT_OK, Evaluation.OK]
        assert detector.extractor.batches == [3]


def test_a_batch_that_does_not_fill_is_closed_by_its_deadline() -> None:
    with bench(max_batch=8, wait_ms=1) as it:
        detector = FakeDetector(FakeExtractor())
        it.compute.start()
        it.submit(detector, 10)
        assert evaluations(it.station.wait_for(1)) == [Evaluation.OK]


def test_frames_of_another_graph_never_share_a_run() -> None:
    with bench(max_batch=8, wait_ms=200) as it:
        one, other = FakeDetector(FakeExtractor("one")), FakeDetector(FakeExtractor("other"))
        for detector, brightness in ((one, 1), (one, 2), (other, 200), (one, 3)):
            it.submit(detector, brightness)
        it.compute.start()
        found = evaluations(it.station.wait_for(4))
        assert found == [Evaluation.OK, Evaluation.OK, Evaluation.NOT_OK, Evaluation.OK]
        assert sum(one.extractor.batches) == 3
        assert other.extractor.batches == [1]


def test_a_picture_that_does_not_fit_fails_alone() -> None:
    with bench(max_batch=3) as it:
        detector = FakeDetector(FakeExtractor())
        it.submit(detector, 10)
        it.submit(detector, 10, shape=(5, 4, 3))
        it.submit(detector, 20)
        it.compute.start()
        assert evaluations(it.station.wait_for(3)) == [Evaluation.OK, Evaluation.UNDEFINED, Evaluation.OK]
        assert it.fatal == []


def test_a_model_that_fails_gives_no_verdict_and_the_next_frame_is_tried_again() -> None:
    with bench(max_batch=1) as it:
        detector = FakeDetector(FakeExtractor())
        detector.extractor.fails_at = EdgeError("out of memory")
        it.compute.start()
        it.submit(detector, 10)
        assert evaluations(it.station.wait_for(1)) == [Evaluation.UNDEFINED]
        detector.extractor.fails_at = None
        it.submit(detector, 10)
        assert evaluations(it.station.wait_for(2))[1] is Evaluation.OK
        assert it.fatal == []


def test_a_defect_of_the_program_fails_the_frame_stops_the_daemon_and_judges_nothing_more() -> None:
    with bench(max_batch=1) as it:
        detector = FakeDetector(FakeExtractor())
        detector.extractor.fails_at = ZeroDivisionError()
        it.compute.start()
        it.submit(detector, 10)
        it.station.wait_for(1)
        detector.extractor.fails_at = None
        it.submit(detector, 10)
        assert evaluations(it.station.wait_for(2)) == [Evaluation.UNDEFINED, Evaluation.UNDEFINED]
        assert [type(e) for e in it.fatal] == [ZeroDivisionError]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_no_verdict(poison: float) -> None:
    with bench(max_batch=1) as it:
        detector = FakeDetector(FakeExtractor())
        detector.judge = lambda *_: Evidence(poison, poison, (), "exact")  # type: ignore[method-assign]
        it.compute.start()
        it.submit(detector, 10)
        assert evaluations(it.station.wait_for(1)) == [Evaluation.UNDEFINED]


def test_a_part_that_is_not_located_is_not_decidable_and_never_reaches_the_model() -> None:
    with bench(max_batch=1) as it:
        detector = FakeDetector(FakeExtractor())

        def nowhere(_pixels: np.ndarray) -> Prepared:
            raise NotLocatedError("it is not there")

        detector.prepare = nowhere  # type: ignore[method-assign]
        it.submit(detector, 10)
        it.compute.start()
        (outcome,) = it.station.wait_for(1)
        assert outcome.verdict == ViewVerdict(Evaluation.NOT_DECIDABLE, Reason.NOT_LOCATED)
        assert outcome.evidence is None
        assert detector.extractor.batches == []


def test_the_pose_of_a_frame_reaches_its_own_judgement() -> None:
    with bench(max_batch=3, wait_ms=60_000) as it:
        detector = FakeDetector(FakeExtractor())
        seen: dict[int, float] = {}

        def prepare(pixels: np.ndarray) -> Prepared:
            return Prepared(pixels[None], Pose(float(pixels.max()), (0.0, 0.0), (0.0, 0.0), 1.0))

        def judge(features: np.ndarray, _thresholds: Thresholds, pose: Pose | None) -> Evidence:
            assert pose is not None
            seen[int(features.max())] = pose.angle_deg
            return Evidence(float(features.max()), float(features.max()), (), "exact")

        detector.prepare, detector.judge = prepare, judge  # type: ignore[method-assign]
        for brightness in (10, 20, 30):
            it.submit(detector, brightness)
        it.compute.start()
        it.station.wait_for(3)
        assert seen == {10: 10.0, 20: 20.0, 30: 30.0}


@pytest.mark.parametrize("failing", [0, 2])
def test_one_picture_in_tiles_at_a_time_is_between_model_and_search(failing: int) -> None:
    """Its features are large. One that fails in the model makes room for the next."""
    with bench(max_batch=4) as it:
        detector = FakeDetector(FakeExtractor())
        between: list[int] = []

        def extract(batch: np.ndarray) -> np.ndarray:
            assert batch.shape == (3, 4, 4, 3)
            assert between == []
            if batch.max() == failing:
                raise EdgeError("no memory")
            between.append(int(batch.max()))
            return np.full((1, 1, 1, 1), batch.max(), np.float32)

        def judge(features: np.ndarray, _thresholds: Thresholds, _pose: Pose | None) -> Evidence:
            assert between == [features.max()]
            between.clear()
            return Evidence(1.0, 1.0, (), "exact", anomaly_map=lambda: features)

        detector.prepare = lambda pixels: Prepared(np.stack([pixels] * 3))  # type: ignore[method-assign]
        detector.extractor.extract, detector.judge = extract, judge  # type: ignore[method-assign]
        for brightness in (1, 2, 3, 4):
            it.submit(detector, brightness)
        it.compute.start()
        outcomes = it.station.wait_for(4)
        expected = [Evaluation.UNDEFINED if n == failing else Evaluation.OK for n in (1, 2, 3, 4)]
        assert evaluations(outcomes) == expected
        assert all(o.evidence.anomaly_map is None for o in outcomes if o.evidence)
        assert it.fatal == []


def test_one_frame_is_searched_while_the_model_has_the_next() -> None:
    with bench(max_batch=1) as it:
        detector = FakeDetector(FakeExtractor())
        second_in_model, first_searched = threading.Event(), threading.Event()

        def extract(batch: np.ndarray) -> np.ndarray:
            if batch.max() == 20:
                second_in_model.set()
                assert first_searched.wait(10), "the first frame is not searched before the second left the model"
            return np.full((1, 1, 1, 1), batch.max(), np.float32)

        def judge(features: np.ndarray, _thresholds: Thresholds, _pose: Pose | None) -> Evidence:
            if features.max() == 10:
                assert second_in_model.wait(10)
                first_searched.set()
            return Evidence(float(features.max()), float(features.max()), (), "exact")

        detector.extractor.extract, detector.judge = extract, judge  # type: ignore[method-assign]
        it.submit(detector, 10)
        it.submit(detector, 20)
        it.compute.start()
        assert evaluations(it.station.wait_for(2)) == [Evaluation.OK, Evaluation.OK]
        assert it.fatal == []


def test_the_search_is_told_whether_it_shares_the_cores_with_the_model() -> None:
    with bench(max_batch=1) as it:
        told: list[bool] = []
        first_told = threading.Event()

        class Told(CoreSharing):
            def search_begins(self, model_busy: bool, rows: int) -> None:  # noqa: ARG002
                told.append(model_busy)
                first_told.set()

        def extract(batch: np.ndarray) -> np.ndarray:
            if batch.max() == 20:
                assert first_told.wait(10)
            return np.full((1, 1, 1, 1), batch.max(), np.float32)

        it.compute._cores = Told(threads=1, pool=1)
        detector = FakeDetector(FakeExtractor())
        detector.extractor.extract = extract  # type: ignore[method-assign]
        it.submit(detector, 10)
        it.submit(detector, 20)
        it.compute.start()
        it.station.wait_for(2)
        it.submit(detector, 30)
        it.station.wait_for(3)
    assert told[0] is True
    assert told[-1] is False


@pytest.mark.parametrize("call", ["prepare", "judge"])
def test_a_defect_before_or_after_the_model_fails_the_frame_and_stops_the_daemon(call: str) -> None:
    with bench(max_batch=1) as it:
        detector = FakeDetector(FakeExtractor())

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        setattr(detector, call, broken)
        it.compute.start()
        it.submit(detector, 10)
        it.submit(FakeDetector(FakeExtractor()), 10)
        assert evaluations(it.station.wait_for(2)) == [Evaluation.UNDEFINED, Evaluation.UNDEFINED]
        assert {type(e) for e in it.fatal} == {ZeroDivisionError}


def test_a_search_that_fails_concerns_its_own_frame_alone() -> None:
    with bench(max_batch=2, wait_ms=60_000) as it:
        detector = FakeDetector(FakeExtractor())
        judge = detector.judge

        def fails_once(features: np.ndarray, thresholds: Thresholds, _pose: Pose | None) -> Evidence:
            if features.max() == 10:
                raise EdgeError("no memory")
            return judge(features, thresholds)

        detector.judge = fails_once  # type: ignore[method-assign]
        it.submit(detector, 10)
        it.submit(detector, 20)
        it.compute.start()
        assert evaluations(it.station.wait_for(2)) == [Evaluation.UNDEFINED, Evaluation.OK]
        assert it.fatal == []


def golden(file: str, expected: float = 10.0) -> Any:
    """A sample of brightness 10, which the fake model gives as its score."""
    pixels = np.full((4, 4, 3), 10, np.uint8)
    return SimpleNamespace(pixels=pixels, file=file, score=expected, max_distance=expected, evaluation="OK")


def ready_recipe(detector: FakeDetector, *samples: Any) -> Any:
    manifest = SimpleNamespace(name="r", align=None, backbone=SimpleNamespace(precision="fp32"))
    return SimpleNamespace(
        recipe=SimpleNamespace(golden=samples, manifest=manifest, digest="d" * 64), detector=detector
    )


class IdleStation(FakeStation):
    """Wants golden samples until it had as many as asked for."""

    def __init__(self, detector: FakeDetector, wanted: int, *samples: Any, name: str = "st1") -> None:
        super().__init__()
        self.name = name
        self.ready = ready_recipe(detector, *(samples or (golden("g.png"),)))
        self.turns = GoldenTurns()
        self.wanted = wanted
        self.errors: list[str | None] = []
        self.files: list[str] = []
        self.elsewhere: list[str] = []

    def golden_due(self, _now_ns: int) -> GoldenSample | None:  # type: ignore[override]
        return self.turns.turn("top", self.ready) if len(self.errors) < self.wanted else None

    def golden_between_parts(self, now_ns: int) -> tuple[GoldenSample, int] | None:  # type: ignore[override]
        sample = self.golden_due(now_ns)
        return None if sample is None else (sample, 7)

    def golden_done(self, sample: GoldenSample, took_ns: int, error: str | None) -> bool:
        assert took_ns > 0
        with self.done:
            news = self.turns.passed(sample) if error is None else self.turns.failed(sample, error)
            self.errors.append(error)
            self.files.append(sample.golden.file)
            self.done.notify_all()
        return news

    def golden_failed_elsewhere(self, sample: GoldenSample, error: str) -> None:
        self.elsewhere.append(f"{sample.golden.file}: {error}")


def inspect_golden(detector: FakeDetector, wanted: int = 2) -> tuple[list[str | None], list[BaseException]]:
    station = IdleStation(detector, wanted)
    fatal: list[BaseException] = []

    def stop(error: BaseException) -> None:
        with station.done:
            fatal.append(error)
            station.done.notify_all()

    compute = Compute([cast(Any, station)], SystemClock(), 1, 0, stop)
    compute.start()
    with station.done:
        station.done.wait_for(lambda: len(station.errors) >= wanted or fatal, timeout=10)
    compute.close()
    return station.errors, fatal


def test_an_idle_station_has_golden_samples_go_the_whole_way() -> None:
    detector = FakeDetector(FakeExtractor())
    assert inspect_golden(detector) == ([None, None], [])
    assert detector.extractor.batches == [1, 1]


def test_a_golden_sample_that_comes_out_otherwise_is_told() -> None:
    detector = FakeDetector(FakeExtractor())
    detector.judge = lambda *_: Evidence(11.0, 11.0, (), "exact")  # type: ignore[method-assign]
    (error,), fatal = inspect_golden(detector, wanted=1)
    assert error is not None
    assert "g.png" in error
    assert fatal == []


def test_a_model_that_fails_on_a_golden_sample_is_told() -> None:
    detector = FakeDetector(FakeExtractor())
    detector.extractor.fails_at = EdgeError("the device is gone")
    assert inspect_golden(detector, wanted=1) == (["the device is gone"], [])


def test_every_one_of_two_idle_stations_inspects_every_sample_of_its_own() -> None:
    detector = FakeDetector(FakeExtractor())
    samples = (golden("good.png"), golden("damaged.png"))
    stations = [IdleStation(detector, 4, *samples, name=name) for name in ("st1", "st2")]
    compute = Compute([cast(Any, station) for station in stations], SystemClock(), 1, 0, lambda _error: None)
    compute.start()
    for station in stations:
        with station.done:
            assert station.done.wait_for(lambda station=station: len(station.errors) >= 4, timeout=10)  # type: ignore[misc]
    compute.close()
    assert [station.files for station in stations] == [["good.png", "damaged.png"] * 2] * 2


def test_a_sample_that_fails_is_told_once_everywhere_until_it_comes_out_right() -> None:
    detector = FakeDetector(FakeExtractor())
    station = IdleStation(detector, 3, golden("good.png"), golden("damaged.png", expected=11.0))
    other = IdleStation(detector, 0, name="st2")
    events: list[str] = []
    compute = Compute(
        [cast(Any, station), cast(Any, other)],
        SystemClock(),
        1,
        0,
        lambda _error: None,
        on_event=lambda name, event, message: events.append(f"{name} {event}: {message}"),
    )
    compute.start()
    with station.done:
        assert station.done.wait_for(lambda: len(station.errors) >= 3, timeout=10)
        station.ready.recipe.golden[1].score = station.ready.recipe.golden[1].max_distance = 10.0
        station.wanted = 4
        assert station.done.wait_for(lambda: len(station.errors) >= 4, timeout=10)
    compute.close()
    assert station.files == ["good.png", "damaged.png", "damaged.png", "damaged.png"]
    assert [text.split(":")[0] for text in other.elsewhere] == ["damaged.png", "damaged.png"]
    failed, clear = events
    assert failed.startswith("st1 golden_failed: view top: golden sample damaged.png of r gives score 10")
    assert clear == "st1 golden_clear: golden sample top damaged.png comes out right again"


def test_a_golden_sample_that_cannot_be_searched_for_a_defect_of_the_program_stops_the_daemon() -> None:
    detector = FakeDetector(FakeExtractor())
    detector.judge = lambda *_: 1 / 0  # type: ignore[method-assign,assign,return-value]
    errors, fatal = inspect_golden(detector, wanted=1)
    assert errors == []
    assert [type(e) for e in fatal] == [ZeroDivisionError]


@pytest.mark.parametrize("call", ["prepare", "extract", "judge"])
def test_an_engine_that_fails_on_a_part_is_told_at_once_and_before_the_outcome(call: str) -> None:
    with bench(max_batch=1) as it:
        detector = FakeDetector(FakeExtractor())

        def fails(*_: object) -> None:
            raise EdgeError("the device is gone")

        setattr(detector.extractor if call == "extract" else detector, call, fails)
        it.compute.start()
        for brightness in (10, 20):
            it.submit(detector, brightness)
        outcomes = it.station.wait_for(2)
    assert [o.verdict.reason for o in outcomes] == [Reason.ENGINE] * 2
    assert it.station.engine_failures == [("top", "the device is gone", 0), ("top", "the device is gone", 1)]
    (event,) = it.events
    assert event.startswith("st1 engine_failed: view top: the device is gone; no part is judged")


class BusyStation(IdleStation):
    """Never idle: it wants golden samples between two parts."""

    def __init__(self, detector: FakeDetector, wanted: int, name: str = "st1") -> None:
        super().__init__(detector, wanted, name=name)
        self.patient = True
        self.asked_ns: list[int] = []

    def golden_due(self, _now_ns: int) -> None:  # type: ignore[override]
        return None

    def golden_between_parts(self, now_ns: int) -> tuple[GoldenSample, int] | None:  # type: ignore[override]
        sample = IdleStation.golden_due(self, now_ns)
        return None if sample is None else (sample, 7)

    def can_wait(self, _now_ns: int, wait_ns: int) -> bool:
        self.asked_ns.append(wait_ns)
        return self.patient


class Parts:
    """Parts of one station, the next as soon as one is judged, so that the engine is never idle for long."""

    def __init__(self, *stations: FakeStation) -> None:
        self.it = Bench(max_batch=1)
        self.stations = stations
        self.it.station = stations[0]
        self.it.compute = Compute([cast(Any, s) for s in stations], SystemClock(), 1, 0, self.it.fatal.append)
        self.detector = FakeDetector(FakeExtractor())
        self.count = 0

    def judge_until(self, enough: Callable[[], bool], most: int = 200) -> None:
        for _ in range(most):
            self.it.submit(self.detector, 10)
            self.count += 1
            self.it.station.wait_for(self.count)
            if enough():
                return


@contextmanager
def parts(*stations: FakeStation) -> Iterator[Parts]:
    them = Parts(*stations)
    them.it.compute.start()
    yield them
    them.it.compute.close()


def test_a_station_that_is_never_idle_has_golden_samples_inspected_between_its_parts() -> None:
    station = BusyStation(FakeDetector(FakeExtractor()), wanted=3)
    with parts(station) as them:
        them.judge_until(lambda: len(station.errors) == 3)
    assert station.errors == [None] * 3
    assert set(station.asked_ns) == {7}


def test_an_idle_station_has_its_golden_samples_while_another_is_never_idle() -> None:
    busy, idle = FakeStation(), IdleStation(FakeDetector(FakeExtractor()), 3, name="st2")
    with parts(busy, idle) as them:
        them.judge_until(lambda: len(idle.errors) == 3)
    assert idle.errors == [None] * 3


def test_no_golden_sample_is_inspected_between_parts_of_which_any_station_would_be_late() -> None:
    station, other = (BusyStation(FakeDetector(FakeExtractor()), wanted, f"st{wanted}") for wanted in (1, 0))
    other.patient = False
    with parts(station, other) as them:
        them.judge_until(lambda: len(other.asked_ns) >= 5)
        assert station.errors == []
        other.patient = True
        them.judge_until(lambda: bool(station.errors))
    assert station.errors == [None]


def test_frames_that_wait_already_go_before_a_golden_sample() -> None:
    station = BusyStation(FakeDetector(FakeExtractor()), wanted=1)
    order: list[int] = []

    def extract(batch: np.ndarray) -> np.ndarray:
        order.append(int(batch.max()))
        return np.full((1, 1, 1, 1), batch.max(), np.float32)

    with parts(station) as them:
        them.it.compute.close()
        station.ready.detector.extractor.extract = them.detector.extractor.extract = extract
        them.it.compute = Compute([cast(Any, station)], SystemClock(), 1, 0, them.it.fatal.append)
        for brightness in (20, 30, 40):
            them.it.submit(them.detector, brightness)
        them.it.compute.start()
        station.wait_for(3)
        with station.done:
            assert station.done.wait_for(lambda: station.errors, timeout=10)
    assert order == [20, 30, 40, 10]


def test_a_golden_sample_in_tiles_is_not_between_model_and_search_together_with_a_frame() -> None:
    """Features of either are large."""
    between: list[int] = []

    def extract(batch: np.ndarray) -> np.ndarray:
        assert between == []
        between.append(int(batch.max()))
        return np.full((1, 1, 1, 1), batch.max(), np.float32)

    def judge(features: np.ndarray, _thresholds: Thresholds, _pose: Pose | None = None) -> Evidence:
        assert between == [features.max()]
        between.clear()
        return Evidence(float(features.max()), float(features.max()), (), "exact")

    detector = FakeDetector(FakeExtractor())
    detector.prepare = lambda pixels: Prepared(np.stack([pixels] * 3))  # type: ignore[method-assign]
    detector.extractor.extract, detector.judge = extract, judge  # type: ignore[method-assign]
    station = BusyStation(detector, wanted=5)
    with parts(station) as them:
        them.detector = detector
        for _ in range(10):
            for brightness in (20, 30):
                them.it.submit(detector, brightness)
        station.wait_for(20)
        with station.done:
            assert station.done.wait_for(lambda: len(station.errors) >= 5, timeout=10)
        assert them.it.fatal == []
    assert station.errors == [None] * 5


def test_frames_of_inspections_that_have_ended_are_not_judged() -> None:
    with bench(max_batch=1) as it:
        detector = FakeDetector(FakeExtractor())
        it.submit(detector, 10).finished = True
        it.submit(detector, 20)
        it.compute.start()
        it.station.wait_for(1)
        assert detector.extractor.batches == [1]
        assert list(it.station.outcomes) == [2]


def test_closing_judges_what_is_queued_first() -> None:
    with bench(max_batch=1) as it:
        detector = FakeDetector(FakeExtractor())
        for _ in range(5):
            it.submit(detector, 10)
        it.compute.start()
        it.compute.close()
        assert len(it.station.outcomes) == 5
