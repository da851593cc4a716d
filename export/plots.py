"""The report's plots, as SVG to be set inside a page: ink and grid lines take the page's colours."""

import io
import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.quality import Curve, roc_curve
from export.dataset import GOOD
from export.evaluate import Evaluated, PatchSample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's blue and vermilion, lightened where needed to stand on white and on near-black alike.
_GOOD, _DEFECTIVE, _BANK, _THIRD = "#3a86c8", "#d9622b", "#8b9099", "#1b9e77"

# Placeholders that matplotlib can draw with and that a page turns into its own colours.
_INK, _LINE = "#010203", "#040506"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's typeface
    "svg.hashsalt": "edge-daemon",  # equal input, equal bytes
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "axes.axisbelow": True,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}

_XML_ATTRIBUTE = re.compile(r'\sxmlns(:\w+)?="[^"]*"')
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_FONT = re.compile(r"font: ([^;\"]*?)(\d[\d.]*px) [^;\"]*")


def roc_plot(evaluated: Evaluated, figures: dict[str, Any]) -> str:
    """ROC of pictures and pixels and the per-region overlap, with the recipe's own point."""
    with _styled():
        figure, (axes,) = _figure(5.0, 4.2)
        axes.plot([0, 1], [0, 1], color=_LINE, linewidth=1)
        image = roc_curve(evaluated.scores, evaluated.defective)
        for curve, colour, dash, label in (
            (image, _GOOD, "-", f"pictures, AUROC {_share(figures['image_auroc'])}"),
            (evaluated.pixels.roc, _DEFECTIVE, "--", f"pixels, AUROC {_share(figures['pixel_auroc'])}"),
            (evaluated.pixels.pro, _THIRD, ":", f"region overlap, AUPRO {_share(figures['aupro'])}"),
        ):
            if isinstance(curve, Curve):
                axes.plot(curve.false_rate, curve.true_rate, dash, color=colour, linewidth=2.2, label=label)
        if image is not None:
            point = figures["false_reject_rate"], 1 - figures["escape_rate"]
            axes.plot(*point, "o", color=_INK, markersize=7, clip_on=False, label="this recipe's threshold", zorder=5)
        axes.set(xlabel="false rejects", ylabel="defects found", xlim=(-0.01, 1.0), ylim=(0.0, 1.01))
        axes.xaxis.set_major_formatter(_percent)
        axes.yaxis.set_major_formatter(_percent)
        axes.grid(True)
        axes.legend(loc="lower right")
        return _svg(figure, "ROC curves")


def score_plot(evaluated: Evaluated) -> str:
    """Histogram of scores, good against defective, above one row of points per class; the threshold across."""
    names = [GOOD, *sorted({j.sample.defect for j in evaluated.judged} - {GOOD})]
    scores, truth = evaluated.scores, evaluated.defective
    low, high = evaluated.thresholds.lower, evaluated.thresholds.upper
    from matplotlib.ticker import MaxNLocator

    with _styled():
        per_class = 0.25 + 0.3 * len(names)
        figure, (top, rows) = _figure(7.4, max(4.0, 2.6 + per_class), rows=2, ratios=(2.6, per_class))
        rows.sharex(top)
        edges = np.histogram_bin_edges(np.append(scores, [low, high]), 40).tolist()
        top.hist(scores[~truth], edges, color=_GOOD, alpha=0.75, label="good")
        top.hist(
            scores[truth], edges, color=_DEFECTIVE, alpha=0.6, label="defective", hatch="///", edgecolor=_INK, lw=0
        )
        top.set(ylabel="pictures")
        top.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        top.tick_params(labelbottom=False)
        top.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderpad=0)
        top.grid(True, axis="y")
        for number, name in enumerate(names):
            own = np.array([j.score for j in evaluated.judged if j.sample.defect == name])
            spread = 0.22 * np.sin(np.arange(len(own)) * 2.4)  # deterministic, so that equal scores show
            marker, colour = ("o", _GOOD) if name == GOOD else ("D", _DEFECTIVE)
            rows.plot(own, number + spread, marker, color=colour, alpha=0.7, markersize=4.5, markeredgewidth=0)
        rows.set_yticks(range(len(names)), names)
        rows.set_ylim(len(names) - 0.4, -0.6)
        rows.set(xlabel="image score (raw units)")
        rows.grid(True, axis="x")
        for axes in (top, rows):
            axes.axvline(low, color=_INK, linewidth=1.4, linestyle=(0, (5, 3)))
            if high > low:
                axes.axvspan(low, high, color=_BANK, alpha=0.25, linewidth=0)
        top.annotate(f"threshold {low:.4g}", (low, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom")
        return _svg(figure, "Image scores by class with the threshold")


def patch_plot(patches: PatchSample, bank: NDArray[np.float32], metric: str, rows: int = 3000) -> str | None:
    """Patch embeddings: on the bank's first two principal components, and by their distance to the bank.

    bank: (M, D) float32, of which at most `rows` are drawn and fit the components; metric: of the
    recipe, `euclidean` or `squared_euclidean`. None without patches.
    """
    if not len(patches.good) and not len(patches.defective):
        return None
    chosen = bank[np.random.default_rng(0).permutation(len(bank))[:rows]].astype(np.float64)
    centre = chosen.mean(axis=0)
    values, vectors = np.linalg.eigh((chosen - centre).T @ (chosen - centre))
    share = values[::-1][:2] / max(float(values.sum()), np.finfo(float).tiny)
    plane = vectors[:, ::-1][:, :2]
    groups = (
        (patches.good, _GOOD, "o", "test, good parts"),
        (patches.defective, _DEFECTIVE, "D", "test, marked as defective"),
    )
    with _styled():
        figure, (left, right) = _figure(11.6, 4.4, columns=2)
        for points, colour, marker, label in ((chosen, _BANK, "s", "memory bank"), *groups):
            if len(points):
                x, y = (
                    ((points - centre) @ plane).T[:2] if plane.shape[1] > 1 else ((points - centre) @ plane).T[[0, 0]]
                )
                left.scatter(x, y, s=6, c=colour, marker=marker, alpha=0.5, linewidths=0, label=label, rasterized=True)
        left.set(
            xlabel=f"first component ({share[0]:.0%} of the bank's variance)",
            ylabel=f"second component ({share[-1]:.0%})",
            xticks=[],
            yticks=[],
        )
        handles = left.legend(loc="upper left", bbox_to_anchor=(0, 1.14), ncols=3, markerscale=2.4).legend_handles
        for handle in handles:
            if handle is not None:
                handle.set_alpha(1)
        distances = [_nearest_distance(points, bank, metric) for points, *_ in groups]
        edges = np.histogram_bin_edges(np.concatenate(distances), 60).tolist()
        for distance, (points, colour, _, label) in zip(distances, groups, strict=True):
            if len(points):
                weights = np.full(len(distance), 1 / len(distance))
                right.hist(distance, edges, weights=weights, color=colour, alpha=0.65, label=label)
        right.set(xlabel="distance to the nearest row of the bank (raw units)", ylabel="share of patches")
        right.yaxis.set_major_formatter(_percent)
        right.grid(True, axis="y")
        return _svg(figure, "Patch embeddings on two principal components, and their distances to the bank")


def _nearest_distance(points: NDArray[np.float32], bank: NDArray[np.float32], metric: str) -> NDArray[np.float64]:
    """Distance of each point to its nearest bank row, good enough to plot: (N,) float64."""
    if not len(points):
        return np.empty(0)
    centre = bank.mean(axis=0)  # small numbers lose less in ‖x‖² + ‖y‖² − 2x·y
    moved, rows = points - centre, bank - centre
    norms = np.einsum("md,md->m", rows, rows)
    nearest = [(norms - 2 * moved[start : start + 256] @ rows.T).min(axis=1) for start in range(0, len(moved), 256)]
    squared: NDArray[np.float64] = np.maximum(np.concatenate(nearest) + np.einsum("nd,nd->n", moved, moved), 0).astype(
        np.float64
    )
    return squared if metric == "squared_euclidean" else np.asarray(np.sqrt(squared))


def _styled() -> AbstractContextManager[None]:
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def _figure(
    width_in: float, height_in: float, rows: int = 1, columns: int = 1, ratios: tuple[float, ...] | None = None
) -> "tuple[Figure, list[Axes]]":
    """A figure of its own, not one of pyplot's: nothing to close, no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios)
    return figure, list(axes.ravel())


def _percent(value: float, _position: float) -> str:
    """2.5% where the ticks are so close: rounded, two of them would say the same, or something else."""
    return f"{round(100 * value, 6):g}%"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _svg(figure: "Figure", title: str) -> str:
    """The figure as an <svg> element for HTML, without prologue, name spaces or fixed size."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = _METADATA.sub("", text[text.index("<svg") :])
    text = _XML_ATTRIBUTE.sub("", text)
    text = _FONT.sub(r"font: \1\2 system-ui, sans-serif", text)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[\d.]+pt"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[\d.]+pt"', r"\1", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    return text.replace(_INK, "currentColor").replace(_LINE, "var(--line)")
