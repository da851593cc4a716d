"""The evaluation report: one HTML file that holds everything and asks nothing of a network."""

import base64
import datetime
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon import __version__
from edge_daemon.artefact.manifest import Manifest
from edge_daemon.artefact.pictures import read_picture
from edge_daemon.artefact.recipe import Recipe
from edge_daemon.core.align import aligned
from edge_daemon.core.camera_settings import in_short
from edge_daemon.core.decision import Evaluation
from edge_daemon.core.geometry import Region
from edge_daemon.core.picture import contact_sheet, heat, map_in_frame, map_region, outlined, overlay
from edge_daemon.errors import PictureError
from export.dataset import GOOD, read_mask
from export.errors import ExportError
from export.evaluate import Evaluated, Judged, stated_rate

# Raw JPEG bytes for all pictures together; base64 adds a third, so that a report stays below 12 MB.
_PICTURE_BUDGET_BYTES = 8 << 20
_SHOWN_AT_MOST = 500
_SHEET_PICTURES, _SHEET_BYTES = 24, 1 << 20
_QUALITIES = (85, 75, 62, 48, 35, 20)


class ReportError(ExportError):
    """The report cannot be made or written."""


@dataclass(frozen=True, slots=True)
class Card:
    """One picture of the gallery. kind: `escape`, `reject`, or empty when judged right; group: number of its class;
    truth, found: data URIs."""

    name: str
    label: str
    group: int
    kind: str
    evaluation: Evaluation
    score: float
    ratio: float
    boxes: int
    masked: bool
    truth: str
    found: str


def check_requirements(out: Path) -> None:
    """Raise ReportError when a report could not be written to `out`: before the work, not after it."""
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise ReportError(
            f"the report needs {' and '.join(missing)}: pip install {' '.join(missing)} (it takes no torch), or leave "
            "--report out and take the figures from --json"
        )
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ReportError(f"the report cannot be written to {out}: give a file name in a folder that exists")


def write_report(out: Path, evaluated: Evaluated, figures: dict[str, Any], recipe: Recipe) -> None:
    """Write the report of an evaluation made with `for_report`.

    figures: of `export.evaluate.summarise`, with `recipe` (name, version, digest, …) and `data` added.
    Complete or not at all. Raises ReportError when the file cannot be written.
    """
    page = render(evaluated, figures, recipe.manifest, recipe.bank).encode()
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
            file.write(page)
        os.chmod(file.name, 0o644)
        os.replace(file.name, out)
    except OSError as exc:
        raise ReportError(f"the report cannot be written to {out}: {exc.strerror or exc}") from exc


def render(evaluated: Evaluated, figures: dict[str, Any], manifest: Manifest, bank: NDArray[np.float32]) -> str:
    """The page as text; arguments as for `write_report`. bank: (M, D) float32."""
    import jinja2
    from markupsafe import Markup

    from export.plots import roc_plot, score_plot

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("export"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=_percent, share=_share, settings=in_short)
    groups = [row["class"] for row in figures["classes"]]
    order = worst_first(evaluated)
    both_classes = figures["image_auroc"] is not None
    patches = _patch_plot(evaluated, manifest, bank)
    return environment.get_template("report.html.j2").render(
        figures=figures,
        manifest=manifest,
        groups=groups,
        good=GOOD,
        rate=rate_statement(manifest),
        roc=Markup(roc_plot(evaluated, figures)) if both_classes else None,
        histogram=Markup(score_plot(evaluated)),
        patches=Markup(patches) if patches else None,
        confusion=_confusion(evaluated),
        cards=_cards(evaluated, order[:_SHOWN_AT_MOST], manifest, groups),
        left_out=max(0, len(order) - _SHOWN_AT_MOST),
        aligned=_aligned_sheet(evaluated, manifest),
        scale=_heat_scale(),
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )


def _patch_plot(evaluated: Evaluated, manifest: Manifest, bank: NDArray[np.float32]) -> str | None:
    from export.plots import patch_plot

    return None if evaluated.patches is None else patch_plot(evaluated.patches, bank, manifest.parameters.metric)


def worst_first(evaluated: Evaluated) -> list[int]:
    """Order of the gallery: escapes, false rejects, then what came nearest to being judged wrongly."""

    def key(index: int) -> tuple[int, float]:
        judged = evaluated.judged[index]
        margin = judged.score if judged.sample.defective else -judged.score
        rank = 0 if judged.escaped else 1 if judged.falsely_rejected else 2
        if rank == 2:  # compare good and defective by their distance from the threshold
            margin = abs(judged.score - evaluated.thresholds.lower)
        return rank, margin

    return sorted(range(len(evaluated.judged)), key=key)


def rate_statement(manifest: Manifest) -> list[str]:
    """What the recipe's calibration promises, sentence by sentence; empty when it says nothing."""
    evidence = manifest.calibration
    n, unit = evidence.get("n"), evidence.get("unit", "picture")
    if evidence.get("method") == "leave-one-out":
        return [f"None: the threshold is the largest of {n} scores, each from a bank of the other {unit}s."]
    stated, marginal = stated_rate(manifest, "false_reject_rate"), stated_rate(manifest, "marginal_rate")
    upper, confidence = stated_rate(manifest, "upper_rate"), stated_rate(manifest, "upper_rate_confidence")
    if stated is None:
        return []
    sentences = [f"At most {stated * 100:.3g}% of good parts rejected; {n} {unit}s were kept apart from the bank."]
    if marginal is not None:
        sentences.append(f"On average over recipes made like this one: {marginal:.2%}.")
    if upper is not None and confidence is not None:
        sentences.append(f"For this recipe, with {confidence:.0%} confidence, at most {upper:.2%}.")
    return sentences


def _confusion(evaluated: Evaluated) -> list[dict[str, Any]]:
    columns = (Evaluation.OK, Evaluation.NOT_DECIDABLE, Evaluation.NOT_OK)
    rows = []
    for label, defective in (("good", False), ("defective", True)):
        mine = [j for j in evaluated.judged if j.sample.defective is defective]
        counts = [sum(j.evaluation is column for j in mine) for column in columns]
        lost = sum(s.defective is defective for s in evaluated.not_located)
        counts[columns.index(Evaluation.NOT_DECIDABLE)] += lost
        rows.append({"label": label, "counts": counts, "total": len(mine) + lost})
    return rows


def _aligned_sheet(evaluated: Evaluated, manifest: Manifest) -> str | None:
    """Some parts as they are judged, each turned and shifted to where the golden one lies; None where they are not
    located. They should all lie alike: a part that does not was taken for another place of itself."""
    if manifest.align is None:
        return None
    x, y, w, h = manifest.align.template
    pictures, captions = [], []
    located = [j for j in evaluated.judged if j.pose is not None]
    for index in np.unique(np.linspace(0, len(located) - 1, min(_SHEET_PICTURES, len(located))).round()).astype(int):
        judged = located[index]
        pose = judged.pose
        assert pose is not None
        try:
            pixels = aligned(read_picture(judged.sample.path), pose)
        except PictureError as exc:  # it could be read a minute ago
            raise ReportError(f"a picture vanished or changed while the report was made: {exc}") from exc
        pictures.append(overlay(np.ascontiguousarray(pixels[y : y + h, x : x + w]), None, 0.0, max_side_px=200))
        shift = " ".join(f"{v:+.1f}" for v in pose.shift_px)
        captions.append(
            f"{Path(judged.sample.name).name}\n{pose.angle_deg:+.1f} deg {shift} px  {pose.correlation:.2f}"
        )
    if not pictures:
        return None
    return _jpeg_uri(contact_sheet(pictures, captions, columns=6, tile_px=200), _SHEET_BYTES)


def _cards(evaluated: Evaluated, order: list[int], manifest: Manifest, groups: list[str]) -> Iterator[Card]:
    side_px = 400 if len(order) <= 120 else 288 if len(order) <= 250 else 208
    budget = _PICTURE_BUDGET_BYTES // (2 * max(1, len(order)))
    view, pre = manifest.view, manifest.preprocess
    region = Region(*view.region) if view.region else None
    covers = map_region(view.frame_size, region, pre.resize_to, pre.size)
    for index in order:
        judged = evaluated.judged[index]
        try:
            pixels = read_picture(judged.sample.path)
            marked = read_mask(judged.sample, pixels.shape)
        except PictureError as exc:  # it could be read a minute ago
            raise ReportError(f"a picture vanished or changed while the report was made: {exc}") from exc
        pixel_threshold = evaluated.thresholds.pixel
        heat_of: NDArray[np.float32] = evaluated.maps[index]
        where: Region | None = covers
        if judged.pose is not None and judged.pose.moved:
            heat_of, where = map_in_frame(heat_of, covers, judged.pose, view.frame_size, side_px), None
        found = overlay(pixels, heat_of, pixel_threshold, judged.boxes, where, side_px)
        truth = outlined(pixels, marked, side_px)
        yield _card(judged, evaluated, groups, _jpeg_uri(truth, budget), _jpeg_uri(found, budget))


def _card(judged: Judged, evaluated: Evaluated, groups: list[str], truth: str, found: str) -> Card:
    lower = evaluated.thresholds.lower
    return Card(
        name=judged.sample.name,
        label=judged.sample.defect,
        group=groups.index(judged.sample.defect),
        kind="escape" if judged.escaped else "reject" if judged.falsely_rejected else "",
        evaluation=judged.evaluation,
        score=judged.score,
        ratio=judged.score / lower if lower > 0 else float("inf"),
        boxes=len(judged.boxes),
        masked=judged.sample.mask is not None,
        truth=truth,
        found=found,
    )


def _jpeg_uri(picture: NDArray[np.uint8], budget_bytes: int) -> str:
    """A JPEG as data URI, at the best quality that keeps to the budget."""
    data = b""
    for quality in _QUALITIES:
        ok, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not ok:
            raise ReportError("a picture of the report could not be encoded as JPEG")
        data = encoded.tobytes()
        if len(data) <= budget_bytes:
            break
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _heat_scale() -> str:
    """The colour scale of all heatmaps, 0 to twice the pixel threshold, as PNG data URI."""
    ramp = np.linspace(0, 2, 256, dtype=np.float32)[None]
    _, encoded = cv2.imencode(".png", heat(ramp, 1.0)[..., ::-1])
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
