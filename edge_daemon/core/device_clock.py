"""What a camera's clock says in the time of this PC, and how far off that may be. Time is an argument."""

from dataclasses import dataclass, field

# Two quartz clocks of 100 ppm each.
DRIFT_PER_NS = 200e-6
# After a jump the clock is not trusted until so many frames agreed with each other.
SETTLING_FRAMES = 10
# So many timely frames in a row that came late by more than the longest way are no delay of the network.
LATE_FRAMES = 3
_UNKNOWN = 1 << 62


@dataclass(slots=True)
class DeviceClock:
    """Bounds of offset = (monotonic time of this PC) - (device time), from what cannot be otherwise.

    - A frame exposed at device time d was complete at a: offset <= a - d. Over many frames the smallest counts
      (minimum delay filtering, as of RFC 5905, section 10).
    - A frame asked for at t was exposed after it: offset >= t - d.
    - A device clock that was read as d between t0 and t1: t0 - d <= offset <= t1 - d.

    Bounds loosen with age by the drift of two quartz clocks. A bound that contradicts the others means that the
    device's clock jumped (or begins anew): `jumps` counts, everything is forgotten, and the clock is not trusted
    until `SETTLING_FRAMES` frames fit together again.

    longest_way_ns: longest time from the start of an exposure to the complete frame here; it bounds the offset from
    below where nothing better does, and a delay from above. (The exposure is not taken off the upper bound: where a
    pulse sets its length, nobody knows it.)
    """

    longest_way_ns: int
    jumps: int = 0
    _upper: tuple[int, int] | None = None  # offset, when it was seen
    _lower: tuple[int, int] | None = None
    _settling: int = 0
    _late: int = field(default=0)
    _newest_device_ns: int | None = None

    def restart(self) -> None:
        """The device was opened anew: what was known may no longer hold. No jump."""
        self._upper = self._lower = self._newest_device_ns = None
        self._settling = self._late = 0

    def suspect(self) -> None:
        """Something else shows that the clock is wrong."""
        self.jumps += 1
        self.restart()
        self._settling = SETTLING_FRAMES

    def frame(self, device_ns: int, arrived_ns: int, waited: bool, asked_ns: int | None = None) -> None:
        """A frame exposed at `device_ns` was complete at `arrived_ns`.

        waited: somebody was waiting for it, so that it did not lie in a queue. asked_ns: it surely answers a request
        of then.
        """
        if self._newest_device_ns is not None and device_ns < self._newest_device_ns:
            self.suspect()
        late_ns = arrived_ns - device_ns - self._upper_at(arrived_ns)
        if waited:
            self._late = self._late + 1 if late_ns > self.longest_way_ns else 0
        if self._late >= LATE_FRAMES:
            self.suspect()
        self._newest_device_ns = device_ns
        self._settling = max(0, self._settling - 1)
        upper = arrived_ns - device_ns
        if not waited and self._upper is None:
            upper = _UNKNOWN  # it may have lain there for any time
        self._bound(arrived_ns, upper, None if asked_ns is None else asked_ns - device_ns)

    def read(self, device_ns: int, before_ns: int, after_ns: int) -> None:
        """The device's clock was asked between the two times."""
        self._bound(after_ns, upper=after_ns - device_ns, lower=before_ns - device_ns)

    def monotonic(self, device_ns: int, now_ns: int) -> tuple[int, int] | None:
        """(monotonic time of this PC, uncertainty either way) of a device time; None while that is not known."""
        if self._upper is None or self._settling:
            return None
        upper = self._upper_at(now_ns)
        lower = self._least_at(now_ns)
        return device_ns + (lower + upper) // 2, (upper - lower + 1) // 2

    def uncertainty_ns(self, now_ns: int) -> int | None:
        """How far off `monotonic` may be now; None while nothing is known."""
        known = self.monotonic(0, now_ns)
        return None if known is None else known[1]

    def _upper_at(self, now_ns: int) -> int:
        if self._upper is None:
            return _UNKNOWN
        offset, seen_ns = self._upper
        return offset + round((now_ns - seen_ns) * DRIFT_PER_NS)

    def _least_at(self, now_ns: int) -> int:
        """The lower bound, assumed where none was seen: no frame takes longer than the longest way."""
        assumed = -_UNKNOWN if self._upper is None else self._upper_at(now_ns) - self.longest_way_ns
        return max(self._lower_at(now_ns), assumed)

    def _lower_at(self, now_ns: int) -> int:
        if self._lower is None:
            return -_UNKNOWN
        offset, seen_ns = self._lower
        return offset - round((now_ns - seen_ns) * DRIFT_PER_NS)

    def _bound(self, now_ns: int, upper: int, lower: int | None) -> None:
        if upper < self._least_at(now_ns) or (lower is not None and lower > self._upper_at(now_ns)):
            self.suspect()
        if upper < self._upper_at(now_ns):
            self._upper = upper, now_ns
        if lower is not None and lower > self._lower_at(now_ns):
            self._lower = lower, now_ns
