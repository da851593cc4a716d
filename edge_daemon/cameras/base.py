"""The contract of all cameras."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError


class EndOfFrames(CameraError):
    """A finite replay has shown its last picture. Not a fault: the camera stays open and silent."""


class FrameLost(CameraError):
    """One frame is lost (unreadable, incomplete), and only that: the camera goes on without being reopened."""


class CameraSilent(CameraError):
    """The camera gave no sign of life in time. It may be busy, or gone: ask once more, or close it."""


@dataclass(frozen=True, slots=True)
class Past:
    """What a camera object takes over from one that was given up with its process: the number of the last frame, and
    how often it was triggered."""

    frames: int = 0
    triggers: int = 0


class Camera(Protocol):
    """A source of frames. Constructors start nothing; all calls come from one thread, but for `close`, which may
    also come from another one, to end a call that hangs.

    open -> (trigger ->) grab ... -> close. `open` may be called twice, `close` too, which never raises.
    `open` after `close` reconnects: frame ids go on rising, a replay goes on with its next picture, and a
    finished one stays finished; otherwise each reconnect after a damaged picture would replay from the
    start. Nothing exposed or asked for before is delivered after. Frames belong to the caller and are read-only.

    The first `trigger` makes a camera a triggered one for the rest of its life, reconnects included: from
    then on it delivers nothing that was not asked for. Before, it runs free.
    """

    @property
    def name(self) -> str:
        """Name in the configuration."""
        ...

    @property
    def simulated(self) -> bool:
        """True when the frames are not of a part that is here now (simulation, replay)."""
        ...

    @property
    def waits_for_host(self) -> bool:
        """True when a free-running camera makes a frame only when asked (replay at full speed), so
        that no frame is ever missed for lack of time; False when frames come in real time."""
        ...

    @property
    def overdue(self) -> bool:
        """Whether the last `grab` returned None without knowing whether there is a frame: what it asked has not
        answered yet. Nothing may be concluded from such a None but that time went by."""
        ...

    def open(self) -> None:
        """Connect and apply settings. Raises CameraError."""
        ...

    def close(self) -> None:
        """Release everything. Never raises."""
        ...

    def trigger(self) -> None:
        """Ask for one exposure (software trigger). Raises CameraError."""
        ...

    def grab(self, timeout_ns: int) -> Frame | None:
        """The next frame, or None when none came within the timeout. A timeout of 0 only fetches what is
        already there: nothing is exposed for it, so that old frames can be drained.

        In triggered use the first frame exposed after the last `trigger`; of an earlier trigger whose frame
        was not yet fetched, nothing comes any more. Raises CameraError when the camera is gone, FrameLost
        when only this frame is, EndOfFrames after the last picture of a finite replay.
        """
        ...

    def check(self, timeout_ns: int) -> None:
        """Ask the open camera for a sign of life (a register read, a look at when the stream last moved), within
        the timeout; raises CameraSilent when there is none in time, CameraError when it is gone. Asked between
        frames: of an idle camera every half second, and when a trigger brought no frame. Cheap, and never a reason
        for an exposure. What it calls may hang for longer than the timeout all the same: whoever must not wait
        isolates the camera (`isolated`)."""
        ...

    def counters(self) -> Mapping[str, int]:
        """What camera and stream have counted since this object was made, reconnects included, by name in
        snake_case: `completed`, `failed`, `underruns`, `missing_packets`, `resent_packets`, ... Empty where nothing
        is counted. Never raises, also while closed."""
        ...

    def settings(self) -> Mapping[str, str | int | float | bool]:
        """What shapes the picture, as read back from the open camera (`exposure_us`, `gain_db`, `pixel_format`,
        `region`, ...); their digest goes into every result. Empty while closed, and where nothing can be set."""
        ...
