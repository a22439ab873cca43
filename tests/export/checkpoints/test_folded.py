"""FoldedCheckpoint: the same function with fewer features."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from make_tiny_model import CONFIG

from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm_export.checkpoints.checkpoint import QuantizedBlocks
from edgelm_export.checkpoints.folded import FoldedCheckpoint, padded_rotary_dim


class MemoryCheckpoint:
    """Random tensors, the matrices on an 8-bit grid too."""

    hf_config: dict[str, Any] = {"model_type": "x"}  # noqa: RUF012
    text_files: dict[str, str] = {"tokenizer.json": "{}"}  # noqa: RUF012
    source: dict[str, Any] = {"format": "memory"}  # noqa: RUF012

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        random = np.random.default_rng(0)
        self.blocks = {
            name: QuantizedBlocks(
                bits=8,
                block_size=8,
                values=random.integers(-128, 128, (shape[0], shape[1] // 8, 8), np.int8),
                scales=random.random((shape[0], shape[1] // 8), np.float32),
            )
            for name, shape in config.tensor_shapes().items()
            if len(shape) == 2
        }
        self.tensors = {
            name: random.standard_normal(shape, np.float32)
            for name, shape in config.tensor_shapes().items()
            if len(shape) == 1
        } | {name: dequantized(blocks) for name, blocks in self.blocks.items()}

    def stored_type(self, name: str) -> str:
        return "Q8_0" if name in self.blocks else "F32"

    def tensor(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def quantized_blocks(self, name: str, rows: slice = slice(None)) -> QuantizedBlocks | None:
        return self.blocks.get(name)


def dequantized(blocks: QuantizedBlocks) -> np.ndarray:
    return (blocks.values * blocks.scales[..., None]).reshape(len(blocks.values), -1)


def test_a_plain_checkpoint_stays_as_it_is() -> None:
    source = MemoryCheckpoint(CONFIG)
    folded = FoldedCheckpoint(source)
    assert folded.config == source.config
    assert (folded.hf_config, folded.text_files, folded.source) == (source.hf_config, source.text_files, source.source)
    for name, tensor in source.tensors.items():
        np.testing.assert_array_equal(folded.tensor(name), tensor)
        assert folded.stored_type(name) == source.stored_type(name)
        assert folded.quantized_blocks(name) is source.quantized_blocks(name)


def test_an_offset_of_norms_and_a_residual_multiplier_go_into_the_weights() -> None:
    source = MemoryCheckpoint(dataclasses.replace(CONFIG, norm="rms_offset", residual_multiplier=0.5, mlp_bias=True))
    folded = FoldedCheckpoint(source)
    assert (folded.config.norm, folded.config.residual_multiplier) == ("rms", 1.0)
    for name, tensor in source.tensors.items():
        multiplied = ".o_proj." in name or ".down_proj." in name
        expected = tensor * np.float32(0.5) if multiplied else tensor + 1 if "norm" in name else tensor
        np.testing.assert_array_equal(folded.tensor(name), expected, err_msg=name)


def test_behind_a_norm_the_norm_takes_the_multiplier() -> None:
    source = MemoryCheckpoint(dataclasses.replace(CONFIG, norm_placement="both", norm="layer", residual_multiplier=0.5))
    folded = FoldedCheckpoint(source)
    changed = {name for name, tensor in source.tensors.items() if not np.array_equal(folded.tensor(name), tensor)}
    assert changed == {
        f"model.layers.{layer}.post_{part}_layernorm.{kind}"
        for layer in range(2)
        for part in ("attention", "feedforward")
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(("part", "padded"), [(1.0, 16), (0.5, 16), (0.25, 16)])
def test_a_grid_moves_with_the_values_that_it_holds(part: float, padded: int) -> None:
    config = dataclasses.replace(CONFIG, partial_rotary_factor=part, residual_multiplier=0.5, attention_bias=True)
    assert padded_rotary_dim(config) == padded
    source = MemoryCheckpoint(config)
    folded = FoldedCheckpoint(source)
    for name, tensor in source.tensors.items():
        blocks = folded.quantized_blocks(name)
        if blocks is not None:
            np.testing.assert_allclose(dequantized(blocks), folded.tensor(name), rtol=1e-6, err_msg=name)
        moved = part != 1.0 and (".q_proj." in name or ".k_proj." in name)
        assert moved == (
            "_proj" in name and not (".o_proj" in name or ".down_proj" in name)
            and not np.array_equal(folded.tensor(name), tensor)
        ), name  # fmt: skip


def test_halves_of_what_turns_stand_where_the_padded_tables_turn_them() -> None:
    config = dataclasses.replace(CONFIG, partial_rotary_factor=0.25)  # four dimensions of sixteen
    source = MemoryCheckpoint(config)
    name = "model.layers.0.self_attn.k_proj.weight"
    rows = FoldedCheckpoint(source).tensor(name)
    order = [0, 1, *range(4, 10), 2, 3, *range(10, 16)]
    np.testing.assert_array_equal(rows, source.tensors[name][order])


def test_a_multiplier_behind_norms_without_weights_has_no_place() -> None:
    config = dataclasses.replace(CONFIG, norm="rms_plain", norm_placement="post", residual_multiplier=0.5)
    with pytest.raises(ExportError, match=r"residual_multiplier is 0.5 behind norms without weights; supported is 1"):
        FoldedCheckpoint(MemoryCheckpoint(config))
