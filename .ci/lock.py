"""Write the lock of the development tools for this platform: .venv/bin/python .ci/lock.py EXTRA,EXTRA,...

What is installed here, of all that the extras need, becomes a line with its version and the hash of its file. pip says
which file that is, from whatever index it is set up with. torch is left out, with what it alone needs: its wheel
differs between builds for a processor and for each graphics card, and pyproject.toml has its range.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

LEFT_OUT = {"torch"}
PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
TARGET = Path(__file__).with_name(f"lock-{sys.platform}-{platform.machine()}-{PYTHON}.txt")
HEAD = """# The development tools, made by `make lock`; `make locked` installs them. torch is left out.
# For {platform} alone: other files have other hashes.
"""


def canonical(name: str) -> str:
    """Write a distribution's name as the indexes do."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: set[str]) -> set[str]:
    """Name all distributions that one needs on this platform, and what those need."""
    found: dict[str, set[str]] = {}
    waiting = [(name, extras)]
    while waiting:
        name, extras = waiting.pop()
        known = found.setdefault(canonical(name), {""})
        for extra in ({""} if known == {""} else set()) | (extras - known):
            known.add(extra)
            for text in metadata.requires(name) or ():
                requirement = Requirement(text)
                marker = requirement.marker
                if canonical(requirement.name) in LEFT_OUT:
                    continue
                if marker is None or marker.evaluate({"extra": extra}):
                    waiting.append((requirement.name, set(requirement.extras)))
    return set(found)


def hashes_of(pins: list[str]) -> dict[str, str]:
    """Ask pip which file it would install of each, and what its SHA-256 is; nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
    report = subprocess.run([*command, "--report", "-", *pins], capture_output=True, text=True, check=True).stdout
    return {
        canonical(item["metadata"]["name"]): item["download_info"]["archive_info"]["hashes"]["sha256"]
        for item in json.loads(report)["install"]
    }


def main() -> None:
    """Write the lock."""
    names = sorted(needed("edgelm", set(sys.argv[1].split(","))) - {"edgelm"})
    versions = {name: metadata.version(name) for name in names}
    hashes = hashes_of([f"{name}=={version}" for name, version in versions.items()])
    lines = [f"{name}=={version} --hash=sha256:{hashes[name]}\n" for name, version in versions.items()]
    major, minor = sys.version_info[:2]
    described = f"{platform.system()} on {platform.machine()} with Python {major}.{minor}"
    TARGET.write_text(HEAD.format(platform=described) + "".join(lines))


if __name__ == "__main__":
    main()
