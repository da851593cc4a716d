"""Labelled pictures and a detector simple enough that every figure of an evaluation can be foretold."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_daemon.artefact.manifest import Manifest
from edge_daemon.artefact.pictures import encode_png
from edge_daemon.core.align import Pose
from edge_daemon.core.decision import Evidence, Thresholds
from edge_daemon.core.geometry import Region
from edge_daemon.core.maps import boxes_above
from edge_daemon.core.resize import to_model_input
from edge_daemon.detectors.base import Prepared
from export.dataset import find_samples
from export.evaluate import evaluate

CELL = 4


@pytest.fixture(scope="session")
def plots_drawn_once() -> None:
    """matplotlib keeps the files of its typefaces open for ever: let it open them outside of any test."""
    pytest.importorskip("jinja2", reason="needs the extra `export`")
    pytest.importorskip("matplotlib", reason="needs the extra `export`")
    from export.plots import score_plot

    of = manifest()
    with TemporaryDirectory() as folder:
        samples = find_samples(data_set(Path(folder), {"good": [100]}))
        score_plot(evaluate(BrightSpotDetector(of), of, samples))


def manifest(
    frame: tuple[int, int] = (64, 48),
    size: tuple[int, int] = (32, 24),
    resize_to: tuple[int, int] | None = None,
    region: tuple[int, int, int, int] | None = None,
    **changes: Any,
) -> Manifest:
    """A manifest for pictures of that geometry; nothing of it is on disk."""
    digest = "ab" * 32
    grid = (size[0] // CELL, size[1] // CELL)
    fields: dict[str, Any] = {
        "required_features": ["patchcore/1"],
        "self_sha256": digest,
        "name": "lid",
        "version": "7",
        "created_utc": "2026-11-20T08:00:00Z",
        "detector": "patchcore",
        "view": {"frame_size": frame, "region": region},
        "preprocess": {"resize": "area", "size": size, "resize_to": resize_to or size},
        "backbone": {
            "name": "mean",
            "sha256": digest,
            "file": "backbone.onnx",
            "precision": "fp32",
            "grid": grid,
            "extent": (grid[0] * CELL, grid[1] * CELL),
            "dim": 3,
        },
        "parameters": {
            "profile": "anomalib",
            "neighbours": 1,
            "metric": "euclidean",
            "upsampling": "nearest",
            "blur": "torch_reflect",
            "blur_sigma_px": 0,
        },
        "bank": {"file": "bank.safetensors", "sha256": digest, "rows": 4, "dim": 3},
        "thresholds": {"lower": 20, "upper": 40, "pixel": 20},
        "provisional": False,
        "calibration": {},
        "golden": [
            {
                "file": "golden/a.png",
                "sha256": digest,
                "kind": "good",
                "score": 0,
                "max_distance": 0,
                "evaluation": "OK",
            }
        ],
        "provenance": {},
    }
    return Manifest.model_validate({**fields, **changes})


class MeanExtractor:
    """Features are the mean colour of each cell of 4 x 4 model pixels."""

    provider = "CPUExecutionProvider"

    def __init__(self, size: tuple[int, int]) -> None:
        self.key = ("mean", size[1], size[0])

    def extract(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        n, h, w, _ = batch.shape
        return batch.reshape(n, h // CELL, CELL, w // CELL, CELL, 3).mean(axis=(2, 4)).astype(np.float32)


class BrightSpotDetector:
    """The score is how far the brightest cell lies above 100 grey levels; OK up to 20, NotOK above 40."""

    def __init__(self, of: Manifest, thresholds: Thresholds | None = None) -> None:
        self.of = of
        self.extractor = MeanExtractor(of.preprocess.size)
        self.thresholds = thresholds or Thresholds(20, 40, 20)
        self.spoilt_score: float | None = None
        self.searches = 0

    def prepare(self, pixels: NDArray[np.uint8]) -> Prepared:
        view, pre = self.of.view, self.of.preprocess
        region = Region(*view.region) if view.region else None
        return Prepared(to_model_input(pixels, view.frame_size, region, pre.resize_to, pre.size, pre.resize)[None])

    def judge(self, features: NDArray[np.float32], thresholds: Thresholds, pose: Pose | None = None) -> Evidence:
        assert pose is None
        anomaly, view = self.anomaly_map(features), self.of.view
        self.searches += 10
        score = float(anomaly.max()) if self.spoilt_score is None else self.spoilt_score
        region = Region(*view.region) if view.region else None
        boxes = boxes_above(anomaly, thresholds.pixel, view.frame_size, region, self.of.preprocess.resize_to)
        return Evidence(score, float(anomaly.max()), boxes, "exact", lambda: anomaly, exact_searches=self.searches)

    def anomaly_map(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        distance = np.maximum(features.mean(axis=2) - 100, 0).astype(np.float32)
        return distance.repeat(CELL, axis=0).repeat(CELL, axis=1)


def part(brightness: int, frame: tuple[int, int] = (64, 48), at: tuple[int, int] = (16, 16)) -> NDArray[np.uint8]:
    """A grey part of 100 with a bright square of 16 px, and exactly its score: brightness - 100."""
    pixels = np.full((frame[1], frame[0]), 100, np.uint8)
    pixels[at[1] : at[1] + 16, at[0] : at[0] + 16] = brightness
    return pixels


def save(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """Write a PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(pixels))
    return path


def data_set(root: Path, classes: dict[str, list[int]], masks: bool = True) -> Path:
    """MVTec layout with one picture per brightness; every defective one has the square as its mask."""
    for name, brightnesses in classes.items():
        for number, brightness in enumerate(brightnesses):
            save(root / "test" / name / f"{number:03}.png", part(brightness))
            if masks and name != "good":
                square = (part(255) == 255).astype(np.uint8) * 255
                save(root / "ground_truth" / name / f"{number:03}_mask.png", square)
    return root
