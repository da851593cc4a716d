"""The sockets: a reader that does not read harms nobody else, and no request brings a server down."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from wire_kit import inspection, not_ok

from edge_daemon.client import ControlClient, NoAnswerError, RefusedError, Subscriber, TriggerClient
from edge_daemon.edges.door import OpenDoor
from edge_daemon.edges.publisher import IMAGES_QUEUE, Endpoints, Publisher, PublisherConfig
from edge_daemon.edges.server import CONTROL, TRIGGERS, RequestServer
from edge_daemon.edges.sockets import EndpointError
from edge_daemon.errors import EdgeError
from edge_daemon.wire.codec import (
    decode_control_reply,
    decode_inspection,
    decode_trigger_reply,
    encode_event,
    encode_inspection,
    encode_request,
    encode_status,
)
from edge_daemon.wire.messages import (
    ControlReply,
    ControlRequest,
    Event,
    Inspection,
    Status,
    TriggerReply,
    TriggerRequest,
)

WAIT_MS = 20_000
ANY_PORT = "tcp://127.0.0.1:*"


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.term()


def config(**changes: Any) -> PublisherConfig:
    return PublisherConfig(**({"results": ANY_PORT, "images": ANY_PORT, "status": ANY_PORT, "linger_ms": 0} | changes))


@contextlib.contextmanager
def publishing(context: zmq.Context[zmq.Socket[bytes]], **changes: Any) -> Iterator[tuple[Publisher, Endpoints]]:
    publisher = Publisher(context, config(**changes))
    endpoints = publisher.open()
    try:
        yield publisher, endpoints
    finally:
        publisher.close()


@contextlib.contextmanager
def subscribed(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, topic: bytes = b"", **options: int
) -> Iterator[zmq.Socket[bytes]]:
    sub = context.socket(zmq.SUB)
    sub.setsockopt(zmq.LINGER, 0)
    for name, value in options.items():
        sub.setsockopt(getattr(zmq, name), value)
    sub.setsockopt(zmq.SUBSCRIBE, topic)
    sub.connect(endpoint)
    try:
        yield sub
    finally:
        sub.close(0)


def until_joined(send: Callable[[], object], sub: zmq.Socket[bytes], also: tuple[zmq.Socket[bytes], ...] = ()) -> None:
    """Sends until every subscriber has received something: the only way to know that a subscription has arrived."""
    for waiting in (sub, *also):
        deadline = time.monotonic() + WAIT_MS / 1000
        while not waiting.poll(5):
            assert time.monotonic() < deadline
            send()


def drain(sub: zmq.Socket[bytes], quiet_ms: int = 0) -> list[list[bytes]]:
    got = []
    while sub.poll(quiet_ms):
        got.append(sub.recv_multipart())
    return got


def result(seq: int, station: str = "st1") -> list[bytes]:
    return encode_inspection(not_ok(seq=seq, station=station))


def read_through(sub: zmq.Socket[bytes], last: bytes) -> list[list[bytes]]:
    """Everything up to and including the message whose second frame is `last`."""
    got = []
    while True:
        assert sub.poll(WAIT_MS), f"after {len(got)} messages"
        got.append(sub.recv_multipart())
        if got[-1][1] == last:
            return got


# --- publisher ----------------------------------------------------------------------------------------------------


def test_each_channel_has_its_own_socket_and_a_reader_gets_what_it_subscribed_to(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    daemon: dict[str, Any] = {"line": "l", "boot": 1, "boot_id": "b", "utc": "u"}
    status = encode_status(Status(**daemon, station="st1", uptime_ms=1.0, state="Ready"))
    event = encode_event(Event(**daemon, kind="alarm", name="n", message="m"))
    with (
        publishing(context) as (publisher, at),
        subscribed(context, at.results, b"result/st1/") as results,
        subscribed(context, at.images) as images,
        subscribed(context, at.status, b"event/") as events,
        subscribed(context, at.status, b"status/") as statuses,
    ):
        until_joined(lambda: publisher.publish_result(result(0)), results)
        until_joined(lambda: publisher.publish_image([b"image/st1/", b"{}", b"png"]), images)
        until_joined(lambda: publisher.publish_event(event), events)
        until_joined(lambda: publisher.publish_status(status), statuses)
        assert publisher.publish_result(result(1, "st10"))
        assert publisher.publish_result(result(2))
        assert {decode_inspection(m).station for m in read_through(results, result(2)[1])} == {"st1"}
        assert images.recv_multipart() == [b"image/st1/", b"{}", b"png"]
        assert events.recv_multipart() == event
        assert statuses.recv_multipart() == status


def test_a_subscriber_that_never_reads_is_counted_and_the_one_beside_it_misses_nothing(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    count, filler = 4000, b"x" * 4000
    with (
        publishing(context, results_hwm=100) as (publisher, at),
        # A reader in the next process would leave its kernel buffers full; here they are made small.
        subscribed(context, at.results, RCVHWM=1, RCVBUF=4096) as stuck,
        subscribed(context, at.results, RCVHWM=0) as reader,
    ):
        until_joined(lambda: publisher.publish_result([b"result/st1/", b"hello"]), reader, (stuck,))
        drain(reader, 50)
        got: list[int] = []
        for n in range(count):
            assert publisher.publish_result([b"result/st1/", b"%d" % n, filler])
            if n % 50 == 49:  # never more in flight than the reader's own queue holds
                got += [int(m[1]) for m in read_through(reader, b"%d" % n)]
        assert got == list(range(count))
        stats = publisher.stats().results
        assert stats.overruns >= 1
        assert stats.not_taken == 0
        assert len(drain(stuck)) < count


def test_a_burst_larger_than_a_readers_queue_is_counted_as_overrun_and_the_reader_goes_on(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    with (
        publishing(context, results_hwm=10) as (publisher, at),
        subscribed(context, at.results, RCVHWM=1, RCVBUF=4096) as slow,
    ):
        until_joined(lambda: publisher.publish_result([b"result/st1/", b"hello"]), slow)
        sent = 0
        while publisher.stats().results.overruns == 0:
            publisher.publish_result([b"result/st1/", b"%d" % sent, b"x" * 4000])
            sent += 1
        drain(slow, 50)
        until_joined(lambda: publisher.publish_result([b"result/st1/", b"again"]), slow)
        assert slow.recv_multipart()[1] == b"again"
        while publisher.stats().results.overruns == 1:  # and the next overrun is counted like the first
            publisher.publish_result([b"result/st1/", b"%d" % sent, b"x" * 4000])


def test_a_subscriber_that_vanishes_does_not_disturb(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with publishing(context) as (publisher, at), subscribed(context, at.results) as stays:
        with subscribed(context, at.results) as leaves:
            until_joined(lambda: publisher.publish_result(result(0)), stays, (leaves,))
        for seq in range(1, 200):
            publisher.publish_result(result(seq))
        got = [decode_inspection(m).seq for m in read_through(stays, result(199)[1])]
        assert [seq for seq in got if seq] == list(range(1, 200))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_MS / 1000
    while not condition():
        assert time.monotonic() < deadline


def test_pictures_are_wanted_only_while_somebody_subscribes_to_them(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with publishing(context) as (publisher, at):
        assert not publisher.images_wanted
        with subscribed(context, at.images, b"image/st1/"), subscribed(context, at.results):
            until(lambda: publisher.images_wanted)
            with subscribed(context, at.images, b"image/st1/"):
                until(lambda: publisher.stats().images.subscriptions == 2)
            until(lambda: publisher.stats().images.subscriptions == 1)
            assert publisher.images_wanted
        until(lambda: not publisher.images_wanted)


class Held(Publisher):
    """A publisher whose thread can be held, to see its queues fill."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.held = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def _send(self, *args: Any) -> None:
        if not self.go.is_set():
            self.held.set()
            assert self.go.wait(WAIT_MS / 1000)
        super()._send(*args)


def test_pictures_are_dropped_oldest_first_and_verdicts_go_before_them(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    publisher = Held(context, config())
    at = publisher.open()
    with (
        contextlib.closing(publisher),
        subscribed(context, at.images) as images,
        subscribed(context, at.results) as results,
    ):
        until_joined(lambda: publisher.publish_image([b"image/", b"hello"]), images)
        until_joined(lambda: publisher.publish_result([b"result/", b"hello"]), results)
        publisher.go.clear()
        publisher.publish_result([b"result/", b"held"])
        assert publisher.held.wait(WAIT_MS / 1000)
        for n in range(IMAGES_QUEUE + 5):
            assert publisher.publish_image([b"image/", b"%d" % n])
        publisher.go.set()
        got = [m[1] for m in read_through(images, b"%d" % (IMAGES_QUEUE + 4))]
        assert [m for m in got if m != b"hello"] == [b"%d" % n for n in range(5, IMAGES_QUEUE + 5)]
        assert publisher.stats().images.not_taken == 5


def test_full_queues_refuse_and_count_and_a_newer_status_replaces_an_older(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_daemon.edges.publisher.RESULTS_QUEUE", 3)
    monkeypatch.setattr("edge_daemon.edges.publisher.EVENTS_QUEUE", 2)
    publisher = Held(context, config())
    at = publisher.open()
    with contextlib.closing(publisher), subscribed(context, at.status, b"status/") as status:
        until_joined(lambda: publisher.publish_status([b"status/st1/", b"hello"]), status)
        publisher.go.clear()
        publisher.publish_result([b"result/", b"held"])
        assert publisher.held.wait(WAIT_MS / 1000)
        before = publisher.stats()
        assert [publisher.publish_result([b"result/", b"%d" % n]) for n in range(5)] == [True] * 3 + [False] * 2
        assert [publisher.publish_event([b"event/", b"%d" % n]) for n in range(4)] == [True] * 2 + [False] * 2
        for n in range(3):
            assert publisher.publish_status([b"status/st1/", b"%d" % n])
        assert publisher.publish_status([b"status/st2/", b"last"])
        after = publisher.stats()
        assert after.results.not_taken - before.results.not_taken == 2
        assert after.status.not_taken - before.status.not_taken == 2
        assert after.status_replaced - before.status_replaced == 2
        publisher.go.set()
        assert [m[1] for m in read_through(status, b"last") if m[1] != b"hello"] == [b"2", b"last"]


def test_closing_sends_what_is_queued(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    publisher = Publisher(context, config(linger_ms=2000))
    at = publisher.open()
    with subscribed(context, at.results) as results:
        until_joined(lambda: publisher.publish_result(result(0)), results)
        for seq in range(1, 500):
            publisher.publish_result(result(seq))
        publisher.close()
        publisher.close()
        got = [decode_inspection(m).seq for m in read_through(results, result(499)[1])]
        assert [seq for seq in got if seq] == list(range(1, 500))
        assert not publisher.publish_result(result(500))


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [("tcp://127.0.0.1", "looks like"), ("tcp://203.0.113.7:5561", "not an address of this PC"), ("", "looks like")],
)
def test_an_endpoint_that_cannot_be_bound_is_named_and_nothing_stays_bound(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, says: str
) -> None:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    good = f"tcp://127.0.0.1:{port}"
    with zmq.Context() as brief, pytest.raises(EndpointError, match=says):  # its end waits for every socket
        Publisher(brief, config(results=good, status=endpoint)).open()
    with publishing(context, results=good):
        pass


def test_a_port_in_use_is_said(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with publishing(context) as (_, at), pytest.raises(EndpointError, match="in use by another program"):
        Publisher(context, config(images=at.results)).open()


def test_sockets_can_be_guarded_before_they_are_bound(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    seen: list[tuple[str, bytes]] = []

    class Noting(OpenDoor):
        def guard(self, name: str, socket: zmq.Socket[bytes]) -> None:
            seen.append((name, socket.getsockopt(zmq.LAST_ENDPOINT)))

    publisher = Publisher(context, config(), door=Noting())
    publisher.open()
    publisher.close()
    assert seen == [("results", b""), ("images", b""), ("status", b"")]


# --- subscriber against the real publisher ------------------------------------------------------------------------


def test_the_subscriber_yields_typed_inspections_and_names_what_it_missed(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    with publishing(context) as (publisher, at), Subscriber(at.results, "st1", timeout_s=WAIT_MS / 1000) as results:
        hello = encode_inspection(inspection(seq=1))
        while results.receive(0.01) is None:
            publisher.publish_result(hello)
        publisher.publish_result([b"result/st1/", b"garbage"])
        publisher.publish_result(result(1, "st10"))
        publisher.publish_result(result(5))
        got = next(iter(results))
        assert isinstance(got, Inspection)
        assert got.seq == 5
        assert [(g.station, g.boot, g.first, g.last) for g in results.gaps] == [("st1", 7, 2, 4)]
        assert (results.missed, results.malformed) == (3, 1)


# --- request servers ----------------------------------------------------------------------------------------------


class Desk:
    """A handler that answers now, later, twice, or not."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.replies: list[Callable[[Any], None]] = []
        self.arrived = threading.Semaphore(0)

    def wait(self) -> None:
        assert self.arrived.acquire(timeout=WAIT_MS / 1000)

    def control(self, request: ControlRequest, reply: Callable[[ControlReply], None]) -> None:
        self.requests.append(request)
        match request.command:
            case "later":
                self.replies.append(reply)
            case "crash":
                raise RuntimeError("a defect")
            case "refuse":
                raise EdgeError("not now")
            case "twice":
                reply(ControlReply(ok=True, result={"n": 1}))
                reply(ControlReply(ok=True, result={"n": 2}))
            case "unwritable":
                reply(ControlReply.model_construct(ok=True, result={"x": object()}))
            case _:
                reply(ControlReply(ok=True, result={"count": len(self.requests)}))
        self.arrived.release()

    def trigger(self, request: TriggerRequest, reply: Callable[[TriggerReply], None]) -> None:
        self.requests.append(request)
        threading.Thread(target=reply, args=(TriggerReply(accepted=True, result_id="r1", attempt=1),)).start()
        self.arrived.release()


@contextlib.contextmanager
def control(context: zmq.Context[zmq.Socket[bytes]], **options: Any) -> Iterator[tuple[Desk, str, Any]]:
    desk = Desk()
    server = RequestServer(context, ANY_PORT, CONTROL, desk.control, linger_ms=0, **options)
    endpoint = server.open()
    try:
        yield desk, endpoint, server
    finally:
        server.close()


@contextlib.contextmanager
def dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, kind: int = zmq.DEALER) -> Iterator[Any]:
    asker = context.socket(kind)
    asker.setsockopt(zmq.LINGER, 0)
    asker.connect(endpoint)
    try:
        yield asker
    finally:
        asker.close(0)


def body(command: str, request_id: str = "q1", **args: Any) -> bytes:
    return encode_request(ControlRequest(request_id=request_id, command=command, args=args))


def answer(asker: Any) -> ControlReply:
    assert asker.poll(WAIT_MS)
    return decode_control_reply(asker.recv_multipart()[-1])


@pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER])
def test_both_kinds_of_client_get_their_answer(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> None:
    with control(context) as (_, endpoint, __), dealer(context, endpoint, kind) as asker:
        asker.send(body("status"))
        got = answer(asker)
        assert (got.ok, got.request_id, got.result) == (True, "q1", {"count": 1})


GARBAGE: dict[str, list[bytes]] = {
    "empty": [b""],
    "not JSON": [b"\x00\xff"],
    "an array": [b"[1,2]"],
    "no command": [b'{"request_id":"q1"}'],
    "no request id": [b'{"command":"status"}'],
    "an empty request id": [b'{"command":"status","request_id":""}'],
    "a long request id": [b'{"command":"status","request_id":"%s"}' % (b"q" * 65)],
    "NaN": [b'{"command":"status","request_id":"q1","args":{"x":NaN}}'],
    "another schema": [b'{"schema":"edge-daemon/control/9","command":"status","request_id":"q1"}'],
    "two bodies": [b"{}", b"{}"],
    "many frames": [b"x"] * 50,
    "deep": [b'{"args":' * 2000],
}


@pytest.mark.parametrize("frames", GARBAGE.values(), ids=GARBAGE)
def test_garbage_gets_a_named_answer_and_the_server_goes_on(
    context: zmq.Context[zmq.Socket[bytes]], frames: list[bytes]
) -> None:
    with control(context) as (desk, endpoint, server), dealer(context, endpoint) as asker:
        asker.send_multipart(frames)
        got = answer(asker)
        assert not got.ok
        assert got.error is not None
        assert got.error.code == "malformed"
        assert desk.requests == []
        asker.send(body("status", "q2"))
        assert answer(asker).ok
        assert server.stats().malformed == 1


def test_a_malformed_request_is_answered_under_its_own_id_when_that_can_be_read(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    with control(context) as (_, endpoint, __), dealer(context, endpoint) as asker:
        asker.send(b'{"request_id":"q7","command":5}')
        assert answer(asker).request_id == "q7"


def test_bytes_that_are_no_zeromq_harm_nobody(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with control(context) as (_, endpoint, __), dealer(context, endpoint) as asker:
        host, port = endpoint.removeprefix("tcp://").split(":")
        for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" * 64):
            with contextlib.closing(socket.create_connection((host, int(port)))) as stranger:
                stranger.sendall(noise)
        asker.send(body("status"))
        assert answer(asker).ok


def test_a_request_too_large_ends_its_own_connection_only(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with (
        control(context, max_request_bytes=10_000) as (desk, endpoint, _),
        dealer(context, endpoint) as greedy,
        dealer(context, endpoint) as asker,
    ):
        greedy.send(body("status", "big", x="y" * 20_000))
        asker.send(body("status"))
        assert answer(asker).ok
        assert not greedy.poll(50)
        assert [r.request_id for r in desk.requests] == ["q1"]


@pytest.mark.parametrize(
    ("command", "code"), [("crash", "internal"), ("refuse", "refused"), ("unwritable", "internal")]
)
def test_a_handler_that_fails_is_an_answer_and_not_an_end(
    context: zmq.Context[zmq.Socket[bytes]], command: str, code: str
) -> None:
    with control(context) as (_, endpoint, __), dealer(context, endpoint) as asker:
        asker.send(body(command))
        got = answer(asker)
        assert got.error is not None
        assert (got.request_id, got.error.code) == ("q1", code)
        asker.send(body("status", "q2"))
        assert answer(asker).ok


def test_only_the_first_answer_counts(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with control(context) as (_, endpoint, __), dealer(context, endpoint) as asker:
        asker.send(body("twice"))
        assert answer(asker).result == {"n": 1}
        asker.send(body("status", "q2"))
        assert answer(asker).request_id == "q2"


def test_a_repeated_request_runs_once_and_gets_the_first_answer(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with (
        control(context) as (desk, endpoint, server),
        dealer(context, endpoint) as asker,
        dealer(context, endpoint) as other,
    ):
        asker.send(body("status"))
        first = answer(asker)
        asker.send(body("status"))
        assert answer(asker) == first
        asker.send(body("recipes"))
        reused = answer(asker)
        assert reused.error is not None
        assert reused.error.code == "request_id_reused"
        other.send(body("status"))  # another client's q1 is another request
        assert answer(other).result == {"count": 2}
        assert len(desk.requests) == 2
        assert server.stats().repeated == 2


def test_a_request_repeated_while_it_runs_is_not_run_again(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with control(context) as (desk, endpoint, _), dealer(context, endpoint) as asker:
        asker.send(body("later"))
        desk.wait()
        asker.send(body("later"))
        asker.send(body("status", "q2"))
        assert answer(asker).request_id == "q2"
        desk.replies[0](ControlReply(ok=True, result={"done": True}))
        assert answer(asker).result == {"done": True}
        assert [r.command for r in desk.requests] == ["later", "status"]


def test_a_client_that_reconnects_under_its_name_gets_the_first_answer(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    def named(endpoint: str) -> zmq.Socket[bytes]:
        asker = context.socket(zmq.DEALER)
        asker.setsockopt(zmq.LINGER, 0)
        asker.setsockopt(zmq.ROUTING_ID, b"gateway")
        asker.connect(endpoint)
        return asker

    with control(context) as (desk, endpoint, _):
        with contextlib.closing(named(endpoint)) as first:
            first.send(body("later"))
            desk.wait()
        with contextlib.closing(named(endpoint)) as second:
            second.send(body("later"))
            second.send(body("status", "q2"))
            assert answer(second).request_id == "q2"
            desk.replies[0](ControlReply(ok=True, result={"once": True}))
            assert answer(second).result == {"once": True}
        assert len(desk.requests) == 2


def test_too_many_open_requests_are_refused_as_busy_and_may_be_asked_again(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    with control(context, max_outstanding=2) as (desk, endpoint, server), dealer(context, endpoint) as asker:
        for n in range(3):
            asker.send(body("later", f"q{n}"))
        refused = answer(asker)
        assert refused.error is not None
        assert (refused.request_id, refused.error.code) == ("q2", "busy")
        desk.replies[0](ControlReply(ok=True))
        assert answer(asker).request_id == "q0"
        asker.send(body("later", "q2"))
        desk.wait()
        desk.wait()
        desk.wait()
        desk.replies[-1](ControlReply(ok=True))
        assert answer(asker).request_id == "q2"
        assert server.stats().refused_busy == 1


def test_old_answers_are_forgotten_in_order(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with control(context, remembered=2) as (desk, endpoint, _), dealer(context, endpoint) as asker:
        for n in (0, 1, 2, 0):
            asker.send(body("status", f"q{n}"))
            assert answer(asker).ok
        assert len(desk.requests) == 4


def test_closing_answers_what_is_open(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    desk = Desk()
    server = RequestServer(context, ANY_PORT, CONTROL, desk.control, linger_ms=2000)
    with dealer(context, server.open()) as asker:
        asker.send(body("later"))
        desk.wait()
        server.close()
        server.close()
        stopped = answer(asker)
        assert stopped.error is not None
        assert stopped.error.code == "stopped"
        desk.replies[0](ControlReply(ok=True))  # too late, harmless


def test_the_answer_says_which_request_it_answers_whatever_the_handler_filled_in(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    def handle(_: TriggerRequest, reply: Callable[[TriggerReply], None]) -> None:
        reply(TriggerReply(request_id="?", station="?", trigger_id="?", accepted=True))

    server = RequestServer(context, ANY_PORT, TRIGGERS, handle, linger_ms=0)
    endpoint = server.open()
    with contextlib.closing(server), dealer(context, endpoint) as asker:
        asker.send(json.dumps({"station": "st1", "trigger_id": "17", "later_field": 1}).encode())
        assert asker.poll(WAIT_MS)
        got = decode_trigger_reply(asker.recv())
        assert (got.request_id, got.station, got.trigger_id, got.accepted) == ("", "st1", "17", True)


# --- clients against the real server ------------------------------------------------------------------------------


def test_the_trigger_client_gets_its_answer_from_another_thread(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    desk = Desk()
    server = RequestServer(context, ANY_PORT, TRIGGERS, desk.trigger, linger_ms=0)
    endpoint = server.open()
    with contextlib.closing(server), TriggerClient(endpoint, timeout_s=20) as triggers:
        reply = triggers.trigger("st1", "17", part_id="PN", request_id="same")
        assert (reply.accepted, reply.result_id, reply.trigger_id) == (True, "r1", "17")
        assert triggers.trigger("st1", "17", part_id="PN", request_id="same") == reply
        assert len(desk.requests) == 1
        wrong = triggers.trigger("", "17")
        assert (wrong.accepted, wrong.reason) == (False, "malformed")
        assert "station" in wrong.message


def test_the_control_client_raises_what_the_daemon_refuses_and_passes_over_late_answers(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    with control(context) as (desk, endpoint, _), ControlClient(endpoint, timeout_s=20) as client:
        assert client.request("status") == {"count": 1}
        with pytest.raises(RefusedError, match="not now") as refused:
            client.request("refuse")
        assert refused.value.code == "refused"
        with pytest.raises(NoAnswerError, match="may have acted"):
            client.request("later", timeout_s=0.05)
        desk.replies[0](ControlReply(ok=True, result={"late": True}))
        assert client.request("status") == {"count": 4}


def test_a_trigger_for_a_daemon_that_is_not_there_is_not_kept_for_one_that_comes_later(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    desk = Desk()
    with TriggerClient(endpoint, timeout_s=20) as triggers:
        with pytest.raises(NoAnswerError, match="nothing was sent"):
            triggers.trigger("st1", "long gone", timeout_s=0.05)
        server = RequestServer(context, endpoint, TRIGGERS, desk.trigger, linger_ms=0)
        server.open()
        with contextlib.closing(server):
            assert triggers.trigger("st1", "here now").accepted
    assert [r.trigger_id for r in desk.requests] == ["here now"]
