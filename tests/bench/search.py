"""The certified search against the faster of faiss IndexFlatL2 and a blocked matrix product: one JSON object.

Features of good parts, (frames, gh, gw, D) float32 in .npy files; the bank is taken from the first, the
frames that are timed from the second. All searches of a frame are timed one after the other in the same run,
and the ratios are medians over the frames: the machine's speed and load cancel out.

    .venv/bin/python -m tests.bench.search --bank train.npy --frames good.npy --defects bad.npy [--pca 96]
    .venv/bin/python -m tests.bench.search --recipe bottle.recipe --images good/ --defective broken/
    .venv/bin/python -m tests.bench.search --five-shot r50/ --images good/

The last one is the case of a bank of five pictures without coreset and many patches a picture: with 73 x 73
patches of 1,024 dimensions (a backbone of stride 16 at 1168², or a transformer of 14-pixel patches at 1022²)
5,329 queries against 26,645 rows.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_daemon.threads import keep_freed_memory, physical_cores, set_thread_environment

set_thread_environment()

import cv2  # noqa: E402
import faiss  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from edge_daemon.artefact.pictures import find_pictures, read_picture  # noqa: E402
from edge_daemon.core.coreset import k_centre_greedy, project, sparse_random_projection  # noqa: E402
from edge_daemon.core.decision import Evidence, Thresholds  # noqa: E402
from edge_daemon.core.resize import resize  # noqa: E402
from edge_daemon.detectors.loading import load_verified  # noqa: E402
from edge_daemon.detectors.patchcore import PatchCoreDetector, PatchCoreSettings  # noqa: E402
from edge_daemon.engines.nearest import make_engine  # noqa: E402
from edge_daemon.engines.sessions import EngineOptions, OnnxExtractor, Sessions  # noqa: E402
from export.backbone import resolve_backbone  # noqa: E402

Array = NDArray[np.float32]
_WARM_UP_FRAMES = 3
_SHOTS = 5


class Blocked:
    """The plain competitor: ‖y‖² − 2x·y in blocks that fit the cache, minimum kept, nothing proven."""

    def __init__(self, bank: Array, block: int = 1024) -> None:
        augmented = np.concatenate([bank, np.einsum("md,md->m", bank, bank)[:, None]], axis=1)
        self._blocks = [np.ascontiguousarray(augmented[i : i + block].T) for i in range(0, len(bank), block)]
        self._block = block

    def __call__(self, queries: Array) -> NDArray[np.int64]:
        left = np.concatenate([-2 * queries, np.ones((len(queries), 1), np.float32)], axis=1)
        index = np.arange(len(queries))
        least = np.full(len(queries), np.inf, np.float32)
        rows = np.zeros(len(queries), np.int64)
        for number, right in enumerate(self._blocks):
            product = left @ right
            column = product.argmin(axis=1)
            value = product[index, column]
            better = value < least
            least[better] = value[better]
            rows[better] = column[better] + number * self._block
        return rows


class NoExtractor:
    """The features are there already."""

    key = ("", 0, 0)
    provider = "none"

    def extract(self, batch: NDArray[np.uint8]) -> Array:  # noqa: ARG002
        raise AssertionError("not to be called")


def detector(bank: Array, engine: str, grid: tuple[int, int], pixel: float) -> PatchCoreDetector:
    """A detector of profile anomalib at eight pixels a cell."""
    size = (8 * grid[1], 8 * grid[0])
    settings = PatchCoreSettings(
        size, None, "antialias", size, size, size, 9, "euclidean", "nearest", "torch_reflect", 4.0
    )
    return PatchCoreDetector(settings, Thresholds(pixel, pixel, pixel), NoExtractor(), bank, make_engine(engine, bank))


def milliseconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3


def measure(bank: Array, frames: Sequence[Array], defects: Sequence[Array]) -> dict[str, object]:
    """Times and ratios of one bank. frames: (gh, gw, D) of good parts; defects: of parts with boxes."""
    grid = (frames[0].shape[0], frames[0].shape[1])
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank)
    blocked = Blocked(bank)
    plain = detector(bank, "flat", grid, np.finfo(np.float32).max)
    certified = detector(bank, "certified", grid, np.finfo(np.float32).max)
    peaks = []
    for frame in frames[:_WARM_UP_FRAMES]:
        certified.judge(frame, certified.thresholds)
        peaks.append(float(plain.judge(frame, plain.thresholds).max_distance))
    found: dict[str, list[float]] = {k: [] for k in ("faiss", "blocked", "search", "judge", "flat_judge", "searches")}
    for frame in frames[_WARM_UP_FRAMES:]:
        queries = frame.reshape(-1, frame.shape[-1])
        hints = certified._hints
        found["faiss"].append(milliseconds(lambda q=queries: index.search(q, 1)))
        found["blocked"].append(milliseconds(lambda q=queries: blocked(q)))
        found["search"].append(milliseconds(lambda q=queries, h=hints: certified.engine.maximum(q, grid, h)))
        found["flat_judge"].append(milliseconds(lambda f=frame: plain.judge(f, plain.thresholds)))
        seen: list[Evidence] = []
        found["judge"].append(milliseconds(lambda f=frame, s=seen: s.append(certified.judge(f, certified.thresholds))))
        evidence, expected = seen[0], plain.judge(frame, plain.thresholds)
        assert evidence.score == expected.score
        assert evidence.max_distance == expected.max_distance
        found["searches"].append(evidence.exact_searches)
    flat = [min(pair) for pair in zip(found["faiss"], found["blocked"], strict=True)]
    return {
        "rows": len(bank),
        "dim": bank.shape[1],
        "faiss_ms": statistics.median(found["faiss"]),
        "blocked_ms": statistics.median(found["blocked"]),
        "certified_ms": statistics.median(found["search"]),
        "certified_p95_ms": float(np.quantile(found["search"], 0.95)),
        "ratio": statistics.median(found["search"]) / min(map(statistics.median, (found["faiss"], found["blocked"]))),
        "ratio_per_frame": statistics.median(c / f for c, f in zip(found["search"], flat, strict=True)),
        "judge_ms": statistics.median(found["judge"]),
        "flat_judge_ms": statistics.median(found["flat_judge"]),
        "exact_searches": statistics.median(found["searches"]),
        "exact_searches_most": max(found["searches"]),
        "with_boxes": boxes(bank, defects, grid, max(peaks) * 0.8, blocked) if len(defects) else None,
    }


def boxes(
    bank: Array, defects: Sequence[Array], grid: tuple[int, int], pixel: float, blocked: Blocked
) -> dict[str, float]:
    """Parts with defects, boxes included, over the bare product: the worst frame is what counts."""
    certified, plain = (detector(bank, name, grid, pixel) for name in ("certified", "flat"))
    ratios, flat_ratios, drawn = [], [], 0
    for frame in defects:
        queries = frame.reshape(-1, frame.shape[-1])
        flat_ms = milliseconds(lambda q=queries: blocked(q))
        ratios.append(milliseconds(lambda f=frame: certified.judge(f, certified.thresholds)) / flat_ms)
        flat_ratios.append(milliseconds(lambda f=frame: plain.judge(f, plain.thresholds)) / flat_ms)
        evidence, expected = certified.judge(frame, certified.thresholds), plain.judge(frame, plain.thresholds)
        assert (evidence.score, evidence.boxes) == (expected.score, expected.boxes)
        drawn += bool(evidence.boxes)
    return {
        "frames": len(defects),
        "with_boxes": drawn,
        "ratio": statistics.median(ratios),
        "ratio_most": max(ratios),
        "flat_ratio": statistics.median(flat_ratios),
    }


def banks(features: Array, rows: Sequence[int]) -> dict[int, Array]:
    """Banks of these sizes from (N, D): coresets up to 10,000 rows, every so-manieth row above."""
    found: dict[int, Array] = {}
    step = max(1, len(features) // 100_000)
    pool = np.ascontiguousarray(features[::step])
    matrix = sparse_random_projection(len(pool), pool.shape[1], 0)
    projected = pool if matrix is None else project(pool, matrix)
    small = [n for n in rows if n <= min(10_000, len(pool))]
    if small:
        order = k_centre_greedy(projected, max(small), seed=0)
        found |= {n: pool[order[:n]] for n in small}  # the greedy's first n rows are its coreset of n
    for n in (n for n in rows if n > 10_000):
        found[n] = features[np.linspace(0, len(features) - 1, min(n, len(features))).astype(np.int64)]
    return found


def principal(features: Array, dims: int) -> tuple[Array, Array]:
    """Mean (D,) and the leading directions (D, dims) of (N, D)."""
    mean = features.mean(axis=0)
    vectors = np.linalg.eigh(np.cov((features - mean).T.astype(np.float64)))[1]
    return mean, vectors[:, ::-1][:, :dims].astype(np.float32)


def from_pictures(recipe: Path, folders: Sequence[Path | None]) -> tuple[Array, list[Array]]:
    """Bank of a recipe and the features of each folder's pictures."""
    ready = load_verified(recipe.absolute(), Sessions(EngineOptions(intra_op_threads=physical_cores())))
    judge = ready.detector
    found = []
    for folder in folders:
        pictures = find_pictures(folder) if folder else []
        features = [judge.extractor.extract(judge.prepare(read_picture(p)).inputs)[0] for p in pictures]
        found.append(np.stack(features) if features else np.empty((0, 1, 1, 1), np.float32))
    return ready.recipe.bank, found


def five_shot(backbone: Path, images: Path, frames: int) -> dict[str, object]:
    """Every patch of five pictures as bank, as many other pictures of good parts as there are to time, at most
    `frames`; resized to the backbone's own size."""
    fused = resolve_backbone(backbone)
    extractor = OnnxExtractor(fused.model_bytes, fused.sha256, EngineOptions(intra_op_threads=physical_cores()))
    found = []
    for path in find_pictures(images)[: _SHOTS + _WARM_UP_FRAMES + frames]:
        pixels = read_picture(path)
        colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        found.append(extractor.extract(resize(colour, *fused.size, "antialias")[None])[0])
    if len(found) <= _SHOTS + _WARM_UP_FRAMES:
        raise SystemExit(f"{images}: {_SHOTS + _WARM_UP_FRAMES + 1} pictures or more are needed, not {len(found)}")
    bank = np.concatenate([f.reshape(-1, fused.dim) for f in found[:_SHOTS]])
    return measure(bank, found[_SHOTS:], ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bank", type=Path, help="features of good parts to take banks from, .npy")
    source.add_argument("--recipe", type=Path, help="a recipe: its own bank is measured")
    source.add_argument(
        "--five-shot", type=Path, metavar="BACKBONE", help="every patch of the first five of --images as bank"
    )
    parser.add_argument("--frames", type=Path, help="features of other good parts, .npy")
    parser.add_argument("--defects", type=Path, help="features of parts with defects, .npy: boxes included")
    parser.add_argument("--images", type=Path, help="pictures of good parts, with --recipe")
    parser.add_argument("--defective", type=Path, help="pictures of parts with defects, with --recipe")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--pca", type=int, default=0, help="reduce the features to so many dimensions first")
    parser.add_argument("--frames-most", type=int, default=40, help="frames to time, at most")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(physical_cores())
    cv2.setNumThreads(1)
    keep_freed_memory()
    if arguments.recipe:
        bank, (good, bad) = from_pictures(arguments.recipe, (arguments.images, arguments.defective))
        measured = [measure(np.ascontiguousarray(bank), list(good[: arguments.frames_most]), list(bad))]
    elif arguments.five_shot:
        if not arguments.images:
            parser.error("--five-shot needs --images")
        measured = [five_shot(arguments.five_shot, arguments.images, arguments.frames_most)]
    else:
        measured = from_features(arguments)
    print(json.dumps({"threads": physical_cores(), "searches": measured}, indent=1))


def from_features(arguments: argparse.Namespace) -> list[dict[str, object]]:
    train: Array = np.load(arguments.bank)
    good: Array = np.load(arguments.frames)[: arguments.frames_most]
    bad: Array = np.load(arguments.defects)[:12] if arguments.defects else good[:0]
    patches = train.reshape(-1, train.shape[-1])
    if arguments.pca:
        mean, basis = principal(patches[:: max(1, len(patches) // 20_000)], arguments.pca)
        patches, good, bad = ((x - mean) @ basis for x in (patches, good, bad))
    return [measure(bank, list(good), list(bad)) for bank in banks(patches, arguments.rows).values()]


if __name__ == "__main__":
    main()
