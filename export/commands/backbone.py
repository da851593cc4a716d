"""`edge-export backbone`: a network as one graph, from picture to patch embeddings."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.commands.options import comma_list, needs_torch, size, three_numbers

if TYPE_CHECKING:
    from export.fuse import Profile
    from export.graph import Normalisation
    from export.make_backbone import MadeBackbone
    from export.quantisation_cost import QuantisationCost

DESCRIPTION = """\
Turns a network into the one ONNX graph that a recipe names: uint8 picture in, patch embeddings out,
with normalisation and patch embedding inside. Compares it with its source and refuses to write it
when they differ by more than 1e-4.

A timm architecture (needs torch: pip install 'edge-daemon[export]'):
  edge-export backbone --arch resnet18 --weights resnet18.safetensors --layers layer2,layer3 --out r18/
  edge-export backbone --arch wide_resnet50_2 --pretrained --layers layer2,layer3 --size 1280x512 --out wrn/
  edge-export backbone --arch vit_small_patch14_dinov2 --weights dinov2_s.pth --layers blocks.8,blocks.11 \\
                       --final-norm --size 448 --out dino/

A graph someone else made (needs no torch); any value inside it may be an output:
  edge-export backbone --onnx net.onnx --outputs layer2,layer3 --input-normalisation caffe-bgr --out net/

In int8, for CPUs: the ranges are seen on good parts, and two trial recipes tell what it costs:
  edge-export backbone --arch resnet18 --weights resnet18.safetensors --layers layer2,layer3 \\
                       --int8 --calibration good/ --labelled mvtec/bottle --out r18-int8/
  edge-export backbone --embedded --int8 --calibration good/ --out small-int8/

Writes backbone.onnx, backbone.json (its card) and, in fp32, raw.onnx, from which recipes of other sizes and
profiles are fused without torch, where the network takes other sizes (transformers do not).
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "backbone",
        help="make a backbone from a timm architecture or an ONNX graph",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--arch", metavar="NAME", help="timm architecture")
    source.add_argument("--embedded", action="store_true", help="the backbone inside the package")
    source.add_argument("--onnx", type=Path, metavar="FILE", help="graph (N, 3, H, W) float32 -> feature maps")
    parser.add_argument("--layers", type=comma_list, metavar="A,B", help="layers of the architecture, finest first")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=Path, metavar="FILE", help=".safetensors or .pth of the architecture")
    weights.add_argument("--pretrained", action="store_true", help="let timm download the weights")
    parser.add_argument("--final-norm", action="store_true", help="transformers: apply the network's last norm")
    parser.add_argument("--outputs", type=comma_list, metavar="A,B", help="outputs of --onnx, finest first")
    parser.add_argument(
        "--patch", type=int, default=1, metavar="N", help="--onnx takes only multiples of N pixels (default 1)"
    )
    parser.add_argument(
        "--size", type=size, default=(256, 256), metavar="WxH", help="model size in pixels: 256 or 1280x512 (256)"
    )
    parser.add_argument(
        "--profile", choices=["anomalib", "paper"], default="anomalib", help="patch embedding (default anomalib)"
    )
    add_normalisation(parser)
    parser.add_argument("--images", type=Path, metavar="DIR", help="real pictures to compare on, too")
    eight = parser.add_argument_group("int8", "smaller weights and faster on CPUs, less exact")
    eight.add_argument("--int8", action="store_true", help="quantise (static, QDQ); needs --calibration")
    eight.add_argument("--calibration", type=Path, metavar="DIR", help="good parts, as the recipe will see them")
    eight.add_argument(
        "--labelled", type=Path, metavar="DIR", help="labelled pictures (layout of MVTec AD): AUROC with and without"
    )
    parser.add_argument("--licence", default="", metavar="TEXT", help="licence of the weights, for the card")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--json", action="store_true", help="print the card as one JSON object on standard output")
    parser.set_defaults(run=run)


def add_normalisation(parser: argparse.ArgumentParser) -> None:
    """Options that say how a network wants its pictures."""
    group = parser.add_argument_group(
        "normalisation", "(pixel * scale - mean) / std per channel; an architecture brings its own"
    )
    group.add_argument(
        "--input-normalisation",
        "--normalisation",
        choices=["imagenet", "caffe-bgr", "unit", "none"],
        help="imagenet: RGB/255, ImageNet mean and std; caffe-bgr: BGR less the ImageNet mean of 0..255; "
        "unit: RGB 0..1; none: RGB 0..255",
    )
    group.add_argument("--input-scale", type=float, metavar="X", help="factor on the pixel 0..255")
    group.add_argument("--input-mean", type=three_numbers, metavar="A,B,C", help="mean, in the order of the channels")
    group.add_argument("--input-std", type=three_numbers, metavar="A,B,C", help="deviation, in that order")
    group.add_argument("--input-order", choices=["RGB", "BGR"], help="order of the channels")


def normalisation_of(arguments: argparse.Namespace) -> "Normalisation | None":
    """What the options say, None when they say nothing. Raises BackboneError."""
    from export.graph import NORMALISATIONS

    given = {
        "scale": arguments.input_scale,
        "mean": arguments.input_mean,
        "std": arguments.input_std,
        "order": arguments.input_order,
    }
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if not changes and arguments.input_normalisation is None:
        return None
    return replace(NORMALISATIONS[arguments.input_normalisation or "none"], **changes)


def run(arguments: argparse.Namespace) -> int:
    """Make, compare, write, and say what came of it."""
    from export.errors import BackboneError
    from export.make_backbone import in_int8, write

    if arguments.int8 != (arguments.calibration is not None):
        raise BackboneError("--int8 and --calibration DIR, good parts to see the ranges on, go together")
    if arguments.labelled and not arguments.int8:
        raise BackboneError("--labelled is for --int8; `edge-export evaluate` measures a recipe")
    made = _made(arguments)
    if arguments.int8:
        made = in_int8(made, arguments.calibration, arguments.labelled, _say)
    write(made, arguments.out)
    print(json.dumps(made.card(), indent=2) if arguments.json else _summary(made, arguments.out))
    return 0


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def _made(arguments: argparse.Namespace) -> "MadeBackbone":
    if arguments.embedded:
        return _from_embedded(arguments)
    return _from_arch(arguments) if arguments.arch else _from_onnx(arguments)


def _from_embedded(arguments: argparse.Namespace) -> "MadeBackbone":
    from export.make_backbone import from_embedded, make

    raw, features = from_embedded()
    profile: Profile = arguments.profile
    return make(raw, features, arguments.size, profile, arguments.images, "the graph itself, onnxruntime on the CPU")


def _from_onnx(arguments: argparse.Namespace) -> "MadeBackbone":
    from export.errors import BackboneError
    from export.make_backbone import from_onnx, make

    normalisation = normalisation_of(arguments)
    if not arguments.outputs or normalisation is None:
        raise BackboneError("--onnx needs --outputs, and --input-normalisation: a wrong guess would go unnoticed")
    if arguments.patch < 1:
        raise BackboneError("--patch must be 1 or more")
    raw, features = from_onnx(
        arguments.onnx, arguments.outputs, normalisation, multiple=arguments.patch, licence=arguments.licence
    )
    profile: Profile = arguments.profile
    return make(raw, features, arguments.size, profile, arguments.images, "the graph itself, onnxruntime on the CPU")


def _from_arch(arguments: argparse.Namespace) -> "MadeBackbone":
    needs_torch("backbone --arch")
    from export.errors import BackboneError
    from export.make_backbone import make
    from export.torch.backbone import features_of, raw_from_network
    from export.torch.teacher import load_network

    if not arguments.layers:
        raise BackboneError("--arch needs --layers, as in --layers layer2,layer3")
    network = load_network(
        arguments.arch,
        arguments.layers,
        arguments.weights,
        size=arguments.size,
        pretrained=arguments.pretrained,
        final_norm=arguments.final_norm,
        normalisation=normalisation_of(arguments),
        licence=arguments.licence,
    )
    raw = raw_from_network(network, arguments.size)
    return make(raw, features_of(network), arguments.size, arguments.profile, arguments.images, "torch on the CPU")


def _summary(made: "MadeBackbone", out: Path) -> str:
    fused, parity = made.fused, made.parity
    lines = [
        f"{out / 'backbone.onnx'}: {fused.name}, layers {', '.join(fused.layers)}, profile {fused.profile}",
        f"  picture    {fused.size[0]}x{fused.size[1]} px, grid {fused.grid[0]}x{fused.grid[1]} over "
        f"{fused.extent[0]}x{fused.extent[1]} px, {fused.dim} dimensions, {fused.precision}, opset {fused.opset}",
        f"  parity     {parity.max_abs:.2e} absolute, {parity.relative:.2e} relative, over {parity.pictures} pictures "
        f"(reference: {made.reference})",
        f"  source     {fused.source_name} sha256 {fused.source_sha256}",
        f"  licence    {fused.licence or 'not stated: give --licence'}",
        f"  sha256     {fused.sha256}",
        f"Next: edge-export recipe --backbone {out} --name NAME --images GOOD --out NAME.recipe",
    ]
    if made.quantised is not None:
        lines[-1:-1] = _int8_lines(made)
    elif made.raw.size is not None:
        lines.insert(-1, f"  fixed to {fused.size[0]}x{fused.size[1]}: export again for another size")
    return "\n".join(lines)


def _chance_lines(cost: "QuantisationCost") -> list[str]:
    """What the false rejects of a few good pictures can tell, and what they cannot."""
    before, after = cost.false_reject_ci_fp32, cost.false_reject_ci_int8
    if before is None or after is None:
        return []
    lines = [
        f"      95% bounds           {before[0]:.0%} to {before[1]:.0%} -> {after[0]:.0%} to {after[1]:.0%}"
        + (
            f"; promised {cost.promised_rate:.1%} at the mean, {cost.promised_upper_rate:.1%} at most"
            if cost.promised_rate is not None and cost.promised_upper_rate is not None
            else ""
        )
    ]
    if before[0] <= after[1] and after[0] <= before[1]:
        lines.append("      these bounds overlap: so few good pictures cannot tell the two apart")
    return lines


def _int8_lines(made: "MadeBackbone") -> list[str]:
    """What int8 cost and gained."""
    q, cost = made.quantised, made.cost
    assert q is not None
    assert cost is not None

    def pair(before: float | None, after: float | None, form: str) -> str:
        return "-" if before is None or after is None else f"{before:{form}} -> {after:{form}}"

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    lines = [
        f"  int8       {q.nodes} of {q.nodes + q.kept} products with weights, ranges of {q.pictures} good pictures, "
        f"made on {q.cpu_class}",
        f"  what it cost, fp32 -> int8, over {cost.judged} pictures against the same patches:",
        f"    score correlation      {share(cost.score_correlation)} ({share(cost.score_correlation_good)} among good "
        "parts alone)",
        f"    largest golden change  {cost.largest_golden_change:.2%} of the score",
        f"  and two recipes of {cost.pictures} good pictures, each with a bank and a threshold of its own:",
        f"    threshold              {pair(cost.threshold_fp32, cost.threshold_int8, '.5g')}",
    ]
    if cost.image_auroc_fp32 is not None:
        lines += [
            f"    image AUROC            {pair(cost.image_auroc_fp32, cost.image_auroc_int8, '.4f')}",
            f"    pixel AUROC            {pair(cost.pixel_auroc_fp32, cost.pixel_auroc_int8, '.4f')}",
            f"    escapes                {pair(cost.escape_rate_fp32, cost.escape_rate_int8, '.2%')}",
            f"    false rejects          {pair(cost.false_reject_rate_fp32, cost.false_reject_rate_int8, '.2%')}",
            *_chance_lines(cost),
        ]
    else:
        lines.append("    AUROC                  not measured: give --labelled DIR where defects are known")
    lines.append(
        f"    pictures a second      {pair(cost.session_run_fps_fp32, cost.session_run_fps_int8, '.1f')} "
        f"({cost.speedup:.2f} times) on this CPU"
    )
    if cost.speedup < 1.1:
        lines.append("    WARNING: int8 gains nothing on this CPU; use fp32")
    return lines
