"""Pictures on the line PC: as many as there are records, named by them, pixel for pixel what the camera gave."""

from pathlib import Path

import cv2
import numpy as np

from edge_daemon.artefact.pictures import read_picture
from tests.daemon import DaemonProcess, receive
from tests.system.conftest import SHOWN, SmallLine

CONFIG = """
line = "test"
[archive]
keep = "{keep}"
min_free_gb = 0
[cameras.top]
kind = "folder"
path = "{path}"
[stations.st1]
deadline_ms = 20000
views = [{{ camera = "top", recipe = "{recipe}" }}]
[stations.st1.images]
publish = "always"
"""


def judged(folder: Path, line: SmallLine, keep: str) -> dict[str, str]:
    """Evaluation by result id of every picture of the mixed folder."""
    config = CONFIG.format(keep=keep, path=line.test / "test" / "mixed", recipe=line.recipe)
    with DaemonProcess(folder, config) as daemon, daemon.subscriber() as results, daemon.triggers() as triggers:
        found = []
        for number in range(SHOWN):
            assert triggers.trigger("st1", f"t{number}").accepted
            found += receive(results, 1)
        assert daemon.status()["archive"]["failed"] == 0
    assert [r.seq for r in found] == list(range(1, SHOWN + 1))
    return {r.result_id: r.evaluation for r in found}


def test_every_part_has_its_frame_and_heatmap_named_by_its_result(tmp_path: Path, small_line: SmallLine) -> None:
    evaluations = judged(tmp_path, small_line, "always")
    frames = sorted((tmp_path / "state" / "archive").glob("st1/*/*/*.top.frame.png"))
    assert {path.name.split(".")[0]: path.parent.name for path in frames} == {
        result_id: "ok" if evaluation == "OK" else "not_ok" for result_id, evaluation in evaluations.items()
    }
    shown = sorted((small_line.test / "test" / "mixed").glob("*.png"))
    by_id = {path.name.split(".")[0]: path for path in frames}
    for result_id, source in zip(evaluations, shown, strict=True):
        assert np.array_equal(read_picture(by_id[result_id]), read_picture(source))
        heatmap = by_id[result_id].with_name(f"{result_id}.top.heatmap.png")
        assert cv2.imread(str(heatmap)) is not None


def test_only_bad_parts_are_kept_when_that_is_asked_for(tmp_path: Path, small_line: SmallLine) -> None:
    evaluations = judged(tmp_path, small_line, "not_ok")
    bad = {result_id for result_id, evaluation in evaluations.items() if evaluation != "OK"}
    assert 0 < len(bad) < len(evaluations)
    kept = {path.name.split(".")[0] for path in (tmp_path / "state" / "archive").rglob("*.png")}
    assert kept == bad
