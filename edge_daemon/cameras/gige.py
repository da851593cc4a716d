"""GigE Vision cameras through Aravis 0.8.

What Aravis does when a camera falls silent (seen with 0.8.26): every call waits 2.5 to 5 s, the stream's and the
camera's destructors included, and a second client is given a camera that takes no settings. So everything is first
asked over a socket of our own (`gvcp`), and a camera that is gone is let go of in a thread that nobody waits for.
"""

import contextlib
import ctypes
import logging
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_daemon.cameras import gvcp
from edge_daemon.cameras.base import Past
from edge_daemon.cameras.config import GigeConfig
from edge_daemon.cameras.genicam import GenicamCamera, Link, RawFrame
from edge_daemon.cameras.genicam_settings import NodeError, Value
from edge_daemon.cameras.waiting import Clock
from edge_daemon.errors import CameraError

log = logging.getLogger(__name__)

_NS_PER_S = 1_000_000_000
_DISCOVERY_S = 1.0  # cameras may spread their answers over a second (GigE Vision 1.2, 14.1)
_ASK_S = 0.3
_ANSWER_NS = 80_000_000
_ON_THE_WAY_NS = 20_000_000  # what a camera has sent when it stops is here by then
# Our own client keeps a camera for so long after its process died; Aravis renews its control every second.
_HEARTBEAT_TIMEOUT_MS = 2_000
_CONTROL_S = 0.25
# Room in the socket for packets that wait for a core.
_ROOM_BYTES, _ROOM_PICTURES, _LARGEST_ROOM_BYTES = 8 << 20, 4, 1 << 30

# linux/filter.h and asm-generic/socket.h, which Python does not name.
_NETWORK_HEADER, _SO_ATTACH_FILTER = 0xFFF0_0000, 26

_COUNTERS = {
    "n_completed_buffers": "completed", "n_failures": "failed", "n_underruns": "underruns",
    "n_timeouts": "timeouts", "n_aborted": "aborted", "n_missing_packets": "missing_packets",
    "n_resend_requests": "resend_requests", "n_resent_packets": "resent_packets",
    "n_received_packets": "received_packets", "n_error_packets": "error_packets",
    "n_ignored_packets": "ignored_packets", "n_duplicated_packets": "duplicated_packets",
    "n_size_mismatch_errors": "size_mismatches", "n_missing_frames": "frames_without_packets",
}  # fmt: skip


def gige_camera(name: str, config: GigeConfig, clock_ns: Clock, past: Past | None = None) -> GenicamCamera:
    """The GigE Vision camera of one table of the configuration, not yet opened."""
    return GenicamCamera(name, config, clock_ns, GigeConnector(name, config), past)


def load_aravis(camera: str) -> Any:
    """The Aravis library, loaded when first needed. Raises CameraError saying what to install."""
    try:
        import gi

        gi.require_version("Aravis", "0.8")
        from gi.repository import Aravis
    except (ImportError, ValueError) as exc:
        raise CameraError(
            f"camera {camera}: GigE cameras need Aravis, which is not installed ({exc}); as root: apt install "
            "gir1.2-aravis-0.8 libgirepository1.0-dev libcairo2-dev gcc pkg-config python3-dev, then: "
            "pip install 'edge-daemon[gige]'"
        ) from exc
    for other in ("Fake", "USB3Vision"):
        Aravis.disable_interface(other)
    return Aravis


class GigeConnector:
    """Finds the camera of one table of the configuration, whatever its address is now, and takes control of it."""

    def __init__(self, name: str, config: GigeConfig) -> None:
        self._name, self._config = name, config
        self._last_ip = config.ip

    @property
    def simulated(self) -> bool:
        return False

    def __call__(self) -> Link:
        aravis = load_aravis(self._name)
        found = self._find()
        self._last_ip = found.ip
        probe = gvcp.Probe(self._name, found.ip)
        try:
            self._require_free(probe, found)
            return AravisLink(self._name, self._config, aravis, found, probe)
        except BaseException:
            probe.close()
            raise

    def _find(self) -> gvcp.FoundCamera:
        """Raises CameraError naming what was found instead."""
        at_last = gvcp.ask_at(self._last_ip, _ASK_S) if self._last_ip else None
        if at_last and self._is_it(at_last):
            return at_last
        if self._config.ip:
            raise CameraError(
                f"camera {self._name}: no camera answers at {self._config.ip}; check power, cable, switch, and that "
                "this PC has an address in the camera's subnet"
            )
        found = gvcp.discover(_DISCOVERY_S, self._is_it)
        mine = [camera for camera in found if self._is_it(camera)]
        if len(mine) == 1:
            self._require_reachable(mine[0])
            return mine[0]
        others = "; ".join(map(str, found)) or "none"
        what = f"serial {self._config.serial}" if self._config.serial else f"name {self._config.device_name}"
        count = "two cameras have" if mine else "no camera has"
        raise CameraError(f"camera {self._name}: {count} {what}; cameras that answer: {others}")

    def _is_it(self, camera: gvcp.FoundCamera) -> bool:
        config = self._config
        if config.ip:
            return camera.ip == config.ip
        return camera.serial == config.serial if config.serial else camera.name == config.device_name

    def _require_reachable(self, camera: gvcp.FoundCamera) -> None:
        if gvcp.ask_at(camera.ip, _ASK_S) is None:
            raise CameraError(
                f"camera {self._name}: {camera} is in no subnet of this PC; give it an address of this PC's network, "
                "with its maker's tool or by DHCP"
            )

    def _require_free(self, probe: gvcp.Probe, found: gvcp.FoundCamera) -> None:
        """Raises CameraError when another client controls the camera."""
        if probe.may_control(_CONTROL_S):
            return
        held_by = _shown_ip(probe.read(gvcp.CONTROLLER_IP_REGISTER, _ASK_S))
        raise CameraError(
            f"camera {self._name}: {found} is controlled by another program{held_by}; end that program (a viewer, a "
            "second daemon). After a crash the camera frees itself within some seconds"
        )


def _shown_ip(register: int | None) -> str:
    return " on " + ".".join(str(part) for part in register.to_bytes(4, "big")) if register else ""


def _own_udp_socket(port: int) -> socket.socket | None:
    """This process's UDP socket at `port`, for the caller to close; None when there is none."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed by another thread meanwhile
            if entry.readlink().name.startswith("socket:"):
                opened = socket.socket(fileno=os.dup(int(entry.name)))
                if opened.type == socket.SOCK_DGRAM and opened.getsockname()[1:2] == (port,):
                    return opened
                opened.close()
    return None


def _receive_only_from(opened: socket.socket, ip: str) -> None:
    """Let the kernel drop what others send to this socket (a classic BPF program, socket(7)). Raises OSError."""
    address = int.from_bytes(socket.inet_aton(ip), "big")
    program = ctypes.create_string_buffer(
        b"".join(
            struct.pack("HBBI", *step)
            for step in (
                (0x20, 0, 0, _NETWORK_HEADER + 12),  # load the word at 12 of the IPv4 header: who sent it
                (0x15, 0, 1, address),  # if it is not this address, skip one
                (0x06, 0, 0, 0xFFFF_FFFF),  # take all of the packet
                (0x06, 0, 0, 0),  # take nothing
            )
        )
    )
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 4, ctypes.addressof(program)))


class AravisNodes:
    """A camera's node map through Aravis."""

    def __init__(self, aravis: Any, device: Any) -> None:
        from gi.repository import GLib

        self._aravis, self._device, self._error = aravis, device, GLib.Error

    def has(self, node: str) -> bool:
        try:
            return bool(self._device.is_feature_available(node))
        except self._error:
            return False

    def read(self, node: str) -> Value:
        aravis, device = self._aravis, self._device
        kind = device.get_feature(node)
        try:
            if isinstance(kind, aravis.GcEnumeration):
                return str(device.get_string_feature_value(node))
            if isinstance(kind, aravis.GcBoolean):
                return bool(device.get_boolean_feature_value(node))
            if isinstance(kind, aravis.GcFloat):
                return float(device.get_float_feature_value(node))
            if isinstance(kind, aravis.GcInteger):
                return int(device.get_integer_feature_value(node))
            return str(device.get_string_feature_value(node))
        except self._error as exc:
            raise NodeError(exc.message) from exc

    def write(self, node: str, value: Value) -> None:
        device = self._device
        try:
            if isinstance(value, bool):
                device.set_boolean_feature_value(node, value)
            elif isinstance(value, str):
                device.set_string_feature_value(node, value)
            elif isinstance(device.get_feature(node), self._aravis.GcFloat):
                device.set_float_feature_value(node, float(value))
            else:
                device.set_integer_feature_value(node, round(value))
        except self._error as exc:
            raise NodeError(exc.message) from exc

    def bounds(self, node: str) -> tuple[float, float]:
        device = self._device
        try:
            if isinstance(device.get_feature(node), self._aravis.GcFloat):
                found = device.get_float_feature_bounds(node)
            else:
                found = device.get_integer_feature_bounds(node)
        except self._error as exc:
            raise NodeError(exc.message) from exc
        return float(found[0]), float(found[1])

    def increment(self, node: str) -> float:
        device = self._device
        try:
            if isinstance(device.get_feature(node), self._aravis.GcFloat):
                return float(device.get_float_feature_increment(node))
            return float(device.get_integer_feature_increment(node))
        except self._error:
            return 0.0

    def entries(self, node: str) -> Sequence[str]:
        try:
            return list(self._device.dup_available_enumeration_feature_values_as_strings(node))
        except self._error as exc:
            raise NodeError(exc.message) from exc

    def execute(self, node: str) -> None:
        try:
            self._device.execute_command(node)
        except self._error as exc:
            raise NodeError(exc.message) from exc


class AravisLink:
    """One open camera. The constructor takes control and sets the transport; raises CameraError."""

    def __init__(self, name: str, config: GigeConfig, aravis: Any, found: gvcp.FoundCamera, probe: gvcp.Probe) -> None:
        from gi.repository import GLib

        self._name, self._config, self._aravis, self._found, self._probe = name, config, aravis, found, probe
        self._error = GLib.Error
        self._stream: Any = None
        self._ended: Counter[str] = Counter()
        self._stirred: Counter[str] = Counter()
        self._gone = False
        self._payload_bytes = 0
        self._nodes: AravisNodes | None = None
        try:
            self._camera: Any = aravis.Camera.new(found.ip)
            self._device: Any = self._camera.get_device()
            if self._device.is_controller():
                self._nodes = AravisNodes(aravis, self._device)
                self._set_transport()
        except GLib.Error as exc:
            raise CameraError(f"camera {name}: {found} cannot be opened ({exc.message})") from exc
        if not self._device.is_controller():
            self._let_go_aside()
            raise CameraError(f"camera {name}: {found} gives no control; another program may hold it")

    @property
    def description(self) -> str:
        return str(self._found)

    @property
    def nodes(self) -> AravisNodes:
        if self._nodes is None:
            raise CameraError(f"camera {self._name}: is closed")
        return self._nodes

    def _set_transport(self) -> None:
        config, camera = self._config, self._camera
        # As root Aravis would read packets from a ring that it shares with the kernel. Seen with it on a busy PC: after
        # some starts every packet was counted as ignored and no frame came. An ordinary user's daemon has no ring.
        camera.gv_set_stream_options(self._aravis.GvStreamOption.PACKET_SOCKET_DISABLED)
        self._device.write_register(gvcp.HEARTBEAT_TIMEOUT_REGISTER, _HEARTBEAT_TIMEOUT_MS)
        if config.packet_size == "auto":
            camera.gv_auto_packet_size()
        else:
            camera.gv_set_packet_size(config.packet_size)
            if (got := camera.gv_get_packet_size()) != config.packet_size:
                raise self._mismatch("packet_size", config.packet_size, got)
        camera.gv_set_packet_delay(config.packet_delay_ns)
        tick_ns = _NS_PER_S / max(1, self._device.get_timestamp_tick_frequency())
        if abs((got := camera.gv_get_packet_delay()) - config.packet_delay_ns) > max(1.0, tick_ns):
            raise self._mismatch("packet_delay_ns", config.packet_delay_ns, got)

    def _mismatch(self, key: str, asked: int, got: int) -> CameraError:
        return CameraError(
            f"camera {self._name}: {key} was set to {asked}, but the camera has {got}; choose one that it can have"
        )

    def start(self) -> None:
        aravis = self._aravis
        try:
            stream = self._camera.create_stream(None, None)
            resend = aravis.GvStreamPacketResend
            stream.set_property("packet-resend", resend.ALWAYS if self._config.resend else resend.NEVER)
            self._payload_bytes = int(self._camera.get_payload())
            # The kernel gives at most net.core.rmem_max. Aravis's own choice is one picture, which it counts without
            # the kernel's overhead of two thirds: at 512x512 px four pictures of five came incomplete on a busy PC.
            room_bytes = min(_LARGEST_ROOM_BYTES, max(_ROOM_BYTES, _ROOM_PICTURES * self._payload_bytes))
            stream.set_property("socket-buffer", aravis.GvStreamSocketBuffer.FIXED)
            stream.set_property("socket-buffer-size", room_bytes)
            self._prepare_socket(stream.get_port(), room_bytes)
            for _ in range(self._config.buffers):
                stream.push_buffer(aravis.Buffer.new_allocate(self._payload_bytes))
            self._stream, self._stirred = stream, Counter()
            self._camera.start_acquisition()
        except self._error as exc:
            raise CameraError(f"camera {self._name}: {self._found} does not start to send ({exc.message})") from exc

    def _prepare_socket(self, port: int, room_bytes: int) -> None:
        """Room for packets, which Aravis makes too, but when the first picture is under way; and packets of this camera
        alone. Aravis asks nobody where one comes from: those of another camera that still sends to this port, from
        before a crash or by a setting of its own, would end up in this one's pictures. Raises CameraError."""
        opened = _own_udp_socket(port)
        try:
            if opened is None:
                raise OSError(f"this process has no socket at port {port}")
            with opened:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room_bytes)
                _receive_only_from(opened, self._found.ip)
        except OSError as exc:
            raise CameraError(
                f"camera {self._name}: its stream cannot be kept apart from others' ({exc}); is /proc there?"
            ) from exc

    def stop(self) -> None:
        try:
            self._camera.stop_acquisition()
        except self._error as exc:
            raise CameraError(f"camera {self._name}: {self._found} does not stop sending ({exc.message})") from exc
        finally:
            self._keep_counters()
            self._stream = None

    def restart(self) -> None:
        # A new stream would take 50 to 250 ms.
        try:
            self._camera.stop_acquisition()
            while self.pop(_ON_THE_WAY_NS) is not None:
                pass
            self._camera.start_acquisition()
        except self._error as exc:
            raise CameraError(f"camera {self._name}: {self._found} does not start anew ({exc.message})") from exc

    def pop(self, timeout_ns: int) -> RawFrame | None:
        if self._stream is None:
            return None
        buffer = (
            self._stream.timeout_pop_buffer(max(1, timeout_ns // 1_000))
            if timeout_ns > 0
            else self._stream.try_pop_buffer()
        )
        if buffer is None:
            return None
        try:
            return self._copied(buffer)
        finally:
            self._stream.push_buffer(buffer)

    def _copied(self, buffer: Any) -> RawFrame:
        status, aravis = buffer.get_status(), self._aravis
        number, device_ns = buffer.get_frame_id(), buffer.get_timestamp() or None
        if status == aravis.BufferStatus.SIZE_MISMATCH:
            raise CameraError(
                f"camera {self._name}: sends pictures larger than the {self._payload_bytes} bytes it was set to; "
                "somebody else changes its settings"
            )
        if status != aravis.BufferStatus.SUCCESS:
            return RawFrame(status.value_nick.replace("-", " "), b"", 0, 0, 0, number, device_ns)
        payload, kinds = buffer.get_payload_type(), aravis.BufferPayloadType
        if payload not in (kinds.IMAGE, kinds.EXTENDED_CHUNK_DATA):
            raise CameraError(f"camera {self._name}: sends {payload.value_nick}, not pictures")
        return RawFrame(
            "", buffer.get_image_data(), buffer.get_image_width(), buffer.get_image_height(),
            buffer.get_image_pixel_format(), number, device_ns,
        )  # fmt: skip

    def stirs(self) -> bool:
        before, self._stirred = self._stirred, self._stream_counters()
        return self._stirred != before

    def assure(self, timeout_ns: int) -> None:
        try:
            privilege = self._probe.read(gvcp.CONTROL_PRIVILEGE_REGISTER, timeout_ns / _NS_PER_S)
        except CameraError:
            self._gone = True
            raise
        # A camera that refuses the question still answers, and Aravis hears itself when it loses control.
        if privilege == 0 or not self._device.is_controller():
            self._gone = True
            raise CameraError(
                f"camera {self._name}: control of {self._found} is lost; it restarted, or did not hear from this PC"
            )

    def counters(self) -> Mapping[str, int]:
        return self._ended + self._stream_counters()

    def _stream_counters(self) -> Counter[str]:
        stream = self._stream
        if stream is None:
            return Counter()
        found = {stream.get_info_name(i): i for i in range(stream.get_n_infos())}
        return Counter(
            {ours: int(stream.get_info_uint64(found[theirs])) for theirs, ours in _COUNTERS.items() if theirs in found}
        )

    def _keep_counters(self) -> None:
        self._ended = self._ended + self._stream_counters()

    def close(self) -> None:
        if self._camera is None:
            return
        if self._says_goodbye():
            self._nodes = self._device = self._camera = None
        else:
            self._keep_counters()
            self._let_go_aside()
        self._probe.close()

    def _says_goodbye(self) -> bool:
        """Stop the stream of a camera that still answers; False when it does not."""
        try:
            if not self._gone:
                self.assure(_ANSWER_NS)
                self.stop()
        except CameraError as error:
            log.info("%s; it is let go of without a word", error)
            return False
        return not self._gone

    def _let_go_aside(self) -> None:
        """Destructors of a dead camera wait for answers, up to ten seconds, and Python's own hold its global lock
        meanwhile. So the last references are counted outside of it."""
        kept = [found for found in (self._stream, self._camera) if found is not None]
        self._nodes = self._device = self._camera = self._stream = None
        gobject = ctypes.CDLL("libgobject-2.0.so.0")
        pointers = [ctypes.c_void_p(hash(found)) for found in kept]  # PyGObject hashes by the object's address
        for pointer in pointers:
            gobject.g_object_ref(pointer)
        kept.clear()

        def let_go() -> None:
            for pointer in pointers:
                gobject.g_object_unref(pointer)

        threading.Thread(target=let_go, name=f"camera-{self._name}-leftover", daemon=True).start()
