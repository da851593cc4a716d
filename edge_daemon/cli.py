"""`edge-daemon`: runs the daemon, and tells beforehand what would keep it from running.

Nothing here imports a library that computes before the sizes of its thread pools are set: commands
import what they need when they run.
"""

import argparse
import faulthandler
import io
import json
import logging
import os
import sys
import tomllib
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_daemon import __version__, logs
from edge_daemon.arguments import count
from edge_daemon.audit_cli import add_audit
from edge_daemon.errors import ConfigError, EdgeError
from edge_daemon.journal_cli import add_journal
from edge_daemon.threads import set_thread_environment

# As in sysexits.h: systemd restarts after a failure, but not after these (RestartPreventExitStatus).
EXIT_CONFIG = 78
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130

if TYPE_CHECKING:
    from edge_daemon.artefact.store import Store
    from edge_daemon.config import Config

_MARKS = {"ok": "✓", "hint": "·", "error": "✗"}

_DEFAULT_CONFIG = "/etc/edge-daemon/edge.toml"

_DESCRIPTION = """\
Visual inspection for a production line: judges parts against a memory of good ones.
An inspection system, not a safety function."""

_EXAMPLES = """\
examples:
  edge-daemon check --config edge.toml              is everything in place?
  edge-daemon store import bottle.recipe --config edge.toml
  edge-daemon recipes --config edge.toml            what would each station run?
  edge-daemon run --config edge.toml                judge parts until SIGTERM
  edge-daemon schema config > edge.schema.json      for an editor that completes keys
  edge-daemon cameras --config edge.toml            which cameras answer, and which do not?
  edge-daemon grab --camera top --config edge.toml --out top.png     what does it see?
  edge-daemon journal verify --config edge.toml     are the records complete and unchanged?
  edge-daemon doctor --config edge.toml             why is it slow, or why does it lose frames?
  edge-daemon bench --recipe bottle.recipe --images good/     what can this PC do?
"""

_CHECK_HELP = """\
Looks at everything that would keep this PC from judging parts, and says all of it at once:
the configuration, the provider, every recipe with its golden samples, folders, endpoints, cameras.
Changes nothing. Exit status 0 when the daemon could start, 1 when not."""

_DOCTOR_HELP = """\
Looks at the PC for what makes a line slow or lose frames: disk space and the time a record takes to be durable,
journal, network cards and socket buffers of cameras, clock, provider and driver, thread pools, CPU governor, rights,
and everything that `check` looks at. Each finding says what to do. Changes nothing; may run beside the daemon.
  ✗ will hurt    · worth doing    ✓ fine          exit status 1 when anything will hurt"""

_CAMERAS_HELP = """\
Looks for cameras: GigE Vision on every network of this PC, GenTL producers (of the configuration and of
$GENICAM_GENTL64_PATH), /dev/video*. Says beside each which [cameras.NAME] table means it and who controls it, then
which tables found no camera. Opens none, changes nothing; may run beside the daemon, and without a configuration.
  ✓ answers    ✗ a table whose camera does not    · worth knowing      exit status 1 with any ✗"""

_GRAB_HELP = """\
Opens one camera as the daemon would, takes one frame, and shows size, times, settings as read back, counters and
image health, against the limits of the recipe when a station judges it. Refused while the daemon has the camera.
Exit status 1 when no frame comes, and when the recipe would not judge the picture.

  edge-daemon grab --camera top --config edge.toml --out top.png
  edge-daemon grab --camera top --config edge.toml --save good/ --count 200 --every 2

--save takes pictures to learn from, numbered after those in the folder: one every S seconds, or one for each pulse of
a camera with a hardware trigger. camera.json beside them says what they were taken with. edge-export puts that into the
recipe, and the daemon judges by it only with a camera that is set so. A folder whose pictures were taken with other
settings is refused."""

_ENGINES_HELP = """\
Which engine searches is measured when the daemon loads a recipe whose kind of bank (rows, dimensions, patches) it
has not met on this PC, provider and software version, and remembered. All engines give the same results, to the
bit: a wrong choice costs time only. After a change of cooling, power settings or other programs: --forget."""


_BENCH_HELP = """\
Measures what this PC can do with a recipe: the real daemon, as its own process with journal and publishing
in a temporary folder, replays decoded pictures of good parts; the bare model and the bare search are timed
in turn with it. Takes half a minute to a minute. Stop the line's own daemon first: it would compete.

  session.run alone  the model and nothing else: the limit
  end to end         verdicts as they arrive at a subscriber
  stages             medians inside the daemon, milliseconds a frame
  latency            trigger to verdict at the subscriber, cameras unsynchronised at half of full speed"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 1 for a refusal, 2 for wrong usage, 70, 78 or 130."""
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no ✗ must not end a check
    set_thread_environment(_search_threads(getattr(arguments, "config", None)))
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        _say(_problems(arguments.config, error))
        return EXIT_CONFIG
    except EdgeError as error:
        _say(f"edge-daemon: {error}")
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        traceback.print_exc()
        _say(f"edge-daemon: this is a defect of the program, please report it with the lines above: {error!r}")
        return EXIT_DEFECT
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-daemon",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"edge-daemon {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the daemon until SIGTERM or Ctrl-C", allow_abbrev=False)
    _add_config(run)
    run.set_defaults(run=_run)

    check = commands.add_parser(
        "check",
        help="say everything that is wrong, at once",
        description=_CHECK_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_config(check)
    _add_json(check)
    check.add_argument(
        "--open-cameras", action="store_true", help="also take a picture with every camera; not while the daemon runs"
    )
    check.set_defaults(run=_check)

    doctor = commands.add_parser(
        "doctor",
        help="what on this PC makes a line slow or lose frames, and what to do",
        description=_DOCTOR_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_config(doctor)
    _add_json(doctor)
    doctor.set_defaults(run=_doctor)

    _add_cameras(commands)

    schema = commands.add_parser("schema", help="JSON Schema of configuration and messages", allow_abbrev=False)
    schema.add_argument("name", nargs="?", help="config, result, image, …; all of them in one object when left out")
    schema.add_argument("--markdown", action="store_true", help="the configuration as a page for people")
    schema.set_defaults(run=_schema)

    recipes = commands.add_parser("recipes", help="which recipe each station would run", allow_abbrev=False)
    _add_config(recipes)
    _add_json(recipes)
    recipes.set_defaults(run=_recipes)

    engines = commands.add_parser(
        "engines",
        help="how fast each search engine is on this PC, as it was measured",
        description=_ENGINES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_config(engines)
    _add_json(engines)
    engines.add_argument("--forget", action="store_true", help="delete the measurements; the next start measures anew")
    engines.set_defaults(run=_engines)

    _add_bench(commands)
    add_journal(commands, _add_config)
    add_audit(commands, _add_config)
    _add_store(commands.add_parser("store", help="import and list recipes", allow_abbrev=False))
    return parser


def _add_cameras(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    cameras = commands.add_parser(
        "cameras",
        help="which cameras answer, and which tables of the configuration mean them",
        description=_CAMERAS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    cameras.set_defaults(run=_cameras)
    grab = commands.add_parser(
        "grab",
        help="take one frame with a camera, and look at its health",
        description=_GRAB_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    grab.add_argument("--camera", required=True, metavar="NAME", help="of a [cameras.NAME] table")
    kept = grab.add_mutually_exclusive_group()
    kept.add_argument("--out", type=Path, metavar="FILE.png", help="keep the picture, lossless")
    kept.add_argument("--save", type=Path, metavar="DIR", help="take pictures to learn from into this folder")
    grab.add_argument("--count", type=count, default=1, metavar="N", help="with --save: how many (default 1)")
    grab.add_argument(
        "--every", type=_seconds, default=0.0, metavar="S", help="with --save: seconds between two (default: none)"
    )
    grab.add_argument("--timeout", type=float, default=5.0, metavar="S", help="longest wait for the frame (default 5)")
    grab.set_defaults(run=_grab)
    for parser in (cameras, grab):
        _add_config(parser)
        _add_json(parser)


def _add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    bench = commands.add_parser(
        "bench",
        help="how many parts a second this PC judges with a recipe",
        description=_BENCH_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    bench.add_argument("--recipe", type=Path, required=True, metavar="PATH", help=".recipe file or recipe folder")
    bench.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="good parts: the usual, and hard, case"
    )
    bench.add_argument("--cameras", type=int, default=1, metavar="N", help="stations with one camera each (default 1)")
    bench.add_argument("--provider", choices=("cpu", "cuda", "tensorrt"), default="cpu", help="default cpu")
    bench.add_argument("--search", default="auto", metavar="ENGINE", help="force a search engine (default auto)")
    bench.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of bare parts and daemon (default 5)")
    bench.add_argument("--seconds", type=float, default=3.0, metavar="S", help="of each measurement (default 3)")
    _add_json(bench)
    bench.set_defaults(run=_bench)


def _add_store(store: argparse.ArgumentParser) -> None:
    actions = store.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add = actions.add_parser("import", help="verify recipes and keep them in the store", allow_abbrev=False)
    add.add_argument("recipe", nargs="+", type=Path, help=".recipe file or recipe folder")
    add.set_defaults(run=_store_import)
    show = actions.add_parser("list", help="all recipes of the store, the newest of each name last", allow_abbrev=False)
    show.set_defaults(run=_store_list)
    for parser in (add, show):
        _add_config(parser)
        parser.add_argument("--store", type=Path, metavar="DIR", help="this store, whatever the configuration says")
        _add_json(parser)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=Path(os.environ.get("EDGE_CONFIG", _DEFAULT_CONFIG)),
        help=f"the configuration; default: $EDGE_CONFIG, else {_DEFAULT_CONFIG}",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output instead of text")


def _search_threads(path: Path | None) -> int:
    """engine.search_threads as far as it can be had before anything is checked; 0 for automatic.

    The matrix products of the search take their threads from the environment, once, when numpy is first
    imported; checking the configuration comes later.
    """
    value: object = os.environ.get("EDGE_ENGINE__SEARCH_THREADS")
    if value is None and path is not None:
        try:
            value = tomllib.loads(path.read_text("utf-8-sig"))["engine"]["search_threads"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 0
    try:
        return min(max(int(str(value)), 0), 256)
    except ValueError:
        return 0


# ---------------------------------------------------------------- commands


def _run(arguments: argparse.Namespace) -> int:
    from edge_daemon.app import run

    logs.start("edge-daemon")
    # A watchdog that ends a daemon that hangs does so with SIGABRT: the log then says where each thread stood.
    faulthandler.enable()
    return run(_config_to_run(arguments.config), arguments.config)


def _config_to_run(path: Path) -> "Config":
    """The configuration; a recipe that is missing is no reason to keep the other stations from working.

    Its own station starts unfit and says why. Raises ConfigError with everything when anything else is wrong.
    """
    from edge_daemon.config import load_config

    try:
        return load_config(path)
    except ConfigError as error:
        try:
            config = load_config(path, recipes_must_exist=False)
        except ConfigError:
            raise error from None
        for problem in error.problems:
            logging.error("%s", problem)
        return config


def _check(arguments: argparse.Namespace) -> int:
    from edge_daemon.check import check

    report = check(arguments.config, open_cameras=arguments.open_cameras)
    if arguments.json:
        _print_json({"config": str(arguments.config), "ok": report.ok} | asdict(report))
        return 0 if report.ok else 1
    for finding in report.findings:
        print(f"{'✗' if finding.level == 'error' else '·'} {finding.text}")
    for recipe in report.recipes:
        print(
            f"✓ stations.{recipe.station}: {recipe.camera} is judged by {recipe.name} {recipe.version} "
            f"({recipe.digest[:12]}) on {recipe.provider}; OK up to {recipe.threshold:.4g}; "
            f"search {recipe.engine} ({recipe.engine_why}); {_signed(recipe.signed_by)}"
        )
    errors = sum(finding.level == "error" for finding in report.findings)
    print(f"{arguments.config}: {_many(errors, 'problem')}" if errors else f"{arguments.config}: the daemon can start")
    return 0 if report.ok else 1


def _signed(by: str) -> str:
    return by if by == "unsigned" else f"signed by {by}"


def _doctor(arguments: argparse.Namespace) -> int:
    from edge_daemon.doctor import examine

    found = examine(arguments.config)
    healthy = all(finding.level != "error" for finding in found)
    if arguments.json:
        _print_json({"config": str(arguments.config), "ok": healthy, "findings": [asdict(f) for f in found]})
        return 0 if healthy else 1
    for finding in found:
        print(f"{_MARKS[finding.level]} {finding.topic:<9} {finding.text}")
    return 0 if healthy else 1


def _cameras(arguments: argparse.Namespace) -> int:
    from edge_daemon.camera_tools import listing_text, look
    from edge_daemon.config import load_config

    notes: tuple[str, ...] = ()
    try:
        cameras = dict(load_config(arguments.config, recipes_must_exist=False).cameras)
    except ConfigError as error:
        cameras, notes = {}, tuple(error.problems)
    listing = look(cameras)
    listing = replace(listing, notes=(*listing.notes, *notes))
    status = 1 if listing.not_found else 0
    if arguments.json:
        _print_json({"config": str(arguments.config), "ok": not status} | asdict(listing))
    else:
        print(listing_text(listing))
    return status


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds, 0 to 86400")
    return seconds


def _grab_series(arguments: argparse.Namespace) -> int:
    from edge_daemon.camera_series import Pace, series_json, series_text, take_series
    from edge_daemon.config import load_config

    def taken(path: Path) -> None:
        if not arguments.json:
            print(path, flush=True)

    config = load_config(arguments.config, recipes_must_exist=False)
    pace = Pace(arguments.count, arguments.every, arguments.timeout)
    series = take_series(config, arguments.camera, arguments.save, pace, taken)
    if arguments.json:
        _print_json(series_json(series))
    else:
        print(series_text(series))
    return 0


def _grab(arguments: argparse.Namespace) -> int:
    from edge_daemon.camera_tools import grab, grabbed_json, grabbed_text, save
    from edge_daemon.config import load_config

    if arguments.save is not None:
        return _grab_series(arguments)
    if arguments.count != 1 or arguments.every:
        raise EdgeError("--count and --every are of pictures that are kept: give --save DIR")
    seen = grab(load_config(arguments.config, recipes_must_exist=False), arguments.camera, arguments.timeout)
    if arguments.out is not None:
        save(seen, arguments.out)
    if arguments.json:
        _print_json(grabbed_json(seen, arguments.out))
    else:
        print(grabbed_text(seen, arguments.out))
    return 1 if seen.unhealthy else 0


def _bench(arguments: argparse.Namespace) -> int:
    from edge_daemon.bench import BenchRequest, bench, table

    figures = bench(
        BenchRequest(
            arguments.recipe,
            arguments.images,
            arguments.cameras,
            arguments.provider,
            arguments.search,
            arguments.rounds,
            arguments.seconds,
        )
    )
    if arguments.json:
        _print_json(figures)
    else:
        print(table(figures))
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from edge_daemon.config_reference import config_schema, configuration_page
    from edge_daemon.wire.schema import message_schemas

    if arguments.markdown:
        if arguments.name not in (None, "config"):
            raise EdgeError("only the configuration is also a page: edge-daemon schema config --markdown")
        print(configuration_page(), end="")
        return 0
    schemas = {"config": config_schema()} | message_schemas()
    if arguments.name is None:
        _print_json(schemas)
    elif arguments.name in schemas:
        _print_json(schemas[arguments.name])
    else:
        raise EdgeError(f"there is no schema {arguments.name!r}; schemas: {', '.join(schemas)}")
    return 0


def _recipes(arguments: argparse.Namespace) -> int:
    from edge_daemon.artefact.recipe import load_recipe
    from edge_daemon.artefact.signature import Trust
    from edge_daemon.artefact.store import Store
    from edge_daemon.config import load_config

    config = load_config(arguments.config)
    store, trust = Store(config.store_path), Trust.of(config.security.trusted_signers)
    rows = []
    for station, settings in config.stations.items():
        for view in settings.views:
            path = view.recipe_path or store.resolve(view.recipe).path
            recipe = load_recipe(path, store.backbone, trust)
            manifest = recipe.manifest
            rows.append(
                {
                    "station": station,
                    "camera": view.camera,
                    "name": manifest.name,
                    "version": manifest.version,
                    "digest": manifest.self_sha256,
                    "threshold": manifest.thresholds.lower,
                    "provisional": manifest.provisional,
                    "signed_by": str(recipe.signed),
                    "path": str(path),
                }
            )
    _print_rows(rows, arguments.json, ("station", "camera", "name", "version", "digest", "threshold", "signed_by"))
    return 0


def _engines(arguments: argparse.Namespace) -> int:
    from edge_daemon.config import load_config
    from edge_daemon.engines.choice import Choices

    choices = Choices(load_config(arguments.config, recipes_must_exist=False).engines_path)
    if arguments.forget:
        forgotten = choices.forget()
        if arguments.json:
            _print_json({"forgotten": forgotten})
        else:
            print(
                f"{choices.path}: {'forgotten; measured anew at the next start' if forgotten else 'nothing to forget'}"
            )
        return 0
    found = choices.measurements()
    if arguments.json:
        _print_json([entry.model_dump(mode="json") | {"engine": entry.engine()} for entry in found])
        return 0
    for entry in found:
        kind, ms = entry.kind, "  ".join(f"{name} {value:.2f} ms" for name, value in sorted(entry.ms.items()))
        print(
            f"{entry.engine():9}  up to {kind.rows} rows of {kind.dims}, {kind.patches} patches, {kind.threads} threads"
        )
        print(f"           {ms}; {kind.provider}, {kind.cpu}, {kind.software}")
    if not found:
        print("nothing was measured yet: engines are taken by rule until a recipe is loaded by the daemon")
    return 0


def _store_import(arguments: argparse.Namespace) -> int:
    store = _store(arguments)
    rows = []
    for recipe in arguments.recipe:
        stored = store.add(recipe)
        rows.append(asdict(stored) | {"path": str(stored.path)})
        if not arguments.json:
            print(f"{recipe}: kept as {stored.name} {stored.version} ({stored.digest[:12]})")
    if arguments.json:
        _print_json(rows)
    return 0


def _store_list(arguments: argparse.Namespace) -> int:
    from edge_daemon.artefact.signature import Trust
    from edge_daemon.config import load_config

    store, trust = _store(arguments), Trust()
    if arguments.store is None:
        config = load_config(arguments.config, recipes_must_exist=False)
        trust = Trust.of(config.security.trusted_signers)
    rows = [asdict(r) | {"path": str(r.path), "signed_by": store.signed(r, trust)} for r in store.list()]
    _print_rows(rows, arguments.json, ("name", "version", "digest", "created_utc", "provisional", "signed_by"))
    damaged = store.damaged()
    for problem in damaged:
        _say(f"edge-daemon: {problem}")
    return 1 if damaged else 0


def _store(arguments: argparse.Namespace) -> "Store":
    from edge_daemon.artefact.store import Store
    from edge_daemon.config import load_config

    if arguments.store is not None:
        return Store(arguments.store.absolute())
    return Store(load_config(arguments.config, recipes_must_exist=False).store_path)


# ---------------------------------------------------------------- telling


def _problems(path: Path, error: ConfigError) -> str:
    lines = [f"{path}: {_many(len(error.problems), 'problem')}", *(f"✗ {problem}" for problem in error.problems)]
    return "\n".join(lines)


def _many(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _print_rows(rows: list[dict[str, object]], as_json: bool, columns: Sequence[str]) -> None:
    """Rows as JSON, or as a table whose digests are cut to the twelve digits that other commands take."""
    if as_json:
        _print_json(rows)
        return
    shown = [[_cell(column, row[column]) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *shown]) for i in range(len(columns))]
    for line in [list(columns), *shown]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(column: str, value: object) -> str:
    if column == "digest":
        return str(value)[:12]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
