"""The lock of the development tools: complete, pinned, hashed, and bound to no index."""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
LOCK = ROOT / ".ci" / f"lock-{sys.platform}-{platform.machine()}-{PYTHON}.txt"
pytestmark = pytest.mark.skipif(not LOCK.exists(), reason="this platform has no lock")
LINE = re.compile(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")


def test_each_line_is_one_version_with_its_hash_and_names_no_index() -> None:
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]

    assert len(lines) > 100
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert "://" not in LOCK.read_text()


def test_what_the_extras_ask_for_is_locked_at_a_version_that_they_allow() -> None:
    """After a change of pyproject.toml: `make lock`."""
    locked = {match[1]: Version(match[2]) for match in LINE.finditer(LOCK.read_text())}
    match = re.search(r"^DEV_EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert match is not None
    for text in metadata.requires("edgelm") or ():
        requirement = Requirement(text)
        extras = ["", *match[1].split(",")]
        wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if wanted and name not in ("torch", "edgelm"):
            assert name in locked, text
            assert locked[name] in requirement.specifier, (text, locked[name])
