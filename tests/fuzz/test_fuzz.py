"""A short, fixed selection of `make fuzz` in every test run; whatever it once found; and proof that it would find."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_daemon.errors import WireError
from edge_daemon.wire.codec import decode_trigger_request, parse_json
from tests.fuzz import campaign
from tests.fuzz.mutate import mutated
from tests.fuzz.one import throw
from tests.fuzz.targets import Target, targets

FOUND = sorted((Path(__file__).parent / "found").glob("*.bin"))
TARGETS = {target.name: target for target in targets()}
INPUTS = 120
# Those that write files, or open a database: some milliseconds each.
FEWER = {
    "configuration": 30,
    "journal file": 24,
    "outbox of the gateway": 24,
    "store import": 30,
    "recipe loading": 60,
    "picture tiff": 60,
}


@pytest.mark.parametrize("name", TARGETS)
def test_nearly_right_inputs_are_taken_or_refused_by_name(name: str, tmp_path: Path) -> None:
    target, rng = TARGETS[name], random.Random(f"short/{name}")
    corpus = target.seeds(tmp_path)
    assert any(throw(target, seed).kind == "taken" for seed in corpus), "no seed is right"
    kinds = []
    for _ in range(FEWER.get(name, INPUTS)):
        data = mutated(rng.choice(corpus), corpus, rng)
        outcome = throw(target, data)
        assert outcome.kind != "finding", f"{outcome.what}\n{outcome.trace}\n{data[:2000]!r}"
        kinds.append(outcome.kind)
    assert target.rejections == () or "refused" in kinds, "nothing was ever wrong enough"


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_fuzzing_once_found_is_refused_now(path: Path) -> None:
    outcome = throw(TARGETS[json.loads(path.with_suffix(".json").read_text())["target"]], path.read_bytes())
    assert outcome.kind != "finding", outcome.trace


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=8,
)
KEYS = (
    "schema",
    "station",
    "trigger_id",
    "request_id",
    "command",
    "args",
    "evaluation",
    "views",
    "result_state",
    "boot",
)
OBJECTS = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), JSON, max_size=6)
MESSAGES = [name for name in TARGETS if name.endswith((" request", " reply", " state", " manifest"))]


@settings(max_examples=60)
@given(content=OBJECTS, name=st.sampled_from(MESSAGES))
def test_any_json_object_is_a_message_or_refused(content: dict[str, object], name: str) -> None:
    outcome = throw(TARGETS[name], json.dumps(content).encode(errors="replace"), limits=False)
    assert outcome.kind != "finding", outcome.trace


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_json_object_or_refused(data: bytes) -> None:
    with contextlib.suppress(WireError):
        assert isinstance(parse_json(data), dict)


# ---------------------------------------------------------------- would it find anything?


def planted(run: Callable[[bytes, Path], object], memory_mb: int = 64) -> Target:
    seed = b'{"schema":"edge-daemon/trigger/1","station":"st1","trigger_id":"4711"}'
    return Target("planted", lambda _folder: [seed], run, (WireError,), memory_mb=memory_mb)


def found_by(target: Target, tries: int = 3000) -> set[str]:
    rng, found = random.Random(0), set[str]()
    corpus = target.seeds(Path())
    for _ in range(tries):
        outcome = throw(target, mutated(rng.choice(corpus), corpus, rng))
        if outcome.kind == "finding":
            found.add(outcome.what)
            break
    return found


def _believes_numbers(data: bytes, _folder: Path) -> None:
    decode_trigger_request(data)
    json.loads(data)["part_id"].upper()


def _catches_one_kind(data: bytes, _folder: Path) -> None:
    try:
        json.loads(data)
    except json.JSONDecodeError as exc:
        raise WireError("no JSON") from exc


@pytest.mark.parametrize("run", [_believes_numbers, _catches_one_kind])
def test_a_parser_that_forgets_a_case_is_found(run: Callable[[bytes, Path], object]) -> None:
    assert len(found_by(planted(run))) == 1


def test_an_assertion_about_what_was_taken_is_found_when_it_fails() -> None:
    def run(data: bytes, _folder: Path) -> None:
        assert decode_trigger_request(data).station == "st1"

    assert found_by(planted(run)) == {"AssertionError at test_fuzz.py:run"}


def test_an_input_that_takes_too_long_or_too_much_is_a_finding() -> None:
    def slow(_data: bytes, _folder: Path) -> None:
        until = time.process_time() + 1.1
        while time.process_time() < until:
            pass

    def large(_data: bytes, _folder: Path) -> None:
        bytearray(700 << 20)[:: 1 << 10] = bytes(700 << 10)

    assert throw(planted(slow), b"").what == "slow"
    assert throw(planted(large), b"").what == "large"


def test_a_refusal_that_repeats_the_whole_input_is_a_finding() -> None:
    def run(data: bytes, _folder: Path) -> None:
        raise WireError(repr(data))

    assert throw(planted(run), b"x" * 200_000).what == "message without end"


def test_an_input_that_kills_the_process_is_kept_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The campaign's own process, started anew after each death, until the target is left out."""
    names: list[tuple[str, ...]] = []

    class Pipe:
        def poll(self, _seconds: float) -> bool:
            return True

        def recv(self) -> object:
            (tmp_path / "now").write_bytes((6).to_bytes(4) + (3).to_bytes(4) + b"deadly" + b"\0\1\2")
            raise EOFError

        def close(self) -> None:
            pass

    class Process:
        exitcode = -signal.SIGSEGV

        def __init__(self, target: object, args: tuple[object, ...]) -> None:  # noqa: ARG002
            names.append(tuple(args[-1]))  # type: ignore[arg-type]

        def start(self) -> None: ...
        def join(self) -> None: ...
        def kill(self) -> None: ...

    context = SimpleNamespace(Pipe=lambda duplex: (Pipe(), Pipe()), Process=Process)  # noqa: ARG005
    monkeypatch.setattr("multiprocessing.get_context", lambda _kind: context)
    run = campaign.Campaign(tmp_path, seed=0)
    for _ in range(7):
        run._one_process(time.monotonic() + 10, 0)
    assert names[-1] == ("deadly",)
    (finding,) = run.findings.values()
    assert (finding.target, finding.what, finding.data) == ("deadly", "died of signal 11", b"\0\1\2")
    assert [path.read_bytes() for path in tmp_path.glob("deadly-*.bin")] == [b"\0\1\2"]


def test_the_same_number_gives_the_same_inputs(tmp_path: Path) -> None:
    corpus = TARGETS["result"].seeds(tmp_path)

    def inputs(seed: int) -> list[bytes]:
        rng = random.Random(seed)
        return [mutated(rng.choice(corpus), corpus, rng) for _ in range(200)]

    assert inputs(1) == inputs(1) != inputs(2)


def test_inputs_that_reach_new_lines_are_kept(tmp_path: Path) -> None:
    target = replace(TARGETS["trigger request"])
    lane = campaign._Lane(target, target.seeds(tmp_path), random.Random(0))
    lane.one(lane.corpus[0], lambda *_: None, traced=True)
    reached = len(lane.reached)
    lane.one(b"[", lambda *_: None, traced=True)
    assert len(lane.reached) > reached > 0
    assert lane.corpus[-1] == b"["
    assert os.path.isabs(next(iter(lane.reached))[0])


# ---------------------------------------------------------------- found by hand, before there was fuzzing


@pytest.mark.parametrize("name", ["configuration", "gateway configuration", "list of clients", "key of a client"])
@pytest.mark.parametrize("text", [b"a = " + b"9" * 5000, b"a = " + b"[" * 100_000], ids=["long number", "deep"])
def test_a_file_that_no_parser_finishes_is_refused(name: str, text: bytes) -> None:
    assert throw(TARGETS[name], text).kind == "refused"


def test_a_damaged_note_of_what_was_configured_counts_as_none() -> None:
    for text in (b"[" * 100_000, b"\xff", b"", b"[]", b"9" * 5000):
        assert throw(TARGETS["configured recipes"], text).kind == "taken"


def test_a_camera_process_that_sends_nonsense_is_hung_up_on() -> None:
    text = b"[" * 60_000
    assert throw(TARGETS["camera process"], len(text).to_bytes(4, "little") + text).kind == "refused"
