"""The OPC UA server: states and results for reading, under the field names of OPC 40100-1.

For display, MES and diagnosis. It takes no triggers and no part is released through it: what it shows is the record as
published, with `IsSimulated` and all, and not the proven code word of the dialogue.

Who may read: with a certificate, clients whose own certificate is in `viewers`, signed and encrypted; without one,
anybody on this PC. There is one role, viewer: every service that writes, calls or changes nodes is refused.
Results wait in a queue of 256; when it is full the oldest is dropped and counted, as it can be read in the journal.
"""

import asyncio
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from asyncua import ua
from asyncua.common.node import Node
from asyncua.crypto.permission_rules import SimpleRoleRuleset, UserRole
from asyncua.server.server import Server
from asyncua.server.user_managers import CertificateUserManager, PermissiveUserManager
from asyncua.ua.object_ids import ObjectIds

from edge_daemon.gateway.errors import GatewayError
from edge_daemon.gateway.words import Bits, Block
from edge_daemon.wire.messages import Inspection

NAMESPACE: Final = "urn:edge-daemon:gateway"

_PERIOD_S: Final = 0.1
_RESULTS_QUEUE: Final = 256
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
    """Reading and subscribing; nothing else, whoever asks."""

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


class OpcuaEdge:
    """Serves the stations. `open` and `close` in the loop that feeds it; `run` writes until it is cancelled."""

    def __init__(
        self,
        endpoint: str,
        stations: Collection[str],
        certificate: Path | None = None,
        private_key: Path | None = None,
        viewers: Collection[Path] = (),
    ) -> None:
        self._endpoint = endpoint
        self._stations = tuple(stations)
        self._certificate = certificate
        self._private_key = private_key
        self._viewers = tuple(viewers)
        self._server: Server | None = None
        self._nodes: dict[tuple[str, str], tuple[Node, ua.VariantType]] = {}
        self._written: dict[tuple[str, str], object] = {}
        self._results: deque[Inspection] = deque()
        self._blocks: Mapping[str, Block] = {}
        self.dropped = 0

    async def open(self) -> None:
        """Raises GatewayError when a certificate cannot be read or the address cannot be had."""
        users = await self._users()
        server = Server(user_manager=users)  # type: ignore[arg-type]  # the managers share no base class
        await server.init()
        server.set_endpoint(self._endpoint)
        server.set_server_name("edge-gateway")
        await server.set_application_uri(NAMESPACE)
        server.allow_remote_admin(False)
        try:
            await self._secure(server)
            await self._add_nodes(server)
            await server.start()
        except (OSError, ValueError) as exc:
            with suppress(Exception):
                await server.stop()
            raise GatewayError(f"the OPC UA server cannot serve at {self._endpoint}: {exc}") from exc
        self._server = server

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

    async def _users(self) -> PermissiveUserManager | CertificateUserManager:
        if self._certificate is None:
            return PermissiveUserManager()
        users = CertificateUserManager()
        for viewer in self._viewers:
            try:
                await users.add_role(viewer, UserRole.User, str(viewer), _format(viewer))
            except (OSError, ValueError) as exc:
                raise GatewayError(f"the certificate of a viewer cannot be read: {viewer}: {exc}") from exc
        return users

    async def _secure(self, server: Server) -> None:
        if self._certificate is None or self._private_key is None:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity], permission_ruleset=_Viewer())
            server.set_identity_tokens([ua.AnonymousIdentityToken])
            return
        await server.load_certificate(self._certificate, _format(self._certificate))
        await server.load_private_key(self._private_key, format=_format(self._private_key))
        server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt], permission_ruleset=_Viewer())
        server.set_identity_tokens([ua.X509IdentityToken, ua.AnonymousIdentityToken])

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
