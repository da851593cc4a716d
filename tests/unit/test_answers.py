"""Which frame answers which trigger, and how frames are numbered: every case as a few calls, without a camera."""

from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.cameras.answers import OLDER_IN_A_ROW, Answers, Mode
from edge_daemon.core.device_clock import DeviceClock

MS = 1_000_000
S = 1_000_000_000
WAY = 100 * MS


def answers(mode: Mode, known: bool = True) -> Answers:
    """With a device clock that shows our time, known to a microsecond; or without one."""
    made = Answers(mode, DeviceClock(WAY))
    if known:
        made.clock.read(S, S - 1_000, S + 1_000)
    return made


def exposed(made: Answers, device_id: int, at_ns: int, clock: bool = True, delay_ns: int = 5 * MS) -> str:
    """Offer a frame exposed at `at_ns`: `yes`, or why it is not delivered."""
    identity = made.frame(device_id, at_ns if clock else None, at_ns + delay_ns, waited=True)
    return "yes" if identity.answers else identity.why


@given(start=st.integers(1, 65_535), steps=st.lists(st.integers(1, 30_000), min_size=1, max_size=30))
def test_sixteen_bit_numbers_go_on_over_their_end(start: int, steps: list[int]) -> None:
    made = answers("free_run")
    made.frame(start, None, 0, True)
    true_id, first = start, made.frame_id
    for step in steps:
        true_id += step
        device_id = (true_id - 1) % 65_535 + 1  # 65535 is followed by 1
        assert made.frame(device_id, None, 0, True).answers
        assert made.frame_id - first == true_id - start
    assert made.missing == true_id - start - len(steps)


def test_numbers_of_64_bits_do_not_wrap() -> None:
    made = answers("free_run")
    for device_id in (65_534, 65_535, 65_536, 70_000):
        assert made.frame(device_id, None, 0, True).answers
    assert made.frame_id == 1 + 70_000 - 65_534


def test_the_same_frame_again_and_an_older_one_are_refused() -> None:
    made = answers("free_run")
    assert exposed(made, 10, 2 * S) == "yes"
    assert exposed(made, 10, 2 * S) == "repeated"
    assert exposed(made, 9, 2 * S - 40 * MS) == "numbered_before"
    assert exposed(made, 11, 2 * S + 40 * MS) == "yes"
    assert (made.repeated, made.older, made.clock.jumps) == (1, 1, 0)


def test_a_command_is_answered_by_what_was_exposed_after_it_and_once() -> None:
    made = answers("commanded")
    assert exposed(made, 1, 2 * S) == "unrequested"
    made.ask(3 * S)
    assert exposed(made, 2, 3 * S - 10 * MS) == "older"
    assert exposed(made, 3, 3 * S + MS) == "yes"
    assert exposed(made, 4, 3 * S + 40 * MS) == "unrequested"
    assert made.frame_id == 4


def test_without_an_answer_the_next_command_takes_only_what_was_surely_exposed_after_it() -> None:
    made = answers("commanded")
    made.ask(2 * S)
    assert not made.must_resynchronise(3 * S), "the clock tells the frames apart"
    made.ask(3 * S)
    assert exposed(made, 1, 3 * S) == "older", "it may be that of the first command"
    assert exposed(made, 2, 3 * S + 10 * MS) == "yes"
    assert made.clock.jumps == 0


def test_without_a_clock_an_unanswered_command_asks_for_a_new_stream() -> None:
    made = answers("commanded", known=False)
    made.ask(2 * S)
    assert made.must_resynchronise(3 * S)
    made.resynchronised()
    assert not made.must_resynchronise(3 * S)
    made.ask(3 * S)
    assert exposed(made, 1, 3 * S + MS, clock=False) == "yes"
    assert not made.must_resynchronise(4 * S)


def test_answers_that_all_seem_old_come_from_a_clock_that_went_back() -> None:
    made = answers("commanded")
    for number in range(OLDER_IN_A_ROW):
        made.ask((3 + number) * S)
        assert exposed(made, 1 + number, (3 + number) * S - 500 * MS, delay_ns=505 * MS) == "older"
    assert made.clock.jumps == 1
    assert made.must_resynchronise(10 * S)


def test_free_running_frames_count_after_a_trigger_only_when_surely_later() -> None:
    made = answers("free_run")
    assert exposed(made, 1, 2 * S) == "yes"
    made.ask(2 * S + 50 * MS)
    assert exposed(made, 2, 2 * S + 40 * MS) == "older"
    assert exposed(made, 3, 2 * S + 50 * MS) == "older", "within the uncertainty"
    assert exposed(made, 4, 2 * S + 60 * MS) == "yes"
    assert exposed(made, 5, 2 * S + 100 * MS) == "unrequested"


def test_free_running_frames_without_a_clock_pass_those_under_way() -> None:
    made = answers("free_run", known=False)
    made.ask(2 * S)
    assert [exposed(made, i, 2 * S + i * MS, clock=False) for i in (1, 2, 3, 4)] == [
        "older", "older", "yes", "unrequested",
    ]  # fmt: skip


def test_an_incomplete_frame_ends_the_wait_of_its_trigger_and_of_nobody_else() -> None:
    made = answers("commanded")
    assert made.lost(1).why == "unrequested"
    made.ask(2 * S)
    assert made.lost(2).answers
    assert not made.waiting
    made.ask(3 * S)
    assert exposed(made, 3, 3 * S + MS) == "yes"
    assert made.lost(2).why == "numbered_before"
    free = answers("free_run")
    assert free.lost(None).answers
    free.ask(2 * S)
    assert not free.lost(7).answers
    assert free.waiting


def test_opening_anew_answers_nothing_from_before_and_numbers_go_on() -> None:
    made = answers("commanded")
    made.ask(2 * S)
    assert exposed(made, 500, 2 * S + MS) == "yes"
    made.ask(3 * S)
    made.restart()
    assert exposed(made, 1, 4 * S, clock=False) == "unrequested"
    assert made.frame_id == 2


def test_a_pulse_on_a_wire_is_never_matched_here() -> None:
    made = answers("line")
    assert [exposed(made, i, (2 + i) * S) for i in (1, 2)] == ["yes", "yes"]
