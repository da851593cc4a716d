"""Everything that is said about speed, measured on this machine: `make bench`.

Writes bench.json and bench.png (one page) into --out. Search and coreset growth, batch and camera scaling,
int8, and PatchCore as a whole, each beside the naive way of doing it, in turn with it in one run.

    make bench                                            simulated parts, the embedded backbone
    make bench BENCH_ARGS="--images good/ --backbone r18/"    your parts, your backbone
    make bench BENCH_ARGS=--quick                         a look in two minutes
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_daemon.threads import set_thread_environment

set_thread_environment()

import faiss  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from edge_daemon.artefact.pictures import encode_png, find_pictures, read_picture  # noqa: E402
from edge_daemon.bench import BenchRequest, bench  # noqa: E402
from edge_daemon.core.coreset import k_centre_greedy  # noqa: E402
from edge_daemon.core.decision import Thresholds  # noqa: E402
from edge_daemon.core.resize import resize  # noqa: E402
from edge_daemon.detectors.loading import load_verified  # noqa: E402
from edge_daemon.detectors.patchcore import PatchCoreDetector, PatchCoreSettings  # noqa: E402
from edge_daemon.engines.nearest import make_engine  # noqa: E402
from edge_daemon.engines.sessions import EngineOptions, OnnxExtractor, Sessions  # noqa: E402
from edge_daemon.errors import EdgeError  # noqa: E402
from edge_daemon.simulation.render import Scene  # noqa: E402
from edge_daemon.threads import keep_freed_memory, physical_cores  # noqa: E402
from export.backbone import EMBEDDED, resolve_backbone  # noqa: E402
from export.build import RecipeRequest, build_recipe  # noqa: E402
from export.fuse import FusedBackbone  # noqa: E402
from export.quantise import RANGE_PICTURES, cpu_class, quantise  # noqa: E402

Float32 = NDArray[np.float32]
ENGINES = ("certified", "flat")
SIMULATED_PARTS = 60
NO_BOXES = Thresholds(0.0, 0.0, float(np.finfo(np.float32).max))


@dataclass(frozen=True, slots=True)
class Material:
    """What is measured on. pictures: (H, W, 3) uint8 at model size; features: (P, D) of all of them;
    frames: (gh, gw, D) of pictures that no bank is drawn from."""

    folder: Path
    images: Path
    recipe: Path
    backbone: FusedBackbone
    pictures: list[NDArray[np.uint8]]
    features: Float32
    frames: list[Float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="good parts (default: simulated ones)")
    parser.add_argument("--backbone", type=Path, help="of `edge-export backbone` (default: the embedded one)")
    parser.add_argument("--five-shot", type=Path, help="backbone for a bank of five whole pictures (default: left out)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions")
    arguments = parser.parse_args()
    keep_freed_memory()
    faiss.omp_set_num_threads(physical_cores())
    with tempfile.TemporaryDirectory(prefix="edge-suite-") as folder:
        figures = run(Path(folder), arguments.images, arguments.backbone, arguments.quick, arguments.five_shot)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "bench.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot(figures, arguments.out / "bench.png")
    print(f"{arguments.out / 'bench.json'} and {arguments.out / 'bench.png'}")


def run(
    folder: Path, images: Path | None, backbone: Path | None, quick: bool, five_shot: Path | None = None
) -> dict[str, Any]:
    """All sections, as one object ready for JSON."""
    say("material: parts, features, a recipe")
    material = prepare(folder, images, backbone)
    sections: dict[str, Callable[[], Any]] = {
        "search": lambda: search_growth(
            material, (1_000, 10_000) if quick else (1_000, 3_000, 10_000, 30_000, 200_000)
        ),
        "search_of_the_recipe": lambda: search_bench(material),
        "five_shot": lambda: five_shot_bench(five_shot, material.images),
        "coreset": lambda: coreset_growth((2_000, 5_000) if quick else (5_000, 10_000, 20_000, 50_000, 100_000)),
        "batch": lambda: batch_scaling(material, (1, 4) if quick else (1, 2, 4, 8)),
        "int8": lambda: int8(material),
        "patchcore": lambda: whole_patchcore(material),
        "cameras": lambda: camera_scaling(material, (1, 2) if quick else (1, 2, 4), quick),
    }
    figures: dict[str, Any] = {
        "machine": {"cpu": cpu_class(), "cores": physical_cores(), "platform": platform.platform()},
        "backbone": {
            "name": material.backbone.name if backbone else EMBEDDED,
            "size": material.backbone.size,
            "dim": material.backbone.dim,
        },
        "quick": quick,
    }
    for name, section in sections.items():
        say(name)
        figures[name] = section()
    return figures


def say(what: str) -> None:
    print(f"{what} ...", flush=True)


def prepare(folder: Path, images: Path | None, backbone: Path | None) -> Material:
    """Pictures, their features, and a recipe of 2,000 rows."""
    if images is None:
        images = folder / "images"
        images.mkdir()
        scene = Scene("flange", (256, 256))
        for index in range(SIMULATED_PARTS):
            (images / f"{index:03d}.png").write_bytes(encode_png(scene.part(seed=1, index=index, defect=None).pixels))
    fused = resolve_backbone(backbone)
    extractor = OnnxExtractor(fused.model_bytes, fused.sha256, EngineOptions(intra_op_threads=physical_cores()))
    pictures = [at_size(read_picture(path), fused.size) for path in find_pictures(images)[:220]]
    features = [extractor.extract(picture[None])[0] for picture in pictures]
    graph, recipe = folder / "backbone.onnx", folder / "bench.recipe"
    graph.write_bytes(fused.model_bytes)
    patches = len(features) * fused.grid[0] * fused.grid[1] * 0.7
    build_recipe(
        RecipeRequest(
            name="bench",
            images=images,
            out=recipe,
            created_utc="1970-01-01T00:00:00Z",
            version="1",
            backbone=graph,
            coreset_ratio=min(1.0, 2_000 / patches),
            provisional=len(pictures) < 20,
        ),
        lambda _what, _total: nullcontext(lambda _done: None),
    )
    held = max(1, len(features) // 10)
    bank = np.concatenate([f.reshape(-1, fused.dim) for f in features[:-held]])
    return Material(folder, images, recipe, fused, pictures, bank, features[-held:])


def at_size(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return resize(colour, size[0], size[1], "antialias")


def in_turn(ways: Mapping[str, Callable[[int], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each way, all of them called in turn so that load hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, call in ways.items():
            begun = time.perf_counter()
            call(turn)
            times[name].append((time.perf_counter() - begun) * 1e3)
    return {name: round(statistics.median(ms[1:]), 3) for name, ms in times.items()}


def search_growth(material: Material, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Milliseconds of one frame's score by bank size. Rows drawn at random from patches of good parts, with
    small noise where there are fewer patches than rows; frames of parts that gave none."""
    rng = np.random.default_rng(0)
    dim, found = material.backbone.dim, []
    frames = material.frames
    for count in rows:
        drawn = material.features[rng.integers(0, len(material.features), count)]
        if count > len(material.features):
            drawn = drawn + rng.normal(0, 0.02 * float(drawn.std()), drawn.shape).astype(np.float32)
        bank = np.ascontiguousarray(drawn)
        index = faiss.IndexFlatL2(dim)
        index.add(bank)
        norms = np.einsum("ij,ij->i", bank, bank)
        ways: dict[str, Callable[[int], object]] = {
            name: lambda turn, d=detector: d.judge(frames[turn % len(frames)], NO_BOXES)
            for name, detector in detectors(material, bank).items()
        }
        ways["faiss flat"] = lambda turn, i=index: i.search(frames[turn % len(frames)].reshape(-1, dim), 1)
        ways["numpy flat"] = lambda turn, b=bank, n=norms: matrix_product(
            frames[turn % len(frames)].reshape(-1, dim), b, n
        )
        found.append({"rows": count, "ms": in_turn(ways, 5 if count > 20_000 else 11)})
    return found


def search_bench(material: Material) -> Any:
    """`tests.bench.search` on the recipe's own bank: the certified search beside the faster flat one."""
    command = ["--recipe", str(material.recipe), "--images", str(material.images)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.search", *command], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout)


def five_shot_bench(backbone: Path | None, images: Path) -> Any:
    """`tests.bench.search --five-shot`: many patches of many dimensions, a bank without coreset. Null without a
    backbone for it: the embedded one has neither."""
    if backbone is None:
        return None
    command = ["--five-shot", str(backbone), "--images", str(images), "--frames-most", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.search", *command], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout)


def detectors(material: Material, bank: Float32) -> dict[str, PatchCoreDetector]:
    """The product's judge with each engine that this version has."""
    ready = load_verified(material.recipe, Sessions(EngineOptions(intra_op_threads=physical_cores())))
    made = {}
    for name in ENGINES:
        try:
            engine = make_engine(name, bank)
        except EdgeError:
            continue
        settings = PatchCoreSettings.of(ready.recipe.manifest)
        made[name] = PatchCoreDetector(settings, NO_BOXES, ready.detector.extractor, bank, engine)
    return made


def matrix_product(queries: Float32, bank: Float32, norms: Float32, block: int = 8_192) -> Float32:
    """Nearest squared distances by blocked products: what is written first, and hard to beat for small banks."""
    best = np.full(len(queries), np.inf, np.float32)
    for first in range(0, len(bank), block):
        part = norms[first : first + block] - 2 * (queries @ bank[first : first + block].T)
        np.minimum(best, part.min(axis=1), out=best)
    return best + np.einsum("ij,ij->i", queries, queries)


def coreset_growth(rows: Sequence[int], dim: int = 128) -> list[dict[str, float]]:
    """Seconds to pick a tenth of the rows; the plain greedy is timed on some picks and scaled up."""
    rng = np.random.default_rng(0)
    found = []
    for count in rows:
        centres = rng.normal(size=(count // 50 + 1, dim))
        points = (centres[rng.integers(0, len(centres), count)] + 0.3 * rng.normal(size=(count, dim))).astype(
            np.float32
        )
        begun = time.perf_counter()
        k_centre_greedy(points, count // 10, start=0)
        ours_s = time.perf_counter() - begun
        picks = min(count // 10, 200)
        begun = time.perf_counter()
        plain_greedy(points, picks)
        plain_s = (time.perf_counter() - begun) / picks * (count // 10)
        found.append({"rows": count, "seconds": round(ours_s, 3), "plain_seconds": round(plain_s, 3)})
    return found


def plain_greedy(points: Float32, count: int) -> list[int]:
    """k-centre greedy as published: the farthest point next, all distances to it computed."""
    taken, nearest = [0], np.full(len(points), np.inf, np.float32)
    for _ in range(count - 1):
        difference = points - points[taken[-1]]
        np.minimum(nearest, np.einsum("ij,ij->i", difference, difference), out=nearest)
        taken.append(int(nearest.argmax()))
    return taken


def batch_scaling(material: Material, sizes: Sequence[int]) -> list[dict[str, float]]:
    """Pictures a second of the bare graph by batch."""
    extractor = _extractor(material.backbone)
    batches = {str(n): np.stack([material.pictures[i % len(material.pictures)] for i in range(n)]) for n in sizes}
    ms = in_turn({n: lambda _turn, b=batch: extractor.extract(b) for n, batch in batches.items()}, 11)
    return [{"batch": n, "fps": round(n * 1e3 / ms[str(n)], 2)} for n in sizes]


def int8(material: Material) -> dict[str, float]:
    """Pictures a second of the bare graph in fp32 and in int8, in turn."""
    quantised = quantise(material.backbone, material.pictures[:RANGE_PICTURES])
    ways = {b.precision: _extractor(b) for b in (quantised.source, quantised.backbone)}
    picture = material.pictures[0][None]
    ms = in_turn({name: lambda _turn, e=extractor: e.extract(picture) for name, extractor in ways.items()}, 31)
    fps = {f"{name}_fps": round(1e3 / value, 2) for name, value in ms.items()}
    return fps | {"speedup": round(ms["fp32"] / ms["int8"], 3), "embedding_error": round(quantised.error, 4)}


def _extractor(backbone: FusedBackbone) -> OnnxExtractor:
    return OnnxExtractor(backbone.model_bytes, backbone.sha256, EngineOptions(intra_op_threads=physical_cores()))


def whole_patchcore(material: Material) -> dict[str, Any]:
    """Milliseconds from picture to score with a ResNet-18 of random weights and 2,000 rows: PatchCore in torch,
    straight from the formulas (features, pooling, distances, re-weighting), beside the product on the same graph."""
    import torch
    from torch.nn import functional

    from export.fuse import fuse
    from export.torch.backbone import raw_from_network
    from export.torch.teacher import import_timm, load_network

    torch.manual_seed(0)
    torch.set_num_threads(physical_cores())
    weights = material.folder / "r18.pth"
    torch.save(import_timm().create_model("resnet18", pretrained=False, zero_init_last=False).state_dict(), weights)
    network = load_network("resnet18", ["layer2", "layer3"], weights)
    fused = fuse(raw_from_network(network, material.backbone.size), material.backbone.size, "anomalib")
    extractor = _extractor(fused)
    pictures = material.pictures
    patches = np.concatenate([extractor.extract(p[None])[0].reshape(-1, fused.dim) for p in pictures[1:9]])
    bank = np.ascontiguousarray(
        patches[np.random.default_rng(0).choice(len(patches), 2_000, replace=len(patches) < 2_000)]
    )
    rows = torch.from_numpy(bank)

    @torch.inference_mode()
    def plain(turn: int) -> float:
        maps = network.module(torch.from_numpy(fused.normalisation.apply(pictures[turn % len(pictures)][None])))
        pooled = [functional.avg_pool2d(m, 3, 1, 1) for m in maps]
        grid = pooled[0].shape[-2:]
        joined = torch.cat([functional.interpolate(p, grid, mode="bilinear") for p in pooled], 1)[0].flatten(1).T
        distance, nearest = torch.cdist(joined, rows).min(1)
        worst = distance.argmax()
        around = torch.cdist(rows[nearest[worst]][None], rows)[0].topk(9, largest=False).indices
        weight = 1 - torch.softmax(torch.cdist(joined[worst][None], rows[around])[0], 0)[0]
        return float(weight * distance[worst])

    judges = detectors(material, bank)
    ways: dict[str, Callable[[int], object]] = {"torch": plain}
    for name, judge in judges.items():
        ways[name] = lambda turn, j=judge: j.judge(extractor.extract(pictures[turn % len(pictures)][None])[0], NO_BOXES)
    small = _extractor(quantise(fused, pictures[:8]).backbone)
    first = next(iter(judges))
    ways[f"{first}, int8"] = lambda turn: judges[first].judge(
        small.extract(pictures[turn % len(pictures)][None])[0], NO_BOXES
    )
    return {"rows": len(bank), "ms": in_turn(ways, 15)}


def camera_scaling(material: Material, cameras: Sequence[int], quick: bool) -> list[dict[str, Any]]:
    """`edge-daemon bench` by number of cameras."""
    rounds, seconds = (1, 1.0) if quick else (3, 3.0)
    return [
        bench(BenchRequest(material.recipe, material.images, count, rounds=rounds, seconds=seconds))
        for count in cameras
    ]


# ---------------------------------------------------------------- the page


def plot(figures: dict[str, Any], path: Path) -> None:
    """One page of all sections."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(14, 8.5))
    _search_plot(axes[0, 0], figures["search"])
    _coreset_plot(axes[0, 1], figures["coreset"])
    _bars(axes[0, 2], figures["patchcore"]["ms"], f"PatchCore, ResNet-18, {figures['patchcore']['rows']} rows", "ms")
    batches = {f"batch {row['batch']}": row["fps"] for row in figures["batch"]}
    eight = {f"{kind}, in turn": figures["int8"][f"{kind}_fps"] for kind in ("fp32", "int8")}
    _bars(axes[1, 0], batches | eight, f"session.run, {figures['backbone']['name']}", "pictures/s")
    cameras = figures["cameras"]
    _bars(
        axes[1, 1],
        {"session.run": cameras[0]["session_run_fps"]} | {f"{c['cameras']} cam.": c["end_to_end_fps"] for c in cameras},
        "the daemon, end to end",
        "frames/s",
    )
    latency = {f"{c['cameras']} cam. {q}": c["latency_ms"][q] for c in cameras for q in ("p50", "p99", "ideal_p99")}
    _bars(axes[1, 2], latency, "latency at 50% load", "ms")
    machine = figures["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores, {machine['platform']}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _search_plot(axis: Any, rows: list[dict[str, Any]]) -> None:
    for name in rows[0]["ms"]:
        axis.loglog([r["rows"] for r in rows], [r["ms"][name] for r in rows], "o-", label=name)
    axis.set(title="search, score of one good frame", xlabel="rows of the bank", ylabel="ms")
    axis.legend()


def _coreset_plot(axis: Any, rows: list[dict[str, float]]) -> None:
    counts = [r["rows"] for r in rows]
    axis.loglog(counts, [r["seconds"] for r in rows], "o-", label="edge-export")
    axis.loglog(counts, [r["plain_seconds"] for r in rows], "o-", label="plain greedy, numpy")
    axis.set(title="coreset, a tenth of 128-d rows", xlabel="rows", ylabel="s")
    axis.legend()


def _bars(axis: Any, values: dict[str, float], title: str, unit: str) -> None:
    places = range(len(values))
    axis.bar(places, list(values.values()))
    axis.set_xticks(list(places), list(values), rotation=35, ha="right")
    for place, value in zip(places, values.values(), strict=True):
        axis.annotate(f"{value:.3g}", (place, value), ha="center", va="bottom")
    axis.margins(y=0.1)  # for the numbers above the bars
    axis.set(title=title, ylabel=unit)


if __name__ == "__main__":
    main()
