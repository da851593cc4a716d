"""What triggers and commands mean: from messages to stations."""

import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from edge_daemon.config import is_recipe_path
from edge_daemon.core.decision import Reason
from edge_daemon.errors import EdgeError
from edge_daemon.pipeline.recipes import Recipes
from edge_daemon.pipeline.station import Acceptance, Station
from edge_daemon.wire.messages import (
    ControlFault,
    ControlReply,
    ControlRequest,
    JobState,
    TriggerReply,
    TriggerRequest,
)

_JOBS_KEPT = 256

_REASON_TEXT = {
    Reason.MISSED_BUSY: "the station is busy and its queue is full",
    Reason.MISSED_NOT_READY: "the station is not ready: ask its status for the alarms",
    Reason.MISSED_DUPLICATE: "a trigger with this id is still open",
    Reason.STOPPED: "the station is halted",
    Reason.JOURNAL: "the journal could not record the trigger",
}

Reply = Callable[[ControlReply], None]
# Station, alarm, through; told when it is kept: an error, what was acknowledged.
Acknowledge = Callable[[str, str | None, int | None, Callable[[EdgeError | None, list[str]], None]], None]
EmitEvent = Callable[[str, str, str, str], None]


class RefusedCommandError(EdgeError):
    """A command that cannot be carried out; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class TriggerDesk:
    """Answers the trigger socket."""

    def __init__(self, stations: Mapping[str, Station]) -> None:
        self._stations = stations

    def handle(self, request: TriggerRequest, reply: Callable[[TriggerReply], None]) -> None:
        """Pass a trigger to its station; the answer comes when its intent is durable."""
        station = self._stations.get(request.station)
        if station is None:
            known = ", ".join(self._stations)
            reply(
                TriggerReply(
                    request_id=request.request_id,
                    station=request.station,
                    trigger_id=request.trigger_id,
                    accepted=False,
                    reason="unknown_station",
                    message=f"there is no station {request.station!r}; stations: {known}",
                )
            )
            return

        def ack(acceptance: Acceptance) -> None:
            reply(
                TriggerReply(
                    request_id=request.request_id,
                    station=request.station,
                    trigger_id=request.trigger_id,
                    accepted=acceptance.accepted,
                    result_id=acceptance.result_id,
                    attempt=acceptance.attempt,
                    reason=acceptance.reason.value,
                    message=_REASON_TEXT.get(acceptance.reason, ""),
                )
            )

        station.trigger(request.trigger_id, ack, request.part_id, request.job, request.mode)


@dataclass(slots=True)
class _Job:
    state: JobState


class ControlDesk:
    """Answers the control socket. Slow commands run one after the other on a thread of their own and are
    answered with a job id at once.

    status: makes the daemon's status; stop: begins the daemon's clean stop; emit: sends an event
    (kind, station, name, message); reload_keys: puts the list of clients in force and says what it changed;
    job_ended: told of the end of each slow command; acknowledge: ends alarms that stand until then (station, name or
    None for all of it, how often raised; told when that is on the disk, and what they said). Who may give which command
    is ruled before it comes here.
    """

    def __init__(
        self,
        stations: Mapping[str, Station],
        recipes: Recipes,
        status: Callable[[], dict[str, Any]],
        stop: Callable[[], None],
        emit: EmitEvent,
        reload_keys: Callable[[], dict[str, Any]],
        job_ended: Callable[[JobState], None],
        acknowledge: Acknowledge | None = None,
    ) -> None:
        self._stations = stations
        self._recipes = recipes
        self._status = status
        self._stop = stop
        self._emit = emit
        self._reload_keys = reload_keys
        self._job_ended = job_ended
        self._acknowledge_alarm = acknowledge
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="jobs")
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._lock = threading.Lock()
        self._triggers = TriggerDesk(stations)

    def close(self) -> None:
        """Wait for the job under way; those that wait are given up."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def aside(self, work: Callable[[], None]) -> None:
        """Do something small that waits for a disk, after the jobs before it."""
        self._worker.submit(work)

    def handle(self, request: ControlRequest, reply: Reply) -> None:
        """Carry out one command and answer it, now or when it is done."""
        try:
            result = self._dispatch(request, reply)
        except RefusedCommandError as error:
            reply(_fault(request, error.code, str(error)))
        except EdgeError as error:
            reply(_fault(request, "failed", str(error)))
        else:
            if result is not None:
                reply(ControlReply(request_id=request.request_id, ok=True, **result))

    def _dispatch(self, request: ControlRequest, reply: Reply) -> dict[str, Any] | None:
        match request.command:
            case "status":
                return {"result": self._status()}
            case "recipes":
                return {"result": self._list_recipes()}
            case "trigger":
                self._trigger(request, reply)
                return None
            case "activate":
                return {"job": self._activate(request.args)}
            case "job":
                return {"result": self._job(request.args)}
            case "drain":
                return {"result": self._each(request.args, "draining", Station.halt)}
            case "resume":
                return {"result": self._each(request.args, "resumed", Station.resume)}
            case "acknowledge":
                self._acknowledge(request, reply)
                return None
            case "reload_keys":
                return {"result": self._reload_keys()}
            case "shutdown":
                self._stop()
                return {"result": {"stopping": True}}
            case unknown:
                known = "status, recipes, trigger, activate, job, drain, resume, acknowledge, reload_keys, shutdown"
                raise RefusedCommandError("unknown_command", f"unknown command {unknown!r}; commands: {known}")

    # -- commands ------------------------------------------------------------------------------------

    def _station(self, args: Mapping[str, Any]) -> Station:
        name = args.get("station")
        if name is None and len(self._stations) == 1:
            return next(iter(self._stations.values()))
        if not isinstance(name, str) or name not in self._stations:
            what = "name a station" if name is None else f"there is no station {name!r}; stations"
            raise RefusedCommandError("unknown_station", f"{what}: {', '.join(self._stations)}")
        return self._stations[name]

    def _each(self, args: Mapping[str, Any], word: str, act: Callable[[Station], None]) -> dict[str, Any]:
        chosen = list(self._stations.values()) if args.get("station") is None else [self._station(args)]
        for station in chosen:
            act(station)
        return {word: [station.name for station in chosen]}

    def _acknowledge(self, request: ControlRequest, reply: Reply) -> None:
        """args: station, and of which alarm how often raised (`alarm`, `through`): what came later stands on. Answered
        when it is on the disk. A station that the configuration does not name any more may have one, too."""
        args = request.args
        station, alarm, through = args.get("station"), args.get("alarm"), args.get("through")
        if not isinstance(station, str) or not (alarm is None or isinstance(alarm, str)):
            raise RefusedCommandError("malformed", "name the station, and the alarm where it has several")
        if through is not None and type(through) is not int:
            raise RefusedCommandError("malformed", "`through` is a count: `raised` of the alarm as status shows it")
        if self._acknowledge_alarm is None:
            raise RefusedCommandError("failed", "this daemon keeps no alarms")

        def ended(error: EdgeError | None, texts: list[str]) -> None:
            if error is not None:
                reply(_fault(request, "failed", str(error)))
            else:
                reply(ControlReply(request_id=request.request_id, ok=True, result={"acknowledged": texts}))

        self._acknowledge_alarm(station, alarm, through, ended)

    def _list_recipes(self) -> dict[str, Any]:
        stored = self._recipes.store.list()
        active = {
            name: {view: ready.recipe.digest for view, ready in live.views.items()}
            for name, station in self._stations.items()
            if (live := station.recipes) is not None
        }
        return {
            "recipes": [
                {
                    "name": r.name,
                    "version": r.version,
                    "digest": r.digest,
                    "created_utc": r.created_utc,
                    "provisional": r.provisional,
                    "signed_by": self._recipes.signed(r),
                }
                for r in stored
            ],
            "active": active,
        }

    def _trigger(self, request: ControlRequest, reply: Reply) -> None:
        args = request.args
        part_id = args.get("part_id")
        if part_id is not None and not (isinstance(part_id, str) and len(part_id) <= 128):
            raise RefusedCommandError("malformed", "part_id must be text of at most 128 characters")
        trigger_id = args.get("trigger_id") or f"ctl-{uuid.uuid4().hex[:12]}"
        if not isinstance(trigger_id, str) or len(trigger_id) > 64:
            raise RefusedCommandError("malformed", "trigger_id must be text of at most 64 characters")
        station = self._station(args)

        def answer(trigger: TriggerReply) -> None:
            reply(ControlReply(request_id=request.request_id, ok=True, result=trigger.model_dump(mode="json")))

        self._triggers.handle(
            TriggerRequest(request_id="", station=station.name, trigger_id=trigger_id, part_id=part_id), answer
        )

    def _activate(self, args: Mapping[str, Any]) -> str:
        """args: station, and `recipe` (for all views) or `recipes` {view: reference}."""
        station = self._station(args)
        references = args.get("recipes") or dict.fromkeys(station.views, args.get("recipe"))
        if not isinstance(references, dict) or not all(isinstance(r, str) and r for r in references.values()):
            raise RefusedCommandError(
                "malformed", "name the recipe, or recipes by view, each as NAME, NAME@VERSION or NAME@DIGEST"
            )
        if set(references) != set(station.views):
            raise RefusedCommandError(
                "malformed", f"name one recipe for each view of the station: {', '.join(station.views)}"
            )
        paths = [r for r in references.values() if is_recipe_path(r)]
        if paths:
            raise RefusedCommandError(
                "malformed", f"{paths[0]} is a path: import it on the PC first, then name the recipe"
            )
        return self._start_job("activate", lambda: self._do_activate(station, references))

    def _do_activate(self, station: Station, references: Mapping[str, str]) -> dict[str, Any]:
        digests = {view: self._recipes.resolve(reference, None) for view, reference in references.items()}
        self._refuse_what_fails(station, digests)
        # What was loaded and never run is not known to judge rightly now: it is loaded, and verified, anew.
        self._forget_unused()
        live = self._recipes.activate(station.name, digests, station.refuse_settings)
        station.activate(live)
        # A golden sample that came out wrong while the set was loaded: nobody has told this station.
        for other in self._stations.values():
            for sample, error in other.golden_failures() if other is not station else ():
                station.golden_failed_elsewhere(sample, error)
        self._forget_unused()
        names = ", ".join(
            f"{r.recipe.manifest.name}@{r.recipe.digest[:12]} ({r.recipe.signed})" for r in live.views.values()
        )
        self._emit("recipe", station.name, "recipe_activated", f"station {station.name} runs {names}")
        return {"station": station.name, "recipe_set": live.digest}

    def _refuse_what_fails(self, station: Station, digests: Mapping[str, str]) -> None:
        """A recipe of which a golden sample came out wrong judges nowhere that it does not judge already: it is loaded
        here, and would not be verified again. Raises EdgeError."""
        live = station.recipes
        before = {view: ready.recipe.digest for view, ready in live.views.items()} if live is not None else {}
        taken_up = {digest for view, digest in digests.items() if before.get(view) != digest}
        for other in self._stations.values():
            for sample, error in other.golden_failures():
                if sample.ready.recipe.digest in taken_up:
                    raise EdgeError(
                        f"golden sample {sample.name} comes out wrong at station {other.name} ({error}): its recipe is "
                        "activated nowhere else until that very sample comes out right there, or that station has "
                        "another recipe; then it is verified anew"
                    )

    def _forget_unused(self) -> None:
        used = [s.recipes for s in self._stations.values()]
        self._recipes.keep_only({r.recipe.digest for s in used if s is not None for r in s.views.values()})

    # -- jobs ----------------------------------------------------------------------------------------

    def _start_job(self, command: str, work: Callable[[], dict[str, Any]]) -> str:
        job = _Job(JobState(job=uuid.uuid4().hex, command=command, state="running"))
        with self._lock:
            self._jobs[job.state.job] = job
            while len(self._jobs) > _JOBS_KEPT:
                self._jobs.popitem(last=False)
        self._worker.submit(self._run_job, job, work)
        return job.state.job

    def _run_job(self, job: _Job, work: Callable[[], dict[str, Any]]) -> None:
        try:
            changes: dict[str, Any] = {"state": "done", "progress": 1.0, "result": work()}
        except EdgeError as error:
            changes = {"state": "failed", "error": ControlFault(code="failed", message=str(error))}
        except Exception as error:  # a defect of the program; the line goes on with what it has
            changes = {"state": "failed", "error": ControlFault(code="internal", message=repr(error))}
        ended = job.state.model_copy(update=changes)
        self._job_ended(ended)
        job.state = ended

    def _job(self, args: Mapping[str, Any]) -> dict[str, Any]:
        job = self._jobs.get(str(args.get("job")))
        if job is None:
            raise RefusedCommandError(
                "unknown_job", f"there is no job {args.get('job')!r}; the last {_JOBS_KEPT} are kept"
            )
        return job.state.model_dump(mode="json")


def _fault(request: ControlRequest, code: str, message: str) -> ControlReply:
    return ControlReply(request_id=request.request_id, ok=False, error=ControlFault(code=code, message=message))
