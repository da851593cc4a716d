"""`edge-daemon cameras` and `grab` on a GigE camera, with and without a daemon that has it. Needs root."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_daemon.cameras import gvcp
from edge_daemon.cli import main
from tests.fakes.gige import FakeCamera, fake_camera, other_client
from tests.faults.line import SIDE_PX, Factory

GIGE = f'kind = "gige"\nserial = "GV07"\nregion = [0, 0, {SIDE_PX}, {SIDE_PX}]\nexposure_us = 10000'


@pytest.fixture
def fake() -> Iterator[FakeCamera]:
    with fake_camera() as camera:
        yield camera


@pytest.mark.usefixtures("fake")
def test_a_camera_is_listed_beside_the_daemon_and_grabbed_when_it_has_ended(
    make_line: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "top.png"
    with make_line(GIGE) as line:
        config = str(line.daemon.config)
        assert main(["cameras", "--config", config, "--json"]) == 0
        (found,) = (d for d in json.loads(capsys.readouterr().out)["found"] if d["kind"] == "gige")
        assert (found["serial"], found["where"], found["tables"]) == ("GV07", "127.0.0.1", ["top"])
        assert "controlled by" in found["in_use"]
        assert main(["grab", "--camera", "top", "--config", config, "--out", str(out)]) == 1
        assert "belongs to station hurt of the daemon that is running" in capsys.readouterr().err
        assert not out.exists()
        line.good_part()
    assert main(["grab", "--camera", "top", "--config", config, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["size"] == [SIDE_PX, SIDE_PX]
    assert told["settings"]["pixel_format"] == "Mono8"
    assert told["counters"]["completed"] == 1
    assert told["recipe"] == "ramp 1"
    assert told["health"]["brightness"]["lower"] is not None
    assert told["exposed_before_ms"] is not None
    assert out.exists()


def test_a_camera_in_other_hands_is_named_and_left_alone(
    fake: FakeCamera, tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "edge.toml"
    views = f'[stations.st1]\nviews = [{{ camera = "top", recipe = "{recipe}" }}]'
    config.write_text(f'line = "l1"\nstate_dir = "state"\n[cameras.top]\n{GIGE}\n{views}\n')
    with other_client(fake.ip):
        assert main(["grab", "--camera", "top", "--config", str(config)]) == 1
    assert "is controlled by another program" in capsys.readouterr().err


def test_a_camera_that_is_plugged_in_while_it_is_sought_is_found(fake: FakeCamera) -> None:
    fake.kill()
    found: list[gvcp.FoundCamera] = []
    seeking = threading.Thread(target=lambda: found.extend(gvcp.discover(20, lambda camera: camera.serial == "GV07")))
    seeking.start()
    fake.start()
    seeking.join()
    assert [camera.serial for camera in found] == ["GV07"]
