"""Folders of models with an encoder: how an answer begins, what is passed over, and what is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from json_files import change_json, edited_json
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from edgelm.errors import CheckpointError, VerificationError
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

SavePair = Callable[[str, Path], PreTrainedModel]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder is false; of t5 models"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "supported is one embedding of one vocabulary"),
        ("marian", {"bad_words_ids": [[0, 5]]}, "bad_words_ids is .*; supported is a list of single tokens"),
        ("m2m_100", {"pad_token_id": 0}, "pad_token_id is 0, and positions are counted from behind it; supported is 1"),
        ("t5", {"relative_attention_num_buckets": 2}, "relative_attention_num_buckets is 2 and .* 4 or more"),
        ("mvp", {"use_prompt": True}, "use_prompt is true: each layer has a learned prompt"),
        ("bart", {"decoder_attention_heads": 3}, "tensors do not fit a bart model"),
        ("bart", {"decoder_layers": 4}, r"missing: model\.decoder\.layers\.3\.self_attn\.q_proj\.weight"),
    ],
)
def test_a_folder_with_another_feature_or_other_tensors_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path, save_pair: SavePair
) -> None:
    save_pair(name, tmp_path / "hf")
    change_json(tmp_path / "hf/config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceCheckpoint(tmp_path / "hf")


def test_generation_config_says_how_an_answer_begins(tmp_path: Path, save_pair: SavePair) -> None:
    save_pair("bart", tmp_path / "hf")
    change_json(tmp_path / "hf/generation_config.json", decoder_start_token_id=9, forced_bos_token_id=7)
    config = HuggingFaceCheckpoint(tmp_path / "hf").config
    assert (config.decoder_start_token_id, config.forced_bos_token_id) == (9, 7)


def test_what_says_nothing_of_an_answers_beginning_begins_as_in_transformers(
    tmp_path: Path, save_pair: SavePair
) -> None:
    save_pair("plbart", tmp_path / "hf")
    for name in ("config.json", "generation_config.json"):
        with edited_json(tmp_path / "hf" / name) as values:
            del values["decoder_start_token_id"]
    answer = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").generate(torch.tensor([[5]]), max_new_tokens=1)
    assert HuggingFaceCheckpoint(tmp_path / "hf").config.decoder_start_token_id == answer[0, 0]


def test_copies_of_the_embedding_and_stored_sinusoids_are_passed_over(tmp_path: Path, save_pair: SavePair) -> None:
    """As older versions of transformers wrote them."""
    save_pair("marian", tmp_path / "hf")
    path = tmp_path / "hf/model.safetensors"
    tensors = load_file(path)
    for stack in ("encoder", "decoder"):
        tensors[f"model.{stack}.embed_tokens.weight"] = tensors["model.shared.weight"].clone()
        tensors[f"model.{stack}.embed_positions.weight"] = torch.zeros(200, 64)
    save_file(tensors, path, metadata={"format": "pt"})
    assert HuggingFaceCheckpoint(tmp_path / "hf").config.position == "sinusoidal_halves"
    tensors["model.decoder.embed_tokens.weight"] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    message = "model.decoder.embed_tokens.weight is another tensor than model.shared.weight; supported is one embedding"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        HuggingFaceCheckpoint(tmp_path / "hf")


def test_a_tokenizer_that_marks_a_source_with_a_token_of_another_model_is_refused(
    tmp_path: Path, save_pair: SavePair
) -> None:
    save_pair("bart", tmp_path / "hf")
    marks = TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", 320)])
    change_json(tmp_path / "hf/tokenizer.json", post_processor=json.loads(marks.__getstate__()))
    with pytest.raises(VerificationError, match="puts token 320 around a text; the model's are 0 to 319"):
        export_package(HuggingFaceCheckpoint(tmp_path / "hf"), tmp_path / "package", "fp32")
