"""From a folder of good pictures to model inputs: read once, checked, blocks named, copies found."""

import errno
import hashlib
import math
import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge_daemon.artefact.pictures import find_pictures, read_picture
from edge_daemon.core.conformal import name_blocks
from edge_daemon.detectors.base import Prepared
from edge_daemon.errors import NotLocatedError, PictureError
from export.errors import ExportError, PicturesError
from export.likeness import LOOK_VALUES, THUMBNAIL_VALUES, look, near_copies, noise_of, shrunk, thumbnail

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""`with progress("reading", total) as advance: advance(done_now)`."""

IN_MEMORY_BYTES = 256 << 20  # larger arrays go to a file beside the recipe
EVERY_PICTURE_A_PART = "1"
"""Block expression by which the engineer says so: pictures that differ in noise only are then different parts."""
_SHOWN = 10
_PAUSES_PER_RELEASE = 4  # blocks of 25 MB at 1,536 dimensions


@dataclass(frozen=True, slots=True)
class Gathered:
    """The pictures that make a recipe, in the order of their names.

    paths, names: names are relative to the folder; blocks: what belongs together and stays on one side of the
    split; inputs: (n, T, H, W, 3) uint8 at model size, T tiles of each, 1 where they are not cut; digests: SHA-256 of
    each; frame_size: width, height of all; skipped: messages of files left out: unreadable ones, and those in which
    the part is not located; copies: pictures that are bit-identical, at model size, to an
    earlier one; near_copies: pictures that differ from an earlier one in noise only; grey: pictures of one channel;
    looks: (n, 768) uint8, `likeness.look` of each.
    """

    paths: list[Path]
    names: list[str]
    blocks: list[str]
    inputs: NDArray[np.uint8]
    digests: list[str]
    frame_size: tuple[int, int]
    skipped: list[str]
    copies: int
    near_copies: int = 0
    grey: int = 0
    looks: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, LOOK_VALUES), np.uint8))

    def picture(self, index: int) -> NDArray[np.uint8]:
        """(T, H, W, 3) uint8, a copy, so that the scratch file's page need not stay in memory."""
        copy = np.array(self.inputs[index])
        releasing(self.inputs, every=1)()
        return copy

    def indices(self, blocks: Sequence[str]) -> NDArray[np.int64]:
        """Pictures of these blocks."""
        wanted = set(blocks)
        return np.array([i for i, block in enumerate(self.blocks) if block in wanted], np.int64)


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of the folder. Raises PicturesError when there are none."""
    try:
        paths = find_pictures(folder)
    except PictureError as exc:
        raise PicturesError(str(exc)) from exc
    if not paths:
        raise PicturesError(f"{folder} holds no pictures (PNG, JPEG, BMP or TIFF): give the folder of the good parts")
    return paths


def first_frame_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Width and height of the first picture that can be read. Raises PicturesError when none can."""
    for path in paths:
        try:
            pixels = read_picture(path)
        except PictureError:
            continue
        return pixels.shape[1], pixels.shape[0]
    raise PicturesError(f"none of the {len(paths)} pictures can be read (first: {paths[0]})")


def gather(
    folder: Path,
    paths: Sequence[Path],
    prepare: Callable[[NDArray[np.uint8]], Prepared],
    shape: tuple[int, int, int, int],
    block: str | None,
    skip_unreadable: bool,
    scratch: Path,
    progress: Progress,
) -> Gathered:
    """Read every picture once. prepare: full frame -> model inputs; shape: (T, H, W, 3) of those.

    Raises PicturesError that lists every file that cannot be read or in which the part is not located (unless they
    are to be skipped), or the sizes when they are not all the same.
    """
    frame_size = first_frame_size(paths)
    inputs = large_array((len(paths), *shape), np.uint8, scratch)
    give_back = releasing(inputs)
    taken: list[Path] = []
    digests: list[str] = []
    small = np.empty((len(paths), THUMBNAIL_VALUES), np.float32)
    looks = np.empty((len(paths), LOOK_VALUES), np.uint8)
    unreadable: list[str] = []
    not_located: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    grey = 0
    with progress("reading", len(paths)) as advance:
        for path in paths:
            try:
                pixels = read_picture(path)
            except PictureError as exc:
                unreadable.append(str(exc))
                advance(1)
                continue
            found = pixels.shape[1], pixels.shape[0]
            sizes[found] += 1
            if found == frame_size:
                try:
                    inputs[len(taken)] = prepare(pixels).inputs
                except NotLocatedError:
                    not_located.append(path.relative_to(folder).as_posix())
                    advance(1)
                    continue
                digests.append(hashlib.sha256(np.ascontiguousarray(inputs[len(taken)]).data).hexdigest())
                tiny = shrunk(inputs[len(taken)])
                small[len(taken)], looks[len(taken)] = thumbnail(tiny), look(tiny)
                taken.append(path)
                grey += pixels.ndim == 2
                give_back()
            advance(1)
    if unreadable and not skip_unreadable:
        raise PicturesError(_list_of("cannot be read (leave them out with --skip-unreadable)", unreadable))
    if not_located and not skip_unreadable:
        what = (
            "show no part where --align looks for it, or what is judged of it reaches beyond the picture. The line "
            "would call such parts NotDecidable: widen --align-shift or --align-rotation, choose another rectangle or "
            "a smaller --roi, or leave them out with --skip-unreadable"
        )
        raise PicturesError(_list_of(what, not_located))
    if not taken and not_located:
        raise PicturesError(f"the part is located in none of the {len(not_located)} pictures of {folder}")
    if len(sizes) > 1:
        kinds = ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes.most_common(5))
        raise PicturesError(
            f"the pictures in {folder} are of different sizes ({kinds}): a recipe judges frames of one size; "
            "make one recipe for each, or export the pictures at one size"
        )
    names = [path.relative_to(folder).as_posix() for path in taken]
    inputs = inputs[: len(taken)]
    likeness = near_copies(small[: len(taken)], noise_of(math.prod(shape[:3])))
    blocks = _join(name_blocks(names, block), digests)
    if block != EVERY_PICTURE_A_PART:
        blocks = _join(blocks, likeness.tolist())
    copies = len(digests) - len(set(digests))
    near = len(digests) - len(np.unique(likeness)) - copies
    skipped = [*unreadable, *(f"{name}: the part is not located" for name in not_located)]
    return Gathered(
        taken, names, blocks, inputs, digests, frame_size, skipped, copies, max(near, 0), grey, looks[: len(taken)]
    )


def large_array(shape: tuple[int, ...], dtype: DTypeLike, scratch: Path) -> NDArray[Any]:
    """An array in memory, or in an unnamed file in the folder `scratch` when it is large.

    The file's space is reserved first: writing to a mapped file on a full disk would kill the process.
    Raises ExportError when there is no space.
    """
    count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if count <= IN_MEMORY_BYTES:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:
            os.posix_fallocate(file.fileno(), 0, count)
            return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
    except OSError as exc:
        reason = "is full" if exc.errno == errno.ENOSPC else f"cannot be used ({exc.strerror})"
        raise ExportError(
            f"{count / 1e9:.1f} GB of scratch space are needed, but {scratch} {reason}: make room there, or set "
            "TMPDIR to a folder on a larger disk"
        ) from exc


def releasing(array: NDArray[Any], every: int = _PAUSES_PER_RELEASE) -> Callable[[], None]:
    """A call that gives the pages of an array in a scratch file back every few times; nothing for one in memory.

    Mapped pages count as the process's memory until then, though the file holds what is in them. Where single
    rows are picked out of the file, give them back every time: the system maps 64 KB around each of them, 256 MB
    for 4,096 rows of 1.5 KB.
    """
    mapped = getattr(array, "_mmap", None)
    if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):
        return lambda: None
    calls = 0

    def give_back() -> None:
        nonlocal calls
        calls += 1
        if calls % every == 0:
            mapped.madvise(mmap.MADV_DONTNEED)

    return give_back


def _join(blocks: list[str], looks: Sequence[Hashable]) -> list[str]:
    """Blocks that hold copies of one picture become one: a copy on both sides would be calibrated on itself.

    looks: equal for pictures that are copies of each other.
    """
    parent = {block: block for block in blocks}

    def root(block: str) -> str:
        while parent[block] != block:
            parent[block] = parent[parent[block]]
            block = parent[block]
        return block

    first: dict[Hashable, str] = {}
    for block, found in zip(blocks, looks, strict=True):
        known = root(first.setdefault(found, block))
        parent[root(block)] = known
    return [root(block) for block in blocks]


def _list_of(what: str, problems: Sequence[str]) -> str:
    lines = [f"{len(problems)} picture{'s' if len(problems) > 1 else ''} {what}:", *problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"... and {len(problems) - _SHOWN} more")
    return "\n  ".join(lines)
