"""A recipe whose every number the oracle can recompute: its network as ONNX, fused, with a bank of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_daemon.artefact.pictures import encode_png
from edge_daemon.artefact.recipe import bank_bytes, manifest_bytes, sha256, write_recipe
from edge_daemon.core.decision import Thresholds, judge_score
from edge_daemon.detectors.base import judge_picture
from edge_daemon.detectors.patchcore import PatchCoreDetector, PatchCoreSettings
from edge_daemon.engines.nearest import make_engine
from edge_daemon.engines.sessions import EngineOptions, Sessions
from export.fuse import FusedBackbone, fuse
from export.graph import Normalisation, raw_backbone

IMAGENET = Normalisation(1 / 255, oracle.IMAGENET_MEAN, oracle.IMAGENET_STD)

PROFILES: dict[str, dict[str, Any]] = {
    "anomalib": {
        "neighbours": 9,
        "metric": "euclidean",
        "upsampling": "nearest",
        "blur": "torch_reflect",
    },
    "paper": {
        "neighbours": 1,
        "metric": "squared_euclidean",
        "upsampling": "bilinear",
        "blur": "scipy_reflect",
    },
}


def small_graph(network: oracle.SmallNetwork) -> bytes:
    """`oracle.SmallNetwork` as an ONNX graph of float32, written node by node."""
    nodes, constants, value = [], [], "x"
    for name, layer in (("stem", network.stem), ("second", network.second), ("third", network.third)):
        convolution = layer[0]
        for kind in ("weight", "bias"):
            tensor = getattr(convolution, kind).detach().float().numpy()
            constants.append(numpy_helper.from_array(tensor, f"{name}.{kind}"))
        stride, padding = list(convolution.stride), list(convolution.padding)
        inputs = [value, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.raw"], strides=stride, pads=padding * 2))
        nodes.append(helper.make_node("Relu", [f"{name}.raw"], [name]))
        value = name
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", layer[0].out_channels, None, None])
        for name, layer in (("second", network.second), ("third", network.third))
    ]
    graph = helper.make_graph(nodes, "small", [image], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


def fused_small(network: oracle.SmallNetwork, size: tuple[int, int], profile: str) -> FusedBackbone:
    """The small network with everything around it, for one model size and profile."""
    raw = raw_backbone(small_graph(network), name="small", outputs=("second", "third"), normalisation=IMAGENET)
    return fuse(raw, size, profile)


def build(
    path: Path,
    backbone: FusedBackbone,
    bank: NDArray[np.floating],
    golden: NDArray[np.uint8],
    thresholds: tuple[float, float, float],
    *,
    resize_to: tuple[int, int] | None = None,
    region: tuple[int, int, int, int] | None = None,
    **changes: Any,
) -> Path:
    """Write a recipe for frames like `golden`; its expected golden score comes from the live engine."""
    bank32 = np.ascontiguousarray(bank, np.float32)
    frame = (golden.shape[1], golden.shape[0])
    parameters = {"profile": backbone.profile, "blur_sigma_px": 4.0, **PROFILES[backbone.profile]}
    resize_to = resize_to or backbone.size
    files = {"bank.safetensors": bank_bytes(bank32), "backbone.onnx": backbone.model_bytes}
    files["golden/good.png"] = encode_png(golden)
    fields: dict[str, Any] = {
        "required_features": ["patchcore/1"],
        "name": "oracle",
        "version": "1",
        "created_utc": "2026-11-20T08:00:00Z",
        "detector": "patchcore",
        "view": {"frame_size": frame, "region": region},
        "preprocess": {"resize": "antialias", "size": backbone.size, "resize_to": resize_to},
        "backbone": {
            "name": backbone.name,
            "sha256": backbone.sha256,
            "file": "backbone.onnx",
            "precision": backbone.precision,
            "grid": backbone.grid,
            "extent": backbone.extent,
            "dim": backbone.dim,
        },
        "parameters": parameters,
        "bank": {
            "file": "bank.safetensors",
            "sha256": sha256(files["bank.safetensors"]),
            "rows": len(bank32),
            "dim": backbone.dim,
        },
        "thresholds": dict(zip(("lower", "upper", "pixel"), thresholds, strict=True)),
        "provisional": False,
        "calibration": {},
        "provenance": {},
        **changes,
    }
    fields["golden"] = [_golden(fields, files, bank32, golden, backbone)]
    write_recipe(path, {"recipe.json": manifest_bytes(fields), **files})
    return path


def _golden(
    fields: dict[str, Any],
    files: dict[str, bytes],
    bank: NDArray[np.float32],
    golden: NDArray[np.uint8],
    backbone: FusedBackbone,
) -> dict[str, Any]:
    from edge_daemon.artefact.manifest import Manifest

    stub = {"file": "golden/good.png", "sha256": sha256(files["golden/good.png"]), "kind": "good"}
    unknown = {**stub, "score": 0, "max_distance": 0, "evaluation": "OK"}
    manifest = Manifest.model_validate({**fields, "self_sha256": "0" * 64, "golden": [unknown]})
    limits = Thresholds(**fields["thresholds"])
    extractor = Sessions(EngineOptions()).extractor(backbone.model_bytes, backbone.sha256)
    detector = PatchCoreDetector(PatchCoreSettings.of(manifest), limits, extractor, bank, make_engine("flat", bank))
    evidence = judge_picture(detector, golden)
    verdict = judge_score(evidence.score, evidence.max_distance, limits)
    return {
        **stub,
        "score": evidence.score,
        "max_distance": evidence.max_distance,
        "evaluation": verdict.evaluation.label,
    }


def random_bank(
    network: torch.nn.Module, pictures: Sequence[NDArray[np.uint8]], profile: str, rows: int, seed: int = 0
) -> NDArray[np.float64]:
    """Bank rows picked at random from the oracle's embeddings of pictures at model size."""
    patches = [oracle.embed(oracle.feature_maps(network, picture), profile) for picture in pictures]
    stacked = np.concatenate([p.reshape(-1, p.shape[-1]) for p in patches])
    return stacked[np.random.default_rng(seed).permutation(len(stacked))[:rows]]


def resnet_graph(network: oracle.ResNet18) -> bytes:
    """`oracle.ResNet18` as an ONNX graph of float32, written node by node, batch norms as convolutions' biases."""
    writer = _GraphWriter()
    value = writer.convolve("x", network.conv1, network.bn1, "stem")
    value = writer.add("MaxPool", [writer.add("Relu", [value])], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for name in ("layer1", "layer2", "layer3"):
        for number, block in enumerate(getattr(network, name)):
            value = writer.block(value, block, f"{name}.{number}")
        if name != "layer1":
            writer.nodes.append(helper.make_node("Identity", [value], [name]))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, None, None])
        for name, channels in (("layer2", 128), ("layer3", 256))
    ]
    graph = helper.make_graph(writer.nodes, "resnet18", [image], outputs, writer.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


class _GraphWriter:
    """Collects nodes and constants under fresh names."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def convolve(self, value: str, convolution: torch.nn.Conv2d, norm: torch.nn.BatchNorm2d, name: str) -> str:
        gain = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
        bias = (norm.bias - norm.running_mean * gain).detach()
        weight = convolution.weight.detach() * gain[:, None, None, None]
        for kind, tensor in (("weight", weight), ("bias", bias)):
            self.constants.append(numpy_helper.from_array(tensor.float().numpy(), f"{name}.{kind}"))
        return self.add(
            "Conv",
            [value, f"{name}.weight", f"{name}.bias"],
            strides=list(convolution.stride),
            pads=list(convolution.padding) * 2,
        )

    def block(self, value: str, block: oracle.BasicBlock, name: str) -> str:
        shortcut = value
        if isinstance(block.downsample, torch.nn.Sequential):
            shortcut = self.convolve(value, block.downsample[0], block.downsample[1], f"{name}.downsample")
        inner = self.add("Relu", [self.convolve(value, block.conv1, block.bn1, f"{name}.first")])
        outer = self.convolve(inner, block.conv2, block.bn2, f"{name}.second")
        return self.add("Relu", [self.add("Add", [outer, shortcut])])
