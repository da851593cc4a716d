"""The daemon: every concrete part, built and started from top to bottom, stopped in the reverse order."""

import logging
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import cv2
import faiss
import zmq

from edge_daemon import __version__
from edge_daemon.artefact.signature import Trust
from edge_daemon.artefact.store import Store
from edge_daemon.cameras.open import make_camera
from edge_daemon.config import Config, config_digest, load_config
from edge_daemon.core.states import State
from edge_daemon.edges.amendments import AmendmentDesk
from edge_daemon.edges.archive import Archive, ArchiveJob
from edge_daemon.edges.audit import AuditEntry, AuditTrail, ControlAudit
from edge_daemon.edges.clock import SystemClock
from edge_daemon.edges.connections import ConnectionLimits
from edge_daemon.edges.doorkeeper import Doorkeeper
from edge_daemon.edges.journal import Journal
from edge_daemon.edges.journal_entries import Boot, Intent
from edge_daemon.edges.keyring import KeyRing, credentials_folder
from edge_daemon.edges.metrics import Reading, exposition
from edge_daemon.edges.publisher import Publisher, PublisherConfig
from edge_daemon.edges.records import Records
from edge_daemon.edges.replay import ReplayDesk
from edge_daemon.edges.retention import Retention, Rules
from edge_daemon.edges.scrapes import MetricsServer
from edge_daemon.edges.server import AMENDMENTS, CONTROL, REPLAY, TRIGGERS, RequestServer, ServerStats
from edge_daemon.edges.standing import Kept, StandingAlarms
from edge_daemon.engines.choice import Choices
from edge_daemon.engines.sessions import PROVIDERS, EngineOptions, Sessions
from edge_daemon.errors import EdgeError, JournalError
from edge_daemon.logs import fields
from edge_daemon.notify import Notifier
from edge_daemon.pipeline.archived import archived_pictures
from edge_daemon.pipeline.compute import Compute
from edge_daemon.pipeline.control import ControlDesk, TriggerDesk
from edge_daemon.pipeline.health import HealthDesk
from edge_daemon.pipeline.inspection import OpenInspection
from edge_daemon.pipeline.messages import Identity
from edge_daemon.pipeline.outcome_log import OutcomeLog
from edge_daemon.pipeline.pictures import Pictures
from edge_daemon.pipeline.reader import CameraReader
from edge_daemon.pipeline.recipes import Recipes
from edge_daemon.pipeline.stages import WayOut
from edge_daemon.pipeline.station import Station
from edge_daemon.threads import CoreSharing, keep_freed_memory, physical_cores, spare_collector, thread_pools
from edge_daemon.wire.codec import encode_event, encode_image, encode_status
from edge_daemon.wire.messages import (
    Event,
    Image,
    Inspection,
    Provenance,
    Status,
)

log = logging.getLogger(__name__)

Q = TypeVar("Q")
A = TypeVar("A")

# Changes are published at once, but not more often than the first: a burst of them makes one message. Parts that
# come and go change the counters all the time: those alone wait for the second. Each message takes the search
# half a millisecond of a core.
_STATUS_GAP_NS, _BUSY_GAP_NS = 10_000_000, 90_000_000
_EXIT_DEFECT = 70
# Requests of one client: more than one that waits for each answer can ask.
_CONTROL_PER_S, _REPLAY_PER_S = 1_000, 2_000
# Seven sockets with all the connections they may have, and room for what is accepted before it is refused.
_DESCRIPTORS = 16_384
# A part that is not judged by its deadline is late: an inspection from which nothing has come for four of them is not
# slow, it hangs.
_WATCHDOG_DEADLINES = 4
# A recipe may be large, and its search engines are measured when they are new on this PC. Per station.
_LOADING_S = 600.0
# From the last outcome to the end of the process.
_CLOSING_S = 30.0


class _Outbox:
    """What stations see of journal and records."""

    def __init__(self, journal: Journal, records: Records, way_out: WayOut) -> None:
        self._journal = journal
        self._records = records
        self._way_out = way_out

    def intend(self, intent: Intent, on_durable: Callable[[JournalError | None], None]) -> None:
        self._journal.intend(intent, on_durable)

    def conclude(self, draft: Inspection) -> object:
        self._way_out.concluded(draft.result_id)
        return self._records.conclude(draft)

    def attempts(self, station: str, trigger_id: str) -> int:
        """Attempts in this boot: a PLC may count from one again after a restart."""
        seen = self._journal.seen(station, trigger_id)
        return seen.attempt if seen is not None and seen.boot == self._journal.boot.number else 0


class Daemon:
    """All parts of a running daemon. `run` returns when it was stopped and everything in flight is answered."""

    def __init__(self, config: Config, notifier: Notifier | None = None, path: Path | None = None) -> None:
        """path: of the configuration, for what a reload takes from it anew."""
        self._config = config
        self._path = path
        self._notifier = notifier or Notifier(None)
        self._clock = SystemClock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        # Set by signal handlers, which may interrupt whoever holds the lock of an Event.
        self._stop_asked = self._reload_asked = False
        # What SIGHUP (`systemctl reload`) reads anew.
        self._on_reload: list[Callable[[], None]] = []
        self._defect: BaseException | None = None
        self._started_ns = self._clock.monotonic_ns()
        self._signers: Mapping[str, str] = config.security.trusted_signers
        self._stations: dict[str, Station] = {}
        self._way_out = WayOut(self._clock.monotonic_ns)
        self._outcome_log = OutcomeLog(self._clock.monotonic_ns)
        self._last_published: dict[str, int] = {}
        self._servers: dict[str, Callable[[], ServerStats]] = {}

    def run(self) -> int:
        """Start, serve until `stop`, drain, stop. Returns the exit status. Raises EdgeError when it cannot start."""
        with ExitStack() as stack:
            self._notifier.busy_starting(_LOADING_S)  # a large journal is looked through after a crash
            self._start(stack)
            self._serve_metrics(stack)
            log.info("%d station(s) on line %s, boot %d", len(self._stations), self._config.line, self._boot.number)
            longest_ns = int(max(s.config.deadline_ms for s in self._stations.values()) * 1e6)
            self._notifier.ready()
            self._notifier.allow(_WATCHDOG_DEADLINES * longest_ns)
            self._supervise()
            if self._defect is None:
                self._notifier.stopping(longest_ns / 1e9 + _CLOSING_S)
            # With a defect nothing feeds the watchdog any more: it ends a process that does not end by itself.
            self._drain()
        if self._defect is not None:
            log.critical("stopped by a defect of the program: %r", self._defect, exc_info=self._defect)
            return _EXIT_DEFECT
        return 0

    def stop(self) -> None:
        """Begin the clean stop; may be called from any thread."""
        self._stopping.set()
        self._wake.set()

    def stop_soon(self) -> None:
        """The same for signal handlers: it begins within a status period."""
        self._stop_asked = True

    def reload_soon(self) -> None:
        """For signal handlers: what can be read anew while the line runs is, within a status period."""
        self._reload_asked = True

    # -- building ------------------------------------------------------------------------------------

    def _start(self, stack: ExitStack) -> None:
        config = self._config
        _size_pools(config)
        _make_state_dir(config)
        _allow_descriptors()
        keyring = KeyRing(config.keys_path, credentials_folder()) if config.uses_keys else None

        self._standing = StandingAlarms(
            config.standing_alarms_path, lambda: self._clock.utc().text, self._standing_changed, self._fatal
        )
        alarms_lost = self._standing.open()
        stack.callback(self._standing.close)
        self._journal = Journal(config.journal_path, config.line, on_fatal=self._fatal)
        self._boot: Boot = self._journal.open()
        stack.callback(self._journal.close)
        self._identity = Identity(
            config.line, self._boot.number, self._boot.boot_id, f"edge-daemon {__version__}", config_digest(config)
        )

        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.term)
        limits = ConnectionLimits(most=config.security.max_connections)
        self._door = Doorkeeper(context, keyring, self._door_told, limits=limits)
        self._door.open()
        stack.callback(self._door.close)
        self._publisher = Publisher(context, _publisher_config(config), door=self._door, on_fatal=self._fatal)
        self._publisher.open()
        stack.callback(self._publisher.close)

        self._records = Records(
            self._journal,
            self._publisher,
            int(config.journal.commit_budget_ms * 1e6),
            self._published,
            on_fatal=self._fatal,
        )
        self._records.open()
        stack.callback(self._records.close)

        self._pictures = Pictures(
            {name: station.images for name, station in config.stations.items()}, self._send_image, self._fatal
        )
        self._pictures.start()
        stack.callback(self._pictures.close)

        self._archive = Archive(config.archive_path, int(config.archive.min_free_gb * 1e9), self._fatal)
        self._archive.open()
        stack.callback(self._archive.close)
        retention = Retention(
            self._journal,
            config.archive_path,
            Rules(config.journal.keep_days, config.journal.keep_not_ok_days, int(config.journal.max_gb * 1e9)),
            Rules(config.archive.keep_days, config.archive.keep_not_ok_days, int(config.archive.max_gb * 1e9)),
            on_fatal=self._fatal,
        )
        retention.open()
        stack.callback(retention.close)

        outbox = _Outbox(self._journal, self._records, self._way_out)
        for name, station in config.stations.items():
            self._stations[name] = Station(name, station, self._identity, self._clock, outbox)
        provenance = Provenance(software=self._identity.software, config_digest=self._identity.config_digest)
        known = [intent for intent in self._boot.unfinished if intent.station in self._stations]
        for intent in self._boot.unfinished:
            if intent.station not in self._stations:
                log.warning(
                    "trigger %s of %s, a station of an earlier configuration", intent.trigger_id, intent.station
                )
        self._records.conclude_unfinished(self._boot.unfinished, provenance)
        self._take_up_alarms(alarms_lost)
        if self._boot.alarm:
            self._emit("alarm", "", "journal_damaged", self._boot.alarm, "error")
        if known:
            self._emit("alarm", "", "restarted", f"{len(known)} trigger(s) were left without outcome by the last boot")

        options = EngineOptions(
            config.engine.provider,
            config.engine.fallback,
            config.engine.intra_op_threads or physical_cores(),
            config.engine.embeddings,
        )
        sessions = Sessions(options, Choices(config.engines_path))
        self._recipes = Recipes(
            Store(config.store_path),
            sessions,
            config.engine.search,
            config.state_dir / "configured.json",
            Trust.of(config.security.trusted_signers),
            [name for name, station in config.stations.items() if station.require_signed_recipes],
        )
        self._load_recipes()

        self._compute = Compute(
            list(self._stations.values()),
            self._clock,
            self._batch_limit(),
            int(config.engine.batch_wait_ms * 1e6),
            self._fatal,
            CoreSharing(config.engine.search_threads or physical_cores(), options.intra_op_threads),
            self._golden_told,
        )
        self._health = HealthDesk(self._compute.submit, self._emit, self._fatal)
        self._start_cameras(stack)

        self._trail = AuditTrail(config.audit_path, lambda: self._clock.utc().text, self._audited)
        self._trail.open()
        stack.callback(self._trail.close)
        self._audit = ControlAudit(self._trail)
        self._control = ControlDesk(
            self._stations,
            self._recipes,
            self.status,
            self.stop,
            self._emit,
            lambda: asdict(self._door.reload()),
            self._audit.job_ended,
            self._standing.acknowledge,
        )
        stack.callback(self._control.close)
        if keyring is not None:
            self._on_reload.append(self._reload_keys)
        self._on_reload.append(self._reload_signers)
        self._serve(stack, context)

    def _load_recipes(self) -> None:
        """Each station gets its recipe set, or stays unfit and says why; the others do not wait for it."""
        for name, station in self._stations.items():
            self._notifier.busy_starting(_LOADING_S)
            self._take_up_recipes(name, station)

    def _take_up_recipes(self, name: str, station: Station) -> None:
        try:
            station.activate(self._recipes.at_start(name, station.config))
        except EdgeError as error:
            log.error("station %s: %s", name, error)
            station.alarm("recipes", str(error))
            self._emit("alarm", name, "recipe_refused", str(error), "error")

    def _batch_limit(self) -> int:
        """Frames in one model run: by the provider that really runs, should it be the fallback."""
        live = [s.recipes for s in self._stations.values() if s.recipes is not None]
        providers = {ready.provider for recipes in live for ready in recipes.views.values()}
        on_cpu = self._config.engine.provider == "cpu" or PROVIDERS["cpu"] in providers
        return self._config.engine.batch_limit("cpu" if on_cpu else self._config.engine.provider)

    def _start_cameras(self, stack: ExitStack) -> None:
        readers: list[CameraReader] = []
        for name, station in self._stations.items():
            cameras = {
                camera: make_camera(camera, self._config.cameras[camera], self._clock.monotonic_ns)
                for camera in station.cameras
            }
            own = {
                camera_name: CameraReader(
                    camera,
                    station,
                    int(station.config.frame_wait_ms * 1e6),
                    self._clock,
                    lambda event, message, name=name: self._emit("camera", name, event, message),  # type: ignore[misc]
                    self._fatal,
                )
                for camera_name, camera in cameras.items()
            }
            for view in station.config.views:
                replayed = cameras[view.camera].simulated and self._config.cameras[view.camera].kind != "simulated"
                self._health.watch(station, view.name, may_repeat=replayed)
            station.attach(
                self._health.submit,
                {camera_name: reader.request for camera_name, reader in own.items()},
                any(camera.simulated for camera in cameras.values()),
                self._wake.set,
                self._make_pictures,
                lambda event, message, severity, name=name: self._emit("alarm", name, event, message, severity),  # type: ignore[misc]
            )
            readers += own.values()
        self._compute.start()
        stack.callback(self._compute.close)
        for reader in readers:
            reader.start()
            stack.callback(self._close_reader, reader)

    def _close_reader(self, reader: CameraReader) -> None:
        if not reader.close():
            log.error("camera %s does not let go; its thread is left to the end of the process", reader.name)

    def _serve(self, stack: ExitStack, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        wire = self._config.wire
        most_open = 32 + sum(s.config.queue + 1 for s in self._stations.values())
        control = RequestServer(
            context,
            wire.control,
            CONTROL,
            self._control.handle,
            max_outstanding_per_client=32,
            max_per_s=_CONTROL_PER_S,
            door=self._door,
            admit=self._audit.admit,
            ended=self._audit.ended,
            max_request_bytes=wire.max_request_bytes,
            on_fatal=self._fatal,
        )
        triggers = RequestServer(
            context,
            wire.triggers,
            TRIGGERS,
            self._guarded(TriggerDesk(self._stations).handle),
            # As many as all stations may have open; what is more is missed, and answered at once.
            max_outstanding=2 * most_open,
            # One gateway has all stations; a client that floods leaves room for another.
            max_outstanding_per_client=most_open,
            max_per_s=self._config.security.max_triggers_per_s,
            door=self._door,
            max_request_bytes=wire.max_request_bytes,
            on_fatal=self._fatal,
        )
        desk = ReplayDesk(self._journal, self._boot.number, lambda station: self._last_published.get(station, 0))
        replay = RequestServer(
            context,
            wire.replay,
            REPLAY,
            desk.handle,
            max_request_bytes=wire.max_request_bytes,
            # An answer is large, and asking again gives it again: none is remembered, few wait for a slow client.
            remembered=0,
            high_water_mark=8,
            max_per_s=_REPLAY_PER_S,
            door=self._door,
            on_fatal=self._fatal,
        )
        self._amendments = AmendmentDesk(self._journal, self._passed_without_ok)
        amendments = RequestServer(
            context,
            wire.amendments,
            AMENDMENTS,
            self._amendments.handle,
            # The id that counts is the amendment's own, and the journal knows it.
            remembered=0,
            max_per_s=self._config.security.max_triggers_per_s,
            door=self._door,
            max_request_bytes=wire.max_request_bytes,
            on_fatal=self._fatal,
        )
        replay.open()
        stack.callback(replay.close)
        amendments.open()
        stack.callback(amendments.close)
        control.open()
        stack.callback(control.close)
        triggers.open()
        stack.callback(triggers.close)
        self._servers = {
            "triggers": triggers.stats,
            "control": control.stats,
            "replay": replay.stats,
            "amendments": amendments.stats,
        }

    def _guarded(self, handle: Callable[[Q, A], None]) -> Callable[[Q, A], None]:
        """A trigger whose handling fails in a way nobody foresaw may be counted without a record: stop, and
        account for it at the next start."""

        def guarded(request: Q, reply: A) -> None:
            try:
                handle(request, reply)
            except EdgeError:
                raise
            except Exception as error:
                self._fatal(error)
                raise

        return guarded

    # -- running -------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        """Deadlines and status, until the stop."""
        period_ns = int(self._config.wire.status_period_ms * 1e6)
        published_ns = 0
        told: list[object] = []
        while not self._stopping.is_set():
            self._heed_signals()
            now = self._clock.monotonic_ns()
            self._expire(now)
            standing: list[object] = [station.standing for station in self._stations.values()]
            gap_ns = _BUSY_GAP_NS if standing == told else _STATUS_GAP_NS
            if self._wake.is_set() and now - published_ns < gap_ns:
                self._stopping.wait(_STATUS_GAP_NS / 1e9)
                continue
            self._wake.clear()
            self._watch_journal()
            self._watch_door()
            self._watch_golden()
            told = [station.standing for station in self._stations.values()]
            self._publish_status()
            self._feed_watchdog()
            published_ns = self._clock.monotonic_ns()
            deadlines = [d for s in self._stations.values() if (d := s.next_deadline_ns()) is not None]
            until = min([published_ns + period_ns, *deadlines])
            self._wake.wait(max(0, until - self._clock.monotonic_ns()) / 1e9)

    def _heed_signals(self) -> None:
        if self._stop_asked:
            self._stopping.set()
        if self._reload_asked:
            self._reload_asked = False
            self._reload()

    def _reload(self) -> None:
        """What cannot be read leaves in force what was, and says so: the line runs on."""
        self._notifier.reloading(self._clock.monotonic_ns())
        try:
            for read_anew in self._on_reload:
                read_anew()
        except EdgeError as error:
            self._emit("alarm", "", "reload_failed", f"not reloaded, what was in force stays so: {error}", "error")
        else:
            self._emit("audit", "", "reload", "reloaded")
        self._notifier.ready()

    def _feed_watchdog(self) -> None:
        """By what has come through the inspection and by nothing else, and not while a frame is stuck before it."""
        now, since_ns = self._clock.monotonic_ns(), self._compute.preparing_since_ns
        if since_ns is None or now - since_ns < self._notifier.watchdog_ns:
            self._notifier.feed(self._compute.passes, now)

    def _expire(self, now_ns: int) -> None:
        for station in self._stations.values():
            station.expire(now_ns)

    def _watch_journal(self) -> None:
        """A journal that does not take records makes every station unfit, until it does again."""
        failing = self._journal.failing
        for station in self._stations.values():
            if failing:
                station.alarm("journal", failing)
            else:
                station.all_clear("journal")

    def _watch_door(self) -> None:
        """Without a doorkeeper nobody new gets in, a gateway that was restarted neither: nothing may wait for a part
        whose verdict nobody can fetch."""
        failing = self._door.failing
        for station in self._stations.values():
            if failing:
                station.alarm("doorkeeper", failing)
            else:
                station.all_clear("doorkeeper")

    def _watch_golden(self) -> None:
        for name, station in self._stations.items():
            if overdue := station.golden_overdue(self._clock.monotonic_ns()):
                self._emit("alarm", name, "golden_overdue", overdue, "warning")

    def _drain(self) -> None:
        """Take nothing new; every inspection under way ends by itself or by its deadline."""
        for station in self._stations.values():
            station.halt()
        self._publish_status()
        period_s = self._config.wire.status_period_ms / 1e3
        while not all(station.idle for station in self._stations.values()) and self._defect is None:
            self._wake.clear()
            self._expire(self._clock.monotonic_ns())
            self._publish_status()
            self._feed_watchdog()
            self._wake.wait(min(0.02, period_s))
        self._publish_status()

    def _published(self, record: Inspection) -> None:
        self._way_out.published(record.result_id)
        self._outcome_log.published(record)
        self._last_published[record.station] = record.seq
        station = self._stations.get(record.station)
        if station is not None:
            station.published(record)

    def _fatal(self, error: BaseException) -> None:
        """A defect of the program: end with a status that systemd sees, and restart clean."""
        log.critical("defect: %r", error, exc_info=error)
        if self._defect is None:
            self._defect = error
        self.stop()

    # -- telling -------------------------------------------------------------------------------------

    def _emit(self, kind: str, station: str, name: str, message: str, severity: str = "info") -> None:
        level = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}[severity]
        about = fields(station=station, kind=kind, event=name)
        log.log(level, "%s%s", f"station {station}: " if station else "", message, extra=about)
        event = Event(
            line=self._identity.line,
            station=station,
            boot=self._identity.boot,
            boot_id=self._identity.boot_id,
            kind=kind,  # type: ignore[arg-type]  # one of the kinds everywhere it is called
            name=name,
            severity=severity,  # type: ignore[arg-type]
            utc=self._clock.utc().text,
            message=message,
        )
        self._publisher.publish_event(encode_event(event))

    def _passed_without_ok(self, station: str, trigger_id: str, text: str, on_kept: Kept) -> bool:
        new = self._standing.raise_alarm(station, "passed_without_ok", trigger_id, text, on_kept)
        if new:
            self._emit("alarm", station, "passed_without_ok", text, "error")
        return new

    def _standing_changed(self, station: str, name: str) -> None:
        """In status it stands beside what makes the station unfit: the station judges as before."""
        at = self._stations.get(station)
        if at is None:
            return
        if text := self._standing.text(station, name):
            at.warn(name, text)
        else:
            at.warning_over(name)

    def _take_up_alarms(self, lost: str) -> None:
        """What stood when the daemon went down; and an alarm everywhere when nobody knows what that was."""
        for station, alarms in self._standing.standing().items():
            for name in alarms:
                log.warning("station %s: %s stands: %s", station, name, self._standing.text(station, name))
                self._standing_changed(station, name)
        for station in self._stations if lost else ():
            self._standing.raise_alarm(station, "alarms_lost", self._identity.boot_id, lost, lambda _error: None)
            self._emit("alarm", station, "alarms_lost", lost, "error")

    def _door_told(self, name: str, message: str) -> None:
        self._emit("alarm", "", name, message, "warning")

    def _audited(self, entry: AuditEntry) -> None:
        if entry.outcome == "begun":
            return
        who = ", ".join(word for word in (entry.role, entry.address) if word)
        text = f"{entry.who}{f' ({who})' if who else ''}: {entry.command} {entry.outcome}"
        self._emit(
            "audit",
            "",
            f"command_{entry.outcome}",
            f"{text}: {entry.message}" if entry.message else text,
            "warning" if entry.outcome in ("refused", "failed") else "info",
        )

    def _reload_keys(self) -> None:
        """For SIGHUP. The trail waits for the disk, and deadlines must not wait for the trail."""
        changes = asdict(self._door.reload())
        self._control.aside(lambda: self._audit.reloaded(changes))

    def _reload_signers(self) -> None:
        """For SIGHUP. Of the configuration this alone is taken anew. What runs is looked at where recipes are loaded:
        files are read for it. Raises ConfigError, and those before stay trusted."""
        if self._path is None:
            return
        signers = load_config(self._path, recipes_must_exist=False).security.trusted_signers
        if signers == self._signers:
            return
        self._signers = signers
        self._recipes.trust_anew(Trust.of(signers))
        self._control.aside(self._look_at_signers)

    def _look_at_signers(self) -> None:
        self._audit.reloaded({"trusted_signers": sorted(self._signers)})
        for name, station in self._stations.items():
            live = station.recipes
            why = self._recipes.why_untrusted(name, live) if live is not None else ""
            if why:
                station.alarm("recipes", why)
                self._emit("alarm", name, "recipe_refused", why, "error")
            elif live is not None:
                station.all_clear("recipes")
            elif station.config.require_signed_recipes:
                self._take_up_recipes(name, station)

    def _golden_told(self, station: str, name: str, message: str) -> None:
        self._emit("alarm", station, name, message, "error" if name.endswith("_failed") else "info")

    def _make_pictures(self, inspection: OpenInspection, record: Inspection) -> None:
        """Only for somebody: scaling and encoding take the cores that the next part needs."""
        keep, ok = self._config.archive.keep, record.evaluation == "OK"
        if keep == "always" or (keep == "not_ok" and not ok):
            day = datetime.fromisoformat(record.times.utc).date()
            self._archive.submit(
                ArchiveJob(record.station, day, ok, record.result_id, lambda: archived_pictures(inspection))
            )
        if self._publisher.images_wanted:
            self._pictures.submit(inspection, record)

    def _send_image(self, image: Image, blobs: tuple[bytes, ...]) -> None:
        self._publisher.publish_image(encode_image(image, blobs))

    def _station_status(self, station: Station) -> Status:
        status = station.status(
            self._clock.utc().text,
            (self._clock.monotonic_ns() - self._started_ns) / 1e6,
            self._boot.previous_boot,
            self._boot.last_seq.get(station.name, 0),
        )
        return status.model_copy(update={"journal_head": self._journal.head})

    def _publish_status(self) -> None:
        told = []
        for station in self._stations.values():
            status = self._station_status(station)
            self._publisher.publish_status(encode_status(status))
            told.append(_in_a_word(status))
        self._notifier.status("; ".join(told), self._clock.monotonic_ns())

    def status(self) -> dict[str, Any]:
        """Everything about the daemon, for `edge-ctl status`."""
        return self._measures() | {"threads": thread_pools()}

    def _metrics_page(self) -> bytes:
        """What Prometheus reads; called in a thread of its own."""
        stages = self._health.distributions() | self._compute.distributions() | self._way_out.distributions()
        latencies = {name: station.latency() for name, station in self._stations.items()}
        return exposition(Reading(self._measures(), self._compute.passes, stages, latencies, self._compute.scores()))

    def _serve_metrics(self, stack: ExitStack) -> None:
        """No line stands still because nobody can watch it."""
        if self._config.metrics.listen is None:
            return
        host, _, port = self._config.metrics.listen.rpartition(":")
        server = MetricsServer(host.removeprefix("[").removesuffix("]"), int(port), self._metrics_page)
        try:
            server.open()
        except EdgeError as error:
            self._emit("alarm", "", "metrics", str(error), "error")
        stack.callback(server.close)

    def _measures(self) -> dict[str, Any]:
        journal = self._journal.stats()
        return {
            "line": self._identity.line,
            "boot": self._identity.boot,
            "boot_id": self._identity.boot_id,
            "software": self._identity.software,
            "config_digest": self._identity.config_digest,
            "stations": {name: self._station_status(s).model_dump(mode="json") for name, s in self._stations.items()},
            "stages_ms": self._health.stages_ms()
            | self._compute.stages_ms()
            | self._way_out.stages_ms(journal.commit_p50_ms),
            "journal": asdict(journal),
            "records": asdict(self._records.stats()),
            "amendments": asdict(self._amendments.stats()),
            "standing_alarms": self._standing.standing(),
            "publisher": asdict(self._publisher.stats()),
            "pictures_dropped": self._pictures.dropped,
            "archive": asdict(self._archive.stats()),
            "requests": {name: asdict(stats()) for name, stats in self._servers.items()},
            "security": self._door.stats() | {"audit_failing": self._trail.failing},
        }


def _in_a_word(status: Status) -> str:
    """`st1 Ready`, or with the first alarm; parts that come and go change nothing."""
    state = "Ready" if status.state in (State.SINGLE_EXECUTION, State.CONTINUOUS_EXECUTION) else status.state
    return f"{status.station} {state}" + (f" ({status.alarms[0]})" if status.alarms else "")


def _publisher_config(config: Config) -> PublisherConfig:
    wire = config.wire
    return PublisherConfig(
        results=wire.results,
        images=wire.images,
        status=wire.status,
        results_hwm=wire.results_hwm,
        images_hwm=wire.images_hwm,
        status_hwm=wire.status_hwm,
    )


def _size_pools(config: Config) -> None:
    keep_freed_memory()
    cv2.setNumThreads(1)
    faiss.omp_set_num_threads(config.engine.search_threads or physical_cores())


def _allow_descriptors() -> None:
    """Strangers who connect must not take the descriptors that journal and cameras need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _make_state_dir(config: Config) -> None:
    try:
        config.state_dir.mkdir(parents=True, exist_ok=True)
        config.journal_path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeError(f"the state folder {config.state_dir} cannot be made: {error.strerror}") from error


@contextmanager
def _signals(stop: Callable[[], None], reload: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT begin the clean stop, SIGHUP reads anew what can be. Both only set an attribute."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            reload()
        else:
            stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(config: Config, path: Path | None = None) -> int:
    """Run the daemon until SIGTERM, SIGINT or the command `shutdown`; returns the exit status. path: of the
    configuration, read again for trusted signers at SIGHUP."""
    spare_collector()
    notifier = Notifier.from_environment()
    daemon = Daemon(config, notifier, path)
    with closing(notifier), _signals(daemon.stop_soon, daemon.reload_soon):
        return daemon.run()
