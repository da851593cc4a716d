"""`edge-gateway`: runs the gateway, looks beforehand at what would keep it from serving, and shows the register map."""

import argparse
import asyncio
import faulthandler
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, TextIO

import zmq

from edge_daemon import logs
from edge_daemon.client import connect
from edge_daemon.errors import ConfigError, EdgeError, WireError
from edge_daemon.gateway import outbox
from edge_daemon.gateway.certificates import Validity, complaints, validity_of_file
from edge_daemon.gateway.config import GatewayConfig, load_config
from edge_daemon.gateway.errors import GatewayError
from edge_daemon.gateway.registers import (
    COMMAND_ADDRESS,
    COMMANDS,
    REPORT_ADDRESS,
    REPORTS,
    RESULT_ADDRESS,
    RESULTS,
    placed,
)
from edge_daemon.notify import Notifier
from edge_daemon.wire.codec import STATUS_TOPIC, decode_status, topic
from edge_daemon.wire.messages import Status

# As in sysexits.h: systemd restarts after a failure, but not after this one (RestartPreventExitStatus).
EXIT_CONFIG: Final = 78
# Of a line that stands: some seconds of a fast one.
_MANY_WAIT: Final = 1_000

_DEFAULT_CONFIG: Final = Path("/etc/edge-daemon/gateway.toml")

_EXAMPLES: Final = """\
examples:
  edge-gateway check --config gateway.toml       is the configuration right, does the daemon speak?
  edge-gateway run --config gateway.toml         serve the PLC until SIGTERM
  edge-gateway registers                         the register map; --page for the whole page, --json for programs

exit status: 0 done, 1 something is wrong, 78 the configuration is wrong
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `edge-gateway`; the exit status."""
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace, TextIO], int] = args.run
    try:
        return command(args, sys.stdout)
    except KeyboardInterrupt:
        return 0
    except EdgeError as exc:
        problems = exc.problems if isinstance(exc, ConfigError) else [str(exc)]
        if args.json:
            print(json.dumps({"ok": False, "problems": problems}))
        else:
            for problem in problems:
                print(f"edge-gateway: {problem}", file=sys.stderr)
        return EXIT_CONFIG if isinstance(exc, ConfigError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-gateway",
        description="Speaks to the PLC: takes its triggers, shows it verdicts that are proven.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--json", action="store_true", help="answers for programs")
        command.set_defaults(run=run)
        return command

    def with_config(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--config", type=Path, default=_DEFAULT_CONFIG, metavar="FILE", help=f"default: {_DEFAULT_CONFIG}"
        )

    with_config(add("run", _run, "Serve the PLC until SIGTERM."))
    check = add("check", _check, "Look at the configuration, the port and what the daemon says; changes nothing.")
    with_config(check)
    check.add_argument("--timeout", type=float, default=2.0, metavar="S", help="seconds to wait for the daemon")
    registers = add("registers", _registers, "Show the register map.")
    registers.add_argument("--page", action="store_true", help="the whole page for the PLC's programmer, in Markdown")
    return parser


def _run(args: argparse.Namespace, _out: TextIO) -> int:
    from edge_daemon.gateway.service import Gateway

    config = load_config(args.config)
    logs.start("edge-gateway")
    faulthandler.enable()
    with closing(Notifier.from_environment()) as notifier:
        asyncio.run(Gateway(config, notifier).run())
    return 0


def _check(args: argparse.Namespace, out: TextIO) -> int:
    config = load_config(args.config)
    heard = _statuses(config, args.timeout)
    problems = [
        *_port_problems(config),
        *_outbox_problems(config),
        *_opcua_problems(config),
        *_station_problems(config, heard, args.timeout),
    ]
    if args.json:
        told = {name: {"state": status.state, "recipe_set": status.recipe_set} for name, status in heard.items()}
        print(json.dumps({"ok": not problems, "problems": problems, "stations": told}), file=out)
        return 1 if problems else 0
    for name, status in heard.items():
        print(f"{name}: {status.state}, mode {status.mode}, recipe set {status.recipe_set or '-'}", file=out)
    for problem in problems:
        print(f"✗ {problem}", file=out)
    print("edge-gateway: " + ("something is wrong" if problems else "all is well"), file=out)
    return 1 if problems else 0


def _statuses(config: GatewayConfig, timeout_s: float) -> dict[str, Status]:
    """The first status of each station that speaks within the timeout."""
    heard: dict[str, Status] = {}
    with zmq.Context() as context:
        statuses = connect(context, zmq.SUB, config.daemon.status, key=config.daemon.key)
        try:
            for name in config.stations:
                statuses.setsockopt(zmq.SUBSCRIBE, topic(STATUS_TOPIC, name))
            give_up = time.monotonic() + timeout_s
            while len(heard) < len(config.stations) and (left_s := give_up - time.monotonic()) > 0:
                if statuses.poll(round(left_s * 1000)):
                    try:
                        status = decode_status(statuses.recv_multipart())
                    except WireError:
                        continue
                    heard[status.station] = status
        finally:
            statuses.close(0)
    return heard


def _station_problems(config: GatewayConfig, heard: dict[str, Status], timeout_s: float) -> list[str]:
    found = []
    for name, station in config.stations.items():
        status = heard.get(name)
        if status is None:
            found.append(
                f"station {name}: nothing heard at {config.daemon.status} within {timeout_s:g} s: is the daemon "
                "running, has it a station of this name?"
            )
        elif status.mode != "production" and not station.commissioning:
            found.append(f"station {name}: its mode is {status.mode}; only production releases parts")
    return found


def _port_problems(config: GatewayConfig) -> list[str]:
    host, port = config.modbus.host, config.modbus.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            return [f"modbus: {host} port {port} cannot be had: {exc.strerror}; is the gateway running already?"]
    return []


def _outbox_problems(config: GatewayConfig) -> list[str]:
    """Whether what is to be told outlives the gateway, and whether the daemon takes it; who runs it may be another."""
    folder = config.state_dir
    try:
        if folder.exists() and not folder.is_dir():
            return [f"state_dir: {folder} is no folder; what the daemon has not taken is lost at each stop"]
        own = folder.exists() and folder.stat().st_uid == os.geteuid()
        if own and not os.access(folder, os.W_OK | os.X_OK):
            return [f"state_dir: {folder} cannot be written; what the daemon has not taken is lost at each stop"]
    except OSError:
        return []  # the unit's user alone can look into it
    try:
        waiting = outbox.count_waiting(config.state_dir)
    except EdgeError as exc:
        return [f"state_dir: {exc}"]
    if waiting > _MANY_WAIT:
        where = config.daemon.amendments
        return [f"state_dir: {waiting} amendments wait for the daemon: does it take any at {where}?"]
    return []


def _opcua_problems(config: GatewayConfig) -> list[str]:
    """Files of the OPC UA server that this user cannot read (who runs it may be another), and certificates that prove
    nothing, or soon will not."""
    opcua = config.opcua
    if opcua is None:
        return []
    users = [path for user in opcua.users.values() for path in (user.certificate, user.password)]
    named = [opcua.certificate, opcua.private_key, *opcua.viewers, *opcua.trusted, *users]
    unread = [path for path in named if path and not os.access(path, os.R_OK)]
    found = [f"opcua: {path} cannot be read: is it there?" for path in unread]
    certificates: dict[str, Validity] = {}
    listed = [opcua.certificate, *opcua.viewers, *opcua.trusted, *(user.certificate for user in opcua.users.values())]
    for path in listed:
        if path is not None and path not in unread:
            try:
                certificates[str(path)] = validity_of_file(path)
            except GatewayError as exc:
                found.append(f"opcua: {exc}")
    return [*found, *(f"opcua: {complaint}" for complaint in complaints(certificates, time.time()))]


def _registers(args: argparse.Namespace, out: TextIO) -> int:
    from edge_daemon.gateway.page import gateway_page, register_table

    if args.json:
        blocks = {
            "commands": (COMMANDS, COMMAND_ADDRESS),
            "reports": (REPORTS, REPORT_ADDRESS),
            "results": (RESULTS, RESULT_ADDRESS),
        }
        document = {
            name: [{"address": a, "name": r.name, "words": r.words, "meaning": r.meaning} for a, r in placed(*block)]
            for name, block in blocks.items()
        }
        print(json.dumps(document), file=out)
    elif args.page:
        print(gateway_page(), end="", file=out)
    else:
        tables = ((COMMANDS, COMMAND_ADDRESS), (REPORTS, REPORT_ADDRESS), (RESULTS, RESULT_ADDRESS))
        print(*(register_table(*table) for table in tables), sep="\n\n", file=out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
