"""From an architecture or a foreign graph to a backbone on disk, and from there into a recipe."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.backbone import embedded_backbone, parse_size, resolve_backbone
from export.cli import main
from export.errors import BackboneError
from export.fuse import describe, fuse
from export.graph import IMAGENET, NORMALISATIONS, cpu_session, raw_backbone, sha256_of
from export.make_backbone import from_onnx
from export.parity import check_parity, embedding, padded_input, trial_pictures

torch = pytest.importorskip("torch")

from export.torch.backbone import features_of, raw_from_network  # noqa: E402
from export.torch.teacher import import_timm, load_network  # noqa: E402

functional = torch.nn.functional


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save_weights(path: Path, arch: str, **arguments) -> Path:
    timm = import_timm()
    torch.manual_seed(0)
    torch.save(timm.create_model(arch, pretrained=False, **arguments).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def resnet_weights(tmp_path_factory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "r10.pth", "resnet10t", zero_init_last=False)


@pytest.fixture(scope="module")
def vit_weights(tmp_path_factory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "vit.pth", "test_vit")


def pictures_of(size: tuple[int, int], count: int = 2):
    return np.random.default_rng(2).integers(0, 256, (count, size[1], size[0], 3), np.uint8)


def test_a_convolutional_network_is_exported_once_for_all_sizes(resnet_weights):
    network = load_network("resnet10t", ["layer2", "layer3"], resnet_weights)
    raw = raw_from_network(network, (64, 64))
    assert raw.size is None
    for size in ((64, 64), (96, 64), (75, 51)):
        fused = fuse(raw, size, "anomalib")
        parity = check_parity(fused, features_of(network), trial_pictures(size, []))
        assert parity.relative < 1e-5
        assert fused.extent == size


def test_nothing_behind_the_last_layer_is_exported_nor_needed(resnet_weights, tmp_path):
    state = torch.load(resnet_weights, weights_only=True)
    kept = {k: v for k, v in state.items() if not k.startswith(("layer4", "fc"))}
    torch.save(kept, tmp_path / "cut.pth")
    network = load_network("resnet10t", ["layer2", "layer3"], tmp_path / "cut.pth")
    raw = raw_from_network(network, (64, 64))
    assert len(raw.model_bytes) < 1.1 * 4 * sum(v.numel() for v in kept.values())


def test_missing_weights_are_named(resnet_weights, tmp_path):
    state = torch.load(resnet_weights, weights_only=True)
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(BackboneError, match=r"lacks 1 of the weights .* layer3\.0\.conv1\.weight"):
        load_network("resnet10t", ["layer2", "layer3"], tmp_path / "cut.pth")
    assert load_network("resnet10t", ["layer2"], tmp_path / "cut.pth").layers == ("layer2",)


def test_weights_of_another_architecture_are_refused(resnet_weights, vit_weights):
    with pytest.raises(BackboneError, match="do not fit the architecture"):
        load_network("resnet18", ["layer2"], resnet_weights)
    with pytest.raises(BackboneError, match="lacks"):
        load_network("resnet10t", ["layer2"], vit_weights)


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(BackboneError, match="cannot be read"):
            load_network("resnet10t", ["layer2"], tmp_path / name)
    with pytest.raises(BackboneError, match="no weights at"):
        load_network("resnet10t", ["layer2"], tmp_path / "none.pth")


def test_unknown_names_are_answered_with_the_known_ones(resnet_weights):
    with pytest.raises(BackboneError, match=r"resnet10t has no layer layer9; it has act1, layer1"):
        load_network("resnet10t", ["layer9"], resnet_weights)
    with pytest.raises(BackboneError, match=r"alike are: .*resnet"):
        load_network("resnet_of_nobody", ["layer2"], resnet_weights)
    with pytest.raises(BackboneError, match="--weights FILE, or --pretrained"):
        load_network("resnet10t", ["layer2"], None)


@pytest.mark.parametrize(("size", "extent"), [((160, 160), (160, 160)), ((100, 70), (112, 80))])
def test_a_vit_gives_its_patch_tokens_as_a_grid_and_pads_to_whole_patches(vit_weights, size, extent):
    network = load_network("test_vit", ["blocks.2", "blocks.5"], vit_weights, size=size)
    fused = fuse(raw_from_network(network, size), size, "anomalib")
    assert (fused.size, fused.extent) == (size, extent)
    assert fused.grid == (extent[0] // 16, extent[1] // 16)
    pictures = trial_pictures(size, [])
    assert check_parity(fused, features_of(network), pictures).relative < 1e-4

    model = import_timm().create_model("test_vit", pretrained=False, dynamic_img_size=True)
    model.load_state_dict(torch.load(vit_weights, weights_only=True))
    model.eval().set_input_size(img_size=extent[::-1])
    tokens = []
    for block in (2, 5):
        hooked = []
        handle = model.blocks[block].register_forward_hook(lambda _, __, out, hooked=hooked: hooked.append(out))
        with torch.no_grad():
            model(torch.from_numpy(padded_input(fused, pictures[0])))
        handle.remove()
        grid = hooked[0][:, model.num_prefix_tokens :].transpose(1, 2)
        tokens.append(grid.reshape(1, -1, fused.grid[1], fused.grid[0]).double())
    pooled = torch.cat([functional.avg_pool2d(t, 3, 1, 1) for t in tokens], 1)[0].permute(1, 2, 0).numpy()
    (got,) = cpu_session(fused.model_bytes, "v").run(None, {"image": pictures[:1]})
    assert np.abs(got[0] - pooled).max() < 1e-4 * np.abs(pooled).max()


def test_a_dinov2_with_registers_and_patches_of_14_drops_its_registers(tmp_path):
    arch = "vit_small_patch14_reg4_dinov2"
    small = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 56}
    timm = import_timm()
    torch.manual_seed(0)
    weights = tmp_path / "dino.pth"
    torch.save(timm.create_model(arch, pretrained=False, num_classes=0, **small).state_dict(), weights)

    class Small:
        models = timm.models
        list_models = staticmethod(timm.list_models)

        @staticmethod
        def create_model(name, **arguments):
            return timm.create_model(name, **arguments, **small)

    from export.torch import teacher

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "import_timm", lambda: Small)
        network = load_network(arch, ["blocks.1"], weights, size=(60, 45), final_norm=True)
    fused = fuse(raw_from_network(network, (60, 45)), (60, 45), "anomalib")
    assert (fused.extent, fused.grid, fused.dim) == ((70, 56), (5, 4), 24)
    assert check_parity(fused, features_of(network), trial_pictures((60, 45), [])).relative < 1e-4


def test_a_transformer_is_fixed_to_its_size_and_says_so(vit_weights):
    network = load_network("test_vit", ["blocks.5"], vit_weights, size=(64, 64))
    raw = raw_from_network(network, (64, 64))
    assert raw.size == (64, 64)
    with pytest.raises(BackboneError, match=r"takes no 128x128: run `edge-export backbone \.\.\. --size 128x128`"):
        fuse(raw, (128, 128), "anomalib")
    with pytest.raises(BackboneError, match="give --size"):
        load_network("test_vit", ["blocks.5"], vit_weights)


def test_a_network_whose_trace_freezes_the_size_is_exported_for_that_size_alone(tmp_path):
    arch = "test_efficientnet"
    weights = save_weights(tmp_path / "e.pth", arch)
    network = load_network(arch, ["1", "2"], weights)

    class Frozen(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return tuple(f * float(int(x.shape[-1])) for f in self.inner(x))

    from dataclasses import replace

    frozen = replace(network, module=Frozen(network.module).eval())
    assert raw_from_network(network, (64, 64)).size is None
    raw = raw_from_network(frozen, (64, 64))
    assert raw.size == (64, 64)
    assert check_parity(fuse(raw, (64, 64), "paper"), features_of(frozen), pictures_of((64, 64))).relative < 1e-5


def test_parity_refuses_a_graph_that_differs_from_its_source(resnet_weights):
    network = load_network("resnet10t", ["layer2", "layer3"], resnet_weights)
    fused = fuse(raw_from_network(network, (64, 64)), (64, 64), "anomalib")
    honest = features_of(network)
    with pytest.raises(BackboneError, match="differs from its source"):
        check_parity(fused, lambda x: [f * 1.001 for f in honest(x)], pictures_of((64, 64)))
    with pytest.raises(BackboneError, match="NaN"):
        check_parity(fused, lambda x: [f * float("nan") for f in honest(x)], pictures_of((64, 64)))


@pytest.mark.parametrize("profile", ["anomalib", "paper"])
def test_the_slow_embedding_agrees_with_torch(profile):
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((20, 9, 13)), rng.standard_normal((50, 5, 7))]
    maps = [torch.from_numpy(f)[None] for f in features]
    if profile == "anomalib":
        pooled = [functional.avg_pool2d(m, 3, 1, 1) for m in maps]
        want = torch.cat([functional.interpolate(p, (9, 13), mode="bilinear") for p in pooled], 1)[0]
        want = want.permute(1, 2, 0)
    else:
        rows = []
        for m in maps:
            patches = functional.unfold(m, 3, padding=1).reshape(1, -1, *m.shape[-2:])
            patches = functional.interpolate(patches, (9, 13), mode="bilinear")
            flat = patches[0].permute(1, 2, 0).reshape(9 * 13, 1, -1)
            rows.append(functional.adaptive_avg_pool1d(flat, 1024)[:, 0])
        stacked = torch.stack(rows, 1).reshape(9 * 13, 1, -1)
        want = functional.adaptive_avg_pool1d(stacked, 1024).reshape(9, 13, 1024)
    np.testing.assert_allclose(embedding(features, profile), want.numpy(), rtol=1e-9, atol=1e-12)


def graph_file(path: Path, size: int | None = None) -> Path:
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(s).astype(np.float32) * 0.1 for s in ((8, 3, 3, 3), (16, 8, 3, 3))]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4, strides=[4, 4]),
        helper.make_node("Relu", ["a"], ["ra"]),
        helper.make_node("Conv", ["ra", "w1"], ["b"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["b"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size or "h", size or "w"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def onnx_command(tmp_path: Path, *more: str) -> list[str]:
    graph = graph_file(tmp_path / "net.onnx")
    return [
        "backbone", "--onnx", str(graph), "--outputs", "ra,b", "--input-normalisation", "caffe-bgr",
        "--out", str(tmp_path / "made"), "--size", "96x64", *more,
    ]  # fmt: skip


def test_the_command_makes_a_backbone_of_a_foreign_graph_without_torch(tmp_path, monkeypatch, capsys):
    for module in [m for m in sys.modules if m.split(".")[0] in ("torch", "timm") or m.startswith("export.torch")]:
        monkeypatch.setitem(sys.modules, module, None)
    assert main(onnx_command(tmp_path, "--licence", "CC0", "--json")) == 0
    card = json.loads(capsys.readouterr().out)
    fused = describe(tmp_path / "made" / "backbone.onnx")
    assert json.loads((tmp_path / "made" / "backbone.json").read_text()) == card
    assert card["sha256"] == fused.sha256
    assert card["source_sha256"] == sha256_of((tmp_path / "net.onnx").read_bytes())
    assert (fused.size, fused.grid, fused.dim, fused.licence) == ((96, 64), (24, 16), 24, "CC0")
    assert fused.normalisation == NORMALISATIONS["caffe-bgr"]
    assert card["parity"]["relative"] < 1e-5
    assert card["opset"] == 18


def test_the_command_makes_a_backbone_of_an_architecture(resnet_weights, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    from edge_daemon.artefact.pictures import encode_png

    (images / "grey.png").write_bytes(encode_png(np.random.default_rng(0).integers(0, 256, (50, 90), np.uint8)))
    out = tmp_path / "out"
    command = ["backbone", "--arch", "resnet10t", "--weights", str(resnet_weights), "--layers", "layer2,layer3"]
    assert main([*command, "--size", "64", "--profile", "paper", "--out", str(out), "--images", str(images)]) == 0
    said = capsys.readouterr().out
    assert "parity" in said
    assert "5 pictures" in said
    fused = resolve_backbone(out)
    assert (fused.profile, fused.dim, fused.size) == ("paper", 1024, (64, 64))
    assert fused.normalisation.mean == pytest.approx(IMAGENET.mean)
    assert not list(out.glob("*.partial"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--outputs", "ra,zz"], "no value zz"),
        (["--input-std", "0,1,1"], "std > 0"),
        (["--images", "/nowhere/at/all"], "no such folder"),
        (["--size", "16"], "pixels"),
        (["--patch", "0"], "--patch"),
    ],
)
def test_the_command_refuses_with_one_message_and_writes_nothing(tmp_path, capsys, change, says):
    assert main(onnx_command(tmp_path, *change)) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""
    assert not (tmp_path / "made").exists()


def test_the_command_does_not_guess_a_normalisation(tmp_path, capsys):
    command = [c for c in onnx_command(tmp_path) if c not in ("--input-normalisation", "caffe-bgr")]
    assert main(command) == 2
    assert "a wrong guess would go unnoticed" in capsys.readouterr().err


def test_without_torch_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    import export.commands.options as options

    monkeypatch.setattr(options, "find_spec", lambda name: None if name == "torch" else object())
    assert main(["backbone", "--arch", "resnet18", "--layers", "layer2", "--out", str(tmp_path / "o")]) == 2
    assert "pip install 'edge-daemon[export]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"), [("256", (256, 256)), ("1280x512", (1280, 512)), ("64X32", (64, 32)), ("64×32", (64, 32))]
)
def test_sizes_are_width_by_height(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "0", "1280x", "1x2x3", "-5", "²", "12.5", "1e3"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="no size"):
        parse_size(text)


@pytest.fixture
def made(tmp_path) -> Path:
    assert main(onnx_command(tmp_path)) == 0
    return tmp_path / "made"


def test_a_fused_file_is_taken_only_for_its_own_size_and_profile(made, capsys):
    capsys.readouterr()
    path = made / "backbone.onnx"
    assert resolve_backbone(path, "anomalib", (96, 64)) == resolve_backbone(path) == describe(path)
    with pytest.raises(BackboneError, match=r"made for pictures of 96x64, asked for are 64x64; give .*raw\.onnx"):
        resolve_backbone(path, "anomalib", (64, 64))
    with pytest.raises(BackboneError, match="made for profile anomalib"):
        resolve_backbone(path, "paper", (96, 64))


def test_a_folder_and_a_raw_file_are_fused_anew_for_what_is_asked(made):
    for path in (made, made / "raw.onnx"):
        fused = resolve_backbone(path, "paper", (64, 64))
        assert (fused.profile, fused.size) == ("paper", (64, 64))
    assert resolve_backbone(made, "anomalib", (96, 64)).sha256 == describe(made / "backbone.onnx").sha256
    assert resolve_backbone(made, "paper").size == (96, 64)


def test_a_missing_or_strange_file_is_refused_by_name(tmp_path):
    with pytest.raises(BackboneError, match=r"none\.onnx cannot be read"):
        resolve_backbone(tmp_path / "none.onnx")
    with pytest.raises(BackboneError, match=r"holds neither backbone\.onnx"):
        resolve_backbone(tmp_path)
    with pytest.raises(BackboneError, match=r"net\.onnx: .*--input-normalisation"):
        resolve_backbone(graph_file(tmp_path / "net.onnx"))


def test_the_embedded_backbone_is_small_and_is_the_one_on_its_card():
    embedded = embedded_backbone()
    assert len(embedded.raw.model_bytes) <= 4_000_000
    assert embedded.card["gflop_at_256"] <= 0.4
    assert embedded.card["licence"]
    assert embedded.card["teacher"]["sha256"] == embedded.raw.source_sha256
    assert embedded.raw.normalisation == IMAGENET


@pytest.mark.parametrize("size", [(256, 256), (320, 96), (100, 75)])
def test_the_embedded_backbone_works_at_any_size_without_a_file(size):
    fused = resolve_backbone(None, "anomalib", size)
    assert fused.grid == (-(-size[0] // 8), -(-size[1] // 8))
    assert fused == resolve_backbone(None, "anomalib", size)
    (out,) = cpu_session(fused.model_bytes, "e").run(None, {"image": pictures_of(size)})
    assert out.shape == (2, fused.grid[1], fused.grid[0], fused.dim)
    assert np.isfinite(out).all()


def test_a_damaged_installation_is_noticed(monkeypatch, tmp_path):
    embedded = embedded_backbone()
    (tmp_path / "backbones").mkdir()
    (tmp_path / "backbones" / "edge_small.onnx").write_bytes(embedded.raw.model_bytes[:-1] + b"\0")
    (tmp_path / "backbones" / "edge_small.json").write_text(json.dumps(embedded.card))
    monkeypatch.setattr("export.backbone.files", lambda _: tmp_path)
    with pytest.raises(BackboneError, match="install the package again"):
        embedded_backbone()


def test_the_raw_features_are_those_of_the_foreign_graph(tmp_path):
    path = graph_file(tmp_path / "net.onnx", 64)
    raw, features = from_onnx(path, ["ra", "b"], NORMALISATIONS["none"])
    assert raw.size == (64, 64)
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    assert [f.shape for f in features(x)] == [(8, 16, 16), (16, 8, 8)]


def test_real_resnet18_weights_keep_parity(resnet18_weights):
    network = load_network("resnet18", ["layer2", "layer3"], resnet18_weights)
    fused = fuse(raw_from_network(network, (256, 256)), (256, 256), "anomalib")
    assert (fused.grid, fused.dim) == ((32, 32), 384)
    assert check_parity(fused, features_of(network), trial_pictures((256, 256), [])).relative < 1e-5


def test_a_real_keras_resnet50_keeps_parity_in_both_profiles(shared_file: Callable[[str], Path]):
    path = shared_file("weights/resnet50_imagenet_to_layer3.onnx")
    raw, features = from_onnx(path, ["layer2", "layer3"], NORMALISATIONS["caffe-bgr"])
    fused = fuse(raw, (96, 64), "paper")
    assert check_parity(fused, features, trial_pictures((96, 64), [])).relative < 1e-5
    assert raw_backbone(path, name="r", outputs=["layer2"], normalisation=IMAGENET).layers == ("layer2",)
