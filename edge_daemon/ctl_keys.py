"""`edge-ctl keys`: the daemon's key, and who may connect. Works on files of this PC; the daemon need not run."""

import argparse
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

from edge_daemon.errors import EdgeError
from edge_daemon.wire.keys import (
    SERVER_FILE,
    EnrolledClient,
    KeyFileError,
    create_server_key,
    enrol,
    read_client_list,
    revoke,
)
from edge_daemon.wire.roles import COMMANDS, ROLES, SOCKETS, Role

DEFAULT_STATE_DIR: Final = Path("/var/lib/edge-daemon")

_HELP: Final = """\
The daemon encrypts and authenticates every connection as soon as the network can reach one of its sockets. Two commands
make a line secure, on the line PC, as the user of the daemon or as root:

  edge-ctl keys init                                        once: the daemon's own key
  edge-ctl keys enrol mes-1 --role viewer --out mes-1.key   for each program that connects: a file to give to it

A key file is a secret: whoever has it is that client. Carry it by hand or over ssh, and give it to one program only."""

_EXAMPLES: Final = """\
examples:
  edge-ctl keys enrol gateway-1 --role gateway --out /etc/edge-daemon/gateway.key
  edge-ctl keys enrol anna --role operator; edge-ctl --key anna.key status
  edge-ctl keys list
  edge-ctl --key eva.key keys revoke mes-1     cut off at once: a key of an engineer tells the daemon
  edge-ctl --key eva.key reload-keys           what was enrolled or revoked without --key comes in force
"""

# Tells the running daemon, where that is possible; the sentence is for people.
Apply = Callable[[argparse.Namespace], str]


def add_keys(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    add_common: Callable[[argparse.ArgumentParser], None],
    apply: Apply,
) -> None:
    """The subcommands. add_common: gives a parser the options of every command; apply: after a change of the list."""
    keys = commands.add_parser(
        "keys",
        help="Make keys, say who may connect, and revoke it.",
        description=_HELP,
        epilog=f"{_EXAMPLES}\n{roles_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_common(keys)
    actions = keys.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, text: str, run: Callable[[argparse.Namespace, TextIO], int]) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_common(action)
        action.add_argument(
            "--keys",
            type=Path,
            metavar="DIR",
            help="folder of the keys (default: as --config says, else the usual one)",
        )
        action.set_defaults(run=lambda args, _endpoints, out: run(args, out))
        return action

    add("init", "Make the daemon's own key, and an empty list of clients.", _init)
    new = add("enrol", "Let a program connect: writes its key file.", lambda args, out: _enrol(args, out, apply))
    new.add_argument("name", help="of the client; letters, digits, '_', '-', '.'")
    new.add_argument("--role", choices=ROLES, required=True, help="what it may do; see `edge-ctl keys --help`")
    new.add_argument("--out", type=Path, metavar="FILE", help="its key file (default NAME.key)")
    add("list", "Who may connect, and as what.", _list)
    gone = add("revoke", "Shut a program out, now and for ever.", lambda args, out: _revoke(args, out, apply))
    gone.add_argument("name")
    show = add("show", "The public key of the daemon, or of a client.", _show)
    show.add_argument("name", nargs="?", help="a client (default: the daemon)")


def roles_text() -> str:
    """Who may do what, from the one table."""
    lines = ["roles:"]
    for role in ROLES:
        sockets = [name for name, roles in SOCKETS.items() if role in roles]
        commands = [name for name, rule in COMMANDS.items() if role in rule.roles]
        lines += [f"  {role:<9} sockets: {', '.join(sockets)}", f"  {'':<9} commands: {', '.join(commands)}"]
    return "\n".join(lines)


def keys_folder(args: argparse.Namespace, environment: Mapping[str, str]) -> Path:
    """--keys, else what the daemon would use: its environment, its config file, the default. Raises KeyFileError."""
    if args.keys is not None:
        return Path(args.keys)
    configured: Mapping[str, Any] = {}
    base = Path()
    if args.config is not None:
        base = args.config.absolute().parent
        try:
            configured = tomllib.loads(args.config.read_text("utf-8-sig"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise KeyFileError(f"{args.config} cannot be read: {exc}") from exc
    security = configured.get("security", {})
    folder = environment.get("EDGE_SECURITY__KEYS_DIR") or (
        security.get("keys_dir") if isinstance(security, dict) else None
    )
    if folder:
        return base / str(folder)
    state = environment.get("EDGE_STATE_DIR") or configured.get("state_dir") or DEFAULT_STATE_DIR
    return base / str(state) / "keys"


def _init(args: argparse.Namespace, out: TextIO) -> int:
    folder = keys_folder(args, os.environ)
    key = create_server_key(folder)
    document = {"folder": str(folder), "server_public_key": key.public.decode()}
    text = (
        f"{folder / SERVER_FILE} is the daemon's key: a secret. Keep a copy of the folder where your backups are.\n"
        "Next: edge-ctl keys enrol NAME --role ROLE, for each program that connects; then start the daemon."
    )
    return _tell(args, out, document, text)


def _enrol(args: argparse.Namespace, out: TextIO, apply: Apply) -> int:
    path: Path = args.out or Path(f"{args.name}.key")
    role: Role = args.role
    key = enrol(keys_folder(args, os.environ), args.name, role, path)
    document = {"name": key.name, "role": key.role, "file": str(path), "public_key": key.public.decode()}
    text = f"{path} is the key of {key.name} ({key.role}): a secret, for that one program."
    return _tell(args, out, document, text, apply)


def _revoke(args: argparse.Namespace, out: TextIO, apply: Apply) -> int:
    gone = revoke(keys_folder(args, os.environ), args.name)
    return _tell(args, out, _entry(gone), f"{gone.name} ({gone.role}) is off the list.", apply)


def _list(args: argparse.Namespace, out: TextIO) -> int:
    listed = read_client_list(keys_folder(args, os.environ))
    lines = [f"{c.name:<24} {c.role:<9} since {c.enrolled_utc}" for c in listed.clients]
    document = {
        "server_public_key": listed.server_public.decode(),
        "clients": [_entry(client) for client in listed.clients],
    }
    return _tell(args, out, document, "\n".join(lines) or "nobody is enrolled: nobody can connect")


def _show(args: argparse.Namespace, out: TextIO) -> int:
    folder = keys_folder(args, os.environ)
    listed = read_client_list(folder)
    if args.name is None:
        public = listed.server_public.decode()
        return _tell(args, out, {"server_public_key": public}, public)
    found = next((client for client in listed.clients if client.name == args.name), None)
    if found is None:
        names = ", ".join(client.name for client in listed.clients) or "none"
        raise KeyFileError(f"there is no client {args.name!r}; enrolled: {names}")
    return _tell(args, out, _entry(found), f"{found.name} ({found.role}), {found.public.decode()}")


def _entry(client: EnrolledClient) -> dict[str, str]:
    return {
        "name": client.name,
        "role": client.role,
        "public_key": client.public.decode(),
        "enrolled_utc": client.enrolled_utc,
    }


def _tell(
    args: argparse.Namespace, out: TextIO, document: dict[str, Any], text: str, apply: Apply | None = None
) -> int:
    """The list on the disk is changed by now; whether the daemon knows it is said beside."""
    applied = ""
    failed = False
    if apply is not None:
        try:
            applied = apply(args)
        except EdgeError as exc:
            applied, failed = f"NOT YET IN FORCE, the daemon could not be told: {exc}", True
    if args.json:
        print(json.dumps(document | ({"applied": applied} if applied else {})), file=out)
    else:
        print(f"{text}\n{applied}".rstrip(), file=out)
    return 1 if failed else 0
