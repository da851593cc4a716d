"""Alarms that stand until somebody acknowledges them, also across restarts: what has happened does not become undone by
itself. One of each name at a station; what happens again meanwhile is counted in it.

They are in one small file, written anew, synced and renamed by a thread of its own: who raises one never waits for the
disk, and is told when it is there.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from edge_daemon.core.strict_json import parse_strictly
from edge_daemon.errors import EdgeError
from edge_daemon.files import replace_durably, set_aside

log = logging.getLogger(__name__)

Kept = Callable[["StandingAlarmError | None"], None]

_KNOWN_KEPT: Final = 1_024
_MOST_CHARS: Final = 600
_AGAIN_S: Final = 1.0
_LAYOUT: Final = 1


class StandingAlarmError(EdgeError):
    """An alarm cannot be kept or acknowledged: nothing of that name stands, or the disk does not take it."""


@dataclass(slots=True)
class StandingAlarm:
    """raised: how often, ever; acknowledged: how many of these; since_utc: when it began to stand; known: what raised
    it, the latest last, each counted once."""

    station: str
    name: str
    raised: int = 0
    acknowledged: int = 0
    since_utc: str = ""
    message: str = ""
    known: list[str] = field(default_factory=list)

    @property
    def stands(self) -> bool:
        return self.raised > self.acknowledged

    @property
    def text(self) -> str:
        """For people; empty when it does not stand."""
        if not self.stands:
            return ""
        times = self.raised - self.acknowledged
        often = f"{times} times since {self.since_utc}, the last: " if times > 1 else f"since {self.since_utc}: "
        return f"{often}{self.message}. Stands until `edge-ctl acknowledge {self.station}`"


class StandingAlarms:
    """The file and what stands. Thread-safe.

    changed: told (station, name) of an alarm whose text is another now, in the thread that raised it or in its own
    """

    def __init__(
        self,
        path: Path,
        utc: Callable[[], str],
        changed: Callable[[str, str], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._path = path
        self._utc = utc
        self._changed_to = changed
        self._on_fatal = on_fatal
        self._thread: threading.Thread | None = None
        self._failing = False
        self._work = threading.Condition()  # guards what follows
        self._alarms: dict[tuple[str, str], StandingAlarm] = {}
        self._waiting: list[Kept] = []
        self._acknowledging: list[tuple[tuple[str, str], int, Kept]] = []
        self._unwritten = False
        self._closing = False

    def open(self) -> str:
        """Reads the file, starts the thread. What an operator must know of the file, empty when all is well: one that
        is damaged is moved aside, and nobody knows what stood in it."""
        lost = ""
        try:
            self._alarms = _read(self._path)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            lost = (
                f"the file of standing alarms {self._path} cannot be read ({str(exc)[:200]}) and was set aside: alarms "
                "that nobody had acknowledged may be lost. Look in the journal for parts that passed and were not OK"
            )
            try:
                set_aside(self._path)
            except OSError as error:
                log.error("%s cannot be moved aside: %s", self._path, error.strerror)
        self._thread = threading.Thread(target=self._run, name="standing alarms", daemon=True)
        self._thread.start()
        return lost

    def close(self) -> None:
        """May be called twice."""
        with self._work:
            self._closing = True
            self._work.notify()
        if self._thread is not None:
            self._thread.join(5.0)
            self._thread = None

    def raise_alarm(self, station: str, name: str, key: str, message: str, on_kept: Kept) -> bool:
        """It stands from now on; whether this is new. key: what raised it, counted once, also across restarts; on_kept:
        told in the file's thread when it outlives the daemon, or why it does not."""
        with self._work:
            alarm = self._alarms.setdefault((station, name), StandingAlarm(station, name))
            new = key not in alarm.known
            if new:
                alarm.since_utc = alarm.since_utc if alarm.stands else self._utc()
                alarm.raised += 1
                alarm.message = message[:_MOST_CHARS]
                alarm.known = [*alarm.known, key][-_KNOWN_KEPT:]
                self._unwritten = True
            self._waiting.append(on_kept)
            self._work.notify()
        if new:
            self._changed_to(station, name)
        return new

    def acknowledge(
        self,
        station: str,
        name: str | None,
        through: int | None,
        on_done: Callable[[StandingAlarmError | None, list[str]], None],
    ) -> None:
        """Ends the alarm, or all of the station. through: `raised` of what the operator has seen: what came later
        stands on. on_done: told in the file's thread when it has ended, which is when that is on the disk, and what it
        said; or why it has not. Raises StandingAlarmError when nothing stands."""
        with self._work:
            chosen = [a for (at, of), a in self._alarms.items() if at == station and name in (None, of) and a.stands]
            if not chosen:
                of_what = f"no alarm {name!r}" if name is not None else "no alarm"
                raise StandingAlarmError(f"{of_what} stands at {station!r} that waits to be acknowledged")
            if through is not None and (name is None or not chosen[0].acknowledged < through <= chosen[0].raised):
                raise StandingAlarmError(
                    f"{name or 'all alarms'} of {station!r} cannot be acknowledged up to {through}"
                )
            texts = [alarm.text for alarm in chosen]
            *most, last = chosen
            for alarm in most:
                self._acknowledging.append(((station, alarm.name), alarm.raised, _nobody))
            key = (station, last.name)
            self._acknowledging.append((key, through or last.raised, lambda error: on_done(error, texts)))
            self._work.notify()

    def standing(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What stands, by station and name: raised, times, since_utc, message."""
        with self._work:
            found: dict[str, dict[str, dict[str, Any]]] = {}
            for (station, name), alarm in self._alarms.items():
                if alarm.stands:
                    found.setdefault(station, {})[name] = {
                        "raised": alarm.raised,
                        "times": alarm.raised - alarm.acknowledged,
                        "since_utc": alarm.since_utc,
                        "message": alarm.message,
                    }
            return found

    def text(self, station: str, name: str) -> str:
        """What it says; empty when it does not stand."""
        with self._work:
            alarm = self._alarms.get((station, name))
            return alarm.text if alarm is not None else ""

    # -- its thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except Exception as exc:
            self._on_fatal(exc)

    def _step(self) -> bool:
        with self._work:
            self._work.wait_for(
                lambda: self._waiting or self._acknowledging or self._closing, _AGAIN_S if self._unwritten else None
            )
            closing = self._closing
            waiting, self._waiting = self._waiting, []
            ending, self._acknowledging = self._acknowledging, []
            unwritten, self._unwritten = self._unwritten, False
            document = {key: replace(alarm, known=list(alarm.known)) for key, alarm in self._alarms.items()}
        for key, through, _ in ending:
            _end(document[key], through)
        error = self._write(document) if unwritten or ending else None
        with self._work:
            self._unwritten = self._unwritten or (error is not None and unwritten)
            if error is None:
                for key, through, _ in ending:
                    _end(self._alarms[key], through)
        for station, name in {key for key, _, _ in ending}:
            self._changed_to(station, name)
        for on_kept in (*waiting, *(on_kept for _, _, on_kept in ending)):
            on_kept(error)
        return not closing

    def _write(self, alarms: Mapping[tuple[str, str], StandingAlarm]) -> StandingAlarmError | None:
        text = json.dumps({"layout": _LAYOUT, "alarms": [asdict(alarm) for alarm in alarms.values()]})
        try:
            replace_durably(self._path, text)
        except OSError as exc:
            error = StandingAlarmError(
                f"the standing alarms cannot be written to {self._path}: {exc.strerror or exc}; make space, or check "
                "owner and mount of the folder"
            )
            if not self._failing:
                log.error("%s", error)
            self._failing = True
            return error
        self._failing = False
        return None


def _nobody(_error: StandingAlarmError | None) -> None:
    """The last one tells."""


def _end(alarm: StandingAlarm, through: int) -> None:
    alarm.acknowledged = max(alarm.acknowledged, through)


def _read(path: Path) -> dict[tuple[str, str], StandingAlarm]:
    """Raises OSError and whatever JSON of another shape ends in; a file that is not there has no alarm."""
    try:
        document = parse_strictly(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    if document["layout"] != _LAYOUT:
        raise ValueError(f"its layout is {document['layout']}, this edge-daemon knows {_LAYOUT}")
    alarms = [StandingAlarm(**alarm) for alarm in document["alarms"]]
    for alarm in alarms:
        words = (alarm.station, alarm.name, alarm.since_utc, alarm.message, *alarm.known)
        if not all(isinstance(word, str) for word in words):
            raise TypeError("a text is none")
        if not all(type(number) is int and number >= 0 for number in (alarm.raised, alarm.acknowledged)):
            raise TypeError("a count is none")
    return {(alarm.station, alarm.name): alarm for alarm in alarms}
