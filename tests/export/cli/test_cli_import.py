from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import invoke
from make_tiny_model import CONFIG, make_checkpoint
from transformers import LlamaForCausalLM

from edgelm.config import ModelConfig
from edgelm.library.library import Library
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

SaveLlama = Callable[..., LlamaForCausalLM]
WriteGGUF = Callable[..., Path]


def test_a_gguf_file_becomes_a_checkpoint_folder_and_the_figures_are_printed(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF
) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", save_llama(tmp_path / "hf"), "Q8_0")
    result = invoke("import", source, "-o", tmp_path / "ckpt")
    assert result.exit_code == 0
    assert ModelConfig.load(tmp_path / "ckpt").hidden_size == 64
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert lines[0][0] == "checkpoint"
    assert lines[0][1].startswith(str(tmp_path / "ckpt"))
    assert "llama, 0.1M parameters" in result.stdout
    assert "15 Q8_0, 5 F32" in result.stdout
    assert result.stderr == ""  # no progress bar where standard error is no terminal


def test_what_a_checkpoint_calls_itself_commands_no_terminal(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "odd", dataclasses.replace(CONFIG, model_type="ti\x1b]0;ny\a"))
    result = invoke("import", tmp_path / "odd", "-o", tmp_path / "ckpt")
    assert "  model  ti]0;ny, 0.0M parameters\n" in result.stdout


def test_json_has_the_figures_and_the_source(tmp_path: Path, save_llama: SaveLlama) -> None:
    save_llama(tmp_path / "hf")
    figures = json.loads(invoke("import", tmp_path / "hf", "-o", tmp_path / "ckpt", "--json").stdout)
    assert figures["folder"] == str(tmp_path / "ckpt")
    assert figures["bytes"] == sum(path.stat().st_size for path in (tmp_path / "ckpt").iterdir())
    assert figures["parameters"] == 320 * 64 + 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96 + 2 * 64) + 64
    assert (figures["model_type"], figures["context_length"]) == ("llama", 1024)
    assert figures["tensor_types"] == {"F32": 20}
    assert figures["source"]["files"][0]["path"] == "model.safetensors"


def test_a_way_through_a_folder_that_is_missing_ends_where_it_says(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "tiny")
    written = tmp_path / "missing" / ".." / "ckpt"
    result = invoke("import", tmp_path / "tiny", "-o", written)
    assert (result.exit_code, result.stderr) == (0, "")
    assert written.samefile(tmp_path / "ckpt")  # so that the next command finds it by the same words
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "missing") == ["ckpt", "tiny"]


def test_a_template_that_is_not_chosen_is_a_note_of_the_import_and_of_the_package(
    tmp_path: Path, save_llama: SaveLlama
) -> None:
    save_llama(tmp_path / "hf")
    (tmp_path / "hf" / "chat_template.jinja").rename(tmp_path / "hf" / "chat_template.json")
    imported = (tmp_path / "hf", "-o", tmp_path / "ckpt")
    shown = invoke("import", *imported).stdout
    assert "              note  It has no chat template: chat_template.json is a processor's" in shown
    (note,) = json.loads(invoke("import", *imported, "--json").stdout)["notes"]
    with HuggingFaceCheckpoint(tmp_path / "hf") as checkpoint:
        assert export_package(checkpoint, tmp_path / "pkg", "fp32").notes == (note,)


def test_a_name_means_the_source_of_the_library_and_a_path_the_folder_of_that_name(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_llama(tmp_path / "hf")
    home = Library().source_path("tiny")
    home.mkdir(parents=True)
    write_gguf(home / "weights.gguf", model)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "hf", tmp_path / "tiny")
    for source, kind in (("tiny", "gguf"), ("./tiny", "safetensors"), ("hf", "safetensors")):
        result = invoke("import", source, "-o", "ckpt", "--json")
        assert json.loads(result.stdout)["source"]["format"] == kind


def test_a_source_that_is_nowhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, words in (
        ("no-such-model", "no source of that name in the library (there: none)"),
        ("./no-such.gguf", "error: There is no file or folder no-such.gguf.\n"),
        ("no such model", "is not a name for a model"),
        (tmp_path / "empty", "is not a checkpoint: looked for config.json"),
    ):
        result = invoke("import", source, "-o", tmp_path / "ckpt")
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr
