"""A real gateway in a process of its own, for tests."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from pymodbus.client import ModbusTcpClient

from tests.daemon import free_ports

_PATIENCE_S = 30.0


class GatewayProcess:
    """`edge-gateway run` for station st1 as unit 1, on a free port.

    endpoints: the daemon's; stations: TOML of the station's table and what follows it; key: for a daemon that
    uses keys. Entering starts it and waits until it listens; leaving ends it, and fails when it ended by itself.
    """

    def __init__(
        self, folder: Path, endpoints: dict[str, str], station: str, more: str = "", key: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_ports(1)[0]
        wire = "\n".join(f'{name} = "{endpoints[name]}"' for name in ("results", "status", "triggers", "amendments"))
        wire += f'\nkey = "{key}"' if key else ""
        self.config = folder / "gateway.toml"
        self.config.write_text(
            f'state_dir = "{folder / "state"}"\n'
            f"[daemon]\n{wire}\n[modbus]\nport = {self.port}\n{more}\n[stations.st1]\nunit = 1\n{station}\n"
        )
        self.log = folder / "gateway.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "GatewayProcess":
        self.spawn()
        self.wait_until_it_listens()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(_PATIENCE_S)
        finally:
            self.kill()
        if kind is None:
            assert status == 0, f"the gateway ended with {status}:\n{self.log.read_text()}"

    def spawn(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_daemon.gateway.cli", "run", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONWARNINGS": "error"},
            )

    def wait_until_it_listens(self) -> None:
        assert self.process is not None
        give_up = time.monotonic() + _PATIENCE_S
        while self.process.poll() is None and time.monotonic() < give_up:
            with ModbusTcpClient("127.0.0.1", port=self.port, timeout=0.2) as client:
                if client.connected:
                    return
        self.kill()
        raise AssertionError(f"the gateway does not listen:\n{self.log.read_text()}")

    def kill(self) -> None:
        """kill -9, if it still runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
