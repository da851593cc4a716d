"""Activating a recipe by command: what is known to judge wrongly is taken up nowhere."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import pytest

from edge_daemon.pipeline.control import ControlDesk
from edge_daemon.pipeline.inspection import LiveRecipeSet
from edge_daemon.wire.messages import ControlReply, ControlRequest, JobState
from tests.unit.test_station import Line, live_recipes

ONE, OTHER = "d" * 64, "e" * 64
WRONG = "score 3 instead of 1"


class FakeRecipes:
    """Digests are their own references. `loading` is called while a set is loaded; cameras: what the manifest of a
    digest says of the camera."""

    def __init__(self) -> None:
        self.loading: Callable[[], None] = lambda: None
        self.cameras: dict[str, object] = {}
        self.said: list[str] = []

    def resolve(self, reference: str, _path: None) -> str:
        return reference

    def activate(
        self, station: str, digests: Mapping[str, str], refuse: Callable[[LiveRecipeSet], None]
    ) -> LiveRecipeSet:
        self.loading()
        self.said.append(f"{station} loads")
        sets = {
            view: live_recipes((view,), digest, camera=self.cameras.get(digest)) for view, digest in digests.items()
        }
        live = LiveRecipeSet.of({view: live.views[view] for view, live in sets.items()})
        refuse(live)
        return live

    def keep_only(self, digests: set[str]) -> None:
        self.said.append("keeps " + " ".join(sorted(digest[0] for digest in digests)))


class Desk:
    """Stations a, b, …, all of which run recipe ONE in their views."""

    def __init__(self, *views: tuple[str, ...]) -> None:
        self.lines = [Line(cameras=of_one).ready() for of_one in views]
        for line, name in zip(self.lines, "abcdef", strict=False):
            line.station.name = name
        self.recipes = FakeRecipes()
        self.ended: list[JobState] = []
        self.desk = ControlDesk(
            {line.station.name: line.station for line in self.lines},
            cast(Any, self.recipes),
            dict,
            lambda: None,
            lambda *_: None,
            dict,
            self.ended.append,
        )

    def activate(self, station: str, **recipes: str) -> str:
        """What came of it: empty, or why not."""
        replies: list[ControlReply] = []
        args = {"station": station, "recipes": recipes}
        self.desk.handle(ControlRequest(request_id="r", command="activate", args=args), replies.append)
        self.desk._worker.submit(lambda: None).result(timeout=10)
        assert replies[0].ok
        return self.ended[-1].error.message if self.ended[-1].error else ""


@pytest.fixture
def desk_of() -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(*views: tuple[str, ...]) -> Desk:
        made.append(Desk(*views))
        return made[-1]

    yield make
    for desk in made:
        desk.desk.close()


def test_a_recipe_that_fails_where_it_was_left_running_is_not_taken_up_again(desk_of: Callable[..., Desk]) -> None:
    it = desk_of(("top",), ("top",))
    left, kept = it.lines
    kept.golden("damaged.png", WRONG)
    assert it.activate("a", top=OTHER) == ""
    error = it.activate("a", top=ONE)
    assert "damaged.png comes out wrong at station b (score 3 instead of 1)" in error
    assert left.ready_now(), "it goes on with what it has"
    assert left.station.recipes is not None
    assert left.station.recipes.views["top"].recipe.digest == OTHER
    kept.golden("damaged.png")
    assert it.activate("a", top=ONE) == ""


def test_another_view_does_not_take_up_what_fails_in_this_one(desk_of: Callable[..., Desk]) -> None:
    it = desk_of(("left", "right"))
    (line,) = it.lines
    assert it.activate("a", left=ONE, right=OTHER) == ""
    line.golden("good.png", WRONG, view="left")
    assert "good.png comes out wrong" in it.activate("a", left=OTHER, right=ONE)
    assert not line.ready_now()


def test_a_station_may_change_one_view_while_another_fails_and_stays_unready(desk_of: Callable[..., Desk]) -> None:
    it = desk_of(("left", "right"))
    (line,) = it.lines
    it.activate("a", left=OTHER, right=ONE)
    line.golden("good.png", WRONG, view="left")
    assert it.activate("a", left=OTHER, right="f" * 64) == ""
    assert not line.ready_now()


def test_a_sample_that_fails_elsewhere_while_the_set_is_loaded_is_heard_of(desk_of: Callable[..., Desk]) -> None:
    it = desk_of(("top",), ("top",))
    left, kept = it.lines
    it.activate("a", top=OTHER)
    it.recipes.loading = lambda: cast(None, kept.golden("damaged.png", WRONG))
    assert it.activate("a", top=ONE) == ""
    assert not left.ready_now()
    left.golden("damaged.png")
    assert left.ready_now()


def test_what_no_station_runs_is_loaded_and_verified_anew(desk_of: Callable[..., Desk]) -> None:
    it = desk_of(("top",))
    it.activate("a", top=OTHER)
    assert it.recipes.said == ["keeps d", "a loads", "keeps e"]
