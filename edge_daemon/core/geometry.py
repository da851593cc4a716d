"""Regions and boxes in full-frame pixels."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of the full frame, in pixels; x and y of the upper left corner."""

    x: int
    y: int
    w: int
    h: int


@dataclass(frozen=True, slots=True)
class Box:
    """One connected region of an anomaly map at or above the pixel threshold.

    x, y, w, h: full-frame pixels; peak: largest map value inside; area_px: full-frame pixels at or
    above the threshold (model pixels times the scale between the two).
    """

    x: int
    y: int
    w: int
    h: int
    peak: float
    area_px: float
