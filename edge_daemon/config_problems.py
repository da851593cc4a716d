"""What is wrong with a configuration, in words: where, what, what is allowed, what was probably meant.

pydantic judges single values; the rest here looks at the merged but unchecked tables, so that one wrong
value does not hide that another one does not fit.
"""

import difflib
import ipaddress
import math
import os
import re
import types
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from edge_daemon.config import (
    ENDPOINTS,
    ENV_PREFIX,
    FOREIGN_VARIABLES,
    HardwareConfig,
    Table,
    WireConfig,
    default_view_name,
    is_recipe_path,
)
from edge_daemon.errors import EdgeError

Where = tuple[str | int, ...]

_EVERY_ADDRESS = {"*", str(ipaddress.IPv4Address(0)), f"[{ipaddress.IPv6Address(0)}]"}
_SHOWN, _TOLD = 80, 1_000  # characters of a name, and of a sentence that repeats what is in the file
_NAME_RULE = "must be 1 to 64 letters, digits, '_' or '-', the first a letter or digit"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: the path of the key, and a sentence about it."""

    where: Where
    text: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an error of pydantic lies: the path without union tags, and what is declared there."""

    path: Where
    declared: Any
    field: FieldInfo | None


# ---------------------------------------------------------------- single values


def in_words(model: type[BaseModel], error: ValidationError) -> list[Problem]:
    """One problem per mistake: branches of a union are one, and so are a misspelled key and its absence."""
    by_path: dict[Where, list[tuple[_Place, ErrorDetails]]] = defaultdict(list)
    for details in error.errors(include_url=False):
        place = _place(model, details["loc"])
        by_path[place.path].append((place, details))
    misspelled = _misspelled(model, [d for entries in by_path.values() for _, d in entries])
    found = []
    for path, entries in by_path.items():
        if entries[0][1]["type"] == "missing" and path in misspelled:
            continue
        if entries[0][1]["type"] == "too_short" and entries[0][1]["input"]:
            continue  # pydantic counts only the entries that are right, and has said what is wrong with the others
        sentences = dict.fromkeys(_sentence(place, details) for place, details in entries)
        kind_is_wrong = entries[0][1]["type"].startswith("union_tag")
        found.append(Problem((*path, "kind") if kind_is_wrong else path, "; or ".join(sentences)))
    return found


def _misspelled(model: type[BaseModel], errors: Sequence[ErrorDetails]) -> set[Where]:
    """Paths of keys that are missing only because they are there under a similar name."""
    missing = {_place(model, e["loc"]).path for e in errors if e["type"] == "missing"}
    found = set()
    for details in errors:
        if details["type"] == "extra_forbidden":
            *table, key = _place(model, details["loc"]).path
            meant = _closest(str(key), _keys(_place(model, details["loc"][:-1]).declared))
            if meant is not None and (*table, meant) in missing:
                found.add((*table, meant))
    return found


def _sentence(place: _Place, details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    shown = _shown(details["input"])
    match kind:
        case "missing":
            return f"is missing: {_first_sentence(place.field)}"
        case "extra_forbidden":
            return _unknown_key(str(place.path[-1]), _keys(place.declared))
        case "literal_error" | "enum":
            return f"{shown} is not allowed{_meant(details['input'], place.declared)}; allowed: {context['expected']}"
        case "union_tag_invalid":
            tags = [tag.strip("' ") for tag in str(context["expected_tags"]).split(",")]
            return f"there is no kind '{context['tag']}'{_hint(str(context['tag']), tags)}; kinds: {_list(tags)}"
        case "union_tag_not_found":
            return "is missing: what sort of camera this is"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"must be {_limit(kind, context)}, not {shown}"
        case "too_short":
            return "needs at least one entry"
        case "value_error":
            return str(context["error"])
        case "string_pattern_mismatch":
            return f"{_NAME_RULE}, not {shown}" if _is_name(context) else f"{shown} does not have the expected form"
        case _:
            return f"{_wanted(kind, details['msg'])}, not {shown}"


def _is_name(context: Mapping[str, Any]) -> bool:
    return str(context.get("pattern", "")).endswith("-]{0,63}$")


def _wanted(kind: str, message: str) -> str:
    if kind == "finite_number":
        return "must be a finite number"
    for start, wanted in (
        ("int", "must be a whole number"),
        ("float", "must be a number"),
        ("bool", "must be true or false"),
        ("string_type", "must be text in quotes"),
        ("path", "must be a path in quotes"),
        ("model", "must be a table"),
        ("dict", "must be a table"),
        ("tuple", "must be a list in [ ]"),
        ("list", "must be a list in [ ]"),
    ):
        if kind.startswith(start):
            return wanted
    return message[:1].lower() + message[1:]


def _limit(kind: str, context: Mapping[str, Any]) -> str:
    words = {"greater_than": "greater than", "greater_than_equal": "at least", "less_than": "less than"}
    key = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}[kind]
    return f"{words.get(kind, 'at most')} {context[key]:g}"


def _unknown_key(key: str, known: Iterable[str]) -> str:
    known = list(known)
    return f"is no key of this table{_hint(key, known)}; keys here: {_list(known)}" if known else "is not known here"


def _first_sentence(field: FieldInfo | None) -> str:
    text = " ".join(((field.description if field else None) or "").split())
    return re.split(r"(?<=[.;]) ", text, maxsplit=1)[0].rstrip(".:;") or "it has no default"


def _shown(value: object) -> str:
    """The value as an operator may see it: short, and without the password of a URL."""
    text = re.sub(r"://[^/@\s]*@", "://***@", repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------- finding the place


def _place(model: type[BaseModel], loc: Sequence[str | int]) -> _Place:
    """Follow a location of pydantic through the declarations, leaving out tags that are in no file."""
    path: Where = ()
    declared: Any = model
    field: FieldInfo | None = None
    for step in loc:
        declared = _plain(declared)
        chosen = _branch(declared, step)
        if chosen is not None:
            declared = chosen
            continue
        following = _step(declared, step)
        if following is None:
            # Below a table it is a key that nobody declared; elsewhere pydantic's name for a branch.
            unknown_key = isinstance(declared, type) and issubclass(declared, BaseModel)
            return _Place((*path, step) if unknown_key else path, declared, field)
        declared, field = following
        path = (*path, step)
    return _Place(path, declared, field)


def _plain(declared: Any) -> Any:
    """Without Annotated and `| None`."""
    while True:
        if get_origin(declared) is Annotated:
            declared = get_args(declared)[0]
        elif len(options := _options(declared)) == 1:
            declared = options[0]
        else:
            return declared


def _options(declared: Any) -> list[Any]:
    if get_origin(declared) in (Union, types.UnionType):
        return [option for option in get_args(declared) if option is not type(None)]
    return []


def _branch(declared: Any, tag: str | int) -> Any:
    """The member of a tagged union with this tag in its `kind`."""
    for option in map(_plain, _options(declared)):
        kind = option.model_fields.get("kind") if isinstance(option, type) and issubclass(option, BaseModel) else None
        if kind is not None and tag in get_args(kind.annotation):
            return option
    return None


def _step(declared: Any, step: str | int) -> tuple[Any, FieldInfo | None] | None:
    if isinstance(declared, type) and issubclass(declared, BaseModel):
        field = declared.model_fields.get(str(step))
        return (field.annotation, field) if field else None
    arguments = get_args(declared)
    if get_origin(declared) is dict:
        return (arguments[1], None)
    if get_origin(declared) in (tuple, list) and isinstance(step, int):
        fixed = get_origin(declared) is tuple and Ellipsis not in arguments
        return (arguments[step] if fixed and step < len(arguments) else arguments[0], None)
    return None


def _keys(declared: Any) -> list[str]:
    declared = _plain(declared)
    return list(declared.model_fields) if isinstance(declared, type) and issubclass(declared, BaseModel) else []


# ---------------------------------------------------------------- what does not fit together


def that_do_not_fit(raw: Table) -> list[Problem]:
    """Keys that are right alone and wrong together. `raw` is merged and unchecked: anything may be missing
    or of the wrong type."""
    return [
        *_shared_endpoints(raw),
        *_fallbacks(raw),
        *_taken_names(raw),
        *_cameras_of_stations(raw),
        *_exposures(raw),
        *_pulses(raw),
        *_pulse_times(raw),
        *_shared_sources(raw),
        *_timing(raw),
        *_signers(raw),
    ]


def _shared_endpoints(raw: Table) -> list[Problem]:
    """The fault is in what is written, not in a default."""
    wire = _table(raw, "wire")
    defaults_first = sorted(ENDPOINTS, key=lambda name: name in wire)
    asked = [("wire", name, wire.get(name, WireConfig.model_fields[name].default)) for name in defaults_first]
    asked.append(("metrics", "listen", _table(raw, "metrics").get("listen")))
    listeners = [((table, name), at) for table, name, at in asked if isinstance(at, str)]
    return [
        Problem(where, f"{at} and `{'.'.join(other)}` at {there} cannot both be had; each needs a port of its own")
        for i, (where, at) in enumerate(listeners)
        for other, there in next(([taken] for taken in listeners[:i] if _meet(at, taken[1])), [])
    ]


def _meet(one: str, other: str) -> bool:
    """Whether two programs could not listen on both: the same socket, or a port on all addresses and on one."""
    if one == other:
        return True
    (host, _, port), (there, _, its) = (at.removeprefix("tcp://").rpartition(":") for at in (one, other))
    return port == its and (host == there or not _EVERY_ADDRESS.isdisjoint((host, there)))


def _taken_names(raw: Table) -> list[Problem]:
    return [
        Problem(("stations", name), "this name is taken by the daemon's own status messages; choose another")
        for name in _table(raw, "stations")
        if name == "daemon"
    ]


def _fallbacks(raw: Table) -> list[Problem]:
    engine = _table(raw, "engine")
    provider, fallback = engine.get("provider", "cpu"), engine.get("fallback")
    if fallback is None or (provider, fallback) in (("cuda", "cpu"), ("tensorrt", "cpu"), ("tensorrt", "cuda")):
        return []
    if provider not in ("cpu", "cuda", "tensorrt") or fallback not in ("cpu", "cuda"):
        return []  # said by the check of the single value
    return [Problem(("engine", "fallback"), f"'{fallback}' cannot stand in for the provider '{provider}'; remove it")]


def _cameras_of_stations(raw: Table) -> list[Problem]:
    cameras = list(_table(raw, "cameras"))
    first_user: dict[str, str] = {}
    found = []
    for station, index, view in _views(raw):
        where: Where = ("stations", station, "views", index, "camera")
        camera = view.get("camera")
        if not isinstance(camera, str):
            continue
        if camera not in cameras:
            found.append(
                Problem(where, f"there is no [cameras.{camera}]{_hint(camera, cameras)}; {_there_are(cameras)}")
            )
        elif first_user.get(camera, station) != station:
            found.append(Problem(where, f"camera '{camera}' already belongs to station '{first_user[camera]}'"))
        first_user.setdefault(camera, station)
    return found


def _exposures(raw: Table) -> list[Problem]:
    """Several exposures of one camera are numbered, and every view has a name of its own."""
    found = []
    of_camera: dict[tuple[str, str], list[tuple[int, object]]] = defaultdict(list)
    names: dict[tuple[str, str], tuple[str, object]] = {}
    for station, index, view in _views(raw):
        camera, exposure = view.get("camera"), view.get("exposure", 1)
        if not isinstance(camera, str) or not isinstance(exposure, int):
            continue
        of_camera[station, camera].append((index, exposure))
        name = str(view.get("view") or default_view_name(camera, exposure))
        if names.setdefault((station, name), (camera, exposure)) != (camera, exposure):
            found.append(Problem(("stations", station, "views", index, "view"), f"there are two views named '{name}'"))
    for (station, camera), views in of_camera.items():
        numbers = [number for _, number in views]
        where: Where = ("stations", station, "views", views[-1][0], "exposure")
        if sorted(map(str, numbers)) != sorted(str(n + 1) for n in range(len(numbers))):
            text = f"camera '{camera}' has {len(numbers)} views here; number their exposures 1 to {len(numbers)}"
            found.append(Problem(where, f"{text}, each once" if len(numbers) > 1 else f"{text}, or leave it out"))
    return found


def _pulses(raw: Table) -> list[Problem]:
    """Pulses on a wire need a camera that they trigger, that counts, and that exposes once for each."""
    cameras, found = _table(raw, "cameras"), []
    for station, index, view in _views(raw):
        name, camera = view.get("camera"), _table(cameras, str(view.get("camera")))
        kind, hardware = camera.get("kind"), _table(raw, "stations")[station].get("trigger") == "hardware"
        wants, where = _camera_trigger(camera), ("stations", station, "views", index, "camera")
        if hardware and kind in _UNCOUNTED:
            found.append(
                Problem(
                    where,
                    f"'hardware' needs a camera that counts its exposures (gige, gentl); '{name}' is {_article(kind)}, "
                    "and a lost picture could not be told from a late one",
                )
            )
        elif hardware and kind in _COUNTING and wants != "hardware":
            key = "pulses" if kind == "simulated" else 'trigger = "hardware"'
            found.append(Problem(where, f"no pulse triggers camera '{name}': give [cameras.{name}] {key}"))
        elif not hardware and wants == "hardware":
            text = f"camera '{name}' is triggered by pulses; give the station `trigger = \"hardware\"` too"
            found.append(Problem(where, text))
        if hardware and view.get("exposure", 1) != 1:
            found.append(
                Problem(
                    ("stations", station, "views", index, "exposure"),
                    "several exposures of one camera need software triggers: one announcement stands for one pulse, "
                    "and which of two pulses a lost picture belonged to could not be told",
                )
            )
    return found


_COUNTING = ("gige", "gentl", "simulated")
_UNCOUNTED = ("folder", "video", "usb", "rtsp")


def _article(kind: object) -> str:
    return {"usb": "a USB camera", "rtsp": "a network stream", "video": "a video"}.get(str(kind), f"a {kind}")


def _camera_trigger(camera: Table) -> object:
    if camera.get("kind") == "simulated":
        return "hardware" if camera.get("pulses") is not None else "software"
    return camera.get("trigger", "software") if camera.get("kind") in _COUNTING else None


def _pulse_times(raw: Table) -> list[Problem]:
    found = []
    for name, station in _table(raw, "stations").items():
        if not isinstance(station, dict):
            continue
        written, where = station.get("hardware"), ("stations", name, "hardware")
        if station.get("trigger") != "hardware":
            if isinstance(written, dict):
                text = 'has a meaning only with `trigger = "hardware"`; set that, or remove this table'
                found.append(Problem(where, text))
            continue
        table = written if isinstance(written, dict) else {}
        found += [Problem((*where, key), text) for key, text in _times_that_cannot_be(station, table)]
    return found


def _times_that_cannot_be(station: Table, table: Table) -> Iterable[tuple[str, str]]:
    """(key, what is wrong); a number that is none has been said already, and NaN compares with nothing."""
    ms = {key: _number(table.get(key, field.default)) for key, field in HardwareConfig.model_fields.items()}
    if ms["earliest_ms"] > ms["latest_ms"]:
        yield "latest_ms", f"{ms['latest_ms']:g} lies before earliest_ms, {ms['earliest_ms']:g}"
    if ms["shortest_delay_ms"] > ms["longest_delay_ms"]:
        yield "longest_delay_ms", f"{ms['longest_delay_ms']:g} is less than shortest_delay_ms"
    gives_up = ms["latest_ms"] + ms["longest_delay_ms"] + max(0.0, -ms["earliest_ms"])
    if ms["quiet_ms"] < gives_up:
        text = "a part would still wait for its frame when the silence is over: make it longer"
        yield "quiet_ms", f"{ms['quiet_ms']:g} is less than the {gives_up:g} ms after which a part is given up; {text}"
    deadline = _number(station.get("deadline_ms", 1_000))
    wait = _number(station.get("frame_timeout_ms", 0.8 * deadline))
    if gives_up > wait:
        text = "make latest_ms or longest_delay_ms smaller, or the deadline longer"
        yield (
            "longest_delay_ms",
            f"a result waits for {gives_up:g} ms (latest_ms + longest_delay_ms, and what earliest_ms is below zero); "
            f"with a deadline of {deadline:g} ms a frame must be there after {wait:g} ms: {text}",
        )


def _there_are(cameras: Sequence[str]) -> str:
    return f"cameras: {_list(cameras)}" if cameras else "there is no camera at all"


def _shared_sources(raw: Table) -> list[Problem]:
    """Two cameras on one device: the second would fail to open, or steal frames from the first."""
    cameras = _table(raw, "cameras")
    keys = {"usb": "device", "rtsp": "url"}
    used = {
        name: keys[camera["kind"]]
        for name, camera in cameras.items()
        if isinstance(camera, dict) and camera.get("kind") in tuple(keys) and keys[camera["kind"]] in camera
    }
    sources = {name: str(cameras[name][key]) for name, key in used.items()}
    shared = {source for source, users in Counter(sources.values()).items() if users > 1}
    first = {source: name for name, source in reversed(sources.items())}
    return [
        Problem(("cameras", name, used[name]), f"camera '{first[source]}' already reads from {_shown(source)}")
        for name, source in sources.items()
        if source in shared and first[source] != name
    ]


def _timing(raw: Table) -> list[Problem]:
    found = []
    for name, station in _table(raw, "stations").items():
        if not isinstance(station, dict):
            continue
        deadline, wait = station.get("deadline_ms", 1_000), station.get("frame_timeout_ms")
        if 0 < _number(deadline) < _number(wait):
            found.append(
                Problem(
                    ("stations", name, "frame_timeout_ms"),
                    f"{_shown(wait)} is longer than the deadline of {_shown(deadline)} ms: every late frame would "
                    "be a late verdict; make it shorter, or leave it out",
                )
            )
        views = station.get("views")
        if station.get("trigger") == "free_run" and isinstance(views, list) and len(views) > 1:
            found.append(
                Problem(
                    ("stations", name, "trigger"),
                    f"'free_run' works with one view, not {len(views)}: nothing would say which frames show the "
                    "same part; use 'software', or one station per camera",
                )
            )
    return found


def _signers(raw: Table) -> list[Problem]:
    """A station that takes signed recipes only needs somebody who signs; a key under two names would hide who did."""
    signers = _table(_table(raw, "security"), "trusted_signers")
    first: dict[object, str] = {}
    found = []
    for name, key in signers.items():
        if isinstance(key, str) and first.setdefault(key, name) != name:
            where: Where = ("security", "trusted_signers", name)
            found.append(Problem(where, f"this is the key of '{first[key]}' too; every signer needs one of their own"))
    for station, table in _table(raw, "stations").items():
        if isinstance(table, dict) and table.get("require_signed_recipes") is True and not signers:
            text = "no recipe could be signed for it: name who may in [security] trusted_signers"
            found.append(Problem(("stations", station, "require_signed_recipes"), text))
    return found


def _number(value: object) -> float:
    """The value as pydantic would read it, or NaN, of which nothing is true."""
    try:
        return math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def of_missing_recipes(raw: Table) -> list[Problem]:
    """Recipes that are neither at their path nor in the store."""
    found = []
    for station, index, view in _views(raw):
        reference = view.get("recipe")
        if not isinstance(reference, str) or not reference:
            continue
        text = _missing_path(Path(reference)) if is_recipe_path(reference) else _missing_name(raw, reference)
        if text:
            found.append(Problem(("stations", station, "views", index, "recipe"), text))
    return found


def _missing_path(path: Path) -> str | None:
    if os.path.exists(path):
        return None
    siblings = [p.name for p in path.parent.glob("*") if p.suffix == ".recipe" or (p / "recipe.json").exists()]
    return f"there is no recipe at {path}{_hint(path.name, siblings)}"


def _missing_name(raw: Table, reference: str) -> str | None:
    from edge_daemon.artefact.store import Store

    own = _table(raw, "store").get("path")
    state = raw.get("state_dir", "/var/lib/edge-daemon")
    place = own if isinstance(own, str) else os.path.join(state, "store") if isinstance(state, str) else None
    if place is None:
        return None
    try:
        Store(Path(place)).resolve(reference)
    except EdgeError as error:
        return str(error)
    return None


# ---------------------------------------------------------------- environment


def of_unknown_variables(model: type[BaseModel], environ: Mapping[str, str]) -> list[Problem]:
    """Variables that begin like ours and name no key: ignored, they would be believed to work."""
    known = _variable_names(model)
    found = []
    for variable in sorted(environ):
        name = variable.upper()
        first = name.removeprefix(ENV_PREFIX).split("__")[0].lower()
        if name.startswith(ENV_PREFIX) and first not in model.model_fields and not name.startswith(FOREIGN_VARIABLES):
            text = f"this environment variable names no key{_hint(name, known)}; unset it"
            found.append(Problem((variable,), text))
    return found


def _variable_names(model: type[BaseModel]) -> list[str]:
    names = []
    for key, field in model.model_fields.items():
        names.append(f"{ENV_PREFIX}{key}".upper())
        names += [f"{ENV_PREFIX}{key}__{below}".upper() for below in _keys(field.annotation)]
    return names


def _variable_of(where: Where) -> str | None:
    """The variable that set the key at this path, if one did."""
    present = {name.upper().replace("-", "_"): name for name in os.environ}
    for length in range(len(where), 0, -1):
        name = ENV_PREFIX + "__".join(str(step) for step in where[:length]).upper().replace("-", "_")
        if name in present:
            return present[name]
    return None


# ---------------------------------------------------------------- telling


def told(problems: Sequence[Problem], text: str) -> list[str]:
    """One sentence per problem, in the order of the file, with its line or its environment variable."""
    lines = _line_numbers(text)
    placed = [(_line_of(problem.where, lines), problem) for problem in dict.fromkeys(problems)]
    placed.sort(key=lambda entry: entry[0] or 0)
    return [_told(line, problem) for line, problem in placed]


def _told(line: int | None, problem: Problem) -> str:
    variable = _variable_of(problem.where)
    source = f" (from {variable})" if variable else f" (line {line})" if line else ""
    return f"{dotted(problem.where)}{source}: {problem.text[:_TOLD]}"


def dotted(where: Where) -> str:
    """stations.st1.views[0].camera"""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:_SHOWN]}" for step in where)
    return text.removeprefix(".")


_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


def _line_numbers(text: str) -> dict[Where, int]:
    """Line of each table and key. tomllib keeps no positions; this reads only what stands first on a line."""
    lines: dict[Where, int] = {}
    table: Where = ()
    entries: Counter[Where] = Counter()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _steps(header[2])
            if header[1] == "[[":
                entries[table] += 1
                table = (*table, entries[table] - 1)
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_steps(key[1])), number)
    return lines


def _steps(dotted_key: str) -> Where:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted_key))


def _line_of(where: Where, lines: Mapping[Where, int]) -> int | None:
    for length in range(len(where), 0, -1):
        if where[:length] in lines:
            return lines[where[:length]]
    return None


def _closest(word: str, known: Iterable[str]) -> str | None:
    """What was probably meant."""
    folded = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def _hint(word: str, known: Iterable[str]) -> str:
    meant = _closest(word, known)
    return f" (did you mean '{meant}'?)" if meant is not None and meant != word else ""


def _meant(value: object, declared: Any) -> str:
    declared = _plain(declared)
    allowed = [str(option) for option in get_args(declared)] if get_origin(declared) is Literal else []
    return _hint(value, allowed) if isinstance(value, str) else ""


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _table(raw: Table, key: str) -> Table:
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def _views(raw: Table) -> list[tuple[str, int, Table]]:
    """(station, index, view) of every view that is a table."""
    return [
        (name, index, view)
        for name, station in _table(raw, "stations").items()
        if isinstance(station, dict) and isinstance(station.get("views"), list)
        for index, view in enumerate(station["views"])
        if isinstance(view, dict)
    ]
