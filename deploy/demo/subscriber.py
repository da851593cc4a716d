"""A subscriber in a process of its own: one line a part, as `edge-ctl watch` prints them.

Every inspection also goes to the demo, as a line of JSON through the pipe `--records-fd`: the demo's numbers
are those of a reader that the daemon knows nothing about.
"""

import argparse
import os
import sys

from edge_daemon.client import Subscriber
from edge_daemon.ctl import inspection_lines


def main() -> int:
    """Runs until SIGTERM, or until nobody reads the records any more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, metavar="ENDPOINT")
    parser.add_argument("--records-fd", type=int, required=True, metavar="FD")
    arguments = parser.parse_args()
    print(
        f"\n{'camera':<12} {'part':<16} {'evaluation':<12} {'score, threshold, boxes':<40} {'latency':>9}", flush=True
    )
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    with Subscriber(arguments.results) as results, open(arguments.records_fd, "w", encoding="utf-8") as records:
        for inspection in results:
            if inspection.mode == "production":
                print(*inspection_lines(inspection, colours), sep="\n", flush=True)
            while results.gaps:
                print(f"did not arrive: {results.gaps.popleft()}", flush=True)
            try:
                print(inspection.model_dump_json(), file=records, flush=True)
            except BrokenPipeError:
                break
    return 0


if __name__ == "__main__":
    sys.exit(main())
