"""The table of faults: for each, what the line sees of it, through the real daemon and the real libraries.

Cameras are processes in a network of their own, killed, frozen and robbed. Times count from the injection. A short
selection runs always, all of it with EDGE_TEST_CAMERA_FAULTS=1; `make faults` (EDGE_TEST_FAULTS=1) also holds it to the
times that a line may rely on. One line a fault is printed at the end. Needs root.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import pytest

from edge_daemon.artefact.pictures import encode_png
from edge_daemon.wire.messages import Inspection, Status
from tests.contract.test_rtsp import Server, server_can_run
from tests.fakes.gige import (
    PIXEL_FORMAT_REGISTER,
    WIDTH_REGISTER,
    FakeCamera,
    fake_camera,
    other_client,
    write_as_its_controller,
)
from tests.faults.conftest import ramp
from tests.faults.line import (
    DEADLINE_MS,
    HURT,
    IDLE_DROP_S,
    RECOVERY_S,
    SIDE_PX,
    SLACK,
    Account,
    Factory,
    Fault,
    Line,
)

GIGE = f'kind = "gige"\nserial = "GV07"\nregion = [0, 0, {SIDE_PX}, {SIDE_PX}]\nexposure_us = 10000'
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
BAYER_RG8 = 0x01080009
long = pytest.mark.long
Tell = Callable[[Account], None]

pytestmark = [pytest.mark.timeout(180), pytest.mark.alone]


@pytest.fixture
def fake() -> Iterator[FakeCamera]:
    with fake_camera(started=False) as camera:
        yield camera


# ---------------------------------------------------------------- gone, frozen, back


@pytest.mark.parametrize("pending", [True, pytest.param(False, marks=long)], ids=["awaited", "idle"])
def test_an_unplugged_camera_fails_its_part_and_comes_back(
    fake: FakeCamera, make_line: Factory, account: Tell, pending: bool
) -> None:
    fake.start()
    name = "unplugged (kill -9)" + ("" if pending else ", idle")
    stall = fake.freeze if pending else None
    with make_line(GIGE) as line:
        account(line.suffer(Fault(name, fake.kill, fake.start, pending, stall)))


@pytest.mark.parametrize(
    ("hold_s", "pending"),
    [(2.0, True), pytest.param(2.0, False, marks=long), pytest.param(10.0, True, marks=long),
     pytest.param(10.0, False, marks=long)],
)  # fmt: skip
def test_a_frozen_camera_fails_its_part_and_comes_back_when_it_thaws(
    fake: FakeCamera, make_line: Factory, account: Tell, hold_s: float, pending: bool
) -> None:
    """The longer freeze outlives the library's own time-out of six seconds."""
    fake.start()
    name = f"frozen {hold_s:g} s" + ("" if pending else ", idle")
    with make_line(GIGE) as line:
        account(line.suffer(Fault(name, fake.freeze, fake.thaw, pending, hold_s=hold_s)))


@long
def test_a_camera_with_a_new_address_is_found_again(fake: FakeCamera, make_line: Factory, account: Tell) -> None:
    def move() -> None:
        fake.ip = "127.0.0.3"
        fake.start()

    fake.start()
    with make_line(GIGE) as line:
        account(line.suffer(Fault("back with another address", fake.kill, move, stall=fake.freeze)))


@long
def test_a_camera_that_is_absent_at_the_start_is_taken_when_it_comes(
    fake: FakeCamera, make_line: Factory, account: Tell
) -> None:
    with make_line(GIGE, present=False) as line:
        refused = line.part()
        assert (refused.result_state, refused.reason) == ("Aborted", "missed_not_ready")
        recovered_s = line.recovered(fake.start)
        assert recovered_s <= RECOVERY_S * SLACK
        line.good_part()
    seen = f"missed: {refused.reason}"
    account(Account("absent at start", "missed: missed_not_ready", seen, recovered_s=recovered_s))


@pytest.mark.parametrize("dies", [pytest.param(False, marks=long), True], ids=["ends", "is killed"])
def test_a_camera_that_another_program_holds_is_named_and_taken_when_it_is_free(
    fake: FakeCamera, make_line: Factory, account: Tell, dies: bool
) -> None:
    """A program that is killed leaves the camera to its heartbeat: Aravis's other clients set 3 s."""
    fake.start()
    with ExitStack() as stack:
        holder = stack.enter_context(ExitStack())
        holder.enter_context(other_client("127.0.0.1", dies))
        line = stack.enter_context(make_line(GIGE, present=False))
        _, status = line.observer.first(
            Status, lambda s: s.station == HURT and "controlled by another program" in s.cameras[0].message
        )
        assert not status.trigger_ready
        refused = line.part()
        assert (refused.result_state, refused.reason) == ("Aborted", "missed_not_ready")
        recovered_s = line.recovered(holder.close)
        assert recovered_s <= (RECOVERY_S + (3.0 if dies else 0.0)) * SLACK
        line.good_part()
    name = "second controller, " + ("killed (3 s heartbeat)" if dies else "ends")
    account(Account(name, "missed: missed_not_ready", f"missed: {refused.reason}", recovered_s=recovered_s))


# ---------------------------------------------------------------- wrong pictures


@long
def test_lost_packets_fail_parts_and_no_picture_with_holes_is_judged(
    fake: FakeCamera, make_line: Factory, account: Tell
) -> None:
    fake.lost_per_mille = 20  # of some 20 packets a picture
    fake.start()
    with make_line(GIGE) as line:
        records = [line.part() for _ in range(40)]
        failed = [r for r in records if r.result_state == "Failed"]
        whole = [r for r in records if r.result_state == "Completed"]
        assert failed
        assert whole
        assert len(failed) + len(whole) == 40
        assert {r.reason for r in failed} <= {"camera", "no_frame"}
        slowest_s = max(took_s(line, r) for r in failed)
        assert slowest_s < DEADLINE_MS / 1e3 * SLACK
        assert line.observer.all(Status)[-1][1].counters is not None
    seen = f"{len(failed)} of 40 failed"
    account(Account("packets lost (2%)", "failed: camera, that part alone", seen, slowest_s))


def took_s(line: Line, record: Inspection) -> float:
    """From the trigger to its record's arrival."""
    at_ns, _ = line.observer.first(Inspection, lambda i: i.result_id == record.result_id)
    return (at_ns - line.sent_ns(record.trigger_id)) / 1e9


@pytest.mark.parametrize(
    ("what", "register", "value"),
    [pytest.param("size", WIDTH_REGISTER, SIDE_PX // 2, marks=long), ("format", PIXEL_FORMAT_REGISTER, BAYER_RG8)],
)
def test_a_picture_of_another_size_or_format_fails_and_the_camera_is_set_anew(
    fake: FakeCamera, make_line: Factory, account: Tell, what: str, register: int, value: int
) -> None:
    fake.start()
    with make_line(GIGE) as line:
        line.good_part()
        began_ns = time.monotonic_ns()
        write_as_its_controller(fake.ip, register, value)
        reply = line.trigger()
        at_ns, record = line.outcome(reply)
        assert (record.evaluation, record.result_state) == ("Undefined", "Failed"), record
        dropped_s = line.dropped(began_ns)
        back_ns, _ = line.observer.first(Status, lambda s: s.station == HURT and s.trigger_ready, since_ns=at_ns)
        recovered_s = (back_ns - at_ns) / 1e9
        assert recovered_s <= RECOVERY_S * SLACK
        line.good_part()
    seen = f"failed: {record.reason}"
    account(
        Account(f"picture of another {what}", "failed: camera", seen, (at_ns - began_ns) / 1e9, dropped_s, recovered_s)
    )


@long
def test_the_camera_s_counter_wraps_and_no_part_notices(fake: FakeCamera, make_line: Factory, account: Tell) -> None:
    """The fake begins shortly before 65535."""
    fake.start()
    camera = GIGE + '\ntrigger = "free_run"\nrate_hz = 25'
    with make_line(camera, station='trigger = "free_run"\nqueue = 20') as line:
        line.observer.first(Inspection, lambda i: i.station == HURT and i.seq == 260)
        records = [i for _, i in line.observer.all(Inspection) if i.station == HURT and i.seq <= 260]
        line.free_running()
    assert {r.result_state for r in records} == {"Completed"}
    frames = [r.views[0].frame_ids[0] for r in records]
    assert frames == list(range(frames[0], frames[0] + len(frames))), "a frame is missing, or one came twice"
    account(Account("id wraps at 65535", "every part judged", f"{len(frames)} of {len(frames)} judged"))


@long
@pytest.mark.parametrize("seconds", [0.7, 3600.0])
def test_a_camera_clock_that_jumps_releases_no_part_on_an_old_picture(
    fake: FakeCamera, make_line: Factory, account: Tell, tmp_path: Path, seconds: float
) -> None:
    """The fake keeps its heartbeat by the same clock: a jump of an hour also ends our control of it."""
    if not FAKETIME.exists():
        pytest.skip("needs libfaketime, to move the clock of the camera process")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    fake.environment = {
        "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    fake.start()
    with make_line(GIGE) as line:
        for _ in range(12):
            line.good_part()
        began_ns = time.monotonic_ns()
        offset.write_text(f"+{seconds}")
        records = []
        while not records or records[-1].result_state != "Completed":
            records.append(line.part())
            assert len(records) < 1_000
        recovered_s = (time.monotonic_ns() - began_ns) / 1e9
        assert recovered_s <= (DEADLINE_MS / 1e3 + RECOVERY_S) * SLACK
        for _ in range(5):
            line.good_part()
    reasons = sorted({r.reason for r in records if r.result_state != "Completed"})
    seen = f"{len(records) - 1} parts not judged {' '.join(reasons)}".strip()
    account(Account(f"camera clock jumps {seconds:g} s", "judged again within 3.5 s", seen, recovered_s=recovered_s))


# ---------------------------------------------------------------- triggers


@pytest.mark.parametrize("count", [60])
def test_triggers_faster_than_the_camera_are_missed_or_failed_and_all_on_record(
    fake: FakeCamera, make_line: Factory, account: Tell, count: int
) -> None:
    """The fake looks for triggers 25 times a second; these come as fast as they are acknowledged."""
    fake.start()
    with make_line(GIGE) as line:
        line.good_part()
        replies = [line.trigger() for _ in range(count)]
        records = [line.outcome(reply)[1] for reply in replies]
        states = {r.result_state for r in records}
        assert states <= {"Completed", "Failed", "Aborted"}
        missed = [r for r in records if r.result_state == "Aborted"]
        assert {r.reason for r in missed} == {"missed_busy"}
        judged = [r for r in records if r.result_state == "Completed"]
        assert judged
        line.good_part()
    failed = count - len(missed) - len(judged)
    seen = f"{len(judged)} judged, {failed} failed, {len(missed)} missed"
    account(Account(f"{count} triggers at once", "one record each, no frame twice", seen))


def test_triggers_while_a_camera_is_sought_are_missed_and_none_is_kept_for_later(
    fake: FakeCamera, make_line: Factory, account: Tell
) -> None:
    fake.start()
    with make_line(GIGE) as line:
        line.good_part()
        began_ns = time.monotonic_ns()
        fake.kill()
        line.dropped(began_ns)
        lost = [line.part() for _ in range(3)]
        assert {r.result_state for r in lost} == {"Aborted"}
        fake.start()
        back_ns = time.monotonic_ns()
        during = []
        while not during or during[-1].result_state != "Completed":
            during.append(line.part())
            assert len(during) < 10_000
        recovered_s = (time.monotonic_ns() - back_ns) / 1e9
        assert recovered_s <= (RECOVERY_S + 0.5) * SLACK
        assert {r.result_state for r in during} <= {"Aborted", "Completed", "Failed"}
        judged = [r for r in during if r.result_state == "Completed"]
        assert len(judged) == 1
    seen = f"{len(lost) + len(during) - 1} missed"
    account(Account("triggers during reconnect", "missed: missed_not_ready", seen, recovered_s=recovered_s))


@long
def test_an_exposure_longer_than_the_deadline_fails_the_part_before_it(make_line: Factory, account: Tell) -> None:
    camera = f'kind = "simulated"\nproduct = "cap"\nsize = [{SIDE_PX}, {SIDE_PX}]\nexposure_ms = 5000\nisolated = true'
    with make_line(camera) as line:
        record = line.part()
        assert (record.result_state, record.reason) == ("Failed", "no_frame")
        failed_s = took_s(line, record)
        assert failed_s < DEADLINE_MS / 1e3 * SLACK
        again = line.part()
        assert (again.result_state, again.reason) == ("Failed", "no_frame"), "the late frame is not this part's"
    account(Account("exposure beyond the deadline", "failed: no_frame", f"failed: {record.reason}", failed_s))


# ---------------------------------------------------------------- streams and files


@pytest.fixture
def server() -> Iterator[Server]:
    if not server_can_run():
        pytest.skip("needs Debian's python3-gi, gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-good")
    one = Server()
    one.start(SIDE_PX, SIDE_PX)
    yield one
    one.kill()


def rtsp(server: Server) -> str:
    return f'kind = "rtsp"\nurl = "rtsp://127.0.0.1:{server.port}/live"\nmono = true\nframes_in_flight = 1'


@long
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_stream_whose_server_dies_or_freezes_fails_its_part(
    server: Server, make_line: Factory, account: Tell, how: str
) -> None:
    def freeze() -> None:
        server.signal(signal.SIGSTOP)

    def thaw() -> None:
        server.signal(signal.SIGCONT)

    def restart() -> None:
        server.start(SIDE_PX, SIDE_PX)

    inject, restore = (server.kill, restart) if how == "killed" else (freeze, thaw)
    with make_line(rtsp(server)) as line:
        stall = freeze if how == "killed" else None
        account(line.suffer(Fault(f"RTSP server {how}", inject, restore, stall=stall, hold_s=2.0)))


@long
def test_a_stream_that_comes_back_with_another_resolution_is_never_judged(
    server: Server, make_line: Factory, account: Tell
) -> None:
    with make_line(rtsp(server)) as line:
        line.good_part()
        began_ns = time.monotonic_ns()
        server.kill()
        dropped_s = line.dropped(began_ns)
        assert dropped_s <= IDLE_DROP_S * SLACK
        recovered_s = line.recovered(lambda: server.start(2 * SIDE_PX, SIDE_PX))
        records = [line.part() for _ in range(3)]
        assert {(r.result_state, r.reason) for r in records} == {("Failed", "frame_size")}
        failed_s = took_s(line, records[0])
    seen = f"failed: {records[0].reason}"
    account(Account("RTSP, another resolution", "failed: frame_size", seen, failed_s, dropped_s, recovered_s))


@long
def test_a_video_that_is_cut_off_plays_to_there_and_then_releases_nothing(
    make_line: Factory, account: Tell, tmp_path: Path
) -> None:
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (SIDE_PX, SIDE_PX), False)
    for number in range(60):
        writer.write(ramp(number))
    writer.release()
    os.truncate(film, film.stat().st_size // 2)
    with make_line(f'kind = "video"\npath = "{film}"\nmono = true') as line:
        records = [line.part()]
        while records[-1].result_state == "Completed":
            records.append(line.part())
            assert len(records) < 60
        failed_s = took_s(line, records[-1])
        dropped_s = line.dropped(line.sent_ns(records[-1].trigger_id))
        assert failed_s < DEADLINE_MS / 1e3 * SLACK
        assert records[-1].result_state in ("Failed", "Aborted")
        assert line.part().result_state == "Aborted"
    seen = f"{len(records) - 1} judged, {records[-1].result_state.lower()}: {records[-1].reason}"
    account(Account("video file truncated", "failed: no_frame at its end", seen, failed_s, dropped_s))


def test_a_folder_that_is_taken_away_fails_its_part_and_goes_on_when_it_is_back(
    make_line: Factory, account: Tell, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(30):
        (parts / f"{number}.png").write_bytes(encode_png(ramp(8 * number)))
    away = tmp_path / "away"
    with make_line(f'kind = "folder"\npath = "{parts}"') as line:
        fault = Fault("folder removed", lambda: parts.rename(away), lambda: away.rename(parts))
        account(line.suffer(fault))


# ---------------------------------------------------------------- nothing stays behind


@pytest.mark.timeout(7200)
def test_unplugging_leaves_no_thread_descriptor_process_or_megabyte_in_the_daemon(
    fake: FakeCamera, make_line: Factory, account: Tell
) -> None:
    """EDGE_TEST_UNPLUGS: how often; 50 by `make faults`, 1000 by `make soak-cameras`."""
    cycles = int(os.environ.get("EDGE_TEST_UNPLUGS", "4"))
    block = max(2, cycles // 20)
    fake.start()
    with make_line(GIGE) as line:
        line.good_part()
        footing = footprint(line)
        grown_kb = {"unplugged": 0, "judged": 0}
        parts = 0
        for number in range(cycles // block):
            # Turn about: what is remembered of parts, up to its bound, falls on both alike.
            for what in ("unplugged", "judged") if number % 2 == 0 else ("judged", "unplugged"):
                before_kb, before_parts = resident_kb(line), parts_judged(line)
                if what == "unplugged":
                    for _ in range(block):
                        unplug(line, fake)
                    parts = parts_judged(line) - before_parts
                else:
                    while parts_judged(line) - before_parts < parts:
                        line.part()
                assert footprint(line) == footing, f"{what}, block {number}"
                grown_kb[what] += resident_kb(line) - before_kb
        more_kb = grown_kb["unplugged"] - grown_kb["judged"]
        allowed_kb = 2_048 + 2 * cycles
        assert more_kb < allowed_kb, f"grown by {grown_kb} KB in {cycles} cycles and in as many parts without"
    seen = f"{grown_kb['unplugged']} KB more, {grown_kb['judged']} by as many parts without it"
    account(Account(f"unplugged {cycles} times", f"below {allowed_kb} KB, nothing left", seen))


def unplug(line: Line, fake: FakeCamera) -> None:
    """Once, until the camera is back."""
    began_ns = time.monotonic_ns()
    fake.kill()
    line.dropped(began_ns)
    line.recovered(fake.start)
    line.part()


def parts_judged(line: Line) -> int:
    """Of both stations."""
    return len(line.observer.all(Inspection))


def footprint(line: Line) -> tuple[int, int, int]:
    """(descriptors, threads, child processes) of the daemon, once what is ending has ended."""
    pid = line.pid
    seen = []
    while len(seen) < 3 or len(set(seen[-3:])) > 1:
        children = sum(len(t.read_text().split()) for t in Path(f"/proc/{pid}/task").glob("*/children"))
        seen.append((len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), children))
        line.observer.until(time.monotonic_ns())
        assert len(seen) < 300, f"does not settle: {seen[-10:]}"
    return seen[-1]


def resident_kb(line: Line) -> int:
    return int(Path(f"/proc/{line.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
