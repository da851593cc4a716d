"""The contact sheet: parts as the camera saw them, beside their heat and boxes, as the image socket sent them."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from line import Heard, share
from numpy.typing import NDArray
from plan import DemoStation
from processes import DemoError

from edge_daemon.core.decision import Evaluation
from edge_daemon.core.picture import contact_sheet
from edge_daemon.wire.messages import Inspection


def write_contact_sheet(heard: Heard, plan: Sequence[DemoStation], path: Path, parts: int, tile_px: int) -> None:
    """A few parts of each station, two pictures each. Raises DemoError when no picture came."""
    chosen = [i for index, station in enumerate(plan) for i in _chosen(heard, station, share(parts, len(plan), index))]
    if not chosen:
        raise DemoError("no picture arrived on the image socket")
    truth = {station.name: station for station in plan}
    pictures: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    for inspection in chosen:
        view = inspection.views[0]
        pictures += [_decode(blob) for blob in heard.images[inspection.result_id][1][:2]]
        sign = "<=" if inspection.evaluation == "OK" else ">"
        boxes = "1 box" if view.boxes_total == 1 else f"{view.boxes_total} boxes"
        captions += [
            f"{inspection.part_id}\ntruth: {truth[inspection.station].truth(view.frame_ids[0]) or 'good'}",
            f"{inspection.evaluation}\n{view.score:.3g} {sign} {view.threshold:.3g}, {boxes}",
        ]
    evaluations = [Evaluation.from_label(i.evaluation) for i in chosen for _ in range(2)]
    sheet = contact_sheet(pictures, captions, evaluations, columns=6, tile_px=tile_px)
    if not cv2.imwrite(str(path), sheet[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise DemoError(f"{path} could not be written; is the disk full?")


def _chosen(heard: Heard, station: DemoStation, count: int) -> list[Inspection]:
    """Some of what was judged wrongly, then the highest scores, the last one being the best of all. Only parts whose
    picture arrived."""
    shown = [i for i in heard.inspections if i.station == station.name and i.result_id in heard.images]
    shown = [i for i in shown if i.views[0].score is not None]
    wrong = [i for i in shown if (i.evaluation == "OK") != (station.truth(i.views[0].frame_ids[0]) is None)]
    right = sorted((i for i in shown if i not in wrong), key=lambda i: -(i.views[0].score or 0))
    ordered = wrong[: -(-count // 3)] + right
    return ordered[: count - 1] + ordered[-1:] if 0 < count < len(ordered) else ordered[:count]


def _decode(blob: bytes) -> NDArray[np.uint8]:
    bgr = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise DemoError("a picture on the image socket is no picture")
    return np.ascontiguousarray(bgr[..., ::-1], np.uint8)
