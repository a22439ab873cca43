"""Checkpoint folders in PyTorch: config.json, model.safetensors and the text files beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edgelm import atomic
from edgelm.config import SECTION, ModelConfig
from edgelm.errors import CheckpointError, ConfigError
from edgelm.replaceable import why_not_a_checkpoint
from edgelm_training.model import Transformer

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.json"
GENERATION_FILE = "generation_config.json"
# What goes with the weights from folder to folder.
TEXT_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "chat_template.jinja", GENERATION_FILE)

_STORED_TYPES = ("F32", "F16", "BF16")
_LOADED_TYPES = (torch.float32, torch.bfloat16)

# The settings of each rope_type that transformers reads; it warns of any other.
_ROPE_KEYS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
}


def load_checkpoint(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Transformer:
    """Read a checkpoint folder, in one weights file or in shards; `model.config` is its config.

    dtype: of the loaded weights, float32 or bfloat16, whatever is stored (F32, F16 or BF16). The weights are copies:
    the folder may be replaced while the model lives.

    Raises:
        ConfigError: config.json is missing, broken, or not edgelm's; or dtype is another.
        CheckpointError: a file is missing or broken, or the names and shapes are not those of the config (the message
            lists every one that differs).
    """
    folder = Path(folder)
    if dtype not in _LOADED_TYPES:
        raise ConfigError(f"dtype is {dtype}; supported: {', '.join(map(str, _LOADED_TYPES))}.")
    config = ModelConfig.load(folder)
    stored = _stored_tensors(folder)
    _check_tensors(config, stored, folder)
    state = {name: tensor.read(name).to(dtype, copy=True) for name, tensor in stored.items()}
    # On the meta device parameters have no memory, and no time goes into random numbers that nobody sees.
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(state, assign=True)
    return model.to(dtype)  # the position tables too


@dataclass(frozen=True, kw_only=True)
class _StoredTensor:
    file: Path
    dtype: str
    shape: tuple[int, ...]

    def read(self, name: str) -> torch.Tensor:
        with safe_open(self.file, framework="pt") as file:
            return file.get_tensor(name)


def _stored_tensors(folder: Path) -> dict[str, _StoredTensor]:
    """Read the headers of all weight files."""
    tensors: dict[str, _StoredTensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (not a dict)
                    part = file.get_slice(name)
                    tensors[name] = _StoredTensor(file=path, dtype=part.get_dtype(), shape=tuple(part.get_shape()))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"Cannot read {path}: {error}. Copy or download it again.") from error
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if not index.exists():
        return [folder / WEIGHTS_FILE]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} does not list the weight files ({error!r}). Download it again.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise CheckpointError(f"{index} lists {name!r}, which is not a plain file name.")
    return [folder / name for name in sorted(names)]


def _check_tensors(config: ModelConfig, stored: Mapping[str, _StoredTensor], folder: Path) -> None:
    shapes = config.tensor_shapes()
    faults = [f"missing: {name} {list(shape)}" for name, shape in shapes.items() if name not in stored]
    for name, tensor in stored.items():
        if name not in shapes:
            faults.append(f"unknown: {name} {list(tensor.shape)}")
        elif tensor.shape != shapes[name]:
            faults.append(f"mis-shaped: {name} is {list(tensor.shape)}, the config says {list(shapes[name])}")
        elif tensor.dtype not in _STORED_TYPES:
            faults.append(f"stored as {tensor.dtype}, which is none of {', '.join(_STORED_TYPES)}: {name}")
    if faults:
        listed = "\n  ".join(faults)
        raise CheckpointError(f"The tensors in {folder} do not fit its config.json:\n  {listed}")


def save_checkpoint(model: Transformer, folder: str | Path, *, text_files_from: str | Path | None = None) -> None:
    """Write a checkpoint folder, whole or not at all; one of ours that stood there is replaced.

    text_files_from: a folder whose tokenizer, chat template and generation_config.json are copied (TEXT_FILES); it may
    be `folder` itself. Without it the folder has no tokenizer, and a generation_config.json with the config's token
    ids.

    Weights keep the model's dtype. transformers loads the folder as it is where `hf_config` finds a family's features.

    Raises:
        CheckpointError: the disk is full or refuses; `folder` holds something else than a checkpoint of ours; or
            `text_files_from` has no tokenizer.json.
    """
    folder = Path(folder)
    _refuse_foreign_folder(folder)
    try:
        with atomic.replace_folder(folder) as staging:
            write_checkpoint(model.state_dict(), model.config, staging, text_files_from=text_files_from)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write {folder}: {error}. What stood there is as it was.") from error


def write_checkpoint(
    weights: dict[str, torch.Tensor], config: ModelConfig, folder: Path, *, text_files_from: str | Path | None = None
) -> None:
    """Write the files of a checkpoint into a new folder, for whoever gives that folder its name when it is whole.

    weights: by canonical names. text_files_from: as of `save_checkpoint`.

    Raises:
        CheckpointError: `text_files_from` has no tokenizer.json.
        OSError, SafetensorError: the disk is full or refuses.
    """
    text_files = {} if text_files_from is None else _text_files(Path(text_files_from))
    token_ids = {key: value for key, value in _token_ids(config).items() if value is not None}
    _write_json(folder / "config.json", {**hf_config(config), SECTION: config.to_dict()})
    _write_json(folder / GENERATION_FILE, token_ids)
    for name, source in text_files.items():
        shutil.copyfile(source, folder / name)
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    # safetensors makes files that their owner alone can read.
    (folder / WEIGHTS_FILE).chmod((folder / "config.json").stat().st_mode)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Return the keys of config.json that transformers reads.

    They are those of the first family in `_FAMILIES` that has every feature, whatever the model's own was called:
    AutoModelForCausalLM loads the folder. Where there is none they are `{"model_type": "edgelm"}`, which transformers
    refuses instead of guessing.
    """
    model_type = next((name for name, has_features in _FAMILIES.items() if has_features(config)), None)
    if model_type is None:
        return {"model_type": SECTION}
    scaling = config.rope_scaling
    settings = {key: getattr(scaling, key) for key in _ROPE_KEYS.get(scaling.rope_type, ())}
    return {
        "architectures": [f"{model_type.capitalize()}ForCausalLM"],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        # The names of transformers 4, which 5 and most other programs read too.
        "rope_theta": config.rope_theta,
        "rope_scaling": {"rope_type": scaling.rope_type, **settings} if settings else None,
        "hidden_act": config.hidden_act,
        "mlp_bias": config.mlp_bias,
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        **_token_ids(config),
    }


def _is_llama(config: ModelConfig) -> bool:
    return (
        _is_rms_rope_gated(config)
        and not config.qk_norm
        # Llama has one switch for both, and refuses a hidden size that the heads do not divide.
        and config.attention_bias == config.attention_output_bias
        and config.hidden_size % config.num_attention_heads == 0
    )


def _is_qwen2(config: ModelConfig) -> bool:
    biases = (config.attention_bias, config.attention_output_bias, config.mlp_bias)
    return _is_rms_rope_gated(config) and not config.qk_norm and biases == (True, False, False)


def _is_qwen3(config: ModelConfig) -> bool:
    one_switch = config.attention_bias == config.attention_output_bias
    return _is_rms_rope_gated(config) and config.qk_norm and one_switch and not config.mlp_bias


def _is_rms_rope_gated(config: ModelConfig) -> bool:
    return config.norm == "rms" and config.position == "rope" and config.mlp_gated


# transformers' model_type -> whether that family has all features of a config.
_FAMILIES: dict[str, Callable[[ModelConfig], bool]] = {"llama": _is_llama, "qwen2": _is_qwen2, "qwen3": _is_qwen3}


def _token_ids(config: ModelConfig) -> dict[str, Any]:
    ends = list(config.eos_token_ids)
    return {"bos_token_id": config.bos_token_id, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}


def _refuse_foreign_folder(folder: Path) -> None:
    """Refuse to replace, that is to delete, what is not a checkpoint of ours."""
    reason = why_not_a_checkpoint(folder)
    if reason is not None:
        raise CheckpointError(f"{folder} is not replaced: {reason}. Choose another folder, or remove it.")


def _text_files(folder: Path) -> dict[str, Path]:
    if not (folder / TOKENIZER_FILE).is_file():
        raise CheckpointError(f"{folder} has no {TOKENIZER_FILE} to copy.")
    return {name: folder / name for name in TEXT_FILES if (folder / name).is_file()}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
