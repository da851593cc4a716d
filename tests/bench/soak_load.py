"""The load of an hour: everybody who has to do with a line, each on a thread of its own, and what they notice."""

import itertools
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq

from edge_daemon.client import ControlClient, NoAnswerError, ReplayClient, Subscriber, TriggerClient, connect
from tests.plc import Conveyor, Part


class Work:
    """Calls `step` again and again on a thread, with `rest_s` between, until `close`, which raises what it raised."""

    def __init__(self, name: str, step: Callable[[], None], rest_s: float = 0.0) -> None:
        self._step, self._rest_s = step, rest_s
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name)

    def __enter__(self) -> "Work":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raises what ended the thread."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._rest_s):
                self._step()
        except BaseException as error:
            self._error = error


class Mes:
    """Hears every result. verdicts: evaluation by the PLC's id, for the station that has one."""

    def __init__(self, results: Subscriber, station: str) -> None:
        self._results, self._station = results, station
        self.heard: Counter[str] = Counter()
        self.verdicts: dict[int, str] = {}

    def step(self) -> None:
        told = self._results.receive(0.2)
        if told is None:
            return
        self.heard[told.station] += 1
        if told.station == self._station:
            number = int(told.trigger_id.split("-")[0])
            assert number not in self.verdicts, f"part {number} has two records"
            in_time = told.result_state == "Completed" and told.journaled and not told.late
            self.verdicts[number] = told.evaluation if in_time else ""

    @property
    def missed(self) -> int:
        """Results that went out and did not arrive."""
        return self._results.missed

    def last_seq(self, station: str) -> int:
        """Of the last result that arrived."""
        return self._results.position.get(station, (0, 0))[1]


class Console:
    """Looks at pictures and at the status."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoints: dict[str, str]) -> None:
        self._sockets = [connect(context, zmq.SUB, endpoints[name]) for name in ("images", "status")]
        self._poller = zmq.Poller()
        for socket in self._sockets:
            socket.subscribe(b"")
            self._poller.register(socket, zmq.POLLIN)
        self.messages = 0

    def step(self) -> None:
        for socket, _ in self._poller.poll(200):
            socket.recv_multipart()
            self.messages += 1

    def close(self) -> None:
        for socket in self._sockets:
            socket.close(0)


class Prometheus:
    """Reads the metrics and believes them no more than it must."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"
        self.scrapes = 0

    def step(self) -> None:
        with urllib.request.urlopen(self._url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        holds = [line for line in lines if line.startswith("edge_invariant_ok{")]
        assert holds, "no invariant among the metrics"
        assert all(line.endswith(" 1.0") for line in holds), holds
        self.scrapes += 1


class Visitor:
    """Comes, asks something of every socket, and goes; every third time without waiting for an answer."""

    def __init__(self, endpoints: dict[str, str]) -> None:
        self._endpoints = endpoints
        self._numbers = itertools.count(1)
        self.visits = 0

    def step(self) -> None:
        ends = self._endpoints
        wait_s = 0.001 if next(self._numbers) % 3 == 0 else 5.0
        with Subscriber(ends["results"]) as results, suppress(NoAnswerError):
            with ControlClient(ends["control"], timeout_s=wait_s) as control:
                control.request("recipes")
            with TriggerClient(ends["triggers"], timeout_s=wait_s) as triggers:
                assert not triggers.trigger("nowhere", "visitor").accepted
            with ReplayClient(ends["replay"], timeout_s=wait_s) as replay:
                for station in replay.stations():
                    replay.fetch(station, 0)
            results.receive(0.3)
        self.visits += 1


class Product:
    """Changes it, there and back."""

    def __init__(self, control: ControlClient, station: str, recipes: tuple[str, str]) -> None:
        self._control, self._station = control, station
        self._next = itertools.cycle(reversed(recipes))
        self.changes = 0

    def step(self) -> None:
        job = self._control.request("activate", {"station": self._station, "recipe": next(self._next)})["job"]
        state = self._control.wait(job)
        assert state.state == "done", state
        self.changes += 1


class Belt(Work):
    """The PLC's side, over the gateway."""

    def __init__(self, conveyor: Conveyor) -> None:
        super().__init__("plc", lambda: conveyor.run(1 << 40, lambda: None))
        self._conveyor = conveyor

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._conveyor.feed_ended = True
        super().__exit__(kind, *rest)
        self._conveyor.close()


def balance(counters: dict[str, int]) -> int:
    """accepted less what became of them: 0."""
    return 2 * counters["accepted"] - sum(counters.values())


def settled(daemon_status: Callable[[], dict[str, Any]], mes: Mes, give_up_s: float) -> dict[str, Any]:
    """The status when nothing is in flight and everything that was told has arrived. Fails when that never is."""
    until_s = time.monotonic() + give_up_s
    while True:
        stations = daemon_status()["stations"]
        open_parts = sum(one["counters"]["in_flight"] for one in stations.values())
        behind = {name: one["last_seq"] - mes.last_seq(name) for name, one in stations.items()}
        if not open_parts and not any(behind.values()):
            return dict(stations)
        assert time.monotonic() < until_s, f"{open_parts} parts in flight, the MES is behind by {behind}"


def passes(parts: list[Part], verdicts: dict[int, str]) -> dict[str, int]:
    """How the PLC's parts and the records that the MES has agree."""
    ok = [verdicts.get(part.acquisition_id) == "OK" for part in parts]
    return {
        "parts": len(parts),
        "passed": sum(bool(part.passed) for part in parts),
        "wrong_passes": sum(bool(part.passed) and not good for part, good in zip(parts, ok, strict=True)),
        "needless_rejects": sum(
            not part.passed and (good or part.acquisition_id not in verdicts)
            for part, good in zip(parts, ok, strict=True)
        ),
        "acknowledged_without_record": sum(part.acknowledged and part.acquisition_id not in verdicts for part in parts),
    }
