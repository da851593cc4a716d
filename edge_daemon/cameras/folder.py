"""A camera that replays the pictures of a folder, in the order of their paths."""

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.camera import CAMERA_FILE, read_camera_file
from edge_daemon.artefact.pictures import find_pictures, read_picture
from edge_daemon.cameras.base import EndOfFrames, FrameLost
from edge_daemon.cameras.config import FolderConfig
from edge_daemon.cameras.exposures import Exposures
from edge_daemon.cameras.waiting import Clock, Pause, Waiter
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError, CameraSettingsError, PictureError

_BYTES_PER_MB = 1_000_000


class FolderCamera:
    """Frame i + 1 is picture i of the sorted list, which is made at the first opening and stays: the same
    frame id is the same file for as long as the object lives. With `loop` the list comes again after its
    end and the ids go on rising. Its settings are those that the folder's `camera.json` says the pictures were taken
    with, none without one."""

    def __init__(self, name: str, config: FolderConfig, clock_ns: Clock, pause_s: Pause | None = None) -> None:
        self._name = name
        self._config = config
        self._waiter = Waiter(clock_ns, pause_s)
        self._exposures = Exposures(first_index=0, rate_hz=config.rate_hz, exposure_ns=0)
        self._paths: tuple[Path, ...] = ()
        self._decoded: tuple[NDArray[np.uint8] | PictureError, ...] = ()
        self._settings: Mapping[str, str | int | float | bool] = {}
        self._is_open = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def simulated(self) -> bool:
        return True

    @property
    def waits_for_host(self) -> bool:
        return self._config.rate_hz == 0

    @property
    def paths(self) -> tuple[Path, ...]:
        """The pictures in the order of replay; empty before the first opening."""
        return self._paths

    def path_of(self, frame_id: int) -> Path:
        """The file that frame `frame_id` was read from. Raises CameraError for an id that cannot have been."""
        if frame_id < 1 or not self._paths or (frame_id > len(self._paths) and not self._config.loop):
            raise CameraError(f"camera {self._name}: has no frame {frame_id}; it has {len(self._paths)} pictures")
        return self._paths[(frame_id - 1) % len(self._paths)]

    @property
    def overdue(self) -> bool:
        return False

    def open(self) -> None:
        """List the folder, and decode everything when the configuration says `preload`. Raises CameraError when
        there is no such folder, no picture in it, more pictures than memory is given to, or a `camera.json` that
        cannot be read."""
        if self._is_open:
            return
        self._require_folder()
        self._settings = self._taken_with()
        if not self._paths:
            self._paths = self._list()
        if self._config.preload and not self._decoded:
            self._decoded = self._decode_all()
        self._waiter.start()
        self._exposures.restart()
        self._is_open = True

    def close(self) -> None:
        self._waiter.stop()
        self._is_open = False

    def check(self, timeout_ns: int) -> None:  # noqa: ARG002  # answers at once
        self._require_open()
        self._require_folder()

    def counters(self) -> Mapping[str, int]:
        return {}

    def settings(self) -> Mapping[str, str | int | float | bool]:
        return dict(self._settings) if self._is_open else {}

    def trigger(self) -> None:
        self._require_open()
        self._exposures.trigger(self._waiter.now_ns)

    def grab(self, timeout_ns: int) -> Frame | None:
        """As the contract says. A picture that cannot be read is a lost frame: FrameLost names the file, and the
        next grab goes on with the next one. A folder that is gone is a lost camera."""
        self._require_open()
        now_ns = self._waiter.now_ns
        exposure = self._exposures.next(now_ns, draining=timeout_ns <= 0)
        if exposure is not None and exposure.index >= len(self._paths) and not self._config.loop:
            raise EndOfFrames(f"camera {self._name}: all {len(self._paths)} pictures of {self._config.path} were shown")
        if exposure is None or exposure.complete_ns > now_ns + timeout_ns:
            self._waiter.until(now_ns + timeout_ns)
            self._require_open()
            return None
        self._waiter.until(exposure.complete_ns)
        self._require_open()
        self._require_folder()
        try:
            pixels = self._read(exposure.index % len(self._paths))
        except PictureError as exc:
            self._require_folder()
            self._exposures.fetched(exposure)
            raise FrameLost(f"camera {self._name}: frame {exposure.index + 1} is lost: {exc}") from exc
        self._exposures.fetched(exposure)
        # Decoding a file stands for the transfer: it makes no picture of a later moment.
        return Frame(self._name, exposure.index + 1, pixels, self._waiter.now_ns, exposed_ns=exposure.complete_ns)

    def _taken_with(self) -> Mapping[str, str | int | float | bool]:
        path = self._config.path / CAMERA_FILE
        try:
            return read_camera_file(path).settings if os.path.lexists(path) else {}
        except CameraSettingsError as exc:
            raise CameraError(f"camera {self._name}: {exc}") from exc

    def _read(self, position: int) -> NDArray[np.uint8]:
        """Raises PictureError."""
        if not self._decoded:
            return read_picture(self._paths[position])
        found = self._decoded[position]
        if isinstance(found, PictureError):
            raise found
        return found

    def _list(self) -> tuple[Path, ...]:
        try:
            found = find_pictures(self._config.path, self._config.recursive)
        except PictureError as exc:
            raise CameraError(f"camera {self._name}: {exc}") from exc
        paths = tuple(path for path in found if fnmatchcase(path.name, self._config.pattern))
        if not paths:
            raise CameraError(
                f"camera {self._name}: no PNG, JPEG, BMP or TIFF picture in {self._config.path} fits the pattern "
                f"{self._config.pattern!r}; check the path, the pattern and `recursive`"
            )
        return paths

    def _decode_all(self) -> tuple[NDArray[np.uint8] | PictureError, ...]:
        decoded: list[NDArray[np.uint8] | PictureError] = []
        used_bytes = 0
        for path in self._paths:
            try:
                pixels = read_picture(path)
            except PictureError as exc:  # told when its frame is due, not before
                decoded.append(exc)
                continue
            used_bytes += pixels.nbytes
            if used_bytes > self._config.preload_limit_mb * _BYTES_PER_MB:
                raise CameraError(
                    f"camera {self._name}: the first {len(decoded) + 1} of {len(self._paths)} pictures already take "
                    f"more than {self._config.preload_limit_mb} MB; set `preload = false` or raise `preload_limit_mb`"
                )
            decoded.append(pixels)
        return tuple(decoded)

    def _require_open(self) -> None:
        if not self._is_open:
            raise CameraError(f"camera {self._name}: asked for a frame while it is closed; open it first")

    def _require_folder(self) -> None:
        # Path.is_dir raises where a share went stale; to us it is gone all the same.
        if not os.path.isdir(self._config.path):
            raise CameraError(
                f"camera {self._name}: the folder {self._config.path} is gone; check that the drive or share is there"
            )
