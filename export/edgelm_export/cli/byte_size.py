"""ByteSize: a size on the command line."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

import click


class ByteSize(click.ParamType):  # type: ignore[type-arg]  # click before 8.4 takes none
    """A size such as 90MB or 1.5GB, in powers of ten as disks have them."""

    name = "size"
    _units: ClassVar[dict[str, float]] = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        """Return the number of bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?B?)", str(value).upper())
        if match is None or match[2] not in self._units:
            self.fail(f"{value!r} is no size; write it as 90MB or 1.5GB.", param, context)
        size = float(match[1]) * self._units[match[2]]
        if math.isinf(size):
            self.fail(f"{value!r} is more than any disk holds; write a size as 90MB or 1.5GB.", param, context)
        return int(size)
