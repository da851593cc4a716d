"""The contract of all detectors: cameras, thresholds, boxes, wire and gateway never know which one it is."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.decision import Evidence, Thresholds

Features = NDArray[np.float32]


class Extractor(Protocol):
    """A graph loaded into a session, shared by every detector with the same `key`."""

    @property
    def key(self) -> tuple[str, int, int]:
        """(graph SHA-256, height, width): frames with equal keys may share a batch."""
        ...

    @property
    def provider(self) -> str:
        """The onnxruntime execution provider that runs."""
        ...

    def extract(self, batch: NDArray[np.uint8]) -> Features:
        """(N, H, W, 3) uint8 RGB at model size -> (N, gh, gw, D) float32. Raises EdgeError."""
        ...


class Detector(Protocol):
    """Judges the frames of one recipe."""

    @property
    def extractor(self) -> Extractor: ...

    @property
    def thresholds(self) -> Thresholds: ...

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Full frame -> model input (H, W, 3) uint8. Raises PictureError when the frame does not fit."""
        ...

    def judge(self, features: Features, thresholds: Thresholds) -> Evidence:
        """Features of one frame, (gh, gw, D) float32 -> evidence, boxes in full-frame pixels."""
        ...


def judge_picture(detector: Detector, pixels: NDArray[np.uint8]) -> Evidence:
    """One picture through the whole detector: resize, features, evidence."""
    features = detector.extractor.extract(detector.prepare(pixels)[None])
    return detector.judge(features[0], detector.thresholds)
