"""Everything of this product that reads bytes which somebody else may have made, as something to throw inputs at.

A target either takes an input, and then what it made of it holds (`run` asserts it), or refuses it by one of its
`rejections`. Anything else that comes out is a finding.
"""

import io
import json
import math
import os
import socket
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edge_daemon.artefact.camera import CAMERA_FILE, read_camera_file
from edge_daemon.artefact.pictures import MAX_PIXELS, decode_picture
from edge_daemon.artefact.recipe import BANK, MANIFEST, TEMPLATE, load_recipe, verify_files, write_recipe
from edge_daemon.artefact.signature import read_signatures, signature_bytes
from edge_daemon.artefact.store import Store
from edge_daemon.cameras import gvcp
from edge_daemon.cameras.channel import Channel, ChannelClosed
from edge_daemon.config import Config
from edge_daemon.config import load_config as load_daemon_config
from edge_daemon.core.camera_settings import counting, differences, in_words
from edge_daemon.detectors.loading import build_detector, check_golden
from edge_daemon.edges.audit import AuditTrail, read_trail
from edge_daemon.edges.journal import Journal
from edge_daemon.edges.journal_chain import Head, parse_head, verify
from edge_daemon.edges.journal_entries import KnownBoot, Laters, Replay
from edge_daemon.edges.journal_tools import Wanted, csv_row, find, salvage
from edge_daemon.edges.replay import ReplayDesk
from edge_daemon.edges.standing import StandingAlarms
from edge_daemon.engines.choice import Choices
from edge_daemon.engines.onnx_bytes import refuse_foreign_files
from edge_daemon.engines.sessions import Sessions
from edge_daemon.errors import EdgeError, RecipeEngineError
from edge_daemon.gateway.config import load_config as load_gateway_config
from edge_daemon.gateway.errors import OutboxError
from edge_daemon.gateway.outbox import FILE, Outbox, count_waiting
from edge_daemon.gateway.registers import COMMAND_WORDS, RESULT_WORDS, decode_block, decode_command, encode_block
from edge_daemon.pipeline.control import ControlDesk, TriggerDesk
from edge_daemon.pipeline.recipes import Recipes
from edge_daemon.wire import codec, keys
from edge_daemon.wire.messages import (
    AmendmentReply,
    AmendmentRequest,
    ControlReply,
    ControlRequest,
    Counters,
    Event,
    Image,
    JobState,
    Part,
    ReplayReply,
    ReplayRequest,
    SeqRange,
    Status,
    TriggerReply,
    TriggerRequest,
)
from tests.fuzz import kit, network
from tests.wire_kit import inspection, not_ok

Run = Callable[[bytes, Path], object]


@dataclass(frozen=True)
class Target:
    """name: also names findings; seeds: inputs that are taken; run(data, folder): in a folder that is its own;
    rejections: how an input may be refused; memory_mb: by how much one input may raise the process's memory; weight:
    its share of the time."""

    name: str
    seeds: Callable[[Path], list[bytes]]
    run: Run
    rejections: tuple[type[BaseException], ...] = (EdgeError,)
    memory_mb: int = 256
    weight: float = 1.0
    tokens: tuple[bytes, ...] = field(default=())


def targets() -> tuple[Target, ...]:
    """All of them, built anew: nothing is kept between runs."""
    return (
        *_messages(),
        *_strangers(),
        *_desks(kit.recipe()),
        *_recipes(),
        *_pictures(),
        *_configurations(),
        *_state(),
        *_devices(),
    )


# ---------------------------------------------------------------- messages


def _frames(data: bytes) -> list[bytes]:
    return data.split(network.SEPARATOR, 3)


def _joined(frames: list[bytes]) -> bytes:
    return network.SEPARATOR.join(frames)


def _strangers() -> tuple[Target, ...]:
    return (
        Target("ZAP question", lambda _f: network.zap_questions(), lambda data, _f: network.zap(data), ()),
        Target("metrics request", lambda _f: network.scrape_requests(), lambda data, _f: network.scrape(data), ()),
    )


def _messages() -> tuple[Target, ...]:
    trigger = TriggerRequest(
        request_id="r1", station="st1", trigger_id="4711", part_id="PN-1", job="bottle", mode="production"
    )
    control = ControlRequest(
        request_id="r2", command="activate", args={"station": "st1", "recipes": {"top": "bottle@1"}}
    )
    replay = ReplayRequest(request_id="r3", station="st1", boot=7, boot_id="ab", first=1, last=9)
    image = Image(line="l", station="st1", boot=1, boot_id="b", result_id="r", heat_range=(0.0, 2.5),
                  frame_size=(64, 48), parts=(Part(kind="heatmap", media_type="image/png"),))  # fmt: skip
    status = Status(line="l", station="st1", boot=1, boot_id="b", utc="2026-11-21T08:00:00Z", uptime_ms=1.5,
                    state="Ready", counters=Counters(accepted=2, ok=2), details={"queue": [1, 2.5, None]})  # fmt: skip
    event = Event(line="l", boot=1, boot_id="b", kind="alarm", name="x", utc="2026-11-21T08:00:00Z", message="m")

    def result(data: bytes, _folder: Path) -> None:
        found = codec.decode_inspection(_frames(data))
        assert codec.contradiction(found) is None
        if found.evaluation == "OK":
            assert found.views, "an OK without a view"
            assert all(v.score is not None and v.threshold is not None and v.score <= v.threshold for v in found.views)
        again = codec.decode_header(codec.inspection_header(found))
        assert again.evaluation == found.evaluation
        assert again.result_id == found.result_id

    def request(decode: Callable[[bytes], Any]) -> Run:
        def run(data: bytes, _folder: Path) -> None:
            found = decode(data)
            assert decode(codec.encode_request(found)) == found

        return run

    def job(data: bytes, _folder: Path) -> None:
        codec.decode_job(codec.parse_json(data))

    def one(make: Callable[[], list[bytes] | bytes]) -> Callable[[Path], list[bytes]]:
        def seeds(_folder: Path) -> list[bytes]:
            made = make()
            return [made if isinstance(made, bytes) else _joined(made)]

        return seeds

    reply = TriggerReply(accepted=True, station="st1", trigger_id="4711", result_id="x", attempt=1)
    answer = ControlReply(request_id="r", ok=True, result={"a": [1]}, job="j")
    records = ReplayReply(ok=True, station="st1", boot=1, boot_id="b", gone=(SeqRange(first=1, last=None),), next_seq=5)
    amendment = AmendmentRequest(request_id="r", amendment_id="a", station="st1", trigger_id="1-r-1", result_id="x",
                                 kind="disposition", what="passed", verdict="OK", after_ms=1.5)  # fmt: skip
    amended = AmendmentReply(ok=False, request_id="r", amendment_id="a", reason="unknown_result")
    state = JobState(job="j", command="activate", state="running", progress=0.5)
    return (
        Target("trigger request", one(lambda: codec.encode_request(trigger)), request(codec.decode_trigger_request)),
        Target("control request", one(lambda: codec.encode_request(control)), request(codec.decode_control_request)),
        Target("replay request", one(lambda: codec.encode_request(replay)), _replay),
        Target(
            "request for amendments",
            one(lambda: codec.encode_request(replay.model_copy(update={"amendments_after": "7:" + "9f" * 32}))),
            _replay,
        ),
        Target(
            "result",
            lambda _f: [_joined(codec.encode_inspection(i)) for i in (inspection(), not_ok())],
            result,
            weight=2,
        ),
        Target(
            "image message",
            one(lambda: codec.encode_image(image, [b"png"])),
            lambda d, _f: codec.decode_image(_frames(d)),
        ),
        Target(
            "status message", one(lambda: codec.encode_status(status)), lambda d, _f: codec.decode_status(_frames(d))
        ),
        Target("event message", one(lambda: codec.encode_event(event)), lambda d, _f: codec.decode_event(_frames(d))),
        Target("trigger reply", one(lambda: codec.encode_request(reply)), request(codec.decode_trigger_reply)),
        Target("control reply", one(lambda: codec.encode_request(answer)), request(codec.decode_control_reply)),
        Target("replay reply", one(lambda: codec.encode_request(records)), request(codec.decode_replay_reply)),
        Target(
            "amendment request", one(lambda: codec.encode_request(amendment)), request(codec.decode_amendment_request)
        ),
        Target("amendment reply", one(lambda: codec.encode_request(amended)), request(codec.decode_amendment_reply)),
        Target("job state", one(lambda: state.model_dump_json().encode()), job),
    )


def _desks(files: dict[str, bytes]) -> tuple[Target, ...]:
    """What triggers and commands mean, with a station that really is one: every request has one answer."""
    sessions = Sessions(kit.ENGINE)

    def asked(handle: Callable[[Any, Callable[[Any], None]], None], request: Any) -> None:
        answers: list[Any] = []
        handle(request, answers.append)
        assert len(answers) == 1, f"{len(answers)} answers"
        assert answers[0].request_id == request.request_id
        assert len(codec.encode_request(answers[0])) < 300_000

    def control(data: bytes, folder: Path) -> None:
        request = codec.decode_control_request(data)
        write_recipe(folder / "r.recipe", files)
        store = Store(folder / "store")
        store.add(folder / "r.recipe")
        recipes = Recipes(store, sessions, "flat", folder / "configured.json")
        desk = ControlDesk(
            {"st1": kit.station()}, recipes, dict, lambda: None, lambda *_: None, dict, lambda _job: None
        )
        try:
            asked(desk.handle, request)
        finally:
            desk.close()
        assert all(job.state.error is None or job.state.error.code != "internal" for job in desk._jobs.values())

    def trigger(data: bytes, _folder: Path) -> None:
        asked(TriggerDesk({"st1": kit.station()}).handle, codec.decode_trigger_request(data))

    def requests(command: str, **args: Any) -> bytes:
        return codec.encode_request(ControlRequest(request_id="r", command=command, args=args))

    commands = [
        requests("activate", station="st1", recipes={"top": "means@1"}),
        requests("activate", recipe="means"),
        requests("trigger", station="st1", trigger_id="4711", part_id="PN"),
        requests("job", job="x"),
        requests("drain", station="st1"),
        requests("recipes"),
    ]
    trigger_seed = codec.encode_request(TriggerRequest(request_id="r", station="st1", trigger_id="4711", job="bottle"))
    return (
        Target("commands carried out", lambda _f: commands, control),
        Target("triggers taken up", lambda _f: [trigger_seed], trigger),
    )


class _NoRecords:
    """A journal of two boots for the replay desk."""

    def read(self, station: str, boot: int, first: int, last: int, limit: int = 1000) -> Replay:  # noqa: ARG002
        assert 1 <= first <= last
        assert limit <= 1000
        return Replay((), ((first, last),), None)

    def boots(self) -> tuple[KnownBoot, ...]:
        return (KnownBoot(7, "ab"), KnownBoot(9, "cd"))

    def stations(self) -> tuple[str, ...]:
        return ("st1",)

    def later(self, after: Head | None, limit: int = 1000) -> Laters:  # noqa: ARG002
        assert after is None or after.links >= 0
        return Laters((), False, False)


def _replay(data: bytes, _folder: Path) -> None:
    request = codec.decode_replay_request(data)
    answer = ReplayDesk(_NoRecords(), 9, lambda _station: 5).answer(request)
    assert codec.decode_replay_reply(codec.encode_request(answer)) == answer


# ---------------------------------------------------------------- recipes


def _recipes() -> tuple[Target, ...]:
    files = kit.recipe()
    digest = verify_files(files, "seed").digest
    sessions = Sessions(kit.ENGINE)

    def check(recipe: Any) -> None:
        limits = recipe.manifest.thresholds
        assert all(math.isfinite(x) and x >= 0 for x in (limits.lower, limits.upper, limits.pixel))
        assert limits.lower <= limits.upper
        assert np.isfinite(recipe.bank).all()
        assert recipe.bank.shape == (recipe.manifest.bank.rows, recipe.manifest.bank.dim)

    def with_manifest(data: bytes) -> dict[str, bytes]:
        template = {TEMPLATE: files[kit.GOLDEN]} if TEMPLATE.encode() in data else {}
        return {**files, **template, MANIFEST: kit.sealed(data)}

    def manifest(data: bytes, _folder: Path) -> None:
        check(verify_files(with_manifest(data), "r"))

    def forged(data: bytes, _folder: Path) -> None:
        assert verify_files({**files, MANIFEST: data}, "r").digest == digest, "another manifest under the same digest"

    def loading(data: bytes, _folder: Path) -> None:
        recipe = verify_files(with_manifest(data), "r")
        detector = build_detector(recipe, sessions, "flat")
        for golden in recipe.golden:
            check_golden(recipe, detector, golden)

    def packed(data: bytes, folder: Path) -> None:
        (folder / "r.recipe").write_bytes(data)
        before = set(os.listdir(folder.parent))
        recipe = load_recipe(folder / "r.recipe")
        assert recipe.digest == digest
        assert recipe.backbone == files["backbone.onnx"]
        assert set(os.listdir(folder.parent)) == before

    def imported(data: bytes, folder: Path) -> None:
        (folder / "r.recipe").write_bytes(data)
        store = Store(folder / "store")
        try:
            kept = store.add(folder / "r.recipe")
        except EdgeError:
            stray = [p for p in store.path.rglob("*") if p.is_file() and p.name != ".lock"]
            assert not stray, f"half a recipe was kept: {stray}"
            raise
        assert load_recipe(kept.path, store.backbone).digest == digest

    def zips(_folder: Path) -> list[bytes]:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for name in sorted(files):
                archive.writestr(zipfile.ZipInfo(name), files[name])
        return [made.getvalue()]

    signed = _signed(digest)
    return (
        Target("recipe manifest", lambda _f: kit.manifests(), manifest, weight=2),
        Target("recipe manifest, digest as it was", lambda _f: [files[MANIFEST]], forged),
        Target("recipe loading", lambda _f: kit.manifests(), loading, weight=2),
        Target("recipe zip", zips, packed, weight=2),
        Target("store import", zips, imported, weight=0.5),
        Target("bank", lambda _f: [files[BANK]], lambda d, _f: check(verify_files(kit.with_bank(files, d), "r"))),
        Target("signature", lambda _f: [signed], lambda d, _f: _only_true(d, digest, signed)),
        Target("backbone graph", lambda _f: [files["backbone.onnx"], _with_outside()], _graph),
    )


def _signed(digest: str) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from export.signing import sign

    keys = [Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in (1, 2)]
    return signature_bytes(digest, tuple(sign(key, digest, "2026-11-21T08:00:00Z") for key in keys))


def _only_true(data: bytes, digest: str, seed: bytes) -> None:
    made = {(s["public_key"], s["signed_utc"]) for s in json.loads(seed)["signatures"]}
    assert {(s.public_key, s.signed_utc) for s in read_signatures(data, digest, "r")} <= made, "forged"


def _with_outside() -> bytes:
    model = onnx.ModelProto.FromString(kit.graph())
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[3], data_location=1)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../w"
    return bytes(model.SerializeToString())


def _graph(data: bytes, _folder: Path) -> None:
    """What the walk lets pass has no data outside, as protobuf's own reader sees it."""
    refuse_foreign_files(data)
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as exc:  # the runtime refuses it as well
        raise RecipeEngineError("no protobuf") from exc
    assert not _outside(model), "weights in other files were not seen"


def _outside(message: Any) -> bool:
    if isinstance(message, onnx.TensorProto):
        return bool(message.external_data) or message.data_location == onnx.TensorProto.EXTERNAL
    found = False
    for descriptor, value in message.ListFields():
        if descriptor.type == descriptor.TYPE_MESSAGE:
            found |= any(map(_outside, value if descriptor.is_repeated else [value]))
    return found


# ---------------------------------------------------------------- pictures


def _pictures() -> tuple[Target, ...]:
    def decode(data: bytes, _folder: Path) -> None:
        pixels = decode_picture(data, "p")
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 2 or pixels.shape[2] == 3
        assert pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS

    def png(data: bytes, folder: Path) -> None:
        decode(kit.with_png_checksums(data), folder)

    def settings(data: bytes, folder: Path) -> None:
        (folder / CAMERA_FILE).write_bytes(data)
        found = read_camera_file(folder / CAMERA_FILE).settings
        assert counting(found), "every camera would do"
        assert differences(found, found) == ()
        assert in_words(differences(found, {}), "a", "b")

    kinds = kit.pictures()
    pictures = tuple(
        Target(f"picture {kind}", lambda _f, kind=kind: kinds[kind], png if kind == "png" else decode, memory_mb=2048)  # type: ignore[misc]
        for kind in kinds
    )
    return (Target("camera settings", lambda _f: [_CAMERA], settings), *pictures)


_CAMERA = b"""\
{"schema": "edge-daemon/camera/1", "camera": "top", "kind": "gige", "taken_utc": "2026-11-21T08:00:00+00:00",
 "software": "edge-daemon 0.1.0", "settings": {"exposure_us": 5000.0, "flip_x": false, "gain_raw": 3,
 "pixel_format": "Mono8", "region": "640x480+0+0"}}
"""


# ---------------------------------------------------------------- configuration


_EDGE = b"""\
line = "line-7"
state_dir = "state"
[engine]
provider = "cpu"
batch_wait_ms = 2.5
[security.trusted_signers]
anna = "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w="
[cameras.top]
kind = "simulated"
product = "flange"
faults = [{ action = "drop", frame = 7 }]
[cameras.side-2]
kind = "folder"
path = "pictures"
rate_hz = 2
[stations.st1]
views = [{ camera = "top", recipe = "recipes/a.recipe" }]
deadline_ms = 500
require_signed_recipes = true
[stations.st2]
views = [{ camera = "side-2", recipe = "bottle" }]
[stations.st2.images]
publish = "always"
"""

_GATEWAY = b"""\
[daemon]
results = "tcp://127.0.0.1:5561"
[modbus]
host = "192.168.0.2"
port = 502
clients = ["192.168.0.10"]
[opcua]
endpoint = "opc.tcp://127.0.0.1:4840"
[stations.st1]
unit = 1
window_ms = 400
[stations.st1.jobs.1]
name = "bottle"
"""

_SERVER = b"Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
_SECRET = b"D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"
_LIST = b'server_public_key = "%s"\n[clients.anna]\nrole = "operator"\npublic_key = "%s"\nenrolled_utc = "2026"\n' % (
    _SERVER,
    _SERVER,
)
_CLIENT = b'name = "anna"\nrole = "viewer"\npublic_key = "%s"\nsecret_key = "%s"\nserver_public_key = "%s"\n' % (
    _SERVER,
    _SECRET,
    _SERVER,
)


def _configurations() -> tuple[Target, ...]:
    def at(name: str, load: Callable[[Path], object]) -> Run:
        def run(data: bytes, folder: Path) -> None:
            (folder / name).write_bytes(data)
            (folder / name).chmod(0o600)
            load(folder / name)

        return run

    def daemon(path: Path) -> None:
        config = load_daemon_config(path, recipes_must_exist=False)
        assert isinstance(config, Config)
        for station in config.stations.values():
            assert station.deadline_ms > 0
            assert not station.require_signed_recipes or config.security.trusted_signers

    return (
        Target("configuration", lambda _f: [_EDGE], at("edge.toml", daemon), weight=2),
        Target("gateway configuration", lambda _f: [_GATEWAY], at("gateway.toml", load_gateway_config)),
        Target(
            "list of clients",
            lambda _f: [_LIST],
            at(keys.CLIENTS_FILE, lambda path: keys.read_client_list(path.parent)),
        ),
        Target("key of a client", lambda _f: [_CLIENT], at("anna.toml", keys.read_client_key)),
    )


# ---------------------------------------------------------------- what lies in the state folder


def _state() -> tuple[Target, ...]:
    def journal(data: bytes, folder: Path) -> None:
        path = folder / "journal.sqlite"
        path.write_bytes(data)
        for saved in salvage(path):
            assert saved
        told: list[EdgeError] = []
        for tool in (_found, verify):
            try:
                tool(path)
            except EdgeError as exc:
                told.append(exc)
        if zlib.crc32(data) % 8 == 0:
            with closing(Journal(path, "line-1")) as opened:  # moved aside and begun anew where it is damaged
                opened.open()
        if told:
            raise told[0]

    def active(data: bytes, folder: Path) -> None:
        store = Store(folder)
        (folder / "active").mkdir()
        (folder / "active" / "st1.json").write_bytes(data)
        store.active("st1")
        store.previous("st1")

    def engines(data: bytes, folder: Path) -> None:
        (folder / "engines.json").write_bytes(data)
        for entry in Choices(folder / "engines.json").measurements():
            entry.engine()

    def audit(data: bytes, folder: Path) -> None:
        (folder / "audit.jsonl").write_bytes(data)
        for line in read_trail(folder / "audit.jsonl"):
            assert line.entry is not None or line.problem
        told: list[object] = []
        with closing(AuditTrail(folder / "audit.jsonl", lambda: "2026-11-21T08:00:00Z", told.append)) as trail:
            trail.open()
        kept = (folder / "audit.jsonl").read_bytes()
        assert kept == data[: len(kept)]
        assert not kept or kept.endswith(b"\n") or len(data) > 65_536

    def outbox(data: bytes, folder: Path) -> None:
        found: list[AmendmentRequest] = []
        defects: list[BaseException] = []
        (folder / FILE).write_bytes(data)
        with closing(Outbox(folder, found.extend, defects.append)) as opened:
            opened.open()
            opened.written().result(30)
            said = opened.alarms
        assert not defects, defects
        assert count_waiting(folder) == len(found)
        if said:
            raise OutboxError(said["outbox_damaged"])

    def standing(data: bytes, folder: Path) -> None:
        (folder / "standing.json").write_bytes(data)
        defects: list[BaseException] = []
        with closing(StandingAlarms(folder / "standing.json", str, lambda *_: None, defects.append)) as alarms:
            lost = alarms.open()
            stands = alarms.standing()
            assert not (lost and stands)
        assert not defects, defects

    def configured(data: bytes, folder: Path) -> None:
        (folder / "configured.json").write_bytes(data)
        recipes = Recipes(Store(folder), Sessions(kit.ENGINE), "flat", folder / "configured.json")
        assert isinstance(recipes._remembered(), dict)

    sets = json.dumps(
        {"schema": "edge-daemon/active/1", "station": "st1", "sets": [{"recipes": {"top": "ab" * 32}}] * 2}
    )
    kind = {"rows": 700, "dims": 96, "patches": 1024, "provider": "CPUExecutionProvider", "cpu": "x", "threads": 2,
            "software": "s"}  # fmt: skip
    measured = json.dumps({"schema": "edge-daemon/engines/1", "measurements": [{"kind": kind, "ms": {"flat": 1.5}}]})
    return (
        Target("journal file", lambda folder: [kit.journal_file(folder)], journal, weight=3),
        Target("outbox of the gateway", lambda folder: [kit.outbox_file(folder)], outbox),
        Target("standing alarms", lambda _f: [_STANDING], standing, ()),
        Target("active recipe set", lambda _f: [sets.encode()], active),
        Target("measured engines", lambda _f: [measured.encode()], engines),
        Target("audit trail", lambda _f: [_AUDIT, _AUDIT + b'{"number": 3, "cut'], audit, ()),
        Target("configured recipes", lambda _f: [b'{"st1": {"top": "bottle"}}'], configured, rejections=()),
        Target(
            "journal head", lambda _f: [b"4711:" + b"9f" * 32], lambda d, _f: parse_head(d.decode("utf-8", "replace"))
        ),
    )


_STANDING = (
    b'{"layout":1,"alarms":[{"station":"st1","name":"passed_without_ok","raised":3,"acknowledged":1,'
    b'"since_utc":"2026-11-21T08:00:00Z","message":"part 7 passed","known":["7-run-1","8-run-2"]}]}'
)
_AUDIT = b"".join(
    json.dumps({"number": n, "utc": "2026-11-21T08:00:00Z", "command": "drain", "outcome": "done"}).encode() + b"\n"
    for n in (1, 2)
)


def _found(path: Path) -> None:
    for found in find(path, Wanted()):
        csv_row(found)


# ---------------------------------------------------------------- devices


def _devices() -> tuple[Target, ...]:
    def answers(data: bytes, _folder: Path) -> None:
        camera = gvcp.parse_discovered(data)
        if camera is not None:
            assert str(camera)
        gvcp.parse_has_read(data)
        gvcp.parse_has_written(data)

    def channel(data: bytes, _folder: Path) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            end = Channel(ours, lambda: 0)
            theirs.setblocking(False)
            theirs.send(data[:100_000])
            while True:
                message = end.receive(0)
                if message is None:
                    return
                assert isinstance(message, dict)

    def registers(data: bytes, _folder: Path) -> None:
        words = [int.from_bytes(data[i : i + 2], "big") for i in range(0, 2 * RESULT_WORDS, 2)]
        decode_command(words[:COMMAND_WORDS])
        block = decode_block(words)
        assert block is None or len(encode_block(block)) == RESULT_WORDS

    discovered = b"\0\0\0\3\0\xf8\0\1" + bytes(0x24) + b"\x7f\0\0\1" + bytes(0xF8 - 0x28)
    return (
        Target(
            "GVCP answer", lambda _f: [discovered, b"\0\0\0\x81\0\4\0\1\0\0\0\2", b"\0\0\0\x83\0\4\0\1"], answers, ()
        ),
        Target(
            "camera process", lambda _f: [b"\x0b\0\0\0" + b'{"frame":1}' + b"\2\0\0\0{}"], channel, (ChannelClosed,)
        ),
        Target("PLC registers", lambda _f: [bytes(2 * RESULT_WORDS)], registers, ()),
    )
