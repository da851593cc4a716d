"""`edge-daemon grab --save`: pictures to learn from, with what they were taken with beside them."""

import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edge_daemon.artefact.camera import CAMERA_FILE, read_camera_file, stated, write_camera_file
from edge_daemon.artefact.pictures import encode_png, find_pictures
from edge_daemon.camera_tools import camera_table, one_frame, require_free
from edge_daemon.cameras.base import Camera, EndOfFrames, FrameLost
from edge_daemon.cameras.config import CameraConfig
from edge_daemon.cameras.open import make_camera
from edge_daemon.config import Config
from edge_daemon.core.camera_settings import Settings, counting, differences, in_short, in_words
from edge_daemon.errors import CameraError, CameraSettingsError, PictureError

# A camera that loses so many frames in a row will not bring the next one either.
_MOST_LOST = 5
_NO_SETTINGS = (
    "this camera does not say what it is set to, so nothing says what these pictures were taken with: a recipe made of "
    "them judges whatever the camera's settings are"
)


@dataclass(frozen=True, slots=True)
class Series:
    """What was taken. paths: in the order of the exposures; lost: frames that came incomplete; settings: those that
    shape the picture, none where the camera does not say."""

    camera: str
    folder: Path
    paths: tuple[Path, ...]
    lost: int
    settings: Settings
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pace:
    """count: how many pictures; every_s: least time between two of them, 0 for as they come; timeout_s: longest wait
    for one."""

    count: int
    every_s: float
    timeout_s: float


def take_series(
    config: Config,
    name: str,
    folder: Path,
    pace: Pace,
    taken: Callable[[Path], None] = lambda _path: None,
    clock_ns: Callable[[], int] = time.monotonic_ns,
    pause_s: Callable[[float], None] = time.sleep,
) -> Series:
    """Take pictures with `[cameras.name]` into a folder, opened and triggered as the daemon would, one for each pulse
    where a line triggers it. taken: told of each. They are numbered after those that are there.

    `camera.json` in the folder says what they were taken with. Raises CameraSettingsError when that is something else
    than the camera has now, or nobody knows what the pictures there were taken with; CameraError when there is no such
    camera, the daemon has it, or it brings no picture. Pictures that were taken before stay.
    """
    table = camera_table(config, name)
    require_free(config, name, table)
    with closing(make_camera(name, table, clock_ns)) as camera:
        camera.open()
        settings = counting(camera.settings())
        _prepare(folder, name, table.kind, settings)
        paths, lost, notes = _take(camera, table, folder, settings, pace, taken, clock_ns, pause_s)
    return Series(name, folder, paths, lost, settings, (*notes, *(() if settings else (_NO_SETTINGS,))))


def _take(
    camera: Camera,
    table: CameraConfig,
    folder: Path,
    settings: Settings,
    pace: Pace,
    taken: Callable[[Path], None],
    clock_ns: Callable[[], int],
    pause_s: Callable[[float], None],
) -> tuple[tuple[Path, ...], int, tuple[str, ...]]:
    """(paths, frames lost, notes)."""
    number, due_ns = _last_number(folder, camera.name), clock_ns()
    paths: list[Path] = []
    lost = in_a_row = 0
    while len(paths) < pace.count:
        if (early_ns := due_ns - clock_ns()) > 0:
            pause_s(early_ns / 1e9)
        due_ns = max(due_ns, clock_ns()) + round(pace.every_s * 1e9)
        try:
            frame = one_frame(camera, table, round(pace.timeout_s * 1e9), clock_ns)
        except EndOfFrames as error:
            if not paths:
                raise
            return tuple(paths), lost, (str(error),)
        except FrameLost:
            lost, in_a_row = lost + 1, in_a_row + 1
            if in_a_row >= _MOST_LOST:
                raise
            continue
        in_a_row = 0
        _require_unchanged(camera, settings, len(paths))
        number += 1
        paths.append(_kept(folder / f"{camera.name}-{number:06d}.png", encode_png(frame.pixels)))
        taken(paths[-1])
    return tuple(paths), lost, ()


def _prepare(folder: Path, name: str, kind: str, settings: Settings) -> None:
    """The folder, with the camera's settings in it. Raises CameraSettingsError and CameraError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = (folder / CAMERA_FILE).exists()
        if not known and find_pictures(folder):
            raise CameraSettingsError(
                f"{folder} holds pictures, and no {CAMERA_FILE} says what they were taken with: pictures of one recipe "
                "are taken with the same settings; give a new folder"
            )
    except OSError as exc:
        raise CameraError(f"pictures cannot be kept in {folder}: {exc.strerror or exc}") from exc
    except PictureError as exc:
        raise CameraError(str(exc)) from exc
    if not known and settings:
        try:
            write_camera_file(folder, stated(name, kind, datetime.now(UTC).isoformat(timespec="seconds"), settings))
        except FileExistsError:  # another camera takes pictures into the same folder, just now
            known = True
    if known and (found := differences(read_camera_file(folder / CAMERA_FILE).settings, settings)):
        raise CameraSettingsError(
            f"the pictures in {folder} were taken with other settings: {in_words(found, 'the camera', CAMERA_FILE)}. "
            f"Set [cameras.{name}] to those, or give a new folder"
        )


def _require_unchanged(camera: Camera, settings: Settings, kept: int) -> None:
    if found := differences(settings, camera.settings()):
        raise CameraSettingsError(
            f"the settings of camera {camera.name} changed while it took pictures: "
            f"{in_words(found, 'the camera', 'the pictures before')}. {kept} picture(s) were kept, this one was not"
        )


def _last_number(folder: Path, name: str) -> int:
    pattern = re.compile(re.escape(name) + r"-(\d{1,12})\.png")
    found = (pattern.fullmatch(path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in found if match), default=0)


def _kept(path: Path, picture: bytes) -> Path:
    """Raises CameraError; nothing is ever replaced."""
    try:
        with path.open("xb") as file:
            file.write(picture)
    except OSError as exc:
        raise CameraError(f"the picture cannot be written to {path}: {exc.strerror or exc}") from exc
    return path


def series_json(series: Series) -> dict[str, object]:
    """For programs."""
    return {
        "camera": series.camera,
        "folder": str(series.folder),
        "pictures": [str(path) for path in series.paths],
        "lost": series.lost,
        "settings": dict(series.settings),
        "camera_file": str(series.folder / CAMERA_FILE) if series.settings else None,
        "notes": list(series.notes),
    }


def series_text(series: Series) -> str:
    """For people."""
    lost = f"; {series.lost} came incomplete and were left out" if series.lost else ""
    lines = [f"camera {series.camera}: {len(series.paths)} picture(s) in {series.folder}{lost}"]
    if series.settings:
        lines.append(f"settings  {in_short(series.settings)} ({CAMERA_FILE} says so to edge-export)")
    return "\n".join([*lines, *(f"· {note}" for note in series.notes)])
