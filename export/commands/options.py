"""Options that several commands share, and their types; cheap to import."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from export.errors import ExportError

# An argument group may be given in place of a parser.
Options = argparse._ActionsContainer


def recipe_option(parser: Options) -> None:
    """The recipe that a command is about."""
    parser.add_argument("--recipe", type=Path, required=True, metavar="PATH", help="recipe directory or .recipe file")


def label_option(parser: Options, of_what: str = "of the new recipe") -> None:
    """The version of what is written, see `stamped`."""
    parser.add_argument("--label", metavar="TEXT", help=f"version {of_what} (default: date and time)")


def provider_option(parser: Options, does: str = "proves the golden samples") -> None:
    """What the networks run on."""
    parser.add_argument(
        "--provider",
        choices=("cpu", "cuda", "tensorrt"),
        default="cpu",
        help=f"what {does}; no silent fallback (default cpu)",
    )


def json_option(parser: Options) -> None:
    """Output for programs."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on standard output")


@dataclass(frozen=True, slots=True)
class Stamp:
    """Of a recipe that is about to be written. created_utc: ISO 8601, whole seconds."""

    version: str
    created_utc: str


def stamped(label: str | None) -> Stamp:
    """Now; the version is the label, else date and time."""
    now = datetime.now(UTC)
    return Stamp(label or now.strftime("%Y%m%d-%H%M%S"), now.isoformat(timespec="seconds"))


def size(text: str) -> tuple[int, int]:
    """`256` or `1280x512` -> (width, height) in pixels."""
    from export.backbone import parse_size

    try:
        return parse_size(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def comma_list(text: str) -> tuple[str, ...]:
    """`layer2,layer3` -> names, none empty."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of names separated by commas")
    return names


def three_numbers(text: str) -> tuple[float, float, float]:
    """`0.485,0.456,0.406` -> one number per channel."""
    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} are not three numbers separated by commas") from exc
    return first, second, third


def needs_torch(command: str) -> None:
    """Raises ExportError that says what to install when torch or timm is missing."""
    if find_spec("torch") is None or find_spec("timm") is None:
        raise ExportError(f"edge-export {command} needs torch and timm: pip install 'edge-daemon[export]'")


def natural(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


# The first rows of a coreset are a pass over everything each, the last ones thousands a pass: an estimate from the
# first says days where it takes half an hour.
_FASTER_AND_FASTER, _ESTIMATED_FROM = ("coreset",), 0.1
_NO_ESTIMATE = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, faster and faster]"


def bars(shown: bool | None) -> Callable[[str, int], Any]:
    """Progress bars on standard error. shown None: only when that is a terminal."""
    from tqdm import tqdm

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
        disable = None if shown is None else not shown
        late = what in _FASTER_AND_FASTER
        shape = _NO_ESTIMATE if late else None
        with tqdm(total=total, desc=f"{what:<13}", disable=disable, file=sys.stderr, bar_format=shape) as bar:

            def advance(count: int) -> None:
                bar.update(count)
                if late and bar.n >= total * _ESTIMATED_FROM:
                    bar.bar_format = None

            yield advance

    return progress
