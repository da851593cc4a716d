"""A real daemon in a process of its own, for tests."""

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_daemon.client import ControlClient, NoAnswerError, Subscriber, TriggerClient
from edge_daemon.wire.messages import Inspection

_PATIENCE_S = 60.0
_PORTS_EACH = 200


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, and nobody else takes until the test does: outgoing connections get theirs above
    32767 (Linux), tests that run beside these have another block, and in this process what was given comes round again
    only after all the others."""
    free = list(itertools.islice(filter(_is_free, _ports(os.getpid())), count))
    assert len(free) == count, "every port that this process may take is taken"
    return free


@cache
def _rounds(process: int) -> Iterator[int]:
    """The ports of a process, round after round in one order; a fork has its own."""
    first = 10_000 + _PORTS_EACH * (process % (22_000 // _PORTS_EACH))
    return itertools.cycle(random.sample(range(first, first + _PORTS_EACH), _PORTS_EACH))


def _ports(process: int) -> Iterator[int]:
    """Each port once, from where the last who asked has stopped."""
    return itertools.islice(_rounds(process), _PORTS_EACH)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ZeroMQ does: what has ended is no hindrance
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class DaemonProcess:
    """`edge-daemon run` on a config of the test's own, with free ports.

    config: TOML without [wire] and state_dir. Entering starts it and waits until `ready` is true of its
    status (default: every station takes triggers); leaving ends it, and fails when it ended by itself.
    prefix: a command that runs the daemon as this very process (`strace -D`); environment: besides the tests' own.
    key: key file of an engineer, for a daemon that uses keys; host: where it listens.
    """

    def __init__(
        self,
        folder: Path,
        config: str,
        ready: Callable[[dict[str, Any]], bool] | None = None,
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        key: Path | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.folder = folder
        self.key = key
        self.prefix = prefix
        self.environment = environment or {}
        folder.mkdir(parents=True, exist_ok=True)
        names = ("results", "images", "status", "triggers", "control", "replay", "amendments")
        self.endpoints = {
            name: f"tcp://127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)
        }
        wire = "\n".join(
            f'{name} = "{endpoint.replace("127.0.0.1", host)}"' for name, endpoint in self.endpoints.items()
        )
        self.config = folder / "edge.toml"
        self.config.write_text(f'state_dir = "{folder / "state"}"\n{config}\n[wire]\n{wire}\n')
        self.ready = ready or all_ready
        self.log = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "DaemonProcess":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = self.stop() if self.running else None
        if kind is None and status is not None:
            assert status == 0, f"the daemon ended with {status}:\n{self.log.read_text()}"

    @property
    def running(self) -> bool:
        return self.process is not None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "edge_daemon.cli", "run", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONWARNINGS": "error", **self.environment},
            )
        give_up = time.monotonic() + _PATIENCE_S
        while time.monotonic() < give_up:
            if self.process.poll() is not None:
                break
            try:
                if self.ready(self.status(timeout_s=0.5)):
                    return
            except NoAnswerError:
                continue
            except BaseException:
                self.kill()
                raise
        code = self.process.poll()
        self.kill()
        raise AssertionError(f"the daemon is not ready (exit status {code}):\n{self.log.read_text()}")

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_PATIENCE_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """kill -9, if it still runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def status(self, timeout_s: float = 5.0) -> dict[str, Any]:
        with ControlClient(self.endpoints["control"], timeout_s=timeout_s, key=self.key) as control:
            return control.request("status")

    @contextmanager
    def control(self) -> Iterator[ControlClient]:
        with ControlClient(self.endpoints["control"], timeout_s=20, key=self.key) as client:
            yield client

    @contextmanager
    def triggers(self) -> Iterator[TriggerClient]:
        with TriggerClient(self.endpoints["triggers"], timeout_s=20, key=self.key) as client:
            yield client

    @contextmanager
    def subscriber(self, **options: Any) -> Iterator[Subscriber]:
        """A subscriber whose subscription has reached the daemon."""
        with Subscriber(self.endpoints["results"], **({"key": self.key} | options)) as results:
            give_up = time.monotonic() + _PATIENCE_S
            while self.status()["publisher"]["results"]["subscriptions"] < 1 and time.monotonic() < give_up:
                pass
            yield results

    def records(self) -> list[dict[str, Any]]:
        """Everything the journal holds, in order; only while the daemon is stopped."""
        import sqlite3

        connection = sqlite3.connect(self.folder / "state" / "journal.sqlite")
        try:
            rows = connection.execute("SELECT header FROM record ORDER BY id").fetchall()
        finally:
            connection.close()
        return [json.loads(header) for (header,) in rows]


def all_ready(status: dict[str, Any]) -> bool:
    """Every station takes triggers."""
    stations = status.get("stations", {})
    return bool(stations) and all(s["trigger_ready"] for s in stations.values())


def receive(results: Subscriber, count: int, timeout_s: float = 60.0) -> list[Inspection]:
    """The next `count` results. Fails when they do not come."""
    found: list[Inspection] = []
    for _ in range(count):
        inspection = results.receive(timeout_s)
        assert inspection is not None, f"{len(found)} of {count} results came"
        found.append(inspection)
    return found
