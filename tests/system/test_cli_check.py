"""The daemon's command line as its user meets it: a process, its output and its exit status."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_daemon import __version__
from edge_daemon.artefact.pictures import encode_png
from edge_daemon.artefact.recipe import (
    MANIFEST,
    bank_bytes,
    manifest_bytes,
    read_files,
    sha256,
    verify_files,
    write_recipe,
)
from edge_daemon.core.decision import judge_score
from edge_daemon.detectors.base import judge_picture
from edge_daemon.detectors.loading import build_detector
from edge_daemon.engines.sessions import EngineOptions, Sessions

ROOT = Path(__file__).resolve().parents[2]
SIDE = 64


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def edge_daemon(tmp_path: Path) -> Callable[..., Ended]:
    """Runs `edge-daemon` in a folder of its own, with sockets of its own."""

    def run(*arguments: str, **environment: str) -> Ended:
        variables = {k: v for k, v in os.environ.items() if not k.startswith("EDGE_") or k.startswith("EDGE_TEST_")}
        variables |= {"EDGE_STATE_DIR": str(tmp_path / "state")}
        for name in ("results", "images", "status", "triggers", "control", "replay", "amendments"):
            variables[f"EDGE_WIRE__{name.upper()}"] = f"ipc://{tmp_path}/{name}"
        done = subprocess.run(
            [sys.executable, "-m", "edge_daemon.cli", *arguments],
            cwd=tmp_path,
            env=variables | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest recipe that really judges: mean colours of the quarters of a 64×64 picture."""
    onnx = pytest.importorskip("onnx", reason="makes a backbone; part of the development install")
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=kinds.FLOAT),
            helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("AveragePool", ["planes"], ["means"], kernel_shape=[32, 32], strides=[32, 32]),
            helper.make_node("Transpose", ["means"], ["embedding"], perm=[0, 2, 3, 1]),
        ],
        "quarters",
        [helper.make_tensor_value_info("image", kinds.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("embedding", kinds.FLOAT, ["n", 2, 2, 3])],
    )
    opset = [helper.make_opsetid("", 18)]
    backbone = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    path = tmp_path_factory.mktemp("recipe") / "quarters.recipe"
    write_recipe(path, _recipe_files(backbone))
    return path


def _recipe_files(backbone: bytes, red: int = 100) -> dict[str, bytes]:
    pixels = np.full((SIDE, SIDE, 3), 100, np.uint8)
    pixels[..., 0] = red
    blank = _files(backbone, encode_png(pixels), 0.0)
    loaded = verify_files(blank, "a recipe of the tests")
    evidence = judge_picture(build_detector(loaded, Sessions(EngineOptions())), pixels)
    files = _files(backbone, encode_png(pixels), evidence.score)
    limits = build_detector(loaded, Sessions(EngineOptions())).thresholds
    assert judge_score(evidence.score, evidence.max_distance, limits).evaluation.label == "OK"
    return files


def _files(backbone: bytes, golden: bytes, score: float, rate: float = 0.02) -> dict[str, bytes]:
    bank = bank_bytes(np.array([[99, 99, 99], [0, 0, 0]], np.float32))
    fields = {
        "required_features": ["patchcore/1"],
        "name": "quarters",
        "version": "3",
        "created_utc": "2026-01-01T00:00:00Z",
        "detector": "patchcore",
        "view": {"frame_size": [SIDE, SIDE]},
        "preprocess": {"resize": "area", "size": [SIDE, SIDE], "resize_to": [SIDE, SIDE]},
        "backbone": {
            "name": "quarters",
            "sha256": sha256(backbone),
            "file": "backbone.onnx",
            "precision": "fp32",
            "grid": [2, 2],
            "extent": [SIDE, SIDE],
            "dim": 3,
        },
        "parameters": {
            "profile": "anomalib",
            "neighbours": 1,
            "metric": "euclidean",
            "upsampling": "nearest",
            "blur": "torch_reflect",
            "blur_sigma_px": 4.0,
        },
        "bank": {"file": "bank.safetensors", "sha256": sha256(bank), "rows": 2, "dim": 3},
        "thresholds": {"lower": 5.0, "upper": 5.0, "pixel": 5.0},
        "provisional": True,
        "calibration": {"false_reject_rate": rate},
        "golden": [
            {
                "file": "golden/good.png",
                "sha256": sha256(golden),
                "kind": "good",
                "score": score,
                "max_distance": score,
                "evaluation": "OK",
            }
        ],
        "provenance": {},
    }
    return {
        MANIFEST: manifest_bytes(fields),
        "bank.safetensors": bank,
        "backbone.onnx": backbone,
        "golden/good.png": golden,
    }


def write_config(folder: Path, recipe: str, size: int = SIDE, more: str = "") -> str:
    path = folder / "edge.toml"
    path.write_text(
        f'line = "l"\n{more}\n[cameras.top]\nkind = "simulated"\nproduct = "flange"\nsize = [{size}, {size}]\n'
        f'[stations.st1]\nviews = [{{ camera = "top", recipe = "{recipe}" }}]\n'
    )
    return str(path)


# ---------------------------------------------------------------- check


def test_a_good_pc_passes_and_says_what_will_judge(
    edge_daemon: Callable[..., Ended], recipe: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, "quarters")
    edge_daemon("store", "import", str(recipe), "--store", "state/store")
    before = sorted((tmp_path / "state").rglob("*"))
    ended = edge_daemon("check", "--config", config, "--open-cameras")
    assert ended.status == 0, ended
    assert "top is judged by quarters 3" in ended.out
    assert "on CPUExecutionProvider; OK up to 5" in ended.out
    assert "is provisional" in ended.out
    assert "recipe quarters has no health limits" in ended.out
    assert "release no part" in ended.out
    assert ended.out.endswith("edge.toml: the daemon can start\n")
    assert sorted((tmp_path / "state").rglob("*")) == before


def test_a_pc_whose_endpoints_are_all_taken_is_told_that_the_daemon_runs(
    edge_daemon: Callable[..., Ended], recipe: Path, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        for name in ("results", "images", "status", "triggers", "control", "replay", "amendments"):
            taken = stack.enter_context(socket.socket(socket.AF_UNIX))
            taken.bind(str(tmp_path / name))
            taken.listen()
        ended = edge_daemon("check", "--config", write_config(tmp_path, str(recipe)))
    assert ended.status == 0, ended
    assert "all endpoints are in use; presumably by edge-daemon" in ended.out


def test_everything_wrong_is_said_at_once_whatever_its_kind(
    edge_daemon: Callable[..., Ended], recipe: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.recipe"
    data = bytearray(recipe.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    (tmp_path / "file").write_text("")
    more = (
        '[cameras.folder]\nkind = "folder"\npath = "gone"\n'
        f'[stations.st2]\nviews = [{{ camera = "folder", recipe = "{recipe}" }}]\n'
        '[cameras.other]\nkind = "simulated"\nproduct = "cap"\nsize = [128, 128]\n'
        f'[stations.st3]\nviews = [{{ camera = "other", recipe = "{recipe}" }}]\n'
        '[cameras.fourth]\nkind = "simulated"\nproduct = "cap"\n'
        '[stations.st4]\nviews = [{ camera = "fourth", recipe = "nowhere" }]\n'
    )
    config = write_config(tmp_path, str(damaged), more=more)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = edge_daemon(
            "check",
            "--config",
            config,
            "--json",
            EDGE_STATE_DIR=str(tmp_path / "file" / "below"),
            EDGE_WIRE__RESULTS=f"tcp://127.0.0.1:{port}",
            EDGE_WIRE__STATUS="ipc:///nowhere/at/all",
        )
    assert ended.status == 1
    report = json.loads(ended.out)
    assert report["ok"] is False
    errors = [finding["text"] for finding in report["findings"] if finding["level"] == "error"]
    for expected in (
        "there is no recipe 'nowhere' in",
        "stations.st1: recipe",
        "is a file where a folder is needed",
        f"wire.results: tcp://127.0.0.1:{port} is in use by another program",
        "wire.status: ipc:///nowhere/at/all cannot be bound: No such file or directory",
        "cameras.folder",
        "cameras.other: gives pictures of 128x128 px and its recipe judges 64x64 px",
    ):
        assert any(expected in error for error in errors), (expected, errors)
    assert [judged["station"] for judged in report["recipes"]] == ["st2", "st3"]


def test_a_part_of_several_views_is_said_to_be_rejected_by_any_of_them(
    edge_daemon: Callable[..., Ended], recipe: Path, tmp_path: Path
) -> None:
    more = '[cameras.side]\nkind = "simulated"\nproduct = "cap"\nsize = [64, 64]\n'
    config = write_config(tmp_path, str(recipe), more=more)
    one = edge_daemon("check", "--config", config)
    assert "of good parts are rejected" not in one.out + one.err
    also = f'{{ camera = "side", recipe = "{recipe}" }}]'
    Path(config).write_text(Path(config).read_text().replace("}]", "}, " + also))
    two = edge_daemon("check", "--config", config)
    assert two.status == 0
    assert "stations.st1: a part has to be good in each of 2 views, so up to 4.00% of good parts are rejected" in (
        two.out + two.err
    )


@pytest.mark.parametrize(("side", "status"), [(SIDE, 0), (100, 1)])
def test_the_first_picture_of_a_folder_is_looked_at_before_every_part_fails(
    edge_daemon: Callable[..., Ended], recipe: Path, tmp_path: Path, side: int, status: int
) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "1.png").write_bytes(encode_png(np.zeros((side, side, 3), np.uint8)))
    (tmp_path / "edge.toml").write_text(
        'line = "l"\n[cameras.top]\nkind = "folder"\npath = "parts"\nrate_hz = 0.001\n'
        f'[stations.st1]\nviews = [{{ camera = "top", recipe = "{recipe}" }}]\n'
    )
    ended = edge_daemon("check", "--config", "edge.toml")
    assert ended.status == status, ended
    assert (f"gives pictures of {side}x{side} px and its recipe judges 64x64 px" in ended.out) is bool(status)


@pytest.mark.parametrize(("picture", "status"), [("grey", 1), ("one channel", 1), ("in colour", 0)])
def test_a_grey_camera_is_no_camera_for_a_recipe_in_colour(
    edge_daemon: Callable[..., Ended], recipe: Path, tmp_path: Path, picture: str, status: int
) -> None:
    write_recipe(tmp_path / "red.recipe", _recipe_files(read_files(recipe)["backbone.onnx"], red=101))
    pixels = np.full((SIDE, SIDE, 3), 100, np.uint8)
    pixels[3, 3, 0] = 100 if picture == "grey" else 130
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "1.png").write_bytes(
        encode_png(pixels[..., 0].copy() if picture == "one channel" else pixels)
    )
    (tmp_path / "edge.toml").write_text(
        'line = "l"\n[cameras.top]\nkind = "folder"\npath = "parts"\n'
        '[stations.st1]\nviews = [{ camera = "top", recipe = "red.recipe" }]\n'
    )
    ended = edge_daemon("check", "--config", "edge.toml")
    assert ended.status == status, ended
    assert ("cameras.top: gives grey pictures, and quarters was learned from such in colour" in ended.out) is bool(
        status
    )


def test_a_store_that_cannot_be_read_is_one_of_the_things_said(
    edge_daemon: Callable[..., Ended], recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "state" / "store").mkdir(parents=True)
    loop = tmp_path / "state" / "store" / "recipes"
    loop.symlink_to(loop)
    ended = edge_daemon("check", "--config", write_config(tmp_path, str(recipe), size=128))
    assert ended.status == 1
    assert "cameras.top: gives pictures of 128x128" in ended.out, "the rest was looked at all the same"


def test_a_provider_that_cannot_be_had_is_an_error_unless_a_fallback_is_named(
    edge_daemon: Callable[..., Ended], recipe: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, str(recipe))
    refused = edge_daemon("check", "--config", config, EDGE_ENGINE__PROVIDER="cuda", CUDA_VISIBLE_DEVICES="")
    assert refused.status == 1
    assert "engine.provider" in refused.out
    assert "is judged by" not in refused.out
    replaced = edge_daemon(
        "check",
        "--config",
        config,
        EDGE_ENGINE__PROVIDER="cuda",
        EDGE_ENGINE__FALLBACK="cpu",
        CUDA_VISIBLE_DEVICES="",
    )
    assert replaced.status == 0, replaced
    assert "the fallback CPUExecutionProvider runs" in replaced.out


@pytest.mark.parametrize("name", ["edge.toml", "simulated.toml"])
def test_the_examples_lack_nothing_but_their_recipes(edge_daemon: Callable[..., Ended], name: str) -> None:
    ended = edge_daemon("check", "--config", str(ROOT / "deploy" / "examples" / name), "--json")
    errors = [finding["text"] for finding in json.loads(ended.out)["findings"] if finding["level"] == "error"]
    assert errors
    assert all("there is no recipe" in error for error in errors), errors


# ---------------------------------------------------------------- run, schema, store


def test_run_refuses_a_wrong_configuration_with_a_status_that_systemd_knows(
    edge_daemon: Callable[..., Ended], tmp_path: Path
) -> None:
    config = write_config(tmp_path, "./gone.recipe", more="deadline = 3")
    ended = edge_daemon("run", "--config", config)
    assert ended.status == 78
    assert "edge.toml: 2 problems" in ended.err
    assert "✗ deadline (line 2): is no key of this table" in ended.err
    assert "✗ stations.st1.views[0].recipe (line 8): there is no recipe at" in ended.err
    assert "Traceback" not in ended.err


def test_the_configuration_is_found_through_the_environment(edge_daemon: Callable[..., Ended], tmp_path: Path) -> None:
    ended = edge_daemon("recipes", EDGE_CONFIG=str(tmp_path / "other.toml"))
    assert ended.status == 78
    assert "other.toml: there is no such file" in ended.err


def test_recipes_are_imported_listed_and_resolved(
    edge_daemon: Callable[..., Ended], recipe: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, "quarters@3")
    imported = edge_daemon("store", "import", str(recipe), "--config", config)
    assert imported.status == 0, imported
    assert "kept as quarters 3 (" in imported.out
    listed = json.loads(edge_daemon("store", "list", "--config", config, "--json").out)
    assert [(row["name"], row["version"], row["provisional"]) for row in listed] == [("quarters", "3", True)]
    rows = json.loads(edge_daemon("recipes", "--config", config, "--json").out)
    assert [(row["station"], row["camera"], row["digest"]) for row in rows] == [("st1", "top", listed[0]["digest"])]


def test_what_is_no_recipe_is_refused_without_a_stack_trace(edge_daemon: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "x.recipe").write_bytes(b"PK\x03\x04")
    ended = edge_daemon("store", "import", "x.recipe", "--store", "store")
    assert ended.status == 1
    assert ended.err.startswith("edge-daemon: recipe x.recipe cannot be read")
    assert "Traceback" not in ended.err


def test_schemas_are_json_and_an_unknown_one_names_the_others(edge_daemon: Callable[..., Ended]) -> None:
    schemas = json.loads(edge_daemon("schema").out)
    assert {"config", "result", "status", "event", "image"} <= schemas.keys()
    assert all(schema["$schema"].endswith("2020-12/schema") for schema in schemas.values())
    assert json.loads(edge_daemon("schema", "result").out) == schemas["result"]
    unknown = edge_daemon("schema", "reslut")
    assert unknown.status == 1
    assert "schemas: config, result" in unknown.err


def test_help_and_version_need_nothing(edge_daemon: Callable[..., Ended]) -> None:
    assert edge_daemon("--version").out == f"edge-daemon {__version__}\n"
    assert "edge-daemon check --config edge.toml" in edge_daemon("--help").out
    assert edge_daemon("chekc").status == 2


def test_pools_are_sized_before_a_library_that_reads_their_sizes() -> None:
    probe = (
        "import sys, edge_daemon.cli as cli\n"
        "early = {'numpy', 'cv2', 'faiss', 'onnxruntime', 'pydantic'} & set(sys.modules)\n"
        "import os; cli.main(['schema', 'config'])\n"
        "print(sorted(early), os.environ['OMP_WAIT_POLICY'], os.environ['OPENBLAS_NUM_THREADS'], file=sys.stderr)\n"
    )
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "OPENBLAS_", "MKL_"))}
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env=variables | {"EDGE_ENGINE__SEARCH_THREADS": "5"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr.strip() == "[] PASSIVE 5"
