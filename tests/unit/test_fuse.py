"""The fused graph against the published formulas, written here in torch and float64."""

import json
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.errors import BackboneError
from export.fuse import FusedBackbone, Profile, describe, fuse
from export.graph import (
    IMAGENET,
    NORMALISATIONS,
    Normalisation,
    RawBackbone,
    cpu_session,
    describe_raw,
    raw_backbone,
)

torch = pytest.importorskip("torch")
functional = torch.nn.functional

Weights = list[NDArray[np.float32]]


def convolutions(channels: Sequence[int], strides: Sequence[int], seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    inputs = [3, *channels[:-1]]
    return [
        (rng.standard_normal((cout, cin, 3, 3)) / np.sqrt(cin * 9)).astype(np.float32)
        for cin, cout, _ in zip(inputs, channels, strides, strict=True)
    ]


def feature_graph(
    weights: Weights,
    strides: Sequence[int],
    height: int | str = "h",
    width: int | str = "w",
    batch: int | str = "n",
    opset: int = 18,
) -> onnx.ModelProto:
    """A chain of convolutions and ReLUs whose every stage is an output."""
    nodes, value = [], "image"
    for i, stride in enumerate(strides):
        conv = helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], pads=[1] * 4, strides=[stride] * 2)
        nodes += [conv, helper.make_node("Relu", [f"c{i}"], [f"f{i}"])]
        value = f"f{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, height, width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def small_raw(
    channels: Sequence[int] = (8, 16),
    strides: Sequence[int] = (2, 2),
    normalisation: Normalisation = IMAGENET,
    multiple: int = 1,
) -> tuple[RawBackbone, Weights]:
    weights = convolutions(channels, strides)
    raw = raw_backbone(
        feature_graph(weights, strides),
        name="small",
        outputs=[f"f{i}" for i in range(len(channels))],
        normalisation=normalisation,
        multiple=multiple,
        source_name="made here",
        source_sha256="0" * 64,
        licence="none",
        provenance="random",
    )
    return raw, weights


def reference(
    pictures: NDArray[np.uint8], weights: Weights, strides: Sequence[int], profile: Profile, norm: Normalisation
) -> NDArray[np.float64]:
    """Patch embeddings (N, gh, gw, D) from the formulas, with torch's own operators in float64."""
    x = torch.from_numpy(pictures.astype(np.float64)).permute(0, 3, 1, 2) * norm.scale
    if norm.order == "BGR":
        x = x.flip(1)
    x = (x - torch.tensor(norm.mean).double().view(1, 3, 1, 1)) / torch.tensor(norm.std).double().view(1, 3, 1, 1)
    features = []
    for w, stride in zip(weights, strides, strict=True):
        x = torch.relu(functional.conv2d(x, torch.from_numpy(w).double(), stride=stride, padding=1))
        features.append(x)
    return (anomalib_embedding if profile == "anomalib" else paper_embedding)(features)


def anomalib_embedding(features):
    grid = features[0].shape[-2:]
    pooled = [functional.avg_pool2d(f, 3, 1, 1) for f in features]
    resized = [functional.interpolate(p, size=grid, mode="bilinear", align_corners=False) for p in pooled]
    return torch.cat(resized, 1).permute(0, 2, 3, 1).numpy()


def paper_embedding(features):
    """patchify, interpolate the patches of further layers, MeanMapper per layer, Aggregator."""
    grid = features[0].shape[-2:]
    mapped = []
    for f in features:
        n, c, h, w = f.shape
        patches = functional.unfold(f, 3, padding=1).reshape(n, c * 9, h, w)
        patches = functional.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
        rows = patches.permute(0, 2, 3, 1).reshape(n * grid[0] * grid[1], 1, c * 9)
        mapped.append(functional.adaptive_avg_pool1d(rows, 1024).squeeze(1))
    stacked = torch.stack(mapped, 1).reshape(len(mapped[0]), 1, -1)
    return functional.adaptive_avg_pool1d(stacked, 1024).reshape(-1, *grid, 1024).numpy()


def run(fused: FusedBackbone, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    (out,) = cpu_session(fused.model_bytes, "test").run(["embedding"], {"image": pictures})
    return out


def pictures_of(size: tuple[int, int], count: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (count, size[1], size[0], 3), np.uint8)


def assert_close(got, want):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("profile", ["anomalib", "paper"])
@pytest.mark.parametrize("size", [(64, 64), (160, 64), (75, 51), (33, 90)])
def test_the_fused_graph_equals_the_formulas_for_square_long_and_odd_pictures(size, profile):
    raw, weights = small_raw()
    fused = fuse(raw, size, profile)
    pictures = pictures_of(size)
    assert_close(run(fused, pictures), reference(pictures, weights, (2, 2), profile, IMAGENET))
    assert fused.extent == fused.size == size


@pytest.mark.parametrize("channels", [(128, 256), (64, 128, 192), (512,), (24, 40), (10, 7), (512, 1024)])
def test_the_papers_pooling_is_exact_for_any_number_of_layers_and_channels(channels):
    raw, weights = small_raw(channels, [2] * len(channels))
    pictures = pictures_of((32, 48))
    got = run(fuse(raw, (32, 48), "paper"), pictures)
    assert_close(got, reference(pictures, weights, [2] * len(channels), "paper", IMAGENET))


def test_the_papers_pooling_stays_as_small_as_its_zeros_allow():
    raw, _ = small_raw((128, 256), (2, 2))
    model = onnx.load_model_from_string(fuse(raw, (32, 32), "paper").model_bytes)
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    assert shapes["layer0/patch"] == (512, 1, 3, 3)
    assert shapes["layer1/patch"] == (512, 1, 3, 3)


@pytest.mark.parametrize("profile", ["anomalib", "paper"])
def test_layers_of_equal_and_of_finer_grids_join_on_the_first_ones_grid(profile):
    raw, weights = small_raw((8, 8, 8), (2, 1, 2))
    pictures = pictures_of((48, 32))
    assert_close(
        run(fuse(raw, (48, 32), profile), pictures), reference(pictures, weights, (2, 1, 2), profile, IMAGENET)
    )
    backwards = raw_backbone(feature_graph(weights, (2, 1, 2)), name="r", outputs=["f2", "f0"], normalisation=IMAGENET)
    fused = fuse(backwards, (48, 32), "anomalib")
    assert fused.grid == (12, 8)
    assert fused.layers == ("f2", "f0")


@pytest.mark.parametrize("name", sorted(NORMALISATIONS))
def test_every_normalisation_is_folded_into_the_graph(name):
    norm = NORMALISATIONS[name]
    raw, weights = small_raw(normalisation=norm)
    pictures = pictures_of((40, 40))
    assert_close(run(fuse(raw, (40, 40), "anomalib"), pictures), reference(pictures, weights, (2, 2), "anomalib", norm))


def test_a_picture_has_the_same_embedding_alone_and_in_any_batch():
    raw, _ = small_raw()
    fused = fuse(raw, (64, 48), "anomalib")
    pictures = pictures_of((64, 48), 5)
    together = run(fused, pictures)
    assert together.dtype == np.float32
    assert_close(together, np.concatenate([run(fused, p[None]) for p in pictures]))


@pytest.mark.parametrize("level", [0, 128, 255])
def test_grey_pictures_without_any_texture_give_finite_embeddings(level):
    raw, weights = small_raw()
    pictures = np.full((1, 64, 64, 3), level, np.uint8)
    got = run(fuse(raw, (64, 64), "anomalib"), pictures)
    assert_close(got, reference(pictures, weights, (2, 2), "anomalib", IMAGENET))


def test_a_graph_that_needs_a_multiple_sees_repeated_borders_and_says_what_its_grid_covers():
    raw, weights = small_raw(multiple=14)
    fused = fuse(raw, (60, 50), "anomalib")
    assert (fused.size, fused.extent) == ((60, 50), (70, 56))
    pictures = pictures_of((60, 50))
    padded = np.pad(pictures, ((0, 0), (0, 6), (0, 10), (0, 0)), mode="edge")
    assert_close(run(fused, pictures), reference(padded, weights, (2, 2), "anomalib", IMAGENET))


def test_the_same_arguments_give_the_same_bytes_and_others_give_others():
    raw, _ = small_raw()
    again, _ = small_raw()
    assert raw.model_bytes == again.model_bytes
    fused = fuse(raw, (64, 64), "anomalib")
    assert fused.model_bytes == fuse(again, (64, 64), "anomalib").model_bytes
    others = {fused.sha256, fuse(raw, (64, 64), "paper").sha256, fuse(raw, (64, 32), "anomalib").sha256}
    assert len(others) == 3


def test_the_metadata_say_what_the_graph_is_and_can_be_read_back(tmp_path):
    raw, _ = small_raw()
    fused = fuse(raw, (64, 48), "anomalib")
    path = tmp_path / "b.onnx"
    path.write_bytes(fused.model_bytes)
    assert describe(path) == fused
    assert (fused.name, fused.grid, fused.dim, fused.opset, fused.precision) == ("small", (32, 24), 24, 18, "fp32")
    assert (fused.licence, fused.provenance, fused.source_sha256) == ("none", "random", "0" * 64)
    assert fused.raw_sha256 == raw.sha256
    metadata = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert metadata["edge_daemon.schema"] == "edge-daemon/backbone/1"
    assert json.loads(metadata["edge_daemon.layers"]) == ["f0", "f1"]


@pytest.mark.parametrize(("opset", "becomes"), [(11, 18), (17, 18), (18, 18), (20, 20)])
def test_older_opsets_are_raised_and_newer_ones_kept(opset, becomes):
    weights = convolutions((8, 16), (2, 2))
    model = feature_graph(weights, (2, 2), opset=opset)
    raw = raw_backbone(model, name="r", outputs=["f0", "f1"], normalisation=IMAGENET)
    fused = fuse(raw, (40, 40), "anomalib")
    assert fused.opset == becomes
    pictures = pictures_of((40, 40))
    assert_close(run(fused, pictures), reference(pictures, weights, (2, 2), "anomalib", IMAGENET))


def test_a_raw_graph_keeps_only_what_its_layers_need():
    weights = convolutions((8, 8, 8), (2, 2, 2))
    raw = raw_backbone(feature_graph(weights, (2, 2, 2)), name="r", outputs=["f0", "f1"], normalisation=IMAGENET)
    model = onnx.load_model_from_string(raw.model_bytes)
    assert {i.name for i in model.graph.initializer} == {"w0", "w1"}
    assert [o.name for o in model.graph.output] == ["f0", "f1"]
    assert describe_raw(raw.model_bytes) == raw


def test_a_graph_fixed_to_one_picture_is_given_a_dynamic_batch():
    weights = convolutions((8,), (2,))
    raw = raw_backbone(
        feature_graph(weights, (2,), height=64, width=64, batch=1), name="r", outputs=["f0"], normalisation=IMAGENET
    )
    assert raw.size == (64, 64)
    assert run(fuse(raw, (64, 64), "anomalib"), pictures_of((64, 64), 3)).shape == (3, 32, 32, 8)
    with pytest.raises(BackboneError, match="exported for 64x64 and takes no 96x64"):
        fuse(raw, (96, 64), "anomalib")


def with_node(model: onnx.ModelProto, node: onnx.NodeProto, *constants: onnx.TensorProto) -> onnx.ModelProto:
    model.graph.node.append(node)
    model.graph.initializer.extend(constants)
    return model


def test_a_batch_of_one_inside_the_graph_is_refused_with_what_to_do():
    model = feature_graph(convolutions((8,), (2,)), (2,), 64, 64, 1)
    shape = numpy_helper.from_array(np.array([1, 8, 32, 32]), "shape")
    model = with_node(model, helper.make_node("Reshape", ["f0", "shape"], ["out"]), shape)
    raw = raw_backbone(model, name="fixed", outputs=["out"], normalisation=IMAGENET)
    with pytest.raises(BackboneError, match="dynamic batch"):
        fuse(raw, (64, 64), "anomalib")


def test_a_graph_that_mixes_the_pictures_of_a_batch_is_refused():
    model = feature_graph(convolutions((8,), (2,)), (2,))
    axes = numpy_helper.from_array(np.array([0]), "axes")
    model = with_node(model, helper.make_node("ReduceSum", ["f0", "axes"], ["s"], keepdims=1), axes)
    model = with_node(model, helper.make_node("Add", ["f0", "s"], ["out"]))
    raw = raw_backbone(model, name="mixing", outputs=["out"], normalisation=IMAGENET)
    with pytest.raises(BackboneError, match="mixes the pictures"):
        fuse(raw, (64, 64), "anomalib")


def test_outputs_that_are_no_feature_maps_are_refused():
    model = feature_graph(convolutions((8,), (2,)), (2,))
    model = with_node(model, helper.make_node("Flatten", ["logits"], ["flat"]))
    raw = raw_backbone(model, name="tokens", outputs=["flat"], normalisation=IMAGENET)
    with pytest.raises(BackboneError, match="feature maps"):
        fuse(raw, (64, 64), "anomalib")


def test_outputs_of_another_precision_are_refused():
    model = feature_graph(convolutions((8,), (2,)), (2,))
    model = with_node(model, helper.make_node("Cast", ["f0"], ["half"], to=TensorProto.FLOAT16))
    with pytest.raises(BackboneError, match="output half must be float32"):
        raw_backbone(model, name="half", outputs=["half"], normalisation=IMAGENET)


def test_an_output_that_does_not_exist_names_those_that_do():
    with pytest.raises(BackboneError, match="no value layer9; its outputs are logits"):
        raw_backbone(
            feature_graph(convolutions((8,), (2,)), (2,)), name="r", outputs=["layer9"], normalisation=IMAGENET
        )


def test_weights_with_nan_are_refused():
    weights = convolutions((8,), (2,))
    weights[0][0, 0, 0, 0] = np.nan
    raw = raw_backbone(feature_graph(weights, (2,)), name="r", outputs=["c0"], normalisation=IMAGENET)
    with pytest.raises(BackboneError, match="NaN"):
        fuse(raw, (64, 64), "anomalib")


@pytest.mark.parametrize(
    ("elem", "shape", "says"),
    [
        (TensorProto.FLOAT, ["n", 64, 64, 3], "channels first"),
        (TensorProto.FLOAT, ["n", 1, 64, 64], "three channels"),
        (TensorProto.UINT8, ["n", 3, 64, 64], "float32"),
        (TensorProto.FLOAT, ["n", 3], "N, 3, H, W"),
    ],
)
def test_an_input_of_another_kind_is_refused(elem, shape, says):
    model = feature_graph(convolutions((8,), (2,)), (2,))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", elem, shape))
    with pytest.raises(BackboneError, match=says):
        raw_backbone(model, name="r", outputs=["f0"], normalisation=IMAGENET)


@pytest.mark.parametrize("size", [(0, 64), (64, 31), (-5, 64), (9000, 64)])
def test_impossible_sizes_are_refused(size):
    raw, _ = small_raw()
    with pytest.raises(BackboneError, match="pixels"):
        fuse(raw, size, "anomalib")


def test_an_unknown_profile_is_refused():
    raw, _ = small_raw()
    with pytest.raises(BackboneError, match="unknown profile"):
        fuse(raw, (64, 64), "papers")


@pytest.mark.parametrize("data", [b"", b"not onnx at all", b"\x08"])
def test_bytes_that_are_no_graph_are_refused(data, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(BackboneError, match="no readable ONNX"):
            describe(source)


def test_every_truncation_of_a_fused_graph_is_refused():
    raw, _ = small_raw()
    whole = fuse(raw, (64, 64), "anomalib").model_bytes
    for length in range(1, len(whole), 211):
        with pytest.raises(BackboneError):
            describe(whole[:length])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="cannot be read"):
        describe(tmp_path / "none.onnx")


def test_a_graph_that_contradicts_its_metadata_is_refused():
    raw, _ = small_raw()
    model = onnx.load_model_from_string(fuse(raw, (64, 64), "anomalib").model_bytes)
    for p in model.metadata_props:
        if p.key == "edge_daemon.grid":
            p.value = "31x32"
    with pytest.raises(BackboneError, match="metadata says"):
        describe(model.SerializeToString())


@pytest.mark.parametrize("key", ["grid", "normalisation", "layers", "profile", "precision", "dim"])
def test_damaged_metadata_are_refused(key):
    raw, _ = small_raw()
    model = onnx.load_model_from_string(fuse(raw, (64, 64), "anomalib").model_bytes)
    for p in model.metadata_props:
        if p.key == f"edge_daemon.{key}":
            p.value = "?"
    with pytest.raises(BackboneError, match="damaged metadata"):
        describe(model.SerializeToString())


def test_a_raw_graph_without_our_metadata_asks_for_its_normalisation():
    model = feature_graph(convolutions((8,), (2,)), (2,))
    with pytest.raises(BackboneError, match="--input-normalisation"):
        describe_raw(model.SerializeToString())


@pytest.mark.parametrize(
    "values", [(0.0, (0, 0, 0), (1, 1, 1)), (1.0, (0, 0, float("nan")), (1, 1, 1)), (1.0, (0, 0, 0), (1, 0, 1))]
)
def test_a_normalisation_that_cannot_be_is_refused(values):
    with pytest.raises(BackboneError):
        Normalisation(*values)


def test_nothing_of_the_machine_that_exported_stays_in_the_file():
    model = feature_graph(convolutions((8,), (2,)), (2,))
    model.graph.node[0].doc_string = "/home/somebody/train.py:12"
    model.graph.doc_string = "/home/somebody"
    model.producer_name = "somebody"
    raw = raw_backbone(model, name="r", outputs=["f0"], normalisation=IMAGENET)
    assert b"somebody" not in raw.model_bytes
    assert b"somebody" not in fuse(raw, (64, 64), "anomalib").model_bytes
