"""The small network behind the embedded backbone.

Inverted residuals (Sandler et al. 2018, arXiv 1801.04381) down to stride 8 and 16, each with a
head that speaks the teacher's channels. ReLU throughout and batch norms that fold into the
convolutions: onnxruntime then runs it as plain convolutions on any provider.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NORM_EPSILON = 1e-5


def conv(
    cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True, norm: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and, when `act`, ReLU; "same" padding for odd kernels. Without `norm` the
    convolution has the bias that a folded norm leaves, and everything keeps its name."""
    parts: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=not norm),
        nn.BatchNorm2d(cout, eps=NORM_EPSILON) if norm else nn.Identity(),
    ]
    if act:
        parts.append(nn.ReLU(inplace=True))
    return nn.Sequential(*parts)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 linear projection; a skip where the shapes allow it."""

    def __init__(self, cin: int, cout: int, hidden: int, stride: int = 1, kernel: int = 3, norm: bool = True) -> None:
        super().__init__()
        self.skip = stride == 1 and cin == cout
        self.body = nn.Sequential(
            conv(cin, hidden, 1, norm=norm),
            conv(hidden, hidden, kernel, stride, groups=hidden, norm=norm),
            conv(hidden, cout, 1, act=False, norm=norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.skip else y


@dataclass(frozen=True, slots=True)
class Widths:
    """Hidden channels of a student's inverted residuals, block by block.

    The numbers keep the whole under 0.4 GFLOP at 256 x 256; multiples of 8 fill a processor's registers.
    """

    stem: int = 56
    stage8: tuple[int, ...] = (80, 128, 128, 128)
    stage16: tuple[int, ...] = (152, 256, 256, 256)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Widths":
        """Read off a student's weights. Raises RuntimeError when they are no student's."""
        found = {
            key.removesuffix(".body.2.0.weight"): int(value.shape[1])
            for key, value in state.items()
            if key.endswith(".body.2.0.weight")
        }
        stages = [tuple(found[name] for name in sorted(found) if name.startswith(s)) for s in ("stage8.", "stage16.")]
        if "stem.s4b" not in found or not all(stages):
            raise RuntimeError("these are not the weights of a student")
        return cls(found["stem.s4b"], *stages)

    def by_block(self) -> dict[str, int]:
        stages = (("stage8", self.stage8), ("stage16", self.stage16))
        return {"stem.s4b": self.stem, **{f"{s}.{i}": hidden for s, row in stages for i, hidden in enumerate(row)}}

    def within(self, other: "Widths") -> bool:
        room = other.by_block()
        return all(hidden <= room.get(name, 0) for name, hidden in self.by_block().items())


class Student(nn.Module):
    """Features of two teacher layers at stride 8 and 16 for under 0.2 G multiply-adds at 256 x 256.

    forward: (N, 3, H, W) float32, ImageNet-normalised, H and W multiples of 16
             -> ((N, C8, H/8, W/8), (N, C16, H/16, W/16)) in units of the teacher's standard deviations
    norms:   train with batch norms (from random weights); without them a step costs little more than half
    """

    def __init__(
        self, channels: tuple[int, int] = (128, 256), norms: bool = True, widths: Widths | None = None
    ) -> None:
        super().__init__()
        self.norms = norms
        self.widths = widths or Widths()
        self.stem = nn.Sequential(
            OrderedDict(
                s2=conv(3, 16, 3, 2, norm=norms),
                s4=conv(16, 32, 3, 2, norm=norms),
                s4b=InvertedResidual(32, 32, self.widths.stem, norm=norms),
            )
        )
        # The wide kernel of the last block at stride 8 sees 87 pixels; layer2 of a ResNet-18 sees 99.
        self.stage8 = _stage(32, 64, self.widths.stage8, (3, 3, 3, 5), norms)
        self.head8 = nn.Conv2d(64, channels[0], 1)
        self.stage16 = _stage(64, 128, self.widths.stage16, (3, 3, 3, 3), norms)
        self.head16 = nn.Conv2d(128, channels[1], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f8 = self.stage8(self.stem(x))
        f16 = self.stage16(f8)
        return self.head8(f8), self.head16(f16)


def _stage(cin: int, cout: int, widths: Sequence[int], kernels: Sequence[int], norm: bool) -> nn.Sequential:
    """Inverted residuals, the first of which halves the resolution."""
    return nn.Sequential(
        *(
            InvertedResidual(cout if i else cin, cout, hidden, 1 if i else 2, kernel, norm)
            for i, (hidden, kernel) in enumerate(zip(widths, kernels, strict=False))
        )
    )


class Denormalised(nn.Module):
    """The student with its heads scaled back to the teacher's units (mean and std per channel).

    rectified:        which layers are never negative in the teacher; the student's then are not either
    stride_16_weight: what the coarser layer is multiplied with, 1 for the teacher's own units
    """

    def __init__(
        self,
        student: Student,
        mean: tuple[Tensor, Tensor],
        std: tuple[Tensor, Tensor],
        rectified: tuple[bool, bool] = (False, False),
        stride_16_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.student = student
        self.rectified = rectified
        for head, m, s in zip((student.head8, student.head16), mean, std, strict=True):
            with torch.no_grad():
                head.weight.mul_(s.view(-1, 1, 1, 1))
                assert head.bias is not None
                head.bias.mul_(s).add_(m)
        with torch.no_grad():
            for parameter in student.head16.parameters():
                parameter.mul_(stride_16_weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f8, f16 = self.student(x)
        return f8.relu() if self.rectified[0] else f8, f16.relu() if self.rectified[1] else f16


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
