"""Signatures of recipes: what they cover, what they do not change, and every way to be refused."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from test_recipe import put, recipe_files

from edge_daemon.artefact.pictures import encode_png
from edge_daemon.artefact.recipe import BACKBONE, BANK, MANIFEST, load_recipe, sha256, verify_files
from edge_daemon.artefact.signature import (
    MAX_SIGNATURE_BYTES,
    MOST_SIGNATURES,
    SIGNATURE,
    Signature,
    Trust,
    checked_public_key,
    joined,
    signature_bytes,
    statement,
)
from edge_daemon.artefact.store import Store
from edge_daemon.errors import RecipeDigestError, RecipeError, RecipeSignatureError

UTC = "2026-11-21T08:00:00+00:00"
ANNA, BERT, EVE = (Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in (1, 2, 3))
GOLDEN = "golden/good-1.png"


def public(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


TRUST = Trust.of({"anna": public(ANNA), "bert": public(BERT)})
ASKING = replace(TRUST, required=True)


def signature(key: Ed25519PrivateKey, digest: str, utc: str = UTC) -> Signature:
    made = base64.b64encode(key.sign(statement(digest, utc))).decode()
    return Signature(public_key=public(key), signed_utc=utc, signature=made)


def digest_of(files: dict[str, bytes]) -> str:
    return verify_files(files, "r").digest


def signed(files: dict[str, bytes], *keys: Ed25519PrivateKey) -> dict[str, bytes]:
    digest = digest_of(files)
    return {**files, SIGNATURE: signature_bytes(digest, tuple(signature(key, digest) for key in keys))}


@pytest.mark.parametrize("name", ["r", "r.recipe"])
def test_a_signed_recipe_is_the_same_recipe_and_says_who_signed(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, signed(recipe_files(), ANNA))
    recipe = load_recipe(tmp_path / name, trust=ASKING)
    assert recipe.signed.by == ("anna",)
    assert str(recipe.signed) == "anna"
    assert recipe.digest == digest_of(recipe_files())


def test_a_recipe_without_signature_loads_where_none_is_asked_for() -> None:
    assert str(verify_files(recipe_files(), "r", trust=TRUST).signed) == "unsigned"
    with pytest.raises(RecipeSignatureError, match=r"r is not signed.*anna, bert"):
        verify_files(recipe_files(), "r", trust=ASKING)


def test_a_key_that_nobody_trusts_signs_for_nobody() -> None:
    files = signed(recipe_files(), EVE)
    assert str(verify_files(files, "r", trust=TRUST).signed).startswith("unknown key ")
    with pytest.raises(RecipeSignatureError, match=r"unknown key [0-9a-f]{16}, whom nobody here trusts"):
        verify_files(files, "r", trust=ASKING)
    assert verify_files(signed(recipe_files(), EVE, BERT), "r", trust=ASKING).signed.by == ("bert",)


def test_where_nobody_is_trusted_nothing_is_signed_well_enough() -> None:
    with pytest.raises(RecipeSignatureError, match="nobody yet"):
        verify_files(signed(recipe_files(), ANNA), "r", trust=Trust(required=True))


@pytest.mark.parametrize("name", [MANIFEST, BANK, BACKBONE, GOLDEN])
def test_a_signed_recipe_with_any_byte_of_any_file_changed_is_refused(name: str) -> None:
    files = signed(recipe_files(), ANNA)
    changed = bytearray(files[name])
    changed[len(changed) // 2] ^= 1
    with pytest.raises(RecipeError):
        verify_files({**files, name: bytes(changed)}, "r", trust=ASKING)


@pytest.mark.parametrize(
    "other",
    [
        recipe_files(lambda m: m["thresholds"].update(lower=1.5)),
        recipe_files(lambda m: m["golden"][0].update(score=0.25)),
        recipe_files(lambda m: m.update(version="2")),
        recipe_files(**{BACKBONE: b"another graph"}),
    ],
    ids=["threshold", "golden score", "version", "backbone"],
)
def test_a_signature_does_not_fit_the_recipe_with_anything_else_in_it(other: dict[str, bytes]) -> None:
    """The forger corrects every digest: what is left over is that the recipe has another one."""
    assert digest_of(other) != digest_of(recipe_files())
    taken = {**other, SIGNATURE: signed(recipe_files(), ANNA)[SIGNATURE]}
    for trust in (TRUST, ASKING):
        with pytest.raises(RecipeSignatureError, match="of another recipe"):
            verify_files(taken, "r", trust=trust)
    relabelled = taken[SIGNATURE].replace(digest_of(recipe_files()).encode(), digest_of(other).encode())
    with pytest.raises(RecipeSignatureError, match="wrong, damaged or forged"):
        verify_files({**other, SIGNATURE: relabelled}, "r", trust=ASKING)


def test_golden_pictures_are_covered_through_their_digests() -> None:
    picture = encode_png(verify_files(recipe_files(), "r").golden[0].pixels[::-1].copy())
    with pytest.raises(RecipeDigestError):
        verify_files({**signed(recipe_files(), ANNA), GOLDEN: picture}, "r", trust=ASKING)
    assert sha256(picture) != sha256(recipe_files()[GOLDEN])


def test_every_flipped_bit_of_a_signature_file_is_refused_or_changes_nothing_that_counts() -> None:
    files = signed(recipe_files(), ANNA)
    raw = files[SIGNATURE]
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 0x04
        try:
            found = verify_files({**files, SIGNATURE: bytes(changed)}, "r", trust=ASKING)
        except RecipeSignatureError:
            continue
        # The last of the letters of a base64 text carry bits that mean nothing.
        assert found.signed.by == ("anna",)
        assert found.digest == digest_of(files)


def test_the_name_on_a_signature_is_that_of_the_key_and_not_what_is_written_there() -> None:
    digest = digest_of(recipe_files())
    forged = signature(EVE, digest).model_copy(update={"public_key": public(ANNA)})
    with pytest.raises(RecipeSignatureError, match="forged"):
        verify_files({**recipe_files(), SIGNATURE: signature_bytes(digest, (forged,))}, "r", trust=ASKING)


def test_the_time_is_covered_and_a_signature_of_something_else_is_none() -> None:
    digest = digest_of(recipe_files())
    later = signature(ANNA, digest).model_copy(update={"signed_utc": "2031-01-01T00:00:00+00:00"})
    bare = base64.b64encode(ANNA.sign(digest.encode())).decode()
    for wrong in (later, signature(ANNA, digest).model_copy(update={"signature": bare})):
        with pytest.raises(RecipeSignatureError):
            verify_files({**recipe_files(), SIGNATURE: signature_bytes(digest, (wrong,))}, "r", trust=ASKING)


def test_one_wrong_signature_beside_a_good_one_spoils_the_file() -> None:
    digest = digest_of(recipe_files())
    wrong = signature(EVE, digest).model_copy(update={"signed_utc": "2031"})
    both = signature_bytes(digest, (signature(ANNA, digest), wrong))
    with pytest.raises(RecipeSignatureError):
        verify_files({**recipe_files(), SIGNATURE: both}, "r", trust=ASKING)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema":"edge-daemon/signature/2"}',
        b" " * (MAX_SIGNATURE_BYTES + 1),
    ],
    ids=["empty", "object", "null", "no text", "deep", "version", "large"],
)
@pytest.mark.parametrize("trust", [TRUST, ASKING], ids=["asked for or not", "asked for"])
def test_a_damaged_signature_is_refused_whether_or_not_one_is_asked_for(raw: bytes, trust: Trust) -> None:
    with pytest.raises(RecipeSignatureError):
        verify_files({**recipe_files(), SIGNATURE: raw}, "r", trust=trust)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(extra=1),
        lambda s: s.update(signatures=[]),
        lambda s: s.update(signatures=s["signatures"] * (MOST_SIGNATURES + 1)),
        lambda s: s["signatures"][0].update(signature="A" * 86 + "=="),
        lambda s: s["signatures"][0].update(signature=None),
        lambda s: s["signatures"][0].update(public_key="A" * 43 + "="),
        lambda s: s["signatures"][0].update(signed_utc="2026\n2027"),
        lambda s: s.update(recipe="0" * 64),
    ],
)
def test_a_signature_file_that_says_anything_else_is_refused(change) -> None:  # type: ignore[no-untyped-def]
    files = signed(recipe_files(), ANNA)
    content = json.loads(files[SIGNATURE])
    change(content)
    with pytest.raises(RecipeSignatureError):
        verify_files({**files, SIGNATURE: json.dumps(content).encode()}, "r", trust=TRUST)


def test_joining_keeps_one_signature_for_each_key_and_drops_what_is_untrue() -> None:
    digest = digest_of(recipe_files())
    anna, later, bert = signature(ANNA, digest), signature(ANNA, digest, "2027-01-01"), signature(BERT, digest)
    both = joined(digest, signature_bytes(digest, (later,)), signature_bytes(digest, (anna, bert)), "r")
    assert {s["signed_utc"] for s in json.loads(both)["signatures"]} == {"2027-01-01", UTC}
    assert joined(digest, signature_bytes(digest, (anna,)), b"rubbish", "r") == signature_bytes(digest, (anna,))
    with pytest.raises(RecipeSignatureError):
        joined(digest, b"rubbish", signature_bytes(digest, (anna,)), "r")


def test_more_signatures_than_a_recipe_may_carry_are_refused() -> None:
    digest = digest_of(recipe_files())
    many = tuple(signature(Ed25519PrivateKey.generate(), digest) for _ in range(MOST_SIGNATURES + 1))
    with pytest.raises(RecipeSignatureError, match="1 to 16"):
        signature_bytes(digest, many)


@pytest.mark.parametrize(
    "text", ["", "AAAA", "a" * 44, public(ANNA)[:-1], public(ANNA) + "=", " " + public(ANNA), "ß" * 44]
)
def test_what_is_no_public_key_is_not_taken_for_one(text: str) -> None:
    with pytest.raises(ValueError, match="signing-key"):
        checked_public_key(text)


# ---------------------------------------------------------------- in the store


def test_a_signature_that_comes_later_is_taken_over_and_the_digest_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    put(tmp_path / "plain.recipe", recipe_files())
    put(tmp_path / "anna.recipe", signed(recipe_files(), ANNA))
    put(tmp_path / "bert.recipe", signed(recipe_files(), BERT))
    first = store.add(tmp_path / "plain.recipe")
    assert store.signed(first, TRUST) == "unsigned"
    assert store.add(tmp_path / "anna.recipe") == first
    assert store.signed(first, TRUST) == "anna"
    assert store.add(tmp_path / "bert.recipe") == first
    assert set(load_recipe(first.path, trust=ASKING).signed.by) == {"anna", "bert"}
    store.add(tmp_path / "plain.recipe")
    assert set(load_recipe(first.path, trust=ASKING).signed.by) == {"anna", "bert"}


def test_a_forged_signature_changes_nothing_in_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    put(tmp_path / "anna.recipe", signed(recipe_files(), ANNA))
    kept = store.add(tmp_path / "anna.recipe")
    put(tmp_path / "forged.recipe", {**recipe_files(), SIGNATURE: b"rubbish"})
    with pytest.raises(RecipeSignatureError):
        store.add(tmp_path / "forged.recipe")
    assert load_recipe(kept.path, trust=ASKING).signed.by == ("anna",)


def test_a_signature_damaged_in_the_store_is_told_and_healed_by_importing_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    put(tmp_path / "anna.recipe", signed(recipe_files(), ANNA))
    kept = store.add(tmp_path / "anna.recipe")
    (kept.path / SIGNATURE).unlink()
    (kept.path / SIGNATURE).write_bytes(b"rubbish")
    assert store.signed(kept, TRUST) == "damaged signature"
    with pytest.raises(RecipeSignatureError):
        load_recipe(kept.path, trust=TRUST)
    store.add(tmp_path / "anna.recipe")
    assert store.signed(kept, TRUST) == "anna"
