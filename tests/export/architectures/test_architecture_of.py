"""Which row reads a folder or a GGUF file, and what those are told that none reads."""

from __future__ import annotations

import re
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from edgelm.errors import CheckpointError
from edgelm_export.architectures import ARCHITECTURES, architecture_of, gguf_architecture_of
from edgelm_export.architectures.lacking import LACKING


def test_unknown_architectures_are_refused_with_the_supported_ones() -> None:
    with pytest.raises(CheckpointError, match=r"here: model_type 'cpmant' is not supported; supported: .*llama"):
        architecture_of({"model_type": "cpmant", "architectures": ["CpmAntForCausalLM"]}, "here")
    for values in ({}, {"model_type": ["llama"], "architectures": "LlamaForCausalLM"}):
        with pytest.raises(CheckpointError, match=r"here: model_type .* is not supported; supported: .*llama"):
            architecture_of(values, "here")
    with pytest.raises(
        CheckpointError, match=r"here: the GGUF architecture 'rwkv7' is not supported; supported: .*llama"
    ):
        gguf_architecture_of({"general.architecture": "rwkv7"}, "here")


@pytest.mark.parametrize("model_type", LACKING)
def test_a_known_family_is_refused_by_what_it_has_that_no_other_has(model_type: str) -> None:
    assert model_type in CONFIG_MAPPING
    assert model_type not in ARCHITECTURES
    message = rf"here: model_type '{model_type}' is not supported \({re.escape(LACKING[model_type])}\); supported: "
    with pytest.raises(CheckpointError, match=message):
        architecture_of({"model_type": model_type, "architectures": ["ForCausalLM"], "vision_config": {}}, "here")


@pytest.mark.parametrize(
    ("model_type", "name", "more", "message"),
    [
        (
            "bert",
            "BertModel",
            {},
            r"'bert' is not supported \(BertModel has no head that writes text: .*\); supported: ",
        ),
        (
            "xlm-roberta",
            "XLMRobertaForSequenceClassification",
            {},
            "'xlm-roberta' is not supported .XLM.* no head that writes",
        ),
        ("qwen3", "Qwen3ForSequenceClassification", {}, r"this 'qwen3' is not supported \(Qwen3ForSeq.* Take another"),
        ("llava", "LlavaForConditionalGeneration", {"vision_config": {}}, "'llava' is not supported .* reads images"),
        ("qwen2_audio", None, {"audio_config": {}}, r"'qwen2_audio' is not supported \(it reads images or sound too;"),
    ],
)
def test_models_that_do_not_write_from_text_alone_are_told_what_they_are(
    model_type: str, name: str | None, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        architecture_of({"model_type": model_type, "architectures": name and [name], **more}, "here")


@pytest.mark.parametrize("is_causal", [False, None])
def test_models_whose_tokens_see_later_ones_are_refused(is_causal: bool | None) -> None:
    values = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    assert architecture_of({**values, "is_causal": True}, "here") is ARCHITECTURES["qwen2"]
    with pytest.raises(CheckpointError, match=rf"here: is_causal is {is_causal}, so that .*; supported is causal"):
        architecture_of({**values, "is_causal": is_causal}, "here")


def test_a_bare_model_of_a_supported_family_is_read_as_one_of_it() -> None:
    assert architecture_of({"model_type": "gpt2", "architectures": ["GPT2Model"]}, "here") is ARCHITECTURES["gpt2"]
    assert architecture_of({"model_type": "gpt2", "architectures": []}, "here") is ARCHITECTURES["gpt2"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "clip"}, "here is the part of a model that reads images or sound; the model itself"),
        (
            {"general.architecture": "llama", "general.type": "adapter"},
            r"here is an adapter \(LoRA\), which",
        ),
        ({"general.architecture": "x", "general.type": "imatrix"}, "here is statistics for quantizing a model"),
        (
            {"general.architecture": "bert", "bert.attention.causal": False},
            r"here embeds or ranks texts \(bert\.attention\.causal is false\); edgelm runs models that write them",
        ),
        ({"general.architecture": "llama", "llama.attention.causal": False}, "here embeds or ranks texts"),
        ({"general.architecture": "x", "general.type": ["model"]}, "the GGUF architecture 'x' is not supported;"),
    ],
)
def test_gguf_files_that_hold_no_model_that_writes_are_told_what_they_are(
    metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        gguf_architecture_of(metadata, "here")
