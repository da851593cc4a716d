"""A teacher asked once: what is kept is what it said, filling survives a kill, and nothing foreign is learned from."""

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge_daemon.artefact.pictures import encode_png  # noqa: E402
from export.cli import main  # noqa: E402
from export.errors import BackboneError, ExportError  # noqa: E402
from export.torch import cache as cache_module  # noqa: E402
from export.torch import distil  # noqa: E402
from export.torch.cache import SHARD_PICTURES, TeacherCache  # noqa: E402
from export.torch.distil import Distillation, DistilSettings, TeacherCard, cache_source, open_cache  # noqa: E402
from export.torch.photographs import find_photographs  # noqa: E402
from export.torch.teacher import export_graph  # noqa: E402

CARD = TeacherCard("tiny", "1" * 64, ("a", "b"))
SETTINGS = DistilSettings(
    steps=4, batch=8, sizes_px=(32, 48), checkpoint_every=2, held_out=0.3, cached=4 * SHARD_PICTURES
)


class TinyTeacher(torch.nn.Module):
    """Features at stride 8 and 16 that are never negative, channels last in memory as a CPU computes them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = torch.nn.Conv2d(3, 6, 9, 8, 4)
        self.b = torch.nn.Conv2d(6, 10, 3, 2, 1)
        for p in self.parameters():
            torch.nn.init.normal_(p, 0, 0.2, generator=generator)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        a = self.a(x.contiguous(memory_format=torch.channels_last)).relu()
        return a, self.b(a).relu()


TINY = TinyTeacher()


def teach(batch):
    with torch.no_grad():
        return TINY(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(10):
        (out / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (40 + i, 56, 3), np.uint8)))
    return out


def opened(folder: Path, where: Path, settings: DistilSettings = SETTINGS) -> TeacherCache:
    return open_cache(where, CARD, find_photographs(folder, settings.held_out), settings)


def fill(cache: TeacherCache, folder: Path, teacher=teach, settings: DistilSettings = SETTINGS, **more) -> bool:
    source = cache_source(find_photographs(folder, settings.held_out), settings)
    return cache.fill(teacher, source, progress=False, **more)


@pytest.fixture(scope="module")
def filled(folder, tmp_path_factory) -> TeacherCache:
    cache = opened(folder, tmp_path_factory.mktemp("kept") / "cache")
    assert fill(cache, folder)
    return cache


def distillation(folder: Path, checkpoint: Path, cache: TeacherCache | None, **changed) -> Distillation:
    values = {"steps": 4, "batch": 8, "sizes_px": (32, 48), "checkpoint_every": 2, "held_out": 0.3, **changed}
    settings = DistilSettings(cached=0 if cache is None else cache.pictures, picture_loss=1.0, **values)
    pictures = find_photographs(folder, settings.held_out)
    return Distillation(teach, CARD, pictures, settings, checkpoint, device=torch.device("cpu"), cache=cache)


def test_what_is_kept_is_what_the_teacher_says_of_the_kept_pictures(filled):
    for pictures, features in islice(filled.batches(8, 0), 40):
        for kept, said in zip(features, teach(pictures), strict=True):
            torch.testing.assert_close(kept, said, rtol=1e-3, atol=1e-4)


def test_an_epoch_sees_every_picture_at_most_once_and_another_epoch_sees_them_in_another_order(filled):
    batches = filled.pictures // 8
    seen = [p.tobytes() for pictures, _ in islice(filled.batches(8, 0), batches) for p in pictures]
    assert len(set(seen)) == len(seen) == filled.pictures
    again = [p.tobytes() for pictures, _ in islice(filled.batches(8, batches), batches) for p in pictures]
    assert set(again) == set(seen)
    assert again != seen


@pytest.mark.parametrize("first_step", [1, 9, 31, 33, 70])
def test_the_batches_are_a_function_of_the_step(filled, first_step):
    whole = list(islice(filled.batches(8, 0), first_step + 3))[first_step:]
    later = list(islice(filled.batches(8, first_step), 3))
    for (p, f), (q, g) in zip(whole, later, strict=True):
        assert np.array_equal(p, q)
        assert all(torch.equal(a, b) for a, b in zip(f, g, strict=True))


def test_filling_that_was_stopped_goes_on_and_ends_with_the_same_files(folder, filled, tmp_path):
    cache = opened(folder, tmp_path / "cache")
    asked = []

    def counted(batch):
        asked.append(len(batch))
        return teach(batch)

    assert not fill(cache, folder, counted, stop=lambda: len(cache.missing()) == 2)
    assert sum(asked) == 2 * SHARD_PICTURES
    assert fill(opened(folder, tmp_path / "cache"), folder, counted)
    assert sum(asked) == 4 * SHARD_PICTURES
    for number in range(4):
        assert cache.path(number).read_bytes() == filled.path(number).read_bytes()


def test_a_full_disk_leaves_no_half_file_and_says_what_to_do(folder, tmp_path, monkeypatch):
    cache = opened(folder, tmp_path / "cache")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "write_whole", full)
        with pytest.raises(ExportError, match=r"000000\.safetensors cannot be written .* make room"):
            fill(cache, folder)
    assert cache.missing() == [0, 1, 2, 3]


@pytest.mark.parametrize("number", [70000.0, float("nan")])
def test_features_that_16_bits_do_not_hold_are_refused(folder, tmp_path, number):
    cache = opened(folder, tmp_path / "cache")
    with pytest.raises(BackboneError, match="train without --cache"):
        fill(cache, folder, lambda batch: tuple(f * 0 + number for f in teach(batch)))
    assert len(cache.missing()) == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [({"seed": 1}, "seed was 0, is 1"), ({"procedural": 0.5}, "procedural was"), ({"sizes_px": (32,)}, "sizes_px")],
)
def test_a_cache_of_other_pictures_is_not_learned_from(folder, filled, change, says):
    values = {"batch": 8, "sizes_px": (32, 48), "held_out": 0.3, "cached": 256, **change}
    with pytest.raises(ExportError, match=says):
        opened(folder, filled.folder, DistilSettings(**values))


def test_a_cache_made_by_earlier_rules_is_not_learned_from(folder, tmp_path):
    made = DistilSettings(batch=8, sizes_px=(32,), held_out=0.3, cached=64, procedural=1.0)
    path = opened(folder, tmp_path / "cache", made).folder / "cache.json"
    stated = json.loads(path.read_text())
    del stated["rules"]
    path.write_text(json.dumps(stated))
    with pytest.raises(ExportError, match="rules was not stated, is 2"):
        opened(folder, tmp_path / "cache", made)


def test_a_cache_of_another_teacher_is_not_learned_from(folder, filled):
    other = TeacherCard("tiny", "2" * 64, ("a", "b"))
    with pytest.raises(ExportError, match="teacher_sha256 was"):
        open_cache(filled.folder, other, find_photographs(folder, 0.3), SETTINGS)


def test_a_folder_with_other_things_is_left_alone(folder, tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(ExportError, match="neither empty nor a cache"):
        opened(folder, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.txt"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "other"}'])
def test_a_damaged_description_is_named(folder, tmp_path, text):
    (tmp_path / "cache.json").write_text(text)
    with pytest.raises(ExportError, match=f"{tmp_path}.*ame another --cache"):
        opened(folder, tmp_path)


def test_a_damaged_file_and_one_of_another_size_are_named(folder, tmp_path):
    cache = opened(folder, tmp_path / "cache")
    fill(cache, folder)
    cache.path(1).write_bytes(cache.path(0).read_bytes())
    with pytest.raises(ExportError, match=r"000001\.safetensors is no shard of this cache"):
        cache.read(1)
    cache.path(0).write_bytes(cache.path(2).read_bytes()[:-100])
    with pytest.raises(ExportError, match=r"000000\.safetensors cannot be read"):
        cache.read(0)


def test_batches_larger_than_a_file_are_refused(folder, tmp_path):
    with pytest.raises(ExportError, match="64 at most"):
        opened(folder, tmp_path / "cache", DistilSettings(batch=65, cached=64))
    assert not (tmp_path / "cache").exists()


def test_a_cached_run_in_two_parts_ends_where_one_in_one_part_does(folder, filled, tmp_path):
    whole = distillation(folder, tmp_path / "whole.pt", filled)
    assert whole.run(progress=False)
    first = distillation(folder, tmp_path / "parts.pt", filled)
    assert not first.run(progress=False, stop=lambda: first.step == 2)
    second = distillation(folder, tmp_path / "parts.pt", filled)
    assert second.step == 2
    assert second.run(progress=False)
    for a, b in zip(whole.average.parameters(), second.average.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert second.channels.rectified == (True, True)


def test_a_run_does_not_go_on_with_more_or_fewer_kept_pictures_nor_without(folder, filled, tmp_path):
    distillation(folder, tmp_path / "c.pt", filled, steps=1).run(progress=False)
    with pytest.raises(ExportError, match="cached was 256, is 0"):
        distillation(folder, tmp_path / "c.pt", None)


def test_the_command_fills_a_cache_once_and_learns_from_it(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distil, "CACHED_STATISTICS_BATCHES", 4)
    graph = tmp_path / "tiny.onnx"
    graph.write_bytes(export_graph(TinyTeacher(), (32, 32), ["a", "b"], dynamic=True))
    command = [
        "distil", "--teacher-onnx", str(graph), "--outputs", "a,b", "--input-normalisation", "unit",
        "--images", str(folder), "--out", str(tmp_path / "out"), "--batch", "4", "--sizes", "32", "--held-out", "0.3",
        "--cache", str(tmp_path / "cache"), "--cache-pictures", "100", "--picture-loss", "1", "--device", "cpu",
    ]  # fmt: skip
    write = TeacherCache._write

    def interrupted(self, number, pictures, teacher):
        write(self, number, pictures, teacher)
        os.kill(os.getpid(), 2)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherCache, "_write", interrupted)
        assert main([*command, "--steps", "2"]) == 130
    assert "stopped while the cache was filled; the same command goes on" in capsys.readouterr().err
    assert main([*command, "--steps", "2"]) == 0
    assert sorted(p.name for p in (tmp_path / "cache").glob("*.safetensors")) == [
        "000000.safetensors",
        "000001.safetensors",
    ]
    assert (tmp_path / "out" / "student.onnx").exists()
    assert '"cached": 100' in (tmp_path / "out" / "student.json").read_text()
