"""Feature graphs as files: tidied, described by their own metadata, and run.

A raw graph takes (N, 3, H, W) float32, normalised its own way, and gives feature maps (N, C, h, w).
It is an ordinary ONNX file whose metadata say how it wants its pictures. Needs onnx and onnxruntime,
never torch.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from export.errors import BackboneError

RAW_SCHEMA = "edge-daemon/raw-backbone/1"
OPSET = 18

Size = tuple[int, int]
_PREFIX = "edge_daemon."


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What a raw graph expects: (pixel * scale - mean) / std per channel, channels in `order`.

    pixel: 0..255; mean and std: in `order`, in units of the scaled pixel.
    """

    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        numbers = (self.scale, *self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(math.isfinite(x) for x in numbers):
            raise BackboneError("a normalisation needs a finite scale and three finite means and deviations")
        if self.scale <= 0 or min(self.std) <= 0 or self.order not in ("RGB", "BGR"):
            raise BackboneError("a normalisation needs scale > 0, std > 0 and the order RGB or BGR")

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(gain, offset), each (3,) float32 in `order`: normalised = pixel * gain + offset."""
        mean, std = np.array(self.mean, np.float64), np.array(self.std, np.float64)
        return (self.scale / std).astype(np.float32), (-mean / std).astype(np.float32)

    def apply(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32 as the raw graph wants it."""
        ordered = pictures if self.order == "RGB" else pictures[..., ::-1]
        gain, offset = self.affine()
        return np.ascontiguousarray((ordered.astype(np.float32) * gain + offset).transpose(0, 3, 1, 2))


IMAGENET = Normalisation(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMALISATIONS = {
    "imagenet": IMAGENET,
    "caffe-bgr": Normalisation(1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "BGR"),
    "unit": Normalisation(1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "none": Normalisation(1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True, slots=True)
class RawBackbone:
    """A feature graph with what is needed to fuse it; everything but the bytes is also in its metadata.

    layers:   the graph's outputs in order, each (N, C, h, w) float32
    multiple: the input's height and width must be multiples of it; smaller pictures are padded
    size:     width and height that the graph is fixed to, None when it takes any
    source_*: file name and SHA-256 of the weights or graph it was made from
    """

    model_bytes: bytes = field(repr=False)
    sha256: str
    name: str
    layers: tuple[str, ...]
    normalisation: Normalisation
    multiple: int
    size: Size | None
    source_name: str
    source_sha256: str
    licence: str
    provenance: str


def load_graph(source: bytes | Path | ModelProto) -> ModelProto:
    """Parse an ONNX graph, external data included. Raises BackboneError."""
    if isinstance(source, ModelProto):
        return source
    name = source if isinstance(source, Path) else "the graph"
    try:
        model = onnx.load_model_from_string(source) if isinstance(source, bytes) else onnx.load(source)
    except Exception as exc:  # protobuf's and onnx's errors have no common base
        raise BackboneError(f"{name} is no readable ONNX file ({exc}): export it again") from exc
    if not model.graph.node:
        raise BackboneError(f"{name} is no readable ONNX file: it holds no graph")
    return model


def raw_backbone(
    source: bytes | Path | ModelProto,
    *,
    name: str,
    outputs: Sequence[str],
    normalisation: Normalisation,
    multiple: int = 1,
    source_name: str = "",
    source_sha256: str = "",
    licence: str = "",
    provenance: str = "",
) -> RawBackbone:
    """Tidy a feature graph: only what `outputs` need, dynamic batch, opset 18 or later, metadata.

    outputs: values of the graph, in the order of the layers; intermediate values may be named too.
    Raises BackboneError when the graph is not (N, 3, H, W) float32 in, or an output does not exist.
    """
    if not outputs or len(set(outputs)) != len(outputs):
        raise BackboneError("name the output layers, each once")
    original = load_graph(source)
    model = ModelProto()
    model.CopyFrom(original)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _prune(model, list(outputs))
    model = _free_batch(_at_opset(model))
    _strip(model)
    metadata = {
        "schema": RAW_SCHEMA,
        "name": name,
        "layers": json.dumps(list(outputs)),
        "normalisation": json.dumps(asdict(normalisation), sort_keys=True),
        "multiple": str(multiple),
        "source_name": source_name,
        "source_sha256": source_sha256,
        "licence": licence,
        "provenance": provenance,
        "opset": str(opset_of(model)),
    }
    return describe_raw(serialise(model, metadata))


def describe_raw(source: bytes | Path) -> RawBackbone:
    """Read a raw graph that `raw_backbone` wrote. Raises BackboneError when it is none."""
    model_bytes = read_bytes(source)
    model = load_graph(model_bytes)
    metadata = read_metadata(model)
    if metadata.get("schema") != RAW_SCHEMA:
        raise BackboneError(
            f"{where(source)} does not say how it wants its pictures: "
            "make it known with `edge-export backbone --onnx FILE --outputs a,b --input-normalisation ...`"
        )
    try:
        backbone = RawBackbone(
            model_bytes=model_bytes,
            sha256=sha256_of(model_bytes),
            name=metadata["name"],
            layers=tuple(str(x) for x in json.loads(metadata["layers"])),
            normalisation=normalisation_from(metadata["normalisation"]),
            multiple=int(metadata["multiple"]),
            size=_static_size(model),
            source_name=metadata["source_name"],
            source_sha256=metadata["source_sha256"],
            licence=metadata["licence"],
            provenance=metadata["provenance"],
        )
    except (KeyError, ValueError, TypeError) as exc:
        raise BackboneError(f"{where(source)} has damaged metadata ({exc!r}): export it again") from exc
    if [o.name for o in model.graph.output] != list(backbone.layers):
        raise BackboneError(f"{where(source)} has other outputs than its metadata says: export it again")
    return backbone


def input_of(model: ModelProto) -> ValueInfoProto:
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) != 1:
        raise BackboneError(f"the graph has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}), needed is one")
    image: ValueInfoProto = inputs[0]
    kind = image.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    if kind.elem_type != TensorProto.FLOAT:
        raise BackboneError(f"input {image.name} must be float32 for the normalisation to be fused in front of it")
    if len(dims) != 4 or dims[1] not in (3, None):
        raise BackboneError(
            f"input {image.name} has shape {dims}, needed is (N, 3, H, W): channels first, three channels"
        )
    return image


def _static_size(model: ModelProto) -> Size | None:
    dims = input_of(model).type.tensor_type.shape.dim
    if dims[2].HasField("dim_value") and dims[3].HasField("dim_value"):
        return int(dims[3].dim_value), int(dims[2].dim_value)
    return None


def _inputs_of(node: NodeProto) -> Iterator[str]:
    """Names a node reads, those of its subgraphs included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                yield from _inputs_of(inner)


def _prune(model: ModelProto, outputs: list[str]) -> None:
    """Keep what the named values need, and make them the outputs."""
    graph = model.graph
    image = input_of(model)
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    missing = [name for name in outputs if name not in producer]
    if missing:
        offered = ", ".join(o.name for o in graph.output)
        raise BackboneError(f"the graph has no value {', '.join(missing)}; its outputs are {offered}")
    nodes: set[int] = set()
    names: set[str] = set()
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        names.add(name)
        index = producer.get(name)
        if index is not None and index not in nodes:
            nodes.add(index)
            waiting += [x for x in _inputs_of(graph.node[index]) if x not in names]
    if image.name not in names:
        raise BackboneError(f"the values {', '.join(outputs)} do not depend on the input {image.name}")
    known = {v.name: v for v in [*graph.value_info, *graph.output]}
    _keep(graph.node, [node for i, node in enumerate(graph.node) if i in nodes])
    _keep(graph.initializer, [i for i in graph.initializer if i.name in names])
    _keep(graph.sparse_initializer, [i for i in graph.sparse_initializer if i.values.name in names])
    _keep(graph.output, [known.get(x, ValueInfoProto(name=x)) for x in outputs])
    _keep(graph.input, [image])
    del graph.value_info[:]


def _keep(repeated: Any, items: list[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in items]  # protobuf owns the originals
    del repeated[:]
    repeated.extend(copies)


def _free_batch(model: ModelProto) -> ModelProto:
    """Make the batch dynamic; whether the graph bears it is proven by running the fused one."""
    input_of(model).type.tensor_type.shape.dim[0].dim_param = "n"
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")  # inferred anew
    model = onnx.shape_inference.infer_shapes(model)
    for output in model.graph.output:
        kind = output.type.tensor_type
        if kind.elem_type not in (TensorProto.FLOAT, TensorProto.UNDEFINED):
            raise BackboneError(f"output {output.name} must be float32: export the graph in single precision")
        if not kind.HasField("shape"):  # not to be inferred: taken for a feature map until it has been run
            kind.CopyFrom(helper.make_tensor_type_proto(kind.elem_type or TensorProto.FLOAT, [None] * 4).tensor_type)
    return model


def opset_of(model: ModelProto) -> int:
    return max((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def _at_opset(model: ModelProto) -> ModelProto:
    """Opset 18 at least; a later one is left as it is, since lowering loses operators."""
    if opset_of(model) >= OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as exc:  # the converter raises RuntimeError and its own kinds
        raise BackboneError(
            f"the graph's opset {opset_of(model)} cannot be raised to {OPSET} ({exc}): export it with opset {OPSET}"
        ) from exc


def _strip(model: ModelProto) -> None:
    """Remove what does not compute: exporters leave stack traces with the paths of their machine."""
    model.doc_string = model.graph.doc_string = model.domain = ""
    model.producer_name, model.producer_version = "edge-export", ""
    model.graph.name = "backbone"
    model.model_version = 0
    for item in [*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output]:
        item.doc_string = ""
        del item.metadata_props[:]
    for constant in model.graph.initializer:
        constant.doc_string = ""
        del constant.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]


def cpu_session(model_bytes: bytes, name: str) -> ort.InferenceSession:
    """A session on the CPU whose threads sleep between runs. Raises BackboneError."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's errors have no common base
        raise BackboneError(f"onnxruntime cannot load {name}: {exc}") from exc


def run_session(session: ort.InferenceSession, batch: NDArray[Any], name: str) -> list[NDArray[np.float32]]:
    """All outputs for one input. Raises BackboneError."""
    try:
        return cast(list[NDArray[np.float32]], session.run(None, {session.get_inputs()[0].name: batch}))
    except Exception as exc:  # onnxruntime's errors have no common base
        raise BackboneError(f"{name} cannot judge a batch of shape {batch.shape}: {exc}") from exc


def sha256_of(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(source: bytes | Path) -> bytes:
    """The bytes of a file. Raises BackboneError when it cannot be read."""
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as exc:
        raise BackboneError(f"backbone {source} cannot be read: {exc.strerror or exc}") from exc


def read_metadata(model: ModelProto) -> dict[str, str]:
    """Our own entries of the graph's metadata, without their prefix."""
    return {p.key.removeprefix(_PREFIX): p.value for p in model.metadata_props if p.key.startswith(_PREFIX)}


def serialise(model: ModelProto, metadata: dict[str, str]) -> bytes:
    """Check the graph and turn it into bytes that depend on its content alone."""
    set_ir_version(model)
    del model.metadata_props[:]
    helper.set_model_props(model, {_PREFIX + key: metadata[key] for key in sorted(metadata)})
    try:
        onnx.checker.check_model(model, full_check=True)
        return cast(bytes, model.SerializeToString(deterministic=True))
    except Exception as exc:  # checker, inference and protobuf (2 GB) errors have no common base
        raise BackboneError(f"the graph is not valid ONNX: {exc}") from exc


def set_ir_version(model: ModelProto) -> None:
    """The oldest file format that holds the opset, so that older runtimes read it."""
    model.ir_version = max(8, helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True))


def normalisation_from(text: str) -> Normalisation:
    values = json.loads(text)
    return Normalisation(
        float(values["scale"]),
        cast(tuple[float, float, float], tuple(float(x) for x in values["mean"])),
        cast(tuple[float, float, float], tuple(float(x) for x in values["std"])),
        values["order"],
    )


def one_of(value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {allowed}")
    return value


def size_text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def size_from(text: str) -> Size:
    w, h = (int(x) for x in text.split("x"))
    return w, h


def where(source: bytes | Path) -> str:
    return "the graph" if isinstance(source, bytes) else str(source)
