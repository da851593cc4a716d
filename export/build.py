"""From a folder of good pictures to a recipe: split, bank, thresholds, golden samples, proof, file."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from edge_daemon import __version__
from edge_daemon.artefact.manifest import PCA_FEATURE, RecipeName
from edge_daemon.artefact.recipe import (
    BACKBONE,
    BANK,
    MANIFEST,
    bank_bytes,
    manifest_bytes,
    sha256,
    write_recipe,
)
from edge_daemon.core.conformal import split_blocks
from edge_daemon.core.geometry import Region
from edge_daemon.detectors.base import Detector
from edge_daemon.detectors.patchcore import PatchCoreSettings
from edge_daemon.engines.sessions import EngineOptions
from edge_daemon.errors import EdgeError
from export.backbone import resolve_backbone
from export.bank import Bank, BankPlan, Reduce, make_bank, of_pictures
from export.calibrate import (
    MIN_PICTURES,
    Calibration,
    calibrate,
    held_out_fraction,
    leave_one_out,
    supported_rate,
)
from export.camera import camera_notes, taken_with, with_camera
from export.errors import CalibrationError, ExportError, PicturesError
from export.fuse import FusedBackbone, Profile
from export.gather import Gathered, Progress, first_frame_size, list_pictures
from export.golden import GoldenSample, golden_samples, prove
from export.health import learn_health, with_health
from export.likeness import written
from export.station import Station, make_extractor, open_station, twin_notes
from export.suspects import MIN_PARTS, Suspect, find_suspects
from export.view import Look, ViewOptions, look, tiling

DEFAULT_HELD_OUT = 0.3
DEFAULT_RATIO = 0.1
DEFAULT_LARGEST_BANK = 100_000  # rows; the greedy's time grows with patches times rows, the search with rows
DEFAULT_LARGEST_BANK_OF_TILES = 10_000  # a large picture has a hundred times the patches
PAPER_SIZE = (224, 224)
_PAPER_RESIZE = Fraction(256, 224)  # short side 256, centre crop 224
MOST_LOOKS = 10_000  # in a recipe.json; 1.1 KB each, and the daemon reads no more than 16 MB
_SHOWN_SUSPECTS = 20

_PARAMETERS: dict[Profile, dict[str, Any]] = {
    "anomalib": {
        "neighbours": 9,
        "metric": "euclidean",
        "upsampling": "nearest",
        "blur": "torch_reflect",
        "blur_sigma_px": 4.0,
    },
    "paper": {
        "neighbours": 1,
        "metric": "squared_euclidean",
        "upsampling": "bilinear",
        "blur": "scipy_reflect",
        "blur_sigma_px": 4.0,
    },
}


@dataclass(frozen=True, slots=True)
class RecipeRequest:
    """What the engineer asked for; None leaves the choice to the pictures or the backbone.

    size: width, height of the model input; coreset_ratio: share of the patches kept, 0 to 1, None for a tenth and at
    most 100,000;
    false_reject_rate: per part, 0 to 1; undecided_rate: the part of it that comes out NotDecidable; held_out: share
    of blocks kept apart; drop_suspects: leave them out of the bank; reduce: dimensions of the embeddings after a PCA,
    "auto" for as few as are enough; search: engine of the nearest-neighbour search, None for what each PC finds
    fastest;
    block: see `core.conformal.name_blocks`; region: of the full frame, in pixels; look: parts located, regions
    ignored, tiles; created_utc: ISO 8601; camera: bind the recipe to what the pictures were taken with, where that is
    known; camera_settings: a file that says it.
    """

    name: str
    images: Path
    out: Path
    created_utc: str
    version: str
    backbone: Path | None = None
    profile: Profile | None = None
    size: tuple[int, int] | None = None
    coreset_ratio: float | None = None
    false_reject_rate: float | None = None
    undecided_rate: float | None = None
    drop_suspects: bool = False
    reduce: Reduce = None
    search: str | None = None
    held_out: float | None = None
    block: str | None = None
    region: Region | None = None
    um_per_px: float | None = None
    look: ViewOptions = field(default_factory=ViewOptions)
    provisional: bool = False
    skip_unreadable: bool = False
    health: bool = True
    camera: bool = True
    camera_settings: Path | None = None
    seed: int = 0
    engine: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True, slots=True)
class BuiltRecipe:
    """What was written, for the summary. notes: what the engineer should know, one sentence each."""

    path: Path
    digest: str
    manifest: dict[str, Any]
    pictures: int
    bank_pictures: int
    patches: int
    skipped: list[str]
    notes: list[str]


def build_recipe(request: RecipeRequest, progress: Progress) -> BuiltRecipe:
    """Build, prove and write one recipe. Nothing is written before all of it has passed.

    Raises ExportError or EdgeError.
    """
    _check_request(request)
    paths = list_pictures(request.images)
    camera = taken_with(request.images, paths, request.camera_settings) if request.camera else None
    station, seen, notes = _open(request, paths, progress)
    notes += camera_notes(request.images, camera) if request.camera else []
    pictures = station.pictures
    suspects: list[Suspect] | None = None
    if request.provisional:
        calibration, bank = _provisional(request, station, progress)
        in_bank = np.arange(len(pictures.names))
        notes.append("PROVISIONAL: the threshold promises no false-reject rate; record more good parts and build again")
        notes.append("pictures unlike the others were NOT looked for, a provisional recipe has too few: look at each")
    else:
        bank_blocks, held = _split(request, pictures)
        in_bank = pictures.indices(bank_blocks)
        supported_rate(len(held), request.false_reject_rate, request.undecided_rate)  # before the minutes of work
        suspects = find_suspects(station.embed, in_bank, pictures.blocks, request.seed, progress)
        notes += _suspect_notes(request, station, suspects, in_bank)
        if request.drop_suspects and suspects is not None:
            in_bank = np.setdiff1d(in_bank, [suspect.index for suspect in suspects])
        calibration, bank = _calibrated(request, station, in_bank, held, progress)
        if request.coreset_ratio is None and bank.account["ratio"] < DEFAULT_RATIO:
            notes.append(
                f"the bank stops at {_largest_bank(request)} rows, {bank.account['ratio']:.1%} of the patches: a "
                "larger one takes hours to choose and is slower to search; --coreset-ratio says otherwise"
            )
        notes += _reduction_notes(bank)
        notes += _checkpoint_notes(bank, checkpoint_path(request.out))
    detector = station.detector(bank, calibration.thresholds)
    golden, golden_notes = golden_samples(detector, pictures, calibration, request.seed)
    manifest = _manifest_fields(request, station, calibration, bank, golden, in_bank, suspects)
    manifest = with_camera(seen.fields(manifest, station.settings, station.backbone.size), camera)
    if request.health:
        located = station.settings.locator is not None
        region = None if located else station.settings.region
        health = learn_health(pictures.paths, pictures.names, pictures.blocks, region, progress, located=located)
        manifest, notes = with_health(manifest, health.health), [*notes, *health.notes]
    files = {
        BANK: bank_bytes(bank.rows, bank.projection),
        BACKBONE: station.backbone.model_bytes,
        MANIFEST: manifest_bytes(manifest),
        **{g.file: g.png for g in golden},
        **seen.files(),
    }
    digest = prove(files, f"the new recipe {request.name}", request.engine)
    write_recipe(request.out, files)
    checkpoint_path(request.out).unlink(missing_ok=True)
    return BuiltRecipe(
        path=request.out,
        digest=digest,
        manifest=json.loads(files[MANIFEST]),
        pictures=len(pictures.names),
        bank_pictures=len(in_bank),
        patches=len(in_bank) * station.patches,
        skipped=pictures.skipped,
        notes=[*notes, *golden_notes],
    )


def _check_request(request: RecipeRequest) -> None:
    problems = []
    if request.coreset_ratio is not None and not 0 < request.coreset_ratio <= 1:
        problems.append(f"--coreset-ratio must lie above 0 and at most at 1, not {request.coreset_ratio:g}")
    if request.false_reject_rate is not None and not 0 < request.false_reject_rate < 1:
        problems.append(f"--false-reject-rate must lie between 0 and 1, not {request.false_reject_rate:g}")
    if request.held_out is not None and not 0 < request.held_out < 1:
        problems.append(f"--held-out must lie between 0 and 1, not {request.held_out:g}")
    if isinstance(request.reduce, int) and request.reduce < 1:
        problems.append(f"--reduce must be 1 or more dimensions, not {request.reduce}")
    if request.um_per_px is not None and not 0 < request.um_per_px < math.inf:
        problems.append(f"--um-per-px must be a positive number, not {request.um_per_px:g}")
    if request.undecided_rate is not None and not 0 < request.undecided_rate < 1:
        problems.append(f"--undecided-rate must lie between 0 and 1, not {request.undecided_rate:g}")
    if request.provisional and (request.false_reject_rate is not None or request.undecided_rate is not None):
        problems.append("--provisional promises no rate: leave out --false-reject-rate and --undecided-rate")
    if request.provisional and request.drop_suspects:
        problems.append(
            "--provisional has too few pictures to tell which are unlike the others, and drops none: leave out "
            "--drop-suspects, and remove from the folder what is defective"
        )
    if request.camera_settings is not None and not request.camera:
        problems.append("--camera-settings says what --no-camera-settings leaves out: give one of them")
    problems += request.look.problems(request.um_per_px)
    try:
        TypeAdapter(RecipeName).validate_python(request.name)
    except ValidationError:
        problems.append(
            f"--name {request.name!r}: use up to 64 letters, digits, _ . - and begin with a letter or digit"
        )
    problems += output_problems(request.out)
    if problems:
        raise ExportError("\n".join(problems))


def output_problems(out: Path) -> list[str]:
    """What keeps a recipe from being written there; nothing of anybody else is ever replaced."""
    problems = []
    if out.suffix == ".recipe" and out.is_dir():
        problems.append(f"--out {out} is a folder, but the name asks for one file: give another name")
    if out.suffix != ".recipe" and out.is_file():
        problems.append(f"--out {out} is a file: end the name in .recipe, or give another one")
    parent = next((p for p in out.absolute().parents if p.exists()), Path("/"))
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        problems.append(f"--out {out}: the folder {parent} cannot be written")
    if out.is_dir() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        problems.append(f"--out {out} is a folder with something else in it: give another name")
    return problems


def _open(request: RecipeRequest, paths: Sequence[Path], progress: Progress) -> tuple[Station, Look, list[str]]:
    """Backbone, geometry and pictures; with what is worth saying about them."""
    _check_count(len(paths), request)
    size = request.size
    if size is None and request.backbone is None and request.profile == "paper":
        size = PAPER_SIZE
    backbone = resolve_backbone(request.backbone, request.profile, size)
    frame_size = first_frame_size(paths)
    # What is located is what is judged: the whole frame would reach beyond its border as soon as a part lies elsewhere.
    region = request.region or (request.look.align.template if request.look.align else None)
    settings = _settings(backbone, frame_size, region, request.look)
    grid = backbone.grid[::-1] if settings.tiling is None else settings.tiling.grid
    seen, settings = look(request.look, settings, grid, paths)
    extractor = make_extractor(backbone, request.engine, settings)
    station = open_station(
        backbone, extractor, settings, request.images, request.block, request.skip_unreadable, progress
    )
    _check_count(len(station.pictures.names), request)
    _check_parts(station.pictures, request)
    notes = [*seen.notes(settings), *twin_notes(station.pictures)]
    if isinstance(request.reduce, int) and request.reduce >= backbone.dim:
        raise ExportError(f"--reduce {request.reduce}: the backbone's embeddings have {backbone.dim} dimensions only")
    unseen = 1 - math.prod(settings.size) / math.prod(settings.resize_to)
    if unseen > 0:
        notes.append(
            f"profile {backbone.profile} crops the centre: {unseen:.0%} of the picture, its border, is NOT judged"
        )
    return station, seen, notes


def _suspect_notes(
    request: RecipeRequest, station: Station, suspects: Sequence[Suspect] | None, in_bank: NDArray[np.int64]
) -> list[str]:
    """Which pictures do not look like good ones, on which side they are and what that means."""
    if suspects is None:
        return [
            f"pictures unlike the others were NOT looked for: the bank's side shows {_parts(station, in_bank)} parts "
            f"(or blocks), {MIN_PARTS} are needed to know what is usual"
            + ("; --drop-suspects left nothing out" if request.drop_suspects else "")
            + ". Look at each picture: a defect in the bank is good from now on"
        ]
    names, bank_side = station.pictures.names, set(in_bank.tolist())
    sides = [s for s in suspects if s.index in bank_side], [s for s in suspects if s.index not in bank_side]
    listed = [
        ", ".join(f"{names[s.index]} ({s.times:.2f} times)" for s in side[:_SHOWN_SUSPECTS])
        + (f" and {len(side) - _SHOWN_SUSPECTS} more" if len(side) > _SHOWN_SUSPECTS else "")
        for side in sides
    ]
    notes = []
    if sides[0] and request.drop_suspects:
        notes.append(f"SUSPECT, left out of the bank: {listed[0]} as strange as a usual picture")
    elif sides[0]:
        notes.append(
            f"SUSPECT, in the bank: {listed[0]} as strange as a usual picture. Look at them: a defect in the bank is "
            "good from now on. Remove what is defective from the folder and build again, or leave all of them out with "
            "--drop-suspects"
        )
    if sides[1]:
        notes.append(
            f"SUSPECT, among the pictures kept apart: {listed[1]} as strange as a usual picture. They stay: to drop "
            "them for their looks would void the false-reject rate. Look at them: if one is defective, the threshold "
            "may be so high that such defects pass; remove it from the folder and build again"
        )
    return notes


def _parts(station: Station, indices: NDArray[np.int64]) -> int:
    return len({station.pictures.blocks[index] for index in indices.tolist()})


def _check_count(count: int, request: RecipeRequest) -> None:
    if count < MIN_PICTURES and not request.provisional:
        raise PicturesError(
            f"{request.images} holds {count} usable pictures, a calibrated threshold needs {MIN_PICTURES} or more: "
            "record more good parts, or make a recipe marked provisional with --provisional"
        )


def _check_parts(pictures: Gathered, request: RecipeRequest) -> None:
    """Raises PicturesError for a folder of copies: of a line that stood still, of one part taken again and again."""
    parts, copies = len(set(pictures.blocks)), pictures.copies + pictures.near_copies
    if not request.provisional and parts < MIN_PICTURES and parts + copies >= len(pictures.names) > parts:
        shown = "one part" if parts == 1 else f"{parts} different parts"
        raise PicturesError(
            f"the {len(pictures.names)} pictures in {request.images} show {shown} only: {copies} are copies of others, "
            "or differ from them in noise only, as those of a line that stood still. They would make the threshold "
            f"look better than it is; a calibrated one needs {MIN_PICTURES} parts: record more different good parts"
            + ("" if parts < 2 else ", or make a recipe marked provisional with --provisional")
            + ". If every picture does show another part, so alike that nothing tells them apart, --block 1 says so"
        )


def _settings(
    backbone: FusedBackbone, frame_size: tuple[int, int], region: Region | None, options: ViewOptions
) -> PatchCoreSettings:
    """Geometry and parameters of the profile. Raises PicturesError when the region leaves the frame, or when it
    cannot be cut into tiles."""
    width, height = frame_size
    if region is not None:
        inside = region.x >= 0 and region.y >= 0 and region.x + region.w <= width and region.y + region.h <= height
        if not inside or region.w < 1 or region.h < 1:
            raise PicturesError(
                f"--roi {region.x},{region.y},{region.w},{region.h} leaves the pictures, which are {width}x{height} px"
            )
        width, height = region.w, region.h
    cut = tiling(options, backbone, width, height)
    resize_to = backbone.size if cut is None else cut.size
    if backbone.profile == "paper" and cut is None:
        resize_to = paper_size(backbone.size, (width, height))
    return PatchCoreSettings(
        frame_size=frame_size,
        region=region,
        resize="antialias" if backbone.profile == "anomalib" else "area",
        resize_to=resize_to,
        size=backbone.size if cut is None else cut.size,
        extent=backbone.extent if cut is None else cut.size,
        tiling=cut,
        smallest_px=0.0,
        **_PARAMETERS[backbone.profile],
    )


def paper_size(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """To what a frame is resized before its middle is cut out for profile `paper`, width and height: the short side to
    256 for a crop of 224, the long one in proportion and rounded down (Roth et al. 2022, section 4.1, as
    torchvision's `Resize(256)`). In fractions: with floats 1080 rows came out as 255."""
    factor = _PAPER_RESIZE * max(Fraction(size[0], frame[0]), Fraction(size[1], frame[1]))
    return max(size[0], int(frame[0] * factor)), max(size[1], int(frame[1] * factor))


def _split(request: RecipeRequest, pictures: Gathered) -> tuple[list[str], list[str]]:
    """Blocks for the bank, blocks for the threshold."""
    blocks = len(set(pictures.blocks))
    try:
        fraction = held_out_fraction(request.held_out, DEFAULT_HELD_OUT, blocks)
        return split_blocks(pictures.blocks, fraction, request.seed)
    except EdgeError as exc:
        raise CalibrationError(str(exc)) from exc


def _calibrated(
    request: RecipeRequest, station: Station, in_bank: NDArray[np.int64], held: list[str], progress: Progress
) -> tuple[Calibration, Bank]:
    plan = _plan(request, station, len(in_bank))
    bank = make_bank(station.embed_all(in_bank, progress), plan, progress, checkpoint_path(request.out))
    rates = request.false_reject_rate, request.undecided_rate
    return calibrate(station.detector(bank), station.pictures, held, *rates, progress), bank


def _provisional(request: RecipeRequest, station: Station, progress: Progress) -> tuple[Calibration, Bank]:
    """A bank of all pictures; thresholds from banks of all but one block."""
    everything = np.arange(len(station.pictures.names))
    embeddings = station.embed_all(everything, progress)
    plan = _plan(request, station, len(everything))

    def detector_without(kept: NDArray[np.int64]) -> Detector:
        return station.detector(make_bank(of_pictures(embeddings, kept, station.patches), plan, None))

    calibration = leave_one_out(detector_without, station.pictures, progress)
    return calibration, make_bank(embeddings, plan, progress)


def _plan(request: RecipeRequest, station: Station, pictures: int) -> BankPlan:
    """How the bank of so many pictures is made."""
    ratio = coreset_ratio(request, pictures * station.patches)
    paper = station.backbone.profile == "paper"
    return BankPlan(ratio, station.settings.neighbours, paper, request.seed, request.reduce, station.patches)


def coreset_ratio(request: RecipeRequest, patches: int) -> float:
    """The share of so many patches that becomes the bank."""
    if request.coreset_ratio is not None:
        return request.coreset_ratio
    return min(DEFAULT_RATIO, _largest_bank(request) / patches)


def _largest_bank(request: RecipeRequest) -> int:
    return DEFAULT_LARGEST_BANK if request.look.scale is None else DEFAULT_LARGEST_BANK_OF_TILES


def _reduction_notes(bank: Bank) -> list[str]:
    """What `--reduce auto` chose, and from what."""
    chosen = bank.account.get("chosen_reduction")
    if chosen is None:
        return []
    offers = ", ".join(f"{o['dims']}: {o['correlation']:.4f}" for o in chosen["offers"])
    taken = "none is enough" if bank.projection is None else f"{bank.rows.shape[1]} taken"
    return [
        f"dimensions and the correlation of distances among good patches that they keep: {offers}; {taken}. What good "
        "parts do not show cannot be weighed this way: measure with labelled defects where there are some"
    ]


def _checkpoint_notes(bank: Bank, path: Path) -> list[str]:
    """What became of an interrupted build of this recipe, and which others lie beside it."""
    notes = []
    if bank.continued_at:
        notes.append(f"the coreset was taken up again at {bank.continued_at} rows, where a build was interrupted")
    if bank.other_checkpoint:
        notes.append(
            f"{path.name}, of an interrupted build with other pictures or options, could not be used and was removed"
        )
    others = sorted(other.name for other in path.parent.glob(".*.coreset") if other != path)
    if others:
        notes.append(
            f"interrupted builds of other recipes left {', '.join(others)} in {path.parent}: the same command goes on "
            "there; what nobody wants to go on with can be deleted"
        )
    return notes


def checkpoint_path(out: Path) -> Path:
    """Where an interrupted build of that recipe keeps what it had chosen."""
    return out.with_name(f".{out.name}.coreset")


def _manifest_fields(
    request: RecipeRequest,
    station: Station,
    calibration: Calibration,
    bank: Bank,
    golden: Sequence[GoldenSample],
    in_bank: NDArray[np.int64],
    suspects: Sequence[Suspect] | None,
) -> dict[str, Any]:
    """Everything of recipe.json but its own digest."""
    settings, backbone = station.settings, station.backbone
    region = settings.region
    return {
        "required_features": ["patchcore/1"] if bank.projection is None else ["patchcore/1", PCA_FEATURE],
        "name": request.name,
        "version": request.version,
        "created_utc": request.created_utc,
        "detector": "patchcore",
        "view": {
            "frame_size": settings.frame_size,
            "region": (region.x, region.y, region.w, region.h) if region else None,
            "um_per_px": request.um_per_px,
        },
        "preprocess": {"resize": settings.resize, "size": settings.size, "resize_to": settings.resize_to},
        "backbone": {
            "name": backbone.name,
            "sha256": backbone.sha256,
            "file": BACKBONE,
            "precision": backbone.precision,
            "grid": backbone.grid,
            "extent": backbone.extent,
            "dim": backbone.dim,
        },
        "parameters": {
            "profile": backbone.profile,
            **_PARAMETERS[backbone.profile],
            **({} if request.search is None else {"engine": request.search}),
        },
        "bank": {
            "file": BANK,
            "sha256": sha256(bank_bytes(bank.rows, bank.projection)),
            "rows": len(bank.rows),
            "dim": bank.rows.shape[1],
        },
        "thresholds": {
            "lower": calibration.thresholds.lower,
            "upper": calibration.thresholds.upper,
            "pixel": calibration.thresholds.pixel,
        },
        "provisional": calibration.conformal is None,
        "calibration": {**calibration.evidence, "seed": request.seed, "block": request.block},
        "golden": [g.manifest_entry() for g in golden],
        "provenance": _provenance(request, station, calibration, bank, in_bank, suspects),
    }


def _provenance(
    request: RecipeRequest,
    station: Station,
    calibration: Calibration,
    bank: Bank,
    in_bank: NDArray[np.int64],
    suspects: Sequence[Suspect] | None,
) -> dict[str, Any]:
    """What the recipe was made of, and with what."""
    pictures, backbone = station.pictures, station.backbone
    held = {scored.index for scored in calibration.scored} if calibration.conformal else set()
    listing = "\n".join(f"{digest} {name}" for name, digest in zip(pictures.names, pictures.digests, strict=True))
    return {
        "software": software(station.extractor.provider),
        "pictures": {
            "count": len(pictures.names),
            "in_bank": len(in_bank),
            "bank": bank_listing(pictures, in_bank),
            "looks": look_listing(pictures, sorted({*in_bank.tolist(), *held})),
            "copies": pictures.copies,
            "near_copies": pictures.near_copies,
            "skipped": len(pictures.skipped),
            "blocks": len(set(pictures.blocks)),
            "sha256_of_model_inputs": hashlib.sha256(listing.encode()).hexdigest(),
            # Null where they were not looked for.
            "suspects": None if suspects is None else [_suspect_entry(pictures, s, held) for s in suspects],
            "dropped_suspects": None if suspects is None else request.drop_suspects,
        },
        "coreset": bank.account,
        "backbone": {
            "layers": backbone.layers,
            "opset": backbone.opset,
            "raw_sha256": backbone.raw_sha256,
            "source": backbone.source_name,
            "source_sha256": backbone.source_sha256,
            "licence": backbone.licence,
            "provenance": backbone.provenance,
        },
    }


def _suspect_entry(pictures: Gathered, suspect: Suspect, held: set[int]) -> dict[str, Any]:
    return {
        "name": pictures.names[suspect.index],
        "times": round(suspect.times, 3),
        "kept_apart": suspect.index in held,
    }


def software(provider: str) -> dict[str, str]:
    """What the scores were computed with."""
    return {
        "edge-daemon": __version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "onnxruntime": ort.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "provider": provider,
    }


def look_listing(pictures: Gathered, indices: Sequence[int]) -> dict[str, str]:
    """Short digest of each picture -> base64 of its look, by which copies of it are known when pictures are added."""
    return {short_digest(pictures.digests[i]): written(pictures.looks[i]) for i in indices[:MOST_LOOKS]}


def bank_listing(pictures: Gathered, in_bank: NDArray[np.int64]) -> list[list[str]]:
    """Name and short digest of every picture of the bank, by which it is known again when pictures are added."""
    return [[pictures.names[index], short_digest(pictures.digests[index])] for index in in_bank.tolist()]


def short_digest(digest: str) -> str:
    """64 bits of a SHA-256: a thousand millions of pictures share none by chance worth speaking of."""
    return digest[:16]
