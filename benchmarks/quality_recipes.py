"""The recipes of edgelm that are compared with its peers' files."""

from __future__ import annotations

import dataclasses
import math

from edgelm.architecture.quantization_recipe import PRECISIONS, Precision, Rule
from edgelm.architecture.quantization_scheme import KEEP, parse_scheme

_HEAD = r"embed_tokens|lm_head"
_ENDS = r"layers\.(0|{last})\."


def recipe(rest: str, *rules: tuple[str, str], transforms: tuple[str, ...] = ()) -> Precision:
    """Return a recipe of rules (pattern, scheme), and a scheme for all the rest; its check refuses nothing."""
    written = (Rule(pattern=pattern, scheme=scheme) for pattern, scheme in (*rules, (".", rest)))
    return Precision(rules=tuple(written), perplexity_bound=math.inf, transforms=transforms)


def rounded(precision: Precision) -> Precision:
    """Return the same grids, with every weight rounded to the nearest place."""
    return dataclasses.replace(
        precision, rules=tuple(dataclasses.replace(rule, scheme=_rounded(rule.scheme)) for rule in precision.rules)
    )


def _rounded(scheme: str) -> str:
    method = getattr(parse_scheme(scheme), "method", None)
    return f"{scheme.removesuffix(f'-{method}')}-rounded"


_SMOOTHED = ("smooth",)
_HEAD_IN_5, _HEAD_IN_6 = (_HEAD, "int5-block32"), (_HEAD, "int6-block32")
_HEAD_IN_8, _HEAD_IN_WIDE_8 = (_HEAD, "int8-block64"), (_HEAD, "int8-block128")
_ENDS_IN_8 = (_ENDS, "int8-block64-gptq")
_FIVE_IN_32 = "int5-block32-asymmetric"  # 16 levels that begin anywhere, as in Q4_1, stay in it
_IN_64, _IN_32 = "int4-block64-asymmetric-gptq", "int4-block32-asymmetric-gptq"

_FIVES = {
    f"int5 in blocks of 32 with zero points, head in {bits}": head
    for bits, head in ((8, _HEAD_IN_8), (6, _HEAD_IN_6), (5, _HEAD_IN_5))
}

# With twins whose weights are rounded to nearest.
_CALIBRATED = {
    "int4 in gate and up, 6 elsewhere": recipe("int6-block64-asymmetric-gptq", _HEAD_IN_6, (r"(gate|up)_proj", _IN_32)),
    "int4 in blocks of 32 with zero points": recipe(_IN_32, _HEAD_IN_8, _ENDS_IN_8),
}

# From the most bytes to the fewest.
RECIPES = {
    "fp16": PRECISIONS["fp16"],
    "int8 in blocks of 32, head in fp16, smoothed": recipe("int8-block32", (_HEAD, "fp16"), transforms=_SMOOTHED),
    "int8 in blocks of 32, smoothed": recipe("int8-block32", (_HEAD, "int8-block64"), transforms=_SMOOTHED),
    "int8": PRECISIONS["int8"],
    "int8, down in 6, calibrated": recipe(
        "int8-block64", (r"down_proj", "int6-block64-asymmetric-gptq"), transforms=_SMOOTHED
    ),
    "int8, head in 6, smoothed": recipe("int8-block64", _HEAD_IN_6, transforms=_SMOOTHED),
    # What lies on these grids stays: in Gemma 3's Q4_K_M all but some values, o and down (Q5_0, and Q8_0 the head).
    "int5 in blocks of 32, head and values in 8, o and down in 6, calibrated": recipe(
        "int5-block32-gptq", (_HEAD + "|v_proj", "int8-block32"), (r"(o|down)_proj", "int6-block64-gptq")
    ),
    # And with the file itself at hand, o and half of down stay on their Q4_K's grid, in fewer bytes.
    "int5 in blocks of 32, head in 8 of 128, o, down and values as in the file": recipe(
        "int5-block32", _HEAD_IN_WIDE_8, (r"(o|down|v)_proj", KEEP)
    ),
    "int6, smoothed, calibrated": recipe("int6-block64-asymmetric-gptq", _HEAD_IN_6, transforms=_SMOOTHED),
    "int6, calibrated": recipe("int6-block64-asymmetric-gptq", _HEAD_IN_6),
    **{f"{label}, calibrated": recipe(f"{_FIVE_IN_32}-gptq", head) for label, head in _FIVES.items()},
    "int5 in blocks of 32 with zero points, head in 6, smoothed, calibrated": recipe(
        f"{_FIVE_IN_32}-gptq", _HEAD_IN_6, transforms=_SMOOTHED
    ),
    "int5 in blocks of 32, head in 6, smoothed, calibrated": recipe(
        "int5-block32-gptq", _HEAD_IN_6, transforms=_SMOOTHED
    ),
    # Where the source lies on such levels, calibrating changes nothing.
    **{label: recipe(_FIVE_IN_32, head) for label, head in _FIVES.items()},
    "int5, calibrated": recipe("int5-block64-asymmetric-gptq", _HEAD_IN_8),
    "int5, head in 8 of 128, calibrated": recipe("int5-block64-asymmetric-gptq", _HEAD_IN_WIDE_8),
    "int5, head in 6, calibrated": recipe("int5-block64-asymmetric-gptq", _HEAD_IN_6),
    **{f"{label}, calibrated": precision for label, precision in _CALIBRATED.items()},
    **{f"{label}, rounded": rounded(precision) for label, precision in _CALIBRATED.items()},
    # Where a model has few layers, the outer ones are too much of it for 8 bits.
    "int4 in blocks of 32 with zero points, head in 6, calibrated": recipe(_IN_32, _HEAD_IN_6),
    "int4, calibrated": PRECISIONS["int4"].calibrated(),
    "int4": PRECISIONS["int4"],
    "int4 with zero points, head in 6, ends in 8, calibrated": recipe(_IN_64, _HEAD_IN_6, _ENDS_IN_8),
    "int4 with zero points, head in 6, calibrated": recipe(_IN_64, _HEAD_IN_6),
}
