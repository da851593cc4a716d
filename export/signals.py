"""What ends a command from outside: Ctrl-C, and the SIGTERM of a system that shuts down or of a service manager."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130  # of Ctrl-C and SIGTERM alike: ended before it was done, nothing half written


@contextmanager
def handled(numbers: Sequence[signal.Signals], handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """These signals call `handle` until the block ends; in another thread than the main one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """What Python does at Ctrl-C. Raises KeyboardInterrupt."""
    raise KeyboardInterrupt
