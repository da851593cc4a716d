"""Labelled pictures on disk: which are good, which defective, and where."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.manifest import PreprocessPart, ViewPart
from edge_daemon.artefact.pictures import SUFFIXES, find_pictures, read_picture
from edge_daemon.errors import PictureError
from export.errors import PicturesError

GOOD = "good"

_LAYOUT = "the layout is that of MVTec AD: test/good, test/<defect>, ground_truth/<defect>/<name>_mask.png"


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture. name: relative to the data folder; defect: `good` or the folder's name;
    mask: its ground truth, None where there is none (a good picture needs none)."""

    path: Path
    name: str
    defect: str
    mask: Path | None

    @property
    def defective(self) -> bool:
        return self.defect != GOOD


def find_samples(data: Path) -> list[Sample]:
    """The labelled pictures of a data set, good ones first.

    MVTec layout: DATA/test/good, DATA/test/<defect>, DATA/ground_truth/<defect>/<name>_mask.png. Without
    `test`, DATA itself may hold `good` and the defects; a folder of pictures without sub-folders is all
    good. Raises PicturesError when there is nothing to judge or a label or mask is ambiguous.
    """
    if not data.is_dir():
        raise PicturesError(f"{data} is not a folder; {_LAYOUT}")
    test = data / "test" if (data / "test").is_dir() else data
    folders = sorted(p.name for p in test.iterdir() if p.is_dir() and not p.name.startswith("."))
    labels = [name for name in folders if name not in ("ground_truth", "train")]
    loose = find_pictures(test, recursive=False)
    if labels and loose:
        raise PicturesError(f"{test} holds {loose[0].name} beside the folders {', '.join(labels[:6])}; {_LAYOUT}")
    if labels and GOOD not in labels:
        raise PicturesError(f"{test} has no folder `{GOOD}` beside {', '.join(labels[:6])}; {_LAYOUT}")
    samples = [Sample(path, path.relative_to(data).as_posix(), GOOD, None) for path in loose]
    truth = _truth_folder(data)
    for label in sorted(labels, key=lambda name: (name != GOOD, name)):
        samples += _samples_of(data, test / label, None if truth is None else truth / label)
    if not samples:
        raise PicturesError(f"{test} holds no pictures ({', '.join(sorted(SUFFIXES))}); {_LAYOUT}")
    return samples


def _truth_folder(data: Path) -> Path | None:
    return data / "ground_truth" if (data / "ground_truth").is_dir() else None


def _samples_of(data: Path, folder: Path, truth: Path | None) -> list[Sample]:
    masks: dict[str, list[Path]] = {}
    if folder.name != GOOD and truth is not None and truth.is_dir():
        for path in find_pictures(truth):
            masks.setdefault(path.stem.removesuffix("_mask"), []).append(path)
    samples = []
    for path in find_pictures(folder):
        found = masks.get(path.stem, [])
        if len(found) > 1:
            names = " and ".join(p.name for p in found[:2])
            raise PicturesError(f"{path.relative_to(data)} has more than one mask: {names}; keep one of them")
        name = path.relative_to(data).as_posix()
        samples.append(Sample(path, name, folder.name, found[0] if found else None))
    return samples


def read_mask(sample: Sample, frame_shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Ground truth of one picture in full-frame pixels, (H, W) bool; nothing is marked without a mask.

    Marked is whatever is not zero (in a JPEG: above half, for its ringing). Raises PictureError when the
    mask cannot be read or is not of the picture's size.
    """
    if sample.mask is None:
        return np.zeros(frame_shape[:2], bool)
    mask = read_picture(sample.mask)
    if mask.shape[:2] != frame_shape[:2]:
        raise PictureError(
            f"{sample.mask}: the mask is {mask.shape[1]}x{mask.shape[0]} px, "
            f"its picture {frame_shape[1]}x{frame_shape[0]} px"
        )
    grey = mask if mask.ndim == 2 else mask.max(axis=2)
    marked: NDArray[np.bool_] = grey > (127 if sample.mask.suffix.lower() in (".jpg", ".jpeg") else 0)
    return marked


def mask_at_model_size(marked: NDArray[np.bool_], view: ViewPart, preprocess: PreprocessPart) -> NDArray[np.bool_]:
    """Ground truth the way of its picture: region, resize (nearest), centre crop.

    marked: (H, W) bool in full-frame pixels. Returns (size height, size width) bool, contiguous.
    """
    if view.region is not None:
        x, y, w, h = view.region
        marked = marked[y : y + h, x : x + w]
    (wide, high), (width, height) = preprocess.resize_to, preprocess.size
    left, top = (wide - width) // 2, (high - height) // 2
    small = cv2.resize(marked.astype(np.uint8), (wide, high), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.ascontiguousarray(small[top : top + height, left : left + width] > 0)
