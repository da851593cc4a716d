"""Strangers at every port of a running line: the parts pass and fail as if nobody were there.

The daemon listens everywhere and knows its clients by their keys, the gateway knows the PLC by its address. (Without
keys the daemon listens to programs of its own PC only; one of those could end it as well.) All of them share two cores
with the line, which costs it time as no network would: a few parts may be rejected for that, and none may pass.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.daemon import DaemonProcess, free_ports
from tests.gateway_kit import GatewayProcess
from tests.gateway_line import Reference, check_line, run_line

pytestmark = pytest.mark.alone

PARTS, NEEDLESS = 80, 0.05


@contextlib.contextmanager
def besieged(daemon: DaemonProcess, gateway: GatewayProcess, metrics: int) -> Iterator[None]:
    ports = {name: int(endpoint.rpartition(":")[2]) for name, endpoint in daemon.endpoints.items()}
    command = [
        sys.executable,
        "-m",
        "tests.fakes.strangers",
        json.dumps(ports | {"metrics": metrics, "gateway": gateway.port}),
    ]
    strangers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield
    finally:
        told, _ = strangers.communicate(timeout=60)
    managed = json.loads(told)
    print(managed)
    assert all(managed.values()), managed


@pytest.mark.timeout(240)
def test_strangers_at_every_port_change_no_verdict(tmp_path: Path) -> None:
    reference = Reference()
    metrics = free_ports(1)[0]
    line, records = run_line(
        tmp_path,
        reference,
        parts=PARTS,
        seed=3,
        rounds=0,
        more=f'\n[metrics]\nlisten = "127.0.0.1:{metrics}"\n',
        keys=True,
        beside=lambda daemon, gateway: besieged(daemon, gateway, metrics),
    )
    print("\n" + check_line(line, records, reference, NEEDLESS))
