"""A frame: pixels with their identity."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frame:
    """One exposure of one camera. The pixels are read-only from the moment they arrive.

    camera:     name of the camera in the configuration
    frame_id:   the camera's own counter
    pixels:     (H, W) or (H, W, 3) uint8, grey or RGB
    arrived_ns: monotonic clock of this PC when the frame was complete
    """

    camera: str
    frame_id: int
    pixels: NDArray[np.uint8]
    arrived_ns: int

    def __post_init__(self) -> None:
        self.pixels.flags.writeable = False
