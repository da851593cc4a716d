"""Which picture a camera without hardware exposes, and when. No I/O and no clock: time is an argument."""

from dataclasses import dataclass

NS_PER_S = 1_000_000_000

# As the driver of a real camera: a host that is late by more frames than this loses the oldest.
BUFFERED_FRAMES = 4


@dataclass(frozen=True, slots=True)
class Exposure:
    """One exposure: the index of its picture, when it is complete, and the trigger (from 1) that asked for it,
    0 when the camera ran free. part: index of the part that lies there, where a pulse says so."""

    index: int
    complete_ns: int
    trigger: int
    part: int | None = None


class Exposures:
    """Counts the exposures of one camera over its life, across reconnects.

    first_index: index of the first picture; rate_hz: free-running rate in real time, 0 on demand;
    exposure_ns: from trigger to complete frame; triggers: how many there were before this object.
    """

    def __init__(self, first_index: int, rate_hz: float, exposure_ns: int, triggers: int = 0) -> None:
        self._next_index = first_index
        self._period_ns = NS_PER_S / rate_hz if rate_hz > 0 else 0.0
        self._exposure_ns = exposure_ns
        self._triggers = triggers
        self._pending: Exposure | None = None
        self._start_ns: int | None = None
        self._start_index = first_index

    @property
    def triggered(self) -> bool:
        """Whether a trigger ever came: then nothing comes without one."""
        return self._triggers > 0

    def restart(self) -> None:
        """The camera was opened: what was pending is gone, and a free run begins when it is first asked for."""
        self._pending = None
        self._start_ns = None

    def trigger(self, now_ns: int) -> None:
        """Expose the next picture; an earlier one that was not fetched is lost, as its part is past."""
        self._triggers += 1
        self._pending = Exposure(self._next_index, now_ns + self._exposure_ns, self._triggers)
        self._next_index += 1

    def pulse(self, part: int, at_ns: int) -> Exposure:
        """A pulse on a wire: the next picture, of that part. Nothing else is ever exposed then."""
        return Exposure(self._next_index, at_ns + self._exposure_ns, 0, part)

    def next(self, now_ns: int, draining: bool) -> Exposure | None:
        """The exposure to fetch next, complete or not yet; None when nobody asked for one. Draining asks for
        none: it neither exposes on demand nor begins a free run."""
        if self.triggered:
            return self._pending
        if draining and (self._start_ns is None or not self._period_ns):
            return None
        if not self._period_ns:
            return Exposure(self._next_index, now_ns, 0)
        if self._start_ns is None:
            self._start_ns, self._start_index = now_ns, self._next_index
        newest = self._start_index + int((now_ns - self._start_ns) / self._period_ns)
        self._next_index = max(self._next_index, newest - BUFFERED_FRAMES + 1)
        since_start = (self._next_index - self._start_index) * self._period_ns
        return Exposure(self._next_index, self._start_ns + int(since_start) + self._exposure_ns, 0)

    def fetched(self, exposure: Exposure) -> None:
        """This exposure was delivered, or is lost: never offer it again."""
        if self._pending == exposure:
            self._pending = None
        if not exposure.trigger:
            self._next_index = exposure.index + 1
