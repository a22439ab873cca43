"""The lock of the development tools: complete, pinned, hashed, for every system, and bound to no index."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCK = ROOT / ".ci" / "lock.txt"
ENTRY = re.compile(r"([a-z0-9-]+)==(\S+)(?: ; ([^\\\n]+?))?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
# Where somebody develops: sys_platform, platform_machine, platform_system, os_name.
SYSTEMS = [
    ("linux", "x86_64", "Linux", "posix"),
    ("linux", "aarch64", "Linux", "posix"),
    ("darwin", "arm64", "Darwin", "posix"),
    ("win32", "AMD64", "Windows", "nt"),
]


def locked(system: tuple[str, str, str, str], python: str) -> dict[str, list[Version]]:
    """Return the versions that are installed on a system; of each name there must be one."""
    environment = dict(zip(("sys_platform", "platform_machine", "platform_system", "os_name"), system, strict=True))
    environment |= {"python_version": python, "python_full_version": f"{python}.9", "implementation_name": "cpython"}
    environment["platform_python_implementation"] = "CPython"
    versions: dict[str, list[Version]] = {}
    for name, version, marker, _hashes in ENTRY.findall(LOCK.read_text()):
        if not marker or Requirement(f"{name} ; {marker}").marker.evaluate(environment):  # type: ignore[union-attr]
            versions.setdefault(name, []).append(Version(version))
    return versions


def wanted() -> list[tuple[str, Requirement]]:
    """Return what edgelm and its extras of development ask for, by its name in the lock."""
    match = re.search(r"^DEV_EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert match is not None
    extras = ["", *match[1].split(",")]
    requirements = [Requirement(text) for text in metadata.requires("edgelm") or ()]
    return [
        (re.sub(r"[-_.]+", "-", one.name).lower(), one)
        for one in requirements
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def test_each_line_is_a_version_with_its_hashes_and_names_no_index() -> None:
    text = LOCK.read_text()

    assert ENTRY.sub("", text) == ""
    assert len(ENTRY.findall(text)) > 100
    assert "://" not in text


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_what_the_extras_ask_for_is_locked_at_a_version_that_they_allow(
    system: tuple[str, str, str, str], python: str
) -> None:
    """After a change of pyproject.toml: `make lock`."""
    versions = locked(system, python)

    assert [name for name, found in versions.items() if len(found) > 1] == []
    for name, requirement in wanted():
        if name not in ("torch", "edgelm"):
            assert name in versions, requirement
            assert versions[name][0] in requirement.specifier, (requirement, versions[name])
    assert "torch" not in versions


def test_what_the_locked_ones_need_is_locked_too() -> None:
    """On this machine, as far as it is installed here."""
    import platform
    import sys

    system = (sys.platform, platform.machine(), platform.system(), "nt" if sys.platform == "win32" else "posix")
    versions = locked(system, f"3.{sys.version_info[1]}")
    for name, (version,) in versions.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if Version(distribution.version) != version:
            continue
        for text in distribution.requires or ():
            requirement = Requirement(text)
            needed = re.sub(r"[-_.]+", "-", requirement.name).lower()
            if (requirement.marker is None or requirement.marker.evaluate({"extra": ""})) and needed != "torch":
                assert needed in versions, (name, text)
