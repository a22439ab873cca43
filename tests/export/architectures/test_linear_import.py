"""Models with linear attention, as others store them: absent sizes, further layers, other orders."""

from __future__ import annotations

import numpy as np
import pytest
from config_values import SIZES
from model_features import LINEAR
from transformers import AutoConfig

from edgelm_export.architectures.olmo_hybrid import OLMO_HYBRID
from edgelm_export.checkpoints.checkpoint import QuantizedBlocks


@pytest.mark.parametrize("sizes", [{}, {"num_attention_heads": 7}, {"linear_num_key_heads": 2}])
def test_absent_sizes_of_an_olmo_hybrid_are_those_of_transformers(sizes: dict[str, int]) -> None:
    values = SIZES | {"hidden_size": 1064, "num_hidden_layers": 6, "model_type": "olmo_hybrid"} | sizes
    ours = OLMO_HYBRID.to_model_config(values)
    theirs = AutoConfig.for_model(**values)
    for field in ("layer_types", "num_key_value_heads", *(name for name in LINEAR), "linear_allow_neg_eigval"):
        expected = getattr(theirs, field)
        assert getattr(ours, field) == (tuple(expected) if field == "layer_types" else expected), field


def test_columns_in_another_order_keep_their_grid_where_whole_blocks_move() -> None:
    values = np.arange(2 * 3 * 4, dtype=np.int8).reshape(2, 3, 4)
    scales = np.arange(6, dtype=np.float32).reshape(2, 3)
    blocks = QuantizedBlocks(bits=8, block_size=4, values=values, scales=scales)
    moved = blocks.columns(np.array([8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]))
    assert moved is not None
    np.testing.assert_array_equal(moved.values, values[:, [2, 0, 1]])
    np.testing.assert_array_equal(moved.scales, scales[:, [2, 0, 1]])
    assert blocks.columns(np.array([2, 3, 0, 1, *range(4, 12)])) is None
