"""Hugging Face folders: config.json, model.safetensors, and what is packed in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from fuzz import gguf_families, packed_folders
from fuzz.mutations import mutate_bytes, mutate_json
from fuzz.target import Target
from mlx_folder import pack_folder

from edgelm.config import ModelConfig
from edgelm_export.architectures import ARCHITECTURES, architecture_of
from edgelm_export.sources.checkpoint_folder import read_json_object
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint


def checkpoint_folder(folder: Path) -> Path:
    from make_tiny_model import CONFIG, make_checkpoint

    small = CONFIG.to_dict() | {"num_hidden_layers": 1, "vocab_size": 320, "intermediate_size": 32}
    return make_checkpoint(folder, ModelConfig.from_dict(small))


def _safetensors_seeds(folder: Path) -> list[bytes]:
    return [(checkpoint_folder(folder) / "model.safetensors").read_bytes()]


def mutate_safetensors(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.5:
        header = mutate_json(header.rstrip(), random, others)
        return len(header).to_bytes(8, "little") + header + rest
    whole = mutate_bytes(data[: 8 + length + 64], random, others)
    return whole + rest[64:]


def _read_checkpoint(folder: Path) -> None:
    with HuggingFaceCheckpoint(folder) as checkpoint:
        assert all(text.encode() for text in checkpoint.text_files.values())
        for name in list(checkpoint.config.tensor_shapes())[:3]:
            checkpoint.tensor(name)


def _mlx_folder(folder: Path) -> dict[str, object]:
    """Pack a checkpoint folder as mlx-lm does, one module in other bits; return the values of its config.json."""
    own = {"model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 32}}
    settings = {"bits": 4, "group_size": 32, "mode": "affine", **own}
    pack_folder(checkpoint_folder(folder), settings, lambda name: 8 if "down_proj" in name else 4)
    values: dict[str, object] = json.loads((folder / "config.json").read_bytes())
    return values


def _mlx_config_seeds(folder: Path) -> list[bytes]:
    """Few settings beside those of the quantization, so that most mutations change that."""
    values = _mlx_folder(folder)
    return [json.dumps({key: values[key] for key in ("edgelm", "quantization")}).encode()]


def _mlx_weight_seeds(folder: Path) -> list[bytes]:
    _mlx_folder(folder)
    return [(folder / "model.safetensors").read_bytes()]


def _mutate_mlx_config(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    values = json.loads(data)
    try:
        values["quantization"] = json.loads(mutate_json(json.dumps(values["quantization"]).encode(), random, others))
    except (ValueError, RecursionError):  # its bytes were changed
        values["quantization_config"] = values.pop("quantization")
    return json.dumps(values).encode("utf-8", "surrogatepass")


def _read_mlx(folder: Path) -> None:
    with HuggingFaceCheckpoint(folder) as checkpoint:
        for name in checkpoint.config.tensor_shapes():
            checkpoint.tensor(name)
            checkpoint.quantized_blocks(name)


def _config_seeds(folder: Path) -> list[bytes]:
    """A config.json of Hugging Face's for the same tensors, one of a model that also reads images, and ours."""
    own = json.loads((checkpoint_folder(folder) / "config.json").read_bytes())
    section = own["edgelm"]
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_theta", "hidden_act",
    )  # fmt: skip
    foreign = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "eos_token_id": [2]}
    foreign |= {name: section[name] for name in names}
    foreign["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    senses = {"model_type": "smolvlm", "text_config": foreign, "vision_config": {}, "eos_token_id": 2}
    return [json.dumps(values).encode() for values in (own, foreign, senses)]


def _family_seeds(_folder: Path) -> list[bytes]:
    """A config.json of each family, as transformers has it by default, and with keys of its older versions."""
    from hub_models import HUB_MODELS
    from transformers import AutoConfig

    older = {
        "layer_types": None, "sliding_window_pattern": 6, "sliding_window": 64, "use_sliding_window": True,
        "max_window_layers": 2, "rope_parameters": None, "rope_theta": 1e4, "full_attn_idxs": [0, 2],
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    }  # fmt: skip
    known = [family for family, row in ARCHITECTURES.items() if row.is_in_transformers]
    defaults = [AutoConfig.for_model(family).to_dict() for family in known]
    defaults += [gguf_families.SIZES | fields | {"model_type": family} for family, fields in HUB_MODELS.values()]
    return [json.dumps(values | more).encode() for values in defaults for more in ({}, older)]


def _read_family(folder: Path) -> None:
    values = read_json_object(folder, "config.json")
    architecture = architecture_of(values, folder)
    architecture.layout_for(architecture.to_model_config(values))


ROWS: dict[str, Target] = {
    "safetensors": Target(
        file="model.safetensors", prepare=_safetensors_seeds, mutate=mutate_safetensors, read=_read_checkpoint,
        count=400, long_count=1_000_000,
    ),
    "hf-config": Target(
        file="config.json", prepare=_config_seeds, mutate=mutate_json, read=_read_checkpoint, count=200,
        long_count=100_000,
    ),
    "mlx-settings": Target(
        file="config.json", prepare=_mlx_config_seeds, mutate=_mutate_mlx_config, read=_read_mlx, count=120,
        long_count=100_000,
    ),
    "mlx-weights": Target(
        file="model.safetensors", prepare=_mlx_weight_seeds, mutate=mutate_safetensors, read=_read_mlx, count=120,
        long_count=100_000,
    ),
    "packed": Target(
        file=packed_folders.FOLDER, prepare=packed_folders.prepare, mutate=packed_folders.mutate,
        read=packed_folders.read, count=120, long_count=100_000,
    ),
    "families": Target(
        file="config.json", prepare=_family_seeds, mutate=mutate_json, read=_read_family, count=400,
        long_count=100_000,
    ),
}  # fmt: skip
