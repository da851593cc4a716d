"""`edge-daemon bench`: what a customer runs to know what his PC can do."""

import json

import numpy as np
import pytest

from edge_daemon.artefact.pictures import encode_png, read_picture
from edge_daemon.bench import BenchRequest, bench, ideal_queue_ms, table
from edge_daemon.cli import main
from edge_daemon.errors import EdgeError, PictureError, RecipeError

KEYS = {"session_run_fps", "end_to_end_fps", "ratio", "stages_ms", "latency_ms", "search", "rss_mb", "provider"}


def test_the_bench_measures_the_real_daemon_and_tells_every_stage(small_line, capsys):
    images = small_line.test / "test" / "good"
    command = ["bench", "--recipe", str(small_line.recipe), "--images", str(images), "--cameras", "2"]
    assert main([*command, "--rounds", "2", "--seconds", "0.3", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures.keys() >= KEYS
    assert figures["provider"] == "CPUExecutionProvider"
    assert {"prepare", "model", "search", "record", "journal", "publish"} <= figures["stages_ms"].keys()
    assert figures["search"].keys() == {"engine", "why", "ms", "flat_ms", "exact_searches"}
    assert figures["search"]["why"] in ("measured", "rule: nothing to choose from")
    latency = figures["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert latency["ideal_p99"] > 0
    assert latency["p99_to_ideal"] == pytest.approx(latency["p99"] / latency["ideal_p99"], rel=0.01)
    assert latency["p99_to_run_and_search"] > 0
    assert 0 < figures["ratio"] < figures["ratio_to_run_and_search"]
    assert figures["end_to_end_fps"] > 1
    assert figures["cameras"] == 2
    assert figures["rss_mb"] > 20
    said = table(figures)
    assert "end to end" in said
    assert "2 camera(s)" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [({"cameras": 0}, "--cameras 0"), ({"rounds": 0}, "above 0"), ({"seconds": float("nan")}, "above 0")],
)
def test_what_cannot_be_measured_is_refused(small_line, change, says):
    with pytest.raises(EdgeError, match=says):
        bench(BenchRequest(small_line.recipe, small_line.train, **change))


def test_a_missing_recipe_or_picture_is_named(small_line, tmp_path, capsys):
    with pytest.raises(RecipeError, match="none"):
        bench(BenchRequest(tmp_path / "none.recipe", small_line.train))
    with pytest.raises(PictureError, match="holds no pictures"):
        bench(BenchRequest(small_line.recipe, tmp_path))
    assert main(["bench", "--recipe", str(tmp_path / "none.recipe"), "--images", str(tmp_path)]) == 1
    assert "none.recipe" in capsys.readouterr().err


def test_pictures_of_another_size_are_refused_by_name(small_line, tmp_path):
    (tmp_path / "small.png").write_bytes(encode_png(np.zeros((20, 20, 3), np.uint8)))
    with pytest.raises(PictureError, match=r"small\.png: the frame is 20x20"):
        bench(BenchRequest(small_line.recipe, tmp_path))


def test_a_file_that_is_no_picture_is_named_once(small_line, tmp_path):
    (tmp_path / "1.png").write_bytes(next(small_line.train.glob("*.png")).read_bytes())
    (tmp_path / "2.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"2\.png") as caught:
        bench(BenchRequest(small_line.recipe, tmp_path))
    assert str(caught.value).count("2.png") == 1


def test_the_ideal_queue_serves_in_order_and_never_two_at_once():
    assert ideal_queue_ms([0.0, 1.0], [10.0]) == pytest.approx([10.0, 10.0])
    assert ideal_queue_ms([0.0, 0.0, 0.005], [10.0]) == pytest.approx([10.0, 20.0, 25.0])
    assert ideal_queue_ms([0.0, 0.0, 1.0], [10.0, 30.0]) == pytest.approx([10.0, 40.0, 10.0])


def test_pictures_that_nobody_can_judge_are_refused_and_not_counted_as_fast(small_line, tmp_path):
    dark = tmp_path / "dark"
    dark.mkdir()
    for path in sorted((small_line.test / "test" / "good").glob("*.png"))[:4]:
        (dark / path.name).write_bytes(encode_png(read_picture(path) // 4))
    with pytest.raises(EdgeError, match=r"was not judged while it was measured \(health_underexposed"):
        bench(BenchRequest(small_line.recipe, dark, rounds=1, seconds=0.3))
