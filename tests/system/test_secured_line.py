"""A line that the network can reach: nobody in without a key, nobody beyond his role, nobody who stops the parts."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from edge_daemon import ctl
from edge_daemon.client import ControlClient, NoAnswerError, RefusedError, Subscriber, TriggerClient, connect
from edge_daemon.wire.codec import decode_amendment_reply, decode_event, encode_request
from edge_daemon.wire.keys import ClientKey, create_server_key, enrol, read_client_list, revoke
from edge_daemon.wire.messages import AmendmentRequest, TriggerRequest
from edge_daemon.wire.roles import ROLES
from tests.daemon import DaemonProcess, free_ports, receive
from tests.system.conftest import SmallLine

WAIT_S = 30.0

STATION = """
line = "secured"
[journal]
commit_budget_ms = 10000
[cameras.top]
kind = "folder"
loop = true
path = "{pictures}"
[stations.st1]
deadline_ms = 20000
queue = 4
views = [{{ camera = "top", recipe = "{recipe}" }}]
"""


def station(line: SmallLine) -> str:
    return STATION.format(pictures=line.test / "test" / "good", recipe=line.recipe)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"


class Secured:
    """A running daemon that listens on all addresses, and a key for each role."""

    def __init__(self, folder: Path, line: SmallLine) -> None:
        self.folder = folder
        self.keys = folder / "state" / "keys"
        create_server_key(self.keys)
        self.files = {role: folder / f"{role}.key" for role in ROLES}
        for role, path in self.files.items():
            enrol(self.keys, role, role, path)
        self.daemon = DaemonProcess(folder, station(line), key=self.files["engineer"], host="0.0.0.0")
        self.at = self.daemon.endpoints

    def control(self, key: object) -> ControlClient:
        return ControlClient(self.at["control"], timeout_s=WAIT_S, key=key)  # type: ignore[arg-type]

    def audit(self) -> list[dict[str, object]]:
        command = [sys.executable, "-m", "edge_daemon.cli", "audit", "--config", str(self.daemon.config), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def refused(self) -> int:
        return int(self.daemon.status()["security"]["refused_handshakes"])


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, small_line: SmallLine) -> Iterator[Secured]:
    made = Secured(tmp_path_factory.mktemp("secured"), small_line)
    with made.daemon:
        yield made


def test_without_keys_it_does_not_listen_and_names_the_two_commands(tmp_path: Path, small_line: SmallLine) -> None:
    daemon = DaemonProcess(tmp_path, station(small_line), host="0.0.0.0")
    command = [sys.executable, "-m", "edge_daemon.cli", "run", "--config", str(daemon.config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78  # systemd does not try again what cannot get better by itself
    assert "edge-ctl keys init" in done.stderr
    assert "edge-ctl keys enrol" in done.stderr
    assert not (tmp_path / "state" / "journal.sqlite").exists()


def test_each_role_does_its_own_and_no_more_and_all_of_it_is_on_the_trail(secured: Secured) -> None:
    with zmq.Context() as context:
        events = connect(context, zmq.SUB, secured.at["status"], key=secured.files["viewer"])
        events.setsockopt(zmq.SUBSCRIBE, b"event/audit/")
        until(lambda: secured.daemon.status()["publisher"]["status"]["subscriptions"] > 0)
        for role in ROLES:
            with secured.control(secured.files[role]) as control:
                assert control.request("status")["line"] == "secured"
                for command, allowed in (
                    ("drain", role in ("operator", "engineer")),
                    ("resume", role in ("operator", "engineer")),
                    ("reload_keys", role == "engineer"),
                ):
                    if allowed:
                        control.request(command)
                        continue
                    with pytest.raises(RefusedError) as refused:
                        control.request(command)
                    assert refused.value.code == "forbidden"
        with secured.control(secured.files["operator"]) as control, pytest.raises(RefusedError):
            control.request("shutdown")
        assert events.poll(int(WAIT_S * 1000))
        told = decode_event(events.recv_multipart())
        assert (told.kind, told.name) == ("audit", "command_refused")
        assert "viewer (viewer, 127.0.0.1): drain refused" in told.message
        events.close(0)
    found = {(e["who"], e["role"], e["command"], e["outcome"]) for e in secured.audit()}
    assert ("viewer", "viewer", "drain", "refused") in found
    assert ("operator", "operator", "drain", "begun") in found
    assert ("operator", "operator", "drain", "done") in found
    assert ("gateway", "gateway", "reload_keys", "refused") in found
    assert ("engineer", "engineer", "reload_keys", "done") in found
    assert ("operator", "operator", "shutdown", "refused") in found


def test_only_gateway_and_engineer_trigger(secured: Secured) -> None:
    for role in ROLES:
        with TriggerClient(secured.at["triggers"], timeout_s=WAIT_S, key=secured.files[role]) as triggers:
            if role in ("gateway", "engineer"):
                assert triggers.trigger("st1", f"by-{role}").accepted
            else:
                with pytest.raises(NoAnswerError, match="key file"):
                    triggers.trigger("st1", f"by-{role}", timeout_s=0.3)


def test_only_the_gateway_tells_what_became_of_a_part(secured: Secured) -> None:
    """Whoever could forge that a part was rejected could hide that it passed."""
    forged = AmendmentRequest(
        request_id="q1", amendment_id="a1", station="st1", trigger_id="t", kind="disposition", what="passed", after_ms=1
    )
    answered = {}
    with zmq.Context() as context:
        for role in ("gateway", "viewer", "operator", "engineer"):
            asker = connect(context, zmq.DEALER, secured.at["amendments"], key=secured.files[role])
            try:
                if asker.poll(WAIT_S * 1000 if role == "gateway" else 300, zmq.POLLOUT):
                    asker.send(encode_request(forged))
                heard = bool(asker.poll(WAIT_S * 1000 if role == "gateway" else 300))
                answered[role] = decode_amendment_reply(asker.recv_multipart()[-1]).reason if heard else None
            finally:
                asker.close(0)
    assert answered == {"gateway": "unknown_result", "viewer": None, "operator": None, "engineer": None}


def test_the_gateways_check_hears_a_daemon_that_uses_keys(secured: Secured, tmp_path: Path) -> None:
    wire = "\n".join(f'{name} = "{secured.at[name]}"' for name in ("results", "status", "triggers", "amendments"))
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'[daemon]\n{wire}\nkey = "{secured.files["gateway"]}"\n[modbus]\nport = {free_ports(1)[0]}\n'
        "[stations.st1]\nunit = 1\nwindow_ms = 500\n"
    )
    command = [sys.executable, "-m", "edge_daemon.gateway.cli", "check", "--config", str(config), "--timeout", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("how", ["command", "SIGHUP"])
def test_who_is_revoked_is_cut_off_at_once_although_he_stays_connected(
    secured: Secured, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"mes-{how}"
    path = secured.folder / f"{name}.key"
    with secured.control(secured.files["engineer"]) as control:
        enrol(secured.keys, name, "viewer", path)
        assert control.request("reload_keys")["enrolled"] == [name]
    with secured.daemon.subscriber() as stays, Subscriber(secured.at["results"], key=path) as revoked:
        until(lambda: secured.daemon.status()["publisher"]["results"]["subscriptions"] == 2)
        with secured.daemon.triggers() as triggers:
            assert triggers.trigger("st1", f"{how}-before").accepted
            assert receive(revoked, 1)[0].trigger_id == f"{how}-before"
            assert receive(stays, 1)[0].trigger_id == f"{how}-before"
            if how == "command":
                arguments = ["--key", str(secured.files["engineer"]), "--control", secured.at["control"]]
                assert ctl.main(["keys", "revoke", name, "--keys", str(secured.keys), *arguments]) == 0
                assert "In force now" in capsys.readouterr().out
            else:
                revoke(secured.keys, name)
                assert secured.daemon.process is not None
                secured.daemon.process.send_signal(signal.SIGHUP)
                until(lambda: secured.daemon.status()["security"]["clients"] == len(ROLES))
            assert triggers.trigger("st1", f"{how}-after").accepted
            assert receive(stays, 1)[0].trigger_id == f"{how}-after"
            assert revoked.receive(0) is None
            until(lambda: secured.daemon.status()["publisher"]["results"]["subscriptions"] == 1)
            assert revoked.receive(0) is None
    assert any(e["command"] == "reload_keys" and e["outcome"] == "done" for e in secured.audit())


def test_no_stranger_stops_the_line(secured: Secured) -> None:
    """A stolen public key, a key that nobody enrolled, no key, connections that say nothing, garbage at full speed, and
    a client that never reads: every part is judged all the same."""
    refused = secured.refused()
    public, secret = zmq.curve_keypair()
    thief = ClientKey("thief", "engineer", public, read_client_list(secured.keys).server_public, secret)
    silent: list[socket.socket] = []
    over = threading.Event()

    def noise() -> None:
        where = ("127.0.0.1", int(secured.at["triggers"].rpartition(":")[2]))
        while not over.is_set():
            with contextlib.suppress(OSError), socket.create_connection(where) as stranger:
                for _ in range(100):
                    stranger.sendall(b"\xff" * 10_000)

    noisy = threading.Thread(target=noise)
    with zmq.Context() as context:
        strangers = [connect(context, zmq.DEALER, secured.at[name], key=thief) for name in ("triggers", "control")]
        strangers.append(connect(context, zmq.DEALER, secured.at["control"]))
        deaf = connect(context, zmq.SUB, secured.at["status"], key=secured.files["viewer"], high_water_mark=1)
        deaf.setsockopt(zmq.SUBSCRIBE, b"")
        for name in ("results", "triggers", "control"):
            where = ("127.0.0.1", int(secured.at[name].rpartition(":")[2]))
            silent += [socket.create_connection(where) for _ in range(20)]
        noisy.start()
        try:
            with secured.daemon.subscriber() as results, secured.daemon.triggers() as triggers:
                for n in range(30):
                    assert triggers.trigger("st1", f"part-{n}").accepted
                    (got,) = receive(results, 1)
                    assert (got.trigger_id, got.result_state, got.reason) == (f"part-{n}", "Completed", "")
            until(lambda: secured.refused() > refused + 3)
        finally:
            over.set()
            noisy.join()
            for stranger in (*strangers, deaf):
                stranger.close(0)
            for connection in silent:
                connection.close()
    counters = secured.daemon.status()["stations"]["st1"]["counters"]
    assert counters["missed"] == 0
    assert counters["accepted"] == counters["ok"] + counters["not_ok"] + counters["not_decidable"] + counters["failed"]


def test_a_flood_of_triggers_without_limit_ends_in_a_clean_stop(tmp_path: Path, small_line: SmallLine) -> None:
    """Two clients ask as fast as they can and heed no answer, while the daemon is told to stop, and one of them dies in
    the middle of it."""
    daemon = DaemonProcess(tmp_path, station(small_line))
    over, sent = threading.Event(), [0, 0]

    def flood(which: int) -> None:
        with zmq.Context() as context:
            asker = connect(context, zmq.DEALER, daemon.endpoints["triggers"])
            while not over.is_set():
                if not asker.poll(100, zmq.POLLOUT):
                    continue
                with contextlib.suppress(zmq.Again):
                    for _ in range(100):
                        request = TriggerRequest(station="st1", trigger_id=f"{which}-{sent[which]}")
                        asker.send_multipart([b"", encode_request(request)], zmq.DONTWAIT)
                        sent[which] += 1
            asker.close(0)

    with daemon:
        clients = [threading.Thread(target=flood, args=(which,)) for which in (0, 1)]
        for client in clients:
            client.start()
        try:
            until(lambda: daemon.status()["requests"]["triggers"]["thrown_away"] > 0)
            stats = daemon.status()["requests"]["triggers"]
            assert stats["refused_too_fast"] > 0
            assert daemon.stop() == 0
        finally:
            over.set()
            for client in clients:
                client.join()
    assert "Assertion" not in daemon.log.read_text()
    assert "is cut off: it floods triggers" in daemon.log.read_text()
    records = daemon.records()
    assert len({r["result_id"] for r in records}) == len(records)
    assert [r["seq"] for r in records] == list(range(1, len(records) + 1))
