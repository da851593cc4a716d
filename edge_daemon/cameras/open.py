"""From a table of the configuration to a camera."""

from edge_daemon.cameras.base import Camera
from edge_daemon.cameras.config import CameraConfig, FolderConfig, OpenCVConfig, SimulatedConfig
from edge_daemon.cameras.folder import FolderCamera
from edge_daemon.cameras.opencv import OpenCVCamera
from edge_daemon.cameras.simulated import SimulatedCamera
from edge_daemon.cameras.waiting import Clock


def make_camera(name: str, config: CameraConfig, clock_ns: Clock) -> Camera:
    """The camera `[cameras.name]`, not yet opened. clock_ns: monotonic time in nanoseconds."""
    match config:
        case SimulatedConfig():
            return SimulatedCamera(name, config, clock_ns)
        case FolderConfig():
            return FolderCamera(name, config, clock_ns)
        case OpenCVConfig():
            return OpenCVCamera(name, config, clock_ns)
