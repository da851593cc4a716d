"""Where frames are judged: each brought to model size by its reader's thread, then one thread that calls the
model and one that searches.

The search of one frame runs while the model has the next: it uses one core, and a small model does not fill two.
A frame alone passes from thread to thread without waiting for anybody.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge_daemon.core.align import Pose
from edge_daemon.core.clock import Clock
from edge_daemon.core.decision import Evaluation, Evidence, Reason, Thresholds, ViewVerdict, judge_score
from edge_daemon.core.histogram import RATIOS, Distribution, Histogram
from edge_daemon.detectors.base import Features, Prepared
from edge_daemon.detectors.loading import ReadyRecipe, check_golden_features
from edge_daemon.errors import EdgeError, NotLocatedError, PictureError
from edge_daemon.pipeline.golden import GoldenSample
from edge_daemon.pipeline.inspection import ViewOutcome
from edge_daemon.pipeline.stages import Stages
from edge_daemon.pipeline.station import Station, Work
from edge_daemon.threads import CoreSharing

_IDLE_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A frame as the model takes it."""

    work: Work
    frame: Prepared

    @property
    def in_tiles(self) -> bool:
        return len(self.frame.inputs) > 1


@dataclass(frozen=True, slots=True)
class _Extracted:
    """A frame's features, and when the model was called and done (monotonic nanoseconds). in_tiles: it was cut, and
    its features are so large that no other such frame is between model and search."""

    work: Work
    features: Features
    pose: Pose | None
    in_tiles: bool
    model_ns: int
    features_ns: int


@dataclass(frozen=True, slots=True)
class _GoldenExtracted:
    """The same of a golden sample; error: what the model said instead."""

    station: Station
    sample: GoldenSample
    begun_ns: int
    in_tiles: bool
    features: Features | None
    error: str | None = None


class Compute:
    """Judges frames in batches that a deadline closes, and golden samples when there is nothing to do, or between two
    parts where there always is.

    max_batch: most frames in one model run; batch_wait_ns: how long the first frame of a batch waits for
    more; fatal: told of an exception that is no EdgeError, after which every frame fails; cores: how model
    and search share them; on_event: told of (station, name,
    message) when a golden sample comes out wrong or the engine fails, and when a sample comes out right again.
    The queues are unbounded here: the stations bound them, by the triggers they let in.
    """

    def __init__(
        self,
        stations: Sequence[Station],
        clock: Clock,
        max_batch: int,
        batch_wait_ns: int,
        fatal: Callable[[BaseException], None],
        cores: CoreSharing | None = None,
        on_event: Callable[[str, str, str], None] = lambda _station, _name, _message: None,
    ) -> None:
        self._stations = stations
        self._clock = clock
        self._max_batch = max_batch
        self._batch_wait_ns = batch_wait_ns
        self._fatal = fatal
        self._cores = cores or CoreSharing(threads=1, pool=1)
        self._on_event = on_event
        # Or about to be; hints, without a lock.
        self._model_busy = self._search_busy = False
        self._to_model: queue.SimpleQueue[_Prepared | _Nothing | None] = queue.SimpleQueue()
        self._to_search: queue.SimpleQueue[_Extracted | _GoldenExtracted | _Turn | None] = queue.SimpleQueue()
        self._postponed: deque[_Prepared] = deque()
        self._threads = (
            threading.Thread(target=self._guarded, args=(self._run_model,), name="model", daemon=True),
            threading.Thread(target=self._guarded, args=(self._run_search,), name="search", daemon=True),
        )
        self._broken = False
        # Features of 8000x2000 pixels are 400 MB: one such frame at a time between model and search.
        self._tiled_frame = threading.Semaphore(1)
        self._golden_under_way: set[str] = set()  # stations; added by one thread, taken out by the other
        self._stages = Stages()
        self._scores: dict[tuple[str, str], Histogram] = {}
        self._passes = 0  # counted by the thread of the search alone
        self._turn_under_way = False
        self._golden_went_wrong = False
        self._preparing: dict[int, int] = {}  # by thread

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Finish what is queued and stop."""
        if self._threads[0].is_alive():
            self._to_model.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def submit(self, work: Work) -> None:
        """Bring one frame to model size, in this thread, and queue it. A frame that does not fit its recipe fails
        here and now; one whose part is not where the recipe looks for it is not decidable."""
        begun = time.perf_counter()
        self._preparing[threading.get_ident()] = self._clock.monotonic_ns()
        try:
            frame = _recipe(work).detector.prepare(work.frame.pixels)
        except NotLocatedError:
            verdict = ViewVerdict(Evaluation.NOT_DECIDABLE, Reason.NOT_LOCATED)
            work.station.view_done(work.inspection, work.view, ViewOutcome(verdict, work.frame))
        except PictureError:
            self._fail([work], Reason.FRAME_SIZE)
        except EdgeError as error:
            self._engine_failed([work], error)
        except Exception as error:
            self._defect([work], error)
        else:
            self._stages.add("prepare", (time.perf_counter() - begun) * 1e3)
            self._to_model.put(_Prepared(work, frame))
        finally:
            self._preparing.pop(threading.get_ident(), None)

    @property
    def passes(self) -> int:
        """What has come all the way through model and search: frames, golden samples that were judged rightly, and,
        while neither is to be had, the turns of the two threads. This counter alone feeds the service manager's
        watchdog: it stands still when either thread hangs, and when every golden sample comes out wrong."""
        return self._passes

    @property
    def preparing_since_ns(self) -> int | None:
        """Since when a camera's thread has been bringing the same frame to model size; None when none is."""
        return min(list(self._preparing.values()), default=None)

    def stages_ms(self) -> dict[str, float]:
        """Median milliseconds of each stage over the last frames: prepare, model, search, boxes (of frames that
        needed any), record (the outcome made and handed to the journal)."""
        return self._stages.medians()

    def distributions(self) -> dict[str, Distribution]:
        """Seconds of each of these stages, since the start."""
        return self._stages.distributions()

    def scores(self) -> dict[tuple[str, str], Distribution]:
        """Scores divided by their (lower) threshold, by station and view, since the start."""
        return {key: histogram.read() for key, histogram in list(self._scores.items())}

    def _fail(self, works: Sequence[Work], reason: Reason) -> None:
        for work in works:
            if work.view not in work.inspection.outcomes:
                work.station.view_done(work.inspection, work.view, ViewOutcome.failed(reason, work.frame))

    def _engine_failed(self, works: Sequence[Work], error: EdgeError) -> None:
        """Trigger Ready drops before these parts have their outcome."""
        for work in works:
            if work.station.engine_failed(work.inspection, work.view, str(error)):
                message = f"view {work.view}: {error}; no part is judged until a golden sample comes out right"
                self._on_event(work.station.name, "engine_failed", message)
        self._fail(works, Reason.ENGINE)

    def _defect(self, works: Sequence[Work], error: Exception) -> None:
        """A defect of the program: fail these parts, judge nothing more, stop loudly."""
        self._broken = True
        self._fail(works, Reason.ENGINE)
        self._fatal(error)

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Exception as error:  # nobody judges any more: the parts under way are accounted for at the next start
            self._defect([], error)

    # -- the thread of the model ---------------------------------------------------------------------

    def _run_model(self) -> None:
        try:
            while (prepared := self._next(_IDLE_POLL_S)) is not None:
                if isinstance(prepared, _Prepared):
                    self._extract(self._batch(prepared))
                elif not self._broken:
                    self._extract_golden()
                    self._show_that_it_turns()
        finally:
            self._to_search.put(None)

    def _next(self, timeout_s: float) -> "_Prepared | _Nothing | None":
        if self._postponed:
            return self._postponed.popleft()
        try:
            return self._to_model.get(timeout=timeout_s)
        except queue.Empty:
            return _NOTHING

    def _batch(self, first: _Prepared) -> list[_Prepared]:
        """The first frame and those that may share its model run, until the batch is full or time is up."""
        batch = [first]
        if first.in_tiles:
            return batch
        key = _recipe(first.work).detector.extractor.key
        closes_ns = time.monotonic_ns() + self._batch_wait_ns
        while len(batch) < self._max_batch:
            try:
                prepared = self._to_model.get(timeout=max(0.0, (closes_ns - time.monotonic_ns()) / 1e9))
            except queue.Empty:
                break
            if not isinstance(prepared, _Prepared):
                self._to_model.put(prepared)
                break
            if _recipe(prepared.work).detector.extractor.key == key:
                batch.append(prepared)
            else:
                self._postponed.append(prepared)
                break
        return batch

    def _extract(self, batch: list[_Prepared]) -> None:
        batch = [prepared for prepared in batch if not prepared.work.inspection.finished]
        works = [prepared.work for prepared in batch]
        in_tiles = any(prepared.in_tiles for prepared in batch)
        if self._broken or not batch or (in_tiles and not self._search_is_clear()):
            self._fail(works, Reason.ENGINE)
            return
        passed_on = False
        try:
            passed_on = self._extract_together(batch, works, in_tiles)
        finally:
            if in_tiles and not passed_on:
                self._tiled_frame.release()

    def _search_is_clear(self) -> bool:
        """Wait until the frame of tiles before this one is judged. False when nothing is judged any more."""
        while not self._tiled_frame.acquire(timeout=_IDLE_POLL_S):
            if self._broken:
                return False
        return True

    def _extract_together(self, batch: Sequence[_Prepared], works: Sequence[Work], in_tiles: bool) -> bool:
        """One run of the model. False when it failed, and with it the frames."""
        self._model_busy = True
        self._cores.model_begins(self._search_busy)
        model_ns = self._clock.monotonic_ns()
        begun = time.perf_counter()
        try:
            inputs = [prepared.frame.inputs for prepared in batch]
            together = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
            features = _recipe(works[0]).detector.extractor.extract(together)
        except EdgeError as error:
            self._engine_failed(works, error)
            return False
        except Exception as error:
            self._defect(works, error)
            return False
        features_ns = self._clock.monotonic_ns()
        self._model_busy = bool(self._postponed) or not self._to_model.empty()
        self._stages.add("model", (time.perf_counter() - begun) * 1e3 / len(batch))
        for prepared, feature in zip(batch, features, strict=True):
            pose = prepared.frame.pose
            self._search_busy = True  # before its thread wakes: the model may begin with the next frame first
            self._to_search.put(_Extracted(prepared.work, feature, pose, in_tiles, model_ns, features_ns))
        return True

    def _extract_golden(self) -> None:
        """One golden sample of each idle station that has waited long enough, as long as no frame waits; of a station
        that is never idle, one between two parts."""
        for station in self._stations:
            now = self._clock.monotonic_ns()
            # Asked in this order: what the search still has of a station, it must have told before the next turn.
            if station.name in self._golden_under_way:
                continue
            sample = station.golden_due(now) if self._to_model.empty() else None
            sample = sample or self._golden_between_parts(station, now)
            if sample is not None and not self._extract_sample(station, sample, now):
                return

    def _golden_between_parts(self, station: Station, now_ns: int) -> GoldenSample | None:
        """Of one station at a time: the engine is everybody's, and nobody's part may be late by it."""
        found = station.golden_between_parts(now_ns) if not self._golden_under_way else None
        if found is None or not all(other.can_wait(now_ns, found[1]) for other in self._stations):
            return None
        return found[0]

    def _extract_sample(self, station: Station, sample: GoldenSample, now_ns: int) -> bool:
        """Send one golden sample on to the search. False when nothing more is to be done in this turn."""
        detector = sample.ready.detector
        features, failure, in_tiles = None, None, False
        try:
            inputs = detector.prepare(sample.golden.pixels).inputs
            in_tiles = len(inputs) > 1
            if in_tiles and not self._tiled_frame.acquire(blocking=False):
                return False  # a frame as large is still with the search
            features = detector.extractor.extract(inputs)[0]
        except EdgeError as error:
            failure = str(error)
        except Exception as error:
            self._defect([], error)
            return False
        self._golden_under_way.add(station.name)
        self._to_search.put(_GoldenExtracted(station, sample, now_ns, in_tiles, features, failure))
        return True

    def _show_that_it_turns(self) -> None:
        """With no frame to judge, and no golden sample to be asked for (triggers wait for their cameras, stations are
        halted or have no recipe), something must still show that both threads turn. It does not speak for an engine
        that judges golden samples wrongly."""
        if self._turn_under_way or (self._golden_went_wrong and any(station.judges for station in self._stations)):
            return
        self._turn_under_way = True
        self._to_search.put(_Turn())

    # -- the thread of the search --------------------------------------------------------------------

    def _run_search(self) -> None:
        while (extracted := self._to_search.get()) is not None:
            if isinstance(extracted, _Turn):
                self._turn_under_way = False
                self._passes += 1
                continue
            try:
                if isinstance(extracted, _GoldenExtracted):
                    self._judge_golden(extracted)
                else:
                    self._judge(extracted)
            finally:
                self._search_busy = not self._to_search.empty()
                if extracted.in_tiles:
                    self._tiled_frame.release()
            if isinstance(extracted, _Extracted):
                self._offer_golden()
            del extracted  # not while waiting for the next: it may be large

    def _offer_golden(self) -> None:
        """The moment right after a verdict is the longest before the next part: behind the frames that wait already,
        the model's thread may take a golden sample, also of a station that is idle while another never is."""
        now = self._clock.monotonic_ns()
        if any(station.golden_between_parts(now) for station in self._stations):
            self._to_model.put(_NOTHING)

    def _judge(self, extracted: _Extracted) -> None:
        work = extracted.work
        if work.inspection.finished:
            self._passes += 1  # too late for its part, but all the way
            return
        if self._broken:
            self._fail([work], Reason.ENGINE)
            return
        try:
            self._judge_open(extracted)
        except EdgeError as error:
            self._engine_failed([work], error)
        except Exception as error:
            self._defect([work], error)

    def _judge_open(self, extracted: _Extracted) -> None:
        work, ready = extracted.work, _recipe(extracted.work)
        detector = ready.detector
        self._cores.search_begins(self._model_busy, ready.recipe.manifest.bank.rows)
        begun = time.perf_counter()
        evidence = detector.judge(extracted.features, detector.thresholds, extracted.pose)
        if extracted.in_tiles:  # the exact map would keep the features; the published one does not
            evidence = replace(evidence, anomaly_map=None)
        verdict = judge_score(evidence.score, evidence.max_distance, detector.thresholds)
        judged = time.perf_counter()
        self._time_judgement(evidence, detector.thresholds, (judged - begun) * 1e3)
        if detector.thresholds.lower > 0:
            score = self._scores.setdefault((work.station.name, work.view), Histogram(RATIOS))
            score.add(evidence.score / detector.thresholds.lower)
        judged_ns = self._clock.monotonic_ns()
        outcome = ViewOutcome(verdict, work.frame, evidence, extracted.model_ns, extracted.features_ns, judged_ns)
        work.station.view_done(work.inspection, work.view, outcome)
        self._stages.add("record", (time.perf_counter() - judged) * 1e3)
        self._passes += 1

    def _time_judgement(self, evidence: Evidence, thresholds: Thresholds, ms: float) -> None:
        """Below the pixel threshold a judgement is a search and nothing else; beyond, what it takes longer than
        the others is for the boxes."""
        if evidence.max_distance < thresholds.pixel:
            self._stages.add("search", ms)
        elif (search_ms := self._stages.median("search")) is not None:
            self._stages.add("boxes", max(0.0, ms - search_ms))

    def _judge_golden(self, extracted: _GoldenExtracted) -> None:
        error, sample = extracted.error, extracted.sample
        try:
            if extracted.features is not None:
                ready = sample.ready
                check_golden_features(ready.recipe, ready.detector, sample.golden, extracted.features)
        except EdgeError as failure:
            error = str(failure)
        except Exception as failure:
            self._defect([], failure)
            return
        self._passes += error is None
        self._golden_went_wrong = error is not None
        self._tell_golden(extracted, error)
        self._golden_under_way.discard(extracted.station.name)

    def _tell_golden(self, extracted: _GoldenExtracted, error: str | None) -> None:
        """The station first: parts that wait behind this sample are judged after it was told."""
        station, sample = extracted.station, extracted.sample
        news = station.golden_done(sample, self._clock.monotonic_ns() - extracted.begun_ns, error)
        if error is not None:
            for other in self._stations:
                if other is not station:
                    other.golden_failed_elsewhere(sample, error)
        if news and error is not None:
            self._on_event(station.name, "golden_failed", f"view {sample.view}: {error}; no part is judged meanwhile")
        elif news:
            self._on_event(station.name, "golden_clear", f"golden sample {sample.name} comes out right again")


class _Turn:
    """Nothing to judge: it goes the way of what is."""


class _Nothing:
    """Nothing came in time."""


_NOTHING = _Nothing()


def _recipe(work: Work) -> ReadyRecipe:
    recipes = work.inspection.recipe_set
    if recipes is None:
        raise EdgeError(f"station {work.station.name} has no recipe set")
    return recipes.views[work.view]
