"""Four GigE cameras at 512x512 px and 10 frames a second each, through the whole daemon with the backbone that comes
with it: every frame is judged. Only with EDGE_TEST_MINUTES, how long (`make faults`: 10). Needs root."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_daemon.wire.messages import Inspection, Status
from tests.daemon import DaemonProcess
from tests.fakes.gige import ADDRESSES, FakeCamera, gige_network
from tests.faults.conftest import ramp_recipe
from tests.faults.line import Account, Observer

RATE_HZ = 10
SIDE_PX = 512
MINUTES = float(os.environ.get("EDGE_TEST_MINUTES", "0"))
# What a stream counts of frames that did not come whole.
LOSSES = ("failed", "underruns", "aborted", "timeouts", "missing_packets", "incomplete_frames", "missing_frames",
          "stale_frames", "processes_lost")  # fmt: skip

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(MINUTES == 0, reason="takes minutes; EDGE_TEST_MINUTES says how many, `make faults` runs it"),
    pytest.mark.timeout(300 + 90 * MINUTES),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ramp_recipe(tmp_path_factory.mktemp("ramp512"), SIDE_PX, None, coreset_ratio=0.02)


@pytest.fixture
def fakes() -> Iterator[list[FakeCamera]]:
    with gige_network():
        cameras = [FakeCamera(f"GV1{n}", ip) for n, ip in enumerate(("127.0.0.1", *ADDRESSES))]
        for camera in cameras:
            camera.start()
        yield cameras
        for camera in cameras:
            camera.kill()


def config(recipe: Path, fakes: list[FakeCamera]) -> str:
    def table(serial: str) -> str:
        return (
            f'[cameras.{serial}]\nkind = "gige"\nserial = "{serial}"\ntrigger = "free_run"\nrate_hz = {RATE_HZ}\n'
            f"region = [0, 0, {SIDE_PX}, {SIDE_PX}]\nexposure_us = 10000\nbuffers = 16\n"
            f'[stations.{serial}]\nviews = [{{ camera = "{serial}", recipe = "{recipe}" }}]\n'
            'trigger = "free_run"\nqueue = 20\ndeadline_ms = 2000\n'
        )

    return "\n".join(['line = "four"', *(table(fake.serial) for fake in fakes)])


def test_four_cameras_lose_no_frame(
    fakes: list[FakeCamera], recipe: Path, tmp_path: Path, account: Callable[[Account], None]
) -> None:
    seconds = 60 * MINUTES
    with DaemonProcess(tmp_path / "four", config(recipe, fakes)) as daemon:
        observer = Observer(daemon.endpoints)
        observer.start()
        try:
            began_ns = time.monotonic_ns()
            observer.first(Status, lambda s: s.uptime_ms > 0, began_ns + round(seconds * 1e9), patience_s=seconds + 60)
            results = [i for at, i in observer.all(Inspection, began_ns) if at < began_ns + seconds * 1e9]
            status = {s.station: s for _, s in observer.all(Status)}
            stages = {name: round(ms, 1) for name, ms in daemon.status()["stages_ms"].items() if ms}
        finally:
            observer.close()
    lost = [i for i in results if i.result_state != "Completed"]
    reasons = Counter(i.reason for i in lost)
    assert not lost, f"{len(lost)} of {len(results)} frames not judged: {reasons}, stages in ms {stages}"
    for fake in fakes:
        frames = [i.views[0].frame_ids[0] for i in results if i.station == fake.serial]
        assert frames == list(range(frames[0], frames[0] + len(frames))), f"{fake.serial}: frames are missing"
        assert len(frames) >= 0.97 * RATE_HZ * seconds, f"{fake.serial}: {len(frames)} frames in {seconds:.0f} s"
        counted = status[fake.serial].details["camera_counters"][fake.serial]
        assert {name: counted[name] for name in LOSSES if counted.get(name)} == {}
        counters = status[fake.serial].counters
        assert counters is not None
        assert counters.balanced
        assert counters.missed == counters.failed == 0
    slowest_ms = max(s.details["latency_ms"].get("p99", 0.0) for s in status.values())
    seen = f"{len(results)} judged, none lost, p99 {slowest_ms:.0f} ms"
    account(Account(f"four cameras, {SIDE_PX}² at {RATE_HZ}/s, {MINUTES:g} min", "no frame lost", seen))
