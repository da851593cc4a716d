"""From a table of the configuration to a camera."""

from edge_daemon.cameras.base import Camera
from edge_daemon.cameras.config import (
    CameraConfig,
    FolderConfig,
    GentlConfig,
    GigeConfig,
    RtspConfig,
    SimulatedConfig,
    UsbConfig,
    VideoConfig,
)
from edge_daemon.cameras.folder import FolderCamera
from edge_daemon.cameras.isolated import IsolatedCamera, Limits
from edge_daemon.cameras.simulated import SimulatedCamera
from edge_daemon.cameras.waiting import Clock

_NS_PER_MS = 1_000_000
# To go on where a video was broken off means to decode all of it up to there.
_VIDEO_LIMITS = Limits(hang_ns=60_000 * _NS_PER_MS)
# Loading a camera's description and a set of settings takes a slow camera seconds.
_GENICAM_LIMITS = Limits(open_ns=15_000 * _NS_PER_MS)


def make_camera(name: str, config: CameraConfig, clock_ns: Clock) -> Camera:
    """The camera `[cameras.name]`, not yet opened. clock_ns: monotonic time in nanoseconds, by which processes of
    their own stamp too. Whatever a library of a maker or a decoder reads is isolated."""
    match config:
        case SimulatedConfig() if config.isolated:
            return IsolatedCamera(name, config, clock_ns, simulated=True, waits_for_host=config.rate_hz == 0)
        case SimulatedConfig():
            return SimulatedCamera(name, config, clock_ns)
        case FolderConfig():
            return FolderCamera(name, config, clock_ns)
        case GigeConfig():
            return IsolatedCamera(name, config, clock_ns, simulated=False, waits_for_host=False, limits=_GENICAM_LIMITS)
        case GentlConfig():
            return IsolatedCamera(
                name, config, clock_ns, simulated=config.simulated, waits_for_host=False, limits=_GENICAM_LIMITS
            )
        case VideoConfig():
            return IsolatedCamera(name, config, clock_ns, simulated=True, waits_for_host=True, limits=_VIDEO_LIMITS)
        case UsbConfig() | RtspConfig():
            limits = Limits(open_ns=(config.open_timeout_ms + 1_000) * _NS_PER_MS,
                            hang_ns=(config.read_timeout_ms + 500) * _NS_PER_MS)  # fmt: skip
            return IsolatedCamera(name, config, clock_ns, simulated=False, waits_for_host=False, limits=limits)
