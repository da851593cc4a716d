"""The units are what systemd understands, key by key."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).resolve().parents[2] / "systemd").glob("*.service"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: systemd)")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_has_nothing_to_say_about_the_unit(unit: Path, tmp_path: Path) -> None:
    """Unknown keys are told on standard error with exit status 0, so silence is what counts."""
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/edge-daemon/.venv/bin/edge-", "/bin/true edge-"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_there_is_a_unit_for_the_daemon_and_one_for_the_gateway() -> None:
    assert {"edge-daemon.service", "edge-gateway.service"} <= {unit.name for unit in UNITS}
