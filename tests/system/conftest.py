"""Recipes and folders of simulated parts, made once for all system tests."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_daemon.artefact.pictures import encode_png
from edge_daemon.simulation.defects import DefectKind
from edge_daemon.simulation.render import Scene
from export.build import RecipeRequest, build_recipe

SIZE = (128, 128)
GOOD = 40
SHOWN = 12
DEFECTS = {3: DefectKind.SCRATCH, 5: DefectKind.MISSING, 8: DefectKind.CHIP}


@dataclass(frozen=True)
class SmallLine:
    """A recipe of simulated flanges at 128 px, and a test set in MVTec's layout, all good ones first."""

    recipe: Path
    train: Path
    test: Path


def no_progress(_what: str, _total: int) -> AbstractContextManager[Callable[[int], object]]:
    return nullcontext(lambda _done: None)


def write_parts(folder: Path, scene: Scene, first: int, count: int, defects: dict[int, DefectKind]) -> None:
    folder.mkdir(parents=True)
    for offset in range(count):
        part = scene.part(seed=5, index=first + offset, defect=defects.get(offset))
        (folder / f"{offset:03d}.png").write_bytes(encode_png(part.pixels))


@pytest.fixture(scope="session")
def small_line(tmp_path_factory: pytest.TempPathFactory) -> SmallLine:
    """Built once; the recipe promises 10% false rejects, which 12 held-out parts support."""
    folder = tmp_path_factory.mktemp("small_line")
    scene = Scene("flange", SIZE)
    write_parts(folder / "train", scene, 0, GOOD, {})
    write_parts(folder / "data" / "test" / "good", scene, 1000, SHOWN, {})
    write_parts(folder / "data" / "test" / "mixed", scene, 2000, SHOWN, DEFECTS)
    recipe = folder / "flange.recipe"
    build_recipe(
        RecipeRequest(
            name="flange",
            images=folder / "train",
            out=recipe,
            created_utc="2026-01-01T00:00:00Z",
            version="1",
            size=SIZE,
            coreset_ratio=0.05,
        ),
        no_progress,
    )
    return SmallLine(recipe, folder / "train", folder / "data")
