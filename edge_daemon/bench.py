"""`edge-daemon bench`: what this PC can do with a recipe, measured on the real daemon.

The daemon runs as its own process on an ordinary configuration, with journal and publishing; the bare model
and the bare search are timed here, in turn with it, on the same pictures. Ratios are medians over the turns:
the speed of the PC and whatever else it does cancel out.
"""

import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import faiss
import numpy as np
import zmq
from numpy.typing import NDArray

from edge_daemon.artefact.pictures import find_pictures, read_picture
from edge_daemon.client import ControlClient, NoAnswerError, connect
from edge_daemon.core.decision import Thresholds
from edge_daemon.detectors.base import Detector
from edge_daemon.detectors.loading import ReadyRecipe, build_detector, load_verified
from edge_daemon.engines.choice import Choices
from edge_daemon.engines.sessions import EngineOptions, Sessions
from edge_daemon.errors import EdgeError, NotLocatedError, PictureError
from edge_daemon.threads import CoreSharing, keep_freed_memory, physical_cores
from edge_daemon.wire.codec import RESULT_TOPIC

MOST_PICTURES = 32
_PRELOAD_BYTES = 256_000_000  # of decoded pictures, all cameras together
_START_S, _STOP_S = 60.0, 30.0
_MOST_CAMERAS = 32
# Cameras of one nominal rate whose phases drift against each other, as unsynchronised ones do.
_DRIFT = 0.03
_LOAD = 0.5
# Of fewer parts the 99th of a hundred is the slowest of all, and says more of the moment than of the PC.
_PARTS_FOR_P99, _LONGER = 400, 5
# While latency is measured a part that waits is a long latency, not a missed part.
_PATIENT_QUEUE, _USUAL_QUEUE = 1_000, 2

# No map reaches the limit of its pixels.
_SCORES_ONLY = Thresholds(0.0, 0.0, float(np.finfo(np.float32).max))

_CONFIG = """\
line = "bench"
state_dir = {state}
[wire]
{wire}
[engine]
provider = "{provider}"
search = "{search}"
"""
_CAMERA = """\
[cameras.c{n}]
kind = "folder"
path = {images}
loop = true
preload = true
rate_hz = {rate_hz:.6f}
[stations.s{n}]
trigger = "free_run"
deadline_ms = 60000
queue = {queue}
idle_check_s = 0
views = [{{ camera = "c{n}", recipe = {recipe}, camera_settings = "warn" }}]
[stations.s{n}.images]
publish = "never"
"""


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What to measure. seconds: of each measurement; rounds: turns of bare parts and daemon."""

    recipe: Path
    images: Path
    cameras: int = 1
    provider: str = "cpu"
    search: str = "auto"
    rounds: int = 5
    seconds: float = 3.0


@dataclass(slots=True)
class _Bare:
    """Milliseconds of the parts alone, one value a frame (flat: of every eighth), and medians a round."""

    run_ms: list[float] = field(default_factory=list)
    search_ms: list[float] = field(default_factory=list)
    flat_ms: list[float] = field(default_factory=list)
    exact_searches: list[int] = field(default_factory=list)
    rounds: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Latency:
    """Trigger to verdict at the subscriber, milliseconds: quantiles, and the p99 of a queue that only the bare
    model and search would serve, at the same arrivals. parts: results that were timed."""

    p50: float
    p95: float
    p99: float
    ideal_p99: float
    parts: int


def bench(request: BenchRequest) -> dict[str, Any]:
    """Measure; the answer is ready for JSON. Raises EdgeError for what cannot be measured."""
    _check(request)
    keep_freed_memory()
    cv2.setNumThreads(1)
    faiss.omp_set_num_threads(physical_cores())
    options = EngineOptions(provider=request.provider, intra_op_threads=physical_cores())
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as name:
        # Measured here and now, and the same for the daemons.
        sessions = Sessions(options, Choices(Path(name) / "engines.json"))
        ready = load_verified(request.recipe.absolute(), sessions, request.search)
    request = replace(request, search=ready.choice.engine)
    paths, pictures, frame_bytes = _pictures(request, ready.detector)
    flat = build_detector(ready.recipe, sessions, "flat")
    bare = _Bare()
    fps: list[float] = []
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        for number, path in enumerate(paths):
            os.symlink(path.absolute(), images / f"{number:03d}{path.suffix}")
        with _Daemon.running(folder / "full", request, images, [0.0] * request.cameras) as daemon:
            for _ in range(request.rounds):
                daemon.halt()
                _time_bare(bare, ready, flat, pictures, request.seconds)
                daemon.resume()
                fps.append(daemon.sustained_fps(request.seconds))
            status, rss_mb = daemon.status(), daemon.rss_mb()
        rate_hz, seconds = _LOAD * statistics.median(fps), max(2 * request.seconds, 1.0)
        service_ms = _paced_ms(ready, pictures, rate_hz, seconds)
        rates = _drifting(rate_hz / request.cameras, request.cameras)
        with _Daemon.running(folder / "half", request, images, rates) as daemon:
            latency = daemon.latency(seconds, service_ms)
    return _figures(request, ready, bare, fps, status, latency, rss_mb) | {
        "pictures": len(pictures),
        "preloaded_mb": round(frame_bytes * request.cameras / 1e6, 1),
    }


def _check(request: BenchRequest) -> None:
    if not 1 <= request.cameras <= _MOST_CAMERAS:
        raise EdgeError(f"--cameras {request.cameras}: 1 to {_MOST_CAMERAS} can be measured")
    if request.rounds < 1 or not 0 < request.seconds < math.inf:
        raise EdgeError("--rounds and --seconds must be above 0")


def _pictures(request: BenchRequest, detector: Detector) -> tuple[list[Path], list[NDArray[np.uint8]], int]:
    """Pictures evenly picked: their paths, model inputs (T, H, W, 3), and bytes decoded. Raises PictureError."""
    found = find_pictures(request.images)
    if not found:
        raise PictureError(f"{request.images} holds no pictures: give a folder of good parts, PNG, JPEG, BMP or TIFF")
    frame_bytes = read_picture(found[0]).nbytes
    count = min(len(found), MOST_PICTURES, max(1, _PRELOAD_BYTES // (frame_bytes * request.cameras)))
    paths = [found[i] for i in np.linspace(0, len(found) - 1, count).round().astype(int).tolist()]
    inputs = []
    for path in paths:
        pixels = read_picture(path)  # its error names the file
        try:
            inputs.append(detector.prepare(pixels).inputs)
        except (PictureError, NotLocatedError) as error:
            raise PictureError(f"{path.name}: {error}") from error
    return paths, inputs, frame_bytes * count


def _time_bare(
    bare: _Bare, ready: ReadyRecipe, flat: Detector, pictures: Sequence[NDArray[np.uint8]], seconds: float
) -> None:
    """session.run, the recipe's search and a flat one, frame by frame. Scores only: no map reaches the limit."""
    detector = ready.detector
    runs, searches, turn = [], [], 0
    until = time.perf_counter() + seconds
    while turn < 3 or time.perf_counter() < until:
        begun = time.perf_counter()
        features = detector.extractor.extract(pictures[turn % len(pictures)])[0]
        middle = time.perf_counter()
        evidence = detector.judge(features, _SCORES_ONLY)
        ended = time.perf_counter()
        if turn % 8 == 0:  # a flat search may take twenty times the rest
            flat.judge(features, _SCORES_ONLY)
            bare.flat_ms.append((time.perf_counter() - ended) * 1e3)
        runs.append((middle - begun) * 1e3)
        searches.append((ended - middle) * 1e3)
        exact = getattr(evidence, "exact_searches", None)
        bare.exact_searches.append(len(features) * features.shape[1] if exact is None else int(exact))
        turn += 1
    bare.run_ms += runs
    bare.search_ms += searches
    bare.rounds.append((statistics.median(runs), statistics.median(searches)))


def _paced_ms(ready: ReadyRecipe, pictures: Sequence[NDArray[np.uint8]], rate_hz: float, seconds: float) -> list[float]:
    """Model and search together, one part after the other at the pace of the line: what a PC takes after a pause is not
    what it takes without one. On cores given out as in the daemon."""
    detector, found = ready.detector, list[float]()
    cores = CoreSharing(threads=physical_cores(), pool=physical_cores())
    cores.model_begins(search_busy=False)
    try:
        begun = time.perf_counter()
        while _goes_on(time.perf_counter() - begun, seconds, len(found)):
            time.sleep(max(0.0, begun + len(found) / rate_hz - time.perf_counter()))
            started = time.perf_counter()
            features = detector.extractor.extract(pictures[len(found) % len(pictures)])[0]
            detector.judge(features, _SCORES_ONLY)
            found.append((time.perf_counter() - started) * 1e3)
    finally:
        cores.model_begins(search_busy=True)  # this thread may run everywhere again
    return found


def _goes_on(took_s: float, seconds: float, parts: int) -> bool:
    """Whether to measure one more part's latency."""
    return took_s < seconds or (parts < _PARTS_FOR_P99 and took_s < _LONGER * seconds)


def _drifting(rate_hz: float, cameras: int) -> list[float]:
    """Rates of the cameras, `rate_hz` at the mean."""
    spread = np.linspace(-_DRIFT, _DRIFT, cameras) if cameras > 1 else np.zeros(1)
    return [float(rate_hz * (1 + share)) for share in spread]


class _Daemon:
    """`edge-daemon run` in a process of its own, on sockets in a temporary folder; made by `running`."""

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]", cameras: int) -> None:
        self._folder = folder
        self._process = process
        self._cameras = cameras

    @classmethod
    @contextmanager
    def running(
        cls, folder: Path, request: BenchRequest, images: Path, rates_hz: Sequence[float]
    ) -> Iterator["_Daemon"]:
        """Started and ready; ended with the block. Raises EdgeError with its log when it does not start."""
        folder.mkdir()
        config = folder / "edge.toml"
        config.write_text(_config(folder, request, images, rates_hz))
        # A variable that is meant for the line's own daemon must not change what is measured.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGE_")}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "edge_daemon.cli", "run", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:
            daemon = cls(folder, process, len(rates_hz))
            daemon._await_ready()
            yield daemon
            if process.poll() is not None:
                raise EdgeError(f"the daemon ended while it was measured:\n{daemon._log()}")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-4000:]

    def _await_ready(self) -> None:
        give_up = time.monotonic() + _START_S
        while time.monotonic() < give_up and self._process.poll() is None:
            try:
                stations = self.status(timeout_s=0.5)["stations"]
            except NoAnswerError:
                continue
            if len(stations) == self._cameras and all(s["trigger_ready"] for s in stations.values()):
                return
            if all(s["last_seq"] > 0 for s in stations.values()):
                return  # busy judging: as ready as can be
        raise EdgeError(f"the daemon does not start on this recipe:\n{self._log()}")

    def _ask(self, command: str, timeout_s: float = 10.0) -> dict[str, Any]:
        with ControlClient(_endpoint(self._folder, "control"), timeout_s=timeout_s) as control:
            return control.request(command)

    def status(self, timeout_s: float = 10.0) -> dict[str, Any]:
        return self._ask("status", timeout_s)

    def halt(self) -> None:
        """Take nothing more, and wait until what is open is done."""
        self._ask("drain")
        give_up = time.monotonic() + _START_S
        while any(s["counters"]["in_flight"] for s in self.status()["stations"].values()):
            if time.monotonic() > give_up:
                raise EdgeError(f"the daemon does not come to rest:\n{self._log()}")

    def resume(self) -> None:
        self._ask("resume")

    def rss_mb(self) -> float | None:
        """Resident memory, in 10⁶ bytes; None where the system has no /proc."""
        try:
            text = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return None
        kib = next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS:"))
        return round(int(kib) * 1024 / 1e6, 1)

    def sustained_fps(self, seconds: float) -> float:
        """Verdicts a second at full speed, counted as they arrive."""
        with self._results() as results:
            for _ in range(2 * self._cameras):
                self._next(results)
            begun = time.perf_counter()
            count = 0
            while (elapsed := time.perf_counter() - begun) < seconds:
                _require_judged(self._next(results))
                count += 1
        return count / elapsed

    def latency(self, seconds: float, service_ms: Sequence[float]) -> _Latency:
        """From the trigger's time stamp in the record to its arrival here, on the clock of one PC.

        seconds: at least; up to five times as long where that makes 400 parts. service_ms: of model and search for one
        part each, as measured at this pace, for the ideal queue.
        """
        found: list[tuple[float, float]] = []
        with self._results() as results:
            for _ in range(4 * self._cameras):
                self._next(results)
            begun = time.monotonic()
            while _goes_on(time.monotonic() - begun, seconds, len(found)):
                header = self._next(results)
                arrived_s = time.time()
                _require_judged(header)
                triggered_s = datetime.fromisoformat(header["times"]["utc"]).timestamp()
                found.append((triggered_s, (arrived_s - triggered_s) * 1e3))
        found.sort()
        ideal = ideal_queue_ms([t for t, _ in found], service_ms)
        p50, p95, p99 = np.percentile([ms for _, ms in found], (50, 95, 99))
        return _Latency(float(p50), float(p95), float(p99), float(np.percentile(ideal, 99)), len(found))

    @contextmanager
    def _results(self) -> "Iterator[zmq.Socket[bytes]]":
        with zmq.Context() as context:
            socket = connect(context, zmq.SUB, _endpoint(self._folder, "results"))
            try:
                socket.subscribe(RESULT_TOPIC)
                yield socket
            finally:
                socket.close(0)

    def _next(self, results: "zmq.Socket[bytes]") -> dict[str, Any]:
        if not results.poll(int(_START_S * 1e3)):
            raise EdgeError(f"the daemon sends no results:\n{self._log()}")
        header: dict[str, Any] = json.loads(results.recv_multipart()[1])
        return header


def _require_judged(header: dict[str, Any]) -> None:
    """A part that nobody judged costs next to nothing: counted in, it would make any PC look fast. Raises EdgeError."""
    if header["result_state"] == "Completed" and all(view["score"] is not None for view in header["views"]):
        return
    reasons = {reason for reason in (header["reason"], *(view["reason"] for view in header["views"])) if reason}
    raise EdgeError(
        f"a part was not judged while it was measured ({', '.join(sorted(reasons)) or header['result_state']}): give "
        "pictures of good parts, taken like those that the recipe was made from"
    )


def ideal_queue_ms(arrivals_s: Sequence[float], service_ms: Sequence[float]) -> list[float]:
    """Milliseconds each part spends in a first-come queue with one server.

    arrivals_s: seconds, rising; service_ms: what one part each takes, used in turn. The best that could be done
    with these arrivals by one who does nothing but model and search, one part after the other.
    """
    times, free_s = [], -math.inf
    for arrived_s, took_ms in zip(arrivals_s, itertools.cycle(service_ms), strict=False):
        free_s = max(arrived_s, free_s) + took_ms / 1e3
        times.append((free_s - arrived_s) * 1e3)
    return times


def _endpoint(folder: Path, name: str) -> str:
    return f"ipc://{folder.absolute()}/{name}"


def _config(folder: Path, request: BenchRequest, images: Path, rates_hz: Sequence[float]) -> str:
    wire = "\n".join(
        f"{name} = {json.dumps(_endpoint(folder, name))}"
        for name in ("results", "images", "status", "triggers", "control", "replay", "amendments")
    )
    head = _CONFIG.format(
        state=json.dumps(str(folder / "state")), wire=wire, provider=request.provider, search=request.search
    )
    recipe = json.dumps(str(request.recipe.absolute()))
    return head + "".join(
        _CAMERA.format(
            n=n,
            images=json.dumps(str(images)),
            rate_hz=rate,
            recipe=recipe,
            queue=_PATIENT_QUEUE if rate else _USUAL_QUEUE,
        )
        for n, rate in enumerate(rates_hz)
    )


def _figures(
    request: BenchRequest,
    ready: ReadyRecipe,
    bare: _Bare,
    fps: Sequence[float],
    status: dict[str, Any],
    latency: _Latency,
    rss_mb: float | None,
) -> dict[str, Any]:
    run_ms, search_ms = statistics.median(bare.run_ms), statistics.median(bare.search_ms)
    rounds = list(zip(bare.rounds, fps, strict=True))
    rows, dim = ready.recipe.bank.shape
    return {
        "session_run_fps": round(1e3 / run_ms, 3),
        "end_to_end_fps": round(statistics.median(fps), 3),
        "ratio": round(statistics.median(f * run / 1e3 for (run, _), f in rounds), 4),
        "ratio_to_run_and_search": round(statistics.median(f * (run + s) / 1e3 for (run, s), f in rounds), 4),
        "stages_ms": status["stages_ms"],
        "latency_ms": {
            "p50": round(latency.p50, 3),
            "p95": round(latency.p95, 3),
            "p99": round(latency.p99, 3),
            "ideal_p99": round(latency.ideal_p99, 3),
            "p99_to_run_and_search": round(latency.p99 / (run_ms + search_ms), 3),
            "p99_to_ideal": round(latency.p99 / latency.ideal_p99, 3),
            "load": _LOAD,
            "parts": latency.parts,
        },
        "search": {
            "engine": ready.choice.engine,
            "why": ready.choice.reason,
            "ms": round(search_ms, 3),
            "flat_ms": round(statistics.median(bare.flat_ms), 3),
            "exact_searches": statistics.median(bare.exact_searches),
        },
        "rss_mb": rss_mb,
        "bank_mb": round(ready.recipe.bank.nbytes / 1e6, 1),
        "provider": ready.provider,
        "precision": ready.recipe.manifest.backbone.precision,
        "recipe": {"name": ready.recipe.manifest.name, "digest": ready.recipe.digest, "rows": rows, "dim": dim},
        "cameras": request.cameras,
        "threads": status["threads"],
        "rounds": [
            {"run_ms": round(run, 3), "search_ms": round(s, 3), "end_to_end_ms": round(1e3 / f, 3)}
            for (run, s), f in rounds
        ],
    }


def table(figures: dict[str, Any]) -> str:
    """The same for people."""
    search, latency = figures["search"], figures["latency_ms"]
    recipe = figures["recipe"]
    stages = "  ".join(f"{name} {ms:.2f}" for name, ms in figures["stages_ms"].items())
    memory = "-" if figures["rss_mb"] is None else f"{figures['rss_mb']:.0f} MB"
    return "\n".join(
        [
            f"{recipe['name']} ({figures['precision']}, {recipe['rows']} rows of {recipe['dim']}) on "
            f"{figures['provider']}, {figures['cameras']} camera(s)",
            f"  session.run alone   {figures['session_run_fps']:8.1f} frames/s",
            f"  end to end          {figures['end_to_end_fps']:8.1f} frames/s   {figures['ratio']:.2f} of session.run, "
            f"{figures['ratio_to_run_and_search']:.2f} of session.run and search",
            f"  search ({search['engine']})  {search['ms']:.2f} ms, flat {search['flat_ms']:.2f} ms, "
            f"{search['exact_searches']:g} patches searched exactly",
            f"  stages, ms          {stages}",
            f"  latency, ms         p50 {latency['p50']:.1f}  p95 {latency['p95']:.1f}  p99 {latency['p99']:.1f}  at "
            f"{latency['load']:.0%} load (an ideal queue: p99 {latency['ideal_p99']:.1f}), {latency['parts']} parts",
            f"  memory              {memory}, of it bank {figures['bank_mb']:.0f} MB and preloaded pictures "
            f"{figures['preloaded_mb']:.0f} MB",
        ]
    )
