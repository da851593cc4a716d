"""A camera that looks at simulated parts and fails by script: the production interface, no hardware."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_daemon.cameras.base import FrameLost
from edge_daemon.cameras.config import Fault, SimulatedConfig
from edge_daemon.cameras.exposures import Exposure, Exposures
from edge_daemon.cameras.waiting import Clock, Pause, Waiter
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError
from edge_daemon.simulation.defects import DefectScript
from edge_daemon.simulation.names import DefectKind
from edge_daemon.simulation.render import Scene


def defect_script(config: SimulatedConfig) -> DefectScript:
    """Which parts of this camera are defective, without rendering any. Part i comes in frame i + 1."""
    listed = {index: None if kind == "good" else DefectKind(kind) for index, kind in config.defects.items()}
    return DefectScript(seed=config.seed, rate=config.defect_rate, listed=listed)


class SimulatedCamera:
    """Renders one part per exposure. Each scripted fault happens once, also across reconnects."""

    def __init__(self, name: str, config: SimulatedConfig, clock_ns: Clock, pause_s: Pause | None = None) -> None:
        self._name = name
        self._config = config
        self._waiter = Waiter(clock_ns, pause_s)
        self._truth = defect_script(config)
        self._exposures = Exposures(config.first_index, config.rate_hz, round(config.exposure_ms * 1e6))
        self._faults = _Faults(config.faults)
        self._scene: Scene | None = None
        self._is_open = False
        self._unreachable_until_ns: int | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def simulated(self) -> bool:
        return True

    @property
    def waits_for_host(self) -> bool:
        return self._config.rate_hz == 0

    def open(self) -> None:
        """Prepare the scene, once in the camera's life (some tenths of a second). Raises CameraError."""
        if self._is_open:
            return
        now_ns = self._waiter.now_ns
        if self._unreachable_until_ns is not None and now_ns < self._unreachable_until_ns:
            raise CameraError(f"camera {self._name}: cannot be reached (scripted); the daemon tries again")
        self._unreachable_until_ns = None
        self._scene = self._scene or Scene(self._config.product, self._config.size)
        self._waiter.start()
        self._exposures.restart()
        self._is_open = True

    def close(self) -> None:
        self._waiter.stop()
        self._is_open = False

    def check(self, timeout_ns: int) -> None:  # noqa: ARG002  # answers at once
        self._require_open()

    def counters(self) -> Mapping[str, int]:
        return {}

    def settings(self) -> Mapping[str, str | int | float | bool]:
        return {}

    def trigger(self) -> None:
        self._require_open()
        self._exposures.trigger(self._waiter.now_ns)

    def grab(self, timeout_ns: int) -> Frame | None:
        scene = self._require_open()
        deadline_ns = self._waiter.now_ns + timeout_ns
        while True:
            exposure = self._exposures.next(self._waiter.now_ns, draining=timeout_ns <= 0)
            if exposure is None or exposure.complete_ns > deadline_ns:
                self._waiter.until(deadline_ns)
                self._require_open()
                return None
            fault = self._faults.take(exposure)
            if fault is not None and fault.action == "drop":
                self._waiter.until(exposure.complete_ns)
                self._exposures.fetched(exposure)
                continue
            return self._deliver(scene, exposure, fault)

    def _deliver(self, scene: Scene, exposure: Exposure, fault: Fault | None) -> Frame:
        """Render while the exposure lasts, then hand over at its end; or do what the script says."""
        self._exposures.fetched(exposure)
        frame_id, action = exposure.index + 1, None if fault is None else fault.action
        if fault is not None and action in ("error", "disconnect"):
            self._waiter.until(exposure.complete_ns)
            raise self._failure(frame_id, fault)
        pixels = scene.part(self._config.seed, exposure.index, self._truth.truth(exposure.index)).pixels
        if fault is not None and action == "hang":
            self._waiter.until(self._waiter.now_ns + round(fault.seconds * 1e9))
        self._waiter.until(exposure.complete_ns)
        self._require_open()
        return Frame(self._name, frame_id, _spoiled(pixels, action), self._waiter.now_ns)

    def _failure(self, frame_id: int, fault: Fault) -> CameraError:
        if fault.action == "error":
            return FrameLost(f"camera {self._name}: frame {frame_id} came incomplete (scripted); it is lost")
        self._unreachable_until_ns = self._waiter.now_ns + round(fault.seconds * 1e9)
        return CameraError(f"camera {self._name}: connection lost at frame {frame_id} (scripted); it must be reopened")

    def _require_open(self) -> Scene:
        if self._unreachable_until_ns is not None:
            raise CameraError(f"camera {self._name}: connection lost (scripted); it must be reopened")
        if not self._is_open or self._scene is None:
            raise CameraError(f"camera {self._name}: asked for a frame while it is closed; open it first")
        return self._scene


class _Faults:
    """The script: faults by frame and by trigger, each taken once."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._left = list(faults)

    def take(self, exposure: Exposure) -> Fault | None:
        for fault in self._left:
            if fault.frame == exposure.index + 1 or (exposure.trigger and fault.trigger == exposure.trigger):
                self._left.remove(fault)
                return fault
        return None


def _spoiled(pixels: NDArray[np.uint8], action: str | None) -> NDArray[np.uint8]:
    if action == "black":
        return np.zeros_like(pixels)
    if action == "wrong_size":
        return np.ascontiguousarray(pixels[: pixels.shape[0] // 2, : pixels.shape[1] // 2])
    return pixels
