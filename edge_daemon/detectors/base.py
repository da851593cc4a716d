"""The contract of all detectors: cameras, thresholds, boxes, wire and gateway never know which one it is."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.decision import Evidence, Thresholds
from edge_daemon.engines.device import DeviceFeatures

# Of one frame: (gh, gw, D) float32, on the host or where the session left it.
Features = NDArray[np.float32] | DeviceFeatures


def on_host(features: Features) -> NDArray[np.float32]:
    """The features as an array, (gh, gw, D) float32. Raises EdgeError when a device fails."""
    return features.host() if isinstance(features, DeviceFeatures) else features


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

    def extract(self, batch: NDArray[np.uint8]) -> NDArray[np.float32] | Sequence[DeviceFeatures]:
        """(N, H, W, 3) uint8 RGB at model size -> (N, gh, gw, D) float32, or N features on the device.
        Raises EdgeError."""
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
        """Features of one frame -> evidence, boxes in full-frame pixels. Raises EdgeError when a device fails."""
        ...


def judge_picture(detector: Detector, pixels: NDArray[np.uint8]) -> Evidence:
    """One picture through the whole detector: resize, features, evidence."""
    features = detector.extractor.extract(detector.prepare(pixels)[None])
    return detector.judge(features[0], detector.thresholds)
