"""Pictures that show the same part twice: another exposure, another encoding, a frame of a line that stood still.

Such near copies must stay on one side of the split: with one in the bank, the other's score says nothing about a
new part, and the calibration looks better than it is.

Two rules find them. One looks at a pair alone: what is left of their difference, gain and mean taken off, is no more
than a camera's noise, and as white. It holds however many of the pictures are copies. The other compares with how far
different parts are apart, and finds copies that differ in more than noise; only pictures that the first rule leaves
count for what is usual, since in a folder of copies the usual difference is the noise.
"""

import base64
import math

import cv2
import numpy as np
from numpy.typing import NDArray

_SIDE = 32
_LOOK_SIDE = 16
THUMBNAIL_VALUES = 3 * _SIDE * _SIDE
LOOK_VALUES = 3 * _LOOK_SIDE * _LOOK_SIDE
# Root mean square of the difference at 32 x 32, each picture's mean colour taken off, over the median of all pairs.
# Seen: the closest pair of different parts at 0.12 (simulated caps) to 0.59 (flange), bottles 0.24; the same part with
# noise of three grey levels 0.06 to 0.18, bottles 0.06. Joining two different parts costs one of the count; missing a
# pair costs a threshold that is a little too low, which rejects good parts and passes no defect.
_NEAR = 0.15
# Grey levels of each pixel of the model's picture. At 32 x 32 of 256 x 256 px noise of 2 differs by 0.36, and by this
# up to 0.44 is noise. The closest pairs of different parts: bottles 3.4, washers 5.5, weave 1.3, and with all parts at
# the very same place 0.61 (caps), 0.75 (board), 1.2 (weave), 3.0 (flange).
_NOISE = 2.5
# Correlation of two pictures of one part, squared. Plain webs without a mark differ in noise only, too, and show
# nothing else: their difference is as large as they are themselves.
_ALIKE = 0.94
# Correlation of neighbouring cells of the difference: noise 0.14 at most, of a JPEG 0.14 too; of different parts 0.2 to
# 0.5 where they differ in shape.
_WHITE = 0.25
_CANDIDATES = 32  # of each picture, looked at closer
_SAMPLE = 1000
_BLOCK = 512

Floats = NDArray[np.float32]


def near_copies(small: Floats, noise_rms: float) -> NDArray[np.int64]:
    """For each picture the lowest index of those it is a near copy of, itself when it is none: (n,) int64.

    small: (n, d) float32, `thumbnail` of each, or looks with their mean colour taken off; noise_rms: difference that
    noise alone explains, grey levels, see `noise_of`. Near copies of near copies are near copies.
    """
    labels = _join_equal_but_noise(small, noise_rms)
    limit = _relative_limit(small, labels)
    for begin in range(0, len(small), _BLOCK):
        near = _squared_distances(small[begin : begin + _BLOCK], small) < limit
        for row in np.flatnonzero(near.sum(axis=1) > 1):
            _join(labels, labels[near[row]])
    return labels


def copies_of(known: Floats, new: Floats, noise_rms: float) -> list[NDArray[np.int64]]:
    """For each new picture the indices of the known ones that it is a near copy of; arguments as for `near_copies`.

    Pair by pair, not by way of others: of parts that hardly differ a chain would join all.
    """
    together = np.concatenate([known, new])
    limit = _relative_limit(together, _join_equal_but_noise(together, noise_rms))
    found = []
    for begin in range(0, len(new), _BLOCK):
        block = new[begin : begin + _BLOCK]
        near = _squared_distances(block, known) < limit
        left = _left(block, known, noise_rms)
        for row, picture in enumerate(block):
            likely = _likely(left[row], np.isfinite(left[row]))
            likely = likely[_is_white(picture, known[likely])]
            found.append(np.union1d(np.flatnonzero(near[row]), likely))
    return found


def noise_of(pixels: int, of_looks: bool = False) -> float:
    """Root mean square by which two pictures of one part may differ, in grey levels, when a camera's noise is all.

    pixels: of the model's picture, all tiles together; of_looks: of `look`, in whole grey levels, else `thumbnail`.
    """
    side = _LOOK_SIDE if of_looks else _SIDE
    rounding = 2 / 12 if of_looks else 0.0
    return math.sqrt(2 * _NOISE**2 / max(1.0, pixels / side**2) + rounding)


def shrunk(tiles: NDArray[np.uint8]) -> Floats:
    """(T, H, W, 3) uint8 -> (32, 32, 3) float32: of the picture itself where T is 1, else of its tiles, each made
    small, one below the other."""
    if len(tiles) == 1:
        return _resized(tiles[0].astype(np.float32), _SIDE, _SIDE)
    height = max(8, math.ceil(_SIDE / len(tiles)))
    rows = np.concatenate([_resized(tile.astype(np.float32), _SIDE, height) for tile in tiles])
    return _resized(rows, _SIDE, _SIDE)


def thumbnail(small: Floats) -> Floats:
    """What of `shrunk` tells parts apart, its mean colour taken off, (d,) float32."""
    return np.asarray((small - small.mean(axis=(0, 1))).ravel(), np.float32)


def look(small: Floats) -> NDArray[np.uint8]:
    """`shrunk` as small as copies are still known by it, for a recipe to keep: (768,) uint8."""
    return np.asarray(np.rint(_resized(small, _LOOK_SIDE, _LOOK_SIDE)).ravel(), np.uint8)


def written(look: NDArray[np.uint8]) -> str:
    """(768,) uint8 -> what a recipe keeps of it."""
    return base64.b64encode(look.tobytes()).decode()


def read_look(text: str) -> NDArray[np.uint8]:
    """What `written` gave -> (768,) uint8. Raises ValueError, TypeError for anything else."""
    found = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(found) != LOOK_VALUES:
        raise ValueError(f"a look has {LOOK_VALUES} values, not {len(found)}")
    return found


def of_looks(looks: NDArray[np.uint8]) -> Floats:
    """(n, 768) uint8 -> what `near_copies` compares, their mean colour taken off: (n, 768) float32."""
    cells = looks.reshape(len(looks), -1, 3).astype(np.float32)
    return np.asarray((cells - cells.mean(axis=1, keepdims=True)).reshape(len(looks), -1), np.float32)


def _resized(picture: Floats, width: int, height: int) -> Floats:
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.float32)


def _join_equal_but_noise(small: Floats, noise_rms: float) -> NDArray[np.int64]:
    labels = np.arange(len(small))
    for begin in range(0, len(small), _BLOCK):
        left = _left(small[begin : begin + _BLOCK], small, noise_rms)
        for index, of_pair in enumerate(left, begin):
            others = _likely(of_pair, np.isfinite(of_pair) & (labels != labels[index]))
            if len(others):
                white = others[_is_white(small[index], small[others])]
                _join(labels, labels[np.append(white, index)])
    return labels


def _left(some: Floats, small: Floats, noise_rms: float) -> Floats:
    """(n, d) and (m, d) -> (n, m): squared, what each of a pair shows that the other does not, whatever their gains;
    infinite where it is more than noise or where they show nothing in common."""
    norms, all_norms = (np.sqrt(np.maximum(np.einsum("nd,nd->n", s, s), np.float32(1e-12))) for s in (some, small))
    both = norms[:, None] * all_norms
    alike = np.clip(some @ small.T / both, 0, 1) ** 2
    left = (1 - alike) * both
    left[(left > noise_rms**2 * small.shape[1]) | (alike < _ALIKE)] = np.inf
    return np.asarray(left, np.float32)


def _likely(left: Floats, which: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Those of the pictures that are worth a closer look, the nearest where they are many."""
    others = np.flatnonzero(which)
    if len(others) > _CANDIDATES:
        others = others[np.argpartition(left[others], _CANDIDATES)[:_CANDIDATES]]
    return others


def _is_white(one: Floats, others: Floats) -> NDArray[np.bool_]:
    """(d,) and (m, d) -> (m,) bool: neighbouring cells of the difference have nothing to do with each other."""
    side = math.isqrt(len(one) // 3)
    gain = (others @ one) / np.einsum("md,md->m", others, others)
    left = (one - gain[:, None] * others).reshape(-1, side, side, 3)
    power = np.maximum(np.einsum("mxyc,mxyc->m", left, left), np.float32(1e-12))
    across = np.einsum("mxyc,mxyc->m", left[:, :, 1:], left[:, :, :-1])
    down = np.einsum("mxyc,mxyc->m", left[:, 1:], left[:, :-1])
    return np.asarray(np.maximum(np.abs(across), np.abs(down)) <= _WHITE * power)


def _join(labels: NDArray[np.int64], found: NDArray[np.int64]) -> None:
    """Pictures of these labels become one, under the lowest."""
    kinds = np.unique(found)
    if len(kinds) > 1:
        labels[np.isin(labels, kinds)] = kinds[0]


def _squared_distances(some: Floats, small: Floats) -> Floats:
    norms, all_norms = (np.einsum("nd,nd->n", s, s) for s in (some, small))
    return np.asarray(norms[:, None] + all_norms - 2 * (some @ small.T), np.float32)


def _relative_limit(small: Floats, labels: NDArray[np.int64]) -> float:
    """Squared distance below which two pictures show one part, by how far those of different labels are apart."""
    different = np.unique(labels)
    if len(different) < 3:  # nothing to compare a difference with
        return 0.0
    # A thousand say what is usual, and no more are copied.
    chosen = small[different[np.random.default_rng(0).permutation(len(different))[:_SAMPLE]]]
    squared = _squared_distances(chosen, chosen)[np.triu_indices(len(chosen), 1)]
    return _NEAR**2 * max(0.0, float(np.median(squared)))
