"""The one thread that calls models and search."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from edge_daemon.core.clock import Clock
from edge_daemon.core.decision import Evidence, Reason, Thresholds, judge_score
from edge_daemon.detectors.loading import ReadyRecipe, check_golden
from edge_daemon.errors import EdgeError, PictureError
from edge_daemon.pipeline.inspection import ViewOutcome
from edge_daemon.pipeline.stages import Stages
from edge_daemon.pipeline.station import Station, Work

_IDLE_POLL_S = 0.1


class Compute:
    """Judges frames in batches that a deadline closes, and golden samples when there is nothing to do.

    max_batch: most frames in one model run; batch_wait_ns: how long the first frame of a batch waits for
    more; fatal: told of an exception that is no EdgeError, after which every frame fails.
    The queue is unbounded here: the stations bound it, by the triggers they let in.
    """

    def __init__(
        self,
        stations: Sequence[Station],
        clock: Clock,
        max_batch: int,
        batch_wait_ns: int,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._stations = stations
        self._clock = clock
        self._max_batch = max_batch
        self._batch_wait_ns = batch_wait_ns
        self._fatal = fatal
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._postponed: deque[Work] = deque()
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._broken = False
        self._golden_turn = 0
        self._stages = Stages()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Finish what is queued and stop."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def submit(self, work: Work) -> None:
        """Queue one frame."""
        self._queue.put(work)

    def stages_ms(self) -> dict[str, float]:
        """Median milliseconds of each stage over the last frames: prepare, model, search, boxes (of frames that
        needed any), record (the outcome made and handed to the journal)."""
        return self._stages.medians()

    # -- the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            work = self._next(_IDLE_POLL_S)
            if work is None:
                return
            if isinstance(work, Work):
                self._judge(self._batch(work))
            else:
                self._inspect_golden()

    def _next(self, timeout_s: float) -> "Work | _Nothing | None":
        if self._postponed:
            return self._postponed.popleft()
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return _NOTHING

    def _batch(self, first: Work) -> list[Work]:
        """The first frame and those that may share its model run, until the batch is full or time is up."""
        batch = [first]
        key = _recipe(first).detector.extractor.key
        closes_ns = time.monotonic_ns() + self._batch_wait_ns
        while len(batch) < self._max_batch:
            try:
                work = self._queue.get(timeout=max(0.0, (closes_ns - time.monotonic_ns()) / 1e9))
            except queue.Empty:
                break
            if work is None:
                self._queue.put(None)
                break
            if _recipe(work).detector.extractor.key == key:
                batch.append(work)
            else:
                self._postponed.append(work)
                break
        return batch

    def _judge(self, batch: list[Work]) -> None:
        try:
            self._judge_open([work for work in batch if not work.inspection.finished])
        except EdgeError:
            self._fail(batch, Reason.ENGINE)
        except Exception as error:  # a defect of the program: fail these parts, stop loudly
            self._fail(batch, Reason.ENGINE)
            self._stop_for(error)

    def _stop_for(self, error: Exception) -> None:
        self._broken = True
        self._fatal(error)

    def _fail(self, batch: list[Work], reason: Reason) -> None:
        for work in batch:
            if work.camera not in work.inspection.outcomes:
                work.station.view_done(work.inspection, work.camera, ViewOutcome.failed(reason, work.frame))

    def _judge_open(self, batch: list[Work]) -> None:
        if self._broken:
            self._fail(batch, Reason.ENGINE)
            return
        started = time.perf_counter()
        prepared, pictures = [], []
        for work in batch:
            try:
                pictures.append(_recipe(work).detector.prepare(work.frame.pixels))
                prepared.append(work)
            except PictureError:
                work.station.view_done(work.inspection, work.camera, ViewOutcome.failed(Reason.FRAME_SIZE, work.frame))
        if not prepared:
            return
        model_ns = self._clock.monotonic_ns()
        resized = time.perf_counter()
        features = _recipe(prepared[0]).detector.extractor.extract(np.stack(pictures))
        features_ns = self._clock.monotonic_ns()
        self._stages.add("prepare", (resized - started) * 1e3 / len(batch))
        self._stages.add("model", (time.perf_counter() - resized) * 1e3 / len(prepared))
        for work, feature in zip(prepared, features, strict=True):
            begun = time.perf_counter()
            detector = _recipe(work).detector
            evidence = detector.judge(feature, detector.thresholds)
            verdict = judge_score(evidence.score, evidence.max_distance, detector.thresholds)
            judged = time.perf_counter()
            self._time_judgement(evidence, detector.thresholds, (judged - begun) * 1e3)
            outcome = ViewOutcome(verdict, work.frame, evidence, model_ns, features_ns, self._clock.monotonic_ns())
            work.station.view_done(work.inspection, work.camera, outcome)
            self._stages.add("record", (time.perf_counter() - judged) * 1e3)

    def _time_judgement(self, evidence: Evidence, thresholds: Thresholds, ms: float) -> None:
        """Below the pixel threshold a judgement is a search and nothing else; beyond, what it takes longer than
        the others is for the boxes."""
        if evidence.max_distance < thresholds.pixel:
            self._stages.add("search", ms)
        elif (search_ms := self._stages.median("search")) is not None:
            self._stages.add("boxes", max(0.0, ms - search_ms))

    def _inspect_golden(self) -> None:
        """One golden sample of the station that has waited longest, when all of them are idle."""
        now = self._clock.monotonic_ns()
        for station in self._stations:
            camera = station.golden_due(now)
            recipes = station.recipes
            if camera is None or recipes is None or not self._queue.empty():
                continue
            ready = recipes.views[camera]
            error: str | None = None
            try:
                golden = ready.recipe.golden[self._golden_turn % len(ready.recipe.golden)]
                self._golden_turn += 1
                check_golden(ready.recipe, ready.detector, golden)
            except EdgeError as failure:
                error = str(failure)
            except Exception as failure:  # a defect of the program
                self._stop_for(failure)
                return
            station.golden_done(camera, self._clock.monotonic_ns() - now, error)


class _Nothing:
    """Nothing came in time."""


_NOTHING = _Nothing()


def _recipe(work: Work) -> ReadyRecipe:
    recipes = work.inspection.recipe_set
    if recipes is None:
        raise EdgeError(f"station {work.station.name} has no recipe set")
    return recipes.views[work.camera]
