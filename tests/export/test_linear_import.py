"""Models with linear attention, as others store them: absent sizes, further layers, other orders."""

from __future__ import annotations

import numpy as np
import pytest
from config_values import SIZES
from model_features import LINEAR
from transformers import AutoConfig

from edgelm.errors import CheckpointError
from edgelm_export.architectures.architecture import GGUFHeader
from edgelm_export.architectures.olmo_hybrid import OLMO_HYBRID
from edgelm_export.architectures.qwen3_5 import QWEN3_5
from edgelm_export.checkpoint import QuantizedBlocks
from edgelm_export.tensor_map import map_tensors


@pytest.mark.parametrize("sizes", [{}, {"num_attention_heads": 7}, {"linear_num_key_heads": 2}])
def test_absent_sizes_of_an_olmo_hybrid_are_those_of_transformers(sizes: dict[str, int]) -> None:
    values = SIZES | {"hidden_size": 1064, "num_hidden_layers": 6, "model_type": "olmo_hybrid"} | sizes
    ours = OLMO_HYBRID.to_model_config(values)
    theirs = AutoConfig.for_model(**values)
    for field in ("layer_types", "num_key_value_heads", *(name for name in LINEAR), "linear_allow_neg_eigval"):
        expected = getattr(theirs, field)
        assert getattr(ours, field) == (tuple(expected) if field == "layer_types" else expected), field


def test_layers_that_guess_further_tokens_are_passed_over() -> None:
    gguf = QWEN3_5.gguf
    assert gguf is not None
    metadata: dict[str, object] = {
        "general.architecture": "qwen35", "qwen35.block_count": 3, "qwen35.nextn_predict_layers": 1,
        "qwen35.full_attention_interval": 2, "qwen35.embedding_length": 64, "qwen35.feed_forward_length": 96,
        "qwen35.attention.head_count": 4, "qwen35.attention.head_count_kv": 2, "qwen35.context_length": 1024,
        "qwen35.attention.key_length": 32, "qwen35.attention.value_length": 32, "qwen35.rope.dimension_count": 8,
        "qwen35.attention.layer_norm_rms_epsilon": 1e-6, "qwen35.ssm.conv_kernel": 4, "qwen35.ssm.group_count": 2,
        "qwen35.ssm.time_step_rank": 4, "qwen35.ssm.state_size": 16, "qwen35.ssm.inner_size": 64,
    }  # fmt: skip
    shapes = {"token_embd.weight": (320, 64)}
    config = QWEN3_5.to_model_config(gguf.to_hf_config(GGUFHeader(metadata=metadata, shapes=shapes, rope_factors={})))
    assert config.layer_types == ("linear_attention", "full_attention")
    present: dict[str, tuple[int, ...]] = {}
    for name, shape in config.tensor_shapes().items():
        rows = present.get(gguf.layout.source_name(name), (0,))[0]
        present[gguf.layout.source_name(name)] = (rows + shape[0], *shape[1:])
    further = {"blk.2.attn_q.weight": (256, 64), "blk.2.nextn.eh_proj.weight": (64, 128)}
    assert map_tensors(config, gguf.layout, present | further, "here").keys() == config.tensor_shapes().keys()
    with pytest.raises(CheckpointError, match=r"unknown: blk\.1\.nextn\.eh_proj\.weight"):
        map_tensors(config, gguf.layout, present | {"blk.1.nextn.eh_proj.weight": (64, 128)}, "here")


def test_columns_in_another_order_keep_their_grid_where_whole_blocks_move() -> None:
    values = np.arange(2 * 3 * 4, dtype=np.int8).reshape(2, 3, 4)
    scales = np.arange(6, dtype=np.float32).reshape(2, 3)
    blocks = QuantizedBlocks(bits=8, block_size=4, values=values, scales=scales)
    moved = blocks.columns(np.array([8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]))
    assert moved is not None
    np.testing.assert_array_equal(moved.values, values[:, [2, 0, 1]])
    np.testing.assert_array_equal(moved.scales, scales[:, [2, 0, 1]])
    assert blocks.columns(np.array([2, 3, 0, 1, *range(4, 12)])) is None
