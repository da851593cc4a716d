"""The whole way, from good parts to verdicts on the wire: `make demo`."""

from edge_daemon.threads import set_thread_environment

set_thread_environment()  # before anything imports numpy

import argparse  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from types import FrameType  # noqa: E402

from line import Heard, running_line  # noqa: E402
from plan import DemoStation, config_text, render_good_parts, stations  # noqa: E402
from processes import DemoError, run_to_end  # noqa: E402
from sheet import write_contact_sheet  # noqa: E402
from tally import Tally, percentile, tally  # noqa: E402

from edge_daemon.errors import EdgeError  # noqa: E402

SOCKETS = ("results", "images", "status", "triggers", "control", "replay", "amendments")
MARK = ".written-by-the-demo"


def main() -> int:
    """Exit status: 0 all sound, 1 something that must not happen happened, 130 interrupted."""
    arguments = _parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    for name in [name for name in os.environ if name.startswith("EDGE_") and not name.startswith("EDGE_TEST_")]:
        del os.environ[name]  # the demo runs on its own configuration file
    try:
        return demo(arguments)
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything it started has been stopped", file=sys.stderr)
        return 130
    except (DemoError, EdgeError, OSError) as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1


def demo(arguments: argparse.Namespace) -> int:
    """Learn, run, judge, tell. Raises DemoError."""
    out, plan = arguments.out.absolute(), stations(arguments.seed)
    make_folder(out)
    learn(plan, out, arguments.good_parts)
    ports = free_ports(len(SOCKETS))
    config = out / "edge.toml"
    config.write_text(config_text(plan, iter(ports)))
    endpoints = {name: f"tcp://127.0.0.1:{port}" for name, port in zip(SOCKETS, ports, strict=True)}
    print(f"\nStarting edge-daemon with {config}", flush=True)
    with running_line(config, endpoints) as line:
        line.wait_for_subscriber(plan[0].name)
        triggered = line.judge(plan, arguments.parts)
        counters = line.counters()
    sheet = out / "contact-sheet.png"
    found = tally(plan, triggered, line.heard.inspections)
    problems = found.problems + unbalanced(counters)
    if line.heard.inspections:
        write_contact_sheet(line.heard, plan, sheet, arguments.sheet_parts, arguments.tile_px)
    tell(found, line.heard, problems, sheet)
    return 1 if problems else 0


def make_folder(out: Path) -> None:
    """An empty folder. Takes away what an earlier demo wrote, and nothing that it did not. Raises DemoError."""
    if out.exists() and not out.is_dir():
        raise DemoError(f"{out} is no folder; name another one with --out")
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise DemoError(f"{out} holds files that the demo did not write; name another folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def learn(plan: tuple[DemoStation, ...], out: Path, good_parts: int) -> None:
    """Pictures of good parts, then a recipe for each product. Raises DemoError."""
    for station in plan:
        render_good_parts(station, good_parts, out / "good" / station.product)
    (out / "recipes").mkdir()
    for station in plan:
        command = [str(Path(sys.executable).parent / "edge-export"), "recipe", "--name", station.product]
        command += ["--images", str(out / "good" / station.product)]
        command += ["--out", str(out / "recipes" / f"{station.product}.recipe"), "--coreset-ratio", "0.02"]
        run_to_end(command)


def free_ports(count: int) -> list[int]:
    """Ports of this PC that nobody listens on, held together while they are chosen, so that all differ."""
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


def unbalanced(counters: dict[str, dict[str, int]]) -> list[str]:
    """Stations whose daemon lost count: accepted must equal the sum of what became of the parts."""
    return [
        f"station {name} does not balance: {counts}"
        for name, counts in counters.items()
        if counts["accepted"] != sum(count for what, count in counts.items() if what != "accepted")
    ]


def tell(found: Tally, heard: Heard, problems: list[str], sheet: Path) -> None:
    """The summary."""
    seconds = heard.last_result_s - heard.first_trigger_s
    ok = found.evaluations.get("OK", 0)
    good = found.parts - found.defective
    print(f"\n{found.parts} parts: {ok} OK, {found.parts - ok} not OK")
    print(f"escapes:       {len(found.escapes)} of {found.defective} defective parts  {', '.join(found.escapes)}")
    print(f"false rejects: {len(found.false_rejects)} of {good} good parts  {', '.join(found.false_rejects)}")
    if seconds > 0:
        print(f"speed:         {found.parts / seconds:.1f} parts a second, one at a time at each station")
    p50, p99 = (percentile(found.latency_ms, share) for share in (0.5, 0.99))
    print(f"trigger to verdict: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    if sheet.exists():
        print(f"pictures:      {sheet}")
    for problem in problems:
        print(f"PROBLEM: {problem}")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="demo",
        description="Renders good parts of two products, makes a recipe from each, starts the daemon with two "
        "simulated stations, judges parts that it never saw, and compares the verdicts with the truth.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for everything it writes")
    parser.add_argument("--good-parts", type=_positive, default=150, metavar="N", help="to learn from, each product")
    parser.add_argument("--parts", type=_positive, default=100, metavar="N", help="to judge, all stations together")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="other parts, other defects")
    parser.add_argument("--sheet-parts", type=_positive, default=24, metavar="N", help="on the contact sheet")
    parser.add_argument("--tile-px", type=_positive, default=200, metavar="N", help="side of a picture on it")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
