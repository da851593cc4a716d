"""Settings of a camera, as pictures were taken with and as it has them now: what counts, and what is the same.

A threshold holds for pictures like those that it was learned from. Half the exposure makes another picture, and
whether a defect still stands out in it nobody has measured.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

Value = str | int | float | bool
Settings = Mapping[str, Value]
"""What a camera was read back to have, by name: `exposure_us`, `gain_db`, `pixel_format`, `region`, ..."""

# When and by what the camera exposes, and how often: the pixels of one exposure are the same. All other keys count,
# also those that a newer driver may report: whoever cannot say what a key does must not say that it does nothing.
_NOT_OF_THE_PICTURE = frozenset({"trigger", "line", "activation", "delay_us", "debounce_us", "fps"})

# A camera rounds an exposure to its own steps (line times of some microseconds), and a second one of the same model,
# with a clock of its own, to slightly other ones: one hundredth is what the drivers allow between asked and read back.
# It is a tenth of the change of light that no health limit ever minds. Gains come in steps of up to 0.1 dB, which is
# 1.2% of light.
_RELATIVE, _DECIBEL = 0.01, 0.1
_ROUNDING = 1e-9
_MOST_TOLD, _LONGEST_TOLD = 16, 60


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting that is not the same; None for one that is not there."""

    key: str
    wanted: Value | None
    found: Value | None


def counting(settings: Settings) -> dict[str, Value]:
    """Those that shape the picture, by name in alphabetical order."""
    return {key: settings[key] for key in sorted(settings) if key not in _NOT_OF_THE_PICTURE}


def canonical(settings: Settings) -> str:
    """One text for equal settings and another for others: `1`, `1.0`, `"1"` and `true` differ, and so does no value.

    Python takes 1, 1.0 and True for equal, and a NaN for unequal to itself.
    """
    return json.dumps(dict(settings), sort_keys=True, separators=(",", ":"))


def identical(one: Settings, other: Settings) -> bool:
    """Whether nothing has changed, not even a type. Asked for every frame: the text is made only where it is needed."""
    same = one == other and list(one) == list(other)
    return (same and list(map(type, one.values())) == list(map(type, other.values()))) or canonical(one) == canonical(
        other
    )


def differences(wanted: Settings, found: Settings) -> tuple[Difference, ...]:
    """What shapes the picture and is not the same, by name. A setting that only one side has is a difference: what
    nobody reports cannot be proven to be right. Fractions agree within what cameras round, everything else exactly;
    NaN and infinity agree with nothing."""
    unlike = [
        key
        for key in wanted.keys() | found.keys()
        if key not in _NOT_OF_THE_PICTURE
        and (key not in wanted or key not in found or not _same(key, wanted[key], found[key]))
    ]
    return tuple(Difference(key, wanted.get(key), found.get(key)) for key in sorted(unlike))


def in_words(found: tuple[Difference, ...], here: str, there: str) -> str:
    """`exposure_us is 5000 in the camera, 10000 in the recipe; …`. here, there: who has the found, the wanted value."""
    told = [f"{d.key} is {_shown(d.found)} in {here}, {_shown(d.wanted)} in {there}" for d in found[:_MOST_TOLD]]
    if len(found) > _MOST_TOLD:
        told.append(f"and {len(found) - _MOST_TOLD} more")
    return "; ".join(told)


def in_short(settings: Settings) -> str:
    """`exposure_us 5000, gain_db 3`, for one line."""
    return ", ".join(f"{key} {value if isinstance(value, str) else _shown(value)}" for key, value in settings.items())


def _same(key: str, one: Value, other: Value) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return _is_number(one) and _is_number(other) and _close(key, one, other)
    return type(one) is type(other) and one == other


def _is_number(value: Value) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(key: str, one: float, other: float) -> bool:
    try:
        if not (math.isfinite(one) and math.isfinite(other)):
            return False
    except OverflowError:  # an integer beyond all fractions
        return False
    allowed = _DECIBEL if key.endswith("_db") else _RELATIVE * max(abs(one), abs(other))
    return abs(one - other) <= allowed + _ROUNDING


def _shown(value: Value | None) -> str:
    """As JSON, which tells `1` from `"1"` and `true`."""
    if value is None:
        return "not there"
    text = f"{value:.10g}" if isinstance(value, float) else json.dumps(value)
    return text if len(text) <= _LONGEST_TOLD else text[:_LONGEST_TOLD] + "…"
