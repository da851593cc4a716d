"""The pictures of a distillation: found, checked, split, augmented, batched ahead of the training."""

import hashlib
import math
import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edge_daemon.artefact.pictures import find_pictures, read_picture
from edge_daemon.errors import PictureError
from export.errors import PicturesError
from export.torch.procedural import Procedural

# Steps of the stream from which the channel statistics are taken; no training gets there.
STATISTICS_STEP = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Photographs:
    """A folder of photographs, split for good.

    learn, held_out: files in the order of their names
    sha256:          digest of relative names and byte sizes of all of them
    """

    folder: Path
    learn: tuple[Path, ...]
    held_out: tuple[Path, ...]
    sha256: str

    @property
    def count(self) -> int:
        return len(self.learn) + len(self.held_out)


def find_photographs(folder: Path, held_out: float) -> Photographs:
    """All pictures below a folder; the share `held_out` of them, chosen by a digest of the name, is never
    learned from, so that adding pictures moves none across. Raises PicturesError, PictureError."""
    files = find_pictures(folder)
    names = [path.relative_to(folder).as_posix() for path in files]
    listing = hashlib.sha256()
    for name, path in zip(names, files, strict=True):
        listing.update(f"{name}\0{path.stat().st_size}\n".encode())
    apart = {name for name in names if int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) < held_out * 2**32}
    learn = tuple(path for name, path in zip(names, files, strict=True) if name not in apart)
    if not learn:
        raise PicturesError(
            f"no pictures to learn from below {folder}: give a folder of PNG, JPEG, BMP or TIFF photographs"
        )
    return Photographs(
        folder, learn, tuple(p for n, p in zip(names, files, strict=True) if n in apart), listing.hexdigest()
    )


def check_readable(photographs: Photographs, workers: int, progress: bool) -> None:
    """Decode every file once, before hours are spent. Raises PicturesError naming those that cannot be read."""

    def complaint(path: Path) -> str:
        try:
            read_picture(path)
        except PictureError as exc:
            return str(exc)
        return ""

    files = [*photographs.learn, *photographs.held_out]
    with ThreadPoolExecutor(workers, "check") as pool:
        answers = tqdm(
            pool.map(complaint, files), total=len(files), desc="checking", unit="picture", disable=not progress
        )
        bad = [answer for answer in answers if answer]
    if bad:
        shown = "\n  ".join(bad[:5])
        raise PicturesError(
            f"{len(bad)} of {len(files)} pictures cannot be used; remove them and start again:\n  {shown}"
        )


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """A photograph as (H, W, 3) uint8 RGB. Raises PictureError."""
    pixels = read_picture(path)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def centre_view(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The middle of a picture, (size, size, 3): short side resized to `size`, nothing random."""
    h, w = picture.shape[:2]
    scale = size / min(h, w)
    resized = cv2.resize(
        picture,
        (max(size, round(w * scale)), max(size, round(h * scale))),
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
    )
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    return np.asarray(resized[top : top + size, left : left + size], np.uint8)


def augment(picture: NDArray[np.uint8], size: int, rng: random.Random) -> NDArray[np.uint8]:
    """One random view of a picture as a part could look: any rotation, scale, grey, light and noise.

    picture: (H, W, 3) uint8 RGB; returns (size, size, 3) uint8. One affine warp with mirrored borders.
    """
    view = _warp(picture, size, rng)
    if rng.random() < 0.3:
        view = np.asarray(cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    out = view.astype(np.float32)
    if rng.random() < 0.7:
        gain = np.float32(math.exp(rng.uniform(-0.4, 0.4)))
        tint = np.array([math.exp(rng.uniform(-0.1, 0.1)) for _ in range(3)], np.float32)
        out = (out - 128) * gain * tint + 128 + rng.uniform(-40, 40)
    if rng.random() < 0.2:
        noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(out.shape, np.float32)
        out += noise * rng.uniform(1, 8)
    if rng.random() < 0.1:
        out = np.asarray(cv2.GaussianBlur(out, (0, 0), rng.uniform(0.4, 1.2)), np.float32)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _warp(picture: NDArray[np.uint8], size: int, rng: random.Random) -> NDArray[np.uint8]:
    h, w = picture.shape[:2]
    scale = size / min(h, w) * math.exp(rng.uniform(math.log(0.8), math.log(2.0)))
    angle = rng.choice((0.0, 90.0, 180.0, 270.0)) if rng.random() < 0.6 else rng.uniform(0, 360)
    half = size / 2 / scale
    cx = rng.uniform(min(half, w / 2), max(w - half, w / 2))
    cy = rng.uniform(min(half, h / 2), max(h - half, h / 2))
    matrix = np.asarray(cv2.getRotationMatrix2D((cx, cy), angle, scale), np.float64)
    matrix[:, 2] += np.array([size / 2 - cx, size / 2 - cy])
    if rng.random() < 0.5:
        matrix[0] = -matrix[0]
        matrix[0, 2] += size - 1
    if scale < 0.7:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.4 / scale), np.uint8)
    view = cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(view, np.uint8)


class Batches:
    """Endless stream of augmented batches, each a function of (files, seed, sizes, procedural share, step)
    alone, so that a resumed run sees the pictures it would have seen. `workers` threads work ahead, two
    batches each. procedural: share of the pictures that are made by rule instead of read, 0 to 1."""

    def __init__(
        self,
        files: Sequence[Path],
        *,
        seed: int,
        batch: int,
        sizes_px: Sequence[int],
        first_step: int,
        workers: int = 1,
        procedural: float = 0.0,
    ) -> None:
        self.files = files
        self.procedural = procedural
        self._made = Procedural() if procedural > 0 else None
        self.seed = seed
        self.batch = batch
        self.sizes_px = sizes_px
        self._step = first_step
        self._pool = ThreadPoolExecutor(workers, "batches")
        self._ahead: deque[Future[NDArray[np.uint8]]] = deque()
        self._depth = 2 * workers

    def make(self, step: int) -> NDArray[np.uint8]:
        """The batch of one step, (N, size, size, 3) uint8 RGB. Raises PictureError."""
        rng = random.Random(f"{self.seed}/{step}")
        size = rng.choice(self.sizes_px)
        return np.stack([augment(self._picture(rng), size, rng) for _ in range(self.batch)])

    def _picture(self, rng: random.Random) -> NDArray[np.uint8]:
        # Without a share nothing is drawn here: the stream stays that of runs that know photographs alone.
        if self._made is not None and rng.random() < self.procedural:
            return self._made.picture(rng)
        return read_rgb(rng.choice(self.files))

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        while True:
            while len(self._ahead) < self._depth:
                self._ahead.append(self._pool.submit(self.make, self._step))
                self._step += 1
            yield self._ahead.popleft().result()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def default_workers() -> int:
    """Threads that decode and augment: half of the processors, the other half computes."""
    return max(1, (os.cpu_count() or 2) // 2)
