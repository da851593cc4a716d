"""Nothing of a line leaves the plant: onnxruntime, which would send telemetry, is kept from it."""

import subprocess
import sys
from pathlib import Path

import pytest

SESSION = """
import os
import {module}
import onnxruntime
from edge_daemon.check import _PROBE_GRAPH
session = onnxruntime.InferenceSession(_PROBE_GRAPH, providers=["CPUExecutionProvider"])
assert session.get_providers() == ["CPUExecutionProvider"]
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


def run(module: str, home: Path, **environ: str) -> str:
    # No variable CI, which would keep onnxruntime from it too.
    environ |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    made = [sys.executable, "-c", SESSION.format(module=module)]
    return subprocess.run(made, env=environ, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("module", ["edge_daemon.engines.sessions", "export.build", "export.graph"])
def test_onnxruntime_keeps_neither_an_identity_nor_a_database_of_events(module: str, tmp_path: Path) -> None:
    assert run(module, tmp_path) == "1"
    assert not list(tmp_path.rglob("*onnxruntime*"))
    assert not list(tmp_path.rglob("*deviceid*"))


def test_who_wants_it_all_the_same_has_the_last_word(tmp_path: Path) -> None:
    """Not 0: that would send something."""
    assert run("edge_daemon", tmp_path, ORT_DISABLE_TELEMETRY="yes") == "yes"
