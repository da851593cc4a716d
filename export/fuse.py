"""From a feature graph to the one graph a recipe names: picture in, patch embeddings out.

A raw graph takes (N, 3, H, W) float32, normalised its own way, and gives feature maps (N, C, h, w).
The fused graph takes what a camera gives, `image` uint8 (N, H, W, 3) RGB at model size, and gives
`embedding` float32 (N, gh, gw, D): normalisation, padding, patch neighbourhoods, one common grid and
concatenation are part of it, so that export and daemon cannot disagree about them. Needs onnx and
onnxruntime, never torch.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import onnx.compose
import onnx.shape_inference
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.errors import BackboneError
from export.graph import (
    Normalisation,
    RawBackbone,
    Size,
    cpu_session,
    input_of,
    load_graph,
    normalisation_from,
    one_of,
    opset_of,
    read_bytes,
    read_metadata,
    run_session,
    serialise,
    set_ir_version,
    sha256_of,
    size_from,
    size_text,
    where,
)

FUSED_SCHEMA = "edge-daemon/backbone/1"
PAPER_DIM = 1024  # dimension of both poolings in the published runs
MIN_SIZE_PX = 32
MAX_SIZE_PX = 8192

Profile = Literal["anomalib", "paper"]


@dataclass(frozen=True, slots=True)
class FusedBackbone:
    """One graph for one model size and one profile, as `describe` reads it back from its bytes.

    size:   width and height of the input picture, model pixels
    grid:   cells across and down
    extent: model pixels that the grid covers from the upper left; more than `size` where the graph pads
    dim:    length D of a patch embedding
    sha256: of `model_bytes`, the graph's address in store and manifest
    """

    model_bytes: bytes = field(repr=False)
    sha256: str
    name: str
    profile: Profile
    layers: tuple[str, ...]
    size: Size
    grid: Size
    extent: Size
    dim: int
    precision: Literal["fp32", "fp16", "int8"]
    opset: int
    normalisation: Normalisation
    raw_sha256: str
    source_name: str
    source_sha256: str
    licence: str
    provenance: str


class _Builder:
    """Collects the nodes and constants that stand around the raw graph."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"{output}.{op}", **attributes))
        return output


def fuse(raw: RawBackbone, size: Size, profile: Profile) -> FusedBackbone:
    """The fused graph of `raw` for pictures of `size` (width, height in pixels).

    Profile `anomalib`: 3 x 3 average pooling per layer (zeros of the border counted), further layers
    bilinear (half-pixel, no antialias) to the first one's grid, concatenated in order.
    Profile `paper` (arXiv 2106.08265, its published code): 3 x 3 patches with zero border, each
    flattened and adaptive-average-pooled to 1024, layers stacked and pooled to 1024 again; further
    layers' patches bilinear to the first one's grid. All of it linear: one grouped 3 x 3 convolution
    per layer. Bytes are a function of the arguments. Raises BackboneError.
    """
    if profile not in get_args(Profile):
        raise BackboneError(f"unknown profile {profile!r}: there are {', '.join(get_args(Profile))}")
    padded = padded_size(raw, size)
    inner = onnx.compose.add_prefix(load_graph(raw.model_bytes), "raw/")
    shapes = _feature_shapes(raw, padded)
    builder = _Builder()
    start = _preprocess(builder, raw.normalisation, size, padded)
    after = _Builder()
    layers = [(f"raw/{layer}", shape) for layer, shape in zip(raw.layers, shapes, strict=True)]
    dim = _anomalib(after, layers) if profile == "anomalib" else _paper(after, layers)
    grid = (shapes[0][2], shapes[0][1])
    model = _assemble(inner, start, builder, after, size, (grid, dim))
    extent = padded if raw.multiple > 1 else size
    metadata = {
        "schema": FUSED_SCHEMA,
        "name": raw.name,
        "profile": profile,
        "layers": json.dumps(list(raw.layers)),
        "size": size_text(size),
        "grid": size_text(grid),
        "extent": size_text(extent),
        "dim": str(dim),
        "precision": "fp32",
        "opset": str(opset_of(model)),
        "normalisation": json.dumps(asdict(raw.normalisation), sort_keys=True),
        "raw_sha256": raw.sha256,
        "source_name": raw.source_name,
        "source_sha256": raw.source_sha256,
        "licence": raw.licence,
        "provenance": raw.provenance,
    }
    fused = describe(serialise(model, metadata))
    _prove_batch(fused)
    return fused


def padded_size(raw: RawBackbone, size: Size) -> Size:
    """Width and height that the raw graph sees for pictures of `size`. Raises BackboneError."""
    w, h = size
    if not (MIN_SIZE_PX <= w <= MAX_SIZE_PX and MIN_SIZE_PX <= h <= MAX_SIZE_PX):
        raise BackboneError(f"model size {w}x{h}: width and height must lie in {MIN_SIZE_PX}..{MAX_SIZE_PX} pixels")
    padded = (-(-w // raw.multiple) * raw.multiple, -(-h // raw.multiple) * raw.multiple)
    if raw.size is not None and raw.size != padded:
        raise BackboneError(
            f"backbone {raw.name} was exported for {size_text(raw.size)} and takes no {size_text(size)}: "
            f"run `edge-export backbone ... --size {size_text(size)}`"
        )
    return padded


def _preprocess(b: _Builder, norm: Normalisation, size: Size, padded: Size) -> str:
    """uint8 NHWC RGB -> normalised float NCHW; borders repeated where the raw graph needs more.

    Planes first, while a pixel is one byte: onnxruntime multiplies interleaved channels 30 times slower.
    """
    gain, offset = norm.affine()
    value = b.node("Transpose", ["image"], "pre/planes", perm=[0, 3, 1, 2])
    if norm.order == "BGR":
        value = b.node("Gather", [value, b.constant("pre/order", np.array([2, 1, 0]))], "pre/ordered", axis=1)
    value = b.node("Cast", [value], "pre/float", to=TensorProto.FLOAT)
    value = b.node("Mul", [value, b.constant("pre/gain", gain.reshape(3, 1, 1))], "pre/scaled")
    value = b.node("Add", [value, b.constant("pre/offset", offset.reshape(3, 1, 1))], "pre/normalised")
    if padded != size:
        pads = np.array([0, 0, 0, 0, 0, 0, padded[1] - size[1], padded[0] - size[0]])
        value = b.node("Pad", [value, b.constant("pre/pads", pads)], "pre/padded", mode="edge")
    return value


Layers = Sequence[tuple[str, tuple[int, int, int]]]


def bilinear(inputs: int, outputs: int) -> NDArray[np.float64]:
    """(outputs, inputs) matrix of bilinear resizing along one axis, half-pixel centres, no antialias:
    output i lies at max((i + 0.5) * inputs / outputs - 0.5, 0), borders repeated."""
    matrix = np.zeros((outputs, inputs))
    for i in range(outputs):
        position = max((i + 0.5) * inputs / outputs - 0.5, 0.0)
        left = min(int(position), inputs - 1)
        matrix[i, left] += 1 - (position - left)
        matrix[i, min(left + 1, inputs - 1)] += position - left
    return matrix


def _to_grid(b: _Builder, value: str, shape: tuple[int, int, int], grid: tuple[int, int], name: str) -> str:
    """(N, C, h, w) -> (N, gh, gw, C), bilinear where the grids differ.

    Two matrix products: exact in float32, the same on every provider, and a third faster on a CPU than
    the operator Resize, whose coordinates are off by 1e-5 on grids that are no multiple of each other.
    """
    channels, h, w = shape
    value = b.node("Transpose", [value], f"{name}/cells", perm=[0, 2, 3, 1])
    if (h, w) == grid:
        return value
    gh, gw = grid
    rows = b.constant(f"{name}/rows", bilinear(h, gh).astype(np.float32))
    columns = b.constant(f"{name}/columns", bilinear(w, gw).astype(np.float32))
    flat = b.constant(f"{name}/flat", np.array([0, h, w * channels]))
    deep = b.constant(f"{name}/deep", np.array([0, gh, w, channels]))
    value = b.node("Reshape", [value, flat], f"{name}/flattened")
    value = b.node("MatMul", [rows, value], f"{name}/down")
    value = b.node("Reshape", [value, deep], f"{name}/deepened")
    return b.node("MatMul", [columns, value], f"{name}/across")


def _anomalib(b: _Builder, layers: Layers) -> int:
    parts = []
    grid = layers[0][1][1:]
    for i, (value, shape) in enumerate(layers):
        pooled = b.node(
            "AveragePool",
            [value],
            f"layer{i}/pooled",
            kernel_shape=[3, 3],
            strides=[1, 1],
            pads=[1, 1, 1, 1],
            count_include_pad=1,
        )
        parts.append(_to_grid(b, pooled, shape, grid, f"layer{i}"))
    b.node("Concat", parts, "embedding", axis=3)
    return sum(shape[0] for _, shape in layers)


def adaptive_average(inputs: int, outputs: int) -> NDArray[np.float64]:
    """(outputs, inputs) matrix of adaptive average pooling: row i is the mean of the inputs from
    floor(i * inputs / outputs) up to, not including, ceil((i + 1) * inputs / outputs)."""
    matrix = np.zeros((outputs, inputs))
    for i in range(outputs):
        first, last = i * inputs // outputs, -(-(i + 1) * inputs // outputs)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def _paper(b: _Builder, layers: Layers) -> int:
    grid = layers[0][1][1:]
    stacked = adaptive_average(len(layers) * PAPER_DIM, PAPER_DIM)
    parts: list[tuple[str, int, int]] = []
    for i, (value, shape) in enumerate(layers):
        name = f"layer{i}"
        matrix = stacked[:, i * PAPER_DIM : (i + 1) * PAPER_DIM] @ adaptive_average(shape[0] * 9, PAPER_DIM)
        rows = np.flatnonzero(matrix.any(axis=1))
        first, last = int(rows[0]), int(rows[-1]) + 1
        weights, groups = _grouped(matrix[first:last], shape[0])
        value = b.node(
            "Conv",
            [value, b.constant(f"{name}/patch", weights)],
            f"{name}/patched",
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            group=groups,
        )
        cells = _to_grid(b, value, (last - first, *shape[1:]), grid, name)
        parts.append((cells, first, last))
    _stack(b, parts)
    return PAPER_DIM


def _grouped(matrix: NDArray[np.float64], channels: int) -> tuple[NDArray[np.float32], int]:
    """(R, C*9) -> convolution weights (R, C/g, 3, 3) with the most groups g that the zeros allow.

    Each pooled value sees only neighbouring channels, so the matrix is mostly a block diagonal: for
    128 channels 128 blocks instead of half a million weights.
    """
    rows = len(matrix)
    blocks = matrix.reshape(rows, channels, 9)
    for groups in range(math.gcd(rows, channels), 0, -1):
        if rows % groups or channels % groups:
            continue
        split = blocks.reshape(groups, rows // groups, groups, channels // groups, 9)
        inside = split[np.arange(groups), :, np.arange(groups)]
        if np.count_nonzero(inside) == np.count_nonzero(matrix):
            return inside.reshape(rows, channels // groups, 3, 3).astype(np.float32), groups
    raise AssertionError("one group always holds everything")


def _stack(b: _Builder, parts: list[tuple[str, int, int]]) -> None:
    """Join the layers' rows of the embedding: side by side, or added where a bin spans two layers."""
    if all(last == first for (_, _, last), (_, first, _) in itertools.pairwise(parts)):
        b.node("Concat", [value for value, _, _ in parts], "embedding", axis=3)
        return
    spread = []
    for i, (value, first, last) in enumerate(parts):
        pads = b.constant(f"layer{i}/outside", np.array([0, 0, 0, first, 0, 0, 0, PAPER_DIM - last]))
        spread.append(b.node("Pad", [value, pads], f"layer{i}/spread"))
    b.node("Sum", spread, "embedding")


def _assemble(
    inner: ModelProto, start: str, before: _Builder, after: _Builder, size: Size, shape: tuple[Size, int]
) -> ModelProto:
    (gw, gh), dim = shape
    raw_input = input_of(inner).name
    before.node("Identity", [start], raw_input)
    graph = helper.make_graph(
        [*before.nodes, *inner.graph.node, *after.nodes],
        "backbone",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size[1], size[0], 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", gh, gw, dim])],
        [*before.constants, *inner.graph.initializer, *after.constants],
    )
    graph.sparse_initializer.extend(inner.graph.sparse_initializer)
    model = helper.make_model(graph, producer_name="edge-export", opset_imports=list(inner.opset_import))
    set_ir_version(model)
    return model


def _feature_shapes(raw: RawBackbone, size: Size) -> list[tuple[int, int, int]]:
    """(C, h, w) of each layer for an input of `size`: inferred, or seen by running where that fails."""
    model = load_graph(raw.model_bytes)
    dims = input_of(model).type.tensor_type.shape.dim
    dims[2].dim_value, dims[3].dim_value = size[1], size[0]
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        shapes = [
            [d.dim_value if d.HasField("dim_value") else 0 for d in o.type.tensor_type.shape.dim]
            for o in inferred.graph.output
        ]
    except onnx.shape_inference.InferenceError:
        shapes = []
    if not shapes or not all(len(s) == 4 and all(s[1:]) for s in shapes):
        zeros = np.zeros((1, 3, size[1], size[0]), np.float32)
        session = cpu_session(raw.model_bytes, raw.name)
        shapes = [list(x.shape) for x in run_session(session, zeros, raw.name)]
    for layer, shape in zip(raw.layers, shapes, strict=True):
        if len(shape) != 4 or min(shape[1:]) < 1:
            raise BackboneError(
                f"output {layer} of {raw.name} has shape {shape}, needed are feature maps (N, C, h, w); "
                "tokens of a transformer are turned into a grid by `edge-export backbone --arch`"
            )
    return [(s[1], s[2], s[3]) for s in shapes]


def _prove_batch(fused: FusedBackbone) -> None:
    """Run one and two pictures: a batch fixed inside the graph, or a wrong shape, ends here."""
    w, h = fused.size
    pictures = np.random.default_rng(0).integers(0, 256, (2, h, w, 3), np.uint8)
    session = cpu_session(fused.model_bytes, fused.name)
    single = [run_session(session, p[None], fused.name)[0] for p in pictures]
    advice = "export it with a dynamic batch (dynamic_axes={0: 'n'})"
    try:
        both = run_session(session, pictures, fused.name)[0]
    except BackboneError as exc:
        raise BackboneError(f"{fused.name} runs with one picture but not with two: {advice} ({exc})") from exc
    expected = np.concatenate(single)
    if both.shape != (2, fused.grid[1], fused.grid[0], fused.dim) or both.shape != expected.shape:
        raise BackboneError(f"{fused.name} gives {both.shape} for two pictures: {advice}")
    if not np.isfinite(both).all():
        raise BackboneError(f"{fused.name} gives NaN or infinity: its weights are damaged")
    if np.abs(both - expected).max() > 1e-4 * np.abs(expected).max():
        raise BackboneError(f"{fused.name} mixes the pictures of a batch: {advice}")


def describe(source: bytes | Path) -> FusedBackbone:
    """Read a fused graph back: metadata, and that inputs and outputs are what it says.

    Raises BackboneError when the file is no fused backbone or contradicts itself.
    """
    model_bytes = read_bytes(source)
    model = load_graph(model_bytes)
    metadata = read_metadata(model)
    if metadata.get("schema") != FUSED_SCHEMA:
        raise BackboneError(
            f"{where(source)} is no fused backbone (schema {metadata.get('schema', 'missing')}): "
            "make one with `edge-export backbone`"
        )
    try:
        fused = FusedBackbone(
            model_bytes=model_bytes,
            sha256=sha256_of(model_bytes),
            name=metadata["name"],
            profile=cast(Profile, one_of(metadata["profile"], get_args(Profile))),
            layers=tuple(str(x) for x in json.loads(metadata["layers"])),
            size=size_from(metadata["size"]),
            grid=size_from(metadata["grid"]),
            extent=size_from(metadata["extent"]),
            dim=int(metadata["dim"]),
            precision=cast(Literal["fp32"], one_of(metadata["precision"], ("fp32", "fp16", "int8"))),
            opset=int(metadata["opset"]),
            normalisation=normalisation_from(metadata["normalisation"]),
            raw_sha256=metadata["raw_sha256"],
            source_name=metadata["source_name"],
            source_sha256=metadata["source_sha256"],
            licence=metadata["licence"],
            provenance=metadata["provenance"],
        )
    except (KeyError, ValueError, TypeError) as exc:
        raise BackboneError(f"{where(source)} has damaged metadata ({exc!r}): export it again") from exc
    _check_ends(model, fused)
    return fused


def _check_ends(model: ModelProto, fused: FusedBackbone) -> None:
    wanted = [
        ("image", TensorProto.UINT8, (fused.size[1], fused.size[0], 3)),
        ("embedding", TensorProto.FLOAT, (fused.grid[1], fused.grid[0], fused.dim)),
    ]
    found = [
        (
            end.name,
            end.type.tensor_type.elem_type,
            tuple(int(d.dim_value) for d in end.type.tensor_type.shape.dim)[1:],
        )
        for end in [*model.graph.input, *model.graph.output]
    ]
    if found != wanted:
        raise BackboneError(f"backbone {fused.name} has ends {found} where its metadata says {wanted}: export it again")
