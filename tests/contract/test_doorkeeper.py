"""Nobody in who is not on the list, and nobody out there who stops the others: on real sockets, with real attackers."""

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from edge_daemon.client import Key, NoAnswerError, Subscriber, TriggerClient, connect
from edge_daemon.edges.connections import ConnectionLimits
from edge_daemon.edges.doorkeeper import Doorkeeper
from edge_daemon.edges.keyring import KeyRing
from edge_daemon.edges.publisher import Publisher, PublisherConfig
from edge_daemon.edges.server import TRIGGERS, RequestServer
from edge_daemon.edges.sockets import EndpointError
from edge_daemon.gateway.events import AskDaemon, TriggerAnswered
from edge_daemon.gateway.link import DaemonEndpoints, DaemonLink
from edge_daemon.wire.codec import decode_trigger_reply
from edge_daemon.wire.keys import ClientKey, create_server_key, enrol, revoke
from edge_daemon.wire.messages import TriggerReply, TriggerRequest
from edge_daemon.wire.roles import Role

WAIT_S = 20.0
ANY_PORT = "tcp://127.0.0.1:*"
REQUEST = b'{"station":"st1","trigger_id":"1"}'


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"


class House:
    """Results and triggers behind a door, as in the daemon."""

    def __init__(self, folder: Path | None, limits: ConnectionLimits | None = None, max_per_s: float = 500) -> None:
        self.folder = folder
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.told: list[tuple[str, str]] = []
        ring = KeyRing(folder) if folder is not None else None
        self.door = Doorkeeper(self.context, ring, lambda *what: self.told.append(what), limits=limits)
        self.door.open()
        config = PublisherConfig(ANY_PORT, ANY_PORT, ANY_PORT, linger_ms=0)
        self.publisher = Publisher(self.context, config, door=self.door)
        self.results = self.publisher.open().results
        self.hold = threading.Event()
        self.hold.set()
        self.waiting: list[Callable[[TriggerReply], None]] = []
        self.server = RequestServer(
            self.context,
            ANY_PORT,
            TRIGGERS,
            self._handle,
            door=self.door,
            linger_ms=0,
            max_per_s=max_per_s,
            max_outstanding_per_client=32,
        )
        self.triggers = self.server.open()

    def _handle(self, request: TriggerRequest, reply: Callable[[TriggerReply], None]) -> None:
        assert self.hold.wait(WAIT_S)
        if request.station == "never":
            self.waiting.append(reply)
        else:
            reply(TriggerReply(accepted=True, result_id="r"))

    def key(self, name: str, role: Role) -> ClientKey:
        assert self.folder is not None
        key = enrol(self.folder, name, role, self.folder / f"{name}.key")
        self.door.reload()
        return key

    def stranger(self) -> ClientKey:
        """Who has got hold of the daemon's public key, and made himself a pair."""
        assert self.folder is not None
        public, secret = zmq.curve_keypair()
        return ClientKey("stranger", "engineer", public, KeyRing(self.folder).server.public, secret)

    def raw(self, endpoint: str) -> socket.socket:
        host, port = endpoint.removeprefix("tcp://").split(":")
        return socket.create_connection((host, int(port)))

    def refused(self) -> int:
        return int(self.door.stats()["refused_handshakes"])

    def connections(self, of: str) -> int:
        return int(self.door.stats()["connections"]["by_socket"].get(of, 0))

    def ask(self, key: Key, timeout_s: float = WAIT_S) -> TriggerReply:
        with TriggerClient(self.triggers, timeout_s, key=key) as client:
            return client.trigger("st1", "1")

    def close(self) -> None:
        self.server.close()
        self.publisher.close()
        self.door.close()
        self.context.term()


@contextlib.contextmanager
def house(folder: Path | None, **options: Any) -> Iterator[House]:
    built = House(folder, **options)
    with contextlib.closing(built):
        yield built


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    create_server_key(tmp_path / "keys")
    return tmp_path / "keys"


@contextlib.contextmanager
def dealer(endpoint: str, key: Key = None, **options: int) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context:
        asker = connect(context, zmq.DEALER, endpoint, key=key)
        for name, value in options.items():
            asker.setsockopt(getattr(zmq, name), value)
        try:
            yield asker
        finally:
            asker.close(0)


# --- who gets in --------------------------------------------------------------------------------------------------


def test_an_enrolled_client_is_let_in_and_has_a_name(keys: Path) -> None:
    with house(keys) as at:
        gateway = at.key("gw", "gateway")
        assert at.ask(gateway).accepted
        assert at.refused() == 0


STRANGERS: dict[str, Callable[[House], Key]] = {
    "with the daemon's public key and a pair of his own": lambda at: at.stranger(),
    "without any key": lambda _: None,
    "with a role that does not open this socket": lambda at: at.key("mes", "viewer"),
    "with a key that was enrolled but is not in force": lambda at: enrol(
        keys_of(at), "late", "gateway", keys_of(at) / "late.key"
    ),
}


def keys_of(at: House) -> Path:
    assert at.folder is not None
    return at.folder


@pytest.mark.parametrize("who", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_gets_no_answer_and_is_counted_and_told(keys: Path, who: Callable[[House], Key]) -> None:
    with house(keys) as at:
        gateway = at.key("gw", "gateway")
        with dealer(at.triggers, who(at)) as asker:
            until(lambda: at.refused() > 0)
            assert not asker.poll(0, zmq.POLLOUT)  # no handshake, no way to send
            assert at.ask(gateway).accepted
        until(lambda: any(name == "stranger_refused" for name, _ in at.told))
        assert at.server.stats().requests == 1


def test_a_client_that_is_enrolled_later_gets_in_without_a_new_start_of_either(keys: Path) -> None:
    with house(keys) as at:
        late = enrol(keys, "late", "gateway", keys / "late.key")
        with dealer(at.triggers, late) as asker:
            until(lambda: at.refused() > 0)
            at.door.reload()
            assert asker.poll(int(WAIT_S * 1000), zmq.POLLOUT)
            asker.send_multipart([b"", REQUEST])
            assert asker.poll(int(WAIT_S * 1000))


def test_a_revoked_subscriber_that_stays_connected_hears_nothing_more_and_the_others_miss_nothing(keys: Path) -> None:
    with house(keys) as at:
        mes, board = at.key("mes", "viewer"), at.key("board", "viewer")
        with zmq.Context() as context:
            revoked, stays = (connect(context, zmq.SUB, at.results, key=key) for key in (mes, board))
            for sub in (revoked, stays):
                sub.setsockopt(zmq.SUBSCRIBE, b"")
            until(lambda: at.publisher.stats().results.subscriptions == 2)
            at.publisher.publish_result([b"result/st1/", b"before"])
            assert revoked.recv_multipart()[1] == b"before"
            revoke(keys, "mes")
            assert at.door.reload().revoked == ("mes",)
            refused = at.refused()
            for n in range(100):
                at.publisher.publish_result([b"result/st1/", b"%d" % n])
            assert [stays.recv_multipart()[1] for _ in range(101)][-1] == b"99"
            until(lambda: at.refused() > refused)  # it tries to come back
            at.publisher.publish_result([b"result/st1/", b"last"])
            assert stays.recv_multipart()[1] == b"last"
            assert not revoked.poll(0)
            revoked.close(0)
            stays.close(0)


def test_a_revoked_gateway_that_stays_connected_triggers_nothing_more(keys: Path) -> None:
    with house(keys) as at:
        old, new = at.key("old", "gateway"), at.key("new", "gateway")
        with dealer(at.triggers, old) as revoked, dealer(at.triggers, new) as stays:
            for asker in (revoked, stays):
                asker.send_multipart([b"", REQUEST])
                assert asker.poll(int(WAIT_S * 1000))
                asker.recv_multipart()
            revoke(keys, "old")
            at.door.reload()
            until(lambda: at.connections("triggers") == 1 or at.refused() > 0)
            with contextlib.suppress(zmq.Again):
                revoked.send_multipart([b"", REQUEST], zmq.DONTWAIT)
            stays.send_multipart([b"", REQUEST])
            assert stays.poll(int(WAIT_S * 1000))
            assert at.server.stats().requests == 3
            assert not revoked.poll(0)


def test_a_revoked_client_that_has_said_nothing_yet_is_cut_off_at_its_first_word(keys: Path) -> None:
    with house(keys) as at:
        old = at.key("old", "gateway")
        with dealer(at.triggers, old) as silent:
            assert silent.poll(int(WAIT_S * 1000), zmq.POLLOUT)
            revoke(keys, "old")
            at.door.reload()
            silent.send_multipart([b"", REQUEST])
            until(lambda: at.door.stats()["connections"]["cut"] == 1)
            assert at.server.stats().requests == 0
            assert not silent.poll(0)


def test_nobody_gets_the_answer_to_the_request_of_another_by_taking_its_name(keys: Path) -> None:
    with house(keys) as at, zmq.Context() as context:
        askers = []
        for name in ("a", "b"):
            asker = context.socket(zmq.DEALER)
            asker.setsockopt(zmq.LINGER, 0)
            asker.setsockopt(zmq.ROUTING_ID, b"gateway")
            at.key(name, "gateway").apply(asker)
            asker.connect(at.triggers)
            asker.send_multipart([b"", b'{"request_id":"q1","station":"st1","trigger_id":"1"}'])
            assert asker.poll(int(WAIT_S * 1000))
            askers.append(asker)
        assert at.server.stats().repeated == 0
        for asker in askers:
            asker.close(0)


# --- a door without a keeper --------------------------------------------------------------------------------------


def test_without_its_keeper_the_door_is_shut_and_says_so(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(keys) as at:
        gateway = at.key("gw", "gateway")
        with dealer(at.triggers, gateway) as inside:
            inside.send_multipart([b"", REQUEST])
            assert inside.poll(int(WAIT_S * 1000))
            inside.recv_multipart()
            assert at.door.failing == ""

            def broken(_: object) -> None:
                raise RuntimeError("a defect")

            monkeypatch.setattr(at.door, "_answer", broken)
            with dealer(at.triggers, gateway) as outside:
                until(lambda: "has ended" in at.door.failing)
                inside.send_multipart([b"", REQUEST])  # who is in stays in
                assert inside.poll(int(WAIT_S * 1000))
                assert not outside.poll(0, zmq.POLLOUT)
            with pytest.raises(NoAnswerError):
                at.ask(at.stranger(), timeout_s=0.2)


def test_a_keeper_that_hangs_is_noticed(keys: Path) -> None:
    now = [0]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    door = Doorkeeper(context, KeyRing(keys), lambda *_: None, clock_ns=lambda: now[0])
    assert door.failing == ""
    door.open()
    try:
        door._looked_ns = -6_000_000_000  # it looks four times a second, and sets this each time
        until(lambda: door.failing == "")
        with door._lock:  # whoever has this lock stops it
            now[0] += 6_000_000_000
            assert "hangs" in door.failing
        until(lambda: door.failing == "")
    finally:
        door.close()
        context.term()


def test_a_context_has_one_keeper(keys: Path) -> None:
    with house(keys) as at, pytest.raises(EndpointError, match="another authenticator"):
        Doorkeeper(at.context, None, lambda *_: None).open()


# --- who does harm ------------------------------------------------------------------------------------------------


def test_connections_that_never_finish_the_handshake_are_limited_and_ended(keys: Path) -> None:
    limits = ConnectionLimits(most_young=20, young_ns=2_000_000_000)
    with house(keys, limits=limits) as at:
        gateway = at.key("gw", "gateway")
        with dealer(at.triggers, gateway) as inside:
            inside.send_multipart([b"", REQUEST])
            assert inside.poll(int(WAIT_S * 1000))
            raws = [at.raw(at.triggers) for _ in range(60)]
            until(lambda: at.door.stats()["connections"]["refused"] >= 35)
            inside.send_multipart([b"", REQUEST])
            assert inside.poll(int(WAIT_S * 1000))
            until(lambda: at.connections("triggers") == 1)  # ZeroMQ ends those that take too long
            assert at.ask(gateway).accepted
            assert at.refused() >= 20
            for raw in raws:
                raw.close()


def test_one_address_does_not_take_the_handshakes_of_the_others(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_daemon.edges.connections._is_own", lambda address: address == "")
    with house(keys, limits=ConnectionLimits(most_young=100, most_young_per_address=5)) as at:
        raws = [at.raw(at.triggers) for _ in range(20)]
        until(lambda: at.door.stats()["connections"]["refused"] >= 15)
        for raw in raws:
            raw.close()


NOISE = {
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "random bytes": os.urandom(4096),
    "a greeting and garbage": b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00CURVE" + bytes(15) + os.urandom(2000),
    "nothing": b"",
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_noise_is_counted_as_a_stranger_and_harms_nobody(keys: Path, noise: bytes) -> None:
    with house(keys) as at:
        gateway = at.key("gw", "gateway")
        for _ in range(5):
            with contextlib.closing(at.raw(at.triggers)) as raw, contextlib.suppress(OSError):
                raw.sendall(noise)
        until(lambda: at.refused() >= 5)
        assert at.ask(gateway).accepted


def test_a_client_that_floods_is_refused_then_cut_off_and_the_one_beside_it_is_served(keys: Path) -> None:
    with house(keys, max_per_s=200) as at:
        loud, gateway = at.key("loud", "gateway"), at.key("gw", "gateway")
        with dealer(at.triggers, loud) as flood:
            reasons = []
            for _ in range(150):
                flood.send_multipart([b"", REQUEST])
            for _ in range(150):
                assert flood.poll(int(WAIT_S * 1000))
                reasons.append(decode_trigger_reply(flood.recv_multipart()[-1]).reason)
            assert set(reasons) == {"", "too_fast"}
            sent = 0
            while not at.door.stats()["connections"]["cut"]:
                with contextlib.suppress(zmq.Again):
                    flood.send_multipart([b"", REQUEST], zmq.DONTWAIT)
                sent += 1
                assert sent < 1_000_000
            assert at.ask(gateway).accepted
        stats = at.server.stats()
        assert stats.refused_too_fast >= 25
        assert stats.thrown_away >= 1
        assert any(name == "client_cut_off" and "loud" in text for name, text in at.told)


def test_one_client_does_not_take_all_that_may_wait(keys: Path) -> None:
    with house(keys) as at:
        greedy, gateway = at.key("greedy", "gateway"), at.key("gw", "gateway")
        with dealer(at.triggers, greedy) as asker:
            for n in range(40):
                asker.send_multipart([b"", b'{"station":"never","trigger_id":"%d"}' % n])
            reasons = []
            for _ in range(8):
                assert asker.poll(int(WAIT_S * 1000))
                reasons.append(decode_trigger_reply(asker.recv_multipart()[-1]).reason)
            assert reasons == ["busy"] * 8
            assert at.server.stats().outstanding == 32
            assert at.ask(gateway).accepted
            for reply in at.waiting:
                reply(TriggerReply(accepted=True))
            until(lambda: at.server.stats().outstanding == 0)


def send_for_ever(raw: socket.socket, data: bytes) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        raw.sendall(data)


def test_a_message_without_an_end_is_cut_off_before_it_fills_the_memory() -> None:
    with house(None, limits=ConnectionLimits(bytes_per_s=1_000_000)) as at:
        with contextlib.closing(at.raw(at.triggers)) as raw:
            raw.sendall(b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + bytes(16) + bytes(32))
            ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
            raw.sendall(b"\x04" + bytes([len(ready)]) + ready)
            greeted = b""
            while not greeted.endswith(b"Identity" + bytes(4)):
                greeted += raw.recv(1000)
            endless = (b"\x01\xff" + b"x" * 255) * 100  # each frame says that another one follows
            with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
                send_for_ever(raw, endless)
        until(lambda: any("MB a second" in text for _, text in at.told))
        assert at.ask(None).accepted


def test_subscriptions_without_end_are_cut_off_and_other_readers_miss_nothing(keys: Path) -> None:
    with house(keys) as at:
        mes, greedy = at.key("mes", "viewer"), at.key("greedy", "viewer")
        with zmq.Context() as context:
            reader = connect(context, zmq.SUB, at.results, key=mes)
            reader.setsockopt(zmq.SUBSCRIBE, b"")
            until(lambda: at.publisher.stats().results.subscriptions == 1)
            flood = connect(context, zmq.SUB, at.results, key=greedy)
            for n in range(5_000):
                flood.setsockopt(zmq.SUBSCRIBE, b"topic %d" % n)
            until(lambda: at.door.stats()["connections"]["cut"] > 0)
            for n in range(50):
                at.publisher.publish_result([b"result/st1/", b"%d" % n])
            assert [reader.recv_multipart()[1] for _ in range(50)] == [b"%d" % n for n in range(50)]
            reader.close(0)
            flood.close(0)


def test_a_client_that_reads_no_answer_is_counted_and_the_one_beside_it_is_served(keys: Path) -> None:
    with house(keys, max_per_s=100_000) as at:
        deaf, gateway = at.key("deaf", "gateway"), at.key("gw", "gateway")
        with dealer(at.triggers, deaf, RCVHWM=1, SNDHWM=0) as asker:
            # The socket was connected before its options were set; a fresh connection has them.
            asker.disconnect(at.triggers)
            asker.setsockopt(zmq.RCVBUF, 4096)
            asker.connect(at.triggers)
            for _ in range(200_000):
                if at.server.stats().answers_not_read:
                    break
                assert asker.poll(int(WAIT_S * 1000), zmq.POLLOUT)
                with contextlib.suppress(zmq.Again):
                    asker.send_multipart([b"", REQUEST], zmq.DONTWAIT)
            until(lambda: at.server.stats().answers_not_read > 0)
            assert at.ask(gateway).accepted


def test_a_flood_whose_client_dies_unread_does_not_bring_the_process_down() -> None:
    """libzmq aborts the process when a connection ends that it has stopped to read, at the next heartbeat of either
    side. Here nothing is read until the client is dead, and its heartbeats, one a millisecond, have had their time."""
    with house(None, max_per_s=100_000) as at:
        for _ in range(3):
            at.hold.clear()
            with dealer(at.triggers, SNDHWM=0, HEARTBEAT_IVL=1) as flood:
                assert flood.poll(int(WAIT_S * 1000), zmq.POLLOUT)
                for _ in range(20_000):
                    flood.send_multipart([b"", REQUEST])
                until(lambda: at.connections("triggers") == 1)
            until(lambda: at.connections("triggers") == 0)  # ZeroMQ has read it to its end, though nobody else has
            at.hold.set()
        assert at.ask(None).accepted


def test_a_client_that_was_revoked_before_the_monitor_told_of_it_is_cut_off_then(keys: Path) -> None:
    with house(keys) as at:
        mes = at.key("mes", "viewer")
        with zmq.Context() as context:
            heard = at.door._hear
            held: list[Any] = []
            at.door._hear = lambda *what: held.append(what)  # type: ignore[method-assign]
            sub = connect(context, zmq.SUB, at.results, key=mes)
            sub.setsockopt(zmq.SUBSCRIBE, b"")
            until(lambda: at.publisher.stats().results.subscriptions == 1)
            revoke(keys, "mes")
            at.door.reload()
            at.door._hear = heard  # type: ignore[method-assign]
            until(lambda: at.door.stats()["connections"]["cut"] == 1)
            until(lambda: at.publisher.stats().results.subscriptions == 0)
            sub.close(0)


def test_the_gateways_link_takes_a_key_file(keys: Path) -> None:
    with house(keys) as at:
        at.key("gw", "gateway")
        got: list[Any] = []
        link = DaemonLink(
            DaemonEndpoints(at.results, at.results, at.triggers, keys / "gw.key"),
            ("st1",),
            lambda _station, event: got.append(event),
        )

        async def ask() -> None:
            link.open()
            serving = asyncio.create_task(link.run())
            deadline = time.monotonic() + WAIT_S
            while not any(isinstance(e, TriggerAnswered) and e.reply is not None for e in got):
                assert time.monotonic() < deadline
                link.ask("st1", AskDaemon(f"t{len(got)}", None))
                await asyncio.sleep(0.01)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            link.close()

        asyncio.run(ask())
        assert at.server.stats().requests >= 1


def test_the_subscriber_of_the_library_takes_a_key_file(keys: Path) -> None:
    with house(keys) as at:
        at.key("mes", "viewer")
        with Subscriber(at.results, key=keys / "mes.key"):
            until(lambda: at.publisher.stats().results.subscriptions == 1)
