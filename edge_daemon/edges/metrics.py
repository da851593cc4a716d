"""What the daemon measures, in the words of Prometheus. Names and labels are a contract: dashboards and alarms of
plants hang on them (deploy/grafana, deploy/prometheus; a test holds these to what is made here).

Everything is read from what `status` holds; nothing here is counted on the way of a part. Labels have few values: names
of the configuration, reasons and states of the vocabulary, never an id of a part.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from edge_daemon.core.decision import Bucket, Reason
from edge_daemon.core.histogram import Distribution
from edge_daemon.core.states import State

Families = Iterator[Metric]

_EXPECTED: Final[Mapping[str, tuple[Reason, ...]]] = {
    Bucket.OK: (Reason.NONE,),
    Bucket.NOT_OK: (Reason.NONE,),
    Bucket.NOT_DECIDABLE: (Reason.BETWEEN_THRESHOLDS, Reason.JOB_MISMATCH),
    Bucket.FAILED: (Reason.LATE, Reason.NO_FRAME, Reason.CAMERA, Reason.ENGINE, Reason.JOURNAL, Reason.RESTARTED),
    Bucket.MISSED: (Reason.MISSED_BUSY, Reason.MISSED_NOT_READY, Reason.MISSED_DUPLICATE, Reason.STOPPED),
}


@dataclass(frozen=True, slots=True)
class Reading:
    """The daemon at one moment.

    status: as `edge-ctl status` shows it; passes: what feeds the watchdog; stages, latencies, scores: distributions by
    stage, by station (seconds), and by station and view (score divided by threshold)
    """

    status: Mapping[str, Any]
    passes: int
    stages: Mapping[str, Distribution]
    latencies: Mapping[str, Distribution]
    scores: Mapping[tuple[str, str], Distribution]


def exposition(reading: Reading) -> bytes:
    """The page that Prometheus reads (text format 0.0.4)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Read(reading))
    return generate_latest(registry)


class _Read(Collector):
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Families:
        status = self._reading.status
        yield from _daemon(status, self._reading.passes)
        yield from _invariant(status["stations"])
        yield from _stations(status["stations"])
        yield from _cameras(status["stations"])
        yield from _distributions(self._reading)
        yield from _journal(status)
        yield from _queues(status)
        yield from _network(status)


def _daemon(status: Mapping[str, Any], passes: int) -> Families:
    info = {name: str(status[name]) for name in ("line", "boot_id", "software", "config_digest")}
    yield InfoMetricFamily("edge", "Which daemon this is", info)
    yield GaugeMetricFamily("edge_boot_number", "Number of this boot; it grows with every start", status["boot"])
    uptime_ms = max((station["uptime_ms"] for station in status["stations"].values()), default=0.0)
    yield GaugeMetricFamily("edge_uptime_seconds", "Since the start of the daemon", uptime_ms / 1e3)
    text = "What has come all the way through the inspection, golden samples included: it feeds the watchdog"
    yield CounterMetricFamily("edge_inspection_passes", text, passes)


def _invariant(stations: Mapping[str, Any]) -> Families:
    """accepted = ok + not_ok + not_decidable + failed + missed + in_flight, of one moment under one lock."""
    accepted = CounterMetricFamily("edge_accepted", "Triggers of this boot, missed ones included", labels=["station"])
    text = "Triggers of this boot by what became of them; the outcomes are disjoint"
    outcomes = CounterMetricFamily("edge_outcomes", text, labels=["station", "outcome", "reason"])
    in_flight = GaugeMetricFamily("edge_in_flight", "Triggers without a published outcome", labels=["station"])
    text = "1 while accepted = ok + not_ok + not_decidable + failed + missed + in_flight"
    holds = GaugeMetricFamily("edge_invariant_ok", text, labels=["station"])
    for name, station in stations.items():
        counters = dict(station["counters"])
        accepted.add_metric([name], counters.pop("accepted"))
        in_flight.add_metric([name], counters.pop("in_flight"))
        reasons: Mapping[str, dict[str, int]] = station["details"]["outcomes"]
        for outcome in counters:
            # Those that are waited for begin at zero, so that the first one shows as a change.
            by_reason = {reason.value: 0 for reason in _EXPECTED[outcome]} | reasons.get(outcome, {})
            for reason, count in by_reason.items():
                outcomes.add_metric([name, outcome, reason or "none"], count)
        sums_agree = all(sum(reasons.get(outcome, {}).values()) == count for outcome, count in counters.items())
        balanced = station["counters"]["accepted"] == sum(counters.values()) + station["counters"]["in_flight"]
        holds.add_metric([name], balanced and sums_agree)
    yield from (accepted, outcomes, in_flight, holds)


def _stations(stations: Mapping[str, Any]) -> Families:
    ready = GaugeMetricFamily("edge_trigger_ready", "1 while a trigger would be accepted", labels=["station"])
    state = GaugeMetricFamily("edge_station_state", "1 for the state that it is in", labels=["station", "state"])
    alarm = GaugeMetricFamily("edge_alarm", "1 for each alarm that stands", labels=["station", "alarm"])
    mode = GaugeMetricFamily("edge_mode", "1 for the mode that it is in", labels=["station", "mode"])
    labels = ["station", "view", "recipe", "recipe_set", "engine"]
    recipe = GaugeMetricFamily("edge_recipe_info", "1 for the recipe of each view", labels=labels)
    provider = GaugeMetricFamily("edge_provider_info", "1 for what really computes", labels=["station", "provider"])
    text = "Since a golden sample last came out right"
    golden = GaugeMetricFamily("edge_golden_age_seconds", text, labels=["station", "view"])
    last = GaugeMetricFamily("edge_last_seq", "Number of the last result of this boot", labels=["station"])
    text = "Judgements that came when the outcome was settled already"
    second = CounterMetricFamily("edge_second_outcomes", text, labels=["station"])
    for name, station in stations.items():
        details = station["details"]
        ready.add_metric([name], station["trigger_ready"])
        for known in State:
            state.add_metric([name, known.value], station["state"] == known.value)
        for key in sorted({text.partition(": ")[0] for text in station["alarms"]}):
            alarm.add_metric([name, key], 1)
        mode.add_metric([name, station["mode"] or ""], 1)
        for view, told in details.get("recipes", {}).items():
            engine = details.get("search", {}).get(view, {}).get("engine", "")
            recipe.add_metric([name, view, told, station["recipe_set"], engine], 1)
        for computes in details.get("providers", ()):
            provider.add_metric([name, computes], 1)
        for view, age_s in details.get("golden_age_s", {}).items():
            golden.add_metric([name, view], age_s)
        last.add_metric([name], station["last_seq"])
        second.add_metric([name], details["second_outcomes"])
    yield from (ready, state, alarm, mode, recipe, provider, golden, last, second)


def _cameras(stations: Mapping[str, Any]) -> Families:
    labels = ["station", "camera"]
    connected = GaugeMetricFamily("edge_camera_connected", "1 while it is open and delivers", labels=labels)
    frames = CounterMetricFamily("edge_camera_frames", "Frames that arrived for a trigger", labels=labels)
    text = "Frames and golden samples that were inspected; stands still when nothing is"
    inspected = CounterMetricFamily("edge_camera_inspected", text, labels=labels)
    text = "Frames that nobody had asked for, never judged"
    untriggered = CounterMetricFamily("edge_camera_untriggered_frames", text, labels=labels)
    text = "What camera and driver count themselves, since they were opened"
    own = GaugeMetricFamily("edge_camera_counter", text, labels=[*labels, "counter"])
    for name, station in stations.items():
        details = station["details"]
        for camera in station["cameras"]:
            key = [name, camera["camera"]]
            connected.add_metric(key, camera["connected"])
            frames.add_metric(key, camera["frames"])
            inspected.add_metric(key, camera["inspected"])
            untriggered.add_metric(key, details["untriggered_frames"][camera["camera"]])
            for counter, value in details["camera_counters"][camera["camera"]].items():
                own.add_metric([*key, counter], value)
    yield from (connected, frames, inspected, untriggered, own)


def _distributions(reading: Reading) -> Families:
    text = "From trigger to published result"
    latency = HistogramMetricFamily("edge_inspection_seconds", text, labels=["station"])
    for name, of_station in reading.latencies.items():
        _add(latency, [name], of_station)
    text = "Stages of a frame: health, prepare, model, search, boxes, record, out (journal and publication)"
    stage = HistogramMetricFamily("edge_stage_seconds", text, labels=["stage"])
    for name, of_stage in reading.stages.items():
        _add(stage, [name], of_stage)
    text = "Score of a view divided by its threshold: OK up to 1; what is no number is beyond all buckets"
    score = HistogramMetricFamily("edge_score_ratio", text, labels=["station", "view"])
    for key, of_view in reading.scores.items():
        _add(score, list(key), of_view)
    yield from (latency, stage, score)


def _add(family: HistogramMetricFamily, labels: list[str], distribution: Distribution) -> None:
    buckets, below = [], 0
    for bound, count in zip((*distribution.bounds, math.inf), distribution.counts, strict=True):
        below += count
        buckets.append(("+Inf" if bound == math.inf else str(bound), float(below)))
    family.add_metric(labels, buckets, distribution.total)


def _journal(status: Mapping[str, Any]) -> Families:
    journal, records = status["journal"], status["records"]
    text = "1 while the journal does not take records: no trigger is accepted"
    yield GaugeMetricFamily("edge_journal_failing", text, bool(journal["failing"]))
    yield CounterMetricFamily("edge_journal_commits", "Commits that reached the disk", journal["commits"])
    text = "Commits that failed"
    yield CounterMetricFamily("edge_journal_commit_failures", text, journal["commit_failures"])
    text = "How long the last 1,024 commits took, disk included"
    commit = GaugeMetricFamily("edge_journal_commit_seconds", text, labels=["quantile"])
    commit.add_metric(["0.5"], journal["commit_p50_ms"] / 1e3)
    commit.add_metric(["0.99"], journal["commit_p99_ms"] / 1e3)
    yield commit
    text = "Withdrawn records that wait for the disk"
    yield GaugeMetricFamily("edge_journal_owed", text, journal["owed"])
    amendments = CounterMetricFamily("edge_amendments", "What the gateway told of verdicts and parts", labels=["kind"])
    amendments.add_metric(["delivery"], status["amendments"]["deliveries"])
    amendments.add_metric(["disposition"], status["amendments"]["dispositions"])
    yield amendments
    text = "Parts that may have passed although nothing released them"
    yield CounterMetricFamily("edge_passed_without_ok", text, status["amendments"]["passed_without_ok"])
    text = "Results that went out as failed because their record was not on the disk in time"
    yield CounterMetricFamily("edge_results_withdrawn", text, records["withdrawn"])


def _queues(status: Mapping[str, Any]) -> Families:
    length = GaugeMetricFamily("edge_queue_length", "What waits, by queue", labels=["queue"])
    length.add_metric(["journal"], status["journal"]["queued"])
    length.add_metric(["records"], status["records"]["waiting"])
    length.add_metric(["archive"], status["archive"]["waiting"])
    for server, stats in status["requests"].items():
        length.add_metric([f"{server}_requests"], stats["outstanding"])
    for name, station in status["stations"].items():
        length.add_metric([f"triggers {name}"], station["details"]["open"])
    yield length
    publisher, archive = status["publisher"], status["archive"]
    text = "What was not passed on, by cause. Results lost to a slow reader are in the journal, and replay gives them"
    dropped = CounterMetricFamily("edge_dropped", text, labels=["what", "cause"])
    for channel in ("results", "images", "status"):
        dropped.add_metric([channel, "queue_full"], publisher[channel]["not_taken"])
        dropped.add_metric([channel, "slow_reader"], publisher[channel]["overruns"])
    dropped.add_metric(["pictures", "queue_full"], status["pictures_dropped"])
    dropped.add_metric(["archive", "queue_full"], archive["dropped"])
    dropped.add_metric(["archive", "no_space"], archive["no_space"])
    dropped.add_metric(["archive", "failed"], archive["failed"])
    yield dropped


def _network(status: Mapping[str, Any]) -> Families:
    readers = GaugeMetricFamily("edge_subscriptions", "Subscriptions in force", labels=["channel"])
    for channel in ("results", "images", "status"):
        readers.add_metric([channel], status["publisher"][channel]["subscriptions"])
    yield readers
    asked = CounterMetricFamily("edge_requests", "Requests that came", labels=["server"])
    refused = CounterMetricFamily("edge_requests_refused", "Requests refused, by cause", labels=["server", "cause"])
    for server, stats in status["requests"].items():
        asked.add_metric([server], stats["requests"])
        for cause in ("malformed", "refused_busy", "refused_too_fast", "refused_forbidden", "thrown_away", "failed"):
            refused.add_metric([server, cause.removeprefix("refused_")], stats[cause])
    yield from (asked, refused)
    security = status["security"]
    text = "Connections of strangers, refused at the handshake"
    yield CounterMetricFamily("edge_refused_handshakes", text, security["refused_handshakes"])
    text = "1 while commands cannot be written to the audit trail"
    yield GaugeMetricFamily("edge_audit_failing", text, bool(security["audit_failing"]))
