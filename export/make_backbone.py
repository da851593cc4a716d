"""A backbone made ready: fused, compared with its source, written with its card. Needs no torch itself."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_daemon import __version__
from edge_daemon.artefact.pictures import find_pictures
from export.backbone import CARD_FILE, FUSED_FILE, RAW_FILE
from export.errors import BackboneError, PicturesError
from export.fuse import FusedBackbone, Profile, fuse
from export.graph import (
    Normalisation,
    RawBackbone,
    Size,
    cpu_session,
    raw_backbone,
    read_bytes,
    run_session,
    sha256_of,
)
from export.parity import FeatureMaps, Parity, check_parity, trial_pictures

CARD_SCHEMA = "edge-daemon/backbone-card/1"
REAL_PICTURES = 8


@dataclass(frozen=True, slots=True)
class MadeBackbone:
    """What `edge-export backbone` writes."""

    raw: RawBackbone
    fused: FusedBackbone
    parity: Parity
    reference: str

    def card(self) -> dict[str, Any]:
        """Everything about the fused graph that its bytes alone do not say, for people and programs."""
        values = {k: v for k, v in asdict(self.fused).items() if k != "model_bytes"}
        return {
            "schema": CARD_SCHEMA,
            "file": FUSED_FILE,
            "bytes": len(self.fused.model_bytes),
            **values,
            "raw_file": RAW_FILE,
            "raw_any_size": self.raw.size is None,
            "parity": {"reference": self.reference, **asdict(self.parity)},
            "software": f"edge-daemon {__version__}",
        }


def from_onnx(
    path: Path,
    outputs: Sequence[str],
    normalisation: Normalisation,
    *,
    name: str = "",
    multiple: int = 1,
    licence: str = "",
) -> tuple[RawBackbone, FeatureMaps]:
    """A graph someone else made, and its own features to compare with. Raises BackboneError."""
    raw = raw_backbone(
        path,
        name=name or path.stem,
        outputs=outputs,
        normalisation=normalisation,
        multiple=multiple,
        source_name=path.name,
        source_sha256=sha256_of(read_bytes(path)),
        licence=licence,
        provenance=f"ONNX graph {path.name}, outputs {', '.join(outputs)}",
    )
    session = cpu_session(raw.model_bytes, raw.name)

    def features(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return [f[0] for f in run_session(session, x, raw.name)]

    return raw, features


def make(
    raw: RawBackbone, features: FeatureMaps, size: Size, profile: Profile, images: Path | None, reference: str
) -> MadeBackbone:
    """Fuse `raw` and hold it against `features` on made and, from folder `images`, real pictures.

    Raises BackboneError, PicturesError, PictureError.
    """
    real: list[Path] = []
    if images is not None:
        found = find_pictures(images)
        if not found:
            raise PicturesError(f"no pictures in {images}: give a folder of PNG, JPEG, BMP or TIFF files")
        real = found[:: max(1, len(found) // REAL_PICTURES)][:REAL_PICTURES]
    fused = fuse(raw, size, profile)
    return MadeBackbone(raw, fused, check_parity(fused, features, trial_pictures(size, real)), reference)


def write(made: MadeBackbone, out: Path) -> None:
    """Graph, raw graph and card into folder `out`, the card last, each file whole or not at all.

    Raises BackboneError when the folder cannot be written.
    """
    card = json.dumps(made.card(), indent=2) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in (
            (RAW_FILE, made.raw.model_bytes),
            (FUSED_FILE, made.fused.model_bytes),
            (CARD_FILE, card.encode()),
        ):
            write_whole(out / name, data)
    except OSError as exc:
        raise BackboneError(f"{out} cannot be written: {exc.strerror or exc}") from exc


def write_whole(path: Path, data: bytes) -> None:
    """Write beside and rename over, durable before it is seen. Raises OSError."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
