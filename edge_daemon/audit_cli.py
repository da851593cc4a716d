"""`edge-daemon audit`: every command that was given, by whom, and what came of it."""

import argparse
import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edge_daemon.arguments import count

if TYPE_CHECKING:
    from edge_daemon.edges.audit import AuditEntry

_HELP = """\
Shows the audit trail of this PC: every command over the control socket, accepted or refused, with who, as what, from
where, when, and what came of it. A command that changes something stands there twice, before (`begun`) and after. What
only looks, and refusals, are summed up by the minute. Reads only; may run beside the daemon. Each line carries the hash
of the one before: exit status 1 when one was changed or taken out."""

_EXAMPLES = """\
examples:
  edge-daemon audit --config edge.toml --last 20
  edge-daemon audit --who anna --json
  edge-daemon audit --command activate
"""


def add_audit(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    add_config: Callable[[argparse.ArgumentParser], None],
) -> None:
    """The subcommand; add_config: gives a parser its --config."""
    audit = commands.add_parser(
        "audit",
        help="who gave which command, and what came of it",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_config(audit)
    audit.add_argument("--file", type=Path, metavar="FILE", help="this trail, whatever the configuration says")
    audit.add_argument("--last", type=count, metavar="N", help="only the last N that are left")
    audit.add_argument("--who", metavar="NAME", help="only of this client")
    audit.add_argument("--command", metavar="NAME", help="only this command")
    audit.add_argument("--json", action="store_true", help="one JSON object a line")
    audit.set_defaults(run=_show)


def _show(arguments: argparse.Namespace) -> int:
    from edge_daemon.edges.audit import read_trail

    path = _path(arguments)
    kept: deque[AuditEntry] = deque(maxlen=arguments.last)
    problems = []
    for line in read_trail(path):
        if line.problem:
            problems.append(line.problem)
        entry = line.entry
        if entry is not None and arguments.who in (None, entry.who) and arguments.command in (None, entry.command):
            kept.append(entry)
    for entry in kept:
        print(json.dumps(asdict(entry)) if arguments.json else _text(entry))
    for problem in problems:
        print(json.dumps({"problem": problem}) if arguments.json else f"✗ {path}: {problem}")
    return 1 if problems else 0


def _text(entry: "AuditEntry") -> str:
    who = " ".join(word for word in (entry.who, entry.role, entry.address) if word)
    arguments = f" {json.dumps(entry.args)}" if entry.args else ""
    times = f" ({entry.times} times)" if entry.times > 1 else ""
    # `failed`, the code of a slow command, says no more than the outcome.
    code = entry.code if entry.code != entry.outcome else ""
    why = "".join(f": {word}" for word in (code, entry.message) if word)
    text = f"{entry.utc}  {who}  {entry.command}{arguments} {entry.outcome}{times}{why}"
    return "".join(c if c.isprintable() else "?" for c in text)  # names and reasons come from outside


def _path(arguments: argparse.Namespace) -> Path:
    from edge_daemon.config import load_config

    if arguments.file is not None:
        return Path(arguments.file)
    return load_config(arguments.config, recipes_must_exist=False).audit_path
