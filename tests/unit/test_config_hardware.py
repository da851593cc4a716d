"""Hardware triggers and several exposures in the configuration: what cannot be is refused, in words."""

import re
from pathlib import Path

import pytest

from edge_daemon.config import Config, load_config
from edge_daemon.errors import ConfigError

TEXT = """\
line = "line-7"

[cameras.top]
{camera}

[stations.st1]
trigger = "hardware"
views = [{{ camera = "top", recipe = "bottle"{view} }}]
{station}
{hardware}
"""
PULSED = 'kind = "simulated"\nproduct = "flange"\npulses = "top.pulses"'


def text(camera: str = PULSED, view: str = "", station: str = "", hardware: str = "") -> str:
    table = f"[stations.st1.hardware]\n{hardware}" if hardware else ""
    return TEXT.format(camera=camera, view=view, station=station, hardware=table)


def load(folder: Path, content: str) -> Config:
    path = folder / "edge.toml"
    path.write_text(content)
    return load_config(path, recipes_must_exist=False)


def only_problem(folder: Path, content: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, content)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    "camera",
    [
        PULSED,
        'kind = "gige"\nserial = "1"\ntrigger = "hardware"',
        'kind = "gentl"\nproducer = "p.cti"\ntrigger = "hardware"',
    ],
)
def test_cameras_that_count_may_be_triggered_by_pulses(tmp_path: Path, camera: str) -> None:
    station = load(tmp_path, text(camera)).stations["st1"]
    assert station.trigger == "hardware"
    assert station.hardware.quiet_ms == 1_500


def test_the_path_of_pulses_is_seen_from_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, text()).cameras["top"].pulses == tmp_path / "top.pulses"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("camera", "what"),
    [
        ('kind = "usb"\ndevice = 0', "a USB camera"),
        ('kind = "rtsp"\nurl = "rtsp://a/b"', "a network stream"),
        ('kind = "folder"\npath = "p"', "a folder"),
        ('kind = "video"\npath = "p"', "a video"),
    ],
)
def test_cameras_that_do_not_count_may_not(tmp_path: Path, camera: str, what: str) -> None:
    problem = only_problem(tmp_path, text(camera))
    assert "stations.st1.views[0].camera" in problem
    assert what in problem
    assert "gige, gentl" in problem


def test_station_and_camera_must_mean_the_same_trigger(tmp_path: Path) -> None:
    assert "give [cameras.top] pulses" in only_problem(tmp_path, text('kind = "simulated"\nproduct = "flange"'))
    gige = 'kind = "gige"\nserial = "1"'
    assert 'give [cameras.top] trigger = "hardware"' in only_problem(tmp_path, text(gige))
    other = text(gige + '\ntrigger = "hardware"').replace('trigger = "hardware"\nviews', 'trigger = "software"\nviews')
    assert 'give the station `trigger = "hardware"` too' in only_problem(tmp_path, other)


def test_pulses_and_a_rate_of_its_own_contradict_each_other(tmp_path: Path) -> None:
    assert "rate_hz has no meaning" in only_problem(tmp_path, text(PULSED + "\nrate_hz = 5"))


def test_several_exposures_by_pulses_are_refused(tmp_path: Path) -> None:
    both = text().replace("}]", '}, { camera = "top", exposure = 2, recipe = "bottle" }]')
    problem = only_problem(tmp_path, both)
    assert "several exposures of one camera need software triggers" in problem


@pytest.mark.parametrize(
    ("hardware", "station", "words"),
    [
        ("earliest_ms = 200", "", "100 lies before earliest_ms, 200"),
        ("shortest_delay_ms = 400", "", "300 is less than shortest_delay_ms"),
        ("quiet_ms = 700\nlongest_delay_ms = 600", "deadline_ms = 2000", "700 is less than the 750 ms"),
        ("longest_delay_ms = 700", "", "a result waits for 850 ms"),
        ("latest_ms = 100", "deadline_ms = 500", "make latest_ms or longest_delay_ms smaller"),
        ("latest_ms = 100", "frame_timeout_ms = 300", "a frame must be there after 300 ms"),
    ],
)
def test_times_that_cannot_be_are_refused(tmp_path: Path, hardware: str, station: str, words: str) -> None:
    assert words in only_problem(tmp_path, text(hardware=hardware, station=station))


def test_times_of_pulses_mean_nothing_without_pulses(tmp_path: Path) -> None:
    content = text(hardware="quiet_ms = 900").replace('trigger = "hardware"', "").replace('pulses = "top.pulses"', "")
    assert 'has a meaning only with `trigger = "hardware"`' in only_problem(tmp_path, content)


EXPOSURES = """\
line = "line-7"

[cameras.top]
kind = "simulated"
product = "flange"

[stations.st1]
views = [
  {{ camera = "top", recipe = "bright"{first} }},
  {{ camera = "top", recipe = "dark"{second} }},
]
"""


def exposures(first: str, second: str) -> str:
    return EXPOSURES.format(first=first, second=second)


def test_one_camera_may_take_several_exposures_of_a_part(tmp_path: Path) -> None:
    views = load(tmp_path, exposures("", ", exposure = 2")).stations["st1"].views
    assert [view.name for view in views] == ["top", "top#2"]
    views = load(tmp_path, exposures(', exposure = 2, view = "a"', ', view = "b"')).stations["st1"].views
    assert [view.name for view in views] == ["a", "b"]


@pytest.mark.parametrize(("first", "second"), [("", ""), ("", ", exposure = 3"), (", exposure = 2", ", exposure = 2")])
def test_exposures_are_numbered_without_a_gap_each_once(tmp_path: Path, first: str, second: str) -> None:
    problem = only_problem(tmp_path, exposures(first, second))
    assert "number their exposures 1 to 2, each once" in problem


def test_a_second_exposure_needs_a_first(tmp_path: Path) -> None:
    content = exposures("", ", exposure = 2").replace('  { camera = "top", recipe = "bright" },\n', "")
    assert "or leave it out" in only_problem(tmp_path, content)


def test_views_have_names_of_their_own(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, exposures(', view = "a"', ', exposure = 2, view = "a"'))
    assert "there are two views named 'a'" in problem


def test_a_camera_belongs_to_one_station(tmp_path: Path) -> None:
    more = '\n[stations.st2]\nviews = [{ camera = "top", recipe = "bottle" }]\n'
    problem = only_problem(tmp_path, exposures("", ", exposure = 2") + more)
    assert "already belongs to station 'st1'" in problem


def test_the_examples_of_the_page_are_right(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "deploy" / "docs" / "line-engineer.md").read_text("utf-8")
    pulses, twice, signed = (t for t in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "[stations.gate]" in t)
    station = load(tmp_path, 'line = "line-7"\n' + pulses).stations["gate"]
    assert (station.hardware.earliest_ms, station.hardware.longest_delay_ms) == (-30, 120)
    gate = 'line = "line-7"\n[cameras.gate]\nkind = "gige"\nip = "192.168.10.22"\n'
    assert [view.name for view in load(tmp_path, gate + twice).stations["gate"].views] == ["gate", "dark-field"]
    assert load(tmp_path, gate + signed).stations["gate"].require_signed_recipes
