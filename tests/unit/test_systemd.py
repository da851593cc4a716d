"""The units are what systemd understands, key by key, and leave a broken-in process as little as it needs."""

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
# `systemd-analyze security`: 0 is nothing to attack, 10 everything.
MOST_EXPOSED = "20"

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: systemd)"
)


def _verified(unit: str, tmp_path: Path, drop_in: Path | None = None) -> tuple[int, str]:
    """Unknown keys are told on standard error with exit status 0, so silence is what counts."""
    copy = tmp_path / unit
    copy.write_text((FOLDER / unit).read_text().replace("/opt/edge-daemon/.venv/bin/edge-", "/bin/true edge-"))
    if drop_in is not None:
        folder = tmp_path / f"{unit}.d"
        folder.mkdir()
        shutil.copy(drop_in, folder / "gpu.conf")
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stderr


@needs_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_has_nothing_to_say_about_the_unit(unit: Path, tmp_path: Path) -> None:
    assert _verified(unit.name, tmp_path) == (0, "")


@needs_analyze
def test_systemd_has_nothing_to_say_about_the_drop_in_for_a_gpu(tmp_path: Path) -> None:
    found = _verified("edge-daemon.service", tmp_path, FOLDER / "edge-daemon.service.d-gpu.conf")
    assert found == (0, "")


@needs_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_unit_is_exposed_to_what_it_needs_and_no_more(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSED}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_there_is_a_unit_for_the_daemon_and_one_for_the_gateway() -> None:
    assert {"edge-daemon.service", "edge-gateway.service"} <= {unit.name for unit in UNITS}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_learns_when_the_service_is_ready_and_when_it_hangs(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    assert "Type=notify" in lines
    assert any(line.startswith("WatchdogSec=") for line in lines)
    assert "Restart=always" in lines
    assert "StartLimitIntervalSec=0" in lines  # a line PC is never given up


def test_the_gateway_outlives_the_daemon() -> None:
    text = (FOLDER / "edge-gateway.service").read_text()
    assert "After=network-online.target edge-daemon.service" in text
    assert not any(bond in text for bond in ("Requires=", "BindsTo=", "PartOf=", "Requisite=", "PropagatesStopTo="))
