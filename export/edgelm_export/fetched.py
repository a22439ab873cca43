"""What `edgelm pull` wrote down of a source, as far as a manifest passes it on."""

from __future__ import annotations

from pathlib import Path

from edgelm.library.sources import read_record

_PASSED_ON = ("repository", "revision", "package", "version", "license")


def fetched_facts(folder: Path) -> dict[str, str]:
    """Return where the files in a folder were fetched from, and their licence; empty for files from elsewhere."""
    record = read_record(folder)
    return {name: record[name] for name in _PASSED_ON if isinstance(record.get(name), str)}
