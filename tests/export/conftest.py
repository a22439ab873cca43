from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from family_models import randomize
from gguf_converter import add_config
from gguf_tensors import tensors_of
from hub_models import new_model
from make_tiny_model import make_checkpoint
from numpy.typing import NDArray
from pair_models import new_pair
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from edgelm.files import atomic
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.verification import verify

if TYPE_CHECKING:
    from exported_adapters import Exported

VOCABULARY = 320
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
QUANTIZED = (
    "attn_q", "attn_k", "attn_v", "attn_o", "ffn_gate", "ffn_up", "ffn_down", "token_embd", "output.",
    "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "shortconv.in_proj", "shortconv.out_proj", "attn_gate",
    "ssm_beta", "ssm_alpha", "ssm_ba", "ssm_in", "ssm_out", "per_layer_model_proj", "inp_gate", ".proj.",
    "altup_proj", "altup_unembd_proj", "laurel_l", "laurel_r",
)  # fmt: skip

SaveModel = Callable[..., PreTrainedModel]
SavePair = Callable[..., PreTrainedModel]
SaveLlama = Callable[..., LlamaForCausalLM]
WriteGGUF = Callable[..., Path]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="package", autouse=True)
def _short_check() -> Iterator[None]:
    """Let the exporter check packages on one window of its text, of the length that those of large models have."""
    text = verify.verification_text()[:2000]  # to encode all of it takes as long as an export's session
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(verify, "verification_text", lambda: text)
        changed.setattr(verify, "_WINDOW_TOKENS", verify._WINDOW_TOKENS_OF_LARGE)
        changed.setattr(verify, "_WINDOWS", 1)
        yield


@pytest.fixture
def first_rename_refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refuse each file its first rename, as Windows does while what looks for viruses has it open; name them."""
    refused: list[str] = []
    replace = os.replace

    def replace_at_the_second_try(source: Path, target: Path) -> None:
        if str(source) not in refused:
            refused.append(str(source))
            raise PermissionError(13, "Access is denied", str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(atomic, "_WAITS", (0,))
    monkeypatch.setattr(os, "replace", replace_at_the_second_try)
    return refused


@pytest.fixture
def checkpoint(tmp_path: Path) -> HuggingFaceCheckpoint:
    """The tiny model's checkpoint."""
    return HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the sea is blue and the sky is grey, and the boats are white; the wind sings over the sand in the morning. "
    tokenizer.train_from_iterator([text * 4, "abcdefghijklmnopqrstuvwxyz " * 9, "0123456789 " * 9], trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Packages of one checkpoint, and adapters of it."""
    from exported_adapters import export_all  # brings PEFT with it

    return export_all(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def save_model(bpe_tokenizer: PreTrainedTokenizerFast) -> SaveModel:
    """Save a random model of two layers: save_model(model_type, folder, dtype=..., **fields of its config)."""

    def save(
        model_type: str,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        max_shard_size: str = "1GB",
        **changes: Any,
    ) -> PreTrainedModel:
        fields: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            # Of the tokenizer beside it; not every family has them by default.
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        torch.manual_seed(0)
        model = new_model(model_type, fields | changes).eval()
        randomize(model)
        model.to(dtype)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        bpe_tokenizer.save_pretrained(folder)
        return model

    return save


@pytest.fixture(scope="session")
def save_pair(bpe_tokenizer: PreTrainedTokenizerFast) -> SavePair:
    """Save a random model with both stacks, and a tokenizer that ends a source: save_pair(name, folder, **changes)."""

    def save(name: str, folder: Path, **changes: Any) -> PreTrainedModel:
        model = new_pair(name, **changes)
        model.save_pretrained(folder)
        tokenizer = copy.deepcopy(bpe_tokenizer)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)]
        )
        tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)
        return model

    return save


@pytest.fixture(scope="session")
def save_llama(save_model: SaveModel) -> SaveLlama:
    """Save a random Llama of two layers: save_llama(folder, dtype=..., max_shard_size=..., **LlamaConfig's fields)."""
    return partial(save_model, "llama")


@pytest.fixture(scope="session")
def write_gguf(bpe_tokenizer: PreTrainedTokenizerFast) -> WriteGGUF:
    """Write a model as llama.cpp's converter does, with the gguf package: write_gguf(path, model, quantization, extra).

    quantization: the gguf package's name of the type that matrices get. extra: tensors beyond the model's.
    architecture: llama.cpp's name of the model's family; its model_type, if None. split: how the gguf package's writer
    makes several files of it, the first of which is returned.
    """

    def write(
        path: Path,
        model: PreTrainedModel,
        quantization: str = "F32",
        *,
        metadata: Mapping[str, Any] | None = None,
        extra: Mapping[str, NDArray[np.float32]] | None = None,
        architecture: str | None = None,
        chat_template: str | None = TEMPLATE,
        split: Mapping[str, int] | None = None,
    ) -> Path:
        architecture = architecture or model.config.model_type
        writer = gguf.GGUFWriter(path, architecture, **(split or {}))
        add_config(writer, model, architecture)
        _add_tokenizer(writer, bpe_tokenizer)
        if chat_template is not None:
            writer.add_chat_template(chat_template)
        for key, value in (metadata or {}).items():
            {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}[
                type(value)
            ](key, value)
        for name, tensor in {**tensors_of(model, architecture), **(extra or {})}.items():
            is_matrix = tensor.ndim > 1 and name.endswith("weight") and "_norm" not in name
            if is_matrix and any(part in name for part in QUANTIZED):
                type_ = gguf.GGMLQuantizationType[quantization]
                writer.add_tensor(name, gguf.quants.quantize(tensor, type_), raw_dtype=type_)
            else:
                writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return writer.format_shard_names(path)[0]

    return write


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token.startswith("<|") else 1 for token, _ in vocabulary])
    merges = tokenizer.backend_tokenizer.model
    writer.add_token_merges([" ".join(pair) for pair in _merges(merges)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _merges(model: models.BPE) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(Tokenizer(model).to_str())["model"]["merges"]]
