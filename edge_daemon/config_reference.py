"""The configuration's JSON Schema, and deploy/docs/configuration.md, both from the declarations in `config`."""

from collections.abc import Iterator
from typing import Any

from edge_daemon.config import ENV_PREFIX, Config

Schema = dict[str, Any]

# pydantic leaves limits that stand outside a validator of ours under its own names.
_STANDARD_NAMES = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}

_HEAD = f"""\
# Configuration

<!-- Made by `edge-daemon schema config --markdown`; change the text in edge_daemon/config.py and
edge_daemon/cameras/config.py. -->

One TOML file describes one line PC; `deploy/examples/edge.toml` is one to start from. `edge-daemon` reads the file
that `--config` names, else the one that `$EDGE_CONFIG` names, else `/etc/edge-daemon/edge.toml`.
`edge-daemon check --config FILE` says everything that is wrong with it, at once.

- A key that is not listed here is refused: a misspelled one would otherwise be believed to work.
- Relative paths are relative to the configuration file.
- Every key can be set by an environment variable, which wins over the file: `{ENV_PREFIX}`, then the path of the key
  in capitals, joined by two underscores: `{ENV_PREFIX}ENGINE__PROVIDER=cuda`,
  `{ENV_PREFIX}STATIONS__ST1__DEADLINE_MS=300`.
  Lists are written as JSON. A variable that names no key is refused.
- The daemon reads the configuration once, when it starts.
"""


def config_schema() -> Schema:
    """JSON Schema (draft 2020-12) of the configuration file."""
    schema = Config.model_json_schema()
    _standardise(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def configuration_page() -> str:
    """deploy/docs/configuration.md: every table, every key, what it may be and what it is by default."""
    schema = config_schema()
    sections = list(_sections(schema))
    return "\n".join([_HEAD, *(_section(schema, *section) for section in sections)])


def _standardise(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _standardise(item)
    elif isinstance(node, dict):
        for ours, standard in _STANDARD_NAMES.items():
            if isinstance(node.get(ours), int | float):
                node[standard] = node.pop(ours)
        for item in node.values():
            _standardise(item)


def _sections(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """(heading, object schema) in the order of the file."""
    top = {key: field for key, field in schema["properties"].items() if _table_of(schema, field) is None}
    yield "Top of the file", {**schema, "properties": top, "description": "Before the first table."}
    for key, field in schema["properties"].items():
        table = _table_of(schema, field)
        if table is None:
            continue
        members = [_resolved(schema, option) for option in table.get("oneOf", [])]
        named = "patternProperties" in field
        for member in members or [table]:
            kind = f' with `kind = "{member["properties"]["kind"]["const"]}"`' if members else ""
            yield f"`[{key}.NAME]`{kind}" if named else f"`[{key}]`", member
            yield from _inner(schema, f"{key}.NAME" if named else key, member)


def _inner(schema: Schema, path: str, table: Schema) -> Iterator[tuple[str, Schema]]:
    """The tables inside a table, those in lists included."""
    for key, field in table["properties"].items():
        inner = _resolved(schema, field.get("items", field))
        if inner.get("properties"):
            listed = field.get("type") == "array"
            yield (
                f"{f'Each entry of `{key}` in' if listed else ''} `[{path}{'' if listed else '.' + key}]`".strip(),
                inner,
            )


def _table_of(schema: Schema, field: Schema) -> Schema | None:
    """The table that a key of the top level holds, or that each of its named tables is."""
    named = list(field.get("patternProperties", {}).values())
    resolved = _resolved(schema, named[0] if named else field)
    return resolved if "properties" in resolved or "oneOf" in resolved else None


def _resolved(schema: Schema, node: Schema) -> Schema:
    reference = node.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else node


def _section(schema: Schema, heading: str, table: Schema) -> str:
    rows = [
        " | ".join((f"| `{key}`", _allowed(schema, field), _default(key, field, table), _description(schema, field)))
        for key, field in table["properties"].items()
    ]
    head = ["| key | value | default | meaning |", "|---|---|---|---|"]
    return "\n".join(
        [f"## {heading}", "", _line(table.get("description", "")), "", *head, *(f"{r} |" for r in rows), ""]
    )


def _description(schema: Schema, field: Schema) -> str:
    return _line(field.get("description") or _resolved(schema, field).get("description", ""))


def _default(key: str, field: Schema, table: Schema) -> str:
    if key in table.get("required", []):
        return "required"
    match field.get("default"):
        case None | {} | []:
            return ""
        case bool(value):
            return f"`{str(value).lower()}`"
        case dict():
            return "see its table"
        case list():
            return f"`{field['default']}`"
        case value:
            return f"`{value}`"


def _allowed(schema: Schema, field: Schema) -> str:
    """What a key may hold, in a few words."""
    node = _resolved(schema, field)
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    if options:
        return " or ".join(dict.fromkeys(_allowed(schema, option) for option in options))
    match node.get("type"):
        case "integer":
            return f"whole number{_limits(node)}"
        case "number":
            return f"number{_limits(node)}"
        case "boolean":
            return "`true` or `false`"
        case "array" if "prefixItems" in node:
            return f"list of {len(node['prefixItems'])}: {_allowed(schema, node['prefixItems'][0])}"
        case "array":
            return f"list of {_allowed(schema, node['items'])}s"
        case "object":
            return "table"
        case _:
            return "path" if node.get("format") == "path" else "text"


def _limits(node: Schema) -> str:
    low, above, high = node.get("minimum"), node.get("exclusiveMinimum"), node.get("maximum")
    start = f"above {above}" if above is not None else "" if low is None else str(low)
    if high is None or high >= 2**53:  # a limit of JSON, not of the thing
        return f", at least {low}" if low is not None else f", {start}" if start else ""
    return f", {start} to {high}"


def _line(text: str) -> str:
    """On one line, safe inside a table of Markdown."""
    return " ".join(text.split()).replace("|", "\\|")
