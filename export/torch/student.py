"""The small network behind the embedded backbone.

Inverted residuals (Sandler et al. 2018, arXiv 1801.04381) down to stride 8 and 16, each with a
head that speaks the teacher's channels. ReLU throughout and batch norms that fold into the
convolutions: onnxruntime then runs it as plain convolutions on any provider.
"""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

STRIDES = (8, 16)
_NORM_EPSILON = 1e-5
_LATER_BLOCKS = ("stage8.3.", "stage16.3.")  # not in students of the first version


def conv(
    cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True, norm: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and, when `act`, ReLU; "same" padding for odd kernels. Without `norm` the
    convolution has the bias that a folded norm leaves, and everything keeps its name."""
    parts: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=not norm),
        nn.BatchNorm2d(cout, eps=_NORM_EPSILON) if norm else nn.Identity(),
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


class Student(nn.Module):
    """Features of two teacher layers at stride 8 and 16 for under 0.25 G multiply-adds at 256 x 256.

    forward: (N, 3, H, W) float32, ImageNet-normalised, H and W multiples of 16
             -> ((N, C8, H/8, W/8), (N, C16, H/16, W/16)) in units of the teacher's standard deviations
    norms:   train with batch norms (from random weights); without them a step costs little more than half
    """

    def __init__(self, channels: tuple[int, int] = (128, 256), norms: bool = True) -> None:
        super().__init__()
        self.norms = norms
        self.stem = nn.Sequential(
            OrderedDict(
                s2=conv(3, 16, 3, 2, norm=norms),
                s4=conv(16, 32, 3, 2, norm=norms),
                s4b=InvertedResidual(32, 32, 64, norm=norms),
            )
        )
        # The wide kernel of the last block at stride 8 sees 87 pixels; layer2 of a ResNet-18 sees 99.
        self.stage8 = nn.Sequential(
            InvertedResidual(32, 64, 96, 2, norm=norms),
            InvertedResidual(64, 64, 160, norm=norms),
            InvertedResidual(64, 64, 160, norm=norms),
            InvertedResidual(64, 64, 160, kernel=5, norm=norms),
        )
        self.head8 = nn.Conv2d(64, channels[0], 1)
        self.stage16 = nn.Sequential(
            InvertedResidual(64, 128, 192, 2, norm=norms),
            InvertedResidual(128, 128, 320, norm=norms),
            InvertedResidual(128, 128, 320, norm=norms),
            InvertedResidual(128, 128, 320, norm=norms),
        )
        self.head16 = nn.Conv2d(128, channels[1], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f8 = self.stage8(self.stem(x))
        f16 = self.stage16(f8)
        return self.head8(f8), self.head16(f16)


def take_over(student: Student, state: Mapping[str, Tensor]) -> None:
    """Give `student` the function of another one: same weights, norms folded where it has none, and the blocks
    that earlier versions lack begin as identities. Raises RuntimeError where the two do not fit."""
    taken = dict(state) if student.norms else fold_norms(state)
    # What silences a block is the last thing that multiplies: the norm behind its projection, or the projection.
    last = f"body.2.{1 if student.norms else 0}"
    for key, value in student.state_dict().items():
        if key not in taken and key.startswith(_LATER_BLOCKS):
            silenced = key.endswith((f"{last}.weight", f"{last}.bias"))
            taken[key] = torch.zeros_like(value) if silenced else value
    student.load_state_dict(taken)


def fold_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a student whose batch norms, with the averages they hold, became part of the convolutions."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        owner, _, name = key.rpartition(".")
        layer, _, place = owner.rpartition(".")
        if place == "0" and name == "weight" and f"{layer}.1.running_var" in state:
            norm = {n: state[f"{layer}.1.{n}"] for n in ("weight", "bias", "running_mean", "running_var")}
            gain = norm["weight"] / (norm["running_var"] + _NORM_EPSILON).sqrt()
            out[key] = value * gain.view(-1, 1, 1, 1)
            out[f"{owner}.bias"] = norm["bias"] - norm["running_mean"] * gain
        elif not (place == "1" and f"{owner}.running_var" in state):
            out[key] = value
    return out


class Denormalised(nn.Module):
    """The student with its heads scaled back to the teacher's units (mean and std per channel).

    rectified: which layers are never negative in the teacher; the student's then are not either
    """

    def __init__(
        self,
        student: Student,
        mean: tuple[Tensor, Tensor],
        std: tuple[Tensor, Tensor],
        rectified: tuple[bool, bool] = (False, False),
    ) -> None:
        super().__init__()
        self.student = student
        self.rectified = rectified
        for head, m, s in zip((student.head8, student.head16), mean, std, strict=True):
            with torch.no_grad():
                head.weight.mul_(s.view(-1, 1, 1, 1))
                assert head.bias is not None
                head.bias.mul_(s).add_(m)

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
