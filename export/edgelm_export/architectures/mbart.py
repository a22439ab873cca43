"""mBART and mBART-50, translators of many languages: a BART with norms before each part and behind the last block."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures.bart import BART, names, to_model_config


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    # transformers has no token to begin with for it, and then takes this one.
    values = {"decoder_start_token_id": values["bos_token_id"], **values}
    return to_model_config(values, norm_placement="pre", final_norm=True)


MBART = dataclasses.replace(
    BART,
    model_type="mbart",
    defaults={key: value for key, value in BART.defaults.items() if key != "decoder_start_token_id"},
    read_config=_to_model_config,
    layout=dataclasses.replace(BART.layout, names=names("pre")),
)
