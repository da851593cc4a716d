"""Two thousand parts past daemon, gateway and PLC while everything fails, again and again: `make faults`."""

import os
from pathlib import Path

import pytest

from tests.system.conftest import SmallLine, small_line  # noqa: F401  # the fixture
from tests.system.test_gateway_line import check_line, run_line


@pytest.mark.skipif("EDGE_TEST_FAULTS" not in os.environ, reason="takes five minutes; `make faults` runs it")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [int(os.environ.get("EDGE_TEST_SEED", "2"))])
def test_no_part_of_two_thousand_passes_unless_it_was_judged_ok_in_time(
    tmp_path: Path,
    small_line: SmallLine,  # noqa: F811
    seed: int,
) -> None:
    line, records = run_line(tmp_path, small_line.recipe, parts=2_000, seed=seed, rounds=5)
    table = check_line(line, records)
    print("\n" + table)
    assert len(line.faults) >= 20, table
