"""Pictures that show the same part twice: another exposure, another encoding, a frame of a line that stood still.

Such near copies must stay on one side of the split: with one in the bank, the other's score says nothing about a
new part, and the calibration looks better than it is.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

_SIDE = 32
THUMBNAIL_VALUES = 3 * _SIDE * _SIDE
# Root mean square of the difference at 32 x 32, each picture's mean colour taken off, over the median of all pairs.
# Seen: the closest pair of different parts at 0.16 (simulated caps) to 0.49 (weave), bottles 0.24; the same part with
# noise of three grey levels 0.06 to 0.18, bottles 0.06. Joining two different parts costs one of the count; missing a
# pair costs a threshold that is a little too low, which rejects good parts and passes no defect.
_NEAR = 0.15
_SAMPLE = 1000
_BLOCK = 512


def near_copies(small: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each picture the lowest index of those it is a near copy of, itself when it is none: (n,) int64.

    small: (n, d) float32, `thumbnail` of each. Near copies of near copies are near copies.
    """
    labels = np.arange(len(small))
    if len(small) < 3:  # nothing to compare a difference with
        return labels
    norms = np.einsum("nd,nd->n", small, small)
    limit = (_NEAR * _median_distance(small)) ** 2
    for begin in range(0, len(small), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        near = norms[block, None] + norms - 2 * (small[block] @ small.T) < limit
        for row in np.flatnonzero(near.sum(axis=1) > 1):
            found = np.unique(labels[near[row]])
            labels[np.isin(labels, found)] = found[0]
    return labels


def thumbnail(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> what of it tells parts apart: small, its mean colour taken off, (d,) float32."""
    reduced = np.asarray(cv2.resize(picture.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA))
    return np.asarray((reduced - reduced.mean(axis=(0, 1))).ravel(), np.float32)


def thumbnail_of_tiles(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`thumbnail` of a picture that comes as (T, H, W, 3) uint8: of the picture itself where T is 1, else of its tiles,
    each made small, one below the other."""
    if len(tiles) == 1:
        return thumbnail(tiles[0])
    small = [cv2.resize(tile, (_SIDE, 8), interpolation=cv2.INTER_AREA) for tile in tiles]
    return thumbnail(np.asarray(np.concatenate(small), np.uint8))


def _median_distance(small: NDArray[np.float32]) -> float:
    chosen = small[np.random.default_rng(0).permutation(len(small))[:_SAMPLE]].astype(np.float64)
    norms = np.einsum("nd,nd->n", chosen, chosen)
    squared = norms[:, None] + norms - 2 * (chosen @ chosen.T)
    return float(np.sqrt(max(0.0, np.median(squared[np.triu_indices(len(chosen), 1)]))))
