"""Recipes: made, checked, changed and measured offline."""

# First of all, as it keeps onnxruntime from sending telemetry, whichever module here imports that.
from edge_daemon import __version__

__all__ = ["__version__"]
