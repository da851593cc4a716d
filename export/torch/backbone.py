"""A timm network as a raw backbone."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from export.errors import BackboneError
from export.graph import RawBackbone, Size, cpu_session, raw_backbone, run_session
from export.parity import PARITY_RELATIVE, FeatureMaps
from export.torch.teacher import Network, export_graph


def features_of(network: Network) -> FeatureMaps:
    """The network's layers for one normalised picture, as torch computes them."""

    def features(x: NDArray[np.float32]) -> Sequence[NDArray[np.floating]]:
        with torch.no_grad():
            return [f[0].numpy() for f in network.module(torch.from_numpy(x))]

    return features


def raw_from_network(network: Network, size: Size) -> RawBackbone:
    """Export with free width and height where torch's trace allows it, else for `size` (padded) alone.

    A trace may freeze a size that the code computes (TensorFlow's "same" padding): whether it did is seen
    by comparing at a second size. Raises BackboneError.
    """
    if network.size is None:
        raw = _raw(network, size, dynamic=True)
        if _agrees(raw, network, (size[0] + 32, size[1] + 64)):
            return raw
    return _raw(network, network.size or size, dynamic=False)


def _raw(network: Network, size: Size, *, dynamic: bool) -> RawBackbone:
    names = [f"layer.{layer}" if layer.isdigit() else layer for layer in network.layers]
    return raw_backbone(
        export_graph(network.module, size, names, dynamic=dynamic),
        name=network.name,
        outputs=names,
        normalisation=network.normalisation,
        multiple=network.multiple,
        source_name=network.source_name,
        source_sha256=network.source_sha256,
        licence=network.licence,
        provenance=f"timm {network.name}, layers {', '.join(network.layers)}, weights {network.source_name}",
    )


def _agrees(raw: RawBackbone, network: Network, size: Size) -> bool:
    x = np.random.default_rng(1).standard_normal((1, 3, size[1], size[0])).astype(np.float32)
    try:
        got = run_session(cpu_session(raw.model_bytes, raw.name), x, raw.name)
    except BackboneError:
        return False
    want = features_of(network)(x)
    return all(
        g[0].shape == w.shape and bool(np.abs(g[0] - w).max() <= PARITY_RELATIVE * np.abs(w).max())
        for g, w in zip(got, want, strict=True)
    )
