"""The Modbus/TCP server that a polling PLC sees: one unit id per station, two blocks of registers each.

Both blocks are whole or not at all: the command block is written in one request (functions 16 and 23), the result
block read in one (3, 4 and 23). A request that touches only a part of one is refused, and so a block is never torn.
What is read is made at the moment of reading: an OK that ran out of time a microsecond before is gone.

At most `MOST_CONNECTIONS` are open; one more closes the one that has been silent for longest. So a PLC that was
switched off, or whose cable was pulled, leaves nothing behind that keeps it out one day, and neither does who only
connects.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol

from pymodbus.constants import ExcCodes
from pymodbus.pdu import ExceptionResponse
from pymodbus.server import ModbusTcpServer
from pymodbus.server.requesthandler import ServerRequestHandler
from pymodbus.simulator import DataType, SimData, SimDevice

from edge_daemon.gateway.errors import GatewayError
from edge_daemon.gateway.registers import (
    COMMAND_ADDRESS,
    COMMAND_LENGTHS,
    RESULT_ADDRESS,
    RESULT_WORDS,
    decode_command,
    encode_block,
)
from edge_daemon.gateway.words import Block, Command

# Read holding or input registers, write multiple registers, both in one request; no coils.
_READS: Final = (3, 4, 23)
_WRITES: Final = (16, 23)
_SERVED: Final = frozenset((*_READS, *_WRITES))
_READ_AND_WRITE: Final = 23
MOST_CONNECTIONS: Final = 16
"""A PLC has one, perhaps one for each station; the rest is for people who look."""
_WHOLE: Final = frozenset(
    {(RESULT_ADDRESS, RESULT_WORDS), *((COMMAND_ADDRESS, length) for length in COMMAND_LENGTHS)},
)


class PlcSide(Protocol):
    """What a transport needs of a station's dialogue."""

    def wrote(self, command: Command) -> None: ...

    def block(self) -> Block: ...


class ModbusEdge:
    """Serves the stations by unit id. `open` and `close` in the loop that feeds the dialogues.

    clients:  addresses that may connect, empty for all
    on_fatal: told when the dialogue fails in a way nobody foresaw; the PLC gets an exception response meanwhile
    """

    def __init__(
        self,
        host: str,
        port: int,
        clients: Collection[str],
        stations: Mapping[int, PlcSide],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._address = (host, port)
        self._clients = frozenset(clients)
        self._stations = dict(stations)
        self._on_fatal = on_fatal
        self._server: ModbusTcpServer | None = None

    async def open(self) -> None:
        """Raises GatewayError when the address cannot be had."""
        devices = [_device(unit, station, self._on_fatal) for unit, station in self._stations.items()]
        # Unit 0 stands for all that are not named; it has nothing to read.
        devices.append(SimDevice(0, simdata=[SimData(0xFFFF, values=0, datatype=DataType.REGISTERS, readonly=True)]))
        self._server = _Server(self._clients, devices, self._address)
        try:
            await self._server.serve_forever(background=True)
        except (RuntimeError, OSError) as exc:
            self._server = None
            host, port = self._address
            raise GatewayError(
                f"the Modbus server cannot listen on {host} port {port}: is it in use, is it an address of this PC, "
                "may this user open a port below 1024?"
            ) from exc

    async def close(self) -> None:
        """May be called twice."""
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]
            self._server = None


def _device(unit: int, station: PlcSide, on_fatal: Callable[[BaseException], None]) -> SimDevice:
    async def action(
        function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        values: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        try:
            if function not in (_READS if values is None else _WRITES):
                return ExcCodes.ILLEGAL_FUNCTION
            if values is not None:
                return _write(station, address, [int(value) for value in values])
            return _read(station, start, address, count, registers)
        except Exception as exc:  # told, and the process ends: pymodbus alone would log it and go on
            on_fatal(exc)
            return ExcCodes.DEVICE_FAILURE

    return SimDevice(
        unit,
        simdata=[
            SimData(COMMAND_ADDRESS, count=max(COMMAND_LENGTHS), values=0, datatype=DataType.REGISTERS),
            SimData(RESULT_ADDRESS, count=RESULT_WORDS, values=0, datatype=DataType.REGISTERS, readonly=True),
        ],
        action=action,
    )


def _write(station: PlcSide, address: int, values: list[int]) -> ExcCodes | None:
    if address != COMMAND_ADDRESS or len(values) not in COMMAND_LENGTHS:
        return ExcCodes.ILLEGAL_ADDRESS
    station.wrote(decode_command(values))
    return None


def _read(station: PlcSide, start: int, address: int, count: int, registers: list[int]) -> ExcCodes | None:
    if (address, count) not in _WHOLE:
        return ExcCodes.ILLEGAL_ADDRESS
    if address == RESULT_ADDRESS:
        at = RESULT_ADDRESS - start
        registers[at : at + RESULT_WORDS] = encode_block(station.block())
    return None


class _Server(ModbusTcpServer):
    """Lets in who may come."""

    def __init__(self, clients: frozenset[str], devices: list[SimDevice], address: tuple[str, int]) -> None:
        super().__init__(devices, address=address)
        self.clients = clients
        # By when they were heard, the silent ones first.
        self.connected: OrderedDict[_Connection, None] = OrderedDict()

    def callback_new_connection(self) -> ServerRequestHandler:
        return _Connection(self, self.trace_packet, self.trace_pdu, self.trace_connect)  # type: ignore[no-untyped-call]


class _Connection(ServerRequestHandler):
    def callback_connected(self) -> None:
        super().callback_connected()
        owner: Any = self.server
        peer = self.transport.get_extra_info("peername") if self.transport else None
        if owner.clients and (peer is None or peer[0] not in owner.clients):
            self.close()
            return
        owner.connected[self] = None
        while len(owner.connected) > MOST_CONNECTIONS:
            silent, _ = owner.connected.popitem(last=False)
            silent.close()

    def callback_disconnected(self, exc: Exception | None) -> None:
        owner: Any = self.server
        owner.connected.pop(self, None)
        super().callback_disconnected(exc)

    def callback_data(self, data: bytes, addr: tuple[Any, ...] | None = None) -> int:
        owner: Any = self.server
        if self in owner.connected:
            owner.connected.move_to_end(self)
        return super().callback_data(data, addr)

    async def handle_request(self) -> None:
        """What is not served is refused before any of it is done: pymodbus would answer diagnostics and the like by
        itself, and write the one half of a request whose other half is refused."""
        request: Any = self.last_pdu
        refusal = _refusal(request) if request else None
        if refusal is None:
            await super().handle_request()  # type: ignore[no-untyped-call]
            return
        response = ExceptionResponse(
            request.function_code, refusal, device_id=request.dev_id, transaction=request.transaction_id
        )
        self.server_send(response, self.last_addr)  # type: ignore[no-untyped-call]


def _refusal(request: Any) -> ExcCodes | None:
    if request.function_code not in _SERVED:
        return ExcCodes.ILLEGAL_FUNCTION
    if request.function_code == _READ_AND_WRITE and (request.read_address, request.read_count) not in _WHOLE:
        return ExcCodes.ILLEGAL_ADDRESS
    return None
