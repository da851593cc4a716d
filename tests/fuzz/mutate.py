"""Inputs that are nearly right: seeds, and what becomes of them byte by byte, token by token and, where they are JSON,
value by value. Everything comes from one `random.Random`: the same number gives the same inputs."""

import copy
import json
import random
import struct
from collections.abc import Sequence
from typing import Any

_LARGEST = 1 << 20

# What parsers trip over.
TOKENS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0.0", b"9" * 5000, b"null", b"true", b"\x00", b"\xff\xfe",
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b"[" * 2000, b'{"a":' * 2000, b"../" * 8, b"/dev/zero", b"%s%n",
    b"'; DROP TABLE record; --", b"\r\n", b"\x1b[2J", b"a" * 70_000, b"\\ud800", "\u202e".encode(), b'"' * 3, b"'" * 3,
    b"]", b"}", b",", b"=", b"[[x]]", b"#", b"0x", b"1979-05-27T07:32:00Z", b"99999-99-99", b"\\u0000", b"inf", b"nan",
    b"1_000", b"{}", b"[]", b'""', b"\x7f",
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**64, -(2**63) - 1, 10**400, 0.0, -0.0, 1e-320, 1e308, 0.5,
    "", "x" * 65, "x" * 5000, "../..", "a/b", "\x00", "\ud800", "ß", "1", "NaN", "OK", "NotOK", "production", "st1", [],
    {}, [[]], [None], {"": None}, {"a": {"a": {}}}, ["x"] * 300, [0] * 1000, "0" * 64, "edge-daemon/result/1",
)  # fmt: skip

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 2**63, 2**64 - 1)


def mutated(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """One to some changes, most often one. others: of the same kind, to splice with."""
    if rng.random() < 0.6 and (changed := _changed_json(data, rng)) is not None:
        data = changed
        if rng.random() < 0.85:
            return data
    for _ in range(min(rng.choice((1, 1, 1, 2, 3, 8)), 8)):
        data = rng.choice(_WAYS)(data, others, rng)[:_LARGEST]
    return data


def _place(data: bytes, rng: random.Random) -> int:
    return rng.randrange(len(data) + 1)


def _flip(data: bytes, _others: Sequence[bytes], rng: random.Random) -> bytes:
    if not data:
        return b"\x00"
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set(data: bytes, _others: Sequence[bytes], rng: random.Random) -> bytes:
    at = _place(data, rng)
    return (
        data[:at]
        + bytes([rng.choice((0, 1, 9, 10, 34, 44, 58, 91, 93, 123, 125, 127, 128, 255, rng.randrange(256)))])
        + data[at + 1 :]
    )


def _number(data: bytes, _others: Sequence[bytes], rng: random.Random) -> bytes:
    size, order = rng.choice((1, 2, 4, 8)), rng.choice("<>")
    raw = struct.pack(order + "Q", rng.choice(_NUMBERS) & ((1 << 8 * size) - 1))
    raw = raw[:size] if order == "<" else raw[-size:]
    at = _place(data, rng)
    return data[:at] + raw + data[at + size :]


def _cut(data: bytes, _others: Sequence[bytes], rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 2, 4, 16, 256, len(data))) :]


def _repeat(data: bytes, _others: Sequence[bytes], rng: random.Random) -> bytes:
    at = _place(data, rng)
    piece = data[at : at + rng.choice((1, 2, 4, 16, 64, 512))]
    return data[:at] + piece * rng.choice((2, 2, 3, 50)) + data[at + len(piece) :]


def _token(data: bytes, _others: Sequence[bytes], rng: random.Random) -> bytes:
    at, over = _place(data, rng), rng.choice((0, 0, 1, 4, 20))
    return data[:at] + rng.choice(TOKENS) + data[at + over :]


def _splice(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    other = rng.choice(others) if others else data
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def _move(data: bytes, _others: Sequence[bytes], rng: random.Random) -> bytes:
    first, size, to = _place(data, rng), rng.choice((1, 4, 16, 100)), _place(data, rng)
    piece, rest = data[first : first + size], data[:first] + data[first + size :]
    return rest[:to] + piece + rest[to:]


_WAYS = (_flip, _flip, _set, _number, _cut, _repeat, _token, _token, _splice, _move)


def _changed_json(data: bytes, rng: random.Random) -> bytes | None:
    """With one value changed, left out, put elsewhere or written twice; None when it is no JSON object."""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(whole, dict) or not whole:
        return None
    whole = copy.deepcopy(whole)
    for _ in range(rng.choice((1, 1, 2, 4))):
        holder, key = rng.choice(list(_places(whole)) or [(whole, "x")])
        _change(holder, key, whole, rng)
    text = json.dumps(whole).encode()
    if rng.random() < 0.1 and (at := text.find(b'":')) > 0:  # a key twice
        begin = text.rfind(b'"', 0, at)
        text = text[:begin] + text[begin : at + 1] + b":" + rng.choice((b"0", b'"OK"', b"null")) + b"," + text[begin:]
    return text


def _change(holder: Any, key: Any, whole: dict[str, Any], rng: random.Random) -> None:
    way = rng.randrange(10)
    if way < 3:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    elif way == 5 and isinstance(holder, dict):
        holder.pop(key, None)
    elif way == 6 and isinstance(holder, dict):
        holder[rng.choice(("", "x", "schema", "\x00", "__class__", "evaluation"))] = copy.deepcopy(rng.choice(VALUES))
    elif way == 7:
        other, name = rng.choice(list(_places(whole)) or [(whole, "x")])
        holder[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else other[name])
    elif isinstance(value := holder.get(key) if isinstance(holder, dict) else holder[key], int | float):
        holder[key] = rng.choice((-value, value + 1, value - 1, value * 2, value * 10**6, value // 3, value * 10**30))
    elif isinstance(value, list):
        holder[key] = (value * rng.choice((0, 2, 40)))[:500]
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))


def _places(value: Any, depth: int = 0) -> Any:
    if depth > 12:
        return
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in entries:
        yield value, key
        yield from _places(below, depth + 1)
