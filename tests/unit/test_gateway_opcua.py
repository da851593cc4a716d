"""What an OPC UA client sees of the gateway, and what it may not."""

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from asyncua import Client, ua
from asyncua.crypto.cert_gen import setup_self_signed_certificate
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge_daemon.gateway.certificates import Validity, complaints
from edge_daemon.gateway.config import OpcuaUserConfig
from edge_daemon.gateway.errors import GatewayError
from edge_daemon.gateway.opcua import (
    MOST_CONNECTIONS,
    NAMESPACE,
    RESULT_FIELDS,
    STATES,
    OpcuaEdge,
    _Viewer,
    result_values,
    state_values,
)
from edge_daemon.gateway.opcua_users import Account, Accounts, read_password
from edge_daemon.gateway.words import Bits, Block, Disposition, ErrorCode
from tests.daemon import free_ports
from tests.wire_kit import inspection, not_ok

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:asyncua")


def test_every_variable_gets_a_value() -> None:
    assert list(state_values(Block())) == [name for name, _, _ in STATES]
    assert list(result_values(inspection())) == [name for name, _, _ in RESULT_FIELDS]


async def values(client: Client, names: list[str]) -> list[object]:
    index = await client.get_namespace_index(NAMESPACE)
    return [await client.get_node(f"ns={index};s=st1.{name}").read_value() for name in names]


def serve(talk: Callable[[Client, OpcuaEdge], Awaitable[None]]) -> None:
    async def both() -> None:
        url = f"opc.tcp://127.0.0.1:{free_ports(1)[0]}"
        edge = OpcuaEdge(url, ["st1"])
        await edge.open()
        try:
            async with Client(url) as client:
                await talk(client, edge)
        finally:
            await edge.close()
            await edge.close()

    asyncio.run(both())


def test_a_client_reads_states_and_results_and_can_write_neither() -> None:
    async def talk(client: Client, edge: OpcuaEdge) -> None:
        block = Block(bits=Bits.ONLINE | Bits.TRIGGER_READY, error=ErrorCode.NONE, heartbeat=70_000, station_state=5)
        edge.states({"st1": block})
        edge.result(not_ok())
        edge.result(inspection(station="st9"))
        await edge.write()
        assert await values(client, ["Online", "TriggerReady", "Heartbeat", "State"]) == [True, True, 70_000, 5]
        names = ["Result.ResultId", "Result.ResultEvaluation", "Result.ResultState", "Result.PartId", "Result.JobId"]
        assert await values(client, names) == [not_ok().result_id, 2, 1, "PN-0042", "bottle"]
        index = await client.get_namespace_index(NAMESPACE)
        for name in ("TriggerReady", "Result.ResultEvaluation"):
            with pytest.raises(ua.UaError):
                await client.get_node(f"ns={index};s=st1.{name}").write_value(ua.Variant(1, ua.VariantType.Int32))
        with pytest.raises(ua.UaError):
            await client.nodes.objects.add_object(index, "intruder")

    serve(talk)


def test_who_connects_and_says_nothing_takes_no_more_than_some_connections_and_a_client_of_before_is_served() -> None:
    async def talk(client: Client, _edge: OpcuaEdge) -> None:
        host, port = client.server_url.hostname, client.server_url.port
        silent = [await asyncio.open_connection(host, port) for _ in range(MOST_CONNECTIONS + 20)]
        refused = silent[MOST_CONNECTIONS:]
        for reader, _ in refused:
            assert await asyncio.wait_for(reader.read(1), 5) == b"", "closed"
        assert await values(client, ["Online"]) == [False]
        for _, writer in silent:
            writer.close()

    serve(talk)


def test_a_message_without_end_is_not_collected() -> None:
    async def talk(client: Client, _edge: OpcuaEdge) -> None:
        reader, writer = await asyncio.open_connection(client.server_url.hostname, client.server_url.port)
        policy = b"http://opcfoundation.org/UA/SecurityPolicy#None"
        security = struct.pack("<i", len(policy)) + policy + struct.pack("<ii", -1, -1)
        url = b"opc.tcp://127.0.0.1"
        hello = struct.pack("<IIIII", 0, 65_535, 65_535, 0, 0) + struct.pack("<i", len(url)) + url
        writer.write(b"HELF" + struct.pack("<I", 8 + len(hello)) + hello)
        assert (await asyncio.wait_for(reader.read(100), 5))[:3] == b"ACK"
        with contextlib.suppress(ConnectionError):
            for number in range(40):  # each a piece of one message, 60 kB
                chunk = struct.pack("<I", 0) + security + struct.pack("<II", number + 1, 1) + bytes(60_000)
                writer.write(b"OPNC" + struct.pack("<I", 8 + len(chunk)) + chunk)
                await writer.drain()
        assert b"ERR" in await told(reader)
        writer.close()
        assert await values(client, ["Online"]) == [False]

    serve(talk)


async def told(reader: asyncio.StreamReader) -> bytes:
    """What came until the connection was closed."""
    try:
        return await asyncio.wait_for(reader.read(4_096), 5)
    except ConnectionError:
        return b"ERR"


PASSWORD = "a long enough word"
Ask = Callable[[Client, int], Awaitable[object]]


@dataclass
class Guarded:
    """A server with certificates for clients of every sort. `reports`: what the gateway was told."""

    folder: Path
    url: str
    certificates: dict[str, tuple[Path, Path]]
    reports: list[tuple[str, int, int]] = field(default_factory=list)
    keeps: bool = True

    async def take(self, *report: Any) -> bool:
        """As the gateway: whether the report will outlive it."""
        self.reports.append(report)
        return self.keeps

    async def talk(self, who: str | None, ask: Ask, name: str = "", password: str = "") -> object:
        """What a client with this certificate gets, under a name or under none."""
        client = Client(self.url, timeout=4)
        client.application_uri = NAMESPACE
        if name:
            client.set_user(name)
            client.set_password(password)
        if who is not None:
            certificate, key = self.certificates[who]
            await client.set_security_string(f"Basic256Sha256,SignAndEncrypt,{certificate},{key}")
        async with client:
            return await ask(client, await client.get_namespace_index(NAMESPACE))

    async def refused(self, *who: Any) -> bool:
        try:
            await self.talk(*who)
        except (TimeoutError, ua.UaError, ConnectionError, OSError):
            return True
        return False


def guarded(folder: Path, talk: Callable[[Guarded], Awaitable[None]], more_viewers: Collection[Path] = ()) -> None:
    async def all_of_it() -> None:
        certificates = {}
        for name in ("server", "friend", "panel", "plc", "stranger"):
            key, cert = folder / f"{name}.pem", folder / f"{name}.der"
            use = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            await setup_self_signed_certificate(key, cert, NAMESPACE, "localhost", use, {"commonName": name})
            certificates[name] = cert, key
        (folder / "anna.password").write_text(PASSWORD + "\n")
        (folder / "anna.password").chmod(0o600)
        at = Guarded(folder, f"opc.tcp://127.0.0.1:{free_ports(1)[0]}", certificates)
        users = {
            "anna": OpcuaUserConfig(role="operator", password=folder / "anna.password"),
            "plc-7": OpcuaUserConfig(role="plc", certificate=certificates["plc"][0]),
        }
        edge = OpcuaEdge(
            at.url,
            ["st1"],
            *certificates["server"],
            viewers=[certificates["friend"][0], *more_viewers],
            trusted=[certificates["panel"][0]],
            users=users,
            on_report=at.take,
        )
        await edge.open()
        try:
            await talk(at)
        finally:
            await edge.close()

    asyncio.run(all_of_it())


async def reads(client: Client, index: int) -> object:
    return await client.get_node(f"ns={index};s=st1.Online").read_value()


async def browses(client: Client, index: int) -> object:
    children = await client.get_node(f"ns={index};s=st1").get_children()
    return {(await child.read_browse_name()).Name for child in children}


def reporting(
    value: object, kind: ua.VariantType = ua.VariantType.UInt32
) -> Callable[[Client, int], Awaitable[object]]:
    async def report(client: Client, index: int) -> object:
        await client.get_node(f"ns={index};s=st1.Disposition").write_value(ua.Variant(value, kind))
        return True

    return report


def writing(name: str, value: ua.Variant) -> Ask:
    async def write(client: Client, index: int) -> object:
        return await client.get_node(f"ns={index};s=st1.{name}").write_value(value)

    return write


def test_only_clients_whose_certificate_is_listed_get_in_and_only_encrypted(tmp_path: Path) -> None:
    async def talk(at: Guarded) -> None:
        assert await at.talk("friend", reads) is False
        assert {"Online", "Disposition", "Result"} <= set(await at.talk("plc", browses))  # type: ignore[call-overload]
        assert await at.talk("panel", reads, "anna", PASSWORD) is False
        assert await at.refused("stranger", reads)
        assert await at.refused(None, reads)
        assert await at.refused("panel", reads), "trusted to connect, and nobody yet"

    guarded(tmp_path, talk)


def test_a_password_opens_nothing_without_a_listed_certificate_and_a_wrong_one_nothing_at_all(tmp_path: Path) -> None:
    async def talk(at: Guarded) -> None:
        assert await at.refused("stranger", reads, "anna", PASSWORD)
        assert await at.refused("panel", reads, "anna", "")
        assert await at.refused("panel", reads, "anna", PASSWORD[:-1])
        assert await at.refused("panel", reads, "plc-7", PASSWORD), "who has no password cannot log in with one"
        assert await at.refused("panel", reads, "admin", PASSWORD)
        assert await at.talk("panel", reads, "anna", PASSWORD) is False

    guarded(tmp_path, talk)


def test_each_role_writes_what_is_its_own_and_nobody_anything_else(tmp_path: Path) -> None:
    async def talk(at: Guarded) -> None:
        passed, removed = reporting([7, Disposition.PASSED]), reporting([8, Disposition.REMOVED])
        assert await at.refused("friend", passed)
        assert await at.refused("friend", removed)
        assert await at.refused("panel", passed, "anna", PASSWORD)
        assert at.reports == []
        assert await at.talk("panel", removed, "anna", PASSWORD)
        assert await at.talk("plc", passed)
        assert at.reports == [("st1", 8, Disposition.REMOVED), ("st1", 7, Disposition.PASSED)]
        for name, value in (
            ("TriggerReady", ua.Variant(True, ua.VariantType.Boolean)),
            ("Result.ResultEvaluation", ua.Variant(1, ua.VariantType.Int32)),
        ):
            assert await at.refused("plc", writing(name, value))

    guarded(tmp_path, talk)


def test_a_report_that_is_none_is_refused_and_not_taken(tmp_path: Path) -> None:
    async def talk(at: Guarded) -> None:
        for value in ([0, 1], [7, 0], [7, 6], [7], [7, 1, 1], 7, []):
            assert await at.refused("plc", reporting(value)), value
        assert await at.refused("plc", reporting([7, 1], ua.VariantType.Int32)) or at.reports == [("st1", 7, 1)]
        assert at.reports in ([], [("st1", 7, 1)])

    guarded(tmp_path, talk)


def test_a_report_that_would_not_outlive_the_gateway_is_not_acknowledged(tmp_path: Path) -> None:
    async def talk(at: Guarded) -> None:
        at.keeps = False
        with pytest.raises(ua.uaerrors.BadResourceUnavailable):
            await at.talk("plc", reporting([7, Disposition.PASSED]))
        assert at.reports == [("st1", 7, Disposition.PASSED)]

    guarded(tmp_path, talk)


def made_out(folder: Path, name: str, from_days: int, to_days: int) -> Path:
    """A certificate that is valid from so many days from now until so many."""
    key, now = rsa.generate_private_key(public_exponent=65537, key_size=2048), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(NAMESPACE)])
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 7)
        .not_valid_before(now + timedelta(days=from_days))
        .not_valid_after(now + timedelta(days=to_days))
        .add_extension(uri, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.der"
    path.write_bytes(made.public_bytes(Encoding.DER))
    (folder / f"{name}.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    return path


def test_a_certificate_out_of_its_time_opens_nothing_and_its_name_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, young = made_out(tmp_path, "old", -30, -1), made_out(tmp_path, "young", 1, 30)
    good = made_out(tmp_path, "good", -1, 300)

    async def talk(at: Guarded) -> None:
        at.certificates |= {path.stem: (path, path.with_suffix(".pem")) for path in (old, young, good)}
        assert await at.talk("good", reads) is False
        assert await at.refused("old", reads)
        assert await at.refused("young", reads)
        assert await at.refused("old", reads, "anna", PASSWORD)

    guarded(tmp_path, talk, more_viewers=[old, young, good])
    assert "old.der is refused: it has expired on" in caplog.text
    assert "young.der is refused: it is not valid before" in caplog.text


def test_a_session_ends_with_its_certificate() -> None:
    now = [1_000.0]
    valid = {b"cert": ("mes.der", Validity(500.0, 2_000.0))}
    accounts = Accounts([Account("mes", "viewer", b"cert")], [b"cert"], False, valid=valid, now_s=lambda: now[0])
    person = accounts.get_user(None, certificate=b"cert")  # type: ignore[arg-type]
    assert person is not None
    assert person.until_s == 2_000.0
    read = ua.NodeId(ua.Int32(ua.ObjectIds.ReadRequest_Encoding_DefaultBinary))
    assert not _Viewer().check_validity(person, read, None), "by the clock on the wall it has expired long ago"
    person.until_s = float("inf")
    assert _Viewer().check_validity(person, read, None)
    for now[0] in (499.0, 2_001.0):
        assert accounts.get_user(None, certificate=b"cert") is None  # type: ignore[arg-type]


def test_people_are_told_of_certificates_that_end_within_a_month() -> None:
    day = 86_400.0
    named = {"server": Validity(0, 100 * day), "mes.der": Validity(90 * day, 200 * day)}
    assert complaints(named, 60 * day)[0].startswith("the certificate mes.der is not valid before 1970-04-01")
    assert complaints(named, 69 * day)[1:] == []
    assert "server expires on 1970-04-11" in complaints(named, 91 * day)[0]
    assert "server has expired on 1970-04-11" in complaints(named, 101 * day)[0]


# --- who is who, without a network --------------------------------------------------------------------------------


def test_five_wrong_passwords_in_a_row_refuse_the_name_for_a_while() -> None:
    now = [0]
    accounts = Accounts([Account("anna", "operator", password=b"right")], [b"cert"], False, lambda: now[0])

    def login(password: str) -> bool:
        return accounts.get_user(None, "anna", password, b"cert") is not None  # type: ignore[arg-type]

    assert [login("wrong") for _ in range(4)] == [False] * 4
    assert login("right")
    assert [login("wrong") for _ in range(5)] == [False] * 5
    assert not login("right")
    now[0] = 30_000_000_000
    assert login("right")


def test_anonymous_clients_look_where_that_is_said_and_report_nothing() -> None:
    local = Accounts((), None, True).get_user(None)  # type: ignore[arg-type]
    assert local is not None
    assert local.may_report == frozenset()
    assert Accounts((), None, False).get_user(None) is None  # type: ignore[arg-type]
    listed = Accounts((), [b"cert"], True)
    assert listed.get_user(None, certificate=b"cert") is not None  # type: ignore[arg-type]
    assert listed.get_user(None, certificate=b"other") is None  # type: ignore[arg-type]
    assert listed.get_user(None, username="", password="", certificate=b"cert") is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [(b"long enough to be one\n", 0o644, "chmod 600"), (b"short\n", 0o600, "12"), (b"\xff" * 20, 0o600, "no text")],
)
def test_a_password_file_that_is_none_is_refused(tmp_path: Path, content: bytes, mode: int, told: str) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(GatewayError, match=told):
        read_password(path)
    with pytest.raises(GatewayError, match="cannot be read"):
        read_password(tmp_path / "none")


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "server.pem").write_text("no certificate")
    edge = OpcuaEdge("opc.tcp://127.0.0.1:4840", ["st1"], tmp_path / "server.pem", tmp_path / "key.pem", [])
    with pytest.raises(GatewayError, match="cannot serve"):
        asyncio.run(edge.open())
    edge = OpcuaEdge("opc.tcp://127.0.0.1:4840", ["st1"], Path("a"), Path("b"), [tmp_path / "none.der"])
    with pytest.raises(GatewayError, match=r"none\.der"):
        asyncio.run(edge.open())


def test_results_that_nobody_writes_are_dropped_from_the_oldest_and_counted() -> None:
    edge = OpcuaEdge("opc.tcp://127.0.0.1:4840", ["st1"])
    for _ in range(300):
        edge.result(inspection())
    assert edge.dropped == 300 - 256
