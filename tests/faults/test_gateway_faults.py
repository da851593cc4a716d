"""Two thousand parts past daemon, gateway and PLC while everything fails, again and again: `make faults`."""

import os
from pathlib import Path

import pytest

from tests.gateway_line import FAULTS, Reference, check_line, run_line

pytestmark = pytest.mark.alone

ROUNDS = 3


@pytest.mark.skipif("EDGE_TEST_FAULTS" not in os.environ, reason="takes five minutes; `make faults` runs it")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [int(os.environ.get("EDGE_TEST_SEED", "2"))])
def test_no_part_of_two_thousand_passes_unless_it_was_judged_ok_in_time(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = Reference()
    line, records = run_line(tmp_path, reference, parts=2_000, seed=seed, rounds=ROUNDS)
    table = check_line(line, records, reference)
    with capsys.disabled():
        print("\n" + table)
    assert len(line.faults) == ROUNDS * len(FAULTS), table
