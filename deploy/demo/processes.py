"""Other programs, started and always stopped."""

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Longer than the daemon needs to answer what is in flight.
_STOP_S = 20.0


class DemoFailed(Exception):
    """The demo cannot go on; the message says why and where to look."""


@contextmanager
def running(command: Sequence[str], log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program in a session of its own, so that Ctrl-C reaches only the demo, which stops all in order.

    log: where its output goes; None lets it print here. On exit it is asked to stop, and killed when it does
    not within 20 s.
    """
    with log.open("wb") if log else open_nothing() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield process
        finally:
            stop(process)


@contextmanager
def open_nothing() -> Iterator[None]:
    """Stands for a log that is not wanted: the program inherits the terminal."""
    yield None


def stop(process: subprocess.Popen[bytes]) -> int:
    """Asks a program to end and waits for it; its exit status. Kills it when it does not listen."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise DemoFailed(f"{Path(process.args[0]).name} did not stop within {_STOP_S:.0f} s and was killed") from None


def run_to_end(command: Sequence[str]) -> None:
    """Runs a program that prints here until it is done. Raises DemoFailed when it fails."""
    with running(command) as process:
        if status := process.wait():
            raise DemoFailed(f"this command ended with status {status}: {' '.join(command)}")
