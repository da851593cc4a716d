"""The audit trail: every command is in it before it is carried out, and nothing leaves it unseen."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_daemon import audit_cli, cli
from edge_daemon.edges.audit import AuditEntry, AuditError, AuditTrail, ControlAudit, Outcome, read_trail
from edge_daemon.edges.door import LOCAL, Peer
from edge_daemon.wire.messages import ControlFault, ControlReply, ControlRequest, JobState

ANNA = Peer("anna", "operator", "10.0.0.5")
MES = Peer("mes", "viewer", "10.0.0.6")


class Told:
    def __init__(self, path: Path) -> None:
        self.now_ns = 0
        self.entries: list[AuditEntry] = []
        self.trail = AuditTrail(path, lambda: "2026-11-21T08:00:00+00:00", self.entries.append, lambda: self.now_ns)
        self.audit = ControlAudit(self.trail)


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    made = Told(tmp_path / "audit.jsonl")
    made.trail.open()
    yield made
    made.trail.close()


def ask(command: str, **args: object) -> ControlRequest:
    return ControlRequest(request_id="q1", command=command, args=args)


def lines(path: Path) -> list[AuditEntry]:
    found = list(read_trail(path))
    assert not [line.problem for line in found if line.problem]
    return [line.entry for line in found if line.entry is not None]


def test_a_command_that_changes_something_stands_there_before_and_after_it(told: Told, tmp_path: Path) -> None:
    request = ask("drain", station="st1")
    assert told.audit.admit(ANNA, request) is None
    (begun,) = lines(tmp_path / "audit.jsonl")
    assert (begun.who, begun.role, begun.address) == ("anna", "operator", "10.0.0.5")
    assert (begun.command, begun.outcome, begun.args, begun.request_id) == ("drain", "begun", {"station": "st1"}, "q1")
    told.audit.ended(ANNA, request, ControlReply(ok=False, error=ControlFault(code="failed", message="no")))
    ended = lines(tmp_path / "audit.jsonl")[-1]
    assert (ended.outcome, ended.code, ended.message) == ("failed", "failed", "no")
    assert [entry.outcome for entry in told.entries] == ["begun", "failed"]


def test_a_command_beyond_a_role_is_refused_and_recorded(told: Told, tmp_path: Path) -> None:
    refusal = told.audit.admit(MES, ask("shutdown"))
    assert refusal is not None
    assert refusal.code == "forbidden"
    assert "engineer" in refusal.message
    (entry,) = lines(tmp_path / "audit.jsonl")
    assert (entry.who, entry.command, entry.outcome, entry.code) == ("mes", "shutdown", "refused", "forbidden")
    assert told.entries == [entry]


def test_a_thousand_of_the_same_are_one_line_and_a_sum(told: Told, tmp_path: Path) -> None:
    for _ in range(1000):
        told.audit.admit(MES, ask("shutdown"))
        told.audit.ended(ANNA, ask("status"), ControlReply(ok=True))
    assert len(lines(tmp_path / "audit.jsonl")) == 2
    assert len(told.entries) == 1
    told.now_ns = 61_000_000_000
    told.audit.admit(MES, ask("shutdown"))
    told.trail.close()
    assert [(e.command, e.times) for e in lines(tmp_path / "audit.jsonl")] == [
        ("shutdown", 1), ("status", 1), ("shutdown", 999), ("status", 999), ("shutdown", 1),
    ]  # fmt: skip


def test_what_a_slow_command_came_to_is_recorded_too(told: Told, tmp_path: Path) -> None:
    told.audit.job_ended(
        JobState(job="j1", command="activate", state="failed", error=ControlFault(code="failed", message="gone"))
    )
    (entry,) = lines(tmp_path / "audit.jsonl")
    assert (entry.who, entry.command, entry.outcome, entry.message) == ("job j1", "activate", "failed", "gone")


def test_nothing_is_changed_that_cannot_be_recorded(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told.audit.admit(LOCAL, ask("resume")) is None

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        refusal = told.audit.admit(LOCAL, ask("drain"))
        assert refusal is not None
        assert refusal.code == "audit"
        assert "No space left" in refusal.message
        assert "No space left" in told.trail.failing
        assert told.audit.admit(LOCAL, ask("status")) is None  # looking is always possible
        told.audit.ended(LOCAL, ask("status"), ControlReply(ok=True))
    assert told.audit.admit(LOCAL, ask("drain")) is None
    assert told.trail.failing == ""
    assert [entry.command for entry in lines(tmp_path / "audit.jsonl")] == ["resume", "drain"]


def test_the_numbers_and_the_chain_go_on_after_a_restart_and_a_torn_line_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for torn in (b"", b'{"number":2,"utc":"20'):
        made = Told(path)
        made.trail.open()
        assert made.audit.admit(ANNA, ask("drain")) is None
        made.trail.close()
        with path.open("ab") as file:
            file.write(torn)
    last = Told(path)
    last.trail.open()
    last.audit.admit(ANNA, ask("resume"))
    last.trail.close()
    assert [entry.number for entry in lines(path)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("old", "new"), [(b"anna", b"eva!"), (b'"drain","outcome":"begun"', b'"drain","outcome":"done"')]
)
def test_a_line_that_was_changed_or_taken_out_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: bytes, new: bytes
) -> None:
    path = tmp_path / "audit.jsonl"
    made = Told(path)
    made.trail.open()
    for command in ("drain", "resume", "drain"):
        made.audit.admit(ANNA, ask(command))
    made.trail.close()
    assert cli.main(["audit", "--file", str(path)]) == 0
    assert "anna operator 10.0.0.5  resume begun" in capsys.readouterr().out
    whole = path.read_bytes()
    path.write_bytes(whole.replace(old, new, 1))
    assert cli.main(["audit", "--file", str(path)]) == 1
    assert "line 2 does not follow" in capsys.readouterr().out
    path.write_bytes(b"".join(line for n, line in enumerate(whole.splitlines(keepends=True)) if n != 1))
    assert cli.main(["audit", "--file", str(path), "--json"]) == 1
    problem = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "line 2" in problem["problem"]


def test_a_trail_of_garbage_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"\xff\n[]\n{}\n\n")
    assert [line.entry for line in read_trail(path)] == [None] * 4
    made = Told(path)
    made.trail.open()
    assert made.audit.admit(ANNA, ask("drain")) is None
    made.trail.close()
    assert list(read_trail(path))[-1].problem == ""


def test_large_arguments_are_not_kept(told: Told, tmp_path: Path) -> None:
    told.audit.admit(ANNA, ask("drain", text="x" * 10_000))
    (entry,) = lines(tmp_path / "audit.jsonl")
    assert list(entry.args) == ["left_out_bytes"]


def test_a_trail_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="cannot be opened"):
        Told(tmp_path / "missing" / "audit.jsonl").trail.open()


@pytest.mark.parametrize(
    ("outcome", "code", "message", "told"),
    [
        ("failed", "failed", "there is no recipe 'x'", "activate failed: there is no recipe 'x'"),
        ("failed", "unknown_station", "there is no station", "activate failed: unknown_station: there is no station"),
        ("done", "", "job 56c6", "activate done: job 56c6"),
        ("done", "", "", "activate done"),
    ],
)
def test_an_entry_reads_as_a_sentence(outcome: Outcome, code: str, message: str, told: str) -> None:
    entry = AuditEntry(1, "2026-11-21T08:00:00Z", "eva", "", "", "activate", outcome, {}, code=code, message=message)
    assert audit_cli._text(entry).endswith(f"  {told}")
