"""kill -9 at random moments under load: nothing that was told is missing, nothing accepted stays without an outcome.

EDGE_TEST_KILLS says how often; `make faults` 300 times, `make soak` 3000. EDGE_TEST_LANES shares them out to so many
lines, each with a daemon, a journal, an MES and a database of its own; with `--numprocesses` they run at once, and use
the time that each spends waiting (90 kills on two busy cores: 40 s in three lanes, 60 s in one).
"""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.kills import Load, Mes, Round, Victim, audit, caught_up, settle, try_postgres
from tests.postgres import Postgres, binaries

KILLS = int(os.environ.get("EDGE_TEST_KILLS", "300" if os.environ.get("EDGE_TEST_FAULTS") else "40"))
LANES = int(os.environ.get("EDGE_TEST_LANES", "1"))

pytestmark = pytest.mark.skipif(binaries() is None, reason="needs PostgreSQL: apt install postgresql")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    running = try_postgres()
    yield running
    running.close()


@pytest.mark.may_leave("the database that it restarts is its fixture's")
@pytest.mark.timeout(60 + 20 * KILLS)
@pytest.mark.parametrize("lane", range(LANES))
def test_after_every_kill_journal_wire_and_mes_agree(
    tmp_path: Path, recipe: Path, postgres: Postgres, capsys: pytest.CaptureFixture[str], lane: int
) -> None:
    """Every tenth time the MES is killed too, and twice the database."""
    kills = KILLS // LANES + (lane < KILLS % LANES)
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    victim = Victim(tmp_path, recipe)
    mes = Mes(tmp_path, victim.endpoints, postgres.url)
    try:
        mes.start()
        with Load(victim.endpoints) as load:
            for number in range(kills):
                Round(moments).run(victim, load)
                if number % 10 == 5:
                    mes.kill()
                    mes.start()
                if number in (kills // 3, 2 * kills // 3):
                    postgres.kill()
                    postgres.start()
            settle(victim, load)
        caught_up(victim.endpoints, postgres.url)
        victim.end(signal.SIGTERM, 0)
        told = audit(victim, load, postgres.url)
    except BaseException:
        print(f"seed {seed}\n{victim.log()}")
        raise
    finally:
        mes.kill()
        victim.close()
    with capsys.disabled():
        print(f"\n{kills} kills: {told}")
    kept = ROOT / "out" / "faults"
    kept.mkdir(parents=True, exist_ok=True)
    (kept / f"kills-{lane + 1}-of-{LANES}.txt").write_text(f"{kills} kills: {told}\n")
