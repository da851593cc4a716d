"""The whole line, in processes of its own: triggers in, one record each out, the same scores as the workshop's."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_daemon.artefact.pictures import read_picture
from edge_daemon.artefact.recipe import load_recipe
from edge_daemon.cameras.config import FolderConfig
from edge_daemon.cameras.folder import FolderCamera
from edge_daemon.core.decision import Evaluation
from tests.daemon import DaemonProcess, receive
from tests.system.conftest import DEFECTS, SHOWN, SmallLine

STATION = """
line = "test"
[cameras.top]
kind = "folder"
path = "{path}"
{camera}
[stations.st1]
deadline_ms = 20000
views = [{{ camera = "top", recipe = "{recipe}" }}]
{station}
"""


def config(recipe: Path, pictures: Path, camera: str = "", station: str = "") -> str:
    return STATION.format(recipe=recipe, path=pictures, camera=camera, station=station)


def evaluate(recipe: Path, data: Path) -> dict[str, float]:
    """Score by picture, as `edge-export evaluate` gives it."""
    command = ["-m", "export.cli", "evaluate", "--recipe", str(recipe), "--data", str(data), "--json", "--scores"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    return {score["picture"]: score["score"] for score in json.loads(done.stdout)["scores"]}


def replay(folder: Path, recipe: Path, data: Path) -> dict[str, float]:
    """Score by picture, as the daemon publishes it, one trigger after the other."""
    camera = FolderCamera("top", FolderConfig(kind="folder", path=data / "test"), lambda: 0)
    camera.open()
    names = {i: str(camera.path_of(i).relative_to(data)) for i in range(1, len(camera.paths) + 1)}
    camera.close()
    with (
        DaemonProcess(folder, config(recipe, data / "test")) as daemon,
        daemon.subscriber() as results,
        daemon.triggers() as triggers,
    ):
        found = []
        for index in range(len(names)):
            assert triggers.trigger("st1", f"t{index}").accepted
            found += receive(results, 1)
    assert [r.seq for r in found] == list(range(1, len(names) + 1))
    assert [r.trigger_id for r in found] == [f"t{i}" for i in range(len(names))]
    assert not results.gaps
    return {names[r.views[0].frame_ids[0]]: r.views[0].score or np.nan for r in found}


def test_daemon_evaluation_and_simulation_agree_on_every_part(tmp_path: Path, small_line: SmallLine) -> None:
    offline = evaluate(small_line.recipe, small_line.test)
    online = replay(tmp_path, small_line.recipe, small_line.test)
    assert online == offline
    assert len(online) == 2 * SHOWN
    threshold = load_recipe(small_line.recipe).manifest.thresholds.upper
    assert all(online[f"test/mixed/{index:03d}.png"] > threshold for index in DEFECTS)


@pytest.mark.timeout(600)
def test_bottle_scores_of_daemon_and_evaluation_equal_the_oracle(
    tmp_path: Path, bottle_dir: Path, resnet18_weights: Path
) -> None:
    """83 triggers, 83 results; torch features and float64 distances agree to what `oracle.judge` allows."""
    from tests import oracle

    export = [sys.executable, "-m", "export.cli"]
    backbone = ["backbone", "--arch", "resnet18", "--weights", str(resnet18_weights), "--layers", "layer2,layer3"]
    recipe = tmp_path / "bottle.recipe"
    build = ["recipe", "--name", "bottle", "--images", str(bottle_dir / "train" / "good"), "--out", str(recipe)]
    subprocess.run([*export, *backbone, "--size", "256", "--out", str(tmp_path / "r18")], check=True)
    subprocess.run([*export, *build, "--backbone", str(tmp_path / "r18"), "--coreset-ratio", "0.01"], check=True)

    offline = evaluate(recipe, bottle_dir)
    online = replay(tmp_path / "line", recipe, bottle_dir)
    assert len(online) == 83
    assert online == offline

    bank = load_recipe(recipe).bank
    network = oracle.resnet18(resnet18_weights)
    for name in sorted(online)[::12]:
        picture = oracle.model_input(read_picture(bottle_dir / name), (256, 256), (256, 256))
        embedding = oracle.embed(oracle.feature_maps(network, picture), "anomalib")
        judged = oracle.judge(embedding, bank, "anomalib", (256, 256))
        assert online[name] == pytest.approx(judged.score, rel=0, abs=judged.tolerance), name


def test_a_free_running_replay_gives_each_picture_one_record(tmp_path: Path, small_line: SmallLine) -> None:
    free_run = config(small_line.recipe, small_line.test / "test" / "good", station='trigger = "free_run"')

    def replayed(status: dict) -> bool:
        return status["stations"]["st1"]["last_seq"] == SHOWN

    with DaemonProcess(tmp_path, free_run, ready=replayed) as daemon:
        counters = daemon.status()["stations"]["st1"]["counters"]
    assert counters["accepted"] == SHOWN
    assert counters["missed"] == counters["failed"] == counters["in_flight"] == 0
    records = daemon.records()
    assert [r["seq"] for r in records] == list(range(1, SHOWN + 1))
    assert [r["views"][0]["frame_ids"] for r in records] == [[i] for i in range(1, SHOWN + 1)]


def test_bad_pictures_end_in_failed_results_and_never_in_an_ok(tmp_path: Path, small_line: SmallLine) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    good = (small_line.test / "test" / "good" / "000.png").read_bytes()
    (pictures / "1_good.png").write_bytes(good)
    (pictures / "2_empty.png").write_bytes(b"")
    (pictures / "3_cut.png").write_bytes(good[: len(good) // 2])
    (pictures / "4_text.png").write_text("not a picture")
    huge = bytearray(good)
    huge[16:24] = (20_000).to_bytes(4, "big") * 2
    (pictures / "5_huge.png").write_bytes(huge)
    (pictures / "6_good.png").write_bytes(good)
    with (
        DaemonProcess(tmp_path / "line", config(small_line.recipe, pictures)) as daemon,
        daemon.subscriber() as results,
        daemon.triggers() as triggers,
    ):
        found = []
        for index in range(7):
            triggers.trigger("st1", f"t{index}")
            found += receive(results, 1)
    states = [(r.evaluation, r.result_state) for r in found]
    assert states[0] == states[5] == ("OK", "Completed")
    assert states[1:5] == [("Undefined", "Failed")] * 4
    assert states[6][0] == "Undefined"
    assert [r.seq for r in found] == list(range(1, 8))


def test_a_frame_of_another_size_fails(tmp_path: Path, small_line: SmallLine) -> None:
    camera = 'kind = "simulated"\nproduct = "flange"\nsize = [160, 160]'
    text = config(small_line.recipe, tmp_path).replace(f'kind = "folder"\npath = "{tmp_path}"', camera)
    with (
        DaemonProcess(tmp_path / "line", text) as daemon,
        daemon.subscriber() as results,
        daemon.triggers() as triggers,
    ):
        triggers.trigger("st1", "1")
        (result,) = receive(results, 1)
    assert (result.evaluation, result.result_state, result.reason) == ("Undefined", "Failed", "frame_size")


def test_a_folder_that_vanishes_drops_trigger_ready_and_fails_the_trigger(
    tmp_path: Path, small_line: SmallLine
) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(small_line.test / "test" / "good", pictures)
    with (
        DaemonProcess(tmp_path / "line", config(small_line.recipe, pictures)) as daemon,
        daemon.subscriber() as results,
        daemon.triggers() as triggers,
    ):
        triggers.trigger("st1", "1")
        shutil.rmtree(pictures)
        triggers.trigger("st1", "2")
        found = {r.trigger_id: r for r in receive(results, 2)}
    assert found["2"].evaluation == "Undefined"
    assert found["2"].result_state in ("Failed", "Aborted")


def test_scripted_camera_faults_fail_their_part_alone_and_the_line_goes_on(
    tmp_path: Path, small_line: SmallLine
) -> None:
    """A dropped frame, an error, a black picture, a camera that hangs past the deadline, a camera that is gone."""
    faults = [
        '{ trigger = 2, action = "drop" }',
        '{ trigger = 3, action = "error" }',
        '{ trigger = 4, action = "black" }',
        '{ trigger = 5, action = "wrong_size" }',
        '{ trigger = 6, action = "hang", seconds = 2.0 }',
        '{ trigger = 7, action = "disconnect", seconds = 0.5 }',
    ]
    camera = f'kind = "simulated"\nproduct = "flange"\nseed = 5\nsize = [128, 128]\nfaults = [{", ".join(faults)}]'
    text = config(small_line.recipe, tmp_path).replace(f'kind = "folder"\npath = "{tmp_path}"', camera)
    text = text.replace("deadline_ms = 20000", "deadline_ms = 800")

    def ready_again(daemon: DaemonProcess) -> None:
        give_up = time.monotonic() + 30
        while not daemon.status()["stations"]["st1"]["trigger_ready"]:
            assert time.monotonic() < give_up, daemon.status()

    with (
        DaemonProcess(tmp_path / "line", text) as daemon,
        daemon.subscriber() as results,
        daemon.triggers() as triggers,
    ):
        found = []
        for index in range(1, 9):
            ready_again(daemon)
            assert triggers.trigger("st1", str(index)).accepted
            found += receive(results, 1)
        counters = daemon.status()["stations"]["st1"]["counters"]
    outcomes = {r.trigger_id: (r.evaluation, r.result_state) for r in found}
    assert outcomes["1"] == ("OK", "Completed")
    for part in ("2", "3", "5", "6", "7"):
        assert outcomes[part] == ("Undefined", "Failed"), part
    assert outcomes["4"] == ("NotDecidable", "Completed")
    assert outcomes["8"] == ("OK", "Completed")
    assert counters["accepted"] == 8
    assert counters["failed"] == 5


def test_a_camera_that_hangs_holds_up_no_other_station(tmp_path: Path, small_line: SmallLine) -> None:
    hanging = 'kind = "simulated"\nproduct = "flange"\nsize = [128, 128]\n'
    hanging += 'faults = [{ trigger = 1, action = "hang", seconds = 5.0 }]'
    pictures = small_line.test / "test" / "good"
    folder = f'kind = "folder"\npath = "{pictures}"'
    first = config(small_line.recipe, pictures).replace(folder, hanging).replace("20000", "1500")
    second = config(small_line.recipe, pictures).replace('line = "test"', "").replace("top", "side")
    with (
        DaemonProcess(tmp_path / "line", first + second.replace("st1", "st2")) as daemon,
        daemon.subscriber() as results,
        daemon.triggers() as triggers,
    ):
        assert triggers.trigger("st1", "hangs").accepted
        for index in range(SHOWN):
            assert triggers.trigger("st2", str(index)).accepted
            (result,) = receive(results, 1)
            assert (result.station, result.result_state) == ("st2", "Completed")
        (late,) = receive(results, 1)
    assert (late.trigger_id, late.evaluation, late.result_state) == ("hangs", "Undefined", "Failed")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def test_a_damaged_recipe_leaves_its_station_unfit_and_the_other_at_work(tmp_path: Path, small_line: SmallLine) -> None:
    damaged = tmp_path / "damaged.recipe"
    shutil.copy(small_line.recipe, damaged)
    flipped(damaged)
    pictures = small_line.test / "test" / "good"
    second = config(damaged, pictures).replace('line = "test"', "").replace("top", "side").replace("st1", "st2")

    def first_ready(status: dict) -> bool:
        return bool(status["stations"]["st1"]["trigger_ready"])

    with (
        DaemonProcess(tmp_path / "line", config(small_line.recipe, pictures) + second, ready=first_ready) as daemon,
        daemon.subscriber() as results,
        daemon.triggers() as triggers,
    ):
        status = daemon.status()["stations"]["st2"]
        assert not status["trigger_ready"]
        assert any("damaged" in alarm for alarm in status["alarms"])
        assert not triggers.trigger("st2", "1").accepted
        assert triggers.trigger("st1", "1").accepted
        found = {r.station: r for r in receive(results, 2)}
    assert (found["st2"].evaluation, found["st2"].result_state) == ("Undefined", "Aborted")
    assert found["st1"].evaluation == "OK"


def test_a_provider_that_cannot_be_had_is_an_error_and_never_a_silent_cpu(
    tmp_path: Path, small_line: SmallLine
) -> None:
    text = config(small_line.recipe, small_line.test / "test" / "good") + '[engine]\nprovider = "cuda"\n'
    with DaemonProcess(tmp_path / "line", text, ready=lambda _: True) as daemon:
        status = daemon.status()["stations"]["st1"]
        if status["trigger_ready"]:
            assert status["details"]["providers"] == ["CUDAExecutionProvider"]
        else:
            assert any("CUDAExecutionProvider" in alarm for alarm in status["alarms"])


def test_a_fallback_that_the_config_names_is_reported_in_every_result(tmp_path: Path, small_line: SmallLine) -> None:
    engine = '[engine]\nprovider = "cuda"\nfallback = "cpu"\n'
    with (
        DaemonProcess(
            tmp_path / "line", config(small_line.recipe, small_line.test / "test" / "good") + engine
        ) as daemon,
        daemon.subscriber() as results,
        daemon.triggers() as triggers,
    ):
        triggers.trigger("st1", "1")
        (result,) = receive(results, 1)
    assert result.views[0].provider in ("CPUExecutionProvider", "CUDAExecutionProvider")


def test_stop_answers_everything_in_flight(tmp_path: Path, small_line: SmallLine) -> None:
    slow = 'kind = "simulated"\nproduct = "flange"\nsize = [128, 128]\nexposure_ms = 400'
    pictures = small_line.test / "test" / "good"
    text = config(small_line.recipe, pictures, station="exposed_within_ms = 10000")
    text = text.replace(f'kind = "folder"\npath = "{pictures}"', slow)
    with DaemonProcess(tmp_path / "line", text) as daemon:
        with daemon.triggers() as triggers:
            acks = [triggers.trigger("st1", str(index)) for index in range(3)]
        assert daemon.stop() == 0
    assert all(ack.accepted for ack in acks)
    records = daemon.records()
    assert [r["trigger_id"] for r in records] == ["0", "1", "2"]
    assert all(r["result_state"] == "Completed" for r in records)


def test_a_killed_daemon_accounts_for_open_triggers_when_it_is_back(tmp_path: Path, small_line: SmallLine) -> None:
    slow = 'kind = "simulated"\nproduct = "flange"\nsize = [128, 128]\nexposure_ms = 10000'
    pictures = small_line.test / "test" / "good"
    text = config(small_line.recipe, pictures).replace(f'kind = "folder"\npath = "{pictures}"', slow)
    with DaemonProcess(tmp_path / "line", text) as daemon:
        with daemon.triggers() as triggers:
            assert triggers.trigger("st1", "lost", part_id="P-1").accepted
        daemon.kill()
        daemon.start()
        counters = daemon.status()["stations"]["st1"]["counters"]
        assert counters["accepted"] == counters["failed"] == 1
    (record,) = daemon.records()
    assert (record["trigger_id"], record["part_id"], record["boot"], record["seq"]) == ("lost", "P-1", 2, 1)
    assert (record["evaluation"], record["result_state"], record["reason"]) == ("Undefined", "Failed", "restarted")


def test_product_change_between_two_triggers_and_after_a_restart(tmp_path: Path, small_line: SmallLine) -> None:
    store = [sys.executable, "-m", "edge_daemon.cli", "store", "import"]
    other = tmp_path / "other.recipe"
    build = ["recipe", "--name", "other", "--images", str(small_line.train), "--out", str(other), "--size", "128"]
    subprocess.run([sys.executable, "-m", "export.cli", *build, "--coreset-ratio", "0.02", "--seed", "1"], check=True)
    pictures = small_line.test / "test" / "good"
    with DaemonProcess(tmp_path / "line", config(small_line.recipe, pictures, "loop = true")) as daemon:
        subprocess.run([*store, str(other), "--config", str(daemon.config)], check=True)
        with daemon.subscriber() as results, daemon.triggers() as triggers, daemon.control() as control:
            triggers.trigger("st1", "1")
            job = control.request("activate", {"station": "st1", "recipe": "other"})["job"]
            assert control.wait(job).state == "done"
            triggers.trigger("st1", "2")
            assert triggers.trigger("st1", "3", job="flange").accepted
            refused = control.request("activate", {"station": "st1", "recipe": "unknown"})["job"]
            assert control.wait(refused).state == "failed"
            triggers.trigger("st1", "4")
            found = receive(results, 4)
        names = [r.views[0].recipe.name if r.views and r.views[0].recipe else None for r in found]
        assert sorted(names, key=str) == [None, "flange", "other", "other"]
        mismatch = next(r for r in found if r.trigger_id == "3")
        assert (mismatch.evaluation, mismatch.reason) == ("NotDecidable", "job_mismatch")
        assert daemon.stop() == 0
        daemon.start()
        recipes = daemon.status()["stations"]["st1"]["details"]["recipes"]
        assert recipes["top"].startswith("other@")


def test_the_evaluation_codes_on_the_wire_never_call_ok_zero() -> None:
    assert Evaluation.OK.value == 1
    assert Evaluation.UNDEFINED.value == 0
