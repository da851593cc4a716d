"""Visual inspection for production lines: judges parts against a memory bank of good ones."""

__version__ = "0.1.0"
