import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from json_files import change_json
from tiny_adapter import describe, write_tiny_adapter

from edgelm.errors import ExportError
from edgelm.package.manifest import FileEntry, Manifest
from edgelm.package.replaceable import (
    is_same_folder,
    refuse_to_replace,
    why_not_a_checkpoint,
    why_not_a_package,
    why_not_an_adapter,
)
from edgelm.testing import tiny_model_path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        shutil.copy(tiny_model_path() / name, folder)
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_what_is_absent_or_empty_may_be_replaced(tmp_path: Path) -> None:
    for reason in (why_not_a_checkpoint, why_not_a_package):
        assert reason(tmp_path / "absent") is None
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert reason(tmp_path / "empty") is None


def test_each_kind_may_be_replaced_by_its_own_only(package: Path, checkpoint: Path) -> None:
    assert why_not_a_package(package) is None
    assert why_not_a_checkpoint(checkpoint) is None
    assert why_not_a_package(checkpoint) == "it exists and is not a model package"
    assert why_not_a_checkpoint(package) == "it holds edgelm.json, which is no part of a checkpoint"


def test_nothing_is_written_into_a_package_which_would_not_load_any_more(package: Path) -> None:
    for inside in (package / "int4", package / "models" / "int4"):
        with pytest.raises(
            ExportError, match=f"{inside} is not written: {package} is a model package, .* Choose another"
        ):
            refuse_to_replace(inside, why_not_a_package, ExportError)
    refuse_to_replace(package / ".." / "int4", why_not_a_package, ExportError)
    refuse_to_replace(package, why_not_a_package, ExportError)


def test_nothing_is_written_under_a_name_that_no_folder_can_have(package: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 300)
    with pytest.raises(ExportError, match=r"x is not written: .*File name too long.* Choose another folder"):
        refuse_to_replace(folder, why_not_a_package, ExportError)
    assert not is_same_folder(package, folder)


def test_links_that_go_in_a_circle_lead_to_no_folder(package: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert not is_same_folder(tmp_path / "loop", package)
    assert is_same_folder(package / ".." / package.name, package)


def test_what_a_file_manager_leaves_keeps_nothing_from_being_replaced(package: Path, checkpoint: Path) -> None:
    for folder in (package, checkpoint):
        for name in (".DS_Store", "._config.json", "Desktop.ini", "Thumbs.db"):
            (folder / name).write_bytes(b"seen")
    assert why_not_a_package(package) is None
    assert why_not_a_checkpoint(checkpoint) is None


def test_a_signed_package_may_be_replaced_by_a_new_one(package: Path) -> None:
    (package / "edgelm.sig").write_text("{}")
    assert why_not_a_package(package) is None


def test_a_folder_with_something_of_the_users_is_not_replaced(package: Path, checkpoint: Path) -> None:
    (package / "thesis.txt").write_text("years of work")
    assert why_not_a_package(package) == "it holds thesis.txt, which is no part of this package"
    (checkpoint / "optimizer").mkdir()
    assert why_not_a_checkpoint(checkpoint) == "it holds optimizer, which is no part of a checkpoint"
    (package / "thesis.txt").rename(package / "chat_template.jinja")
    assert why_not_a_package(package) is None
    (package / "chat_template.jinja").unlink()
    (package / "chat_template.jinja").mkdir()  # in the place of a file, and whatever may be in it
    assert why_not_a_package(package) == "it holds chat_template.jinja, which is no part of this package"


def test_a_manifest_that_lists_a_pattern_means_a_file_of_that_name(package: Path) -> None:
    manifest = Manifest.load(package)
    entry = FileEntry(path="*", size=1, sha256="")
    dataclasses.replace(manifest, files=(*manifest.files, entry)).save(package)
    (package / "thesis.txt").write_text("years of work")
    assert why_not_a_package(package) == "it holds thesis.txt, which is no part of this package"


@pytest.mark.parametrize("content", ["{}", '["edgelm"]', '{"edgelm": 1}', "no json"])
def test_a_config_without_our_section_is_somebody_elses(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "thesis.txt").write_text("years of work")
    assert why_not_a_checkpoint(tmp_path) == "it exists and is not a checkpoint folder of edgelm"


def test_a_file_named_as_a_manifest_makes_no_package(tmp_path: Path) -> None:
    (tmp_path / "edgelm.json").write_text(json.dumps({}))
    (tmp_path / "thesis.txt").write_text("years of work")
    assert why_not_a_package(tmp_path) is not None


def test_what_a_newer_edgelm_has_written_is_not_replaced_and_the_reason_says_so(package: Path, tmp_path: Path) -> None:
    change_json(package / "edgelm.json", schema_version=2)
    reason = "has schema_version 2; this edgelm reads 1. Update edgelm"
    assert why_not_a_package(package) == f"what it holds is unknown, since {package / 'edgelm.json'} {reason}"
    adapter = write_tiny_adapter(tmp_path / "adapter")
    describe(adapter, schema_version=2)
    assert why_not_an_adapter(adapter) == f"what it holds is unknown, since {adapter / 'adapter.json'} {reason}"
