"""The configuration of one line PC: one TOML file, and `EDGE_…` environment variables over it.

Every key is documented where it is declared; `deploy/docs/configuration.md` is made from that text.
`load_config` finds everything that is wrong at once; what it returns is frozen and has absolute paths.
"""

import hashlib
import ipaddress
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from edge_daemon.artefact.signature import checked_public_key
from edge_daemon.cameras.config import CameraConfig
from edge_daemon.errors import ConfigError
from edge_daemon.wire.messages import Mode

ENV_PREFIX = "EDGE_"

# Other programs of the same product read these; they are no keys of the configuration.
FOREIGN_VARIABLES = ("EDGE_CONFIG", "EDGE_CTL_", "EDGE_DEMO_", "EDGE_EXPORT_", "EDGE_TEST_")

# sockaddr_un.sun_path holds 108 bytes including the final zero (unix(7)).
_MAX_IPC_PATH_BYTES = 107

Table = dict[str, Any]


def _no_bool(value: object) -> object:
    """`true` is an int to Python; as a number it is always a slip."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _endpoint(value: str) -> str:
    """tcp://ADDRESS:PORT with an IPv4 address of this PC or `*` for all, or ipc:// with a short absolute path."""
    scheme, _, rest = value.partition("://")
    if scheme == "ipc":
        if not rest.startswith("/"):
            raise ValueError("ipc:// needs an absolute path, such as ipc:///run/edge-daemon/results")
        if len(os.fsencode(rest)) > _MAX_IPC_PATH_BYTES:
            raise ValueError(f"the path of an ipc:// socket may have {_MAX_IPC_PATH_BYTES} bytes, not more")
        return value
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host:
        raise ValueError("must look like tcp://127.0.0.1:5561 or ipc:///run/edge-daemon/results")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"the port must be a number from 1 to 65535, not {port!r}")
    if host != "*" and not _is_ipv4(host):
        raise ValueError(
            f"{host} is no IPv4 address; use tcp://127.0.0.1:{port} for programs on this PC only, or this PC's own "
            "address, or * for all of them"
        )
    return value


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def is_local_endpoint(endpoint: str) -> bool:
    """Whether only programs on this PC can reach it. Anything that is not surely so is not."""
    scheme, _, rest = endpoint.partition("://")
    if scheme == "ipc":
        return True
    try:
        return scheme == "tcp" and ipaddress.IPv4Address(rest.rpartition(":")[0]).is_loopback
    except ValueError:
        return False


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
TableName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
PublicKey = Annotated[str, AfterValidator(checked_public_key)]
Count = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
HighWaterMark = Annotated[Count, Field(ge=1, le=1_000_000)]
Threads = Annotated[Count, Field(ge=0, le=256)]

Provider = Literal["cpu", "cuda", "tensorrt"]


def _host_and_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ValueError("must look like 127.0.0.1:9108, an address of this PC and a port") from None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"the port must be a number from 1 to 65535, not {port!r}")
    return value


class Section(BaseModel):
    """Base of all tables: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class WireConfig(Section):
    """Where other programs connect: `tcp://ADDRESS:PORT`, with an IPv4 address of this PC or `*` for all of them, or
    `ipc:///PATH`. As soon as the network can reach one of them, all connections are encrypted and authenticated: see
    `[security]`."""

    results: Endpoint = "tcp://127.0.0.1:5561"
    """Results: one message per part (publisher)."""
    images: Endpoint = "tcp://127.0.0.1:5562"
    """Heatmaps and thumbnails, so that no verdict waits for a picture (publisher)."""
    status: Endpoint = "tcp://127.0.0.1:5563"
    """Status and events (publisher)."""
    triggers: Endpoint = "tcp://127.0.0.1:5564"
    """Triggers and job selection (request and reply)."""
    control: Endpoint = "tcp://127.0.0.1:5565"
    """Control: what `edge-ctl` speaks to (request and reply)."""
    replay: Endpoint = "tcp://127.0.0.1:5566"
    """Replay of records that a reader has missed (request and reply)."""
    amendments: Endpoint = "tcp://127.0.0.1:5567"
    """Where the gateway tells what became of verdicts and parts (request and reply)."""
    results_hwm: HighWaterMark = 10_000
    """Results kept for one slow subscriber, in messages; more are dropped for that subscriber, which sees the
    gap in `seq`, and stay in the journal."""
    images_hwm: HighWaterMark = 64
    """Pictures kept for one slow subscriber, in messages; more are dropped for it."""
    status_hwm: HighWaterMark = 1_000
    """Status and event messages kept for one slow subscriber; more are dropped for it."""
    max_request_bytes: Annotated[Count, Field(ge=1024, le=16_777_216)] = 65_536
    """Largest trigger or control request that is read, in bytes; a larger one ends its connection."""
    status_period_ms: Annotated[Number, Field(ge=10, le=100)] = 100
    """Longest time between two status messages, in milliseconds."""


ENDPOINTS: Final = tuple(name for name, key in WireConfig.model_fields.items() if isinstance(key.default, str))


class EngineConfig(Section):
    """What computes."""

    provider: Provider = "cpu"
    """Where the backbone runs. A provider that cannot be had is an error, never a silent other one."""
    fallback: Literal["cpu", "cuda"] | None = None
    """What may run instead when the provider cannot be had; every result names what ran. None by default."""
    intra_op_threads: Threads = 0
    """Threads of one backbone run; 0 for one per physical core of this process."""
    search_threads: Threads = 0
    """Threads of the nearest-neighbour search; 0 for one per physical core of this process."""
    max_batch: Annotated[Count, Field(ge=0, le=256)] = 0
    """Most frames in one backbone run; 0 for automatic: 1 on the CPU, where batches gain nothing, else 8."""
    batch_wait_ms: Annotated[Number, Field(ge=0, le=1_000)] = 2
    """How long a frame waits for others of its batch, in milliseconds; without effect on batches of one."""
    search: Literal["auto", "certified", "flat", "graph", "numpy"] = "auto"
    """Engine of the nearest-neighbour search: `auto` takes what the recipe says, else what is fastest here, measured
    once for a kind of bank and remembered (`edge-daemon engines` shows it). They differ in time, never in a result:
    `certified` looks only where the answer may change, `flat` compares every row, `graph` does so on the provider,
    with the bank in its memory, `numpy` is the slow reference."""
    embeddings: Literal["auto", "host", "device"] = "auto"
    """Where the backbone's embeddings wait for the search: in the memory of the PC (`host`) or where the provider
    computes (`device`). `auto` leaves them on the card when the search runs there too, with `graph`."""

    def batch_limit(self, provider: Provider) -> int:
        """Most frames in one run on the provider that really runs."""
        return self.max_batch or (1 if provider == "cpu" else 8)


class JournalConfig(Section):
    """The record of every trigger, durable before its result goes out."""

    path: Path | None = None
    """The SQLite file; `journal.sqlite` in the state folder by default."""
    commit_budget_ms: Annotated[Number, Field(gt=0, le=10_000)] = 200
    """How long a record may take to reach the disk, in milliseconds. Past it the verdict is withdrawn
    and the part fails, because nothing would prove it."""
    keep_days: Annotated[Number, Field(gt=0, le=36_500)] = 3_650
    """How long records of OK parts are kept, in days. What was removed is answered with `gone`."""
    keep_not_ok_days: Annotated[Number, Field(gt=0, le=36_500)] = 3_650
    """How long records of all other parts are kept, in days."""
    max_gb: Annotated[Number, Field(gt=0, le=100_000)] = 20
    """Most space for records, in gigabytes; a million take about 2. Past it the oldest records of OK parts are removed
    first, and others only when there are none."""


class ArchiveConfig(Section):
    """Pictures kept as files on this PC, named by the id of their result: the full frame and the heat over it. Never at
    the cost of a verdict: what its queue cannot take is dropped and counted."""

    keep: Literal["never", "not_ok", "always"] = "never"
    """Pictures of which parts, among those that `images.publish` of the station chooses; `not_ok` means every part
    that is not OK."""
    path: Path | None = None
    """The folder; `archive` in the state folder by default."""
    keep_days: Annotated[Number, Field(gt=0, le=36_500)] = 30
    """How long pictures of OK parts are kept, in days."""
    keep_not_ok_days: Annotated[Number, Field(gt=0, le=36_500)] = 365
    """How long pictures of all other parts are kept, in days."""
    max_gb: Annotated[Number, Field(gt=0, le=100_000)] = 50
    """Most space for pictures, in gigabytes. Past it whole days are removed: the oldest of OK parts first, others only
    when there are none."""
    min_free_gb: Annotated[Number, Field(ge=0, le=100_000)] = 2
    """With less free space than this on the disk, in gigabytes, no picture is kept: records come first."""


class StoreConfig(Section):
    """Where imported recipes are kept."""

    path: Path | None = None
    """The folder; `store` in the state folder by default."""


class SecurityConfig(Section):
    """Who is trusted, and what one client may take."""

    curve: Literal["auto", "always"] = "auto"
    """Whether connections are encrypted and authenticated with the keys that `edge-ctl keys` makes. `auto`: all of them
    as soon as the network can reach one endpoint. `always`: on a PC that is used by several people, too."""
    keys_dir: Path | None = None
    """The folder of the daemon's key and the list of clients; `keys` in the state folder by default. A `server.key`
    that systemd hands over (`LoadCredential=`) wins over the one there."""
    max_connections: Annotated[Count, Field(ge=8, le=4_096)] = 256
    """Connections to one socket at a time; one more is refused and counted."""
    max_triggers_per_s: Annotated[Number, Field(ge=10, le=100_000)] = 500
    """Triggers of one client in a second; more are refused with `too_fast`, and a client that goes on all the same is
    cut off. Several times what the line needs."""

    trusted_signers: Annotated[dict[TableName, PublicKey], Field(max_length=64)] = {}
    """Public keys of those whose signature on a recipe counts, by name: `anna = "…="`, as `edge-export signing-key
    --public FILE` prints them. Stations with `require_signed_recipes` judge by nothing else. Taken anew by `systemctl
    reload`, which needs no restart."""


class MetricsConfig(Section):
    """Metrics for Prometheus, over HTTP at `/metrics`. Counters, times and names of this configuration, no secret and
    no picture; whoever reaches the address can read them, and can do nothing else there."""

    listen: Annotated[str, AfterValidator(_host_and_port)] | None = None
    """Address and port, such as `127.0.0.1:9108` for a Prometheus (or an agent) on this PC, or this PC's address on the
    plant's network. By default none."""


class ImagesConfig(Section):
    """Which pictures go out on the images socket."""

    publish: Literal["never", "not_ok", "always"] = "not_ok"
    """`not_ok` sends pictures of every part that is not OK, including those that could not be judged."""
    heatmap_format: Literal["png", "jpeg"] = "png"
    """Encoding of heatmaps and thumbnails."""
    max_side_px: Annotated[Count, Field(ge=16, le=4096)] = 512
    """Longest side of a published picture, in pixels; smaller ones are not enlarged."""
    jpeg_quality: Annotated[Count, Field(ge=1, le=100)] = 85
    """Quality of JPEG pictures."""


class ViewConfig(Section):
    """One look at the part, and what judges it."""

    camera: str
    """Name of a `[cameras.NAME]` table. A camera belongs to one station."""
    exposure: Annotated[Count, Field(ge=1, le=16)] = 1
    """Which of several exposures of the same part this is, where one camera takes more than one (with another light,
    say): one view each, `exposure = 1`, `2`, … in the order they are taken."""
    view: TableName | None = None
    """Name of the view in results. By default the camera's, and `top#2` for the second exposure of `top`."""
    recipe: Annotated[str, Field(min_length=1, max_length=4096)]
    """A recipe of the store: `bottle` (the newest), `bottle@VERSION` or `bottle@DIGEST`; or the path of a
    `.recipe` file or folder, relative to this file, written with a `/` or ending in `.recipe`."""
    camera_settings: Literal["require", "warn"] = "require"
    """While the camera is not set as it was for the recipe's pictures (exposure, gain, region and whatever else it
    reports; for recipes that say so). `require`: no part is judged. `warn`: an alarm, and parts are judged all the
    same; for a camera that does not report what the recipe has, and for trials with recorded pictures."""

    @property
    def name(self) -> str:
        """Name of the view in results."""
        return self.view or default_view_name(self.camera, self.exposure)

    @property
    def recipe_path(self) -> Path | None:
        """The recipe's path, or None when it is a name in the store."""
        return Path(self.recipe) if is_recipe_path(self.recipe) else None


class HardwareConfig(Section):
    """What the plant states about pulses on a wire; for `trigger = "hardware"`. Numbers that are too narrow or too wide
    cost parts, which fail; they never give a part another one's verdict. Times are in milliseconds."""

    earliest_ms: Annotated[Number, Field(ge=-60_000, le=60_000)] = -50
    """The exposure begins at the earliest this long after its announcement reached this PC; negative for
    announcements that may come after their pulse."""
    latest_ms: Annotated[Number, Field(ge=-60_000, le=60_000)] = 100
    """The exposure begins at the latest this long after its announcement. Two parts must be further apart than
    `latest_ms - earliest_ms`: within that time nothing tells them apart, and both fail."""
    shortest_delay_ms: Annotated[Number, Field(ge=0, le=60_000)] = 0
    """From the start of an exposure to the complete frame on this PC, at least: the exposure time itself, say."""
    longest_delay_ms: Annotated[Number, Field(ge=0, le=60_000)] = 300
    """From the start of an exposure to the complete frame on this PC, at most: exposure, transfer, a busy network.
    A result waits for `latest_ms + longest_delay_ms` (and what `earliest_ms` is below zero) after its announcement,
    because until then a second frame could turn up. Where the camera has no clock that this PC can relate to its own,
    two parts must be further apart by the difference to `shortest_delay_ms` too."""
    quiet_ms: Annotated[Number, Field(ge=700, le=60_000)] = 1_500
    """After a doubt the station takes no triggers until neither an announcement nor a frame came for this long. At
    least the time that a result waits, and longer than any frame is ever late."""


class StationConfig(Section):
    """A place where parts are judged."""

    views: Annotated[tuple[ViewConfig, ...], Field(min_length=1, max_length=32)]
    """The views of one part: `[{ camera = "top", recipe = "bottle" }]`. The worst view rules."""
    mode: Mode = "production"
    """What the results are for; only `production` results may release a part."""
    trigger: Literal["software", "hardware", "free_run"] = "software"
    """`software`: one inspection for each request on the trigger socket, which makes the cameras expose. `hardware`: a
    pulse on a wire makes them expose, and the request announces it; for cameras that count their exposures.
    `free_run`: one inspection for each frame that the camera delivers; for a single view, since nothing says which
    frames of two show one part."""
    hardware: HardwareConfig = HardwareConfig()
    """When pulses and their frames may come; for `trigger = "hardware"`."""
    deadline_ms: Annotated[Number, Field(gt=0, le=600_000)] = 1_000
    """Longest time from trigger to verdict, in milliseconds. A later verdict is `Failed`, reason `late`.
    Shorter than the way from camera to reject gate."""
    queue: Annotated[Count, Field(ge=0, le=1_000)] = 2
    """Triggers that may wait while one is being judged. One more is a missed trigger: counted, published,
    never OK."""
    frame_timeout_ms: Annotated[Number, Field(gt=0, le=600_000)] | None = None
    """How long to wait for the frame of a trigger, in milliseconds, at most the deadline. By default four
    fifths of the deadline: a frame that comes later leaves hardly time to judge it."""
    exposed_within_ms: Annotated[Number, Field(gt=0, le=600_000)] = 250
    """Software triggers: the longest time from the trigger to the exposure of every view, in milliseconds. A picture
    exposed later may show the next part: it is `Failed`, reason `exposed_late`. Shorter than the distance of two
    parts divided by their speed, less if the part must be inside the picture. Of a camera without a clock the arrival
    of the picture counts. Longer only where parts stand still until the verdict, or for streams in trials."""
    idle_check_s: Annotated[Number, Field(ge=0, le=60)] = 1.0
    """How often an idle station inspects a golden sample, in seconds, to prove that it could judge; it
    yields to any trigger. 0 for never; but a station that only a golden sample brings back to Ready has one
    inspected every second at least."""
    golden_check_s: Annotated[Number, Field(ge=1, le=3_600)] = 60.0
    """How long a station may judge parts without a golden sample, in seconds: after that, one is inspected between two
    parts, right after a verdict, if no part is late by it. Where there is no such moment, an alarm says so after five
    times as long; the station goes on."""
    require_signed_recipes: bool = False
    """Judge only by recipes that one of `security.trusted_signers` has signed. Any other is refused when it is
    activated and at every start, the one that was active before included; the station is then not ready."""
    images: ImagesConfig = ImagesConfig()
    """Which pictures go out."""

    @property
    def frame_wait_ms(self) -> float:
        """How long to wait for the frame of a trigger, in milliseconds."""
        return self.frame_timeout_ms if self.frame_timeout_ms is not None else 0.8 * self.deadline_ms


class Config(Section):
    """The whole file. Paths are absolute after `load_config`."""

    line: Name
    """Name of the production line; every result carries it."""
    state_dir: Path = Path("/var/lib/edge-daemon")
    """Where the daemon keeps what must outlive it. Relative paths are relative to this file."""
    wire: WireConfig = WireConfig()
    """Where other programs connect."""
    engine: EngineConfig = EngineConfig()
    """What computes."""
    journal: JournalConfig = JournalConfig()
    """The record of every trigger."""
    archive: ArchiveConfig = ArchiveConfig()
    """Pictures kept on this PC."""
    store: StoreConfig = StoreConfig()
    """Where imported recipes are kept."""
    security: SecurityConfig = SecurityConfig()
    """Who is trusted."""
    metrics: MetricsConfig = MetricsConfig()
    """What Prometheus reads."""
    cameras: Annotated[dict[TableName, CameraConfig], Field(min_length=1)]
    """The cameras, one table each."""
    stations: Annotated[dict[TableName, StationConfig], Field(min_length=1)]
    """The stations, one table each."""

    @property
    def uses_keys(self) -> bool:
        """Whether connections are encrypted and authenticated."""
        endpoints = (getattr(self.wire, name) for name in ENDPOINTS)
        return self.security.curve == "always" or not all(map(is_local_endpoint, endpoints))

    @property
    def keys_path(self) -> Path:
        """The folder of the keys."""
        return self.security.keys_dir or self.state_dir / "keys"

    @property
    def audit_path(self) -> Path:
        """Every command, with who gave it and what came of it."""
        return self.state_dir / "audit.jsonl"

    @property
    def standing_alarms_path(self) -> Path:
        """Alarms that stand until somebody acknowledges them."""
        return self.state_dir / "standing-alarms.json"

    @property
    def journal_path(self) -> Path:
        """The SQLite file of the journal."""
        return self.journal.path or self.state_dir / "journal.sqlite"

    @property
    def archive_path(self) -> Path:
        """The folder of archived pictures."""
        return self.archive.path or self.state_dir / "archive"

    @property
    def engines_path(self) -> Path:
        """What was measured of the search engines."""
        return self.state_dir / "engines.json"

    @property
    def store_path(self) -> Path:
        """The folder of the recipe store."""
        return self.store.path or self.state_dir / "store"


class _Environment(Config, BaseSettings):
    """The same keys, read from the environment."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__")


def default_view_name(camera: str, exposure: int) -> str:
    """`top` for the first exposure of camera `top`, `top#2` for the second."""
    return camera if exposure == 1 else f"{camera}#{exposure}"


def is_recipe_path(reference: str) -> bool:
    """Whether a recipe is given by its path, and not by its name in the store."""
    return "/" in reference or reference.endswith(".recipe")


def config_digest(config: Config) -> str:
    """SHA-256, hexadecimal, of the configuration in force: of values, not of how the file is written."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def load_config(path: Path, *, recipes_must_exist: bool = True) -> Config:
    """Read the file and the environment.

    Raises ConfigError with every problem that can be found, in the order of the file: wrong values,
    unknown keys, and what does not fit together. With `recipes_must_exist` a recipe that is neither a
    file nor in the store is a problem too.
    """
    from edge_daemon import config_problems as problems

    text = _read_text(path)
    raw = _parse(path, text)
    found, environment = _environment()
    _lower_onto(raw, environment)
    _merge(raw, environment)
    _anchor_paths(raw, path.absolute().parent)
    config = None
    try:
        config = Config(**raw)
    except ValidationError as error:
        found += problems.in_words(Config, error)
    found += problems.that_do_not_fit(raw)
    if recipes_must_exist:
        found += problems.of_missing_recipes(raw)
    if found or config is None:
        raise ConfigError(problems.told(found, text))
    return config


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # editors on Windows put a byte order mark before it
    except FileNotFoundError as error:
        raise ConfigError([f"{path}: there is no such file; name the configuration with --config FILE"]) from error
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError([f"{path}, line {line}: is not UTF-8 text; save it as UTF-8"]) from error


def _parse(path: Path, text: str) -> Table:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: is not valid TOML: {error}; nothing else was checked"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: is not valid TOML: nested too deeply"]) from error
    except ValueError as error:  # a number of more digits than Python reads
        raise ConfigError([f"{path}: is not valid TOML: {error}"]) from error


def _environment() -> tuple[list[Any], Table]:
    """(problems, values) of the `EDGE_…` variables."""
    from edge_daemon import config_problems as problems

    found = problems.of_unknown_variables(Config, os.environ)
    try:
        return found, dict(EnvSettingsSource(_Environment)())
    except SettingsError as error:
        return [*found, problems.Problem(("environment",), f"an EDGE_ variable is not valid JSON: {error}")], {}


def _lower_onto(raw: Table, environment: Table) -> None:
    """Names of cameras and stations come from the environment in lower case and without hyphens: give
    them the spelling of the file."""
    for section in ("cameras", "stations"):
        tables, overrides = raw.get(section), environment.get(section)
        if isinstance(tables, dict) and isinstance(overrides, dict):
            for name in tables:
                folded = name.lower().replace("-", "_")
                if folded != name and folded in overrides and folded not in tables:
                    overrides[name] = overrides.pop(folded)


def _merge(raw: Table, over: Table) -> None:
    for key, value in over.items():
        below = raw.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            _merge(below, value)
        else:
            raw[key] = value


def _anchor_paths(raw: Table, base: Path) -> None:
    """Make every relative path absolute, as seen from the configuration file."""

    def anchor(table: object, key: str) -> None:
        if isinstance(table, dict) and isinstance(table.get(key), str) and table[key]:
            table[key] = os.path.normpath(base / table[key])

    anchor(raw, "state_dir")
    anchor(raw.get("journal"), "path")
    anchor(raw.get("archive"), "path")
    anchor(raw.get("store"), "path")
    anchor(raw.get("security"), "keys_dir")
    for camera in _tables(raw.get("cameras")):
        if camera.get("kind") == "gentl":
            anchor(camera, "producer")
        elif camera.get("kind") in ("folder", "video"):
            anchor(camera, "path")
        elif camera.get("kind") == "simulated":
            anchor(camera, "pulses")
    for station in _tables(raw.get("stations")):
        for view in _items(station.get("views")):
            if isinstance(view.get("recipe"), str) and is_recipe_path(view["recipe"]):
                anchor(view, "recipe")


def _tables(value: object) -> list[Table]:
    return [table for table in value.values() if isinstance(table, dict)] if isinstance(value, dict) else []


def _items(value: object) -> list[Table]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
