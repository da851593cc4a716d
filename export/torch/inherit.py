"""A student that begins with the function of another one: norms folded, blocks added, hidden channels thinned."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from export.torch.student import NORM_EPSILON, InvertedResidual, Student, Widths

_LATER_BLOCKS = ("stage8.3.", "stage16.3.")  # not in students of the first version
_SMALL = 1e-6  # of a hidden channel's mean square: what keeps the matrix of moments invertible


def take_over(student: Student, state: Mapping[str, Tensor], pictures: Sequence[Tensor] = ()) -> None:
    """Give `student` the function of the one whose weights are `state`, as far as its size allows.

    Norms are folded where `student` has none, blocks that earlier versions lack begin as identities, and hidden
    channels that `student` has no room for are left out with the least harm on `pictures` (of `thin`), which
    needs a student without norms. Raises RuntimeError where the two do not fit.
    """
    taken = dict(state) if student.norms else fold_norms(state)
    widths = Widths.of(taken)
    if not student.norms and not widths.within(student.widths):
        wide = Student((len(taken["head8.weight"]), len(taken["head16.weight"])), norms=False, widths=widths)
        wide.load_state_dict(taken)
        taken = thin(wide.to(taken["head8.weight"].device).eval(), student.widths, pictures)
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
            gain = norm["weight"] / (norm["running_var"] + NORM_EPSILON).sqrt()
            out[key] = value * gain.view(-1, 1, 1, 1)
            out[f"{owner}.bias"] = norm["bias"] - norm["running_mean"] * gain
        elif not (place == "1" and f"{owner}.running_var" in state):
            out[key] = value
    return out


def thin(student: Student, widths: Widths, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
    """The weights of a student without norms, its blocks no wider than `widths`.

    pictures: some batches, (N, 3, H, W) normalised; what the channels left out said on them is laid, by least
    squares, on those that stay (the optimal brain surgeon, Hassibi and Stork 1993, on each projection).
    """
    blocks = {name: module for name, module in student.named_modules() if isinstance(module, InvertedResidual)}
    room = widths.by_block()
    moments = _moments(student, blocks, pictures)
    state = dict(student.state_dict())
    for name in blocks:
        weight, bias = state[f"{name}.body.2.0.weight"], state[f"{name}.body.2.0.bias"]
        if weight.shape[1] <= room.get(name, 0):
            continue
        if name not in room or name not in moments:
            raise RuntimeError(f"{name} does not fit, and there are no pictures to thin it by")
        kept, thinned = _surgery(torch.cat([weight.flatten(1), bias[:, None]], 1), moments[name], room[name])
        state[f"{name}.body.2.0.weight"] = thinned[:, :-1, None, None].to(weight)
        state[f"{name}.body.2.0.bias"] = thinned[:, -1].to(bias)
        for key in (f"{name}.body.{place}.0.{part}" for place in (0, 1) for part in ("weight", "bias")):
            state[key] = state[key][kept]
    return state


def _moments(student: Student, blocks: Mapping[str, InvertedResidual], pictures: Sequence[Tensor]) -> dict[str, Tensor]:
    """For each block, sums of products of the projection's inputs and a constant 1: (C + 1, C + 1) float64."""
    sums: dict[str, Tensor] = {}

    def watch(name: str, projection: torch.nn.Module) -> torch.utils.hooks.RemovableHandle:
        def add(_: object, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].permute(1, 0, 2, 3).flatten(1).double()
            x = torch.cat([x, torch.ones_like(x[:1])])
            sums[name] = sums.get(name, torch.zeros((), device=x.device)) + x @ x.T

        return projection.register_forward_pre_hook(add)

    hooks = [watch(name, block.body[2][0]) for name, block in blocks.items()]  # type: ignore[index]
    with torch.no_grad():
        for batch in pictures:
            student(batch)
    for hook in hooks:
        hook.remove()
    return sums


def _surgery(weight: Tensor, moments: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Leave out columns of `weight`, one after the other the one that costs least, each laid on the others.

    weight: (O, C + 1), moments: (C + 1, C + 1); the last column is the bias and stays.
    Returns the numbers of the `keep` columns that stay, and (O, keep + 1).
    """
    weight, moments = weight.double(), moments / moments[-1, -1]
    inverse = torch.linalg.inv(moments + torch.diag(_SMALL * moments.diag() + 1e-8))
    alive = torch.ones(len(moments), dtype=torch.bool, device=weight.device)
    while int(alive.sum()) > keep + 1:
        cost = weight.square().sum(0) / inverse.diag().clamp_min(1e-30)
        cost[~alive] = cost[-1] = torch.inf
        out = int(cost.argmin())
        share = inverse[out] / inverse[out, out]
        weight = weight - weight[:, out : out + 1] * share
        inverse = inverse - inverse[:, out : out + 1] * share
        alive[out] = False
        weight[:, ~alive] = 0
    return alive[:-1].nonzero().flatten(), weight[:, alive]
