"""Adapters in GGUF files; the oracles are PEFT's own model, and llama.cpp beside the base's file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from command_line import invoke
from exported_adapters import IDS, adapted_by_peft, our_logits
from gguf_adapters import converted_adapter, write_adapter
from gguf_models import GGUF_MODELS
from json_files import change_json
from mamba_models import FALCON_H1, FALCON_H1_MULTIPLIERS
from transformers import PreTrainedModel
from unchecked_export import export_unchecked

import edgelm
from edgelm.errors import CheckpointError
from edgelm.testing import tiny_model_path
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.adapters.gguf_adapter import read_gguf_adapter
from edgelm_export.importer import import_checkpoint
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_training.merge import merge_adapter

SaveModel = Callable[..., PreTrainedModel]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# Names of models, with what the adapter is on.
ADAPTED: dict[str, Any] = {
    "granite": "all-linear",  # heads that turn by neighbours in the file, multipliers of residuals
    "phi3": "all-linear",  # queries, keys and values in one matrix, gates and values in another
    "gpt_neox": "all-linear",  # the same, which lie by head in the published folder
    "cohere": "all-linear",  # heads that turn by neighbours in both
    "the text part of Mistral Small 3": ATTENTION,  # which has Ministral 3's name there
    "olmoe": ATTENTION,  # beside experts
    "cohere2_moe, averaged with shared experts, untied": ATTENTION,  # a multiplier that no weight of the file has
    "falcon_h1": [*ATTENTION, "gate_proj"],
}
_FOR_LLAMA_CPP: dict[str, dict[str, Any]] = {"olmoe": {"num_key_value_heads": 4}, "falcon_h1": FALCON_H1_MULTIPLIERS}


def _by_llama_cpp(model: Path, adapter: Path) -> Any:
    llama_cpp: Any = pytest.importorskip("llama_cpp")
    in_float32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    options = {"logits_all": True, "n_threads": 1, "verbose": False} | in_float32
    llama = llama_cpp.Llama(str(model), lora_path=str(adapter), n_ctx=64, **options)
    llama.eval(IDS)
    found = llama.scores[: len(IDS)].copy()
    llama.close()
    return found


@pytest.mark.parametrize("name", ADAPTED)
def test_beside_its_package_an_adapter_computes_as_in_peft_and_llama_cpp(
    name: str, save_model: SaveModel, write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    family, architecture, fields = GGUF_MODELS[name]
    model = save_model(family, tmp_path / "hf", **fields | _FOR_LLAMA_CPP.get(name, {}))
    path = write_gguf(tmp_path / "tiny.gguf", model, architecture=architecture)
    adapted = adapted_by_peft(tmp_path / "hf", target_modules=ADAPTED[name], lora_alpha=8)
    file = write_adapter(tmp_path / "mine.gguf", converted_adapter(adapted, model, architecture), architecture)
    with torch.no_grad():
        expected = adapted(torch.tensor([IDS])).logits[0].numpy()
    with GGUFCheckpoint(path) as source:
        export_unchecked(source, tmp_path / "pkg", "fp32")
    manifest = export_adapter(file, tmp_path / "pkg", tmp_path / "mine")
    assert (manifest.rank, manifest.alpha) == (3, 8)
    ours = edgelm.load(tmp_path / "pkg")
    ours.load_adapter(tmp_path / "mine")
    assert np.abs(our_logits(ours, None) - expected).max() > 0.1
    # Sums in another order. Measured: 8e-6; of llama.cpp, whose gelu is a table of 16 bits, 1e-3.
    np.testing.assert_allclose(our_logits(ours, "mine"), expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(_by_llama_cpp(path, file), expected, atol=5e-3, rtol=0)


def _tiny(**changes: Any) -> dict[str, Any]:
    """Make the matrices of an adapter of the tiny model's first layer."""
    layer = "blk.0.attn_output.weight"
    return {f"{layer}.lora_a": np.ones((32, 32), "f4"), f"{layer}.lora_b": np.ones((32, 32), "f4")} | changes


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0"])
def test_what_the_converter_writes_is_read(dtype: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=tensor.shape).astype("f4") for name, tensor in _tiny().items()}
    adapter = read_gguf_adapter(write_adapter(tmp_path / "mine.gguf", tensors, "llama", dtype))
    kind = gguf.GGMLQuantizationType[dtype]
    expected = [gguf.dequantize(gguf.quantize(tensor, kind), kind) for tensor in tensors.values()]
    assert adapter.architecture == "llama"
    np.testing.assert_array_equal(adapter.matrices["blk.0.attn_output"], expected)


def test_the_command_takes_a_file(tmp_path: Path) -> None:
    file = write_adapter(tmp_path / "lora.bin", _tiny(), "llama")  # whatever its name
    result = invoke("export-adapter", file, "--base", tiny_model_path(), "-o", tmp_path / "mine")
    assert result.exit_code == 0, result.output
    assert "changes  o_proj" in result.stdout
    assert "Nothing tells whether the package was exported from" in result.stdout


_LONE = "blk.0.ffn_up.weight.lora_a"


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"general.type": "model"}, r"mine\.gguf has general\.type = 'model'; only plain LoRA .* 'adapter' there"),
        ({}, {"adapter.type": "dora"}, r"has adapter\.type = 'dora'; only plain LoRA adapters are read"),
        (
            {},
            {"adapter.alora.invocation_tokens": [5, 6]},
            r"alora\.invocation_tokens = array\('i', \[5, 6\]\); .* from the first token\.",
        ),
        ({}, {"adapter.lora.alpha": None}, r"adapter\.lora\.alpha is None; it must be a number but 0"),
        ({}, {"adapter.lora.alpha": float("inf")}, r"adapter\.lora\.alpha is inf; it must be a number"),
        ({_LONE: np.ones((2, 32), "f4")}, {}, r"no plain LoRA .*: blk\.0\.ffn_up\.weight\.lora_b\. Give the folder"),
        ({"blk.0.attn_norm.weight": np.ones(32, "f4")}, {}, r"no matrix in F32, .*: blk\.0\.attn_norm\.weight"),
        ({_LONE[:-1] + "b": np.ones((2, 3, 32), "f4"), _LONE: np.ones((2, 32), "f4")}, {}, r"no matrix in .*lora_b"),
        (
            {"output.weight.lora_a": np.ones((2, 32), "f4"), "output.weight.lora_b": np.ones((300, 2), "f4")},
            {},
            r"\n  output: there is no such projection\nName the package that it was trained for",
        ),
        (
            {"blk.0.attn_output.weight.lora_a": np.full((32, 32), np.nan, "f4")},
            {},
            r"A of blk\.0\.attn_output has NaN or infinite values; the adapter is damaged",
        ),
    ],
)
def test_a_file_that_is_no_plain_adapter_for_the_package_is_refused(
    changes: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = write_adapter(tmp_path / "mine.gguf", _tiny(**changes), "llama", settings=settings)
    with pytest.raises(CheckpointError, match=message):
        export_adapter(file, tiny_model_path(), tmp_path / "out")


def test_an_adapter_of_another_family_is_refused_whatever_its_shapes(tmp_path: Path) -> None:
    file = write_adapter(tmp_path / "mine.gguf", _tiny(), "qwen2")
    with pytest.raises(
        CheckpointError,
        match=r"model that llama\.cpp calls 'qwen2'; the package is a llama, which it calls 'llama'\.",
    ):
        export_adapter(file, tiny_model_path(), tmp_path / "out")


def test_where_a_gguf_file_has_multipliers_in_its_weights_an_adapter_has_them_too(
    save_model: SaveModel, tmp_path: Path
) -> None:
    save_model("falcon_h1", tmp_path / "hf", **FALCON_H1, **FALCON_H1_MULTIPLIERS)
    with HuggingFaceCheckpoint(tmp_path / "hf") as source:
        export_unchecked(source, tmp_path / "pkg", "fp32")
    file = write_adapter(tmp_path / "mine.gguf", _tiny(), "falcon-h1")
    with pytest.raises(CheckpointError, match=r"has the multipliers of a falcon_h1's projections in its weights, and"):
        export_adapter(file, tmp_path / "pkg", tmp_path / "out")


def test_an_adapter_of_the_published_folder_is_refused_where_a_gguf_file_gave_the_weights(
    save_model: SaveModel, write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    model = save_model("falcon_h1", tmp_path / "hf", **FALCON_H1, **FALCON_H1_MULTIPLIERS)
    adapted_by_peft(tmp_path / "hf", target_modules=ATTENTION).save_pretrained(tmp_path / "peft")
    path = write_gguf(tmp_path / "tiny.gguf", model, architecture="falcon-h1")
    with GGUFCheckpoint(path) as source:
        export_unchecked(source, tmp_path / "pkg", "fp32")
    import_checkpoint(path, tmp_path / "ckpt")
    with pytest.raises(CheckpointError, match="has them in its weights, and nothing tells how large they were"):
        export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "out")
    with pytest.raises(CheckpointError, match="Take one made of the published folder, or merge it where it was"):
        merge_adapter(tmp_path / "peft", tmp_path / "out", base=tmp_path / "ckpt")
    change_json(tmp_path / "peft/adapter_config.json", base_model_name_or_path=str(tmp_path / "ckpt"))
    merge_adapter(tmp_path / "peft", tmp_path / "out")
