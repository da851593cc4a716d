"""Cameras through a maker's GenTL producer, by harvesters 1.4.

What harvesters does: a fetch with a timeout of 0 waits for ever; incomplete buffers are thrown away with no
more than a callback, so that their number is not known.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_daemon.cameras.base import Past
from edge_daemon.cameras.config import GentlConfig
from edge_daemon.cameras.genicam import GenicamCamera, Link, RawFrame
from edge_daemon.cameras.genicam_settings import NodeError, Value
from edge_daemon.cameras.waiting import Clock
from edge_daemon.errors import CameraError

_NS_PER_S = 1_000_000_000
_SHORTEST_FETCH_S = 1e-3
_ON_THE_WAY_NS = 20_000_000
_READABLE_FROM, _READABLE_TO = 2, 4  # GenApi's access modes WO, RO, RW; below them "not implemented", "not available"


def gentl_camera(name: str, config: GentlConfig, clock_ns: Clock, past: Past | None = None) -> GenicamCamera:
    """The camera of one table of the configuration, not yet opened."""
    return GenicamCamera(name, config, clock_ns, GentlConnector(name, config), past)


class GentlConnector:
    """Loads the producer and takes control of its camera."""

    def __init__(self, name: str, config: GentlConfig) -> None:
        self._name, self._config = name, config

    @property
    def simulated(self) -> bool:
        return self._config.simulated

    def __call__(self) -> Link:
        name, producer = self._name, self._config.producer
        try:
            from harvesters.core import Harvester
        except ImportError as exc:
            raise CameraError(
                f"camera {name}: GenTL cameras need harvesters, which is not installed; "
                "pip install 'edge-daemon[gentl]'"
            ) from exc
        if not Path(producer).is_file():
            raise CameraError(f"camera {name}: there is no producer {producer}; install the camera maker's software")
        harvester = Harvester()
        try:
            harvester.add_file(str(producer))
            harvester.update()
            return HarvestersLink(name, self._config, harvester, self._chosen(harvester.device_info_list))
        except CameraError:
            harvester.reset()
            raise
        except Exception as exc:  # whatever a producer throws
            harvester.reset()
            raise CameraError(f"camera {name}: {producer} does not open the camera ({_said(exc)})") from exc

    def _chosen(self, found: Sequence[Any]) -> Any:
        config = self._config
        fitting = [
            info
            for info in found
            if config.serial in (None, info.serial_number) and config.device_id in (None, info.id_)
        ]
        if len(fitting) == 1:
            return fitting[0]
        shown = "; ".join(f"{info.vendor} {info.model}, serial {info.serial_number}, id {info.id_}" for info in found)
        if not fitting and not shown:
            raise CameraError(
                f"camera {self._name}: {config.producer} finds no camera at all; check that it is this PC's make and "
                "version, power, cable, and the maker's own viewer"
            )
        raise CameraError(
            f"camera {self._name}: {len(fitting)} cameras fit the configuration; say which with serial or device_id: "
            f"{shown}"
        )


class GenApiNodes:
    """A camera's node map through GenApi, the GenICam reference implementation."""

    def __init__(self, node_map: Any) -> None:
        self._map = node_map

    def has(self, node: str) -> bool:
        try:
            return bool(
                self._map.has_node(node)
                and _READABLE_FROM <= int(getattr(self._map, node).get_access_mode()) <= _READABLE_TO
            )
        except Exception:  # GenApi's and SWIG's own
            return False

    def read(self, node: str) -> Value:
        value = self._do(lambda: getattr(self._map, node).value)
        return value if isinstance(value, bool | int | float) else str(value)

    def write(self, node: str, value: Value) -> None:
        def assign() -> None:
            found = getattr(self._map, node)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.value = type(found.value)(value)
            else:
                found.value = value

        self._do(assign)

    def bounds(self, node: str) -> tuple[float, float]:
        found = self._do(lambda: (getattr(self._map, node).min, getattr(self._map, node).max))
        return float(found[0]), float(found[1])

    def increment(self, node: str) -> float:
        try:
            return float(getattr(self._map, node).inc)
        except Exception:  # a float without one throws
            return 0.0

    def entries(self, node: str) -> Sequence[str]:
        return [str(entry) for entry in self._do(lambda: getattr(self._map, node).symbolics)]

    def execute(self, node: str) -> None:
        self._do(lambda: getattr(self._map, node).execute())

    @staticmethod
    def _do(what: Any) -> Any:
        try:
            return what()
        except Exception as exc:  # GenApi's and SWIG's own: AttributeError for a node that is not there
            raise NodeError(_said(exc)) from exc


class HarvestersLink:
    """One open camera. Raises whatever harvesters raises when it cannot be opened."""

    def __init__(self, name: str, config: GentlConfig, harvester: Any, info: Any) -> None:
        from harvesters.core import Callback

        self._name, self._config, self._harvester = name, config, harvester
        self._description = f"{info.vendor} {info.model}, serial {info.serial_number}"
        self._acquirer: Any = harvester.create({"id_": info.id_})
        self._nodes = GenApiNodes(self._acquirer.remote_device.node_map)
        self._counted: Counter[str] = Counter()

        class CountIncomplete(Callback):  # type: ignore[misc]
            def emit(self, context: object) -> None:  # noqa: ARG002
                counted["incomplete"] += 1

        counted = self._counted
        self._acquirer.add_callback(self._acquirer.Events.INCOMPLETE_BUFFER, CountIncomplete())

    @property
    def description(self) -> str:
        return self._description

    @property
    def nodes(self) -> GenApiNodes:
        return self._nodes

    def start(self) -> None:
        try:
            self._acquirer.num_buffers = max(self._config.buffers, self._acquirer.min_num_buffers)
            self._acquirer.start()
        except Exception as exc:
            raise self._failed("does not start to send", exc) from exc

    def stop(self) -> None:
        try:
            if self._acquirer.is_acquiring():
                self._acquirer.stop()
        except Exception as exc:
            raise self._failed("does not stop sending", exc) from exc

    def restart(self) -> None:
        while self.pop(_ON_THE_WAY_NS) is not None:
            pass
        self.stop()
        self.start()

    def pop(self, timeout_ns: int) -> RawFrame | None:
        if not self._acquirer.is_acquiring():
            return None
        try:
            before = self._counted["incomplete"]
            buffer = self._acquirer.try_fetch(timeout=max(_SHORTEST_FETCH_S, timeout_ns / _NS_PER_S))
            if buffer is None:
                lost = self._counted["incomplete"] > before
                return RawFrame("incomplete", b"", 0, 0, 0, None, None) if lost else None
            try:
                return self._copied(buffer)
            finally:
                buffer.queue()
        except CameraError:
            raise
        except Exception as exc:
            raise self._failed("cannot be read", exc) from exc

    def _copied(self, buffer: Any) -> RawFrame:
        self._counted["completed"] += 1
        pictures = buffer.payload.components
        if len(pictures) != 1:
            raise CameraError(f"camera {self._name}: sends {len(pictures)} pictures at once; only one can be judged")
        picture, module = pictures[0], buffer.module
        data = np.ascontiguousarray(picture.data).view(np.uint8).reshape(-1).tobytes()
        return RawFrame(
            "", data, picture.width, picture.height, int(picture.data_format_value), int(module.frame_id),
            _timestamp_ns(module),
        )  # fmt: skip

    def stirs(self) -> bool:
        """True as well where the producer does not say what lies in its stream."""
        try:
            return bool(self._acquirer.data_streams[0].num_awaiting_delivery > 0)
        except Exception:  # GenTL: not available
            return True

    def assure(self, timeout_ns: int) -> None:  # noqa: ARG002  # GenApi knows no deadline
        try:
            alive = self._acquirer.is_valid()
            self._nodes.read("PayloadSize")
        except NodeError as exc:
            raise self._failed("does not answer", exc) from exc
        if not alive:
            raise CameraError(f"camera {self._name}: {self._description} is gone; the daemon reconnects")

    def counters(self) -> Mapping[str, int]:
        return dict(self._counted)

    def close(self) -> None:
        acquirer, self._acquirer = self._acquirer, None
        if acquirer is None:
            return
        for let_go in (acquirer.stop, acquirer.destroy, self._harvester.reset):
            try:
                let_go()
            except Exception:  # a camera that is gone says so in its own way
                continue

    def _failed(self, what: str, exc: Exception) -> CameraError:
        return CameraError(f"camera {self._name}: {self._description} {what} ({_said(exc)})")


def _timestamp_ns(module: Any) -> int | None:
    """Time stamp of a GenTL buffer; None where the producer has none."""
    try:
        return int(module.timestamp_ns) or None
    except Exception:  # GenTL: not available
        return None


def _said(exc: Exception) -> str:
    """First sentence of a foreign error, which may be a page."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]
