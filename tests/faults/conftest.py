"""What the tests of faults share: a recipe for what the fake cameras show, and the table that is printed at the end."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from edge_daemon.artefact.pictures import encode_png
from export.build import RecipeRequest, build_recipe
from tests.faults.line import SIDE_PX, Account, Factory, Line

# The table of all faults, by CI and by `make faults`; otherwise a short selection of it.
EVERYTHING = bool(os.environ.get("EDGE_TEST_FAULTS") or os.environ.get("EDGE_TEST_CAMERA_FAULTS"))
_ACCOUNTS = pytest.StashKey[list[Account]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "long: only with EDGE_TEST_CAMERA_FAULTS=1, or EDGE_TEST_FAULTS=1 (`make faults`)"
    )
    config.stash[_ACCOUNTS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and not EVERYTHING:
            item.add_marker(pytest.mark.skip(reason="takes long; `make faults` runs it"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    accounts = config.stash.get(_ACCOUNTS, [])
    if not accounts:
        return
    terminalreporter.section("faults of cameras, as the line sees them")
    for account in accounts:
        terminalreporter.write_line(str(account))


@pytest.fixture
def account(request: pytest.FixtureRequest) -> Callable[[Account], None]:
    """Adds a line to the table."""
    return request.config.stash[_ACCOUNTS].append


def ramp(phase: int, side_px: int = SIDE_PX) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """What the fake GigE camera draws: level = x + y + its number, modulo 255."""
    x = np.arange(side_px)
    return ((x[:, None] + x[None, :] + phase) % 255).astype(np.uint8)


def quiet(_what: str, _total: int) -> AbstractContextManager[Callable[[int], object]]:
    return nullcontext(lambda _done: None)


def ramp_recipe(folder: Path, side_px: int, model_px: int | None, coreset_ratio: float = 0.05) -> Path:
    """A recipe for pictures of the fake camera: side_px wide, judged at model_px (None: the backbone's own)."""
    (folder / "good").mkdir(parents=True)
    for number in range(45):
        (folder / f"good/{number:02d}.png").write_bytes(encode_png(ramp(number * 255 // 45, side_px)))
    out = folder / "ramp.recipe"
    request = RecipeRequest(
        name="ramp", images=folder / "good", out=out, created_utc="2026-01-01T00:00:00Z", version="1",
        size=(model_px, model_px) if model_px else None, coreset_ratio=coreset_ratio,
    )  # fmt: skip
    build_recipe(request, quiet)
    return out


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For pictures of SIDE_PX, judged at 96 px so that it costs little. Its good pictures lie beside it."""
    return ramp_recipe(tmp_path_factory.mktemp("ramp"), SIDE_PX, 96)


@pytest.fixture
def make_line(tmp_path: Path, recipe: Path) -> Iterator[Factory]:
    """`make_line(camera, **options)`: a line whose station `hurt` has the camera of that table; see `Line`."""
    made: list[Line] = []

    def make(camera: str, **options: object) -> Line:
        made.append(Line(tmp_path / f"line{len(made)}", recipe, camera, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for line in made:
        line.end()
