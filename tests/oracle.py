"""PatchCore once more, written straight from the formulas, to hold the product against.

Slow and plain: torch in float64 for features, resizing and blurring, numpy in float64 for distances.
Shares no code with the product. Profiles `anomalib` (open-edge-platform/anomalib v2) and `paper`
(amazon-science/patchcore-inspection), both after Roth et al. 2022, arXiv 2106.08265.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional

Array = NDArray[np.float64]
Network = Callable[[Tensor], list[Tensor]]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Judgement:
    """score: image score; max_distance: largest patch distance; anomaly_map: (H, W) at model size;
    patch: index of the patch with the largest distance; nearest_row: (P,) bank row of each patch;
    tolerance: what a conforming score and largest distance may be off; map_tolerance: (H, W), the same for the map."""

    score: float
    max_distance: float
    anomaly_map: Array
    patch: int
    nearest_row: NDArray[np.int64]
    tolerance: float
    map_tolerance: Array


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016); batch norms are folded into the biases."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet18(nn.Module):
    """ResNet-18 as far as layer 3; returns layers 2 and 3. Key names of torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        second = self.layer2(self.layer1(x))
        return [second, self.layer3(second)]


class SmallNetwork(nn.Module):
    """A random network with outputs at stride 8 and 16, for tests without weights."""

    def __init__(self, seed: int = 0, channels: tuple[int, int] = (12, 20)) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
            self.second = nn.Sequential(nn.Conv2d(8, channels[0], 3, 2, 1), nn.ReLU())
            self.third = nn.Sequential(nn.Conv2d(channels[0], channels[1], 3, 2, 1), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        second = self.second(self.stem(x))
        return [second, self.third(second)]


def resnet18(weights: Path) -> ResNet18:
    """ResNet-18 with the weights of a safetensors file, in float64, for inference."""
    network = ResNet18()
    missing, _ = network.load_state_dict(load_file(weights), strict=False)
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    return network.double().eval()


def small_network(seed: int = 0) -> SmallNetwork:
    """`SmallNetwork` in float64, for inference."""
    return SmallNetwork(seed).double().eval()


def model_input(
    pixels: NDArray[np.uint8], resize_to: tuple[int, int], size: tuple[int, int], antialias: bool = True
) -> NDArray[np.uint8]:
    """Antialiased bilinear resize to `resize_to` (width, height), rounded, then a centre crop to `size`.

    The product's fixed-point resize may differ from this by one grey level.
    """
    colour = np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels
    x = torch.from_numpy(colour.astype(np.float64)).permute(2, 0, 1)[None]
    x = functional.interpolate(x, resize_to[::-1], mode="bilinear", align_corners=False, antialias=antialias)
    left, top = (resize_to[0] - size[0]) // 2, (resize_to[1] - size[1]) // 2
    x = x[0, :, top : top + size[1], left : left + size[0]]
    return x.round().clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)


@torch.no_grad()
def feature_maps(network: Network, picture: NDArray[np.uint8]) -> list[Tensor]:
    """Model input (H, W, 3) uint8 RGB -> feature maps, each (1, C, h, w) float64."""
    x = torch.from_numpy(picture.astype(np.float64)).permute(2, 0, 1)[None] / 255
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64)[:, None, None]
    std = torch.tensor(IMAGENET_STD, dtype=torch.float64)[:, None, None]
    return network((x - mean) / std)


def embed(maps: list[Tensor], profile: str) -> Array:
    """Patch embeddings, (gh, gw, D) float64, on the grid of the first map."""
    return {"anomalib": _embed_anomalib, "paper": _embed_paper}[profile](maps)


def _embed_anomalib(maps: list[Tensor]) -> Array:
    """3x3 average (zeros of the padding counted), bilinear to the first grid, concatenated."""
    pooled = [functional.avg_pool2d(m, 3, 1, 1, count_include_pad=True) for m in maps]
    grid = pooled[0].shape[-2:]
    resized = [pooled[0]] + [functional.interpolate(m, grid, mode="bilinear", align_corners=False) for m in pooled[1:]]
    return torch.cat(resized, dim=1)[0].permute(1, 2, 0).numpy()


def _embed_paper(maps: list[Tensor], dim: int = 1024) -> Array:
    """3x3 patches, bilinear to the first grid, each layer pooled to `dim`, both together pooled to `dim`."""
    gh, gw = maps[0].shape[-2:]
    layers = []
    for m in maps:
        channels, h, w = m.shape[1:]
        patches = functional.unfold(m, 3, padding=1).reshape(1, channels * 9, h, w)
        if (h, w) != (gh, gw):
            patches = functional.interpolate(patches, (gh, gw), mode="bilinear", align_corners=False)
        flat = patches[0].permute(1, 2, 0).reshape(gh * gw, 1, channels * 9)
        layers.append(functional.adaptive_avg_pool1d(flat, dim)[:, 0])
    stacked = torch.stack(layers, dim=1).reshape(gh * gw, 1, -1)
    return functional.adaptive_avg_pool1d(stacked, dim)[:, 0].reshape(gh, gw, dim).numpy()


def nearest(queries: Array, bank: Array) -> tuple[Array, NDArray[np.int64]]:
    """Euclidean distance of each query (P, D) to its nearest bank row (M, D), and that row.

    Every pair is compared in float64; the distance is the norm of the difference. Equal distances
    (to 1e-9) go to the lowest row.
    """
    squared = (queries**2).sum(1)[:, None] + (bank**2).sum(1)[None] - 2 * queries @ bank.T
    rows = np.argmax(squared <= squared.min(axis=1, keepdims=True) + 1e-9, axis=1)
    return np.linalg.norm(queries - bank[rows], axis=1), rows


def image_score(queries: Array, bank: Array, distance: Array, rows: NDArray[np.int64], neighbours: int) -> float:
    """w·s* with w = 1 - exp(d_0) / sum_b exp(d_b) over the `neighbours` bank rows nearest to m*.

    s* is the largest patch distance, of patch p*, and m* its bank row; d_0 = d(p*, m*), d_b the
    distances of p* to those rows, m* among them. One neighbour, or one bank row: s* itself.
    """
    worst = int(np.argmax(distance))
    count = min(neighbours, len(bank))
    if count <= 1:
        return float(distance[worst])
    around = np.argsort(np.linalg.norm(bank - bank[rows[worst]], axis=1), kind="stable")[:count]
    d = np.linalg.norm(queries[worst] - bank[around], axis=1)
    d_star = np.linalg.norm(queries[worst] - bank[rows[worst]])
    return float((1 - np.exp(d_star - d.max()) / np.exp(d - d.max()).sum()) * distance[worst])


def map_anomalib(distance: Array, size: tuple[int, int], extent: tuple[int, int], sigma: float = 4.0) -> Array:
    """Nearest upsampling to `extent` (width, height), Gaussian with torch's reflection, cut to `size`."""
    x = torch.from_numpy(distance)[None, None]
    x = functional.interpolate(x, extent[::-1], mode="nearest")[..., : size[1], : size[0]]
    radius = int(4 * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-(offset**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    x = functional.pad(x, (radius, radius, radius, radius), mode="reflect")
    x = functional.conv2d(x, kernel[None, None, :, None])
    return functional.conv2d(x, kernel[None, None, None, :])[0, 0].numpy()


def map_paper(distance: Array, size: tuple[int, int], extent: tuple[int, int], sigma: float = 4.0) -> Array:
    """Bilinear upsampling to `extent` (width, height), scipy's Gaussian and its reflection, cut to `size`."""
    x = torch.from_numpy(distance)[None, None]
    x = functional.interpolate(x, extent[::-1], mode="bilinear", align_corners=False)
    return gaussian_filter(x[0, 0, : size[1], : size[0]].numpy(), sigma)


def judge(
    embedding: Array,
    bank: NDArray[np.floating],
    profile: str,
    size: tuple[int, int],
    neighbours: int = 9,
    extent: tuple[int, int] | None = None,
) -> Judgement:
    """Patch embeddings (gh, gw, D) of one picture against a bank (M, D).

    size: model input, width and height; extent: model pixels that the grid covers, `size` by default.
    Profile `paper`: squared distances, plain maximum. Profile `anomalib`: see `image_score`.

    A distance d of an embedding x may be off by 1e-5·d + 1e-6·‖x‖, its square by what that makes of it, and the map,
    a sum of distances with weights from 0, by the same sum of theirs.
    """
    gh, gw, dim = embedding.shape
    queries, rows64 = np.asarray(embedding, np.float64).reshape(-1, dim), np.asarray(bank, np.float64)
    distance, rows = nearest(queries, rows64)
    off = 1e-5 * distance + 1e-6 * np.linalg.norm(queries, axis=1)
    if profile == "paper":
        distance, off = distance**2, (2 * distance + off) * off
        score, make_map = float(distance.max()), map_paper
    else:
        score, make_map = image_score(queries, rows64, distance, rows, neighbours), map_anomalib
    worst = int(np.argmax(distance))
    anomaly_map, map_off = (make_map(grid.reshape(gh, gw), size, extent or size) for grid in (distance, off))
    return Judgement(score, float(distance[worst]), anomaly_map, worst, rows, float(off[worst]), map_off)
