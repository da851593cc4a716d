"""`edge-export`: from a folder of good parts to a recipe, on any PC; torch only where weights come in."""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

from edge_daemon import __version__
from edge_daemon.errors import EdgeError
from edge_daemon.threads import keep_freed_memory
from export.errors import ExportError
from export.signals import EXIT_INTERRUPTED, handled, interrupt

# In the order of the work. Each module offers `add_parser(subparsers)` and is cheap to import: torch,
# onnxruntime and matplotlib are imported by the command that needs them, when it runs.
COMMANDS = ("distil", "backbone", "recipe", "threshold", "health", "camera", "verify", "evaluate", "sign")

EXIT_OK, EXIT_REFUSED, EXIT_ERROR = 0, 1, 2

DESCRIPTION = """\
Makes and checks recipes for edge-daemon: visual inspection learned from good parts only.

The usual way, with the backbone that comes with the package:
  edge-export recipe   --name bottle --images good/ --out bottle.recipe
  edge-export verify   --recipe bottle.recipe
  edge-export evaluate --recipe bottle.recipe --data mvtec/bottle     (where defects are labelled)

With a backbone of your own, before that:
  edge-export backbone --arch resnet18 --weights resnet18.safetensors --layers layer2,layer3 --out resnet18/
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; imports every command module, none of them heavy."""
    parser = argparse.ArgumentParser(
        prog="edge-export", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        importlib.import_module(f"export.commands.{command}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 checked and refused, 2 error, 130 interrupted by Ctrl-C or SIGTERM."""
    arguments = build_parser().parse_args(argv)
    keep_freed_memory()
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        with handled((signal.SIGTERM,), interrupt):
            return run(arguments)
    except (ExportError, EdgeError) as exc:
        print(f"edge-export: {exc}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return EXIT_ERROR
    except OSError as exc:  # a disk that fills up or goes away, wherever it happens
        where = f"{exc.filename}: " if exc.filename is not None else ""
        print(
            f"edge-export: {where}{exc.strerror or exc}; look at the disk and its rights, then run it again",
            file=sys.stderr,
        )
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("edge-export: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
