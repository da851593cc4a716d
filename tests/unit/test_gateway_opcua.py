"""What an OPC UA client sees of the gateway, and what it may not."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from asyncua import Client, ua
from asyncua.crypto.cert_gen import setup_self_signed_certificate
from cryptography.x509.oid import ExtendedKeyUsageOID

from edge_daemon.gateway.errors import GatewayError
from edge_daemon.gateway.opcua import NAMESPACE, RESULT_FIELDS, STATES, OpcuaEdge, result_values, state_values
from edge_daemon.gateway.words import Bits, Block, ErrorCode
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


def test_only_clients_whose_certificate_is_named_get_in_and_only_encrypted(tmp_path: Path) -> None:
    async def certificate(name: str) -> tuple[Path, Path]:
        key, cert = tmp_path / f"{name}.pem", tmp_path / f"{name}.der"
        use = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        await setup_self_signed_certificate(key, cert, NAMESPACE, "localhost", use, {"commonName": name})
        return cert, key

    async def reads(url: str, cert: Path | None, key: Path | None) -> list[object]:
        client = Client(url, timeout=4)
        client.application_uri = NAMESPACE
        if cert is not None and key is not None:
            await client.set_security_string(f"Basic256Sha256,SignAndEncrypt,{cert},{key}")
        async with client:
            return await values(client, ["Online"])

    async def all_of_it() -> None:
        server, friend, stranger = [await certificate(name) for name in ("server", "friend", "stranger")]
        url = f"opc.tcp://127.0.0.1:{free_ports(1)[0]}"
        edge = OpcuaEdge(url, ["st1"], *server, viewers=[friend[0]])
        await edge.open()
        try:
            assert await reads(url, *friend) == [False]
            for nobody in (stranger, (None, None)):
                with pytest.raises((ua.UaError, ConnectionError, OSError, asyncio.TimeoutError)):
                    await reads(url, *nobody)
        finally:
            await edge.close()

    asyncio.run(all_of_it())


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
