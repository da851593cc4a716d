"""What all banks and scores of one recipe share while it is made: backbone, geometry, pictures."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.decision import Thresholds
from edge_daemon.detectors.base import Extractor
from edge_daemon.detectors.patchcore import PatchCoreDetector, PatchCoreSettings
from edge_daemon.detectors.tiles import TiledExtractor
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
    """backbone: the fused graph, and `extractor` its session, fed with tiles where there are some; settings: of the
    detector; pictures: of one folder."""

    backbone: FusedBackbone
    extractor: Extractor
    settings: PatchCoreSettings
    pictures: Gathered

    @property
    def patches(self) -> int:
        """Of one picture, without those under the mask."""
        if self.settings.ignored is not None:
            return int((~self.settings.ignored).sum())
        return math.prod(self.backbone.grid if self.settings.tiling is None else self.settings.tiling.grid)

    def features(self, index: int) -> NDArray[np.float32]:
        """(gh, gw, D) float32 of one picture. Raises CalibrationError when they are not finite."""
        return features_of(self.extractor, self.pictures, index)

    def embed(self, index: int) -> NDArray[np.float32]:
        """(P, D) float32 patch embeddings of one picture, without those under the mask. Raises CalibrationError when
        they are not finite."""
        features = self.features(index)
        if self.settings.ignored is not None:
            return features[~self.settings.ignored]
        return features.reshape(-1, self.backbone.dim)

    def embed_all(self, indices: NDArray[np.int64], progress: Progress) -> NDArray[np.float32]:
        """(pictures · P, D) float32 of these pictures, in a scratch file where they are many."""
        return embed_pictures(self.embed, indices, self.patches, self.backbone.dim, progress)

    def detector(self, bank: Bank, thresholds: Thresholds = NO_THRESHOLDS) -> PatchCoreDetector:
        """The detector that the daemon will make of that bank."""
        engine = make_engine("auto", bank.rows)
        return PatchCoreDetector(self.settings, thresholds, self.extractor, bank.rows, engine, bank.projection)


def open_station(
    backbone: FusedBackbone,
    extractor: Extractor,
    settings: PatchCoreSettings,
    folder: Path,
    block: str | None,
    skip_unreadable: bool,
    progress: Progress,
) -> Station:
    """Read the folder's pictures as the daemon will see them. Raises PicturesError, ExportError."""
    scratch = Path(tempfile.gettempdir())
    paths = list_pictures(folder)
    tiles = 1 if settings.tiling is None else len(settings.tiling.tiles())
    shape = (tiles, backbone.size[1], backbone.size[0], 3)
    pictures = gather(folder, paths, settings.prepare, shape, block, skip_unreadable, scratch, progress)
    return Station(backbone, extractor, settings, pictures)


def make_extractor(backbone: FusedBackbone, options: EngineOptions, settings: PatchCoreSettings) -> Extractor:
    """The backbone in a session, fed as the settings say. Raises ProviderError, RecipeEngineError."""
    extractor = OnnxExtractor(backbone.model_bytes, backbone.sha256, options)
    return extractor if settings.tiling is None else TiledExtractor(extractor, settings.tiling)


def twin_notes(pictures: Gathered) -> list[str]:
    """What is worth saying about copies, files left out, and grey pictures among those in colour."""
    notes = []
    if 0 < pictures.grey < len(pictures.paths):
        notes.append(
            f"SUSPECT: {pictures.grey} of {len(pictures.paths)} pictures are grey, the others in colour. A camera "
            "gives one of both, and what is learned from one says little of the other: build from pictures as the line "
            "will take them"
        )
    if pictures.skipped:
        notes.append(f"{len(pictures.skipped)} pictures that cannot be used were left out")
    if pictures.near_copies and len(set(pictures.blocks)) == len(set(pictures.digests)):
        notes.append(
            f"{pictures.near_copies} pictures differ from others in noise only and count as parts of their own, as "
            "--block 1 says; if they show the same part again, the false-reject rate is not what it says"
        )
    elif pictures.near_copies:
        notes.append(
            f"{pictures.near_copies} pictures differ from others in noise only: the same part again. They count with "
            "them as one; one picture of each part teaches more"
        )
    if pictures.copies:
        notes.append(f"{pictures.copies} pictures are copies of others and count with them as one")
    return notes
