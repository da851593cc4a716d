"""What fuzzing begins with: the smallest recipe that really judges, pictures, messages, a journal."""

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from onnx import TensorProto, helper

from edge_daemon.artefact.pictures import encode_png
from edge_daemon.artefact.recipe import (
    BACKBONE,
    BANK,
    MANIFEST,
    TEMPLATE,
    bank_bytes,
    manifest_bytes,
    manifest_digest,
    sha256,
    verify_files,
)
from edge_daemon.config import StationConfig
from edge_daemon.core.decision import judge_score
from edge_daemon.core.mask import pack
from edge_daemon.detectors.base import judge_picture
from edge_daemon.detectors.loading import build_detector
from edge_daemon.edges.clock import SystemClock
from edge_daemon.engines.sessions import EngineOptions, Sessions
from edge_daemon.pipeline.messages import Identity
from edge_daemon.pipeline.station import Station
from edge_daemon.wire import codec
from edge_daemon.wire.messages import Inspection

GOLDEN = "golden/good-1.png"
FRAME = (40, 32)
ENGINE = EngineOptions(intra_op_threads=1)


def graph() -> bytes:
    """uint8 (N, 16, 16, 3) in, the mean colours of 2x2 cells out: the least that a fused backbone can be."""
    nodes = [
        helper.make_node("Cast", ["i"], ["f"], to=1),
        helper.make_node("Transpose", ["f"], ["c"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["c"], ["p"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Transpose", ["p"], ["o"], perm=[0, 2, 3, 1]),
    ]
    made = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("i", TensorProto.UINT8, ["n", 16, 16, 3])],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, ["n", 2, 2, 3])],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


def station() -> Station:
    """A station of one view, in front of a journal that keeps nothing."""

    class Outbox:
        def intend(self, _intent: Any, on_durable: Any) -> None:
            on_durable(None)

        def conclude(self, draft: Inspection) -> None:
            codec.inspection_header(draft)

        def attempts(self, _station: str, _trigger_id: str) -> int:
            return 0

    config = StationConfig.model_validate({"views": [{"camera": "top", "recipe": "means"}]})
    return Station("st1", config, Identity("line-1", 1, "b", "edge-daemon", "0" * 64), SystemClock(), Outbox())


def recipe(**changes: Any) -> dict[str, bytes]:
    """The files of a recipe that passes every step of loading. changes: other fields of its manifest."""
    picture = np.full((FRAME[1], FRAME[0], 3), 120, np.uint8)
    picture[8:20, 10:30] = (60, 130, 200)
    bank = np.array([[110, 110, 110], [80, 120, 180], [120, 125, 130], [100, 120, 140]], np.float32)
    files = {BANK: bank_bytes(bank), BACKBONE: graph(), GOLDEN: encode_png(picture)}
    if "align" in changes:
        files[TEMPLATE] = files[GOLDEN]
        changes["align"] |= {"file": TEMPLATE, "sha256": sha256(files[TEMPLATE])}
    golden = {"file": GOLDEN, "sha256": sha256(files[GOLDEN]), "kind": "good"}
    fields: dict[str, Any] = {
        "required_features": ["patchcore/1"],
        "name": "means",
        "version": "1",
        "created_utc": "2026-11-21T08:00:00Z",
        "detector": "patchcore",
        "view": {"frame_size": list(FRAME), "region": [4, 4, 32, 24], "um_per_px": 50.0},
        "preprocess": {"resize": "area", "size": [16, 16], "resize_to": [16, 16]},
        "backbone": {"name": "means", "sha256": sha256(files[BACKBONE]), "file": BACKBONE, "precision": "fp32",
                     "grid": [2, 2], "extent": [16, 16], "dim": 3},
        "parameters": {"profile": "anomalib", "neighbours": 2, "metric": "euclidean", "upsampling": "nearest",
                       "blur": "torch_reflect", "blur_sigma_px": 2.0},
        "bank": {"file": BANK, "sha256": sha256(files[BANK]), "rows": 4, "dim": 3},
        "thresholds": {"lower": 60.0, "upper": 80.0, "pixel": 30.0},
        "provisional": False,
        "calibration": {"held_out": [{"name": "a", "block": 1, "score": 1.5}]},
        "golden": [{**golden, "score": 0, "max_distance": 0, "evaluation": "OK"}],
        "provenance": {},
        **changes,
    }  # fmt: skip
    unproven = verify_files({**files, MANIFEST: manifest_bytes(fields)}, "seed")
    detector = build_detector(unproven, Sessions(ENGINE), "flat")
    evidence = judge_picture(detector, picture)
    label = judge_score(evidence.score, evidence.max_distance, detector.thresholds).evaluation.label
    fields["golden"] = [{**golden, "score": evidence.score, "max_distance": evidence.max_distance, "evaluation": label}]
    return {**files, MANIFEST: manifest_bytes(fields)}


def manifests() -> list[bytes]:
    """recipe.json of recipes with other features, which go with the files of `recipe` and a template."""
    view = {"frame_size": list(FRAME), "region": None, "um_per_px": 50.0, "min_defect_mm2": 0.25}
    mask = {"grid": [2, 2], "cells": pack(np.array([[True, False], [False, False]])), "source": {"file": "m.png"}}
    align = {"template": [8, 6, 24, 16], "shift_px": 4, "rotation_deg": 2.0, "correlation": 0.5, "picture": "a.png"}
    tiles = {"tile": [16, 16], "overlap_px": 4}
    wide = {"resize": "antialias", "size": [32, 16], "resize_to": [32, 16]}
    return [
        recipe()[MANIFEST],
        recipe(required_features=["patchcore/1", "mask/1", "smallest/1"], mask=mask, view=view)[MANIFEST],
        recipe(required_features=["patchcore/1", "tiles/1"], tiles=tiles, preprocess=wide)[MANIFEST],
        recipe(required_features=["patchcore/1", "align/1"], align=align)[MANIFEST],
    ]


_DIGEST = re.compile(rb'("self_sha256": ?")[0-9a-f]{64}(")')


def sealed(manifest: bytes) -> bytes:
    """With its own digest right again, where it has a place for one: what a forger would do."""
    digest = manifest_digest(manifest).encode()
    return _DIGEST.sub(rb"\g<1>" + digest + rb"\g<2>", manifest, count=1)


def with_bank(files: dict[str, bytes], bank: bytes) -> dict[str, bytes]:
    """The recipe with other bytes for its bank, and every digest right."""
    manifest = json.loads(files[MANIFEST])
    manifest["bank"]["sha256"] = sha256(bank)
    return {**files, BANK: bank, MANIFEST: sealed(json.dumps(manifest).encode())}


def pictures() -> dict[str, list[bytes]]:
    """By container: small files of several kinds."""
    rng = np.random.default_rng(0)
    colour, grey = rng.integers(0, 256, (24, 20, 3), np.uint8), np.full((16, 40), 90, np.uint8)
    wide = rng.integers(0, 65_536, (12, 12), np.uint16)

    def encoded(suffix: str, pixels: Any, *options: int) -> bytes:
        return bytes(cv2.imencode(suffix, pixels, options)[1].tobytes())

    return {
        "png": [encoded(".png", each) for each in (colour, grey, wide)],
        "jpeg": [encoded(".jpg", colour), encoded(".jpg", grey, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
                 encoded(".jpg", colour, cv2.IMWRITE_JPEG_RST_INTERVAL, 1)],
        "bmp": [encoded(".bmp", each) for each in (colour, grey)],
        "tiff": [encoded(".tiff", each) for each in (colour, grey, wide)] + [
            encoded(".tiff", colour, cv2.IMWRITE_TIFF_COMPRESSION, 1)],
    }  # fmt: skip


def with_png_checksums(data: bytes) -> bytes:
    """Every chunk's checksum right, as far as there are chunks."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out + data[at:]


def journal_file(folder: Path) -> bytes:
    """A journal with some records, an amendment and two boots, as one file."""
    import sqlite3
    import threading

    from edge_daemon.edges.journal import Journal
    from tests.wire_kit import inspection, not_ok

    path = folder / "journal.sqlite"
    for boot in range(2):
        with Journal(path, "line-1") as journal:
            ended = threading.Semaphore(0)
            drafts = [inspection(seq=0, boot=0, result_id=f"{boot}a"), not_ok(seq=0, boot=0, result_id=f"{boot}b")]
            for draft in drafts:
                journal.conclude(draft, lambda _end, ended=ended: ended.release())  # type: ignore[misc]
            for _ in drafts:
                assert ended.acquire(timeout=20)
            journal.amend(f"{boot}a", "part_id", {"part_id": "PN-late"}, lambda _e, ended=ended: ended.release())  # type: ignore[misc]
            assert ended.acquire(timeout=20)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    return path.read_bytes()


def outbox_file(folder: Path) -> bytes:
    """What a gateway has left that had something to tell."""
    from contextlib import closing

    from edge_daemon.gateway.outbox import FILE, Outbox
    from edge_daemon.wire.messages import AmendmentRequest

    def never(what: object) -> None:
        raise AssertionError(what)

    with closing(Outbox(folder, never, never)) as outbox:
        outbox.open()
        for number in range(1, 9):
            fields = {"amendment_id": f"a{number}", "trigger_id": f"{number}-r-{number}", "acquisition_id": number}
            told = {"request_id": "-", "station": "st1", "kind": "disposition", "what": "rejected", "after_ms": 1.5}
            outbox.keep(AmendmentRequest.model_validate(fields | told))
        outbox.written().result(20)
    content = (folder / FILE).read_bytes()
    (folder / FILE).unlink()
    return content
