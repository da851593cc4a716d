"""Alarms stand until they are acknowledged: across restarts, full disks and damaged files, each event counted once."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.edges.standing import StandingAlarm, StandingAlarmError, StandingAlarms, _read
from edge_daemon.wire.roles import ROLES, permission

WAIT_S = 20.0


class At(StandingAlarms):
    """The alarms of a daemon, waited for."""

    def __init__(self, path: Path) -> None:
        self.changes: list[tuple[str, str]] = []
        self.defects: list[BaseException] = []
        times = iter(range(1, 10**6))
        super().__init__(path, lambda: f"utc{next(times)}", lambda *key: self.changes.append(key), self.defects.append)
        self.lost = self.open()

    def happens(self, key: str, station: str = "st1", name: str = "passed_without_ok") -> StandingAlarmError | None:
        return waited(lambda told: self.raise_alarm(station, name, key, f"part {key} passed", told))

    def ends(self, station: str = "st1", name: str | None = None, through: int | None = None) -> list[str]:
        texts: list[str] = []

        def begin(told: Callable[[Any], None]) -> None:
            def done(error: StandingAlarmError | None, said: list[str]) -> None:
                texts.extend(said)
                told(error)

            self.acknowledge(station, name, through, done)

        if (error := waited(begin)) is not None:
            raise error
        return texts

    @property
    def times(self) -> dict[str, int]:
        return {name: alarm["times"] for name, alarm in self.standing().get("st1", {}).items()}


def waited(begin: Callable[[Callable[[Any], None]], object]) -> Any:
    told, ended = [], threading.Event()

    def tell(error: Any) -> None:
        told.append(error)
        ended.set()

    begin(tell)
    assert ended.wait(WAIT_S)
    return told[0]


@contextlib.contextmanager
def at(path: Path) -> Iterator[At]:
    alarms = At(path)
    try:
        yield alarms
    finally:
        alarms.close()
        alarms.close()
        assert alarms.defects == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "standing-alarms.json"


def test_it_stands_over_restarts_until_it_is_acknowledged_and_then_no_more(path: Path) -> None:
    with at(path) as alarms:
        assert alarms.lost == ""
        assert alarms.happens("7") is None
        assert alarms.times == {"passed_without_ok": 1}
    with at(path) as alarms:
        assert alarms.times == {"passed_without_ok": 1}
        text = alarms.text("st1", "passed_without_ok")
        assert "since utc1: part 7 passed" in text
        assert "edge-ctl acknowledge st1" in text
        assert alarms.ends() == [text]
        assert alarms.text("st1", "passed_without_ok") == ""
        assert alarms.changes == [("st1", "passed_without_ok")]
    with at(path) as alarms:
        assert alarms.standing() == {}
        with pytest.raises(StandingAlarmError, match="no alarm stands"):
            alarms.ends()


def test_what_is_told_again_counts_once_also_after_restart_and_acknowledgement(path: Path) -> None:
    with at(path) as alarms:
        for key in ("7", "7", "8", "7"):
            alarms.happens(key)
        assert alarms.times == {"passed_without_ok": 2}
        assert "2 times since utc1, the last: part 8" in alarms.text("st1", "passed_without_ok")
        alarms.ends()
    with at(path) as alarms:
        alarms.happens("8")
        assert alarms.standing() == {}
        alarms.happens("9")
        assert alarms.times == {"passed_without_ok": 1}


def test_what_happened_after_the_operator_looked_is_not_acknowledged_with_it(path: Path) -> None:
    with at(path) as alarms:
        alarms.happens("1")
        seen = alarms.standing()["st1"]["passed_without_ok"]["raised"]
        alarms.happens("2")
        alarms.ends(name="passed_without_ok", through=seen)
        assert alarms.times == {"passed_without_ok": 1}
        for wrong in (seen, seen + 2, 0, -1):
            with pytest.raises(StandingAlarmError, match="cannot be acknowledged up to"):
                alarms.ends(name="passed_without_ok", through=wrong)
        alarms.ends(name="passed_without_ok", through=seen + 1)
        assert alarms.standing() == {}


def test_one_acknowledgement_ends_what_is_named_or_all_of_its_own_station(path: Path) -> None:
    with at(path) as alarms:
        alarms.happens("1")
        alarms.happens("1", name="alarms_lost")
        alarms.happens("1", station="st10")
        alarms.ends(name="alarms_lost")
        assert alarms.times == {"passed_without_ok": 1}
        alarms.happens("2", name="alarms_lost")
        assert len(alarms.ends()) == 2
        assert list(alarms.standing()) == ["st10"]


def test_a_disk_that_takes_nothing_is_said_and_neither_alarm_nor_acknowledgement_is_lost_or_half_done(
    path: Path,
) -> None:
    blocked = path.with_name(path.name + ".new")
    with at(path) as alarms:
        alarms.happens("1")
        blocked.mkdir()
        assert "cannot be written" in str(alarms.happens("2"))
        assert alarms.times == {"passed_without_ok": 2}, "it stands, and nobody is told that it is kept"
        assert "cannot be written" in str(alarms.happens("2"))
        with pytest.raises(StandingAlarmError, match="cannot be written"):
            alarms.ends()
        assert alarms.times == {"passed_without_ok": 2}
        blocked.rmdir()
        assert alarms.happens("2") is None
    with at(path) as alarms:
        assert alarms.times == {"passed_without_ok": 2}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"layout":2,"alarms":[]}',
        b'{"layout":1,"alarms":[{}]}',
        b'{"layout":1,"alarms":[{"station":"st1","name":"a","raised":true}]}',
        b'{"layout":1,"alarms":[{"station":7,"name":"a"}]}',
        b'{"layout":1,"alarms":[],"alarms":[]}',
        b"[" * 100_000,
    ],
)
def test_a_file_that_cannot_be_read_is_set_aside_and_said(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with at(path) as alarms:
        assert "may be lost" in alarms.lost
        assert alarms.standing() == {}
        (aside,) = path.parent.glob(path.name + ".damaged-*")
        assert aside.read_bytes() == content
        assert alarms.happens("1") is None
    with at(path) as alarms:
        assert (alarms.lost, alarms.times) == ("", {"passed_without_ok": 1})


@given(st.binary(max_size=200))
def test_no_bytes_make_reading_fall_over(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        _read(path)


def test_ten_thousand_accidents_keep_file_and_memory_small(path: Path) -> None:
    with at(path) as alarms:
        for number in range(10_000):
            alarms.raise_alarm("st1", "passed_without_ok", f"{number}-run-{number}", "x" * 5_000, lambda _error: None)
        assert alarms.happens("last") is None
        assert alarms.times == {"passed_without_ok": 10_001}
    assert path.stat().st_size < 64_000


def test_an_alarm_that_was_never_raised_does_not_stand() -> None:
    assert StandingAlarm("st1", "a").text == ""


def test_operators_may_acknowledge_and_who_only_looks_may_not() -> None:
    rule = permission("acknowledge")
    assert {role for role in ROLES if role in rule.roles} == {"operator", "engineer"}
    assert rule.changes
