"""The gateway's doors: registers, Modbus server, configuration, command line."""

import asyncio
import json
import random
import struct
from collections.abc import Callable, Coroutine
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.client import AsyncModbusTcpClient

from edge_daemon.errors import ConfigError
from edge_daemon.gateway.cli import main
from edge_daemon.gateway.config import load_config
from edge_daemon.gateway.errors import GatewayError
from edge_daemon.gateway.modbus import MOST_CONNECTIONS, ModbusEdge
from edge_daemon.gateway.page import gateway_page
from edge_daemon.gateway.registers import (
    COMMAND_WORDS,
    RESULT_ADDRESS,
    RESULT_WORDS,
    decode_block,
    decode_command,
    encode_block,
    encode_command,
)
from edge_daemon.gateway.words import Bits, Block, Command, ErrorCode, ReasonCode, ShownResult, Verdict
from tests.daemon import free_ports

IDS = st.integers(0, 2**32 - 1)
WORDS = st.integers(0, 2**16 - 1)
RESULTS = st.builds(
    ShownResult, IDS, st.sampled_from(Verdict), st.sampled_from(ReasonCode), st.integers(0, 3), WORDS, WORDS
)
BLOCKS = st.builds(
    Block,
    st.integers(0, 2**9 - 1).map(Bits),
    st.sampled_from(ErrorCode),
    IDS,
    st.sampled_from(ErrorCode),
    IDS,
    st.integers(0, 7),
    st.integers(0, 8),
    st.integers(0, 64),
    RESULTS,
)
FLAGS = st.booleans()


@given(BLOCKS)
def test_a_block_survives_its_registers(block: Block) -> None:
    words = encode_block(block)
    assert len(words) == RESULT_WORDS
    assert all(0 <= word <= 0xFFFF for word in words)
    assert decode_block(words) == block


@given(BLOCKS, BLOCKS, st.integers(1, RESULT_WORDS - 1))
def test_a_block_torn_between_two_results_is_no_block(before: Block, after: Block, cut: int) -> None:
    if before.result.acquisition_id != after.result.acquisition_id:
        torn = decode_block([*encode_block(after)[:cut], *encode_block(before)[cut:]])
        # Torn outside the result it is one of the two, whole.
        assert torn is None or torn.result in (before.result, after.result)


@given(st.lists(WORDS, min_size=RESULT_WORDS, max_size=RESULT_WORDS))
def test_no_registers_make_the_plc_fall_over(words: list[int]) -> None:
    decode_block(words)


@given(st.builds(Command, FLAGS, FLAGS, FLAGS, FLAGS, WORDS, IDS, IDS))
def test_a_command_survives_its_registers(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


@given(st.lists(WORDS, min_size=COMMAND_WORDS, max_size=COMMAND_WORDS))
def test_any_registers_are_a_command(words: list[int]) -> None:
    assert decode_command(words).acquisition_id <= 2**32 - 1


# -- Modbus ---------------------------------------------------------------------------------------------


class Station:
    """Keeps what was written, shows what it is told to."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.shown = Block(heartbeat=70_000, result=ShownResult(5, Verdict.OK, ReasonCode.NONE, 1, 700, 3))

    def wrote(self, command: Command) -> None:
        self.commands.append(command)

    def block(self) -> Block:
        return self.shown


Talk = Callable[[AsyncModbusTcpClient, Station], Coroutine[Any, Any, None]]


def serve(talk: Talk, clients: tuple[str, ...] = (), station: Station | None = None) -> list[BaseException]:
    """Runs a server for one station, unit 3, and a client against it; what the server called fatal."""
    fatal: list[BaseException] = []

    async def both() -> None:
        port = free_ports(1)[0]
        plc_side = station or Station()
        edge = ModbusEdge("127.0.0.1", port, clients, {3: plc_side}, fatal.append)
        await edge.open()
        client = AsyncModbusTcpClient("127.0.0.1", port=port, timeout=1, retries=0, reconnect_delay=0)
        try:
            await client.connect()
            await talk(client, plc_side)
        finally:
            client.close()
            await edge.close()
            await edge.close()
            await asyncio.sleep(0)

    asyncio.run(both())
    return fatal


def test_a_plc_writes_its_command_and_reads_the_result_each_in_one_request() -> None:
    async def talk(client: AsyncModbusTcpClient, station: Station) -> None:
        command = Command(trigger_enable=True, trigger=True, job_id=2, acquisition_id=2**32 - 1, acknowledged_id=7)
        assert not (await client.write_registers(0, encode_command(command), device_id=3)).isError()
        assert station.commands == [command]
        for read in (client.read_holding_registers, client.read_input_registers):
            answer = await read(RESULT_ADDRESS, count=RESULT_WORDS, device_id=3)
            assert decode_block(answer.registers) == station.shown
        both = await client.readwrite_registers(
            read_address=RESULT_ADDRESS,
            read_count=RESULT_WORDS,
            write_address=0,
            values=encode_command(Command()),
            device_id=3,
        )
        assert decode_block(both.registers) == station.shown
        assert station.commands == [command, Command()]

    assert serve(talk) == []


def test_a_part_of_a_block_is_refused_and_changes_nothing() -> None:
    async def talk(client: AsyncModbusTcpClient, station: Station) -> None:
        for answer in (
            await client.write_register(0, 1, device_id=3),
            await client.write_registers(0, [1, 0], device_id=3),
            await client.write_registers(1, [0] * COMMAND_WORDS, device_id=3),
            await client.write_registers(RESULT_ADDRESS, [0] * RESULT_WORDS, device_id=3),
            await client.mask_write_register(address=0, and_mask=0, or_mask=3, device_id=3),
            await client.write_coils(0, [True] * COMMAND_WORDS, device_id=3),
            await client.read_coils(0, count=16, device_id=3),
            await client.read_holding_registers(RESULT_ADDRESS, count=RESULT_WORDS - 1, device_id=3),
            await client.read_holding_registers(RESULT_ADDRESS + 1, count=4, device_id=3),
            await client.read_holding_registers(9_999, count=1, device_id=3),
            await client.read_holding_registers(RESULT_ADDRESS, count=RESULT_WORDS, device_id=4),
        ):
            assert answer.isError()
        assert station.commands == []

    assert serve(talk) == []


def test_a_stranger_is_not_let_in() -> None:
    async def talk(client: AsyncModbusTcpClient, station: Station) -> None:
        from pymodbus.exceptions import ModbusException

        with pytest.raises(ModbusException):
            await client.write_registers(0, encode_command(Command()), device_id=3)
        assert station.commands == []

    assert serve(talk, clients=("192.0.2.1",)) == []


def test_garbage_and_half_requests_of_others_do_not_keep_the_plc_out() -> None:
    chance = random.Random(3)

    async def talk(client: AsyncModbusTcpClient, station: Station) -> None:
        host, port = "127.0.0.1", client.comm_params.port
        for size in (1, 7, 300, 70_000):
            _, writer = await asyncio.open_connection(host, port)
            writer.write(chance.randbytes(size))
            # A header that promises more than ever comes.
            writer.write(bytes.fromhex("000100000006030300"))
            await writer.drain()
            answer = await client.read_holding_registers(RESULT_ADDRESS, count=RESULT_WORDS, device_id=3)
            assert decode_block(answer.registers) == station.shown
            writer.transport.abort()
        assert station.commands == []

    assert serve(talk) == []


def test_no_function_but_the_four_is_answered_and_a_request_that_is_refused_has_done_nothing() -> None:
    async def talk(client: AsyncModbusTcpClient, station: Station) -> None:
        served = {3, 4, 16, 23}
        for function in range(1, 128):
            for body in (b"\0\0\0\1", b"\0\4\0\0", b"\x0e\1\0", b""):  # 8/4: be silent from now on
                if function not in served:
                    answer = await raw(client, struct.pack(">HHHBB", 7, 0, len(body) + 2, 3, function) + body)
                    assert answer[7:8] in (b"", bytes([function | 0x80]), b"\x80"), (function, body, answer)
        torn = await client.readwrite_registers(
            read_address=RESULT_ADDRESS,
            read_count=5,
            write_address=0,
            values=encode_command(Command(trigger=True)),
            device_id=3,
        )
        assert torn.isError()
        assert station.commands == []
        answer = await client.read_holding_registers(RESULT_ADDRESS, count=RESULT_WORDS, device_id=3)
        assert decode_block(answer.registers) == station.shown

    assert serve(talk) == []


async def raw(client: AsyncModbusTcpClient, request: bytes) -> bytes:
    """What comes back on a connection of its own, empty for nothing; the server is asked something else meanwhile."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.comm_params.port)
    try:
        # Something that is answered comes after it: an answer to the first is there by then.
        writer.write(request)
        await writer.drain()
        await client.read_holding_registers(RESULT_ADDRESS, count=RESULT_WORDS, device_id=3)
        await client.read_holding_registers(RESULT_ADDRESS, count=RESULT_WORDS, device_id=3)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(300), 5)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "request_hex",
    [
        "0001000100110310000000060c000100000000000900000000",  # another protocol
        "0001000000000310000000060c000100000000000900000000",  # no length
        "000100000003031000",  # shorter than it says
        "00010000ffff0310000000060c000100000000000900000000",
        "0001000000130310000000060400010000000000090000",  # fewer bytes than registers
        "0001000000130310000000020c000100000000000900000000",  # more bytes than registers
        "0001000000130010000000060c000100000000000900000000",  # to everybody
        "000100000013ff10000000060c000100000000000900000000",  # to unit 255
        "0001000000130410000000060c000100000000000900000000",  # to a station that there is not
    ],
)
def test_no_crooked_request_is_a_command_and_no_unit_stands_for_another(request_hex: str) -> None:
    async def talk(client: AsyncModbusTcpClient, station: Station) -> None:
        await raw(client, bytes.fromhex(request_hex))
        assert station.commands == []

    assert serve(talk) == []


def test_who_connects_and_never_speaks_is_closed_and_the_plc_that_speaks_is_not() -> None:
    async def talk(client: AsyncModbusTcpClient, station: Station) -> None:
        silent = []
        for _ in range(64):
            silent.append(await asyncio.open_connection("127.0.0.1", client.comm_params.port))
            assert not (await client.write_registers(0, encode_command(Command()), device_id=3)).isError()
        assert len(station.commands) == 64
        for reader, writer in silent[: 64 - MOST_CONNECTIONS + 1]:
            assert await asyncio.wait_for(reader.read(1), 5) == b"", "closed"
            writer.close()
        for _, writer in silent[64 - MOST_CONNECTIONS + 1 :]:
            writer.close()

    assert serve(talk) == []


def test_a_defect_is_told_and_the_plc_gets_no_block() -> None:
    class Broken(Station):
        def block(self) -> Block:
            raise ZeroDivisionError

    async def talk(client: AsyncModbusTcpClient, _station: Station) -> None:
        assert (await client.read_holding_registers(RESULT_ADDRESS, count=RESULT_WORDS, device_id=3)).isError()

    assert [type(error) for error in serve(talk, station=Broken())] == [ZeroDivisionError]


def test_a_port_in_use_says_what_to_do() -> None:
    async def twice() -> None:
        port = free_ports(1)[0]
        first = ModbusEdge("127.0.0.1", port, (), {1: Station()}, lambda _: None)
        second = ModbusEdge("127.0.0.1", port, (), {1: Station()}, lambda _: None)
        await first.open()
        try:
            with pytest.raises(GatewayError, match=f"cannot listen on 127.0.0.1 port {port}"):
                await second.open()
        finally:
            await second.close()
            await first.close()

    asyncio.run(twice())


# -- configuration and command line ----------------------------------------------------------------------

GOOD = """
[stations.st1]
unit = 1
window_ms = 800
[stations.st1.jobs.7]
name = "flange"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "gateway.toml"
    path.write_text(text)
    return path


def test_times_become_nanoseconds_and_an_ok_stands_for_two_windows(tmp_path: Path) -> None:
    settings = load_config(written(tmp_path, GOOD)).stations["st1"].settings("st1")
    assert (settings.window_ns, settings.hold_ns) == (800_000_000, 1_600_000_000)
    assert settings.jobs[7].name == "flange"
    assert not settings.commissioning
    assert not settings.accept_provisional


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("window_ms = 800", ""), "stations.st1.window_ms: is missing"),
        (("unit = 1", "unit = 1\nwindwo_ms = 1"), "stations.st1.windwo_ms: is no key of this table"),
        (("window_ms = 800", "window_ms = -1"), "stations.st1.window_ms: must be greater than 0, not -1"),
        (("window_ms = 800", "window_ms = nan"), "stations.st1.window_ms"),
        (("window_ms = 800", "window_ms = true"), "must be a number, not true or false"),
        (("window_ms = 800", "window_ms = 800\nhold_ms = 1"), "would end before it began"),
        (("window_ms = 800", "window_ms = 100"), "due before the answer"),
        (("[stations.st1]", "[modbus]\nhost = '0.0.0.0'\n[stations.st1]"), "name the PLC's address in `clients`"),
        (("[stations.st1]", "[modbus]\nhost = 'plc'\n[stations.st1]"), "write addresses such as"),
        (("[stations.st1]", "[stations.st2]\nunit = 1\nwindow_ms = 900\n[stations.st1]"), "the same unit"),
        (("jobs.7", "jobs.0"), "stations.st1.jobs.0"),
        (("[stations.st1]", "[opcua]\nendpoint = 'opc.tcp://10.0.0.1:4840'\n[stations.st1]"), "give certificate"),
        (("[stations.st1]", "[opcua]\ncertificate = 'a.pem'\n[stations.st1]"), "go together"),
        (("[stations.st1]", "[opcua]\n[opcua.users.a]\nrole = 'plc'\n[stations.st1]"), "anybody could be this user"),
        (("[stations.st1]", "[opcua]\n[opcua.users.a]\nrole = 'plc'\npassword = 'p'\n[stations.st1]"), "encryption"),
        (
            ("[stations.st1]", "[opcua.users.a]\nrole = 'engineer'\npassword = 'p'\n[stations.st1]"),
            "opcua.users.a.role",
        ),
        (("[stations.st1]", "[metrics]\nhost = 'here'\n[stations.st1]"), "write an address"),
        (("[stations.st1]", "stations = ["), "is not valid TOML"),
    ],
)
def test_a_wrong_configuration_says_where_and_what(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, GOOD.replace(*change)))
    assert told in str(caught.value)


def test_check_says_that_no_daemon_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, status, triggers, modbus = free_ports(4)
    wire = f'results = "tcp://127.0.0.1:{results}"\nstatus = "tcp://127.0.0.1:{status}"\n'
    text = f'[daemon]\n{wire}triggers = "tcp://127.0.0.1:{triggers}"\n[modbus]\nport = {modbus}\n{GOOD}'
    assert main(["check", "--config", str(written(tmp_path, text)), "--timeout", "0.1", "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem.startswith("station st1: nothing heard")


def test_check_names_files_of_the_opcua_server_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.der").write_bytes(b"no certificate")
    opcua = (
        '[opcua]\ncertificate = "own.der"\nprivate_key = "own.pem"\ntrusted = ["panel.der"]\n'
        '[opcua.users.anna]\nrole = "operator"\npassword = "anna.password"\n'
    )
    assert main(["check", "--config", str(written(tmp_path, opcua + GOOD)), "--timeout", "0.1", "--json"]) == 1
    told = [p for p in json.loads(capsys.readouterr().out)["problems"] if p.startswith("opcua")]
    missing = ("own.pem", "panel.der", "anna.password")
    assert told[:3] == [f"opcua: {tmp_path / name} cannot be read: is it there?" for name in missing]
    assert len(told) == 4
    assert f"{tmp_path / 'own.der'} is no certificate in DER or PEM" in told[3]


def test_check_says_where_what_is_to_be_told_cannot_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").write_text("")
    text = 'state_dir = "state"\n' + GOOD
    assert main(["check", "--config", str(written(tmp_path, text)), "--timeout", "0.1", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any(f"state_dir: {tmp_path / 'state'} is no folder" in problem for problem in problems)
    (tmp_path / "state").unlink()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "outbox.sqlite").write_bytes(b"garbage" * 100)
    assert main(["check", "--config", str(written(tmp_path, text)), "--timeout", "0.1", "--json"]) == 1
    assert any("outbox.sqlite" in problem for problem in json.loads(capsys.readouterr().out)["problems"])


def test_a_wrong_configuration_ends_with_the_status_that_systemd_does_not_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--config", str(tmp_path / "none.toml")]) == 78
    assert "name the file with --config" in capsys.readouterr().err


def test_every_field_of_the_block_has_a_register(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registers", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert sum(register["words"] for register in results) == RESULT_WORDS
    assert len(results) == len(fields(Block)) - 1 + len(fields(ShownResult)) + 2  # the layout, and the id again


def test_the_page_for_the_plc_programmer_is_the_one_that_is_made() -> None:
    page = (Path(__file__).resolve().parents[2] / "deploy" / "docs" / "gateway.md").read_text("utf-8")
    assert page == gateway_page(), "run `edge-gateway registers --page > deploy/docs/gateway.md` to make it anew"
    assert [line for line in page.splitlines() if line.endswith("|  |")] == [], "a word without its meaning"
