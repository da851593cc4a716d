"""Which search engine is the fastest on this PC: measured once for each kind of bank, and remembered in a file.

All engines give the same answer, so a wrong choice costs time and nothing else. It is measured once and not at
every start, because what else the PC does at that moment would decide.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edge_daemon import __version__
from edge_daemon.errors import EdgeError
from edge_daemon.threads import physical_cores

SCHEMA: Literal["edge-daemon/engines/1"] = "edge-daemon/engines/1"

# In the order in which they are preferred where they are equally fast.
ENGINES = ("certified", "flat", "graph", "numpy")

# Below this a full product takes no longer than finding out what can be left out (deploy/decisions/0005).
_CERTIFIED_FROM_ROWS = 512

# All ways together; a way that takes longer than that for one frame has had its only turn.
_BUDGET_S = 0.6
_MOST_TURNS = 15

# What is hardly faster than the rule's engine is not worth another choice on every other PC.
_WORTH_IT = 0.9

# Beyond this a full product on the host is 16 times slower or worse (deploy/decisions/0005), and its table would
# be a second copy of a large bank.
_FLAT_UP_TO_ROWS = 16_384

_KEPT = 256

Why = Literal["forced", "recipe", "measured", "remembered", "rule"]


def by_rule(rows: int) -> str:
    """The engine for a bank of which nothing was measured."""
    return "certified" if rows >= _CERTIFIED_FROM_ROWS else "flat"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a measurement holds for. rows: of the bank, up to the next power of two; patches: of one frame."""

    cpu: str
    threads: int
    provider: str
    rows: int
    dims: int
    patches: int
    software: str

    @classmethod
    def of(cls, bank: tuple[int, int], patches: int, provider: str) -> "Kind":
        """The kind of a bank of (rows, dims) on this PC."""
        rows = 1 << (bank[0] - 1).bit_length()
        return cls(cpu_model(), _threads(), provider, rows, bank[1], patches, _software())


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine of a recipe on this PC. why: `forced` by the configuration, by the `recipe`, `measured` now,
    `remembered` from an earlier start, or by `rule`; note: why nothing was measured; ms: what was, per frame."""

    engine: str
    why: Why
    note: str = ""
    ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """Why, for people."""
        return f"{self.why}: {self.note}" if self.note else self.why


class Entry(BaseModel):
    """One measurement: milliseconds per frame of each engine, for one kind of bank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    ms: Annotated[dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]

    @field_validator("ms")
    @classmethod
    def _known(cls, ms: dict[str, float]) -> dict[str, float]:
        if not ms.keys() <= set(ENGINES):
            raise ValueError(f"unknown engine among {', '.join(ms)}")
        return ms

    def engine(self) -> str:
        """The fastest, where it is worth more than the rule's."""
        rule = by_rule(self.kind.rows)
        fastest = min(self.ms, key=lambda name: (self.ms[name], ENGINES.index(name)))
        return fastest if self.ms[fastest] < _WORTH_IT * self.ms.get(rule, float("inf")) else rule


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Annotated[Literal["edge-daemon/engines/1"], Field(alias="schema")] = SCHEMA
    measurements: tuple[Entry, ...] = ()


class Choices:
    """The file of measurements. may_measure: whether a kind that is not in it is measured and entered."""

    def __init__(self, path: Path, *, may_measure: bool = True) -> None:
        self.path = path
        self._may_measure = may_measure

    def choose(self, kind: Kind, rows: int, measure: Callable[[], Mapping[str, float]]) -> Choice:
        """The engine for a bank of `rows` rows, of that kind. measure: milliseconds of each engine.

        A file that is damaged or cannot be written leaves the rule: what cannot be remembered would be another
        choice at every start. Raises what `measure` raises.
        """
        rule = by_rule(rows)
        try:
            known = self._read()
        except EdgeError as error:
            return Choice(rule, "rule", str(error))
        for entry in known:
            if entry.kind == kind:
                return Choice(entry.engine(), "remembered", ms=entry.ms)
        if not self._may_measure:
            return Choice(rule, "rule", "the daemon measures when it first loads this recipe")
        if not os.access(self.path.parent, os.W_OK | os.X_OK):
            return Choice(rule, "rule", f"{self.path} cannot be written")
        ms = {name: round(value, 4) for name, value in measure().items()}
        if not ms:
            return Choice(rule, "rule", "nothing to choose from")
        entry = Entry.model_validate({"kind": asdict(kind), "ms": ms})
        try:
            self._write((entry, *known)[:_KEPT])
        except OSError as error:
            return Choice(rule, "rule", f"{self.path} cannot be written: {error.strerror or error}", ms)
        return Choice(entry.engine(), "measured", ms=ms)

    def measurements(self) -> tuple[Entry, ...]:
        """What is remembered, the newest first. Raises EdgeError."""
        return self._read()

    def forget(self) -> bool:
        """Delete the file; recipes are measured anew when they are loaded. False when there is none. Raises
        EdgeError."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise EdgeError(f"{self.path} cannot be deleted: {error.strerror or error}") from error
        return True

    def _read(self) -> tuple[Entry, ...]:
        try:
            return _File.model_validate_json(self.path.read_bytes()).measurements
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise EdgeError(f"{self.path} cannot be read: {error.strerror or error}") from error
        except ValidationError as error:
            raise EdgeError(f"{self.path} is damaged; `edge-daemon engines --forget` deletes it") from error

    def _write(self, entries: tuple[Entry, ...]) -> None:
        whole = _File.model_validate({"schema": SCHEMA, "measurements": entries})
        content = whole.model_dump_json(indent=1, by_alias=True)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content.encode())
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def candidates(rows: int, provider: str) -> tuple[str, ...]:
    """Engines worth measuring for a bank of `rows` rows; on the CPU `graph` is `flat` with a second copy."""
    names = ["certified"]
    if rows <= _FLAT_UP_TO_ROWS:
        names.append("flat")
    if provider != "CPUExecutionProvider":
        names.append("graph")
    return tuple(names)


def in_turn(
    ways: Mapping[str, Callable[[int], object]],
    budget_s: float = _BUDGET_S,
    clock_s: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of each way, turn by turn, so that whatever else the PC does meets all of them.

    The first turn warms up, and counts only where no other followed in the time.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    begun = clock_s()
    for turn in range(_MOST_TURNS):
        for name, way in ways.items():
            if turn and clock_s() - begun > budget_s:
                break
            started = clock_s()
            way(turn)
            taken[name].append((clock_s() - started) * 1e3)
    return {name: statistics.median(ms[1:] or ms) for name, ms in taken.items()}


@cache
def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the processor as the system tells it."""
    try:
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _threads() -> int:
    """Threads of the matrix products: what the environment told them when they were loaded."""
    value = os.environ.get("OPENBLAS_NUM_THREADS", "")
    return int(value) if value.isdecimal() else physical_cores()


def _software() -> str:
    return f"edge-daemon {__version__}, numpy {version('numpy')}, onnxruntime {_onnxruntime()}"


def _onnxruntime() -> str:
    """Version of whichever build is installed."""
    for build in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return version(build)
        except PackageNotFoundError:
            continue
    return "unknown"
