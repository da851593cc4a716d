"""Types of command-line arguments that several commands share."""

import argparse


def count(text: str) -> int:
    """How many, 1 or more. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, 1 or more")
    return int(text)
