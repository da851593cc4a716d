"""camera.json: what the pictures beside it were taken with (schema `edge-daemon/camera/1`).

`edge-daemon grab --save` writes it, and a recipe made of these pictures takes the settings over. One folder has one,
for all pictures in it and below: whoever takes others with other settings takes another folder. In the daemon's
archive, where the settings may change from part to part, each picture has its own.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_daemon import __version__
from edge_daemon.artefact.manifest import CameraSettings, Text
from edge_daemon.core.camera_settings import Settings, counting
from edge_daemon.core.strict_json import parse_strictly
from edge_daemon.errors import CameraSettingsError

CAMERA_FILE: Final = "camera.json"
CAMERA_SCHEMA: Final = "edge-daemon/camera/1"
_MAX_BYTES = 64 << 10


class CameraFile(BaseModel):
    """The whole of camera.json. Unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True, use_attribute_docstrings=True
    )

    schema_: Annotated[Literal["edge-daemon/camera/1"], Field(alias="schema")] = CAMERA_SCHEMA
    camera: Text
    """Name in the configuration that it was taken with."""
    kind: Text
    """`gige`, `usb`, ..."""
    taken_utc: Text
    """When the settings were read back first."""
    software: Text
    settings: CameraSettings
    """What shapes the picture, as read back from the camera; see `core.camera_settings.counting`."""


def stated(camera: str, kind: str, taken_utc: str, settings: Settings) -> CameraFile:
    """What pictures of that camera were taken with. Raises CameraSettingsError when a driver reports something that is
    no setting, a number that is not finite, say."""
    try:
        return CameraFile(
            camera=camera,
            kind=kind,
            taken_utc=taken_utc,
            software=f"edge-daemon {__version__}",
            settings=counting(settings),
        )
    except ValidationError as exc:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()[:5])
        raise CameraSettingsError(f"what camera {camera} is set to cannot be kept ({problems[:600]})") from exc


def own_file(picture: Path) -> Path:
    """Where the settings of one picture alone are said: `NAME.camera.json` beside `NAME.png` and `NAME.frame.png`, as
    the daemon's archive has them."""
    return picture.with_name(f"{picture.stem.removesuffix('.frame')}.{CAMERA_FILE}")


def read_camera_file(path: Path) -> CameraFile:
    """Raises CameraSettingsError, which names the file."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:  # a pipe would block for ever
            raise CameraSettingsError(
                f"{path} is no file with the settings of a camera: it is not a file, or too large"
            )
        raw = path.read_bytes()
        parse_strictly(raw.decode())
        return CameraFile.model_validate_json(raw, strict=True)
    except OSError as exc:
        raise CameraSettingsError(f"{path} cannot be read ({exc.strerror or exc}): check the path") from exc
    except ValidationError as exc:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()[:5])
        raise CameraSettingsError(f"{path} does not say a camera's settings ({problems[:600]})") from exc
    except (ValueError, RecursionError) as exc:
        raise CameraSettingsError(f"{path} is not JSON ({str(exc)[:200]}): `edge-daemon grab` writes it") from exc


def write_camera_file(folder: Path, content: CameraFile) -> None:
    """Whole or not at all, and never in the place of another. Raises CameraSettingsError, and FileExistsError when the
    folder has one."""
    target = folder / CAMERA_FILE
    partial = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".camera.", encoding="utf-8", delete=False) as file:
            partial = Path(file.name)
            file.write(content.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError as exc:
        raise CameraSettingsError(f"{target} cannot be written: {exc.strerror or exc}") from exc
    finally:
        if partial is not None:
            with suppress(OSError):
                partial.unlink()
