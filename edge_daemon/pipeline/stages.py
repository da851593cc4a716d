"""How long the stages of an inspection take, as `status` tells it."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

import numpy as np

from edge_daemon.core.histogram import SECONDS, Distribution, Histogram

_KEPT = 512
# Outcomes on their way out; a record that is never published (a second outcome) is forgotten after these.
_ON_THE_WAY = 4_096


class Stages:
    """Milliseconds of the last 512 frames, and the distribution over all, by stage. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ms: dict[str, deque[float]] = {}
        self._histograms: dict[str, Histogram] = {}

    def add(self, stage: str, ms: float) -> None:
        """One frame's time."""
        with self._lock:
            if stage not in self._ms:
                self._ms[stage], self._histograms[stage] = deque(maxlen=_KEPT), Histogram(SECONDS)
            self._ms[stage].append(ms)
            self._histograms[stage].add(ms / 1e3)

    def distributions(self) -> dict[str, Distribution]:
        """Seconds by stage, since the start."""
        with self._lock:
            return {stage: histogram.read() for stage, histogram in self._histograms.items()}

    def medians(self) -> dict[str, float]:
        """Median milliseconds by stage, in the order in which stages were first seen."""
        with self._lock:
            kept = {stage: list(ms) for stage, ms in self._ms.items()}
        return {stage: round(float(np.median(ms)), 3) for stage, ms in kept.items()}

    def median(self, stage: str) -> float | None:
        """Median milliseconds of one stage; None before its first frame."""
        with self._lock:
            kept = list(self._ms.get(stage, ()))
        return float(np.median(kept)) if kept else None


class WayOut:
    """How long outcomes take from their conclusion to the publisher, through the journal."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._begun_ns: OrderedDict[str, int] = OrderedDict()
        self._stages = Stages()

    def concluded(self, result_id: str) -> None:
        """An outcome sets out. Call before it is handed to the journal."""
        with self._lock:
            self._begun_ns[result_id] = self._clock_ns()
            if len(self._begun_ns) > _ON_THE_WAY:
                self._begun_ns.popitem(last=False)

    def published(self, result_id: str) -> None:
        """It is out; one that never set out here (of the boot before) is not counted."""
        with self._lock:
            begun_ns = self._begun_ns.pop(result_id, None)
        if begun_ns is not None:
            self._stages.add("out", (self._clock_ns() - begun_ns) / 1e6)

    def distributions(self) -> dict[str, Distribution]:
        """Seconds of `out`, from the conclusion to the publisher, since the start."""
        return self._stages.distributions()

    def stages_ms(self, commit_ms: float) -> dict[str, float]:
        """`journal`: the median commit, commit_ms; `publish`: the median of what the way out takes beyond it.
        Both run beside the compute thread. Empty before the first outcome."""
        out_ms = self._stages.median("out")
        if out_ms is None:
            return {}
        return {"journal": round(commit_ms, 3), "publish": round(max(0.0, out_ms - commit_ms), 3)}
