"""Which pictures a recipe was made of, so that they are known again: none may change sides or count twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.manifest import Manifest
from edge_daemon.core.conformal import name_blocks, split_blocks
from edge_daemon.errors import EdgeError
from export.build import short_digest
from export.calibrate import held_out_fraction
from export.errors import CalibrationError, ExportError
from export.gather import Gathered

BANK_SIDE = None  # the block of a picture of the bank, which counts in no evidence


@dataclass(frozen=True, slots=True)
class Known:
    """bank: (name, short digest) of each picture of the bank; held: the evidence of each picture kept apart."""

    bank: list[tuple[str, str]]
    held: list[dict[str, Any]]

    @classmethod
    def of(cls, manifest: Manifest) -> "Known":
        """What the recipe says. Raises ExportError when it does not list its pictures."""
        listing = manifest.provenance.get("pictures", {}).get("bank")
        entries = manifest.calibration.get("held_out")
        if not isinstance(listing, list) or not isinstance(entries, list):
            raise ExportError(
                f"{manifest.name} {manifest.version} does not list the pictures it was made of, so copies of them "
                "could not be told from new ones: build it again from all pictures"
            )
        bank = [(str(name), str(digest)) for name, digest in listing]
        return cls(bank, [] if manifest.provisional else entries)

    def sides(self, pictures: Gathered, block: str | None) -> dict[int, str | None]:
        """Index of each picture that the recipe has a side for -> its block there, BANK_SIDE for the bank.

        Pictures of the recipe by their digest; with a block expression also new pictures of a part that it knows.
        """
        by_digest: dict[str, str | None] = {digest: BANK_SIDE for _, digest in self.bank}
        by_digest |= {short_digest(entry["sha256"]): entry["block"] for entry in self.held}
        found = {i: by_digest[short_digest(d)] for i, d in enumerate(pictures.digests) if short_digest(d) in by_digest}
        if block is not None and not block.isdecimal():
            by_part: dict[str, str | None] = dict.fromkeys(_parts([name for name, _ in self.bank], block))
            by_part |= dict(
                zip(_parts([e["name"] for e in self.held], block), [e["block"] for e in self.held], strict=True)
            )
            for index, part in enumerate(_parts(pictures.names, block)):
                if part in by_part:
                    found.setdefault(index, by_part[part])
        return found

    def digests(self) -> set[str]:
        """Of all pictures, short."""
        return {digest for _, digest in self.bank} | {short_digest(entry["sha256"]) for entry in self.held}


@dataclass(frozen=True, slots=True)
class Sides:
    """known: pictures of the recipe itself; in_bank, held: new ones; block_of: the evidence's block of each held one;
    between: new ones that look like pictures of both sides, and can be on neither."""

    known: NDArray[np.int64]
    in_bank: NDArray[np.int64]
    held: NDArray[np.int64]
    block_of: dict[int, str]
    between: NDArray[np.int64]


def choose_sides(
    known: Known, pictures: Gathered, block: str | None, held_out: float, seed: int, version: str
) -> Sides:
    """New pictures of a known part, or copies of a known picture, go where that is; the other blocks are split by the
    rule of a new recipe. A single new block goes to the bank.

    held_out: share kept apart; version: of the new recipe, told apart by it are new blocks of an old one's name.
    """
    digests = known.digests()
    is_known = np.array([short_digest(digest) in digests for digest in pictures.digests], np.bool_)
    of_block: dict[str, set[str | None]] = {}
    for index, side in known.sides(pictures, block).items():
        of_block.setdefault(pictures.blocks[index], set()).add(side)
    free = [name for name in dict.fromkeys(pictures.blocks) if name not in of_block]
    to_bank, to_hold = (free, []) if len(free) < 2 else _split(free, held_out, seed)
    target: dict[str, set[str | None]] = {
        **of_block,
        **{name: {BANK_SIDE} for name in to_bank},
        **{name: {f"{version}/{name}"} for name in to_hold},
    }
    in_bank, held, between, block_of = [], [], [], {}
    for index in np.flatnonzero(~is_known).tolist():
        places = target[pictures.blocks[index]]
        if places == {BANK_SIDE}:
            in_bank.append(index)
        elif BANK_SIDE in places:
            between.append(index)
        else:
            held.append(index)
            block_of[index] = min(str(place) for place in places)
    as_indices = [np.array(indices, np.int64) for indices in (in_bank, held, between)]
    return Sides(np.flatnonzero(is_known), as_indices[0], as_indices[1], block_of, as_indices[2])


def share_held_out(stated: float | None, default: float, provisional: bool, blocks: int) -> float:
    """Of the new blocks. Only where the old recipe has no evidence must the new ones suffice alone."""
    if stated is not None:
        return stated
    return held_out_fraction(None, default, max(blocks, 1)) if provisional else default


def _split(blocks: Sequence[str], held_out: float, seed: int) -> tuple[list[str], list[str]]:
    try:
        return split_blocks(blocks, held_out, seed)
    except EdgeError as exc:
        raise CalibrationError(str(exc)) from exc


def _parts(names: Sequence[str], block: str) -> list[str]:
    return name_blocks(names, block) if names else []
