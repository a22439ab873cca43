"""mBART and mBART-50, translators of many languages: a BART with norms before each part and behind the last block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.bart import COPIES, LOGITS_BIAS, ROWS_BEFORE, names, to_model_config
from edgelm_export.tensor_map import TensorLayout


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    values = {key: value for key, value in values.items() if value is not None}
    # transformers has no token to begin with for it, and then takes this one.
    values = {"decoder_start_token_id": values.get("bos_token_id", 0), **values}
    return to_model_config(values, norm_placement="pre", final_norm=True)


MBART = Architecture(
    model_type="mbart",
    read_config=_to_model_config,
    layout=TensorLayout(names=names("pre"), copies=COPIES, rows_before=ROWS_BEFORE, stacks_of_one=LOGITS_BIAS),
    gguf=None,
)
