"""Aravis's own fake GigE Vision camera as a process that can be killed, frozen and started elsewhere."""

import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_daemon.cameras import gvcp
from edge_daemon.cameras.config import GigeConfig
from tests.fakes.network import own_network

PROGRAM = "arv-fake-gv-camera-0.8"
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
PATIENCE_S = 20


class FakeCamera:
    """One camera process. `start` returns when it answers."""

    def __init__(self, serial: str = "GV07", ip: str = "127.0.0.1", lost_per_mille: int = 0) -> None:
        self.serial, self.ip, self.lost_per_mille = serial, ip, lost_per_mille
        self.environment: Mapping[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["-i", self.ip, "-s", self.serial, "-r", str(self.lost_per_mille)]
        self._process = subprocess.Popen(
            [PROGRAM, *arguments], env={**os.environ, **self.environment}, stdout=subprocess.DEVNULL
        )
        assert gvcp.ask_at(self.ip, PATIENCE_S) is not None, f"{PROGRAM} does not answer at {self.ip}"

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and wait for its end; harmless when it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(PATIENCE_S)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


# Of Aravis's fake camera.
WIDTH_REGISTER, PIXEL_FORMAT_REGISTER, EXPOSURE_REGISTER, ACQUISITION_REGISTER = 0x100, 0x128, 0x120, 0x124


def write_as_its_controller(ip: str, register: int, value: int) -> None:
    """Change a setting of a camera behind the back of the program that controls it: the camera takes writes from that
    one's port alone, so the packet is sent from every UDP port of this network, with its sender forged."""
    lines = Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]
    ports = {int(line.split()[1].split(":")[1], 16) for line in lines} - {gvcp.PORT}
    write = struct.pack(">BBHHHII", 0x42, 0x01, 0x0082, 8, 0x7777, register, value)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        raw.bind((ip, 0))
        for port in ports:
            raw.sendto(struct.pack(">HHHH", port, gvcp.PORT, 8 + len(write), 0) + write, (ip, 0))


def send_picture(ip: str, port: int, device_frame_id: int, device_ns: int, packet_bytes: int) -> None:
    """A whole picture of 64x48 px, grey 200, as the camera at `ip` would send one to this UDP port (GVSP of GigE Vision
    1.2: leader, data, trailer). packet_bytes: as the camera was told, headers of IP and UDP included."""
    pixels, block_bytes = bytes([200]) * (64 * 48), packet_bytes - 20 - 8 - 8
    leader = struct.pack(">HHQIIIIIHH", 0, 1, device_ns, 0x01080001, 64, 48, 0, 0, 0, 0)
    data = [pixels[at : at + block_bytes] for at in range(0, len(pixels), block_bytes)]
    packets = [(1, leader), *((3, block) for block in data), (2, struct.pack(">II", 1, 48))]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((ip, 0))
        for number, (kind, content) in enumerate(packets):
            sender.sendto(struct.pack(">HHI", 0, device_frame_id, kind << 24 | number) + content, ("127.0.0.1", port))


@contextmanager
def other_client(ip: str, dies: bool = False) -> Iterator[None]:
    """Another program that controls the camera at `ip`, until the block ends: in order, or by kill -9."""
    code = (
        "import gi, sys\ngi.require_version('Aravis', '0.8')\nfrom gi.repository import Aravis\n"
        f"camera = Aravis.Camera.new({ip!r})\nprint(camera.get_device().is_controller(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], PATIENCE_S)[0]
        assert process.stdout.readline() == b"True\n"
        yield
    finally:
        if dies:
            process.kill()
        process.stdin.close()
        process.wait(PATIENCE_S)
        process.stdout.close()


def why_not_here() -> str:
    """What is missing for fake GigE cameras; empty when nothing is."""
    if shutil.which(PROGRAM) is None:
        return f"needs {PROGRAM} (Debian: aravis-tools)"
    try:
        import gi

        gi.require_version("Aravis", "0.8")
    except (ImportError, ValueError):
        return "needs Aravis and PyGObject (Debian: gir1.2-aravis-0.8; pip: the extra gige)"
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and iproute2, for a network of its own"
    return ""


@contextmanager
def gige_network() -> Iterator[None]:
    """A network for fake cameras at 127.0.0.1 and ADDRESSES; skips the test where there can be none."""
    missing = why_not_here()
    if missing:
        pytest.skip(missing)
    try:
        with own_network(*ADDRESSES):
            yield
    except PermissionError as exc:
        pytest.skip(f"needs the right to make network namespaces: {exc}")


@contextmanager
def fake_camera(started: bool = True) -> Iterator[FakeCamera]:
    """One fake camera in a network for such (`gige_network`), which does not outlive the block."""
    with gige_network():
        camera = FakeCamera()
        try:
            if started:
                camera.start()
            yield camera
        finally:
            camera.kill()


def gige_config(**keys: Any) -> GigeConfig:
    """The fake with serial GV07, pictures of 64x48 px, and `keys`."""
    table: dict[str, Any] = {"kind": "gige", "serial": "GV07", "region": [0, 0, 64, 48], **keys}
    if keys.keys() & {"ip", "device_name"}:
        del table["serial"]
    return GigeConfig.model_validate(table)
