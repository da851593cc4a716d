"""The small network behind the embedded backbone.

Inverted residuals (Sandler et al. 2018, arXiv 1801.04381) down to stride 8 and 16, each with a
linear head that speaks the teacher's channels. ReLU throughout and batch norms that fold into the
convolutions: onnxruntime then runs it as plain convolutions on any provider.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

STRIDES = (8, 16)


def conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    """Convolution, batch norm and, when `act`, ReLU; "same" padding for odd kernels."""
    parts: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    if act:
        parts.append(nn.ReLU(inplace=True))
    return nn.Sequential(*parts)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection; a skip where the shapes allow it."""

    def __init__(self, cin: int, cout: int, hidden: int, stride: int = 1) -> None:
        super().__init__()
        self.skip = stride == 1 and cin == cout
        self.body = nn.Sequential(
            conv(cin, hidden, 1),
            conv(hidden, hidden, 3, stride, groups=hidden),
            conv(hidden, cout, 1, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.skip else y


class Student(nn.Module):
    """Features of two teacher layers at stride 8 and 16 for under 0.2 G multiply-adds at 256 x 256.

    forward: (N, 3, H, W) float32, ImageNet-normalised, H and W multiples of 16
             -> ((N, C8, H/8, W/8), (N, C16, H/16, W/16)) in units of the teacher's standard deviations
    """

    def __init__(self, channels: tuple[int, int] = (128, 256)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            OrderedDict(
                s2=conv(3, 16, 3, 2),
                s4=conv(16, 32, 3, 2),
                s4b=InvertedResidual(32, 32, 64),
            )
        )
        self.stage8 = nn.Sequential(
            InvertedResidual(32, 64, 96, 2),
            InvertedResidual(64, 64, 160),
            InvertedResidual(64, 64, 160),
        )
        self.head8 = nn.Conv2d(64, channels[0], 1)
        self.stage16 = nn.Sequential(
            InvertedResidual(64, 128, 192, 2),
            InvertedResidual(128, 128, 320),
            InvertedResidual(128, 128, 320),
        )
        self.head16 = nn.Conv2d(128, channels[1], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f8 = self.stage8(self.stem(x))
        f16 = self.stage16(f8)
        return self.head8(f8), self.head16(f16)


class Denormalised(nn.Module):
    """The student with its heads scaled back to the teacher's units (mean and std per channel)."""

    def __init__(self, student: Student, mean: tuple[Tensor, Tensor], std: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.student = student
        for head, m, s in zip((student.head8, student.head16), mean, std, strict=True):
            with torch.no_grad():
                head.weight.mul_(s.view(-1, 1, 1, 1))
                assert head.bias is not None
                head.bias.mul_(s).add_(m)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = self.student(x)
        return out


def multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of the convolutions for one picture of `size` (width, height)."""
    total = 0

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += out[0].numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, size[1], size[0], device=next(model.parameters()).device))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return total
