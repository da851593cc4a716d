"""`edge-export distil`: a large network's features taught to the small one that the package ships."""

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from export.commands.backbone import add_normalisation, normalisation_of
from export.commands.options import comma_list, needs_torch
from export.errors import ExportError
from export.signals import EXIT_INTERRUPTED, handled

if TYPE_CHECKING:
    from export.torch.distil import Distillation, DistilSettings, TeacherCard
    from export.torch.teacher import Device, Teacher

DESCRIPTION = """\
Teaches the features of a large network to a small one (under 4 MB and 0.4 GFLOP at 256x256), on any
folder of photographs; no labels. Needs torch: pip install 'edge-daemon[export]'.

  edge-export distil --teacher resnet18 --weights resnet18.safetensors --layers layer2,layer3 \\
                     --images photographs/ --licence "weights BSD-3; pictures CC BY 4.0" --out small/
  edge-export distil --teacher-onnx net.onnx --outputs layer2,layer3 --input-normalisation caffe-bgr \\
                     --images photographs/ --out small/

The teacher gives two layers, at strides of about 8 and 16. An hour on two cores gives a usable
network; a GPU is used where torch finds one, so train longer there (--steps 60000 --batch 64).

Photographs show few plain grounds, fine textures and small turned parts. --procedural 0.5 makes half
of the pictures by rule instead (surfaces, gratings, castings, parts of the simulator), many with
flaws; --embedding-loss 1 adds the error of what PatchCore compares, pooled patch embeddings, and
--picture-loss 2 how far these are wrong within each picture, so that faint textures count as well.

The teacher takes most of the time. --cache DIR asks it once for a list of pictures of fixed length and
keeps its answers (0.2 to 0.6 MB a picture); every later step costs the student alone. With
--start-from, --fold-norms trains without batch norms: nearly twice the steps in the same time.

Ctrl-C or a power cut loses at most --checkpoint-every steps: the same command goes on, with more
--steps too. Never learn from the pictures that the result will be measured on.

Writes student.onnx, student.json (its model card) and checkpoint.pt. Use it with
  edge-export recipe --backbone small/student.onnx ...
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "distil",
        help="distil a large network into the small backbone",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    teacher = parser.add_mutually_exclusive_group(required=True)
    teacher.add_argument("--teacher", metavar="NAME", help="timm architecture")
    teacher.add_argument("--teacher-onnx", type=Path, metavar="FILE", help="graph (N, 3, H, W) float32 -> features")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of --teacher")
    parser.add_argument("--pretrained", action="store_true", help="let timm download the weights of --teacher")
    parser.add_argument("--layers", type=comma_list, metavar="A,B", help="two layers of --teacher, stride 8 and 16")
    parser.add_argument("--outputs", type=comma_list, metavar="A,B", help="two outputs of --teacher-onnx")
    add_normalisation(parser)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="photographs, in folders or not")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, and to go on from")
    parser.add_argument("--name", default="student", metavar="NAME", help="name of the new backbone (student)")
    parser.add_argument("--licence", default="", metavar="TEXT", help="licences of teacher and pictures, for the card")
    _add_training(parser)
    parser.add_argument("--json", action="store_true", help="print the model card on standard output")
    parser.set_defaults(run=run)


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=int, default=4000, metavar="N", help="steps in all (4000)")
    group.add_argument("--batch", type=int, default=16, metavar="N", help="pictures a step (16)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and pictures (0)")
    group.add_argument(
        "--sizes", type=_sizes, default=(160, 192, 224), metavar="A,B", help="training sizes in pixels (160,192,224)"
    )
    group.add_argument("--learning-rate", type=float, default=4e-3, metavar="X", help="largest one (0.004)")
    group.add_argument(
        "--procedural", type=float, default=0.0, metavar="SHARE", help="of pictures made by rule, 0 to 1 (0)"
    )
    group.add_argument(
        "--embedding-loss", type=float, default=0.0, metavar="W", help="weight of the error of patch embeddings (0)"
    )
    group.add_argument(
        "--picture-loss",
        type=float,
        default=0.0,
        metavar="W",
        help="the same within each picture, in its own units (0)",
    )
    group.add_argument(
        "--cache", type=Path, metavar="DIR", help="ask the teacher once for a fixed list of pictures, keep its answers"
    )
    group.add_argument("--cache-pictures", type=int, default=16384, metavar="N", help="in the cache (16384)")
    group.add_argument(
        "--fold-norms", action="store_true", help="train without batch norms, faster; needs --start-from"
    )
    group.add_argument(
        "--stride-16-weight",
        type=float,
        default=1.0,
        metavar="X",
        help="what the coarser layer written is scaled by (1)",
    )
    group.add_argument("--held-out", type=float, default=0.05, metavar="X", help="share never learned from (0.05)")
    group.add_argument("--checkpoint-every", type=int, default=200, metavar="N", help="steps (200)")
    group.add_argument("--start-from", type=Path, metavar="FILE", help="checkpoint of another run to begin with")
    group.add_argument("--threads", type=int, default=0, metavar="N", help="threads that compute (torch's choice)")
    group.add_argument("--workers", type=int, default=0, metavar="N", help="threads that decode (half the processors)")
    group.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute (auto)")


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} are no sizes separated by commas") from exc


def run(arguments: argparse.Namespace) -> int:
    """Train, or go on; export and say what came of it."""
    needs_torch("distil")
    from export.torch.distil import (
        Distillation,
        DistilSettings,
        cache_source,
        export_student,
        open_cache,
        write_student,
    )
    from export.torch.photographs import check_readable, default_workers, find_photographs
    from export.torch.teacher import choose_device

    workers = arguments.workers or default_workers()
    settings = DistilSettings(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        sizes_px=arguments.sizes,
        seed=arguments.seed,
        held_out=arguments.held_out,
        checkpoint_every=arguments.checkpoint_every,
        workers=workers,
        procedural=arguments.procedural,
        embedding_loss=arguments.embedding_loss,
        picture_loss=arguments.picture_loss,
        norms=not arguments.fold_norms,
        cached=arguments.cache_pictures if arguments.cache else 0,
        stride_16_weight=arguments.stride_16_weight,
    )
    photographs = find_photographs(arguments.images, settings.held_out)
    device = choose_device(arguments.device, arguments.threads)
    teacher, card = _teacher(arguments, settings, device)
    checkpoint = arguments.out / "checkpoint.pt"
    cache = open_cache(arguments.cache, card, photographs, settings) if arguments.cache else None
    if not checkpoint.exists() and (cache is None or cache.missing()):
        check_readable(photographs, workers, progress=True)
    with _stop_on_signals() as stop:
        if cache is not None and not cache.fill(teacher, cache_source(photographs, settings), stop=stop.is_set):
            print("edge-export: stopped while the cache was filled; the same command goes on", file=sys.stderr)
            return EXIT_INTERRUPTED
        distillation = Distillation(
            teacher,
            card,
            photographs,
            settings,
            checkpoint,
            device=device,
            start_from=arguments.start_from,
            cache=cache,
        )
        if not distillation.run(stop=stop.is_set):
            print(
                f"edge-export: stopped at step {distillation.step} of {settings.steps}; "
                "the same command goes on from there",
                file=sys.stderr,
            )
            return EXIT_INTERRUPTED
    raw = export_student(distillation, arguments.name, arguments.licence)
    model_card = distillation.card(raw)
    write_student(raw, model_card, arguments.out)
    print(json.dumps(model_card, indent=2) if arguments.json else _summary(distillation, model_card, arguments.out))
    return 0


def _teacher(
    arguments: argparse.Namespace, settings: "DistilSettings", device: "Device"
) -> "tuple[Teacher, TeacherCard]":
    from export.make_backbone import from_onnx
    from export.torch.distil import TeacherCard
    from export.torch.teacher import load_network, onnx_teacher, torch_teacher

    layers = arguments.layers if arguments.teacher else arguments.outputs
    if layers is None or len(layers) != 2:
        raise ExportError("name two layers of the teacher: --layers A,B of --teacher, --outputs A,B of --teacher-onnx")
    normalisation = normalisation_of(arguments)
    if arguments.teacher:
        side = max(settings.sizes_px)
        network = load_network(
            arguments.teacher,
            layers,
            arguments.weights,
            size=(side, side),
            pretrained=arguments.pretrained,
            normalisation=normalisation,
        )
        _check_sizes(network.name, network.size, settings.sizes_px)
        return torch_teacher(network, device), TeacherCard(
            f"{network.name} ({network.source_name})", network.source_sha256, network.layers, network.licence
        )
    if normalisation is None:
        raise ExportError("--teacher-onnx needs --input-normalisation: a wrong guess would go unnoticed")
    raw, _ = from_onnx(arguments.teacher_onnx, layers, normalisation)
    _check_sizes(raw.name, raw.size, settings.sizes_px)
    card = TeacherCard(raw.source_name, raw.source_sha256, raw.layers)
    return onnx_teacher(raw.model_bytes, raw.name, normalisation, device), card


def _check_sizes(name: str, fixed: tuple[int, int] | None, sizes_px: tuple[int, ...]) -> None:
    if fixed is not None and any((size, size) != fixed for size in sizes_px):
        raise ExportError(
            f"teacher {name} takes {fixed[0]}x{fixed[1]} pixels only: give one --sizes that suits it and is a "
            "multiple of 16 (224 for patches of 14 or 16)"
        )


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM end the run between two steps; a second one ends it at once."""
    stop = threading.Event()

    def handle(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print(f"\nedge-export: {signal.Signals(number).name}: finishing this step", file=sys.stderr)

    with handled((signal.SIGINT, signal.SIGTERM), handle):
        yield stop


def _summary(distillation: "Distillation", card: dict[str, object], out: Path) -> str:
    loss = distillation.loss
    held_out = card["loss"]["held_out"]  # type: ignore[index]
    apart = f"{held_out['stride_8']} + {held_out['stride_16']}" if held_out else "not measured"
    return "\n".join(
        [
            f"{out / 'student.onnx'}: {card['parameters']} parameters, {card['bytes']} bytes, "
            f"{card['gflop_at_256']} GFLOP at 256x256",
            f"  steps      {distillation.step}, {round(distillation.seconds / 60)} minutes on {distillation.device}",
            f"  loss       {loss.stride_8:.4f} + {loss.stride_16:.4f}, on pictures kept apart {apart}",
            f"  sha256     {card['sha256']}",
            f"Next: edge-export recipe --backbone {out / 'student.onnx'} --name NAME --images GOOD --out NAME.recipe",
        ]
    )
