"""What waits for the daemon outlives the gateway: full disks, damaged files and two gateways included."""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import pytest

from edge_daemon.gateway.amendments import MOST_KEPT, AmendmentQueue
from edge_daemon.gateway.errors import OutboxError
from edge_daemon.gateway.outbox import FILE, MOST_BYTES, Outbox, count_waiting
from edge_daemon.wire.messages import AmendmentRequest
from tests.unit.test_amendment_outbox import answer, message

WAIT_S = 20.0


class Opened(Outbox):
    """An outbox with what it told of."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.found: list[AmendmentRequest] = []
        self.defects: list[BaseException] = []
        super().__init__(folder, self.found.extend, self.defects.append, most_bytes)

    def settle(self) -> None:
        """Until everything is written."""
        self.written().result(WAIT_S)


@contextlib.contextmanager
def opened(folder: Path, most_bytes: int = MOST_BYTES) -> Iterator[Opened]:
    outbox = Opened(folder, most_bytes)
    outbox.open()
    try:
        yield outbox
    finally:
        outbox.close()
        assert outbox.defects == []


def left(folder: Path) -> list[int]:
    """The PLC's numbers of what the next gateway finds, in order."""
    with opened(folder) as outbox:
        outbox.settle()
        assert not outbox.alarms
        return [request.acquisition_id for request in outbox.found]


def test_what_was_kept_and_not_forgotten_is_found_byte_for_byte_by_the_next_gateway(tmp_path: Path) -> None:
    with opened(tmp_path / "state") as outbox:
        for number in range(1, 6):
            outbox.keep(message(number))
        outbox.keep(message(3))
        outbox.settle()
        outbox.forget(message(2).amendment_id)
        outbox.keep(message(6))
        outbox.forget(message(6).amendment_id)
        outbox.forget("never here")
    with opened(tmp_path / "state") as outbox:
        outbox.settle()
        assert outbox.found == [message(number) for number in (1, 3, 4, 5)]
        outbox.keep(outbox.found[0])
    assert left(tmp_path / "state") == [1, 3, 4, 5]


def test_a_file_as_a_killed_gateway_leaves_it_has_everything_that_was_said_to_be_written(tmp_path: Path) -> None:
    """As `kill -9` does: the files as they are at that moment, log and all, and nobody closes anything."""
    with opened(tmp_path / "lived") as outbox:
        for number in range(40):
            outbox.keep(message(number))
        outbox.settle()
        (tmp_path / "killed").mkdir()
        for name in (FILE, f"{FILE}-wal"):
            (tmp_path / "killed" / name).write_bytes((tmp_path / "lived" / name).read_bytes())
    assert left(tmp_path / "killed") == list(range(40))
    assert count_waiting(tmp_path / "killed") == 40


def test_what_waits_for_longer_than_a_second_is_in_the_synced_file_itself_without_the_log(tmp_path: Path) -> None:
    """The log alone is what a power cut may take."""

    def in_the_file() -> int:
        (tmp_path / "copy").write_bytes((tmp_path / FILE).read_bytes())
        with contextlib.closing(sqlite3.connect(tmp_path / "copy")) as copy:
            if not copy.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                return 0
            return int(copy.execute("SELECT count(*) FROM waiting").fetchone()[0])

    with opened(tmp_path) as outbox:
        for number in range(20):
            outbox.keep(message(number))
        outbox.settle()
        give_up_s = time.monotonic() + WAIT_S
        while in_the_file() < 20:
            assert time.monotonic() < give_up_s
            time.sleep(0.05)


def test_a_full_disk_is_an_alarm_until_there_is_room_and_nothing_is_said_to_be_written_meanwhile(
    tmp_path: Path,
) -> None:
    room = 16 * 4096
    with opened(tmp_path, room) as outbox:
        outbox.keep(message(0))
        outbox.settle()
        many = [message(number) for number in range(1, 400)]
        for request in many:
            outbox.keep(request)
        barrier = outbox.written()
        with pytest.raises(TimeoutError):
            barrier.result(0.2)
        assert "SQLITE_FULL" in outbox.alarms["outbox_failing"]
        assert "Make space" in outbox.alarms["outbox_failing"]
        for request in many[10:]:
            outbox.forget(request.amendment_id)
        barrier.result(WAIT_S)
        assert not outbox.alarms
    assert left(tmp_path) == list(range(11))


def test_a_folder_that_cannot_be_had_is_an_alarm_and_the_gateway_runs_on_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with opened(tmp_path / "file" / "state") as outbox:
        outbox.keep(message(1))
        with pytest.raises(TimeoutError):
            outbox.written().result(0.2)
        assert "only in memory" in outbox.alarms["outbox_failing"]
        (tmp_path / "file").unlink()
        outbox.settle()
        assert not outbox.alarms
    assert left(tmp_path / "file" / "state") == [1]


def test_a_second_gateway_does_not_take_the_file_of_the_first(tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        first.keep(message(1))
        first.settle()
        with opened(tmp_path) as second:
            second.keep(message(2))
            with pytest.raises(TimeoutError):
                second.written().result(0.2)
            assert "in use by another edge-gateway" in second.alarms["outbox_failing"]
            assert second.found == []
            first.close()
            second.settle()
            assert [request.acquisition_id for request in second.found] == [1]


def torn(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 3] = b"\xa5" * 4096
    path.write_bytes(content)


def another_program(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE other (x)")
        file.commit()


def no_message(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE waiting SET body = CAST('{}' AS BLOB) WHERE id = 7")
        file.commit()


def newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA user_version=2")


@pytest.mark.parametrize(
    ("harm", "least"),
    [
        (lambda path: path.write_bytes(b"no database"), 0),
        (lambda path: path.write_bytes(path.read_bytes()[:6000]), 0),
        (torn, 0),
        (another_program, 0),
        (no_message, 99),
        (newer, 100),
    ],
    ids=["garbage", "cut short", "a page torn", "of another program", "a row that is no message", "of a newer version"],
)
def test_a_damaged_file_is_set_aside_and_said_and_what_can_be_read_is_told(
    tmp_path: Path, harm: Callable[[Path], object], least: int
) -> None:
    with opened(tmp_path) as outbox:
        for number in range(100):
            outbox.keep(message(number))
        outbox.settle()
    harm(tmp_path / FILE)
    with opened(tmp_path) as outbox:
        outbox.keep(message(1000))
        outbox.settle()
        assert set(outbox.alarms) == {"outbox_damaged"}
        assert "was kept as" in outbox.alarms["outbox_damaged"]
        rescued = [request.acquisition_id for request in outbox.found]
    assert least <= len(rescued) <= 100
    assert list(tmp_path.glob(f"{FILE}.damaged-*"))
    assert sorted(left(tmp_path)) == [*rescued, 1000]


def test_a_damaged_file_that_cannot_be_set_aside_is_an_alarm_and_not_tried_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(path: Path) -> Path:
        tried.append(path)
        raise OSError(30, "Read-only file system")

    (tmp_path / FILE).write_bytes(b"garbage" * 1_000)
    monkeypatch.setattr("edge_daemon.gateway.outbox.set_aside", fails)
    with opened(tmp_path) as outbox:
        outbox.keep(message(1))
        with pytest.raises(TimeoutError):
            outbox.written().result(0.3)
        assert "Read-only" in outbox.alarms["outbox_failing"]
        assert len(tried) == 1


def test_who_no_longer_waits_for_a_disk_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with opened(tmp_path / "file" / "state") as outbox:
        for _ in range(50):
            assert outbox.written().cancel()
        (tmp_path / "file").unlink()
        outbox.settle()
        assert outbox._barriers == []


def test_a_file_that_is_damaged_while_it_is_used_is_written_anew_with_all_that_waits(tmp_path: Path) -> None:
    with opened(tmp_path) as outbox:
        for number in range(50):
            outbox.keep(message(number))
        outbox.settle()
        with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as other:
            other.execute("DROP TABLE waiting")
            other.commit()
        outbox.keep(message(50))
        outbox.settle()
        assert set(outbox.alarms) == {"outbox_damaged"}
        assert outbox.found == []
    assert left(tmp_path) == list(range(51))


def test_an_outbox_that_is_full_of_a_day_without_daemon_fits_its_file() -> None:
    """The queue bounds it; the longest that is told, as often as may wait, is half of what the file may take."""
    longest = max(len(message(n).model_dump_json()) for n in (0, 2**32 - 1)) + 5 * 64
    assert MOST_KEPT * 2 * longest < MOST_BYTES


def test_the_queue_says_what_waits_no_longer_and_an_alarm_stands_while_it_overflows() -> None:
    gone: list[str] = []
    queue = AmendmentQueue(most_kept=10, on_gone=gone.append)
    for number in range(10):
        queue.put(message(number))
    assert (gone, queue.alarm) == ([], "")
    queue.put(message(10))
    assert gone == [message(0).amendment_id]
    assert "1 more than may" in queue.alarm
    told = 0
    while len(queue) >= 5:
        assert queue.alarm
        for request in queue.due(0)[:1]:
            queue.answered(answer(request), 0)
            told += 1
        for request_id in list(queue._flying):
            queue._again(request_id, -(10**12))
    assert queue.alarm == ""
    assert len(gone) == told + 1
    (sent, *_) = queue.due(10**12)
    queue.answered(answer(sent, ok=False, reason="unknown_result"), 10**12)
    assert gone[-1] == sent.amendment_id


def test_a_count_of_what_waits_takes_nothing_and_makes_nothing(tmp_path: Path) -> None:
    assert count_waiting(tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()
    (tmp_path / FILE).write_bytes(b"garbage")
    with pytest.raises(OutboxError):
        count_waiting(tmp_path)


def test_writing_is_never_waited_for_by_who_hands_over(tmp_path: Path) -> None:
    """Another program holds the file; everything else goes on."""
    with opened(tmp_path) as outbox:
        outbox.settle()
        with contextlib.closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            handed: Queue[int] = Queue()
            for number in range(1_000):
                outbox.keep(message(number))
                outbox.forget(message(number - 500).amendment_id) if number >= 500 else None
                handed.put(number)
            assert handed.qsize() == 1_000
            assert not outbox.written().done()
            other.execute("ROLLBACK")
        outbox.settle()
    assert left(tmp_path) == list(range(500, 1_000))
