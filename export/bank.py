"""Memory banks: embeddings in a scratch file, reduced when asked, a coreset of them that can be interrupted."""

import glob
import hashlib
import json
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.coreset import Selection, paper_start, select, sparse_random_projection
from export.gather import Progress, large_array, releasing
from export.reduction import choose_dims
from export.suspects import Embed, principal_directions

Float32 = NDArray[np.float32]
Reduce = int | Literal["auto"] | None

_PAPER_DIMS = 128
_SAVE_EVERY_S = 30.0
_MAPPED_BYTES = 100 << 20


@dataclass(frozen=True, slots=True)
class BankPlan:
    """How a bank is made of embeddings. ratio: share of the rows kept; minimum: rows at the least; paper: start and
    projection of profile `paper`; reduce: dimensions after the PCA, None for all, "auto" for as few as
    `export.reduction` finds enough; patches: of one picture, for that."""

    ratio: float
    minimum: int
    paper: bool
    seed: int
    reduce: Reduce = None
    patches: int = 1


@dataclass(frozen=True, slots=True)
class Bank:
    """rows: (M, d) float32; projection: (D, d) float32 of `pca/1`, None where d is D; account: for the provenance;
    continued_at: rows that an interrupted build had already chosen; other_checkpoint: what one had chosen was found,
    but of other embeddings or another plan."""

    rows: Float32
    projection: Float32 | None
    account: dict[str, Any]
    continued_at: int = 0
    other_checkpoint: bool = False


def embed_pictures(embed: Embed, indices: NDArray[np.int64], patches: int, dim: int, progress: Progress) -> Float32:
    """Patch embeddings of some pictures, (pictures · patches, dim) float32, each held once."""
    embeddings = large_array((len(indices) * patches, dim), np.float32, Path(tempfile.gettempdir()))
    # Those of one large picture are hundreds of megabytes: not four of them mapped at a time.
    give_back = releasing(embeddings, every=max(1, min(4, _MAPPED_BYTES // (patches * dim * 4))))
    with progress("embedding", len(indices)) as advance:
        for position, index in enumerate(indices.tolist()):
            embeddings[position * patches : (position + 1) * patches] = embed(index)
            give_back()
            advance(1)
    return embeddings


def of_pictures(embeddings: Float32, kept: NDArray[np.int64], patches: int) -> Float32:
    """The embeddings of some of the pictures, (kept · patches, dim) float32, in a scratch file where they are many."""
    chosen = large_array((len(kept) * patches, embeddings.shape[1]), np.float32, Path(tempfile.gettempdir()))
    pauses = releasing(embeddings, every=1), releasing(chosen, every=1)
    for position, index in enumerate(kept.tolist()):
        chosen[position * patches : (position + 1) * patches] = embeddings[index * patches : (index + 1) * patches]
        for give_back in pauses:
            give_back()
    return chosen


def make_bank(embeddings: Float32, plan: BankPlan, progress: Progress | None, checkpoint: Path | None = None) -> Bank:
    """The coreset's rows, in full or reduced dimension (Roth et al. 2022, section 3.2; profiles as published).

    checkpoint: where an interrupted selection is kept, and taken up again when all else is equal.
    """
    account: dict[str, Any] = {"method": "k-centre greedy", "ratio": plan.ratio, "seed": plan.seed}
    projection = None
    dims: int | None
    if plan.reduce == "auto":
        choice = choose_dims(embeddings, plan.patches, plan.seed)
        account["chosen_reduction"] = choice.account()
        dims = choice.dims
    else:
        dims = plan.reduce
    if dims is not None:
        projection, share = principal_directions([embeddings], dims)
        account["reduction"] = {"method": "pca", "from": embeddings.shape[1], "to": dims, "variance": share}
        embeddings = _projected(embeddings, projection)
    count = max(int(len(embeddings) * plan.ratio), min(plan.minimum, len(embeddings)))
    searched_dims = _PAPER_DIMS if plan.paper else None
    matrix = sparse_random_projection(len(embeddings), embeddings.shape[1], plan.seed, searched_dims)
    searched = embeddings if matrix is None else _projected(embeddings, matrix)
    initial = paper_start(searched, plan.seed) if plan.paper else None
    saved = None if checkpoint is None else _Checkpoint(checkpoint, _identity(searched, count, plan))
    start = None if saved is None else saved.load()
    found = _selected(searched, count, plan.seed, progress, saved, initial_distance=initial, resume=start)
    account |= {"radius": finite(found.radius), "searched_dims": searched.shape[1]}
    rows = np.ascontiguousarray(embeddings[found.rows])
    return Bank(rows, projection, account, 0 if start is None else len(start), saved is not None and saved.of_another)


def extend_bank(old: Bank, embeddings: Float32, progress: Progress) -> Bank:
    """The bank with those of the new rows that it does not cover: in time proportional to the new ones.

    embeddings: (n, D) float32 of the new pictures, in full dimension. The old rows are the first centres of the same
    greedy, which stops at the radius within which the old bank covered its own pictures: the new pictures are covered
    as densely as the old ones, and one that shows nothing new adds nothing.
    """
    account = dict(old.account)
    reduced = embeddings if old.projection is None else _projected(embeddings, old.projection)
    width = old.rows.shape[1]
    matrix = sparse_random_projection(len(reduced), width, account["seed"], account["searched_dims"])
    searched = reduced if matrix is None else _projected(reduced, matrix)
    centres = old.rows if matrix is None else old.rows @ matrix
    radius = account["radius"]
    stop = -math.inf if radius is None else radius
    found = _selected(searched, len(searched), 0, progress, None, centres=centres, stop_radius=stop)
    rows = np.ascontiguousarray(np.concatenate([old.rows, reduced[found.rows]]))
    account["added"] = [*account.get("added", []), {"patches": len(embeddings), "rows": len(found.rows)}]
    return Bank(rows, old.projection, account)


def finite(value: float) -> float | None:
    """The value where JSON has a word for it."""
    return value if math.isfinite(value) else None


class _Checkpoint:
    """The rows chosen so far, in a file that is complete or absent.

    of_another: `load` found one that does not belong to this selection.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self._identity = path, identity
        self.of_another = False
        self._saved_s = time.monotonic()

    def load(self) -> NDArray[np.int64] | None:
        """Rows of an interrupted selection of the very same embeddings, None when there are none.

        One of something else, or damaged, is removed, and so is what a killed process had half written.
        """
        for unfinished in self.path.parent.glob(f"{glob.escape(self.path.name)}?*"):
            unfinished.unlink(missing_ok=True)
        try:
            kept = json.loads(self.path.read_bytes())
            if kept["identity"] == self._identity:
                return np.array(kept["rows"], np.int64)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            pass
        self.of_another = True
        self.path.unlink(missing_ok=True)
        return None

    def save(self, rows: NDArray[np.int64]) -> None:
        """Replace what was kept."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=self.path.name, delete=False) as file:
            file.write(json.dumps({"identity": self._identity, "rows": rows.tolist()}).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self.path)
        self._saved_s = time.monotonic()

    def save_sometimes(self, rows: NDArray[np.int64]) -> None:
        if time.monotonic() - self._saved_s > _SAVE_EVERY_S:
            self.save(rows)


def _identity(embeddings: Float32, count: int, plan: BankPlan) -> str:
    """Names a selection: equal only for the same bytes and the same plan."""
    digest = hashlib.sha256(repr((embeddings.shape, count, plan)).encode())
    give_back = releasing(embeddings)
    for begin in range(0, len(embeddings), 4096):
        digest.update(np.ascontiguousarray(embeddings[begin : begin + 4096]).data)
        give_back()
    return digest.hexdigest()


def _projected(embeddings: Float32, matrix: Float32) -> Float32:
    """`core.coreset.project` into a scratch file where the result is large."""
    result = large_array((len(embeddings), matrix.shape[1]), np.float32, Path(tempfile.gettempdir()))
    pauses = releasing(embeddings), releasing(result)
    for begin in range(0, len(embeddings), 4096):
        result[begin : begin + 4096] = embeddings[begin : begin + 4096] @ matrix
        for give_back in pauses:
            give_back()
    return result


def _selected(
    embeddings: Float32,
    count: int,
    seed: int,
    progress: Progress | None,
    saved: _Checkpoint | None,
    **beginning: Any,
) -> Selection:
    """`core.coreset.select` with a bar and a checkpoint, which an interrupt saves and success removes."""
    chosen: NDArray[np.int64] = np.empty(0, np.int64)

    def keep(rows: NDArray[np.int64]) -> None:
        nonlocal chosen
        chosen = rows
        if saved is not None:
            saved.save_sometimes(rows)

    arguments = {"seed": seed, "checkpoint": keep, "pause": releasing(embeddings, every=1), **beginning}
    if progress is None:
        return select(embeddings, count, **arguments)
    with progress("coreset", count) as advance:
        done = 0

        def report(taken: int) -> None:
            nonlocal done
            advance(taken - done)
            done = taken

        try:
            return select(embeddings, count, progress=report, **arguments)
        except KeyboardInterrupt:
            if saved is not None and len(chosen):
                saved.save(chosen)
            raise
