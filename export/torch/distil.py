"""Distillation of a teacher's features into the small embedded backbone.

Loss: mean squared error between the student's outputs and the teacher's features, standardised per
channel, of one layer at stride 8 and one at stride 16 (feature distillation as in EfficientAD, Batzner
et al. 2024, arXiv 2303.14535, section 3.1, with standardised targets).
"""

import hashlib
import json
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from export.errors import ExportError, PicturesError
from export.torch.student import Denormalised, Student, multiply_adds
from export.torch.teacher import IMAGENET_MEAN, IMAGENET_STD

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
CHECKPOINT_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class DistilSettings:
    """What determines a training run, besides the teacher and the pictures."""

    steps: int = 4000
    batch: int = 16
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    sizes_px: tuple[int, ...] = (160, 192, 224)
    seed: int = 0
    checkpoint_every: int = 200
    ema_decay: float = 0.998


def augment(picture: NDArray[np.uint8], size: int, rng: random.Random) -> NDArray[np.uint8]:
    """One random view of a picture as a part could look: any rotation, scale, grey, light and noise.

    picture: (H, W, 3) uint8 RGB; returns (size, size, 3) uint8. One affine warp with mirrored borders.
    """
    h, w = picture.shape[:2]
    scale = size / min(h, w) * math.exp(rng.uniform(math.log(0.8), math.log(2.0)))
    angle = rng.choice((0.0, 90.0, 180.0, 270.0)) if rng.random() < 0.6 else rng.uniform(0, 360)
    half = size / 2 / scale
    cx = rng.uniform(min(half, w / 2), max(w - half, w / 2))
    cy = rng.uniform(min(half, h / 2), max(h - half, h / 2))
    matrix = cv2.getRotationMatrix2D((cx, cy), angle, scale)
    matrix[:, 2] += (size / 2 - cx, size / 2 - cy)
    if rng.random() < 0.5:
        matrix[0] = -matrix[0]
        matrix[0, 2] += size - 1
    if scale < 0.7:
        picture = cv2.GaussianBlur(picture, (0, 0), 0.4 / scale)
    view = cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    if rng.random() < 0.3:
        view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    out = view.astype(np.float32)
    if rng.random() < 0.7:
        gain = np.float32(math.exp(rng.uniform(-0.4, 0.4)))
        tint = np.array([math.exp(rng.uniform(-0.1, 0.1)) for _ in range(3)], np.float32)
        out = (out - 128) * gain * tint + 128 + rng.uniform(-40, 40)
    if rng.random() < 0.2:
        noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(out.shape, np.float32)
        out += noise * rng.uniform(1, 8)
    if rng.random() < 0.1:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.4, 1.2))
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Decode a photograph as (H, W, 3) uint8 RGB. Raises PicturesError when it cannot be read."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise PicturesError(f"{path} cannot be decoded as a picture: remove it from the folder")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


class Batches:
    """Endless stream of augmented batches, a function of (files, settings, step) alone, so that a
    resumed run sees the pictures it would have seen. One thread works ahead by up to four batches."""

    def __init__(self, files: list[Path], settings: DistilSettings, first_step: int) -> None:
        self.files = files
        self.settings = settings
        self.queue: queue.Queue[NDArray[np.uint8] | Exception] = queue.Queue(maxsize=4)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._work, args=(first_step,), name="batches", daemon=True)
        self.thread.start()

    def make(self, step: int) -> NDArray[np.uint8]:
        rng = random.Random(f"{self.settings.seed}/{step}")
        size = rng.choice(self.settings.sizes_px)
        return np.stack([augment(read_rgb(rng.choice(self.files)), size, rng) for _ in range(self.settings.batch)])

    def _put(self, item: NDArray[np.uint8] | Exception) -> None:
        while not self.stop.is_set():
            try:
                return self.queue.put(item, timeout=0.2)
            except queue.Full:
                continue

    def _work(self, step: int) -> None:
        try:
            while not self.stop.is_set():
                self._put(self.make(step))
                step += 1
        except Exception as error:  # handed to the training loop, which raises it
            self._put(error)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        while True:
            item = self.queue.get()
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self) -> None:
        self.stop.set()
        self.thread.join()


def normalise(batch: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32, channels last, ImageNet mean and std."""
    x = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float().div_(255)
    mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
    return x.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


Teacher = Callable[[Tensor], tuple[Tensor, Tensor]]


def channel_statistics(
    teacher: Teacher, batches: Iterator[NDArray[np.uint8]], count: int, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Mean and standard deviation per channel of the teacher's two layers over `count` batches."""
    sums: list[Tensor] = []
    squares: list[Tensor] = []
    numbers = [0, 0]
    for _, batch in zip(range(count), batches, strict=False):
        with torch.no_grad():
            features = teacher(normalise(batch, device))
        for i, f in enumerate(features):
            flat = f.double().permute(1, 0, 2, 3).reshape(f.shape[1], -1)
            if len(sums) <= i:
                sums.append(flat.sum(1))
                squares.append(flat.square().sum(1))
            else:
                sums[i] += flat.sum(1)
                squares[i] += flat.square().sum(1)
            numbers[i] += flat.shape[1]
    mean = [s / n for s, n in zip(sums, numbers, strict=True)]
    std = [(q / n - m * m).clamp_min(1e-12).sqrt() for q, n, m in zip(squares, numbers, mean, strict=True)]
    return [m.float() for m in mean], [s.float() for s in std]


def loss_of(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mean: list[Tensor], std: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean squared error per layer against the standardised teacher."""
    losses = []
    for s, t, m, d in zip(student, teacher, mean, std, strict=True):
        target = (t - m.view(1, -1, 1, 1)) / d.view(1, -1, 1, 1)
        losses.append((s - target).square().mean())
    return losses[0], losses[1]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over 3%, then a half cosine to 1%."""
    warm = max(1, int(0.03 * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass(frozen=True, slots=True)
class DistilResult:
    """The trained student in the teacher's units, and what the model card says of the training."""

    model: Denormalised
    card: dict[str, Any]


class Distillation:
    """Training state of one run: constructed or resumed from a checkpoint, advanced by `run`."""

    def __init__(
        self, teacher: Teacher, files: list[Path], settings: DistilSettings, checkpoint: Path, identity: dict[str, str]
    ) -> None:
        if not files:
            raise PicturesError("no pictures to learn from: name a folder that holds photographs")
        self.teacher = teacher
        self.files = files
        self.settings = settings
        self.checkpoint = checkpoint
        self.identity = identity
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.step = 0
        self.seconds = 0.0
        self.loss: tuple[float, float] = (math.nan, math.nan)
        torch.manual_seed(settings.seed)
        self.mean: list[Tensor] = []
        self.std: list[Tensor] = []
        if checkpoint.exists():
            self._resume()
        else:
            stats = Batches(files, settings, 1_000_000_000)
            try:
                self.mean, self.std = channel_statistics(teacher, iter(stats), 24, self.device)
            finally:
                stats.close()
            self._build()

    def _build(self) -> None:
        channels = (len(self.mean[0]), len(self.mean[1]))
        self.student = Student(channels).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Student(channels).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average.load_state_dict(self.student.state_dict())
        self.optimiser = torch.optim.AdamW(
            self.student.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["schema"] != CHECKPOINT_SCHEMA or state["identity"] != self.identity:
            raise ExportError(
                f"{self.checkpoint} belongs to another run ({state['identity']}): name another --out or remove it"
            )
        self.mean, self.std = state["mean"], state["std"]
        self._build()
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.loss = state["step"], state["seconds"], tuple(state["loss"])

    def save(self) -> None:
        """Write the checkpoint beside the old one and rename it over: a kill leaves a whole file."""
        state = dict(
            schema=CHECKPOINT_SCHEMA,
            identity=self.identity,
            step=self.step,
            seconds=self.seconds,
            loss=list(self.loss),
            mean=self.mean,
            std=self.std,
            student=self.student.state_dict(),
            average=self.average.state_dict(),
            optimiser=self.optimiser.state_dict(),
        )
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _advance(self, batch: NDArray[np.uint8]) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * learning_rate_factor(self.step, self.settings.steps)
        x = normalise(batch, self.device)
        with torch.no_grad():
            target = self.teacher(x)
        self.student.train()
        loss8, loss16 = loss_of(self.student(x), target, self.mean, self.std)
        self.optimiser.zero_grad(set_to_none=True)
        (loss8 + loss16).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        self.optimiser.step()
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for a, s in zip(self.average.state_dict().values(), self.student.state_dict().values(), strict=True):
                a.lerp_(s, 1 - decay) if a.is_floating_point() else a.copy_(s)
        keep = 0.98 if self.step > 50 else 0.9
        values = (float(loss8), float(loss16))
        self.loss = (
            values
            if self.step == 0
            else tuple(keep * old + (1 - keep) * new for old, new in zip(self.loss, values, strict=True))
        )  # type: ignore[assignment]
        self.step += 1

    def run(self, progress: bool = True) -> DistilResult:
        """Train to `settings.steps`; on an interrupt the checkpoint is written before it goes on."""
        batches = Batches(self.files, self.settings, self.step)
        bar = tqdm(total=self.settings.steps, initial=self.step, unit="step", disable=not progress, mininterval=2)
        started, before = time.monotonic(), self.seconds
        try:
            for batch in batches:
                if self.step >= self.settings.steps:
                    break
                self._advance(batch)
                self.seconds = before + time.monotonic() - started
                bar.update()
                bar.set_postfix_str(f"loss {self.loss[0]:.3f} + {self.loss[1]:.3f}", refresh=False)
                if self.step % self.settings.checkpoint_every == 0:
                    self.save()
        finally:
            bar.close()
            batches.close()
            self.save()
        return self.result()

    def result(self) -> DistilResult:
        self.average.eval()
        student = Student((len(self.mean[0]), len(self.mean[1]))).cpu()
        student.load_state_dict({k: v.cpu() for k, v in self.average.state_dict().items()})
        student.eval()
        card = {
            **self.identity,
            "pictures": len(self.files),
            "steps": self.step,
            "pictures_seen": self.step * self.settings.batch,
            "seconds": round(self.seconds),
            "device": str(self.device),
            "loss": {"stride_8": round(self.loss[0], 4), "stride_16": round(self.loss[1], 4)},
            "settings": asdict(self.settings),
            "parameters": sum(p.numel() for p in student.parameters()),
            "gflop_at_256": round(2 * multiply_adds(student, (256, 256)) / 1e9, 3),
        }
        mean = (self.mean[0].cpu(), self.mean[1].cpu())
        std = (self.std[0].cpu(), self.std[1].cpu())
        return DistilResult(Denormalised(student, mean, std), card)


def find_pictures(folder: Path) -> list[Path]:
    """All pictures below a folder, sorted by name. Raises PicturesError when there is none."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not files:
        raise PicturesError(f"no pictures below {folder}: it should hold PNG, JPEG, BMP or TIFF photographs")
    return files


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def export_student(result: DistilResult, out: Path) -> None:
    """Write `student.onnx` (float NCHW in, two feature maps out) and its card `student.json`."""
    out.mkdir(parents=True, exist_ok=True)
    onnx_path = out / "student.onnx"
    torch.onnx.export(
        result.model.eval(),
        (torch.zeros(1, 3, 256, 256),),
        str(onnx_path),
        opset_version=17,
        dynamo=False,
        input_names=["image"],
        output_names=["stride8", "stride16"],
        dynamic_axes={
            "image": {0: "n", 2: "h", 3: "w"},
            "stride8": {0: "n", 2: "h8", 3: "w8"},
            "stride16": {0: "n", 2: "h16", 3: "w16"},
        },
    )
    card = {**result.card, "sha256": file_digest(onnx_path), "bytes": onnx_path.stat().st_size}
    (out / "student.json").write_text(json.dumps(card, indent=2) + "\n")
