"""How often one client may ask."""

from dataclasses import dataclass
from enum import Enum, auto


class Ruling(Enum):
    """What becomes of a request."""

    SERVE = auto()
    REFUSE = auto()
    DROP = auto()


@dataclass(slots=True)
class Allowance:
    """A bucket that fills with `per_s` requests a second, up to half a second's, and can be owed as many.

    A request that finds something in it is served. One that does not is refused with an answer, so that an eager client
    learns it; one from a client that goes on as if it had not read that is dropped, for answering costs as much as
    serving. Pure: `now_ns` is monotonic.
    """

    per_s: float
    level: float
    filled_ns: int

    @classmethod
    def full(cls, per_s: float, now_ns: int) -> "Allowance":
        return cls(per_s, per_s / 2, now_ns)

    def take(self, now_ns: int) -> Ruling:
        """Rules on one request."""
        gained = (now_ns - self.filled_ns) * self.per_s / 1e9
        self.filled_ns = now_ns
        self.level = min(self.per_s / 2, self.level + gained)
        if self.level - 1 < -self.per_s / 2:
            return Ruling.DROP
        self.level -= 1
        return Ruling.SERVE if self.level >= 0 else Ruling.REFUSE
