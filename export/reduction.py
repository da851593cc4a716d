"""How many dimensions the embeddings of a bank need: `--reduce auto`, from good pictures alone.

What a search needs of the embeddings is the order of distances to the nearest row. So it is this that is compared:
patches of some pictures of the bank's side against patches of others, in all dimensions and in fewer. Good patches
among good ones are the hard case: their distances lie close together, those of a defect do not.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import CalibrationError
from export.suspects import principal_directions

Float32 = NDArray[np.float32]

OFFERED = (32, 48, 64, 96, 128, 192, 256)
# Of nearest distances in d dimensions with those in all. See the table in deploy/docs/vision-engineer.md.
KEPT_CORRELATION = 0.995
_PICTURES = 32  # half of them asked about, half of them the bank
_PATCHES = 256  # of each


@dataclass(frozen=True, slots=True)
class Offer:
    """A number of dimensions. variance: share kept, 0 to 1; correlation: Pearson, of nearest distances with those in
    all dimensions."""

    dims: int
    variance: float
    correlation: float


@dataclass(frozen=True, slots=True)
class Choice:
    """dims: the fewest whose distances correlate well enough, None when none do; offers: what they were chosen from."""

    dims: int | None
    offers: list[Offer]

    def account(self) -> dict[str, Any]:
        """For the provenance."""
        return {"wanted_correlation": KEPT_CORRELATION, "offers": [asdict(offer) for offer in self.offers]}


def choose_dims(embeddings: Float32, patches: int, seed: int, offered: Sequence[int] = OFFERED) -> Choice:
    """embeddings: (pictures · patches, D) float32 of the bank's side, picture by picture.

    Raises CalibrationError when there are fewer than four pictures.
    """
    asked, bank = _two_sides(embeddings, patches, seed)
    width = embeddings.shape[1]
    matrix, _ = principal_directions([asked, bank], width)
    asked, bank = asked @ matrix, bank @ matrix
    total = float(np.square(asked - asked.mean(axis=0)).sum())
    full = _nearest(asked, bank)
    offers = []
    for dims in sorted(d for d in offered if d < width):
        part = asked[:, :dims]
        variance = float(np.square(part - part.mean(axis=0)).sum()) / max(total, 1e-30)
        offers.append(Offer(dims, variance, _correlation(full, _nearest(part, bank[:, :dims]))))
    good = [offer.dims for offer in offers if offer.correlation >= KEPT_CORRELATION]
    return Choice(min(good) if good else None, offers)


def _two_sides(embeddings: Float32, patches: int, seed: int) -> tuple[Float32, Float32]:
    """Patches of every second one of some pictures, and of the others."""
    pictures = len(embeddings) // patches
    if pictures < 4:
        raise CalibrationError(
            f"--reduce auto needs four pictures or more in the bank, not {pictures}: state the dimensions, or leave "
            "them as they are"
        )
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(pictures)[:_PICTURES]
    sides: tuple[list[Float32], list[Float32]] = ([], [])
    for turn, picture in enumerate(chosen.tolist()):
        places = np.sort(rng.permutation(patches)[:_PATCHES])
        sides[turn % 2].append(np.asarray(embeddings[picture * patches + places]))
    return np.concatenate(sides[0]), np.concatenate(sides[1])


def _nearest(asked: Float32, bank: Float32) -> NDArray[np.float64]:
    squared = np.einsum("nd,nd->n", bank, bank) - 2 * (asked @ bank.T)
    nearest = squared.min(axis=1) + np.einsum("nd,nd->n", asked, asked)
    return np.asarray(np.sqrt(np.maximum(nearest, 0)), np.float64)


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    if x.std() == 0 or y.std() == 0:
        return 1.0 if np.allclose(x, y) else 0.0
    return float(np.corrcoef(x, y)[0, 1])
