"""recipe.json: everything that judges one product with one view (schema `edge-daemon/recipe/1`)."""

from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_serializer,
)

from edge_daemon.core.camera_settings import Value, counting
from edge_daemon.core.mask import unpack
from edge_daemon.core.tiles import Tiling

RECIPE_SCHEMA: Final = "edge-daemon/recipe/1"

# What this version knows; a recipe that requires anything else is refused.
# `pca/1`: bank.safetensors also holds `projection`, (backbone dim, bank dim) float32, which every patch embedding is
# multiplied with before the search; the bank's rows already are.
PCA_FEATURE: Final = "pca/1"
# `health/1`: `health` holds what a picture must be like to be judged at all; see `core.health`.
HEALTH_FEATURE = "health/1"
# `align/1`: `align` says how the part is found in the frame; what is judged is the frame turned and shifted so that the
# part lies as in `golden/template.png`. See `core.align`.
ALIGN_FEATURE: Final = "align/1"
# `mask/1`: `mask` names the cells of the grid that are ignored; see `core.mask`.
MASK_FEATURE: Final = "mask/1"
# `tiles/1`: `preprocess.size` is larger than the backbone's input and judged as overlapping `tiles` of that size; see
# `core.tiles`. `backbone.grid` and `.extent` are those of one tile.
TILES_FEATURE: Final = "tiles/1"
# `smallest/1`: boxes below `view.min_defect_mm2` are counted and not drawn.
SMALLEST_FEATURE: Final = "smallest/1"
# `camera/1`: `camera` has the settings that the pictures were taken with; a camera with others is not judged by it. See
# `core.camera_settings`.
CAMERA_FEATURE: Final = "camera/1"
KNOWN_FEATURES = frozenset(
    {
        "patchcore/1",
        PCA_FEATURE,
        HEALTH_FEATURE,
        ALIGN_FEATURE,
        MASK_FEATURE,
        TILES_FEATURE,
        SMALLEST_FEATURE,
        CAMERA_FEATURE,
    }
)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^(golden/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}$")]
RecipeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Text = Annotated[str, Field(pattern=r"^[^\p{C}]{0,128}$")]
"""Printable, and short enough for every message that repeats it."""
# The limits of the numbers are far beyond any line: they keep what a manifest says from being gigabytes of work.
PositiveInt = Annotated[int, Field(ge=1, le=1 << 31)]
Side = Annotated[int, Field(ge=1, le=1 << 17)]
Place = Annotated[int, Field(ge=0, le=1 << 17)]
Scale = Annotated[float, Field(ge=1e-6, le=1e9, allow_inf_nan=False)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _something_counts(settings: dict[str, Value]) -> dict[str, Value]:
    """With nothing to compare every camera would do."""
    if not counting(settings):
        raise ValueError("names nothing that shapes a picture")
    return settings


SettingName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
SettingValue = (
    StrictBool
    | Annotated[StrictInt, Field(ge=-(10**15), le=10**15)]
    | Annotated[StrictFloat, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
    | Annotated[StrictStr, Field(pattern=r"^[^\p{C}]{0,128}$")]
)
CameraSettings = Annotated[
    dict[SettingName, SettingValue], Field(min_length=1, max_length=64), AfterValidator(_something_counts)
]
"""As a camera was read back to have them; types count: `1`, `1.0`, `"1"` and `true` are four values."""


class Part(BaseModel):
    """Base of the manifest's parts: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileRef(Part):
    """A file of the recipe and its digest."""

    file: FileName
    sha256: Sha256


class ViewPart(Part):
    """What of the frame is judged."""

    frame_size: tuple[Side, Side]
    """Width and height of the full frame; another size is refused at run time."""
    region: tuple[Place, Place, Side, Side] | None = None
    """x, y, w, h of the region of interest in full-frame pixels; null for the whole frame. With feature `align/1` in
    pixels of the aligned picture."""
    um_per_px: Scale | None = None
    """Scale, for box areas in mm²."""
    min_defect_mm2: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    """Feature `smallest/1`: boxes of a smaller area are counted and not drawn. The image score alone decides."""

    @property
    def min_defect_px(self) -> float:
        """The same in full-frame pixels, 0 where every box counts."""
        if self.min_defect_mm2 is None or self.um_per_px is None:
            return 0.0
        return self.min_defect_mm2 / (self.um_per_px / 1000) ** 2

    @model_serializer(mode="wrap")
    def _without_absent_keys(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Versions that do not know the key refuse it even when it says nothing."""
        return _without(serialise(self), ("min_defect_mm2",))


class PreprocessPart(Part):
    """From frame to model input; see `core.resize`."""

    resize: Literal["antialias", "area"]
    size: tuple[Side, Side]
    """Width and height of the picture that is judged, after any crop: the model's input, or what is cut into tiles."""
    resize_to: tuple[Side, Side]
    """Width and height before the centre crop; equals `size` where there is no crop."""


class BackbonePart(Part):
    """The fused graph: uint8 (N, H, W, 3) in, patch embeddings (N, gh, gw, D) float32 out."""

    name: Text
    sha256: Sha256
    file: FileName | None
    """`backbone.onnx`, or null when only the store has it."""
    precision: Literal["fp32", "fp16", "int8"]
    grid: tuple[Side, Side]
    """Cells across and down."""
    extent: tuple[Side, Side]
    """Model pixels that the grid covers, from the upper left; more than `size` where the graph pads."""
    dim: PositiveInt


class BankPart(FileRef):
    """bank.safetensors: tensor `bank`, (rows, dim) float32; with feature `pca/1` also `projection`, see there."""

    rows: PositiveInt
    dim: PositiveInt


class ThresholdsPart(Part):
    """Raw score units; see `core.decision.Thresholds`."""

    lower: Finite
    upper: Finite
    pixel: Finite


class GoldenPart(FileRef):
    """A picture with what it must give through the live engine."""

    kind: Literal["good", "damaged"]
    score: Finite
    max_distance: Finite
    evaluation: Literal["OK", "NotOK", "NotDecidable"]


class PatchCorePart(Part):
    """Parameters of the detector `patchcore` (Roth et al. 2022)."""

    profile: Literal["anomalib", "paper"]
    neighbours: PositiveInt
    """Size of the neighbourhood that re-weights the maximum; 1 for the plain maximum."""
    metric: Literal["euclidean", "squared_euclidean"]
    upsampling: Literal["nearest", "bilinear"]
    blur: Literal["torch_reflect", "scipy_reflect"]
    blur_sigma_px: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
    engine: Literal["auto", "certified", "flat", "numpy", "graph"] = "auto"


HealthMeasure = Literal[
    "brightness",
    "contrast",
    "sharpness_x",
    "sharpness_y",
    "saturation_low",
    "saturation_high",
    "noise",
    "shift_x_px",
    "shift_y_px",
]


class HealthLimitPart(Part):
    """One measure: what is allowed, and what it was learned from. Units as in `core.health.measure`."""

    lower: Annotated[float, Field(allow_inf_nan=False)] | None
    """A picture below is not decidable; null for no limit."""
    upper: Annotated[float, Field(allow_inf_nan=False)] | None
    """A picture above is not decidable; null for no limit."""
    centre: Annotated[float, Field(allow_inf_nan=False)]
    """Median of the good pictures."""
    drift: Finite
    """How far the running mean may lie from the centre; see `core.drift`."""
    deviation: Finite
    """Robust standard deviation of the good pictures."""
    smallest: Annotated[float, Field(allow_inf_nan=False)]
    largest: Annotated[float, Field(allow_inf_nan=False)]


class HealthPart(Part):
    """Feature `health/1`: what a picture must be like to be judged at all."""

    reference: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{5462}==$")]
    """Base64 of the 64x64 bytes, row by row, that shifts are measured against; see `core.health.reduced`."""
    limits: Annotated[dict[HealthMeasure, HealthLimitPart], Field(min_length=1)]
    evidence: dict[str, Any]
    """How the limits were learned: pictures, blocks, stated rate, the reference's name."""


class AlignPart(FileRef):
    """Feature `align/1`: the file is the golden picture, a full frame, and a part is looked for by its `template`."""

    template: tuple[Place, Place, Side, Side]
    """x, y, w, h in pixels of the golden picture."""
    shift_px: Place
    """How far a part may lie from the golden one, in x and in y, full-frame pixels."""
    rotation_deg: Annotated[float, Field(ge=0, le=180, allow_inf_nan=False)]
    """How far it may be turned either way."""
    correlation: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    """What is less alike than this is not the part."""
    picture: str
    """Name of the golden picture where the recipe was made."""


class MaskPart(Part):
    """Feature `mask/1`: what is ignored."""

    grid: tuple[Side, Side]
    """Cells across and down; the whole grid where there are tiles."""
    cells: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=4 << 20)]
    """Base64 of the ignored cells, row by row, eight to a byte; see `core.mask.pack`."""
    source: dict[str, Any]
    """The file it was made from, and the share of the grid that is ignored."""

    def ignored(self) -> NDArray[np.bool_]:
        """(gh, gw) bool. Raises ValueError when the cells do not fill the grid."""
        return unpack(self.cells, (self.grid[1], self.grid[0]))


class TilesPart(Part):
    """Feature `tiles/1`: how the picture is cut; see `core.tiles.Tiling`."""

    tile: tuple[Side, Side]
    """Width and height of the backbone's input."""
    overlap_px: Place
    """The least overlap of two tiles, in pixels of the resized picture."""


class CameraPart(Part):
    """Feature `camera/1`: the camera that the pictures came from, as it was set."""

    settings: CameraSettings
    kind: Text
    """Of the camera's table in the configuration: `gige`, `usb`, ... For people: it is not compared."""
    taken_utc: Text


def _without(fields: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The fields without those of these keys that say nothing."""
    return {key: value for key, value in fields.items() if key not in keys or value is not None}


class Manifest(BaseModel):
    """The whole of recipe.json."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True, use_attribute_docstrings=True
    )

    schema_: Annotated[Literal["edge-daemon/recipe/1"], Field(alias="schema")] = RECIPE_SCHEMA
    required_features: Annotated[tuple[Text, ...], Field(max_length=64)]
    self_sha256: Sha256
    """SHA-256 of recipe.json itself with these 64 digits zero: the recipe's digest."""
    name: RecipeName
    version: Text
    created_utc: Text
    detector: Literal["patchcore"]
    view: ViewPart
    preprocess: PreprocessPart
    backbone: BackbonePart
    parameters: PatchCorePart
    bank: BankPart
    thresholds: ThresholdsPart
    provisional: bool
    calibration: dict[str, Any]
    """Evidence for the thresholds: method, held-out scores, rates."""
    golden: Annotated[tuple[GoldenPart, ...], Field(min_length=1, max_length=64)]
    provenance: dict[str, Any]
    health: HealthPart | None = None
    """With feature `health/1`; left out of recipe.json without it, for versions that do not know the key."""
    align: AlignPart | None = None
    mask: MaskPart | None = None
    tiles: TilesPart | None = None
    camera: CameraPart | None = None

    @property
    def tiling(self) -> Tiling | None:
        """How the picture is cut into tiles, None where it is not. Raises ValueError when it cannot be."""
        if self.tiles is None:
            return None
        backbone = self.backbone
        return tiling_of(self.preprocess.size, self.tiles.tile, self.tiles.overlap_px, backbone.grid, backbone.extent)

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of the whole picture, down and across."""
        tiling = self.tiling
        return (self.backbone.grid[1], self.backbone.grid[0]) if tiling is None else tiling.grid

    @property
    def extent(self) -> tuple[int, int]:
        """Width and height in model pixels that the whole grid covers."""
        return self.backbone.extent if self.tiles is None else self.preprocess.size

    @model_serializer(mode="wrap")
    def _without_absent_parts(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(serialise(self), ("health", "align", "mask", "tiles", "camera"))


def tiling_of(
    size: tuple[int, int], tile: tuple[int, int], overlap_px: int, grid: tuple[int, int], extent: tuple[int, int]
) -> Tiling:
    """The tiling of a picture of that size by a backbone whose cells are squares that fill its input exactly.

    tile: the backbone's input, grid: its cells across and down, extent: what they cover; all width, height. Raises
    ValueError for another backbone, and when the sizes do not go together.
    """
    (across, down), (width, height) = grid, extent
    cell = width // across
    if tile != (width, height) or (across * cell, down * cell) != tile:
        raise ValueError(
            f"tiles need a backbone whose cells fill its input evenly; this one has {across}x{down} cells on "
            f"{width}x{height} px"
        )
    return Tiling(size, tile, overlap_px, cell)
