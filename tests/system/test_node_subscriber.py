"""The wire is not a Python secret: the Node.js example reads a real publisher."""

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from wire_kit import inspection, not_ok

from edge_daemon.edges.doorkeeper import Doorkeeper
from edge_daemon.edges.keyring import KeyRing
from edge_daemon.edges.publisher import Publisher, PublisherConfig
from edge_daemon.wire.codec import encode_inspection
from edge_daemon.wire.keys import create_server_key, enrol

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
ANY_PORT = "tcp://127.0.0.1:*"

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node: apt install nodejs npm")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with the pinned library, whose prebuilt binary is part of the package: no script runs."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "subscriber.mjs"):
        shutil.copy(EXAMPLES / name, folder)
    if (EXAMPLES / "node_modules" / "zeromq").is_dir():
        (folder / "node_modules").symlink_to(EXAMPLES / "node_modules")
        return folder / "subscriber.mjs"
    assert shutil.which("npm"), "node is here but npm is not: apt install npm"
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert installed.returncode == 0, installed.stderr
    return folder / "subscriber.mjs"


@pytest.fixture
def publisher() -> Iterator[tuple[Publisher, str]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publisher = Publisher(context, PublisherConfig(ANY_PORT, ANY_PORT, ANY_PORT, linger_ms=0))
    at = publisher.open()
    yield publisher, at.results
    publisher.close()
    context.term()


@needs_node
def test_node_reads_verdicts_notices_gaps_and_takes_nothing_unproven_for_good(
    example: Path, publisher: tuple[Publisher, str]
) -> None:
    publish, endpoint = publisher[0].publish_result, publisher[1]
    node = subprocess.Popen(
        ["node", str(example), endpoint, "st1", "6"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert node.stdout is not None
    joined = threading.Event()
    lines: list[str] = []

    def read() -> None:
        for line in node.stdout or ():
            lines.append(line.rstrip())
            joined.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        while not joined.wait(0.02) and node.poll() is None:  # a subscription arrives when it arrives
            publish(encode_inspection(inspection(seq=1)))
        publish([b"result/st1/", b"not JSON"])
        publish(encode_inspection(inspection(seq=2, station="st10")))
        publish(encode_inspection(not_ok(seq=5)))
        publish(encode_inspection(inspection(seq=6, simulated=True)))
        failed = {"evaluation": "Undefined", "result_state": "Failed", "reason": "late", "views": ()}
        publish(encode_inspection(inspection(seq=7, **failed)))
        publish(encode_inspection(inspection(seq=1, boot=8, boot_id="another")))
        publish(encode_inspection(inspection(seq=2, boot=8, boot_id="another", part_id="Größe 7")))
        node.wait(30)
        reader.join(30)
        assert node.stderr is not None
        said = node.stderr.read()
    finally:
        node.kill()
        node.wait()
        reader.join(30)
        for pipe in (node.stdout, node.stderr):
            if pipe is not None:
                pipe.close()
    assert node.returncode == 0, said
    assert lines == [
        "st1 1 PN-0042 OK - good top 1.25/2",
        "st1 5 PN-0042 NotOK - not good top 3.5/2",
        "st1 6 PN-0042 OK - not good top 1.25/2",
        "st1 7 PN-0042 Undefined late not good",
        "st1 1 PN-0042 OK - good top 1.25/2",
        "st1 2 Größe 7 OK - good top 1.25/2",
    ]
    assert "gap: st1 boot 7 seq 2..4" in said
    assert "not understood" in said


def test_the_example_stays_short() -> None:
    assert len((EXAMPLES / "subscriber.mjs").read_text().splitlines()) < 40


@needs_node
def test_node_reads_verdicts_of_a_daemon_that_wants_a_key(example: Path, tmp_path: Path) -> None:
    create_server_key(tmp_path / "keys")
    enrol(tmp_path / "keys", "mes-1", "viewer", tmp_path / "mes-1.key")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    door = Doorkeeper(context, KeyRing(tmp_path / "keys"), lambda *_: None)
    door.open()
    publisher = Publisher(context, PublisherConfig(ANY_PORT, ANY_PORT, ANY_PORT, linger_ms=0), door=door)
    endpoint = publisher.open().results
    try:
        node = subprocess.Popen(
            ["node", str(example), endpoint, "st1", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "EDGE_KEY": str(tmp_path / "mes-1.key")},
        )
        deadline = time.monotonic() + 30
        while node.poll() is None and time.monotonic() < deadline:
            publisher.publish_result(encode_inspection(inspection(seq=1)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(0.02)
        node.kill()
        said, _ = node.communicate()
    finally:
        publisher.close()
        door.close()
        context.term()
    assert said == "st1 1 PN-0042 OK - good top 1.25/2\n"
