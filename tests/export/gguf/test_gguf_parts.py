"""GGUF models in several files: read as the same model in one, and refused where the files do not belong together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from command_line import invoke
from safetensors.numpy import load_file
from transformers import LlamaForCausalLM

from edgelm.errors import CheckpointError
from edgelm.files.gguf_part_names import MOST_PARTS, names_of_parts
from edgelm.library.library import Library
from edgelm.package.manifest import Manifest
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.exporter import export_package
from edgelm_export.gguf.file import MAX_TENSORS
from edgelm_export.gguf.model import GGUFModel
from edgelm_export.sources.sources import open_checkpoint

SaveLlama = Callable[..., LlamaForCausalLM]
WriteGGUF = Callable[..., Path]

# As the gguf package's writer takes them; the model has 20 tensors.
SPLITS = {
    "by tensors": {"split_max_tensors": 7},
    "by size": {"split_max_size": 40_000},
    "metadata alone in the first": {"split_max_tensors": 7, "small_first_shard": True},
}
FIRST, SECOND, THIRD = names_of_parts("m-00001-of-00003.gguf")


@pytest.fixture
def model(tmp_path: Path, save_llama: SaveLlama) -> LlamaForCausalLM:
    return save_llama(tmp_path / "hf")


def write_part(
    path: Path, number: object, count: object = 3, total: object = 4, tensors: Sequence[str] = (), name: str = ""
) -> None:
    """Write a part with these tensors; a number of None has no key in the file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name or f"of {path.name}")
    for key, value in (("split.no", number), ("split.count", count), ("split.tensors.count", total)):
        if isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_int32(key, value)
    for seed, name in enumerate(tensors):
        writer.add_tensor(name, np.full((2, 4), 10 * len(path.name) + seed, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_three(folder: Path) -> Path:
    """Write three parts with four tensors, and return the first."""
    write_part(folder / FIRST, 0, tensors=["a"])
    write_part(folder / SECOND, 1, tensors=["b", "c"])
    write_part(folder / THIRD, 2, tensors=["d"])
    return folder / FIRST


def assert_same_model(found: Checkpoint, expected: Checkpoint) -> None:
    assert (found.config, found.hf_config, found.text_files) == (
        expected.config,
        expected.hf_config,
        expected.text_files,
    )
    for name in expected.config.tensor_shapes():
        assert found.stored_type(name) == expected.stored_type(name)
        np.testing.assert_array_equal(found.tensor(name), expected.tensor(name), err_msg=name)
        blocks = found.quantized_blocks(name), expected.quantized_blocks(name)
        if blocks[1] is not None:
            assert blocks[0] is not None
            np.testing.assert_array_equal(blocks[0].values, blocks[1].values, err_msg=name)


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_a_model_in_parts_is_that_of_one_file_from_any_part_and_from_their_folder(
    tmp_path: Path, model: LlamaForCausalLM, write_gguf: WriteGGUF, split: dict[str, int]
) -> None:
    (tmp_path / "parts").mkdir()
    first = write_gguf(tmp_path / "parts" / "tiny.gguf", model, "Q8_0", split=split)
    parts = sorted((tmp_path / "parts").iterdir())
    assert first == parts[0]
    assert len(parts) > 2
    with open_checkpoint(write_gguf(tmp_path / "tiny.gguf", model, "Q8_0")) as expected:
        for path in (*parts, tmp_path / "parts"):
            with open_checkpoint(path) as checkpoint:
                assert_same_model(checkpoint, expected)


def test_a_package_of_parts_is_that_of_one_file_byte_for_byte_and_names_the_hash_of_each(
    tmp_path: Path, model: LlamaForCausalLM, write_gguf: WriteGGUF
) -> None:
    sources = [
        write_gguf(tmp_path / "tiny.gguf", model, "Q4_0"),
        write_gguf(tmp_path / "tiny.gguf", model, "Q4_0", split=SPLITS["by tensors"]),
    ]
    manifests = []
    for source, name in zip(sources, ("one", "parts"), strict=True):
        with open_checkpoint(source) as checkpoint:
            export_package(checkpoint, tmp_path / name, "keep", name="tiny")
        manifests.append(Manifest.load(tmp_path / name))
    one, parts = manifests
    assert one.files == parts.files  # with their hashes
    assert sorted(os.listdir(tmp_path / "one")) == sorted(os.listdir(tmp_path / "parts"))
    assert [entry["path"] for entry in parts.source["files"]] == names_of_parts(sources[1].name)
    for entry in parts.source["files"]:
        content = (tmp_path / entry["path"]).read_bytes()
        assert (entry["size"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert {**one.source, "files": None} == {**parts.source, "files": None}
    assert dataclasses.replace(one, source=parts.source) == parts


def test_the_command_imports_a_model_in_parts(tmp_path: Path, model: LlamaForCausalLM, write_gguf: WriteGGUF) -> None:
    first = write_gguf(tmp_path / "tiny.gguf", model, split=SPLITS["by size"])
    result = invoke("import", first, "-o", tmp_path / "ckpt", "--json")
    assert result.exit_code == 0, result.output
    assert [entry["path"] for entry in json.loads(result.stdout)["source"]["files"]] == names_of_parts(first.name)
    written = load_file(tmp_path / "ckpt" / "model.safetensors")
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, model.state_dict()[name].numpy(), err_msg=name)


def test_a_source_in_parts_is_found_in_the_library_and_listed_with_the_size_of_all(
    tmp_path: Path, model: LlamaForCausalLM, write_gguf: WriteGGUF
) -> None:
    folder = Library().root / "sources" / "tiny"
    folder.mkdir(parents=True)
    first = write_gguf(folder / "tiny.gguf", model, "Q8_0", split=SPLITS["by tensors"])
    with open_checkpoint(first) as checkpoint:
        export_package(checkpoint, tmp_path / "tiny", "int8", name="tiny")
    result = invoke("quantize", tmp_path / "tiny", "-o", tmp_path / "out", "--precision", "fp32")
    assert result.exit_code == 0, result.output
    assert f"The weights are read from the package's source, {first}." in result.stderr
    (row,) = json.loads(invoke("list", "--json").stdout)
    assert row["size"] == sum(path.stat().st_size for path in folder.iterdir())

    os.truncate(folder / names_of_parts(first.name)[1], 100)
    result = invoke("quantize", tmp_path / "tiny", "-o", tmp_path / "out", "--precision", "fp32")
    assert "The source of tiny (tiny-00001-of-00003.gguf, " in result.stderr
    assert "is not in the library" in result.stderr


def test_the_first_part_has_the_metadata_and_each_tensor_comes_from_its_own(tmp_path: Path) -> None:
    found = GGUFModel.open(write_three(tmp_path))
    assert found.metadata["general.name"] == f"of {FIRST}"
    assert found.paths == [tmp_path / name for name in (FIRST, SECOND, THIRD)]
    for path in found.paths:
        for tensor in gguf.GGUFReader(path).tensors:
            view = found.data(tensor.name)
            assert view.tobytes() == tensor.data.tobytes()
            assert not view.flags.writeable
    with pytest.raises(CheckpointError, match="has no tensor 'e'"):
        found.data("e")
    found.close()
    for name in "ad":
        with pytest.raises(CheckpointError, match="is closed"):
            found.data(name)


def test_missing_parts_are_named_all_at_once(tmp_path: Path) -> None:
    first = write_three(tmp_path)
    (tmp_path / FIRST).unlink()
    (tmp_path / THIRD).unlink()
    message = f"{SECOND} is one of the 3 files of a model, and these are not beside it: {FIRST}, {THIRD}. Download"
    for path in (tmp_path / SECOND, tmp_path):
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)
    with pytest.raises(CheckpointError, match="Cannot read"):
        GGUFModel.open(first)


BROKEN: dict[str, tuple[str, dict[str, object], str]] = {
    "a part under another's name": (SECOND, {"number": 2, "tensors": ["b", "c"]}, "split.no is 2, where 1 belongs. It"),
    "a part without a number": (SECOND, {"number": None, "tensors": ["b", "c"]}, "split.no is None, where 1 belongs"),
    "a part of another count": (THIRD, {"number": 2, "count": 4}, "split.count is 4, where 3 belongs"),
    "a part of another model": (THIRD, {"number": 2, "total": 9}, "split.tensors.count is 9, where 4 belongs"),
    "a tensor in two parts": (THIRD, {"number": 2, "tensors": ["b"]}, f"tensor 'b' is in {SECOND} too"),
    "the metadata of a whole model": (SECOND, {"number": 1, "name": "a" * (1 << 19)}, ".* remain for the header"),
    "too few tensors": (THIRD, {"number": 2}, "with it the model has 3 tensors, and split.tensors.count is 4"),
    "too many tensors": (THIRD, {"number": 2, "tensors": ["d", "e"]}, "with it the model has 5 tensors, and"),
    "no total": (FIRST, {"number": 0, "total": None}, "split.tensors.count is None; it must be from 1 to 4096"),
    "a total in words": (FIRST, {"number": 0, "total": "4"}, "split.tensors.count is '4'; it must be from 1 to"),
    "a huge total": (FIRST, {"number": 0, "total": MAX_TENSORS + 1}, f"split.tensors.count is {MAX_TENSORS + 1}; it"),
    "a negative count": (FIRST, {"number": 0, "count": -3}, "split.count is -3; at most 512 files are read as one"),
    "a count in words": (FIRST, {"number": 0, "count": "3"}, "split.count is '3'; at most 512 files are read as one"),
    "more parts than any model has": (
        FIRST,
        {"number": 0, "count": MOST_PARTS + 1},
        "split.count is 513; at most 512 files are read as one model",
    ),
    "a count that is not the name's": (
        FIRST,
        {"number": 0, "count": 2},
        r"split.count is 2, and the file's name does not say where the others are\. .*NAME-00001-of-00002\.gguf",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_parts_that_do_not_belong_together_are_an_error_that_names_file_field_and_value(
    tmp_path: Path, case: str
) -> None:
    name, changes, message = BROKEN[case]
    first = write_three(tmp_path)
    write_part(tmp_path / name, **changes)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=rf"{name}: {message}"):
        GGUFModel.open(first)


def test_a_part_under_a_name_of_its_own_is_told_how_the_others_are_found(tmp_path: Path) -> None:
    renamed = write_three(tmp_path).rename(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"model\.gguf: split\.count is 3, and the file's name does not say"):
        GGUFModel.open(renamed)


def test_each_part_is_a_gguf_file_within_the_bounds_of_one(tmp_path: Path) -> None:
    first = write_three(tmp_path)
    (tmp_path / THIRD).write_bytes(b"GGML")
    with pytest.raises(CheckpointError, match=rf"{THIRD}: magic is b'GGML', not b'GGUF'"):
        GGUFModel.open(first)
    # With what is wrong in the second part the third one is not even read.
    write_part(tmp_path / SECOND, 1, tensors=["b", "c", "d", "e"])
    with pytest.raises(CheckpointError, match=rf"{SECOND}: with it the model has 5 tensors"):
        GGUFModel.open(first)


@pytest.mark.parametrize("count", [0, 1])
def test_one_part_of_one_is_the_model(tmp_path: Path, count: int) -> None:
    write_part(tmp_path / "model.gguf", 0, count=count, total=1, tensors=["a"])
    assert list(GGUFModel.open(tmp_path / "model.gguf").tensors) == ["a"]
