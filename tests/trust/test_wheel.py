"""The wheel: built twice, it has the same bytes, and in it is what a user needs and no more."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(folder: Path) -> Path:
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("first"))


def test_a_wheel_that_is_built_twice_has_the_same_bytes(first: Path, tmp_path: Path) -> None:
    time.sleep(2.1)  # zip files count time in steps of two seconds
    second = build(tmp_path / "second")

    if first.stat().st_size != second.stat().st_size or digest(first) != digest(second):
        # Somebody edits the sources meanwhile, maybe: what differs is then named.
        names = [{info.filename: info.CRC for info in zipfile.ZipFile(path).infolist()} for path in (first, second)]
        raise AssertionError(f"these members differ: {names[0].items() ^ names[1].items()}")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_wheel_holds_the_three_packages_and_nothing_of_their_surroundings(first: Path) -> None:
    with zipfile.ZipFile(first) as wheel:
        tops = {name.partition("/")[0] for name in wheel.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgelm", "edgelm_export", "edgelm_training"}
