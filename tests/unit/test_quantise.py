"""int8: the graph says what it is, computes nearly the same, and its cost is told before it is used."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_daemon.artefact.pictures import encode_png
from edge_daemon.artefact.recipe import load_recipe
from edge_daemon.core.conformal import clopper_pearson
from export.backbone import resolve_backbone
from export.cli import main
from export.commands.backbone import _chance_lines
from export.errors import BackboneError
from export.fuse import FusedBackbone, describe, fuse
from export.graph import IMAGENET, cpu_session, load_graph, raw_backbone, read_metadata
from export.make_backbone import from_embedded
from export.quantisation_cost import QuantisationCost
from export.quantise import _what_to_quantise, cpu_class, damaged, quantise

SIZE = (64, 64)


def network(*, pool: bool = False, layers: int = 3) -> onnx.ModelProto:
    """Convolutions with ReLU, the first of stride 2, the others of 2 as far as stride 8."""
    rng = np.random.default_rng(0)
    nodes, weights, value, channels = [], [], "x", 3
    for i in range(layers):
        out = 16 * (i + 1)
        kernel = rng.standard_normal((out, channels, 3, 3)) / np.sqrt(channels * 9 / 2)
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{i}"))
        nodes.append(
            helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1] * 4, strides=[2, 2])
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        value, channels = f"r{i}", out
        if pool and i == 0:
            pooling = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1]}
            nodes.append(helper.make_node("MaxPool", [value], ["p0"], name="pool0", **pooling))
            value = "p0"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info(f"r{layers - 1}", TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def fp32(*, pool: bool = False, layers: int = 3) -> FusedBackbone:
    raw = raw_backbone(
        network(pool=pool, layers=layers), name="net", outputs=[f"r{layers - 1}"], normalisation=IMAGENET
    )
    return fuse(raw, SIZE, "anomalib")


def parts(count: int = 6, seed: int = 0) -> list[np.ndarray]:
    """Smooth pictures that are alike, as parts are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] / 10
    pictures = []
    for _ in range(count):
        phase, tone = rng.random(3) * 0.5, rng.random(3) * 20
        waves = 110 + 60 * np.sin(x[..., None] + phase) * np.cos(y[..., None]) + tone
        pictures.append(waves.clip(0, 255).astype(np.uint8))
    return pictures


def embed(backbone: FusedBackbone, picture: np.ndarray) -> np.ndarray:
    (out,) = cpu_session(backbone.model_bytes, "b").run(None, {"image": picture[None]})
    return out


@pytest.mark.parametrize("pool", [False, True])
def test_an_int8_graph_computes_nearly_what_the_fp32_one_does_and_says_what_it_is(pool):
    source = fp32(pool=pool)
    q = quantise(source, parts())
    assert (q.backbone.precision, source.precision) == ("int8", "fp32")
    assert (q.backbone.grid, q.backbone.dim, q.backbone.size) == (source.grid, source.dim, source.size)
    assert q.backbone.raw_sha256 == source.raw_sha256
    assert "int8" in q.backbone.provenance
    assert source.sha256[:12] in q.backbone.provenance
    assert describe(q.backbone.model_bytes) == q.backbone
    unseen = parts(1, seed=9)[0]
    want, got = embed(source, unseen), embed(q.backbone, unseen)
    assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want)
    assert q.error < 0.1


def test_the_graph_records_its_source_and_the_cpu_it_was_made_on():
    q = quantise(fp32(), parts())
    how = json.loads(read_metadata(load_graph(q.backbone.model_bytes))["quantisation"])
    assert how["fp32_sha256"] == q.source.sha256
    assert how["cpu_class"] == q.cpu_class == cpu_class()
    assert how["pictures"] == q.pictures == 6


def test_weights_keep_to_seven_bits_so_that_avx2_and_vnni_agree():
    model = load_graph(quantise(fp32(), parts()).backbone.model_bytes)
    kernels = [numpy_helper.to_array(i) for i in model.graph.initializer if i.data_type == TensorProto.INT8]
    kernels = [k for k in kernels if k.ndim == 4]
    assert len(kernels) == 2
    assert max(int(np.abs(k.astype(int)).max()) for k in kernels) <= 64


def test_the_first_convolution_stays_in_fp32_unless_pooling_follows_it():
    assert (quantise(fp32(), parts(2)).nodes, quantise(fp32(), parts(2)).kept) == (2, 1)
    pooled = quantise(fp32(pool=True), parts(2))
    assert (pooled.nodes, pooled.kept) == (3, 0)


def test_batches_are_still_taken():
    backbone = quantise(fp32(), parts()).backbone
    both = np.stack(parts(2))
    (out,) = cpu_session(backbone.model_bytes, "b").run(None, {"image": both})
    np.testing.assert_array_equal(out[1:], embed(backbone, both[1]))


def test_the_ranges_reach_what_damage_raises():
    """A range of good parts alone would clip a defect's activations and pass it with a lower distance."""
    source = fp32()
    q = quantise(source, parts())
    spoiled = damaged(parts(1, seed=5)[0], seed=3)
    want, got = embed(source, spoiled), embed(q.backbone, spoiled)
    assert np.linalg.norm(got) > 0.95 * np.linalg.norm(want)


def test_damage_changes_a_square_and_nothing_else():
    picture = parts(1)[0]
    spoiled = damaged(picture, seed=1)
    rows, columns = np.nonzero((spoiled != picture).any(axis=2))
    assert (rows.max() - rows.min(), columns.max() - columns.min()) <= (16, 16)
    assert np.array_equal(picture, parts(1)[0])


def test_the_same_pictures_give_the_same_graph():
    assert quantise(fp32(), parts()).backbone.sha256 == quantise(fp32(), parts()).backbone.sha256


def test_what_cannot_be_quantised_is_refused_with_the_reason():
    source = fp32()
    with pytest.raises(BackboneError, match="int8 already"):
        quantise(quantise(source, parts(2)).backbone, parts(2))
    with pytest.raises(BackboneError, match="--calibration"):
        quantise(source, [])
    with pytest.raises(BackboneError, match="nothing to quantise"):
        quantise(fp32(layers=1), parts(2))


def test_a_graph_that_comes_out_too_wrong_is_refused(monkeypatch):
    monkeypatch.setattr("export.quantise.LARGEST_ERROR", 1e-6)
    with pytest.raises(BackboneError, match="does not bear it; use it in fp32"):
        quantise(fp32(), parts(2))


def test_of_a_transformer_only_products_with_weights_are_quantised():
    weights = numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="raw/embed"),
        helper.make_node("MatMul", ["a", "w"], ["q"], name="raw/query"),
        helper.make_node("MatMul", ["q", "q"], ["s"], name="raw/attention"),
        helper.make_node("Softmax", ["s"], ["t"], name="raw/softmax"),
        helper.make_node("Concat", ["t"], ["o"], name="embedding.Concat", axis=0),
    ]
    graph = helper.make_graph(nodes, "g", [], [], [weights])
    types, excluded = _what_to_quantise(helper.make_model(graph))
    assert types == ("MatMul", "Gemm")
    assert {"raw/embed", "raw/attention", "embedding.Concat"} <= set(excluded)
    assert "raw/query" not in excluded


def test_the_cpu_class_names_what_matters_to_int8(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("model name : X\nflags\t\t: fpu avx2 avx512_vnni\n")
    assert cpu_class(info).endswith(" avx512_vnni")
    info.write_text("flags : fpu avx avx2\n")
    assert cpu_class(info).endswith(" avx2")
    assert " " not in cpu_class(tmp_path / "none")


# ---------------------------------------------------------------- the command


def folder_of(path: Path, pictures: list[np.ndarray]) -> Path:
    path.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        (path / f"{i:03d}.png").write_bytes(encode_png(picture))
    return path


def command(tmp_path: Path, *more: str) -> list[str]:
    if not (tmp_path / "net.onnx").exists():
        onnx.save(network(), tmp_path / "net.onnx")
    return [
        "backbone", "--onnx", str(tmp_path / "net.onnx"), "--outputs", "r2", "--input-normalisation", "imagenet",
        "--size", "64", "--out", str(tmp_path / "out"), *more,
    ]  # fmt: skip


def test_the_command_tells_what_int8_cost_and_a_recipe_of_it_says_int8(tmp_path, capsys):
    good = folder_of(tmp_path / "data" / "test" / "good", parts(24))
    folder_of(tmp_path / "data" / "test" / "spot", [damaged(p, seed=i) for i, p in enumerate(parts(6, seed=4))])
    assert main(command(tmp_path)) == 0  # leaves a raw graph in the folder
    assert (tmp_path / "out" / "raw.onnx").exists()
    eight = ("--int8", "--calibration", str(good), "--labelled", str(tmp_path / "data"))
    assert main(command(tmp_path, *eight)) == 0
    said = capsys.readouterr().out
    for words in ("score correlation", "largest golden change", "image AUROC", "times) on this CPU", "fp32 -> int8"):
        assert words in said
    card = json.loads((tmp_path / "out" / "backbone.json").read_text())
    assert card["precision"] == "int8"
    cost = card["quantisation"]["cost"]
    assert cost["image_auroc_fp32"] == cost["image_auroc_int8"] == 1.0
    assert cost["score_correlation"] > 0.95
    assert 0 <= cost["largest_golden_change"] < 0.2
    assert cost["judged"] == 12 + 30 + 1, "good ones outside the bank, labelled ones, the damaged golden one"

    assert not (tmp_path / "out" / "raw.onnx").exists(), "another size would be fused from it in fp32"
    with pytest.raises(BackboneError, match="made for pictures of 64x64"):
        resolve_backbone(tmp_path / "out", "anomalib", (128, 128))
    recipe = tmp_path / "p.recipe"
    build = ["recipe", "--name", "p", "--images", str(good), "--backbone", str(tmp_path / "out"), "--out", str(recipe)]
    assert main(build) == 0
    manifest = load_recipe(recipe).manifest
    assert manifest.backbone.precision == "int8"
    assert "int8" in manifest.provenance["backbone"]["provenance"]
    assert main(["verify", "--recipe", str(recipe)]) == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--int8"], "--calibration DIR"),
        (["--calibration", "somewhere"], "go together"),
        (["--labelled", "somewhere"], "--labelled is for --int8"),
        (["--int8", "--calibration", "/nowhere/at/all"], "no such folder"),
    ],
)
def test_the_command_refuses_half_a_request_and_writes_nothing(tmp_path, capsys, more, says):
    assert main(command(tmp_path, *more)) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_embedded_backbone_can_be_written_out(tmp_path, capsys):
    assert main(["backbone", "--embedded", "--size", "64", "--out", str(tmp_path / "e"), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["precision"] == "fp32"
    assert card["sha256"] == resolve_backbone(None, "anomalib", (64, 64)).sha256
    raw, _ = from_embedded()
    assert card["raw_sha256"] == raw.sha256


def test_false_rejects_of_a_few_pictures_are_told_with_what_they_are_worth():
    figures = dict.fromkeys((f.name for f in fields(QuantisationCost)), 1.0)
    before, after = clopper_pearson(0, 20), clopper_pearson(5, 20)
    cost = QuantisationCost(**{**figures, "false_reject_ci_fp32": list(before), "false_reject_ci_int8": list(after)})
    told = "\n".join(_chance_lines(cost))
    assert "0% to 17% -> 9% to 49%" in told
    assert "cannot tell the two apart" in told
    clear = replace(cost, false_reject_ci_fp32=[0.0, 0.02], false_reject_ci_int8=[0.2, 0.3], promised_rate=None)
    assert "cannot tell" not in "\n".join(_chance_lines(clear))
    assert _chance_lines(replace(cost, false_reject_ci_fp32=None)) == []
