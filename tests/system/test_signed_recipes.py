"""Signing by command, and stations that judge by signed recipes only: when one is activated, at every start, and
when the recipe that was active before is taken up again."""

import json
import os
import signal
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_daemon.artefact.recipe import load_recipe, read_files, write_recipe
from edge_daemon.artefact.signature import SIGNATURE, Trust
from edge_daemon.artefact.store import Store
from edge_daemon.config import StationConfig
from edge_daemon.engines.sessions import EngineOptions, Sessions
from edge_daemon.errors import RecipeSignatureError
from edge_daemon.pipeline.recipes import Recipes
from export.build import build_recipe
from export.cli import main
from tests.daemon import DaemonProcess
from tests.export.test_build_recipe import put, quiet, request


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Two recipes of one product, unsigned."""
    folder = tmp_path_factory.mktemp("signed")
    put(folder / "good", range(24))
    for version in ("1", "2"):
        created = f"2026-11-20T08:00:0{version}Z"
        build_recipe(
            request(folder / "good", folder / f"{version}.recipe", version=version, created_utc=created), quiet
        )
    return folder


def export(*arguments):
    return main([str(argument) for argument in arguments])


def made_key(path, capsys):
    """A new key; its public half."""
    assert export("signing-key", "--out", path, "--json") == 0
    return json.loads(capsys.readouterr().out)["public_key"]


@dataclass
class Line:
    """A PC with a store, of which station `gate` takes signed recipes only and `trial` takes any."""

    folder: Path
    trust: Trust

    @property
    def store(self):
        return Store(self.folder / "store")

    def started(self):
        configured = self.folder / "configured.json"
        return Recipes(
            self.store, Sessions(EngineOptions(intra_op_threads=1)), "flat", configured, self.trust, ["gate"]
        )

    def import_signed(self, recipe, key):
        write_recipe(self.folder / recipe.name, read_files(recipe))
        assert export("sign", "--key", key, self.folder / recipe.name) == 0
        return self.store.add(self.folder / recipe.name)


@pytest.fixture
def key(tmp_path, capsys):
    made_key(tmp_path / "anna.key", capsys)
    return tmp_path / "anna.key"


@pytest.fixture
def line(tmp_path, key, capsys):
    assert export("signing-key", "--public", key, "--json") == 0
    return Line(tmp_path, Trust.of({"anna": json.loads(capsys.readouterr().out)["public_key"]}))


def station(recipe):
    return StationConfig(views=({"camera": "top", "recipe": str(recipe)},), require_signed_recipes=True)


def test_a_signed_recipe_is_activated_and_an_unsigned_one_is_not(line, recipes, key):
    recipe = line.import_signed(recipes / "1.recipe", key)
    unsigned = line.store.add(recipes / "2.recipe")
    loaded = line.started()
    assert loaded.activate("gate", {"top": recipe.digest}).views["top"].recipe.signed.by == ("anna",)
    with pytest.raises(RecipeSignatureError, match="not signed"):
        loaded.activate("gate", {"top": unsigned.digest})
    assert line.store.active("gate").recipes == {"top": recipe.digest}


def test_what_another_station_has_loaded_unsigned_stays_refused_until_it_is_signed(line, recipes, key):
    unsigned, loaded = line.store.add(recipes / "1.recipe"), line.started()
    loaded.activate("trial", {"top": unsigned.digest})
    with pytest.raises(RecipeSignatureError):
        loaded.activate("gate", {"top": unsigned.digest})
    assert line.store.active("gate") is None
    assert line.import_signed(recipes / "1.recipe", key).digest == unsigned.digest
    loaded.activate("gate", {"top": unsigned.digest})


def test_a_start_takes_signed_recipes_only_also_the_one_that_was_active(line, recipes, key):
    recipe = line.import_signed(recipes / "1.recipe", key)
    line.started().at_start("gate", station("washer"))
    assert line.started().at_start("gate", station("washer")).views["top"].recipe.digest == recipe.digest
    (recipe.path / SIGNATURE).unlink()
    with pytest.raises(RecipeSignatureError, match="not signed"):
        line.started().at_start("gate", station("washer"))
    # Switched to signed recipes later: what runs already is asked for its signature too.
    assert line.started().at_start("trial", station("washer")).views["top"].recipe.signed.by == ()


def test_a_signer_who_is_trusted_no_more_signs_no_more(line, recipes, key):
    line.import_signed(recipes / "1.recipe", key)
    line.started().at_start("gate", station("washer"))
    line.trust = Trust()
    with pytest.raises(RecipeSignatureError, match="whom nobody here trusts"):
        line.started().at_start("gate", station("washer"))


def test_a_signer_who_is_trusted_no_more_vouches_for_nothing_that_is_loaded_already(line, recipes, key):
    recipe, loaded = line.import_signed(recipes / "1.recipe", key), line.started()
    live = loaded.activate("gate", {"top": recipe.digest})
    assert loaded.why_untrusted("gate", live) == ""
    loaded.trust_anew(Trust.of({"bert": "A" * 43 + "="}))
    assert "whom nobody here trusts" in loaded.why_untrusted("gate", live)
    assert loaded.why_untrusted("trial", live) == ""
    with pytest.raises(RecipeSignatureError, match="whom nobody here trusts"):
        loaded.activate("gate", {"top": recipe.digest})
    loaded.trust_anew(line.trust)
    assert loaded.why_untrusted("gate", live) == ""
    assert loaded.activate("gate", {"top": recipe.digest}).views["top"].recipe.signed.by == ("anna",)


def test_a_recipe_given_by_its_path_is_asked_for_its_signature_too(line, recipes, key):
    with pytest.raises(RecipeSignatureError):
        line.started().at_start("gate", station(recipes / "1.recipe"))
    write_recipe(line.folder / "s.recipe", read_files(recipes / "1.recipe"))
    assert export("sign", "--key", key, line.folder / "s.recipe") == 0
    live = line.started().at_start("gate", station(line.folder / "s.recipe"))
    assert live.views["top"].recipe.signed.by == ("anna",)


def test_a_graph_is_not_even_loaded_before_the_signature_is_right(line, recipes, monkeypatch):
    unsigned, loaded = line.store.add(recipes / "1.recipe"), line.started()
    monkeypatch.setattr("edge_daemon.engines.sessions._create", lambda *_: pytest.fail("loaded"))
    with pytest.raises(RecipeSignatureError):
        loaded.activate("gate", {"top": unsigned.digest})


# ---------------------------------------------------------------- the commands


def test_signing_says_what_was_signed_and_changes_no_digest(recipes, tmp_path, key, capsys):
    copy = tmp_path / "c.recipe"
    write_recipe(copy, read_files(recipes / "1.recipe"))
    before = load_recipe(copy)
    assert export("sign", "--key", key, copy) == 0
    told = capsys.readouterr().out
    assert f"washer 1 ({before.digest[:12]}), OK up to {before.manifest.thresholds.lower:.6g}" in told
    assert load_recipe(copy).digest == before.digest
    assert {n: d for n, d in read_files(copy).items() if n != SIGNATURE} == read_files(recipes / "1.recipe")
    assert export("sign", "--remove", copy, "--json") == 0
    assert json.loads(capsys.readouterr().out)["recipes"][0]["signed_by"] == []
    assert read_files(copy) == read_files(recipes / "1.recipe")


def test_two_people_sign_one_recipe_and_verify_asks_for_either(recipes, tmp_path, capsys):
    copy = tmp_path / "c.recipe"
    write_recipe(copy, read_files(recipes / "1.recipe"))
    keys = [made_key(tmp_path / name, capsys) for name in ("a.key", "b.key", "c.key")]
    for name in ("a.key", "b.key", "a.key"):
        assert export("sign", "--key", tmp_path / name, copy) == 0
    assert len(json.loads(read_files(copy)[SIGNATURE])["signatures"]) == 2
    capsys.readouterr()
    assert export("verify", "--recipe", copy, "--signer", keys[1], "--json") == 0
    assert json.loads(capsys.readouterr().out)["signed_by"].startswith("key ")
    assert export("verify", "--recipe", copy, "--signer", keys[2], "--json") == 1
    assert json.loads(capsys.readouterr().out)["error"] == "RecipeSignatureError"
    assert export("verify", "--recipe", copy, "--signer", "nonsense") == 2


def test_nothing_damaged_is_signed(recipes, tmp_path, key, capsys):
    files = read_files(recipes / "1.recipe")
    write_recipe(tmp_path / "d.recipe", {**files, "bank.safetensors": files["bank.safetensors"] + b"x"})
    raw = (tmp_path / "d.recipe").read_bytes()
    assert export("sign", "--key", key, tmp_path / "d.recipe") == 2
    assert "damaged" in capsys.readouterr().err
    assert (tmp_path / "d.recipe").read_bytes() == raw


def test_a_key_is_for_its_owner_only_and_never_replaced(key, capsys):
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    assert export("signing-key", "--out", key) == 2
    assert "never replaced" in capsys.readouterr().err
    assert key.read_bytes() == before
    key.chmod(0o644)
    assert export("signing-key", "--public", key) == 2
    assert "chmod 600" in capsys.readouterr().err


def test_a_locked_key_wants_its_passphrase(recipes, tmp_path, monkeypatch, capsys):
    locked = tmp_path / "locked.key"
    monkeypatch.setenv("EDGE_EXPORT_PASSPHRASE", "three words here")
    assert export("signing-key", "--out", locked, "--lock") == 0
    assert b"ENCRYPTED" in locked.read_bytes()
    assert export("signing-key", "--public", locked) == 0
    assert "[security.trusted_signers]" in capsys.readouterr().out
    monkeypatch.setenv("EDGE_EXPORT_PASSPHRASE", "wrong")
    assert export("sign", "--key", locked, recipes / "1.recipe") == 2
    assert SIGNATURE not in read_files(recipes / "1.recipe")


@pytest.mark.parametrize(
    "content",
    [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", os.urandom(64)],
    ids=["empty", "broken", "noise"],
)
def test_what_is_no_key_signs_nothing(recipes, tmp_path, content, capsys):
    (tmp_path / "no.key").write_bytes(content)
    (tmp_path / "no.key").chmod(0o600)
    assert export("sign", "--key", tmp_path / "no.key", recipes / "1.recipe") == 2
    assert "no private key" in capsys.readouterr().err


def test_a_key_of_openssl_signs_and_another_kind_of_key_does_not(recipes, tmp_path, capsys):
    for kind in ("ed25519", "x25519"):
        path = tmp_path / f"{kind}.pem"
        try:
            subprocess.run(["openssl", "genpkey", "-algorithm", kind, "-out", path], check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("needs openssl")
        path.chmod(0o600)
    write_recipe(tmp_path / "c.recipe", read_files(recipes / "1.recipe"))
    assert export("sign", "--key", tmp_path / "ed25519.pem", tmp_path / "c.recipe") == 0
    assert export("sign", "--key", tmp_path / "x25519.pem", tmp_path / "c.recipe") == 2
    assert "not an Ed25519 key" in capsys.readouterr().err


def test_a_daemon_judges_by_signed_recipes_only(recipes, tmp_path, capsys):
    """All of it in a real daemon: start, activation, the list, and a start after the signature was taken away."""
    public = made_key(tmp_path / "anna.key", capsys)
    write_recipe(tmp_path / "signed.recipe", read_files(recipes / "1.recipe"))
    assert export("sign", "--key", tmp_path / "anna.key", tmp_path / "signed.recipe") == 0
    store = Store(tmp_path / "d" / "state" / "store")
    kept, unsigned = store.add(tmp_path / "signed.recipe"), store.add(recipes / "2.recipe")
    config = (
        f'line = "l"\n[security.trusted_signers]\nanna = "{public}"\n'
        f'[cameras.top]\nkind = "folder"\npath = "{recipes / "good"}"\nloop = true\n'
        '[stations.gate]\nviews = [{ camera = "top", recipe = "washer@1" }]\nrequire_signed_recipes = true\n'
    )
    with DaemonProcess(tmp_path / "d", config) as daemon:
        with daemon.control() as control:
            listed = {r["version"]: r["signed_by"] for r in control.request("recipes")["recipes"]}
            assert listed == {"1": "anna", "2": "unsigned"}
            refused = control.wait(control.request("activate", {"recipe": f"washer@{unsigned.digest}"})["job"])
            assert refused.state == "failed"
            assert "is not signed" in refused.error.message
            taken = control.wait(control.request("activate", {"recipe": "washer@1"})["job"])
            assert taken.state == "done"
        assert daemon.stop() == 0
        (kept.path / SIGNATURE).unlink()
        daemon.ready = lambda status: bool(status.get("stations", {}).get("gate", {}).get("alarms"))
        daemon.start()
        gate = daemon.status()["stations"]["gate"]
        assert not gate["trigger_ready"]
        assert any("is not signed" in alarm for alarm in gate["alarms"])
        with daemon.triggers() as triggers:
            assert not triggers.trigger("gate", "1").accepted


def test_a_reload_puts_other_signers_in_force_and_nothing_else(recipes, tmp_path, capsys):
    """In a real daemon: a signer goes, and comes back; a list that cannot be read changes nothing."""
    anna, bert = (made_key(tmp_path / f"{name}.key", capsys) for name in ("anna", "bert"))
    write_recipe(tmp_path / "signed.recipe", read_files(recipes / "1.recipe"))
    assert export("sign", "--key", tmp_path / "anna.key", tmp_path / "signed.recipe") == 0
    Store(tmp_path / "d" / "state" / "store").add(tmp_path / "signed.recipe")
    config = (
        f'line = "l"\n[security.trusted_signers]\nwho = "{anna}"\n'
        f'[cameras.top]\nkind = "folder"\npath = "{recipes / "good"}"\nloop = true\n'
        '[stations.gate]\nviews = [{ camera = "top", recipe = "washer@1" }]\nrequire_signed_recipes = true\n'
    )
    with DaemonProcess(tmp_path / "d", config) as daemon:
        text = daemon.config.read_text()

        def reloaded(changed, ready, told=""):
            daemon.config.write_text(changed)
            os.kill(daemon.process.pid, signal.SIGHUP)
            give_up = time.monotonic() + 30
            while True:
                gate = daemon.status()["stations"]["gate"]
                if gate["trigger_ready"] is ready and told in daemon.log.read_text():
                    return
                assert time.monotonic() < give_up, gate
                time.sleep(0.02)

        reloaded(text.replace(anna, bert), False, "whom nobody here trusts")
        reloaded(text.replace(anna, "no key"), False, "not reloaded, what was in force stays so")
        reloaded(text.replace('line = "l"', 'line = "other"'), True)
        assert daemon.status()["line"] == "l"
        # One that was waiting for its signer at the start takes up its recipe.
        daemon.config.write_text(text.replace(anna, bert))
        assert daemon.stop() == 0
        daemon.ready = lambda status: bool(status.get("stations", {}).get("gate", {}).get("alarms"))
        daemon.start()
        reloaded(text, True)
