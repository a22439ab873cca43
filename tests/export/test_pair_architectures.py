"""What the rows of families with an encoder take where a config.json says nothing, beside transformers."""

from __future__ import annotations

import pytest
from pair_models import PAIR_TYPES
from transformers import AutoConfig

from edgelm_export.architectures import ARCHITECTURES


def test_absent_values_of_t5gemmas_stacks_are_those_of_transformers() -> None:
    ours, theirs = ARCHITECTURES["t5gemma"].to_model_config({"model_type": "t5gemma"}), AutoConfig.for_model("t5gemma")
    assert ours.encoder is not None
    assert (ours.decoder_start_token_id, ours.eos_token_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))
    assert ours.tie_word_embeddings is theirs.tie_word_embeddings
    for stack, expected in ((ours.encoder, theirs.encoder), (ours, theirs.decoder)):
        same = (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
            "num_key_value_heads", "max_position_embeddings", "attn_logit_softcapping",
        )  # fmt: skip
        assert [getattr(stack, key) for key in same] == [getattr(expected, key) for key in same]
        assert stack.attention_scale == expected.query_pre_attn_scalar**-0.5
        assert (list(stack.layer_types), stack.hidden_act) == (expected.layer_types, expected.hidden_activation)
        assert (stack.norm_eps, stack.rope_theta) == (expected.rms_norm_eps, expected.rope_parameters["rope_theta"])
    assert ours.final_logit_softcapping == theirs.decoder.final_logit_softcapping


@pytest.mark.parametrize("name", sorted(PAIR_TYPES - {"t5gemma"}))
def test_absent_values_of_two_stacks_are_those_of_transformers(name: str) -> None:
    ours, theirs = ARCHITECTURES[name].to_model_config({"model_type": name}), AutoConfig.for_model(name)
    assert ours.encoder is not None
    assert (ours.vocab_size, ours.hidden_size) == (theirs.vocab_size, theirs.hidden_size)
    begin = (
        theirs.bos_token_id
        if name in ("mbart", "plbart")
        else getattr(theirs, "decoder_start_token_id", theirs.pad_token_id)
    )
    assert ours.decoder_start_token_id == begin
    assert ours.bos_token_id == getattr(theirs, "bos_token_id", None)
    assert ours.eos_token_ids == (theirs.eos_token_id,)
    # The heads of an mT5 are not tied, though transformers says so of all; one without is found by its tensors.
    assert ours.tie_word_embeddings is theirs.tie_word_embeddings or name == "mt5"
    for stack, kind in ((ours.encoder, "encoder"), (ours, "decoder")):
        if name in ("t5", "mt5", "umt5"):
            assert (stack.num_hidden_layers, stack.num_attention_heads) == (theirs.num_layers, theirs.num_heads)
            assert (stack.intermediate_size, stack.head_dim) == (theirs.d_ff, theirs.d_kv)
            assert stack.norm_eps == theirs.layer_norm_epsilon
            assert stack.relative_attention_num_buckets == theirs.relative_attention_num_buckets
            assert stack.relative_attention_max_distance == theirs.relative_attention_max_distance
        else:
            assert stack.num_hidden_layers == getattr(theirs, f"{kind}_layers")
            assert stack.num_attention_heads == getattr(theirs, f"{kind}_attention_heads")
            assert stack.intermediate_size == getattr(theirs, f"{kind}_ffn_dim")
            assert stack.max_position_embeddings == theirs.max_position_embeddings
            assert stack.hidden_act == theirs.activation_function
            scale = getattr(theirs, "scale_embedding", False)
            assert stack.embedding_multiplier == (theirs.d_model**0.5 if scale else 1.0)
