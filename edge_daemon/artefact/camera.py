"""camera.json: what the pictures beside it were taken with (schema `edge-daemon/camera/1`).

`edge-daemon grab --save` writes it, and a recipe made of these pictures takes the settings over. One folder has one,
for all pictures in it and below: whoever takes others with other settings takes another folder.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_daemon.artefact.manifest import CameraSettings, Text
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
