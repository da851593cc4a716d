"""Settings of a GenICam camera: written in the order that cameras need, and read back.

Names are those of the GenICam Standard Features Naming Convention (SFNC 2.7), with the older ones that cameras in the
field still use. Nothing here knows a library: `Nodes` is a camera's node map, through Aravis or a GenTL producer.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from edge_daemon.cameras.config import GenicamConfig
from edge_daemon.core.camera_settings import differences, in_words
from edge_daemon.core.pixel_format import format_named, names_of
from edge_daemon.errors import CameraError

log = logging.getLogger(__name__)

Value = str | int | float | bool

EXPOSURE = ("ExposureTime", "ExposureTimeAbs")
GAIN_DB = ("Gain", "GainAbs")
GAIN_RAW = ("GainRaw",)
RATE = ("AcquisitionFrameRate", "AcquisitionFrameRateAbs")
RATE_ENABLE = ("AcquisitionFrameRateEnable", "AcquisitionFrameRateEnabled")
TRIGGER_DELAY = ("TriggerDelay", "TriggerDelayAbs")
DEBOUNCE = ("LineDebouncerTime", "LineDebouncerTimeAbs", "LineDebounceTime")
AUTOMATICS = ("ExposureAuto", "GainAuto", "BalanceWhiteAuto")
BINNING = ("BinningHorizontal", "BinningVertical", "DecimationHorizontal", "DecimationVertical")
PTP_ENABLE = ("PtpEnable", "GevIEEE1588")
PTP_STATUS = ("PtpStatus", "GevIEEE1588Status")

_SHOWN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("exposure_us", EXPOSURE), ("gain_db", GAIN_DB), ("gain_raw", GAIN_RAW),
)  # fmt: skip
# Whatever of these the camera has shapes its pictures, configured or not. Gains and black levels are those of the
# selector that is set, which is all of them after `user_set` was loaded.
_SHOWN_TOO: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("exposure_auto", ("ExposureAuto",)), ("gain_auto", ("GainAuto",)), ("balance_auto", ("BalanceWhiteAuto",)),
    ("black_level", ("BlackLevel", "BlackLevelAbs")), ("black_level_raw", ("BlackLevelRaw",)),
    ("gamma_enable", ("GammaEnable", "GammaEnabled")), ("gamma", ("Gamma",)), ("lut_enable", ("LUTEnable",)),
    ("binning_x", ("BinningHorizontal",)), ("binning_x_mode", ("BinningHorizontalMode",)),
    ("binning_y", ("BinningVertical",)), ("binning_y_mode", ("BinningVerticalMode",)),
    ("decimation_x", ("DecimationHorizontal",)), ("decimation_y", ("DecimationVertical",)),
    ("flip_x", ("ReverseX",)), ("flip_y", ("ReverseY",)), ("digital_shift", ("DigitalShift",)),
    ("test_pattern", ("TestPattern", "TestImageSelector")),
)  # fmt: skip
_BALANCE, _BALANCE_OF = ("BalanceRatio", "BalanceRatioAbs"), "BalanceRatioSelector"
_SHOWN_OF_LINE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("line", ("TriggerSource",)), ("activation", ("TriggerActivation",)), ("delay_us", TRIGGER_DELAY),
    ("debounce_us", DEBOUNCE),
)  # fmt: skip

# Cameras round exposures to their line time, which few of them declare.
_TOLERANCE = 0.01


class NodeError(Exception):
    """A node cannot be read, written or executed; the message is the library's."""


class Nodes(Protocol):
    """A camera's node map. Every call may raise NodeError."""

    def has(self, node: str) -> bool:
        """Whether the camera has this node now."""
        ...

    def read(self, node: str) -> Value: ...

    def write(self, node: str, value: Value) -> None: ...

    def bounds(self, node: str) -> tuple[float, float]:
        """Least and largest value of a number."""
        ...

    def increment(self, node: str) -> float:
        """Step of a number; 0 where none is declared."""
        ...

    def entries(self, node: str) -> Sequence[str]:
        """Values that an enumeration may take now."""
        ...

    def execute(self, node: str) -> None:
        """Run a command and wait for its acknowledgement, not for its end."""
        ...


def first(nodes: Nodes, names: Iterable[str]) -> str | None:
    """The first of several names that the camera has."""
    return next((name for name in names if nodes.has(name)), None)


@dataclass(slots=True)
class Setup:
    """One camera's settings on their way: written by `apply`, compared by `verified`, from then on `watched`."""

    camera: str
    nodes: Nodes
    config: GenicamConfig
    _asked: dict[str, tuple[str, Value]] = field(default_factory=dict)  # key of the configuration -> node, value
    _seen: list[tuple[str, str, Value]] = field(default_factory=list)  # name, node, value: what one look can read again

    def apply(self) -> None:
        """Write everything. Raises CameraError naming the key, its value and what the camera takes."""
        self._reset()
        self._pixel_format()
        self._region()
        config = self.config
        self._number("exposure_us", EXPOSURE, config.exposure_us)
        self._number("gain_db", GAIN_DB, config.gain_db, hint="; an older one may count steps: give gain_raw instead")
        self._number("gain_raw", GAIN_RAW, config.gain_raw)
        if config.rate_hz is not None and (enable := first(self.nodes, RATE_ENABLE)):
            self._write("rate_hz", enable, True)
        self._number("rate_hz", RATE, config.rate_hz)
        if config.ptp:
            self._choose("ptp", self._needed("ptp", PTP_ENABLE), True)
        self._trigger()

    def verified(self) -> Mapping[str, Value]:
        """What the camera has now, by key of the configuration. Raises CameraError when it is not what was asked."""
        for key, (node, asked) in self._asked.items():
            found = self._read(key, node)
            if not self._same(node, asked, found):
                raise CameraError(
                    f"camera {self.camera}: {key} was set to {asked}, but the camera has {found} ({node}); choose a "
                    "value that it can have"
                )
        return self._readings()

    def watched(self) -> "Watch":
        """What was `verified`, to be compared again and again. The white balance is not in it: a selector would have to
        be moved for that."""
        return Watch(self.camera, tuple(self._seen))

    # -- parts of `apply` ------------------------------------------------------------------------------

    def _reset(self) -> None:
        """Settings outlive their client, in the camera: begin from known ones."""
        if self.config.user_set and self.nodes.has("UserSetSelector") and self.nodes.has("UserSetLoad"):
            self._choose("user_set", "UserSetSelector", self.config.user_set)
            self._run("user_set", "UserSetLoad")
        for node in AUTOMATICS:  # an automatic changes the picture from part to part
            if self.nodes.has(node):
                self._choose(node, node, "Off")
        for node in BINNING:
            if self.nodes.has(node):
                self._write(node, node, 1)
        if self.nodes.has("AcquisitionMode"):
            self._choose("AcquisitionMode", "AcquisitionMode", "Continuous")

    def _pixel_format(self) -> None:
        wanted = self.config.pixel_format
        offered = self._entries("pixel_format", "PixelFormat")
        name = next((name for name in names_of(wanted) if name in offered), None)
        if name is None:
            usable = ", ".join(entry for entry in offered if format_named(entry)) or "none that can be judged"
            raise self._wrong("pixel_format", wanted, f"it has {usable}")
        self._write("pixel_format", "PixelFormat", name)

    def _region(self) -> None:
        """Offsets to zero first: they limit the size; offsets to their place last: the size limits them."""
        for node in ("OffsetX", "OffsetY"):
            if self.nodes.has(node):
                self._write("region", node, 0)
        x, y, *size = self.config.region or (0, 0, self._largest("Width"), self._largest("Height"))
        for key, node, value in (
            ("width of region", "Width", size[0]), ("height of region", "Height", size[1]),
            ("x of region", "OffsetX", x), ("y of region", "OffsetY", y),
        ):  # fmt: skip
            if self.nodes.has(node):
                self._bounded(key, node, value)
                self._asked[key] = node, value
            elif value:
                raise self._wrong(key, value, f"it has no {node}")

    def _trigger(self) -> None:
        """Every selector off, then the one that starts a frame; its other keys last, so that nothing resets them."""
        config, nodes = self.config, self.nodes
        if not nodes.has("TriggerMode"):
            if config.trigger != "free_run":
                raise self._wrong("trigger", config.trigger, "it has no trigger; only free_run is possible")
            return
        selectors = self._entries("trigger", "TriggerSelector") if nodes.has("TriggerSelector") else ()
        for selector in selectors:
            self._write("trigger", "TriggerSelector", selector)
            self._write("trigger", "TriggerMode", "Off")
        if selectors:
            starts = next((s for s in ("FrameStart", "ExposureStart", "AcquisitionStart") if s in selectors), None)
            if starts is None:
                raise self._wrong("trigger", config.trigger, f"its triggers start {', '.join(selectors)} and no frame")
            self._choose("trigger", "TriggerSelector", starts)
        if config.trigger == "free_run":
            self._choose("trigger", "TriggerMode", "Off")
            return
        self._choose("line", "TriggerSource", config.line if config.trigger == "hardware" else "Software")
        if config.trigger == "hardware":
            self._hardware_trigger()
        self._choose("trigger", "TriggerMode", "On")

    def _hardware_trigger(self) -> None:
        config = self.config
        if self.nodes.has("TriggerActivation") or config.activation != "RisingEdge":
            self._choose("activation", "TriggerActivation", config.activation)
        if config.delay_us or first(self.nodes, TRIGGER_DELAY):
            self._number("delay_us", TRIGGER_DELAY, config.delay_us)
        if config.debounce_us is not None:
            if self.nodes.has("LineSelector"):
                self._choose("debounce_us", "LineSelector", config.line)
            self._number("debounce_us", DEBOUNCE, config.debounce_us)

    # -- nodes, with errors that name the key ------------------------------------------------------------

    def _number(self, key: str, names: Sequence[str], value: float | None, hint: str = "") -> None:
        if value is None:
            return
        node = self._needed(key, names, hint)
        self._bounded(key, node, value)
        self._asked[key] = node, value

    def _choose(self, key: str, node: str, value: Value) -> None:
        """Write an enumeration or a switch, to be read back."""
        if isinstance(value, str):
            offered = self._entries(key, node)
            if value not in offered:
                raise self._wrong(key, value, f"{node} takes {', '.join(offered)}")
        self._write(key, node, value)
        self._asked[f"{key} ({node})"] = node, value

    def _bounded(self, key: str, node: str, value: float) -> None:
        try:
            least, largest = self.nodes.bounds(node)
        except NodeError as exc:
            raise self._failed(key, node, exc) from exc
        if not least <= value <= largest:
            raise self._wrong(key, value, f"{node} takes {least:g} to {largest:g}")
        self._write(key, node, value)

    def _needed(self, key: str, names: Sequence[str], hint: str = "") -> str:
        node = first(self.nodes, names)
        if node is None:
            raise self._wrong(key, getattr(self.config, key), f"it has no {names[0]}{hint}")
        return node

    def _largest(self, node: str) -> int:
        try:
            return int(self.nodes.bounds(node)[1])
        except NodeError as exc:
            raise self._failed("region", node, exc) from exc

    def _entries(self, key: str, node: str) -> Sequence[str]:
        try:
            return self.nodes.entries(node)
        except NodeError as exc:
            raise self._failed(key, node, exc) from exc

    def _write(self, key: str, node: str, value: Value) -> None:
        try:
            if self.nodes.read(node) != value:  # what can only be so is read-only with some makers
                self.nodes.write(node, value)
        except NodeError as exc:
            raise self._failed(key, node, exc) from exc

    def _read(self, key: str, node: str) -> Value:
        try:
            return self.nodes.read(node)
        except NodeError as exc:
            raise self._failed(key, node, exc) from exc

    def _run(self, key: str, node: str) -> None:
        try:
            self.nodes.execute(node)
        except NodeError as exc:
            raise self._failed(key, node, exc) from exc

    def _same(self, node: str, asked: Value, found: Value) -> bool:
        if isinstance(asked, float) and isinstance(found, int | float):
            return abs(found - asked) <= max(self.nodes.increment(node), _TOLERANCE * abs(asked), 1e-6)
        return asked == found

    def _readings(self) -> Mapping[str, Value]:
        """What shapes the picture, as it is now; what was not configured too."""
        self._seen.clear()
        size = [self._look(f"{node} of region", node) for node in ("Width", "Height")]
        offset = [
            self._look(f"{node} of region", node) if self.nodes.has(node) else 0 for node in ("OffsetX", "OffsetY")
        ]
        found: dict[str, Value] = {
            "pixel_format": self._look("pixel_format", "PixelFormat"),
            "region": f"{size[0]}x{size[1]}+{offset[0]}+{offset[1]}",
            "trigger": self.config.trigger,
        }
        for key, names in _SHOWN + (_SHOWN_OF_LINE if self.config.trigger == "hardware" else ()):
            if node := first(self.nodes, names):
                found[key] = self._look(key, node)
        for key, names in _SHOWN_TOO:
            # Of no camera is known which of these it has and does not let anybody read: then it does not report it.
            with suppress(NodeError, CameraError):
                if node := first(self.nodes, names):
                    found[key] = self._look(key, node)
        with suppress(NodeError, CameraError):
            if self.nodes.has("TriggerMode"):  # of the selector that `apply` left
                self._look("TriggerMode", "TriggerMode")
        return found | self._balance()

    def _look(self, key: str, node: str) -> Value:
        value = self._read(key, node)
        self._seen.append((key, node, value))
        return value

    def _balance(self) -> dict[str, Value]:
        """White balance, colour by colour, with the selector left as it was; nothing where it cannot be read."""
        nodes, node = self.nodes, first(self.nodes, _BALANCE)
        if node is None or not nodes.has(_BALANCE_OF):
            return {}
        found: dict[str, Value] = {}
        try:
            before = nodes.read(_BALANCE_OF)
            for colour in nodes.entries(_BALANCE_OF):
                nodes.write(_BALANCE_OF, colour)
                found[f"balance_{colour.lower()}"] = nodes.read(node)
            nodes.write(_BALANCE_OF, before)
        except NodeError as exc:
            log.warning("camera %s: its white balance cannot be read (%s)", self.camera, exc)
            return {}
        return found

    def _wrong(self, key: str, value: Value, why: str) -> CameraError:
        return CameraError(f"camera {self.camera}: {key} = {value} is not possible with this camera; {why}")

    def _failed(self, key: str, node: str, exc: NodeError) -> CameraError:
        return CameraError(f"camera {self.camera}: {key} cannot be set or read ({node}: {exc})")


@dataclass(slots=True)
class Watch:
    """The settings of one open camera, compared one at a time with what they were: reading a node takes up to some
    milliseconds, and a part may be waiting. It holds no nodes, which would hold the camera: that is let go of by
    forgetting it."""

    camera: str
    as_set: tuple[tuple[str, str, Value], ...]
    """(name, node, value) of each."""
    _next: int = 0

    def look(self, nodes: Nodes) -> None:
        """Compare the next one. Raises CameraError when somebody else has changed it. What cannot be read now is passed
        over: whether the camera lives is asked in another way."""
        if not self.as_set:
            return
        key, node, value = self.as_set[self._next % len(self.as_set)]
        self._next += 1
        with suppress(NodeError):
            if found := differences({key: value}, {key: nodes.read(node)}):
                raise CameraError(
                    f"camera {self.camera}: {in_words(found, 'the camera', 'what it was set to')}; somebody else "
                    "changes its settings. It is set anew"
                )


def latched_clock_ns(nodes: Nodes) -> int | None:
    """The camera's clock as it is now, in nanoseconds of its own epoch; None when it has none to ask. NodeError."""
    if nodes.has("TimestampLatch") and nodes.has("TimestampLatchValue"):
        nodes.execute("TimestampLatch")
        return int(nodes.read("TimestampLatchValue"))
    if nodes.has("GevTimestampControlLatch") and nodes.has("GevTimestampValue"):
        nodes.execute("GevTimestampControlLatch")
        ticks, hertz = int(nodes.read("GevTimestampValue")), int(nodes.read("GevTimestampTickFrequency"))
        return ticks * 1_000_000_000 // hertz if hertz > 0 else None
    return None


def ptp_locked(nodes: Nodes) -> bool:
    """Whether the camera follows the clock of its network now (IEEE 1588). NodeError."""
    node = first(nodes, PTP_STATUS)
    latch = first(nodes, ("PtpDataSetLatch", "GevIEEE1588DataSetLatch"))
    if node and latch:
        nodes.execute(latch)
    return node is not None and nodes.read(node) == "Slave"
