"""The wheel: built twice, it has the same bytes, and in it is what a user needs and no more."""

from __future__ import annotations

import email
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

from edgelm.testing import tiny_model_path

ROOT = Path(__file__).parents[2]


def build(folder: Path, target: str = "wheel") -> Path:
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return next(folder.glob("edgelm-*"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("first"))


def test_the_wheel_holds_the_three_packages_and_nothing_of_their_surroundings(first: Path) -> None:
    with zipfile.ZipFile(first) as wheel:
        tops = {name.partition("/")[0] for name in wheel.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgelm", "edgelm_export", "edgelm_training"}


def test_the_wheel_says_under_which_licences_it_is_and_brings_the_notices_of_what_others_wrote(first: Path) -> None:
    """The page's marked is MIT and has Markdown's BSD-3-Clause within; Temml, and ggml's tables of types, are MIT."""
    with zipfile.ZipFile(first) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        stated = email.message_from_bytes(wheel.read(metadata))
        folder = metadata.removesuffix("METADATA") + "licenses/"
        notices = {Path(name).name: wheel.read(folder + name).decode() for name in stated.get_all("License-File", ())}

    assert stated["License-Expression"] == "Apache-2.0 AND MIT AND BSD-3-Clause"
    assert notices.keys() == {"LICENSE", "marked.LICENSE", "temml.LICENSE", "codebooks.LICENSE"}
    assert "The ggml authors" in notices["codebooks.LICENSE"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
def test_the_source_distribution_holds_all_that_its_tests_read(tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    with tarfile.open(build(tmp_path, "sdist")) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}

    assert {name for name in tracked if (ROOT / name).is_file()} - held == set()


def test_a_wheel_that_is_built_twice_has_the_same_bytes(first: Path, tmp_path: Path) -> None:
    while time.time() < first.stat().st_mtime + 2.1:  # zip files count time in steps of two seconds
        time.sleep(0.1)
    second = build(tmp_path / "second")

    if first.stat().st_size != second.stat().st_size or digest(first) != digest(second):
        # Somebody edits the sources meanwhile, maybe: what differs is then named.
        names = [{info.filename: info.CRC for info in zipfile.ZipFile(path).infolist()} for path in (first, second)]
        raise AssertionError(f"these members differ: {names[0].items() ^ names[1].items()}")


def test_the_page_is_shown_also_from_a_zip_that_nobody_unpacked(first: Path) -> None:
    command = [sys.executable, "-m", "edgelm", "serve", str(tiny_model_path()), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(first)}
    folder = ROOT / "sdk/edgelm/server/page"
    with subprocess.Popen(command, cwd=first.parent, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = iter(server.stderr.readline, "")
            url = next(found[1] for line in said if (found := re.search(r"Listening at (http://\S+) ", line)))
            for path, name in (("/", "index.html"), ("/page/app.js", "app.js")):
                with urllib.request.urlopen(url + path) as reply:
                    assert reply.read() == (folder / name).read_bytes()
        finally:
            server.kill()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
