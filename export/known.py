"""Which pictures a recipe was made of, so that they are known again: none may change sides or count twice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from export.likeness import copies_of, noise_of, of_looks, read_look

BANK_SIDE = None  # the block of a picture of the bank, which counts in no evidence


@dataclass(frozen=True, slots=True)
class Known:
    """bank: (name, short digest) of each picture of the bank; held: the evidence of each picture kept apart; looks:
    short digest -> (768,) uint8, `likeness.look` of those pictures of which there is one."""

    bank: list[tuple[str, str]]
    held: list[dict[str, Any]]
    looks: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

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
        known = cls(bank, [] if manifest.provisional else entries)
        mine = known.digests()
        return replace(known, looks={d: look for d, look in _looks_of(manifest).items() if d in mine})

    def seeing(self, pictures: Gathered) -> "Known":
        """With the looks of those pictures of the recipe that are among these: earlier versions kept none."""
        mine = self.digests()
        shorts = [short_digest(digest) for digest in pictures.digests]
        return replace(self, looks=self.looks | {s: pictures.looks[i] for i, s in enumerate(shorts) if s in mine})

    def unseen(self) -> int:
        """Pictures of the recipe of which nobody knows what they look like: copies of them pass for new parts."""
        return len(self.digests() - self.looks.keys())

    def sides(self, pictures: Gathered, block: str | None) -> dict[int, str | None]:
        """Index of each picture that the recipe has a side for -> its block there, BANK_SIDE for the bank.

        Pictures of the recipe by their digest; with a block expression also new pictures of a part that it knows.
        """
        by_digest = self._by_digest()
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

    def copies(self, pictures: Gathered) -> dict[int, set[str | None]]:
        """Index of each picture that is a near copy of pictures of the recipe, or one of them -> the sides of those."""
        if not self.looks or not len(pictures.looks):
            return {}
        by_digest = self._by_digest()
        places = [by_digest[digest] for digest in self.looks]
        noise = noise_of(math.prod(pictures.inputs.shape[1:4]), of_looks=True)
        near = copies_of(of_looks(np.stack(list(self.looks.values()))), of_looks(pictures.looks), noise)
        return {i: {places[j] for j in found.tolist()} for i, found in enumerate(near) if len(found)}

    def _by_digest(self) -> dict[str, str | None]:
        by_digest: dict[str, str | None] = {digest: BANK_SIDE for _, digest in self.bank}
        return by_digest | {short_digest(entry["sha256"]): entry["block"] for entry in self.held}

    def digests(self) -> set[str]:
        """Of all pictures, short."""
        return {digest for _, digest in self.bank} | {short_digest(entry["sha256"]) for entry in self.held}


@dataclass(frozen=True, slots=True)
class Sides:
    """known: pictures of the recipe itself; in_bank, held: new ones; block_of: the evidence's block of each held one;
    between: new ones that look like pictures of both sides, and can be on neither; copies: how many of the new ones are
    near copies of known ones."""

    known: NDArray[np.int64]
    in_bank: NDArray[np.int64]
    held: NDArray[np.int64]
    block_of: dict[int, str]
    between: NDArray[np.int64]
    copies: int = 0


def choose_sides(
    known: Known, pictures: Gathered, block: str | None, held_out: float, seed: int, version: str, apart: bool = False
) -> Sides:
    """New pictures of a known part, or copies of a known picture, go where that is; the other blocks are split by the
    rule of a new recipe. A single new block goes to the bank.

    held_out: share kept apart; version: of the new recipe, told apart by it are new blocks of an old one's name; apart:
    pictures that look the same are different parts, as the engineer says.
    """
    digests = known.digests()
    is_known = np.array([short_digest(digest) in digests for digest in pictures.digests], np.bool_)
    of_block: dict[str, set[str | None]] = {}
    for index, side in known.sides(pictures, block).items():
        of_block.setdefault(pictures.blocks[index], set()).add(side)
    copies = {} if apart else {i: sides for i, sides in known.copies(pictures).items() if not is_known[i]}
    for index, sides in copies.items():
        of_block.setdefault(pictures.blocks[index], set()).update(sides)
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
    return Sides(np.flatnonzero(is_known), as_indices[0], as_indices[1], block_of, as_indices[2], len(copies))


def share_held_out(stated: float | None, default: float, provisional: bool, blocks: int) -> float:
    """Of the new blocks. Only where the old recipe has no evidence must the new ones suffice alone."""
    if stated is not None:
        return stated
    return held_out_fraction(None, default, max(blocks, 1)) if provisional else default


def _looks_of(manifest: Manifest) -> dict[str, NDArray[np.uint8]]:
    """As the recipe keeps them; none in those of earlier versions. Raises ExportError when they are damaged."""
    looks = {}
    for digest, text in manifest.provenance["pictures"].get("looks", {}).items():
        try:
            looks[digest] = read_look(text)
        except (ValueError, TypeError) as exc:
            raise ExportError(f"{manifest.name} {manifest.version}: the look of picture {digest} is damaged") from exc
    return looks


def _split(blocks: Sequence[str], held_out: float, seed: int) -> tuple[list[str], list[str]]:
    try:
        return split_blocks(blocks, held_out, seed)
    except EdgeError as exc:
        raise CalibrationError(str(exc)) from exc


def _parts(names: Sequence[str], block: str) -> list[str]:
    return name_blocks(names, block) if names else []
