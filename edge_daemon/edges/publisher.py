"""Everything the daemon tells the world: results, pictures, status and events, each dropped before it can delay.

Queues between the daemon and the sockets, and what happens when they are full:
results  10,000  the new one is not taken (False), counted; it is in the journal, and replay gives it
events    1,000  the new one is not taken, counted
status       1   per topic; a newer one replaces one that has not gone out yet: it says all that the older did
images      32   the oldest is dropped, counted; verdicts never wait for a picture
"""

import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import zmq

from edge_daemon.edges.door import Door, OpenDoor
from edge_daemon.edges.owner import SocketOwner
from edge_daemon.edges.sockets import Wake, bind

log = logging.getLogger(__name__)

RESULTS_QUEUE: Final = 10_000
EVENTS_QUEUE: Final = 1_000
IMAGES_QUEUE: Final = 32
# Subscribers send subscriptions and nothing else.
_MAX_SUBSCRIPTION_BYTES: Final = 1024
# Of one connection; an ordinary reader has a handful, and each costs memory.
_MOST_SUBSCRIPTIONS: Final = 256
# Connections whose subscriptions are counted; past it the count begins anew for all.
_CONNECTIONS_KEPT: Final = 4_096

Frames = Sequence[bytes]


@dataclass(frozen=True, slots=True)
class PublisherConfig:
    """Where to publish, and how many messages are kept for one slow subscriber (high-water marks)."""

    results: str = "tcp://127.0.0.1:5561"
    images: str = "tcp://127.0.0.1:5562"
    status: str = "tcp://127.0.0.1:5563"
    results_hwm: int = 10_000
    images_hwm: int = 64
    status_hwm: int = 1_000
    linger_ms: int = 1_000


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What was bound."""

    results: str
    images: str
    status: str


@dataclass(slots=True)
class ChannelStats:
    """sent: handed to ZeroMQ. not_taken: the queue inside the daemon was full (images: the oldest was dropped).
    overruns: times that a subscriber's own queue ran full and it began to lose messages. ZeroMQ tells the first
    loss, not each: how many it lost, a subscriber of results sees from the gap in `seq`. subscriptions: in force."""

    sent: int = 0
    not_taken: int = 0
    overruns: int = 0
    subscriptions: int = 0


@dataclass(slots=True)
class PublisherStats:
    """Counters by channel; `status` covers status and events. `status_replaced`: newer status, older unsent."""

    results: ChannelStats = field(default_factory=ChannelStats)
    images: ChannelStats = field(default_factory=ChannelStats)
    status: ChannelStats = field(default_factory=ChannelStats)
    status_replaced: int = 0


@dataclass(slots=True)
class _Channel:
    """by_connection: subscriptions that a connection has ever made."""

    name: str
    stats: ChannelStats
    by_connection: Counter[int] = field(default_factory=Counter)


class Publisher(SocketOwner):
    """Three bound XPUB sockets, owned by one thread; every `publish_...` may be called from any thread and only
    queues. False means not taken. `close` sends what is queued; unsent messages linger as configured.

    door:     who may subscribe; asked for each subscription
    on_fatal: told when the thread ends in a way nobody foresaw

    A subscriber that does not read fills its own queue in ZeroMQ and then loses messages; the others do not notice.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        config: PublisherConfig,
        *,
        door: Door | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        super().__init__("publisher")
        self._context = context
        self._config = config
        self._door = door or OpenDoor()
        self._on_fatal = on_fatal
        # Guarded by the lock.
        self._results: deque[Frames] = deque()
        self._events: deque[Frames] = deque()
        self._status: dict[bytes, Frames] = {}
        self._images: deque[Frames] = deque()
        self._stats = PublisherStats()

    def open(self) -> Endpoints:
        """Binds and starts. Raises EndpointError when a socket cannot be bound; nothing is left bound then."""
        self._must_be_closed()
        config = self._config
        wanted = (
            ("results", config.results, config.results_hwm),
            ("images", config.images, config.images_hwm),
            ("status", config.status, config.status_hwm),
        )
        sockets: list[zmq.Socket[bytes]] = []
        endpoints: list[str] = []
        try:
            for name, endpoint, high_water_mark in wanted:
                socket, bound = bind(
                    self._context,
                    zmq.XPUB,
                    endpoint,
                    high_water_mark=high_water_mark,
                    max_message_bytes=_MAX_SUBSCRIPTION_BYTES,
                    linger_ms=config.linger_ms,
                    name=name,
                    door=self._door,
                )
                sockets.append(socket)
                endpoints.append(bound)
        except BaseException:
            for socket in sockets:
                socket.close(0)
            raise
        self._begin(partial(self._run, sockets))
        return Endpoints(*endpoints)

    def publish_result(self, frames: Frames) -> bool:
        """Queues a result, as `encode_inspection` makes it."""
        return self._queue(self._results, frames, RESULTS_QUEUE, self._stats.results)

    def publish_event(self, frames: Frames) -> bool:
        """Queues an event."""
        return self._queue(self._events, frames, EVENTS_QUEUE, self._stats.status)

    def publish_status(self, frames: Frames) -> bool:
        """Queues a status; replaces one of the same topic that has not gone out yet."""
        with self._lock:
            if not self._running:
                self._stats.status.not_taken += 1
                return False
            self._stats.status_replaced += frames[0] in self._status
            self._status[frames[0]] = frames
            self._awaken()
            return True

    def publish_image(self, frames: Frames) -> bool:
        """Queues pictures; when too many wait, the oldest are dropped."""
        with self._lock:
            if not self._running:
                self._stats.images.not_taken += 1
                return False
            if len(self._images) >= IMAGES_QUEUE:
                self._images.popleft()
                self._stats.images.not_taken += 1
            self._images.append(frames)
            self._awaken()
            return True

    @property
    def images_wanted(self) -> bool:
        """Whether anybody has subscribed to pictures: what nobody wants need not be made."""
        return self._stats.images.subscriptions > 0

    def stats(self) -> PublisherStats:
        """A copy of the counters."""
        with self._lock:
            s = self._stats
            return PublisherStats(replace(s.results), replace(s.images), replace(s.status), s.status_replaced)

    def _queue(self, queue: deque[Frames], frames: Frames, limit: int, stats: ChannelStats) -> bool:
        with self._lock:
            if not self._running or len(queue) >= limit:
                stats.not_taken += 1
                return False
            queue.append(frames)
            self._awaken()
            return True

    # --- the thread that owns the sockets -----------------------------------------------------------------------

    def _run(self, sockets: list[zmq.Socket[bytes]], wake: Wake) -> None:
        try:
            self._serve(sockets, wake)
        except BaseException as exc:
            log.critical("the publisher ends: %s", exc, exc_info=True)
            with self._lock:
                self._running = False
            if self._on_fatal is None:
                raise
            self._on_fatal(exc)
        finally:
            for socket in sockets:
                socket.close()

    def _serve(self, sockets: list[zmq.Socket[bytes]], wake: Wake) -> None:
        results_socket, images_socket, status_socket = sockets
        channels = {
            results_socket: _Channel("results", self._stats.results),
            images_socket: _Channel("images", self._stats.images),
            status_socket: _Channel("status", self._stats.status),
        }
        poller = zmq.Poller()
        for pollable in (*sockets, wake.fileno()):
            poller.register(pollable, zmq.POLLIN)
        more = False
        while True:
            for ready, _ in poller.poll(0 if more else None):
                if ready in channels:
                    self._take_subscriptions(ready, channels[ready])
            wake.clear()
            with self._lock:
                running = self._running
                results = list(self._results)
                self._results.clear()
                status = [*self._events, *self._status.values()]
                self._events.clear()
                self._status.clear()
                # One picture, then a look at the verdicts again.
                image = self._images.popleft() if self._images else None
                more = bool(self._images)
            for frames in results:
                self._send(results_socket, frames, self._stats.results)
            for frames in status:
                self._send(status_socket, frames, self._stats.status)
            if image is not None:
                self._send(images_socket, image, self._stats.images)
            if not running and not more:
                return

    def _take_subscriptions(self, socket: zmq.Socket[bytes], channel: "_Channel") -> None:
        """Subscriptions arrive as messages, 1 or 0 and the topic, and take effect by what is done here."""
        try:
            while True:
                frames = socket.recv_multipart(zmq.DONTWAIT, copy=False)
                message = frames[0].bytes
                change = {b"\x01": 1, b"\x00": -1}.get(message[:1], 0)
                with self._lock:
                    channel.stats.subscriptions += change
                may = change == -1 or self._may_subscribe(channel, frames[-1])
                if change and may:
                    with contextlib.suppress(zmq.ZMQError):  # the subscriber has gone
                        socket.setsockopt(zmq.SUBSCRIBE if change == 1 else zmq.UNSUBSCRIBE, message[1:])
        except zmq.Again:
            return

    def _may_subscribe(self, channel: "_Channel", frame: zmq.Frame) -> bool:
        """Whatever else is sent here counts like a subscription: nobody has a reason to send it."""
        visitor = self._door.visitor(channel.name, frame)
        if visitor is None:
            return False
        if len(channel.by_connection) > _CONNECTIONS_KEPT:
            channel.by_connection.clear()
        channel.by_connection[visitor.connection] += 1
        if channel.by_connection[visitor.connection] <= _MOST_SUBSCRIPTIONS:
            return True
        del channel.by_connection[visitor.connection]
        self._door.cut(visitor, f"more than {_MOST_SUBSCRIPTIONS} subscriptions on {channel.name}")
        return False

    def _send(self, socket: zmq.Socket[bytes], frames: Frames, stats: ChannelStats) -> None:
        """To every subscriber with room. With NODROP libzmq refuses the whole message when one has none (xpub.cpp
        checks all queues before it writes to any), which makes the loss visible; sent again without NODROP it
        reaches the others, and the full one leaves the distribution until it has read, without further notice."""
        overrun = False
        try:
            socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            overrun = True
            socket.setsockopt(zmq.XPUB_NODROP, 0)
            socket.send_multipart(frames, zmq.DONTWAIT)
            socket.setsockopt(zmq.XPUB_NODROP, 1)
        with self._lock:
            stats.sent += 1
            stats.overruns += overrun
