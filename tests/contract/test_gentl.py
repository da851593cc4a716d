"""Cameras through a GenTL producer, against the simulated one that comes with the GenICam reference implementation.

It has three cameras of 400x400 px that run free, without trigger, time stamps or exposure.
"""

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edge_daemon.cameras.config import GentlConfig
from edge_daemon.cameras.genicam import GenicamCamera
from edge_daemon.cameras.gentl import gentl_camera
from edge_daemon.errors import CameraError

MS = 1_000_000
PATIENCE_NS = 5_000 * MS


@pytest.fixture(scope="module")
def producer() -> Path:
    genicam = pytest.importorskip("genicam", reason="needs harvesters and its simulated producer: the extra gentl")
    return Path(genicam.__file__).parent / "viky.cti"


@pytest.fixture
def make(producer: Path) -> Iterator[Any]:
    made: list[GenicamCamera] = []

    def make_camera(**keys: Any) -> GenicamCamera:
        table = {"kind": "gentl", "producer": producer, "serial": "1", "trigger": "free_run", "simulated": True,
                 "region": [0, 0, 400, 400], **keys}  # fmt: skip
        made.append(gentl_camera("top", GentlConfig.model_validate(table), time.monotonic_ns))
        return made[-1]

    yield make_camera
    for camera in made:
        camera.close()


def test_what_every_camera_does(make: Any) -> None:
    camera = make()
    for ask in (camera.trigger, lambda: camera.grab(MS), lambda: camera.check(MS)):
        with pytest.raises(CameraError, match=r"top.*closed"):
            ask()
    assert (camera.settings(), camera.simulated, camera.waits_for_host) == ({}, True, False)
    camera.close()
    camera.open()
    camera.open()
    frames = [camera.grab(PATIENCE_NS) for _ in range(4)]
    assert all(frame is not None for frame in frames)
    ids = [frame.frame_id for frame in frames if frame]
    assert ids == sorted(set(ids))
    assert ids[0] >= 1
    assert frames[0].pixels.shape == (400, 400)
    assert frames[0].pixels.dtype == np.uint8
    assert (frames[0].clock_quality, frames[0].exposed_ns, frames[0].device_ns) == ("host", None, None)
    with pytest.raises(ValueError, match="read-only"):
        frames[0].pixels[0, 0] = 1
    camera.check(1_000 * MS)
    assert camera.counters()["completed"] >= 4
    camera.close()
    camera.close()
    assert camera.settings() == {}
    camera.open()
    again = camera.grab(PATIENCE_NS)
    assert again is not None
    assert again.frame_id > ids[-1]


def test_after_a_trigger_only_what_was_exposed_later_is_delivered_once(make: Any) -> None:
    """Without a clock in the camera, the frames that may have been under way are passed over."""
    camera = make(rate_hz=100)
    camera.open()
    for _ in range(3):
        camera.trigger()
        assert camera.grab(PATIENCE_NS) is not None
        assert camera.grab(50 * MS) is None
    device_ids = []
    for _ in range(2):
        camera.trigger()
        frame = camera.grab(PATIENCE_NS)
        assert frame is not None
        device_ids.append(frame.device_frame_id)
    assert all(b - a >= 3 for a, b in itertools.pairwise(device_ids))


def test_settings_are_written_and_read_back(make: Any) -> None:
    camera = make(region=[0, 0, 200, 120], pixel_format="RGBa8")
    camera.open()
    assert camera.settings() == {"pixel_format": "RGBa8", "region": "200x120+0+0", "trigger": "free_run"}
    frame = camera.grab(PATIENCE_NS)
    assert frame is not None
    assert frame.pixels.shape == (120, 200, 3)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"serial": None}, r"3 cameras fit.*serial 0.*serial 1.*serial 2"),
        ({"serial": "77"}, r"0 cameras fit.*serial 0"),
        ({"trigger": "software"}, r"trigger = software.*no trigger"),
        ({"region": [0, 0, 4000, 400]}, r"width of region = 4000.*100 to 800"),
        ({"region": [8, 0, 400, 400]}, r"x of region = 8.*no OffsetX"),
        ({"pixel_format": "Mono12"}, r"pixel_format = Mono12.*RGBa8"),
        ({"exposure_us": 100.0}, r"exposure_us = 100.*no ExposureTime"),
        ({"producer": "/nowhere/none.cti"}, r"there is no producer /nowhere/none\.cti"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make: Any, keys: dict[str, Any], words: str) -> None:
    camera = make(**keys)
    with pytest.raises(CameraError, match=rf"top: {words}"):
        camera.open()
    assert camera.settings() == {}


def test_a_file_that_is_no_producer_is_refused_by_name(make: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.cti"
    text.write_text("no producer")
    with pytest.raises(CameraError, match=r"top:.*text\.cti"):
        make(producer=text).open()


def test_serial_and_device_id_exclude_each_other() -> None:
    with pytest.raises(ValidationError):
        GentlConfig.model_validate({"kind": "gentl", "producer": "a.cti", "serial": "1", "device_id": "b"})


def test_without_the_library_the_error_says_what_to_install(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "harvesters.core", None)
    with pytest.raises(CameraError, match=r"top.*edge-daemon\[gentl\]"):
        make().open()


def test_opening_and_closing_leaves_nothing_behind(make: Any) -> None:
    def footprint() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    camera = make()
    for cycle in range(13):
        camera.open()
        camera.close()
        if cycle == 2:
            before = footprint()
    assert footprint() == before
