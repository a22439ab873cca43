"""The recipes of edgelm that are compared with its peers' files."""

from __future__ import annotations

import math

from edgelm_export.quantize import PRECISIONS, Precision, Rule

_HEAD = r"embed_tokens|lm_head"
_ENDS = r"layers\.(0|{last})\."


def recipe(rest: str, *rules: tuple[str, str], transforms: tuple[str, ...] = ()) -> Precision:
    """Return a recipe of rules (pattern, scheme), and a scheme for all the rest; its check refuses nothing."""
    written = (Rule(pattern=pattern, scheme=scheme) for pattern, scheme in (*rules, (".", rest)))
    return Precision(rules=tuple(written), perplexity_bound=math.inf, transforms=transforms)


_OUTER = ((_HEAD, "int8-block64"), (_ENDS, "int8-block64-gptq"))

RECIPES = {
    "int8": PRECISIONS["int8"],
    "int8 in blocks of 32": recipe("int8-block32"),
    "int5, head in 6, calibrated": recipe("int5-block64-asymmetric-gptq", (_HEAD, "int6-block32")),
    "int5, head in 6, rounded": recipe("int5-block64-asymmetric-rounded", (_HEAD, "int6-block32-rounded")),
    "int4": PRECISIONS["int4"],
    "int4 calibrated": PRECISIONS["int4"].calibrated(),
    "int4 with zero points, calibrated": recipe("int4-block64-asymmetric-gptq", *_OUTER),
    "int4 with zero points, qkv in 8, calibrated": recipe(
        "int4-block64-asymmetric-gptq", *_OUTER, (r"[qkv]_proj", "int8-block64-gptq")
    ),
    "int4 with zero points, qkv in 8, rounded": recipe(
        "int4-block64-asymmetric-rounded", (rf"{_HEAD}|{_ENDS}|[qkv]_proj", "int8-block64")
    ),
    "int4 with zero points, attention in 8, calibrated": recipe(
        "int4-block64-asymmetric-gptq",
        (_HEAD, "int8-block128"),
        (_ENDS, "int8-block128-gptq"),
        (r"[qkvo]_proj", "int8-block128-gptq"),
    ),
}
