"""BART, and those built like it: layer norms and biases everywhere.

BART's positions are learned and begin at row 2, its norms are those of the residual stream. Marian (OPUS-MT) and
Pegasus have fixed sinusoids; all but Marian have their norms before each part and behind the last block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.architecture.layer_features import CROSS_NORMS, NORM_PLACEMENTS
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import hf_values
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.encoder_decoder import pair
from edgelm_export.checkpoints.tensor_map import TensorLayout


def _stack_names(name: str, placement: str) -> dict[str, str]:
    layer = f"model.{name}.layers.{{i}}"
    of_attention, of_feed_forward = filter(None, NORM_PLACEMENTS[placement])
    names = {
        f"model.{name}.embed_norm": f"model.{name}.layernorm_embedding",
        f"model.{name}.norm": f"model.{name}.layer_norm",
        f"{layer}.self_attn.o_proj": f"{layer}.self_attn.out_proj",
        f"{layer}.{of_attention}": f"{layer}.self_attn_layer_norm",
        f"{layer}.mlp.up_proj": f"{layer}.fc1",
        f"{layer}.mlp.down_proj": f"{layer}.fc2",
        f"{layer}.{of_feed_forward}": f"{layer}.final_layer_norm",
    }
    if name == "encoder":
        return names
    (of_cross_attention,) = filter(None, CROSS_NORMS[placement])
    return names | {
        f"{layer}.encoder_attn.o_proj": f"{layer}.encoder_attn.out_proj",
        f"{layer}.{of_cross_attention}": f"{layer}.encoder_attn_layer_norm",
    }


def _names(placement: str) -> dict[str, str]:
    """Return the names of the tensors of both stacks, whose norms stand there in a block (`NORM_PLACEMENTS`)."""
    return {
        "model.embed_tokens": "model.shared",
        **_stack_names("encoder", placement),
        **_stack_names("decoder", placement),
        "lm_head.bias": "final_logits_bias",
    }


_POSITIONS = ("model.encoder.embed_positions", "model.decoder.embed_positions")
_PADDING = 1  # of M2M100: fairseq counts its positions from behind it


def _to_model_config(values: Mapping[str, Any], *, lm_head_bias: bool = True, **features: Any) -> ModelConfig:
    """Return the config of a BART, or of one with other `features` of its stacks."""
    size = hf_values.whole_number(values, "d_model")
    root = abs(hf_values.number(values, "d_model", 0.0)) ** 0.5  # of a number that a float holds
    stacks = []
    for name in ("encoder", "decoder"):
        heads = hf_values.whole_number(values, f"{name}_attention_heads", 16)
        stack = {
            "intermediate_size": hf_values.whole_number(values, f"{name}_ffn_dim", 4096),
            "num_hidden_layers": hf_values.whole_number(values, f"{name}_layers", 12),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": size // max(1, heads),
            "max_position_embeddings": hf_values.whole_number(values, "max_position_embeddings", 1024),
            "norm": "layer",
            "norm_placement": "residual",
            "final_norm": False,
            "embedding_norm": True,
            "embedding_multiplier": root if hf_values.flag(values, "scale_embedding") else 1.0,
            "position": "learned",
            "hidden_act": hf_values.activation(values, "gelu", "activation_function"),
            "mlp_gated": False,
            **hf_values.biases(True),
        }
        stacks.append(stack | features)
    head = {"tie_word_embeddings": hf_values.flag(values, "tie_word_embeddings"), "lm_head_bias": lm_head_bias}
    return pair(values, stacks[0], stacks[1] | head)


def _beginning_with_bos(values: dict[str, Any], **features: Any) -> ModelConfig:
    """Return the config of a family whose answers begin with their language, where the folder says which.

    transformers has no token to begin with for it else, and then takes this one.
    """
    return _to_model_config({"decoder_start_token_id": values["bos_token_id"], **values}, **features)


def _to_mvp_config(values: dict[str, Any]) -> ModelConfig:
    if hf_values.flag(values, "use_prompt"):
        raise CheckpointError(
            "config.json: use_prompt is true: each layer has a learned prompt. Supported are models without; take MVP "
            "itself, or one of its multi-task variants."
        )
    return _to_model_config(values)


def _to_m2m_100_config(values: dict[str, Any]) -> ModelConfig:
    if values.get("pad_token_id", _PADDING) != _PADDING:
        raise CheckpointError(
            f"config.json: pad_token_id is {values['pad_token_id']!r}, and positions are counted from behind it; "
            f"supported is {_PADDING}."
        )
    return _to_model_config(
        values,
        lm_head_bias=False,
        norm_placement="pre",
        final_norm=True,
        embedding_norm=False,
        position="sinusoidal_fairseq",
    )


BART = Architecture(
    model_type="bart",
    defaults={
        "vocab_size": 50265,
        "d_model": 1024,
        "tie_word_embeddings": True,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    },
    null_keys=frozenset(),
    read_config=_to_model_config,
    layout=TensorLayout(
        names=_names("residual"),
        copies=frozenset({"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"}),
        rows_before=dict.fromkeys(_POSITIONS, 2),
        stacks_of_one=frozenset({"final_logits_bias"}),
    ),
    gguf=None,
)
# Which writes texts of many kinds.
MVP = dataclasses.replace(
    BART, model_type="mvp", defaults={**BART.defaults, "vocab_size": 50267}, read_config=_to_mvp_config
)
_BEGINNING_WITH_BOS = {key: value for key, value in BART.defaults.items() if key != "decoder_start_token_id"}
# Which reads and writes programs.
PLBART = dataclasses.replace(
    BART,
    model_type="plbart",
    defaults={
        **_BEGINNING_WITH_BOS,
        "vocab_size": 50005,
        "d_model": 768,
        "scale_embedding": True,
        **{f"{stack}_layers": 6 for stack in ("encoder", "decoder")},
        **{f"{stack}_attention_heads": 12 for stack in ("encoder", "decoder")},
        **{f"{stack}_ffn_dim": 3072 for stack in ("encoder", "decoder")},
    },
    read_config=_beginning_with_bos,
)
# Of many languages, also mBART-50.
MBART = dataclasses.replace(
    BART,
    model_type="mbart",
    defaults=_BEGINNING_WITH_BOS,
    read_config=lambda values: _beginning_with_bos(values, norm_placement="pre", final_norm=True),
    layout=dataclasses.replace(BART.layout, names=_names("pre")),
)
# Which talks; its positions begin at row 0.
BLENDERBOT = dataclasses.replace(
    BART,
    model_type="blenderbot",
    defaults={
        **BART.defaults,
        "vocab_size": 8008,
        "d_model": 2560,
        "max_position_embeddings": 128,
        "encoder_layers": 2,
        "decoder_layers": 24,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "decoder_start_token_id": 1,
        **{f"{stack}_attention_heads": 32 for stack in ("encoder", "decoder")},
        **{f"{stack}_ffn_dim": 10240 for stack in ("encoder", "decoder")},
    },
    read_config=lambda values: _to_model_config(values, norm_placement="pre", final_norm=True, embedding_norm=False),
    layout=dataclasses.replace(BART.layout, names=_names("pre"), rows_before={}),
)
# The 90M. transformers 5 scales the embeddings of its encoder alone; its Flax model, as the models' own code, of both.
BLENDERBOT_SMALL = dataclasses.replace(
    BART,
    model_type="blenderbot-small",
    defaults={
        **BART.defaults,
        "d_model": 512,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "decoder_start_token_id": 1,
        **{f"{stack}_layers": 8 for stack in ("encoder", "decoder")},
        **{f"{stack}_ffn_dim": 2048 for stack in ("encoder", "decoder")},
    },
    features={"embedding_norm_first": True},
    layout=dataclasses.replace(BART.layout, rows_before={}),
)
MARIAN = dataclasses.replace(
    BART,
    model_type="marian",
    defaults={
        **BART.defaults,
        "vocab_size": 58101,
        "decoder_start_token_id": 58100,
        "pad_token_id": 58100,
        "bos_token_id": [],  # it begins with its padding, and BART's <s> is nothing to it
        "eos_token_id": 0,
    },
    read_config=lambda values: _to_model_config(values, position="sinusoidal_halves", embedding_norm=False),
    # Computed, not learned, but older versions of transformers stored them.
    layout=dataclasses.replace(BART.layout, ignored=frozenset(f"{name}.weight" for name in _POSITIONS), rows_before={}),
)
# Which summarizes.
PEGASUS = dataclasses.replace(
    MARIAN,
    model_type="pegasus",
    defaults={**BART.defaults, "decoder_start_token_id": 0, "pad_token_id": 0, "bos_token_id": [], "eos_token_id": 1},
    read_config=lambda values: _to_model_config(
        values, norm_placement="pre", final_norm=True, embedding_norm=False, position="sinusoidal_halves"
    ),
    layout=dataclasses.replace(MARIAN.layout, names=_names("pre")),
)
# M2M100 and NLLB-200.
M2M_100 = dataclasses.replace(
    BART,
    model_type="m2m_100",
    defaults={**BART.defaults, "vocab_size": 128112, "activation_function": "relu", "scale_embedding": True},
    read_config=_to_m2m_100_config,
    layout=TensorLayout(
        names=_names("pre"), copies=BART.layout.copies, ignored=frozenset(f"{name}.weights" for name in _POSITIONS)
    ),
)
