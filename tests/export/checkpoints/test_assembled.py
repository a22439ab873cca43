"""Tensors that a folder has in parts, or under other names: an OLMo Hybrid as transformers saves it, and otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import OLMO_HYBRID
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from edgelm.errors import CheckpointError
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

CONV = "model.layers.0.linear_attn.{}conv1d.weight"
ROWS = {"q_": 32, "k_": 32, "v_": 96}  # of queries, keys and values


@pytest.fixture
def saved(tmp_path: Path, save_model: Callable[..., PreTrainedModel]) -> Path:
    save_model("olmo_hybrid", tmp_path / "hf", **OLMO_HYBRID)
    return tmp_path / "hf"


def with_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> HuggingFaceCheckpoint:
    """Open a copy of a folder with other tensors."""
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    tensors = load_file(other / "model.safetensors")
    change(tensors)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    return HuggingFaceCheckpoint(other)


def in_other_parts(tensors: dict[str, Tensor]) -> None:
    """Take convolutions apart by what they are of, or not at all, and name norms as in other families."""
    whole = torch.cat([tensors.pop(CONV.format(part)) for part in ROWS])
    parts = zip(ROWS, whole.split(list(ROWS.values())), strict=True)
    tensors |= {CONV.format(part): rows.contiguous() for part, rows in parts}
    later = CONV.replace(".0.", ".2.")
    tensors[later.format("")] = torch.cat([tensors.pop(later.format(part)) for part in ROWS])
    for name in [name for name in tensors if name.endswith("_layer_norm.weight")]:
        ours = "input_layernorm" if "attention_layer_norm" in name else "post_attention_layernorm"
        tensors[f"{name.rpartition('.layers.')[0]}.layers.{name.split('.')[2]}.{ours}.weight"] = tensors.pop(name)


def test_a_tensor_is_the_same_whole_and_in_any_parts(saved: Path) -> None:
    source, other = HuggingFaceCheckpoint(saved), with_tensors(saved, in_other_parts)
    assert other.config == source.config
    for name, shape in source.config.tensor_shapes().items():
        np.testing.assert_array_equal(other.tensor(name), source.tensor(name), err_msg=name)
        np.testing.assert_array_equal(source.rows(name, 1, 3), source.tensor(name)[1:3])
        assert source.tensor(name).shape == shape
    assert [entry["path"] for entry in source.source["files"]] == ["model.safetensors"]


def test_parts_of_two_types_make_a_tensor_that_holds_both(saved: Path) -> None:
    name = "model.layers.0.linear_attn.in_proj_qkv.weight"

    def round_keys(tensors: dict[str, Tensor]) -> None:
        tensors[name.replace("in_proj_qkv", "k_proj")] = tensors[name.replace("in_proj_qkv", "k_proj")].bfloat16()

    source, other = HuggingFaceCheckpoint(saved), with_tensors(saved, round_keys)
    assert other.stored_type(name) == "F32"
    expected = source.tensor(name)
    expected[32:64] = torch.from_numpy(expected[32:64]).bfloat16().float().numpy()
    np.testing.assert_array_equal(other.tensor(name), expected)


def test_a_part_of_a_type_that_is_not_supported_is_refused(saved: Path) -> None:
    name = "model.layers.0.linear_attn.k_proj.weight"
    with pytest.raises(
        CheckpointError, match=r"not supported: model\.layers\.0\.linear_attn\.in_proj_qkv\.weight \(F64\)"
    ):
        with_tensors(saved, lambda tensors: tensors.update({name: tensors[name].double()}))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, name: tensors.pop(name),
        lambda tensors, name: tensors.update({name: tensors[name].T.contiguous()}),
    ],
)
def test_parts_that_make_no_tensor_are_listed(saved: Path, change: Callable[[dict[str, Tensor], str], Any]) -> None:
    name = "model.layers.0.linear_attn.k_proj.weight"
    found = r"missing: model\.layers\.0\.linear_attn\.in_proj_qkv\.weight; unknown: .*linear_attn\.q_proj\.weight"
    with pytest.raises(CheckpointError, match=found):
        with_tensors(saved, lambda tensors: change(tensors, name))
