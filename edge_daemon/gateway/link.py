"""The gateway's side of the daemon: status and results heard live, triggers sent now or never, amendments until they
are on the disk there.

Nothing is ever asked of the journal here: what this link hands over has just been published.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import zmq
import zmq.asyncio

from edge_daemon.client import AMENDMENTS, connect
from edge_daemon.errors import WireError
from edge_daemon.gateway.amendments import AmendmentQueue
from edge_daemon.gateway.events import AskDaemon, Event, ResultCame, StatusCame, TriggerAnswered
from edge_daemon.wire.codec import (
    RESULT_TOPIC,
    STATUS_TOPIC,
    decode_amendment_reply,
    decode_inspection,
    decode_status,
    decode_trigger_reply,
    encode_request,
    topic,
)
from edge_daemon.wire.keys import read_client_key
from edge_daemon.wire.messages import AmendmentRequest, TriggerRequest

log = logging.getLogger(__name__)

# Answers that never came; the oldest are forgotten, their parts have long run out of their windows.
_MOST_UNANSWERED: Final = 1_024
_TRY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class DaemonEndpoints:
    """Where the daemon is."""

    results: str
    status: str
    triggers: str
    key: Path | None = None
    """Key file of the gateway, where the daemon uses keys."""
    amendments: str = AMENDMENTS


class DaemonLink:
    """Four sockets of one asyncio loop. `on_event(station, event)` is called in that loop, one event at a time.

    Opened by `open`, closed by `close`, which may be called twice; `run` serves until it is cancelled. Messages that
    cannot be read are counted in `malformed` and passed over: a part whose record it was has no OK. amendments: what it
    sends besides, and tells of the answers.
    """

    def __init__(
        self,
        endpoints: DaemonEndpoints,
        stations: Collection[str],
        on_event: Callable[[str, Event], None],
        amendments: AmendmentQueue | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._stations = tuple(stations)
        self._on_event = on_event
        self._context: zmq.asyncio.Context | None = None
        self._sockets: dict[str, Any] = {}
        self._asked: dict[str, str] = {}
        self._taken = True
        self.amendments = AmendmentQueue() if amendments is None else amendments
        self.malformed = 0

    def open(self) -> None:
        """Connects in the background; a daemon that is not there yet is waited for. Raises EdgeError."""
        key = read_client_key(self._endpoints.key) if self._endpoints.key is not None else None
        self._context = zmq.asyncio.Context()
        kinds = (
            ("results", zmq.SUB, RESULT_TOPIC),
            ("status", zmq.SUB, STATUS_TOPIC),
            ("triggers", zmq.DEALER, ""),
            ("amendments", zmq.DEALER, ""),
        )
        try:
            for name, kind, subject in kinds:
                # The asyncio context makes sockets with the same options and awaitable calls.
                context = cast("zmq.Context[zmq.Socket[bytes]]", self._context)
                socket = connect(context, kind, getattr(self._endpoints, name), key=key)
                self._sockets[name] = socket
                if subject:
                    for station in self._stations:
                        socket.setsockopt(zmq.SUBSCRIBE, topic(subject, station))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close(0)
        self._sockets.clear()
        if self._context is not None:
            self._context.term()
            self._context = None

    async def run(self) -> None:
        """Serves until cancelled; a defect ends it, and with it the gateway."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear("results", self._result))
            tasks.create_task(self._hear("status", self._status))
            tasks.create_task(self._hear("triggers", self._answer))
            tasks.create_task(self._hear("amendments", self._amended))
            tasks.create_task(self._amend())

    def ask(self, station: str, asked: AskDaemon) -> None:
        """Sends a trigger at once; where that is not possible the answer is None, and nothing was sent."""
        self._asked[asked.trigger_id] = station
        while len(self._asked) > _MOST_UNANSWERED:
            self._asked.pop(next(iter(self._asked)))
        request = TriggerRequest(
            request_id=asked.trigger_id, station=station, trigger_id=asked.trigger_id, job=asked.job
        )
        sent = self._sockets["triggers"].send_multipart([b"", encode_request(request)], zmq.DONTWAIT)
        sent.add_done_callback(lambda future: self._sent(station, asked.trigger_id, future))

    def _sent(self, station: str, trigger_id: str, future: "asyncio.Future[Any]") -> None:
        if not future.cancelled() and future.exception() is not None:
            self._asked.pop(trigger_id, None)
            self._on_event(station, TriggerAnswered(trigger_id, None))

    async def _amend(self) -> None:
        """Sends what waits. Its own task and socket: no trigger, verdict or heartbeat ever stands behind it."""
        while True:
            self._send_amendments()
            await asyncio.sleep(_TRY_S)

    async def flush(self, seconds: float) -> None:
        """At the end: a little time for what waits, while the daemon takes it. What is left is for the next start."""
        give_up_s = time.monotonic() + seconds
        while len(self.amendments) and self._taken and time.monotonic() < give_up_s:
            await asyncio.sleep(_TRY_S)
        if len(self.amendments):
            log.warning("%d amendments were not taken by the daemon and wait for the next start", len(self.amendments))

    def _send_amendments(self) -> None:
        for request in self.amendments.due(time.monotonic_ns()):
            sent = self._sockets["amendments"].send_multipart([b"", encode_request(request)], zmq.DONTWAIT)
            sent.add_done_callback(lambda future, request=request: self._amendment_sent(request, future))

    def _amendment_sent(self, request: AmendmentRequest, future: "asyncio.Future[Any]") -> None:
        if future.cancelled() or future.exception() is None:
            return
        self.amendments.not_sent(request.request_id, time.monotonic_ns())
        if self._taken:
            self._taken = False
            log.warning(
                "the daemon takes no amendments at %s; %d wait", self._endpoints.amendments, len(self.amendments)
            )

    def _amended(self, frames: list[bytes]) -> None:
        reply = decode_amendment_reply(frames[-1])
        if not self._taken:
            self._taken = True
            log.info("the daemon takes amendments again; %d wait", len(self.amendments))
        if refused := self.amendments.answered(reply, time.monotonic_ns()):
            log.warning("%s", refused)
        self._send_amendments()

    async def _hear(self, name: str, take: Callable[[list[bytes]], None]) -> None:
        socket = self._sockets[name]
        while True:
            frames = await socket.recv_multipart()
            try:
                take(frames)
            except WireError as exc:
                self.malformed += 1
                log.warning("a message on %s is passed over: %s", name, exc)

    def _result(self, frames: list[bytes]) -> None:
        inspection = decode_inspection(frames)
        self._on_event(inspection.station, ResultCame(inspection))

    def _status(self, frames: list[bytes]) -> None:
        status = decode_status(frames)
        self._on_event(status.station, StatusCame(status))

    def _answer(self, frames: list[bytes]) -> None:
        reply = decode_trigger_reply(frames[-1])
        station = self._asked.pop(reply.request_id, None)
        if station is not None:
            self._on_event(station, TriggerAnswered(reply.request_id, reply))
