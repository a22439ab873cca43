"""Scores that fall with the distance of a key (ALiBi, arXiv:2108.12409), and the families that have them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from make_tiny_model import CONFIG
from numpy.typing import NDArray
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from edgelm.architecture.relative_positions import alibi_slopes
from edgelm_export.architectures import ARCHITECTURES


def slopes(heads: int, **fields: Any) -> NDArray[np.float32]:
    return alibi_slopes(replace(CONFIG, num_attention_heads=heads, num_key_value_heads=1, position="alibi", **fields))


@pytest.mark.parametrize(("heads", "count"), [(8, 8), (12, 16), (1, 1)])
def test_scores_fall_by_the_slopes_of_transformers(heads: int, count: int) -> None:
    expected_N = -build_mpt_alibi_tensor(heads, 2)[:, 0, 0].numpy()  # of the key before the last
    np.testing.assert_allclose(slopes(heads), expected_N, rtol=1e-6)
    assert min(slopes(count)) == 2**-8


def test_scores_fall_by_multiplied_slopes() -> None:
    np.testing.assert_array_equal(slopes(8, alibi_multiplier=0.125), slopes(8) / 8)


def test_the_names_that_published_blooms_have_are_read() -> None:
    values = {"model_type": "bloom", "n_embed": 96, "n_layer": 3, "num_attention_heads": 6, "seq_length": 512}
    config = ARCHITECTURES["bloom"].to_model_config(values)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (96, 3, 6)
    assert (config.intermediate_size, config.max_position_embeddings) == (384, 512)
