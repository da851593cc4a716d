"""Key files, the list of clients, and who may do what: nothing half written, nothing half believed."""

import contextlib
import errno
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from edge_daemon import check, ctl
from edge_daemon.config import load_config
from edge_daemon.edges.allowance import Allowance, Ruling
from edge_daemon.edges.door import LOCAL, Peer
from edge_daemon.edges.keyring import KeyRing, KeysMissingError
from edge_daemon.gateway.config import load_config as load_gateway_config
from edge_daemon.gateway.link import DaemonEndpoints, DaemonLink
from edge_daemon.pipeline import control
from edge_daemon.wire.keys import (
    CLIENTS_FILE,
    SERVER_FILE,
    KeyFileError,
    create_server_key,
    enrol,
    read_client_key,
    read_client_list,
    read_server_key,
    revoke,
)
from edge_daemon.wire.roles import COMMANDS, ROLES, SOCKETS, permission


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    create_server_key(tmp_path / "keys")
    return tmp_path / "keys"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


# --- files --------------------------------------------------------------------------------------------------------


def test_secrets_are_readable_by_their_owner_alone_and_the_list_holds_none(keys: Path, tmp_path: Path) -> None:
    key = enrol(keys, "mes-1", "viewer", tmp_path / "mes-1.key")
    assert mode(keys / SERVER_FILE) == 0o600
    assert mode(tmp_path / "mes-1.key") == 0o600
    server = read_server_key(keys)
    assert read_client_key(tmp_path / "mes-1.key") == key
    assert key.server_public == server.public
    listed = (keys / CLIENTS_FILE).read_bytes()
    assert key.public in listed
    assert server.public in listed
    assert key.secret not in listed
    assert server.secret not in listed
    assert key.secret.decode() not in repr(key)
    assert server.secret.decode() not in repr(server)


def test_a_key_is_never_written_over(keys: Path, tmp_path: Path) -> None:
    before = (keys / SERVER_FILE).read_bytes()
    with pytest.raises(KeyFileError, match="there already"):
        create_server_key(keys)
    assert (keys / SERVER_FILE).read_bytes() == before
    (tmp_path / "mes.key").write_text("precious")
    with pytest.raises(KeyFileError, match="never written over"):
        enrol(keys, "mes", "viewer", tmp_path / "mes.key")
    assert (tmp_path / "mes.key").read_text() == "precious"
    assert read_client_list(keys).clients == ()


def test_a_name_is_given_once_and_a_client_that_cannot_be_listed_leaves_no_key_behind(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(keys, "mes", "viewer", tmp_path / "1.key")
    with pytest.raises(KeyFileError, match="already"):
        enrol(keys, "mes", "engineer", tmp_path / "2.key")
    with pytest.raises(KeyFileError, match="no name"):
        enrol(keys, '"] [x', "viewer", tmp_path / "2.key")
    before = (keys / CLIENTS_FILE).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(KeyFileError, match="No space left"):
        enrol(keys, "late", "viewer", tmp_path / "2.key")
    assert not (tmp_path / "2.key").exists()
    assert (keys / CLIENTS_FILE).read_bytes() == before


def test_enrolling_from_many_sides_at_once_loses_nobody(keys: Path, tmp_path: Path) -> None:
    threads = [threading.Thread(target=enrol, args=(keys, f"c{n}", "viewer", tmp_path / f"{n}.key")) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {client.name for client in read_client_list(keys).clients} == {f"c{n}" for n in range(20)}


def test_a_revoked_client_is_off_the_list_and_its_name_is_free(keys: Path, tmp_path: Path) -> None:
    first = enrol(keys, "mes", "viewer", tmp_path / "1.key")
    assert revoke(keys, "mes").public == first.public
    with pytest.raises(KeyFileError, match="enrolled: none"):
        revoke(keys, "mes")
    assert enrol(keys, "mes", "viewer", tmp_path / "2.key").public != first.public


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: re.sub(old, new, text)


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "no TOML": (lambda text: text + "[", "damaged"),
    "empty": (lambda _: "", "is no key"),
    "another role": (replaced('role = "viewer"', 'role = "root"'), "no role 'root'"),
    "no role": (replaced('role = "viewer"\n', ""), "no role None"),
    "a role that is no text": (replaced('role = "viewer"', "role = [1]"), r"no role \[1\]"),
    "a short key": (replaced('\npublic_key = "..', '\npublic_key = "'), "is no key"),
    "a key with characters that Z85 does not have": (replaced('\npublic_key = "..', '\npublic_key = "~~'), "is no key"),
    "a key too large for its bits": (replaced('\npublic_key = ".....', '\npublic_key = "#####'), "is no key"),
    "two equal keys": (
        lambda text: text + re.sub("mes-1", "mes-2", text[text.index("[clients") :]),
        "same key",
    ),
    "an unknown key of a client": (lambda text: text + 'admin = "true"\n', "no key of client"),
    "an unknown key": (lambda text: "allow_all = true\n" + text, "allow_all is no key"),
    "a number for a table": (lambda text: "clients = 5\n" + text[: text.index("[clients")], "no table"),
    "a name that climbs": (replaced("mes-1", "../mes"), "no name"),
    "too large": (lambda text: text + "#" * 1_000_001, "no key file"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_list_lets_nobody_in_and_says_why(
    keys: Path, tmp_path: Path, damage: Callable[[str], str], said: str
) -> None:
    enrol(keys, "mes-1", "viewer", tmp_path / "mes.key")
    text = (keys / CLIENTS_FILE).read_text()
    assert damage(text) != text
    (keys / CLIENTS_FILE).write_text(damage(text))
    with pytest.raises(KeyFileError, match=said):
        read_client_list(keys)


def test_a_secret_that_others_can_read_is_refused(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enrol(keys, "mes", "viewer", tmp_path / "mes.key")
    for path in (keys / SERVER_FILE, tmp_path / "mes.key"):
        path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_server_key(keys)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_client_key(tmp_path / "mes.key")
    # systemd gives its credentials to the service's user by other means than the mode.
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_client_key(tmp_path / "mes.key").name == "mes"


def test_a_key_pair_that_does_not_belong_together_is_damaged(keys: Path) -> None:
    path = keys / SERVER_FILE
    path.write_text(
        re.sub('\npublic_key = ".*"', f'\npublic_key = "{zmq.curve_keypair()[0].decode()}"', path.read_text())
    )
    with pytest.raises(KeyFileError, match="do not belong together"):
        read_server_key(keys)


# --- the keys in force --------------------------------------------------------------------------------------------


def test_without_keys_the_error_names_the_two_commands(tmp_path: Path) -> None:
    with pytest.raises(KeysMissingError) as caught:
        KeyRing(tmp_path / "keys")
    assert "edge-ctl keys init" in str(caught.value)
    assert "edge-ctl keys enrol" in str(caught.value)


def test_the_secret_may_come_from_systemd(keys: Path, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (keys / SERVER_FILE).rename(credentials / SERVER_FILE)
    (credentials / SERVER_FILE).chmod(0o440)
    assert KeyRing(keys, credentials).server.public == read_client_list(keys).server_public


def test_a_list_of_another_daemon_is_refused(keys: Path, tmp_path: Path) -> None:
    create_server_key(tmp_path / "other")
    (keys / CLIENTS_FILE).write_bytes((tmp_path / "other" / CLIENTS_FILE).read_bytes())
    with pytest.raises(KeyFileError, match="belongs to another daemon"):
        KeyRing(keys)


def test_a_reload_says_what_it_changed_and_a_bad_list_changes_nothing(keys: Path, tmp_path: Path) -> None:
    mes = enrol(keys, "mes", "viewer", tmp_path / "mes.key")
    ring = KeyRing(keys)
    revoke(keys, "mes")
    eva = enrol(keys, "eva", "engineer", tmp_path / "eva.key")
    found = ring.client(mes.public)
    assert found is not None
    assert found.name == "mes"
    changes = ring.reload()
    assert (changes.enrolled, changes.revoked, changes.clients) == (("eva",), ("mes",), 1)
    assert ring.client(mes.public) is None
    (keys / CLIENTS_FILE).write_text("[")
    with pytest.raises(KeyFileError):
        ring.reload()
    assert ring.client(eva.public) is not None


def test_a_client_with_another_role_counts_as_revoked_and_as_new(keys: Path, tmp_path: Path) -> None:
    enrol(keys, "anna", "engineer", tmp_path / "anna.key")
    ring = KeyRing(keys)
    path = keys / CLIENTS_FILE
    path.write_text(path.read_text().replace('"engineer"', '"viewer"'))
    changes = ring.reload()
    assert (changes.enrolled, changes.revoked) == (("anna",), ("anna",))


# --- who may do what ----------------------------------------------------------------------------------------------


def test_every_command_of_the_daemon_is_in_the_table_of_roles() -> None:
    source = Path(control.__file__).read_text()
    named = set(re.findall(r'^            case "(\w+)":', source, re.MULTILINE))
    assert {"status", "activate", "shutdown", "reload_keys"} <= named
    assert named <= set(COMMANDS)


def test_only_gateway_and_engineer_trigger_and_a_viewer_changes_nothing() -> None:
    assert SOCKETS["triggers"] == {"gateway", "engineer"}
    assert permission("trigger").roles == {"gateway", "engineer"}
    assert all("viewer" not in rule.roles for rule in COMMANDS.values() if rule.changes)
    assert all("engineer" in rule.roles for rule in COMMANDS.values())
    assert permission("shutdown").roles == {"engineer"}
    assert "operator" in permission("activate").roles
    assert permission("defect.name").roles == permission("defect.*").roles
    assert permission("made_up").roles == {"engineer"}
    assert permission("made_up").changes


def test_a_program_of_this_pc_may_everything_only_where_no_keys_are_used() -> None:
    assert LOCAL.may(frozenset())
    assert not Peer("x", "viewer").may(permission("drain").roles)
    assert all(Peer("x", role).may(frozenset({role})) for role in ROLES)


# --- how often ----------------------------------------------------------------------------------------------------


def test_an_eager_client_is_refused_and_one_that_does_not_heed_it_is_dropped() -> None:
    allowance = Allowance.full(100, 0)
    rulings = [allowance.take(0) for _ in range(150)]
    assert rulings == [Ruling.SERVE] * 50 + [Ruling.REFUSE] * 50 + [Ruling.DROP] * 50
    assert allowance.take(250_000_000) is Ruling.REFUSE
    assert allowance.take(2_000_000_000) is Ruling.SERVE


def test_a_client_that_keeps_to_its_rate_is_served_for_ever() -> None:
    allowance = Allowance.full(100, 0)
    assert all(allowance.take(n * 10_000_000) is Ruling.SERVE for n in range(5_000))


# --- edge-ctl keys ------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = ctl.main(arguments)
    told = capsys.readouterr()
    return status, told.out, told.err


def test_two_commands_make_a_secured_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGE_CTL_KEY", raising=False)
    config = tmp_path / "edge.toml"
    config.write_text('state_dir = "state"\n')
    (tmp_path / "state").mkdir()
    at = ("--config", str(config))
    assert run(capsys, "keys", "init", *at)[0] == 0
    status, out, _ = run(
        capsys, "keys", "enrol", "gw", "--role", "gateway", "--out", str(tmp_path / "gw.key"), *at, "--json"
    )
    assert status == 0
    told = json.loads(out)
    assert (told["name"], told["role"]) == ("gw", "gateway")
    assert "reload-keys" in told["applied"]
    assert read_client_key(tmp_path / "gw.key").server_public == KeyRing(tmp_path / "state" / "keys").server.public
    assert json.loads(run(capsys, "keys", "list", *at, "--json")[1])["clients"][0]["public_key"] == told["public_key"]
    assert told["public_key"] in run(capsys, "keys", "show", "gw", *at)[1]
    assert run(capsys, "keys", "revoke", "gw", *at)[0] == 0
    assert "nobody can connect" in run(capsys, "keys", "list", *at)[1]
    status, _, err = run(capsys, "keys", "revoke", "gw", *at)
    assert status == 1
    assert "no client 'gw'" in err


def test_a_key_that_nobody_can_tell_the_daemon_of_is_said_not_to_be_in_force(
    keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enrol(keys, "eva", "engineer", tmp_path / "eva.key")
    nowhere = f"ipc://{tmp_path / 'nobody'}"
    status, out, _ = run(
        capsys, "keys", "revoke", "eva", "--keys", str(keys), "--key", str(tmp_path / "eva.key"),
        "--control", nowhere, "--timeout", "0.05",
    )  # fmt: skip
    assert status == 1
    assert "NOT YET IN FORCE" in out
    assert read_client_list(keys).clients == ()


def test_check_says_that_keys_are_missing_and_that_nobody_is_enrolled(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(
        'line = "l"\nstate_dir = "state"\n[security]\ncurve = "always"\n[cameras.top]\nkind = "simulated"\n'
        'product = "flange"\n[stations.st1]\nviews = [{ camera = "top", recipe = "r" }]\n'
    )
    config = load_config(path, recipes_must_exist=False)
    (finding,) = check._keys(config)
    assert finding.level == "error"
    assert "edge-ctl keys init" in finding.text
    create_server_key(config.keys_path)
    (finding,) = check._keys(config)
    assert (finding.level, "nobody is enrolled" in finding.text) == ("hint", True)
    enrol(config.keys_path, "eva", "engineer", tmp_path / "eva.key")
    assert list(check._keys(config)) == []


def test_all_addresses_of_this_pc_can_be_bound() -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert check.why_not_bindable(f"tcp://*:{port}") == errno.EADDRINUSE
    assert check.why_not_bindable(f"tcp://*:{port}") is None


def test_the_gateway_takes_a_key_file_beside_its_own(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('[daemon]\nkey = "gw.key"\n[stations.st1]\nunit = 1\nwindow_ms = 800\n')
    assert load_gateway_config(path).daemon.key == tmp_path / "gw.key"
    link = DaemonLink(
        DaemonEndpoints("tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "tcp://127.0.0.1:3", tmp_path / "gw.key"),
        ("st1",),
        lambda *_: None,
    )
    with pytest.raises(KeyFileError, match="cannot be read"):
        link.open()


def test_keys_of_root_belong_to_the_owner_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda _fd, uid, gid: given.append((uid, gid)))
    monkeypatch.setattr(os, "chown", lambda _path, uid, gid: given.append((uid, gid)))
    create_server_key(tmp_path / "keys")
    assert set(given) == {(tmp_path.stat().st_uid, tmp_path.stat().st_gid)}
