"""The page of metrics over HTTP, for Prometheus and for nobody who could do harm with it: it only reads.

Limits, and what happens at them: 16 connections, one more ends the oldest; 20 new ones a second, more wait in the
kernel's queue of 16 and are refused there; 8 KiB of request; 5 s for a whole exchange. The page is made at most once a
second, whoever asks how often, and in a thread of its own: where the daemon hangs so that no page comes within 3 s, the
answer is 503.
"""

import asyncio
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from edge_daemon.edges.sockets import EndpointError

log = logging.getLogger(__name__)

_CONNECTIONS: Final = 16
_GAP_S: Final = 0.05
_REQUEST_BYTES: Final = 8_192
_EXCHANGE_S: Final = 5.0
_PAGE_S: Final = 3.0
_FRESH_S: Final = 1.0
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class MetricsServer:
    """Answers `GET /metrics` with what `page` makes. `open` binds and starts, `close` ends; neither the server's end
    nor an exception of `page` touches anything else of the daemon.

    page: called in a thread of its own, one call at a time
    """

    def __init__(self, host: str, port: int, page: Callable[[], bytes]) -> None:
        self._host = host
        self._port = port
        self._make_page = page
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: list[threading.Thread] = []
        # These belong to the loop.
        self._stop = asyncio.Event()
        self._page, self._made_s = b"", float("-inf")
        self._pending: asyncio.Future[bytes | None] | None = None
        self._exchanges: list[asyncio.Task[None]] = []

    def open(self) -> int:
        """The port that was bound. Raises EndpointError."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._port))
            listener.listen(_CONNECTIONS)
        except OSError as error:
            listener.close()
            where = f"{self._host}:{self._port}"
            raise EndpointError(
                f"metrics: {where} cannot be listened on: {error.strerror}; is another daemon running? "
                "`[metrics] listen` says where"
            ) from error
        listener.setblocking(False)
        self._loop = loop = asyncio.new_event_loop()
        self._threads = [
            threading.Thread(target=self._run, args=(loop, listener), name="metrics", daemon=True),
            threading.Thread(target=self._run_pages, args=(loop,), name="metrics-page", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        port: int = listener.getsockname()[1]
        return port

    def close(self) -> None:
        """May be called twice. A page that hangs is left to the end of the process."""
        if self._loop is None:
            return
        with suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._asked.put(False)
        serving, making = self._threads
        serving.join()
        making.join(_PAGE_S)
        self._loop = None
        self._threads = []

    # -- the thread of the page ----------------------------------------------------------------------

    def _run_pages(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._asked.get():
            page: bytes | None = None
            try:
                page = self._make_page()
            except Exception:
                log.exception("the page of metrics cannot be made")
            try:
                loop.call_soon_threadsafe(self._made, page)
            except RuntimeError:
                return  # closed meanwhile

    # -- the thread of the loop ----------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        try:
            loop.run_until_complete(self._serve(listener))
        except Exception:
            log.exception("the endpoint of metrics has ended; the line goes on")
        finally:
            listener.close()
            loop.close()

    async def _serve(self, listener: socket.socket) -> None:
        self._listen(listener)
        try:
            await self._stop.wait()
        finally:
            asyncio.get_running_loop().remove_reader(listener)
            for exchange in self._exchanges:
                exchange.cancel()
            await asyncio.gather(*self._exchanges, return_exceptions=True)

    def _listen(self, listener: socket.socket) -> None:
        if not self._stop.is_set():
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Not `loop.sock_accept`: cancelled at the wrong moment, that loses a connection which it has accepted."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        try:
            connection, _ = listener.accept()
        except OSError:  # gone again, or the PC has no descriptor left
            loop.call_later(_FRESH_S, self._listen, listener)
            return
        self._exchanges = [task for task in self._exchanges if not task.done()]
        if len(self._exchanges) >= _CONNECTIONS:
            self._exchanges[0].cancel()
        exchange = loop.create_task(self._exchange(connection))
        # Not by the task itself: one that is cancelled before its first step never runs.
        exchange.add_done_callback(lambda _done: connection.close())
        self._exchanges.append(exchange)
        loop.call_later(_GAP_S, self._listen, listener)

    async def _exchange(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(_EXCHANGE_S):
                answer = await self._answer(await self._request(connection))
                await asyncio.get_running_loop().sock_sendall(connection, answer)
        except (OSError, TimeoutError):
            return

    async def _request(self, connection: socket.socket) -> bytes:
        """Everything up to the empty line; longer requests are cut off."""
        data = b""
        while b"\r\n\r\n" not in data and b"\n\n" not in data and len(data) < _REQUEST_BYTES:
            more = await asyncio.get_running_loop().sock_recv(connection, _REQUEST_BYTES - len(data))
            if not more:
                break
            data += more
        return data

    async def _answer(self, request: bytes) -> bytes:
        words = request.split(b"\n", 1)[0].split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/") or len(request) >= _REQUEST_BYTES:
            return _response("400 Bad Request", b"not a request of HTTP\n")
        if words[0] != b"GET":
            return _response("405 Method Not Allowed", b"only GET\n", "Allow: GET\r\n")
        if words[1].split(b"?", 1)[0] != b"/metrics":
            return _response("404 Not Found", b"metrics are at /metrics\n")
        page = await self._fresh_page()
        if page is None:
            return _response("503 Service Unavailable", b"the daemon does not say how it is\n")
        return _response("200 OK", page)

    async def _fresh_page(self) -> bytes | None:
        if time.monotonic() - self._made_s < _FRESH_S:
            return self._page
        if self._pending is None:
            self._pending = asyncio.get_running_loop().create_future()
            self._asked.put(True)
        try:
            async with asyncio.timeout(_PAGE_S):
                return await asyncio.shield(self._pending)
        except TimeoutError:
            return None

    def _made(self, page: bytes | None) -> None:
        if page is not None:
            self._page, self._made_s = page, time.monotonic()
        if self._pending is not None and not self._pending.done():
            self._pending.set_result(page)
        self._pending = None


def _response(status: str, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {_CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n{more}"
    return f"{head}Connection: close\r\n\r\n".encode() + body
