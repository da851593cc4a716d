"""Log lines as journald gets them."""

import array
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_daemon.logs import JournalHandler, fields, start


class Journald:
    """A socket that reads what journald would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def entries(self) -> list[dict[str, str]]:
        found = []
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(1 << 20, 64)
            except BlockingIOError:
                return found
            for _level, _kind, payload in ancillary:
                descriptor = array.array("i", payload)[0]
                with os.fdopen(descriptor, "rb") as file:
                    data = os.pread(file.fileno(), 1 << 24, 0)
            found.append(_parse(data))

    def close(self) -> None:
        self._socket.close()


def _parse(data: bytes) -> dict[str, str]:
    entry = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        entry[name.decode()] = value.decode()
    return entry


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    other = Journald(tmp_path / "socket")
    yield other
    other.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[logging.Logger]:
    logger = logging.Logger("edge_daemon.app")
    handler = JournalHandler("edge-daemon", str(tmp_path / "socket"))
    logger.addHandler(handler)
    yield logger
    handler.close()


def test_a_line_carries_what_it_is_about(journald: Journald, log: logging.Logger) -> None:
    log.warning("trigger %s failed", "4711", extra=fields(station="st1", trigger_id="4711", recipe="", attempt=2))
    (entry,) = journald.entries()
    assert entry["MESSAGE"] == "trigger 4711 failed"
    assert entry["PRIORITY"] == "4"
    assert entry["SYSLOG_IDENTIFIER"] == "edge-daemon"
    assert (entry["STATION"], entry["TRIGGER_ID"], entry["ATTEMPT"]) == ("st1", "4711", "2")
    assert "RECIPE" not in entry
    assert entry["CODE_FUNC"] == "test_a_line_carries_what_it_is_about"


@pytest.mark.parametrize("text", ["two\nlines", "PRIORITY=0\nSTATION=st2", "\n", "größer \udcff", ""])
def test_no_text_becomes_a_field(journald: Journald, log: logging.Logger, text: str) -> None:
    log.info("%s", text, extra=fields(station="st1", trigger_id=text))
    (entry,) = journald.entries()
    shown = text.encode("utf-8", "replace").decode()
    assert (entry["MESSAGE"], entry["STATION"], entry["PRIORITY"]) == (shown, "st1", "6")
    assert entry.get("TRIGGER_ID", "") == shown


def test_a_traceback_and_a_line_too_long_for_a_datagram_arrive_whole(journald: Journald, log: logging.Logger) -> None:
    try:
        raise ValueError("the reason")
    except ValueError:
        log.exception("it failed")
    log.error("%s", "x" * 3_000_000)
    first, second = journald.entries()
    assert "ValueError: the reason" in first["MESSAGE"]
    assert second["MESSAGE"] == "x" * 3_000_000


def test_lines_wait_for_a_journal_that_restarts_and_a_thousand_are_kept(tmp_path: Path, log: logging.Logger) -> None:
    for number in range(1_200):
        log.info("line %d", number)
    journald = Journald(tmp_path / "socket")
    found: list[dict[str, str]] = []
    for number in range(1_000):  # a datagram socket takes only some at a time
        log.info("then %d", number)
        found += journald.entries()
    journald.close()
    texts = [entry["MESSAGE"] for entry in found]
    assert texts[:999] == [f"line {number}" for number in range(201, 1_200)]
    assert texts.count("201 lines are missing before this one: the system's journal did not take them") == 1


def test_a_journal_that_takes_nothing_does_not_hold_anybody_up(journald: Journald, log: logging.Logger) -> None:
    for number in range(5_000):
        log.info("line %d", number)
    assert journald.entries()[0]["MESSAGE"] == "line 0"


def test_lines_go_to_the_journal_only_where_standard_error_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[logging.Handler] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **options: chosen.extend(options["handlers"]))
    with (tmp_path / "stderr").open("w") as stream:
        stat = os.fstat(stream.fileno())
        start("edge-daemon", {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}, stream)
        start("edge-daemon", {"JOURNAL_STREAM": "1:2"}, stream)
        start("edge-daemon", {}, sys.stderr)
    assert [type(handler) for handler in chosen] == [JournalHandler, logging.StreamHandler, logging.StreamHandler]
    for handler in chosen:
        handler.close()
