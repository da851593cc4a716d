"""Does the daemon's memory stand still over ten thousand parts, and is it as small as promised: one JSON object.

The daemon judges preloaded pictures as fast as it can, journal, publishing and pictures included. Its resident
memory is read as the results arrive. `slope_bytes_per_part` is a straight line through what came after the first
parts, in which every cache and memory of bounded size fills; a leak of one small object per part shows in it.
Exit status 1 when memory grows, or is above 300 MB and 1.2 times the bank (the bench's own pictures aside).

    make soak SOAK_ARGS="--recipe bottle.recipe --images good/"
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edge_daemon.artefact.pictures import find_pictures, read_picture
from edge_daemon.artefact.recipe import load_recipe
from tests.daemon import DaemonProcess, receive

CONFIG = """
line = "soak"
[cameras.top]
kind = "folder"
path = "{images}"
loop = true
preload = true
[stations.st1]
trigger = "free_run"
deadline_ms = 5000
views = [{{ camera = "top", recipe = "{recipe}" }}]
[stations.st1.images]
publish = "always"
"""

# The journal remembers its last 8,192 outcomes; by then everything else that fills has been full for long.
WARM_UP_PARTS = 8_500
READ_EVERY = 100
ALLOWED_BASE_MB, ALLOWED_PER_BANK = 300, 1.2
# Below what one leaked object would take: an empty dict has 64 bytes, an inspection some 3,000.
ALLOWED_SLOPE_BYTES = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="good parts")
    parser.add_argument("--parts", type=int, default=10_000, help="counted after the warm-up")
    parser.add_argument("--warm-up", type=int, default=WARM_UP_PARTS, help="parts before the first one that counts")
    arguments = parser.parse_args()
    figures = soak(arguments.recipe, arguments.images, arguments.parts, arguments.warm_up)
    print(json.dumps(figures, indent=1))
    return 0 if figures["stands_still"] and figures["small_enough"] else 1


def soak(recipe: Path, images: Path, parts: int, warm_up: int) -> dict[str, object]:
    """Resident memory of a daemon over `parts` parts after `warm_up`; megabytes are 10⁶ bytes."""
    bank_mb = load_recipe(recipe.absolute()).bank.nbytes / 1e6
    preloaded_mb = sum(read_picture(path).nbytes for path in find_pictures(images)) / 1e6
    config = CONFIG.format(images=images.absolute(), recipe=recipe.absolute())
    read: list[tuple[int, int]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-soak-")))
        daemon = stack.enter_context(DaemonProcess(folder, config, lambda s: s["stations"]["st1"]["last_seq"] > 0))
        assert daemon.process is not None
        results = stack.enter_context(daemon.subscriber())
        receive(results, warm_up)
        for done in range(0, parts, READ_EVERY):
            receive(results, READ_EVERY)
            read.append((done + READ_EVERY, rss_bytes(daemon.process.pid)))
        counters = daemon.status()["stations"]["st1"]["counters"]
    slope = slope_bytes(read)
    largest_mb = max(size for _, size in read) / 1e6
    allowed_mb = ALLOWED_BASE_MB + ALLOWED_PER_BANK * bank_mb
    return {
        "parts": parts,
        "warm_up_parts": warm_up,
        "rss_mb": round(largest_mb, 1),
        "bank_mb": round(bank_mb, 1),
        "preloaded_mb": round(preloaded_mb, 1),
        "allowed_mb": round(allowed_mb, 1),
        "small_enough": largest_mb - preloaded_mb <= allowed_mb,
        "slope_bytes_per_part": round(slope, 2),
        "stands_still": slope <= ALLOWED_SLOPE_BYTES,
        "counters": counters,
        "read_mb": [round(size / 1e6, 2) for _, size in read],
    }


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS:"))) * 1024


def slope_bytes(read: list[tuple[int, int]]) -> float:
    """Bytes a part: the straight line of least squares through (parts, bytes). 0 for fewer than two points."""
    if len(read) < 2:
        return 0.0
    parts, sizes = np.array(read, np.float64).T
    return float(np.polyfit(parts, sizes, 1)[0])


if __name__ == "__main__":
    sys.exit(main())
