"""What all banks and scores of one recipe share while it is made: backbone, geometry, pictures."""

import math
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.decision import Thresholds
from edge_daemon.core.resize import to_model_input
from edge_daemon.detectors.patchcore import PatchCoreDetector, PatchCoreSettings
from edge_daemon.engines.nearest import make_engine
from edge_daemon.engines.sessions import EngineOptions, OnnxExtractor
from export.bank import Bank, embed_pictures
from export.calibrate import features_of
from export.fuse import FusedBackbone
from export.gather import Gathered, Progress, gather, list_pictures

NO_THRESHOLDS = Thresholds(0.0, 0.0, 0.0)
"""For scoring, while none are known."""


@dataclass(frozen=True, slots=True)
class Station:
    """backbone: the fused graph, and `extractor` its session; settings: of the detector; pictures: of one folder."""

    backbone: FusedBackbone
    extractor: OnnxExtractor
    settings: PatchCoreSettings
    pictures: Gathered

    @property
    def patches(self) -> int:
        """Of one picture."""
        return math.prod(self.backbone.grid)

    def embed(self, index: int) -> NDArray[np.float32]:
        """(P, D) float32 patch embeddings of one picture. Raises CalibrationError when they are not finite."""
        return features_of(self.extractor, self.pictures, index).reshape(-1, self.backbone.dim)

    def embed_all(self, indices: NDArray[np.int64], progress: Progress) -> NDArray[np.float32]:
        """(pictures · P, D) float32 of these pictures, in a scratch file where they are many."""
        return embed_pictures(self.embed, indices, self.patches, self.backbone.dim, progress)

    def detector(self, bank: Bank, thresholds: Thresholds = NO_THRESHOLDS) -> PatchCoreDetector:
        """The detector that the daemon will make of that bank."""
        engine = make_engine("auto", bank.rows)
        return PatchCoreDetector(self.settings, thresholds, self.extractor, bank.rows, engine, bank.projection)


def open_station(
    backbone: FusedBackbone,
    extractor: OnnxExtractor,
    settings: PatchCoreSettings,
    folder: Path,
    block: str | None,
    skip_unreadable: bool,
    progress: Progress,
) -> Station:
    """Read the folder's pictures as the daemon will see them. Raises PicturesError, ExportError."""
    prepare = partial(
        to_model_input,
        frame_size=settings.frame_size,
        region=settings.region,
        resize_to=settings.resize_to,
        size=settings.size,
        method=settings.resize,
    )
    scratch = Path(tempfile.gettempdir())
    paths = list_pictures(folder)
    pictures = gather(folder, paths, prepare, backbone.size, block, skip_unreadable, scratch, progress)
    return Station(backbone, extractor, settings, pictures)


def make_extractor(backbone: FusedBackbone, options: EngineOptions) -> OnnxExtractor:
    """The backbone in a session. Raises ProviderError, RecipeEngineError."""
    return OnnxExtractor(backbone.model_bytes, backbone.sha256, options)


def twin_notes(pictures: Gathered) -> list[str]:
    """What is worth saying about copies and files left out."""
    notes = []
    if pictures.skipped:
        notes.append(f"{len(pictures.skipped)} unreadable pictures were left out")
    if pictures.near_copies:
        notes.append(
            f"{pictures.near_copies} pictures differ from others in noise only: the same part again. They count with "
            "them as one; one picture of each part teaches more"
        )
    if pictures.copies:
        notes.append(f"{pictures.copies} pictures are copies of others and count with them as one")
    return notes
