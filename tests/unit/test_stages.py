"""Stage times as status tells them."""

from edge_daemon.pipeline.stages import Stages, WayOut

MS = 1_000_000


class Clock:
    now = 0

    def __call__(self) -> int:
        return self.now


def test_a_stage_shows_the_median_of_its_last_frames():
    stages = Stages()
    for ms in (1.0, 2.0, 100.0):
        stages.add("model", ms)
    stages.add("search", 4.0)
    assert stages.medians() == {"model": 2.0, "search": 4.0}
    for _ in range(512):
        stages.add("model", 7.0)
    assert stages.median("model") == 7.0
    assert stages.median("boxes") is None


def test_the_way_out_is_split_into_commit_and_the_rest():
    clock = Clock()
    way = WayOut(clock)
    assert way.stages_ms(3.0) == {}
    way.concluded("a")
    clock.now += 5 * MS
    way.published("a")
    assert way.stages_ms(3.0) == {"journal": 3.0, "publish": 2.0}
    assert way.stages_ms(9.0)["publish"] == 0.0


def test_what_never_set_out_is_not_counted_and_what_never_arrives_is_forgotten():
    clock = Clock()
    way = WayOut(clock)
    way.published("of the boot before")
    assert way.stages_ms(0.0) == {}
    way.concluded("second outcome")
    for i in range(5_000):
        way.concluded(str(i))
    clock.now += MS
    way.published("second outcome")
    assert way.stages_ms(0.0) == {}
    way.published("4999")
    assert way.stages_ms(0.0) == {"journal": 0.0, "publish": 1.0}
