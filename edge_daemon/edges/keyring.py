"""The keys in force: the daemon's own, and which client may do what. Reloaded without a restart."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edge_daemon.errors import ConfigError
from edge_daemon.wire.keys import (
    CLIENTS_FILE,
    SERVER_FILE,
    EnrolledClient,
    KeyFileError,
    ServerKey,
    read_client_list,
    read_server_key,
)


def credentials_folder() -> Path | None:
    """Where systemd has put the files of LoadCredential= for this process."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(folder) if folder else None


class KeysMissingError(ConfigError):
    """Connections must be encrypted and authenticated, and there is no key to do it with."""


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """Names, by what a reload did to them. A client whose key or role is another now counts as revoked and as new."""

    enrolled: tuple[str, ...]
    revoked: tuple[str, ...]
    clients: int


class KeyRing:
    """Reads the files when it is made and at `reload`; looking up takes no lock: the whole table is exchanged.

    folder: where `edge-ctl keys` writes; credentials: $CREDENTIALS_DIRECTORY, where systemd put the secret key
    Raises KeysMissingError, KeyFileError.
    """

    def __init__(self, folder: Path, credentials: Path | None = None) -> None:
        self._folder = folder
        in_credentials = credentials is not None and (credentials / SERVER_FILE).exists()
        if not in_credentials and not (folder / SERVER_FILE).exists():
            text = (
                'the network could reach the daemon, or `security.curve` is "always", and there is no key to encrypt '
                f"and authenticate connections with in {folder}; nothing is listening. Run\n"
                f"    edge-ctl keys init --keys {folder}\n"
                f"    edge-ctl keys enrol NAME --role ROLE --keys {folder}\n"
                "the second once for every program that connects, and give it its file"
            )
            raise KeysMissingError([text])
        self.server: ServerKey = read_server_key(folder, credentials)
        self._clients = self._read()

    def client(self, public: bytes) -> EnrolledClient | None:
        """Whose key it is (Z85); None when it is nobody's, or nobody's any more."""
        return self._clients.get(public)

    def __len__(self) -> int:
        return len(self._clients)

    def reload(self) -> KeyChanges:
        """Reads the list anew. Raises KeyFileError, and the list before stays in force."""
        before, after = self._clients, self._read()
        self._clients = after

        def missing(there: Mapping[bytes, EnrolledClient], here: Mapping[bytes, EnrolledClient]) -> tuple[str, ...]:
            changed = [c for key, c in there.items() if key not in here or here[key].role != c.role]
            return tuple(sorted(client.name for client in changed))

        return KeyChanges(missing(after, before), missing(before, after), len(after))

    def _read(self) -> Mapping[bytes, EnrolledClient]:
        listed = read_client_list(self._folder)
        if listed.server_public != self.server.public:
            raise KeyFileError(
                f"{self._folder / CLIENTS_FILE} belongs to another daemon: its server_public_key is not that of "
                "the secret key in use. Clients enrolled with it could not connect; put the two files of one "
                "`edge-ctl keys init` together"
            )
        return MappingProxyType({client.public: client for client in listed.clients})
