"""Waiting that a close ends at once."""

import threading
from collections.abc import Callable

Clock = Callable[[], int]
Pause = Callable[[float], object]


class Waiter:
    """Waits by an injected clock, until a time has come or the camera is closed.

    clock_ns: monotonic time; pause_s: sleeps for so many seconds at most (tests pass one that moves the
    clock instead). By default it sleeps on an event that `stop` sets, from whatever thread.
    """

    def __init__(self, clock_ns: Clock, pause_s: Pause | None = None) -> None:
        self._clock_ns = clock_ns
        self._stopped = threading.Event()
        self._pause_s = pause_s or self._stopped.wait

    @property
    def now_ns(self) -> int:
        """Monotonic time."""
        return self._clock_ns()

    def start(self) -> None:
        """Wait from now on."""
        self._stopped.clear()

    def stop(self) -> None:
        """End every wait, now and later."""
        self._stopped.set()

    def until(self, when_ns: int) -> None:
        """Return at `when_ns` or when stopped."""
        while not self._stopped.is_set() and (left_ns := when_ns - self._clock_ns()) > 0:
            self._pause_s(left_ns / 1e9)
