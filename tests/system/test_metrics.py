"""What Prometheus reads of a running daemon, and whether dashboards and alerts hang on what is really there."""

import asyncio
import json
import math
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asyncua.crypto.cert_gen import setup_self_signed_certificate
from cryptography.x509.oid import ExtendedKeyUsageOID
from prometheus_client.parser import text_string_to_metric_families

from tests.daemon import DaemonProcess, free_ports, receive
from tests.gateway_kit import GatewayProcess
from tests.system.conftest import SmallLine

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy/grafana/edge-daemon.json"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
ALERT_TESTS = ROOT / "tests/system/alerts_test.yml"

CONFIG = """
line = "line-7"
[metrics]
listen = "127.0.0.1:{port}"
[cameras.top]
kind = "folder"
path = "{pictures}"
loop = true
[stations.st1]
deadline_ms = 20000
views = [{{ camera = "top", recipe = "{recipe}" }}]
[cameras.side]
kind = "simulated"
product = "flange"
[stations.without-recipe]
views = [{{ camera = "side", recipe = "none" }}]
"""

Page = dict[str, dict[frozenset[tuple[str, str]], float]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, small_line: SmallLine) -> Page:
    """Metrics after some parts, one of them not decidable and one missed, until all are accounted for."""
    (port,) = free_ports(1)
    text = CONFIG.format(port=port, pictures=small_line.test / "test", recipe=small_line.recipe)
    folder = tmp_path_factory.mktemp("metrics")

    def ready(status: dict[str, Any]) -> bool:
        stations = status["stations"]
        return bool(stations["st1"]["trigger_ready"] and stations["without-recipe"]["cameras"][0]["connected"])

    with DaemonProcess(folder, text, ready) as daemon, daemon.subscriber() as results, daemon.triggers() as triggers:
        for index in range(6):
            assert triggers.trigger("st1", f"t{index}").accepted
            receive(results, 1)
        triggers.trigger("st1", "other", job="another-product")
        with daemon.control() as control:
            control.request("drain", {"station": "st1"})
            assert not triggers.trigger("st1", "missed").accepted
            receive(results, 2)
        return read(port)


@pytest.fixture(scope="module")
def gateway_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Of a gateway in a process of its own, that hears no daemon and no PLC, with all that it can be configured to."""
    port, opcua = free_ports(2)
    folder = tmp_path_factory.mktemp("gateway")
    own, key = folder / "own.der", folder / "own.pem"
    use = [ExtendedKeyUsageOID.SERVER_AUTH]
    asyncio.run(setup_self_signed_certificate(key, own, "urn:gateway", "localhost", use, {"commonName": "gateway"}))
    served = (
        f'[opcua]\nendpoint = "opc.tcp://127.0.0.1:{opcua}"\ncertificate = "{own}"\nprivate_key = "{key}"\n'
        f'viewers = ["{own}"]\n'
    )
    nobody = dict(zip(("results", "status", "triggers", "amendments"), map(_at, free_ports(4)), strict=True))
    with GatewayProcess(folder, nobody, "window_ms = 500", f"{served}[metrics]\nport = {port}"):
        return read(port)


def _at(port: int) -> str:
    return f"tcp://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def both(page: Page, gateway_page: Page) -> Page:
    return page | gateway_page


def read(port: int) -> Page:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    return parsed(text)


def parsed(text: str) -> Page:
    found: Page = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def value(page: Page, name: str, **labels: str) -> float:
    """The sum over all samples that have these labels."""
    return sum(v for own, v in page[name].items() if set(labels.items()) <= own)


def test_the_invariant_is_exported_with_its_parts(page: Page) -> None:
    assert value(page, "edge_accepted_total", station="st1") == 8
    assert value(page, "edge_outcomes_total", station="st1") == 8
    assert value(page, "edge_in_flight", station="st1") == 0
    assert set(page["edge_invariant_ok"].values()) == {1}
    assert value(page, "edge_outcomes_total", outcome="missed", reason="stopped") == 1
    assert value(page, "edge_outcomes_total", outcome="not_decidable", reason="job_mismatch") == 1
    assert value(page, "edge_outcomes_total", outcome="failed") == 0
    assert value(page, "edge_outcomes_total", outcome="ok") + value(page, "edge_outcomes_total", outcome="not_ok") == 6


def test_times_and_scores_are_exported_as_distributions(page: Page) -> None:
    assert value(page, "edge_inspection_seconds_count", station="st1") == 8
    assert value(page, "edge_inspection_seconds_bucket", station="st1", le="+Inf") == 8
    for stage in ("prepare", "model", "search", "record", "out"):
        assert value(page, "edge_stage_seconds_count", stage=stage) >= 1
    assert value(page, "edge_score_ratio_count", station="st1", view="top") == 6
    assert value(page, "edge_score_ratio_bucket", le="1.0") == value(page, "edge_outcomes_total", outcome="ok")


def test_who_watches_learns_what_runs_and_how_it_stands(page: Page) -> None:
    assert value(page, "edge_station_state", station="st1", state="Halted") == 1
    assert value(page, "edge_trigger_ready", station="st1") == 0
    assert value(page, "edge_alarm", station="without-recipe", alarm="recipes") == 1
    assert value(page, "edge_camera_connected", station="st1", camera="top") == 1
    assert value(page, "edge_recipe_info", station="st1", view="top", recipe="flange@1") == 1
    assert value(page, "edge_provider_info", provider="CPUExecutionProvider") == 1
    assert value(page, "edge_last_seq", station="st1") == 8
    assert value(page, "edge_inspection_passes_total") >= 6
    assert value(page, "edge_journal_failing") == 0
    assert next(iter(page["edge_info"])) >= {("line", "line-7")}


def test_no_label_names_a_part(page: Page) -> None:
    """A label with an id in it makes a new series for every part, and Prometheus dies of it within a week."""
    values = {v for samples in page.values() for labels in samples for _, v in labels}
    assert not {"t0", "t5", "other"} & values
    assert sum(map(len, page.values())) < 400


def test_a_gateway_says_how_it_stands_before_anybody_has_spoken(gateway_page: Page) -> None:
    assert value(gateway_page, "edge_gateway_plc_connected", station="st1") == 0
    assert value(gateway_page, "edge_gateway_trigger_ready", station="st1") == 0
    assert value(gateway_page, "edge_gateway_error", error="daemon_silent") == 1
    assert value(gateway_page, "edge_gateway_phase", phase="offline") == 1
    assert value(gateway_page, "edge_gateway_daemon_silence_seconds") == math.inf
    assert value(gateway_page, "edge_gateway_amendments_total", fate="dropped") == 0
    assert sum(map(len, gateway_page.values())) < 120


# -- dashboard and alerts ------------------------------------------------------------------------------


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of every query of the dashboard and every alert."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]
    rules = re.findall(r"- alert: (\S+)\n\s+expr: (?:>-\n)?((?:.|\n)*?)\n\s+(?:for|labels):", ALERTS.read_text())
    for name, expression in rules:
        yield f"alert {name}", " ".join(expression.split())


def test_the_documentation_names_every_metric_and_no_other(both: Page) -> None:
    page = both
    suffixes = r"_(bucket|count|sum|created)$"
    exported = {re.sub(suffixes, "", name) if name + "_sum" not in page else name for name in page}
    told = set(re.findall(r"`(edge_\w+)`", (ROOT / "deploy/docs/service.md").read_text()))
    assert {name for name in exported if name.startswith("edge_")} == told


def test_the_dashboard_can_be_read() -> None:
    """Lines of two PCs, or of two stations of one, do not bear the same name; tables show columns, not a series."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            grouped = re.search(r"by \(([^)]*)\)", target["expr"])
            if panel["type"] == "table":
                assert (target["format"], target["instant"]) == ("table", True), panel["title"]
            elif grouped is not None and panel["type"] != "heatmap":
                named = re.findall(r"{{(\w+)}}", target["legendFormat"])
                assert set(named) == set(grouped[1].split(", ")) - {"le"}, (panel["title"], named)


def test_there_are_queries_to_look_at() -> None:
    found = [where for where, _ in expressions()]
    assert sum(where.startswith("alert") for where in found) == ALERTS.read_text().count("- alert:") >= 8
    assert sum(where.startswith("panel") for where in found) >= 12


@pytest.mark.parametrize(("where", "expression"), [pytest.param(w, e, id=w) for w, e in expressions()])
def test_every_query_asks_for_names_and_labels_that_exist(both: Page, where: str, expression: str) -> None:
    page = both
    names = set(re.findall(r"\bedge_\w+", expression))
    assert names or "up{" in expression, where
    assert names <= set(page), f"{where}: {names - set(page)}"
    labels = {label for name in names for own in page[name] for label, _ in own} | {"instance", "job", "line"}
    selectors = re.findall(r"\{([^}]*)\}", expression)
    asked = {label for text in selectors for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", text)}
    grouped = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expression)
    asked |= {label.strip() for text in grouped for label in text.split(",") if label.strip()}
    assert asked <= labels, f"{where}: {asked - labels}"


def test_every_value_of_a_label_that_is_asked_for_is_one_that_exists(both: Page) -> None:
    values = {pair for samples in both.values() for labels in samples for pair in labels}
    free = {"instance", "job", "line", "station", "alarm", "le", "quantile"}
    for where, expression in expressions():
        for label, operator, wanted in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', expression):
            for word in wanted.split("|"):
                assert label in free or word.startswith("$") or (label, word) in values, f"{where}: {label}={word}"
            assert operator


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
@pytest.mark.parametrize(
    "command", [["check", "rules", str(ALERTS)], ["test", "rules", str(ALERT_TESTS)]], ids=" ".join
)
def test_prometheus_takes_the_rules_and_they_fire_when_they_should(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
