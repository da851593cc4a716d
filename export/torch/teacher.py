"""Networks from timm and from ONNX as feature extractors: uint8 pictures in, named layers out."""

import functools
import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.errors import BackboneError, ExportError
from export.graph import Normalisation, Size, cpu_session, run_session, sha256_of, size_text


def import_timm() -> Any:
    """Import timm, where torchvision's own library does not load too."""
    with _quiet():
        try:
            import torchvision  # noqa: F401
        except RuntimeError:
            _declare_torchvision_operators()
        import timm
    return timm


@functools.cache  # the declaration lives as long as the object
def _declare_torchvision_operators() -> "torch.library.Library":
    """torchvision's compiled operators are missing beside a CPU build of torch of the same version; timm
    imports torchvision for its transforms only, so declaring the two operators is enough."""
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    return library


@dataclass(frozen=True, slots=True)
class Network:
    """A timm network cut behind its last needed layer.

    module:        (N, 3, H, W) float32 normalised -> tuple of (N, C, h, w), one per layer
    multiple:      H and W must be multiples of it (the patch of a transformer), 1 where anything goes
    size:          width and height that the network was fixed to (transformers), else None
    source_sha256: of the weights' file; of the weights themselves where timm fetched them
    """

    module: nn.Module
    name: str
    layers: tuple[str, ...]
    normalisation: Normalisation
    multiple: int
    size: Size | None
    source_name: str
    source_sha256: str
    licence: str


class Layers(nn.Module):
    """The intermediate layers of a timm model as a plain forward."""

    def __init__(self, model: nn.Module, indices: list[int], order: list[int], norm: bool) -> None:
        super().__init__()
        self.model = model
        self.indices = indices
        self.order = order
        self.norm = norm

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.model.forward_intermediates(  # type: ignore[operator]
            x, indices=self.indices, norm=self.norm, stop_early=not self.norm, intermediates_only=True
        )
        return tuple(features[i] for i in self.order)


def load_network(
    arch: str,
    layers: Sequence[str],
    weights: Path | None,
    *,
    size: Size | None = None,
    pretrained: bool = False,
    final_norm: bool = False,
    normalisation: Normalisation | None = None,
    licence: str = "",
) -> Network:
    """A timm architecture with its weights, cut behind the last of `layers`.

    layers:     names as timm's feature_info gives them (`layer2`, `blocks.8`), or their numbers
    weights:    .safetensors or .pth; only what lies behind the last layer may be missing in it
    size:       picture width and height; needed for transformers, which are fixed to a size
    pretrained: let timm download the weights instead
    final_norm: apply the network's last norm to the tokens, as DINOv2's own patch tokens are
    Raises BackboneError.
    """
    if weights is None and not pretrained:
        raise BackboneError(f"{arch} needs weights: give --weights FILE, or --pretrained where there is internet")
    timm = import_timm()
    model = _create(timm, arch, pretrained and weights is None)
    config = model.pretrained_cfg
    indices = _indices(model, arch, layers)
    unique = sorted(set(indices))
    state = None if weights is None else _read_weights(timm, model, weights)
    model.prune_intermediate_layers(unique, prune_norm=not final_norm, prune_head=True)
    if weights is not None and state is not None:
        _apply_weights(model, state, weights)
        source_name, source_sha256 = weights.name, sha256_of(weights.read_bytes())
    else:
        source_name, source_sha256 = f"timm {arch}.{config.get('tag', '')}".rstrip("."), _digest_of(model)
    multiple, fixed = _fix_size(model, size)
    default = Normalisation(1 / 255, tuple(config["mean"]), tuple(config["std"]))
    return Network(
        module=Layers(model, unique, [unique.index(i) for i in indices], final_norm).eval(),
        name=arch,
        layers=tuple(str(layer) for layer in layers),
        normalisation=normalisation or default,
        multiple=multiple,
        size=fixed,
        source_name=source_name,
        source_sha256=source_sha256,
        licence=licence or (str(config.get("license") or "") if weights is None else ""),
    )


def _create(timm: Any, arch: str, pretrained: bool) -> Any:
    try:
        with _quiet():
            model = timm.create_model(arch, pretrained=pretrained, num_classes=0)
    except Exception as exc:  # timm, its hub client and the network raise kinds of their own
        if pretrained:
            raise BackboneError(
                f"the weights of {arch} could not be downloaded ({exc}): fetch them on a PC with internet and "
                "give them with --weights FILE"
            ) from exc
        near = ", ".join(timm.list_models(f"*{arch.split('_')[0]}*")[:8])
        raise BackboneError(f"timm cannot make {arch} ({exc}); alike are: {near or 'none'}") from exc
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "prune_intermediate_layers"):
        raise BackboneError(
            f"timm gives no intermediate layers of {arch}: export it yourself and give it with --onnx FILE --outputs"
        )
    return model


def _indices(model: Any, arch: str, layers: Sequence[str]) -> list[int]:
    """Numbers of the named layers in timm's feature_info."""
    info = model.feature_info
    names = [str(entry["module"]) for entry in (info if isinstance(info, list) else info.info)]
    if not layers or len(set(layers)) != len(layers):
        raise BackboneError("name the layers, each once, as in --layers layer2,layer3")
    found = []
    for layer in layers:
        if layer in names:
            found.append(names.index(layer))
        elif layer.isdigit() and int(layer) < len(names):
            found.append(int(layer))
        else:
            raise BackboneError(f"{arch} has no layer {layer}; it has {', '.join(names)}")
    return found


def _read_weights(timm: Any, model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The file's weights under the key names of `model`, which is still whole."""
    if not path.is_file():
        raise BackboneError(f"no weights at {path}")
    try:
        state = timm.models.load_state_dict(str(path), use_ema=True, weights_only=True)
        # Each family of timm translates the key names of other publishers, by this name in its module.
        translate = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
        return cast(dict[str, Tensor], translate(state, model) if translate else state)
    except Exception as exc:  # torch, safetensors, pickle and timm each raise their own
        raise BackboneError(f"the weights {path} cannot be read: {exc}") from exc


def _apply_weights(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load into what is left of the model; nothing of that may be missing."""
    try:
        missing, _ = model.load_state_dict(state, strict=False)
    except Exception as exc:  # torch raises RuntimeError for shapes, others for what are no tensors
        raise BackboneError(f"the weights {path} do not fit the architecture: {exc}") from exc
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        raise BackboneError(
            f"{path} lacks {len(missing)} of the weights that the layers need, as {', '.join(missing[:4])}: "
            "wrong file or wrong architecture"
        )


def _fix_size(model: Any, size: Size | None) -> tuple[int, Size | None]:
    """Patch multiple of a transformer, and the padded size it is fixed to."""
    if not hasattr(model, "set_input_size"):
        return 1, None
    patch = model.patch_embed.patch_size
    side = max(int(p) for p in patch)
    info = model.feature_info
    entries = info if isinstance(info, list) else info.info
    multiple = max(side, max(int(entry["reduction"]) for entry in entries))
    if size is None:
        raise BackboneError("a transformer is exported for one size: give --size")
    w, h = (-(-s // multiple) * multiple for s in size)
    try:
        with _quiet():
            model.set_input_size(img_size=(h, w))
    except Exception as exc:  # timm asserts on sizes that a window does not divide
        raise BackboneError(f"the architecture cannot take {size_text((w, h))}: {exc}") from exc
    return multiple, (w, h)


def _digest_of(model: nn.Module) -> str:
    buffer = BytesIO()
    for key, value in sorted(model.state_dict().items()):
        buffer.write(key.encode())
        buffer.write(value.contiguous().cpu().numpy().tobytes())
    return sha256_of(buffer.getvalue())


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, third parties may warn: timm of its renamed models, torch's tracer of every constant and
    of its own deprecation. What they warn of is checked by running the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def export_graph(module: nn.Module, size: Size, names: Sequence[str], *, dynamic: bool) -> bytes:
    """Trace `module` for (1, 3, H, W) float32 into ONNX, opset 18, batch dynamic; width and height too when
    `dynamic`. Raises BackboneError."""
    axes: dict[str, dict[int, str]] = {"image": {0: "n", 2: "h", 3: "w"} if dynamic else {0: "n"}}
    for i, name in enumerate(names):
        axes[name] = {0: "n", 2: f"h{i}", 3: f"w{i}"} if dynamic else {0: "n"}
    device = next(module.parameters()).device
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet(), torch.no_grad():
            path = Path(folder, "graph.onnx")
            torch.onnx.export(
                module.eval(),
                (torch.zeros(1, 3, size[1], size[0], device=device),),
                path,
                opset_version=18,
                dynamo=False,
                input_names=["image"],
                output_names=list(names),
                dynamic_axes=axes,
            )
            return path.read_bytes()
    except Exception as exc:  # torch's exporter raises many kinds
        raise BackboneError(f"torch cannot export the network to ONNX: {exc}") from exc


Device = torch.device


def choose_device(name: str, threads: int) -> Device:
    """`cpu`, `cuda` or `auto` (a GPU where torch finds one); `threads` that compute on a CPU, 0 for torch's
    choice. Raises ExportError when there is no GPU and one was demanded."""
    cv2.setNumThreads(1)  # pictures are decoded by threads of our own
    if threads:
        torch.set_num_threads(threads)
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ExportError("torch finds no CUDA device here: use --device auto, or a torch built for CUDA")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


# Features of a batch: (N, H, W, 3) uint8 RGB -> one (N, C, h, w) float32 tensor per layer, on the device.
Teacher = Callable[[NDArray[np.uint8]], tuple[Tensor, ...]]


def normalise(batch: NDArray[np.uint8], normalisation: Normalisation, device: torch.device) -> Tensor:
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32 as the network wants it, channels last in memory."""
    gain, offset = (torch.from_numpy(x).to(device).view(1, 3, 1, 1) for x in normalisation.affine())
    x = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float()
    if normalisation.order == "BGR":
        x = x.flip(1)
    return (x * gain + offset).contiguous(memory_format=torch.channels_last)


def torch_teacher(network: Network, device: torch.device) -> Teacher:
    """A network as a teacher on `device`."""
    module = network.module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(batch: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            out: tuple[Tensor, ...] = module(normalise(batch, network.normalisation, device))
        return out

    return features


def onnx_teacher(model_bytes: bytes, name: str, normalisation: Normalisation, device: torch.device) -> Teacher:
    """A raw ONNX graph as a teacher, on the GPU where `device` is one and onnxruntime can."""
    session = cpu_session(model_bytes, name)
    if device.type == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
        session = ort.InferenceSession(model_bytes, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])

    def features(batch: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        out = run_session(session, normalisation.apply(batch), name)
        return tuple(torch.from_numpy(x).to(device) for x in out)

    return features
