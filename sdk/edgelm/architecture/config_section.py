"""The section of ours in config.json: a ModelConfig, and what the keys beside it said when it was written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.config import SECTION, ModelConfig
from edgelm.errors import ConfigError
from edgelm.shell_word import shell_word

BESIDE = "beside"  # the keys of config.json, in the section
# Keys that programs change, and that no answer depends on.
_IDLE = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "pad_token_id"}
_IDLE_PARTS = ("dropout", "pdrop", "initializer")


def with_section(keys: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Return the values of a config.json: the keys that other programs read, and the section."""
    return {**keys, SECTION: {**config.to_dict(), BESIDE: dict(keys)}}


def config_of_section(values: Mapping[str, Any], folder: str | Path) -> ModelConfig:
    """Read the section among the values of a config.json, where the keys beside it still say what they said.

    transformers keeps the section when it saves a folder, and so does whoever edits the file: the two may contradict
    each other then, and neither is taken.

    Raises:
        ConfigError: a key beside it was changed, which is named with both values; or the section does not fit.
    """
    section = dict(values[SECTION])
    before = section.pop(BESIDE, {})
    if not isinstance(before, Mapping):
        raise ConfigError(f"{SECTION}.{BESIDE} is {before!r:.60}; it must be an object.")
    was, now, ours = (_flat(part) for part in (before, values, section))
    for key in [key for key in was if key in now and now[key] not in (was[key], ours.get(key, was[key]))]:
        raise ConfigError(
            f"{key} is {now[key]!r:.60}, and was {was[key]!r:.60} when edgelm wrote the section {SECTION!r} beside it, "
            f"which still says that. If the new one is right, remove the section, and make a checkpoint folder of the "
            f"rest: edgelm import {shell_word(folder)} -o checkpoint/. If not, set {key} back."
        )
    return ModelConfig.from_dict(section)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return keys that matter, with those of the rotation as transformers 4 and 5 both have them."""
    flat = {
        key: value
        for key, value in values.items()
        if key not in _IDLE and not key.startswith("_") and not any(part in key for part in _IDLE_PARTS)
    }
    flat["rope_type"] = "default"
    for group in ("rope_scaling", "rope_parameters"):  # of transformers 4; and of 5, with rope_theta
        settings = _settings(flat.pop(group, None))
        by_layers = _settings(settings.pop("sliding_attention", None))
        if "rope_theta" in by_layers:
            flat["rope_local_base_freq"] = by_layers["rope_theta"]
        settings |= _settings(settings.pop("full_attention", None))
        flat |= {{"type": "rope_type"}.get(key, key): value for key, value in settings.items()}
    return flat


def _settings(value: Any) -> dict[str, Any]:
    return {key: one for key, one in value.items() if one is not None} if isinstance(value, Mapping) else {}
