"""Which search engine is taken: measured once, remembered, and never a reason not to judge."""

import itertools
import json
from pathlib import Path

import pytest

from edge_daemon.engines.choice import Choice, Choices, Kind, by_rule, candidates, cpu_model, in_turn
from edge_daemon.errors import EdgeError

KIND = Kind("a processor", 2, "CPUExecutionProvider", 1024, 384, 1024, "version 1")


def never() -> dict[str, float]:
    raise AssertionError("not to be measured")


def test_a_kind_is_measured_once_and_remembered_by_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    first = Choices(path).choose(KIND, 1000, lambda: {"certified": 3.0, "flat": 1.0})
    assert (first.engine, first.why) == ("flat", "measured")
    again = Choices(path).choose(KIND, 1000, never)
    assert (again.engine, again.why, again.ms) == ("flat", "remembered", {"certified": 3.0, "flat": 1.0})
    assert [p.name for p in tmp_path.iterdir()] == ["engines.json"]


@pytest.mark.parametrize(
    "other",
    [
        Kind("another processor", 2, "CPUExecutionProvider", 1024, 384, 1024, "version 1"),
        Kind("a processor", 4, "CPUExecutionProvider", 1024, 384, 1024, "version 1"),
        Kind("a processor", 2, "CUDAExecutionProvider", 1024, 384, 1024, "version 1"),
        Kind("a processor", 2, "CPUExecutionProvider", 2048, 384, 1024, "version 1"),
        Kind("a processor", 2, "CPUExecutionProvider", 1024, 96, 1024, "version 1"),
        Kind("a processor", 2, "CPUExecutionProvider", 1024, 384, 784, "version 1"),
        Kind("a processor", 2, "CPUExecutionProvider", 1024, 384, 1024, "version 2"),
    ],
)
def test_another_pc_bank_or_version_is_measured_for_itself(tmp_path: Path, other: Kind) -> None:
    choices = Choices(tmp_path / "engines.json")
    choices.choose(KIND, 1000, lambda: {"certified": 3.0, "flat": 1.0})
    assert choices.choose(other, 1000, lambda: {"certified": 1.0, "flat": 3.0}).engine == "certified"
    assert choices.choose(KIND, 1000, never).engine == "flat"
    assert len(choices.measurements()) == 2


def test_what_is_hardly_faster_does_not_replace_the_rule(tmp_path: Path) -> None:
    found = Choices(tmp_path / "engines.json").choose(KIND, 1000, lambda: {"certified": 1.0, "flat": 0.95})
    assert found.engine == by_rule(1000) == "certified"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"schema": "edge-daemon/engines/2", "measurements": []}',
        b'{"schema": "edge-daemon/engines/1", "measurements": [{"kind": {}, "ms": {"flat": 1}}]}',
    ],
)
def test_a_damaged_file_leaves_the_rule_says_so_and_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "engines.json"
    path.write_bytes(content)
    found = Choices(path).choose(KIND, 1000, never)
    assert (found.engine, found.why) == ("certified", "rule")
    assert "damaged" in found.reason
    assert "--forget" in found.reason
    assert path.read_bytes() == content
    assert Choices(path).forget()
    assert Choices(path).choose(KIND, 1000, lambda: {"flat": 1.0, "certified": 2.0}).why == "measured"


@pytest.mark.parametrize("ms", [{"magic": 1.0}, {"flat": -1.0}, {"flat": None}, {}])
def test_an_engine_that_nobody_knows_is_a_damaged_file(tmp_path: Path, ms: dict[str, float]) -> None:
    path = tmp_path / "engines.json"
    Choices(path).choose(KIND, 1000, lambda: {"flat": 1.0, "certified": 2.0})
    data = json.loads(path.read_bytes())
    data["measurements"][0]["ms"] = ms
    path.write_text(json.dumps(data))
    assert Choices(path).choose(KIND, 1000, never).why == "rule"
    with pytest.raises(EdgeError, match="damaged"):
        Choices(path).measurements()


def test_a_folder_that_is_not_there_leaves_the_rule_without_measuring(tmp_path: Path) -> None:
    found = Choices(tmp_path / "gone" / "engines.json").choose(KIND, 100, never)
    assert (found.engine, found.why) == ("flat", "rule")
    assert "cannot be written" in found.reason


def test_a_file_that_cannot_be_replaced_leaves_the_rule_and_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    found = Choices(tmp_path / "engines.json").choose(KIND, 1000, lambda: {"flat": 1.0, "certified": 2.0})
    assert (found.engine, found.why) == ("certified", "rule")
    assert "No space left" in found.reason
    assert list(tmp_path.iterdir()) == []


def test_who_may_not_measure_reads_only(tmp_path: Path) -> None:
    found = Choices(tmp_path / "engines.json", may_measure=False).choose(KIND, 1000, never)
    assert found == Choice("certified", "rule", "the daemon measures when it first loads this recipe")
    assert list(tmp_path.iterdir()) == []


def test_ways_take_turns_the_first_turn_does_not_count_and_the_time_is_bounded() -> None:
    now = [0.0]
    costs = {"slow": itertools.repeat(0.1), "fast": itertools.chain([5.0], itertools.repeat(0.01))}
    turns: list[tuple[str, int]] = []

    def way(name: str, turn: int) -> None:
        turns.append((name, turn))
        now[0] += next(costs[name])

    found = in_turn(
        {name: lambda turn, name=name: way(name, turn) for name in costs},  # type: ignore[misc]
        budget_s=5.5,
        clock_s=lambda: now[0],
    )
    assert found == {"slow": pytest.approx(100), "fast": pytest.approx(10)}
    assert turns[:4] == [("slow", 0), ("fast", 0), ("slow", 1), ("fast", 1)]
    assert now[0] < 5.5 + 0.2


def test_a_way_that_takes_all_the_time_has_one_turn_and_is_measured_by_it() -> None:
    now = [0.0]

    def way(_turn: int) -> None:
        now[0] += 2.0

    assert in_turn({"a": way, "b": way}, budget_s=0.5, clock_s=lambda: now[0]) == {"a": 2000.0, "b": 2000.0}
    assert now[0] == 4.0


def test_a_large_bank_is_never_copied_for_a_search_that_cannot_win() -> None:
    assert candidates(1000, "CPUExecutionProvider") == ("certified", "flat")
    assert candidates(100_000, "CPUExecutionProvider") == ("certified",)
    assert candidates(100_000, "CUDAExecutionProvider") == ("certified", "graph")


def test_banks_of_similar_size_are_one_kind_and_the_processor_has_a_name(tmp_path: Path) -> None:
    same = {Kind.of((rows, 96), 1024, "CPUExecutionProvider") for rows in (1025, 1500, 2048)}
    assert len(same) == 1
    assert Kind.of((2049, 96), 1024, "CPUExecutionProvider") not in same
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name\t: Some CPU @ 3.00GHz\n")
    assert cpu_model(cpuinfo) == "Some CPU @ 3.00GHz"
    assert cpu_model(tmp_path / "none")
