"""The section of ours in a config.json that transformers, or a person, changes beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from json_files import edited_json
from make_tiny_model import make_checkpoint
from transformers import AutoConfig

from edgelm.architecture.config_section import BESIDE
from edgelm.config import SECTION, ModelConfig
from edgelm.errors import CheckpointError, ConfigError
from edgelm_export.importer import import_checkpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import_checkpoint(make_checkpoint(tmp_path / "made"), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def rewrite(folder: Path, **changes: Any) -> None:
    """Let transformers write config.json anew."""
    config = AutoConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    config.save_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta is 500000.0, and was 10000.0"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type is 'linear', and was 'default'",
        ),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06, and was 1e-05"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and was 'silu'"),
        ({"max_position_embeddings": 64}, "max_position_embeddings is 64, and was 1024"),
        ({"eos_token_id": [2, 0]}, "eos_token_id is [2, 0], and was 2"),
    ],
)
def test_what_contradicts_the_section_is_refused_with_both_values_and_two_ways_out(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    before = ModelConfig.load(folder)
    rewrite(folder, **changes)

    key = message.partition(" ")[0]
    told = f"{folder}/config.json: {message} when edgelm wrote the section 'edgelm' beside it, .* set {key} back"
    with pytest.raises(ConfigError, match=re.escape(told).replace(r"\ \.\*\ ", " .* ")):
        ModelConfig.load(folder)
    with pytest.raises(CheckpointError, match=re.escape(f"{folder}/config.json: {message} when")):
        HuggingFaceCheckpoint(folder)

    with edited_json(folder / "config.json") as values:
        del values[SECTION]
    import_checkpoint(folder, folder.with_name("again"))
    assert ModelConfig.load(folder.with_name("again")) != before


@pytest.mark.parametrize("changes", [{}, {"pad_token_id": 0, "use_cache": False, "attention_dropout": 0.1}])
def test_what_changes_no_answer_leaves_the_section_in_force(folder: Path, changes: dict[str, Any]) -> None:
    before = ModelConfig.load(folder)
    rewrite(folder, **changes)
    assert ModelConfig.load(folder) == HuggingFaceCheckpoint(folder).config == before


def test_who_changes_both_alike_is_believed(folder: Path) -> None:
    with edited_json(folder / "config.json") as values:
        values["rope_theta"] = values[SECTION]["rope_theta"] = 5e5
    assert ModelConfig.load(folder).rope_theta == HuggingFaceCheckpoint(folder).config.rope_theta == 5e5


def test_a_record_that_is_none_is_refused(folder: Path) -> None:
    with edited_json(folder / "config.json") as values:
        values[SECTION][BESIDE] = [1]
    with pytest.raises(ConfigError, match=r"config\.json: edgelm\.beside is \[1\]; it must be an object"):
        ModelConfig.load(folder)


def test_a_folder_without_the_record_is_read_by_its_section(folder: Path) -> None:
    with edited_json(folder / "config.json") as values:
        del values[SECTION][BESIDE]
        values["rope_theta"] = 5e5
    assert ModelConfig.load(folder).rope_theta == 1e4
