"""Time as an argument: what the core and the pipeline may know of clocks."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class UtcAnchor:
    """A moment in UTC. text: ISO 8601; uncertainty_us: half-width; quality: `ntp`, `unsynchronised`, `unknown`."""

    text: str
    uncertainty_us: int
    quality: str


class Clock(Protocol):
    """The two clocks of a PC."""

    def monotonic_ns(self) -> int:
        """Never steps; for durations and deadlines."""
        ...

    def utc(self) -> UtcAnchor:
        """May step; for records that people read."""
        ...
