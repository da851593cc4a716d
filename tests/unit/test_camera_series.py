"""`edge-daemon grab --save`: pictures to learn from, and what they were taken with."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edge_daemon import camera_series
from edge_daemon.artefact.camera import CAMERA_FILE, read_camera_file
from edge_daemon.artefact.pictures import read_picture
from edge_daemon.camera_series import Pace, take_series
from edge_daemon.cameras.base import EndOfFrames, FrameLost
from edge_daemon.cli import main
from edge_daemon.config import load_config
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError, CameraSettingsError

_CONFIG = """
line = "l1"
state_dir = "state"

[cameras.top]
kind = "simulated"
product = "cap"
size = [80, 64]
exposure_ms = {exposure}

[stations.st1]
views = [{{ camera = "top", recipe = "missing" }}]
"""
Answer = int | Exception


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return with_exposure(tmp_path, 1.0)


def with_exposure(folder: Path, exposure_ms: float) -> Path:
    path = folder / f"edge-{exposure_ms:g}.toml"
    path.write_text(_CONFIG.format(exposure=exposure_ms))
    return path


def grab(config: Path, folder: Path, *more: str) -> int:
    return main(["grab", "--camera", "top", "--config", str(config), "--save", str(folder), "--json", *more])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pictures_are_numbered_and_say_what_they_were_taken_with(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "deep" / "good"
    assert grab(config, good, "--count", "3") == 0
    told = json.loads(capsys.readouterr().out)
    assert names(good) == [CAMERA_FILE, "top-000001.png", "top-000002.png", "top-000003.png"]
    assert told["pictures"] == [str(good / f"top-00000{i}.png") for i in (1, 2, 3)]
    said = read_camera_file(good / CAMERA_FILE)
    assert dict(said.settings) == told["settings"] == {
        "width": 80, "height": 64, "pixel_format": "RGB8", "exposure_ms": 1.0,
    }  # fmt: skip
    assert (said.camera, said.kind) == ("top", "simulated")
    assert read_picture(good / "top-000002.png").shape == (64, 80, 3)
    assert grab(config, good) == 0
    assert names(good)[-1] == "top-000004.png"


def test_a_folder_with_pictures_of_other_settings_is_refused_with_the_difference(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grab(config, tmp_path / "good") == 0
    before = names(tmp_path / "good")
    capsys.readouterr()
    assert grab(with_exposure(tmp_path, 2.0), tmp_path / "good") == 1
    error = capsys.readouterr().err
    assert "exposure_ms is 2 in the camera, 1 in camera.json" in error
    assert names(tmp_path / "good") == before


def test_a_folder_with_pictures_of_unknown_settings_is_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grab(config, tmp_path / "good") == 0
    (tmp_path / "good" / CAMERA_FILE).unlink()
    assert grab(config, tmp_path / "good") == 1
    assert "no camera.json says what they were taken with" in capsys.readouterr().err
    assert names(tmp_path / "good") == ["top-000001.png"]


def test_a_damaged_file_of_settings_is_refused_and_not_replaced(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / CAMERA_FILE).write_text("{")
    assert grab(config, tmp_path) == 1
    assert "camera.json" in capsys.readouterr().err
    assert (tmp_path / CAMERA_FILE).read_text() == "{"


def test_a_place_that_cannot_be_a_folder_is_said(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert grab(config, tmp_path / "file") == 1
    assert "cannot be kept" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--count", "0"], ["--count", "x"], ["--every", "-1"], ["--every", "nan"]])
def test_numbers_that_make_no_sense_are_refused(config: Path, tmp_path: Path, more: list[str]) -> None:
    with pytest.raises(SystemExit):
        grab(config, tmp_path / "good", *more)
    assert not (tmp_path / "good").exists()


def test_a_count_without_a_folder_is_told(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grab", "--camera", "top", "--config", str(config), "--count", "3"]) == 1
    assert "--save DIR" in capsys.readouterr().err


# --- with a camera in the test's hand ----------------------------------------------------------------


class Scripted:
    """Gives grey pictures of these levels, or raises; `set_to` may change under way."""

    name = "top"

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.set_to: dict[str, Any] = {"exposure_us": 5000.0, "trigger": "software"}
        self.closed = False

    def open(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    def trigger(self) -> None: ...

    def settings(self) -> Mapping[str, Any]:
        return dict(self.set_to)

    def grab(self, timeout_ns: int) -> Frame | None:  # noqa: ARG002
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Frame("top", 1, np.full((16, 16), answer, np.uint8), 0)


Take = Callable[..., camera_series.Series]


@pytest.fixture
def take(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Take:
    """Take a series with a scripted camera; time goes by only while it waits."""

    def run(camera: Scripted, count: int, every_s: float = 0.0, **more: Any) -> camera_series.Series:
        monkeypatch.setattr(camera_series, "make_camera", lambda *_: camera)
        return take_series(load_config(config, recipes_must_exist=False), "top", tmp_path / "good",
                           Pace(count, every_s, 1.0), **more)  # fmt: skip

    return run


def test_the_picture_after_a_change_of_settings_is_not_kept(take: Take, tmp_path: Path) -> None:
    camera = Scripted(1, 2, 3)
    with pytest.raises(CameraSettingsError, match=r"exposure_us is 9000 .*5000 .*1 picture\(s\) were kept"):
        take(camera, 3, taken=lambda _path: camera.set_to.update(exposure_us=9000.0))
    assert names(tmp_path / "good") == [CAMERA_FILE, "top-000001.png"]
    assert camera.closed


def test_a_camera_that_says_nothing_leaves_no_file_and_a_note(take: Take, tmp_path: Path) -> None:
    camera = Scripted(1, 2)
    camera.set_to = {"trigger": "software"}
    series = take(camera, 1)
    assert "does not say what it is set to" in series.notes[0]
    assert names(tmp_path / "good") == ["top-000001.png"]


def test_a_camera_that_says_nothing_adds_no_picture_to_known_ones(take: Take) -> None:
    take(Scripted(1), 1)
    camera = Scripted(2)
    camera.set_to = {}
    with pytest.raises(CameraSettingsError, match="exposure_us is not there in the camera"):
        take(camera, 1)


def test_a_frame_that_comes_incomplete_is_left_out_and_counted(take: Take, tmp_path: Path) -> None:
    series = take(Scripted(1, FrameLost("packets"), 2), 2)
    assert (len(series.paths), series.lost) == (2, 1)
    assert [int(read_picture(path).flat[0]) for path in series.paths] == [1, 2]
    assert "top-000002.png" in names(tmp_path / "good")


def test_a_camera_that_brings_nothing_complete_ends_the_series(take: Take) -> None:
    with pytest.raises(FrameLost):
        take(Scripted(*[FrameLost("packets")] * 9), 2)


def test_a_replay_that_ends_has_given_what_it_had(take: Take) -> None:
    series = take(Scripted(1, EndOfFrames("all were shown")), 5)
    assert (len(series.paths), series.notes) == (1, ("all were shown",))
    with pytest.raises(EndOfFrames):
        take(Scripted(EndOfFrames("all were shown")), 5)


def test_two_pictures_are_so_far_apart(take: Take) -> None:
    time = SimpleNamespace(now=0, waited=[])

    def pause(seconds: float) -> None:
        time.waited.append(seconds)
        time.now += round(seconds * 1e9)

    take(Scripted(1, 2, 3), 3, 2.0, clock_ns=lambda: cast(int, time.now), pause_s=pause)
    assert time.waited == [2.0, 2.0]


def test_a_picture_is_never_written_over_another(take: Take, tmp_path: Path) -> None:
    take(Scripted(1), 1)
    with pytest.raises(CameraError, match="cannot be written"):
        camera_series._kept(tmp_path / "good" / "top-000001.png", b"other")
