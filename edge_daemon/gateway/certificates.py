"""From when until when a certificate is valid. Certificates are listed one by one (no chain is followed), and one that
has expired, or is not valid yet, proves nothing: by the clock on this PC's wall."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from edge_daemon.gateway.errors import GatewayError

SOON_S: Final = 30 * 86_400.0
"""Time in which people can be expected to make a new one."""


@dataclass(frozen=True, slots=True)
class Validity:
    """In seconds of Unix time."""

    begins_s: float
    ends_s: float

    def objection(self, now_s: float) -> str:
        """Why it proves nothing now; empty when it does."""
        if now_s < self.begins_s:
            return f"is not valid before {_day(self.begins_s)}: is the clock of this PC right?"
        return f"has expired on {_day(self.ends_s)}" if now_s > self.ends_s else ""


def validity(certificate: bytes) -> Validity:
    """certificate: DER or PEM. Raises ValueError when it is none."""
    pem = certificate.lstrip().startswith(b"-----BEGIN")
    read = x509.load_pem_x509_certificate(certificate) if pem else x509.load_der_x509_certificate(certificate)
    return Validity(read.not_valid_before_utc.timestamp(), read.not_valid_after_utc.timestamp())


def validity_of_file(path: Path) -> Validity:
    """Raises GatewayError."""
    try:
        return validity(path.read_bytes())
    except OSError as exc:
        raise GatewayError(f"{path} cannot be read: {exc.strerror or exc}; is it there?") from exc
    except ValueError as exc:
        raise GatewayError(f"{path} is no certificate in DER or PEM: {exc}") from exc


def complaints(certificates: Mapping[str, Validity], now_s: float) -> list[str]:
    """What to do about which, by their names: those that prove nothing, or soon will not."""
    found = []
    for name, its in certificates.items():
        why = its.objection(now_s)
        if not why and its.ends_s - now_s < SOON_S:
            why = f"expires on {_day(its.ends_s)}"
        if why:
            found.append(f"the certificate {name} {why}; make a new one, list it, and restart the gateway")
    return found


def _day(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M} UTC"
