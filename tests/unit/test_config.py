"""The configuration: what is accepted, and that everything wrong is said at once, in words."""

import json
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_daemon.config import ENDPOINTS, Config, config_digest, load_config
from edge_daemon.config_reference import config_schema, configuration_page
from edge_daemon.errors import ConfigError
from edge_daemon.threads import physical_cores, set_thread_environment, thread_pools

ROOT = Path(__file__).resolve().parents[2]

GOOD = """\
line = "line-7"
state_dir = "state"

[cameras.top]
kind = "simulated"
product = "flange"

[cameras.side-2]
kind = "folder"
path = "pictures"

[stations.st1]
views = [{ camera = "top", recipe = "recipes/a.recipe" }]

[stations.st2]
views = [{ camera = "side-2", recipe = "bottle" }]
"""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("EDGE_") and not name.upper().startswith("EDGE_TEST_"):
            monkeypatch.delenv(name)


def load(folder: Path, text: str, *, recipes_must_exist: bool = False) -> Config:
    path = folder / "edge.toml"
    path.write_text(text, "utf-8")
    return load_config(path, recipes_must_exist=recipes_must_exist)


def problems(folder: Path, text: str, *, recipes_must_exist: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, recipes_must_exist=recipes_must_exist)
    return caught.value.problems


def only_problem(folder: Path, text: str, *, recipes_must_exist: bool = False) -> str:
    found = problems(folder, text, recipes_must_exist=recipes_must_exist)
    assert len(found) == 1, found
    return found[0]


def in_table(table: str, line: str) -> str:
    """GOOD with one more line in a table, replacing the key of the same name."""
    key = line.split(" = ")[0]
    head, tail = GOOD.split(f"[{table}]\n") if f"[{table}]\n" in GOOD else (GOOD, "")
    tail = "\n".join(row for row in tail.split("\n") if tail.index(row) > tail.find("\n\n") or not row.startswith(key))
    return f"{head}[{table}]\n{line}\n{tail}"


# ---------------------------------------------------------------- what is accepted


def test_paths_are_absolute_as_seen_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = load(tmp_path, GOOD)
    assert config.state_dir == tmp_path / "state"
    assert config.journal_path == tmp_path / "state" / "journal.sqlite"
    assert config.store_path == tmp_path / "state" / "store"
    assert config.cameras["side-2"].path == tmp_path / "pictures"  # type: ignore[union-attr]
    assert config.stations["st1"].views[0].recipe_path == tmp_path / "recipes" / "a.recipe"
    assert config.stations["st2"].views[0].recipe_path is None


@pytest.mark.parametrize(
    ("table", "kept"),
    [
        ('kind = "usb"\ndevice = 0', 0),
        ('kind = "usb"\ndevice = "/dev/video0"', "/dev/video0"),
        ('kind = "rtsp"\nurl = "rtsp://10.0.0.1/s"', "rtsp://10.0.0.1/s"),
        ('kind = "video"\npath = "line.mp4"', Path("line.mp4")),
    ],
)
def test_only_a_video_file_is_taken_for_a_path(tmp_path: Path, table: str, kept: object) -> None:
    camera = load(tmp_path, GOOD + f"[cameras.one]\n{table}\n").cameras["one"]
    key = table.rpartition("\n")[2].partition(" ")[0]
    assert getattr(camera, key) == (tmp_path / kept if isinstance(kept, Path) else kept)


def test_defaults_keep_to_this_pc_and_name_no_fallback(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.engine.fallback is None
    assert config.stations["st1"].frame_wait_ms == 800
    assert config.engine.batch_limit("cpu") == 1
    assert config.engine.batch_limit("cuda") == 8
    endpoints = {
        name: getattr(config.wire, name)
        for name in ("results", "images", "status", "triggers", "control", "replay", "amendments")
    }
    assert endpoints == {
        "results": "tcp://127.0.0.1:5561",
        "images": "tcp://127.0.0.1:5562",
        "status": "tcp://127.0.0.1:5563",
        "triggers": "tcp://127.0.0.1:5564",
        "control": "tcp://127.0.0.1:5565",
        "replay": "tcp://127.0.0.1:5566",
        "amendments": "tcp://127.0.0.1:5567",
    }


@pytest.mark.parametrize(
    ("lines", "used"),
    [
        ("", False),
        ('[wire]\nresults = "tcp://127.9.9.9:5561"\ncontrol = "ipc:///run/edge/control"', False),
        ('[security]\ncurve = "always"', True),
        ('[wire]\nimages = "tcp://*:5562"', True),
        ('[wire]\nreplay = "tcp://0.0.0.0:5566"', True),
        *((f'[wire]\n{name} = "tcp://192.168.1.4:7000"', True) for name in ENDPOINTS),
    ],
)
def test_keys_are_used_as_soon_as_the_network_can_reach_one_endpoint(tmp_path: Path, lines: str, used: bool) -> None:
    config = load(tmp_path, f"{GOOD}\n{lines}\n")
    assert config.uses_keys is used
    assert config.keys_path == config.state_dir / "keys"


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_LINE", "line-8")
    monkeypatch.setenv("EDGE_STATE_DIR", "elsewhere")
    monkeypatch.setenv("EDGE_ENGINE__SEARCH_THREADS", "3")
    monkeypatch.setenv("EDGE_STATIONS__ST1__DEADLINE_MS", "125.5")
    monkeypatch.setenv("EDGE_STATIONS__ST2__VIEWS", '[{"camera": "side-2", "recipe": "cap"}]')
    monkeypatch.setenv("EDGE_CAMERAS__TOP__SIZE", "[128, 96]")
    monkeypatch.setenv("EDGE_CAMERAS__SIDE_2__LOOP", "true")
    config = load(tmp_path, GOOD)
    assert (config.line, config.state_dir, config.engine.search_threads) == ("line-8", tmp_path / "elsewhere", 3)
    assert config.stations["st1"].deadline_ms == 125.5
    assert config.stations["st2"].views[0].recipe == "cap"
    assert config.cameras["top"].size == (128, 96)  # type: ignore[union-attr]
    assert config.cameras["side-2"].loop is True  # type: ignore[union-attr]
    assert set(config.cameras) == {"top", "side-2"}


def test_nothing_can_be_changed_afterwards(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    with pytest.raises(ValueError, match="frozen"):
        config.line = "other"
    with pytest.raises(ValueError, match="frozen"):
        config.stations["st1"].deadline_ms = 5


def test_the_digest_is_of_values_and_not_of_spelling(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    again = load(tmp_path, "# a comment\n" + GOOD.replace('line = "line-7"', "line = 'line-7'"))
    other = load(tmp_path, GOOD + "deadline_ms = 999\n")
    assert config_digest(config) == config_digest(again) != config_digest(other)
    assert len(config_digest(config)) == 64


# ---------------------------------------------------------------- what is refused

# Each is one mistake and must be said once, with its line or variable and what is allowed.
TEN_MISTAKES = """\
lien = "line-7"

[wire]
results = "tcp://eth0:5561"
images = "tcp://127.0.0.1:5563"

[engine]
provider = "cdua"

[cameras.top]
kind = "simulated"
product = "flange"
size = [3, 512]

[cameras.side]
kind = "foldr"
path = "pictures"

[stations.st1]
views = [{ camera = "tpo", recipe = "bottle" }]
deadline_ms = 0
qeue = 3

[stations.st2]
views = [{ camera = "top", recipe = "./missing.recipe" }]

[stations.st3]
views = [{ camera = "top", recipe = "bottle" }]
"""


def test_ten_mistakes_are_ten_problems_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = TEN_MISTAKES.replace('"bottle"', '"./there.recipe"')
    (tmp_path / "there.recipe").write_bytes(b"")
    found = problems(tmp_path, text, recipes_must_exist=True)
    expected = [
        "lien (line 1): is no key of this table (did you mean 'line'?)",
        "wire.images (line 5): tcp://127.0.0.1:5563 and `wire.status` at tcp://127.0.0.1:5563 cannot both be had",
        "wire.results (line 4): eth0 is no IPv4 address",
        "engine.provider (line 8): 'cdua' is not allowed (did you mean 'cuda'?); allowed: 'cpu', 'cuda' or 'tensorrt'",
        "cameras.top.size[0] (line 13): must be at least 64, not 3",
        "cameras.side.kind (line 16): there is no kind 'foldr' (did you mean 'folder'?)",
        "stations.st1.views[0].camera (line 20): there is no [cameras.tpo] (did you mean 'top'?)",
        "stations.st1.deadline_ms (line 21): must be greater than 0, not 0",
        "stations.st1.qeue (line 22): is no key of this table (did you mean 'queue'?)",
        "stations.st2.views[0].recipe (line 25): there is no recipe at ",
        "stations.st3.views[0].camera (line 28): camera 'top' already belongs to station 'st2'",
    ]
    assert sorted(e for e in expected if any(p.startswith(e) for p in found)) == sorted(expected)
    assert len(found) == len(expected)
    lines = [int(problem.split("(line ")[1].split(")")[0]) for problem in found]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("table", "line", "said"),
    [
        ("stations.st1", "deadline_ms = -1", "must be greater than 0, not -1"),
        ("stations.st1", "deadline_ms = nan", "must be a finite number, not nan"),
        ("stations.st1", "deadline_ms = inf", "must be a finite number, not inf"),
        ("stations.st1", "deadline_ms = true", "must be a number, not true or false"),
        ("stations.st1", "deadline_ms = 1e9", "must be at most 600000"),
        ("stations.st1", "deadline_ms = [1]", "must be a number, not [1]"),
        ("stations.st1", "queue = 1.5", "must be a whole number, not 1.5"),
        ("stations.st1", "queue = 2026-01-01", "must be a whole number"),
        ("stations.st1", 'trigger = "softwear"', "did you mean 'software'"),
        ("stations.st1", 'mode = "prodution"', "did you mean 'production'"),
        ("stations.st1", "frame_timeout_ms = 1001", "longer than the deadline of 1000 ms"),
        ("stations.st1", "images = 5", "must be a table, not 5"),
        ("stations.st1", 'images = { publish = "sometimes" }', "allowed: 'never', 'not_ok' or 'always'"),
        ("stations.st1", "views = []", "needs at least one entry"),
        ("stations.st1", 'views = "top"', "must be a list in [ ], not 'top'"),
        (
            "stations.st1",
            'views = [{ camera = "top" }]',
            "views[0].recipe (line 13): is missing: A recipe of the store",
        ),
        ("engine", "intra_op_threads = -1", "must be at least 0"),
        ("engine", 'fallback = "cpu"', "'cpu' cannot stand in for the provider 'cpu'"),
        ("journal", "commit_budget_ms = 0", "must be greater than 0"),
        ("journal", "path = 5", "must be a path in quotes, not 5"),
        ("wire", 'results = "tcp://localhost:5561"', "use tcp://127.0.0.1:5561"),
        ("wire", 'results = "tcp://eth0:5561"', "eth0 is no IPv4 address"),
        ("wire", 'results = "tcp://[::]:5561"', "[::] is no IPv4 address"),
        ("wire", 'results = "tcp://127.0.0.1.evil.example:5561"', "is no IPv4 address"),
        ("wire", 'results = "tcp://127.1:5561"', "127.1 is no IPv4 address"),
        ("security", 'curve = "never"', "allowed: 'auto' or 'always'"),
        ("security", "max_connections = 0", "must be at least 8"),
        ("wire", 'results = "tcp://127.0.0.1:0"', "the port must be a number from 1 to 65535"),
        ("wire", 'results = "tcp://127.0.0.1:5561 "', "the port must be a number from 1 to 65535"),
        ("wire", 'results = "udp://127.0.0.1:5561"', "must look like tcp://127.0.0.1:5561"),
        ("wire", 'results = "ipc://run/x"', "needs an absolute path"),
        ("wire", f'results = "ipc:///{"x" * 107}"', "may have 107 bytes"),
        ("wire", 'results = "tcp://127.0.0.1:5565"', "and `wire.control` at tcp://127.0.0.1:5565 cannot both be had"),
        ("wire", 'results = "tcp://*:5565"', "tcp://*:5565 and `wire.control` at tcp://127.0.0.1:5565 cannot"),
        ("metrics", 'listen = "127.0.0.1:5567"', "127.0.0.1:5567 and `wire.amendments` at tcp://127.0.0.1:5567 cannot"),
        ("metrics", 'listen = "0.0.0.0:5561"', "0.0.0.0:5561 and `wire.results` at tcp://127.0.0.1:5561 cannot"),
        ("cameras.top", "size = [0, 512]", "size[0] (line 5): must be at least"),
        ("cameras.top", "size = [512]", "size[1] (line 5): is missing"),
        ("cameras.top", "sede = 5", "did you mean 'seed'"),
        ("cameras.top", 'kind = "simulatd"', "there is no kind 'simulatd' (did you mean 'simulated'?)"),
        ("cameras.top", "kind = 5", "cameras.top.kind"),
    ],
)
def test_one_wrong_value_is_one_problem_that_says_what_is_allowed(
    tmp_path: Path, table: str, line: str, said: str
) -> None:
    problem = only_problem(tmp_path, in_table(table, line))
    assert said in problem
    assert problem.startswith(table)
    assert "(line " in problem


def test_passwords_in_urls_are_not_repeated(tmp_path: Path) -> None:
    camera = 'kind = "rtsp"\nurl = "rtsp://user:geheim@10.0.0.1/s"\n'
    text = GOOD + f"[cameras.a]\n{camera}[cameras.b]\n{camera}fps = 3\n"
    found = problems(tmp_path, text)
    assert any("camera 'a' already reads from" in problem for problem in found)
    assert "geheim" not in "".join(found)


def test_free_run_with_two_views_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace(
        'views = [{ camera = "top", recipe = "recipes/a.recipe" }]',
        'views = [{ camera = "top", recipe = "a" }, { camera = "side-3", recipe = "a" }]\ntrigger = "free_run"',
    ).replace("[stations.st2]", '[cameras.side-3]\nkind = "folder"\npath = "p"\n[stations.st2]')
    assert "nothing would say which frames show the same part" in only_problem(tmp_path, text)


@pytest.mark.parametrize("name", ["a/b", "a b", "", ".a", "ä", "x" * 65])
def test_names_that_no_topic_or_file_could_carry_are_refused(tmp_path: Path, name: str) -> None:
    text = GOOD + f'[stations.{json.dumps(name)}]\nviews = [{{ camera = "top", recipe = "a" }}]\n'
    found = problems(tmp_path, text)
    assert any("must be 1 to 64 letters" in problem for problem in found)


def test_an_empty_file_says_what_is_missing(tmp_path: Path) -> None:
    found = problems(tmp_path, "")
    assert [problem.split(":")[0] for problem in found] == ["line", "cameras", "stations"]
    assert all("is missing" in problem for problem in found)


def test_a_misspelled_recipe_is_told_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "aa.recipe").write_bytes(b"")
    found = problems(tmp_path, GOOD, recipes_must_exist=True)
    assert len(found) == 2
    assert "did you mean 'aa.recipe'" in found[0]
    assert "there is no recipe 'bottle' in" in found[1]


def test_a_variable_that_names_no_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_WIRE_RESULTS", "tcp://127.0.0.1:1")
    monkeypatch.setenv("EDGE_WIRE__RESULTZ", "tcp://127.0.0.1:1")
    monkeypatch.setenv("EDGE_TEST_DATA", "/data")
    found = problems(tmp_path, GOOD)
    assert len(found) == 2
    assert found[0].startswith("EDGE_WIRE_RESULTS: this environment variable names no key (did you mean")
    assert "EDGE_WIRE__RESULTS" in found[0]
    assert found[1].startswith("wire.resultz (from EDGE_WIRE__RESULTZ): is no key of this table")


def test_a_wrong_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_STATIONS__ST1__DEADLINE_MS", "soon")
    assert only_problem(tmp_path, GOOD).startswith(
        "stations.st1.deadline_ms (from EDGE_STATIONS__ST1__DEADLINE_MS): must be a number, not 'soon'"
    )


def test_a_variable_that_is_no_json_is_a_problem_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_STATIONS", "{")
    found = problems(tmp_path, GOOD + "deadline_ms = 0\n")
    assert len(found) == 2
    assert "not valid JSON" in found[0]


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    assert "line 3" in only_problem(tmp_path, 'line = "a"\n[wire]\nresults = tcp\n')
    assert "line 2" in only_problem(tmp_path, "[wire]\n[wire]\n")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeff" + GOOD).line == "line-7"


def test_what_is_no_text_or_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_bytes(b'line = "a"\nx = "\xff"\n')
    with pytest.raises(ConfigError, match="line 2: is not UTF-8"):
        load_config(tmp_path / "edge.toml")
    with pytest.raises(ConfigError, match="there is no such file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


_SCALARS = st.one_of(
    st.integers(-5, 70_000),
    st.booleans(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.sampled_from(["camera", "recipe", "kind", "path", "x"]), st.text(max_size=5), max_size=3),
)
_KEYS = st.sampled_from(
    [
        *("line", "state_dir", "wire", "engine", "journal", "store", "cameras", "stations", "results", "top", "st1"),
        *("views", "camera", "recipe", "kind", "source", "path", "trigger", "deadline_ms", "frame_timeout_ms"),
        *("provider", "fallback"),
    ]
)
_TABLES = st.recursive(_SCALARS, lambda inner: st.dictionaries(_KEYS, inner, max_size=5), max_leaves=12)


def _toml(value: object) -> str:
    """An inline TOML value."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.dictionaries(_KEYS, _TABLES, max_size=6))
def test_whatever_is_written_gives_a_configuration_or_problems(tmp_path: Path, tables: dict[str, object]) -> None:
    text = "\n".join(f"{key} = {_toml(value)}" for key, value in tables.items())
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # characters that TOML does not take
    assert all(problem for problem in _problems_if_any(tmp_path, text))


def _problems_if_any(folder: Path, text: str) -> list[str]:
    try:
        load(folder, text, recipes_must_exist=True)
    except ConfigError as error:
        return error.problems
    return ["it is right"]


# ---------------------------------------------------------------- examples and pages


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    load_config(path, recipes_must_exist=False)


def test_the_page_about_the_configuration_is_current() -> None:
    page = (ROOT / "deploy" / "docs" / "configuration.md").read_text("utf-8")
    assert page == configuration_page(), (
        "run `edge-daemon schema config --markdown > deploy/docs/configuration.md` to make it anew"
    )


def test_every_key_is_documented() -> None:
    schema = config_schema()
    for name, model in [("Config", schema), *schema["$defs"].items()]:
        for key, field in model.get("properties", {}).items():
            table = schema["$defs"].get(str(field.get("$ref")).rpartition("/")[2], {})
            assert field.get("description") or table.get("description"), f"{name}.{key} has no docstring"


def test_the_schema_states_limits_under_their_standard_names() -> None:
    limits = config_schema()["$defs"]["StationConfig"]["properties"]["queue"]
    assert (limits["minimum"], limits["maximum"]) == (0, 1000)
    assert '"ge"' not in json.dumps(config_schema())


# ---------------------------------------------------------------- threads


def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(siblings + "\n")
    none = tmp_path / "none"
    assert physical_cores(frozenset({0, 1, 2, 3}), tmp_path, none) == 2
    assert physical_cores(frozenset({0, 2}), tmp_path, none) == 1
    assert physical_cores(frozenset({0, 9}), tmp_path, none) == 2  # where the system does not tell, each counts
    assert physical_cores() >= 1


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("0 0", 8), ("", 8)]
)
def test_a_container_counts_what_it_may_use(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert physical_cores(frozenset(range(8)), tmp_path, tmp_path / "cpu.max") == cores


def test_pools_are_sized_and_passive_and_the_operator_wins() -> None:
    environ = {"OMP_NUM_THREADS": "7"}
    set_thread_environment(3, environ)
    assert environ == {
        "OMP_NUM_THREADS": "7",
        "OPENBLAS_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "OMP_WAIT_POLICY": "PASSIVE",
        "OPENBLAS_THREAD_TIMEOUT": "4",
    }
    pools = thread_pools(environ)
    assert pools["OMP_NUM_THREADS"] == "7"
    assert pools["physical_cores"] == physical_cores()


def test_a_station_cannot_take_the_name_of_the_daemons_own_status(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, GOOD.replace("[stations.st1]", "[stations.daemon]"))
    assert problem.startswith("stations.daemon")
    assert "is taken" in problem


KEY = "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w="


def test_trusted_signers_are_public_keys_by_name(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD + f'require_signed_recipes = true\n[security.trusted_signers]\nanna = "{KEY}"\n')
    assert config.security.trusted_signers == {"anna": KEY}
    assert config.stations["st2"].require_signed_recipes
    assert not config.stations["st1"].require_signed_recipes


@pytest.mark.parametrize("key", ['"abc"', f'"{KEY[:-1]}"', f'" {KEY}"', "7", '"anna.pub"'])
def test_what_is_no_public_key_is_told_with_its_place(tmp_path: Path, key: str) -> None:
    assert "security.trusted_signers.anna" in only_problem(
        tmp_path, GOOD + f"[security.trusted_signers]\nanna = {key}\n"
    )


def test_a_station_that_nobody_can_sign_for_is_a_problem(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, GOOD + "require_signed_recipes = true\n")
    assert problem.startswith("stations.st2.require_signed_recipes")
    assert "[security] trusted_signers" in problem


def test_one_key_under_two_names_would_hide_who_signed(tmp_path: Path) -> None:
    text = GOOD + f'[security.trusted_signers]\nanna = "{KEY}"\nbert = "{KEY}"\n'
    assert "the key of 'anna' too" in only_problem(tmp_path, text)
