"""Distillation on a tiny folder: the same stream after every interruption, and never half a checkpoint."""

import json
import os
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge_daemon.artefact.pictures import encode_png  # noqa: E402
from edge_daemon.errors import PictureError  # noqa: E402
from export.cli import main  # noqa: E402
from export.errors import BackboneError, ExportError, PicturesError  # noqa: E402
from export.fuse import fuse  # noqa: E402
from export.graph import cpu_session, describe_raw, sha256_of  # noqa: E402
from export.torch import distil, photographs  # noqa: E402
from export.torch.distil import Distillation, DistilSettings, TeacherCard, export_student  # noqa: E402
from export.torch.inherit import fold_norms, take_over, thin  # noqa: E402
from export.torch.photographs import Batches, augment, check_readable, find_photographs  # noqa: E402
from export.torch.student import Widths  # noqa: E402
from export.torch.teacher import export_graph  # noqa: E402

CARD = TeacherCard("tiny", "1" * 64, ("a", "b"))


class TinyTeacher(torch.nn.Module):
    """Random features at stride 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = torch.nn.Conv2d(3, 6, 9, 8, 4)
        self.b = torch.nn.Conv2d(6, 10, 3, 2, 1)
        for p in self.parameters():
            torch.nn.init.normal_(p, 0, 0.2, generator=generator)

    def forward(self, x):
        a = self.a(x)
        return a, self.b(a)


def teach(batch):
    with torch.no_grad():
        return TINY(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255)


TINY = TinyTeacher()
SETTINGS = DistilSettings(steps=4, batch=2, sizes_px=(32, 48), checkpoint_every=2, held_out=0.3)


@pytest.fixture(autouse=True)
def small_and_steady(monkeypatch):
    """Few statistics, and one thread: sums come out the same, and busy machines do not wait for each other."""
    monkeypatch.setattr(distil, "STATISTICS_BATCHES", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(10):
        shape = (40, 56) if i % 3 == 0 else (56 + i, 40, 3)
        path = out / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(rng.integers(0, 256, shape, np.uint8)))
    return out


def distillation(folder: Path, checkpoint: Path, settings: DistilSettings = SETTINGS, **more) -> Distillation:
    pictures = find_photographs(folder, settings.held_out)
    return Distillation(teach, CARD, pictures, settings, checkpoint, device=torch.device("cpu"), **more)


def with_steps(steps: int) -> DistilSettings:
    return DistilSettings(steps=steps, batch=2, sizes_px=(32, 48), checkpoint_every=2, held_out=0.3)


def weights_of(d: Distillation) -> dict[str, np.ndarray]:
    return {k: v.numpy().copy() for k, v in d.average.state_dict().items()}


def test_the_stream_of_batches_is_a_function_of_the_step_however_many_threads_make_it(folder):
    files = find_photographs(folder, 0).learn

    def stream(first_step, workers):
        with Batches(files, seed=3, batch=2, sizes_px=(32, 48), first_step=first_step, workers=workers) as batches:
            return list(islice(iter(batches), 6 - first_step))

    whole = stream(0, 1)
    assert {b.shape[1] for b in whole} == {32, 48}
    for other in (stream(0, 3), [*whole[:4], *stream(4, 2)]):
        assert all(np.array_equal(a, b) for a, b in zip(whole, other, strict=True))


def test_a_run_in_two_parts_ends_where_one_in_one_part_does(folder, tmp_path):
    whole = distillation(folder, tmp_path / "whole.pt")
    assert whole.run(progress=False)
    first = distillation(folder, tmp_path / "parts.pt")
    assert not first.run(progress=False, stop=lambda: first.step == 2)
    second = distillation(folder, tmp_path / "parts.pt")
    assert second.step == 2
    assert second.run(progress=False)
    for key, value in weights_of(whole).items():
        np.testing.assert_allclose(weights_of(second)[key], value, rtol=1e-4, atol=1e-5)
    assert second.loss.stride_8 == pytest.approx(whole.loss.stride_8, rel=1e-4)


def test_more_steps_go_on_with_a_finished_run_and_fewer_leave_it_alone(folder, tmp_path):
    distillation(folder, tmp_path / "c.pt").run(progress=False)
    longer = distillation(folder, tmp_path / "c.pt", with_steps(6))
    assert longer.step == 4
    longer.run(progress=False)
    assert longer.step == 6
    shorter = distillation(folder, tmp_path / "c.pt", with_steps(1))
    assert shorter.run(progress=False)
    assert shorter.step == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"batch": 3}, "batch was 2"),
        ({"sizes_px": (64,)}, "sizes"),
        ({"procedural": 0.5}, "procedural was 0.0, is 0.5"),
    ],
)
def test_a_changed_stream_is_not_gone_on_with(folder, tmp_path, change, says):
    distillation(folder, tmp_path / "c.pt", with_steps(1)).run(progress=False)
    values = {"steps": 4, "batch": 2, "sizes_px": (32, 48), "held_out": 0.3, **change}
    with pytest.raises(ExportError, match=says):
        distillation(folder, tmp_path / "c.pt", DistilSettings(**values))


def test_another_teacher_or_other_pictures_are_not_gone_on_with(folder, tmp_path):
    distillation(folder, tmp_path / "c.pt", with_steps(1)).run(progress=False)
    pictures = find_photographs(folder, 0.3)
    other = TeacherCard("other", "2" * 64, ("a", "b"))
    with pytest.raises(ExportError, match="teacher was tiny, is other"):
        Distillation(teach, other, pictures, SETTINGS, tmp_path / "c.pt")
    fewer = find_photographs(folder / "class0", 0.3)
    with pytest.raises(ExportError, match="pictures_sha256"):
        Distillation(teach, CARD, fewer, SETTINGS, tmp_path / "c.pt")


def test_a_checkpoint_of_the_first_version_is_gone_on_with_and_claims_no_held_out_loss(folder, tmp_path):
    path = tmp_path / "c.pt"
    distillation(folder, path, with_steps(2)).run(progress=False)
    state = torch.load(path, weights_only=True)
    state.pop("settings")
    state["identity"] = {"teacher": "said otherwise", "teacher_sha256": CARD.sha256, "data": "some"}
    torch.save(state, path)
    again = distillation(folder, path)
    assert again.step == 2
    again.run(progress=False)
    assert again.held_out_loss() is None
    card = again.card(export_student(again, "small", ""))
    assert (card["data"]["held_out"], card["training"]["held_out"], card["loss"]["held_out"]) == (0, 0.0, None)


def test_a_full_disk_leaves_the_last_checkpoint_whole(folder, tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    distillation(folder, path, with_steps(2)).run(progress=False)
    before = path.read_bytes()

    def half(_state, file):
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(ExportError, match="No space left"):
            distillation(folder, path).run(progress=False)
    assert path.read_bytes() == before
    assert distillation(folder, path).step == 2


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_distil as t
t.distil.STATISTICS_BATCHES = 1
t.torch.set_num_threads(1)
d = t.distillation(Path({folder!r}), Path({checkpoint!r}), t.DistilSettings(
    steps=100000, batch=2, sizes_px=(32, 48), checkpoint_every=1, held_out=0.3))
save = d.save
def saved():
    save()
    print(d.step, flush=True)
d.save = saved
d.run(progress=False)
"""


def test_a_process_killed_while_it_saves_leaves_a_checkpoint_that_goes_on(folder, tmp_path):
    checkpoint = tmp_path / "c.pt"
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(folder), checkpoint=str(checkpoint))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        steps = [int(line) for line in islice(child.stdout, 5)]
        child.kill()
    again = distillation(folder, checkpoint)
    assert again.step >= steps[-1] == 5


def test_a_damaged_checkpoint_is_named_and_not_overwritten(folder, tmp_path):
    path = tmp_path / "c.pt"
    path.write_bytes(b"PK\x03\x04 no checkpoint")
    with pytest.raises(ExportError, match=r"c\.pt is no readable checkpoint"):
        distillation(folder, path)
    assert path.exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(folder, tmp_path):
    path = tmp_path / "c.pt"
    distillation(folder, path, with_steps(2)).run(progress=False)
    before = path.read_bytes()
    bad = distillation(folder, path)
    bad.teacher = lambda batch: tuple(f * float("nan") for f in teach(batch))
    with pytest.raises(ExportError, match="not finite at step 2"):
        bad.run(progress=False)
    assert path.read_bytes() == before


def test_a_new_run_can_begin_with_the_student_of_another(folder, tmp_path):
    first = distillation(folder, tmp_path / "a.pt")
    first.run(progress=False)
    second = distillation(folder, tmp_path / "b.pt", start_from=tmp_path / "a.pt")
    assert second.step == 0
    for a, b in zip(first.average.parameters(), second.student.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_student_taken_over_says_the_same_in_the_units_of_other_pictures(folder, tmp_path):
    first = distillation(folder, tmp_path / "a.pt")
    first.run(progress=False)
    other = DistilSettings(steps=4, batch=2, sizes_px=(32, 48), seed=5, held_out=0.3)
    second = distillation(folder, tmp_path / "b.pt", other, start_from=tmp_path / "a.pt")
    assert not torch.equal(first.channels.mean[0], second.channels.mean[0])
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for before, after in zip(first.model()(x), second.model()(x), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_from_before_procedural_pictures_is_not_gone_on_with_on_them(folder, tmp_path):
    path = tmp_path / "c.pt"
    distillation(folder, path, with_steps(1)).run(progress=False)
    state = torch.load(path, weights_only=True)
    del state["settings"]["procedural"]
    torch.save(state, path)
    assert distillation(folder, path).step == 1
    changed = DistilSettings(steps=4, batch=2, sizes_px=(32, 48), held_out=0.3, procedural=0.5)
    with pytest.raises(ExportError, match=r"procedural was 0\.0, is 0\.5"):
        distillation(folder, path, changed)


def test_a_run_whose_pictures_were_made_by_earlier_rules_is_not_gone_on_with(folder, tmp_path):
    path = tmp_path / "c.pt"
    made = DistilSettings(steps=1, batch=2, sizes_px=(32,), held_out=0.3, procedural=1.0)
    distillation(folder, path, made).run(progress=False)
    assert distillation(folder, path, made).step == 1
    state = torch.load(path, weights_only=True)
    del state["settings"]["rules"]
    torch.save(state, path)
    with pytest.raises(ExportError, match="rules was 1, is 2"):
        distillation(folder, path, made)


def test_a_run_with_procedural_pictures_and_embedding_loss_in_two_parts_ends_like_one(folder, tmp_path):
    settings = DistilSettings(
        steps=4, batch=2, sizes_px=(32, 48), checkpoint_every=2, held_out=0.3, procedural=0.5, embedding_loss=1.0
    )
    whole = distillation(folder, tmp_path / "whole.pt", settings)
    assert whole.run(progress=False)
    first = distillation(folder, tmp_path / "parts.pt", settings)
    assert not first.run(progress=False, stop=lambda: first.step == 2)
    second = distillation(folder, tmp_path / "parts.pt", settings)
    assert second.run(progress=False)
    for key, value in weights_of(whole).items():
        np.testing.assert_allclose(weights_of(second)[key], value, rtol=1e-4, atol=1e-5)


def test_photographs_and_made_pictures_are_mixed_by_the_share_and_alike_for_any_number_of_threads(folder):
    files = find_photographs(folder, 0).learn

    def stream(share, workers=1):
        with Batches(
            files, seed=3, batch=2, sizes_px=(32,), first_step=0, workers=workers, procedural=share
        ) as batches:
            return list(islice(iter(batches), 6))

    photographs_only, mixed, made = stream(0.0), stream(0.5), stream(1.0)
    assert all(np.array_equal(a, b) for a, b in zip(mixed, stream(0.5, 3), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(photographs_only, made, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(photographs_only, mixed, strict=True))


def test_the_embedding_loss_is_the_error_of_the_embeddings_that_a_fused_backbone_gives():
    generator = torch.Generator().manual_seed(0)
    std = (torch.rand(6, generator=generator) + 0.1, torch.rand(10, generator=generator) + 0.1)
    maps = [[torch.randn(2, 6, 8, 8, generator=generator), torch.randn(2, 10, 4, 4, generator=generator)] for _ in "st"]
    zero = (torch.zeros(6), torch.zeros(10))
    target = [t * d.view(1, -1, 1, 1) for t, d in zip(maps[1], std, strict=True)]
    errors = distil.errors_of(maps[0], target, distil.Channels(zero, std, (False, False)))

    def embedding(layers):
        pooled = [
            torch.nn.functional.avg_pool2d(f * d.view(1, -1, 1, 1), 3, 1, 1) for f, d in zip(layers, std, strict=True)
        ]
        upper = torch.nn.functional.interpolate(pooled[1], (8, 8), mode="bilinear", align_corners=False)
        return torch.cat([pooled[0], upper], 1)

    distance = (embedding(maps[0]) - embedding(maps[1])).square().sum(1).mean()
    variance = sum(d.square().sum() for d in std)
    wrong = distil.embedding_errors(errors, std)
    torch.testing.assert_close(distil.embedding_loss(wrong, std), distance / variance)


def test_the_picture_loss_counts_what_is_wrong_between_patches_in_units_of_each_pictures_own_variance():
    generator = torch.Generator().manual_seed(0)
    std = (torch.ones(6), torch.ones(10))
    teacher = [torch.randn(2, 6, 8, 8, generator=generator), torch.randn(2, 10, 4, 4, generator=generator)]
    alike = [torch.ones_like(t) for t in teacher]
    assert distil.picture_loss(alike, teacher, std) == pytest.approx(0, abs=1e-6)
    wrong = distil.pooled([torch.randn(t.shape, generator=generator) for t in teacher])
    shifted = [w + 3 for w in wrong]
    torch.testing.assert_close(
        distil.picture_loss(shifted, teacher, std), distil.picture_loss(wrong, teacher, std), rtol=1e-4, atol=1e-5
    )
    strong = [t * 10 for t in teacher]
    assert distil.picture_loss(wrong, strong, std) < 0.1 * distil.picture_loss(wrong, teacher, std)
    empty = [torch.zeros_like(t) for t in teacher]
    assert torch.isfinite(distil.picture_loss(wrong, empty, std))


def old(state):
    """A checkpoint of the first version: without the blocks that came later."""
    return {k: v for k, v in state.items() if not k.startswith(("stage8.3.", "stage16.3."))}


def lively_student(generator):
    """A student whose norms have seen something, so that folding them has something to get wrong."""
    student = distil.Student((6, 10))
    with torch.no_grad():
        for key, value in student.state_dict().items():
            if key.endswith(("running_mean", "1.bias")):
                value.normal_(0, 0.3, generator=generator)
            elif key.endswith(("running_var", "1.weight")):
                value.uniform_(0.5, 2, generator=generator)
    return student.eval()


@pytest.mark.parametrize("norms", [True, False])
def test_an_older_smaller_student_grows_without_a_change_of_what_it_says(norms):
    generator = torch.Generator().manual_seed(1)
    before = lively_student(generator)
    smaller = distil.Student((6, 10)).eval()
    smaller.load_state_dict(before.state_dict())
    smaller.stage8, smaller.stage16 = smaller.stage8[:3], smaller.stage16[:3]
    grown = distil.Student((6, 10), norms)
    take_over(grown, old(before.state_dict()))
    x = torch.randn(2, 3, 64, 96, generator=generator)
    with torch.no_grad():
        for want, got in zip(smaller(x), grown.eval()(x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


WIDE = Widths(64, (96, 160, 160), (192, 320, 320))  # of the first version


def test_a_wider_student_is_thinned_by_channels_that_say_what_others_say():
    """Twins: every hidden channel that is to go has its like among those that stay."""
    generator = torch.Generator().manual_seed(2)
    own = Widths()
    small = distil.Student((6, 10), norms=False).eval()
    wide = distil.Student((6, 10), norms=False, widths=Widths(64, (96, 160, 160, 160), (192, 320, 320, 320))).eval()
    state = wide.state_dict()
    for key, value in small.state_dict().items():
        hidden = state[key].shape[:2] != value.shape[:2]
        if ".body.2.0.weight" in key and hidden:
            more = state[key].shape[1] - value.shape[1]
            state[key] = torch.cat([value, 0.5 * value[:, :more]], 1)
            state[key][:, :more] *= 0.5
        elif hidden:
            state[key] = torch.cat([value, value[: state[key].shape[0] - value.shape[0]]])
        else:
            state[key] = value
    wide.load_state_dict(state)
    pictures = [torch.randn(2, 3, 128, 128, generator=generator) for _ in range(4)]
    thinned = distil.Student((6, 10), norms=False).eval()
    thinned.load_state_dict(thin(wide, own, pictures))
    x = torch.randn(2, 3, 64, 96, generator=generator)
    with torch.no_grad():
        for want, got in zip(wide(x), thinned(x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-3 * float(want.abs().max()))


def test_a_student_of_the_first_version_is_thinned_and_grows_and_says_nearly_the_same():
    generator = torch.Generator().manual_seed(3)
    first = distil.Student((6, 10), widths=WIDE).eval()
    now = distil.Student((6, 10), norms=False)
    pictures = [torch.randn(2, 3, 64, 64, generator=generator) for _ in range(8)]
    take_over(now, first.state_dict(), pictures)
    x = torch.randn(4, 3, 64, 64, generator=generator)
    with torch.no_grad():
        for want, got in zip(first(x), now.eval()(x), strict=True):
            assert (got - want).square().mean() < 0.05 * want.var()


def test_a_wider_student_needs_pictures_to_be_thinned_by_and_no_norms():
    wide = distil.Student((6, 10), widths=WIDE).state_dict()
    with pytest.raises(RuntimeError, match="no pictures to thin it by"):
        take_over(distil.Student((6, 10), norms=False), wide)
    with pytest.raises(RuntimeError, match="size mismatch"):
        take_over(distil.Student((6, 10)), wide, [torch.randn(1, 3, 32, 32)])
    with pytest.raises(RuntimeError, match="not the weights of a student"):
        take_over(distil.Student((6, 10)), {"weight": torch.zeros(1)})


def test_a_run_can_begin_with_a_wider_student(folder, tmp_path):
    before = distillation(folder, tmp_path / "a.pt", with_steps(1))
    before.run(progress=False)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    wide = distil.Student((6, 10), widths=WIDE).state_dict()
    torch.save({**state, "student": wide, "average": wide}, tmp_path / "wide.pt")
    folded = DistilSettings(steps=1, batch=2, sizes_px=(32, 48), held_out=0.3, norms=False)
    after = distillation(folder, tmp_path / "b.pt", folded, start_from=tmp_path / "wide.pt")
    assert after.student.widths == Widths()
    with pytest.raises(ExportError, match=r"wide\.pt holds another kind of student .*--fold-norms"):
        distillation(folder, tmp_path / "c.pt", start_from=tmp_path / "wide.pt")


def test_new_blocks_learn_from_the_first_step_on():
    grown = distil.Student((6, 10), norms=False)
    take_over(grown, old(lively_student(torch.Generator().manual_seed(1)).state_dict()))
    sum(f.square().mean() for f in grown(torch.randn(2, 3, 64, 64))).backward()
    for block in (grown.stage8[3], grown.stage16[3]):
        assert block.body[2][0].weight.grad.abs().max() > 0


def test_a_student_of_another_shape_is_not_taken_over():
    with pytest.raises(RuntimeError, match="size mismatch"):
        take_over(distil.Student((6, 10)), distil.Student((8, 10)).state_dict())
    folded = fold_norms(distil.Student((6, 10)).state_dict())
    with pytest.raises(RuntimeError, match="issing key"):
        take_over(distil.Student((6, 10)), folded)


def test_a_run_goes_on_from_another_with_its_norms_folded_and_not_without_another(folder, tmp_path):
    first = distillation(folder, tmp_path / "a.pt")
    first.run(progress=False)
    folded = DistilSettings(steps=4, batch=2, sizes_px=(32, 48), held_out=0.3, norms=False)
    second = distillation(folder, tmp_path / "b.pt", folded, start_from=tmp_path / "a.pt")
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for before, after in zip(first.model()(x), second.model()(x), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    second.run(progress=False)
    assert not [key for key in second.average.state_dict() if "running" in key]
    raw = export_student(second, "small", "")
    assert second.card(raw)["training"]["norms"] is False
    with pytest.raises(ExportError, match="begins with another's"):
        distillation(folder, tmp_path / "c.pt", folded)


def test_the_checkpoint_of_a_smaller_student_is_no_run_to_go_on_with_but_one_to_begin_with(folder, tmp_path):
    path = tmp_path / "c.pt"
    distillation(folder, path, with_steps(1)).run(progress=False)
    state = torch.load(path, weights_only=True)
    torch.save({**state, "student": old(state["student"]), "average": old(state["average"])}, path)
    with pytest.raises(ExportError, match="give this checkpoint as --start-from"):
        distillation(folder, path)
    assert distillation(folder, tmp_path / "new.pt", start_from=path).step == 0


def test_the_weight_of_the_coarser_layer_scales_what_is_written_and_nothing_that_is_learned(folder, tmp_path):
    run = distillation(folder, tmp_path / "c.pt")
    run.run(progress=False)
    weighed = DistilSettings(
        steps=4, batch=2, sizes_px=(32, 48), checkpoint_every=2, held_out=0.3, stride_16_weight=0.5
    )
    again = distillation(folder, tmp_path / "c.pt", weighed)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (fine, coarse), (same, half) = run.model()(x), again.model()(x)
    torch.testing.assert_close(same, fine)
    torch.testing.assert_close(half, 0.5 * coarse)
    assert again.held_out_loss() == run.held_out_loss()


def test_a_teacher_that_is_never_negative_makes_a_student_that_is_not_either(folder, tmp_path):
    pictures = find_photographs(folder, 0.3)
    run = Distillation(lambda b: tuple(f.relu() for f in teach(b)), CARD, pictures, SETTINGS, tmp_path / "c.pt")
    assert run.channels.rectified == (True, True)
    run.run(progress=False)
    raw = export_student(run, "small", "")
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32) * 100
    outputs = cpu_session(raw.model_bytes, "s").run(None, {"image": x})
    assert all(f.min() == 0 < f.max() for f in outputs)
    assert distillation(folder, tmp_path / "d.pt").channels.rectified == (False, False)


def test_the_exported_student_equals_torch_and_fuses_at_any_size(folder, tmp_path):
    run = distillation(folder, tmp_path / "c.pt")
    run.run(progress=False)
    raw = export_student(run, "small", "CC0")
    x = np.random.default_rng(0).standard_normal((3, 3, 96, 64)).astype(np.float32)
    with torch.no_grad():
        want = [f.numpy() for f in run.model()(torch.from_numpy(x))]
    for got, w in zip(cpu_session(raw.model_bytes, "s").run(None, {"image": x}), want, strict=True):
        assert np.abs(got - w).max() <= 1e-5 * np.abs(w).max()
    fused = fuse(raw, (75, 50), "anomalib")
    assert (fused.grid, fused.dim, fused.licence) == ((10, 7), 16, "CC0")
    assert len(raw.model_bytes) < 4_000_000


def test_the_shipped_students_size_is_within_what_the_package_allows():
    distil.check_size(distil.Student((128, 256)))
    with pytest.raises(BackboneError, match="too many channels"):
        distil.check_size(distil.Student((512, 1024)))


def test_the_held_out_share_depends_on_names_alone_and_is_never_drawn(folder, tmp_path):
    pictures = find_photographs(folder, 0.3)
    assert pictures.held_out
    assert not set(pictures.learn) & set(pictures.held_out)
    assert pictures.count == 10
    assert find_photographs(folder, 0.3) == pictures
    assert find_photographs(folder, 0).held_out == ()
    run = distillation(folder, tmp_path / "c.pt")
    assert run._batches(0).files == pictures.learn
    loss = run.held_out_loss()
    assert loss is not None
    assert loss.stride_8 > 0


def test_unreadable_pictures_are_all_named_before_the_training_begins(folder, tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "good.png").write_bytes((folder / "class0" / "0.png").read_bytes())
    with pytest.raises(PicturesError, match=r"2 of 3 pictures") as caught:
        check_readable(find_photographs(tmp_path, 0), 2, progress=False)
    assert "a.png" in str(caught.value)
    assert "b.jpg" in str(caught.value)


def test_a_picture_that_goes_bad_during_the_run_stops_it_by_name(tmp_path):
    files = (tmp_path / "gone.png",)
    with (
        Batches(files, seed=0, batch=1, sizes_px=(32,), first_step=0) as batches,
        pytest.raises(PictureError, match=r"gone\.png"),
    ):
        next(iter(batches))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(PicturesError, match="no pictures to learn from"):
        find_photographs(tmp_path, 0.05)


@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 200, 3), (200, 9, 3), (64, 64, 3)])
def test_augmentation_takes_pictures_of_any_shape(shape):
    rng = random.Random(0)
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    views = [augment(picture, 32, rng) for _ in range(30)]
    assert all(v.shape == (32, 32, 3) and v.dtype == np.uint8 for v in views)
    assert photographs.centre_view(picture, 32).shape == (32, 32, 3)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"batch": 0},
        {"sizes_px": (100,)},
        {"sizes_px": ()},
        {"learning_rate": -1.0},
        {"procedural": 1.1},
        {"procedural": float("nan")},
        {"embedding_loss": -1.0},
        {"embedding_loss": float("inf")},
        {"picture_loss": -1.0},
        {"stride_16_weight": 0.0},
        {"stride_16_weight": float("inf")},
        {"picture_loss": float("nan")},
    ],
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ExportError):
        DistilSettings(**values)


@pytest.fixture
def command(folder, tmp_path):
    graph = tmp_path / "tiny.onnx"
    graph.write_bytes(export_graph(TINY, (32, 32), ["a", "b"], dynamic=True))
    return [
        "distil", "--teacher-onnx", str(graph), "--outputs", "a,b", "--input-normalisation", "unit",
        "--images", str(folder), "--out", str(tmp_path / "out"), "--batch", "2", "--sizes", "32",
        "--held-out", "0.3", "--procedural", "0.5", "--embedding-loss", "0.5", "--licence", "CC0", "--device", "cpu",
    ]  # fmt: skip


def test_the_command_writes_graph_and_card_and_goes_on_with_more_steps(command, tmp_path, capsys):
    assert main([*command, "--steps", "2"]) == 0
    assert main([*command, "--steps", "3", "--json"]) == 0
    out = tmp_path / "out"
    card = json.loads((out / "student.json").read_text())
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :]) == card
    raw = describe_raw(out / "student.onnx")
    assert card["sha256"] == raw.sha256 == sha256_of((out / "student.onnx").read_bytes())
    assert card["training"]["steps"] == 3
    assert (card["training"]["procedural"], card["training"]["embedding_loss"]) == (0.5, 0.5)
    assert card["teacher"]["sha256"] == sha256_of((tmp_path / "tiny.onnx").read_bytes())
    assert card["data"]["pictures"] == 10
    assert card["data"]["folder"].startswith("photographs")
    assert card["loss"]["held_out"]["stride_8"] > 0
    assert card["licence"] == "CC0"
    assert str(tmp_path) not in json.dumps(card)


def test_the_command_stops_between_two_steps_on_an_interrupt(command, tmp_path, monkeypatch, capsys):
    advance = Distillation._advance

    def interrupted(self, *example):
        advance(self, *example)
        os.kill(os.getpid(), 2)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "_advance", interrupted)
        assert main([*command, "--steps", "3"]) == 130
    assert "stopped at step 1 of 3; the same command goes on" in capsys.readouterr().err
    assert main([*command, "--steps", "3"]) == 0
    assert json.loads((tmp_path / "out" / "student.json").read_text())["training"]["steps"] == 3


def test_the_command_says_what_is_missing(command, tmp_path, capsys):
    without = [c for c in command if c not in ("--input-normalisation", "unit")]
    assert main(without) == 2
    assert "--input-normalisation" in capsys.readouterr().err
    one = [("a" if c == "a,b" else c) for c in command]
    assert main(one) == 2
    assert "two layers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
