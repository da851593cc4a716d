"""Recipes that were damaged, cut, exchanged or written for somebody else: each refused by its own name."""

import base64
import hashlib
import json
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from edge_daemon.artefact.pictures import encode_png
from edge_daemon.artefact.recipe import (
    BACKBONE,
    BANK,
    MANIFEST,
    bank_bytes,
    load_recipe,
    manifest_bytes,
    manifest_digest,
    read_files,
    sha256,
    write_recipe,
)
from edge_daemon.errors import (
    EdgeError,
    RecipeDigestError,
    RecipeError,
    RecipeFeatureError,
    RecipeSchemaError,
    RecipeShapeError,
    RecipeUnreadable,
)

GOLDEN = "golden/good-1.png"


def fields(files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "required_features": ["patchcore/1"],
        "name": "bottle",
        "version": "1",
        "created_utc": "2026-01-01T00:00:00Z",
        "detector": "patchcore",
        "view": {"frame_size": [32, 24], "region": [4, 4, 16, 16]},
        "preprocess": {"resize": "antialias", "size": [16, 16], "resize_to": [16, 16]},
        "backbone": {
            "name": "none",
            "sha256": sha256(files[BACKBONE]),
            "file": BACKBONE,
            "precision": "fp32",
            "grid": [2, 2],
            "extent": [16, 16],
            "dim": 4,
        },
        "parameters": {
            "profile": "anomalib",
            "neighbours": 9,
            "metric": "euclidean",
            "upsampling": "nearest",
            "blur": "torch_reflect",
            "blur_sigma_px": 4.0,
        },
        "bank": {"file": BANK, "sha256": sha256(files[BANK]), "rows": 3, "dim": 4},
        "thresholds": {"lower": 1.0, "upper": 2.0, "pixel": 1.0},
        "provisional": False,
        "calibration": {},
        "golden": [
            {
                "file": GOLDEN,
                "sha256": sha256(files[GOLDEN]),
                "kind": "good",
                "score": 0.5,
                "max_distance": 0.6,
                "evaluation": "OK",
            }
        ],
        "provenance": {},
    }


def parts() -> dict[str, bytes]:
    bank = np.arange(12, dtype=np.float32).reshape(3, 4)
    frame = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return {BANK: bank_bytes(bank), BACKBONE: b"any graph", GOLDEN: encode_png(frame)}


def recipe_files(change: Callable[[dict[str, Any]], None] | None = None, **other: bytes) -> dict[str, bytes]:
    files = {**parts(), **other}
    content = fields(files)
    if change is not None:
        change(content)
    return {**files, MANIFEST: manifest_bytes(content)}


@pytest.fixture(params=["bottle", "bottle.recipe"], ids=["directory", "zip"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def put(path: Path, files: dict[str, bytes]) -> None:
    write_recipe(path, files)


def test_what_was_written_is_read_back(path: Path) -> None:
    put(path, recipe_files())
    recipe = load_recipe(path)
    assert recipe.bank.tolist() == np.arange(12).reshape(3, 4).tolist()
    assert recipe.backbone == b"any graph"
    assert recipe.golden[0].pixels.shape == (24, 32, 3)
    assert not recipe.bank.flags.writeable


def test_directory_and_zip_have_the_same_digest(tmp_path: Path) -> None:
    for name in ("a", "a.recipe"):
        put(tmp_path / name, recipe_files())
    assert load_recipe(tmp_path / "a").digest == load_recipe(tmp_path / "a.recipe").digest


def test_equal_recipes_are_equal_bytes(tmp_path: Path) -> None:
    put(tmp_path / "a.recipe", recipe_files())
    put(tmp_path / "b.recipe", recipe_files())
    assert (tmp_path / "a.recipe").read_bytes() == (tmp_path / "b.recipe").read_bytes()


@pytest.mark.parametrize("name", [MANIFEST, BANK, BACKBONE, GOLDEN])
@pytest.mark.parametrize("where", [0.0, 0.25, 0.5, 0.75, 0.999])
def test_a_flipped_byte_in_any_file_is_refused(path: Path, name: str, where: float) -> None:
    files = recipe_files()
    data = bytearray(files[name])
    data[int(where * len(data))] ^= 0x01
    put(path, {**files, name: bytes(data)})
    with pytest.raises((RecipeDigestError, RecipeUnreadable, RecipeSchemaError)):
        load_recipe(path)


def test_every_single_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    """A digit of a threshold changed on disk would otherwise still be a valid number."""
    files = recipe_files()
    raw = files[MANIFEST]
    for position in range(0, len(raw), 7):
        changed = bytearray(raw)
        changed[position] ^= 0x02
        put(tmp_path / "r", {**files, MANIFEST: bytes(changed)})
        with pytest.raises(RecipeError):
            load_recipe(tmp_path / "r")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_zip_is_unreadable(tmp_path: Path, share: float) -> None:
    path = tmp_path / "r.recipe"
    put(path, recipe_files())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(RecipeUnreadable):
        load_recipe(path)


def test_no_recipe_at_all_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.recipe").write_text("hello")
    for name in ("empty", "text.recipe", "missing.recipe"):
        with pytest.raises(RecipeUnreadable):
            load_recipe(tmp_path / name)


@pytest.mark.parametrize("name", [BANK, BACKBONE, GOLDEN])
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    files = recipe_files()
    put(path, {n: data for n, data in files.items() if n != name})
    with pytest.raises(RecipeUnreadable, match=name):
        load_recipe(path)


@pytest.mark.parametrize("name", ["notes.txt", "golden/../../x", "golden/more.png", "/etc/passwd", "golden/a/b.png"])
def test_a_file_that_is_no_part_of_the_recipe_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "r.recipe"
    put(path, {**recipe_files(), name: b"x"})
    with pytest.raises(RecipeUnreadable):
        load_recipe(path)


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r"
    put(path, recipe_files())
    (path / BANK).rename(tmp_path / "elsewhere")
    (path / BANK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecipeUnreadable):
        load_recipe(path)


def test_a_compressed_zip_is_refused_before_it_can_expand(tmp_path: Path) -> None:
    path = tmp_path / "r.recipe"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in recipe_files().items():
            archive.writestr(name, data)
    with pytest.raises(RecipeUnreadable):
        load_recipe(path)


def rewritten(change: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    """A recipe whose manifest says something else, with a digest that is right again."""
    files = recipe_files()
    content = json.loads(files[MANIFEST])
    change(content)
    content["self_sha256"] = "0" * 64
    raw = json.dumps(content, indent=2).encode()
    return {**files, MANIFEST: raw.replace(b"0" * 64, manifest_digest(raw).encode(), 1)}


@pytest.mark.parametrize("schema", ["edge-daemon/recipe/2", "", None, 1, ["edge-daemon/recipe/1"]])
def test_another_schema_version_is_refused_first(path: Path, schema: object) -> None:
    put(path, rewritten(lambda m: m.update(schema=schema, required_features=["unknown/9"])))
    with pytest.raises(RecipeSchemaError, match="schema"):
        load_recipe(path)


def test_a_feature_that_this_version_does_not_know_is_named(path: Path) -> None:
    put(path, rewritten(lambda m: m.update(required_features=["patchcore/1", "tiles/3"], tiles={})))
    with pytest.raises(RecipeFeatureError, match="tiles/3"):
        load_recipe(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(surprise=1),
        lambda m: m.pop("bank"),
        lambda m: m["thresholds"].update(lower=-1.0),
        lambda m: m["thresholds"].update(lower="1.0e999"),
        lambda m: m.update(golden=[]),
        lambda m: m.update(name="../x"),
        lambda m: m["bank"].update(rows=0),
        lambda m: m.update(detector="oracle"),
    ],
)
def test_a_manifest_that_does_not_fit_the_schema_is_refused(path: Path, change: Callable[[Any], None]) -> None:
    put(path, rewritten(change))
    with pytest.raises(RecipeSchemaError):
        load_recipe(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["thresholds"].update(lower=3.0),
        lambda m: m["view"].update(region=[20, 20, 16, 16]),
        lambda m: m["preprocess"].update(size=[64, 64]),
        lambda m: m["bank"].update(rows=4),
        lambda m: m["bank"].update(dim=5),
        lambda m: m["backbone"].update(dim=5),
        lambda m: m["view"].update(frame_size=[64, 48]),
    ],
)
def test_what_does_not_fit_together_is_refused(path: Path, change: Callable[[Any], None]) -> None:
    put(path, rewritten(change))
    with pytest.raises(RecipeShapeError):
        load_recipe(path)


@pytest.mark.parametrize(("size", "passes"), [((3, 3), True), ((2, 16), False), ((16, 2), False), ((1, 1), False)])
def test_health_limits_for_a_region_in_which_nothing_can_be_measured_are_refused(
    path: Path, size: tuple[int, int], passes: bool
) -> None:
    """They would let every picture pass, also a black one."""

    def small(content: dict[str, Any]) -> None:
        content["view"]["region"] = [4, 4, *size]
        content["required_features"].append("health/1")
        limit = {"lower": 50.0, "upper": 90.0, "centre": 70.0, "drift": 1.0, "deviation": 1.0}
        limits = {"brightness": {**limit, "smallest": 60.0, "largest": 80.0}}
        reference = base64.b64encode(bytes(64 * 64)).decode()
        content["health"] = {"reference": reference, "limits": limits, "evidence": {}}

    put(path, rewritten(small))
    with nullcontext() if passes else pytest.raises(RecipeShapeError, match="health cannot be measured in"):
        load_recipe(path)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_bank_that_is_not_finite_is_refused(path: Path, poison: float) -> None:
    bank = np.zeros((3, 4), np.float32)
    bank[2, 3] = poison
    put(path, recipe_files(**{BANK: bank_bytes(bank)}))
    with pytest.raises(RecipeShapeError, match="NaN or infinity"):
        load_recipe(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not safetensors",
        safetensors.numpy.save({"other": np.zeros((3, 4), np.float32)}),
        safetensors.numpy.save({"bank": np.zeros((3, 4), np.float64)}),
        safetensors.numpy.save({"bank": np.zeros((0, 4), np.float32)}),
    ],
)
def test_a_bank_of_another_kind_is_refused(path: Path, data: bytes) -> None:
    put(path, recipe_files(**{BANK: data}))
    with pytest.raises(RecipeShapeError):
        load_recipe(path)


def test_a_backbone_that_only_the_store_has_is_checked_against_its_digest(path: Path) -> None:
    files = recipe_files(lambda m: m["backbone"].update(file=None))
    graph = files.pop(BACKBONE)
    put(path, files)
    assert load_recipe(path, lambda digest: {hashlib.sha256(graph).hexdigest(): graph}[digest]).backbone == graph
    with pytest.raises(RecipeUnreadable, match="store"):
        load_recipe(path)
    with pytest.raises(RecipeDigestError):
        load_recipe(path, lambda _digest: b"another graph")


def test_a_failed_write_leaves_the_old_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.recipe"
    put(path, recipe_files())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_daemon.artefact.recipe.os.replace", full)
    with pytest.raises(Exception, match="No space left"):
        put(path, recipe_files(lambda m: m.update(version="2")))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.recipe"]


def test_a_recipe_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "r.recipe").write_bytes(b"")
    monkeypatch.setattr("edge_daemon.artefact.recipe.read_zip", refused)
    with pytest.raises(RecipeUnreadable, match="may not be read by this user: change its owner or its rights"):
        read_files(tmp_path / "r.recipe")


@pytest.mark.parametrize("out", ["/proc/r.recipe", "/proc/no/r"])
def test_a_place_where_nothing_can_be_made_is_an_error_in_a_sentence(out: str) -> None:
    with pytest.raises(EdgeError, match=f"the recipe cannot be written to {out}"):
        write_recipe(Path(out), {})
