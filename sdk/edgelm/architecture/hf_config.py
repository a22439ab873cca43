"""What transformers reads in config.json: the family that has a model's features, and how that family calls them."""

from __future__ import annotations

from typing import Any

from edgelm.architecture.hf_families import FAMILIES, rope_settings, same
from edgelm.config import SECTION, ModelConfig

_SAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "rope_theta", "hidden_act", "mlp_bias", "attention_bias", "tie_word_embeddings",
)  # fmt: skip


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Return the keys of config.json that transformers reads.

    They are those of the first family in `FAMILIES` that has every feature, whatever the model's own was called:
    AutoModelForCausalLM loads the folder. Where there is none they are `{"model_type": "edgelm"}`, which transformers
    refuses instead of guessing.
    """
    model_type = next((name for name, family in FAMILIES.items() if family.has(config)), None)
    if model_type is None:
        return {"model_type": SECTION}
    scaling, family = config.rope_scaling, FAMILIES[model_type]
    values = {
        "architectures": [family.architecture],
        "model_type": model_type,
        **same(config, *_SAME),
        # What "dynamic" scales is, in transformers, the context beyond this one.
        "max_position_embeddings": (
            scaling.original_max_position_embeddings
            if scaling.rope_type == "dynamic"
            else config.max_position_embeddings
        ),
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": rope_settings(config),  # the name of transformers 4, which 5 and most other programs read too
        **token_ids(config),
        "pad_token_id": None,  # some families' own is outside a smaller vocabulary
        **family.keys(config),
    }
    return {key: value for key, value in values.items() if key not in family.absent}


def token_ids(config: ModelConfig) -> dict[str, Any]:
    """Return the token ids as config.json and generation_config.json have them."""
    ends = list(config.eos_token_ids)
    return {"bos_token_id": config.bos_token_id, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
