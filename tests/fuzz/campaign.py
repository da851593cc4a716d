"""Fuzzing by the clock: all targets in turns, in a process that may die, guided by which lines of the product an input
reaches that none before it did."""

import json
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.mutate import mutated
from tests.fuzz.one import ROOT, throw
from tests.fuzz.targets import Target, targets

_TURN_S = 0.5
_SILENCE_S = 60.0
_TRACED = 0.2
_MOST_KEPT = 400
_PRODUCT = str(ROOT / "edge_daemon")

Lines = set[tuple[str, int]]


@dataclass
class Tally:
    """Of one target. reached: lines of the product; kept: inputs that reached new ones, the seeds among them."""

    inputs: int = 0
    taken: int = 0
    refused: int = 0
    findings: int = 0
    reached: int = 0
    kept: int = 0
    slowest_ms: float = 0.0


@dataclass
class Finding:
    """One defect: the first input that showed it, and how often others did."""

    target: str
    what: str
    trace: str
    data: bytes
    count: int = 1


@dataclass
class _Lane:
    """A target with its inputs."""

    target: Target
    corpus: list[bytes]
    rng: random.Random
    reached: Lines = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)

    def turn(self, seconds: float, before: Callable[[bytes], None], found: Callable[[str, str, bytes], None]) -> None:
        until = time.monotonic() + seconds * self.target.weight
        while time.monotonic() < until:
            data = mutated(self.rng.choice(self.corpus), self.corpus, self.rng)
            before(data)
            self.one(data, found, traced=self.rng.random() < _TRACED)

    def one(self, data: bytes, found: Callable[[str, str, bytes], None], *, traced: bool) -> None:
        lines: Lines = set()
        with _tracing(lines) if traced else _nothing():
            outcome = throw(self.target, data, limits=not traced)
        tally = self.tally
        tally.inputs += 1
        tally.taken += outcome.kind == "taken"
        tally.refused += outcome.kind == "refused"
        tally.findings += outcome.kind == "finding"
        if not traced:
            tally.slowest_ms = max(tally.slowest_ms, outcome.cpu_s * 1e3)
        if outcome.kind == "finding":
            found(outcome.what, outcome.trace, data)
        elif lines - self.reached and len(data) < 200_000:
            self.reached |= lines
            if len(self.corpus) < _MOST_KEPT:
                self.corpus.append(data)
        tally.reached, tally.kept = len(self.reached), len(self.corpus)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _tracing(lines: Lines) -> Iterator[None]:
    """Collect the lines of the product that are run."""

    def line(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return line

    def call(frame: FrameType, _event: str, _argument: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(_PRODUCT) else None

    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(None)


def _work(pipe: multiprocessing.connection.Connection, place: Path, number: int, only: str, skipped: list[str]) -> None:
    """The process that throws. Says what it found through the pipe; the input at hand lies in a file, for the case that
    it dies of it."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-seeds-"))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders warn about each broken picture
    lanes = []
    for target in targets():
        if only in target.name and target.name not in skipped:
            rng = random.Random(f"{number}/{target.name}")
            lanes.append(_Lane(target, target.seeds(folder), rng))
    shutil.rmtree(folder)

    def found(target: str) -> Callable[[str, str, bytes], None]:
        return lambda what, trace, data: pipe.send(("finding", target, what, trace, data))

    with (place / "now").open("wb+", buffering=0) as now:
        for lane in lanes:
            for seed in list(lane.corpus):
                lane.one(seed, found(lane.target.name), traced=True)
        while True:
            for lane in lanes:
                name = lane.target.name.encode()

                def before(data: bytes, name: bytes = name) -> None:
                    now.seek(0)
                    now.write(len(name).to_bytes(4) + len(data).to_bytes(4) + name + data)

                lane.turn(_TURN_S, before, found(lane.target.name))
                pipe.send(("tally", lane.target.name, vars(lane.tally).copy()))


class Campaign:
    """out: where findings are kept; only: targets whose name holds this text."""

    def __init__(self, out: Path, seed: int, only: str = "") -> None:
        self._out, self._seed, self._only = out, seed, only
        self.tallies: dict[str, Tally] = {}
        self.findings: dict[tuple[str, str], Finding] = {}
        self._died: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        """Throw inputs until the time is over. A process that dies, or says nothing for a minute, is a finding; another
        one goes on with other inputs."""
        self._out.mkdir(parents=True, exist_ok=True)
        until, number = time.monotonic() + seconds, self._seed
        while time.monotonic() < until:
            self._one_process(until, number)
            number += 1_000

    def _one_process(self, until: float, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        skipped = [name for name, deaths in self._died.items() if deaths >= 5]
        worker = context.Process(target=_work, args=(there, self._out, number, self._only, skipped))
        worker.start()
        there.close()
        base = {name: vars(tally).copy() for name, tally in self.tallies.items()}
        why = ""
        try:
            while not why and (left := until - time.monotonic()) > 0:
                if not here.poll(min(left, _SILENCE_S)):
                    why = "hangs" if left > _SILENCE_S else ""
                    continue
                self._hear(here.recv(), base)
        except EOFError:
            worker.join()
            why = (
                f"died of signal {-worker.exitcode}" if (worker.exitcode or 0) < 0 else f"ended with {worker.exitcode}"
            )
        finally:
            worker.kill()
            worker.join()
            here.close()
        if why:
            self._blame(why)

    def _hear(self, message: tuple[Any, ...], base: dict[str, dict[str, Any]]) -> None:
        if message[0] == "finding":
            self._keep(*message[1:])
            return
        _, name, counted = message
        earlier = base.get(name, {})
        tally = Tally(**counted)
        for key in ("inputs", "taken", "refused", "findings"):
            setattr(tally, key, counted[key] + earlier.get(key, 0))
        for key in ("reached", "kept", "slowest_ms"):
            setattr(tally, key, max(counted[key], earlier.get(key, 0)))
        self.tallies[name] = tally

    def _blame(self, why: str) -> None:
        raw = (self._out / "now").read_bytes()
        name_bytes, data_bytes = int.from_bytes(raw[:4]), int.from_bytes(raw[4:8])
        name = raw[8 : 8 + name_bytes].decode(errors="replace")
        self._died[name] += 1
        self._keep(name, why, why, raw[8 + name_bytes : 8 + name_bytes + data_bytes])

    def _keep(self, target: str, what: str, trace: str, data: bytes) -> None:
        known = self.findings.get((target, what))
        if known is not None:
            known.count += 1
            if len(data) >= len(known.data):
                return
            known.data = data
        else:
            self.findings[target, what] = Finding(target, what, trace, data)
        name = f"{target.replace(' ', '_').replace(',', '')}-{sha256(what.encode()).hexdigest()[:8]}"
        (self._out / f"{name}.bin").write_bytes(data)
        (self._out / f"{name}.json").write_text(json.dumps({"target": target, "what": what, "trace": trace}, indent=1))
