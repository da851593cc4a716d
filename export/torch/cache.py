"""A teacher's features, computed once and kept on disk, so that a student may see each picture many times.

A large teacher costs several times what a step of the student costs. A cache holds a fixed list of augmented
pictures with what the teacher says of them; the training then reads instead of asking. The files ("shards")
are written whole, one after the other, so that filling goes on where it was stopped, or killed; each is a
function of what `cache.json` states and of its number.
"""

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor
from tqdm import tqdm

from export.errors import BackboneError, ExportError
from export.make_backbone import write_whole
from export.torch.photographs import Batches
from export.torch.teacher import Teacher

CACHE_SCHEMA = "edge-daemon/teacher-cache/1"
SHARD_PICTURES = 64
# Shards that are mixed before batches are cut: 256 pictures of one size, some 150 MB at 256 pixels.
MIXED_SHARDS = 4
_ASKED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Shard:
    """Pictures of one size and the teacher's two layers for them.

    pictures: (N, S, S, 3) uint8 RGB;  layers: two (N, h, w, C) float16, in the teacher's own units
    """

    pictures: NDArray[np.uint8]
    layers: tuple[NDArray[np.float16], NDArray[np.float16]]


class TeacherCache:
    """A folder of shards: opened or begun by the constructor, filled by `fill`, read by `batches`."""

    def __init__(self, folder: Path, identity: dict[str, Any], sizes_px: tuple[int, ...], seed: int, pictures: int):
        """identity: what makes the contents, besides the number of a shard; pictures: how many, rounded up to
        whole shards, one of each size at least. Raises ExportError when the folder holds another cache or
        cannot be written."""
        if pictures < 1:
            raise ExportError(f"a cache holds 1 picture or more, {pictures} were asked for")
        self.folder = folder
        self.sizes_px = sizes_px
        self.seed = seed
        self.count = max(-(-pictures // SHARD_PICTURES), len(sizes_px))
        self._check({"schema": CACHE_SCHEMA, **identity})

    def _check(self, now: dict[str, Any]) -> None:
        path = self.folder / "cache.json"
        try:
            if not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                if any(self.folder.iterdir()):
                    raise ExportError(f"{self.folder} is neither empty nor a cache: name another --cache")
                write_whole(path, (json.dumps(now, indent=2) + "\n").encode())
            before = json.loads(path.read_text())
        except (OSError, ValueError) as exc:
            raise ExportError(f"{path} cannot be used ({exc}): name another --cache, or remove it") from exc
        keys = before.keys() | now.keys() if isinstance(before, dict) else set()
        changed = [
            f"{key} was {before.get(key, 'not stated')}, is {now.get(key, 'not stated')}"
            for key in sorted(keys)
            if before.get(key) != now.get(key)
        ]
        if changed or not keys:
            raise ExportError(
                f"{self.folder} holds another cache: {'; '.join(changed) or 'unreadable'}. Name another --cache, or "
                "remove it"
            )

    @property
    def pictures(self) -> int:
        return self.count * SHARD_PICTURES

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def size_px(self, number: int) -> int:
        """Every shard has one size, and every size its share: in turn."""
        return self.sizes_px[number % len(self.sizes_px)]

    def missing(self) -> list[int]:
        return [number for number in range(self.count) if not self.path(number).exists()]

    def fill(
        self,
        teacher: Teacher,
        source: Callable[[int], Batches],
        *,
        progress: bool = True,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Ask the teacher for every shard that is missing; True when all are there, False when `stop` said so.

        source: for one size, batches of SHARD_PICTURES pictures as a function of their step
        Raises ExportError when a shard cannot be written, BackboneError when the teacher cannot be kept.
        """
        missing = self.missing()
        if not missing:
            return True
        makers = {size: source(size) for size in self.sizes_px}
        bar = tqdm(
            total=self.pictures,
            initial=self.pictures - len(missing) * SHARD_PICTURES,
            unit="picture",
            desc="asking the teacher",
            disable=not progress,
            mininterval=2,
        )
        with bar, ThreadPoolExecutor(1, "cache") as ahead:
            coming = [ahead.submit(makers[self.size_px(n)].make, n) for n in missing[:1]]
            for place, number in enumerate(missing):
                pictures = coming.pop().result()
                if stop():
                    return False
                coming = [ahead.submit(makers[self.size_px(n)].make, n) for n in missing[place + 1 : place + 2]]
                self._write(number, pictures, teacher)
                bar.update(len(pictures))
        return True

    def _write(self, number: int, pictures: NDArray[np.uint8], teacher: Teacher) -> None:
        answers = [teacher(pictures[i : i + _ASKED_AT_ONCE]) for i in range(0, len(pictures), _ASKED_AT_ONCE)]
        # safetensors writes an array's memory as it lies, whatever its strides say.
        a, b = (
            np.ascontiguousarray(torch.cat(layer).half().permute(0, 2, 3, 1).cpu().numpy())
            for layer in zip(*answers, strict=True)
        )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise BackboneError("the teacher's features leave the range of 16-bit numbers: train without --cache")
        try:
            write_whole(self.path(number), save({"pictures": pictures, "a": a, "b": b}))
        except OSError as exc:
            raise ExportError(
                f"{self.path(number)} cannot be written ({exc.strerror or exc}): make room and start the same "
                "command again"
            ) from exc

    def read(self, number: int) -> Shard:
        """One shard, checked. Raises ExportError naming the file."""
        path = self.path(number)
        try:
            tensors = load_file(path)
            shard = Shard(tensors["pictures"], (tensors["a"], tensors["b"]))
        except (OSError, KeyError, SafetensorError) as exc:
            raise ExportError(f"{path} cannot be read ({exc}): remove it and start the same command again") from exc
        side = self.size_px(number)
        if shard.pictures.shape != (SHARD_PICTURES, side, side, 3) or any(
            len(layer) != SHARD_PICTURES for layer in shard.layers
        ):
            raise ExportError(f"{path} is no shard of this cache: remove it and start the same command again")
        return shard

    def batches(self, batch: int, first_step: int) -> Iterator[tuple[NDArray[np.uint8], tuple[Tensor, Tensor]]]:
        """Endless epochs: pictures and float32 features of one size, a function of the step, from `first_step` on.

        Each epoch draws anew which shards of a size are mixed, and the order of their pictures; what is left
        over by whole batches is not seen in that epoch. Raises ExportError when a shard cannot be read.
        """
        step, epoch = 0, 0
        while True:
            for group in self._groups(epoch):
                whole = len(group) * SHARD_PICTURES // batch
                if step + whole > first_step:
                    yield from self._mixed(group, batch, epoch, max(0, first_step - step))
                step += whole
            epoch += 1

    def _groups(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed}/epoch {epoch}")
        groups: list[list[int]] = []
        for turn in range(len(self.sizes_px)):
            numbers = list(range(turn, self.count, len(self.sizes_px)))
            rng.shuffle(numbers)
            groups += [numbers[i : i + MIXED_SHARDS] for i in range(0, len(numbers), MIXED_SHARDS)]
        rng.shuffle(groups)
        return groups

    def _mixed(
        self, group: list[int], batch: int, epoch: int, skipped: int
    ) -> Iterator[tuple[NDArray[np.uint8], tuple[Tensor, Tensor]]]:
        shards = [self.read(number) for number in group]
        pictures = np.concatenate([shard.pictures for shard in shards])
        layers = [np.concatenate([shard.layers[i] for shard in shards]) for i in range(2)]
        order = np.random.default_rng([self.seed, epoch, group[0]]).permutation(len(pictures))
        for start in range(skipped * batch, len(order) // batch * batch, batch):
            rows = order[start : start + batch]
            a, b = (torch.from_numpy(layer[rows]).float().permute(0, 3, 1, 2) for layer in layers)
            yield pictures[rows], (a, b)
