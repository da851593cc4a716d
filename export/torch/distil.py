"""Distillation of a teacher's features into the small embedded backbone.

Loss: mean squared error between the student's outputs and the teacher's features, standardised per
channel, of one layer at stride 8 and one at stride 16 (feature distillation as in EfficientAD, Batzner
et al. 2024, arXiv 2303.14535, section 3.1, with standardised targets). Optionally, the same on what
PatchCore makes of both: pooled patch embeddings in the teacher's own units, where a channel counts as
much as it counts in a distance; and how far they are wrong within each picture, in units of what that
picture's own patches differ by, since a judge compares patches of one product, however faint its texture.
"""

import copy
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from edge_daemon import __version__
from export.errors import BackboneError, ExportError
from export.graph import IMAGENET, RawBackbone, Size, cpu_session, raw_backbone, run_session
from export.make_backbone import write_whole
from export.torch.cache import SHARD_PICTURES, TeacherCache
from export.torch.inherit import take_over
from export.torch.photographs import STATISTICS_STEP, Batches, Photographs, centre_view, read_rgb
from export.torch.procedural import RULES_EDITION
from export.torch.student import Denormalised, Student, multiply_adds
from export.torch.teacher import Teacher, export_graph, normalise

CHECKPOINT_SCHEMA = 1
STATISTICS_BATCHES = 24
THINNING_BATCHES = 6
CACHED_STATISTICS_BATCHES = 128  # they cost a reading each, and neighbours in a cache are of one size
CARD_SCHEMA = "edge-daemon/model-card/1"
OUTPUTS = ("stride8", "stride16")

# What the package may ship (the size of a phone picture, a few milliseconds on one core).
MAX_BYTES = 4_000_000
MAX_GFLOP = 0.4
CARD_SIZE: Size = (256, 256)

# Share of the teacher's total variance that a picture's own is taken for at least: an empty one has none.
FAINTEST = 0.05


@dataclass(frozen=True, slots=True)
class DistilSettings:
    """What determines a training run, besides the teacher and the pictures. `steps`, `learning_rate` and the
    weights of losses may change when a run goes on; the others make student and batches and may not.

    procedural:     share of the pictures that are made by rule (export.torch.procedural), 0 to 1
    embedding_loss: weight of the loss on pooled patch embeddings beside those of the layers, 0 or more
    picture_loss:   weight of the same within each picture, in units of its own variance, 0 or more
    norms:          train with batch norms; without them a step costs little more than half, but the student
                    must begin with another's, whose norms are folded
    cached:         pictures of the teacher's cache that are learned from, 0 for fresh ones all the time
    stride_16_weight: what the exported student's coarser layer is multiplied with, above 0: a student imitates
                    that layer less well than the finer one, and what is imitated less well should count less in
                    a distance. Training knows nothing of it
    """

    steps: int = 4000
    batch: int = 16
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    sizes_px: tuple[int, ...] = (160, 192, 224)
    seed: int = 0
    held_out: float = 0.05
    checkpoint_every: int = 200
    ema_decay: float = 0.998
    workers: int = 1
    procedural: float = 0.0
    embedding_loss: float = 0.0
    picture_loss: float = 0.0
    norms: bool = True
    cached: int = 0
    stride_16_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.checkpoint_every < 1 or self.workers < 1:
            raise ExportError("steps, batch, checkpoint interval and workers must be 1 or more")
        if not self.sizes_px or any(size < 32 or size % 16 for size in self.sizes_px):
            raise ExportError("training sizes must be multiples of 16 pixels, 32 at least: the student has stride 16")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0 and 0 <= self.held_out < 1):
            raise ExportError("the learning rate must be above 0, the held-out share in 0..1")
        weights = (self.embedding_loss, self.picture_loss)
        if not (0 <= self.procedural <= 1 and all(math.isfinite(w) and w >= 0 for w in weights)):
            raise ExportError("the procedural share must lie in 0..1, the weights of losses at 0 or above")
        if not (math.isfinite(self.stride_16_weight) and self.stride_16_weight > 0):
            raise ExportError("the weight of the layer at stride 16 must be above 0")

    def stream(self) -> dict[str, Any]:
        """What a resumed run must share with the one before it."""
        return {
            "batch": self.batch,
            "sizes_px": list(self.sizes_px),
            "seed": self.seed,
            "held_out": self.held_out,
            "procedural": self.procedural,
            "norms": self.norms,
            "cached": self.cached,
            **self.rules(),
        }

    def rules(self) -> dict[str, int]:
        """The edition of the rules that pictures are made by, where any are."""
        return {"rules": RULES_EDITION} if self.procedural > 0 else {}


@dataclass(frozen=True, slots=True)
class TeacherCard:
    """Who teaches: name, SHA-256 of its weights or graph, layers, licence."""

    name: str
    sha256: str
    layers: tuple[str, ...]
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean squared error per layer, in units of the teacher's variance."""

    stride_8: float
    stride_16: float

    def rounded(self) -> dict[str, float]:
        return {"stride_8": round(self.stride_8, 4), "stride_16": round(self.stride_16, 4)}


@dataclass(frozen=True, slots=True)
class Channels:
    """Of the teacher's two layers: mean and standard deviation per channel, (C,) each, and whether the layer
    was never negative, as behind a ReLU; the student's then is not either."""

    mean: tuple[Tensor, Tensor]
    std: tuple[Tensor, Tensor]
    rectified: tuple[bool, bool]


def channel_statistics(answers: Iterable[Sequence[Tensor]]) -> Channels:
    """Statistics of the teacher's two layers over its answers to some batches. Raises BackboneError."""
    sums: list[Any] = [0, 0]
    squares: list[Any] = [0, 0]
    numbers = [0, 0]
    lowest = [math.inf, math.inf]
    for features in answers:
        if len(features) != 2 or any(f.ndim != 4 for f in features):
            raise BackboneError("a teacher gives two layers of feature maps, at strides about 8 and 16")
        for i, f in enumerate(features):
            flat = f.double().permute(1, 0, 2, 3).flatten(1)
            sums[i] = sums[i] + flat.sum(1)
            squares[i] = squares[i] + flat.square().sum(1)
            numbers[i] += flat.shape[1]
            lowest[i] = min(lowest[i], float(flat.min()))
    mean = [s / n for s, n in zip(sums, numbers, strict=True)]
    std = [(q / n - m * m).clamp_min(1e-12).sqrt() for q, n, m in zip(squares, numbers, mean, strict=True)]
    return Channels(
        (mean[0].float(), mean[1].float()), (std[0].float(), std[1].float()), (lowest[0] >= 0, lowest[1] >= 0)
    )


def errors_of(student: Sequence[Tensor], teacher: Sequence[Tensor], channels: Channels) -> tuple[Tensor, Tensor]:
    """Student minus standardised teacher per layer, the teacher resized to the student's grid where its own
    differs (a transformer's)."""
    errors = []
    for s, t, mean, std, rectified in zip(
        student, teacher, channels.mean, channels.std, channels.rectified, strict=True
    ):
        m, d = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        target = (t - m) / d
        if target.shape[-2:] != s.shape[-2:]:
            target = functional.interpolate(target, s.shape[-2:], mode="bilinear", align_corners=False)
        errors.append((torch.maximum(s, -m / d) if rectified else s) - target)
    return errors[0], errors[1]


def loss_of(student: Sequence[Tensor], teacher: Sequence[Tensor], channels: Channels) -> tuple[Tensor, Tensor]:
    """Mean squared error per layer against the standardised teacher."""
    error8, error16 = errors_of(student, teacher, channels)
    return error8.square().mean(), error16.square().mean()


def pooled(maps: Sequence[Tensor]) -> list[Tensor]:
    """3x3 means, as PatchCore takes them (Roth et al. 2022, arXiv 2106.08265, section 3.1)."""
    return [functional.avg_pool2d(m, 3, 1, 1) for m in maps]


def embedding_errors(errors: Sequence[Tensor], std: Sequence[Tensor]) -> list[Tensor]:
    """Errors of PatchCore's patch embedding in the teacher's units, per layer on its own grid.

    errors: student minus standardised teacher, (N, C8, h, w) and (N, C16, h', w'); std: (C8,) and (C16,).
    The embedding is linear in the features, so its error is the embedding of the errors; the teacher's units
    weigh each channel as a distance between embeddings does.
    """
    return pooled([error * d.view(1, -1, 1, 1) for error, d in zip(errors, std, strict=True)])


def embedding_loss(wrong: Sequence[Tensor], std: Sequence[Tensor]) -> Tensor:
    """Mean squared length of the embeddings' errors (of `embedding_errors`), both layers on the finer grid, in
    units of the teacher's total variance."""
    finer, coarser = wrong
    coarser = functional.interpolate(coarser, finer.shape[-2:], mode="bilinear", align_corners=False)
    squared = finer.square().sum(1).mean() + coarser.square().sum(1).mean()
    return squared / sum(float(d.square().sum()) for d in std)


def picture_loss(wrong: Sequence[Tensor], teacher: Sequence[Tensor], std: Sequence[Tensor]) -> Tensor:
    """How far the embeddings of a picture's patches are wrong against each other, in units of what the teacher
    says that they differ by; the mean over pictures.

    wrong: of `embedding_errors`; teacher: its features, (N, C8, h, w) and (N, C16, h', w'); std: (C8,), (C16,)
    What is wrong alike in all patches changes no distance between them and counts nothing here.
    """
    of_errors = sum((_variance(w) for w in wrong), torch.zeros(()))
    own = sum((_variance(t) for t in pooled(teacher)), torch.zeros(()))
    total = sum(float(d.square().sum()) for d in std)
    return (of_errors / (own + FAINTEST * total)).mean()


def _variance(maps: Tensor) -> Tensor:
    """Of the vectors of each picture about their mean: (N, C, h, w) -> (N,)."""
    return maps.var((2, 3), correction=0).sum(1)


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over 3%, then a half cosine to 1%."""
    warm = max(1, int(0.03 * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def open_cache(
    folder: Path, teacher_card: TeacherCard, photographs: Photographs, settings: DistilSettings
) -> TeacherCache:
    """The cache of this teacher's answers to these pictures, begun where there is none. Raises ExportError."""
    identity = {
        **_identity(teacher_card, photographs),
        "seed": settings.seed,
        "sizes_px": list(settings.sizes_px),
        "held_out": settings.held_out,
        "procedural": settings.procedural,
        **settings.rules(),
    }
    if settings.batch > SHARD_PICTURES:
        raise ExportError(f"a cache gives batches of {SHARD_PICTURES} at most, {settings.batch} were asked for")
    return TeacherCache(folder, identity, settings.sizes_px, settings.seed, settings.cached)


def cache_source(photographs: Photographs, settings: DistilSettings) -> Callable[[int], Batches]:
    """For one size, the pictures of a cache, shard by shard."""

    def batches(size_px: int) -> Batches:
        return Batches(
            photographs.learn,
            seed=settings.seed,
            batch=SHARD_PICTURES,
            sizes_px=(size_px,),
            first_step=0,
            procedural=settings.procedural,
        )

    return batches


def _identity(teacher_card: TeacherCard, photographs: Photographs) -> dict[str, str]:
    return {
        "teacher": teacher_card.name,
        "teacher_sha256": teacher_card.sha256,
        "layers": ",".join(teacher_card.layers),
        "pictures_sha256": photographs.sha256,
    }


class Distillation:
    """Training state of one run: begun or resumed from its checkpoint by the constructor, advanced by `run`."""

    def __init__(
        self,
        teacher: Teacher,
        teacher_card: TeacherCard,
        photographs: Photographs,
        settings: DistilSettings,
        checkpoint: Path,
        *,
        device: torch.device | None = None,
        start_from: Path | None = None,
        cache: TeacherCache | None = None,
    ) -> None:
        """checkpoint: this run's; start_from: another run's, whose student this one begins with; cache: the
        teacher's, filled.

        Raises ExportError when the checkpoint belongs to another run or cannot be read.
        """
        self.teacher = teacher
        self.teacher_card = teacher_card
        self.photographs = photographs
        self.cache = cache
        self.settings = settings
        self.checkpoint = checkpoint
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.step = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.loss = Loss(math.nan, math.nan)
        self.learned_from_all = False
        torch.manual_seed(settings.seed)
        if checkpoint.exists():
            self._resume()
        else:
            self._begin(start_from)

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must agree with to be gone on with."""
        return _identity(self.teacher_card, self.photographs)

    def _begin(self, start_from: Path | None) -> None:
        if start_from is None and not self.settings.norms:
            raise ExportError("a student without norms begins with another's: give its checkpoint, or train with norms")
        count = STATISTICS_BATCHES if self.cache is None else CACHED_STATISTICS_BATCHES
        some: list[NDArray[np.uint8]] = []

        def answers(
            examples: Iterable[tuple[NDArray[np.uint8], tuple[Tensor, ...]]],
        ) -> Iterator[tuple[Tensor, ...]]:
            for number, (pictures, features) in enumerate(islice(examples, count)):
                if number % max(1, count // THINNING_BATCHES) == 0:
                    some.append(pictures)
                yield features

        with self._examples(STATISTICS_STEP if self.cache is None else 0) as examples:
            self.channels = channel_statistics(answers(examples))
        self._build()
        if start_from is not None:
            self._begin_with(start_from, some)

    def _begin_with(self, start_from: Path, some: Sequence[NDArray[np.uint8]]) -> None:
        """Take over the averaged student of another run, its heads turned into units of this run's statistics."""
        state = load_checkpoint(start_from, self.device)
        try:
            take_over(self.student, state["average"], [normalise(p, IMAGENET, self.device) for p in some])
            with torch.no_grad():
                for i, head in enumerate((self.student.head8, self.student.head16)):
                    _change_units(head, state["mean"][i], state["std"][i], self.channels.mean[i], self.channels.std[i])
        except RuntimeError as exc:
            raise ExportError(
                f"{start_from} holds another kind of student (a wider one can be taken over with --fold-norms): {exc}"
            ) from exc
        self.average.load_state_dict(self.student.state_dict())

    def _new_student(self) -> Student:
        return Student((len(self.channels.mean[0]), len(self.channels.mean[1])), self.settings.norms)

    def _build(self) -> None:
        self.student = _on(self._new_student(), self.device)
        self.average = _on(self._new_student(), self.device)
        self.average.load_state_dict(self.student.state_dict())
        check_size(self.student)
        self.optimiser = torch.optim.AdamW(
            self.student.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )

    def _resume(self) -> None:
        state = load_checkpoint(self.checkpoint, self.device)
        # Checkpoints of earlier versions state less; what they do not state cannot be compared.
        before = {
            **state["identity"],
            "procedural": 0.0,
            "norms": True,
            "cached": 0,
            "rules": 1,
            **state.get("settings", {}),
        }
        now = {**self.identity, **self.settings.stream()}
        if "pictures_sha256" not in before:  # it neither named its teacher alike nor kept pictures apart
            self.learned_from_all = True
            now = {"teacher_sha256": now["teacher_sha256"]}
        changed = [
            f"{key} was {before[key]}, is {now[key]}" for key in now if key in before and before[key] != now[key]
        ]
        if changed:
            raise ExportError(
                f"{self.checkpoint} belongs to another run: {'; '.join(changed)}. Name another --out, or remove it; "
                "to begin a new run with its student give it as --start-from"
            )
        self.channels = Channels(
            tuple(state["mean"]), tuple(state["std"]), tuple(state.get("rectified", (False, False)))
        )
        self._build()
        try:
            self.student.load_state_dict(state["student"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as exc:
            raise ExportError(
                f"{self.checkpoint} holds the student of another version, which this one cannot go on with: begin a "
                "new run in another --out and give this checkpoint as --start-from"
            ) from exc
        self.step, self.seconds, self.loss = state["step"], state["seconds"], Loss(*state["loss"])
        self.cpu_seconds = state.get("cpu_seconds", 0.0)

    def save(self) -> None:
        """Write the checkpoint beside the old one and rename it over: a kill leaves a whole file."""
        state = {
            "schema": CHECKPOINT_SCHEMA,
            "identity": self.identity if not self.learned_from_all else {"teacher_sha256": self.teacher_card.sha256},
            "settings": self.settings.stream() if not self.learned_from_all else {},
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "loss": [self.loss.stride_8, self.loss.stride_16],
            "mean": list(self.channels.mean),
            "std": list(self.channels.std),
            "rectified": list(self.channels.rectified),
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        try:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.checkpoint)
        except (OSError, RuntimeError) as exc:  # torch wraps a full disk in a RuntimeError
            raise ExportError(
                f"{self.checkpoint} cannot be written ({exc}): make room and start the same command again"
            ) from exc

    def _batches(self, first_step: int) -> Batches:
        s = self.settings
        return Batches(
            self.photographs.learn,
            seed=s.seed,
            batch=s.batch,
            sizes_px=s.sizes_px,
            first_step=first_step,
            workers=s.workers,
            procedural=s.procedural,
        )

    @contextmanager
    def _examples(self, first_step: int) -> Iterator[Iterator[tuple[NDArray[np.uint8], tuple[Tensor, ...]]]]:
        """Pictures and what the teacher says of them, step after step."""
        if self.cache is not None:
            kept = self.cache.batches(self.settings.batch, first_step)
            yield ((pictures, tuple(f.to(self.device) for f in features)) for pictures, features in kept)
            return
        with self._batches(first_step) as batches:
            yield ((pictures, self.teacher(pictures)) for pictures in batches)

    def _advance(self, pictures: NDArray[np.uint8], target: tuple[Tensor, ...]) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * learning_rate_factor(self.step, self.settings.steps)
        self.student.train()
        errors = errors_of(self.student(normalise(pictures, IMAGENET, self.device)), target, self.channels)
        loss8, loss16 = errors[0].square().mean(), errors[1].square().mean()
        loss = loss8 + loss16 + self._loss_of_embeddings(errors, target)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        now = Loss(float(loss8.detach()), float(loss16.detach()))
        if not (math.isfinite(now.stride_8) and math.isfinite(now.stride_16)):
            raise ExportError(
                f"the loss is not finite at step {self.step}: the last checkpoint is kept; go on with a lower "
                "--learning-rate"
            )
        self.optimiser.step()
        self._follow()
        keep = 0.98 if self.step > 50 else 0.9
        self.loss = now if self.step == 0 else _blend(self.loss, now, keep)
        self.step += 1

    def _loss_of_embeddings(self, errors: tuple[Tensor, Tensor], target: tuple[Tensor, ...]) -> Tensor:
        of_embeddings, of_pictures = self.settings.embedding_loss, self.settings.picture_loss
        loss = torch.zeros((), device=self.device)
        if of_embeddings > 0 or of_pictures > 0:
            wrong = embedding_errors(errors, self.channels.std)
            if of_embeddings > 0:
                loss = loss + of_embeddings * embedding_loss(wrong, self.channels.std)
            if of_pictures > 0:
                loss = loss + of_pictures * picture_loss(wrong, target, self.channels.std)
        return loss

    def _follow(self) -> None:
        """The exponential average of the student's weights, which is what is exported."""
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for a, s in zip(self.average.state_dict().values(), self.student.state_dict().values(), strict=True):
                a.lerp_(s, 1 - decay) if a.is_floating_point() else a.copy_(s)

    def run(self, progress: bool = True, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to `settings.steps`; True when there, False when `stop` said so between two steps, with the
        checkpoint written. An error leaves the last checkpoint as it is. Raises ExportError, PictureError."""
        bar = tqdm(
            total=self.settings.steps,
            initial=min(self.step, self.settings.steps),
            unit="step",
            disable=not progress,
            mininterval=2 if sys.stderr.isatty() else 30,
        )
        started, before = time.monotonic(), self.seconds
        cpu_started, cpu_before = time.process_time(), self.cpu_seconds
        with bar, self._examples(self.step) as examples:
            while self.step < self.settings.steps and not stop():
                self._advance(*next(examples))
                self.seconds = before + time.monotonic() - started
                self.cpu_seconds = cpu_before + time.process_time() - cpu_started
                bar.set_postfix_str(f"loss {self.loss.stride_8:.3f} + {self.loss.stride_16:.3f}", refresh=False)
                bar.update()
                if self.step % self.settings.checkpoint_every == 0:
                    self.save()
        self.save()
        return self.step >= self.settings.steps

    def held_out_loss(self) -> Loss | None:
        """Loss of the averaged student on the middles of the pictures kept apart; None when there are none,
        or an earlier version learned from all."""
        if self.learned_from_all or not self.photographs.held_out:
            return None
        self.average.eval()
        size = max(self.settings.sizes_px)
        files = self.photographs.held_out
        sums, count = [0.0, 0.0], 0
        for start in range(0, len(files), self.settings.batch):
            batch = np.stack([centre_view(read_rgb(p), size) for p in files[start : start + self.settings.batch]])
            with torch.no_grad():
                out = self.average(normalise(batch, IMAGENET, self.device))
                losses = loss_of(out, self.teacher(batch), self.channels)
            sums = [s + float(x) * len(batch) for s, x in zip(sums, losses, strict=True)]
            count += len(batch)
        return Loss(sums[0] / count, sums[1] / count)

    def model(self) -> Denormalised:
        """The averaged student in the teacher's units, on the CPU, for inference."""
        student = self._new_student()
        student.load_state_dict({k: v.cpu() for k, v in self.average.state_dict().items()})
        mean, std = ((a.cpu(), b.cpu()) for a, b in (self.channels.mean, self.channels.std))
        weight = self.settings.stride_16_weight
        return Denormalised(student.eval(), mean, std, self.channels.rectified, weight).eval()

    def card(self, raw: RawBackbone) -> dict[str, Any]:
        """The model card: what it is, from whom and what it was learned, and how well."""
        held_out = self.held_out_loss()
        student = self.student
        return {
            "schema": CARD_SCHEMA,
            "name": raw.name,
            "sha256": raw.sha256,
            "bytes": len(raw.model_bytes),
            "outputs": list(raw.layers),
            "parameters": sum(p.numel() for p in student.parameters()),
            "gflop_at_256": round(gflop(student), 3),
            "licence": raw.licence,
            "teacher": asdict(self.teacher_card),
            "data": {
                "folder": self.photographs.folder.resolve().name,
                "pictures": self.photographs.count,
                "held_out": 0 if self.learned_from_all else len(self.photographs.held_out),
                "list_sha256": self.photographs.sha256,
            },
            "training": {
                **asdict(self.settings),
                "steps": self.step,
                "held_out": 0.0 if self.learned_from_all else self.settings.held_out,
                "pictures_seen": self.step * self.settings.batch,
                "seconds": round(self.seconds),
                "cpu_seconds": round(self.cpu_seconds),
                "device": self.device.type,
            },
            "loss": {
                "kind": "mean squared error against the teacher, per channel in units of its variance",
                "training": self.loss.rounded(),
                "held_out": held_out.rounded() if held_out else None,
            },
            "software": f"edge-daemon {__version__}, torch {torch.__version__.split('+')[0]}",
        }


def export_student(distillation: Distillation, name: str, licence: str) -> RawBackbone:
    """The student as a raw backbone, compared with torch. Raises BackboneError above 4 MB or 1e-5 relative."""
    model = distillation.model()
    teacher = distillation.teacher_card
    raw = raw_backbone(
        export_graph(model, CARD_SIZE, OUTPUTS, dynamic=True),
        name=name,
        outputs=OUTPUTS,
        normalisation=IMAGENET,
        source_name=f"student of {teacher.name}",
        source_sha256=teacher.sha256,
        licence=licence,
        provenance=(
            f"distilled from {teacher.name}, layers {', '.join(teacher.layers)}, on "
            f"{distillation.photographs.folder.resolve().name} in {distillation.step} steps"
        ),
    )
    if len(raw.model_bytes) > MAX_BYTES:
        raise BackboneError(f"the student has {len(raw.model_bytes)} bytes, allowed are {MAX_BYTES}")
    _compare(raw, model)
    return raw


def _compare(raw: RawBackbone, model: Denormalised) -> None:
    session = cpu_session(raw.model_bytes, raw.name)
    rng = np.random.default_rng(0)
    for shape in ((1, 3, 256, 256), (2, 3, 160, 224)):
        x = rng.standard_normal(shape).astype(np.float32)
        with torch.no_grad():
            want = [f.numpy() for f in model(torch.from_numpy(x))]
        for got, w in zip(run_session(session, x, raw.name), want, strict=True):
            difference = np.abs(got - w).max() / np.abs(w).max()
            if not difference <= 1e-5:
                raise BackboneError(f"the exported student differs from torch by {difference:.2g} (allowed 1e-5)")


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint without pickle's powers. Raises ExportError."""
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        schema = state["schema"]
    except Exception as exc:  # torch raises zip, pickle and runtime errors alike
        raise ExportError(f"{path} is no readable checkpoint ({exc}): remove it to begin anew") from exc
    if schema != CHECKPOINT_SCHEMA:
        raise ExportError(f"{path} has checkpoint schema {schema}, this version reads {CHECKPOINT_SCHEMA}")
    return state


def gflop(student: Student) -> float:
    """Floating-point operations for one 256 x 256 picture, in 1e9; a multiply-add counts as two."""
    shapes_only = copy.deepcopy(student).to("meta")
    return 2 * multiply_adds(shapes_only, CARD_SIZE) / 1e9


def check_size(student: Student) -> None:
    """Refuse a student that the package may not ship, before training it. Raises BackboneError."""
    operations, size_bytes = gflop(student), 4 * sum(p.numel() for p in student.parameters())
    if operations > MAX_GFLOP or size_bytes > MAX_BYTES:
        raise BackboneError(
            f"the student would need {operations:.2f} GFLOP at 256x256 and {size_bytes / 1e6:.1f} MB "
            f"(allowed {MAX_GFLOP} and {MAX_BYTES / 1e6:.0f}): the teacher's layers have too many channels, "
            "take narrower ones"
        )


def write_student(raw: RawBackbone, card: dict[str, Any], out: Path) -> None:
    """`student.onnx`, then its card `student.json`, each whole or not at all. Raises ExportError."""
    try:
        write_whole(out / "student.onnx", raw.model_bytes)
        write_whole(out / "student.json", (json.dumps(card, indent=2) + "\n").encode())
    except OSError as exc:
        raise ExportError(f"{out} cannot be written: {exc.strerror or exc}") from exc


def _change_units(head: nn.Conv2d, mean: Tensor, std: Tensor, new_mean: Tensor, new_std: Tensor) -> None:
    """Rewrite a head that gives (t - mean) / std so that it gives (t - new_mean) / new_std."""
    assert head.bias is not None
    head.weight.mul_((std / new_std).view(-1, 1, 1, 1))
    head.bias.mul_(std).add_(mean - new_mean).div_(new_std)


def _on(student: Student, device: torch.device) -> Student:
    placed: Student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def _blend(old: Loss, new: Loss, keep: float) -> Loss:
    return Loss(
        keep * old.stride_8 + (1 - keep) * new.stride_8,
        keep * old.stride_16 + (1 - keep) * new.stride_16,
    )
