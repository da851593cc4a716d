"""Recipe files that somebody made to do harm: each ends in a named error, in bounded memory and time, with nothing
kept of it."""

import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper
from test_recipe import GOLDEN, put, recipe_files, rewritten

from edge_daemon.artefact.pictures import encode_png
from edge_daemon.artefact.recipe import BACKBONE, BANK, MANIFEST, load_recipe, manifest_digest, sha256
from edge_daemon.artefact.signature import SIGNATURE
from edge_daemon.artefact.store import Store
from edge_daemon.detectors.loading import load_verified
from edge_daemon.engines.choice import Choices
from edge_daemon.engines.onnx_bytes import refuse_foreign_files
from edge_daemon.engines.sessions import EngineOptions, OnnxExtractor, Sessions
from edge_daemon.errors import (
    EdgeError,
    RecipeDigestError,
    RecipeEngineError,
    RecipeError,
    RecipeShapeError,
    RecipeUnreadable,
)
from tests.fuzz import kit

ROOT = Path(__file__).resolve().parents[2]


def refused(path: Path, kind: type[EdgeError] = RecipeUnreadable) -> str:
    """The recipe is refused with this error and a message that can be read, and a store takes nothing of it."""
    with pytest.raises(kind) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 2000
    store = Store(path.parent / "store")
    with pytest.raises(EdgeError):
        store.add(path)
    kept = [p for p in store.path.rglob("*") if p.is_file() and p.name != ".lock"] if store.path.exists() else []
    assert kept == []
    return str(caught.value)


class Zip:
    """A zip written byte by byte: whatever zipfile would not write."""

    def __init__(self) -> None:
        self.body, self.directory, self.count = b"", b"", 0

    def local(self, name: bytes, data: bytes, stated: int | None = None) -> int:
        at, size = len(self.body), len(data) if stated is None else stated
        self.body += struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, zlib.crc32(data), size, size, len(name), 0)
        self.body += name + data
        return at

    def listed(self, name: bytes, data: bytes, at: int, stated: int | None = None, mode: int = 0, flags: int = 0,
               method: int = 0) -> None:  # fmt: skip
        size = len(data) if stated is None else stated
        sizes = (zlib.crc32(data), size, size, len(name), 0, 0, 0, 0, mode << 16, at)
        self.directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 0x0314, 20, flags, method, 0, 33, *sizes) + name
        self.count += 1

    def add(self, name: bytes, data: bytes, **listed: Any) -> None:
        self.listed(name, data, self.local(name, data), **listed)

    def write(self, path: Path, comment: bytes = b"", directory_bytes: int | None = None) -> Path:
        size = len(self.directory) if directory_bytes is None else directory_bytes
        at = len(self.body)
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, self.count & 0xFFFF, self.count & 0xFFFF, size, at, len(comment))
        path.write_bytes(self.body + self.directory + end + comment)
        return path


def zipped(files: dict[str, bytes]) -> Zip:
    made = Zip()
    for name, data in files.items():
        made.add(name.encode(), data)
    return made


# ---------------------------------------------------------------- the container


def test_a_zip_written_here_is_a_recipe(tmp_path: Path) -> None:
    load_recipe(zipped(recipe_files()).write(tmp_path / "r.recipe"))


@pytest.mark.parametrize(
    "name",
    [b"../owned", b"golden/../../owned", b"/etc/owned", b"golden\\..\\owned", b"C:\\owned", b"golden/",
     b"recipe.json\0.png", b"golden/a\0b.png", b"\xff\xfe", b"", b"golden/.hidden", b"GOLDEN/x.png",
     b"golden/" + b"x" * 300],
)  # fmt: skip
def test_a_name_that_is_no_part_of_a_recipe_is_refused(tmp_path: Path, name: bytes) -> None:
    made = zipped(recipe_files())
    made.add(name, b"x")
    refused(made.write(tmp_path / "r.recipe"))
    assert {p.name for p in tmp_path.iterdir()} <= {"r.recipe", "store"}


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    made = zipped({name: data for name, data in recipe_files().items() if name != BANK})
    made.add(BANK.encode(), b"/etc/passwd", mode=0o120777)
    assert "no part of a recipe" in refused(made.write(tmp_path / "r.recipe"))


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    made = zipped(recipe_files())
    made.add(MANIFEST.encode(), recipe_files()[MANIFEST])
    refused(made.write(tmp_path / "r.recipe"))


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """David Fifield, "A better zip bomb" (WOOT 2019): one kernel of data, listed many times."""
    files = recipe_files()
    made = zipped(files)
    inner = made.local(b"golden/a.png", b"x" * 50)
    made.listed(b"golden/a.png", b"x" * 50, inner)
    made.listed(b"golden/b.png", b"x" * 50, inner)
    assert "overlaps" in refused(made.write(tmp_path / "r.recipe"))


def test_an_entry_that_reaches_into_the_directory_is_refused(tmp_path: Path) -> None:
    made = zipped(recipe_files())
    made.add(b"golden/a.png", b"x" * 50, stated=80)
    refused(made.write(tmp_path / "r.recipe"))


def test_an_entry_of_four_gigabytes_in_a_file_of_some_hundred_bytes_is_refused(tmp_path: Path) -> None:
    made = zipped({name: data for name, data in recipe_files().items() if name != BANK})
    made.add(BANK.encode(), b"x", stated=0xFFFF_FFF0)
    refused(made.write(tmp_path / "r.recipe"))


@pytest.mark.parametrize(
    "listed", [{"flags": 1}, {"method": 8}, {"method": 99}], ids=["encrypted", "deflated", "unknown"]
)
def test_what_is_not_stored_plainly_is_refused(tmp_path: Path, listed: dict[str, int]) -> None:
    made = zipped({name: data for name, data in recipe_files().items() if name != BANK})
    made.add(BANK.encode(), recipe_files()[BANK], **listed)
    assert "compressed or encrypted" in refused(made.write(tmp_path / "r.recipe"))


def test_a_decompression_bomb_is_not_decompressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.recipe"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in recipe_files().items():
            archive.writestr(name, data)
        archive.writestr("prototypes.safetensors", bytes(20 << 20))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(zlib, "decompressobj", lambda *_: pytest.fail("decompressed"))
    refused(path)


def test_a_directory_of_millions_of_entries_is_refused_before_it_is_read(tmp_path: Path) -> None:
    made = zipped(recipe_files())
    for number in range(6000):
        made.listed(b"golden/%d.png" % number, b"", 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "more files than a recipe has" in refused(made.write(tmp_path / "some.recipe"))
    path = tmp_path / "many.recipe"
    with path.open("wb") as file:
        file.truncate(1 << 32)
        file.seek(0, os.SEEK_END)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFF_FF00, 0, 0))
    assert "more files than a recipe has" in refused(path)
    with path.open("r+b") as file:  # the same number in the Zip64 record, where zipfile believes it
        file.seek(-22, os.SEEK_END)
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 25, 1 << 25, 1 << 31, 1 << 20))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, (1 << 32) - 22, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 5, 5, 100, 0, 0))
    assert "more files than a recipe has" in refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("comment", [b"x", b"x" * 65_535])
def test_a_zip_with_something_behind_it_is_refused(tmp_path: Path, comment: bytes) -> None:
    refused(zipped(recipe_files()).write(tmp_path / "r.recipe", comment))


def test_every_cut_of_a_small_recipe_is_refused(tmp_path: Path) -> None:
    data = zipped(recipe_files()).write(tmp_path / "whole.recipe").read_bytes()
    path = tmp_path / "r.recipe"
    for length in range(0, len(data), 13):
        path.write_bytes(data[:length])
        with pytest.raises(RecipeError):
            load_recipe(path)


def test_links_and_pipes_in_a_folder_are_refused(tmp_path: Path) -> None:
    for number, make in enumerate(
        [
            lambda path: (path / SIGNATURE).symlink_to("/etc/passwd"),
            lambda path: (path / SIGNATURE).symlink_to(path / MANIFEST),
            lambda path: os.mkfifo(path / SIGNATURE),
            lambda path: (path / SIGNATURE).mkdir(),
            lambda path: (
                (path / "golden").rename(path.parent / "elsewhere")
                and (path / "golden").symlink_to(path.parent / "elsewhere")
            ),
            lambda path: (path / "golden" / "deeper").mkdir(),
            lambda path: (path / "golden" / "x.png").symlink_to("/dev/zero"),
        ]
    ):
        path = tmp_path / str(number)
        put(path, recipe_files())
        make(path)
        refused(path)


def test_a_pipe_or_a_device_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.recipe")
    for path in (tmp_path / "pipe.recipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(RecipeUnreadable):
            load_recipe(path)


def test_files_too_large_for_what_they_are_are_not_read(tmp_path: Path) -> None:
    put(tmp_path / "r", recipe_files())
    for name, size in (
        (MANIFEST, (16 << 20) + 1),
        (BANK, (4 << 30) + 1),
        (SIGNATURE, (64 << 10) + 1),
        (GOLDEN, 1 << 30),
    ):
        put(tmp_path / name.replace("/", "-"), recipe_files())
        with (tmp_path / name.replace("/", "-") / name).open("ab") as file:
            file.truncate(size)  # sparse
        assert "more than it may have" in refused(tmp_path / name.replace("/", "-"))


def test_a_folder_of_very_many_files_is_refused_at_the_first_too_many(tmp_path: Path) -> None:
    put(tmp_path / "r", recipe_files())
    for number in range(400):
        (tmp_path / "r" / "golden" / f"{number}.png").touch()
    assert "more than 256 files" in refused(tmp_path / "r")


# ---------------------------------------------------------------- the manifest


def with_manifest(raw: bytes) -> dict[str, bytes]:
    """A recipe with these bytes for its manifest, their digest right where there is a place for it."""
    return {**recipe_files(), MANIFEST: raw.replace(b"0" * 64, manifest_digest(raw).encode(), 1)}


@pytest.mark.parametrize(
    "raw",
    [b"[" * 1_000_000, b'{"a":' * 1_000_000, b'{"schema":' + b"[" * 900 + b"]" * 900 + b"}", b"\xff\xfe{\0}\0", b"\x80",
     b'{"schema":"\xed\xa0\x80"}', b'\xef\xbb\xbf{}', b'"' + b"x" * 1_000_000 + b'"', b"9" * 100_000, b"1e999",
     b"NaN", b"null", b'{"schema":"' + b"x" * 1_000_000 + b'"}',
     b'{"schema":"edge-daemon/recipe/1","required_features":[[[]],{},"' + b"y" * 1_000_000 + b'"]}',
     b'{"schema":"edge-daemon/recipe/1","' + b"k" * 1_000_000 + b'":1}'],
    ids=range(15),
)  # fmt: skip
def test_a_manifest_that_is_none_ends_in_a_short_error(tmp_path: Path, raw: bytes) -> None:
    put(tmp_path / "r", {**recipe_files(), MANIFEST: raw})
    refused(tmp_path / "r", RecipeError)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """Which of two thresholds counts would depend on who reads."""
    raw = rewritten(lambda _m: None)[MANIFEST]
    digest = json.loads(raw)["self_sha256"].encode()
    twice = raw.replace(digest, b"0" * 64).replace(b'"lower": 1.0', b'"lower": 0.5, "lower": 1.0')
    put(tmp_path / "r", with_manifest(twice))
    assert "twice" in refused(tmp_path / "r")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1.0", '"1.0"', "null", "[1]", "true"])
@pytest.mark.parametrize("key", ["lower", "upper", "pixel"])
def test_a_threshold_that_is_no_number_from_zero_up_is_refused(tmp_path: Path, key: str, value: str) -> None:
    raw = rewritten(lambda m: m["thresholds"].update({key: 123456.5}))[MANIFEST]
    digest = json.loads(raw)["self_sha256"].encode()
    put(tmp_path / "r", with_manifest(raw.replace(digest, b"0" * 64).replace(b"123456.5", value.encode())))
    refused(tmp_path / "r", RecipeError)


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"1e999"])
def test_what_is_not_finite_is_refused_also_where_anything_may_stand(tmp_path: Path, value: bytes) -> None:
    raw = rewritten(lambda m: m["calibration"].update(rate=123456.5))[MANIFEST]
    digest = json.loads(raw)["self_sha256"].encode()
    put(tmp_path / "r", with_manifest(raw.replace(digest, b"0" * 64).replace(b"123456.5", value)))
    refused(tmp_path / "r")


def _golden_many(m: dict[str, Any]) -> None:
    m["golden"] = m["golden"] * 60


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["preprocess"].update(resize_to=[100_000, 100_000]),
        lambda m: m["preprocess"].update(resize_to=[10**30, 16]),
        lambda m: m["view"].update(frame_size=[100_000, 100_000]),
        lambda m: m["view"].update(um_per_px=1e-300, min_defect_mm2=1.0),
        lambda m: m["parameters"].update(blur_sigma_px=1e300),
        lambda m: m["parameters"].update(neighbours=10**40),
        lambda m: m["bank"].update(rows=10**40),
        lambda m: m["backbone"].update(grid=[10**9, 10**9]),
        lambda m: m.update(version="v" * 100_000),
        lambda m: m.update(version="\x1b]0;owned\x07"),
        lambda m: m["backbone"].update(name="\x00"),
        lambda m: m.update(required_features=["patchcore/1"] * 1000),
        lambda m: m.update(mask={"grid": [1 << 17, 1 << 17], "cells": "AAAA", "source": {}}),
        _golden_many,
    ],
    ids=range(14),
)
def test_a_manifest_that_asks_for_gigabytes_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    put(tmp_path / "r", rewritten(change))
    refused(tmp_path / "r", RecipeError)


# ---------------------------------------------------------------- bank, golden pictures


def with_file(name: str, data: bytes) -> dict[str, bytes]:
    """A recipe with other bytes for one file and every digest right."""

    def change(m: dict[str, Any]) -> None:
        (m["bank"] if name == BANK else m["golden"][0])["sha256"] = sha256(data)

    return {**rewritten(change), name: data}


def bank(header: object, body: bytes = bytes(48)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


F32 = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95",
        struct.pack("<Q", 1 << 60) + b"{}",
        bank(b"{"),
        bank(b"[" * 100_000),
        bank({"bank": {**F32, "shape": [1 << 40, 1 << 40]}}),
        bank({"bank": {**F32, "shape": [3, 4, 0], "data_offsets": [0, 0]}}, b""),
        bank({"bank": {**F32, "data_offsets": [0, 1 << 50]}}),
        bank({"bank": {**F32, "data_offsets": [-4, 44]}}),
        bank({"bank": {**F32, "dtype": "F64"}}, bytes(96)),
        bank({"bank": {**F32, "dtype": "O"}}),
        bank({"bank": {**F32, "dtype": "F8_E4M3", "data_offsets": [0, 12]}}, bytes(12)),
        bank({"bank": {**F32, "dtype": "BF16", "data_offsets": [0, 24]}}, bytes(24)),
        bank({"bank": F32}, np.full(12, np.nan, np.float32).tobytes()),
        bank({"bank": F32}, np.full(12, np.inf, np.float32).tobytes()),
        bank({"bank": F32}, np.full(12, 3e38, np.float32).tobytes() + b"tail"),
        safetensors.numpy.save({"bank": np.zeros((4, 3), np.float32)}),
        safetensors.numpy.save({"other": np.zeros((3, 4), np.float32)}),
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (3, 4)}".ljust(200),
    ],
    ids=range(19),
)
def test_a_bank_that_lies_about_itself_is_refused(tmp_path: Path, data: bytes) -> None:
    put(tmp_path / "r", with_file(BANK, data))
    refused(tmp_path / "r", RecipeShapeError)


def test_a_golden_picture_of_another_size_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "r", with_file(GOLDEN, encode_png(np.zeros((3000, 3000), np.uint8))))
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("decoded"))
    assert "3000x3000 px, it should be 32x24" in refused(tmp_path / "r", RecipeShapeError)


def test_a_digest_that_is_right_for_another_file_is_wrong_for_this_one(tmp_path: Path) -> None:
    files = recipe_files()
    put(tmp_path / "r", {**files, BANK: files[BACKBONE], BACKBONE: files[BANK]})
    refused(tmp_path / "r", RecipeDigestError)


# ---------------------------------------------------------------- the graph


def graph(*nodes: onnx.NodeProto, tensors: tuple[TensorProto, ...] = (), output: str = "f") -> bytes:
    cast = helper.make_node("Cast", ["i"], ["f"], to=1)
    made = helper.make_graph(
        [cast, *nodes],
        "g",
        [helper.make_tensor_value_info("i", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 8, 8, 3])],
        list(tensors),
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


def outside(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def test_an_honest_graph_is_taken() -> None:
    OnnxExtractor(graph(), "x", EngineOptions(intra_op_threads=1))
    for path in (ROOT / "edge_daemon").rglob("*.onnx"):
        refuse_foreign_files(path.read_bytes())
    refuse_foreign_files((ROOT / "export" / "backbones" / "edge_small.onnx").read_bytes())


@pytest.mark.parametrize("location", ["/etc/hostname", "../weights.bin", "weights.bin", "/dev/zero", ""])
def test_weights_in_other_files_are_refused_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(12))
    monkeypatch.chdir(tmp_path)
    used = helper.make_node("Mul", ["f", "w"], ["o"])
    with pytest.raises(RecipeEngineError, match="weights in other files"):
        OnnxExtractor(graph(used, tensors=(outside(location),), output="o"), "x", EngineOptions())


def test_weights_in_other_files_do_not_hide_in_attributes_branches_or_sparse_tensors() -> None:
    constant = helper.make_node("Constant", [], ["w"], value=outside("w"))
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [3])])
    hidden = helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch)
    sparse = onnx.SparseTensorProto(values=outside("w"), dims=[3])
    model = onnx.ModelProto.FromString(graph())
    model.graph.sparse_initializer.append(sparse)
    for data in (graph(constant), graph(hidden), model.SerializeToString()):
        with pytest.raises(RecipeEngineError, match="weights in other files"):
            refuse_foreign_files(data)


@pytest.mark.parametrize("operator", ["EPContext", "Loop", "Scan"])
def test_an_operator_that_reads_files_or_never_ends_is_refused(operator: str) -> None:
    with pytest.raises(RecipeEngineError, match=operator):
        OnnxExtractor(graph(helper.make_node(operator, ["f"], ["o"], domain="com.microsoft")), "x", EngineOptions())


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 100, b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x3a\x05ab", b"\x0b\x0c", b"\x80" * 20,
     b"\x3a\x7f" * 100, b"\x00"],
)  # fmt: skip
def test_what_is_no_graph_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(RecipeEngineError):
        OnnxExtractor(data, "x", EngineOptions())


def test_a_graph_nested_without_end_is_refused() -> None:
    data = b""
    for _ in range(200):
        for key in (b"\x32", b"\x2a", b"\x0a"):  # graph of an attribute of a node of a graph
            data = key + _length(data) + data
    with pytest.raises(RecipeEngineError, match="nested too deeply"):
        refuse_foreign_files(b"\x3a" + _length(data) + data)


def _length(data: bytes) -> bytes:
    length, size = len(data), b""
    while length > 0x7F:
        size, length = size + bytes([0x80 | (length & 0x7F)]), length >> 7
    return size + bytes([length])


# ---------------------------------------------------------------- pictures


def jpeg(*segments: bytes) -> bytes:
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, 16, 16, 1) + b"\x01\x11\0"
    return b"\xff\xd8" + frame + b"".join(segments) + b"\xff\xd9"


SCAN = b"\xff\xda" + struct.pack(">HBBB", 8, 1, 1, 0) + b"\0\x3f\0"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (jpeg(b"\xff" * 3_000_000 + b"\0"), ""),
        (jpeg(SCAN * 10_000), "scans"),
        (jpeg(b"\xff\xfe\0\2" * 1_000_000), "segments"),
        (b"\x89PNG\r\n\x1a\n" + (b"\0\0\0\0tEXt" + struct.pack(">I", zlib.crc32(b"tEXt"))) * 500_000, "disorder"),
    ],
    ids=["fill bytes", "scans", "segments", "chunks"],
)
def test_a_small_picture_is_never_minutes_of_work(data: bytes, told: str) -> None:
    """All of these end at once; the first and the second took minutes or hours before they were bounded."""
    program = (
        "import sys\nfrom edge_daemon.artefact.pictures import decode_picture\n"
        "from edge_daemon.errors import PictureError\n"
        "try: decode_picture(sys.stdin.buffer.read(), 'p')\nexcept PictureError as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=data, capture_output=True, timeout=30, cwd=ROOT, check=True
    )
    assert told in done.stdout.decode()
    assert done.stdout


def test_the_size_of_a_png_stands_first_and_once() -> None:
    from edge_daemon.artefact.pictures import decode_picture
    from edge_daemon.errors import PictureError

    whole = encode_png(np.zeros((16, 16), np.uint8))
    ihdr = whole[8:33]
    for bad in (whole[:33] + ihdr + whole[33:], whole[:8] + whole[33:]):
        with pytest.raises(PictureError, match="disorder"):
            decode_picture(bad, "p")


# ---------------------------------------------------------------- what the graph really gives


@pytest.mark.parametrize("measured", [False, True], ids=["engine by rule", "engine measured"])
@pytest.mark.parametrize(
    "change", [{"grid": [1, 2]}, {"grid": [4, 4]}, {"dim": 4}], ids=["fewer", "more", "dimensions"]
)
def test_a_graph_that_gives_other_cells_than_the_recipe_says_is_refused(
    tmp_path: Path, change: dict[str, Any], measured: bool
) -> None:
    """A mask would ignore other places than those that were drawn."""
    files = kit.recipe()
    manifest = json.loads(files[MANIFEST])
    manifest["backbone"] |= change
    if "dim" in change:
        files = kit.with_bank(files, safetensors.numpy.save({"bank": np.zeros((4, 4), np.float32)}))
        manifest["bank"] |= {"dim": 4, "sha256": sha256(files[BANK])}
    put(tmp_path / "r", {**files, MANIFEST: kit.sealed(json.dumps(manifest).encode())})
    sessions = Sessions(EngineOptions(intra_op_threads=1), Choices(tmp_path / "engines.json") if measured else None)
    with pytest.raises(RecipeShapeError, match="the recipe says"):
        load_verified(tmp_path / "r", sessions)
