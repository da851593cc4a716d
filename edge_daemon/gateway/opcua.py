"""The OPC UA server: states and results for reading, under the field names of OPC 40100-1, and one value to write: what
became of a part.

For display, MES and diagnosis. It takes no triggers and no part is released through it: what it shows is the record as
published, with `IsSimulated` and all, and not the proven code word of the dialogue.

Who may read: with a certificate, clients whose own certificate is listed, signed and encrypted; without one, anybody on
this PC. Who may report: see `opcua_users`. Every other write, and all that calls or changes nodes, is refused.
Results wait in a queue of 256; when it is full the oldest is dropped and counted, as it can be read in the journal.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from asyncua import ua
from asyncua.common.callback import CallbackType
from asyncua.common.node import Node
from asyncua.crypto import uacrypto
from asyncua.crypto.permission_rules import SimpleRoleRuleset, UserRole
from asyncua.server.server import Server
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.object_ids import ObjectIds
from cryptography.hazmat.primitives.serialization import Encoding

from edge_daemon.gateway.certificates import Validity, validity, validity_of_file
from edge_daemon.gateway.config import OpcuaUserConfig
from edge_daemon.gateway.errors import GatewayError
from edge_daemon.gateway.opcua_users import Account, Accounts, Person, read_password
from edge_daemon.gateway.words import LARGEST_ID, Bits, Block, Disposition
from edge_daemon.wire.messages import Inspection

NAMESPACE: Final = "urn:edge-daemon:gateway"

_PERIOD_S: Final = 0.1
_RESULTS_QUEUE: Final = 256
MOST_CONNECTIONS: Final = 32
_ACTIVATION_S: Final = 10.0
_MOST_MESSAGE_BYTES: Final = 1024 * 1024
_EVALUATIONS: Final = {"Undefined": 0, "OK": 1, "NotOK": 2, "NotDecidable": 3}
_RESULT_STATES: Final = {"Completed": 1, "Aborted": 3, "Failed": 4}

STATES: Final[tuple[tuple[str, ua.VariantType, str], ...]] = (
    ("Online", ua.VariantType.Boolean, "the gateway hears the daemon and the PLC"),
    ("TriggerReady", ua.VariantType.Boolean, "a trigger would be taken now"),
    ("SystemBusy", ua.VariantType.Boolean, "parts are under way"),
    ("Error", ua.VariantType.Boolean, "something is wrong; ErrorCode says what"),
    ("ErrorCode", ua.VariantType.UInt16, "as in the register map"),
    ("State", ua.VariantType.UInt16, "state of OPC 40100-1, 1 to 7; 0 unknown"),
    ("Heartbeat", ua.VariantType.UInt32, "the inspecting path's counter"),
)
DISPOSITION: Final = (
    "Disposition",
    ua.VariantType.UInt32,
    "array of two: Acquisition Id of a part and what became of it; roles operator and plc write it",
)
RESULT_FIELDS: Final[tuple[tuple[str, ua.VariantType, str], ...]] = (
    ("IsPartial", ua.VariantType.Boolean, "always false: a record is whole"),
    ("IsSimulated", ua.VariantType.Boolean, "the picture shows no part of this line"),
    ("ResultState", ua.VariantType.Int32, "1 Completed, 3 Aborted, 4 Failed"),
    ("ResultEvaluation", ua.VariantType.Int32, "OPC 40001-101: 0 Undefined, 1 OK, 2 NotOK, 3 NotDecidable"),
    ("PartId", ua.VariantType.String, "part id of the record, empty when unknown"),
    ("ExternalTriggerId", ua.VariantType.String, "trigger id of the record"),
    ("InternalRecipeId", ua.VariantType.String, "digest of the recipe set"),
    ("InternalConfigurationId", ua.VariantType.String, "digest of the daemon's configuration"),
    ("JobId", ua.VariantType.String, "names of the recipes"),
    ("CreationTime", ua.VariantType.DateTime, "UTC of the trigger's arrival"),
    ("ProcessingTimes", ua.VariantType.Double, "milliseconds from the trigger to the verdict; -1 without one"),
    ("Reason", ua.VariantType.String, "why there is no plain verdict"),
    ("ResultId", ua.VariantType.String, "id of the record; written last, so subscribe to this one"),
)


class _Viewer(SimpleRoleRuleset):
    """Reading and subscribing; writing for those who may report something; nothing else, whoever asks."""

    _WRITE: Final = ua.NodeId(ua.Int32(ObjectIds.WriteRequest_Encoding_DefaultBinary))

    _ALLOWED: Final = (
        ObjectIds.CreateSessionRequest_Encoding_DefaultBinary,
        ObjectIds.ActivateSessionRequest_Encoding_DefaultBinary,
        ObjectIds.CloseSessionRequest_Encoding_DefaultBinary,
        ObjectIds.CloseSecureChannelRequest_Encoding_DefaultBinary,
        ObjectIds.GetEndpointsRequest_Encoding_DefaultBinary,
        ObjectIds.FindServersRequest_Encoding_DefaultBinary,
        ObjectIds.ReadRequest_Encoding_DefaultBinary,
        ObjectIds.BrowseRequest_Encoding_DefaultBinary,
        ObjectIds.TranslateBrowsePathsToNodeIdsRequest_Encoding_DefaultBinary,
        ObjectIds.CreateSubscriptionRequest_Encoding_DefaultBinary,
        ObjectIds.ModifySubscriptionRequest_Encoding_DefaultBinary,
        ObjectIds.DeleteSubscriptionsRequest_Encoding_DefaultBinary,
        ObjectIds.CreateMonitoredItemsRequest_Encoding_DefaultBinary,
        ObjectIds.ModifyMonitoredItemsRequest_Encoding_DefaultBinary,
        ObjectIds.DeleteMonitoredItemsRequest_Encoding_DefaultBinary,
        ObjectIds.SetPublishingModeRequest_Encoding_DefaultBinary,
        ObjectIds.PublishRequest_Encoding_DefaultBinary,
        ObjectIds.RepublishRequest_Encoding_DefaultBinary,
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        reading = {ua.NodeId(ua.Int32(identifier)) for identifier in self._ALLOWED}
        self._permission_dict = {UserRole.Admin: reading, UserRole.User: reading, UserRole.Anonymous: set()}

    def check_validity(self, user: object, action_type_id: ua.NodeId, body: object) -> bool:
        if isinstance(user, Person) and time.time() > user.until_s:
            return False  # its certificate has expired since it came
        if action_type_id == self._WRITE:
            return isinstance(user, Person) and bool(user.may_report)
        return bool(super().check_validity(user, action_type_id, body))  # type: ignore[no-untyped-call]


class OpcuaEdge:
    """Serves the stations. `open` and `close` in the loop that feeds it; `run` writes until it is cancelled.

    on_report: takes a report (station, Acquisition Id, code) and says whether it is kept; one that is not is not
    acknowledged, and whoever made it makes it again
    """

    def __init__(
        self,
        endpoint: str,
        stations: Collection[str],
        certificate: Path | None = None,
        private_key: Path | None = None,
        viewers: Collection[Path] = (),
        *,
        trusted: Collection[Path] = (),
        users: Mapping[str, OpcuaUserConfig] | None = None,
        anonymous: bool | None = None,
        on_report: Callable[[str, int, int], Awaitable[bool]] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._stations = tuple(stations)
        self._certificate = certificate
        self._private_key = private_key
        self._viewers = tuple(viewers)
        self._trusted = tuple(trusted)
        self._known = dict(users or {})
        self._anonymous = anonymous
        self._on_report = on_report
        self._reports: dict[ua.NodeId, str] = {}
        self._server: Server | None = None
        self._nodes: dict[tuple[str, str], tuple[Node, ua.VariantType]] = {}
        self._written: dict[tuple[str, str], object] = {}
        self._results: deque[Inspection] = deque()
        self._blocks: Mapping[str, Block] = {}
        self.dropped = 0
        self.certificates: dict[str, Validity] = {}
        """By the name that people know it by: `server`, the user's, the file's."""

    async def open(self) -> None:
        """Raises GatewayError when a certificate cannot be read or the address cannot be had."""
        users = await self._users()
        server = Server(user_manager=users)  # type: ignore[arg-type]  # asyncua's own share no base class
        await server.init()
        server.set_endpoint(self._endpoint)
        server.set_server_name("edge-gateway")
        await server.set_application_uri(NAMESPACE)
        server.allow_remote_admin(False)
        _bound(server)
        try:
            await self._secure(server)
            await self._add_nodes(server)
            server.subscribe_server_callback(CallbackType.PreWrite, self._before_write)
            await server.start()
        except (OSError, ValueError) as exc:
            with suppress(Exception):
                await server.stop()
            raise GatewayError(f"the OPC UA server cannot serve at {self._endpoint}: {exc}") from exc
        self._server = server
        if self._certificate is not None:
            self.certificates = {"server": validity_of_file(self._certificate), **self.certificates}

    async def close(self) -> None:
        """May be called twice."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop()

    def result(self, inspection: Inspection) -> None:
        """A record was published."""
        if len(self._results) >= _RESULTS_QUEUE:
            self._results.popleft()
            self.dropped += 1
        self._results.append(inspection)

    def states(self, blocks: Mapping[str, Block]) -> None:
        """What each station shows now; only the newest is written."""
        self._blocks = blocks

    async def run(self) -> None:
        """Writes what is new until cancelled."""
        while True:
            await self.write()
            await asyncio.sleep(_PERIOD_S)

    async def write(self) -> None:
        """Everything that is new, once."""
        while self._results:
            inspection = self._results.popleft()
            for name, value in result_values(inspection).items():
                await self._set(inspection.station, name, value)
        for station, block in self._blocks.items():
            for name, value in state_values(block).items():
                await self._set(station, name, value)

    async def _users(self) -> Accounts:
        if self._certificate is None:
            return Accounts((), None, anonymous=self._anonymous is not False)
        valid: dict[bytes, tuple[str, Validity]] = {}

        async def listed(path: Path, name: str) -> bytes:
            certificate = await _certificate(path)
            valid[certificate] = name, validity(certificate)
            return certificate

        accounts = [Account(str(path), "viewer", await listed(path, path.name)) for path in self._viewers]
        for name, user in self._known.items():
            own = await listed(user.certificate, name) if user.certificate is not None else None
            password = read_password(user.password) if user.password is not None else None
            accounts.append(Account(name, user.role, own, password))
        trusted = [await listed(path, path.name) for path in self._trusted]
        trusted += [account.certificate for account in accounts if account.certificate is not None]
        self.certificates = dict(valid.values())
        return Accounts(accounts, trusted, anonymous=self._anonymous is True, valid=valid)

    async def _before_write(self, event: Any, _dispatcher: object) -> None:
        """A report is taken before its value is written: what is refused is not shown either."""
        if not event.is_external:
            return
        for write in event.request_params.NodesToWrite:
            station = self._reports.get(write.NodeId)
            if station is None:
                continue  # written by nobody: the server refuses it
            number, code = _report_of(write.Value.Value)
            if write.AttributeId != AttributeIds.Value or not isinstance(event.user, Person):
                raise ua.uaerrors.BadUserAccessDenied
            if code not in event.user.may_report:
                raise ua.uaerrors.BadUserAccessDenied
            if self._on_report is None or not await self._on_report(station, number, code):
                raise ua.uaerrors.BadResourceUnavailable

    async def _secure(self, server: Server) -> None:
        if self._certificate is None or self._private_key is None:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity], permission_ruleset=_Viewer())
            server.set_identity_tokens([ua.AnonymousIdentityToken])
            return
        await server.load_certificate(self._certificate, _format(self._certificate))
        await server.load_private_key(self._private_key, format=_format(self._private_key))
        server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt], permission_ruleset=_Viewer())
        tokens = [ua.X509IdentityToken, ua.AnonymousIdentityToken]
        if any(user.password is not None for user in self._known.values()):
            tokens.append(ua.UserNameIdentityToken)
        server.set_identity_tokens(tokens)

    async def _add_nodes(self, server: Server) -> None:
        index = await server.register_namespace(NAMESPACE)
        for station in self._stations:
            parent = await server.nodes.objects.add_object(f"ns={index};s={station}", f"{index}:{station}")
            result = await parent.add_object(f"ns={index};s={station}.Result", f"{index}:Result")
            for name, kind, _ in STATES:
                node = await parent.add_variable(
                    f"ns={index};s={station}.{name}", f"{index}:{name}", _empty(kind), kind
                )
                self._nodes[station, name] = node, kind
            name, kind, _ = DISPOSITION
            report = await parent.add_variable(f"ns={index};s={station}.{name}", f"{index}:{name}", [0, 0], kind)
            await report.set_writable()
            self._reports[report.nodeid] = station
            for name, kind, _ in RESULT_FIELDS:
                path = f"ns={index};s={station}.Result.{name}"
                self._nodes[station, name] = (
                    await result.add_variable(path, f"{index}:{name}", _empty(kind), kind),
                    kind,
                )

    async def _set(self, station: str, name: str, value: object) -> None:
        entry = self._nodes.get((station, name))
        if entry is not None and self._written.get((station, name)) != value:
            node, kind = entry
            await node.write_value(ua.Variant(value, kind))
            self._written[station, name] = value


def _bound(server: Server) -> None:
    """The PLC's server is in the same process, with the same loop, memory and descriptors: what strangers can take of
    them is little. asyncua's own bounds are 1,000 connections, 30 s and 100 MB."""
    server.iserver.max_connections = MOST_CONNECTIONS
    server.iserver.max_pending_activation_seconds = _ACTIVATION_S
    server.iserver.max_pending_messages_per_connection = 64
    server.iserver.max_subscriptions = 4 * MOST_CONNECTIONS
    server.iserver.max_monitored_item_queue_size = 1_000
    server.limits.max_message_size = _MOST_MESSAGE_BYTES
    server.limits.max_chunk_count = _MOST_MESSAGE_BYTES // server.limits.max_recv_buffer + 1


def state_values(block: Block) -> dict[str, Any]:
    """The state variables by name."""
    return {
        "Online": bool(block.bits & Bits.ONLINE),
        "TriggerReady": bool(block.bits & Bits.TRIGGER_READY),
        "SystemBusy": bool(block.bits & Bits.SYSTEM_BUSY),
        "Error": bool(block.bits & Bits.ERROR),
        "ErrorCode": int(block.error),
        "State": block.station_state,
        "Heartbeat": block.heartbeat,
    }


def result_values(inspection: Inspection) -> dict[str, Any]:
    """The result variables by name, ResultId last."""
    judged_us = inspection.times.judged_us
    return {
        "IsPartial": False,
        "IsSimulated": inspection.simulated,
        "ResultState": _RESULT_STATES[inspection.result_state],
        "ResultEvaluation": _EVALUATIONS[inspection.evaluation],
        "PartId": inspection.part_id or "",
        "ExternalTriggerId": inspection.trigger_id,
        "InternalRecipeId": inspection.recipe_set,
        "InternalConfigurationId": inspection.provenance.config_digest,
        "JobId": ", ".join(sorted({view.recipe.name for view in inspection.views if view.recipe})),
        "CreationTime": _utc(inspection.times.utc),
        "ProcessingTimes": -1.0 if judged_us is None else judged_us / 1000,
        "Reason": inspection.reason,
        "ResultId": inspection.result_id,
    }


def _report_of(variant: ua.Variant | None) -> tuple[int, int]:
    """Acquisition Id and code. Raises BadTypeMismatch, BadOutOfRange."""
    value = variant.Value if variant is not None else None
    if not isinstance(value, list) or len(value) != 2 or not all(type(number) is int for number in value):
        raise ua.uaerrors.BadTypeMismatch
    number, code = value
    if not 0 < number <= LARGEST_ID or code not in {int(known) for known in Disposition if known}:
        raise ua.uaerrors.BadOutOfRange
    return number, code


async def _certificate(path: Path) -> bytes:
    """DER. Raises GatewayError."""
    try:
        certificate = await uacrypto.load_certificate(path, _format(path))
    except (OSError, ValueError) as exc:
        raise GatewayError(f"the certificate of an OPC UA client cannot be read: {path}: {exc}") from exc
    return bytes(certificate.public_bytes(Encoding.DER))


def _format(path: Path) -> str:
    """By what is in the file, whatever it is called."""
    return "pem" if path.read_bytes().lstrip().startswith(b"-----BEGIN") else "der"


def _utc(text: str) -> datetime:
    """Without a zone, as asyncua wants UTC; the epoch where the text is no time."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return datetime(1970, 1, 1)
    return (at.astimezone(UTC) if at.tzinfo else at).replace(tzinfo=None)


def _empty(kind: ua.VariantType) -> object:
    match kind:
        case ua.VariantType.Boolean:
            return False
        case ua.VariantType.String:
            return ""
        case ua.VariantType.Double:
            return -1.0
        case ua.VariantType.DateTime:
            return datetime(1970, 1, 1)
        case _:
            return 0
