"""From `grab --save` to verdicts: a line judges by a recipe only with the camera settings of its pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_daemon.artefact.camera import CAMERA_FILE, read_camera_file
from edge_daemon.artefact.recipe import load_recipe
from edge_daemon.cli import main as edge_daemon
from edge_daemon.core.camera_settings import counting
from export.cli import main as edge_export
from tests.daemon import DaemonProcess, receive
from tests.fakes.gige import WIDTH_REGISTER, FakeCamera, fake_camera, write_as_its_controller
from tests.system.conftest import SmallLine

CAMERA = """
[cameras.top]
kind = "simulated"
product = "flange"
size = [128, 128]
seed = 5
first_index = {first}
exposure_ms = {exposure}
isolated = {isolated}
faults = [{faults}]
"""
STATION = """
[stations.st1]
deadline_ms = 20000
views = [{{ camera = "top", recipe = "{recipe}", camera_settings = "{mode}" }}]
"""


def simulated(exposure: int, faults: str = "", first: int = 4000) -> str:
    return CAMERA.format(exposure=exposure, faults=faults, isolated=str("crash" in faults).lower(), first=first)


def station(recipe: str, mode: str = "require") -> str:
    return STATION.format(recipe=recipe, mode=mode)


def bound(small: SmallLine, camera_file: Path, out: Path) -> Path:
    """The recipe, for a camera that is set like this."""
    arguments = ["--recipe", str(small.recipe), "--settings", str(camera_file), "--out", str(out), "--json"]
    assert edge_export(["camera", *arguments]) == 0
    return out


@pytest.fixture(scope="module")
def recipes(small_line: SmallLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `one.recipe` for an exposure of 1 ms and `two.recipe` for 2 ms, as a camera was grabbed with."""
    folder = tmp_path_factory.mktemp("camera_settings")
    for exposure, name in ((1, "one"), (2, "two")):
        config = folder / f"{name}.toml"
        config.write_text(f'line = "l1"\nstate_dir = "state"\n{simulated(exposure)}{station("missing")}')
        taken = ["grab", "--camera", "top", "--config", str(config), "--save", str(folder / name), "--count", "2"]
        assert edge_daemon(taken) == 0
        bound(small_line, folder / name / CAMERA_FILE, folder / f"{name}.recipe")
    return folder


def alarms(daemon: DaemonProcess) -> list[str]:
    return [text for text in daemon.status()["stations"]["st1"]["alarms"] if text.startswith("camera settings")]


def judged(daemon: DaemonProcess, name: str) -> tuple[str, str]:
    with daemon.subscriber() as results, daemon.triggers() as triggers:
        triggers.trigger("st1", name)
        (found,) = receive(results, 1)
        return found.evaluation, found.reason


def refusal(daemon: DaemonProcess, recipe: str) -> str:
    """Why the recipe was not activated."""
    with daemon.control() as control:
        job = control.wait(control.request("activate", {"station": "st1", "recipe": recipe})["job"], ask_every_s=0.01)
    assert job.state == "failed"
    assert job.error is not None
    return job.error.message


def settled(status: dict[str, Any]) -> bool:
    """The camera is open, and nothing is on its way."""
    return all(camera["connected"] for camera in status["stations"]["st1"]["cameras"])


def test_a_line_judges_with_the_settings_of_its_pictures_and_goes_on_where_others_are_refused(
    tmp_path: Path, recipes: Path
) -> None:
    config = f'line = "l1"\n{simulated(1)}{station(str(recipes / "one.recipe"))}'
    with DaemonProcess(tmp_path, config) as daemon:
        assert judged(daemon, "1") == ("OK", "")
        store = ["store", "import", str(recipes / "two.recipe"), "--config", str(daemon.config), "--json"]
        assert edge_daemon(store) == 0
        two = f"flange@{load_recipe(recipes / 'two.recipe').digest}"
        assert "exposure_ms is 1 in the camera, 2 in the recipe" in refusal(daemon, two)
        assert alarms(daemon) == []
        assert judged(daemon, "2") == ("OK", "")


def test_a_camera_that_is_set_otherwise_at_the_next_start_stops_the_line_with_an_alarm(
    tmp_path: Path, recipes: Path
) -> None:
    config = f'line = "l1"\n{simulated(1)}{station(str(recipes / "two.recipe"))}'
    with DaemonProcess(tmp_path, config, settled) as daemon:
        assert not daemon.status()["stations"]["st1"]["trigger_ready"]
        (alarm,) = alarms(daemon)
        assert "exposure_ms is 1 in the camera, 2 in the recipe; no part is judged" in alarm
        assert judged(daemon, "1") == ("Undefined", "missed_not_ready")
    assert "view top: camera top is not set as it was" in daemon.log.read_text()


def test_a_camera_that_comes_back_otherwise_in_mid_line_stops_it(tmp_path: Path, recipes: Path) -> None:
    faults = '{ trigger = 2, action = "return_smaller" }'
    config = f'line = "l1"\n{simulated(1, faults)}{station(str(recipes / "one.recipe"))}'
    with DaemonProcess(tmp_path, config) as daemon:
        assert judged(daemon, "1") == ("OK", "")
        assert judged(daemon, "2") == ("Undefined", "camera")
        while not (found := alarms(daemon)):
            pass
        assert "height is 64 in the camera, 128 in the recipe; width is 64 in the camera" in found[0]
        while not settled(daemon.status()):
            pass
        assert judged(daemon, "3") == ("Undefined", "missed_not_ready")


def test_a_view_that_only_warns_judges_on(tmp_path: Path, recipes: Path) -> None:
    config = f'line = "l1"\n{simulated(1)}{station(str(recipes / "two.recipe"), "warn")}'
    with DaemonProcess(tmp_path, config) as daemon:
        assert judged(daemon, "1") == ("OK", "")
        assert "parts are judged all the same" in alarms(daemon)[0]


def test_a_replay_has_the_settings_of_its_pictures(tmp_path: Path, recipes: Path, small_line: SmallLine) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("1.png", "2.png"):
        (pictures / name).write_bytes((small_line.test / "test" / "good" / "000.png").read_bytes())
    folder = f'line = "l1"\n[cameras.top]\nkind = "folder"\npath = "{pictures}"\n{station(str(recipes / "one.recipe"))}'
    with DaemonProcess(tmp_path / "unknown", folder, settled) as daemon:
        assert "exposure_ms is not there in the camera" in alarms(daemon)[0]
    (pictures / CAMERA_FILE).write_bytes((recipes / "one" / CAMERA_FILE).read_bytes())
    with DaemonProcess(tmp_path / "known", folder) as daemon:
        assert judged(daemon, "1") == ("OK", "")


def test_grab_says_that_the_recipe_would_not_judge_what_this_camera_takes(
    tmp_path: Path, recipes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(f'line = "l1"\nstate_dir = "state"\n{simulated(1)}{station(str(recipes / "two.recipe"))}')
    assert edge_daemon(["grab", "--camera", "top", "--config", str(config), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["unhealthy"] == "camera_settings: exposure_ms is 1 in the camera, 2 in the recipe"
    config.write_text(f'line = "l1"\nstate_dir = "state"\n{simulated(1)}{station(str(recipes / "two.recipe"), "warn")}')
    assert edge_daemon(["grab", "--camera", "top", "--config", str(config), "--json"]) == 0
    assert "judged with an alarm: camera_settings" in json.loads(capsys.readouterr().out)["notes"][0]


def test_check_says_so_before_the_line_stands(
    tmp_path: Path, recipes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "edge.toml"
    for recipe, mode, said in (("two", "require", True), ("two", "warn", False), ("one", "require", False)):
        views = station(str(recipes / f"{recipe}.recipe"), mode)
        config.write_text(f'line = "l1"\nstate_dir = "state"\n{simulated(1)}{views}')
        status = edge_daemon(["check", "--config", str(config)])
        assert ("exposure_ms is 1 in the camera, 2 in the recipe" in capsys.readouterr().out) is said
        assert not said or status == 1


# --- a GigE camera -------------------------------------------------------------------------------------

GIGE = '[cameras.top]\nkind = "gige"\nserial = "GV07"\nregion = [0, 0, 128, 128]\nexposure_us = {exposure}\n'


@pytest.fixture
def fake() -> Iterator[FakeCamera]:
    with fake_camera() as camera:
        yield camera


def test_a_gige_camera_from_its_pictures_to_a_stop(fake: FakeCamera, tmp_path: Path, small_line: SmallLine) -> None:
    """What it shows is no flange: NotOK is a verdict, and all that is asked for."""
    config = tmp_path / "edge.toml"
    config.write_text(f'line = "l1"\nstate_dir = "s"\n{GIGE.format(exposure=10000)}{station("missing")}')
    good = tmp_path / "good"
    assert edge_daemon(["grab", "--camera", "top", "--config", str(config), "--save", str(good), "--count", "3"]) == 0
    said = read_camera_file(good / CAMERA_FILE)
    assert counting(said.settings) == said.settings == {
        "pixel_format": "Mono8", "region": "128x128+0+0", "exposure_us": 10000.0, "gain_raw": 0, "gain_auto": "Off",
        "binning_x": 1, "binning_y": 1,
    }  # fmt: skip
    recipe = bound(small_line, good / CAMERA_FILE, tmp_path / "gige.recipe")
    right = f'line = "l1"\n{GIGE.format(exposure=10050)}{station(str(recipe))}'
    with DaemonProcess(tmp_path / "right", right) as daemon:
        evaluation, reason = judged(daemon, "1")
        assert (evaluation, reason.split("_")[0]) in {("NotOK", ""), ("NotDecidable", "health")}
        write_as_its_controller(fake.ip, WIDTH_REGISTER, 64)
        assert judged(daemon, "2")[1] in {"camera", "no_frame"}, "it is opened anew, and set as it was"
    other = f'line = "l1"\n{GIGE.format(exposure=20000)}{station(str(recipe))}'
    with DaemonProcess(tmp_path / "other", other, settled) as daemon:
        assert "exposure_us is 20000 in the camera, 10000 in the recipe" in alarms(daemon)[0]
        assert judged(daemon, "1") == ("Undefined", "missed_not_ready")
