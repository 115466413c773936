"""Damage to files: cut, flipped, swapped types, nested too deep, numbers without end."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

_HUGE = [10**4000, -(10**400), 1e308, -1e308, float("nan"), float("inf"), 2**63, -1, 0, 1 << 31]
_OTHER: list[Any] = [
    None,
    True,
    "text",
    [],
    {},
    [[]],
    {"a": 1},
    1.5,
    "",
    [None],
    "\0",
    "\u0661",
    *_HUGE,
]


def damaged(content: bytes, rng: random.Random, *, is_json: bool) -> bytes:
    """One way of damaging a file."""
    ways: list[Callable[[bytes, random.Random], bytes]] = [
        _cut,
        _flipped,
        _overwritten,
        _repeated,
        _inserted,
    ]
    if is_json:
        ways += [_other_value, _other_value, _without_key, _nested, _bare]
    return rng.choice(ways)(content, rng)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 4, 32])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwritten(content: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(content)), rng.choice([1, 4, 8, 64])
    filling = rng.choice([b"\xff", b"\0", b"\x7f", b"[", b"9"])
    return content[:start] + filling * length + content[start + length :]


def _repeated(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start : start + 200] * rng.choice([2, 50]) + content[start:]


def _inserted(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.randbytes(rng.choice([1, 8, 100])) + content[start:]


def _nested(content: bytes, rng: random.Random) -> bytes:
    depth = rng.choice([70, 990, 5_000, 200_000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    deep = opening * depth + "1" + closing * depth
    text = content.decode()
    places = [m.span() for m in re.finditer(r"-?\d+(\.\d+)?", text)] or [(0, len(text))]
    start, end = rng.choice([(0, len(text)), rng.choice(places)])
    return (text[:start] + deep + text[end:]).encode()


def _bare(_: bytes, rng: random.Random) -> bytes:
    return json.dumps(rng.choice(_OTHER[:9])).encode()


def _other_value(content: bytes, rng: random.Random) -> bytes:
    plain = json.loads(content)
    for _ in range(rng.choice([1, 1, 3])):
        holder, key = rng.choice(_places(plain))
        holder[key] = rng.choice(_OTHER)
    # Python refuses to write, as it does to read, integers of more than 4300 digits
    return json.dumps(plain).encode()


def _without_key(content: bytes, rng: random.Random) -> bytes:
    plain = json.loads(content)
    holder, key = rng.choice(_places(plain))
    del holder[key]
    return json.dumps(plain).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found
