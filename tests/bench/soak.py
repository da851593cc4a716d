"""An hour of a line under load: does anything grow, and does every part stay accounted for? One JSON object, a plot.

Two stations, one triggered by a PLC through the real gateway, one running free; an MES, a console, Prometheus, a
product that is changed every minute, and clients that come and go. Every five seconds the memory, descriptors, sockets
and threads of daemon and gateway and the size of the journal are read, and the invariant is held against the daemon's
counters. The first half of the time is a warm-up, in which everything of bounded size fills; through what comes after
it goes a straight line, and its slope has a confidence interval (`tests.bench.trend`). Something grows when that lies
above zero and reaches the smallest leak that matters.

Exit status 1 when something grows, when the daemon is larger than 300 MB and 1.2 times its banks (pictures of folder
cameras aside), when the invariant was ever broken, a result lost, a part passed wrongly, or the journal is not sound.

    make soak SOAK_ARGS="--minutes 60"
    make soak SOAK_ARGS="--recipe bottle.recipe --images good/"      a real recipe, its pictures in turn
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zmq

from edge_daemon.artefact.pictures import find_pictures, read_picture
from edge_daemon.artefact.recipe import load_recipe
from edge_daemon.artefact.store import Store
from edge_daemon.edges.journal_chain import verify
from edge_daemon.gateway.words import Verdict
from edge_daemon.simulation.render import Scene
from export.build import RecipeRequest, build_recipe
from tests.bench.soak_load import Belt, Console, Mes, Product, Prometheus, Visitor, Work, balance, passes, settled
from tests.bench.trend import trend
from tests.daemon import DaemonProcess, free_ports
from tests.gateway_kit import GatewayProcess
from tests.plc import Conveyor, ConveyorSettings
from tests.system.conftest import no_progress, write_parts

SIZE: Final = (128, 128)
SAMPLE_S: Final = 5.0
# Records are removed every ten minutes, and each of the first three times SQLite's caches are filled a little further.
WARM_UP_SHARE: Final = 1 / 2
# The journal remembers its last 8,192 outcomes; by then everything else that fills has been full for long.
WARM_UP_PARTS: Final = 8_500
ALLOWED_BASE_MB, ALLOWED_PER_BANK = 300, 1.2
# Old records are removed every ten minutes: until then the journal may pass its limit, and by SQLite's own log.
JOURNAL_MB, SWEEP_S, LOG_MB, RECORD_MB = 10.0, 600.0, 10.0, 0.004
# What would matter in an hour. Of memory one empty dict a part, of what is counted one for every hundred visits.
LEAK_BYTES_A_PART, LEAK_COUNT, LEAK_JOURNAL_MB = 64, 10.0, 20.0
END_S: Final = 60.0

CONFIG: Final = """
line = "soak"
[metrics]
listen = "127.0.0.1:{metrics}"
[journal]
commit_budget_ms = 2000
max_gb = {journal_gb}
[cameras.top]
{top}
[cameras.side]
{side}
rate_hz = {rate_hz}
[stations.st1]
deadline_ms = 2000
idle_check_s = 0.5
views = [{{ camera = "top", recipe = {recipe} }}]
[stations.st1.images]
publish = "always"
[stations.st2]
trigger = "free_run"
deadline_ms = 2000
views = [{{ camera = "side", recipe = {recipe} }}]
"""
SIMULATED: Final = 'kind = "simulated"\nproduct = "flange"\nseed = {seed}\ndefect_rate = 0.1\nsize = [128, 128]'
FOLDER: Final = 'kind = "folder"\npath = {images}\nloop = true\npreload = true'
GATEWAY: Final = """
answer_ms = 800
window_ms = 1800
commissioning = true
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for. recipe, images: None for a small recipe of its own; rates in parts a second."""

    minutes: float
    recipe: Path | None
    images: Path | None
    out: Path
    triggered_hz: float
    free_run_hz: float
    change_s: float

    @property
    def conveyor(self) -> ConveyorSettings:
        return ConveyorSettings(
            pace_s=1 / self.triggered_hz, to_gate_s=2.5, heartbeat_s=2.0, pass_word=Verdict.COMMISSIONING_OK
        )


@dataclass(frozen=True, slots=True)
class Process:
    """What a process holds now; a megabyte is 10⁶ bytes."""

    rss_mb: float
    descriptors: int
    sockets: int
    threads: int

    @classmethod
    def now(cls, pid: int) -> "Process":
        entry = Path(f"/proc/{pid}")
        rss = next(line for line in (entry / "status").read_text().splitlines() if line.startswith("VmRSS:"))
        targets = [_target(descriptor) for descriptor in (entry / "fd").iterdir()]
        sockets = sum(target.startswith("socket:") for target in targets)
        threads = len(list((entry / "task").iterdir()))
        return cls(int(rss.split()[1]) * 1024 / 1e6, len(targets), sockets, threads)


def _target(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except OSError:
        return ""  # closed meanwhile


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at everything. unbalanced: by how much the invariant was off, over all stations."""

    at_s: float
    accepted: int
    unbalanced: int
    journal_mb: float
    daemon: Process
    gateway: Process


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--recipe", type=Path, help="default: a small one of simulated parts")
    parser.add_argument("--images", type=Path, help="pictures for it")
    parser.add_argument("--out", type=Path, default=Path("out/soak"), help="folder of soak.json, soak.png and samples")
    parser.add_argument("--triggered-hz", type=float, default=8.0, help="parts a second of the station with a PLC")
    parser.add_argument("--free-run-hz", type=float, default=8.0, help="pictures a second of the other")
    parser.add_argument("--change-s", type=float, default=60.0, help="between two changes of the product")
    arguments = parser.parse_args()
    if (arguments.recipe is None) != (arguments.images is None):
        parser.error("--recipe and --images go together")
    plan = Plan(**vars(arguments))
    plan.out.mkdir(parents=True, exist_ok=True)
    figures = soak(plan)
    (plan.out / "soak.json").write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures, indent=1))
    return 0 if figures["passed"] else 1


def soak(plan: Plan) -> dict[str, Any]:
    """Runs the line for that long and tells what was seen."""
    with tempfile.TemporaryDirectory(prefix="edge-soak-") as name:
        folder = Path(name)
        recipe = (plan.recipe or small_recipe(folder)).absolute()
        metrics = free_ports(1)[0]
        daemon = DaemonProcess(folder / "daemon", config(plan, recipe, metrics))
        versions = two_versions(folder, Store(daemon.folder / "state" / "store"), recipe)
        with daemon, GatewayProcess(folder / "gateway", daemon.endpoints, GATEWAY) as gateway:
            samples, end = under_load(plan, daemon, gateway, metrics, versions)
        end["journal_problems"] = list(verify(daemon.folder / "state" / "journal.sqlite").problems)
        end["bank_mb"] = 2 * load_recipe(recipe).bank.nbytes / 1e6  # before and after a change
    end["preloaded_mb"] = (
        2 * sum(read_picture(p).nbytes for p in find_pictures(plan.images)) / 1e6 if plan.images else 0
    )
    figures = summary(plan, samples, end)
    plot(samples, figures, plan.out / "soak.png")
    return figures


def config(plan: Plan, recipe: Path, metrics: int) -> str:
    """The daemon's; `metrics` is a port."""
    if plan.images is not None:
        top = side = FOLDER.format(images=json.dumps(str(plan.images.absolute())))
    else:
        top, side = SIMULATED.format(seed=5), SIMULATED.format(seed=6)
    return CONFIG.format(
        metrics=metrics,
        journal_gb=JOURNAL_MB / 1e3,
        top=top,
        side=side,
        rate_hz=plan.free_run_hz,
        recipe=json.dumps(str(recipe)),
    )


def small_recipe(folder: Path) -> Path:
    """Of simulated flanges."""
    write_parts(folder / "good", Scene("flange", SIZE), 0, 40, {})
    out = folder / "flange.recipe"
    created = "2026-01-01T00:00:00Z"
    request = RecipeRequest("flange", folder / "good", out, created, "1", size=SIZE, coreset_ratio=0.05)
    build_recipe(request, no_progress)
    return out


def two_versions(folder: Path, store: Store, recipe: Path) -> tuple[str, str]:
    """Both in the store, by name: the recipe, and the same with another threshold."""
    other = folder / "other.recipe"
    command = ["threshold", "--recipe", str(recipe), "--out", str(other), "--false-reject-rate", "0.2"]
    subprocess.run([sys.executable, "-m", "export.cli", *command, "--label", "soak"], check=True, capture_output=True)
    stored = [store.add(path) for path in (recipe, other)]
    return f"{stored[0].name}@{stored[0].digest}", f"{stored[1].name}@{stored[1].digest}"


def under_load(
    plan: Plan, daemon: DaemonProcess, gateway: GatewayProcess, metrics: int, versions: tuple[str, str]
) -> tuple[list[Sample], dict[str, Any]]:
    """The samples, and what the others have seen at the end, when nothing is under way any more."""
    with ExitStack() as to_the_end:
        mes = Mes(to_the_end.enter_context(daemon.subscriber()), "st1")
        hearing = to_the_end.enter_context(Work("mes", mes.step))
        conveyor = Conveyor(gateway.port, plan.conveyor)
        with ExitStack() as stack:
            console = Console(stack.enter_context(zmq.Context()), daemon.endpoints)
            stack.callback(console.close)
            prometheus, visitor = Prometheus(metrics), Visitor(daemon.endpoints)
            product = Product(stack.enter_context(daemon.control()), "st1", versions)
            works = [
                Belt(conveyor),
                Work("console", console.step),
                Work("prometheus", prometheus.step, 1.0),
                Work("visitor", visitor.step, 3.0),
                Work("product", product.step, plan.change_s),
            ]
            for work in works:
                stack.enter_context(work)
            samples = watch(plan, daemon, gateway, [hearing, *works])
        with daemon.control() as control:
            control.request("drain")
        stations = settled(daemon.status, mes, END_S)
    counters = {name: station["counters"] for name, station in stations.items()}
    end: dict[str, Any] = {
        "counters": counters,
        "invariant_at_the_end": not any(balance(of) for of in counters.values()),
        "results_missed": mes.missed,
        "plc": passes(conveyor.parts, mes.verdicts),
        "scrapes": prometheus.scrapes,
        "visits": visitor.visits,
        "product_changes": product.changes,
        "console_messages": console.messages,
    }
    return samples, end


def watch(plan: Plan, daemon: DaemonProcess, gateway: GatewayProcess, works: list[Work]) -> list[Sample]:
    """A sample every five seconds, each written at once: nothing is lost with a run that is broken off."""
    assert daemon.process is not None
    assert gateway.process is not None
    started_s = time.monotonic()
    samples: list[Sample] = []
    with daemon.control() as control, (plan.out / "samples.jsonl").open("w", buffering=1) as log:
        while (at_s := time.monotonic() - started_s) < 60 * plan.minutes:
            for work in works:
                work.check()
            stations = control.request("status")["stations"].values()
            sample = Sample(
                at_s=round(at_s, 3),
                accepted=sum(station["counters"]["accepted"] for station in stations),
                unbalanced=sum(abs(balance(station["counters"])) for station in stations),
                journal_mb=sum(file.stat().st_size for file in (daemon.folder / "state").glob("journal.sqlite*")) / 1e6,
                daemon=Process.now(daemon.process.pid),
                gateway=Process.now(gateway.process.pid),
            )
            samples.append(sample)
            log.write(json.dumps(asdict(sample)) + "\n")
            time.sleep(max(0.0, SAMPLE_S * len(samples) - (time.monotonic() - started_s)))
    return samples


def summary(plan: Plan, samples: list[Sample], end: dict[str, Any]) -> dict[str, Any]:
    """One object with everything, `passed` at its end."""
    counted = [sample for sample in samples if sample.at_s >= WARM_UP_SHARE * 60 * plan.minutes]
    hours = (counted[-1].at_s - counted[0].at_s) / 3600 if len(counted) > 1 else 0.0
    parts_an_hour = (counted[-1].accepted - counted[0].accepted) / hours if hours else 0.0
    leaks = {"rss_mb": LEAK_BYTES_A_PART * parts_an_hour / 1e6, "journal_mb": LEAK_JOURNAL_MB}
    trends = {}
    for name in columns(samples[0]):
        values = [columns(sample)[name] for sample in counted]
        found = trend([sample.at_s for sample in counted], values)
        leak = leaks.get(name.split(".")[-1], LEAK_COUNT)
        trends[name] = {
            "first": values[0],
            "largest": max(values),
            "per_hour": round(found.per_hour, 3),
            "interval": [told(found.low), told(found.high)],
            "independent_readings": round(found.independent, 1),
            "smallest_leak_per_hour": round(leak, 2),
            "verdict": found.verdict(leak),
        }
    rate_hz = plan.triggered_hz + plan.free_run_hz
    allowed_mb = ALLOWED_BASE_MB + ALLOWED_PER_BANK * end["bank_mb"] + end["preloaded_mb"]
    checks = {
        "nothing_grows": all(of["verdict"] != "grows" for of in trends.values()),
        "warmed_up": counted[0].accepted >= WARM_UP_PARTS,
        "small_enough": max(sample.daemon.rss_mb for sample in samples) <= allowed_mb,
        "journal_within_its_limit": max(s.journal_mb for s in samples)
        <= JOURNAL_MB + LOG_MB + SWEEP_S * rate_hz * RECORD_MB,
        "invariant_always": not any(sample.unbalanced for sample in samples) and end["invariant_at_the_end"],
        "no_result_missed": end["results_missed"] == 0,
        "no_wrong_pass": end["plc"]["wrong_passes"] == 0,
        "every_acknowledged_part_has_its_record": end["plc"]["acknowledged_without_record"] == 0,
        "journal_sound": not end["journal_problems"],
    }
    return {
        "minutes": plan.minutes,
        "samples": len(samples),
        "warm_up_parts": counted[0].accepted,
        "parts": samples[-1].accepted,
        "parts_an_hour": round(parts_an_hour),
        "allowed_mb": round(allowed_mb, 1),
        "trends": trends,
        **end,
        "checks": checks,
        "passed": all(checks.values()),
    }


def told(bound: float) -> float | None:
    """None for an interval without end: JSON has no infinity."""
    return round(bound, 3) if np.isfinite(bound) else None


def columns(sample: Sample) -> dict[str, float]:
    """What must not grow, by name."""
    found: dict[str, float] = {"journal_mb": sample.journal_mb}
    for name, process in (("daemon", sample.daemon), ("gateway", sample.gateway)):
        found |= {f"{name}.{key}": float(value) for key, value in asdict(process).items()}
    return found


def plot(samples: list[Sample], figures: dict[str, Any], path: Path) -> None:
    """One page: what was read, and the warm-up."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(columns(samples[0]))
    minutes = [sample.at_s / 60 for sample in samples]
    figure, axes = pyplot.subplots(3, 3, figsize=(15, 9), sharex=True)
    for axis, name in zip(axes.flat, names, strict=True):
        of = figures["trends"][name]
        axis.plot(minutes, [columns(sample)[name] for sample in samples], linewidth=0.8)
        axis.axvspan(0, WARM_UP_SHARE * figures["minutes"], color="0.9")
        axis.set_ylim(bottom=0)
        axis.set_title(f"{name}: {of['per_hour']:+.2f} an hour, 95%: {of['interval']}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("minutes")
    figure.suptitle(f"{figures['parts']} parts; {figures['visits']} visits; passed: {figures['passed']}")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
