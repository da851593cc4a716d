"""One input thrown at one target: taken, refused as it should be, or a finding."""

import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from tests.fuzz.targets import Target

ROOT = Path(__file__).resolve().parents[2]
CPU_SECONDS = 1.0
# Interrupted here: time that others on the PC take does not count as the parser's, but nobody waits for ever.
_WALL_SECONDS = 20.0
_LONGEST_MESSAGE = 100_000


@dataclass(frozen=True)
class Outcome:
    """kind: what came of it; cpu_s: of the process; what: for a finding, one line that is the same for the same defect;
    trace: for people."""

    kind: Literal["taken", "refused", "finding"]
    cpu_s: float
    what: str = ""
    trace: str = ""


class _TooLong(BaseException):
    """Raised into what does not end. No Exception: nobody may catch it by accident."""


def throw(target: Target, data: bytes, *, limits: bool = True) -> Outcome:
    """Run the target on the input, in a folder of its own that is removed afterwards. limits: time and memory count
    as findings too (not where something else measures, or slows it)."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    memory, began = _peak_mb(), time.process_time()
    try:
        with _at_most(_WALL_SECONDS):
            target.run(data, _made(folder / "in"))
        kind, what, trace = "taken", "", ""
    except target.rejections as exc:
        kind, what, trace = "refused", *_message_problem(exc)
    except (Exception, _TooLong) as exc:
        kind, what, trace = "finding", _place_of(exc), "".join(traceback.format_exception(exc))[-8000:]
    finally:
        cpu_s = time.process_time() - began
        shutil.rmtree(folder, ignore_errors=True)
    # First: whoever takes much memory takes time for that alone.
    if limits and not what and (grown := _peak_mb() - memory) > target.memory_mb:
        what, trace = "large", f"{grown} MB more memory"
    if limits and not what and cpu_s > CPU_SECONDS:
        what, trace = "slow", f"{cpu_s:.1f} s of processor time"
    return Outcome("finding" if what else kind, cpu_s, what, trace)  # type: ignore[arg-type]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _message_problem(exc: BaseException) -> tuple[str, str]:
    """A refusal is for people: a text that can be shown, and not the whole input again."""
    text = str(exc)
    if len(text) > _LONGEST_MESSAGE:
        return "message without end", f"{type(exc).__name__}: {len(text)} characters: {text[:500]}"
    return "", ""


def _place_of(exc: BaseException) -> str:
    """The kind of the error and the innermost line of the product on its way."""
    lines = traceback.extract_tb(exc.__traceback__)
    own = [f for f in lines if Path(f.filename).is_relative_to(ROOT) and "/.venv/" not in f.filename]
    place = own[-1] if own else lines[-1]
    return f"{type(exc).__name__} at {Path(place.filename).name}:{place.name}"


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _TooLong(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
