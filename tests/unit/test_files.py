"""Files that must outlive a power cut, and damaged ones that must not be lost either."""

from pathlib import Path

from edge_daemon.files import replace_durably, set_aside


def test_a_file_is_written_anew_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    replace_durably(path, "new µ")
    assert path.read_text(encoding="utf-8") == "new µ"
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_a_damaged_database_takes_its_log_along_and_none_set_aside_before_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    kept = []
    for content in ("first", "second", "third"):
        path.write_text(content)
        path.with_name(path.name + "-wal").write_text(content + " log")
        kept.append(set_aside(path))
        assert list(tmp_path.glob("journal.sqlite")) == []
    assert len(set(kept)) == 3
    assert [aside.read_text() for aside in kept] == ["first", "second", "third"]
    assert [Path(f"{aside}-wal").read_text() for aside in kept] == ["first log", "second log", "third log"]
    assert all(aside.name.startswith("journal.sqlite.damaged-") for aside in kept)
