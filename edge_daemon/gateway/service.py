"""The gateway as it runs: dialogues between the daemon's link and the PLC's servers, all in one asyncio loop.

One loop, no locks: a block is made and a command taken between two other things, never in the middle of one.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from edge_daemon import __version__
from edge_daemon.edges.scrapes import MetricsServer
from edge_daemon.errors import EdgeError
from edge_daemon.gateway.amendments import AmendmentQueue, amendment
from edge_daemon.gateway.certificates import complaints
from edge_daemon.gateway.config import GatewayConfig
from edge_daemon.gateway.dialogue import Dialogue
from edge_daemon.gateway.errors import GatewayError
from edge_daemon.gateway.events import AskDaemon, Event, Note, PartReported, PlcWrote, ResultCame, Tell, Tick
from edge_daemon.gateway.link import DaemonEndpoints, DaemonLink
from edge_daemon.gateway.metrics import GatewayReading, exposition, station_reading
from edge_daemon.gateway.outbox import Outbox
from edge_daemon.gateway.release import DialogueSettings
from edge_daemon.gateway.words import Block, Command
from edge_daemon.logs import fields
from edge_daemon.notify import Notifier
from edge_daemon.wire.messages import AmendmentRequest

if TYPE_CHECKING:
    from edge_daemon.gateway.opcua import OpcuaEdge

log = logging.getLogger(__name__)

# Windows are closed at every event and at every read; ticks only make the log timely.
_TICK_S: Final = 0.05
_CLOSING_S: Final = 10.0
_WATCH_SCANS: Final = 20
_FLUSH_S: Final = 1.0
_READING_S: Final = 2.0
# A report that is not in the outbox by then is not acknowledged: whoever made it makes it again.
_KEPT_S: Final = 2.0


class StationSession:
    """One station's dialogue with the clock and the daemon around it."""

    def __init__(
        self,
        settings: DialogueSettings,
        run: str,
        ask: Callable[[str, AskDaemon], None],
        tell: Callable[[str, Tell], None],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.dialogue = Dialogue(settings, run)
        self._ask = ask
        self._tell = tell
        self._clock_ns = clock_ns

    def feed(self, event: Event) -> None:
        """What happened, now."""
        for effect in self.dialogue.feed(event, self._clock_ns()):
            match effect:
                case AskDaemon():
                    self._ask(self.dialogue.settings.station, effect)
                case Tell():
                    self._tell(self.dialogue.settings.station, effect)
                case Note(text):
                    log.warning("%s", text, extra=fields(station=self.dialogue.settings.station))

    def wrote(self, command: Command) -> None:
        """The PLC wrote its command block."""
        self.feed(PlcWrote(command))

    def block(self) -> Block:
        """What the PLC reads now."""
        return self.dialogue.block(self._clock_ns())


class Gateway:
    """Everything of one configuration. `run` returns after SIGTERM or SIGINT, and raises what ended it otherwise."""

    def __init__(self, config: GatewayConfig, notifier: Notifier | None = None) -> None:
        self._config = config
        self._notifier = notifier or Notifier(None)
        self._run_id = os.urandom(4).hex()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outbox = Outbox(config.state_dir, self._found, self._defect_aside)
        self._alarmed: frozenset[str] = frozenset()
        daemon = config.daemon
        self._link = DaemonLink(
            DaemonEndpoints(daemon.results, daemon.status, daemon.triggers, daemon.key, daemon.amendments),
            config.stations,
            self._from_daemon,
            AmendmentQueue(on_gone=self._outbox.forget),
        )
        self.sessions = {
            name: StationSession(station.settings(name), self._run_id, self._link.ask, self._told)
            for name, station in config.stations.items()
        }
        self._stop = asyncio.Event()
        self._fault: BaseException | None = None
        self._opcua: OpcuaEdge | None = None

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        """Serves until it is stopped. Raises EdgeError when it cannot, and whatever defect ended it."""
        loop = self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
                stack.callback(loop.remove_signal_handler, number)
            self._outbox.open()
            stack.callback(self._outbox.close)
            self._link.open()
            stack.callback(self._link.close)
            # OPC UA first: building its address space holds the loop for a second, which the PLC must not see.
            await self._open_opcua(stack)
            self._serve_metrics(stack)
            await self._open_modbus(stack)
            tasks = [asyncio.create_task(self._link.run()), asyncio.create_task(self._tick())]
            if self._opcua is not None:
                tasks.append(asyncio.create_task(self._opcua.run()))
            stopped = asyncio.create_task(self._stop.wait())
            log.info("serving %s, run %s", ", ".join(self.sessions), self._run_id)
            self._notifier.ready()
            try:
                await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._notifier.stopping(_CLOSING_S)
                await self._link.flush(_FLUSH_S)
                for task in (*tasks, stopped):
                    task.cancel()
                ends = await asyncio.gather(*tasks, stopped, return_exceptions=True)
        for end in (self._fault, *ends):
            if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
                raise end

    async def _open_modbus(self, stack: AsyncExitStack) -> None:
        try:
            from edge_daemon.gateway.modbus import ModbusEdge
        except ImportError as exc:
            raise GatewayError(f"the gateway needs more packages: pip install 'edge-daemon[gateway]' ({exc})") from exc
        modbus = self._config.modbus
        units = {self._config.stations[name].unit: session for name, session in self.sessions.items()}
        edge = ModbusEdge(modbus.host, modbus.port, modbus.clients, units, self._fatal)
        await edge.open()
        stack.push_async_callback(edge.close)

    async def _open_opcua(self, stack: AsyncExitStack) -> None:
        opcua = self._config.opcua
        if opcua is None:
            return
        try:
            from edge_daemon.gateway.opcua import OpcuaEdge
        except ImportError as exc:
            raise GatewayError(f"OPC UA needs more packages: pip install 'edge-daemon[gateway]' ({exc})") from exc
        edge = OpcuaEdge(
            opcua.endpoint,
            self.sessions,
            opcua.certificate,
            opcua.private_key,
            opcua.viewers,
            trusted=opcua.trusted,
            users=opcua.users,
            anonymous=opcua.anonymous,
            on_report=self._reported,
        )
        await edge.open()
        stack.push_async_callback(edge.close)
        self._opcua = edge

    def _serve_metrics(self, stack: AsyncExitStack) -> None:
        """No line stands still because nobody can watch it."""
        metrics = self._config.metrics
        if metrics is None:
            return
        loop = asyncio.get_running_loop()

        def page() -> bytes:
            """In the server's thread: only what is read is read in the loop, and no PLC waits for a page."""
            return exposition(asyncio.run_coroutine_threadsafe(self._read(), loop).result(_READING_S))

        server = MetricsServer(metrics.host, metrics.port, page)
        try:
            server.open()
        except EdgeError as exc:
            log.error("%s", exc)
        stack.callback(server.close)

    async def _read(self) -> GatewayReading:
        return self.reading()

    def reading(self) -> GatewayReading:
        """The gateway at this moment, for metrics."""
        now_ns = time.monotonic_ns()
        return GatewayReading(
            run=self._run_id,
            software=f"edge-daemon {__version__}",
            stations={name: station_reading(session.dialogue, now_ns) for name, session in self.sessions.items()},
            amendments=self._link.amendments.stats(),
            amendments_waiting=len(self._link.amendments),
            alarms=self.alarms,
            certificate_ends_s={
                name: its.ends_s for name, its in (self._opcua.certificates if self._opcua else {}).items()
            },
            malformed=self._link.malformed,
            opcua_dropped=self._opcua.dropped if self._opcua is not None else 0,
        )

    def _fatal(self, exc: BaseException) -> None:
        log.critical("the gateway ends: %s", exc, exc_info=exc)
        self._fault = exc
        self.stop()

    @property
    def alarms(self) -> Mapping[str, str]:
        """What an operator must know of the gateway itself, by name."""
        certificates = self._opcua.certificates if self._opcua is not None else {}
        found = {
            "amendments_full": self._link.amendments.alarm,
            "certificate": "; ".join(complaints(certificates, time.time())),
        }
        return {**self._outbox.alarms, **{name: text for name, text in found.items() if text}}

    def _told(self, station: str, tell: Tell) -> None:
        utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        told = amendment(station, tell, self._run_id, utc)
        self._outbox.keep(told)
        self._link.amendments.put(told)

    def _found(self, requests: Sequence[AmendmentRequest]) -> None:
        """In the outbox's thread: what an earlier gateway had still to tell."""

        def tell() -> None:
            for request in requests:
                self._link.amendments.put(request)

        self._in_loop(tell)

    def _defect_aside(self, exc: BaseException) -> None:
        """In the outbox's thread."""
        self._in_loop(lambda: self._fatal(exc))

    def _in_loop(self, work: Callable[[], None]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # closed: the gateway has ended, and what waits is in the file
                self._loop.call_soon_threadsafe(work)

    async def _reported(self, station: str, acquisition_id: int, code: int) -> bool:
        """Somebody reports what became of a part; whether it outlives this process from now on."""
        self.sessions[station].feed(PartReported(acquisition_id, code))
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._outbox.written()), _KEPT_S)
        except TimeoutError:
            return False
        return True

    def _from_daemon(self, station: str, event: Event) -> None:
        session = self.sessions.get(station)
        if session is not None:
            session.feed(event)
        if self._opcua is not None and isinstance(event, ResultCame):
            self._opcua.result(event.inspection)

    async def _tick(self) -> None:
        scans = 0
        while True:
            await asyncio.sleep(_TICK_S)
            for session in self.sessions.values():
                session.feed(Tick())
            # The watchdog is fed by the scan of all dialogues, and by nothing else.
            scans += 1
            self._notifier.feed(scans, time.monotonic_ns())
            if scans % _WATCH_SCANS == 0:
                self._watch()
            if self._opcua is not None:
                self._opcua.states({name: session.block() for name, session in self.sessions.items()})

    def _watch(self) -> None:
        """What has become wrong with the gateway itself is said, and when it is over."""
        alarms = self.alarms
        for name in alarms.keys() - self._alarmed:
            log.error("alarm %s: %s", name, alarms[name])
        for name in self._alarmed - alarms.keys():
            log.info("alarm %s is over", name)
        self._alarmed = frozenset(alarms)
