"""PatchCore as a detector (Roth et al. 2022, arXiv 2106.08265)."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.manifest import Manifest
from edge_daemon.core.decision import Evidence, Thresholds
from edge_daemon.core.distances import largest_squared_norm, proposal_tolerance
from edge_daemon.core.geometry import Box, Region
from edge_daemon.core.maps import Blur, Upsampling, anomaly_map, boxes_above
from edge_daemon.core.patchcore import Metric, image_score, patch_distances
from edge_daemon.core.resize import ResizeMethod, to_model_input
from edge_daemon.detectors.base import Extractor, Features
from edge_daemon.engines.nearest import NearestNeighbour


@dataclass(frozen=True, slots=True)
class PatchCoreSettings:
    """What of a manifest the detector needs; see `artefact.manifest` for the fields."""

    frame_size: tuple[int, int]
    region: Region | None
    resize: ResizeMethod
    resize_to: tuple[int, int]
    size: tuple[int, int]
    extent: tuple[int, int]
    neighbours: int
    metric: Metric
    upsampling: Upsampling
    blur: Blur
    blur_sigma_px: float

    @classmethod
    def of(cls, manifest: Manifest) -> "PatchCoreSettings":
        """The settings that a manifest states."""
        parameters = manifest.parameters
        return cls(
            frame_size=manifest.view.frame_size,
            region=Region(*manifest.view.region) if manifest.view.region else None,
            resize=manifest.preprocess.resize,
            resize_to=manifest.preprocess.resize_to,
            size=manifest.preprocess.size,
            extent=manifest.backbone.extent,
            neighbours=parameters.neighbours,
            metric=parameters.metric,
            upsampling=parameters.upsampling,
            blur=parameters.blur,
            blur_sigma_px=parameters.blur_sigma_px,
        )


def project_patches(patches: NDArray[np.float32], projection: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """(P, backbone dim) float32 -> (P, bank dim): the recipe's `pca/1`, or the patches themselves without it.

    NaN and infinity come out as NaN or infinity.
    """
    if projection is None:
        return patches
    with np.errstate(invalid="ignore", over="ignore"):  # judged by the caller, who looks at the norms
        return patches @ projection


_NOT_FINITE = Evidence(score=math.nan, max_distance=math.nan, boxes=(), map_kind="")


class PatchCoreDetector:
    """Judges frames against a memory bank; holds no state of the frames it has seen."""

    def __init__(
        self,
        settings: PatchCoreSettings,
        thresholds: Thresholds,
        extractor: Extractor,
        bank: NDArray[np.float32],
        engine: NearestNeighbour,
        projection: NDArray[np.float32] | None = None,
    ) -> None:
        self.settings = settings
        self.thresholds = thresholds
        self.extractor = extractor
        self.bank = bank
        self.engine = engine
        self.projection = projection
        self._largest_row = largest_squared_norm(bank)

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Full frame -> model input (H, W, 3) uint8. Raises PictureError when the frame does not fit."""
        s = self.settings
        return to_model_input(pixels, s.frame_size, s.region, s.resize_to, s.size, s.resize)

    def judge(self, features: Features, thresholds: Thresholds) -> Evidence:
        """Score and boxes of one frame from its (gh, gw, D) float32 features.

        Features that are not finite give a score of NaN, which no threshold passes. The map is made only
        when it can reach the pixel threshold: a blur is an average and never exceeds the largest distance.
        """
        patches = project_patches(features.reshape(-1, features.shape[-1]), self.projection)
        largest = largest_squared_norm(patches)
        if not math.isfinite(largest):
            return _NOT_FINITE
        proposed, rows = self.engine.nearest(patches, 1)
        found = image_score(
            patches,
            proposed[:, 0],
            self.bank,
            self.engine.nearest,
            proposal_tolerance(largest, self._largest_row),
            self.settings.neighbours,
            self.settings.metric,
        )
        boxes: tuple[Box, ...] = ()
        if not found.max_distance < thresholds.pixel:
            anomaly = self._map(patches, rows[:, 0], features.shape[:2])
            s = self.settings
            boxes = boxes_above(anomaly, thresholds.pixel, s.frame_size, s.region, s.resize_to)
        return Evidence(
            found.score,
            found.max_distance,
            boxes,
            "exact",
            partial(self._map, patches, rows[:, 0], features.shape[:2]),
        )

    def _map(self, patches: NDArray[np.float32], rows: NDArray[np.int64], grid: tuple[int, ...]) -> NDArray[np.float32]:
        s = self.settings
        distances = patch_distances(patches, rows, self.bank, s.metric)
        return anomaly_map(
            distances.reshape(grid),
            s.size,
            s.extent,
            s.upsampling,
            s.blur,
            s.blur_sigma_px,
        )
