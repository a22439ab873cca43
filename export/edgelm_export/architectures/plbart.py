"""PLBart, which reads and writes programs: a BART whose embedding is scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.bart import BART, to_model_config

# What transformers takes where config.json has no such key, and BART has another value.
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 50005,
    "d_model": 768,
    "scale_embedding": True,
    **{f"{stack}_layers": 6 for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": 12 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 3072 for stack in ("encoder", "decoder")},
}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    values = {**_DEFAULTS, **{key: value for key, value in values.items() if value is not None}}
    # An answer begins with its language, where the folder says which; transformers takes this one where it does not.
    values = {"decoder_start_token_id": values.get("bos_token_id", 0), **values}
    return to_model_config(values)


PLBART = Architecture(model_type="plbart", read_config=_to_model_config, layout=BART.layout, gguf=None)
