"""Mutated files for fuzzing: bytes changed anyhow, JSON and TOML changed in ways that still parse."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from typing import Any

NUMBERS = (0, 1, -1, 2, 7, 255, 1 << 15, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 64, 10**30)
VALUES: tuple[Any, ...] = (
    *NUMBERS, None, True, False, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "a", "x" * 300, "\x1b[31m", "\x00",
    "../../etc/passwd", "sm_999", "fprop", "float16", [], {}, [[]], [1], {"a": 1}, [None] * 50,
)  # fmt: skip
TOML_VALUES = (
    *map(str, NUMBERS), "true", "false", "1.5", "inf", "nan", "1e400", '""', '"a"', '"a\\u0000b"', '"../a.npy"', '"."',
    '"fprop"', '"sm_90a"', "[]", "{}", "[[]]", "[1, 1]", '["fprop", 3]', "[[1]]", "[{}]", "{a = 1}", "1979-05-27", "07:32:00",
    "1979-05-27T07:32:00Z", "'''\n'''", f'"{"x" * 300}"', "9" * 5000, "[" * 3000 + "]" * 3000,
)  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few changes of any kind."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_CHANGES)(changed, rng)
    return bytes(changed)


def _place(data: bytearray, rng: random.Random) -> int:
    # The start of a file, where headers are, more often than its rest.
    return rng.randrange(min(len(data), rng.choice((32, 256, 1 << 30))) or 1)


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 4, 16, 100))]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 4, 16, 100)))


def _repeat(data: bytearray, rng: random.Random) -> None:
    at, size = _place(data, rng), rng.choice((1, 8, 64, 512))
    data[at:at] = data[at : at + size]


def _overwrite(data: bytearray, rng: random.Random) -> None:
    number, size = rng.choice(NUMBERS), rng.choice((2, 4, 8))
    at = _place(data, rng)
    data[at : at + size] = struct.pack("<Q", number % (1 << 64))[:size]


def _number(data: bytearray, rng: random.Random) -> None:
    """Another number where one is written in digits, as in the headers of .npy files and in JSON."""
    found = list(re.finditer(rb"\d+", bytes(data[: 1 << 16])))
    if found:
        place = rng.choice(found)
        data[place.start() : place.end()] = str(rng.choice(NUMBERS)).encode()


_CHANGES = (_flip, _set, _truncate, _remove, _insert, _repeat, _overwrite, _number)


def mutate_json(text: bytes, rng: random.Random) -> bytes:
    """A value changed, removed or repeated, anywhere in the tree."""
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        parent, key = rng.choice(_nodes(tree))
        action = rng.randrange(4)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif action == 2 and isinstance(parent, dict):
            parent[rng.choice(("later", "", "x" * 300))] = copy.deepcopy(parent[key])
        else:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(tree).encode()


def _nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Every value's container, and its place there."""
    found: list[tuple[Any, Any]] = []
    places = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in places:
        found += [(tree, key), *_nodes(value)]
    return found or [([0], 0)]


def mutate_toml(text: str, rng: random.Random) -> str:
    """A line changed, removed, repeated or moved; or any byte."""
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        action, key = rng.randrange(6), lines[at].partition("=")[0]
        if action == 0 and len(lines) > 1:
            del lines[at]
        elif action == 1:
            lines.insert(rng.randrange(len(lines)), lines[at])
        elif action == 2:
            lines[at] = mutate(lines[at].encode(), rng).decode("utf-8", "replace")
        elif action == 3 and key:
            lines[at] = lines[at].replace(
                key.strip(), rng.choice(("density", "model", "tensor", "norm", "layuot", "")), 1
            )
        else:
            lines[at] = f"{key or 'rows'}= {rng.choice(TOML_VALUES)}"
    return "\n".join(lines)
