"""Who may do what at the OPC UA server. Three roles:

| role | who | may |
|---|---|---|
| viewer | MES, dashboards | browse, read, subscribe |
| operator | the people at the line | also report that a part was removed by hand |
| plc | the PLC | also report every disposition of parts |

Nobody triggers, acknowledges or releases anything here. A client is let in by its certificate, or by name and password
over a connection whose certificate is on the list: a stolen password alone opens nothing.
"""

import hmac
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asyncua.crypto.permission_rules import User, UserRole

from edge_daemon.gateway.certificates import Validity
from edge_daemon.gateway.config import OpcuaRole
from edge_daemon.gateway.errors import GatewayError
from edge_daemon.gateway.words import Disposition

if TYPE_CHECKING:
    from asyncua.server.internal_server import InternalServer

log = logging.getLogger(__name__)

REPORTS: Final[dict[OpcuaRole, frozenset[int]]] = {
    "viewer": frozenset(),
    "operator": frozenset({int(Disposition.REMOVED)}),
    "plc": frozenset(int(code) for code in Disposition if code is not Disposition.NONE),
}
"""Which dispositions a role may report."""

_LEAST_CHARS: Final = 12
_MOST_BYTES: Final = 1_024
# Wrong passwords of one name in a row; then it is refused for a while, whatever it says.
_WRONG_IN_A_ROW: Final = 5
_REFUSED_NS: Final = 30_000_000_000


@dataclass
class Person(User):
    """Who is connected. may_report: dispositions; until_s: end of the certificate that proves it, Unix time."""

    role: UserRole = UserRole.User
    name: str | None = None
    may_report: frozenset[int] = frozenset()
    until_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who may come. certificate: DER, where it is enough; password: where one is asked for."""

    name: str
    role: OpcuaRole
    certificate: bytes | None = None
    password: bytes | None = None


@dataclass(slots=True)
class _Attempts:
    wrong: int = 0
    refused_until_ns: int = 0


class Accounts:
    """What asyncua asks about each session that is activated.

    trusted: DER certificates that may open a connection; None where connections are not encrypted, on this PC only
    anonymous: whether a client that names nobody may look
    valid: from when until when each trusted certificate is, with the name that people know it by
    now_s: Unix time: certificates are about the clock on the wall
    """

    def __init__(
        self,
        accounts: Collection[Account],
        trusted: Collection[bytes] | None,
        anonymous: bool,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        valid: Mapping[bytes, tuple[str, Validity]] | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._valid = dict(valid or {})
        self._now_s = now_s
        self._by_name = {account.name: account for account in accounts if account.password is not None}
        self._by_certificate = {a.certificate: a for a in accounts if a.certificate is not None}
        self._trusted = None if trusted is None else frozenset(trusted)
        self._anonymous = anonymous
        self._clock_ns = clock_ns
        self._attempts = {name: _Attempts() for name in self._by_name}

    def get_user(
        self,
        _server: "InternalServer",
        username: str | None = None,
        password: str | None = None,
        certificate: Any = None,
    ) -> Person | None:
        """The person, None for nobody who may come."""
        who = self._who(username, password, bytes(certificate) if certificate is not None else None)
        if who is None:
            log.warning("OPC UA: a client is refused%s", f", it says it is {username!r}"[:80] if username else "")
        elif certificate is not None and bytes(certificate) in self._valid:
            name, its = self._valid[bytes(certificate)]
            if why := its.objection(self._now_s()):
                log.warning("OPC UA: the client of certificate %s is refused: it %s", name, why)
                return None
            who.until_s = its.ends_s
        return who

    def _who(self, username: str | None, password: str | None, certificate: bytes | None) -> Person | None:
        if self._trusted is not None and certificate not in self._trusted:
            return None
        if username is not None:
            account = self._by_name.get(username)
            return _person(account) if account is not None and self._proves(account, password or "") else None
        account = self._by_certificate.get(certificate) if certificate is not None else None
        if account is not None:
            return _person(account)
        return Person(name="anonymous") if self._anonymous else None

    def _proves(self, account: Account, password: str) -> bool:
        attempts, now_ns = self._attempts[account.name], self._clock_ns()
        if now_ns < attempts.refused_until_ns:
            return False
        if account.password is not None and hmac.compare_digest(account.password, password.encode()):
            attempts.wrong = 0
            return True
        attempts.wrong += 1
        if attempts.wrong >= _WRONG_IN_A_ROW:
            attempts.wrong, attempts.refused_until_ns = 0, now_ns + _REFUSED_NS
        return False


def _person(account: Account) -> Person:
    return Person(name=account.name, may_report=REPORTS[account.role])


def read_password(path: Path) -> bytes:
    """The first line of a file that is its owner's alone, or one that systemd handed over. Raises GatewayError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MOST_BYTES + 1)
    except OSError as exc:
        raise GatewayError(f"the password file {path} cannot be read: {exc.strerror or exc}") from exc
    in_credentials = os.environ.get("CREDENTIALS_DIRECTORY") == str(path.absolute().parent)
    if not stat.S_ISREG(mode) or (mode & 0o077 and not in_credentials):
        raise GatewayError(f"{path} is a secret that others on this PC can read: `chmod 600 {path}`")
    password = text.split(b"\n", 1)[0].rstrip(b"\r")
    try:
        if len(password.decode()) < _LEAST_CHARS or len(text) > _MOST_BYTES:
            raise GatewayError(f"{path}: a password has {_LEAST_CHARS} characters at least, in the first line")
    except UnicodeDecodeError as exc:
        raise GatewayError(f"{path} is no text") from exc
    return password
