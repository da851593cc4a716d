"""The `[cameras.NAME]` tables of the configuration, one model per kind of camera.

Imports no library that computes: the configuration is read before any is loaded.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from edge_daemon.simulation.names import LARGEST_RATIO, LARGEST_SIDE_PX, SMALLEST_SIDE_PX, DefectKind, Product


def _no_bool(value: object) -> object:
    """`true` is an int to Python; as a number it is always a slip."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Side = Annotated[Whole, Field(ge=SMALLEST_SIDE_PX, le=LARGEST_SIDE_PX)]
PartIndex = Annotated[int, Field(ge=0, le=2**53)]
Rate = Annotated[Number, Field(ge=0, le=10_000)]

OpenTimeout = Annotated[Whole, Field(ge=100, le=600_000)]
ReadTimeout = Annotated[Whole, Field(ge=50, le=600_000)]
InFlight = Annotated[Whole, Field(ge=0, le=64)]

FaultAction = Literal[
    "drop", "error", "doubled", "late", "swapped", "stale", "repeat",
    "black", "dark", "blur", "shift", "wrong_size", "wrong_format",
    "id_wrap", "clock_jump",
    "hang", "disconnect", "return_smaller", "crash", "freeze",
]  # fmt: skip
_LASTING = ("hang", "disconnect", "return_smaller", "clock_jump")
_ENDING = ("hang", "disconnect", "return_smaller", "crash", "freeze", "id_wrap")


class CameraTable(BaseModel):
    """Base of all camera tables: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Fault(CameraTable):
    """One scripted fault of a simulated camera; it happens to the frame that `frame` or `trigger` names, and with
    `count` to those after it."""

    frame: Annotated[Whole, Field(ge=1, le=2**53)] | None = None
    """The frame it happens to, by the number that results carry (`frame_ids`); the first is 1."""
    trigger: Annotated[Whole, Field(ge=1, le=2**53)] | None = None
    """The trigger it happens to, counted from the daemon's start; the first is 1."""
    action: FaultAction
    """`drop`: no frame comes. `error`: the frame comes incomplete and the camera says so. `doubled`: it comes twice.
    `late`: it comes when the next one is due, before that one. `swapped`: it comes after the next one. `stale`: the
    frame before comes once more, with its old times, then this one. `repeat`: a new frame with the picture of the one
    before, bit by bit. `black`, `dark`, `blur`, `shift`: no light, too little light, out of focus, the camera was
    pushed. `wrong_size`: half the size. `wrong_format`: grey instead of colour. `id_wrap`: the camera's own counter
    reaches 65535 and begins again with 1. `clock_jump`: the camera's clock is off by `seconds`. `hang`: the camera
    answers nothing for `seconds`, then goes on. `disconnect`: gone until opened again, and for `seconds` it cannot be.
    `return_smaller`: the same, and from then on it gives half the size. `crash`, `freeze`: the camera's process dies,
    or stops for ever; for an `isolated` camera only."""
    seconds: Annotated[Number, Field(ge=-3_600, le=3_600)] = 0
    """How long `hang`, `disconnect` and `return_smaller` last; for `clock_jump` how far, negative for backwards."""
    count: Annotated[Whole, Field(ge=1, le=2**53)] = 1
    """How many frames in a row it happens to."""

    @model_validator(mode="after")
    def _names_one_frame(self) -> Self:
        if (self.frame is None) == (self.trigger is None):
            raise ValueError("a fault names either the frame or the trigger that it happens to")
        if self.action == "hang" and self.seconds == 0:
            raise ValueError("a hang needs seconds, how long it lasts")
        if self.seconds and self.action not in _LASTING:
            raise ValueError(f"seconds has no meaning for the action {self.action}; leave it out")
        if self.seconds < 0 and self.action != "clock_jump":
            raise ValueError("only a clock jumps backwards; give seconds as a positive number")
        if self.count > 1 and self.action in _ENDING:
            raise ValueError(f"the action {self.action} happens once; write one fault for each time")
        return self


class SimulatedConfig(CameraTable):
    """A camera that looks at simulated parts: for trying out, tests and training of people."""

    kind: Literal["simulated"]
    """`simulated`"""
    product: Product
    """What lies under it: `flange` (turned aluminium), `cap` (moulded plastic with print), `board` (small
    circuit board) or `weave` (carbon fabric)."""
    seed: Annotated[Whole, Field(ge=0, le=2**53)] = 0
    """The same seed gives the same parts, pixel by pixel."""
    defect_rate: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Share of the parts that are defective, 0 to 1."""
    defects: dict[PartIndex, DefectKind | Literal["good"]] = Field(default_factory=dict)
    """Parts decided one by one, whatever the rate says: part index (from 0) to kind of defect or `good`."""
    first_index: PartIndex = 0
    """Index of the first part. Part i comes in frame i + 1."""
    size: tuple[Side, Side] = (512, 512)
    """Width and height of the pictures, in pixels; the longer side at most four times the shorter."""
    rate_hz: Rate = 0.0
    """Frames a second when it runs free; 0 for as fast as they are asked for. Without effect on triggers."""
    exposure_ms: Annotated[Number, Field(ge=0, le=10_000)] = 0.0
    """Time from trigger to complete frame, in milliseconds; the time that rendering takes comes on top."""
    pulses: Path | None = None
    """A hardware trigger: the path of a Unix datagram socket that the camera makes. Each datagram is a pulse: the
    index of the part that lies there, and, after a space, when it was given (monotonic clock, nanoseconds)."""
    faults: Annotated[tuple[Fault, ...], Field(max_length=10_000)] = ()
    """Scripted faults, to see what the line does: `[{ frame = 7, action = "drop" }]`."""
    isolated: bool = False
    """Run it in a process of its own, as real cameras are."""

    @model_validator(mode="after")
    def _size_can_be_rendered(self) -> Self:
        if max(self.size) > LARGEST_RATIO * min(self.size):
            raise ValueError(f"the longer side of size may be {LARGEST_RATIO} times the shorter, not more")
        if self.pulses is not None and self.rate_hz:
            raise ValueError("pulses trigger this camera, so rate_hz has no meaning; leave one of them out")
        if not self.isolated and any(fault.action in ("crash", "freeze") for fault in self.faults):
            raise ValueError("crash and freeze happen to a camera's process; give the camera `isolated = true`")
        return self


class FolderConfig(CameraTable):
    """A camera that replays the pictures of a folder."""

    kind: Literal["folder"]
    """`folder`"""
    path: Path
    """The folder. Relative paths are relative to the configuration file."""
    recursive: bool = True
    """Whether pictures in folders below count too."""
    pattern: Annotated[str, Field(min_length=1, max_length=255)] = "*"
    """Which file names count, with `*` and `?`: `*_top.png`. Only PNG, JPEG, BMP and TIFF ever do."""
    order: Literal["name"] = "name"
    """The order of replay: by path, numbers by their value (`img2` before `img10`)."""
    loop: bool = False
    """Whether it starts again after the last picture. Otherwise the camera is silent then."""
    rate_hz: Rate = 0.0
    """Frames a second when it runs free; 0 for as fast as they are asked for. Without effect on triggers."""
    preload: bool = False
    """Decode all pictures when the camera is opened, so that reading takes no time later."""
    preload_limit_mb: Annotated[Whole, Field(ge=1, le=1_000_000)] = 2_048
    """Most memory that preloaded pictures may take, in megabytes; more are refused at opening."""


class UsbConfig(CameraTable):
    """A camera at this PC that Linux knows as a video device (V4L2): USB, mostly."""

    kind: Literal["usb"]
    """`usb`"""
    device: Annotated[Whole, Field(ge=0, le=255)] | Annotated[str, Field(pattern=r"^/dev/\S+$", max_length=4096)]
    """Number (`0`) or path. `/dev/v4l/by-id/…` stays the same when another camera is plugged in; numbers do not."""
    width: Annotated[Whole, Field(ge=16, le=32_768)] | None = None
    """Width to ask for, in pixels; a camera that gives another one is refused. By default what it gives."""
    height: Annotated[Whole, Field(ge=16, le=32_768)] | None = None
    """Height to ask for, in pixels; a camera that gives another one is refused. By default what it gives."""
    fps: Annotated[Number, Field(gt=0, le=10_000)] | None = None
    """Frames a second to ask for. The camera may give another rate."""
    open_timeout_ms: OpenTimeout = 5_000
    """Longest time to connect until the first frame, in milliseconds."""
    read_timeout_ms: ReadTimeout = 1_000
    """Longest time to wait inside one read, in milliseconds. A frame whose read took more than half of
    this is taken for stale and refused: some drivers hand out old frames after a stall. Choose more than
    twice the time between two frames; more than 1000 delays the alarm about an idle camera beyond two seconds."""
    frames_in_flight: InFlight = 2
    """Frames that may already be under way when a trigger comes; as many are thrown away after it, so that the frame
    judged was exposed after the trigger."""
    mono: bool = False
    """Deliver grey pictures."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together; give both or neither")
        return self


class RtspConfig(CameraTable):
    """A network stream (RTSP, HTTP): for watching and trials, not for verdicts; the page about cameras says why."""

    kind: Literal["rtsp"]
    """`rtsp`"""
    url: Annotated[str, Field(pattern=r"^(rtsps?|https?)://\S+$", max_length=4096)]
    """Address: `rtsp://user:password@192.0.2.17/stream1`. A password in it is never shown in messages."""
    open_timeout_ms: OpenTimeout = 5_000
    """Longest time to connect until the first frame that is not an old one, in milliseconds."""
    read_timeout_ms: ReadTimeout = 1_000
    """Longest time to wait inside one read, in milliseconds. A frame whose read took more than half of this, or that
    lags behind its stream by more, is taken for stale and the connection made anew. Choose more than twice the time
    between two frames; more than 1000 delays the alarm about an idle camera beyond two seconds."""
    frames_in_flight: InFlight = 2
    """Frames that may already be under way when a trigger comes; as many are thrown away after it, so that the frame
    judged was exposed after the trigger. A camera that takes long to encode needs more."""
    mono: bool = False
    """Deliver grey pictures."""


class VideoConfig(CameraTable):
    """A recorded video, frame by frame."""

    kind: Literal["video"]
    """`video`"""
    path: Path
    """The file. Relative paths are relative to the configuration file."""
    mono: bool = False
    """Deliver grey pictures."""


PixelFormatName = Literal[
    "Mono8", "Mono10", "Mono10Packed", "Mono10p", "Mono12", "Mono12Packed", "Mono12p", "Mono14", "Mono16",
    "BayerGR8", "BayerRG8", "BayerGB8", "BayerBG8",
    "BayerGR10", "BayerRG10", "BayerGB10", "BayerBG10", "BayerGR12", "BayerRG12", "BayerGB12", "BayerBG12",
    "BayerGR16", "BayerRG16", "BayerGB16", "BayerBG16",
    "BayerGR10Packed", "BayerRG10Packed", "BayerGB10Packed", "BayerBG10Packed",
    "BayerGR12Packed", "BayerRG12Packed", "BayerGB12Packed", "BayerBG12Packed",
    "BayerBG10p", "BayerGB10p", "BayerGR10p", "BayerRG10p", "BayerBG12p", "BayerGB12p", "BayerGR12p", "BayerRG12p",
    "RGB8", "BGR8", "RGBa8", "BGRa8", "YUV422_8_UYVY", "YUV422_8",
]  # fmt: skip
Offset = Annotated[Whole, Field(ge=0, le=65_535)]
Extent = Annotated[Whole, Field(ge=1, le=65_535)]
Text = Annotated[str, Field(min_length=1, max_length=255)]


class GenicamConfig(CameraTable):
    """What all GenICam cameras have. Everything here is written when the camera is opened, and read back."""

    trigger: Literal["software", "hardware", "free_run"] = "software"
    """What makes it expose: `software` (the station's trigger), `hardware` (a pulse on `line`), or `free_run`."""
    line: Text = "Line1"
    """Input of the hardware trigger, as the camera calls it."""
    activation: Literal["RisingEdge", "FallingEdge", "AnyEdge", "LevelHigh", "LevelLow"] = "RisingEdge"
    """What of the pulse triggers."""
    delay_us: Annotated[Number, Field(ge=0, le=10_000_000)] = 0.0
    """Time from pulse to exposure, in microseconds."""
    debounce_us: Annotated[Number, Field(ge=0, le=1_000_000)] | None = None
    """Pulses shorter than this are ignored, in microseconds; what the camera has by default."""
    region: tuple[Offset, Offset, Extent, Extent] | None = None
    """Part of the sensor that is read: x, y, width, height, in pixels. All of it by default."""
    pixel_format: PixelFormatName = "Mono8"
    """Pixel format by its GenICam name. Pictures of more than 8 bits keep the upper 8; Bayer and YUV become RGB."""
    exposure_us: Annotated[Number, Field(gt=0, le=60_000_000)] | None = None
    """Exposure, in microseconds. The automatic is always off; without a value the camera's own counts."""
    gain_db: Annotated[Number, Field(ge=-20, le=100)] | None = None
    """Gain, in decibels; the automatic is always off."""
    gain_raw: Annotated[Whole, Field(ge=0, le=100_000)] | None = None
    """Gain in the camera's own steps, for older cameras that know no decibels."""
    rate_hz: Annotated[Number, Field(gt=0, le=10_000)] | None = None
    """Frames a second: when it runs free what it makes, else what it makes at most."""
    user_set: str = "Default"
    """Settings in the camera that are loaded before all others, where it has such; empty for none. Without them, what
    an earlier program set may stay."""
    timestamp_at: Literal["exposure_start", "exposure_end"] = "exposure_start"
    """What the camera's time stamp marks; see its manual."""
    longest_transfer_ms: Annotated[Number, Field(gt=0, le=10_000)] = 250.0
    """Longest time from the end of an exposure to the complete frame in this PC, in milliseconds: readout, network,
    driver. Where the camera's clock cannot be asked, half of it is how uncertain the time of a pulse's frame is."""
    ptp: bool = False
    """Let the camera follow the clock of its network (IEEE 1588). Frames say whether it does."""
    buffers: Annotated[Whole, Field(ge=2, le=200)] = 8
    """Frames that this PC keeps room for; if all are full, frames are lost and counted (`underruns`)."""

    @model_validator(mode="after")
    def _one_gain(self) -> Self:
        if self.gain_db is not None and self.gain_raw is not None:
            raise ValueError("give gain_db or gain_raw, not both")
        return self


class GigeConfig(GenicamConfig):
    """A GigE Vision camera, through Aravis (`pip install 'edge-daemon[gige]'`)."""

    kind: Literal["gige"]
    """`gige`"""
    serial: Annotated[str, Field(min_length=1, max_length=16)] | None = None
    """Serial number: the camera is found whatever its address. Exactly one of `serial`, `ip` and `device_name`."""
    ip: Annotated[str, Field(pattern=r"^(\d{1,3}\.){3}\d{1,3}$")] | None = None
    """Address: found without asking the network, also behind a router."""
    device_name: Annotated[str, Field(min_length=1, max_length=16)] | None = None
    """Name that the camera was given with its maker's tool (DeviceUserID)."""
    packet_size: Annotated[Whole, Field(ge=220, le=16_260)] | Literal["auto"] = "auto"
    """Bytes of one stream packet, all headers included, or `auto` for the largest that comes through. Not above the
    network's MTU."""
    packet_delay_ns: Annotated[Whole, Field(ge=0, le=100_000_000)] = 0
    """Pause between two packets, in nanoseconds: lets several cameras share one line."""
    resend: bool = True
    """Ask for lost packets once more, where the camera can."""

    @model_validator(mode="after")
    def _one_address(self) -> Self:
        if [self.serial, self.ip, self.device_name].count(None) != 2:
            raise ValueError("say which camera: exactly one of serial, ip and device_name")
        return self


class GentlConfig(GenicamConfig):
    """A camera through a maker's GenTL producer, by harvesters (`pip install 'edge-daemon[gentl]'`)."""

    kind: Literal["gentl"]
    """`gentl`"""
    producer: Path
    """The maker's producer, a file that ends in `.cti`."""
    serial: Text | None = None
    """Serial number. One of `serial` and `device_id`, or neither if the producer knows one camera only."""
    device_id: Text | None = None
    """The producer's own name of the camera."""
    simulated: bool = False
    """Its pictures show no part that is here now: a producer that makes them up. No part is released on them."""

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if self.serial is not None and self.device_id is not None:
            raise ValueError("say which camera with serial or device_id, not both")
        return self


CameraConfig = Annotated[
    SimulatedConfig | FolderConfig | VideoConfig | UsbConfig | RtspConfig | GigeConfig | GentlConfig,
    Field(discriminator="kind"),
]
