"""PretrainConfig: the settings of pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgelm_training.settings.settings import setting
from edgelm_training.settings.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Settings of pretraining.

    The model is `params`, one number from which the scaling rules choose everything that is not set; or the table
    `model`, with fields of ModelConfig; or both, where a field in the table wins; or the checkpoint `init`.
    """

    data: str | None = setting(None, "The folder of shards, made by `edgelm data prepare`.")
    params: str | None = setting(None, "Size of a new model, such as 15M: chooses shape, batch, learning rate, steps.")
    model: Mapping[str, Any] | None = setting(None, "A field of ModelConfig, such as num_hidden_layers=8.")
    init: str | None = setting(None, "Go on with this checkpoint folder: once through the data, at a low rate.")
