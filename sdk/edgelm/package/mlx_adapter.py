"""mlx-lm's format of adapters, read as PEFT's: other settings, and both matrices the other way around."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.arguments import is_number
from edgelm.errors import CheckpointError
from edgelm.number_bounds import FLOAT32_END, is_count
from edgelm.shell_word import shell_word

WEIGHTS_FILE = "adapters.safetensors"
ENDS = ".lora_a", ".lora_b"  # [D, R] and [R, N], where PEFT has [R, D] and [N, R]
SCALE = "mlx_scale"  # what the product is multiplied by, which PEFT makes of lora_alpha and the rank
_KIND, _SETTINGS = "fine_tune_type", "lora_parameters"


def peft_settings(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what adapter_config.json says, as PEFT says it, and SCALE.

    Raises:
        CheckpointError: the adapter is no plain LoRA, its settings are none of mlx-lm's, or they mean one thing to one
            version of mlx-lm and another to another.
    """
    kind = values.get(_KIND, "lora")
    if kind != "lora":
        raise CheckpointError(
            f"{path} has {_KIND} = {kind!r:.60}; of mlx-lm, only plain LoRA adapters can be read. Put it into its base "
            "there, and take the folder that comes of it: mlx_lm.fuse --model BASE --adapter-path "
            f"{shell_word(path.parent)} --save-path fused/"
        )
    settings = values.get(_SETTINGS)
    known = settings if isinstance(settings, dict) else {}
    rank, scale = known.get("rank"), known.get("scale")
    if not is_count(rank, 1) or not is_number(scale) or not abs(scale) < FLOAT32_END:
        raise CheckpointError(
            f"{path} has {_SETTINGS} = {settings!r:.120}; an adapter of mlx-lm ({WEIGHTS_FILE}) has a "
            '"rank" and a "scale" there, a count and a number that float32 holds.'
        )
    alpha = known.get("alpha", rank)
    if alpha != rank:
        raise CheckpointError(
            f'{path} has "alpha": {alpha!r:.60} in {_SETTINGS}: older versions of mlx-lm multiply by that over the '
            f"rank ({rank}) too, later ones pass it over, and nothing tells which one trained the adapter. Take it "
            f'out, and where it was an older one, put it into the "scale" ({scale:g}).'
        )
    return {"r": rank, "lora_alpha": rank * scale, SCALE: scale, "base_model_name_or_path": values.get("model")}
