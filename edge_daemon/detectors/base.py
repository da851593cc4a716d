"""The contract of all detectors: cameras, thresholds, boxes, wire and gateway never know which one it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.align import Pose
from edge_daemon.core.decision import Evidence, Thresholds
from edge_daemon.engines.device import DeviceFeatures

# Of one frame: (gh, gw, D) float32, on the host or where the session left it.
Features = NDArray[np.float32] | DeviceFeatures


@dataclass(frozen=True, slots=True)
class Prepared:
    """A frame as the backbone takes it.

    inputs: (T, H, W, 3) uint8 at model size, T tiles, 1 where the picture is not cut; pose: how the part lay in the
    frame, None where it was not looked for.
    """

    inputs: NDArray[np.uint8]
    pose: Pose | None = None


def on_host(features: Features) -> NDArray[np.float32]:
    """The features as an array, (gh, gw, D) float32. Raises EdgeError when a device fails."""
    return features.host() if isinstance(features, DeviceFeatures) else features


class Extractor(Protocol):
    """A graph loaded into a session, shared by every detector with the same `key`."""

    @property
    def key(self) -> tuple[str, int, int]:
        """(graph SHA-256 and how it is fed, height, width): frames with equal keys may share a batch."""
        ...

    @property
    def provider(self) -> str:
        """The onnxruntime execution provider that runs."""
        ...

    def extract(self, batch: NDArray[np.uint8]) -> NDArray[np.float32] | Sequence[DeviceFeatures]:
        """(N·T, H, W, 3) uint8 RGB at model size, the T inputs of each of N frames -> (N, gh, gw, D) float32, or N
        features on the device. Raises EdgeError."""
        ...


class Detector(Protocol):
    """Judges the frames of one recipe."""

    @property
    def extractor(self) -> Extractor: ...

    @property
    def thresholds(self) -> Thresholds: ...

    def prepare(self, pixels: NDArray[np.uint8]) -> Prepared:
        """Full frame -> model inputs. Raises PictureError when the frame does not fit, NotLocatedError when the part
        is not where the recipe looks for it."""
        ...

    def judge(self, features: Features, thresholds: Thresholds, pose: Pose | None = None) -> Evidence:
        """Features of one frame -> evidence, boxes in pixels of the frame whose part lay as `pose` says; without one,
        of the aligned picture. Raises EdgeError when a device fails."""
        ...


def judge_picture(detector: Detector, pixels: NDArray[np.uint8]) -> Evidence:
    """One picture through the whole detector: alignment, resize, features, evidence."""
    prepared = detector.prepare(pixels)
    features = detector.extractor.extract(prepared.inputs)
    return detector.judge(features[0], detector.thresholds, prepared.pose)
