"""Files of JSON that a test changes where they lie: a config, a manifest, the state of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def change_json(path: Path, /, **changes: Any) -> None:
    """Set keys of a file's object."""
    with edited_json(path) as values:
        values.update(changes)


@contextmanager
def edited_json(path: Path) -> Iterator[Any]:
    """Read what a file holds, and write it back as the block has left it."""
    values = json.loads(path.read_text(encoding="utf-8"))
    yield values
    path.write_text(json.dumps(values), encoding="utf-8")
