"""What strangers can say before anybody knows them: the question about a key, and the request for a page."""

import math
from typing import Any, cast

from zmq.utils import z85

from edge_daemon.edges.doorkeeper import Doorkeeper
from edge_daemon.edges.scrapes import MetricsServer
from edge_daemon.wire.keys import EnrolledClient

SEPARATOR = b"\x00\x00FRAME"
_KEY = bytes(range(32))
_GATEWAY = EnrolledClient("gateway-1", "gateway", z85.encode(_KEY), "2026-11-21T08:00:00Z")
PAGE = b"edge_up 1.0\n"


class _Keyring:
    """Knows one gateway."""

    def client(self, public: bytes) -> EnrolledClient | None:
        return _GATEWAY if public == _GATEWAY.public else None


class _Zap:
    """One question, and what is answered."""

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames
        self.answers: list[list[bytes]] = []

    def recv_multipart(self) -> list[bytes]:
        return self.frames

    def send_multipart(self, frames: list[bytes]) -> None:
        self.answers.append(frames)


def zap_questions() -> list[bytes]:
    """An enrolled client at a socket that is open to it, at one that is none, and another mechanism."""
    return [
        SEPARATOR.join([b"1.0", b"\x01", domain, b"10.0.0.9", b"plc", mechanism, _KEY])
        for domain, mechanism in ((b"triggers", b"CURVE"), (b"nowhere", b"CURVE"), (b"triggers", b"PLAIN"))
    ]


def zap(data: bytes) -> None:
    """Exactly one answer, to the one who asked, and yes only to the key on the list, at a socket that is its own."""
    frames = data.split(SEPARATOR)
    question = _Zap(frames)
    keeper = Doorkeeper(cast(Any, None), cast(Any, _Keyring()), lambda _name, _message: None)
    keeper._answer(cast(Any, question))
    (answer,) = question.answers
    version, request_id, status, text, user, metadata = answer
    assert (version, text, metadata) == (b"1.0", b"", b"")
    assert request_id == (frames[1] if len(frames) > 1 else b"")
    if status == b"200":
        assert frames[5:] == [b"CURVE", _KEY]
        assert frames[2] in (b"results", b"images", b"status", b"replay", b"control", b"triggers", b"amendments")
        assert user
    else:
        assert status in (b"300", b"500")
        assert not user


def scrape_requests() -> list[bytes]:
    """A Prometheus, another page, another method."""
    return [
        b"GET /metrics HTTP/1.1\r\nHost: pc:9108\r\nAccept: text/plain\r\n\r\n",
        b"GET /metrics?name[]=edge_up HTTP/1.0\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd",
    ]


def scrape(data: bytes) -> None:
    """One whole answer of HTTP, and the page only to who asked for it."""
    server = MetricsServer("127.0.0.1", 0, lambda: PAGE)
    server._page, server._made_s = PAGE, math.inf
    answer = _result_of(server._answer(data))
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b"\r\n")[0].split(b" ", 2)
    assert status[0] == b"HTTP/1.1"
    assert status[1] in (b"200", b"400", b"404", b"405")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert len(head) < 300, "repeats what it was sent"
    assert (body == PAGE) == (status[1] == b"200")
    if status[1] == b"200":
        method, path, version = data.split(b"\n", 1)[0].split()
        assert method == b"GET"
        assert path.split(b"?")[0] == b"/metrics"
        assert version.startswith(b"HTTP/")


def _result_of(coroutine: Any) -> bytes:
    """Of one that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return bytes(ended.value)
    raise AssertionError("waits for something")
