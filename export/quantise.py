"""A fused backbone in eight bits: static quantisation (QDQ), its ranges seen on good parts.

Needs onnxruntime.quantization and no torch. What stays in float32 is what costs more in int8 than it saves,
in time or in truth: the picture's normalisation and the first convolution, and all of the patch embedding.
"""

import io
import json
import logging
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.errors import BackboneError
from export.fuse import FusedBackbone, describe
from export.graph import cpu_session, load_graph, opset_of, read_metadata, run_session, serialise

# Pictures that set the ranges; each is also shown damaged. On bottle 16 and 64 gave the same error.
RANGE_PICTURES = 32
# Mean relative error of the embeddings. Seen: 0.05 to 0.08 for a sound graph, 0.33 and more where eight-bit
# weights overflow the sixteen bits in which AVX2 adds two products.
LARGEST_ERROR = 0.25

# Share of the values that a range leaves out. On bottle, against ranges from minimum to maximum: error of the
# embeddings 0.082 instead of 0.110 (resnet18) and 0.047 instead of 0.069 (embedded), on good and defective pictures
# alike; correlation of good scores 0.94 to 0.97 instead of 0.89 to 0.94, defects' scores 0.5% below fp32's instead of
# 0.6 to 1.3%. Half of the pictures are damaged, over a sixteenth of each: far more than is left out.
_LEFT_OUT = 1e-4

_CONVOLUTIONAL = ("Conv", "Relu", "Clip", "Add", "MaxPool", "GlobalAveragePool", "Gemm", "MatMul")
# A transformer's sums and norms carry outliers that eight bits lose; its products with weights bear them.
_TRANSFORMER = ("MatMul", "Gemm")
_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True, slots=True)
class Quantised:
    """The int8 graph, the one it was made from, and how.

    pictures:      good pictures that set the ranges, each also with seeded damage
    error:         mean over them of ‖int8 − fp32‖ / ‖fp32‖ of the embeddings
    nodes, kept:   products with weights (convolutions and the like) in int8, and left in fp32
    cpu_class:     instruction set that the graph was made and measured on
    """

    backbone: FusedBackbone
    source: FusedBackbone
    pictures: int
    error: float
    nodes: int
    kept: int
    cpu_class: str


def quantise(fused: FusedBackbone, pictures: Sequence[NDArray[np.uint8]]) -> Quantised:
    """`fused` with int8 weights per output channel and uint8 activations, between quantise/dequantise pairs.

    pictures: (H, W, 3) uint8 RGB of good parts at model size. The ranges also take in a damaged copy of each:
    a range of good parts alone would cut off exactly the activations that a defect raises. Weights use seven
    of their eight bits (`reduce_range`): with eight, AVX2 without VNNI saturates in sixteen bits, and the same
    graph judges differently on two PCs.
    Raises BackboneError when the graph is not fp32, has nothing to quantise, or comes out too wrong.
    """
    if fused.precision != "fp32":
        raise BackboneError(f"{fused.name} is {fused.precision} already: quantise the fp32 backbone it came from")
    if not pictures:
        raise BackboneError("int8 needs pictures of good parts to see the ranges on: give --calibration DIR")
    shown = [p for picture in pictures for p in (picture, damaged(picture, seed=0))]
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        original, prepared, result = (Path(folder, name) for name in ("fp32.onnx", "prepared.onnx", "int8.onnx"))
        original.write_bytes(fused.model_bytes)
        try:
            quant_pre_process(str(original), str(prepared), skip_symbolic_shape=True)
            model = onnx.load(prepared)
            _normalise_by_convolution(model)
            types, excluded = _what_to_quantise(model)
            onnx.save(model, prepared)
            quantize_static(
                str(prepared),
                str(result),
                _Pictures(shown),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(types),
                nodes_to_exclude=excluded,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                **_ranges(transformer=types == _TRANSFORMER),
            )
            quantised = onnx.load(result)
        except BackboneError:
            raise
        except Exception as exc:  # onnxruntime's and onnx's errors have no common base
            raise BackboneError(f"{fused.name} cannot be quantised ({exc}): use it in fp32") from exc
    products = [n for n in model.graph.node if n.op_type in _PRODUCTS and n.name.startswith("raw/")]
    kept = sum(n.name in excluded or n.op_type not in types for n in products)
    cpu = cpu_class()
    backbone = describe(serialise(quantised, _metadata(fused, quantised, len(pictures), cpu, types == _TRANSFORMER)))
    return Quantised(backbone, fused, len(pictures), _error(fused, backbone, shown), len(products) - kept, kept, cpu)


def _ranges(*, transformer: bool) -> dict[str, Any]:
    """How activations are given their range. A transformer's few large values carry meaning: nothing is left out."""
    if transformer:
        return {"calibrate_method": CalibrationMethod.MinMax}
    # By one good picture and its damaged copy at a time; otherwise all activations of all pictures are kept at once,
    # 25 MB a picture for resnet18 at 256 px.
    options = {"CalibPercentile": 100 * (1 - _LEFT_OUT), "CalibStridedMinMax": 2}
    return {"calibrate_method": CalibrationMethod.Percentile, "extra_options": options}


def damaged(picture: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """A copy with coarse noise over a square of a quarter of its side; (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    height, width = picture.shape[:2]
    side = max(1, min(width, height) // 4)
    x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    grains = rng.integers(0, 2, (8, 8, 3), np.uint8) * np.uint8(255)
    spoiled = picture.copy()
    spoiled[y : y + side, x : x + side] = cv2.resize(grains, (side, side), interpolation=cv2.INTER_NEAREST)
    return spoiled


def cpu_class(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Architecture and the instructions that matter to int8: `x86_64 avx2`, `x86_64 avx512_vnni`, `aarch64 asimddp`."""
    machine = platform.machine()
    try:
        flags = {flag for line in cpuinfo.read_text().splitlines() for flag in line.partition(":")[2].split()}
    except OSError:
        return machine
    known = [name for name in ("amx_int8", "avx512_vnni", "avx_vnni", "avx2", "i8mm", "asimddp") if name in flags]
    return " ".join([machine, *known[:1]])


class _Pictures(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Model inputs one by one, as the calibrator wants them, all or those of a range."""

    def __init__(self, pictures: Sequence[NDArray[np.uint8]]) -> None:
        self._all = pictures
        self._pictures: Iterator[NDArray[np.uint8]] = iter(pictures)

    def __len__(self) -> int:
        return len(self._all)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._pictures = iter(self._all[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        picture = next(self._pictures, None)
        return None if picture is None else {"image": picture[None]}


def _what_to_quantise(model: ModelProto) -> tuple[tuple[str, ...], list[str]]:
    """(operator types, names of the nodes left out). Raises BackboneError when nothing is left.

    Left out: all that stands around the network; the network's first convolution, which has three channels to
    offer and gains nothing (0.2 ms in fp32, 0.9 in int8 for the embedded backbone); products of two
    activations. Where pooling follows the first convolution, that one is quantised too: onnxruntime would
    otherwise pool bytes in a layout where it takes 6 ms instead of 0.1.
    """
    constants = {i.name for i in model.graph.initializer}
    raw = [n for n in model.graph.node if n.name.startswith("raw/")]
    depth: dict[str, int] = {}
    reached: dict[str, int] = {}
    for node in raw:
        before = max((depth.get(name, 0) for name in node.input), default=0)
        reached[node.name] = before + _has_weights(node, constants)
        depth.update(dict.fromkeys(node.output, reached[node.name]))
    pooled = any(n.op_type == "MaxPool" and reached[n.name] == 1 for n in raw)
    taken = {
        n.name
        for n in raw
        if reached[n.name] > (0 if pooled else 1) and (n.op_type not in _PRODUCTS or _has_weights(n, constants))
    }
    if not any(n.name in taken and n.op_type in _PRODUCTS for n in raw):
        raise BackboneError(
            "the network has no convolution or product with weights behind its first: there is nothing to quantise"
        )
    transformer = any(n.op_type in ("Softmax", "LayerNormalization") for n in raw)
    return (_TRANSFORMER if transformer else _CONVOLUTIONAL), [n.name for n in model.graph.node if n.name not in taken]


def _has_weights(node: NodeProto, constants: set[str]) -> bool:
    return node.op_type in _PRODUCTS and any(name in constants for name in node.input)


def _normalise_by_convolution(model: ModelProto) -> None:
    """Scale and offset of the picture's channels as a 1 x 1 convolution, in place.

    int8 convolutions want channels last, and onnxruntime moves their transposition in front of whatever is
    elementwise: multiplying and adding interleaved channels then takes 2 ms of resnet18's 22. A convolution
    stays where it is.
    """
    nodes = {node.name: node for node in model.graph.node}
    scale, shift = nodes.get("pre/scaled.Mul"), nodes.get("pre/normalised.Add")
    constants = {i.name: i for i in model.graph.initializer}
    if scale is None or shift is None or not {scale.input[1], shift.input[1]} <= constants.keys():
        return
    gain, offset = (constants[node.input[1]] for node in (scale, shift))
    gain.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(gain).reshape(3, 1, 1, 1), gain.name))
    offset.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(offset).reshape(3), offset.name))
    convolution = helper.make_node(
        "Conv",
        [scale.input[0], gain.name, offset.name],
        list(shift.output),
        name="pre/normalised.Conv",
        kernel_shape=[1, 1],
        group=3,
    )
    place = list(model.graph.node).index(scale)
    model.graph.node.remove(scale)
    model.graph.node.remove(shift)
    model.graph.node.insert(place, convolution)


def _metadata(fused: FusedBackbone, model: ModelProto, pictures: int, cpu: str, transformer: bool) -> dict[str, str]:
    ranges = "minimum to maximum" if transformer else f"without {_LEFT_OUT:.2%} of the values"
    how = {
        "method": f"static QDQ, weights int8 per channel in seven bits, activations uint8, range {ranges}",
        "pictures": pictures,
        "cpu_class": cpu,
        "fp32_sha256": fused.sha256,
    }
    return {
        **read_metadata(load_graph(fused.model_bytes)),
        "precision": "int8",
        "opset": str(opset_of(model)),
        "quantisation": json.dumps(how, sort_keys=True),
        "provenance": f"{fused.provenance}; int8 (static QDQ, ranges of {pictures} good pictures, made on {cpu}) "
        f"from fp32 graph {fused.sha256[:12]}",
    }


def _error(fused: FusedBackbone, backbone: FusedBackbone, pictures: Sequence[NDArray[np.uint8]]) -> float:
    """Mean relative error of the embeddings. Raises BackboneError when it is too large or not finite."""
    before, after = cpu_session(fused.model_bytes, fused.name), cpu_session(backbone.model_bytes, backbone.name)
    errors = []
    for picture in pictures:
        want, got = (run_session(s, picture[None], fused.name)[0] for s in (before, after))
        errors.append(float(np.linalg.norm(got - want) / max(float(np.linalg.norm(want)), 1e-12)))
    error = float(np.mean(errors))
    if not error <= LARGEST_ERROR:
        raise BackboneError(
            f"{fused.name} in int8 is off by {error:.0%} of its embeddings' length (allowed {LARGEST_ERROR:.0%}): this "
            "network does not bear it; use it in fp32"
        )
    return error


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantiser logs advice on the root logger, and prints, what is no use to our reader."""
    root: Any = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)
