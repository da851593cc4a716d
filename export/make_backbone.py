"""A backbone made ready: fused, compared with its source, written with its card. Needs no torch itself."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_daemon import __version__
from edge_daemon.artefact.pictures import find_pictures, read_picture
from edge_daemon.core.resize import resize
from export.backbone import CARD_FILE, FUSED_FILE, RAW_FILE, embedded_backbone
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

if TYPE_CHECKING:
    from export.quantisation_cost import QuantisationCost
    from export.quantise import Quantised

CARD_SCHEMA = "edge-daemon/backbone-card/1"
REAL_PICTURES = 8


@dataclass(frozen=True, slots=True)
class MadeBackbone:
    """What `edge-export backbone` writes. parity: of the fp32 graph, also where an int8 one was made from it."""

    raw: RawBackbone
    fused: FusedBackbone
    parity: Parity
    reference: str
    quantised: "Quantised | None" = None
    cost: "QuantisationCost | None" = None

    def card(self) -> dict[str, Any]:
        """Everything about the fused graph that its bytes alone do not say, for people and programs."""
        values = {k: v for k, v in asdict(self.fused).items() if k != "model_bytes"}
        card = {
            "schema": CARD_SCHEMA,
            "file": FUSED_FILE,
            "bytes": len(self.fused.model_bytes),
            **values,
            "raw_file": RAW_FILE if self.quantised is None else None,
            "raw_any_size": self.raw.size is None and self.quantised is None,
            "parity": {"reference": self.reference, **asdict(self.parity)},
            "software": f"edge-daemon {__version__}",
        }
        if self.quantised is not None:
            q = self.quantised
            card["quantisation"] = {
                "fp32_sha256": q.source.sha256,
                "fp32_bytes": len(q.source.model_bytes),
                "pictures": q.pictures,
                "embedding_error": q.error,
                "int8_products": q.nodes,
                "fp32_products": q.kept,
                "cpu_class": q.cpu_class,
                "cost": asdict(self.cost) if self.cost else None,
            }
        return card


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


def from_embedded() -> tuple[RawBackbone, FeatureMaps]:
    """The backbone inside the package, and its own features to compare with. Raises BackboneError."""
    raw = embedded_backbone().raw
    session = cpu_session(raw.model_bytes, raw.name)

    def features(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return [f[0] for f in run_session(session, x, raw.name)]

    return raw, features


def in_int8(made: MadeBackbone, calibration: Path, labelled: Path | None, step: Callable[[str], None]) -> MadeBackbone:
    """`made` with its graph quantised on the good pictures of a folder, and what that cost.

    labelled: pictures in the layout of MVTec AD, for AUROC with and without. step: told what begins.
    Raises ExportError or EdgeError.
    """
    from export.quantisation_cost import evenly, quantisation_cost
    from export.quantise import RANGE_PICTURES, quantise

    found = find_pictures(calibration)
    if not found:
        raise PicturesError(f"no pictures in {calibration}: give a folder of good parts")
    step("quantising")
    quantised = quantise(made.fused, _at_model_size(made.fused, evenly(found, RANGE_PICTURES)))
    cost = quantisation_cost(quantised, found, labelled, step)
    return replace(made, fused=quantised.backbone, quantised=quantised, cost=cost)


def _at_model_size(fused: FusedBackbone, paths: Sequence[Path]) -> list[NDArray[np.uint8]]:
    """(H, W, 3) uint8 each. Raises PictureError."""
    width, height = fused.size
    pictures = []
    for path in paths:
        pixels = read_picture(path)
        colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        pictures.append(resize(colour, width, height, "antialias"))
    return pictures


def write(made: MadeBackbone, out: Path) -> None:
    """Graph, raw graph and card into folder `out`, the card last, each file whole or not at all.

    An int8 graph gets no raw one beside it, and one that lies there goes: a recipe of another size would
    be fused from it, in fp32, without a word. Raises BackboneError when the folder cannot be written.
    """
    card = json.dumps(made.card(), indent=2) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if made.quantised is not None:
            (out / RAW_FILE).unlink(missing_ok=True)
        else:
            write_whole(out / RAW_FILE, made.raw.model_bytes)
        write_whole(out / FUSED_FILE, made.fused.model_bytes)
        write_whole(out / CARD_FILE, card.encode())
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
