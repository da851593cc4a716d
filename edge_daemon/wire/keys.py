"""Keys as files: the daemon's own, one for each client, and the list of who may connect.

Connections are encrypted and authenticated with CURVE (rfc.zeromq.org/spec/26): each side has a pair of keys, written
as 40 characters of Z85. In the keys folder lie

    server.key      secret, mode 0600: the daemon's pair; systemd's $CREDENTIALS_DIRECTORY may hold it instead
    clients.toml    no secret: the daemon's public key, and name, role and public key of every client

and each client has one file of its own, secret, mode 0600, with everything that it needs. Files are TOML; the list is
replaced in one step, so that a reader sees the old one or the new one.
"""

import fcntl
import os
import re
import stat
import struct
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import zmq
from zmq.utils import z85

from edge_daemon.errors import EdgeError
from edge_daemon.files import sync_folder
from edge_daemon.wire.roles import ROLES, Role

SERVER_FILE: Final = "server.key"
CLIENTS_FILE: Final = "clients.toml"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEY_CHARS: Final = 40
# A list of a thousand clients takes 150 kB.
_MOST_BYTES: Final = 1_000_000


class KeyFileError(EdgeError):
    """A key file is missing, damaged, readable by others, or in the way of a new one."""


@dataclass(frozen=True, slots=True)
class ServerKey:
    """The daemon's pair. Z85, 40 bytes each."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientKey:
    """What a client needs: its own pair, and the public key of the daemon that it will speak to and no other."""

    name: str
    role: Role
    public: bytes
    server_public: bytes
    secret: bytes = field(repr=False)

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        """Before the socket connects."""
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server_public)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret)


@dataclass(frozen=True, slots=True)
class EnrolledClient:
    """One entry of the list."""

    name: str
    role: Role
    public: bytes
    enrolled_utc: str


@dataclass(frozen=True, slots=True)
class ClientList:
    """clients.toml: whose daemon it is, and the clients in the order of their enrolment."""

    server_public: bytes
    clients: tuple[EnrolledClient, ...]


# --- reading ------------------------------------------------------------------------------------------------------


def read_server_key(folder: Path, credentials: Path | None = None) -> ServerKey:
    """The daemon's pair; the one in `credentials` ($CREDENTIALS_DIRECTORY) wins. Raises KeyFileError."""
    if credentials is not None and (credentials / SERVER_FILE).exists():
        return _server_key(credentials / SERVER_FILE, secret=False)  # systemd guards that folder by itself
    return _server_key(folder / SERVER_FILE, secret=True)


def _server_key(path: Path, *, secret: bool) -> ServerKey:
    table = _read(path, secret=secret)
    return ServerKey(*_pair(path, table))


def read_client_key(path: Path) -> ClientKey:
    """A client's file. Raises KeyFileError."""
    in_credentials = os.environ.get("CREDENTIALS_DIRECTORY") == str(path.absolute().parent)
    table = _read(path, secret=not in_credentials)
    public, secret = _pair(path, table)
    return ClientKey(
        name=_name(path, table.get("name")),
        role=_role(path, table.get("role")),
        public=public,
        server_public=_key(path, "server_public_key", table),
        secret=secret,
    )


def read_client_list(folder: Path) -> ClientList:
    """Raises KeyFileError; a list with one wrong entry is no list."""
    path = folder / CLIENTS_FILE
    table = _read(path, secret=False)
    entries = table.get("clients", {})
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise KeyFileError(f"{path}: `clients` is no table of tables")
    unknown = set(table) - {"server_public_key", "clients"}
    if unknown:
        raise KeyFileError(f"{path}: {', '.join(sorted(unknown))} is no key of this file")
    clients = tuple(_client(path, name, entry) for name, entry in entries.items())
    if len({client.public for client in clients}) != len(clients):
        raise KeyFileError(f"{path}: two clients have the same key; nobody could tell who did what: revoke one")
    return ClientList(_key(path, "server_public_key", table), clients)


def _client(path: Path, name: str, entry: Mapping[str, Any]) -> EnrolledClient:
    unknown = set(entry) - {"role", "public_key", "enrolled_utc"}
    if unknown:
        raise KeyFileError(f"{path}: {', '.join(sorted(unknown))} is no key of client {name!r}")
    return EnrolledClient(
        name=_name(path, name),
        role=_role(path, entry.get("role")),
        public=_key(path, "public_key", entry),
        enrolled_utc=str(entry.get("enrolled_utc", "")),
    )


def _read(path: Path, *, secret: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path} is no file")
            if secret and status.st_mode & 0o077:
                raise KeyFileError(
                    f"{path} is a secret that others on this PC can read; `chmod 600 {path}`, and if it lay open for "
                    "long, revoke it and enrol anew"
                )
            text = file.read(_MOST_BYTES + 1)
    except OSError as exc:
        raise KeyFileError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if len(text) > _MOST_BYTES:
        raise KeyFileError(f"{path} has more than {_MOST_BYTES} bytes: it is no key file")
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as exc:  # also of a number of more digits than Python reads
        raise KeyFileError(f"{path} is damaged: {exc}") from exc


def _pair(path: Path, table: Mapping[str, Any]) -> tuple[bytes, bytes]:
    public, secret = _key(path, "public_key", table), _key(path, "secret_key", table)
    if zmq.curve_public(secret) != public:
        raise KeyFileError(f"{path} is damaged: its two keys do not belong together")
    return public, secret


def _key(path: Path, field_name: str, table: Mapping[str, Any]) -> bytes:
    value = table.get(field_name)
    try:
        if isinstance(value, str) and len(value) == _KEY_CHARS and len(z85.decode(value.encode("ascii"))) == 32:
            return value.encode("ascii")
    except (ValueError, KeyError, struct.error):  # what z85.decode raises has no common name
        pass
    raise KeyFileError(f"{path}: {field_name} is no key: {_KEY_CHARS} characters of Z85")


def _name(path: Path, value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise KeyFileError(f"{path}: {value!r} is no name: 1 to 64 letters, digits, '_', '-' or '.'")
    return value


def _role(path: Path, value: object) -> Role:
    if value not in ROLES:
        raise KeyFileError(f"{path}: there is no role {value!r}; roles: {', '.join(ROLES)}")
    return value


# --- writing ------------------------------------------------------------------------------------------------------


def create_server_key(folder: Path) -> ServerKey:
    """A new pair and an empty list in a folder that has none. Raises KeyFileError."""
    _make_folder(folder)
    with _locked(folder):
        for name in (SERVER_FILE, CLIENTS_FILE):
            if (folder / name).exists():
                raise KeyFileError(
                    f"{folder / name} is there already. A new pair would shut out every client: to make one all the "
                    "same, move the old files away first and enrol every client anew"
                )
        public, secret = zmq.curve_keypair()
        _write_list(folder, ClientList(public, ()))
        head = "# The daemon's own key. Secret: whoever has it can pretend to be this daemon.\n"
        _write_new(folder / SERVER_FILE, f"{head}{_line('public_key', public)}{_line('secret_key', secret)}", 0o600)
    return ServerKey(public, secret)


def enrol(folder: Path, name: str, role: Role, out: Path) -> ClientKey:
    """A new client: its file is written to `out`, its name to the list. Raises KeyFileError; nothing is left then."""
    _name(folder / CLIENTS_FILE, name)
    with _locked(folder):
        known = read_client_list(folder)
        if any(client.name == name for client in known.clients):
            raise KeyFileError(f"there is a client {name!r} already; revoke it first, or choose another name")
        public, secret = zmq.curve_keypair()
        key = ClientKey(name, role, public, known.server_public, secret)
        text = (
            f"# Key of client {name}. Secret: whoever has this file is {name}, with the role {role}.\n"
            f'name = "{name}"\nrole = "{role}"\n{_line("public_key", public)}{_line("secret_key", secret)}'
            f"{_line('server_public_key', known.server_public)}"
        )
        _write_new(out, text, 0o600)
        try:
            entry = EnrolledClient(name, role, public, datetime.now(UTC).isoformat(timespec="seconds"))
            _write_list(folder, ClientList(known.server_public, (*known.clients, entry)))
        except BaseException:
            out.unlink(missing_ok=True)
            raise
    return key


def revoke(folder: Path, name: str) -> EnrolledClient:
    """Takes a client off the list. Raises KeyFileError."""
    with _locked(folder):
        known = read_client_list(folder)
        found = next((client for client in known.clients if client.name == name), None)
        if found is None:
            names = ", ".join(client.name for client in known.clients) or "none"
            raise KeyFileError(f"there is no client {name!r}; enrolled: {names}")
        _write_list(folder, ClientList(known.server_public, tuple(c for c in known.clients if c is not found)))
    return found


def _line(name: str, key: bytes) -> str:
    return f'{name} = "{key.decode()}"\n'  # Z85 has neither quotes nor backslashes


def _write_list(folder: Path, wanted: ClientList) -> None:
    lines = [
        "# Who may connect to this daemon, and as what. `edge-ctl keys enrol` and `edge-ctl keys revoke` write it;\n"
        "# the daemon reads it at its start and at `edge-ctl reload-keys`. It holds no secrets.\n",
        _line("server_public_key", wanted.server_public),
    ]
    for client in wanted.clients:
        lines.append(f'\n[clients."{client.name}"]\nrole = "{client.role}"\n{_line("public_key", client.public)}')
        lines.append(f'enrolled_utc = "{client.enrolled_utc}"\n')
    new = folder / f".{CLIENTS_FILE}.new"
    new.unlink(missing_ok=True)
    _write_new(new, "".join(lines), 0o644)
    with _told(folder / CLIENTS_FILE):
        new.replace(folder / CLIENTS_FILE)
        sync_folder(folder)


def _write_new(path: Path, text: str, mode: int) -> None:
    """A file that was not there, complete and on the disk, or none."""
    with _told(path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError as exc:
            raise KeyFileError(f"{path} is there already, and keys are never written over; name another file") from exc
        try:
            with os.fdopen(descriptor, "w") as file:
                os.fchmod(file.fileno(), mode)
                _give_to_owner(path.parent, lambda uid, gid: os.fchown(file.fileno(), uid, gid))
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(path.parent)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _make_folder(folder: Path) -> None:
    with _told(folder):
        if not folder.is_dir():
            folder.mkdir(parents=True, mode=0o755)
            _give_to_owner(folder.parent, lambda uid, gid: os.chown(folder, uid, gid))


def _give_to_owner(folder: Path, give: Callable[[int, int], None]) -> None:
    """What root makes in a folder of the daemon's user belongs to that user, or the daemon could not read it."""
    if os.geteuid() == 0:
        owner = folder.stat()
        give(owner.st_uid, owner.st_gid)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time: two at once would lose a client of one of them."""
    with _told(folder):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError as exc:
            raise KeyFileError(f"there are no keys in {folder}; `edge-ctl keys init` makes them") from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise KeyFileError(f"{path} cannot be written: {exc.strerror or exc}; check owner and space") from exc
