"""A picture that cannot be judged, through the whole line: not decidable, an alarm, and the next part is judged."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edge_daemon.artefact.manifest import HEALTH_FEATURE
from edge_daemon.artefact.pictures import encode_png
from edge_daemon.artefact.recipe import load_recipe
from edge_daemon.client import Subscriber, TriggerClient
from edge_daemon.wire.messages import Inspection
from tests.daemon import DaemonProcess, receive
from tests.system.conftest import SIZE, SmallLine

CAMERA = """
line = "test"
[cameras.top]
kind = "simulated"
product = "flange"
size = [{width}, {height}]
seed = 5
first_index = 4000
faults = [{faults}]
[stations.st1]
deadline_ms = 20000
views = [{{ camera = "top", recipe = "{recipe}" }}]
"""


@contextmanager
def line(folder: Path, recipe: Path, faults: str) -> Iterator[tuple[DaemonProcess, Subscriber, TriggerClient]]:
    config = CAMERA.format(width=SIZE[0], height=SIZE[1], faults=faults, recipe=recipe)
    with DaemonProcess(folder, config) as daemon, daemon.subscriber() as results, daemon.triggers() as triggers:
        yield daemon, results, triggers


def judge(results: Subscriber, triggers: TriggerClient, name: str) -> Inspection:
    assert triggers.trigger("st1", name).accepted
    (found,) = receive(results, 1)
    return found


def alarms(daemon: DaemonProcess) -> list[str]:
    return [text for text in daemon.status()["stations"]["st1"]["alarms"] if text.startswith("health")]


def test_a_black_frame_is_not_decidable_with_an_alarm_and_the_next_part_is_judged(
    tmp_path: Path, small_line: SmallLine
) -> None:
    with line(tmp_path, small_line.recipe, '{ trigger = 2, action = "black" }') as (daemon, results, triggers):
        good = judge(results, triggers, "1")
        assert (good.evaluation, good.reason) == ("OK", "")
        assert {"brightness", "sharpness_x", "shift_x_px"} <= good.views[0].health.keys()
        assert alarms(daemon) == []

        black = judge(results, triggers, "2")
        assert (black.evaluation, black.result_state, black.reason) == ("NotDecidable", "Completed", "health_black")
        assert (black.views[0].evaluation, black.views[0].reason) == ("NotDecidable", "health_black")
        assert black.views[0].health["brightness"] == 0
        assert black.views[0].score is None
        (alarm,) = alarms(daemon)
        assert "health_black" in alarm
        status = daemon.status()["stations"]["st1"]
        assert status["trigger_ready"], "only the next trigger can show a healthy picture"
        assert status["counters"]["not_decidable"] == 1

        assert judge(results, triggers, "3").evaluation == "OK"
        assert alarms(daemon) == []


@pytest.mark.parametrize(
    ("action", "reason"),
    [("blur", "health_blur"), ("shift", "health_shift"), ("dark", "health_underexposed"), ("repeat", "health_frozen")],
)
def test_a_scripted_fault_of_the_picture_is_not_decidable_with_its_own_reason(
    tmp_path: Path, small_line: SmallLine, action: str, reason: str
) -> None:
    fault = f'{{ trigger = 2, action = "{action}" }}'
    with line(tmp_path, small_line.recipe, fault) as (_, results, triggers):
        assert judge(results, triggers, "1").evaluation == "OK"
        found = judge(results, triggers, "2")
        assert (found.evaluation, found.reason) == ("NotDecidable", reason)
        assert judge(results, triggers, "3").evaluation == "OK"


def test_a_replay_may_show_the_same_picture_twice(tmp_path: Path, small_line: SmallLine) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("1.png", "2.png"):
        (pictures / name).write_bytes((small_line.test / "test" / "good" / "000.png").read_bytes())
    config = CAMERA.format(width=1, height=1, faults="", recipe=small_line.recipe)
    head, _, tail = config.partition('kind = "simulated"')
    replay = f'{head}kind = "folder"\npath = "{pictures}"\n[stations.st1]{tail.split("[stations.st1]")[1]}'
    with (
        DaemonProcess(tmp_path / "line", replay) as daemon,
        daemon.subscriber() as results,
        daemon.triggers() as triggers,
    ):
        assert [judge(results, triggers, name).evaluation for name in ("1", "2")] == ["OK", "OK"]


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_tries_relearns_and_removes_health_limits(tmp_path: Path, small_line: SmallLine) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(small_line.test / "test" / "good" / "001.png", pictures / "good.png")
    dark = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    (pictures / "dark.png").write_bytes(encode_png(dark))
    tried = json.loads(export("health", "--recipe", small_line.recipe, "--images", pictures, "--json").stdout)
    assert [(e["picture"], e["reason"]) for e in tried["refused"]] == [("dark.png", "health_black"), ("good.png", "")]

    evaluated = json.loads(
        export("evaluate", "--recipe", small_line.recipe, "--data", pictures, "--json", "--scores").stdout
    )
    assert evaluated["unhealthy"] == 1
    assert [s["evaluation"] for s in evaluated["scores"]] == ["NotDecidable", "OK"]

    again, without = tmp_path / "again.recipe", tmp_path / "without.recipe"
    done = export("health", "--recipe", small_line.recipe, "--images", small_line.train, "--out", again, "--json")
    assert done.returncode == 0, done.stderr
    assert load_recipe(again).manifest.health is not None
    assert export("health", "--recipe", again, "--none", "--out", without).returncode == 0
    before, after = load_recipe(small_line.recipe).manifest, load_recipe(without).manifest
    assert after.health is None
    assert HEALTH_FEATURE not in after.required_features
    assert (after.bank, after.thresholds) == (before.bank, before.thresholds)
    refused = export("health", "--recipe", without, "--images", pictures)
    assert refused.returncode == 2
    assert "has no health limits" in refused.stderr
