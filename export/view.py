"""How a recipe looks at the frame beyond a rectangle: parts located, regions ignored, large pictures in tiles."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.manifest import (
    ALIGN_FEATURE,
    MASK_FEATURE,
    SMALLEST_FEATURE,
    TILES_FEATURE,
    tiling_of,
)
from edge_daemon.artefact.pictures import encode_png, read_picture
from edge_daemon.artefact.recipe import TEMPLATE, sha256
from edge_daemon.core.align import Locator, Search
from edge_daemon.core.geometry import Region
from edge_daemon.core.mask import ignored_cells, pack
from edge_daemon.core.tiles import Tiling
from edge_daemon.detectors.patchcore import PatchCoreSettings
from edge_daemon.errors import PictureError
from export.errors import PicturesError
from export.fuse import FusedBackbone

# A quarter of a tile keeps the patches that see the network's padding out of the middle.
_OVERLAP_SHARE = 4
_WHITE = 127


@dataclass(frozen=True, slots=True)
class Align:
    """template: what of the golden picture is the part, pixels; shift_px, rotation_deg: how far parts may lie from it;
    correlation: what is less alike is not the part; picture: the golden picture, None for the first of the folder."""

    template: Region
    shift_px: int = 40
    rotation_deg: float = 15.0
    correlation: float = 0.7
    picture: Path | None = None


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """mask: picture of the frame's size, white where it is to be ignored; scale: model pixels per frame pixel of a
    picture in tiles, None for a picture that is resized to the model's input; min_defect_mm2: smallest box that
    counts."""

    align: Align | None = None
    mask: Path | None = None
    scale: float | None = None
    min_defect_mm2: float | None = None

    def problems(self, um_per_px: float | None) -> list[str]:
        """What is wrong with what was asked for, one sentence each."""
        found = []
        if self.scale is not None and not 0 < self.scale <= 1:
            found.append(
                f"--scale must lie above 0 and at most at 1, not {self.scale:g}: nothing is gained by enlarging"
            )
        if self.min_defect_mm2 is not None and not 0 < self.min_defect_mm2 < math.inf:
            found.append(f"--min-defect-mm2 must be a positive number, not {self.min_defect_mm2:g}")
        if self.min_defect_mm2 is not None and um_per_px is None:
            found.append("--min-defect-mm2 needs the scale: give --um-per-px as well")
        if self.align is not None and not 0 <= self.align.rotation_deg <= 180:
            found.append(f"--align-rotation must lie between 0 and 180 degrees, not {self.align.rotation_deg:g}")
        if self.align is not None and not 0 < self.align.correlation < 1:
            found.append(f"--align-correlation must lie between 0 and 1, not {self.align.correlation:g}")
        return found


@dataclass(frozen=True, slots=True)
class Look:
    """The options made out on pictures. template: the golden picture, (H, W) uint8, and its name; ignored: (gh, gw)
    bool; mask_source: for the recipe."""

    options: ViewOptions
    template: NDArray[np.uint8] | None = None
    template_name: str = ""
    ignored: NDArray[np.bool_] | None = None
    mask_source: Mapping[str, Any] | None = None

    def fields(self, fields: Mapping[str, Any], settings: PatchCoreSettings, tile: tuple[int, int]) -> dict[str, Any]:
        """The fields of recipe.json with what this adds to them. tile: width, height of the backbone's input."""
        changed, features = dict(fields), list(fields["required_features"])
        align = self.options.align
        if align is not None and self.template is not None:
            features.append(ALIGN_FEATURE)
            changed["align"] = {
                "file": TEMPLATE,
                "sha256": sha256(encode_png(self.template)),
                "template": (align.template.x, align.template.y, align.template.w, align.template.h),
                "shift_px": align.shift_px,
                "rotation_deg": align.rotation_deg,
                "correlation": align.correlation,
                "picture": self.template_name,
            }
        if self.ignored is not None:
            features.append(MASK_FEATURE)
            across_down = self.ignored.shape[1], self.ignored.shape[0]
            changed["mask"] = {"grid": across_down, "cells": pack(self.ignored), "source": dict(self.mask_source or {})}
        if settings.tiling is not None:
            features.append(TILES_FEATURE)
            changed["tiles"] = {"tile": tile, "overlap_px": settings.tiling.overlap_px}
        if self.options.min_defect_mm2 is not None:
            features.append(SMALLEST_FEATURE)
            changed["view"] = {**changed["view"], "min_defect_mm2": self.options.min_defect_mm2}
        return {**changed, "required_features": features}

    def files(self) -> dict[str, bytes]:
        """What it adds to the recipe's files."""
        return {} if self.template is None else {TEMPLATE: encode_png(self.template)}

    def notes(self, settings: PatchCoreSettings) -> list[str]:
        """What the engineer should know, one sentence each."""
        found = []
        if self.options.align is not None:
            align = self.options.align
            found.append(
                f"parts are located by {self.template_name}, within {align.shift_px} px and {align.rotation_deg:g} "
                "degrees; what is not found there is NotDecidable"
            )
        if self.ignored is not None:
            found.append(f"the mask ignores {self.ignored.mean():.1%} of the grid: what lies there is NOT judged")
        if settings.tiling is not None:
            (width, height), tiles = settings.tiling.size, len(settings.tiling.tiles())
            found.append(f"the picture is judged at {width}x{height} px in {tiles} tiles")
        return found


def tiling(options: ViewOptions, backbone: FusedBackbone, width: int, height: int) -> Tiling | None:
    """How a picture (or its region) of that size is cut, None where it is not. Raises PicturesError."""
    if options.scale is None:
        return None
    cell = max(1, backbone.extent[0] // backbone.grid[0])
    size = tuple(max(1, round(length * options.scale / cell)) * cell for length in (width, height))
    overlap = min(backbone.size) // _OVERLAP_SHARE // cell * cell
    try:
        return tiling_of((size[0], size[1]), backbone.size, overlap, backbone.grid, backbone.extent)
    except ValueError as exc:
        raise PicturesError(
            f"{width}x{height} px at scale {options.scale:g} cannot be cut into tiles of {backbone.size[0]}x"
            f"{backbone.size[1]}: {exc}. Choose another --scale, or a smaller tile with --size"
        ) from exc


def look(
    options: ViewOptions, settings: PatchCoreSettings, grid: tuple[int, int], paths: Sequence[Path]
) -> tuple[Look, PatchCoreSettings]:
    """The golden picture found, the mask read, and the settings with both. grid: cells down and across.

    Raises PicturesError for a picture or mask that cannot be used.
    """
    found = Look(options)
    if options.align is not None:
        path, pixels = _golden(options.align, settings.frame_size, paths)
        locator = _locator(options.align, pixels)
        found = replace(found, template=pixels, template_name=path.name)
        settings = replace(settings, locator=locator)
    if options.mask is not None:
        ignored, source = _ignored(options.mask, settings, grid)
        found = replace(found, ignored=ignored, mask_source=source)
        settings = replace(settings, ignored=ignored)
    return found, settings


def _golden(align: Align, frame_size: tuple[int, int], paths: Sequence[Path]) -> tuple[Path, NDArray[np.uint8]]:
    """The golden picture in grey: as named, else the first that can be read."""
    for path in (align.picture,) if align.picture is not None else paths:
        try:
            pixels = read_picture(path)
        except PictureError as exc:
            if align.picture is not None:
                raise PicturesError(f"--align-picture: {exc}") from exc
            continue
        if (pixels.shape[1], pixels.shape[0]) != frame_size:
            raise PicturesError(
                f"the golden picture {path} is {pixels.shape[1]}x{pixels.shape[0]} px, the others "
                f"{frame_size[0]}x{frame_size[1]}"
            )
        grey = pixels if pixels.ndim == 2 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
        return path, grey
    raise PicturesError(f"none of the {len(paths)} pictures can be read")


def _locator(align: Align, pixels: NDArray[np.uint8]) -> Locator:
    search = Search(align.shift_px, align.rotation_deg, align.correlation)
    try:
        locator = Locator(pixels, align.template, search)
    except ValueError as exc:
        raise PicturesError(f"--align: {exc}") from exc
    pose = locator.locate(pixels)
    if pose is None or pose.moved:
        raise PicturesError(
            "--align: the rectangle is not found again where it is in the golden picture itself: choose one with edges "
            "in all directions"
        )
    return locator


def _ignored(
    path: Path, settings: PatchCoreSettings, grid: tuple[int, int]
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """(gh, gw) bool, and where it is from."""
    try:
        picture = read_picture(path)
    except PictureError as exc:
        raise PicturesError(f"--mask: {exc}") from exc
    width, height = settings.frame_size
    if picture.shape[:2] != (height, width):
        raise PicturesError(
            f"--mask {path} is {picture.shape[1]}x{picture.shape[0]} px, the pictures {width}x{height}: draw it on "
            "one of them"
        )
    white = (picture if picture.ndim == 2 else picture.max(axis=2)) > _WHITE
    ignored = ignored_cells(white, settings.region, settings.resize_to, settings.size, grid, settings.extent)
    if ignored.all():
        raise PicturesError(
            f"--mask {path} ignores everything that is judged: white is what is ignored, black what counts"
        )
    if not ignored.any():
        raise PicturesError(
            f"--mask {path} ignores nothing: no cell of the grid ({grid[1]}x{grid[0]}) is white to a half or more"
        )
    source = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "share": round(float(ignored.mean()), 6),
    }
    return ignored, source
