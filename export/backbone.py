"""Which backbone a recipe gets: the embedded one, or a file that `edge-export backbone` made.

Needs no torch. The embedded backbone is a small network distilled from a larger one (see its card);
it is part of the package, so that a line PC without internet can learn a product.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from export.errors import BackboneError
from export.fuse import FUSED_SCHEMA, FusedBackbone, Profile, describe, fuse
from export.graph import RawBackbone, Size, describe_raw, load_graph, read_bytes, read_metadata, sha256_of, size_text

EMBEDDED = "edge_small"
DEFAULT_SIZE: Size = (256, 256)
DEFAULT_PROFILE: Profile = "anomalib"

# What `edge-export backbone` writes into its folder.
FUSED_FILE, RAW_FILE, CARD_FILE = "backbone.onnx", "raw.onnx", "backbone.json"


@dataclass(frozen=True, slots=True)
class EmbeddedBackbone:
    """The raw graph inside the package, with its normalisation, and its model card."""

    raw: RawBackbone
    card: dict[str, Any]


def embedded_backbone() -> EmbeddedBackbone:
    """The backbone inside the package. Raises BackboneError when the installation is damaged."""
    folder = files("export") / "backbones"
    try:
        model_bytes = (folder / f"{EMBEDDED}.onnx").read_bytes()
        card = json.loads((folder / f"{EMBEDDED}.json").read_text())
    except (OSError, ValueError) as exc:
        raise BackboneError(f"the embedded backbone is missing or damaged ({exc}): install the package again") from exc
    if card.get("sha256") != sha256_of(model_bytes):
        raise BackboneError("the embedded backbone is not the one on its card: install the package again")
    return EmbeddedBackbone(describe_raw(model_bytes), card)


def resolve_backbone(
    path: Path | None = None, profile: Profile | None = None, size: Size | None = None
) -> FusedBackbone:
    """The fused graph for a recipe of `profile` and `size` (width, height in pixels).

    path None: the embedded backbone. A fused graph must be of that profile and size (None: whatever it
    is). A raw graph with our metadata, as it lies beside the fused one, is fused anew. A folder of
    `edge-export backbone`: its fused graph where that fits, else its raw one.
    Without a file to say it, the profile is `anomalib` and the size 256 x 256. Raises BackboneError.
    """
    if path is None:
        return fuse(embedded_backbone().raw, size or DEFAULT_SIZE, profile or DEFAULT_PROFILE)
    if path.is_dir():
        return _from_folder(path, profile, size)
    model_bytes = read_bytes(path)
    try:
        if read_metadata(load_graph(model_bytes)).get("schema") == FUSED_SCHEMA:
            fused = describe(model_bytes)
            complaint = _mismatch(fused, profile, size)
            if complaint:
                raise BackboneError(f"{complaint}; {_advice(path)}")
            return fused
        raw = describe_raw(model_bytes)
        return fuse(raw, size or raw.size or DEFAULT_SIZE, profile or DEFAULT_PROFILE)
    except BackboneError as exc:
        raise BackboneError(f"{path}: {exc}") from exc


def _from_folder(folder: Path, profile: Profile | None, size: Size | None) -> FusedBackbone:
    fused_path, raw_path = folder / FUSED_FILE, folder / RAW_FILE
    if not fused_path.exists() and not raw_path.exists():
        raise BackboneError(
            f"{folder} holds neither {FUSED_FILE} nor {RAW_FILE}: make them with `edge-export backbone`"
        )
    if not raw_path.exists():
        return resolve_backbone(fused_path, profile, size)
    if fused_path.exists():
        fused = describe(fused_path)
        if not _mismatch(fused, profile, size):
            return fused
        profile, size = profile or fused.profile, size or fused.size
    return resolve_backbone(raw_path, profile, size)


def _mismatch(fused: FusedBackbone, profile: Profile | None, size: Size | None) -> str:
    if profile not in (None, fused.profile):
        return f"it was made for profile {fused.profile}, asked for is {profile}"
    if size not in (None, fused.size):
        return f"it was made for pictures of {size_text(fused.size)}, asked for are {size_text(size or fused.size)}"
    return ""


def _advice(path: Path) -> str:
    raw = path.with_name(RAW_FILE)
    if raw.exists():
        return f"give {raw}, which is fused anew for what is asked"
    return "make one that fits with `edge-export backbone`"


def parse_size(text: str) -> Size:
    """`256` or `1280x512`, width x height in pixels. Raises ValueError."""
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) not in (1, 2) or not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
        raise ValueError(f"{text!r} is no size: give one number for a square, or WIDTHxHEIGHT, as in 1280x512")
    return int(sides[0]), int(sides[-1])
