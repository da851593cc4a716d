"""The clients and edge-ctl: what is missed is named, what is printed can be trusted."""

import argparse
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from wire_kit import box, inspection, not_ok, view

from edge_daemon import ctl
from edge_daemon.client import BootChange, ControlClient, Gap, NoAnswerError, Subscriber, TriggerClient
from edge_daemon.edges.publisher import Publisher, PublisherConfig
from edge_daemon.edges.server import CONTROL, TRIGGERS, RequestServer
from edge_daemon.errors import EdgeError
from edge_daemon.wire.codec import encode_inspection
from edge_daemon.wire.messages import (
    CameraStatus,
    ControlFault,
    ControlReply,
    ControlRequest,
    Counters,
    Status,
    TriggerReply,
    TriggerRequest,
)

ANY_PORT = "tcp://127.0.0.1:*"
WAIT_S = 20.0


def seen(subscriber: Subscriber, *numbers: tuple[int, int], station: str = "st1") -> list[int]:
    """Feeds (boot, seq) as if received; the numbers that were delivered."""
    return [
        seq
        for boot, seq in numbers
        if subscriber._follows(inspection(station=station, boot=boot, boot_id=f"id{boot}", seq=seq))
    ]


# --- noticing what is missed --------------------------------------------------------------------------------------


def test_the_first_result_starts_the_count_and_later_holes_are_gaps() -> None:
    told: list[Gap] = []
    results = Subscriber(on_gap=told.append)
    assert seen(results, (7, 40), (7, 41), (7, 45), (7, 46)) == [40, 41, 45, 46]
    assert list(results.gaps) == told == [Gap("st1", 7, 42, 44)]
    assert results.missed == 3
    assert results.position == {"st1": (7, 46)}


def test_a_new_boot_is_named_and_its_first_results_are_missed_when_they_did_not_come() -> None:
    results = Subscriber()
    assert seen(results, (7, 40), (8, 3)) == [40, 3]
    assert list(results.boots) == [BootChange("st1", 7, 40, 8)]
    assert list(results.gaps) == [Gap("st1", 8, 1, 2)]


def test_a_pc_that_was_set_up_anew_does_not_pass_for_old_records() -> None:
    results = Subscriber(since={"st1": (57, 1000)})
    assert seen(results, (1, 1), (1, 2)) == [1, 2]
    assert list(results.boots) == [BootChange("st1", 57, 1000, 1)]
    again = Subscriber()
    again._follows(inspection(boot=1, boot_id="first life", seq=9))
    assert again._follows(inspection(boot=1, boot_id="second life", seq=1))
    assert len(again.boots) == 1


def test_a_repeated_record_is_delivered_once() -> None:
    results = Subscriber()
    assert seen(results, (7, 1), (7, 2), (7, 2), (7, 1), (7, 3)) == [1, 2, 3]
    assert (results.repeated, results.missed) == (2, 0)


def test_a_reader_goes_on_from_where_it_stopped() -> None:
    results = Subscriber(since={"st1": (7, 40)})
    assert seen(results, (7, 40), (7, 43)) == [43]
    assert list(results.gaps) == [Gap("st1", 7, 41, 42)]


def test_stations_are_counted_apart() -> None:
    results = Subscriber()
    seen(results, (7, 1))
    seen(results, (7, 90), station="st2")
    assert seen(results, (7, 2)) == [2]
    assert not results.gaps


@given(st.lists(st.integers(1, 60), min_size=1, unique=True).map(sorted))
def test_delivered_and_missed_together_are_everything(numbers: list[int]) -> None:
    results = Subscriber()
    seen(results, *((7, seq) for seq in numbers))
    missed = [seq for gap in results.gaps for seq in range(gap.first, gap.last + 1)]
    assert sorted(missed + numbers) == list(range(numbers[0], numbers[-1] + 1))
    assert results.missed == len(missed)


def test_a_subscriber_must_be_opened_closes_twice_and_refuses_what_is_no_endpoint() -> None:
    results = Subscriber()
    with pytest.raises(EdgeError, match="not open"):
        results.receive(0)
    results.close()
    results.close()
    with pytest.raises(EdgeError, match="no endpoint"):
        Subscriber("nonsense").open()
    with pytest.raises(EdgeError, match="no endpoint"):
        TriggerClient("nonsense")
    with pytest.raises(EdgeError, match="slash"):
        Subscriber(station="a/b")


def test_a_loop_ends_when_nothing_comes_for_the_timeout() -> None:
    with Subscriber("tcp://127.0.0.1:1", timeout_s=0.01) as results:
        assert list(results) == []


# --- a daemon that is none ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def daemon(
    control: Callable[[ControlRequest], ControlReply] | None = None,
    trigger: Callable[[TriggerRequest], TriggerReply] | None = None,
) -> Iterator[list[str]]:
    """The sockets of a daemon, answered by the test; the flags that lead edge-ctl there."""

    def answer_control(request: ControlRequest, reply: Callable[[ControlReply], None]) -> None:
        reply(control(request) if control else ControlReply(ok=True, result={}))

    def answer_trigger(request: TriggerRequest, reply: Callable[[TriggerReply], None]) -> None:
        reply(trigger(request) if trigger else TriggerReply(accepted=True, result_id="r1", attempt=1))

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    controls = RequestServer(context, ANY_PORT, CONTROL, answer_control, linger_ms=0)
    triggers = RequestServer(context, ANY_PORT, TRIGGERS, answer_trigger, linger_ms=0)
    try:
        yield ["--control", controls.open(), "--triggers", triggers.open(), "--timeout", str(WAIT_S)]
    finally:
        controls.close()
        triggers.close()
        context.term()


def ok(result: dict[str, Any]) -> Callable[[ControlRequest], ControlReply]:
    return lambda _: ControlReply(ok=True, result=result)


def refused(_: ControlRequest) -> ControlReply:
    return ControlReply(ok=False, error=ControlFault(code="unknown_station", message="there is no station st9"))


def job_that_ends(after: int, end: dict[str, Any]) -> Callable[[ControlRequest], ControlReply]:
    asked = iter(range(1000))

    def control(request: ControlRequest) -> ControlReply:
        if request.command != "job":
            return ControlReply(ok=True, job="j1")
        state = {"job": "j1", "command": "activate", "state": "running"}
        return ControlReply(ok=True, result=state | (end if next(asked) >= after else {}))

    return control


def test_a_job_is_followed_to_its_end() -> None:
    ends = job_that_ends(2, {"state": "done", "result": {"recipe_set": "ab"}})
    with daemon(ends) as flags, ControlClient(flags[1], timeout_s=WAIT_S) as control:
        job = control.request("activate", {"station": "st1"})["job"]
        state = control.wait(job, ask_every_s=0.001)
        assert (state.state, state.result) == ("done", {"recipe_set": "ab"})


def test_a_job_that_does_not_end_is_said() -> None:
    with (
        daemon(job_that_ends(1000, {})) as flags,
        ControlClient(flags[1], timeout_s=WAIT_S) as control,
        pytest.raises(NoAnswerError, match="still running"),
    ):
        control.wait("j1", timeout_s=0.02, ask_every_s=0.01)


# --- edge-ctl -----------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = ctl.main(words)
    out = capsys.readouterr()
    return status, out.out, out.err


def test_status_is_printed_for_people_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    station = Status(
        line="line-1",
        station="st1",
        boot=7,
        boot_id="b",
        utc="u",
        uptime_ms=1.0,
        state="Error",
        mode="production",
        counters=Counters(accepted=9, ok=8),
        last_seq=8,
        cameras=(CameraStatus(camera="top", connected=False, frames=8, message="no answer\x1b[2J"),),
        alarms=("camera top does not answer",),
    ).model_dump(mode="json")
    tree = {
        "line": "line-1",
        "boot": 7,
        "stations": {"st1": station, "st2": {"odd": 1}},
        "journal": {"failing": "full"},
    }
    with daemon(ok(tree)) as flags:
        status, out, _ = run(capsys, *flags, "status")
        assert status == 0
        assert "st1: Error, takes NO triggers, production, last result no. 8" in out
        assert "ok 8" in out
        assert "DO NOT ADD UP" in out
        assert "alarm: camera top does not answer" in out
        assert "camera top: NOT CONNECTED, 8 frames no answer?[2J" in out
        assert "st2: its status is not understood" in out
        assert "journal: full" in out
        status, out, _ = run(capsys, *flags, "status", "--all")
        assert "uptime_ms: 1.0" in out
        status, out, _ = run(capsys, *flags, "status", "--json")
        assert (status, json.loads(out)) == (0, {"ok": True, "result": tree})


def test_a_refusal_names_the_reason_and_is_seen_by_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    with daemon(refused) as flags:
        status, out, err = run(capsys, *flags, "drain", "st9")
        assert (status, out) == (1, "")
        assert "there is no station st9" in err
        status, out, _ = run(capsys, *flags, "--json", "shutdown")
        assert status == 1
        assert json.loads(out)["error"]["code"] == "unknown_station"


def test_no_daemon_is_another_exit_status_than_a_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--control", "tcp://127.0.0.1:1", "--timeout", "0.05")
    status, _, err = run(capsys, *words, "status")
    assert status == 3
    assert "is the daemon running" in err
    status, out, _ = run(capsys, *words, "status", "--json")
    assert (status, json.loads(out)["error"]["code"]) == (3, "no_answer")


def test_a_trigger_says_whether_it_was_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[TriggerRequest] = []

    def take(request: TriggerRequest) -> TriggerReply:
        asked.append(request)
        if request.station == "st1":
            return TriggerReply(accepted=True, result_id="r1", attempt=1)
        return TriggerReply(accepted=False, reason="missed_busy", message="the station is busy")

    with daemon(trigger=take) as flags:
        status, out, _ = run(
            capsys, *flags, "trigger", "st1", "--trigger-id", "17", "--part-id", "PN", "--mode", "setup"
        )
        assert (status, out) == (0, "st1 accepted trigger 17: result r1\n")
        assert (asked[0].part_id, asked[0].mode) == ("PN", "setup")
        status, out, _ = run(capsys, *flags, "trigger", "st2")
        assert status == 1
        assert "missed_busy: the station is busy" in out
        status, out, _ = run(capsys, *flags, "trigger", "st2", "--json")
        assert json.loads(out)["reason"] == "missed_busy"


def test_activating_waits_for_the_job_and_tells_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    failed = {"state": "failed", "error": {"code": "failed", "message": "golden sample 2 is off"}}
    with daemon(job_that_ends(0, failed)) as flags:
        status, out, _ = run(capsys, *flags, "activate", "st1", "bottle@3")
        assert status == 1
        assert "golden sample 2 is off" in out
        status, out, _ = run(capsys, *flags, "activate", "st1", "bottle", "--no-wait", "--json")
        assert (status, json.loads(out)) == (0, {"ok": True, "job": "j1"})
    with daemon(job_that_ends(0, {"state": "done", "result": {"recipe_set": "ab"}})) as flags:
        status, out, _ = run(capsys, *flags, "job", "j1", "--wait")
        assert status == 0
        assert "recipe_set: ab" in out


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (["bottle@3"], {"recipe": "bottle@3"}),
        (["top=a", "side=b@2"], {"recipes": {"top": "a", "side": "b@2"}}),
        (["top=a"], {"recipes": {"top": "a"}}),
    ],
)
def test_recipes_are_named_for_all_cameras_or_for_each(words: list[str], args: dict[str, Any]) -> None:
    assert ctl.chosen_recipes(words) == args


@pytest.mark.parametrize("words", [["a", "b"], ["top=a", "b"], ["top=", "side=b"], ["=a"], ["top=a", "top=b"]])
def test_a_muddled_choice_of_recipes_is_refused_before_anything_is_sent(words: list[str]) -> None:
    with pytest.raises(ctl.UsageError):
        ctl.chosen_recipes(words)


def test_endpoints_come_from_flags_then_environment_then_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('[wire]\nresults = "tcp://127.0.0.1:1"\ntriggers = "tcp://127.0.0.1:2"\ncontrol = "ipc://c"\n')
    args = argparse.Namespace(config=file, results=None, triggers=None, control="tcp://127.0.0.1:9", key=None)
    found = ctl.find_endpoints(args, {"EDGE_CTL_TRIGGERS": "tcp://127.0.0.1:8", "EDGE_CTL_CONTROL": "x"})
    assert found == ctl.Endpoints("tcp://127.0.0.1:1", "tcp://127.0.0.1:8", "tcp://127.0.0.1:9")
    args.config = None
    assert ctl.find_endpoints(args, {"EDGE_WIRE__RESULTS": "ipc://r"}).results == "ipc://r"
    assert ctl.find_endpoints(args, {}).triggers == "tcp://127.0.0.1:5564"


def test_a_daemon_that_listens_on_all_addresses_is_found_on_this_pc(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('[wire]\nresults = "tcp://*:1"\ntriggers = "tcp://0.0.0.0:2"\n')
    args = argparse.Namespace(config=file, results=None, triggers=None, control=None, key=None)
    found = ctl.find_endpoints(args, {"EDGE_CTL_KEY": "eva.key"})
    assert (found.results, found.triggers) == ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")
    assert found.key == Path("eva.key")


@pytest.mark.parametrize("text", ["[wire\n", "wire = 5\n", "[wire]\ncontrol = 5565\n", None])
def test_a_config_file_that_does_not_help_is_named(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "edge.toml"
    if text is not None:
        file.write_text(text)
    status, _, err = run(capsys, "--config", str(file), "status")
    assert status == 2
    assert "edge.toml" in err


def test_a_part_is_one_line_with_camera_part_evaluation_score_threshold_boxes_and_latency() -> None:
    (line,) = ctl.inspection_lines(inspection())
    assert line.split() == ["top", "PN-0042", "OK", "1.25", "<=", "2", "25.0", "ms"]
    (line,) = ctl.inspection_lines(not_ok(provisional=True, mode="setup"))
    assert line.split()[:7] == ["top", "PN-0042", "NotOK", "3.5", ">", "2", "2"]
    assert "2 boxes, 30x40 at 10,20" in line
    assert line.endswith("setup, provisional")


def test_what_was_not_judged_never_reads_like_a_verdict() -> None:
    failed = {"evaluation": "Undefined", "result_state": "Failed", "reason": "late", "late": True}
    (line,) = ctl.inspection_lines(inspection(**failed, views=(view(evaluation="OK"),)))
    assert "Undefined" in line
    assert "OK" not in line
    assert "late" in line
    (missed,) = ctl.inspection_lines(
        inspection(evaluation="Undefined", result_state="Aborted", reason="missed_busy", views=(), journaled=False)
    )
    assert missed.startswith("st1")
    assert "missed" in missed
    assert "not journaled" in missed


def test_one_box_is_no_boxes() -> None:
    (line,) = ctl.inspection_lines(not_ok(views=(view(evaluation="NotOK", boxes=(box(),)),)))
    assert " 1 box, 30x40 at 10,20" in line


def test_status_says_by_what_each_view_is_judged_and_whether_that_is_as_it_should_be() -> None:
    status = Status(
        line="l",
        station="st1",
        boot=1,
        boot_id="b" * 32,
        utc="2026-11-21T08:00:00Z",
        uptime_ms=1.0,
        state="Ready",
        trigger_ready=True,
    )
    station = json.loads(status.model_dump_json())
    station["details"] = {
        "recipes": {"top": "flange@3", "side": "lid@1"},
        "golden_age_s": {"top": 12.3},
        "latency_ms": {"p50": 46.1, "p95": 70.0, "p99": 283.4},
    }
    lines = ctl.status_lines({"line": "l", "stations": {"st1": station}})
    assert "  view top: judged by flange@3, golden sample right 12 s ago" in lines
    assert "  view side: judged by lid@1" in lines
    assert "  trigger to verdict: 46 ms at the median, 283 ms at most of 99%" in lines
    for other in ({}, {"recipes": 3}, {"recipes": {"top": None}, "latency_ms": {"p50": "x"}}, {"golden_age_s": [1]}):
        assert ctl.status_lines({"line": "l", "stations": {"st1": station | {"details": other}}})


def test_several_views_get_a_line_each_and_one_for_the_part() -> None:
    lines = ctl.inspection_lines(
        not_ok(views=(view(), view(camera="side", evaluation="NotOK", score=9.0, boxes=(box(),))))
    )
    assert [line.split()[0] for line in lines] == ["top", "side", "st1"]
    assert "NotOK" in lines[-1]


def test_a_bar_code_cannot_steer_the_terminal() -> None:
    for colours in (False, True):
        (line,) = ctl.inspection_lines(inspection(part_id="\x1b[2J\x07evil", reason=""), colours)
        assert "\x1b[2J" not in line
        assert "\x07" not in line
    assert "\x1b[32m" in ctl.inspection_lines(inspection(), colours=True)[0]


def test_watch_prints_parts_and_gaps_until_enough_came() -> None:
    """Runs in a process of its own against a real publisher: the results are repeated until they have been seen."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publisher = Publisher(context, PublisherConfig(ANY_PORT, ANY_PORT, ANY_PORT, linger_ms=0))
    at = publisher.open()
    watch = subprocess.Popen(
        [sys.executable, "-m", "edge_daemon.ctl", "watch", "--results", at.results, "--count", "3", "--idle", "20"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        seq = 0
        while watch.poll() is None:
            seq += 2
            publisher.publish_result(encode_inspection(inspection(seq=seq)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                watch.wait(0.02)
        out, err = watch.communicate()
    finally:
        watch.kill()
        watch.wait()
        publisher.close()
        context.term()
    assert watch.returncode == 0
    assert len(out.splitlines()) == 3
    assert "\x1b" not in out
    assert "did not arrive here" in err


def test_help_teaches_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ctl.main(["--help"])
    assert "edge-ctl activate st1" in capsys.readouterr().out


def test_an_answer_with_nothing_in_it_still_prints() -> None:
    out = io.StringIO()
    ctl._print_tree({"a": None, "b": [], "c": {}, "d": ["x", 1]}, out)
    assert out.getvalue() == "a: -\nb: -\nc: -\nd: x, 1\n"
