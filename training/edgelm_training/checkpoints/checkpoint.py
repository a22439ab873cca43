"""Checkpoint folders in PyTorch: config.json, model.safetensors and the text files beside them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edgelm.architecture.config_section import with_section
from edgelm.architecture.hf_config import hf_config, token_ids
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, ConfigError
from edgelm.files import atomic
from edgelm.files.presence import is_there
from edgelm.files.regular_file import read_json_object
from edgelm.files.run_checkpoint import LATEST, checkpoint_of_run
from edgelm.files.safetensors_bytes import tensor_bytes
from edgelm.files.safetensors_header import check_header
from edgelm.files.safetensors_index import INDEX_FILE, WEIGHTS_FILE, missing_files, read_weight_map
from edgelm.package.graph_file import ENCODER_FILE
from edgelm.package.manifest import FILE_NAME as PACKAGE_FILE
from edgelm.package.manifest import sha256_of
from edgelm.package.peft_format import CONFIG_FILE as ADAPTER_CONFIG_FILE
from edgelm.package.replaceable import refuse_to_replace, why_not_a_checkpoint
from edgelm.shell_word import shell_word
from edgelm_training.adaptation.lora import linear_names, quantize_linear
from edgelm_training.model import Transformer

TOKENIZER_FILE = "tokenizer.json"
GENERATION_FILE = "generation_config.json"
# What goes with the weights from folder to folder.
TEXT_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "chat_template.jinja", GENERATION_FILE)

_STORED_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {kind: name for name, kind in _STORED_TYPES.items()}


def check_is_checkpoint(folder: str | Path) -> None:
    """Refuse what is no checkpoint folder, and say how to come to one.

    Raises:
        CheckpointError: it is a package, an adapter, a run, something that is to be imported, or absent.
    """
    folder = Path(folder)
    try:
        is_there(folder / "config.json")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}. Check the path.") from error
    has_weights = any((folder / name).exists() for name in (WEIGHTS_FILE, INDEX_FILE))
    quoted = shell_word(folder)
    if (folder / PACKAGE_FILE).is_file() and not has_weights:
        if (folder / ENCODER_FILE).is_file():
            way = (
                "With an encoder, it is not read back: import what it was made of: edgelm import SOURCE -o checkpoint/"
            )
        else:
            way = f"Make a checkpoint folder of it: edgelm import {quoted} -o checkpoint/"
        raise CheckpointError(f"{folder} is a package, which is run, not trained. {way}")
    if (folder / ADAPTER_CONFIG_FILE).is_file() and not has_weights:
        raise CheckpointError(
            f"{folder} holds an adapter, which is no model by itself. Merge it into its base first: edgelm merge "
            f"{quoted} -o merged/"
        )
    if (folder / "checkpoints").is_dir() and not has_weights:
        raise CheckpointError(
            f"{folder} is the folder of a run. Name one of its checkpoints, such as "
            f"{checkpoint_of_run(folder) or folder / LATEST}; adapters are merged first (edgelm merge)."
        )
    if not (folder / "config.json").is_file():
        absent = "" if folder.exists() else ": there is no such folder"
        raise CheckpointError(
            f"{folder} is no checkpoint folder{absent}. From a GGUF file, a Hugging Face folder or a model of the "
            f"library, make one first: edgelm import {quoted} -o checkpoint/"
        )


def load_checkpoint(folder: str | Path, *, quantized: bool = False) -> Transformer:
    """Read a checkpoint folder, in one weights file or in shards; `model.config` is its config.

    The weights are float32, whatever is stored (F32, F16 or BF16), and copies: the folder may be replaced while the
    model lives. quantized: the blocks' linear layers are put into 4 bits (`lora.quantize_linear`) as they are read, so
    that one of them at a time is in memory as it was.

    Raises:
        ConfigError: config.json is broken, or not edgelm's; or a part of the model computes numbers that are lost here.
        CheckpointError: the folder is something else (`check_is_checkpoint`), a file is missing or broken, or the names
            and shapes are not those of the config (the message lists every one that differs).
    """
    config, stored = _opened(Path(folder))
    # On the meta device parameters have no memory, and no time goes into random numbers that nobody sees.
    with torch.device("meta"):
        model = Transformer(config)

    def read(name: str) -> torch.Tensor:
        return stored.pop(name).read(name).to(torch.float32, copy=True)

    for layer in linear_names(model) if quantized else ():
        linear = model.get_submodule(layer)
        linear.load_state_dict({name: read(f"{layer}.{name}") for name in linear.state_dict()}, assign=True)
        quantize_linear(model, layer)
    model.load_state_dict({name: read(name) for name in list(stored)}, assign=True, strict=not quantized)
    if left := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise ConfigError(
            f"{left[0]} is no part of a checkpoint and has no numbers, since models are read on PyTorch's meta device, "
            "where none are computed. Compute it by NumPy (torch.from_numpy), as Rotary does, or give it a "
            'device="cpu".'
        )
    return model


def read_weights(folder: str | Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Read a checkpoint folder's config and its weights in the types in which they are stored.

    Raises:
        ConfigError, CheckpointError: as `load_checkpoint`.
    """
    config, stored = _opened(Path(folder))
    return config, {name: tensor.read(name) for name, tensor in stored.items()}


def weights_sha256(folder: str | Path) -> str:
    """Return what tells a checkpoint's weights from others: the hash of its weights file, as manifests have it.

    Of weights in shards it is the hash of the shards' hashes, in the order of their names.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    files = _weight_files(Path(folder))
    try:
        hashes = [sha256_of(path) for path in files]
    except OSError as error:
        raise CheckpointError(f"Cannot read {error.filename}: {error.strerror}. Copy or download it again.") from error
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _StoredTensor:
    file: Path
    dtype: str
    shape: tuple[int, ...]

    def read(self, name: str) -> torch.Tensor:
        content = torch.from_numpy(tensor_bytes(self.file, name))
        return content.view(_STORED_TYPES[self.dtype]).reshape(self.shape)


def _opened(folder: Path) -> tuple[ModelConfig, dict[str, _StoredTensor]]:
    """Read the config, and the headers of the weights that fit it."""
    check_is_checkpoint(folder)
    config, stored = ModelConfig.load(folder), _stored_tensors(folder)
    if faults := _faults(config, {name: (tensor.shape, tensor.dtype) for name, tensor in stored.items()}):
        raise CheckpointError(f"The tensors in {folder} do not fit its config.json:\n  {faults}")
    return config, stored


def _stored_tensors(folder: Path) -> dict[str, _StoredTensor]:
    """Read the headers of all weight files."""
    tensors: dict[str, _StoredTensor] = {}
    for path in _weight_files(folder):
        try:
            check_header(path)
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
        names = set(read_weight_map(index).values())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index} does not list the weight files: {error}. Download it again.") from error
    for name in names:
        if Path(name).name != name or name in ("", ".."):
            raise CheckpointError(f"{index} lists {name!r}, which is not a plain file name.")
    if (missing := missing_files(index, names)) is not None:
        raise CheckpointError(f"{missing}. Copy or download them again.")
    return [folder / name for name in sorted(names)]


def _faults(config: ModelConfig, tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> str:
    """List how tensors, given by their shapes and types, differ from those of a config; "" where they do not."""
    shapes = config.tensor_shapes()
    faults = [f"missing: {name} {list(shape)}" for name, shape in shapes.items() if name not in tensors]
    for name, (shape, dtype) in tensors.items():
        if name not in shapes:
            faults.append(f"unknown: {name} {list(shape)}")
        elif shape != shapes[name]:
            faults.append(f"mis-shaped: {name} is {list(shape)}, the config says {list(shapes[name])}")
        elif dtype not in _STORED_TYPES:
            faults.append(f"stored as {dtype}, which is none of {', '.join(_STORED_TYPES)}: {name}")
    return "\n  ".join(faults)


def save_checkpoint(model: Transformer, folder: str | Path, *, text_files_from: str | Path | None = None) -> None:
    """Write a checkpoint folder, whole or not at all; one of ours that stood there is replaced.

    text_files_from: a folder whose tokenizer, chat template and generation_config.json are copied (TEXT_FILES); it may
    be `folder` itself. The last one gets the config's ends of texts that it lacks. Without it the folder has no
    tokenizer, and a generation_config.json with the config's token ids.

    Weights keep the model's dtype, float32, float16 or bfloat16. transformers loads the folder as it is where
    `hf_config` finds a family's features.

    Raises:
        CheckpointError: the disk is full or refuses; `folder` holds something else than a checkpoint of ours;
            `text_files_from` has no tokenizer.json; or the weights are not those of the config (the message lists every
            one that differs).
    """
    save_weights(model.state_dict(), model.config, folder, text_files_from=text_files_from)


def save_weights(
    weights: dict[str, torch.Tensor],
    config: ModelConfig,
    folder: str | Path,
    *,
    text_files_from: str | Path | None = None,
) -> None:
    """Write a checkpoint folder of weights by canonical names, all of `config.tensor_shapes()`; the rest is as of
    `save_checkpoint`.

    Raises:
        CheckpointError: as `save_checkpoint`.
    """
    folder = Path(folder)
    refuse_to_replace(folder, why_not_a_checkpoint, CheckpointError)
    try:
        with atomic.replace_folder(folder) as staging:
            write_checkpoint(weights, config, staging, text_files_from=text_files_from)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write {folder}: {error}. What stood there is as it was.") from error


def write_checkpoint(
    weights: dict[str, torch.Tensor], config: ModelConfig, folder: Path, *, text_files_from: str | Path | None = None
) -> None:
    """Write the files of a checkpoint into a new folder, for whoever gives that folder its name when it is whole.

    weights: by canonical names. text_files_from: as of `save_checkpoint`.

    Raises:
        CheckpointError: `text_files_from` has no tokenizer.json, or the weights are not those of the config.
        OSError, SafetensorError: the disk is full or refuses.
    """
    types = {name: _NAMES.get(tensor.dtype, str(tensor.dtype)) for name, tensor in weights.items()}
    if faults := _faults(config, {name: (tuple(tensor.shape), types[name]) for name, tensor in weights.items()}):
        raise CheckpointError(
            f"The weights do not fit their config, and no checkpoint was written of them:\n  {faults}\nOf a model that "
            "torch.compile or DistributedDataParallel has wrapped, save the one inside."
        )
    text_files = {} if text_files_from is None else _text_files(Path(text_files_from))
    ids = {key: value for key, value in token_ids(config).items() if value is not None}
    _write_json(folder / "config.json", with_section(hf_config(config), config))
    _write_json(folder / GENERATION_FILE, ids)
    for name, source in text_files.items():
        shutil.copyfile(source, folder / name)
    _add_ends(folder / GENERATION_FILE, config)
    save_file(_apart(weights), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    # safetensors makes files that their owner alone can read. Some disks of networks have no modes to change.
    with contextlib.suppress(OSError):
        (folder / WEIGHTS_FILE).chmod((folder / "config.json").stat().st_mode)


def _apart(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights as safetensors takes them: row by row, and each in a memory of its own."""
    apart, taken = {}, set[int]()
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        is_own = tensor.is_contiguous() and place not in taken
        apart[name] = tensor if is_own else tensor.clone(memory_format=torch.contiguous_format)
        taken.add(place)
    return apart


def _add_ends(path: Path, config: ModelConfig) -> None:
    """Add the config's end tokens to generation_config.json, from which transformers reads where to stop."""
    try:
        values = read_json_object(path)
    except ValueError:
        return  # a broken file is copied as it is
    known = values.get("eos_token_id")
    if not isinstance(known, list):
        known = [] if known is None else [known]
    if missing := [id_ for id_ in config.eos_token_ids if id_ not in known]:
        ends = [*known, *missing]
        _write_json(path, values | {"eos_token_id": ends if len(ends) > 1 else ends[0]})


def _text_files(folder: Path) -> dict[str, Path]:
    if not (folder / TOKENIZER_FILE).is_file():
        raise CheckpointError(f"{folder} has no {TOKENIZER_FILE} to copy.")
    return {name: folder / name for name in TEXT_FILES if (folder / name).is_file()}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
