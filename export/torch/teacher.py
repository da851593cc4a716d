"""Backbones from timm architectures and from ONNX graphs, as feature extractors of named layers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.errors import BackboneError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# torchvision's compiled operators are missing beside a CPU build of torch of the same version; timm
# imports torchvision for its transforms only, so declaring the two operators is enough.
_operators: "torch.library.Library | None" = None


def import_timm():  # type: ignore[no-untyped-def]  # timm ships no types
    """Import timm, declaring torchvision's operators first where its own library does not load."""
    global _operators
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        _operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    return timm
