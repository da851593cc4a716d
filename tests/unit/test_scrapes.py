"""The endpoint of metrics against clients that mean well, badly, or nothing at all."""

import gc
import http.client
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from edge_daemon.edges.scrapes import MetricsServer
from edge_daemon.edges.sockets import EndpointError

Start = Callable[[Callable[[], bytes]], int]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def started(page: Callable[[], bytes]) -> int:
            server = MetricsServer("127.0.0.1", 0, page)
            stack.callback(server.close)
            return server.open()

        yield started


def get(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_page_is_read(start: Start) -> None:
    assert get(start(lambda: b"edge_boot_number 7\n")) == (200, b"edge_boot_number 7\n")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/metrics?x=1", 200), ("POST", "/metrics", 405), ("GET", "/../etc/passwd", 404)],
)
def test_nothing_else_is_answered(start: Start, method: str, path: str, status: int) -> None:
    assert get(start(lambda: b"page"), path, method)[0] == status


@pytest.mark.parametrize(
    "garbage", [b"\r\n\r\n", b"\x16\x03\x01\x02" * 4_000, b"GET\r\n\r\n", b"GET /metrics HTTP/1.1" * 800]
)
def test_garbage_is_refused(start: Start, garbage: bytes) -> None:
    port = start(lambda: b"page")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(garbage[:8_192])
        assert b" 400 " in connection.recv(100)
    assert get(port)[0] == 200


def test_whoever_asks_often_gets_the_same_page_for_a_second(start: Start) -> None:
    made: list[int] = []

    def page() -> bytes:
        made.append(1)
        return b"page"

    port = start(page)
    for _ in range(5):
        assert get(port) == (200, b"page")
    assert len(made) == 1


def test_connections_that_say_nothing_give_way_to_one_that_does(start: Start) -> None:
    port = start(lambda: b"page")
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(20)]
        for connection in silent:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
        assert get(port)[0] == 200
        assert silent[0].recv(1) == b""  # the oldest was ended


def test_one_that_never_reads_does_not_keep_others_from_reading(start: Start) -> None:
    port = start(lambda: b"x" * 20_000_000)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        status, page = get(port)
        assert (status, len(page)) == (200, 20_000_000)


def test_a_daemon_that_hangs_is_said_to_hang_and_recovers(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_daemon.edges.scrapes._PAGE_S", 0.05)
    let_go = threading.Event()

    def page() -> bytes:
        let_go.wait(10)
        return b"page"

    port = start(page)
    assert get(port)[0] == 503
    assert get(port)[0] == 503  # and no second page is begun
    let_go.set()
    while get(port)[0] != 200:
        pass


def test_a_page_that_cannot_be_made_is_logged_and_asked_for_again(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([ValueError("a defect"), b"page"])

    def page() -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    port = start(page)
    with caplog.at_level(logging.ERROR):
        assert get(port)[0] == 503
    assert "a defect" in caplog.text
    assert get(port) == (200, b"page")


def test_a_port_that_is_taken_is_named(start: Start) -> None:
    port = start(lambda: b"page")
    with pytest.raises(EndpointError, match=f"127.0.0.1:{port} cannot be listened on: Address already in use"):
        MetricsServer("127.0.0.1", port, lambda: b"").open()


def ended(connection: socket.socket) -> bool:
    """Whether the other side has ended it: with a reset where it had not read all that lay there."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_closing_ends_what_is_under_way_and_may_be_done_twice() -> None:
    server = MetricsServer("127.0.0.1", 0, lambda: b"page")
    port = server.open()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n")
        server.close()
        server.close()
        assert ended(connection)


def test_no_connection_is_lost_however_the_end_meets_its_arrival() -> None:
    """asyncio's `sock_accept`, cancelled just after it accepted, drops the connection with a ResourceWarning."""
    for _ in range(40):
        server = MetricsServer("127.0.0.1", 0, lambda: b"page")
        port = server.open()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            server.close()
            assert ended(connection)
        gc.collect()
