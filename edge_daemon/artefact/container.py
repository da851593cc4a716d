"""A recipe's files as they lie on disk, a folder or a `.recipe` zip, read as if somebody had made them to do harm.

Only known names, only plain files, only stored (uncompressed) zip entries that do not overlap, and sizes are looked at
before anything is read: what is allocated is never more than lies on the disk, nor than a recipe may have.
"""

import os
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from edge_daemon.errors import RecipeUnreadable

MOST_FILES: Final = 256
MOST_BYTES: Final = 6 << 30  # twice a bank of 500,000 rows of 1,536 dimensions
_GOLDEN: Final = "golden"

# Of a zip's directory: 256 entries with names of at most 110 characters, and what others write beside them.
_MOST_DIRECTORY_BYTES: Final = 256 << 10
# APPNOTE.TXT 4.3.16, 4.3.15, 4.3.14: end of central directory record; its Zip64 locator and record before it.
_END, _LOCATOR, _END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_LOCAL_HEADER_BYTES: Final = 30

MostBytes = Callable[[str], int]
"""The most bytes that a file of this name may have; 0 for what is no part of a recipe."""


def read_folder(path: Path, most_bytes: MostBytes) -> dict[str, bytes]:
    """All files of a recipe folder; links, foreign and large files are refused. Raises RecipeUnreadable, OSError."""
    files: dict[str, bytes] = {}
    with _opened(path, None) as top:
        for name in _names(top, path):
            if name == _GOLDEN:
                with _opened(_GOLDEN, top, os.O_NOFOLLOW) as golden:
                    for below in _names(golden, path / _GOLDEN):
                        _add(files, golden, f"{_GOLDEN}/{below}", path, most_bytes)
            else:
                _add(files, top, name, path, most_bytes)
    return files


@contextmanager
def _opened(folder: Path | str, above: int | None, flags: int = 0) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | flags, dir_fd=above)
    try:
        yield handle
    finally:
        os.close(handle)


def _names(folder: int, path: Path) -> list[str]:
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) > MOST_FILES:
                raise RecipeUnreadable(f"recipe {path} holds more than {MOST_FILES} files: it is no recipe")
    return sorted(names)


def _add(files: dict[str, bytes], folder: int, name: str, path: Path, most_bytes: MostBytes) -> None:
    """Read one file of an open folder: the very file that was looked at, whatever is put in its place meanwhile."""
    most = min(most_bytes(name), MOST_BYTES - sum(map(len, files.values())))
    base = name.rpartition("/")[2]
    if most <= 0 or len(files) >= MOST_FILES or not stat.S_ISREG(os.lstat(base, dir_fd=folder).st_mode):
        raise _foreign(path, name)
    handle = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with open(handle, "rb", buffering=0) as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _foreign(path, name)
        if status.st_size > most:
            raise RecipeUnreadable(f"recipe {path}: {name} has {status.st_size} bytes, more than it may have")
        data = file.read(status.st_size) or b""
        if len(data) < status.st_size:  # more than the system reads at once
            data += b"".join(iter(lambda: file.read(status.st_size - len(data)) or b"", b""))
        files[name] = data


def _foreign(path: Path, name: str) -> RecipeUnreadable:
    return RecipeUnreadable(f"recipe {path} holds {name[:200]!r}, which is no part of a recipe: remove it")


def read_zip(path: Path, most_bytes: MostBytes) -> dict[str, bytes]:
    """All files of a `.recipe` zip. Raises RecipeUnreadable, OSError and what `zipfile` raises."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would block for ever
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise RecipeUnreadable(f"{path} is neither a file nor a folder")
        _check_end(file, path)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_entries(entries, archive.start_dir, path, most_bytes)
            return {entry.filename: archive.read(entry) for entry in entries}


def _check_end(file: BinaryIO, path: Path) -> None:
    """The file ends with an end record, without a comment, of a directory of a sane size: `zipfile` reads all of it,
    and makes an object of each entry, before it lets anybody look."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _END.size - _LOCATOR.size - _END_64.size))
    tail = file.read()
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\5\6") or not tail.endswith(b"\0\0"):
        raise RecipeUnreadable(f"recipe {path} cannot be read: it is truncated or damaged, or no recipe; copy it again")
    sizes = [_END.unpack(tail[-_END.size :])[5]]
    if len(tail) == _END.size + _LOCATOR.size + _END_64.size and tail.startswith(b"PK\6\6"):
        sizes.append(_END_64.unpack_from(tail)[8])
    if max(sizes) > _MOST_DIRECTORY_BYTES:
        raise RecipeUnreadable(f"recipe {path} lists more files than a recipe has")


def _check_entries(entries: Sequence[zipfile.ZipInfo], directory_at: int, path: Path, most_bytes: MostBytes) -> None:
    """Each a stored, plain file under a known name, once, and each byte of the file in one of them at most."""
    if len(entries) > MOST_FILES or sum(entry.file_size for entry in entries) > MOST_BYTES:
        raise RecipeUnreadable(f"recipe {path} is larger than a recipe may be")
    seen: set[str] = set()
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        if name in seen or name != entry.orig_filename or not most_bytes(name) or kind not in (0, stat.S_IFREG):
            raise _foreign(path, entry.orig_filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise RecipeUnreadable(
                f"recipe {path}: {name} is compressed or encrypted, and a recipe is neither: pack it with `zip -0`"
            )
        if entry.file_size > most_bytes(name):
            raise RecipeUnreadable(f"recipe {path}: {name} has {entry.file_size} bytes, more than it may have")
        if entry.header_offset < end:
            raise RecipeUnreadable(f"recipe {path}: {name} overlaps what is before it: the file is damaged or forged")
        end = entry.header_offset + _LOCAL_HEADER_BYTES + len(name) + entry.file_size
        seen.add(name)
    if end > directory_at:
        raise RecipeUnreadable(f"recipe {path} is truncated or damaged: copy it again")
