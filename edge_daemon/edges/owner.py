"""The thread that owns sockets: how it starts, how others wake it, how it ends."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from edge_daemon.edges.sockets import Wake
from edge_daemon.errors import EdgeError


class SocketOwner(ABC):
    """Something with a thread of its own, because a ZeroMQ socket belongs to one thread. What others have for it they
    leave under `_lock` and call `_awaken`.

    name: of the thread, and in messages
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()  # guards what follows, and what is left for the thread
        self._running = False
        self._wake: Wake | None = None
        self._thread: threading.Thread | None = None

    @abstractmethod
    def open(self) -> object:
        """Binds and starts."""

    def close(self) -> None:
        """Ends the thread, which does first what its owner says. May be called twice."""
        with self._lock:
            self._running = False
            self._awaken()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._lock:
            if self._wake is not None:
                self._wake.close()
                self._wake = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _must_be_closed(self) -> None:
        """Raises EdgeError."""
        if self._thread is not None:
            raise EdgeError(f"{self._name} is open already")

    def _begin(self, run: Callable[[Wake], None]) -> None:
        """Start the thread, which owns from now on what was bound. It polls the wake, and clears it before it looks
        for work."""
        wake = Wake()
        with self._lock:
            self._wake = wake
            self._running = True
        self._thread = threading.Thread(target=run, args=(wake,), name=self._name, daemon=True)
        self._thread.start()

    def _awaken(self) -> None:
        """Under the lock."""
        if self._wake is not None:
            self._wake.set()
