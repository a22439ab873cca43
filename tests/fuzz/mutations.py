"""Seeded mutations of bytes, JSON values and chat templates."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

_NUMBERS = (0, 1, 2, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_VALUES: Sequence[Any] = (
    None, True, False, 0, -1, 1, 7, 0.5, -0.0, 1e308, -1e-308, 2**31, 2**63, 2**70, 10**400, "", "a", "\ud800", "\0",
    "../../x", "/etc/passwd", "x" * 3000, [], {}, [[]], [1, "a", None], {"a": 1}, {"type": "Sequence"}, ["model"],
)  # fmt: skip
_FRAGMENTS = (
    "{% for x in range(99999) %}", "{% endfor %}", "{% if x %}", "{% endif %}", "{% set x = x ~ x %}",
    "{{ x * 9 ** 9 }}",
    "{% macro m(x) %}", "{% endmacro %}", "{{ m(m) }}", "{{ caller() }}", "{% call m() %}", "{% endcall %}",
    " | join(x)",
    " | tojson(indent=9)", " | list", " | map('upper')", " | sort", " | replace('', x)", "[::2]", ".format(x)",
    "% (x, x)",
    "{% set ns = namespace(x=x) %}", "{% set ns.x = [ns.x, ns.x] %}", "{{ ns }}", "{{ ''.join }}", "{{ loop(x) }}",
    "{{ self }}", "{% block b %}", "{% endblock %}", "{{ self.b() }}", "{% raw %}", "{#", "#}", "{% generation %}",
    "{% endgeneration %}", "{% filter upper %}", "{% endfilter %}", "{% include 'x' %}", "{% import 'x' as y %}",
    "{% break %}", "{{ x.__class__.__mro__ }}", "{{ cycler('a', 'b').next() }}", "{{ messages }}", "((((", "not ", "-",
    "{% autoescape true %}", "{% endautoescape %}", " recursive", "messages[0]", "message['content']", "'\\x00'",
)  # fmt: skip


def mutate_bytes(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """Change one to four places: bits, bytes, numbers, pieces that go, double or come from elsewhere."""
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        if not result:
            break
        _BYTE_MUTATIONS[random.randrange(len(_BYTE_MUTATIONS))](result, random, others or [data])
    return bytes(result)


def _flip(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set_byte(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    data[random.randrange(len(data))] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _set_number(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    form = random.choice(("<I", "<Q", "<H"))
    place = random.randrange(len(data))
    packed = struct.pack(form, random.choice(_NUMBERS) & ((1 << 8 * struct.calcsize(form)) - 1))
    data[place : place + len(packed)] = packed


def _cut(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    start = random.randrange(len(data))
    del data[start : start + random.choice((1, 4, 8, random.randrange(1, len(data) + 1)))]


def _truncate(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    del data[random.randrange(len(data)) :]


def _double(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    start = random.randrange(len(data))
    piece = data[start : start + random.randrange(1, 64)]
    data[start:start] = piece * random.choice((1, 2, 9))


def _splice(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    other = random.choice(others)
    if other:
        start = random.randrange(len(other))
        place = random.randrange(len(data))
        piece = other[start : start + random.randrange(1, 64)]
        data[place : place + random.choice((0, len(piece)))] = piece


_BYTE_MUTATIONS: Sequence[Callable[[bytearray, Random, Sequence[bytes]], None]] = (
    _flip, _set_byte, _set_number, _cut, _truncate, _double, _splice,
)  # fmt: skip


def mutate_json(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """Change values, keys and elements of a JSON document; sometimes its bytes."""
    value = json.loads(data)
    for _ in range(random.choice((1, 1, 2, 5))):
        value = _changed(value, random)
    result = json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    if random.random() < 0.2:
        return mutate_bytes(result, random, others)
    return b"[" * 5000 + result if random.random() < 0.002 else result


def _changed(value: Any, random: Random) -> Any:
    if isinstance(value, (dict, list)) and value and random.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = random.choice(keys)
        action = random.random()
        if action < 0.7:
            value[key] = _changed(value[key], random)
        elif action < 0.8:
            del value[key]
        elif action < 0.9:
            value[key] = value[random.choice(keys)]
        elif isinstance(value, dict):
            value[random.choice(("type", "x", "id", str(key) + "2"))] = value[key]
        else:
            value.insert(key, value[key])
        return value
    if isinstance(value, str) and value and random.random() < 0.3:
        return mutate_bytes(value.encode("utf-8", "surrogatepass"), random).decode("utf-8", "replace")
    if isinstance(value, int) and random.random() < 0.5:
        return random.choice((value + 1, value - 1, -value, value * 1000, *_NUMBERS))
    if random.random() < 0.05:
        return json.loads("[" * 200 + "]" * 200)
    return json.loads(json.dumps(random.choice(_VALUES)))


def mutate_template(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """Put pieces of the template language anywhere into a template, and change its bytes."""
    text = data.decode("utf-8")
    for _ in range(random.choice((1, 2, 4, 8))):
        place = random.randrange(len(text) + 1)
        piece = random.choice(_FRAGMENTS)
        text = text[:place] + piece * random.choice((1, 1, 1, 2, 30)) + text[place + random.choice((0, len(piece))) :]
    result = text.encode("utf-8")
    return mutate_bytes(result, random, others) if random.random() < 0.3 else result
