"""The harness itself: what a test leaves behind is found, named and ended."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon import free_ports

pytest_plugins = ["pytester"]

HARNESS = Path(__file__).resolve().parent.parent / "conftest.py"
RunBody = Callable[[str], pytest.RunResult]


@pytest.fixture
def run_body(pytester: pytest.Pytester) -> RunBody:
    """Runs one test body under the real conftest, in a process of its own."""
    pytester.makeconftest(HARNESS.read_text().replace("_GRACE_S = 3.0", "_GRACE_S = 0.3"))

    def run(body: str) -> pytest.RunResult:
        indented = "\n".join(f"    {line}" for line in body.splitlines())
        pytester.makepyfile(
            "import socket, subprocess, sys, threading\n"
            "import zmq\n"
            f"KEEP = []\n\ndef test_body(tmp_path):\n{indented}\n"
        )
        return pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-W", "error")

    return run


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (
            "stop = threading.Event()\n"
            "threading.Thread(target=stop.wait, args=(30,), name='forgotten', daemon=True).start()",
            "threads left behind: forgotten",
        ),
        ("KEEP.append(socket.socket())", "files left behind: socket:"),
        ("KEEP.append(open(tmp_path / 'journal.db', 'w'))", "journal.db"),
        ("KEEP.append(zmq.Context())\nKEEP[0].socket(zmq.PUB)", "files left behind: anon_inode:"),
    ],
    ids=["thread", "socket", "file", "zmq"],
)
def test_what_a_test_leaves_open_fails_it_by_name(run_body: RunBody, body: str, complaint: str) -> None:
    result = run_body(body)
    assert result.ret != 0
    assert complaint in result.stdout.str()


def test_a_process_left_running_fails_the_test_and_is_ended(run_body: RunBody, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    result = run_body(
        "KEEP.append(subprocess.Popen(['cat'], stdin=subprocess.PIPE, start_new_session=True))\n"
        f"with open({str(told)!r}, 'w') as told: told.write(str(KEEP[0].pid))"
    )
    assert result.ret != 0
    assert f"processes left behind: {told.read_text()} (cat)" in result.stdout.str()
    assert not os.path.exists(f"/proc/{told.read_text()}")


def test_a_grandchild_that_outlives_its_parent_is_found(run_body: RunBody) -> None:
    result = run_body("subprocess.run('sleep 60 >/dev/null 2>&1 &', shell=True, check=True)")
    assert "(sleep 60)" in result.stdout.str()


def test_a_warning_nobody_expected_fails_the_test(run_body: RunBody) -> None:
    assert run_body("import warnings\nwarnings.warn('this is deprecated', DeprecationWarning)").ret != 0


def test_a_tidy_test_passes(run_body: RunBody) -> None:
    result = run_body(
        "with zmq.Context() as context, context.socket(zmq.PUB) as publisher:\n"
        "    publisher.bind('tcp://127.0.0.1:*')\n"
        "thread = threading.Thread(target=print)\n"
        "thread.start()\n"
        "thread.join()\n"
        "subprocess.run(['true'], check=True)"
    )
    result.assert_outcomes(passed=1)


def test_missing_real_data_skip_with_what_to_set(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makeconftest(HARNESS.read_text())
    monkeypatch.setenv("EDGE_TEST_DATA", "/nonexistent")
    pytester.makepyfile("def test_real(bottle_dir): assert False")
    result = pytester.runpytest_subprocess("-rs")
    result.assert_outcomes(skipped=1)
    assert "set EDGE_TEST_DATA" in result.stdout.str()


def test_no_port_is_given_twice_while_another_is_free() -> None:
    """Else a test that asks once for its page and once for its daemon has both on one port, some day."""
    given = [port for _ in range(15) for port in free_ports(10)]
    assert len(set(given)) == len(given)
