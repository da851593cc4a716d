"""What an ONNX graph must not do when it comes out of a recipe: read files of this PC, or run without an end.

A graph may keep weights in other files ("external data"), and some operators name a file to load. Both would be judged
with, and neither is under the recipe's digest; onnxruntime takes their paths as relative to wherever the daemon was
started (1.31 checks that they do not leave that folder, older ones do not). The graph is walked as protobuf
(protobuf.dev/programming-guides/encoding), by the field numbers of onnx.proto3; what the walk does not understand is
refused, so that nothing hides behind it.
"""

from collections.abc import Iterator
from typing import Final

from edge_daemon.errors import RecipeEngineError

# Where nodes and tensors can be, by message: field number -> message that it holds.
_INSIDE: Final[dict[str, dict[int, str]]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION, _NODE_OPERATOR = 13, 14, 4

# EPContext names a compiled engine on disk; a backbone has no reason to loop.
_REFUSED: Final = frozenset({b"EPContext", b"Loop", b"Scan"})
_DEEPEST: Final = 32
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_LONGEST_VARINT: Final = 10


def refuse_foreign_files(model: bytes) -> None:
    """Raises RecipeEngineError when the graph keeps data outside of itself, has an operator that reads files or loops,
    or is no protobuf."""
    try:
        _walk(memoryview(model), "Model", 0)
    except (IndexError, ValueError) as exc:
        raise RecipeEngineError(f"the backbone graph is no ONNX file ({exc}): make the recipe again") from exc


def _walk(data: memoryview, message: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    inside = _INSIDE[message]
    for number, value in _fields(data):
        if message == "Tensor" and (number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value)):
            raise RecipeEngineError(
                "the backbone graph keeps weights in other files, which no digest covers: save it as one file "
                "(onnx.save with save_as_external_data=False) and make the recipe again"
            )
        if not isinstance(value, memoryview):
            continue
        if message == "Node" and number == _NODE_OPERATOR and bytes(value[:64]) in _REFUSED:
            raise RecipeEngineError(f"the backbone graph uses {bytes(value).decode()}, which no backbone needs")
        if number in inside:
            _walk(value, inside[number], depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field of one message. Raises ValueError, IndexError for what is none."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, value
        elif kind in (_FIXED_64, _FIXED_32):
            position += 8 if kind == _FIXED_64 else 4
            yield number, 0
        elif kind == _BYTES:
            length, position = _varint(data, position)
            yield number, data[position : position + length]
            position += length
        else:
            raise ValueError(f"a field of kind {kind}")
        if position > end:
            raise ValueError("it ends too early")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for count in range(_LONGEST_VARINT):
        byte = data[position + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, position + count + 1
    raise ValueError("a number without an end")
