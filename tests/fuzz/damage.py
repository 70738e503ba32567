"""Damage to files: bytes are changed, removed, repeated or inserted; JSON values are replaced."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "1",
    "../../etc/passwd", "/etc/passwd", "s3://bucket/file", "a\0b", "a\nb", "\ud800", "x" * 5000,
    [], {}, [[]], {"": None}, [0] * 1000, [None], [1, 2],
]  # fmt: skip


def damaged_bytes(content: bytes, chance: random.Random) -> bytes:
    """Return the bytes of a file with one to four random damages."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(data) + 1)
        stop = min(len(data), start + chance.choice((1, 1, 2, 4, 8, 64, 512)))
        kind = chance.randrange(7)
        if kind == 0:
            del data[start:]
        elif kind == 1:
            del data[start:stop]
        elif kind == 2:
            data[start:start] = data[start:stop]
        elif kind == 3:
            data[start:start] = chance.randbytes(chance.choice((1, 8, 100)))
        elif kind == 4:
            data[start:stop] = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (stop - start)
        elif kind == 5:
            data[start:stop] = chance.randbytes(stop - start)
        elif start < len(data):
            data[start] ^= 1 << chance.randrange(8)
    return bytes(data)


def damaged_value(content: Any, chance: random.Random) -> Any:
    """Return JSON content in which one to three values are replaced by strange ones, removed or repeated."""
    content = copy.deepcopy(content)
    for _ in range(chance.randint(1, 3)):
        positions = list(_positions(content))
        if not positions:
            return chance.choice(STRANGE)
        holder, key = chance.choice(positions)
        kind = chance.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[chance.choice(("extra", "", "../x", "step"))] = holder[key]
        elif kind == 1:
            holder.insert(key, holder[key])
        else:
            holder[key] = copy.deepcopy(chance.choice(STRANGE))
    return content


def _positions(content: Any) -> Any:
    """Yield (list or mapping, key) for every value in the content."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        yield content, key
        yield from _positions(value)


def damaged_json(text: bytes, chance: random.Random) -> bytes:
    """Damage the bytes of a JSON text, or its values; a text of several lines keeps its lines."""
    if chance.random() < 0.4:
        return damaged_bytes(text, chance)
    if text.count(b"\n") > 1 and text.startswith(b"{") and text.splitlines()[0].endswith(b"}"):
        lines = text.splitlines()
        number = chance.randrange(len(lines))
        lines[number] = _dumps(damaged_value(json.loads(lines[number]), chance))
        return b"\n".join(lines) + b"\n"
    return _dumps(damaged_value(json.loads(text), chance)) + b"\n"


def _dumps(content: Any) -> bytes:
    return json.dumps(content).encode()
