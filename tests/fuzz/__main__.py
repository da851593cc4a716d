"""`make fuzz`: nearly right inputs at everything that reads what somebody else may have made.

  python -m tests.fuzz [--seconds 600] [--only PART OF A NAME] [--seed N] [--out out/fuzz] [--json]
  python -m tests.fuzz --reproduce out/fuzz/NAME.bin

Prints how many inputs each target got, and what came of them. A finding is anything but a value or the error by which
the target says no: another exception, a process that dies or hangs, more than a second, more than its memory. The input
is kept. Exit status 1 when there is any.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.campaign import Campaign
from tests.fuzz.one import throw
from tests.fuzz.targets import targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS", "600")))
    parser.add_argument("--only", default="", metavar="TEXT", help="targets whose name holds this")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the same number gives the same inputs")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="where findings are kept")
    parser.add_argument("--reproduce", type=Path, metavar="FILE.bin", help="throw one kept input again")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    if arguments.reproduce is not None:
        return _reproduce(arguments.reproduce)
    if not any(arguments.only in target.name for target in targets()):
        parser.error(f"no target's name holds {arguments.only!r}")
    campaign = Campaign(arguments.out, arguments.seed, arguments.only)
    campaign.run(arguments.seconds)
    if arguments.json:
        tallies = {name: asdict(tally) for name, tally in campaign.tallies.items()}
        findings = [{"target": f.target, "what": f.what, "count": f.count} for f in campaign.findings.values()]
        print(
            json.dumps({"seconds": arguments.seconds, "seed": arguments.seed, "targets": tallies, "findings": findings})
        )
    else:
        _print(campaign, arguments)
    return 1 if campaign.findings else 0


def _print(campaign: Campaign, arguments: argparse.Namespace) -> None:
    print(
        f"{'target':34}{'inputs':>10}{'taken':>9}{'refused':>10}{'lines':>7}{'kept':>6}{'slowest':>11}{'findings':>10}"
    )
    for name, t in campaign.tallies.items():
        slowest = f"{t.slowest_ms:.0f} ms"
        print(
            f"{name:34}{t.inputs:>10}{t.taken:>9}{t.refused:>10}{t.reached:>7}{t.kept:>6}{slowest:>11}{t.findings:>10}"
        )
    total = sum(t.inputs for t in campaign.tallies.values())
    print(f"{'all':34}{total:>10}   in {arguments.seconds:.0f} s, seed {arguments.seed}")
    for found in campaign.findings.values():
        print(f"\nFINDING {found.target}: {found.what} ({found.count} times)")
        print("  " + "\n  ".join(found.trace.rstrip().splitlines()[-6:]))
    if campaign.findings:
        print(f"\nThe inputs are in {arguments.out}; python -m tests.fuzz --reproduce FILE.bin")


def _reproduce(path: Path) -> int:
    told = json.loads(path.with_suffix(".json").read_text())
    target = next(target for target in targets() if target.name == told["target"])
    outcome = throw(target, path.read_bytes())
    print(f"{target.name}: {outcome.kind} in {outcome.cpu_s * 1e3:.1f} ms of processor time\n{outcome.trace}")
    return 1 if outcome.kind == "finding" else 0


if __name__ == "__main__":
    sys.exit(main())
