"""Files of a package: only regular files with one name are opened, and what was opened is what is checked."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from json_files import edited_json

from edgelm import load
from edgelm.errors import PackageError
from edgelm.files.regular_file import open_regular, parse_json, read_regular, read_text
from edgelm.package.manifest import Manifest, check_hash, is_plain_name, read_checked
from edgelm.package.package import open_package
from edgelm.testing import tiny_model_path

POSIX_ONLY = pytest.mark.skipif(os.name == "nt", reason="pipes and devices are of POSIX")


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")

    assert read_regular(tmp_path / "a", 3) == b"abc"
    with pytest.raises(PackageError, match=r"a has 3 bytes; at most 2 are read\."):
        read_regular(tmp_path / "a", 2)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_told_so(package: Path, name: str) -> None:
    (package / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 269060552\n")
    message = f"{name} is not the file itself but a pointer of git-lfs to it: .* git lfs install, then git lfs pull"
    with pytest.raises(PackageError, match=message):
        load(package)


@POSIX_ONLY
@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe", "device", "missing", "NUL"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    (tmp_path / "b").write_bytes(b"abc")
    if kind == "link":
        path.symlink_to(tmp_path / "b")
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "c")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "NUL":
        path = tmp_path / "b\0c"

    with pytest.raises(PackageError, match="is missing or not a regular file"):
        open_regular(path)


@POSIX_ONLY
def test_a_link_that_takes_the_place_of_a_checked_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"abc")
    before = os.lstat(tmp_path / "a")
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lambda _path: before)  # the swap happens right after the look at the name
        with pytest.raises(PackageError, match=r"cannot be read: .*Too many levels of"):
            open_regular(tmp_path / "a")


@POSIX_ONLY
def test_a_pipe_that_takes_the_place_of_a_checked_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    before = os.lstat(tmp_path / "a")
    (tmp_path / "a").unlink()
    os.mkfifo(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lambda _path: before)
        with pytest.raises(PackageError, match="is missing or not a regular file"):
            open_regular(tmp_path / "a")


def test_a_byte_order_mark_before_a_text_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"\xef\xbb\xbfname = 'mine'\r\n")
    assert read_text(tmp_path / "recipe.toml") == "name = 'mine'\r\n"


@POSIX_ONLY
@pytest.mark.parametrize("before", ["", "tiny\n"])
def test_a_text_that_takes_the_place_of_a_shorter_one_is_read_whole(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, newer = tmp_path / "alias", tmp_path / "newer"
    plain_open = Path.open

    def replace_first(self: Path, mode: str) -> object:
        os.replace(newer, path)
        return plain_open(self, mode)

    for most in (9, 8):
        path.write_text(before, encoding="utf-8")
        newer.write_text("original\n", encoding="utf-8")
        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", replace_first)
            if most == 9:
                assert read_text(path, most) == "original\n"
            else:
                with pytest.raises(ValueError, match="it has 9 bytes, and at most 8 are read"):
                    read_text(path, most)


def test_a_file_that_may_not_be_read_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"abc")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(PackageError, match=r"cannot be read: .*Permission denied"):
            open_regular(tmp_path / "a")


@pytest.mark.parametrize("function", ["listdir", "scandir"])
def test_a_folder_that_may_not_be_listed_or_is_gone_is_an_error_of_ours(
    function: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(os, function)

    def refuse(path: Path) -> object:
        if path == package:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, refuse)
        with pytest.raises(PackageError, match=r"package cannot be read: .*Permission denied.* may you not list it\?$"):
            load(package)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reading one's own memory at 0 fails on Linux")
def test_a_read_that_the_disk_refuses_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgelm.files.regular_file.open_regular", lambda _path: open("/proc/self/mem", "rb"))  # noqa: SIM115

    with pytest.raises(PackageError, match=r"cannot be read: .*Input/output error"):
        read_regular(tmp_path / "a", 10)


def test_a_file_with_a_second_name_is_refused(package: Path) -> None:
    os.link(package / "model.onnx.data", package.parent / "elsewhere")

    with pytest.raises(PackageError, match=r"model\.onnx\.data has a second name on this disk \(a hard link\)"):
        load(package)


def test_files_that_an_installer_linked_into_edgelm_itself_are_read() -> None:
    own = tiny_model_path() / "config.json"
    second = tiny_model_path().with_name(".second-name-of-a-test")
    os.link(own, second)
    try:
        open_regular(own).close()
    finally:
        second.unlink()


def test_what_is_read_is_what_was_checked(package: Path) -> None:
    entry = Manifest.load(package).entry("config.json")
    assert read_checked(package, entry) == (package / "config.json").read_bytes()

    data = bytearray((package / "config.json").read_bytes())
    data[5] ^= 1
    (package / "config.json").write_bytes(data)
    for check in (read_checked, check_hash):
        with pytest.raises(PackageError, match=r"config\.json does not match the SHA-256 in the manifest"):
            check(package, entry)


def test_a_file_that_the_manifest_does_not_list_is_asked_for_in_vain() -> None:
    with pytest.raises(PackageError, match=r"The manifest of tiny-random lists no model\.safetensors\."):
        Manifest.load(tiny_model_path()).entry("model.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        *("../secret", "/etc/passwd", "..", ".", "sub/model.onnx", "a/"),
        *(
            "a\nb",
            "a\0b",
            "C:x",
            "a\\b",
            "x" * 256,
            "é" * 128,
            "edgelm.json",
            "edgelm.sig",
            "EDGELM.JSON",
            "Edgelm.sig",
        ),
        *(
            "NUL",
            "nul.json",
            "Aux .txt",
            "com1",
            "LPT³.onnx",
            "CONOUT$",
            "a.",
            "b ",
            "c. .",
            'd"',
            "e?",
            "f*",
            "<g",
            "h|",
        ),
    ],
)
def test_a_name_that_is_no_plain_file_name_is_refused(package: Path, name: str) -> None:
    with edited_json(package / "edgelm.json") as values:
        del values["manifest_sha256"]
        values["files"][0]["path"] = name

    with pytest.raises(PackageError, match=r"edgelm\.json lists '.*', which is not a plain file name\."):
        Manifest.load(package).check_files(package)


@pytest.mark.parametrize("name", ["console.json", "null", "a.b", ".a", " a", "com10", "prn-1.onnx", "x" * 255])
def test_a_name_that_is_a_plain_one_on_every_system_is_taken(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize(("place", "named"), [(0, "chat_template.jinja"), (9, "CHAT_TEMPLATE.JINJA")])
def test_a_file_that_is_listed_twice_is_refused(package: Path, place: int, named: str) -> None:
    with edited_json(package / "edgelm.json") as values:
        del values["manifest_sha256"]
        values["files"].insert(place, values["files"][0] | {"path": values["files"][0]["path"].upper()})

    with pytest.raises(PackageError, match=f"lists '{re.escape(named)}' twice"):
        Manifest.load(package).check_files(package)


def test_a_manifest_of_two_megabytes_is_not_parsed(package: Path) -> None:
    (package / "edgelm.json").write_text("[" + "1," * 1_000_000 + "1]")

    with pytest.raises(PackageError, match=r"edgelm\.json has 2000003 bytes; at most 524288 are read\."):
        Manifest.load(package)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("data", [b"NaN", b"[Infinity]", b"\xff", b"{", b"[" * 100_000, b"1" * 5000, b"-1e999"])
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(data)


def test_a_key_that_is_there_twice_is_a_value_error_that_names_it() -> None:
    assert parse_json(b'{"a": {"b": 1}, "b": 2}') == {"a": {"b": 1}, "b": 2}
    with pytest.raises(ValueError, match="it has the key 'b' twice in an object"):
        parse_json(b'[{"a": 1, "b": {"a": 1}, "b": 3}]')


@pytest.mark.parametrize("data", [rb'"\ud800"', rb'[{"\udfff": 1}]', rb'"\ude00\ud83d"'])
def test_half_of_a_surrogate_pair_is_a_value_error(data: bytes) -> None:
    assert parse_json(rb'"\ud83d\ude00"') == "\N{GRINNING FACE}"
    with pytest.raises(ValueError, match="surrogates not allowed"):
        parse_json(data)


@pytest.mark.parametrize("name", ["model.onnx.data", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_foreign_package_holds_no_links_either(tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    for file in ("model.onnx", "model.onnx.data", "tokenizer.json"):
        shutil.copy(tiny_model_path() / file, folder)
    config = json.loads((tiny_model_path() / "config.json").read_text())
    del config["edgelm"]
    (folder / "config.json").write_text(json.dumps(config))
    assert open_package(folder).foreign_graph == Path("model.onnx")

    (folder / name).rename(tmp_path / "elsewhere")
    if kind == "symbolic":
        (folder / name).symlink_to(tmp_path / "elsewhere")
    else:
        (folder / name).hardlink_to(tmp_path / "elsewhere")
    problem = "a hard link|is missing or not a regular file|which is not one of the package's files"
    with pytest.raises(PackageError, match=problem):
        open_package(folder)
