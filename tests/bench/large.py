"""A picture of 8000x2000 pixels in tiles with the embedded backbone: built and judged, and the memory that takes.

python -m tests.bench.large [--pictures 2] [--size 8000x2000] [--scale 1]
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.pictures import encode_png, read_picture
from edge_daemon.detectors.base import judge_picture
from edge_daemon.detectors.loading import load_verified
from edge_daemon.engines.sessions import EngineOptions, Sessions
from edge_daemon.threads import physical_cores
from export.build import RecipeRequest, build_recipe
from export.view import ViewOptions

LIMIT_MB = 2000


def web(index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A woven web under slightly uneven light, (H, W) uint8, otherwise for each index."""
    draw = np.random.default_rng([3, index])
    x = np.arange(size[0], dtype=np.float32) + draw.uniform(0, 16)
    y = (np.arange(size[1], dtype=np.float32) + draw.uniform(0, 16))[:, None]
    threads = 24 * np.sin(x * (np.pi / 8)) * np.sin(y * (np.pi / 8))
    noise = np.asarray(cv2.randn(np.empty((size[1], size[0]), np.float32), 0, 4))
    return np.asarray(np.clip(128 + threads + noise + 6 * np.sin(x / size[0]), 0, 255), np.uint8)


def peak_mb() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def silent(_what: str, _total: int) -> Iterator[Callable[[int], None]]:
    yield lambda _done: None


def measure(size: tuple[int, int], scale: float, pictures: int, rows: int) -> dict[str, object]:
    """Seconds and megabytes of building a provisional recipe, and of judging a picture with one defect."""
    cv2.setRNGSeed(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "good").mkdir()
        for index in range(pictures):
            (folder / "good" / f"{index}.png").write_bytes(encode_png(web(index, size)))
        options = ViewOptions(scale=scale)
        cells = round(size[0] * scale / 8) * round(size[1] * scale / 8)
        request = RecipeRequest(
            name="web",
            images=folder / "good",
            out=folder / "web.recipe",
            created_utc="",
            version="1",
            provisional=True,
            coreset_ratio=rows / (cells * pictures),
            look=options,
            engine=EngineOptions(intra_op_threads=physical_cores()),
        )
        begun = time.perf_counter()
        build_recipe(request, silent)
        built_s, built_mb = time.perf_counter() - begun, peak_mb()
        ready = load_verified(folder / "web.recipe", Sessions(request.engine))
        spoiled = read_picture(folder / "good" / "0.png").copy()
        x, y = size[0] * 5 // 8, size[1] // 2
        spoiled[y : y + 60, x : x + 60] = 20
        begun = time.perf_counter()
        evidence = judge_picture(ready.detector, spoiled)
        judged_s = time.perf_counter() - begun
        found = any(b.x < x + 60 and x < b.x + b.w and b.y < y + 60 and y < b.y + b.h for b in evidence.boxes)
        tiling = ready.recipe.manifest.tiling
        return {
            "size": size,
            "scale": scale,
            "tiles": 1 if tiling is None else len(tiling.tiles()),
            "patches": cells,
            "bank_rows": len(ready.recipe.bank),
            "build_s": round(built_s, 1),
            "build_peak_mb": round(built_mb),
            "judge_s": round(judged_s, 2),
            "peak_mb": round(peak_mb()),
            "score_over_threshold": round(evidence.score / ready.detector.thresholds.lower, 2),
            "defect_found": found,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="8000x2000", help="width x height of the pictures (default 8000x2000)")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2000, help="of the bank (default 2000)")
    arguments = parser.parse_args()
    width, height = (int(side) for side in arguments.size.split("x"))
    found = measure((width, height), arguments.scale, arguments.pictures, arguments.rows)
    print(json.dumps(found))
    if found["peak_mb"] > LIMIT_MB or not found["defect_found"]:  # type: ignore[operator]
        print(f"FAILED: more than {LIMIT_MB} MB, or the defect was not found")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
