"""What a part leaves behind in memory: nothing. Ten thousand parts on a real recipe: `make soak`."""

import gc
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import zmq

from edge_daemon.config import StationConfig
from edge_daemon.core.align import Pose
from edge_daemon.core.decision import Evidence, Thresholds
from edge_daemon.core.frame import Frame
from edge_daemon.detectors.base import Prepared
from edge_daemon.edges import journal as journal_module
from edge_daemon.edges.clock import SystemClock
from edge_daemon.edges.journal import Journal
from edge_daemon.edges.publisher import Publisher, PublisherConfig
from edge_daemon.edges.records import Records
from edge_daemon.pipeline import station as station_module
from edge_daemon.pipeline.compute import Compute
from edge_daemon.pipeline.inspection import LiveRecipeSet
from edge_daemon.pipeline.messages import Identity
from edge_daemon.pipeline.stages import WayOut
from edge_daemon.pipeline.station import Station
from edge_daemon.wire.messages import Inspection

# So few parts that the samples meet every phase of what is filled and emptied in turn.
SAMPLES, PARTS_A_SAMPLE = 40, 23
# What is left of one part: less than the smallest object of Python's in a list.
ALLOWED_BYTES_A_PART = 40


class Detector:
    thresholds = Thresholds(100, 100, 100)
    extractor = SimpleNamespace(
        key=("graph", 4, 4), provider="fake", extract=lambda batch: np.zeros((len(batch), 4, 4, 8), np.float32)
    )

    def prepare(self, pixels: np.ndarray) -> Prepared:
        return Prepared(pixels[None].copy())

    def judge(self, features: np.ndarray, _thresholds: Thresholds, _pose: Pose | None = None) -> Evidence:
        return Evidence(float(features.max()), float(features.max()), (), "exact", anomaly_map=lambda: features[..., 0])


def recipe_set() -> LiveRecipeSet:
    manifest = SimpleNamespace(
        name="r",
        version="1",
        provisional=False,
        thresholds=SimpleNamespace(lower=100.0, upper=100.0),
        backbone=SimpleNamespace(precision="fp32"),
        bank=SimpleNamespace(rows=1),
        view=SimpleNamespace(um_per_px=None),
        health=None,
        camera=None,
        align=None,
    )
    picture = np.zeros((4, 4, 3), np.uint8)
    golden = SimpleNamespace(file="g.png", pixels=picture, score=0.0, max_distance=0.0, evaluation="OK")
    recipe = SimpleNamespace(manifest=manifest, digest="d" * 64, golden=(golden,))
    ready = SimpleNamespace(recipe=recipe, detector=Detector(), provider="fake")
    return LiveRecipeSet(cast(Any, {"top": ready}), "d" * 64)


class Line:
    """A station with journal, publisher and compute threads around a detector that is quick."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.defects: list[BaseException] = []
        self.published = threading.Semaphore(0)
        clock, way_out = SystemClock(), WayOut(SystemClock().monotonic_ns)
        context: zmq.Context[zmq.Socket[bytes]] = stack.enter_context(zmq.Context())
        endpoints = {name: f"ipc://{folder}/{name}" for name in ("results", "images", "status")}
        publisher = stack.enter_context(Publisher(context, PublisherConfig(**endpoints)))
        self.journal = stack.enter_context(Journal(folder / "journal.sqlite", "line"))
        records = stack.enter_context(
            Records(self.journal, publisher, 10_000_000_000, self._published, on_fatal=self.defects.append)
        )

        def conclude(draft: Inspection) -> object:
            way_out.concluded(draft.result_id)
            return records.conclude(draft)

        self._way_out = way_out
        outbox = SimpleNamespace(intend=self.journal.intend, conclude=conclude, attempts=lambda *_: 0)
        config = StationConfig.model_validate(
            {"trigger": "free_run", "deadline_ms": 60_000, "queue": 8, "views": [{"camera": "top", "recipe": "r"}]}
        )
        self.station = Station("st1", config, Identity("line", 1, "b", "s", "c"), clock, cast(Any, outbox))
        compute = Compute([self.station], clock, 1, 0, self.defects.append)
        self.station.attach(compute.submit, {}, False, lambda: None, None)
        self.station.activate(recipe_set())
        self.station.camera_up("top")
        compute.start()
        stack.callback(compute.close)
        self._next = 1

    def _published(self, record: Inspection) -> None:
        self._way_out.published(record.result_id)
        self.station.published(record)
        self.published.release()

    def judge(self, parts: int) -> None:
        """That many parts, one after the other, each published."""
        for _ in range(parts):
            frame = Frame("top", self._next, np.zeros((4, 4, 3), np.uint8), 0)
            self._next += 1
            self.station.frame_without_trigger("top", frame)
            assert self.published.acquire(timeout=20)


@contextmanager
def line(folder: Path) -> Iterator[Line]:
    with ExitStack() as stack:
        yield Line(folder, stack)


def held_bytes() -> int:
    """What Python holds, without the interpreter's own cache of attributes: C code that calls `setflags` or `utcoffset`
    by name leaves a new string in one of its 4,096 places each time, 16 to 40 KB until it is as full as it gets."""
    gc.collect()
    sys._clear_type_cache()
    return tracemalloc.get_traced_memory()[0]


def left_by_a_part(judged: Line) -> float:
    """Bytes that Python holds more after each part, once what is bounded is full: between the lowest of the first half
    of the samples and of the second. sqlite3 lets go of its weak references to 200 cursors at a time, 16 KB: single
    samples differ by that, the lowest of some hardly; what is never let go raises every one."""
    judged.judge(100)
    tracemalloc.start()
    try:
        judged.judge(100)
        held = []
        for _ in range(SAMPLES):
            judged.judge(PARTS_A_SAMPLE)
            held.append(held_bytes())
    finally:
        tracemalloc.stop()
    half = SAMPLES // 2
    return (min(held[half:]) - min(held[:half])) / (half * PARTS_A_SAMPLE)


@pytest.fixture
def short_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of the last parts on purpose is full after these few."""
    monkeypatch.setattr(journal_module, "_REMEMBERED", 32)
    monkeypatch.setattr(journal_module, "_COMMITS_MEASURED", 32)
    monkeypatch.setattr(station_module, "_LATENCIES_KEPT", 32)
    monkeypatch.setattr("edge_daemon.pipeline.stages._KEPT", 32)


@pytest.mark.usefixtures("short_memories")
def test_a_part_leaves_nothing_in_memory(tmp_path: Path) -> None:
    with line(tmp_path) as judged:
        left = left_by_a_part(judged)
        assert judged.station.counters().ok == SAMPLES * PARTS_A_SAMPLE + 200
        assert judged.defects == []
    assert left < ALLOWED_BYTES_A_PART, f"every part leaves {left:.0f} bytes"


@pytest.mark.usefixtures("short_memories")
def test_one_forgotten_number_a_part_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement itself: a list that grows by one small string a part."""
    with line(tmp_path) as judged:
        forgotten: list[str] = []
        published = judged.station.published

        def leaking(record: Inspection) -> None:
            forgotten.append(f"{record.seq:08d}")
            published(record)

        monkeypatch.setattr(judged.station, "published", leaking)
        assert left_by_a_part(judged) > ALLOWED_BYTES_A_PART
