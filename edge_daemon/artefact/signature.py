"""Who vouches for a recipe: Ed25519 signatures (RFC 8032) over its digest, in the recipe's file `signature`.

The digest names recipe.json, which names every other file by its digest: a signature over it covers all of them, and
what is not named is refused before. The file itself is no part of the digest: a recipe is signed, and signed again,
without becoming another one. See deploy/decisions/0014.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_daemon.errors import RecipeSignatureError

SIGNATURE: Final = "signature"
MAX_SIGNATURE_BYTES: Final = 64 << 10
MOST_SIGNATURES: Final = 16
_SCHEMA: Final = "edge-daemon/signature/1"
_KEY_BYTES: Final = 32


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, serialize_by_alias=True)


class Signature(_Part):
    """One signature, true of the digest it stands beside once `read_signatures` has given it out."""

    public_key: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{43}=$")]
    """Base64 of the 32 bytes of the signer's public key."""
    signed_utc: Annotated[str, Field(pattern=r"^[0-9TZ:.+-]{1,40}$")]
    """What the signer's clock said; covered by the signature."""
    signature: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")]
    """Base64 of the 64 bytes of the signature of `statement`."""


class _SignatureFile(_Part):
    """The file `signature`."""

    schema_: Annotated[Literal["edge-daemon/signature/1"], Field(alias="schema")] = _SCHEMA
    recipe: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of the recipe that was signed."""
    signatures: Annotated[tuple[Signature, ...], Field(min_length=1, max_length=MOST_SIGNATURES)]


@dataclass(frozen=True, slots=True)
class Signed:
    """Who signed a recipe. by: names of trusted signers; unknown: ids of keys that nobody here trusts."""

    by: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        others = tuple(f"unknown key {key}" for key in self.unknown)
        return ", ".join(self.by or others) or "unsigned"


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose signatures count, and whether one is needed. names: by public key, base64 as in `Signature`."""

    names: Mapping[str, str] = field(default_factory=dict)
    required: bool = False

    @classmethod
    def of(cls, signers: Mapping[str, str]) -> "Trust":
        """From public keys by name, as the configuration lists them."""
        return cls({key: name for name, key in signers.items()})

    def judge(self, raw: bytes | None, digest: str, where: str) -> Signed:
        """Who signed the recipe with this digest. raw: its file `signature`, None where there is none.

        Raises RecipeSignatureError when the file is damaged or of another recipe, whoever is trusted; and when a
        trusted signature is required and missing.
        """
        found = () if raw is None else read_signatures(raw, digest, where)
        by = tuple(self.names[s.public_key] for s in found if s.public_key in self.names)
        signed = Signed(by, tuple(key_id(s.public_key) for s in found if s.public_key not in self.names))
        if self.required and not by:
            raise RecipeSignatureError(f"{where} {_why_refused(signed)}: {self._what_to_do()}")
        return signed

    def _what_to_do(self) -> str:
        names = ", ".join(sorted(self.names.values())) or "nobody yet"
        return (
            "this station judges by signed recipes only. Have it looked at and signed with `edge-export sign`; "
            f"trusted here ([security] trusted_signers): {names}"
        )


def _why_refused(signed: Signed) -> str:
    return f"is signed by {signed}, whom nobody here trusts" if signed.unknown else "is not signed"


def statement(digest: str, signed_utc: str) -> bytes:
    """What is signed. The first line keeps the signature from being taken for one of anything else."""
    return f"{_SCHEMA}\n{digest}\n{signed_utc}\n".encode()


def key_id(public_key: str) -> str:
    """Sixteen hexadecimal digits for people: the beginning of the SHA-256 of the key's 32 bytes."""
    return hashlib.sha256(base64.b64decode(public_key)).hexdigest()[:16]


def checked_public_key(text: str) -> str:
    """The same text when it is the base64 of an Ed25519 public key. Raises ValueError."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ValueError(_NO_KEY) from exc
    if len(raw) != _KEY_BYTES or base64.b64encode(raw).decode() != text:
        raise ValueError(_NO_KEY)
    return text


_NO_KEY = "is no public key: `edge-export signing-key --public FILE` prints it, 44 characters that end in ="


def read_signatures(raw: bytes, digest: str, where: str) -> tuple[Signature, ...]:
    """The signatures in a file `signature`, each true of this digest under the key it names, whoever trusts that key.

    Raises RecipeSignatureError when any is not, or the file is damaged, or of another recipe.
    """
    advice = "take the signature out (edge-export sign --remove), or copy the recipe again"
    if len(raw) > MAX_SIGNATURE_BYTES:
        raise RecipeSignatureError(f"{where}: its signature has {len(raw)} bytes, more than a signature can: {advice}")
    try:
        found = _SignatureFile.model_validate_json(raw)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise RecipeSignatureError(f"{where}: its signature is damaged ({place}: {first['msg']}): {advice}") from exc
    if found.recipe != digest:
        raise RecipeSignatureError(
            f"{where}: its signature is of another recipe ({found.recipe[:12]}, this is {digest[:12]}): the recipe was "
            "changed after it was signed, or the signature was put beside it; have it signed anew"
        )
    for signature in found.signatures:
        if not _is_true(signature, digest):
            raise RecipeSignatureError(
                f"{where}: the signature by key {key_id(signature.public_key)} is wrong, damaged or forged: {advice}"
            )
    return found.signatures


def _is_true(signature: Signature, digest: str) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signature.public_key, validate=True))
        key.verify(base64.b64decode(signature.signature, validate=True), statement(digest, signature.signed_utc))
    except (InvalidSignature, ValueError):
        return False
    return True


def signature_bytes(digest: str, signatures: tuple[Signature, ...]) -> bytes:
    """The file `signature`. Raises RecipeSignatureError when there are too many, or none."""
    if not 1 <= len(signatures) <= MOST_SIGNATURES:
        raise RecipeSignatureError(
            f"a recipe carries 1 to {MOST_SIGNATURES} signatures, not {len(signatures)}: remove those that nobody "
            "needs (edge-export sign --remove) and sign again"
        )
    return _SignatureFile(recipe=digest, signatures=signatures).model_dump_json(indent=1).encode() + b"\n"


def joined(digest: str, new: bytes, old: bytes | None, where: str) -> bytes:
    """One file with the signatures of both, one for each key: the new one where both have it. Raises
    RecipeSignatureError when `new` is not true of the digest; an untrue `old` counts for nothing."""
    added = read_signatures(new, digest, where)
    try:
        kept = () if old is None else read_signatures(old, digest, where)
    except RecipeSignatureError:
        kept = ()
    by_key = {signature.public_key: signature for signature in (*kept, *added)}
    return signature_bytes(digest, tuple(by_key[key] for key in sorted(by_key)))
