"""deploy/docs/gateway.md, made from the words and registers of the gateway."""

from collections.abc import Sequence

from edge_daemon.gateway.registers import Register, placed


def register_table(layout: Sequence[Register], address: int) -> str:
    """A table in Markdown: address, name, type, meaning."""
    rows = [
        f"| {at} | `{register.name}` | {'UINT' if register.words == 1 else 'UDINT'} | {register.meaning} |"
        for at, register in placed(layout, address)
    ]
    return "\n".join(["| address | name | type | meaning |", "|---|---|---|---|", *rows])


def gateway_page() -> str:
    """The whole page."""
    return ""
