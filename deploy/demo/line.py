"""The running line, seen from outside: the daemon, a subscriber, triggers, and what comes back."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from plan import DemoStation
from processes import DemoError, running

from edge_daemon.client import ControlClient, NoAnswerError, TriggerClient, connect
from edge_daemon.wire.codec import IMAGE_TOPIC, decode_image
from edge_daemon.wire.messages import Image, Inspection

_START_S = 60.0
_RESULT_S = 20.0
_ASK_EVERY_S = 0.25
_QUIET_MS = 500  # of silence, after which nothing more is expected


@dataclass(slots=True)
class Heard:
    """Everything that came from the daemon, in the order of arrival. images: blobs by result id."""

    inspections: list[Inspection] = field(default_factory=list)
    images: dict[str, tuple[Image, tuple[bytes, ...]]] = field(default_factory=dict)
    first_trigger_s: float = 0.0
    last_result_s: float = 0.0


class Line:
    """A daemon that runs, and the two ways to hear it: the subscriber's pipe and the image socket."""

    def __init__(
        self,
        endpoints: dict[str, str],
        images: zmq.Socket[bytes],
        records_fd: int,
        programs: dict[str, subprocess.Popen[bytes]],
    ) -> None:
        self.endpoints = endpoints
        self.heard = Heard()
        self._images = images
        self._records_fd = records_fd
        self._programs = programs
        self._unread = b""
        self._poller = zmq.Poller()
        self._poller.register(images, zmq.POLLIN)
        self._poller.register(records_fd, zmq.POLLIN)

    def hear(self, timeout_s: float) -> list[Inspection]:
        """Inspections that arrived, possibly none; pictures are put aside. Raises DemoError when a program ended."""
        ready = dict(self._poller.poll(round(timeout_s * 1000)))
        if self._images in ready:
            image, blobs = decode_image(self._images.recv_multipart())
            self.heard.images[image.result_id] = (image, blobs)
        new = self._read_records() if self._records_fd in ready else []
        for name, program in self._programs.items():
            if program.poll() is not None:
                raise DemoError(f"the {name} ended by itself, status {program.returncode}")
        return new

    def _read_records(self) -> list[Inspection]:
        self._unread += os.read(self._records_fd, 1 << 20)
        *lines, self._unread = self._unread.split(b"\n")
        return [Inspection.model_validate_json(line) for line in lines]

    def wait_for_subscriber(self, station: str) -> None:
        """Until the subscriber hears the daemon: what is published before it has subscribed is lost to it.

        Asks for a job that no station runs. That gives a result, NotDecidable, without taking a picture, so
        that the parts that count are the same in every run.
        """
        give_up = time.monotonic() + _START_S
        with TriggerClient(self.endpoints["triggers"]) as triggers:
            for number in itertools.count(1):
                triggers.trigger(station, f"anybody-there-{number}", job="anybody-there", mode="setup")
                if self.hear(_ASK_EVERY_S):
                    break
                if time.monotonic() > give_up:
                    raise DemoError(f"the subscriber heard nothing for {_START_S:.0f} s")
        while self._poller.poll(_QUIET_MS):
            self.hear(0)

    def judge(self, plan: Sequence[DemoStation], parts: int) -> list[str]:
        """One part after the other at each station, all stations at once. Returns the ids of all triggers sent."""
        left = {station.name: share(parts, len(plan), index) for index, station in enumerate(plan)}
        products = {station.name: station.product for station in plan}
        sent: list[str] = []
        self.heard.first_trigger_s = time.monotonic()
        with TriggerClient(self.endpoints["triggers"]) as triggers:

            def next_part(station: str) -> None:
                if left[station]:
                    part = f"{products[station]}-{share_of[station] - left[station] + 1:03}"
                    left[station] -= 1
                    sent.append(part)
                    triggers.trigger(station, part, part_id=part)

            share_of = dict(left)
            for station in plan:
                next_part(station.name)
            give_up = time.monotonic() + _RESULT_S
            while self._unanswered(sent) and time.monotonic() < give_up:
                for inspection in self._take(0.2):
                    next_part(inspection.station)
                    give_up = time.monotonic() + _RESULT_S
        while self._poller.poll(_QUIET_MS):  # pictures come after the verdicts; a second result would too
            self._take(0)
        return sent

    def _take(self, timeout_s: float) -> list[Inspection]:
        """As `hear`, and kept; what was asked in set-up mode does not count."""
        new = [inspection for inspection in self.hear(timeout_s) if inspection.mode != "setup"]
        if new:
            self.heard.inspections += new
            self.heard.last_result_s = time.monotonic()
        return new

    def _unanswered(self, sent: Sequence[str]) -> set[str]:
        return set(sent) - {inspection.trigger_id for inspection in self.heard.inspections}

    def counters(self) -> dict[str, dict[str, int]]:
        """The daemon's own counts by station."""
        with ControlClient(self.endpoints["control"]) as control:
            status = control.request("status")
        return {name: station["counters"] for name, station in status["stations"].items()}


def share(parts: int, stations: int, index: int) -> int:
    """How many of the parts fall to a station."""
    return parts // stations + (index < parts % stations)


@contextmanager
def running_line(config: Path, endpoints: dict[str, str]) -> Iterator[Line]:
    """Starts daemon and subscriber, waits until every station is ready, and stops both at the end.

    Raises DemoError when the daemon does not start, or does not end with status 0.
    """
    programs = Path(sys.executable).parent
    log = config.parent / "daemon.log"
    with ExitStack() as stack:
        daemon = stack.enter_context(running([str(programs / "edge-daemon"), "run", "--config", str(config)], log))
        _wait_until_ready(daemon, endpoints["control"], log)
        reading, writing = os.pipe()
        stack.callback(os.close, reading)
        command = [sys.executable, str(Path(__file__).with_name("subscriber.py"))]
        command += ["--results", endpoints["results"], "--records-fd", str(writing)]
        try:
            subscriber = stack.enter_context(running(command, pass_fds=(writing,)))
        finally:
            os.close(writing)
        context = stack.enter_context(zmq.Context())
        images = stack.enter_context(connect(context, zmq.SUB, endpoints["images"]))
        images.subscribe(f"{IMAGE_TOPIC}/")
        yield Line(endpoints, images, reading, {"daemon": daemon, "subscriber": subscriber})
        # Its status on ending is what counts; the answer may not outrun the end of the connection.
        with ControlClient(endpoints["control"]) as control, suppress(NoAnswerError):
            control.request("shutdown")
        if status := daemon.wait(_START_S):
            raise DemoError(f"the daemon ended with status {status}; see {log}")


def _wait_until_ready(daemon: subprocess.Popen[bytes], control_endpoint: str, log: Path) -> None:
    """Asks until every station takes triggers. Raises DemoError with the daemon's last words when it cannot."""
    give_up = time.monotonic() + _START_S
    with ControlClient(control_endpoint) as control:
        while time.monotonic() < give_up and daemon.poll() is None:
            try:
                stations = control.request("status", timeout_s=0.5)["stations"]
            except NoAnswerError:
                continue
            if all(station["trigger_ready"] for station in stations.values()):
                return
            if any(station["alarms"] for station in stations.values()):
                break
            time.sleep(0.05)
    last_words = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
    raise DemoError(f"the daemon did not become ready; the end of {log}:\n{last_words}")
