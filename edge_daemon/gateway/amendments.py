"""What the gateway has to tell the daemon's journal, until it is on the disk there. Pure: time is an argument.

At most `MOST_KEPT` wait; one more drops the oldest delivery, and the oldest of all where there is none: what became of
a part is worth more than that its verdict was read. All of it is counted. `outbox` keeps what waits beyond the end of
the gateway; a record without an amendment says nothing, and nothing untrue.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from edge_daemon.gateway.events import Tell
from edge_daemon.wire.messages import AmendmentReply, AmendmentRequest

MOST_KEPT: Final = 20_000
"""Two a part: five minutes of a daemon that is down at 30 parts a second, an hour at three. Some 35 MB."""
IN_FLIGHT: Final = 16
ANSWER_NS: Final = 5_000_000_000
PAUSE_NS: Final = 1_000_000_000
# Reasons with which the same will be refused for ever.
_FINAL: Final = frozenset({"unknown_result", "amendment_id_reused", "too_many", "malformed"})


def amendment(station: str, tell: Tell, gateway: str, utc: str) -> AmendmentRequest:
    """What the dialogue wants told, as a message. gateway: this start of it; utc: of the clock on its wall."""
    return AmendmentRequest.model_construct(
        request_id="-",
        amendment_id=tell.amendment_id,
        station=station,
        trigger_id=tell.trigger_id,
        result_id=tell.result_id,
        kind=tell.kind,
        what=tell.what,
        verdict=tell.verdict.name,
        reason=tell.reason.name,
        acquisition_id=tell.acquisition_id,
        after_ms=max(0.0, round(tell.after_ns / 1e6, 3)),
        utc=utc,
        gateway=gateway,
    )


@dataclass(slots=True)
class AmendmentCounts:
    """told: put here; recorded: on the daemon's disk; refused: never to be recorded; dropped: too many waited;
    retried: attempts after the first."""

    told: int = 0
    recorded: int = 0
    refused: int = 0
    dropped: int = 0
    retried: int = 0


@dataclass(slots=True)
class _Waiting:
    request: AmendmentRequest
    attempts: int = 0
    due_ns: int = 0
    in_flight: bool = False


class AmendmentQueue:
    """Each amendment is sent until it is answered for good. Not thread-safe; times must not go back.

    on_gone: told of each amendment id that waits no longer: recorded, refused for ever or dropped
    """

    def __init__(self, most_kept: int = MOST_KEPT, on_gone: Callable[[str], None] = lambda _id: None) -> None:
        self.counts = AmendmentCounts()
        self._on_gone = on_gone
        self._dropped_since_room = 0
        self._most_kept = most_kept
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._flying: dict[str, str] = {}
        self._attempts = 0
        self._paused_until_ns = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: AmendmentRequest) -> None:
        """Keeps it. Its amendment id counts: what is here already is not put twice."""
        if request.amendment_id in self._waiting:
            return
        self.counts.told += 1
        if len(self._waiting) >= self._most_kept:
            self._drop_one()
        elif 2 * len(self._waiting) < self._most_kept:
            self._dropped_since_room = 0
        self._waiting[request.amendment_id] = _Waiting(request)

    def _drop_one(self) -> None:
        oldest = next(iter(self._waiting))
        chosen = next((i for i, w in self._waiting.items() if w.request.kind == "delivery"), oldest)
        del self._waiting[chosen]
        self.counts.dropped += 1
        self._dropped_since_room += 1
        self._on_gone(chosen)

    @property
    def alarm(self) -> str:
        """What to say from the first that is dropped until half of the room is free again; else empty."""
        if not self._dropped_since_room or 2 * len(self._waiting) < self._most_kept:
            return ""
        return (
            f"{len(self._waiting)} amendments wait for the daemon; {self._dropped_since_room} more than may had to go: "
            "they are lost, and their records do not say what became of the part. Is the daemon running, does it "
            "listen where [daemon] amendments says, may this gateway (role `gateway`)?"
        )

    def due(self, now_ns: int) -> list[AmendmentRequest]:
        """What is to be sent now, each under a request id of its own; counts as sent."""
        self._give_up_waiting(now_ns)
        ready: list[AmendmentRequest] = []
        if now_ns < self._paused_until_ns:
            return ready
        for amendment_id, waiting in self._waiting.items():
            if len(self._flying) >= IN_FLIGHT:
                break
            if waiting.in_flight or now_ns < waiting.due_ns:
                continue
            self._attempts += 1
            request_id = f"{waiting.request.gateway}-{self._attempts}"
            self._flying[request_id] = amendment_id
            self.counts.retried += waiting.attempts > 0
            waiting.attempts += 1
            waiting.in_flight, waiting.due_ns = True, now_ns + ANSWER_NS
            ready.append(waiting.request.model_copy(update={"request_id": request_id}))
        return ready

    def _give_up_waiting(self, now_ns: int) -> None:
        """Attempts that nobody has answered."""
        for request_id, amendment_id in list(self._flying.items()):
            waiting = self._waiting.get(amendment_id)
            if waiting is None or now_ns >= waiting.due_ns:
                self._again(request_id, now_ns)

    def not_sent(self, request_id: str, now_ns: int) -> None:
        """The daemon is not there: nothing more is tried for a second."""
        self._again(request_id, now_ns)
        self._paused_until_ns = now_ns + PAUSE_NS

    def answered(self, reply: AmendmentReply, now_ns: int) -> str | None:
        """An answer; what there is to say about it for the log."""
        amendment_id = self._flying.get(reply.request_id)
        waiting = self._waiting.get(amendment_id) if amendment_id is not None else None
        if waiting is None:
            return None
        if not reply.ok and reply.reason not in _FINAL:
            self._again(reply.request_id, now_ns)
            if reply.reason != "pending":
                self._paused_until_ns = now_ns + PAUSE_NS
            return None
        del self._flying[reply.request_id]
        del self._waiting[waiting.request.amendment_id]
        self._on_gone(waiting.request.amendment_id)
        if reply.ok:
            self.counts.recorded += 1
            return None
        self.counts.refused += 1
        told = waiting.request
        return f"part {told.acquisition_id}: the daemon does not record {told.what}: {reply.reason}: {reply.message}"

    def _again(self, request_id: str, now_ns: int) -> None:
        amendment_id = self._flying.pop(request_id, None)
        waiting = self._waiting.get(amendment_id) if amendment_id is not None else None
        if waiting is not None:
            waiting.in_flight, waiting.due_ns = False, now_ns + PAUSE_NS

    def stats(self) -> AmendmentCounts:
        """A copy."""
        return replace(self.counts)
