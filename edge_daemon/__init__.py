"""Visual inspection for production lines: judges parts against a memory bank of good ones."""

import os

__version__ = "0.1.0"

# From 1.29 on onnxruntime tells Microsoft about sessions, models and hardware, and keeps a database for it in the home
# folder, unless this is set before it is first imported; later, or by its own call, is too late for the first event
# (its Privacy.md). Nothing of a line leaves the plant through us. Here, because nothing of ours is imported before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
