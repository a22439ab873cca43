"""Files of settings that are far larger than any in use are not parsed: JSON can take 24 times its size in memory."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from make_tiny_model import make_checkpoint

from edgelm.architecture.quantization_recipe import read_recipe
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, EdgeLMError
from edgelm.files.regular_file import read_regular, read_text
from edgelm.generation_config import GenerationConfig
from edgelm.library.sources import read_record
from edgelm.package.manifest import Manifest
from edgelm.saved_session import SavedSessions
from edgelm.testing import tiny_model_path
from edgelm.text.chat_template import ChatTemplate
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.settings.pretrain_config import PretrainConfig
from edgelm_training.settings.settings import read_settings

LARGE = "[" + "[]," * 900_000 + "[]]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("config.json", ModelConfig.load),
        ("generation_config.json", GenerationConfig.load),
        ("tokenizer_config.json", ChatTemplate.load),
        ("chat_template.jinja", ChatTemplate.load),
        ("config.json", HuggingFaceCheckpoint),
        ("generation_config.json", lambda folder: HuggingFaceCheckpoint(folder).text_files),
        ("recipe.toml", lambda folder: read_recipe(folder / "recipe.toml")),
        ("settings.toml", lambda folder: read_settings(folder / "settings.toml", PretrainConfig)),
    ],
)
def test_a_large_file_is_refused_unread(folder: Path, name: str, load: Callable[[Path], object]) -> None:
    (folder / name).write_text(LARGE)

    with pytest.raises(EdgeLMError, match=rf"{name} cannot be read|Cannot read .*{name}") as caught:
        load(folder)
    most = 32768 if name.endswith(".toml") else 1572864
    assert f"it has {len(LARGE)} bytes, and at most {most} are read" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("config.json", ModelConfig.load),
        ("generation_config.json", GenerationConfig.load),
        ("tokenizer_config.json", ChatTemplate.load),
        ("config.json", HuggingFaceCheckpoint),
        ("generation_config.json", lambda folder: HuggingFaceCheckpoint(folder).text_files),
        ("edgelm.json", Manifest.load),
    ],
)
@pytest.mark.parametrize("text", ["[" + "[]," * 65_536 + "[]]", '{"a": [' + "1," * 131_071 + "1]}"])
def test_json_of_more_values_than_any_settings_have_is_refused_unparsed(
    folder: Path, name: str, load: Callable[[Path], object], text: str
) -> None:
    assert len(text) < 400_000
    (folder / name).write_text(text)

    with pytest.raises(
        EdgeLMError, match=f"it has {sum(map(text.count, ',[{'))} commas and opening brackets"
    ) as caught:
        load(folder)
    assert name in str(caught.value)
    assert "at most 131072 are read" in str(caught.value)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"weight_map": {' + ",".join(f'"{i}": {{}}' for i in range(40_000)) + "}}", "commas and opening brackets"),
        ('{"weight_map": {"é": "a"}}', "'ascii' codec can't decode"),
        ("[" * 70_000, "its nesting is too deep"),
        (" " * ((15 << 19) + 1), "it has 7864321 bytes, and at most 7864320 are read"),
    ],
)
def test_an_index_that_no_checkpoint_has_is_refused(folder: Path, text: str, problem: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    for load in (HuggingFaceCheckpoint, load_checkpoint):
        with pytest.raises(CheckpointError, match=rf"index\.json .*{problem}"):
            load(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"{" + b",".join(b'"%x":{}' % i for i in range(26_214)) + b"}",
        b'{"a":{"dtype":"F32","shape":[' + b",".join([b"0"] * 209_720) + b'],"data_offsets":[0,0]}}',
    ],
)
def test_a_header_of_more_tensors_than_belong_into_a_file_is_refused_unparsed(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    for load in (HuggingFaceCheckpoint, load_checkpoint):
        with pytest.raises(CheckpointError, match=r"objects and \d+ commas; at most 20000 and 160000 are read"):
            load(folder)


def test_a_header_of_safetensors_that_the_library_would_follow_is_refused_unread(folder: Path) -> None:
    header = b'{"__metadata__":{"a":"' + b"x" * (3 << 20) + b'"}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    for load in (HuggingFaceCheckpoint, load_checkpoint):
        with pytest.raises(CheckpointError, match=rf"has a header of {len(header)} bytes; at most 3145728 are read"):
            load(folder)


def test_a_header_with_one_name_for_two_tensors_is_refused(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    start, name = 8 + int.from_bytes(content[:8], "little"), "model.embed_tokens.weight"
    entry = json.loads(content[8:start])[name]
    # The library takes the one that stands last, other programs the first.
    other = json.dumps({name: entry | {"shape": entry["shape"][::-1]}}).encode()
    header = other[:-1] + b"," + content[9:start]
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[start:])

    for load in (HuggingFaceCheckpoint, load_checkpoint):
        with pytest.raises(CheckpointError, match=f"model.safetensors has a header .* the key '{name}' twice"):
            load(folder)


def test_a_number_of_thousands_of_digits_in_a_header_is_not_said_to_be_a_name_twice(folder: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    for load in (HuggingFaceCheckpoint, load_checkpoint):
        with pytest.raises(CheckpointError, match=r"model\.safetensors.*invalid JSON in header"):
            load(folder)


def test_reading_a_short_file_sets_no_more_memory_aside_than_it_has(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("short")

    tracemalloc.start()
    try:
        assert read_text(tmp_path / "short", 1 << 30) == read_regular(tmp_path / "short", 1 << 30).decode() == "short"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")

    with pytest.raises(EdgeLMError, match="it is not a regular file"):
        ModelConfig.load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_nor_is_one_in_the_place_of_an_adapters_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 4}')
    os.mkfifo(tmp_path / "adapter_model.safetensors")

    with pytest.raises(EdgeLMError, match=r"adapter_model\.safetensors is not a regular file\. Put the file itself"):
        export_adapter(tmp_path, tiny_model_path(), tmp_path / "out")


def test_a_large_record_of_a_source_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text(LARGE)

    assert read_record(tmp_path) == {}


def test_a_large_tokenizer_is_tried_in_a_child_before_it_is_parsed(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(LARGE)
    with pytest.raises(CheckpointError, match=r"Cannot read .*tokenizer\.json"):
        _ = HuggingFaceCheckpoint(folder).text_files

    (folder / "tokenizer.json").write_text("[" + "[]," * 100_000 + "[]]")  # short, and of many values
    with pytest.raises(CheckpointError, match=r"Cannot read .*tokenizer\.json"):
        _ = HuggingFaceCheckpoint(folder).text_files

    folder = make_checkpoint(folder / "whole")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text())) + " " * 3_000_000)
    assert len(HuggingFaceCheckpoint(folder).text_files["tokenizer.json"]) > 3_000_000


@pytest.mark.parametrize(
    ("messages", "problem"),
    [("{}," * (1 << 18) + "{}", "it has more than 262144 values"), ('"' + "x" * (1 << 24) + '"', "at most 16777216")],
)
def test_a_conversation_that_nobody_had_is_refused_unparsed(messages: str, problem: str, tmp_path: Path) -> None:
    folder = tmp_path / "talk"
    folder.mkdir()
    (folder / "conversation.json").write_text(f'{{"messages": [{messages}]}}')
    described = SavedSessions(tmp_path).describe("talk")
    assert problem in str(described.problem)


def test_what_stands_in_the_texts_of_a_conversation_counts_as_one_value(tmp_path: Path) -> None:
    folder = tmp_path / "talk"
    folder.mkdir()
    turn = {"role": "user", "content": '",[{\\' * (1 << 18)}
    talk = {"model": "", "fingerprint": "", "system": None, "messages": [turn], "tokens": 0}
    (folder / "conversation.json").write_text(json.dumps(talk))
    assert SavedSessions(tmp_path).describe("talk").messages == 1
