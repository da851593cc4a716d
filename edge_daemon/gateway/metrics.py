"""What the gateway measures, in the words of Prometheus; as `edges/metrics.py`, whose rules hold here too: names and
labels are a contract, and no label names a part."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from edge_daemon.gateway.amendments import AmendmentCounts
from edge_daemon.gateway.dialogue import Dialogue, DialogueCounts, Phase
from edge_daemon.gateway.words import Bits, Block, ErrorCode, Verdict
from edge_daemon.wire.messages import Delivery, Disposition

Families = Iterator[Metric]
_NS: Final = 1e9
ALARMS: Final = ("outbox_failing", "outbox_damaged", "amendments_full", "certificate")
"""What may be wrong with the gateway itself."""


@dataclass(frozen=True, slots=True)
class StationReading:
    """One dialogue at one moment. Ages in nanoseconds, None where there is nothing to count from: a PLC that counts as
    gone, a daemon that never spoke, a path that was never seen moving."""

    phase: Phase
    block: Block
    counts: DialogueCounts
    plc_silence_ns: int | None
    daemon_silence_ns: int | None
    heartbeat_age_ns: int | None


@dataclass(frozen=True, slots=True)
class GatewayReading:
    """The gateway at one moment. malformed: messages of the daemon that could not be read; alarms: of `ALARMS`, those
    that stand, with what is wrong; certificate_ends_s: of the OPC UA server and its clients, Unix time by name."""

    run: str
    software: str
    stations: Mapping[str, StationReading]
    amendments: AmendmentCounts
    amendments_waiting: int
    malformed: int
    opcua_dropped: int
    alarms: Mapping[str, str]
    certificate_ends_s: Mapping[str, float]


def station_reading(dialogue: Dialogue, now_ns: int) -> StationReading:
    """In the thread of the dialogue, which goes on; the reading does not change any more."""
    return StationReading(
        phase=dialogue.phase,
        block=dialogue.block(now_ns),
        counts=dialogue.counts.copy(),
        plc_silence_ns=dialogue.plc_silence_ns(now_ns),
        daemon_silence_ns=dialogue.daemon_silence_ns(now_ns),
        heartbeat_age_ns=dialogue.heartbeat_age_ns(now_ns),
    )


def exposition(reading: GatewayReading) -> bytes:
    """The page that Prometheus reads (text format 0.0.4)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Read(reading))
    return generate_latest(registry)


class _Read(Collector):
    def __init__(self, reading: GatewayReading) -> None:
        self._reading = reading

    def collect(self) -> Families:
        reading = self._reading
        info = {"run": reading.run, "software": reading.software}
        yield InfoMetricFamily("edge_gateway", "Which start of the gateway this is", info)
        yield from _dialogues(reading.stations)
        yield from _sides(reading.stations)
        yield from _verdicts(reading.stations)
        yield from _afterwards(reading.stations)
        yield from _daemon(reading)


def _dialogues(stations: Mapping[str, StationReading]) -> Families:
    phase = GaugeMetricFamily(
        "edge_gateway_phase", "1 for where the handshake of the trigger stands", labels=["station", "phase"]
    )
    text = "1 for what keeps Trigger Ready low; none while nothing does"
    error = GaugeMetricFamily("edge_gateway_error", text, labels=["station", "error"])
    ready = GaugeMetricFamily("edge_gateway_trigger_ready", "1 while the PLC may trigger", labels=["station"])
    parts = GaugeMetricFamily("edge_gateway_open_parts", "Parts under way", labels=["station"])
    held = GaugeMetricFamily("edge_gateway_unacknowledged", "Results that the PLC has not taken", labels=["station"])
    for name, station in stations.items():
        for known in Phase:
            phase.add_metric([name, known.value], station.phase is known)
        for code in ErrorCode:
            error.add_metric([name, code.name.lower()], station.block.error is code)
        ready.add_metric([name], bool(station.block.bits & Bits.TRIGGER_READY))
        parts.add_metric([name], station.block.open_parts)
        held.add_metric([name], station.block.unacknowledged)
    yield from (phase, error, ready, parts, held)


def _sides(stations: Mapping[str, StationReading]) -> Families:
    connected = GaugeMetricFamily("edge_gateway_plc_connected", "1 while the PLC writes", labels=["station"])
    ages = (
        ("edge_gateway_plc_silence_seconds", "Since the PLC's last write", "plc_silence_ns"),
        ("edge_gateway_daemon_silence_seconds", "Since the daemon's last status", "daemon_silence_ns"),
        ("edge_gateway_heartbeat_age_seconds", "Since something went through the inspection", "heartbeat_age_ns"),
    )
    for name, station in stations.items():
        connected.add_metric([name], station.plc_silence_ns is not None)
    yield connected
    for metric, text, attribute in ages:
        age = GaugeMetricFamily(metric, f"{text}; infinite when never", labels=["station"])
        for name, station in stations.items():
            ns: int | None = getattr(station, attribute)
            age.add_metric([name], float("inf") if ns is None else ns / _NS)
        yield age


def _verdicts(stations: Mapping[str, StationReading]) -> Families:
    asked = CounterMetricFamily("edge_gateway_triggers", "Triggers of the PLC", labels=["station"])
    missed = CounterMetricFamily("edge_gateway_missed", "Triggers not taken", labels=["station", "reason"])
    text = "Verdicts by their code word, as they were shown first"
    verdicts = CounterMetricFamily("edge_gateway_verdicts", text, labels=["station", "verdict"])
    text = "OKs that ended because the PLC did not acknowledge them in time"
    withdrawn = CounterMetricFamily("edge_gateway_withdrawn", text, labels=["station"])
    overruns = CounterMetricFamily(
        "edge_gateway_overruns", "Results thrown away: eight were unacknowledged", labels=["station"]
    )
    text = "Records that were no answer to an open trigger: of none (stray), or untrue of it (foreign)"
    passed_over = CounterMetricFamily("edge_gateway_records_passed_over", text, labels=["station", "why"])
    for name, station in stations.items():
        counts = station.counts
        asked.add_metric([name], counts.triggers)
        for code in ErrorCode:
            if code is not ErrorCode.NONE:
                missed.add_metric([name, code.name.lower()], counts.missed_for[code])
        for word in Verdict:
            if word not in (Verdict.NONE, Verdict.WITHDRAWN):
                verdicts.add_metric([name, word.name.lower()], counts.verdicts[word])
        withdrawn.add_metric([name], counts.withdrawn)
        overruns.add_metric([name], counts.overruns)
        passed_over.add_metric([name, "stray"], counts.stray)
        passed_over.add_metric([name, "foreign"], counts.foreign)
    yield from (asked, missed, verdicts, withdrawn, overruns, passed_over)


def _afterwards(stations: Mapping[str, StationReading]) -> Families:
    labels = ["station", "what"]
    delivered = CounterMetricFamily("edge_gateway_deliveries", "What the PLC took of verdicts", labels=labels)
    disposed = CounterMetricFamily("edge_gateway_dispositions", "What the PLC reports of parts", labels=labels)
    text = "Parts that may have passed although no OK was shown for them"
    accident = CounterMetricFamily("edge_gateway_passed_without_ok", text, labels=["station"])
    text = "Reports on parts that this start of the gateway did not trigger, or of no known code"
    unknown = CounterMetricFamily("edge_gateway_unknown_reports", text, labels=["station"])
    for name, station in stations.items():
        for word in get_args(Delivery):
            delivered.add_metric([name, word], station.counts.delivered[word])
        for word in get_args(Disposition):
            disposed.add_metric([name, word], station.counts.disposed[word])
        accident.add_metric([name], station.counts.passed_without_ok)
        unknown.add_metric([name], station.counts.unknown_parts)
    yield from (delivered, disposed, accident, unknown)


def _daemon(reading: GatewayReading) -> Families:
    text = "1 while something is wrong with the gateway itself; its log says what to do"
    alarm = GaugeMetricFamily("edge_gateway_alarm", text, labels=["alarm"])
    for name in ALARMS:
        alarm.add_metric([name], name in reading.alarms)
    yield alarm
    text = "When a certificate of the OPC UA server or of a client ends, in Unix time"
    ends = GaugeMetricFamily("edge_gateway_certificate_end_seconds", text, labels=["certificate"])
    for name, at_s in reading.certificate_ends_s.items():
        ends.add_metric([name], at_s)
    yield ends
    counts = reading.amendments
    text = "Amendments that wait for the daemon's disk"
    yield GaugeMetricFamily("edge_gateway_amendments_waiting", text, reading.amendments_waiting)
    text = "Amendments by what became of them: on the daemon's disk, refused for ever, dropped because too many waited"
    amendments = CounterMetricFamily("edge_gateway_amendments", text, labels=["fate"])
    for fate in ("recorded", "refused", "dropped"):
        amendments.add_metric([fate], getattr(counts, fate))
    yield amendments
    text = "Attempts to tell an amendment after the first"
    yield CounterMetricFamily("edge_gateway_amendment_retries", text, counts.retried)
    yield CounterMetricFamily(
        "edge_gateway_malformed", "Messages of the daemon that nobody can read", reading.malformed
    )
    text = "Results that the OPC UA server could not show in time"
    yield CounterMetricFamily("edge_gateway_opcua_dropped", text, reading.opcua_dropped)
