"""What a backbone is worth beside its teacher: one JSON object on standard output.

Image AUROC, pixel AUROC and AUPRO of PatchCore (profile anomalib, 256 x 256) on sets made here (rotated
screws, castings, surfaces, the simulator's products) and on folders in MVTec layout, for each backbone on
the same pictures, the same seed and the same share of patches kept; then `session.run` of each, in turn,
medians, as a ratio to the first one's.

    edge-export backbone --arch resnet18 --weights FILE --layers layer2,layer3 --out teacher
    .venv/bin/python -m tests.bench.backbone --teacher teacher --data bottle/ [--student student.onnx]

Without --student it is the embedded one. --draws 3 makes each set three times with other pictures and says how
far every backbone lies over the first, with the standard error of that difference: the pictures move a figure
by points, the difference between two backbones on the same pictures by far less.

The made sets rank backbones; they say nothing of a real line.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from edge_daemon.threads import set_thread_environment

set_thread_environment()

import faiss  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from edge_daemon.artefact.manifest import PreprocessPart, ViewPart  # noqa: E402
from edge_daemon.artefact.pictures import find_pictures, read_picture  # noqa: E402
from edge_daemon.core.coreset import k_centre_greedy, project, sparse_random_projection  # noqa: E402
from edge_daemon.core.maps import anomaly_map  # noqa: E402
from edge_daemon.core.quality import auroc, pixel_quality  # noqa: E402
from edge_daemon.core.resize import to_model_input  # noqa: E402
from edge_daemon.engines.sessions import EngineOptions, OnnxExtractor  # noqa: E402
from edge_daemon.threads import physical_cores  # noqa: E402
from export.backbone import resolve_backbone  # noqa: E402
from export.dataset import find_samples, mask_at_model_size, read_mask  # noqa: E402
from tests.bench.parts import MODEL_PX, SETS, LabelledSet, made_sets  # noqa: E402

SIZE = (MODEL_PX, MODEL_PX)
NEIGHBOURS = 9
Maps = list[NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="folder or graph of edge-export backbone")
    parser.add_argument("--student", type=Path, action="append", help="graphs to hold beside it (the embedded one)")
    parser.add_argument("--data", type=Path, action="append", default=[], help="folder in MVTec layout")
    parser.add_argument("--sets", default=",".join(SETS), help=f"made sets, of {','.join(SETS)}; empty for none")
    parser.add_argument("--coreset-ratio", type=float, default=0.1)
    parser.add_argument("--train", type=int, default=40, help="good pictures of a made set")
    parser.add_argument("--test", type=int, default=40, help="good and as many defective pictures of a made set")
    parser.add_argument("--draws", type=int, default=1, help="how often each made set is drawn anew (1)")
    parser.add_argument("--rounds", type=int, default=60, help="of the timing; 0 for none")
    arguments = parser.parse_args()
    names = [name for name in arguments.sets.split(",") if name]
    if unknown := set(names) - set(SETS):
        parser.error(f"no such sets: {', '.join(sorted(unknown))}")
    backbones = {"teacher": open_backbone(arguments.teacher)}
    for student in arguments.student or [None]:
        backbones[str(student or "embedded")] = open_backbone(student)
    report: dict[str, object] = {}
    for name in [*names, *arguments.data]:
        draws = []
        for draw in range(1 if isinstance(name, Path) else max(1, arguments.draws)):
            made = at_hand(name, arguments.train, arguments.test, draw)
            draws.append({key: quality(b, made, arguments.coreset_ratio) for key, b in backbones.items()})
            print(json.dumps({made.name: draws[-1]}), file=sys.stderr, flush=True)
        report[made.name] = draws[0] if len(draws) == 1 else compared(draws)
    if arguments.rounds:
        report["session_run"] = timed(backbones, arguments.rounds)
    print(json.dumps(report, indent=1))


def open_backbone(path: Path | None) -> OnnxExtractor:
    """A backbone fused for profile anomalib at 256 x 256, on the CPU."""
    fused = resolve_backbone(path, "anomalib", SIZE)
    return OnnxExtractor(fused.model_bytes, fused.sha256, EngineOptions(intra_op_threads=physical_cores()))


def at_hand(name: str | Path, train: int, test: int, draw: int) -> LabelledSet:
    return read_set(name) if isinstance(name, Path) else made_sets([name], train, test, draw)[0]


def compared(draws: list[dict[str, dict[str, float | None]]]) -> dict[str, object]:
    """Means over the draws of one made set, and of the differences to the first backbone with standard errors."""
    first, *_ = draws[0]
    report: dict[str, object] = {}
    for key, figures in draws[0].items():
        values = {f: np.array([draw[key][f] for draw in draws], float) for f in figures}
        over = {f: values[f] - np.array([draw[first][f] for draw in draws], float) for f in figures}
        report[key] = {
            **{f: round(float(v.mean()), 4) for f, v in values.items()},
            "over_first": {
                f: [round(float(d.mean()), 4), round(float(d.std(ddof=1) / len(d) ** 0.5), 4)] for f, d in over.items()
            },
        }
    return report


def read_set(data: Path) -> LabelledSet:
    """A data set in MVTec layout at model size; defective pictures without a mask count for the image only."""
    test, masks, samples = [], [], find_samples(data)
    for sample in samples:
        pixels = read_picture(sample.path)
        frame = (pixels.shape[1], pixels.shape[0])
        preprocess = PreprocessPart(resize="antialias", size=SIZE, resize_to=SIZE)
        masks.append(mask_at_model_size(read_mask(sample, pixels.shape), ViewPart(frame_size=frame), preprocess))
        test.append(at_model_size(pixels))
    train = [at_model_size(read_picture(path)) for path in find_pictures(data / "train" / "good")]
    return LabelledSet(data.name, train, test, masks, [sample.defective for sample in samples])


def at_model_size(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return to_model_input(pixels, (pixels.shape[1], pixels.shape[0]), None, SIZE, SIZE, "antialias")


def quality(backbone: OnnxExtractor, data: LabelledSet, ratio: float) -> dict[str, float | None]:
    """Bank of the good pictures, then scores and maps of the others (Roth et al. 2022, section 3)."""
    grids = [backbone.extract(picture[None])[0] for picture in data.train]
    patches = np.concatenate([grid.reshape(-1, grid.shape[-1]) for grid in grids])
    matrix = sparse_random_projection(len(patches), patches.shape[1], 0)
    projected = patches if matrix is None else project(patches, matrix)
    bank = patches[k_centre_greedy(projected, max(NEIGHBOURS, int(len(patches) * ratio)))]
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank)
    scores, maps = [], []
    for picture in data.test:
        features = backbone.extract(picture[None])[0]
        queries = features.reshape(-1, features.shape[-1])
        squared, rows = index.search(queries, 1)
        distance = np.sqrt(np.maximum(squared[:, 0], 0))
        worst = int(distance.argmax())
        scores.append(float(distance[worst]) * reweighting(queries[worst], bank, int(rows[worst, 0]), index))
        maps.append(anomaly_map(distance.reshape(features.shape[:2]), SIZE, SIZE, "nearest", "torch_reflect", 4.0))
    defective = data.defective
    known = [i for i, bad in enumerate(defective) if not bad or data.masks[i].any()]
    pixels = pixel_quality([maps[i] for i in known], [data.masks[i] for i in known])
    figures = {"image_auroc": auroc(scores, defective), "pixel_auroc": pixels.auroc, "aupro": pixels.aupro}
    return {key: None if value is None else round(value, 4) for key, value in figures.items()}


def reweighting(query: NDArray[np.float32], bank: NDArray[np.float32], row: int, index: faiss.IndexFlatL2) -> float:
    """1 - softmax of the distances to the nearest row's own neighbours (profile anomalib)."""
    _, rows = index.search(bank[row : row + 1], NEIGHBOURS)
    distance = np.linalg.norm(bank[rows[0]] - query, axis=1)
    weight = np.exp(distance - distance.max())
    return float(1 - weight[0] / weight.sum())


def timed(backbones: dict[str, OnnxExtractor], rounds: int) -> dict[str, object]:
    """Median milliseconds of session.run of each backbone, in turn, so that the machine's load hits all alike;
    and the teacher's over each."""
    picture = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    found: dict[str, list[float]] = {name: [] for name in backbones}
    for turn in range(rounds + 5):
        for name, backbone in backbones.items():
            begun = time.perf_counter()
            backbone.extract(picture)
            if turn >= 5:
                found[name].append((time.perf_counter() - begun) * 1e3)
    median = {name: statistics.median(values) for name, values in found.items()}
    return {
        "ms": {name: round(value, 2) for name, value in median.items()},
        "teacher_over": {name: round(median["teacher"] / value, 2) for name, value in median.items()},
    }


if __name__ == "__main__":
    main()
