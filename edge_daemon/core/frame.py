"""A frame: pixels with their identity."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.camera_settings import Settings

ClockQuality = Literal["ptp", "camera", "host"]
"""What `Frame.exposed_ns` rests on: a camera clock locked by PTP, the camera's free-running tick related to this PC's
clock, or nothing but the arrival here."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One exposure of one camera. The pixels are read-only from the moment they arrive.

    camera:     name of the camera in the configuration
    frame_id:   rises with every exposure, reconnects included; a lost one leaves a gap where it is known of
    pixels:     (H, W) or (H, W, 3) uint8, grey or RGB
    arrived_ns: monotonic clock of this PC when the frame was complete
    device_frame_id: the number that the device gave it, as it counts (it may wrap or begin anew); None without one
    device_ns:  the device's own time of exposure, in its own epoch; None without a clock
    exposed_ns: monotonic clock of this PC at the start of exposure, as well as it is known; None when nothing is
                known but the arrival
    exposed_uncertainty_ns: how far off `exposed_ns` may be, either way
    clock_quality: what `exposed_ns` rests on
    settings:   what the camera was set to when it took this, as read back from it; empty when it changed meanwhile,
                None where nobody has asked
    """

    camera: str
    frame_id: int
    pixels: NDArray[np.uint8]
    arrived_ns: int
    device_frame_id: int | None = None
    device_ns: int | None = None
    exposed_ns: int | None = None
    exposed_uncertainty_ns: int = 0
    clock_quality: ClockQuality = "host"
    settings: Settings | None = None

    @property
    def exposed_at_the_latest_ns(self) -> int:
        """Monotonic time by which the exposure had surely begun. A camera without a clock says only that it was before
        the arrival."""
        if self.exposed_ns is None:
            return self.arrived_ns
        return min(self.arrived_ns, self.exposed_ns + self.exposed_uncertainty_ns)

    def __post_init__(self) -> None:
        self.pixels.flags.writeable = False


def in_colour(pixels: NDArray[np.uint8]) -> bool:
    """Whether the channels of (H, W) or (H, W, 3) differ anywhere: no camera for colour gives a picture in which they
    do not, unless it is black or white all over."""
    if pixels.ndim != 3:
        return False
    few = pixels[::16, ::16]
    return bool((few != few[..., :1]).any() or (pixels != pixels[..., :1]).any())
