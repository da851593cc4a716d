"""How much of the bare model and search the whole daemon keeps: one JSON object on standard output.

The daemon replays preloaded pictures as fast as it can, journal and publishing included; in turn, in the
same run, before and after, the bare `session.run` and a flat search are timed on the same pictures.
Medians of each round's ratio: the machine's own speed and its load cancel out.

    .venv/bin/python -m tests.bench.line --recipe bottle.recipe --images DIR
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from edge_daemon.threads import set_thread_environment

set_thread_environment()

import faiss  # noqa: E402
import numpy as np  # noqa: E402

from edge_daemon.artefact.pictures import find_pictures, read_picture  # noqa: E402
from edge_daemon.detectors.loading import load_verified  # noqa: E402
from edge_daemon.engines.sessions import EngineOptions, Sessions  # noqa: E402
from edge_daemon.threads import physical_cores  # noqa: E402
from tests.daemon import DaemonProcess, receive  # noqa: E402

CONFIG = """
line = "bench"
[cameras.top]
kind = "folder"
path = "{images}"
loop = true
preload = true
[stations.st1]
trigger = "free_run"
deadline_ms = 5000
idle_check_s = 0
views = [{{ camera = "top", recipe = "{recipe}" }}]
[stations.st1.images]
publish = "never"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="good parts: the hard case for the search")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.recipe, arguments.images, arguments.rounds, arguments.seconds), indent=1))


def measure(recipe: Path, images: Path, rounds: int, seconds: float) -> dict[str, object]:
    """Frames per second of the daemon, of session.run, of search, and their ratios; medians over the rounds."""
    ready = load_verified(recipe.absolute(), Sessions(EngineOptions(intra_op_threads=physical_cores())))
    detector = ready.detector
    pictures = [detector.prepare(read_picture(p)).inputs for p in find_pictures(images)[:32]]
    bank = np.ascontiguousarray(ready.recipe.bank)
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank)
    config = CONFIG.format(images=images.absolute(), recipe=recipe.absolute())
    found: dict[str, list[float]] = {"daemon_ms": [], "session_run_ms": [], "search_ms": []}
    for _ in range(rounds):
        before = bare(detector.extractor, index, pictures, seconds / 2)
        with tempfile.TemporaryDirectory() as folder:
            found["daemon_ms"].append(sustained(Path(folder), config, seconds))
        after = bare(detector.extractor, index, pictures, seconds / 2)
        found["session_run_ms"].append((before[0] + after[0]) / 2)
        found["search_ms"].append((before[1] + after[1]) / 2)
    daemon, run, search = (statistics.median(found[k]) for k in ("daemon_ms", "session_run_ms", "search_ms"))
    each = list(zip(found["session_run_ms"], found["search_ms"], found["daemon_ms"], strict=True))
    return {
        "rows": len(bank),
        "dim": bank.shape[1],
        "daemon_fps": 1e3 / daemon,
        "session_run_fps": 1e3 / run,
        "search_ms": search,
        "ratio_to_session_run_plus_search": statistics.median((r + s) / d for r, s, d in each),
        "ratio_to_session_run": statistics.median(r / d for r, _, d in each),
        "rounds": found,
    }


def bare(extractor: object, index: object, pictures: list[np.ndarray], seconds: float) -> tuple[float, float]:
    """Median milliseconds of session.run and of the flat search, alternating as in the daemon."""
    runs, searches = [], []
    until = time.perf_counter() + seconds
    turn = 0
    while time.perf_counter() < until:
        begun = time.perf_counter()
        features = extractor.extract(pictures[turn % len(pictures)])  # type: ignore[attr-defined]
        middle = time.perf_counter()
        index.search(features.reshape(-1, features.shape[-1]), 1)  # type: ignore[attr-defined]
        runs.append((middle - begun) * 1e3)
        searches.append((time.perf_counter() - middle) * 1e3)
        turn += 1
    return statistics.median(runs), statistics.median(searches)


def sustained(folder: Path, config: str, seconds: float) -> float:
    """Milliseconds a part of the daemon at full speed, from the results as they arrive."""
    with DaemonProcess(folder, config, ready=lambda s: s["stations"]["st1"]["last_seq"] > 5) as daemon:
        with daemon.subscriber() as results:
            receive(results, 5)
            begun = time.perf_counter()
            count = 0
            while (elapsed := time.perf_counter() - begun) < seconds:
                receive(results, 1)
                count += 1
        stages = daemon.status()["stages_ms"]
        print(json.dumps({"stages_ms": stages, "ms": elapsed * 1e3 / count}), flush=True)
    return elapsed * 1e3 / count


if __name__ == "__main__":
    main()
