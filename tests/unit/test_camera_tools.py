"""`edge-daemon cameras` and `grab`: what is there, what is missing, what one camera sees."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from pydantic import TypeAdapter

from edge_daemon.camera_tools import Surroundings, listing_text, look
from edge_daemon.cameras.config import CameraConfig
from edge_daemon.cameras.gentl_devices import GentlDevice, devices_of
from edge_daemon.cameras.gvcp import FoundCamera
from edge_daemon.cli import main
from edge_daemon.errors import CameraError

_CAMERAS = TypeAdapter(dict[str, CameraConfig])


def tables(**cameras: Mapping[str, object]) -> dict[str, CameraConfig]:
    return _CAMERAS.validate_python(cameras)


def answers(ip: str, serial: str, name: str = "") -> FoundCamera:
    return FoundCamera(ip, serial, name, "Acme", "Eye 5", "00:11:22:33:44:55")


def no_producer(_producer: Path) -> tuple[GentlDevice, ...]:
    raise CameraError("needs harvesters")


@pytest.fixture
def pc(tmp_path: Path) -> Surroundings:
    """A PC with two GigE cameras, one of them in use, and a USB camera."""
    (tmp_path / "dev/v4l/by-id").mkdir(parents=True)
    (tmp_path / "dev/video0").touch()
    (tmp_path / "dev/v4l/by-id/usb-Acme_1").symlink_to(tmp_path / "dev/video0")
    (tmp_path / "sys/class/video4linux/video0").mkdir(parents=True)
    (tmp_path / "sys/class/video4linux/video0/name").write_text("Acme Webcam\n")
    return Surroundings(
        dev=tmp_path / "dev",
        sys=tmp_path / "sys",
        discover=lambda: [answers("10.0.0.5", "A1"), answers("10.0.0.6", "A2", "gate")],
        controller=lambda ip: "controlled by 10.0.0.9" if ip == "10.0.0.6" else "",
        producers=no_producer,
        producer_folders="",
        aravis=lambda _camera: None,
    )


def test_each_camera_that_answers_is_shown_with_the_table_that_means_it(pc: Surroundings) -> None:
    cameras = tables(
        top={"kind": "gige", "serial": "A1"},
        gate={"kind": "gige", "device_name": "gate"},
        web={"kind": "usb", "device": "/dev/v4l/by-id/usb-Acme_1"},
        trial={"kind": "simulated", "product": "cap"},
    )
    listing = look(cameras, pc)
    assert [(d.kind, d.serial, d.tables, d.in_use) for d in listing.found] == [
        ("gige", "A1", ("top",), ""),
        ("gige", "A2", ("gate",), "controlled by 10.0.0.9"),
        ("usb", "", ("web",), ""),
    ]
    assert listing.not_found == ()
    assert listing.notes == ()


def test_tables_whose_camera_does_not_answer_say_what_to_do(pc: Surroundings, tmp_path: Path) -> None:
    cameras = tables(
        top={"kind": "gige", "serial": "A9"},
        web={"kind": "usb", "device": 7},
        film={"kind": "video", "path": str(tmp_path / "film.avi")},
        parts={"kind": "folder", "path": str(tmp_path / "parts")},
        side={"kind": "gentl", "producer": str(tmp_path / "no.cti")},
        door={"kind": "rtsp", "url": "rtsp://viewer:secret@192.0.2.1/live"},
    )
    listing = look(cameras, pc)
    assert {m.camera: m.why.split(";")[0].replace(str(tmp_path), "") for m in listing.not_found} == {
        "top": "no camera with serial A9 answers",
        "web": "there is no /dev/video7",
        "film": "there is no /film.avi",
        "parts": "there is no /parts",
        "side": "/no.cti finds no such camera",
    }
    assert all(device.tables == () for device in listing.found)
    text = listing_text(listing)
    assert "needs harvesters" in text
    assert "edge-daemon grab --camera door" in text
    assert "secret" not in text


def test_a_pc_without_the_library_is_told_what_to_install(pc: Surroundings) -> None:
    def missing(camera: str) -> object:
        raise CameraError(f"camera {camera}: GigE cameras need Aravis; apt install gir1.2-aravis-0.8")

    listing = look(tables(top={"kind": "gige", "serial": "A1"}), replace(pc, aravis=missing))
    assert listing.notes == ("GigE cameras need Aravis; apt install gir1.2-aravis-0.8",)
    assert [d.serial for d in listing.found if d.kind == "gige"] == ["A1", "A2"], "they are found without it"


def test_devices_of_a_producer_belong_to_the_tables_that_fit_them(pc: Surroundings, tmp_path: Path) -> None:
    producer = tmp_path / "maker.cti"
    two = (GentlDevice("Acme", "Eye", "S1", "dev1"), GentlDevice("Acme", "Eye", "S2", "dev2"))
    cameras = tables(side={"kind": "gentl", "producer": str(producer), "serial": "S2"})
    listing = look(cameras, replace(pc, producers=lambda _p: two))
    found = [d for d in listing.found if d.kind == "gentl"]
    assert [(d.serial, d.tables) for d in found] == [("S1", ()), ("S2", ("side",))]


def test_a_producer_that_is_no_library_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    pytest.importorskip("harvesters", reason="needs harvesters (extra gentl)")
    with pytest.raises(CameraError, match="there is no producer"):
        devices_of(tmp_path / "missing.cti")
    bad = tmp_path / "bad.cti"
    bad.write_text("no library")
    try:
        assert devices_of(bad) == ()
    except CameraError as error:
        assert str(bad) in str(error)  # noqa: PT017


_SIMULATED = """
line = "l1"
state_dir = "state"

[cameras.top]
kind = "simulated"
product = "cap"
size = [160, 120]

[cameras.dead]
kind = "folder"
path = "nowhere"

[stations.st1]
views = [{ camera = "top", recipe = "missing" }]

[stations.st2]
views = [{ camera = "dead", recipe = "missing" }]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text(_SIMULATED)
    return path


def test_grab_shows_and_keeps_one_frame_before_there_is_a_recipe(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "top.png"
    assert main(["grab", "--camera", "top", "--config", str(config), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["size"] == [160, 120]
    assert told["frame_id"] == 1
    assert told["saved"] == str(out)
    assert told["healthy"] is True
    assert {"brightness", "sharpness_x", "noise"} <= told["health"].keys()
    assert "shift_x_px" not in told["health"], "there is no golden picture to shift against"
    assert "no recipe to compare with" in told["notes"][0]
    picture = cv2.imread(str(out), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    assert picture.shape[:2] == (120, 160)
    assert main(["grab", "--camera", "top", "--config", str(config)]) == 0
    assert "160x120 px" in capsys.readouterr().out


@pytest.mark.parametrize(("camera", "words"), [("none", "the configuration has top, dead"), ("dead", "nowhere")])
def test_grab_says_why_there_is_no_frame(
    config: Path, capsys: pytest.CaptureFixture[str], camera: str, words: str
) -> None:
    assert main(["grab", "--camera", camera, "--config", str(config)]) == 1
    assert words in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = config.parent / "no_folder" / "top.png"
    assert main(["grab", "--camera", "top", "--config", str(config), "--out", str(out)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_cameras_works_without_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["cameras", "--config", str(tmp_path / "none.toml"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert status == 0
    assert any("there is no such file" in note for note in told["notes"])


def test_the_command_fails_when_a_configured_camera_is_missing(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cameras", "--config", str(config)]) == 1
    assert "✗ folder  cameras.dead" in capsys.readouterr().out
