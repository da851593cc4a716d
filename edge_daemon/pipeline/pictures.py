"""Pictures of inspections, made and sent where no verdict waits for them."""

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.config import ImagesConfig
from edge_daemon.core.geometry import Region
from edge_daemon.core.picture import map_in_frame, map_region, overlay
from edge_daemon.errors import EdgeError
from edge_daemon.pipeline.inspection import OpenInspection, ViewOutcome
from edge_daemon.wire.messages import Image, Inspection, Part

# A picture costs milliseconds and a frame's memory: a few may wait, more are dropped and counted.
_QUEUE = 16

SendImage = Callable[[Image, tuple[bytes, ...]], None]


@dataclass(frozen=True, slots=True)
class _Job:
    inspection: OpenInspection
    record: Inspection


class Pictures:
    """Makes thumbnail and heatmap of each view of an inspection on a thread of its own; drops, and counts,
    what it cannot keep up with. configs: by station; send: hands a message to the image socket."""

    def __init__(
        self, configs: Mapping[str, ImagesConfig], send: SendImage, fatal: Callable[[BaseException], None]
    ) -> None:
        self._configs = configs
        self._send = send
        self._fatal = fatal
        self._queue: queue.Queue[_Job | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)
        self.dropped = 0

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Send what is queued and stop."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def submit(self, inspection: OpenInspection, record: Inspection) -> None:
        """Queue the pictures of a finished inspection, or drop them."""
        try:
            self._queue.put_nowait(_Job(inspection, record))
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                for view, outcome in sorted(job.inspection.outcomes.items()):
                    if outcome.frame is not None and outcome.evidence is not None:
                        self._send(*self._message(job, view, outcome))
            except EdgeError:
                self.dropped += 1
            except Exception as error:  # a defect of the program
                self._fatal(error)
                return

    def _message(self, job: _Job, view: str, outcome: ViewOutcome) -> tuple[Image, tuple[bytes, ...]]:
        record, config = job.record, self._configs[job.record.station]
        frame, evidence, recipes = outcome.frame, outcome.evidence, job.inspection.recipe_set
        if frame is None or evidence is None or recipes is None:
            raise EdgeError("nothing to draw")
        manifest, camera = recipes.views[view].recipe.manifest, frame.camera
        region = Region(*manifest.view.region) if manifest.view.region else None
        pre = manifest.preprocess
        covers = map_region(manifest.view.frame_size, region, pre.resize_to, pre.size)
        make_map = evidence.shown_map or evidence.anomaly_map
        anomaly = make_map() if make_map else None
        if anomaly is not None and evidence.pose is not None and evidence.pose.moved:
            anomaly = map_in_frame(anomaly, covers, evidence.pose, manifest.view.frame_size, config.max_side_px)
            covers = Region(0, 0, *manifest.view.frame_size)
        threshold = manifest.thresholds.pixel
        heat = overlay(frame.pixels, anomaly, threshold, evidence.boxes, covers, config.max_side_px)
        plain = overlay(frame.pixels, None, threshold, (), covers, config.max_side_px)
        media_type = f"image/{config.heatmap_format}"
        message = Image(
            line=record.line,
            station=record.station,
            boot=record.boot,
            boot_id=record.boot_id,
            result_id=record.result_id,
            trigger_id=record.trigger_id,
            camera=camera,
            view=view,
            frame_size=manifest.view.frame_size,
            map_kind=evidence.map_kind,
            heat_range=(0.0, 2 * threshold),
            parts=(
                Part(kind="frame", media_type=media_type, camera=camera),
                Part(kind="heatmap", media_type=media_type, camera=camera),
            ),
        )
        return message, (_encode(plain, config), _encode(heat, config))


def _encode(rgb: NDArray[np.uint8], config: ImagesConfig) -> bytes:
    suffix, options = ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if config.heatmap_format == "jpeg":
        suffix, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
    encoded, data = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    if not encoded:
        raise EdgeError("a picture could not be encoded")
    return data.tobytes()
