"""edge-ctl: the operator's command line for a running daemon."""

import argparse
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from pydantic import ValidationError

from edge_daemon import client
from edge_daemon.arguments import count
from edge_daemon.client import ControlClient, NoAnswerError, RefusedError, Subscriber, TriggerClient
from edge_daemon.ctl_keys import add_keys
from edge_daemon.errors import EdgeError
from edge_daemon.wire.messages import Inspection, JobState, Status, ViewMessage

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
NO_ANSWER: Final = 3

_EXAMPLES: Final = """\
examples:
  edge-ctl status                                      what every station does, and why it does not
  edge-ctl watch --station st1                         one line a part, until Ctrl-C
  edge-ctl trigger st1                                 inspect one part now
  edge-ctl recipes                                     what is stored, what is active
  edge-ctl activate st1 bottle@3                       change product between two parts
  edge-ctl activate st1 top=bottle-top side=bottle-side
  edge-ctl drain st1; edge-ctl resume st1              let a station run empty; take it up again
  edge-ctl acknowledge st1                             end the alarms of st1 that stand until somebody has seen to them
  edge-ctl --json job 5f2c                             how far a slow command is

  edge-ctl keys --help                                 encrypt and authenticate; enrol and revoke clients
  edge-ctl --key eva.key reload-keys                   put a changed list of clients in force

Where the daemon is: --config edge.toml reads its [wire] section; single endpoints by flag or by EDGE_CTL_CONTROL,
EDGE_CTL_TRIGGERS and EDGE_CTL_RESULTS; flags win over the environment, both over the file. A daemon that the network
can reach wants a key: --key FILE or EDGE_CTL_KEY.

exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no answer
"""


class UsageError(EdgeError):
    """The command line cannot be carried out as it stands."""


_FAULTS: Final[Mapping[type[EdgeError], tuple[int, str]]] = {
    UsageError: (USAGE, "usage"),
    NoAnswerError: (NO_ANSWER, "no_answer"),
}


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the daemon is."""

    results: str
    triggers: str
    control: str
    key: Path | None = None
    """Key file, where the daemon uses keys."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `edge-ctl`; the exit status."""
    args = _parser().parse_args(argv)
    try:
        endpoints = find_endpoints(args, os.environ)
        command: Callable[[argparse.Namespace, Endpoints, TextIO], int] = args.run
        return command(args, endpoints, sys.stdout)
    except KeyboardInterrupt:
        return OK
    except BrokenPipeError:
        # The reader of our output has gone; nothing may be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except EdgeError as exc:
        status, code = _FAULTS.get(type(exc), (REFUSED, "failed"))
        if args.json:
            print(json.dumps({"ok": False, "error": {"code": code, "message": str(exc)}}))
        else:
            print(f"edge-ctl: {exc}", file=sys.stderr)
        return status


def find_endpoints(args: argparse.Namespace, environment: Mapping[str, str]) -> Endpoints:
    """Flags, then the environment, then the daemon's config file, then the default ports. Raises UsageError."""
    configured: Mapping[str, Any] = {}
    if args.config is not None:
        try:
            configured = tomllib.loads(args.config.read_text()).get("wire", {})
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise UsageError(f"{args.config} cannot be read: {exc}") from exc
        if not isinstance(configured, dict):
            raise UsageError(f"{args.config}: `wire` is no table")

    def find(name: str, default: str) -> str:
        # EDGE_WIRE__... is how the daemon's own environment overrides its file.
        told = (environment.get(f"{prefix}{name.upper()}") for prefix in ("EDGE_CTL_", "EDGE_WIRE__"))
        found = getattr(args, name) or next(filter(None, told), None) or configured.get(name, default)
        if not isinstance(found, str):
            raise UsageError(f"{args.config}: wire.{name} is no endpoint such as {default}")
        return re.sub(r"^tcp://(\*|0\.0\.0\.0):", "tcp://127.0.0.1:", found)  # listening on all of this PC's addresses

    return Endpoints(
        results=find("results", client.RESULTS),
        triggers=find("triggers", client.TRIGGERS),
        control=find("control", client.CONTROL),
        key=args.key or (Path(environment["EDGE_CTL_KEY"]) if environment.get("EDGE_CTL_KEY") else None),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-ctl",
        description="Ask and command a running edge-daemon.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(parser, first=True)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        _add_common(command, first=False)
        command.set_defaults(run=run)
        return command

    status = add("status", _status, "What the daemon and its stations do.")
    status.add_argument("--all", action="store_true", help="every measure, not only what an operator needs")
    add("recipes", _recipes, "Stored and active recipes.")
    trigger = add("trigger", _trigger, "Inspect one part; says whether the trigger was accepted, not the verdict.")
    trigger.add_argument("station")
    trigger.add_argument("--trigger-id", help="your number for this part (default: a new random one)")
    trigger.add_argument("--part-id", help="serial number or bar code, when known")
    trigger.add_argument("--job", help="what you believe to be inspected; a mismatch is NotDecidable")
    trigger.add_argument("--mode", choices=("production", "setup", "master_part", "bypass"))
    activate = add("activate", _activate, "Run other recipes from the next trigger on; verified first, all or none.")
    activate.add_argument("station")
    activate.add_argument("recipe", nargs="+", help="NAME, NAME@VERSION or NAME@DIGEST for all cameras, or CAMERA=NAME")
    activate.add_argument("--no-wait", action="store_true", help="print the job id at once")
    for name, text in (
        ("drain", "Take no more triggers; finish what is in flight."),
        ("resume", "Take triggers again after a drain."),
    ):
        add(name, _for_stations, text).add_argument("station", nargs="?", help="default: all stations")
        commands.choices[name].set_defaults(command=name)
    acknowledge = add("acknowledge", _acknowledge, "End an alarm that stands until somebody has seen to it.")
    acknowledge.add_argument("station")
    acknowledge.add_argument("alarm", nargs="?", help="its name, such as passed_without_ok (default: all that stand)")
    add("shutdown", _shutdown, "Stop the daemon cleanly, everything in flight answered.")
    add("reload-keys", _reload_keys, "Put the list of clients in force as it is now; who was revoked is cut off.")
    add_keys(commands, lambda parser: _add_common(parser, first=False), _apply)
    job = add("job", _job, "State of a slow command.")
    job.add_argument("job")
    job.add_argument("--wait", action="store_true", help="until it is done or has failed")
    watch = add("watch", _watch, "One line a part, until Ctrl-C.")
    watch.add_argument("--station", help="only this one (default: all)")
    watch.add_argument("--count", type=count, metavar="N", help="stop after N parts")
    watch.add_argument("--idle", type=_seconds, metavar="S", help="stop when nothing came for S seconds")
    return parser


def _add_common(parser: argparse.ArgumentParser, *, first: bool) -> None:
    """Options that may stand before or after the command; only the first place gives their defaults."""

    def default(value: object) -> object:
        return value if first else argparse.SUPPRESS

    def endpoint(flag: str, what: str, usual: str) -> None:
        text = f"{what} socket (default {usual})" if first else argparse.SUPPRESS
        parser.add_argument(flag, metavar="ENDPOINT", default=default(None), help=text)

    def shown(text: str) -> str:
        return text if first else argparse.SUPPRESS

    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=default(None),
        help=shown("the daemon's config file; its [wire] is read"),
    )
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        default=default(None),
        help=shown("your key file, where the daemon uses keys"),
    )
    endpoint("--control", "control", client.CONTROL)
    endpoint("--triggers", "trigger", client.TRIGGERS)
    endpoint("--results", "results", client.RESULTS)
    parser.add_argument(
        "--timeout", type=_seconds, metavar="S", default=default(5.0), help=shown("seconds to wait for an answer")
    )
    parser.add_argument(
        "--json", action="store_true", default=default(False), help=shown("one JSON object per answer, for programs")
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError("a positive number of seconds")
    return value


# --- commands -----------------------------------------------------------------------------------------------------


def _status(args: argparse.Namespace, endpoints: Endpoints, out: TextIO) -> int:
    with ControlClient(endpoints.control, args.timeout, key=endpoints.key) as control:
        try:
            result = control.request("status")
        except RefusedError as exc:
            return _refused(args, out, exc)
    if args.json or args.all:
        _show(args, out, {"ok": True, "result": result}, result)
    else:
        for line in status_lines(result):
            print(line, file=out)
    return OK


def _recipes(args: argparse.Namespace, endpoints: Endpoints, out: TextIO) -> int:
    return _ask_and_show(args, endpoints, out, "recipes", {})


def _for_stations(args: argparse.Namespace, endpoints: Endpoints, out: TextIO) -> int:
    return _ask_and_show(args, endpoints, out, args.command, {"station": args.station} if args.station else {})


def _reload_keys(args: argparse.Namespace, endpoints: Endpoints, out: TextIO) -> int:
    return _ask_and_show(args, endpoints, out, "reload_keys", {})


def _apply(args: argparse.Namespace) -> str:
    """Tells the daemon that the list of clients is another now. Raises EdgeError."""
    endpoints = find_endpoints(args, os.environ)
    if endpoints.key is None:
        return "In force after `edge-ctl --key FILE reload-keys`, `systemctl reload edge-daemon` or a restart."
    with ControlClient(endpoints.control, args.timeout, key=endpoints.key) as control:
        control.request("reload_keys")
    return "In force now."


def _acknowledge(args: argparse.Namespace, endpoints: Endpoints, out: TextIO) -> int:
    """What is shown is what is acknowledged: what comes after the look stands on."""
    texts: list[str] = []
    with ControlClient(endpoints.control, args.timeout, key=endpoints.key) as control:
        try:
            standing = control.request("status").get("standing_alarms", {}).get(args.station, {})
            chosen = {name: alarm for name, alarm in standing.items() if args.alarm in (None, name)}
            if not chosen:
                raise RefusedError("failed", f"no alarm stands at {args.station} that waits to be acknowledged")
            for name, alarm in chosen.items():
                fields = {"station": args.station, "alarm": name, "through": alarm["raised"]}
                texts += control.request("acknowledge", fields)["acknowledged"]
                if not args.json:
                    print(printable(f"acknowledged: {name}: {alarm['message']}"), file=out)
        except RefusedError as exc:
            return _refused(args, out, exc)
    if args.json:
        print(json.dumps({"ok": True, "result": {"acknowledged": texts}}), file=out)
    return OK


def _shutdown(args: argparse.Namespace, endpoints: Endpoints, out: TextIO) -> int:
    return _ask_and_show(args, endpoints, out, "shutdown", {})


def _ask_and_show(
    args: argparse.Namespace, endpoints: Endpoints, out: TextIO, command: str, fields: dict[str, Any]
) -> int:
    with ControlClient(endpoints.control, args.timeout, key=endpoints.key) as control:
        try:
            result = control.request(command, fields)
        except RefusedError as exc:
            return _refused(args, out, exc)
    _show(args, out, {"ok": True, "result": result}, result)
    return OK


def _trigger(args: argparse.Namespace, endpoints: Endpoints, out: TextIO) -> int:
    trigger_id = args.trigger_id or f"ctl-{os.urandom(6).hex()}"
    with TriggerClient(endpoints.triggers, args.timeout, key=endpoints.key) as triggers:
        reply = triggers.trigger(args.station, trigger_id, part_id=args.part_id, job=args.job, mode=args.mode)
    if args.json:
        print(reply.model_dump_json(), file=out)
    elif reply.accepted:
        print(f"{reply.station} accepted trigger {reply.trigger_id}: result {reply.result_id}", file=out)
    else:
        why = ": ".join(filter(None, (reply.reason, reply.message)))
        print(f"{args.station} refused trigger {trigger_id}: {why}", file=out)
    return OK if reply.accepted else REFUSED


def _activate(args: argparse.Namespace, endpoints: Endpoints, out: TextIO) -> int:
    fields = {"station": args.station, **chosen_recipes(args.recipe)}
    with ControlClient(endpoints.control, args.timeout, key=endpoints.key) as control:
        try:
            job = control.request("activate", fields).get("job")
            if args.no_wait or not job:
                _show(args, out, {"ok": True, "job": job}, {"job": job})
                return OK
            return _show_job(args, out, control.wait(job))
        except RefusedError as exc:
            return _refused(args, out, exc)


def chosen_recipes(words: Sequence[str]) -> dict[str, Any]:
    """`bottle` -> one recipe for all cameras; `top=a side=b` -> one for each. Raises UsageError."""
    named = [word.partition("=") for word in words]
    if len(words) == 1 and not named[0][1]:
        return {"recipe": words[0]}
    if not all(camera and equals and recipe for camera, equals, recipe in named):
        raise UsageError("name one recipe for all cameras, or CAMERA=RECIPE for each")
    recipes = {camera: recipe for camera, _, recipe in named}
    if len(recipes) != len(named):
        raise UsageError("a camera is named twice")
    return {"recipes": recipes}


def _job(args: argparse.Namespace, endpoints: Endpoints, out: TextIO) -> int:
    with ControlClient(endpoints.control, args.timeout, key=endpoints.key) as control:
        try:
            return _show_job(args, out, control.wait(args.job) if args.wait else control.job(args.job))
        except RefusedError as exc:
            return _refused(args, out, exc)


def _show_job(args: argparse.Namespace, out: TextIO, state: JobState) -> int:
    if args.json:
        print(state.model_dump_json(), file=out)
    elif state.error is not None:
        print(f"{state.command or 'job'} {state.job} failed: {state.error.message}", file=out)
    else:
        percent = "" if state.progress is None or state.state != "running" else f" {state.progress:.0%}"
        print(f"{state.command or 'job'} {state.job}: {state.state}{percent}", file=out)
        if state.result:
            _print_tree(state.result, out, 1)
    return REFUSED if state.state == "failed" else OK


def _watch(args: argparse.Namespace, endpoints: Endpoints, out: TextIO) -> int:
    colours = out.isatty() and "NO_COLOR" not in os.environ
    seen = 0
    with Subscriber(endpoints.results, args.station, timeout_s=args.idle, key=endpoints.key) as results:
        if not args.json:
            print(f"watching {endpoints.results}; Ctrl-C ends", file=sys.stderr)
        for inspection in results:
            while results.gaps:
                gap = results.gaps.popleft()
                print(f"{gap.station}: results {gap.first} to {gap.last} did not arrive here", file=sys.stderr)
            while results.boots:
                change = results.boots.popleft()
                print(f"{change.station}: the daemon started anew (boot {change.new_boot})", file=sys.stderr)
            if args.json:
                print(inspection.model_dump_json(), file=out, flush=True)
            else:
                for line in inspection_lines(inspection, colours):
                    print(line, file=out, flush=True)
            seen += 1
            if seen == args.count:
                break
    return OK


# --- what people read ---------------------------------------------------------------------------------------------

_COLOURS: Final = {"OK": "32", "NotOK": "31", "NotDecidable": "33", "Undefined": "35"}


def inspection_lines(inspection: Inspection, colours: bool = False) -> list[str]:
    """One line a view: camera, part, evaluation, score against threshold, boxes, latency. A single view shows the
    verdict of the part; with several, a last line does."""
    lines = [_view_line(inspection, view, colours) for view in inspection.views]
    if len(lines) != 1:
        lines.append(_line(inspection, inspection.station, inspection.evaluation, inspection.reason, "", colours))
    return lines


def _view_line(inspection: Inspection, view: ViewMessage, colours: bool) -> str:
    single = len(inspection.views) == 1
    evaluation, reason = (
        (inspection.evaluation, inspection.reason or view.reason) if single else (view.evaluation, view.reason)
    )
    score = "-" if view.score is None else f"{view.score:.4g}"
    sign = "?" if view.score is None or view.threshold is None else "<=" if view.score <= view.threshold else "> "
    threshold = "-" if view.threshold is None else f"{view.threshold:.4g}"
    count = max(view.boxes_total, len(view.boxes))
    boxes = "" if not count else "1 box" if count == 1 else f"{count} boxes"
    if view.boxes:
        largest = view.boxes[0]
        boxes += f", {largest.w}x{largest.h} at {largest.x},{largest.y}"
    return _line(
        inspection, view.view or view.camera, evaluation, reason, f"{score:>7} {sign} {threshold:<7} {boxes}", colours
    )


def _line(inspection: Inspection, who: str, evaluation: str, reason: str, measured: str, colours: bool) -> str:
    part = printable(inspection.part_id or inspection.trigger_id)
    word = printable("missed" if inspection.result_state == "Aborted" else evaluation)
    shown = f"{word:<12}"
    if colours:
        shown = f"\x1b[{_COLOURS.get(word, '35')}m{shown}\x1b[0m"
    latency = "" if inspection.times.judged_us is None else f"{inspection.times.judged_us / 1000:.1f} ms"
    marks = [reason] if reason else []
    if inspection.mode != "production":
        marks.append(inspection.mode)
    if inspection.provisional:
        marks.append("provisional")
    if not inspection.journaled:
        marks.append("not journaled")
    told = printable(", ".join(marks))
    return f"{printable(who):<12} {part:<16} {shown} {measured:<40} {latency:>9}  {told}".rstrip()


def printable(text: str) -> str:
    """Bar codes come from outside: nothing in them may steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def status_lines(result: Mapping[str, Any]) -> list[str]:
    """What an operator needs of a daemon's status: each station, whether it takes triggers, and what is wrong.

    Fields that an older or newer daemon does not have are left out.
    """
    lines = [f"line {result.get('line', '?')}, boot {result.get('boot', '?')}, {result.get('software', '')}"]
    stations = result.get("stations")
    for name, status in stations.items() if isinstance(stations, dict) else ():
        try:
            shown = Status.model_validate(status)
        except ValidationError:
            lines.append(f"{name}: its status is not understood; see --all")
            continue
        ready = "takes triggers" if shown.trigger_ready else "takes NO triggers"
        lines.append(f"{name}: {shown.state}, {ready}, {shown.mode or '-'}, last result no. {shown.last_seq}")
        if (c := shown.counters) is not None:
            lines.append(
                f"  accepted {c.accepted}: ok {c.ok}, not ok {c.not_ok}, not decidable {c.not_decidable}, "
                f"failed {c.failed}, missed {c.missed}, in flight {c.in_flight}"
                + ("" if c.balanced else "  DO NOT ADD UP: please report this")
            )
        lines += [f"  alarm: {alarm}" for alarm in shown.alarms]
        lines += _judging_lines(shown.details)
        for camera in shown.cameras:
            state = "connected" if camera.connected else "NOT CONNECTED"
            lines.append(f"  camera {camera.camera}: {state}, {camera.frames} frames {camera.message}".rstrip())
    journal = result.get("journal")
    if isinstance(journal, dict) and journal.get("failing"):
        lines.append(f"journal: {journal['failing']}")
    return [printable(line) for line in lines]


def _judging_lines(details: Mapping[str, Any]) -> list[str]:
    """By what each view is judged, whether that is still as it should be, and how long it takes."""
    recipes, ages, latency = (details.get(key) or {} for key in ("recipes", "golden_age_s", "latency_ms"))
    if not all(isinstance(found, dict) for found in (recipes, ages, latency)):
        return []
    lines = []
    for view, recipe in recipes.items():
        right = f", golden sample right {ages[view]:.0f} s ago" if isinstance(ages.get(view), int | float) else ""
        lines.append(f"  view {view}: judged by {recipe}{right}")
    if all(isinstance(latency.get(name), int | float) for name in ("p50", "p99")):
        lines.append(
            f"  trigger to verdict: {latency['p50']:.0f} ms at the median, {latency['p99']:.0f} ms at most of 99%"
        )
    return lines


def _refused(args: argparse.Namespace, out: TextIO, exc: RefusedError) -> int:
    if args.json:
        print(json.dumps({"ok": False, "error": {"code": exc.code, "message": str(exc)}}), file=out)
    else:
        print(f"edge-ctl: {exc}", file=sys.stderr)
    return REFUSED


def _show(args: argparse.Namespace, out: TextIO, document: dict[str, Any], tree: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps(document), file=out)
    else:
        _print_tree(tree, out)


def _print_tree(tree: Mapping[str, Any], out: TextIO, depth: int = 0) -> None:
    """Nested answers as indented lines; the daemon's own words for the keys."""
    indent = "  " * depth
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            print(printable(f"{indent}{key}:"), file=out)
            _print_tree(value, out, depth + 1)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            print(printable(f"{indent}{key}:"), file=out)
            for item in value:
                print(printable(f"{indent}  - " + ", ".join(f"{k} {v}" for k, v in item.items())), file=out)
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(printable(f"{indent}{key}: {'-' if shown in (None, '', {}) else shown}"), file=out)


if __name__ == "__main__":
    sys.exit(main())
