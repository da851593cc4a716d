"""What `edge-daemon check` looks at: everything that would keep this PC from judging parts, all at once.

Nothing is changed: no folder is made, no port stays bound, no recipe is activated.
"""

import errno
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.recipe import Recipe
from edge_daemon.artefact.signature import Trust
from edge_daemon.artefact.store import Store
from edge_daemon.cameras.base import Camera
from edge_daemon.cameras.config import CameraConfig, FolderConfig, GenicamConfig, SimulatedConfig, UsbConfig
from edge_daemon.cameras.open import make_camera
from edge_daemon.config import ENDPOINTS, Config, ViewConfig, config_digest, load_config
from edge_daemon.core.frame import in_colour
from edge_daemon.detectors.loading import ReadyRecipe, load_verified
from edge_daemon.edges.keyring import KeyRing, credentials_folder
from edge_daemon.engines.choice import Choices
from edge_daemon.engines.sessions import PROVIDERS, EngineOptions, Sessions
from edge_daemon.errors import ConfigError, EdgeError, ProviderError, StoreError
from edge_daemon.pipeline.camera_match import advice, set_otherwise
from edge_daemon.threads import physical_cores

# The least ONNX graph a session takes for a backbone: uint8 (n, 1, 1, 3) cast to float32. It tells
# whether a provider can be had where no recipe is there to ask.
_PROBE_GRAPH = (
    b'\x08\x08:X\n\x17\n\x01i\x12\x01o"\x04Cast*\t\n\x02to\x18\x01\xa0\x01\x02\x12\x01gZ\x1c\n\x01i\x12\x17\n\x15\x08'
    b"\x02\x12\x11\n\x03\x12\x01n\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x03b\x1c\n\x01o\x12\x17\n\x15\x08\x01\x12\x11"
    b"\n\x03\x12\x01n\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x03B\x04\n\x00\x10\x12"
)

# A journal of some millions of records and the pictures of a shift.
_LOW_SPACE_BYTES = 2 << 30

_PICTURE_TIMEOUT_NS = 5_000_000_000

# Recipes that passed, by station and view.
_Ready = dict[tuple[str, str], ReadyRecipe]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong (`error`) or worth knowing (`hint`)."""

    level: Literal["error", "hint"]
    text: str


@dataclass(frozen=True, slots=True)
class CheckedRecipe:
    """A recipe that passed the whole load order, and where it is to judge."""

    station: str
    camera: str
    name: str
    version: str
    digest: str
    threshold: float
    provider: str
    provisional: bool
    engine: str
    engine_why: str
    signed_by: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was found; `config_digest` is empty when the configuration cannot be used."""

    findings: tuple[Finding, ...]
    recipes: tuple[CheckedRecipe, ...]
    config_digest: str

    @property
    def ok(self) -> bool:
        return all(finding.level != "error" for finding in self.findings)


def check(path: Path, *, open_cameras: bool = False) -> Report:
    """Look at everything. With `open_cameras` every camera is opened and asked for one picture, which a
    running daemon would not like."""
    findings: list[Finding] = []
    try:
        config: Config | None = load_config(path)
    except ConfigError as error:
        findings += [Finding("error", problem) for problem in error.problems]
        config = _despite_missing_recipes(path)
    if config is None:
        return Report(tuple(findings), (), "")
    ready: _Ready = {}
    findings += _recipes(config, ready)
    findings += _folders(config)
    findings += _ports(config)
    findings += _keys(config)
    findings += _cameras(config, ready, open_cameras)
    findings += _hints(config, ready)
    return Report(tuple(findings), tuple(_summary(config, ready)), config_digest(config))


def _despite_missing_recipes(path: Path) -> Config | None:
    """The configuration when only recipes are missing: the rest can still be looked at."""
    try:
        return load_config(path, recipes_must_exist=False)
    except ConfigError:
        return None


# ---------------------------------------------------------------- provider and recipes


def _recipes(config: Config, ready: _Ready) -> Iterator[Finding]:
    """The provider, then every recipe through the whole load order; those that pass go into `ready`."""
    engine = config.engine
    threads = engine.intra_op_threads or physical_cores()
    options = EngineOptions(engine.provider, engine.fallback, threads, engine.embeddings)
    sessions = Sessions(options, Choices(config.engines_path, may_measure=False))
    try:
        provider = sessions.extractor(_PROBE_GRAPH, "probe").provider
    except ProviderError as error:
        yield Finding("error", f"engine.provider: {error}")
        return
    except EdgeError as error:
        yield Finding("error", f"engine.provider: {engine.provider} cannot be had: {error}")
        return
    if provider != PROVIDERS[engine.provider]:
        yield Finding("hint", f"engine.provider: {engine.provider} cannot be had here; the fallback {provider} runs")
    store = Store(config.store_path)
    trust = Trust.of(config.security.trusted_signers)
    for station, view in _views(config):
        path = _recipe_path(store, view)
        if path is None:
            continue  # said by the check of the configuration
        try:
            asked = replace(trust, required=config.stations[station].require_signed_recipes)
            ready[station, view.name] = load_verified(path, sessions, engine.search, store.backbone, trust=asked)
        except EdgeError as error:
            yield Finding("error", f"stations.{station}: recipe {view.recipe}: {error}")
    try:
        yield from (Finding("error", problem) for problem in store.damaged())
    except StoreError as error:
        yield Finding("error", f"store: {error}")


def _recipe_path(store: Store, view: ViewConfig) -> Path | None:
    """Where the recipe is, None when it is nowhere."""
    if view.recipe_path is not None:
        return view.recipe_path if view.recipe_path.exists() else None
    try:
        return store.resolve(view.recipe).path
    except EdgeError:
        return None


def _summary(config: Config, ready: _Ready) -> Iterator[CheckedRecipe]:
    for station, view in _views(config):
        if (station, view.name) in ready:
            manifest = ready[station, view.name].recipe.manifest
            yield CheckedRecipe(
                station,
                view.name,
                manifest.name,
                manifest.version,
                manifest.self_sha256,
                manifest.thresholds.lower,
                ready[station, view.name].provider,
                manifest.provisional,
                ready[station, view.name].choice.engine,
                ready[station, view.name].choice.reason,
                str(ready[station, view.name].recipe.signed),
            )


def _views(config: Config) -> Iterator[tuple[str, ViewConfig]]:
    for name, station in config.stations.items():
        for view in station.views:
            yield name, view


# ---------------------------------------------------------------- folders and ports


def _folders(config: Config) -> Iterator[Finding]:
    for key, folder in (
        ("state_dir", config.state_dir),
        ("journal.path", config.journal_path.parent),
        ("store.path", config.store_path),
    ):
        problem = _why_not_writable(folder)
        if problem:
            yield Finding("error", f"{key}: {problem}; run this check as the user that the daemon runs as")
    place = _nearest(config.state_dir)
    free = shutil.disk_usage(place).free
    if free < _LOW_SPACE_BYTES:
        yield Finding("hint", f"state_dir: only {free >> 20} MiB are free at {place}; free some before the line starts")


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))


def _why_not_writable(folder: Path) -> str | None:
    place = _nearest(folder)
    if not place.is_dir():
        return f"{place} is a file where a folder is needed"
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return f"nothing can be written in {place}: {error.strerror}"
    return None


def _ports(config: Config) -> Iterator[Finding]:
    problems = {name: why_not_bindable(getattr(config.wire, name)) for name in ENDPOINTS}
    if all(reason == errno.EADDRINUSE for reason in problems.values()):
        yield Finding("hint", "wire: all endpoints are in use; presumably by edge-daemon, which is running here")
        return
    for name, reason in problems.items():
        if reason == errno.EADDRINUSE:
            text = "is in use by another program (`ss -ltnp` says by which): stop that, or choose another port"
            yield Finding("error", f"wire.{name}: {getattr(config.wire, name)} {text}")
        elif reason is not None:
            yield Finding("error", f"wire.{name}: {getattr(config.wire, name)} cannot be bound: {os.strerror(reason)}")


def _keys(config: Config) -> Iterator[Finding]:
    """Keys where they are needed, readable, and somebody who has one."""
    if not config.uses_keys:
        return
    try:
        ring = KeyRing(config.keys_path, credentials_folder())
    except EdgeError as error:
        yield Finding("error", f"security: {error}")
        return
    if not len(ring):
        yield Finding("hint", "security: nobody is enrolled, so nobody can connect: `edge-ctl keys enrol`")


def why_not_bindable(endpoint: str) -> int | None:
    """The error number that binding gives, None when it works."""
    scheme, _, rest = endpoint.partition("://")
    if scheme == "ipc":
        return _why_no_socket_file(Path(rest))
    host, _, port = rest.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As ZeroMQ binds: connections of the daemon before may still be closing.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if host == "*" else host, int(port)))
            probe.listen()
        except OSError as error:
            return error.errno or errno.EIO
    return None


def _why_no_socket_file(path: Path) -> int | None:
    if not path.parent.is_dir():
        return errno.ENOENT
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return errno.EACCES
    if not path.exists():
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return None  # left by a daemon that is gone; ZeroMQ replaces it
    return errno.EADDRINUSE


# ---------------------------------------------------------------- cameras


def _cameras(config: Config, ready: _Ready, open_cameras: bool) -> Iterator[Finding]:
    sizes: dict[str, dict[str, tuple[int, int]]] = {}
    for station, view in _views(config):
        if (station, view.name) in ready:
            size = ready[station, view.name].recipe.manifest.view.frame_size
            sizes.setdefault(view.camera, {})[view.name] = size
    for name, settings in config.cameras.items():
        of_views = sizes.get(name, {})
        if len(set(of_views.values())) > 1:
            text = ", ".join(f"{view} {size[0]}x{size[1]} px" for view, size in of_views.items())
            yield Finding("error", f"cameras.{name}: its recipes judge pictures of different sizes ({text})")
            continue
        wanted = next(iter(of_views.values()), None)
        judging = [
            (view.camera_settings == "require", ready[station, view.name])
            for station, view in _views(config)
            if view.camera == name and (station, view.name) in ready
        ]
        problem = _wrong_size(name, _declared_size(settings), wanted) or _camera_problem(
            name, settings, wanted, judging, open_cameras
        )
        if problem:
            yield Finding("error", problem)


def _declared_size(settings: CameraConfig) -> tuple[int, int] | None:
    """Width and height of the frames, where the configuration fixes them."""
    match settings:
        case SimulatedConfig():
            return settings.size
        case UsbConfig(width=int(width), height=int(height)):
            return width, height
        case _:
            return None


def _camera_problem(
    name: str,
    settings: CameraConfig,
    wanted: tuple[int, int] | None,
    judging: Sequence[tuple[bool, ReadyRecipe]],
    look: bool,
) -> str | None:
    """What keeps the camera from working, or from being judged by its recipes, each with whether it is bound to the
    settings of its pictures. Folders and simulations are always opened: nobody minds. Of a folder, the first picture is
    looked at."""
    if isinstance(settings, FolderConfig):
        look, settings = True, settings.model_copy(update={"preload": False, "rate_hz": 0.0})
    camera = make_camera(name, settings, time.monotonic_ns)
    if not look and not isinstance(settings, FolderConfig | SimulatedConfig):
        return None
    try:
        camera.open()
        for bound, ready in judging:
            if bound and (found := set_otherwise(ready, camera.settings())):
                return advice(name, ready, found, judged=False)
        recipes = [ready.recipe for _, ready in judging]
        return _picture_problem(camera, wanted, recipes) if look and not _waits_for_pulses(settings) else None
    except EdgeError as error:
        return f"cameras.{name}: {error}"
    finally:
        camera.close()


def _waits_for_pulses(settings: CameraConfig) -> bool:
    if isinstance(settings, SimulatedConfig):
        return settings.pulses is not None
    return isinstance(settings, GenicamConfig) and settings.trigger == "hardware"


def _picture_problem(camera: Camera, wanted: tuple[int, int] | None, recipes: Sequence[Recipe]) -> str | None:
    camera.trigger()
    frame = camera.grab(_PICTURE_TIMEOUT_NS)
    if frame is None:
        return f"cameras.{camera.name}: is open, but no picture came within 5 s: check trigger, light and cable"
    height, width = frame.pixels.shape[:2]
    return _wrong_size(camera.name, (width, height), wanted) or _wrong_colour(camera.name, frame.pixels, recipes)


def _wrong_colour(name: str, pixels: NDArray[np.uint8], recipes: Sequence[Recipe]) -> str | None:
    """Grey pictures for a recipe that was learned from such in colour: a defect that shows by its colour alone is not
    to be seen in them. The other way round scores rise, and parts are rejected. pixels: (H, W) or (H, W, 3) uint8."""
    for recipe in recipes:
        if recipe.in_colour and not in_colour(pixels):
            return (
                f"cameras.{name}: gives grey pictures, and {recipe.manifest.name} was learned from such in colour: "
                "every part would fail; set the camera's pixel format, or build a recipe from pictures of this one"
            )
    return None


def _wrong_size(name: str, found: tuple[int, int] | None, wanted: tuple[int, int] | None) -> str | None:
    if found is None or wanted is None or found == wanted:
        return None
    return (
        f"cameras.{name}: gives pictures of {found[0]}x{found[1]} px and its recipe judges {wanted[0]}x{wanted[1]} px: "
        "every part would fail; set the size of the camera, or build a recipe from pictures of this one"
    )


# ---------------------------------------------------------------- worth knowing


def _hints(config: Config, ready: _Ready) -> Iterator[Finding]:
    used = {view.camera for _, view in _views(config)}
    for name in config.cameras.keys() - used:
        yield Finding("hint", f"cameras.{name}: belongs to no station and will not be opened")
    for station, view in _views(config):
        kind = config.cameras[view.camera].kind
        if config.stations[station].mode == "production" and kind in ("simulated", "folder"):
            text = f"stations.{station}: judges pictures of a {kind} camera; its results say so and release no part"
            yield Finding("hint", text)
        if (station, view.name) in ready and ready[station, view.name].recipe.manifest.provisional:
            text = f"stations.{station}: recipe {view.recipe} is provisional: its threshold rests on too few pictures"
            yield Finding("hint", text)
        if (station, view.name) in ready and ready[station, view.name].recipe.manifest.health is None:
            text = (
                f"stations.{station}: recipe {view.recipe} has no health limits: dark, blurred or moved pictures are "
                "judged like any other; learn limits from good pictures with `edge-export health`"
            )
            yield Finding("hint", text)
    yield from _rates_of_parts(config, ready)
    threads, cores = config.engine.intra_op_threads, physical_cores()
    if threads > cores:
        yield Finding("hint", f"engine.intra_op_threads: {threads} threads on {cores} cores take turns; 0 is faster")


def _rates_of_parts(config: Config, ready: _Ready) -> Iterator[Finding]:
    """A recipe promises a false-reject rate for its view; a part of several views has to pass them all."""
    for name, station in config.stations.items():
        found = [ready[name, view.name].recipe.manifest for view in station.views if (name, view.name) in ready]
        rates = [rate for m in found if isinstance(rate := m.calibration.get("false_reject_rate"), int | float)]
        if len(rates) > 1:
            text = (
                f"stations.{name}: a part has to be good in each of {len(rates)} views, so up to {sum(rates):.2%} of "
                f"good parts are rejected ({', '.join(f'{rate:.2%}' for rate in rates)} by view); for a rate R of "
                f"parts give each recipe R/{len(rates)}: `edge-export threshold --false-reject-rate`"
            )
            yield Finding("hint", text)
