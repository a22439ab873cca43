"""Packages as other programs write them, of one tiny Llama with random weights: their tests' oracle is transformers.

`genai_package` is what onnxruntime-genai's own builder writes. `optimum_package` is traced by torch.onnx here, with the
inputs, the plain operators and the files that Optimum's exporter gives such a model; that one wants an older
transformers than the other tests.
"""

from __future__ import annotations

import copy
import importlib.util
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from json_files import edited_json
from onnx import TensorProto, helper, numpy_helper
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from edgelm.testing import tiny_model_path

CONFIG = LlamaConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=1024,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.2,
)
TEXT_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")

# Whose texts turn otherwise from the first token on, where they have more than 64.
LONGROPE_CONFIG = Phi3Config(
    **{name: getattr(CONFIG, name) for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    original_max_position_embeddings=64,
    rope_scaling={
        "type": "longrope",
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.5 * i for i in range(8)],
    },
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    initializer_range=0.2,
)


def save_llama(folder: Path, kv_heads: int = 2) -> LlamaForCausalLM:
    """Write a Hugging Face folder with random weights, and return the model."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIG)
    config.num_key_value_heads = kv_heads
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    _save(model, folder)
    return model


def save_longrope(folder: Path) -> Phi3ForCausalLM:
    """Write a Hugging Face folder of a Phi-3 with LongRoPE, and return the model."""
    torch.manual_seed(0)
    model = Phi3ForCausalLM._from_config(LONGROPE_CONFIG, attn_implementation="eager").eval()
    _save(model, folder)
    return model


def _save(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tiny_model_path() / "tokenizer.json"), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.save_pretrained(folder)
    # Where Hugging Face's folders have had the template for years.
    with edited_json(folder / "tokenizer_config.json") as config:
        config["chat_template"] = (tiny_model_path() / "chat_template.jinja").read_text()


def greedy_tokens(model: PreTrainedModel, ids: Sequence[int], count: int) -> list[int]:
    """Return transformers' own tokens."""
    with torch.no_grad():
        answer = model.generate(
            torch.tensor([list(ids)]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=2
        )
    return answer[0, len(ids) :].tolist()


class _Step(torch.nn.Module):
    """One call of a decoder, as Optimum's exporter has it."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, *past):
        cache = DynamicCache()
        for layer in range(CONFIG.num_hidden_layers):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        places = torch.arange(attention_mask.shape[1])
        seen = (places[None, None] <= position_ids[:, :, None]) & (attention_mask[:, None] > 0)
        mask = torch.where(seen, 0.0, -3.4e38)[:, None]
        result = self.model(input_ids, attention_mask=mask, position_ids=position_ids, cache=cache)
        layers = result.cache.layers
        return (result.logits, *(part for layer in layers for part in (layer.keys, layer.values)))


def optimum_package(folder: Path, hf_folder: Path, model: LlamaForCausalLM) -> Path:
    """Write a folder in the layout of Optimum and onnx-community; return its graph, onnx/model.onnx."""
    (folder / "onnx").mkdir(parents=True)
    for name in TEXT_FILES:
        shutil.copy(hf_folder / name, folder / name)
    past = [torch.zeros(1, CONFIG.num_key_value_heads, 3, CONFIG.head_dim) for _ in range(2 * CONFIG.num_hidden_layers)]
    names = [f"{i}.{part}" for i in range(CONFIG.num_hidden_layers) for part in ("key", "value")]
    pasts, presents = [f"past_key_values.{name}" for name in names], [f"present.{name}" for name in names]
    mask_axes = {0: "batch_size", 1: "past_sequence_length + sequence_length"}
    token_axes = {0: "batch_size", 1: "sequence_length"}
    path = folder / "onnx" / "model.onnx"
    ids = torch.ones(1, 4, dtype=torch.int64)
    torch.onnx.export(
        _Step(model),
        (ids, torch.ones(1, 7, dtype=torch.int64), torch.arange(3, 7)[None], *past),
        path,
        input_names=["input_ids", "attention_mask", "position_ids", *pasts],
        output_names=["logits", *presents],
        dynamic_axes={
            "input_ids": token_axes,
            "attention_mask": mask_axes,
            "position_ids": token_axes,
            "logits": token_axes,
            **{name: {0: "batch_size", 2: "past_sequence_length"} for name in pasts},
            **{name: {0: "batch_size", 2: mask_axes[1]} for name in presents},
        },
        opset_version=18,
        dynamo=False,
    )
    return path


def genai_package(
    folder: Path, hf_folder: Path, precision: str, provider: str = "cpu", extra_options: Sequence[str] = ()
) -> Path:
    """Let onnxruntime-genai's builder write a folder, by the command that its documentation names.

    It runs in this process, which has imported torch and transformers already: four of five seconds of another one.
    """
    arguments = ["-i", str(hf_folder), "-o", str(folder), "-p", precision, "-e", provider, "-c", str(folder / "cache")]
    arguments += ["--extra_options", *extra_options] if extra_options else []
    package = importlib.util.find_spec("onnxruntime_genai")
    assert package is not None
    assert package.origin is not None
    modules = Path(package.origin).with_name("models")
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(sys, "argv", ["builder", *arguments])
        changed.syspath_prepend(modules)
        for path in modules.iterdir():  # they have names such as `quantization`, which others have too
            changed.setitem(sys.modules, path.stem, None)
            del sys.modules[path.stem]
        try:
            runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
        except ValueError as error:  # Python 3.14 refuses a lone % in a help text, which 0.18.0 has
            if "badly formed help string" not in str(error):
                raise
            pytest.skip(f"the builder of onnxruntime-genai does not start on this Python: {error}")
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return folder


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """Return a copy in which `new` stands for `old` in all names."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for value in (*changed.graph.input, *changed.graph.output):
        value.name = value.name.replace(old, new)
    for node in changed.graph.node:
        node.input[:] = [name.replace(old, new) for name in node.input]
        node.output[:] = [name.replace(old, new) for name in node.output]
    return changed


def in_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose cache and logits are float16 outside; it computes in float32 as before."""
    changed = renamed(renamed(model, "past_key_values", "inner_past"), "present", "inner_present")
    graph = changed.graph
    for value in (*graph.input, *graph.output):
        if "inner_" not in value.name and value.name != "logits":
            continue
        outside, inside = value.name.replace("inner_past", "past_key_values").replace("inner_", ""), value.name
        if inside == "logits":
            inside = "inner_logits"
            for node in graph.node:
                node.output[:] = [inside if name == "logits" else name for name in node.output]
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
        value.name = outside
        if inside.startswith("inner_past"):
            graph.node.insert(0, helper.make_node("Cast", [outside], [inside], to=TensorProto.FLOAT))
        else:
            graph.node.append(helper.make_node("Cast", [inside], [outside], to=TensorProto.FLOAT16))
    return changed


def merged(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a decoder_model_merged: one half without a cache before it, one with, and a switch between them."""
    graph = model.graph
    caches = [value for value in graph.input if value.name.startswith("past_key_values")]
    branches = []
    for prefix in ("with_past.", "without_past."):
        half = onnx.compose.add_prefix(model, prefix, rename_inputs=False).graph
        if prefix == "without_past.":
            for value in caches:  # this half does not read what it is given
                empty = np.zeros((1, CONFIG.num_key_value_heads, 0, CONFIG.head_dim), np.float32)
                half.initializer.append(numpy_helper.from_array(empty, f"empty.{value.name}"))
            replaced = {value.name: f"empty.{value.name}" for value in caches}
            for node in half.node:
                node.input[:] = [replaced.get(name, name) for name in node.input]
        else:  # this half takes one token alone
            for node in half.node:
                node.input[:] = ["one_id" if name == "input_ids" else name for name in node.input]
            half.initializer.append(numpy_helper.from_array(np.array([1, 1], np.int64), "one_id.shape"))
            half.node.insert(0, helper.make_node("Reshape", ["input_ids", "one_id.shape"], ["one_id"]))
        del half.input[:]
        branches.append(half)
    outputs = [value.name for value in graph.output]
    switch = helper.make_node("If", ["use_cache_branch"], outputs, then_branch=branches[0], else_branch=branches[1])
    flag = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    whole = helper.make_graph([switch], "merged", [*graph.input, flag], list(graph.output))
    return helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version)
