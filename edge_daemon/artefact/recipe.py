"""Recipes on disk: a directory, or the same files as one `.recipe` zip for transport.

Bytes in, verified objects out, in the order of the design: schema version and features, digests, signature,
shapes, dtypes and finite values. The engine and the golden samples follow in `detectors.loading`.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError

from edge_daemon.artefact.container import read_folder, read_zip
from edge_daemon.artefact.manifest import (
    ALIGN_FEATURE,
    CAMERA_FEATURE,
    HEALTH_FEATURE,
    KNOWN_FEATURES,
    MASK_FEATURE,
    PCA_FEATURE,
    RECIPE_SCHEMA,
    SMALLEST_FEATURE,
    TILES_FEATURE,
    Manifest,
)
from edge_daemon.artefact.pictures import MAX_PIXELS, decode_picture
from edge_daemon.artefact.signature import MAX_SIGNATURE_BYTES, SIGNATURE, Signed, Trust
from edge_daemon.core.frame import in_colour
from edge_daemon.core.health import SMALLEST_REGION_PX
from edge_daemon.core.strict_json import parse_strictly
from edge_daemon.errors import (
    EdgeError,
    PictureError,
    RecipeDigestError,
    RecipeFeatureError,
    RecipeSchemaError,
    RecipeShapeError,
    RecipeUnreadable,
)

MANIFEST = "recipe.json"
BANK = "bank.safetensors"
BACKBONE = "backbone.onnx"
TEMPLATE = "golden/template.png"
_GOLDEN_NAME = re.compile(r"golden/[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}")
_MAX_MANIFEST_BYTES = 16 << 20
_MOST_BYTES = {
    MANIFEST: _MAX_MANIFEST_BYTES,
    BANK: 4 << 30,
    BACKBONE: 2 << 30,  # a protobuf cannot be larger
    "prototypes.safetensors": 1 << 30,
    SIGNATURE: MAX_SIGNATURE_BYTES,
}
_MOST_PICTURE_BYTES = 512 << 20
_MOST_GOLDEN_BYTES = 2 << 30  # of all golden pictures, decoded
_LONGEST_TOLD = 600
_MAX_WHOLE_PX = 16 << 20  # of the resized picture that goes into the model as one
_MAX_TILED_PX = 64 << 20  # of the picture that is cut: 8000x2000 is a quarter of it
_ZERO_DIGEST = "0" * 64
_NOBODY_ASKS = Trust()
_SELF_DIGEST = re.compile(rb'("self_sha256": ?")([0-9a-f]{64})(")')


@dataclass(frozen=True, slots=True)
class Golden:
    """A golden sample: the full frame and what it must give."""

    file: str
    kind: str
    pixels: NDArray[np.uint8]
    score: float
    max_distance: float
    evaluation: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe whose bytes are verified. digest: SHA-256 that names it; bank: (rows, dim) float32;
    backbone: the fused ONNX graph's bytes; projection: (backbone dim, dim) float32 that takes embeddings to the
    bank's dimensions, None where they are the backbone's; template: the golden picture that parts are located by, a
    full frame, (H, W) or (H, W, 3) uint8, None without feature `align/1`; signed: who vouches for it; in_colour: every
    good part among its golden samples is."""

    manifest: Manifest
    bank: NDArray[np.float32]
    backbone: bytes
    golden: tuple[Golden, ...]
    projection: NDArray[np.float32] | None = None
    template: NDArray[np.uint8] | None = None
    signed: Signed = field(default_factory=Signed)
    in_colour: bool = False

    @property
    def digest(self) -> str:
        return self.manifest.self_sha256


def sha256(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _most_bytes(name: str) -> int:
    """The most bytes that a file of a recipe may have; 0 for what is no part of one."""
    return _MOST_BYTES.get(name) or (_MOST_PICTURE_BYTES if _GOLDEN_NAME.fullmatch(name) else 0)


def read_files(path: Path) -> dict[str, bytes]:
    """The files of a recipe, directory or zip, by name. Raises RecipeUnreadable."""
    try:
        if path.is_dir():
            files = read_folder(path, _most_bytes)
        elif path.exists():
            files = read_zip(path, _most_bytes)
        else:
            raise RecipeUnreadable(f"there is no recipe at {path}")
    except PermissionError as error:
        text = f"recipe {path} may not be read by this user: change its owner or its rights"
        raise RecipeUnreadable(text) from error
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise RecipeUnreadable(
            f"recipe {path} cannot be read ({_short(error)}): it is truncated or damaged, copy it again"
        ) from error
    except MemoryError as error:
        raise RecipeUnreadable(f"recipe {path} is larger than the memory of this PC") from error
    if MANIFEST not in files:
        raise RecipeUnreadable(f"{path} is not a recipe: it has no {MANIFEST}")
    return files


def _parse_manifest(raw: bytes, where: str) -> Manifest:
    """Schema version, features and fields, in that order."""
    if len(raw) > _MAX_MANIFEST_BYTES:
        raise RecipeUnreadable(f"{where}: {MANIFEST} is larger than a manifest may be")
    try:
        data = parse_strictly(raw.decode())
    except (ValueError, RecursionError) as error:
        raise RecipeUnreadable(f"{where}: {MANIFEST} is not JSON ({_short(error)}): copy the recipe again") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != RECIPE_SCHEMA:
        raise RecipeSchemaError(f"{where}: schema is {_short(schema)}, this version reads {RECIPE_SCHEMA!r}")
    features = data.get("required_features")
    if isinstance(features, list):
        unknown = sorted(_short(f) for f in features if f not in _KNOWN)
        if unknown:
            told = _short(", ".join(unknown[:5]))
            raise RecipeFeatureError(f"{where} needs {told}, which this version does not know: update it")
    try:
        return Manifest.model_validate_json(raw, strict=True)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:10])
        raise RecipeSchemaError(f"{where}: {MANIFEST} does not fit the schema: {_short(problems)}") from error


_KNOWN = tuple(KNOWN_FEATURES)  # a tuple: what is asked for may be anything, also what cannot be hashed


def _short(value: object) -> str:
    """For a message, whatever a recipe says: text as it is, anything else as Python shows it."""
    text = str(value) if isinstance(value, str | Exception) else repr(value)
    return text if len(text) <= _LONGEST_TOLD else text[:_LONGEST_TOLD] + "…"


def manifest_digest(raw: bytes) -> str:
    """SHA-256 of recipe.json's bytes with the digits of its own digest zero."""
    return sha256(_SELF_DIGEST.sub(rb"\g<1>" + _ZERO_DIGEST.encode() + rb"\g<3>", raw, count=1))


def _check_digests(manifest: Manifest, raw: bytes, files: Mapping[str, bytes], where: str) -> None:
    """Every file present, named by the manifest, and with its digest. Raises the recipe errors."""
    if manifest_digest(raw) != manifest.self_sha256:
        raise RecipeDigestError(f"{where}: {MANIFEST} was changed after it was written: copy the recipe again")
    expected = {manifest.bank.file: manifest.bank.sha256, **{g.file: g.sha256 for g in manifest.golden}}
    if manifest.backbone.file is not None:
        expected[manifest.backbone.file] = manifest.backbone.sha256
    if manifest.align is not None:
        expected[manifest.align.file] = manifest.align.sha256
    missing = sorted(set(expected) - set(files))
    if missing:
        raise RecipeUnreadable(f"{where} lacks {', '.join(missing)}: copy the recipe again")
    extra = sorted(set(files) - set(expected) - {MANIFEST, SIGNATURE})
    if extra:
        raise RecipeUnreadable(f"{where} holds {', '.join(extra)}, which its manifest does not name")
    for name, digest in expected.items():
        if sha256(files[name]) != digest:
            raise RecipeDigestError(f"{where}: {name} is damaged or was exchanged: copy the recipe again")


def _load_bank(data: bytes, manifest: Manifest, where: str) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """The bank and its projection, checked for name, dtype, shape and finite values."""
    try:
        tensors = safetensors.numpy.load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise RecipeShapeError(f"{where}: {BANK} is not a safetensors file ({error})") from error
    bank = _checked_tensor(tensors, "bank", (manifest.bank.rows, manifest.bank.dim), where)
    if PCA_FEATURE in manifest.required_features:
        shape = (manifest.backbone.dim, manifest.bank.dim)
        return bank, _checked_tensor(tensors, "projection", shape, where)
    if "projection" in tensors:
        raise RecipeShapeError(f"{where}: the bank has a projection, but the recipe does not require {PCA_FEATURE}")
    if manifest.bank.dim != manifest.backbone.dim:
        raise RecipeShapeError(
            f"{where}: the bank has {manifest.bank.dim} dimensions, the backbone {manifest.backbone.dim}"
        )
    return bank, None


def _checked_tensor(
    tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, int], where: str
) -> NDArray[np.float32]:
    """A float32 tensor of that shape, finite, read-only. Raises RecipeShapeError."""
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != np.float32 or tensor.shape != shape:
        found = None if tensor is None else (tensor.dtype, tensor.shape)
        raise RecipeShapeError(f"{where}: the {name} should be float32 {shape}, found {found}")
    if not math.isfinite(float(np.einsum("md,md->", tensor, tensor, dtype=np.float64))):
        raise RecipeShapeError(f"{where}: the {name} holds NaN or infinity")
    tensor = np.ascontiguousarray(tensor)
    tensor.flags.writeable = False
    return tensor


def _check_geometry(manifest: Manifest, where: str) -> None:
    """What the schema cannot say: rectangles inside pictures, thresholds in order."""
    view, pre, backbone = manifest.view, manifest.preprocess, manifest.backbone
    width, height = view.frame_size
    problems = []
    if view.region is not None:
        x, y, w, h = view.region
        if x + w > width or y + h > height:
            problems.append(f"the region {view.region} leaves the frame {view.frame_size}")
    if width * height > MAX_PIXELS or math.prod(pre.resize_to) > (_MAX_TILED_PX if manifest.tiles else _MAX_WHOLE_PX):
        problems.append(f"a frame of {width}x{height} px resized to {pre.resize_to} is larger than one can be judged")
    files = [golden.file for golden in manifest.golden]
    if len(set(files)) != len(files) or len(files) * width * height * 3 > _MOST_GOLDEN_BYTES:
        problems.append("there are more golden pictures, or larger ones, than a recipe has; each file counts once")
    if pre.size[0] > pre.resize_to[0] or pre.size[1] > pre.resize_to[1]:
        problems.append(f"the model size {pre.size} is larger than the resized picture {pre.resize_to}")
    if manifest.tiles is not None:
        problems += _tiles_problems(manifest)
    elif backbone.extent[0] < pre.size[0] or backbone.extent[1] < pre.size[1]:
        problems.append(f"the grid's extent {backbone.extent} does not cover the model size {pre.size}")
    if not problems:
        problems += _mask_problems(manifest) + _align_problems(manifest)
    if manifest.view.min_defect_mm2 is not None and manifest.view.um_per_px is None:
        problems.append("a smallest defect in mm² needs a scale")
    if manifest.thresholds.lower > manifest.thresholds.upper:
        problems.append("the lower threshold is above the upper one")
    for what, part, feature in (
        ("health limits", manifest.health, HEALTH_FEATURE),
        ("an alignment", manifest.align, ALIGN_FEATURE),
        ("a mask", manifest.mask, MASK_FEATURE),
        ("tiles", manifest.tiles, TILES_FEATURE),
        ("a smallest defect", manifest.view.min_defect_mm2, SMALLEST_FEATURE),
        ("camera settings", manifest.camera, CAMERA_FEATURE),
    ):
        if (part is None) == (feature in manifest.required_features):
            problems.append(f"{what} and the feature {feature} do not come together")
    problems += _health_problems(manifest)
    if problems:
        raise RecipeShapeError(f"{where}: {'; '.join(problems)}")


def _health_problems(manifest: Manifest) -> list[str]:
    """Limits that could not be held against a picture would let every one pass."""
    if manifest.health is None:
        return []
    problems = [
        f"the lower health limit of {name} is above the upper one"
        for name, limit in manifest.health.limits.items()
        if limit.lower is not None and limit.upper is not None and limit.lower > limit.upper
    ]
    region = None if manifest.align is not None else manifest.view.region
    width, height = manifest.view.frame_size if region is None else region[2:]
    if min(width, height) < SMALLEST_REGION_PX:
        least = f"{SMALLEST_REGION_PX}x{SMALLEST_REGION_PX}"
        problems.append(
            f"health cannot be measured in {width}x{height} px, it takes {least}: build the recipe with a larger "
            "region, or without health limits"
        )
    return problems


def _tiles_problems(manifest: Manifest) -> list[str]:
    size, resize_to = manifest.preprocess.size, manifest.preprocess.resize_to
    try:
        _ = manifest.tiling
    except ValueError as error:
        return [str(error)]
    problems = [] if size == resize_to else [f"tiles leave no room for a crop from {resize_to} to {size}"]
    if size[0] * size[1] > _MAX_TILED_PX:
        problems.append(f"a picture of {size[0]}x{size[1]} px is larger than one that is cut into tiles may be")
    return problems


def _mask_problems(manifest: Manifest) -> list[str]:
    if manifest.mask is None:
        return []
    if (manifest.mask.grid[1], manifest.mask.grid[0]) != manifest.grid:
        return [f"the mask has {manifest.mask.grid} cells, the grid {manifest.grid[::-1]}"]
    try:
        ignored = manifest.mask.ignored()
    except ValueError as error:
        return [f"the mask cannot be read: {error}"]
    return ["the mask ignores everything: nothing would be judged"] if ignored.all() else []


def _align_problems(manifest: Manifest) -> list[str]:
    if manifest.align is None:
        return []
    (x, y, w, h), (width, height) = manifest.align.template, manifest.view.frame_size
    if manifest.align.file != TEMPLATE or x + w > width or y + h > height:
        return [f"the template {manifest.align.template} is not inside a frame {width, height} in {TEMPLATE}"]
    return []


def _load_template(manifest: Manifest, files: Mapping[str, bytes], where: str) -> NDArray[np.uint8] | None:
    """The golden picture that parts are located by, of the frame's size."""
    if manifest.align is None:
        return None
    try:
        return decode_picture(files[manifest.align.file], manifest.align.file, manifest.view.frame_size)
    except PictureError as error:
        raise RecipeShapeError(f"{where}: {manifest.align.file} is no picture of the frame: {error}") from error


def _load_golden(manifest: Manifest, files: Mapping[str, bytes], where: str) -> tuple[Golden, ...]:
    """The golden pictures, decoded, of the frame's size."""
    golden = []
    for part in manifest.golden:
        try:
            pixels = decode_picture(files[part.file], part.file, manifest.view.frame_size)
        except PictureError as error:
            raise RecipeShapeError(f"{where}: golden sample {part.file} is no picture of the frame: {error}") from error
        golden.append(Golden(part.file, part.kind, pixels, part.score, part.max_distance, part.evaluation))
    return tuple(golden)


def load_recipe(path: Path, backbone_of: Callable[[str], bytes] | None = None, trust: Trust = _NOBODY_ASKS) -> Recipe:
    """Read and verify a recipe: schema and features, digests, signature, shapes and values.

    path: directory or `.recipe` file; backbone_of: gives the backbone for a digest where the recipe carries none;
    trust: whose signature counts, and whether one is needed. Raises the subclasses of RecipeError, each step its own.
    """
    return verify_files(read_files(path), str(path), backbone_of, trust)


def verify_files(
    files: Mapping[str, bytes],
    where: str,
    backbone_of: Callable[[str], bytes] | None = None,
    trust: Trust = _NOBODY_ASKS,
) -> Recipe:
    """As `load_recipe`, for files already in memory; `where` names them in errors."""
    raw = files[MANIFEST]
    manifest = _parse_manifest(raw, where)
    _check_digests(manifest, raw, files, where)
    if manifest.backbone.file is not None:
        backbone = files[manifest.backbone.file]
    elif backbone_of is not None:
        backbone = backbone_of(manifest.backbone.sha256)
    else:
        raise RecipeUnreadable(f"{where} carries no backbone: load it through a store that has it")
    if sha256(backbone) != manifest.backbone.sha256:
        raise RecipeDigestError(f"{where}: the store's backbone {manifest.backbone.sha256[:12]} is damaged")
    signed = trust.judge(files.get(SIGNATURE), manifest.self_sha256, where)
    _check_geometry(manifest, where)
    bank, projection = _load_bank(files[manifest.bank.file], manifest, where)
    golden, template = _load_golden(manifest, files, where), _load_template(manifest, files, where)
    # Not of the others: damage is pasted on in colour, on grey parts too.
    good = [sample.pixels for sample in golden if sample.kind == "good"]
    coloured = bool(good) and all(map(in_colour, good))
    return Recipe(manifest, bank, backbone, golden, projection, template, signed, coloured)


def bank_bytes(bank: NDArray[np.float32], projection: NDArray[np.float32] | None = None) -> bytes:
    """bank.safetensors for (rows, dim) float32 and, with feature `pca/1`, its (backbone dim, dim) projection."""
    tensors = {"bank": np.ascontiguousarray(bank, np.float32)}
    if projection is not None:
        tensors["projection"] = np.ascontiguousarray(projection, np.float32)
    return safetensors.numpy.save(tensors)


def manifest_bytes(fields: Mapping[str, Any]) -> bytes:
    """recipe.json for all fields of a manifest except `self_sha256`, which is computed and put in.

    Raises RecipeSchemaError when the fields do not make a manifest.
    """
    try:
        manifest = Manifest.model_validate({**fields, "self_sha256": _ZERO_DIGEST})
    except ValidationError as error:
        raise RecipeSchemaError(f"the recipe cannot be written: {error}") from error
    raw = json.dumps(manifest.model_dump(mode="json"), indent=2, allow_nan=False).encode() + b"\n"
    return raw.replace(_ZERO_DIGEST.encode(), manifest_digest(raw).encode(), 1)


def write_recipe(out: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a recipe, a `.recipe` zip when `out` ends so, else a directory.

    Complete or not at all: written beside the target and renamed over it. An existing recipe is replaced.
    Raises EdgeError when the place cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise EdgeError(f"the recipe cannot be written to {out}: {error}") from error
    try:
        if out.suffix == ".recipe":
            _write_zip(partial / "recipe", files)
            os.replace(partial / "recipe", out)
        else:
            _write_directory(partial / "recipe", files)
            if out.exists():
                out.rename(partial / "old")
            os.replace(partial / "recipe", out)
    except OSError as error:
        raise EdgeError(f"the recipe cannot be written to {out}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    with path.open("wb") as raw:
        with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(files):
                archive.writestr(zipfile.ZipInfo(name), files[name])  # ZipInfo's fixed date: equal bytes
        raw.flush()
        os.fsync(raw.fileno())


def _write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    path.mkdir()
    for name in sorted(files):
        target = path / name
        target.parent.mkdir(exist_ok=True)
        with target.open("wb") as raw:
            raw.write(files[name])
            raw.flush()
            os.fsync(raw.fileno())
