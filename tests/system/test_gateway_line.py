"""Three hundred parts past daemon, gateway and PLC while everything fails once: no part passes that the reference
judgement does not call OK."""

from pathlib import Path

import pytest

from tests.gateway_line import FAULTS, Reference, check_line, run_line

pytestmark = pytest.mark.alone


@pytest.mark.timeout(300)
def test_no_part_passes_a_line_full_of_faults_unless_it_was_judged_ok_in_time(tmp_path: Path) -> None:
    reference = Reference()
    line, records = run_line(tmp_path, reference, parts=300, seed=1, rounds=1)
    print("\n" + check_line(line, records, reference))
    assert sorted(fault.name for fault in line.faults) == sorted(FAULTS)
