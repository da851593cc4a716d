"""A camera that looks at simulated parts and fails by script: the production interface, no hardware."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.cameras.base import FrameLost, Past
from edge_daemon.cameras.config import Fault, SimulatedConfig
from edge_daemon.cameras.exposures import Exposure, Exposures
from edge_daemon.cameras.pulses import Pulses
from edge_daemon.cameras.waiting import Clock, Pause, Waiter
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError
from edge_daemon.simulation.defects import DefectScript
from edge_daemon.simulation.names import DefectKind
from edge_daemon.simulation.render import Scene

Pixels = NDArray[np.uint8]
EndProcess = Callable[[Literal["crash", "freeze"]], None]

# The frame counter of a GigE Vision camera has 16 bits and leaves the zero out.
_LAST_DEVICE_ID = 65_535


def defect_script(config: SimulatedConfig) -> DefectScript:
    """Which parts of this camera are defective, without rendering any. Part i comes in frame i + 1."""
    listed = {index: None if kind == "good" else DefectKind(kind) for index, kind in config.defects.items()}
    return DefectScript(seed=config.seed, rate=config.defect_rate, listed=listed)


class SimulatedCamera:
    """Renders one part per exposure. Each scripted fault happens once, also across reconnects.

    Its own clock is the PC's, so that `exposed_ns` is exact until a fault says otherwise. end_process: what `crash`
    and `freeze` do.
    """

    def __init__(
        self,
        name: str,
        config: SimulatedConfig,
        clock_ns: Clock,
        pause_s: Pause | None = None,
        past: Past | None = None,
        end_process: EndProcess | None = None,
    ) -> None:
        past = past or Past()
        self._name = name
        self._config = config
        self._waiter = Waiter(clock_ns, pause_s)
        self._truth = defect_script(config)
        self._exposure_ns = round(config.exposure_ms * 1e6)
        first_index = max(config.first_index, past.frames)
        self._exposures = Exposures(first_index, config.rate_hz, self._exposure_ns, past.triggers)
        self._pulses = Pulses(name, config.pulses) if config.pulses is not None else None
        self._faults = _Faults(config.faults)
        self._end_process = end_process
        self._scene: Scene | None = None
        self._is_open = False
        self._unreachable_until_ns: int | None = None
        self._smaller = False
        self._ids_from = 0
        self._previous: Frame | None = None
        self._ready: deque[Frame] = deque()  # comes with the next grab, asked for or not
        self._late: Frame | None = None
        self._swapped: Frame | None = None
        self._completed = self._failed = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def simulated(self) -> bool:
        return True

    @property
    def waits_for_host(self) -> bool:
        return self._config.rate_hz == 0 and self._pulses is None

    @property
    def overdue(self) -> bool:
        return False

    def open(self) -> None:
        """Prepare the scene, once in the camera's life (some tenths of a second). Raises CameraError."""
        if self._is_open:
            return
        now_ns = self._waiter.now_ns
        if self._unreachable_until_ns is not None and now_ns < self._unreachable_until_ns:
            raise CameraError(f"camera {self._name}: cannot be reached (scripted); the daemon tries again")
        self._unreachable_until_ns = None
        if self._pulses is not None:
            self._pulses.open()
        self._scene = self._scene or Scene(self._config.product, self._config.size)
        self._waiter.start()
        self._exposures.restart()
        self._ready.clear()
        self._late = self._swapped = None
        self._is_open = True

    def close(self) -> None:
        self._waiter.stop()
        if self._pulses is not None:
            self._pulses.close()
        self._is_open = False

    def check(self, timeout_ns: int) -> None:  # noqa: ARG002  # answers at once
        self._require_open()

    def counters(self) -> Mapping[str, int]:
        return {"completed": self._completed, "failed": self._failed}

    def settings(self) -> Mapping[str, str | int | float | bool]:
        if not self._is_open:
            return {}
        half = 2 if self._smaller else 1
        width, height = (side // half for side in self._config.size)
        return {"width": width, "height": height, "pixel_format": "RGB8", "exposure_ms": self._config.exposure_ms}

    def trigger(self) -> None:
        self._require_open()
        if self._pulses is not None:
            raise CameraError(
                f"camera {self._name}: is triggered by pulses and cannot be triggered by software; give its station a "
                "hardware trigger"
            )
        self._exposures.trigger(self._waiter.now_ns)

    def grab(self, timeout_ns: int) -> Frame | None:
        self._require_open()
        if self._ready:
            return self._ready.popleft()
        deadline_ns = self._waiter.now_ns + timeout_ns
        while True:
            exposure = self._next(deadline_ns, draining=timeout_ns <= 0)
            if exposure is None or (exposure.complete_ns > deadline_ns and exposure.part is None):
                self._waiter.until(deadline_ns)
                self._require_open()
                return None
            self._exposures.fetched(exposure)
            fault = self._faults.of(exposure)
            if (frame := self._exposed(exposure, fault)) is not None:
                return frame

    def _next(self, deadline_ns: int, draining: bool) -> Exposure | None:
        """The exposure to fetch next; one that a pulse began is fetched to its end."""
        if self._pulses is None:
            return self._exposures.next(self._waiter.now_ns, draining)
        while True:
            pulse = self._pulses.next((deadline_ns - self._waiter.now_ns) / 1e9)
            if pulse is not None:
                return self._exposures.pulse(pulse.part, pulse.at_ns or self._waiter.now_ns)
            if self._waiter.now_ns >= deadline_ns or not self._is_open:
                return None

    # -- what comes of an exposure -------------------------------------------------------------------

    def _exposed(self, exposure: Exposure, fault: Fault | None) -> Frame | None:
        """Render while the exposure lasts, then hand over at its end; or do what the script says."""
        if fault is not None and fault.action in ("drop", "error", "disconnect", "return_smaller", "crash", "freeze"):
            self._waiter.until(exposure.complete_ns)
            self._fail(exposure.index + 1, fault)
            return None
        part = exposure.index if exposure.part is None else exposure.part
        pixels = self._require_open().part(self._config.seed, part, self._truth.truth(part)).pixels
        if fault is not None and fault.action == "hang":
            self._waiter.until(self._waiter.now_ns + round(fault.seconds * 1e9))
        self._waiter.until(exposure.complete_ns)
        self._require_open()
        frame = self._frame(exposure, pixels, fault)
        self._completed += 1
        before, self._previous = self._previous, frame
        return self._in_order(frame, None if fault is None else fault.action, before)

    def _fail(self, frame_id: int, fault: Fault) -> None:
        """A fault that leaves no frame. Raises CameraError, except for one that is merely dropped."""
        self._failed += 1
        if fault.action == "error":
            raise FrameLost(f"camera {self._name}: frame {frame_id} came incomplete (scripted); it is lost")
        if fault.action in ("crash", "freeze") and self._end_process is not None:
            self._end_process("crash" if fault.action == "crash" else "freeze")
        if fault.action in ("disconnect", "return_smaller"):
            self._smaller = self._smaller or fault.action == "return_smaller"
            self._unreachable_until_ns = self._waiter.now_ns + round(fault.seconds * 1e9)
            raise CameraError(
                f"camera {self._name}: connection lost at frame {frame_id} (scripted); it must be reopened"
            )

    def _frame(self, exposure: Exposure, pixels: Pixels, fault: Fault | None) -> Frame:
        action = None if fault is None else fault.action
        frame_id, now_ns = exposure.index + 1, self._waiter.now_ns
        exposed_ns = exposure.complete_ns - self._exposure_ns
        if fault is not None and action == "clock_jump":
            exposed_ns += round(fault.seconds * 1e9)
        if action == "id_wrap":
            self._ids_from = _LAST_DEVICE_ID - frame_id
        if action == "repeat" and self._previous is not None:
            pixels = self._previous.pixels
        return Frame(
            camera=self._name,
            frame_id=frame_id,
            pixels=_spoiled(pixels, "wrong_size" if self._smaller else action),
            arrived_ns=now_ns,
            device_frame_id=(frame_id + self._ids_from - 1) % _LAST_DEVICE_ID + 1,
            device_ns=exposed_ns,
            exposed_ns=exposed_ns,
            clock_quality="camera",
        )

    def _in_order(self, frame: Frame, action: str | None, before: Frame | None) -> Frame | None:
        """The frame that comes now; others may come with the next grab, or after the next exposure."""
        if action == "late":
            self._late = frame
            return None
        if action == "swapped":
            self._swapped = frame
            return None
        coming = [self._late, before if action == "stale" else None, frame, self._swapped]
        if action == "doubled":
            coming.append(frame)
        self._late = self._swapped = None
        self._ready.extend(one for one in coming if one is not None)
        return self._ready.popleft()

    def _require_open(self) -> Scene:
        if self._unreachable_until_ns is not None:
            raise CameraError(f"camera {self._name}: connection lost (scripted); it must be reopened")
        if not self._is_open or self._scene is None:
            raise CameraError(f"camera {self._name}: asked for a frame while it is closed; open it first")
        return self._scene


class _Faults:
    """The script: faults by frame and by trigger. No exposure has the number of another, so each happens once."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._faults = tuple(faults)

    def of(self, exposure: Exposure) -> Fault | None:
        for fault in self._faults:
            number = exposure.index + 1 if fault.frame is not None else exposure.trigger
            first = fault.frame or fault.trigger or 0
            if number and first <= number < first + fault.count:
                return fault
        return None


def _spoiled(pixels: Pixels, action: str | None) -> Pixels:
    """What the fault does to the picture. The amounts are such as an operator would see at a glance."""
    match action:
        case "black":
            return np.zeros_like(pixels)
        case "dark":
            return (pixels * np.float32(0.4)).astype(np.uint8)
        case "blur":
            return np.asarray(cv2.GaussianBlur(pixels, (0, 0), max(pixels.shape[:2]) / 100), np.uint8)
        case "shift":
            return np.roll(pixels, pixels.shape[1] // 20, axis=1)
        case "wrong_size":
            return np.ascontiguousarray(pixels[: pixels.shape[0] // 2, : pixels.shape[1] // 2])
        case "wrong_format":
            return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
    return pixels
