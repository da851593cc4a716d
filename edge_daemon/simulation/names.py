"""Names of the products and their defects. Imports no library: the configuration is read before any is loaded."""

from enum import StrEnum
from typing import Literal

Product = Literal["flange", "cap", "board", "weave"]
PRODUCTS: tuple[Product, ...] = ("flange", "cap", "board", "weave")

# Pictures are rendered from this to this length of a side.
SMALLEST_SIDE_PX = 64
LARGEST_SIDE_PX = 4096
LARGEST_RATIO = 4


class DefectKind(StrEnum):
    """What can be wrong with a simulated part, as the configuration and reports name it."""

    SCRATCH = "scratch"
    STAIN = "stain"
    CHIP = "chip"
    MISSING = "missing"
    PARTICLE = "particle"
    SMEAR = "smear"
