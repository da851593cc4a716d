"""The gateway's configuration: one TOML file of its own. `load_config` says everything that is wrong at once."""

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from edge_daemon import client
from edge_daemon.errors import ConfigError
from edge_daemon.gateway.release import DialogueSettings, Job

_MS: Final = 1_000_000
_SHOWN: Final = 80  # of a name or value that is wrong: enough to find it by
_TOLD: Final = 500


def _no_bool(value: object) -> object:
    """`true` is an int to Python; as a number it is always a slip."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Milliseconds = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=600_000, allow_inf_nan=False)]
Port = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=65_535)]
Endpoint = Annotated[str, Field(pattern=r"^(tcp|ipc)://\S+$", max_length=200)]
OpcuaRole = Literal["viewer", "operator", "plc"]
StationName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Section(BaseModel):
    """Base of all tables: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DaemonConfig(Section):
    """Where the daemon is: its `[wire]` table."""

    results: Endpoint = client.RESULTS
    """Results of the daemon."""
    status: Endpoint = client.STATUS
    """Status of the daemon."""
    triggers: Endpoint = client.TRIGGERS
    """Where the daemon takes triggers."""
    amendments: Endpoint = client.AMENDMENTS
    """Where the daemon takes what became of verdicts and parts, for their records."""
    key: Path | None = None
    """Key file of the gateway, with the role `gateway`, where the daemon uses keys: `edge-ctl keys enrol` makes it."""


class ModbusConfig(Section):
    """The Modbus/TCP server that the PLC polls."""

    host: str = "127.0.0.1"
    """Address of this PC on the PLC's network. Modbus knows no passwords: give the PLC a network of its own."""
    port: Port = 5020
    """Port; 502 is the usual one and needs the right to open it (the unit file has it)."""
    clients: tuple[str, ...] = ()
    """Addresses that may connect: the PLC's. Required as soon as `host` can be reached from a network."""

    @model_validator(mode="after")
    def _addresses(self) -> "ModbusConfig":
        try:
            host = ipaddress.ip_address(self.host)
            for address in self.clients:
                ipaddress.ip_address(address)
        except ValueError as exc:
            raise ValueError(f"{exc}; write addresses such as 192.168.0.10") from exc
        if not host.is_loopback and not self.clients:
            raise ValueError(f"{self.host} can be reached from a network: name the PLC's address in `clients`")
        return self


class MetricsConfig(Section):
    """Metrics for Prometheus, over HTTP at `/metrics`. Counters, times and names of this configuration, no secret;
    whoever reaches the address can read them, and can do nothing else there."""

    host: str = "127.0.0.1"
    """Address of this PC: of its own for a Prometheus (or an agent) on it, or on the plant's network."""
    port: Port = 9109
    """Port."""

    @model_validator(mode="after")
    def _address(self) -> "MetricsConfig":
        try:
            ipaddress.ip_address(self.host)
        except ValueError as exc:
            raise ValueError(f"{exc}; write an address such as 127.0.0.1") from exc
        return self


class OpcuaUserConfig(Section):
    """Somebody whom the OPC UA server knows: by a certificate of its own, by a password, or either."""

    role: OpcuaRole
    """`viewer` reads; `operator` may also report a part as removed; `plc` may report every disposition."""
    certificate: Path | None = None
    """Certificate of the client (DER or PEM)."""
    password: Path | None = None
    """File with the password in its first line, 12 characters at least, readable by its owner alone (or a credential of
    systemd). The connection's certificate must be on the list as well."""

    @model_validator(mode="after")
    def _proves_itself(self) -> "OpcuaUserConfig":
        if self.certificate is None and self.password is None:
            raise ValueError("anybody could be this user: give certificate, password or both")
        return self


class OpcuaConfig(Section):
    """The OPC UA server: states and results for reading, and reports of what became of parts. No part is released
    through it."""

    endpoint: Annotated[str, Field(pattern=r"^opc\.tcp://[^/\s]+:\d+(/\S*)?$")] = "opc.tcp://127.0.0.1:4840"
    """Address of the server."""
    certificate: Path | None = None
    """Certificate of the server (DER or PEM). Without one it speaks unencrypted, and on 127.0.0.1 only."""
    private_key: Path | None = None
    """Its private key (PEM)."""
    viewers: tuple[Path, ...] = ()
    """Certificates of clients that may read."""
    trusted: tuple[Path, ...] = ()
    """Certificates of clients that may connect and then say who they are, with a password."""
    anonymous: bool | None = None
    """Whether a client that names nobody may read; with a certificate of the server only one that is on the list. By
    default only without one, on this PC."""
    users: Annotated[dict[StationName, OpcuaUserConfig], Field(max_length=64)] = {}
    """Users: `[opcua.users.NAME]`."""

    @model_validator(mode="after")
    def _guarded(self) -> "OpcuaConfig":
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key go together")
        host = self.endpoint.removeprefix("opc.tcp://").rpartition(":")[0]
        if self.certificate is None and host not in ("127.0.0.1", "localhost"):
            raise ValueError(f"{host} can be reached from a network: give certificate, private_key and viewers")
        if self.certificate is not None and not (self.viewers or self.users):
            raise ValueError("nobody could read: name the certificates of the clients in `viewers`, or `users`")
        if self.certificate is None and (self.users or self.trusted):
            raise ValueError("users need encryption: give certificate and private_key")
        return self


class JobConfig(Section):
    """A product that the PLC can name by its number."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    """Name of its recipes. A record that was judged by others is not OK."""
    recipe_set: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Digest of the one recipe set that may release it (`edge-ctl status --all`); any of that name by default."""


class StationConfig(Section):
    """The dialogue about one station of the daemon."""

    unit: Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=247)]
    """Modbus unit id (device id) under which the PLC finds this station."""
    answer_ms: Milliseconds = 150
    """From the trigger to the daemon's answer. A trigger that waited longer may have been taken up when another part
    lay under the camera; its part is missed. What a part may move in this time, and in the PLC's own share of it, must
    not matter to the picture; where it does, trigger the camera by wire."""
    window_ms: Milliseconds
    """From the trigger to the verdict, measured here; OK is never set later. Shorter than the way from camera to
    gate."""
    hold_ms: Milliseconds | None = None
    """From the trigger on, how long an OK may stand unacknowledged; then it is withdrawn. Twice the window by
    default."""
    status_timeout_ms: Milliseconds = 500
    """Silence of the daemon after which it counts as dead; it speaks ten times a second."""
    heartbeat_timeout_ms: Milliseconds = 3_000
    """Standstill of the inspecting path after which Trigger Ready drops. Longer than the daemon's `idle_check_s`."""
    plc_timeout_ms: Milliseconds = 500
    """Time without a write of the PLC after which it counts as gone and everything open is forgotten."""
    accept_provisional: bool = False
    """Whether recipes of a few pictures, with a provisional threshold, may release parts."""
    commissioning: bool = False
    """Show OK of simulated pictures, as the word COMMISSIONING_OK. For commissioning; never the word that releases."""
    jobs: dict[Annotated[int, Field(ge=1, le=65_535)], JobConfig] = {}
    """Products by Job id: `[stations.NAME.jobs.1]`."""

    @model_validator(mode="after")
    def _times_fit(self) -> "StationConfig":
        if self.answer_ms > self.window_ms:
            raise ValueError("answer_ms is longer than window_ms: the verdict would be due before the answer")
        if self.hold_ms is not None and self.hold_ms < self.window_ms:
            raise ValueError("hold_ms is shorter than window_ms: an OK would end before it began")
        return self

    def settings(self, station: str) -> DialogueSettings:
        """The same for the dialogue, in nanoseconds."""

        def ns(milliseconds: float) -> int:
            return round(milliseconds * _MS)

        return DialogueSettings(
            station=station,
            answer_ns=ns(self.answer_ms),
            window_ns=ns(self.window_ms),
            hold_ns=ns(self.hold_ms if self.hold_ms is not None else 2 * self.window_ms),
            status_timeout_ns=ns(self.status_timeout_ms),
            heartbeat_timeout_ns=ns(self.heartbeat_timeout_ms),
            plc_timeout_ns=ns(self.plc_timeout_ms),
            jobs={number: Job(job.name, job.recipe_set) for number, job in self.jobs.items()},
            accept_provisional=self.accept_provisional,
            commissioning=self.commissioning,
        )


class GatewayConfig(Section):
    """The whole file."""

    daemon: DaemonConfig = DaemonConfig()
    """Where the daemon is."""
    modbus: ModbusConfig = ModbusConfig()
    """The Modbus/TCP server."""
    opcua: OpcuaConfig | None = None
    """The OPC UA server; none without this table."""
    metrics: MetricsConfig | None = None
    """Metrics for Prometheus; none without this table."""
    state_dir: Path = Path("/var/lib/edge-gateway")
    """Folder in which the gateway keeps what it has to tell the daemon, until the daemon has it on its disk."""
    stations: Annotated[dict[StationName, StationConfig], Field(min_length=1)]
    """The stations, by their names in the daemon's configuration."""

    @model_validator(mode="after")
    def _units_differ(self) -> "GatewayConfig":
        units = [station.unit for station in self.stations.values()]
        if len(set(units)) != len(units):
            raise ValueError("two stations have the same unit; the PLC could not tell them apart")
        return self


def load_config(path: Path) -> GatewayConfig:
    """Read the file; relative paths in it are relative to the file. Raises ConfigError with every problem."""
    try:
        raw = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as exc:
        raise ConfigError([f"{path}: cannot be read: {exc.strerror}; name the file with --config"]) from exc
    except (ValueError, RecursionError) as exc:  # no UTF-8, no TOML, nested too deeply, a number of 5,000 digits
        raise ConfigError([f"{path}: is not valid TOML: {exc}; nothing else was checked"]) from exc
    _anchor(raw.get("opcua"), path.absolute().parent)
    if isinstance(raw.get("state_dir"), str):
        raw["state_dir"] = path.absolute().parent / raw["state_dir"]
    daemon = raw.get("daemon")
    if isinstance(daemon, dict) and isinstance(daemon.get("key"), str):
        daemon["key"] = path.absolute().parent / daemon["key"]
    try:
        return GatewayConfig.model_validate(raw)
    except ValidationError as exc:
        raise ConfigError([_told(dict(problem)) for problem in exc.errors(include_url=False)]) from exc


def _anchor(opcua: object, base: Path) -> None:
    if isinstance(opcua, dict):
        for key in ("certificate", "private_key", "password"):
            if isinstance(opcua.get(key), str):
                opcua[key] = base / opcua[key]
        for key in ("viewers", "trusted"):
            if isinstance(opcua.get(key), list):
                opcua[key] = [base / v if isinstance(v, str) else v for v in opcua[key]]
        users = opcua.get("users")
        for user in users.values() if isinstance(users, dict) else ():
            _anchor(user, base)


def _told(problem: dict[str, Any]) -> str:
    """One sentence: where, and what is wrong there."""
    where = ".".join(str(step)[:_SHOWN] for step in problem["loc"] if step != "[key]") or "the file"
    match problem["type"]:
        case "missing":
            text = "is missing"
        case "extra_forbidden":
            text = "is no key of this table"
        case "value_error":
            text = str(problem["ctx"]["error"])
        case _:
            message = re.sub(r"^(Input|Value|String) should", "must", str(problem["msg"]))
            shown = repr(problem["input"])
            text = f"{message[:1].lower()}{message[1:]}, not {shown[:_SHOWN]}{'…' if len(shown) > _SHOWN else ''}"
    return f"{where}: {text[:_TOLD]}"
