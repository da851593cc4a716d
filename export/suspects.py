"""Pictures in a folder of good parts that do not look like the others: perhaps defects that nobody sorted out.

A defect in the bank is good from then on, so it must be found before. Comparing a picture with its nearest other
picture is not enough: two parts with the same defect vouch for each other. Here a patch is ordinary when at least
`_SHARE` of the other pictures have one like it, which holds up to that share of equal defects (k-th nearest
neighbour over pictures instead of patches; compare SoftPatch, Jiang et al. 2022, arXiv 2403.14233).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.gather import Progress

Embed = Callable[[int], NDArray[np.float32]]
"""Index of a picture -> (P, D) float32 patch embeddings."""

# On the bank's side. With 10, 12, 16, 19, 24 and 40 good bottles there, 0.5, 0.3, 0.3, 0.5, 0.6 and 0.8 of them were
# named, at the mean of 30 draws, and of two broken_small among as many 67, 83, 92, 92, 92 and 100%.
MIN_PARTS = 10
_REFERENCES = 16
_ROWS = 512  # of each reference picture
_DIMS = 32
_BLOCK = 8192  # patches compared at a time: a large picture has hundreds of thousands
_SHARE = 0.19  # of the references that must have such a patch; 3 of 16
_PEAKS = 5  # patches: one alone may be noise
# Robust standard deviations of the logarithm above the median. On 209 good bottles with the embedded backbone and 0, 2
# (broken_small), 5 (contamination) and 10% (all kinds) of defects mixed in: 0 of 0, 4 of 4, 9 of 10 and 20 of 21
# defective named, and 2, 2, 2 and 1 good ones.
_SUSPECT = 3.0


@dataclass(frozen=True, slots=True)
class Suspect:
    """A picture unlike the others. index: in `Gathered`; times: its strangeness over that of a usual picture."""

    index: int
    times: float


def find_suspects(
    embed: Embed, reference_indices: NDArray[np.int64], blocks: Sequence[str], seed: int, progress: Progress
) -> list[Suspect] | None:
    """The strangest pictures, strangest first; None, not looked for, where the bank's side shows too few parts.

    reference_indices: the bank's side. Only it decides what is usual and where the limit lies, so that leaving
    suspects out of the bank does not depend on the pictures that are kept apart; blocks: of every picture, all of
    which are looked at. A block has one say in what is usual, however many pictures it has, and none in its own case:
    copies of one defect would vouch for each other.
    """
    rng = np.random.default_rng(seed)
    first = {blocks[index]: index for index in rng.permutation(reference_indices)[::-1].tolist()}
    if len(first) < MIN_PARTS:
        return None
    chosen = np.sort(list(first.values())[::-1][:_REFERENCES])
    with progress("looking", len(blocks)) as advance:
        references, matrix = _references(embed, chosen, rng)
        strangeness = np.empty(len(blocks))
        for index, block in enumerate(blocks):
            others = [rows for picture, rows in zip(chosen, references, strict=True) if blocks[picture] != block]
            strangeness[index] = np.log(_strangeness(embed(index) @ matrix, others))
            advance(1)
    of_block: dict[str, list[float]] = {}
    for index in reference_indices.tolist():
        of_block.setdefault(blocks[index], []).append(strangeness[index])
    usual = np.array([np.median(values) for values in of_block.values()])
    middle = float(np.median(usual))
    # The wider side of the quartiles: the lower one alone named 20 of 209 good bottles.
    spread = float(np.abs(np.quantile(usual, [0.25, 0.75]) - middle).max()) / 0.6745
    limit = middle + _SUSPECT * max(spread, 1e-3)
    found = [Suspect(i, float(np.exp(s - middle))) for i, s in enumerate(strangeness.tolist()) if s > limit]
    return sorted(found, key=lambda suspect: -suspect.times)


def _references(
    embed: Embed, chosen: NDArray[np.int64], rng: np.random.Generator
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """Some patches of each reference picture in the principal directions of all of them, and the (D, d) matrix."""
    samples = []
    for index in chosen.tolist():
        patches = embed(index)
        samples.append(patches[np.sort(rng.permutation(len(patches))[:_ROWS])])
    matrix = principal_directions(samples, min(_DIMS, samples[0].shape[1]))[0]
    return [sample @ matrix for sample in samples], matrix


def _strangeness(patches: NDArray[np.float32], references: list[NDArray[np.float32]]) -> float:
    """Mean over the strangest patches of the distance within which `_SHARE` of the references have one like it."""
    blocks = [patches[begin : begin + _BLOCK] for begin in range(0, len(patches), _BLOCK)]
    squared = np.sort(np.concatenate([_within(block, references) for block in blocks]))
    # Never zero: pictures of one colour have no logarithm.
    return float(np.sqrt(squared[-_PEAKS:]).mean()) + 1e-9


def _within(patches: NDArray[np.float32], references: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(P,) float32: squared distance within which `_SHARE` of the references have a patch like each of these."""
    norms = np.einsum("pd,pd->p", patches, patches)
    nearest = np.stack([(np.einsum("rd,rd->r", r, r) - 2 * (patches @ r.T)).min(axis=1) for r in references])
    rank = max(1, int(np.ceil(_SHARE * len(references))) - 1)
    return np.asarray(np.maximum(np.partition(nearest, rank, axis=0)[rank] + norms, 0))


def principal_directions(blocks: list[NDArray[np.float32]], dims: int) -> tuple[NDArray[np.float32], float]:
    """Principal component analysis: (D, dims) float32 orthonormal columns, and the share of the variance they keep.

    blocks: (n, D) float32 each. Means and products are summed in float64, block by block.
    """
    width = blocks[0].shape[1]
    count, total, products = 0, np.zeros(width), np.zeros((width, width))
    for block in blocks:
        for begin in range(0, len(block), 8192):
            wide = block[begin : begin + 8192].astype(np.float64)
            count += len(wide)
            total += wide.sum(axis=0)
            products += wide.T @ wide
    mean = total / count
    variances, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
    kept = directions[:, ::-1][:, :dims]
    # A direction's sign is arbitrary; one that does not depend on the library gives equal bytes.
    kept = kept * np.where(kept[np.abs(kept).argmax(axis=0), np.arange(dims)] < 0, -1.0, 1.0)
    variances = np.maximum(variances, 0)
    share = float(variances[::-1][:dims].sum() / max(float(variances.sum()), 1e-30))
    return np.ascontiguousarray(kept, np.float32), share
