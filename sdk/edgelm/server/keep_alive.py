"""Ollama's `keep_alive`: for how long the model of a request stays loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgelm.server.api_error import ApiError
from edgelm.server.endpoint import Call
from edgelm.server.loaded_model import LoadedModel
from edgelm.server.schema import Schema, number

# Go's durations: 5m, 1h30m, 300ms; a number alone is seconds. A unit ends each part: there is one way to read a text.
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_DURATION = re.compile(rf"-?(?:{_NUMBER}|(?:{_NUMBER}(?:ms|s|m|h))+)")
_DURATION_PART = re.compile(r"([0-9.]+)(ms|s|m|h)?")
LONGEST = 1e9  # seconds, 31 years
KEEP_ALIVE: Schema = {"anyOf": [{"type": "string", "maxLength": 40}, number(-LONGEST, LONGEST)]}
_SECONDS: Mapping[str, float] = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600}


async def acquire(call: Call) -> LoadedModel:
    """Return the model that the request names, loaded, and kept for as long as it says; its `release` is the caller's.

    Raises:
        ApiError: as Call.model; 400, `keep_alive` is no time.
    """
    seconds = seconds_of(call)
    served = await call.model(call.body["model"])
    served.keep_for(seconds)
    return served


def seconds_of(call: Call) -> float | None:
    """Return for how long the model is to be kept; less than 0: always; None: the request does not say.

    Raises:
        ApiError: 400, `keep_alive` is no time.
    """
    keep_alive = call.body.get("keep_alive")
    if not isinstance(keep_alive, str):
        return keep_alive
    if not _DURATION.fullmatch(keep_alive):
        raise ApiError(
            400, f"keep_alive is {keep_alive[:40]!r}; write seconds, or a time as 5m or 1h30m.", param="keep_alive"
        )
    total = min(LONGEST, sum(float(amount) * _SECONDS[unit] for amount, unit in _DURATION_PART.findall(keep_alive)))
    return -total if keep_alive.startswith("-") else total
