"""`edge-daemon cameras` and `edge-daemon grab`: which cameras can be reached, and what one of them sees.

Both may run beside the daemon. Looking asks cameras who they are and changes nothing; grabbing opens one, and is
refused while the daemon has it.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edge_daemon.artefact.pictures import encode_png
from edge_daemon.artefact.recipe import Recipe, load_recipe
from edge_daemon.artefact.store import Store
from edge_daemon.cameras import gvcp
from edge_daemon.cameras.base import Camera
from edge_daemon.cameras.config import (
    CameraConfig,
    FolderConfig,
    GenicamConfig,
    GentlConfig,
    GigeConfig,
    RtspConfig,
    SimulatedConfig,
    UsbConfig,
    VideoConfig,
)
from edge_daemon.cameras.gentl_devices import GentlDevice, devices_of
from edge_daemon.cameras.gige import load_aravis
from edge_daemon.cameras.open import make_camera
from edge_daemon.check import why_not_bindable
from edge_daemon.client import ControlClient, NoAnswerError
from edge_daemon.config import Config, StationConfig, ViewConfig
from edge_daemon.core.camera_settings import Settings, differences, in_words
from edge_daemon.core.decision import Reason
from edge_daemon.core.frame import Frame
from edge_daemon.core.health import Measure, Reference, measure, reduced, take_sample, violation
from edge_daemon.detectors.health import health_limits
from edge_daemon.errors import CameraError, EdgeError

_DISCOVERY_S = 1.2  # cameras may spread their answers over a second (GigE Vision 1.2, 14.1)
_ASK_S = 0.4
_DAEMON_S = 0.7
_DEV = Path("/dev")
_SHIFTS = frozenset({Measure.SHIFT_X, Measure.SHIFT_Y})


# ---------------------------------------------------------------- what is reachable


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """One camera that answers.

    kind: of the table that would use it; where: address, device or the producer's own name; in_use: who controls it as
    far as it says, empty for nobody; tables: names of the `[cameras.NAME]` tables that mean it.
    """

    kind: str
    where: str
    model: str
    serial: str = ""
    name: str = ""
    in_use: str = ""
    tables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NotFound:
    """A table whose camera does not answer, and what to do."""

    camera: str
    kind: str
    why: str


@dataclass(frozen=True, slots=True)
class Listing:
    """notes: what could not be looked at, or needs something installed."""

    found: tuple[FoundDevice, ...]
    not_found: tuple[NotFound, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where cameras are looked for: the real PC by default."""

    dev: Path = _DEV
    sys: Path = Path("/sys")
    discover: Callable[[], list[gvcp.FoundCamera]] = field(default=lambda: gvcp.discover(_DISCOVERY_S))
    controller: Callable[[str], str] = field(default=lambda ip: controller_of(ip))
    producers: Callable[[Path], tuple[GentlDevice, ...]] = devices_of
    producer_folders: str = field(default_factory=lambda: os.environ.get("GENICAM_GENTL64_PATH", ""))
    aravis: Callable[[str], object] = load_aravis


def look(cameras: Mapping[str, CameraConfig], around: Surroundings | None = None) -> Listing:
    """Every camera that answers, which table means it, and tables whose camera does not."""
    around = around or Surroundings()
    notes: list[str] = []
    found = [
        *_gige(cameras, around, notes),
        *_gentl(cameras, around, notes),
        *_usb(cameras, around),
        *_paths(cameras),
    ]
    used = {name for device in found for name in device.tables}
    missing = [
        NotFound(name, config.kind, _why_missing(config))
        for name, config in cameras.items()
        if name not in used and not isinstance(config, SimulatedConfig | RtspConfig)
    ]
    streams = [name for name, config in cameras.items() if isinstance(config, RtspConfig)]
    notes += [f"cameras.{name}: a stream shows only when it is opened: edge-daemon grab --camera {name}"
              for name in streams]  # fmt: skip
    return Listing(tuple(found), tuple(missing), tuple(notes))


def _gige(cameras: Mapping[str, CameraConfig], around: Surroundings, notes: list[str]) -> Iterator[FoundDevice]:
    tables = {name: config for name, config in cameras.items() if isinstance(config, GigeConfig)}
    seen = {camera.ip: camera for camera in around.discover()}
    for config in tables.values():  # one behind a router hears no broadcast
        if config.ip and config.ip not in seen and (camera := gvcp.ask_at(config.ip, _ASK_S)):
            seen[camera.ip] = camera
    if seen or tables:
        try:
            around.aravis("any")
        except CameraError as error:
            notes.append(str(error).removeprefix("camera any: "))
    for camera in seen.values():
        mine = tuple(name for name, config in tables.items() if _means(config, camera))
        model = f"{camera.vendor} {camera.model}"
        yield FoundDevice("gige", camera.ip, model, camera.serial, camera.name, around.controller(camera.ip), mine)


def _means(config: GigeConfig, camera: gvcp.FoundCamera) -> bool:
    if config.ip:
        return camera.ip == config.ip
    return camera.serial == config.serial if config.serial else camera.name == config.device_name


def controller_of(ip: str) -> str:
    """Who controls the GigE camera at `ip`, in words; empty for nobody, and where it cannot be reached by us."""
    try:
        probe = gvcp.Probe("any", ip)
    except CameraError:
        return "is in no subnet of this PC"
    try:
        if not gvcp.is_controlled(probe.read(gvcp.CONTROL_PRIVILEGE_REGISTER, _ASK_S)):
            return ""
        register = probe.read(gvcp.CONTROLLER_IP_REGISTER, _ASK_S)
    except CameraError:
        return "is in no subnet of this PC"
    finally:
        probe.close()
    by = ".".join(str(part) for part in register.to_bytes(4, "big")) if register else ""
    return f"controlled by {by}" if by else "controlled by a program"


def _gentl(cameras: Mapping[str, CameraConfig], around: Surroundings, notes: list[str]) -> Iterator[FoundDevice]:
    tables = {name: config for name, config in cameras.items() if isinstance(config, GentlConfig)}
    installed = [
        producer
        for folder in filter(None, around.producer_folders.split(":"))
        for producer in sorted(Path(folder).glob("*.cti"))
    ]
    for producer in dict.fromkeys([*(config.producer for config in tables.values()), *installed]):
        try:
            devices = around.producers(producer)
        except CameraError as error:
            notes.append(f"{producer}: {error}")
            continue
        for device in devices:
            mine = tuple(
                name
                for name, config in tables.items()
                if config.producer == producer
                and config.serial in (None, device.serial)
                and config.device_id in (None, device.id)
            )
            model = f"{device.vendor} {device.model}, through {producer.name}"
            yield FoundDevice("gentl", device.id, model, device.serial, tables=mine)


def _usb(cameras: Mapping[str, CameraConfig], around: Surroundings) -> Iterator[FoundDevice]:
    tables = {name: config.device for name, config in cameras.items() if isinstance(config, UsbConfig)}
    by_id = {link.resolve(): link for link in sorted((around.dev / "v4l/by-id").glob("*"))}
    devices = sorted(around.dev.glob("video[0-9]*"), key=lambda device: int(device.name.removeprefix("video")))
    for device in devices:
        known_as = by_id.get(device.resolve())
        mine = tuple(
            name for name, wanted in tables.items() if _device(wanted, around.dev).resolve() == device.resolve()
        )
        try:
            model = (around.sys / "class/video4linux" / device.name / "name").read_text().strip()
        except OSError:
            model = "video device"
        yield FoundDevice("usb", str(device), model, name=str(known_as or ""), tables=mine)


def _device(wanted: int | str, dev: Path) -> Path:
    return dev / f"video{wanted}" if isinstance(wanted, int) else dev / wanted.removeprefix("/dev/")


def _paths(cameras: Mapping[str, CameraConfig]) -> Iterator[FoundDevice]:
    for name, config in cameras.items():
        match config:
            case FolderConfig() if config.path.is_dir():
                yield FoundDevice("folder", str(config.path), "pictures", tables=(name,))
            case VideoConfig() if config.path.is_file():
                yield FoundDevice("video", str(config.path), "recording", tables=(name,))
            case _:
                continue


def _why_missing(config: CameraConfig) -> str:
    match config:
        case GigeConfig(ip=str(ip)):
            return f"no camera answers at {ip}; check power, cable, switch and this PC's address"
        case GigeConfig():
            wanted = f"serial {config.serial}" if config.serial else f"name {config.device_name}"
            return f"no camera with {wanted} answers; check power, cable, switch and this PC's address"
        case GentlConfig():
            return f"{config.producer} finds no such camera; try its maker's own viewer"
        case UsbConfig():
            return f"there is no {_device(config.device, _DEV)}; check cable and power"
        case FolderConfig() | VideoConfig():
            return f"there is no {config.path}"
        case _:
            return ""


# ---------------------------------------------------------------- one picture


@dataclass(frozen=True, slots=True)
class MeasureSeen:
    """One measure of health; lower, upper: the recipe's limits, None without one."""

    value: float
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True, slots=True)
class Grabbed:
    """What one frame shows. Times in milliseconds; exposed_before_ms: how long before the arrival, None where nothing
    is known but the arrival. unhealthy: why the recipe would not judge it, empty when it would; recipe: empty when no
    station judges this camera."""

    camera: str
    frame: Frame
    open_ms: float
    arrived_ms: float
    exposed_before_ms: float | None
    settings: Mapping[str, str | int | float | bool]
    counters: Mapping[str, int]
    recipe: str
    health: Mapping[str, MeasureSeen]
    unhealthy: str
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width, height."""
        return self.frame.pixels.shape[1], self.frame.pixels.shape[0]


def grab(config: Config, name: str, timeout_s: float, clock_ns: Callable[[], int] = time.monotonic_ns) -> Grabbed:
    """One frame of `[cameras.name]`, as the daemon would get it: the same settings, in a process of its own.

    A recipe that is not there yet is a note: the first pictures are taken before there is one. Raises CameraError when
    there is no such camera, when the running daemon has it, when it cannot be opened, or when no frame comes in time.
    """
    settings = camera_table(config, name)
    view = _view_of(config, name)
    require_free(config, name, settings)
    recipe, notes = _recipe_of(config, view)
    camera = make_camera(name, settings, clock_ns)
    try:
        begun_ns = clock_ns()
        camera.open()
        opened_ns = clock_ns()
        frame = one_frame(camera, settings, round(timeout_s * 1e9), clock_ns)
        read_back = camera.settings()
        with suppress(CameraError):
            camera.check(round(timeout_s * 1e9))  # in its answer, one in a process of its own says what it counted
    finally:
        camera.close()
    health, unhealthy, without_limits = _health(frame, recipe)
    if otherwise := _other_settings(recipe, read_back):
        if view is not None and view[2].camera_settings == "warn":
            notes = (*notes, f"judged with an alarm: {otherwise}")
        else:
            unhealthy = unhealthy or otherwise
    exposed = None if frame.exposed_ns is None else (frame.arrived_ns - frame.exposed_ns) / 1e6
    return Grabbed(
        name, frame, (opened_ns - begun_ns) / 1e6, (frame.arrived_ns - opened_ns) / 1e6, exposed, read_back,
        camera.counters(), _shown_recipe(recipe), health, unhealthy, (*notes, *without_limits),
    )  # fmt: skip


def camera_table(config: Config, name: str) -> CameraConfig:
    """`[cameras.name]`. Raises CameraError when there is none."""
    table = config.cameras.get(name)
    if table is None:
        raise CameraError(f"there is no camera {name}; the configuration has {', '.join(config.cameras)}")
    return table


def save(grabbed: Grabbed, path: Path) -> None:
    """The picture as PNG, lossless. Raises CameraError when it cannot be written."""
    try:
        path.write_bytes(encode_png(grabbed.frame.pixels))
    except OSError as exc:
        raise CameraError(f"the picture cannot be written to {path}: {exc.strerror}") from exc


def _view_of(config: Config, camera: str) -> tuple[str, StationConfig, ViewConfig] | None:
    """The station that has this camera."""
    for name, station in config.stations.items():
        for view in station.views:
            if view.camera == camera:
                return name, station, view
    return None


def require_free(config: Config, name: str, settings: CameraConfig) -> None:
    """Raises CameraError when the daemon of this configuration runs and has the camera."""
    view = _view_of(config, name)
    if view is None or isinstance(settings, SimulatedConfig | FolderConfig | VideoConfig):
        return
    if not _daemon_runs(config):
        return
    raise CameraError(
        f"camera {name} belongs to station {view[0]} of the daemon that is running, and only one program can have it; "
        "`edge-ctl status` shows what it counts; stop the daemon to take a picture here"
    )


def _daemon_runs(config: Config) -> bool:
    """Where it uses keys it says nothing to us, but somebody listens at its address."""
    if config.uses_keys:
        return why_not_bindable(config.wire.control) == errno.EADDRINUSE
    try:
        with ControlClient(config.wire.control, timeout_s=_DAEMON_S) as control:
            control.request("status")
    except NoAnswerError:
        return False
    return True


def _recipe_of(
    config: Config, view: tuple[str, StationConfig, ViewConfig] | None
) -> tuple[Recipe | None, tuple[str, ...]]:
    """(recipe, why there is none)."""
    if view is None:
        return None, ()
    store = Store(config.store_path)
    try:
        return load_recipe(view[2].recipe_path or store.resolve(view[2].recipe).path, store.backbone), ()
    except EdgeError as error:
        return None, (f"station {view[0]} has no recipe to compare with: {error}",)


def _shown_recipe(recipe: Recipe | None) -> str:
    return f"{recipe.manifest.name} {recipe.manifest.version}" if recipe else ""


def one_frame(camera: Camera, settings: CameraConfig, timeout_ns: int, clock_ns: Callable[[], int]) -> Frame:
    """The frame of one trigger, or of the next pulse where pulses trigger the camera. Raises CameraError."""
    pulsed = isinstance(settings, GenicamConfig) and settings.trigger == "hardware"
    if not pulsed:
        camera.trigger()
    until_ns = clock_ns() + timeout_ns
    while (left_ns := until_ns - clock_ns()) > 0:
        frame = camera.grab(left_ns)
        if frame is not None:
            return frame
    hint = "no pulse came on its input, or none that it takes" if pulsed else "check its trigger mode, light and cable"
    raise CameraError(f"camera {camera.name}: is open, but no picture came within {timeout_ns / 1e9:g} s; {hint}")


def _health(frame: Frame, recipe: Recipe | None) -> tuple[Mapping[str, MeasureSeen], str, tuple[str, ...]]:
    """(measures by name, why it would not be judged, notes)."""
    limits = health_limits(recipe.manifest) if recipe else None
    size = frame.pixels.shape[1], frame.pixels.shape[0]
    if recipe and size != recipe.manifest.view.frame_size:
        wanted = recipe.manifest.view.frame_size
        why = f"the picture has {size[0]}x{size[1]} px and the recipe judges {wanted[0]}x{wanted[1]} px"
        return _measures_alone(frame), why, ()
    if limits is None:
        note = "its recipe has no limits of image health; relearn them with edge-export health" if recipe else ""
        return _measures_alone(frame), "", (note,) if note else ()
    values = measure(take_sample(frame.pixels, limits.region), limits.reference)
    broken = violation(values, limits.limits)
    seen = {}
    for name, value in values.items():
        limit = limits.limits.get(name)
        seen[name.value] = MeasureSeen(value, limit.lower, limit.upper) if limit else MeasureSeen(value)
    return seen, f"{broken.reason}: {broken.message}" if broken else "", ()


def _other_settings(recipe: Recipe | None, settings: Settings) -> str:
    """Why the recipe does not judge what this camera takes; empty when it does, or says nothing of settings."""
    camera = recipe.manifest.camera if recipe else None
    found = differences(camera.settings, settings) if camera else ()
    return f"{Reason.CAMERA_SETTINGS}: {in_words(found, 'the camera', 'the recipe')}" if found else ""


def _measures_alone(frame: Frame) -> Mapping[str, MeasureSeen]:
    """Without a recipe: everything but the shift, which needs its golden picture."""
    sample = take_sample(frame.pixels, None)
    values = measure(sample, Reference.of(reduced(sample)))
    return {name.value: MeasureSeen(value) for name, value in values.items() if name not in _SHIFTS}


# ---------------------------------------------------------------- telling


def listing_text(listing: Listing) -> str:
    """For people: one line a camera, then what is missing."""
    lines = []
    for device in listing.found:
        table = ", ".join(f"cameras.{name}" for name in device.tables) or "no table uses it"
        identity = [device.model, f"serial {device.serial}" if device.serial else "", device.name, device.in_use]
        lines.append(f"✓ {device.kind:<7} {device.where:<16} {', '.join(filter(None, identity))}: {table}")
    lines += [f"✗ {missing.kind:<7} cameras.{missing.camera}: {missing.why}" for missing in listing.not_found]
    lines += [f"· {note}" for note in listing.notes]
    return "\n".join(lines or ["· no camera answers: none on the network, none at this PC"])


def grabbed_json(grabbed: Grabbed, saved: Path | None) -> dict[str, object]:
    """For programs."""
    frame = grabbed.frame
    return {
        "camera": grabbed.camera,
        "size": grabbed.size,
        "channels": 1 if frame.pixels.ndim == 2 else 3,
        "frame_id": frame.frame_id,
        "device_frame_id": frame.device_frame_id,
        "clock_quality": frame.clock_quality,
        "open_ms": round(grabbed.open_ms, 1),
        "arrived_ms": round(grabbed.arrived_ms, 1),
        "exposed_before_ms": grabbed.exposed_before_ms,
        "exposed_uncertainty_ms": frame.exposed_uncertainty_ns / 1e6,
        "settings": dict(grabbed.settings),
        "counters": dict(grabbed.counters),
        "recipe": grabbed.recipe,
        "health": {n: {"value": m.value, "lower": m.lower, "upper": m.upper} for n, m in grabbed.health.items()},
        "healthy": not grabbed.unhealthy,
        "unhealthy": grabbed.unhealthy,
        "notes": list(grabbed.notes),
        "saved": str(saved) if saved else None,
    }


def grabbed_text(grabbed: Grabbed, saved: Path | None) -> str:
    """For people."""
    frame, (width, height) = grabbed.frame, grabbed.size
    exposed = "when it was exposed is not known"
    if grabbed.exposed_before_ms is not None:
        off = frame.exposed_uncertainty_ns / 1e6
        exposed = f"exposed {grabbed.exposed_before_ms:.1f} ms before it arrived (± {off:.1f} ms)"
    lines = [
        f"camera {grabbed.camera}: {width}x{height} px, {'grey' if frame.pixels.ndim == 2 else 'colour'}",
        f"times     opened in {grabbed.open_ms:.0f} ms, frame {grabbed.arrived_ms:.0f} ms later; {exposed}; "
        f"clock: {frame.clock_quality}",
        f"settings  {_pairs(grabbed.settings) or 'none can be read back'}",
        f"counters  {_pairs({n: c for n, c in grabbed.counters.items() if c}) or 'nothing yet'}",
    ]
    against = f", limits of recipe {grabbed.recipe}" if grabbed.recipe else ", without limits"
    lines.append(f"health{against}")
    lines += [f"  {name:<16}{seen.value:>10.4g}{_allowed(seen)}" for name, seen in grabbed.health.items()]
    if grabbed.recipe:
        lines.append(f"✗ would not be judged: {grabbed.unhealthy}" if grabbed.unhealthy else "✓ would be judged")
    lines += [f"· {note}" for note in grabbed.notes]
    lines.append(f"saved     {saved}" if saved else "· --out FILE.png keeps the picture")
    return "\n".join(lines)


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _allowed(seen: MeasureSeen) -> str:
    low, high = seen.lower, seen.upper
    if low is None and high is None:
        return ""
    if low is None:
        return f"   up to {high:.4g}"
    return f"   from {low:.4g}" if high is None else f"   {low:.4g} to {high:.4g}"
