"""Forks real daemons from a process that has imported everything, so that a test can start and kill hundreds.

For each line on standard input one daemon; prints its process id, and `ended STATUS` when it has ended.
"""

import os
import sys
from pathlib import Path

from edge_daemon.threads import set_thread_environment

set_thread_environment(0)

from edge_daemon import app  # noqa: E402
from edge_daemon.config import load_config  # noqa: E402


def main() -> None:
    config = load_config(Path(sys.argv[1]))
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                status = app.run(config)
            except BaseException:
                import traceback

                traceback.print_exc()
                status = 70
            sys.stderr.flush()
            os._exit(status)
        print(child, flush=True)
        _, ended = os.waitpid(child, 0)
        print("ended", os.waitstatus_to_exitcode(ended), flush=True)


if __name__ == "__main__":
    main()
