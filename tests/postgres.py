"""A PostgreSQL of the tests' own: Debian's, in a temporary folder, reached through a socket file only."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.conftest import RUN_MARK_NAME

_PATIENCE_S = 60.0


def binaries() -> Path | None:
    """Where initdb and postgres are, the newest version; None where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parent.parent.name))
    return found[-1].parent if found else None


class Postgres:
    """One cluster. `url` for clients; `kill` is kill -9 of all of it, `start` recovers."""

    def __init__(self) -> None:
        where = binaries()
        assert where is not None
        self._bin = where
        self.folder = Path(tempfile.mkdtemp(prefix="edge-pg-"))
        # It refuses to run as root.
        self._as: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(self.folder, "postgres")
        # Its helpers come and go; a test must not take them for its own.
        self._environment = {k: v for k, v in os.environ.items() if k != RUN_MARK_NAME}
        self._run("initdb", "-D", str(self.folder / "data"), "--auth=trust", "--no-sync", "-U", "postgres")
        self.url = f"host={self.folder} user=postgres dbname=postgres"
        self._process: subprocess.Popen[bytes] | None = None

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._bin / program), *arguments],
            check=True, capture_output=True, cwd="/", env=self._environment, timeout=_PATIENCE_S, **self._as,
        )  # fmt: skip

    def start(self) -> None:
        """Returns when it takes connections. Processes are killed here and not the power: it need not sync."""
        give_up = time.monotonic() + _PATIENCE_S
        self._process = self._launch()
        while not self.ready():
            assert time.monotonic() < give_up, (self.folder / "log").read_text()
            if self._process.poll() is not None:
                # After a kill -9 it refuses to start as long as a helper of the killed one lives.
                self._process = self._launch()
            time.sleep(0.02)

    def _launch(self) -> "subprocess.Popen[bytes]":
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}", "-c", "fsync=off"]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self.folder / "data"), *options],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", env=self._environment, **self._as,
            )  # fmt: skip

    def ready(self) -> bool:
        """Whether it takes connections."""
        command = [str(self._bin / "pg_isready"), "-q", "-h", str(self.folder)]
        return subprocess.run(command, check=False, env=self._environment).returncode == 0

    def kill(self) -> None:
        """kill -9 of the server; its helpers notice and end."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        self._end(signal.SIGINT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(_PATIENCE_S)
        self._process = None
