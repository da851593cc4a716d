"""JSON at the doors: what parsers read differently is refused."""

import json
import math
from typing import Any, NoReturn

_LONGEST_TOLD = 60


def parse_strictly(text: str) -> Any:
    """JSON with finite numbers and no key twice. Raises ValueError; RecursionError when nested too deep."""
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON; a number that is not finite is null")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_LONGEST_TOLD]} is too large for a number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Parsers differ in which of two equal keys they believe, and one of them may be a threshold or `evaluation`."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found
