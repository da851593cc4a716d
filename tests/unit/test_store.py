"""The recipe store: what it keeps, what it refuses, and what a power cut at any step leaves behind."""

import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from edge_daemon.artefact.pictures import encode_png
from edge_daemon.artefact.recipe import (
    MANIFEST,
    bank_bytes,
    load_recipe,
    manifest_bytes,
    read_files,
    sha256,
    write_recipe,
)
from edge_daemon.artefact.store import Store, recipe_set_digest
from edge_daemon.errors import RecipeDigestError, RecipeSchemaError, RecipeUnreadable, StoreError

BACKBONE = b"stands for an ONNX graph"


def recipe_files(
    name: str = "bottle",
    version: str = "1",
    created: str = "2026-01-01T00:00:00Z",
    backbone: bytes = BACKBONE,
    bank_value: float = 1.0,
) -> dict[str, bytes]:
    """The files of the smallest recipe whose bytes verify."""
    bank = bank_bytes(np.full((2, 4), bank_value, np.float32))
    golden = encode_png(np.zeros((16, 16, 3), np.uint8))
    fields = {
        "required_features": ["patchcore/1"],
        "name": name,
        "version": version,
        "created_utc": created,
        "detector": "patchcore",
        "view": {"frame_size": [16, 16]},
        "preprocess": {"resize": "area", "size": [16, 16], "resize_to": [16, 16]},
        "backbone": {
            "name": "tiny",
            "sha256": sha256(backbone),
            "file": "backbone.onnx",
            "precision": "fp32",
            "grid": [2, 2],
            "extent": [16, 16],
            "dim": 4,
        },
        "parameters": {
            "profile": "anomalib",
            "neighbours": 1,
            "metric": "euclidean",
            "upsampling": "nearest",
            "blur": "torch_reflect",
            "blur_sigma_px": 4.0,
        },
        "bank": {"file": "bank.safetensors", "sha256": sha256(bank), "rows": 2, "dim": 4},
        "thresholds": {"lower": 1.0, "upper": 1.0, "pixel": 1.0},
        "provisional": False,
        "calibration": {},
        "golden": [
            {
                "file": "golden/good.png",
                "sha256": sha256(golden),
                "kind": "good",
                "score": 0.5,
                "max_distance": 0.5,
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


def without_backbone(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same recipe, carrying only its backbone's digest."""
    fields = json.loads(files[MANIFEST])
    fields["backbone"]["file"] = None
    del fields["self_sha256"]
    return {MANIFEST: manifest_bytes(fields)} | {n: d for n, d in files.items() if n not in (MANIFEST, "backbone.onnx")}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe file and returns its path."""

    def write(**changes: object) -> Path:
        path = tmp_path / f"made-{len(list(tmp_path.iterdir()))}.recipe"
        write_recipe(path, recipe_files(**changes))  # type: ignore[arg-type]
        return path

    return write


# ---------------------------------------------------------------- keeping recipes


def test_an_imported_recipe_is_a_complete_recipe_directory(store: Store, recipe: Callable[..., Path]) -> None:
    source = recipe()
    stored = store.add(source)
    assert stored.path == store.path / "recipes" / "bottle" / f"1-{stored.digest[:12]}"
    assert read_files(stored.path) == read_files(source)
    assert load_recipe(stored.path).digest == stored.digest


def test_recipes_with_one_backbone_share_its_bytes(store: Store, recipe: Callable[..., Path]) -> None:
    first, second = store.add(recipe()), store.add(recipe(version="2", bank_value=2.0))
    inodes = {(stored.path / "backbone.onnx").stat().st_ino for stored in (first, second)}
    assert inodes == {(store.path / "blobs" / "sha256" / sha256(BACKBONE)).stat().st_ino}
    assert len(list((store.path / "blobs" / "sha256").iterdir())) == 3


def test_importing_twice_changes_nothing(store: Store, recipe: Callable[..., Path]) -> None:
    first = store.add(recipe())
    inode = (first.path / MANIFEST).stat().st_ino
    assert store.add(recipe()) == first
    assert (first.path / MANIFEST).stat().st_ino == inode
    assert store.list() == (first,)


def test_every_version_is_kept_and_found(store: Store, recipe: Callable[..., Path]) -> None:
    old = store.add(recipe(version="1.0", created="2026-01-01T00:00:00Z"))
    new = store.add(recipe(version="1.1", created="2026-03-01T00:00:00Z"))
    middle = store.add(recipe(version="1.0-fix", created="2026-02-01T00:00:00Z"))
    assert store.list() == (old, middle, new)
    assert store.find("bottle") == new
    assert store.find("bottle", "1.0") == old
    assert store.find("bottle", middle.digest) == store.find("bottle", middle.digest[:12]) == middle
    assert store.resolve("bottle") == new
    assert store.resolve(f"bottle@{old.digest[:8]}") == store.resolve(old.reference) == old
    assert store.by_digest(middle.digest) == middle


def test_a_version_made_twice_is_ambiguous_and_says_so(store: Store, recipe: Callable[..., Path]) -> None:
    store.add(recipe(bank_value=1.0))
    second = store.add(recipe(bank_value=2.0))
    with pytest.raises(StoreError, match=f"not unique.*{second.digest[:12]}"):
        store.find("bottle", "1")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("botle", "did you mean 'bottle'"),
        ("bottle@7", "versions: 1 "),
        ("bottle@", "no recipe bottle@ "),
        ("../bottle", "no recipe '../bottle'"),
        ("", "no recipe ''"),
    ],
)
def test_an_unknown_reference_says_what_there_is(
    store: Store, recipe: Callable[..., Path], reference: str, said: str
) -> None:
    store.add(recipe())
    with pytest.raises(StoreError, match=said):
        store.resolve(reference)


def test_an_absent_folder_is_an_empty_store(store: Store) -> None:
    assert store.list() == ()
    assert store.active("st1") is None
    with pytest.raises(StoreError, match="it is empty; import one"):
        store.find("bottle")
    assert not store.path.exists()


def test_a_recipe_may_carry_only_the_digest_of_a_backbone_that_is_there(
    store: Store, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    lean = tmp_path / "lean.recipe"
    write_recipe(lean, without_backbone(recipe_files(version="2")))
    with pytest.raises(StoreError, match="has no backbone"):
        store.add(lean)
    store.add(recipe())
    stored = store.add(lean)
    assert load_recipe(stored.path, store.backbone).backbone == BACKBONE


# ---------------------------------------------------------------- refusing


@pytest.mark.parametrize("name", ["recipe.json", "bank.safetensors", "backbone.onnx", "golden/good.png"])
def test_a_flipped_byte_is_refused_and_leaves_the_store_as_it_was(store: Store, tmp_path: Path, name: str) -> None:
    files = recipe_files()
    data = bytearray(files[name])
    data[len(data) // 2] ^= 1
    write_recipe(tmp_path / "bad", files | {name: bytes(data)})
    with pytest.raises((RecipeDigestError, RecipeUnreadable)):
        store.add(tmp_path / "bad")
    assert not store.path.exists()


def test_names_that_lead_out_of_the_recipe_are_refused(store: Store, tmp_path: Path) -> None:
    evil = tmp_path / "evil.recipe"
    with zipfile.ZipFile(evil, "w") as archive:
        for name, data in recipe_files().items():
            archive.writestr(name, data)
        archive.writestr("golden/../../../../owned", b"x")
    with pytest.raises(RecipeUnreadable, match="no part of a recipe"):
        store.add(evil)
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize("version", ["../../../owned", "..", "/etc", "", "x" * 128])
def test_a_version_is_never_a_path(store: Store, recipe: Callable[..., Path], version: str) -> None:
    stored = store.add(recipe(version=version))
    assert stored.path.resolve().parent == (store.path / "recipes" / "bottle").resolve()
    assert stored.version == version
    assert store.find("bottle", stored.digest) == stored


@pytest.mark.parametrize("version", ["a\0b", "\n", "\x1b[2J", "x" * 129])
def test_a_version_that_no_message_could_repeat_is_refused(recipe: Callable[..., Path], version: str) -> None:
    with pytest.raises(RecipeSchemaError):
        recipe(version=version)


@pytest.mark.parametrize("station", ["../st1", "", "a/b", ".hidden", "st 1", "st1\n", "x" * 65])
def test_a_station_is_never_a_path(store: Store, station: str) -> None:
    for use in (store.active, store.previous, store.rollback):
        with pytest.raises(StoreError):
            use(station)
    with pytest.raises(StoreError):
        store.activate(station, {"top": "0" * 64})


@pytest.mark.parametrize("digest", ["", "*", "../../x", "0" * 63, "0" * 65, "G" * 64])
def test_a_digest_is_never_a_path_or_a_pattern(store: Store, recipe: Callable[..., Path], digest: str) -> None:
    store.add(recipe())
    for use in (store.by_digest, store.backbone):
        with pytest.raises(StoreError):
            use(digest)


def test_a_damaged_backbone_is_never_given_out(store: Store, recipe: Callable[..., Path]) -> None:
    store.add(recipe())
    blob = store.path / "blobs" / "sha256" / sha256(BACKBONE)
    blob.chmod(0o644)
    blob.write_bytes(BACKBONE[:-1] + b"!")
    with pytest.raises(StoreError, match="damaged: import a recipe"):
        store.backbone(sha256(BACKBONE))


def test_a_damaged_recipe_is_named_and_healed_by_importing_it_again(store: Store, recipe: Callable[..., Path]) -> None:
    stored = store.add(recipe())
    for name in ("bank.safetensors", "recipe.json"):
        path = stored.path / name
        path.chmod(0o644)
        path.write_bytes(b"{}")
    assert store.list() == ()
    assert "import it again" in store.damaged()[0]
    assert store.add(recipe()) == stored
    assert load_recipe(stored.path).digest == stored.digest
    assert store.damaged() == ()
    assert len(list((store.path / "damaged").iterdir())) == 1


def test_a_full_disk_is_told_and_leaves_no_remains(
    store: Store, recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, source = store.add(recipe()), recipe(version="2")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"bottle cannot be kept.*No space left on device; nothing was changed"):
        store.add(source)
    assert store.list() == (kept,)
    assert not (store.path / "incoming").exists()


def test_a_file_system_without_links_gets_copies(
    store: Store, recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    source = recipe()
    assert read_files(store.add(source).path) == read_files(source)


# ---------------------------------------------------------------- what a station runs


def test_activation_is_remembered_and_taken_back_step_by_step(store: Store, recipe: Callable[..., Path]) -> None:
    a, b, c = (store.add(recipe(version=str(n))).digest for n in range(3))
    assert store.active("st1") is None
    for digest in (a, b, c):
        assert store.activate("st1", {"top": digest}).recipes == {"top": digest}
    again = Store(store.path)
    assert again.active("st1") == store.activate("st1", {"top": c})
    assert again.previous("st1") is not None
    assert again.rollback("st1").recipes == {"top": b}
    assert store.active("st1").recipes == {"top": b}  # type: ignore[union-attr]
    assert store.rollback("st1").recipes == {"top": a}
    with pytest.raises(StoreError, match="no recipe set before the active one"):
        store.rollback("st1")
    assert store.active("st1").recipes == {"top": a}  # type: ignore[union-attr]


def test_activating_the_active_set_again_does_not_lose_the_one_before(
    store: Store, recipe: Callable[..., Path]
) -> None:
    a, b = (store.add(recipe(version=str(n))).digest for n in range(2))
    for digest in (a, b, b, b):
        store.activate("st1", {"top": digest})
    assert store.rollback("st1").recipes == {"top": a}


def test_stations_do_not_disturb_each_other(store: Store, recipe: Callable[..., Path]) -> None:
    a, b = (store.add(recipe(version=str(n))).digest for n in range(2))
    store.activate("st1", {"top": a, "side": b})
    store.activate("st10", {"top": b})
    assert store.active("st1").recipes == {"top": a, "side": b}  # type: ignore[union-attr]
    assert store.active("st10").digest == recipe_set_digest({"top": b})  # type: ignore[union-attr]


@pytest.mark.parametrize("recipes", [{}, {"top": "short"}, {"": "0" * 64}, {"top": "0" * 64}])
def test_a_set_that_the_store_cannot_serve_is_not_activated(
    store: Store, recipe: Callable[..., Path], recipes: dict[str, str]
) -> None:
    stored = store.add(recipe())
    store.activate("st1", {"top": stored.digest})
    with pytest.raises(StoreError):
        store.activate("st1", recipes)
    assert store.active("st1").recipes == {"top": stored.digest}  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"schema": "edge-daemon/active/2"}', b"\xff" * 40])
def test_a_damaged_active_set_is_an_error_and_never_nothing(
    store: Store, recipe: Callable[..., Path], content: bytes
) -> None:
    store.activate("st1", {"top": store.add(recipe()).digest})
    path = store.path / "active" / "st1.json"
    path.chmod(0o644)
    path.write_bytes(content)
    for use in (store.active, store.rollback):
        with pytest.raises(StoreError, match="damaged"):
            use("st1")


def test_the_history_is_bounded(store: Store, recipe: Callable[..., Path]) -> None:
    a, b = (store.add(recipe(version=str(n))).digest for n in range(2))
    for n in range(70):
        store.activate("st1", {"top": a if n % 2 else b})
    assert len(json.loads((store.path / "active" / "st1.json").read_bytes())["sets"]) == 65


# ---------------------------------------------------------------- power cuts and neighbours


class PowerCut(BaseException):
    """Ends everything at once: nothing of ours catches it, so nothing is tidied up."""


_STEPS = ("fsync", "replace", "rename", "link", "mkdir", "open")


def _cut_after(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """From the given step on, every call that changes the disk ends in a PowerCut. Returns a count of calls."""
    calls = 0

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def stepped(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls > step:
                raise PowerCut(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, stepped)

    for name in _STEPS:
        wrap(name)
    return lambda: calls


def _power_cuts(
    prepare: Callable[[Path], Callable[[], object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Run an action with a power cut at its first step, its second, … until it passes. Yields each store."""
    for step in range(1000):
        place = tmp_path / f"store-{step}"
        action = prepare(place)
        with monkeypatch.context() as patch:
            _cut_after(step, patch)
            try:
                action()
                cut = False
            except PowerCut:
                cut = True
        yield place
        if not cut:
            assert step > 5, "the action was never interrupted"
            return


def test_a_power_cut_at_any_step_of_an_import_leaves_the_old_state_or_the_new(
    tmp_path: Path, recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = recipe(version="1"), recipe(version="2", backbone=b"another graph", bank_value=3.0)

    def prepare(place: Path) -> Callable[[], object]:
        Store(place).add(old)
        return lambda: Store(place).add(new)

    for place in _power_cuts(prepare, tmp_path, monkeypatch):
        store = Store(place)
        assert store.damaged() == ()
        assert [r.version for r in store.list()] in (["1"], ["1", "2"])
        for stored in store.list():
            load_recipe(stored.path, store.backbone)
        assert load_recipe(store.add(new).path).manifest.version == "2"
        assert [r.version for r in store.list()] == ["1", "2"]


@pytest.mark.parametrize("action", ["activate", "rollback"])
def test_a_power_cut_at_any_step_of_an_activation_leaves_the_old_set_or_the_new(
    tmp_path: Path, recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    sources = [recipe(version=str(n)) for n in range(3)]
    digests: list[str] = []

    def prepare(place: Path) -> Callable[[], object]:
        store = Store(place)
        digests[:] = [store.add(source).digest for source in sources]
        store.activate("st1", {"top": digests[0]})
        store.activate("st1", {"top": digests[1]})
        if action == "rollback":
            return lambda: Store(place).rollback("st1")
        return lambda: Store(place).activate("st1", {"top": digests[2]})

    after = 0 if action == "rollback" else 2
    for place in _power_cuts(prepare, tmp_path, monkeypatch):
        active = Store(place).active("st1")
        assert active is not None
        assert active.recipes["top"] in (digests[1], digests[after])
        Store(place).activate("st1", {"top": digests[after]})
        assert Store(place).active("st1").recipes["top"] == digests[after]  # type: ignore[union-attr]


def test_readers_and_several_writers_never_see_half_a_recipe(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    place = tmp_path / "store"
    sources = [recipe(version=str(n)) for n in range(6)]
    problems: list[object] = []
    done = threading.Event()

    def write(mine: list[Path]) -> None:
        try:
            for source in mine:
                digest = Store(place).add(source).digest
                Store(place).activate("st1", {"top": digest})
        except Exception as error:
            problems.append(error)

    def read() -> None:
        store = Store(place)
        try:
            while not done.is_set():
                problems.extend(store.damaged())
                for stored in store.list():
                    load_recipe(stored.path)
                active = store.active("st1")
                if active is not None:
                    store.by_digest(active.recipes["top"])
        except Exception as error:
            problems.append(error)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(part,)) for part in (sources, sources[::-1], sources[::2])]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert problems == []
    assert len(Store(place).list()) == len(sources)
