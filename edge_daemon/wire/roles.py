"""Who may do what: one table for sockets, one for commands. Both sides of the wire read it here.

| role | who | sockets | commands |
|---|---|---|---|
| viewer | MES, dashboards | results, images, status, replay, control | those that only look |
| operator | the people at the line | as viewer | also: change product, let a station run empty |
| gateway | the process that speaks to the PLC | also triggers, amendments | those that only look, and trigger |
| engineer | who keeps the line running | all but amendments | all |

A program on the same PC, where the daemon listens on loopback only and without keys, may do everything: whoever is on
that PC already can stop the daemon as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, get_args

Role = Literal["viewer", "operator", "engineer", "gateway"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

_ALL: Final[frozenset[Role]] = frozenset(ROLES)
_OPERATING: Final[frozenset[Role]] = frozenset({"operator", "engineer"})
_ENGINEER: Final[frozenset[Role]] = frozenset({"engineer"})
_TRIGGERING: Final[frozenset[Role]] = frozenset({"gateway", "engineer"})

SOCKETS: Final[Mapping[str, frozenset[Role]]] = MappingProxyType(
    {
        "results": _ALL,
        "images": _ALL,
        "status": _ALL,
        "replay": _ALL,
        "control": _ALL,
        "triggers": _TRIGGERING,
        # Nobody but the gateway saw what the PLC did.
        "amendments": frozenset({"gateway"}),
    }
)


@dataclass(frozen=True, slots=True)
class Permission:
    """roles: who may give the command. changes: whether it changes anything; what only looks is told in the audit
    trail in sums."""

    roles: frozenset[Role]
    changes: bool = True


# A name with a dot and a star stands for a family of commands. What is not listed is the engineer's.
COMMANDS: Final[Mapping[str, Permission]] = MappingProxyType(
    {
        "status": Permission(_ALL, changes=False),
        "recipes": Permission(_ALL, changes=False),
        "job": Permission(_ALL, changes=False),
        "trigger": Permission(_TRIGGERING),
        "prepare": Permission(_OPERATING),
        "activate": Permission(_OPERATING),
        "rollback": Permission(_OPERATING),
        "drain": Permission(_OPERATING),
        "resume": Permission(_OPERATING),
        "acknowledge": Permission(_OPERATING),
        "self_test": Permission(_OPERATING),
        "defect.*": Permission(_OPERATING),
        "refresh.*": Permission(_ENGINEER),
        "reload_keys": Permission(_ENGINEER),
        "shutdown": Permission(_ENGINEER),
    }
)
_UNLISTED: Final = Permission(_ENGINEER)


def permission(command: str) -> Permission:
    """What the table says of a command."""
    family = f"{command.partition('.')[0]}.*"
    return COMMANDS.get(command) or COMMANDS.get(family) or _UNLISTED
