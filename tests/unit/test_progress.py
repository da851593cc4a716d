"""What a user sees while long work goes on."""

import pytest

from export.commands.options import bars


def last_line(shown: str) -> str:
    return shown.split("\r")[-1]


def test_a_coreset_tells_no_time_left_before_the_rate_says_something(capsys: pytest.CaptureFixture[str]) -> None:
    with bars(shown=True)("coreset", 1000) as advance:
        advance(99)
        early = last_line(capsys.readouterr().err)
        advance(1)
        advance(100)
    late = last_line(capsys.readouterr().err)
    assert "<" not in early
    assert "200/1000" in late
    assert "<" in late


def test_other_work_tells_the_time_left_from_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    with bars(shown=True)("embedding", 1000):
        assert "<" in last_line(capsys.readouterr().err)


def test_bars_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    with bars(shown=False)("coreset", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""
