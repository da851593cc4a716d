"""Other programs, started and always stopped."""

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

# Longer than the daemon needs to answer what is in flight.
_STOP_S = 20.0


class DemoError(Exception):
    """The demo cannot go on; the message says why and where to look."""


@contextmanager
def running(
    command: Sequence[str], log: Path | None = None, pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program in a session of its own, so that Ctrl-C reaches only the demo, which stops all in order.

    log: where its output goes; None lets it print here. pass_fds: open files that it inherits. At the end it
    is asked to stop, and killed when it has not within 20 s.
    """
    with log.open("wb") if log else nullcontext() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks a program to end and waits for it. Kills it when it does not listen, or when we are asked again."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
        raise


def run_to_end(command: Sequence[str]) -> None:
    """Runs a program that prints here until it is done. Raises DemoError when it fails."""
    with running(command) as process:
        if status := process.wait():
            raise DemoError(f"this command ended with status {status}: {' '.join(command)}")
