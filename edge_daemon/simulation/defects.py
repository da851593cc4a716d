"""Which simulated parts are defective, and how: the truth, without rendering."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from edge_daemon.errors import ConfigError
from edge_daemon.simulation.names import DefectKind

__all__ = ["DefectKind", "DefectScript"]

# Separates the stream that decides *whether* from the one that decides *how* (render.py).
_SCRIPT_STREAM = 7


@dataclass(frozen=True, slots=True)
class DefectScript:
    """Which parts are defective, known without rendering any: the truth that a demo is measured by.

    seed:   the camera's seed; the same seed and index always give the same answer
    rate:   share of defective parts, 0 to 1, each part drawn on its own
    listed: parts that are decided here whatever the rate says; None for a part that is good
    kinds:  what may be drawn, each as likely as the other
    Raises ConfigError for a rate outside 0…1, no kinds or a negative index.
    """

    seed: int
    rate: float = 0.0
    listed: Mapping[int, DefectKind | None] = field(default_factory=lambda: MappingProxyType({}))
    kinds: tuple[DefectKind, ...] = tuple(DefectKind)

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.rate <= 1:
            problems.append(f"defect rate is {self.rate}; it must lie between 0 and 1")
        if not self.kinds:
            problems.append("the defect script has no kinds of defect to draw from; name at least one")
        if self.seed < 0 or any(index < 0 for index in self.listed):
            problems.append("seed and part indices of a defect script must not be negative")
        if problems:
            raise ConfigError(problems)
        object.__setattr__(self, "listed", MappingProxyType(dict(self.listed)))

    def truth(self, index: int) -> DefectKind | None:
        """The defect of part `index`, or None for a good part."""
        if index in self.listed:
            return self.listed[index]
        if self.rate == 0:
            return None
        draw = np.random.default_rng([self.seed, index, _SCRIPT_STREAM])
        if draw.random() >= self.rate:
            return None
        return self.kinds[int(draw.integers(len(self.kinds)))]
