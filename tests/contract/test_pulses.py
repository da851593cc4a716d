"""Pulses for a simulated camera: each datagram is one exposure of the part that it names."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_daemon.cameras.config import SimulatedConfig
from edge_daemon.cameras.simulated import SimulatedCamera
from edge_daemon.errors import CameraError
from edge_daemon.simulation.render import Scene

PATIENCE_NS = 5_000_000_000


def camera_on(path: Path, **more: Any) -> SimulatedCamera:
    table = {"kind": "simulated", "product": "cap", "size": [64, 64], "pulses": path, **more}
    return SimulatedCamera("top", SimulatedConfig.model_validate(table), time.monotonic_ns)


@pytest.fixture
def line(tmp_path: Path) -> Path:
    return tmp_path / "pulses"


@pytest.fixture
def camera(line: Path) -> Iterator[SimulatedCamera]:
    it = camera_on(line, seed=3)
    it.open()
    yield it
    it.close()


def pulse(line: Path, text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
        wire.sendto(text.encode(), str(line))


def test_a_pulse_exposes_the_part_that_it_names_at_the_time_it_names(camera: SimulatedCamera, line: Path) -> None:
    now_ns = time.monotonic_ns()
    pulse(line, f"40 {now_ns}")
    pulse(line, "7")
    first, second = camera.grab(PATIENCE_NS), camera.grab(0)
    assert first is not None
    assert second is not None
    assert (first.frame_id, first.device_frame_id, first.exposed_ns) == (1, 1, now_ns)
    assert (second.frame_id, second.device_frame_id) == (2, 2)
    scene = Scene("cap", (64, 64))
    np.testing.assert_array_equal(first.pixels, scene.part(3, 40).pixels)
    np.testing.assert_array_equal(second.pixels, scene.part(3, 7).pixels)


def test_without_a_pulse_nothing_comes(camera: SimulatedCamera) -> None:
    assert not camera.waits_for_host
    assert camera.grab(0) is None
    assert camera.grab(1_000_000) is None


def test_an_exposure_that_is_lost_is_counted_all_the_same(line: Path) -> None:
    camera = camera_on(line, faults=[{"frame": 1, "action": "drop"}])
    camera.open()
    try:
        pulse(line, "0")
        assert camera.grab(PATIENCE_NS) is None
        pulse(line, "1")
        frame = camera.grab(PATIENCE_NS)
    finally:
        camera.close()
    assert frame is not None
    assert frame.frame_id == 2


def test_pulses_of_before_a_reconnect_are_lost(camera: SimulatedCamera, line: Path) -> None:
    pulse(line, "1")
    camera.close()
    with pytest.raises(OSError, match="No such file"):
        pulse(line, "2")
    camera.open()
    assert camera.grab(0) is None
    pulse(line, "3")
    frame = camera.grab(PATIENCE_NS)
    assert frame is not None
    assert frame.frame_id == 1


def test_software_cannot_trigger_it(camera: SimulatedCamera) -> None:
    with pytest.raises(CameraError, match="triggered by pulses"):
        camera.trigger()


@pytest.mark.parametrize("text", ["", "x", "-1", "1 y", "1 -2"])
def test_what_is_no_pulse_is_a_named_error(camera: SimulatedCamera, line: Path, text: str) -> None:
    pulse(line, text)
    with pytest.raises(CameraError, match="is no pulse"):
        camera.grab(PATIENCE_NS)


def test_a_socket_that_cannot_be_made_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="no pulses can be taken at"):
        camera_on(tmp_path / "no such folder" / "pulses").open()
    with pytest.raises(CameraError, match="107 bytes"):
        camera_on(tmp_path / ("p" * 120)).open()


def test_closing_from_another_thread_ends_the_wait(camera: SimulatedCamera) -> None:
    closer = threading.Timer(0.02, camera.close)
    closer.start()
    with pytest.raises(CameraError, match="closed"):
        camera.grab(60_000_000_000)
    closer.join()


def test_it_opens_where_an_earlier_process_left_its_socket(line: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(line))
    camera = camera_on(line)
    camera.open()
    pulse(line, "1")
    assert camera.grab(PATIENCE_NS) is not None
    camera.close()
    assert not line.exists()
