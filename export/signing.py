"""Signing recipes: the private half of `edge_daemon.artefact.signature`. Keys are PEM files (PKCS 8), as openssl makes
and reads them."""

import base64
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from edge_daemon.artefact.recipe import Recipe, read_files, verify_files, write_recipe
from edge_daemon.artefact.signature import SIGNATURE, Signature, joined, key_id, signature_bytes, statement
from export.errors import ExportError

_MOST_KEY_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class SignedRecipe:
    """path: the recipe; recipe: what was signed; keys: ids of all keys whose signatures it carries now."""

    path: Path
    recipe: Recipe
    keys: tuple[str, ...]


def make_key(out: Path, passphrase: bytes | None) -> str:
    """Write a new private key, readable by its owner only, and return its public key (base64 of 32 bytes).

    Raises ExportError; an existing file is never replaced: with it every recipe it signed would lose its signer.
    """
    key = Ed25519PrivateKey.generate()
    locked: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as exc:
        raise ExportError(f"{out} is there already; a signing key is never replaced: choose another name") from exc
    except OSError as exc:
        raise ExportError(f"the key cannot be written to {out}: {exc.strerror}") from exc
    return public_key(key)


def read_key(path: Path, ask_passphrase: Callable[[], bytes]) -> Ed25519PrivateKey:
    """A private key. ask_passphrase is called when it is locked. Raises ExportError."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ExportError(f"others may read {path}: `chmod 600 {path}`, or make a new key where they could")
            pem = file.read(_MOST_KEY_BYTES)
    except OSError as exc:
        raise ExportError(f"the key {path} cannot be read: {exc.strerror}") from exc
    try:
        try:
            key = load_pem_private_key(pem, None)
        except TypeError:  # cryptography's way to say that it is locked
            key = load_pem_private_key(pem, ask_passphrase())
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ExportError(
            f"{path} is no private key, or the passphrase is wrong; `edge-export signing-key` makes one"
        ) from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise ExportError(f"{path} is not an Ed25519 key; `edge-export signing-key` makes one")
    return key


def public_key(key: Ed25519PrivateKey) -> str:
    """Base64 of the 32 bytes, as `[security] trusted_signers` takes it."""
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def sign(key: Ed25519PrivateKey, digest: str, signed_utc: str) -> Signature:
    """One signature over a recipe's digest."""
    made = base64.b64encode(key.sign(statement(digest, signed_utc))).decode()
    return Signature(public_key=public_key(key), signed_utc=signed_utc, signature=made)


def sign_recipe(path: Path, key: Ed25519PrivateKey, signed_utc: str) -> SignedRecipe:
    """Put a signature into a recipe whose bytes verify, beside those of other keys, in place of an older one of this
    key and of any that is not true. The digest stays. Raises ExportError or EdgeError; the recipe is then as it was.
    """
    files = dict(read_files(path))
    old = files.pop(SIGNATURE, None)
    recipe = verify_files(files, str(path))
    mine = sign(key, recipe.digest, signed_utc)
    both = joined(recipe.digest, signature_bytes(recipe.digest, (mine,)), old, str(path))
    write_recipe(path, {**files, SIGNATURE: both})
    signed = verify_files({**files, SIGNATURE: both}, str(path)).signed
    return SignedRecipe(path, recipe, signed.unknown)


def remove_signatures(path: Path) -> SignedRecipe:
    """Take all signatures out of a recipe whose other bytes verify. Raises EdgeError."""
    files = dict(read_files(path))
    files.pop(SIGNATURE, None)
    recipe = verify_files(files, str(path))
    write_recipe(path, files)
    return SignedRecipe(path, recipe, ())


def id_of(key: Ed25519PrivateKey) -> str:
    """Of its public key, for people."""
    return key_id(public_key(key))
