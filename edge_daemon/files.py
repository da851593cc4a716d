"""Files that must outlive a power cut."""

import os
from datetime import UTC, datetime
from pathlib import Path


def replace_durably(path: Path, text: str) -> None:
    """Write the file anew, whole or not at all; it is on the disk when this returns. Raises OSError."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """What was created or renamed in it is on the disk when this returns. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that what is left of it can be looked at: `NAME.damaged-UTC`. A database takes its log
    along, and SQLite's own tools can still open it. Never in place of one set aside before. Raises OSError."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    tries = 1
    while aside.exists():
        tries += 1
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{tries}")
    for suffix in ("-wal", "-shm", ""):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            os.replace(companion, aside.with_name(aside.name + suffix))
    sync_folder(path.parent)
    return aside
