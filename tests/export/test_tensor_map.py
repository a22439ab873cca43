"""Tensor maps: parts of fused tensors, orders of rows, and names without their prefix."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from make_tiny_model import CONFIG

from edgelm.errors import CheckpointError
from edgelm_export.tensor_map import CANONICAL, ORDERS, TensorLayout, map_tensors

_FIRST_LAYER = [name for name in CONFIG.tensor_shapes() if ".1." not in name]
NAMES = {"lm_head": "lm_head"} | {
    stem: stem for stem in (name.replace(".0.", ".{i}.").rpartition(".")[0] for name in _FIRST_LAYER)
}
PREFIXED = TensorLayout(names={stem: f"base.{name}" for stem, name in NAMES.items()}, prefix="base.")


@pytest.mark.parametrize("prefix", ["base.", ""])
def test_names_may_lack_the_prefix_of_the_bare_model(prefix: str) -> None:
    present = {prefix + name: shape for name, shape in CONFIG.tensor_shapes().items()}
    parts = map_tensors(CONFIG, PREFIXED, present, "here")
    assert {name: part.source for name, part in parts.items()} == {name: prefix + name for name in parts}


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
