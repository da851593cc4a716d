"""The patch embedding once more, slowly and in float64, to hold a fused graph against.

Shares nothing with `export.fuse` but the words, so that an error there shows here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.pictures import read_picture
from edge_daemon.core.resize import resize
from export.errors import BackboneError
from export.fuse import FusedBackbone, Profile
from export.graph import Size, cpu_session, run_session

Array = NDArray[np.float64]

# Raw features (C, h, w) of one normalised picture (1, 3, H, W), one array per layer.
FeatureMaps = Callable[[NDArray[np.float32]], Sequence[NDArray[np.floating]]]

PARITY_RELATIVE = 1e-4


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest difference of a fused graph to the reference, and that over the largest reference value."""

    pictures: int
    max_abs: float
    relative: float


def check_parity(fused: FusedBackbone, features: FeatureMaps, pictures: NDArray[np.uint8]) -> Parity:
    """Compare the graph in onnxruntime with `features` and the formulas, picture by picture.

    pictures: (N, H, W, 3) uint8 RGB at model size. Raises BackboneError above 1e-4 relative.
    """
    session = cpu_session(fused.model_bytes, fused.name)
    worst, largest = 0.0, 0.0
    for picture in pictures:
        got = run_session(session, picture[None], fused.name)[0][0]
        want = embedding([np.asarray(f, np.float64) for f in features(padded_input(fused, picture))], fused.profile)
        if got.shape != want.shape:
            raise BackboneError(f"{fused.name} gives embeddings of shape {got.shape}, the reference {want.shape}")
        if not (np.isfinite(got).all() and np.isfinite(want).all()):
            raise BackboneError(f"{fused.name} gives NaN or infinity: its weights are damaged")
        worst = max(worst, float(np.abs(got - want).max()))
        largest = max(largest, float(np.abs(want).max()))
    parity = Parity(len(pictures), worst, worst / largest if largest else float(worst > 0))
    if not parity.relative <= PARITY_RELATIVE:
        raise BackboneError(
            f"{fused.name} differs from its source by {worst:.3g} ({parity.relative:.3g} relative, allowed "
            f"{PARITY_RELATIVE:g}): the export is not faithful; try another architecture or exporter"
        )
    return parity


def trial_pictures(size: Size, real: Sequence[Path]) -> NDArray[np.uint8]:
    """(N, H, W, 3) uint8 for the comparison: noise, a smooth picture, black, white, and files resized to `size`.

    Raises PictureError when a file cannot be read.
    """
    w, h = size
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (h, w, 3), np.uint8)
    smooth = resize(rng.integers(0, 256, (8, 8, 3), np.uint8), w, h, "antialias")
    pictures = [noise, smooth, np.zeros_like(noise), np.full_like(noise, 255)]
    for path in real:
        pixels = read_picture(path)
        colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
        pictures.append(resize(colour, w, h, "antialias"))
    return np.stack(pictures)


def padded_input(fused: FusedBackbone, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (1, 3, H', W') float32: normalised, borders repeated up to the extent."""
    bottom, right = fused.extent[1] - fused.size[1], fused.extent[0] - fused.size[0]
    return fused.normalisation.apply(np.pad(picture, ((0, bottom), (0, right), (0, 0)), mode="edge")[None])


def embedding(features: Sequence[Array], profile: Profile) -> Array:
    """Feature maps (C, h, w) -> patch embeddings (gh, gw, D); see `export.fuse.fuse` for the profiles."""
    grid = features[0].shape[1:]
    neighbourhoods = [_neighbourhood(f) for f in features]
    if profile == "anomalib":
        return np.concatenate([_resize(n.mean(axis=1), grid) for n in neighbourhoods]).transpose(1, 2, 0)
    layers = []
    for n in neighbourhoods:
        channels, _, h, w = n.shape
        flat = _resize(n.reshape(channels * 9, h, w), grid)
        layers.append(_adaptive_mean(flat, 1024))
    return _adaptive_mean(np.concatenate(layers), 1024).transpose(1, 2, 0)


def _neighbourhood(feature: Array) -> Array:
    """(C, h, w) -> (C, 9, h, w): the 3 x 3 cells around each cell, row by row, zeros outside."""
    _, h, w = feature.shape
    padded = np.pad(feature, ((0, 0), (1, 1), (1, 1)))
    return np.stack([padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)], axis=1)


def _resize(values: Array, grid: tuple[int, ...]) -> Array:
    """(K, h, w) -> (K, gh, gw), bilinear with half-pixel centres."""
    for axis, count in ((1, grid[0]), (2, grid[1])):
        length = values.shape[axis]
        position = np.clip((np.arange(count) + 0.5) * length / count - 0.5, 0, length - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, length - 1)
        shape = [1, 1, 1]
        shape[axis] = count
        part = (position - low).reshape(shape)
        values = values.take(low, axis) * (1 - part) + values.take(high, axis) * part
    return values


def _adaptive_mean(values: Array, count: int) -> Array:
    """(K, h, w) -> (count, h, w): mean over floor(i K / count) .. ceil((i + 1) K / count)."""
    length = len(values)
    sums = np.concatenate([np.zeros((1, *values.shape[1:])), values.cumsum(axis=0)])
    first = np.arange(count) * length // count
    last = -(-(np.arange(count) + 1) * length // count)
    means: Array = (sums[last] - sums[first]) / (last - first)[:, None, None]
    return means
