"""No silent damage: whatever happens to a byte or a file of a package, it is refused, and the file is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from json_files import edited_json

import edgelm
from edgelm.errors import PackageError
from edgelm.package.graph_file import files_of_tensors
from edgelm.package.manifest import FileEntry, Manifest
from edgelm.testing import tiny_model_path

# $EDGELM_BIT_FLIPS=10000 is what docs/results/trust.md reports.
FLIPS = int(os.environ.get("EDGELM_BIT_FLIPS", "2000"))
WEIGHTS = "model.onnx.data"
NAMES = sorted(path.name for path in tiny_model_path().iterdir())


def problem(folder: Path) -> str:
    """Return what a load says of a package before any file of it is used."""
    with pytest.raises(PackageError) as caught:
        Manifest.load(folder).check_files(folder)
    return str(caught.value)


def test_the_package_is_whole_to_begin_with(package: Path) -> None:
    Manifest.load(package).check_files(package)


def test_bit_flips_are_all_refused(package: Path) -> None:
    random = Random(7)
    sizes = {name: (package / name).stat().st_size for name in NAMES}
    # Half of them in proportion to the files' sizes, which are mostly weights; half in every file alike.
    names = random.choices(list(sizes), list(sizes.values()), k=FLIPS // 2) + random.choices(list(sizes), k=FLIPS // 2)
    for name in names:
        place, bit = random.randrange(sizes[name]), 1 << random.randrange(8)
        with (package / name).open("r+b", buffering=0) as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ bit]))
            message = problem(package)
            file.seek(place)
            file.write(bytes([byte]))
        assert name in message, (name, place, bit, message)

    Manifest.load(package).check_files(package)


def test_large_weights_that_were_changed_are_refused_also_where_they_are_hashed_beside_the_session(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelm.loading._LARGE", (package / WEIGHTS).stat().st_size - 1)
    edgelm.load(package)
    data = bytearray((package / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (package / WEIGHTS).write_bytes(data)
    with pytest.raises(PackageError, match=f"{WEIGHTS} does not match the SHA-256 in the manifest"):
        edgelm.load(package)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "edgelm.json"])
def test_a_file_of_which_one_bit_was_changed_is_not_loaded(package: Path, name: str) -> None:
    data = bytearray((package / name).read_bytes())
    data[len(data) // 2] ^= 1
    (package / name).write_bytes(data)

    with pytest.raises(PackageError, match=f"{name} does not match the SHA-256 in the manifest"):
        edgelm.load(package)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("left", ["nothing", "the first byte", "half", "all but the last byte", "one byte more"])
def test_a_file_of_another_length_is_refused(package: Path, name: str, left: str) -> None:
    size = (package / name).stat().st_size
    lengths = {"nothing": 0, "the first byte": 1, "half": size // 2, "all but the last byte": size - 1}
    os.truncate(package / name, lengths.get(left, size + 1))

    with pytest.raises(PackageError, match=name):
        edgelm.load(package)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_refused(package: Path, name: str) -> None:
    (package / name).unlink()

    assert name in problem(package)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "edgelm.json"])
def test_two_files_that_changed_places_are_refused(package: Path, name: str) -> None:
    other = next(other for other in NAMES if other not in (name, "edgelm.json"))
    (package / name).rename(package / "x")
    (package / other).rename(package / name)
    (package / "x").rename(package / other)

    message = problem(package)
    assert name in message or other in message


def blocks_swapped(data: bytearray) -> None:
    data[4096:8192], data[8192:12288] = data[8192:12288], data[4096:8192]


def block_of_zeros(data: bytearray) -> None:
    data[65536 : 65536 + 4096] = bytes(4096)


def sector_doubled(data: bytearray) -> None:
    data[512:1024] = data[:512]


@pytest.mark.parametrize("damage", [blocks_swapped, block_of_zeros, sector_doubled])
def test_what_disks_do_to_a_file_of_the_right_length_is_refused(
    package: Path, damage: Callable[[bytearray], None]
) -> None:
    data = bytearray((package / "model.onnx.data").read_bytes())
    damage(data)
    (package / "model.onnx.data").write_bytes(data)

    assert "model.onnx.data does not match the SHA-256 in the manifest" in problem(package)


@pytest.mark.parametrize("name", [".hidden", "model.onnx.data2", "tokenizer.model", "x.so", "sub"])
def test_a_file_or_folder_that_came_later_is_refused(package: Path, name: str) -> None:
    (package / name).mkdir() if name == "sub" else (package / name).write_bytes(b"x")

    assert f"{name} is not in the manifest" in problem(package)


def test_what_a_file_manager_leaves_in_a_package_is_no_damage_and_no_tensor_lies_in_it(package: Path) -> None:
    whole = files_of_tensors(package)
    for name in (".DS_Store", "._model.onnx", "desktop.ini", "Thumbs.db", ".directory"):
        (package / name).write_bytes(b"seen")

    assert edgelm.load(package).name == "tiny-random"
    assert files_of_tensors(package) == whole


def test_a_file_of_another_package_is_refused(package: Path) -> None:
    with edited_json(package / "config.json") as values:
        values["edgelm"]["rope_theta"] = 20000.0

    assert "config.json" in problem(package)


def test_a_manifest_that_was_edited_by_hand_is_refused(package: Path) -> None:
    text = (package / "edgelm.json").read_text()
    (package / "edgelm.json").write_text(text.replace('"name": "tiny-random"', '"name": "better"'))

    assert "edgelm.json does not match its own SHA-256. It was changed or damaged" in problem(package)


def test_a_manifest_without_a_hash_of_itself_is_read_as_before(package: Path) -> None:
    with edited_json(package / "edgelm.json") as values:
        del values["manifest_sha256"]

    assert Manifest.load(package).entry("config.json") in [FileEntry(**entry) for entry in values["files"]]
