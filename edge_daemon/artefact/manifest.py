"""recipe.json: everything that judges one product with one view (schema `edge-daemon/recipe/1`)."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

RECIPE_SCHEMA: Final = "edge-daemon/recipe/1"

# What this version knows; a recipe that requires anything else is refused.
# `pca/1`: bank.safetensors also holds `projection`, (backbone dim, bank dim) float32, which every patch embedding is
# multiplied with before the search; the bank's rows already are.
PCA_FEATURE: Final = "pca/1"
# `health/1`: `health` holds what a picture must be like to be judged at all; see `core.health`.
HEALTH_FEATURE = "health/1"
KNOWN_FEATURES = frozenset({"patchcore/1", PCA_FEATURE, HEALTH_FEATURE})

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^(golden/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}$")]
RecipeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
PositiveInt = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Part(BaseModel):
    """Base of the manifest's parts: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileRef(Part):
    """A file of the recipe and its digest."""

    file: FileName
    sha256: Sha256


class ViewPart(Part):
    """What of the frame is judged."""

    frame_size: tuple[PositiveInt, PositiveInt]
    """Width and height of the full frame; another size is refused at run time."""
    region: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], PositiveInt, PositiveInt] | None = None
    """x, y, w, h of the region of interest in full-frame pixels; null for the whole frame."""
    um_per_px: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Scale, for box areas in mm²."""


class PreprocessPart(Part):
    """From frame to model input; see `core.resize`."""

    resize: Literal["antialias", "area"]
    size: tuple[PositiveInt, PositiveInt]
    """Width and height of the model's input picture, after any crop."""
    resize_to: tuple[PositiveInt, PositiveInt]
    """Width and height before the centre crop; equals `size` where there is no crop."""


class BackbonePart(Part):
    """The fused graph: uint8 (N, H, W, 3) in, patch embeddings (N, gh, gw, D) float32 out."""

    name: str
    sha256: Sha256
    file: FileName | None
    """`backbone.onnx`, or null when only the store has it."""
    precision: Literal["fp32", "fp16", "int8"]
    grid: tuple[PositiveInt, PositiveInt]
    """Cells across and down."""
    extent: tuple[PositiveInt, PositiveInt]
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
    blur_sigma_px: Finite
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


class Manifest(BaseModel):
    """The whole of recipe.json."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True, use_attribute_docstrings=True
    )

    schema_: Annotated[Literal["edge-daemon/recipe/1"], Field(alias="schema")] = RECIPE_SCHEMA
    required_features: tuple[str, ...]
    self_sha256: Sha256
    """SHA-256 of recipe.json itself with these 64 digits zero: the recipe's digest."""
    name: RecipeName
    version: str
    created_utc: str
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
    golden: Annotated[tuple[GoldenPart, ...], Field(min_length=1)]
    provenance: dict[str, Any]
    health: HealthPart | None = None
    """With feature `health/1`; left out of recipe.json without it, for versions that do not know the key."""

    @model_serializer(mode="wrap")
    def _without_absent_parts(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialise(self)
        if fields.get("health") is None:
            fields.pop("health", None)
        return fields
