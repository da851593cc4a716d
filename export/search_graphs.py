"""The small graphs that the daemon searches with on its provider; their files are part of the package.

`python -m export.search_graphs` writes them anew into edge_daemon/engines/graphs. The daemon does not depend on
onnx, hence files; a test makes them again and compares the bytes. All shapes are dynamic. What each computes
says `edge_daemon.engines.device`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx.checker
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import edge_daemon.engines.device
from export.errors import ExportError

FOLDER = Path(edge_daemon.engines.device.__file__).parent / "graphs"

# Old enough for every onnxruntime that pyproject.toml allows; each operator is known to its CUDA provider too.
_OPSET, _IR_VERSION = 17, 8
_FLOAT, _INT64 = TensorProto.FLOAT, TensorProto.INT64

_Ends = Sequence[tuple[str, int, list[str | int]]]


def search_graphs() -> Mapping[str, bytes]:
    """File name without suffix -> bytes, the same ones each time."""
    made = {
        "nearest": _nearest(),
        "frame": _frame(projected=False),
        "projected": _frame(projected=True),
        "pick": _pick(),
    }
    return MappingProxyType({name: model.SerializeToString(deterministic=True) for name, model in made.items()})


def write(folder: Path = FOLDER) -> None:
    """Write every graph. Raises ExportError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in search_graphs().items():
            (folder / f"{name}.onnx").write_bytes(content)
    except OSError as exc:
        raise ExportError(f"{folder}: the graphs cannot be written: {exc.strerror or exc}") from exc


def _nearest() -> ModelProto:
    """‖y‖² − 2(x − centre)·y of every query and row, the lowest of each query, and ‖x − centre‖²."""
    nodes = [
        helper.make_node("Sub", ["queries", "centre"], ["centred"]),
        helper.make_node("Gemm", ["centred", "bank", "norms"], ["products"], alpha=-2.0, transB=1),
        helper.make_node("TopK", ["products", "count"], ["lowest", "rows"], axis=1, largest=0, sorted=1),
        *_squared_norms("centred"),
    ]
    inputs: _Ends = [
        ("queries", _FLOAT, ["p", "d"]),
        ("centre", _FLOAT, ["d"]),
        ("bank", _FLOAT, ["m", "d"]),
        ("norms", _FLOAT, ["m"]),
        ("count", _INT64, [1]),
    ]
    outputs: _Ends = [
        ("lowest", _FLOAT, ["p", "k"]),
        ("rows", _INT64, ["p", "k"]),
        ("squared_norms", _FLOAT, ["p"]),
    ]
    return _model("nearest", nodes, inputs, outputs)


def _frame(projected: bool) -> ModelProto:
    """One frame of a batch of embeddings as a list of patches, projected or as they are, with their ‖x‖²."""
    taken = "cells" if projected else "patches"
    nodes = [
        helper.make_node("Gather", ["embedding", "index"], ["frame"], axis=0),
        helper.make_node("Shape", ["frame"], ["dims"], start=3, end=4),
        helper.make_node("Concat", ["all", "dims"], ["flat"], axis=0),
        helper.make_node("Reshape", ["frame", "flat"], [taken]),
    ]
    inputs: list[tuple[str, int, list[str | int]]] = [("embedding", _FLOAT, ["n", "gh", "gw", "c"])]
    inputs.append(("index", _INT64, [1]))
    if projected:
        nodes.append(helper.make_node("MatMul", ["cells", "projection"], ["patches"]))
        inputs.append(("projection", _FLOAT, ["c", "d"]))
    nodes += _squared_norms("patches")
    outputs: _Ends = [("patches", _FLOAT, ["p", "d" if projected else "c"]), ("squared_norms", _FLOAT, ["p"])]
    return _model("projected" if projected else "frame", nodes, inputs, outputs, all=np.array([-1]))


def _pick() -> ModelProto:
    """Some of the patches."""
    nodes = [helper.make_node("Gather", ["patches", "which"], ["picked"], axis=0)]
    inputs: _Ends = [("patches", _FLOAT, ["p", "d"]), ("which", _INT64, ["k"])]
    return _model("pick", nodes, inputs, [("picked", _FLOAT, ["k", "d"])])


def _squared_norms(value: str) -> list[NodeProto]:
    return [
        helper.make_node("Mul", [value, value], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "last"], ["squared_norms"], keepdims=0),
    ]


def _model(name: str, nodes: list[NodeProto], inputs: _Ends, outputs: _Ends, **constants: np.ndarray) -> ModelProto:
    read = {value for node in nodes for value in node.input}
    constants = {"last": np.array([1]), **constants}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*end) for end in inputs],
        [helper.make_tensor_value_info(*end) for end in outputs],
        [numpy_helper.from_array(value, key) for key, value in sorted(constants.items()) if key in read],
    )
    model = helper.make_model(graph, producer_name="edge-export", opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    write()
