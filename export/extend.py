"""More good pictures for a recipe that exists: `edge-export recipe --add`, in time proportional to the new ones.

Backbone, geometry and projection stay the old recipe's; its rows stay, and the new pictures add those patches that
the bank does not cover. What is proven is proven again: the new pictures are looked at with the old recipe, those kept
apart join the threshold's evidence, and the golden samples are judged with the new bank. Why the old scores may stay is
in deploy/decisions/0007-adding-pictures.md.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.manifest import Manifest
from edge_daemon.artefact.recipe import (
    BACKBONE,
    BANK,
    MANIFEST,
    TEMPLATE,
    Recipe,
    bank_bytes,
    load_recipe,
    manifest_bytes,
    read_files,
    sha256,
    write_recipe,
)
from edge_daemon.core.decision import Evaluation, Thresholds, judge_score
from edge_daemon.detectors.patchcore import PatchCoreSettings
from edge_daemon.engines.sessions import EngineOptions
from export.bank import Bank, extend_bank
from export.build import DEFAULT_HELD_OUT, MOST_LOOKS, bank_listing, look_listing, software
from export.calibrate import (
    Calibration,
    Scored,
    evidence_of,
    score_pictures,
    thresholds_from,
)
from export.camera import require_same
from export.errors import ExportError, PicturesError, SuspectPicturesError
from export.fuse import FusedBackbone, describe
from export.gather import EVERY_PICTURE_A_PART, Gathered, Progress, first_frame_size, list_pictures
from export.golden import golden_again, prove
from export.known import Known, Sides, choose_sides, share_held_out
from export.likeness import written
from export.rewrite import origin_of, signature_notes, successor, target_problems
from export.station import Station, make_extractor, open_station, twin_notes
from export.threshold import held_out_scores

UPPER_BOUND = "of_old_bank"
"""Marks a score that was computed with an older, smaller bank."""

_SHOWN = 20
_BETWEEN = (
    "Some look like pictures of the bank and like pictures kept apart, and can be on neither side. If every picture "
    "shows another part, so alike that nothing tells them apart, --block 1 says so"
)


@dataclass(frozen=True, slots=True)
class ExtendRequest:
    """What the engineer asked for; None leaves the choice to the old recipe.

    images: the new good pictures; calibration: a folder with the pictures that the old recipe had kept apart, to be
    judged again; accept: names or patterns of pictures that are good though the old recipe rejects them;
    drop_suspects: leave the others of these out of the bank; held_out: share of the new blocks kept apart; dry_run:
    look, write nothing; camera_settings: a file that says what the new pictures were taken with.
    """

    recipe: Path
    images: Path
    out: Path | None
    created_utc: str
    version: str
    name: str | None = None
    calibration: Path | None = None
    accept: tuple[str, ...] = ()
    drop_suspects: bool = False
    false_reject_rate: float | None = None
    undecided_rate: float | None = None
    held_out: float | None = None
    block: str | None = None
    skip_unreadable: bool = False
    camera_settings: Path | None = None
    seed: int = 0
    dry_run: bool = False
    engine: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True, slots=True)
class Stranger:
    """A new picture that the old recipe does not call OK. times: its score over the old threshold."""

    index: int
    name: str
    score: float
    times: float
    accepted: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of each new picture. strangers: the strangest first; dropped: those of them left out of the bank;
    in_bank: `sides.in_bank` without these."""

    sides: Sides
    in_bank: NDArray[np.int64]
    strangers: list[Stranger]
    dropped: list[Stranger]


@dataclass(frozen=True, slots=True)
class ExtendedRecipe:
    """What was written, or would be. path, digest, manifest are None after a dry run."""

    parent: Recipe
    pictures: Gathered
    plan: Plan
    notes: list[str]
    path: Path | None = None
    digest: str | None = None
    manifest: dict[str, Any] | None = None


def extend_recipe(request: ExtendRequest, progress: Progress) -> ExtendedRecipe:
    """Look at the new pictures, then extend, calibrate, prove and write. Nothing is written before all has passed.

    Raises ExportError or EdgeError; among them one that names the pictures that do not look like the old good ones.
    """
    _check_request(request)
    parent = load_recipe(request.recipe)
    old = _old_bank(parent)
    known = Known.of(parent.manifest)
    station = _open(request, parent, describe(parent.backbone), progress)
    before = _calibration_folder(request, station, known, progress)
    known = known.seeing(station.pictures)
    known = known if before is None else known.seeing(before.pictures)
    plan = _look(request, station, parent, old, known, progress)
    notes = [*twin_notes(station.pictures), *_plan_notes(plan), *_unseen_notes(known, request)]
    if request.dry_run:
        return ExtendedRecipe(parent, station.pictures, plan, notes)
    assert request.out is not None
    _refuse_strangers(plan, request)
    bank = extend_bank(old, station.embed_all(plan.in_bank, progress), progress)
    calibration = _recalibrated(request, station, before, parent, bank, plan, known, progress)
    notes += _evidence_notes(calibration)
    detector = station.detector(bank, calibration.thresholds)
    golden, golden_notes = golden_again(detector, parent.golden, station.pictures, calibration, request.seed)
    fields = _fields(request, parent, station, bank, calibration, plan, known)
    fields["golden"] = [sample.manifest_entry() for sample in golden]
    files_before = read_files(request.recipe)
    files = {
        BANK: bank_bytes(bank.rows, bank.projection),
        BACKBONE: parent.backbone,
        MANIFEST: manifest_bytes(fields),
        **{sample.file: sample.png for sample in golden},
        # The old recipe's golden picture, byte for byte, where it has one.
        **({} if parent.template is None else {TEMPLATE: files_before[TEMPLATE]}),
    }
    digest = prove(files, f"the new recipe {fields['name']}", request.engine)
    write_recipe(request.out, files)
    return ExtendedRecipe(
        parent,
        station.pictures,
        plan,
        [*notes, *golden_notes, *signature_notes(files_before, "bank")],
        request.out,
        digest,
        json.loads(files[MANIFEST]),
    )


def _check_request(request: ExtendRequest) -> None:
    problems = []
    if request.out is None and not request.dry_run:
        problems.append("--add makes a new recipe and needs --out PATH: recipes are never changed in place")
    if request.out is not None:
        problems += target_problems(request.recipe, request.out)
    rates = {
        "--false-reject-rate": request.false_reject_rate,
        "--undecided-rate": request.undecided_rate,
        "--held-out": request.held_out,
    }
    problems += [
        f"{option} must lie between 0 and 1, not {rate:g}"
        for option, rate in rates.items()
        if rate is not None and not 0 < rate < 1
    ]
    if problems:
        raise ExportError("\n".join(problems))


def _old_bank(parent: Recipe) -> Bank:
    """The bank with what is known of how it was chosen. Raises ExportError when the recipe does not say."""
    account = parent.manifest.provenance.get("coreset")
    if not isinstance(account, dict) or not {"radius", "searched_dims", "seed"} <= account.keys():
        raise ExportError(
            f"{parent.manifest.name} does not say how its bank was chosen, so nothing can be added to it in the same "
            "way: build it again from all pictures"
        )
    return Bank(parent.bank, parent.projection, account)


def _open(request: ExtendRequest, parent: Recipe, backbone: FusedBackbone, progress: Progress) -> Station:
    """The new pictures, seen as the old recipe sees them. Raises PicturesError when they are of another size."""
    settings = PatchCoreSettings.of(parent.manifest, parent.template)
    paths = list_pictures(request.images)
    require_same(parent.manifest, request.images, paths, request.camera_settings)
    found = first_frame_size(paths)
    if found != settings.frame_size:
        raise PicturesError(
            f"the pictures in {request.images} are {found[0]}x{found[1]} px, {parent.manifest.name} judges frames of "
            f"{settings.frame_size[0]}x{settings.frame_size[1]}: take them with the station's camera settings"
        )
    extractor = make_extractor(backbone, request.engine, settings)
    block = _block(request, parent.manifest)
    return open_station(backbone, extractor, settings, request.images, block, request.skip_unreadable, progress)


def _block(request: ExtendRequest, manifest: Manifest) -> str | None:
    """What belongs together: as stated, else as the old recipe has it. That pictures which look the same are different
    parts must be said each time: it is true of pictures, not of recipes."""
    if request.block is not None:
        return request.block
    block: str | None = manifest.calibration.get("block")
    return None if block == EVERY_PICTURE_A_PART else block


def _look(
    request: ExtendRequest, station: Station, parent: Recipe, old: Bank, known: Known, progress: Progress
) -> Plan:
    """Sides of the new pictures, and what the old recipe thinks of them."""
    manifest, pictures = parent.manifest, station.pictures
    share = share_held_out(request.held_out, DEFAULT_HELD_OUT, manifest.provisional, len(set(pictures.blocks)))
    apart = request.block == EVERY_PICTURE_A_PART
    sides = choose_sides(known, pictures, _block(request, manifest), share, request.seed, request.version, apart)
    fresh = np.sort(np.concatenate([sides.in_bank, sides.held]))
    if not len(fresh):
        raise PicturesError(
            f"none of the {len(pictures.names)} pictures in {request.images} is new to {manifest.name} "
            f"{manifest.version}: there is nothing to add" + (f". {_BETWEEN}" if len(sides.between) else "")
        )
    limits = Thresholds(manifest.thresholds.lower, manifest.thresholds.upper, float(np.finfo(np.float32).max))
    judge = station.detector(old, limits)
    strangers = []
    with progress("looking", len(fresh)) as advance:
        for index in fresh.tolist():
            found = judge.judge(station.features(index), limits)
            if judge_score(found.score, found.max_distance, limits).evaluation is not Evaluation.OK:
                name = pictures.names[index]
                accepted = any(fnmatchcase(name, pattern) for pattern in request.accept)
                strangers.append(Stranger(index, name, found.score, found.score / max(limits.lower, 1e-12), accepted))
            advance(1)
    strangers.sort(key=lambda stranger: -stranger.score)
    on_bank_side = set(sides.in_bank.tolist())
    dropped = [s for s in strangers if request.drop_suspects and not s.accepted and s.index in on_bank_side]
    return Plan(sides, np.setdiff1d(sides.in_bank, [s.index for s in dropped]), strangers, dropped)


def _refuse_strangers(plan: Plan, request: ExtendRequest) -> None:
    left = [s for s in plan.strangers if not s.accepted and s not in plan.dropped]
    if not left:
        return
    listed = [f"{s.name}: score {s.score:.4g}, {s.times:.2f} times the threshold" for s in left[:_SHOWN]]
    if len(left) > _SHOWN:
        listed.append(f"... and {len(left) - _SHOWN} more")
    advice = (
        "Look at each of them. A defect that is added is good from then on: remove what is defective from the folder. "
        "What is good, confirm with --accept NAME (patterns work, --accept '*' is all of them)"
    )
    if request.drop_suspects:
        advice += ". They are on the side of the threshold, where none may be dropped for its looks"
    else:
        advice += "; --drop-suspects leaves the others out of the bank"
    raise SuspectPicturesError(
        f"{len(left)} of the new pictures in {request.images} do not look like the old good ones, the old recipe "
        "does not call them OK; nothing was written:\n  " + "\n  ".join(listed) + f"\n{advice}"
    )


def _recalibrated(
    request: ExtendRequest,
    station: Station,
    before: Station | None,
    parent: Recipe,
    bank: Bank,
    plan: Plan,
    known: Known,
    progress: Progress,
) -> Calibration:
    """Thresholds from the old evidence and the new pictures kept apart, all under the new bank as far as they are here.

    Old pictures that are not here keep their score: their nearest rows can only have come nearer.
    """
    manifest, pictures, detector = parent.manifest, station.pictures, station.detector(bank)
    rates = _rates(request, manifest)
    held_digests = {entry["sha256"] for entry in known.held}
    again = np.array([i for i in plan.sides.known.tolist() if pictures.digests[i] in held_digests], np.int64)
    indices = np.concatenate([plan.sides.held, again])
    with progress("calibrating", len(indices)) as advance:
        scored = score_pictures(detector, pictures, indices, advance)
    fresh = [
        {**entry, "block": plan.sides.block_of[s.index]}
        for entry, s in zip(evidence_of(pictures, scored), scored, strict=True)
        if s.index in plan.sides.block_of
    ]
    judged = {pictures.digests[s.index]: s for s in scored}
    if before is not None:
        judged |= _judged_in(before, bank, held_digests, progress)
    old = [] if manifest.provisional else [_again(entry, judged) for entry in held_out_scores(manifest)]
    held_out = [*old, *fresh]
    thresholds, conformal, evidence = thresholds_from(held_out, *rates)
    evidence["scores_of_old_bank"] = sum(UPPER_BOUND in entry for entry in held_out)
    return Calibration(thresholds, scored, conformal, {**evidence, "held_out": held_out})


def _rates(request: ExtendRequest, manifest: Manifest) -> tuple[float | None, float | None]:
    """As stated, else the old recipe's. A provisional one promised none."""
    promised = manifest.calibration
    rate, undecided = request.false_reject_rate, request.undecided_rate
    if rate is None:
        rate = promised.get("false_reject_rate")
        if undecided is None:
            undecided = promised.get("not_ok", {}).get("undecided_rate")
    return rate, undecided


def _again(entry: dict[str, Any], judged: Mapping[str, Scored]) -> dict[str, Any]:
    """An old picture's evidence: as judged with the new bank, or as it was, and marked."""
    now = judged.get(entry["sha256"])
    if now is None:
        return {**entry, UPPER_BOUND: True}
    kept = {key: value for key, value in entry.items() if key != UPPER_BOUND}
    return {**kept, "score": now.score, "map_maximum": now.peak}


def _calibration_folder(request: ExtendRequest, station: Station, known: Known, progress: Progress) -> Station | None:
    """The folder --calibration, as the recipe sees it. Raises PicturesError when none of it was kept apart."""
    if request.calibration is None:
        return None
    before = open_station(
        station.backbone, station.extractor, station.settings, request.calibration, None, False, progress
    )
    wanted = {entry["sha256"] for entry in known.held}
    if not wanted & set(before.pictures.digests):
        raise PicturesError(
            f"{request.calibration} holds none of the {len(wanted)} pictures that the old recipe kept apart: give the "
            "folder that it was built from"
        )
    return before


def _judged_in(before: Station, bank: Bank, wanted: set[str], progress: Progress) -> dict[str, Scored]:
    """Digest -> score of those pictures in the folder --calibration that the old recipe had kept apart."""
    digests = before.pictures.digests
    first = {digest: i for i, digest in reversed(list(enumerate(digests))) if digest in wanted}
    indices = np.array(sorted(first.values()), np.int64)
    with progress("calibrating", len(indices)) as advance:
        scored = score_pictures(before.detector(bank), before.pictures, indices, advance)
    return {digests[s.index]: s for s in scored}


def _unseen_notes(known: Known, request: ExtendRequest) -> list[str]:
    """Of which pictures copies are not known."""
    unseen = known.unseen()
    if not unseen or request.block == EVERY_PICTURE_A_PART:
        return []
    return [
        f"what {unseen} of the old recipe's {len(known.digests())} pictures look like is not known (an earlier version "
        "made it): a new picture that shows one of these parts again passes for another part, and the threshold looks "
        "better than it is. --calibration DIR, the folder that the old recipe was built from, makes it known"
    ]


def _plan_notes(plan: Plan) -> list[str]:
    notes = []
    if len(plan.sides.known):
        notes.append(f"{len(plan.sides.known)} pictures are in the old recipe already and were not added again")
    if plan.sides.copies:
        notes.append(
            f"{plan.sides.copies} new pictures differ from pictures of the old recipe in noise only: the same parts "
            "again. They go where those are and count with them as one"
        )
    if len(plan.sides.between):
        notes.append(f"{len(plan.sides.between)} pictures look like old ones of both sides and were left out")
    accepted = [s for s in plan.strangers if s.accepted]
    if accepted:
        notes.append(f"confirmed as good although the old recipe rejects them: {_names(accepted)}")
    if plan.dropped:
        notes.append(f"SUSPECT, left out of the bank: {_names(plan.dropped)}")
    return notes


def _names(strangers: Sequence[Stranger]) -> str:
    shown = ", ".join(f"{s.name} ({s.times:.2f} times the threshold)" for s in strangers[:_SHOWN])
    return shown + (f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else "")


def _evidence_notes(calibration: Calibration) -> list[str]:
    bounds = calibration.evidence["scores_of_old_bank"]
    if not bounds:
        return []
    note = (
        f"{bounds} of {len(calibration.evidence['held_out'])} calibration scores are from the old bank, as their "
        "pictures are not here; with the new bank most would be a little lower. The threshold may be a little higher "
        "than it need be: --calibration DIR, the folder that the old recipe was built from, makes it exact"
    )
    return [note]


def _fields(
    request: ExtendRequest,
    parent: Recipe,
    station: Station,
    bank: Bank,
    calibration: Calibration,
    plan: Plan,
    known: Known,
) -> dict[str, Any]:
    """recipe.json but its golden samples: bank, thresholds, version and origin are new, all else is as it was."""
    old, limits = parent.manifest, calibration.thresholds
    origin = _origin(parent, plan, len(bank.rows) - len(parent.bank))
    fields = successor(parent, request.version, request.created_utc, origin)
    fields |= {
        "name": request.name or old.name,
        "backbone": {**fields["backbone"], "file": BACKBONE},
        "bank": {
            "file": BANK,
            "sha256": sha256(bank_bytes(bank.rows, bank.projection)),
            "rows": len(bank.rows),
            "dim": bank.rows.shape[1],
        },
        "thresholds": {"lower": limits.lower, "upper": limits.upper, "pixel": limits.pixel},
        "provisional": False,
        "calibration": {
            **calibration.evidence,
            "seed": request.seed,
            "block": request.block or old.calibration.get("block"),
        },
        "provenance": {
            **fields["provenance"],
            "software": software(station.extractor.provider),
            "pictures": _pictures(old.provenance["pictures"], station.pictures, plan, known),
            "coreset": bank.account,
        },
    }
    return fields


def _pictures(old: Mapping[str, Any], pictures: Gathered, plan: Plan, known: Known) -> dict[str, Any]:
    """The account of all pictures, old and new. Their digest goes on from the old one."""
    looks = {digest: written(look) for digest, look in known.looks.items()}
    fresh = np.sort(np.concatenate([plan.in_bank, plan.sides.held])).tolist()
    lines = "\n".join([old["sha256_of_model_inputs"], *(f"{pictures.digests[i]} {pictures.names[i]}" for i in fresh)])
    return {
        **old,
        "count": old["count"] + len(fresh),
        "in_bank": old["in_bank"] + len(plan.in_bank),
        "bank": [*old["bank"], *bank_listing(pictures, plan.in_bank)],
        "looks": dict(list((looks | look_listing(pictures, fresh)).items())[:MOST_LOOKS]),
        "blocks": old["blocks"] + len({pictures.blocks[i] for i in fresh}),
        "sha256_of_model_inputs": hashlib.sha256(lines.encode()).hexdigest(),
    }


def _origin(parent: Recipe, plan: Plan, rows: int) -> dict[str, Any]:
    return {
        **origin_of(parent, "add"),
        "thresholds": parent.manifest.thresholds.model_dump(mode="json"),
        "added": {
            "in_bank": len(plan.in_bank),
            "kept_apart": len(plan.sides.held),
            "already_known": len(plan.sides.known),
            "rows": rows,
            "accepted": [s.name for s in plan.strangers if s.accepted],
            "dropped_suspects": [s.name for s in plan.dropped],
        },
    }
