"""Cameras that are there and answer, and are of no use or tell of the past: through the real daemon, for the table of
faults. Only with EDGE_TEST_CAMERA_FAULTS=1 or EDGE_TEST_FAULTS=1. Needs root."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from edge_daemon.wire.messages import Event, Inspection, Status
from tests.fakes.gige import (
    ACQUISITION_REGISTER,
    EXPOSURE_REGISTER,
    FakeCamera,
    fake_camera,
    write_as_its_controller,
)
from tests.faults.line import CAMERA, HURT, IDLE_DROP_S, RECOVERY_S, SIDE_PX, SLACK, Account, Factory, Line

GIGE = f'kind = "gige"\nserial = "GV07"\nregion = [0, 0, {SIDE_PX}, {SIDE_PX}]\nexposure_us = 10000'
FREE_RUN = GIGE + '\ntrigger = "free_run"\nrate_hz = 25'
FREE_STATION = 'trigger = "free_run"\nqueue = 20'
Tell = Callable[[Account], None]

pytestmark = [pytest.mark.timeout(180), pytest.mark.alone, pytest.mark.long]


@pytest.fixture
def fake() -> Iterator[FakeCamera]:
    with fake_camera() as camera:
        yield camera


def lost_and_back(line: Line, since_ns: int, words: str) -> tuple[float, float]:
    """Seconds until the camera was given up for this reason, and from then until its station was ready again."""
    lost_ns, _ = line.observer.first(Event, lambda e: e.name == "camera_lost" and words in e.message, since_ns)
    line.observer.first(Event, lambda e: e.name == "camera_connected" and CAMERA in e.message, lost_ns)
    back_ns, _ = line.observer.first(Status, lambda s: s.station == HURT and s.trigger_ready, lost_ns)
    return (lost_ns - since_ns) / 1e9, (back_ns - lost_ns) / 1e9


def judged(line: Line, since_ns: int = 0) -> list[Inspection]:
    return [i for _, i in line.observer.all(Inspection, since_ns) if i.station == HURT]


def test_settings_that_somebody_changes_while_the_line_runs_are_noticed_and_put_right(
    fake: FakeCamera, make_line: Factory, account: Tell
) -> None:
    """Half the light less would pass every limit of health and every frame's check of what it was opened with."""
    with make_line(GIGE) as line:
        line.good_part()
        since_ns = time.monotonic_ns()
        write_as_its_controller(fake.ip, EXPOSURE_REGISTER, 9_000)
        lost_s, back_s = lost_and_back(line, since_ns, "exposure_us is 9000 in the camera, 10000")
        assert lost_s <= IDLE_DROP_S * SLACK
        assert back_s <= RECOVERY_S * SLACK
        line.good_part()
    expected = "lost, set anew"
    account(Account("settings changed by another", expected, expected, dropped_s=lost_s, recovered_s=back_s))


def test_a_free_running_camera_whose_stream_stops_is_no_camera_although_it_answers(
    fake: FakeCamera, make_line: Factory, account: Tell
) -> None:
    with make_line(FREE_RUN, station=FREE_STATION) as line:
        line.observer.first(Inspection, lambda i: i.station == HURT and i.seq == 20)
        since_ns = time.monotonic_ns()
        write_as_its_controller(fake.ip, ACQUISITION_REGISTER, 0)
        lost_s, back_s = lost_and_back(line, since_ns, "has sent no picture")
        assert lost_s <= IDLE_DROP_S * SLACK
        assert back_s <= RECOVERY_S * SLACK
        line.observer.first(Inspection, lambda i: i.station == HURT and i.result_state == "Completed", since_ns + 10**9)
        line.free_running()
    account(Account("free run, stream stopped", "lost, opened anew", "lost, opened anew", None, lost_s, back_s))


def test_pictures_that_piled_up_while_the_pc_was_held_up_release_nothing(
    fake: FakeCamera,  # noqa: ARG001
    make_line: Factory,
    account: Tell,
) -> None:
    with make_line(FREE_RUN, station=FREE_STATION) as line:
        line.observer.first(Inspection, lambda i: i.station == HURT and i.seq == 20)
        os.kill(line.pid, signal.SIGSTOP)
        stopped_ns = time.monotonic_ns()
        last_seq = judged(line)[-1].seq
        time.sleep(3.0)  # this is the fault
        os.kill(line.pid, signal.SIGCONT)
        line.observer.first(Inspection, lambda i: i.station == HURT and i.seq == last_seq + 60)
        line.free_running()
        after = [i for i in judged(line, stopped_ns) if i.seq > last_seq]
    old = [i for i in after if i.result_state == "Failed"]
    assert len(old) >= 5, "the camera's buffers were full"
    assert {i.reason for i in old} <= {"camera", "late"}
    first_good = next(i for i in after if i.result_state == "Completed")
    assert first_good.times.judged_us is not None
    assert first_good.times.judged_us < line.deadline_ms * 1e3
    account(Account("PC held up for 3 s, free run", "failed: camera or late", f"{len(old)} failed, none released"))
