"""The daemon beside anomalib's PatchCore, or beside torch written from the formulas: one JSON object.

Frames per second from decoded frames to verdicts, the daemon's with journal and publishing (`edge-daemon bench`), the
other's alone and in a loop, with a ResNet-18, 256 x 256, the first recipe's number of rows. The other is measured
before and after each recipe; the ratio is taken to the mean of both.

    .venv/bin/python -m tests.bench.beside --recipes r18.recipe r18_int8.recipe small96.recipe --images good/
    .venv/bin/python -m tests.bench.beside ... --python other/bin/python     an environment that has anomalib

How to make such an environment: README of anomalib; with torch for CPUs, install torchvision with --no-deps.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_daemon.threads import set_thread_environment

set_thread_environment()

from edge_daemon.artefact.pictures import find_pictures, read_picture  # noqa: E402
from edge_daemon.artefact.recipe import load_recipe  # noqa: E402
from edge_daemon.bench import BenchRequest, bench  # noqa: E402
from edge_daemon.threads import physical_cores  # noqa: E402

REFERENCE = Path(__file__).with_name("reference.py")


class Reference:
    """The other implementation, in a process of its own; made by `running`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.name = str(self._answer()["name"])

    @classmethod
    @contextmanager
    def running(cls, python: Path, rows: int, frame: tuple[int, int]) -> Iterator["Reference"]:
        command = [str(python), "-W", "ignore", str(REFERENCE), *map(str, (rows, *frame, physical_cores()))]
        # The pools of torch may spin as they do everywhere: what is set for the daemon is not set for others.
        ours = ("OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT", "PYTHONPATH")
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=REFERENCE.parent
        )
        try:
            yield cls(process)
        finally:
            process.communicate()

    def ms(self, seconds: float) -> float:
        """Median milliseconds a picture."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return float(self._answer()["ms"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries greet on standard output
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError("the reference ended; what it wrote stands above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=Path, required=True, help="good parts: the hard case for the search")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="of an environment with anomalib")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    arguments = parser.parse_args()
    figures = beside(arguments.recipes, arguments.images, arguments.python, arguments.rounds, arguments.seconds)
    print(json.dumps(figures, indent=1))


def beside(recipes: Sequence[Path], images: Path, python: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Frames per second of the daemon with each recipe, of the reference, and their ratios."""
    rows = load_recipe(recipes[0].absolute()).bank.shape[0]
    height, width = read_picture(find_pictures(images)[0]).shape[:2]
    found = []
    with Reference.running(python, rows, (height, width)) as reference:
        before_ms = reference.ms(seconds)
        for recipe in recipes:
            figures = bench(BenchRequest(recipe, images, rounds=rounds, seconds=seconds))
            after_ms = reference.ms(seconds)
            reference_ms = (before_ms + after_ms) / 2
            before_ms = after_ms
            found.append(
                {
                    "recipe": recipe.name,
                    "precision": figures["precision"],
                    "rows": figures["recipe"]["rows"],
                    "dim": figures["recipe"]["dim"],
                    "end_to_end_fps": figures["end_to_end_fps"],
                    "reference_fps": round(1e3 / reference_ms, 2),
                    "ratio": round(figures["end_to_end_fps"] * reference_ms / 1e3, 2),
                }
            )
        return {"reference": reference.name, "rows": rows, "frame": [width, height], "recipes": found}


if __name__ == "__main__":
    main()
