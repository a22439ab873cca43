"""The metadata of a GGUF file of each family, as JSON: what is fuzzed are the keys that its row reads."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm_export.architectures import ARCHITECTURES, gguf_architecture_of
from edgelm_export.architectures.architecture import GGUFHeader
from edgelm_export.architectures.gguf_header import under_own_name, without_guessing_layers
from edgelm_export.sources.checkpoint_folder import read_json_object

_SHAPES = {
    "token_embd.weight": (320, 64), "per_layer_token_embd.weight": (320, 192), "blk.0.laurel_l.weight": (32, 64),
}  # fmt: skip
SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_TOKEN_IDS = {f"tokenizer.ggml.{role}_token_id": id_ for id_, role in enumerate(("bos", "eos", "eot", "padding"))}


def metadata_of_families(_folder: Path) -> list[bytes]:
    """Return what llama.cpp's converter writes of each family: the keys that begin with its name, and token ids."""
    import gguf
    from gguf_converter import add_config
    from gguf_models import GGUF_MODELS, GGUF_PAIRS
    from hub_models import new_model
    from pair_models import new_pair

    models = [(kind, new_model(model_type, SIZES | changes)) for model_type, kind, changes in GGUF_MODELS.values()]
    models += [(kind, new_pair(name)) for name, kind in GGUF_PAIRS.items()]
    seeds = []
    for architecture, model in models:
        writer = gguf.GGUFWriter(None, architecture)
        add_config(writer, model, architecture)
        values = {key: value.value for key, value in writer.kv_data[0].items()}
        seeds.append(json.dumps(values | _TOKEN_IDS).encode())
    return seeds


def read_metadata(folder: Path) -> None:
    """Read the config of such a file."""
    metadata = _as_in_a_file(read_json_object(folder, "metadata.json"))
    architecture, family = gguf_architecture_of(metadata, folder)
    header = GGUFHeader(metadata=under_own_name(metadata, family.architecture), shapes=_SHAPES, rope_factors={})
    header = without_guessing_layers(header)
    family.computed(header)
    values = {"model_type": architecture.model_type, **family.to_hf_config(header)}
    ARCHITECTURES[values["model_type"]].to_model_config(values)


def _as_in_a_file(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give lists the types that they have in a file, and leave out what a file cannot hold."""
    return {key: held for key, value in values.items() if (held := _held(value)) is not None}


def _held(value: object) -> object:
    """Return a value as a file holds it; None where it cannot."""
    each = value if isinstance(value, list) else [value]
    kinds = set(map(type, each))
    if len(kinds) > 1 or not kinds <= {bool, int, float, str}:
        return None
    if kinds == {int} and not all(-(2**63) <= number < 2**63 for number in each):
        return None
    return array("q" if kinds == {int} else "d", value) if isinstance(value, list) and kinds <= {int, float} else value
