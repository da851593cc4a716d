"""PatchCore as others run it, on this machine: milliseconds a picture, one JSON object for each line on standard input.

anomalib's own where it is installed, else torch written straight from the formulas (FACTS: Roth et al. 2022): resize,
features of layer 2 and 3, pooling, distances to the whole bank, re-weighted score, blurred map. ResNet-18 with random
weights and a random bank: neither changes the time of a flat search. Needs torch and timm (and anomalib) alone, so
that it runs in an environment of its own; `tests.bench.beside` starts it.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

SIZE = 256
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Arguments: rows of the bank, height and width of the frames, threads. Each line on stdin: seconds to measure."""
    rows, height, width, threads = (int(value) for value in sys.argv[1:5])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    # torch for CPUs lacks two operators that torchvision wants to find; declared, it can be imported.
    operators = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    name, judge = anomalib_judge(rows) or ("torch", torch_judge(rows))
    draw = np.random.default_rng(0)
    frames = [draw.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(4)]
    with torch.inference_mode():
        for frame in frames:
            judge(as_tensor(frame))
        print(json.dumps({"name": name, "ready": True}), flush=True)
        for line in sys.stdin:
            print(json.dumps({"name": name, "ms": median_ms(judge, frames, float(line))}), flush=True)


def median_ms(judge: Callable[[torch.Tensor], object], frames: list[np.ndarray], seconds: float) -> float:
    """From a decoded frame, (H, W, 3) uint8, to score and map."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        begun = time.perf_counter()
        judge(as_tensor(frames[len(times) % len(frames)]))
        times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times)


def as_tensor(frame: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in 0..1, as torchvision's to_tensor."""
    return torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous().float().div(255)


def anomalib_judge(rows: int) -> tuple[str, Callable[[torch.Tensor], object]] | None:
    """anomalib's PatchCore with its own pre-processing; None where it is not installed."""
    try:
        import anomalib
        from anomalib.models import Patchcore
    except ImportError:
        return None
    module = Patchcore(backbone="resnet18", layers=("layer2", "layer3"), pre_trained=False, num_neighbors=9).eval()
    module.model.memory_bank = torch.randn(rows, 384)

    def judge(picture: torch.Tensor) -> object:
        return module.model(module.pre_processor(picture))

    return f"anomalib {anomalib.__version__}", judge


def torch_judge(rows: int) -> Callable[[torch.Tensor], object]:
    """The formulas of profile `anomalib` in eager torch."""
    import timm

    network = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(2, 3)).eval()
    bank = torch.randn(rows, 384)
    mean, deviation = (torch.tensor(v)[None, :, None, None] for v in (MEAN, DEVIATION))
    taps = torch.exp(-(torch.arange(-16, 17) ** 2) / (2 * 4.0**2))
    kernel = (taps / taps.sum())[None, None]

    def judge(picture: torch.Tensor) -> object:
        small = functional.interpolate(picture, (SIZE, SIZE), mode="bilinear", antialias=True)
        pooled = [functional.avg_pool2d(m, 3, 1, 1) for m in network((small - mean) / deviation)]
        height, width = pooled[0].shape[-2:]
        joined = torch.cat([functional.interpolate(p, (height, width), mode="bilinear") for p in pooled], 1)
        patches = joined[0].flatten(1).T
        distance, nearest = torch.cdist(patches, bank).min(1)
        worst = distance.argmax()
        around = torch.cdist(bank[nearest[worst]][None], bank)[0].topk(9, largest=False).indices
        weight = 1 - torch.softmax(torch.cdist(patches[worst][None], bank[around])[0], 0)[0]
        shown = functional.interpolate(distance.reshape(1, 1, height, width), (SIZE, SIZE), mode="nearest")
        padded = functional.pad(shown, (16, 16, 16, 16), mode="reflect")
        blurred = functional.conv2d(functional.conv2d(padded, kernel[:, :, None]), kernel[:, :, :, None])
        return weight * distance[worst], blurred

    return judge


if __name__ == "__main__":
    main()
