"""Tensor maps: parts of fused tensors, orders of rows, and names without their prefix."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from config_values import model_config
from make_tiny_model import CONFIG

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures.llama import LLAMA
from edgelm_export.checkpoints.tensor_map import CANONICAL, ORDERS, TensorLayout, map_tensors

_FIRST_LAYER = [name for name in CONFIG.tensor_shapes() if ".1." not in name]
NAMES = {"lm_head": "lm_head"} | {
    stem: stem for stem in (name.replace(".0.", ".{i}.").rpartition(".")[0] for name in _FIRST_LAYER)
}
PREFIXED = TensorLayout(names={stem: f"base.{name}" for stem, name in NAMES.items()})


@pytest.mark.parametrize("prefix", ["base.", ""])
def test_names_may_lack_the_prefix_of_the_bare_model(prefix: str) -> None:
    present = {prefix + name: shape for name, shape in CONFIG.tensor_shapes().items()}
    parts = map_tensors(CONFIG, PREFIXED, present, "here")
    assert {name: part.source for name, part in parts.items()} == {name: prefix + name for name in parts}


def test_a_table_may_have_rows_behind_those_of_the_config_and_not_too_few() -> None:
    layout = dataclasses.replace(CANONICAL, rows_behind=frozenset({"model.embed_tokens"}))
    shapes = CONFIG.tensor_shapes()
    rows, columns = shapes["model.embed_tokens.weight"]
    parts = map_tensors(CONFIG, layout, shapes | {"model.embed_tokens.weight": (rows + 5, columns)}, "here")
    assert parts["model.embed_tokens.weight"].rows == slice(0, rows)
    with pytest.raises(CheckpointError, match=rf"embed_tokens.weight is \[{rows - 1}, {columns}\] instead of \[{rows}"):
        map_tensors(CONFIG, layout, shapes | {"model.embed_tokens.weight": (rows - 1, columns)}, "here")


def test_a_fused_tensor_that_is_missing_or_misshapen_is_listed_once() -> None:
    config = dataclasses.replace(CONFIG, num_hidden_layers=1)
    stem = "model.layers.{i}.self_attn"
    layout = TensorLayout(names=NAMES | {f"{stem}.{part}_proj": f"{stem}.qkv" for part in "qkv"})
    present = {name: shape for name, shape in config.tensor_shapes().items() if "q_proj" not in name}
    present = {name: shape for name, shape in present.items() if "k_proj" not in name and "v_proj" not in name}
    with pytest.raises(CheckpointError, match=r"missing: model.layers.0.self_attn.qkv.weight\.$"):
        map_tensors(config, layout, present, "here")
    present["model.layers.0.self_attn.qkv.weight"] = (63, 32)
    with pytest.raises(CheckpointError, match=r"qkv.weight is \[63, 32\] instead of \[64, 32\]"):
        map_tensors(config, layout, present, "here")


def test_rows_of_llama_cpp_are_put_back_into_halves() -> None:
    assert ORDERS["pairs"](CONFIG, 32)[:16].tolist() == [*range(0, 16, 2), *range(1, 16, 2)]
    assert ORDERS["swapped halves"](CONFIG, 32)[:16].tolist() == [*range(8, 16), *range(8)]


def test_only_a_layout_with_our_names_and_values_is_canonical() -> None:
    assert CANONICAL.is_canonical
    assert TensorLayout(names={"model.norm": "model.norm"}, ignored=frozenset({"x"})).is_canonical
    assert not TensorLayout(names={"model.norm": "norm"}).is_canonical
    assert not TensorLayout(norms_plus_one=True).is_canonical
    assert not TensorLayout(row_orders={"model.norm": "pairs"}).is_canonical


def test_a_part_is_taken_from_the_whole_transposed_and_shifted() -> None:
    config = dataclasses.replace(CONFIG, num_hidden_layers=1, norm="rms")
    stems = {f"model.layers.{{i}}.mlp.{part}_proj": "model.layers.{i}.mlp.fused" for part in ("gate", "up")}
    layout = TensorLayout(
        names=NAMES | stems, transposed=frozenset({"model.layers.{i}.mlp.fused"}), norms_plus_one=True
    )
    present = {
        name: shape for name, shape in config.tensor_shapes().items() if "gate" not in name and "up_" not in name
    }
    parts = map_tensors(config, layout, present | {"model.layers.0.mlp.fused.weight": (32, 128)}, "here")
    fused = np.arange(32 * 128, dtype=np.float32).reshape(32, 128)
    up = parts["model.layers.0.mlp.up_proj.weight"].taken_from(fused)
    np.testing.assert_array_equal(up, fused.T[64:])
    assert parts["model.norm.weight"].taken_from(np.array([1.5], np.float32)).tolist() == [0.5]


def test_tensors_that_are_missing_unknown_or_misshapen_are_all_listed() -> None:
    config = model_config(tie_word_embeddings=True)
    present = dict(config.tensor_shapes())
    del present["model.norm.weight"], present["model.layers.1.mlp.up_proj.weight"]
    present |= {
        "model.layers.0.self_attn.q_norm.weight": (16,),
        "vision.weight": (1,),
        "model.layers.1.self_attn.rotary_emb.inv_freq": (8,),
        "model.rotary_emb.inv_freq": (8,),
        "model.layers.0.attention.rope.inv_freq": (8,),
        "model.layers.1.self_attn.k_scale": (1,),
        "mtp.layers.0.mlp.experts.7.up_proj.weight": (1,),
        "model.layers.0.self_attn.k_proj.weight": (64, 32),
    }
    with pytest.raises(CheckpointError) as caught:
        map_tensors(config, LLAMA.layout, present, "here")
    assert str(caught.value) == (
        "here: the tensors do not fit a llama model of this config. "
        "missing: model.layers.1.mlp.up_proj.weight, model.norm.weight; "
        "unknown: model.layers.0.self_attn.q_norm.weight, vision.weight; "
        "of another shape: model.layers.0.self_attn.k_proj.weight is [64, 32] instead of [64, 64]."
    )


def test_of_many_tensors_that_do_not_fit_the_first_are_named() -> None:
    unknown = {f"vision.{index}.weight": (8,) for index in range(20_000)}
    with pytest.raises(CheckpointError) as caught:
        map_tensors(CONFIG, CANONICAL, unknown, "here")
    told = str(caught.value)
    assert re.search(r"missing: model\.embed_tokens\.weight, .* and others; unknown: vision\.0\.weight, ", told)
    assert re.search(r"vision\.15\.weight and others\.$", told)


def test_more_layers_than_tensors_are_refused_before_any_name_is_built() -> None:
    config = ModelConfig(
        model_type="llama", vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=4_096,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8, max_position_embeddings=8,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"the config has 4096 layers, but there are only 1 tensors"):
        map_tensors(config, CANONICAL, {"model.norm.weight": (8,)}, "model.gguf")
