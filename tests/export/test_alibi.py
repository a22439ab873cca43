"""Scores that fall with the distance of a key (ALiBi, arXiv:2108.12409), and the families that have them."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoConfig
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from edgelm.architecture.relative_positions import alibi_slopes
from edgelm_export.architectures import ARCHITECTURES


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_absent_values_of_families_with_alibi_are_those_of_transformers(name: str) -> None:
    ours, theirs = ARCHITECTURES[name].to_model_config({"model_type": name}), AutoConfig.for_model(name)
    assert (ours.vocab_size, ours.hidden_size) == (theirs.vocab_size, theirs.hidden_size)
    assert (ours.num_hidden_layers, ours.num_attention_heads) == (theirs.num_hidden_layers, theirs.num_attention_heads)
    assert ours.norm_eps == theirs.layer_norm_epsilon
    assert ours.tie_word_embeddings is theirs.tie_word_embeddings
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    assert ours.max_position_embeddings == getattr(theirs, "max_seq_len", 2048)


@pytest.mark.parametrize(("heads", "count"), [(8, 8), (12, 16), (1, 1)])
def test_scores_fall_by_the_slopes_of_transformers(heads: int, count: int) -> None:
    expected_N = -build_mpt_alibi_tensor(heads, 2)[:, 0, 0].numpy()  # of the key before the last
    np.testing.assert_allclose(alibi_slopes(heads), expected_N, rtol=1e-6)
    assert min(alibi_slopes(count)) == 2**-8


def test_the_names_that_published_blooms_have_are_read() -> None:
    values = {"model_type": "bloom", "n_embed": 96, "n_layer": 3, "num_attention_heads": 6, "seq_length": 512}
    config = ARCHITECTURES["bloom"].to_model_config(values)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (96, 3, 6)
    assert (config.intermediate_size, config.max_position_embeddings) == (384, 512)
