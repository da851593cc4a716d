"""What a recipe of thousands of pictures takes in memory and time, under a real limit: `make scale`.

Makes simulated good parts of 256 x 256 px (PNG and JPEG in turn, kept between runs), builds a recipe of them with the
embedded backbone in a process of its own and watches that process.

    make scale                                          10,000 pictures in 4 GB; an hour and more, 25 GB of disk
    make scale SCALE_ARGS="--pictures 700"
    make scale SCALE_ARGS="--images good/ --limit-gb 2"  your parts
    make scale SCALE_ARGS="-- --coreset-ratio 0.02"      anything behind -- goes to `edge-export recipe`

The limit is a memory cgroup (version 2 or 1), which counts the page cache of the scratch files as well and makes the
system give it up; it needs the right to make one (root), and `limit_gb` is null where there is none. Three figures are
told apart: `anonymous_mb`, which only a larger PC could replace; `mapped_mb`, pages of files in this process, which
the system takes back when it needs them; `rss_mb`, both together, as `top` and `time -v` see it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from edge_daemon.artefact.pictures import find_pictures
from edge_daemon.simulation.render import Scene

_WATCH_EVERY_S = 0.1
_GROUPS = (  # folder in which a group can be made, its limit, what it used at most
    (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """A memory cgroup. folder: None where none could be made, and nothing is limited then."""

    folder: Path | None = None
    peak_file: str = ""

    def peak_bytes(self) -> int | None:
        """The most that the group held, page cache included."""
        return int((self.folder / self.peak_file).read_text()) if self.folder else None


def make_limit(limit_bytes: int) -> Limit:
    """A cgroup of that size. It holds what is put into its cgroup.procs."""
    for parent, limit_file, peak_file in _GROUPS:
        folder = parent / f"edge-scale-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / limit_file).exists() and (folder / peak_file).exists():  # a plain folder has neither
            (folder / limit_file).write_text(str(limit_bytes))
            return Limit(folder, peak_file)
        folder.rmdir()
    return Limit()


def make_pictures(folder: Path, count: int) -> None:
    """Good flanges, as many as are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    scene = Scene("flange", (256, 256))
    for index in range(len(find_pictures(folder)), count):
        suffix = (".png", ".jpg")[index % 2]
        pixels = scene.part(seed=11, index=index).pixels
        cv2.imwrite(str(folder / f"{index:06d}{suffix}"), pixels[..., ::-1])


def watch(command: Sequence[str], limit: Limit) -> dict[str, Any]:
    """Run it inside the limit; what it held at most, in MB, and what it printed."""
    joining = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(limit.folder)] if limit.folder else []
    most = {"RssAnon": 0, "RssFile": 0, "VmHWM": 0}
    begun = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen([*joining, *command], stdout=printed)
        while True:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                status = ""
            for line in status.splitlines():
                name, _, value = line.partition(":")
                if name in most:
                    most[name] = max(most[name], int(value.split()[0]))
            try:
                process.wait(_WATCH_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                continue
        printed.seek(0)
        out = printed.read()
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "exit_status": process.returncode,
        "anonymous_mb": most["RssAnon"] // 1024,
        "mapped_mb": most["RssFile"] // 1024,
        "rss_mb": most["VmHWM"] // 1024,
        "recipe": json.loads(out) if process.returncode == 0 else None,
    }


def main() -> int:
    """Exit status 1 when the build failed, which it does when it is killed for memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--images", type=Path, help="good parts of yours instead of simulated ones")
    parser.add_argument("--limit-gb", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path("out/scale"))
    parser.add_argument("more", nargs="*", help="for `edge-export recipe`")
    arguments = parser.parse_args()
    images = arguments.images or arguments.out / f"flanges-{arguments.pictures}"
    if arguments.images is None:
        make_pictures(images, arguments.pictures)
    recipe = arguments.out / "scale.recipe"
    command = [sys.executable, "-m", "export.cli", "recipe", "--name", "scale", "--images", str(images)]
    limit = make_limit(int(arguments.limit_gb * 1e9))
    try:
        found = watch([*command, "--out", str(recipe), "--json", "--progress", *arguments.more], limit)
        peak = limit.peak_bytes()
    finally:
        if limit.folder:
            limit.folder.rmdir()
    found |= {
        "limit_gb": arguments.limit_gb if limit.folder else None,
        "with_page_cache_mb": None if peak is None else peak >> 20,
    }
    (arguments.out / "scale.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key != "recipe"}))
    return 0 if found["exit_status"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
