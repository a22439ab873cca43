"""PEFT's format of adapters, as far as settings and names go: adapter_config.json and the tensors' names.

An adapter of mlx-lm is read as if PEFT had written it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from edgelm.arguments import is_number
from edgelm.config import SECTION
from edgelm.errors import CheckpointError
from edgelm.files.regular_file import read_json_object
from edgelm.number_bounds import FLOAT32_END
from edgelm.package import mlx_adapter

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
# What PEFT puts before the names of the model that it wraps.
PREFIX = "base_model.model."
# Of the weights file's metadata, where edgelm wrote it: which base the adapter belongs to.
BASE_SHA256, BASE_NAME, BASE_GRID = "edgelm.base_sha256", "edgelm.base_name", "edgelm.base_grid"
_BASE = "base_model_name_or_path"
_ALPHAS = "alpha_pattern"
# A key of alpha_pattern that is an end of layers' names, and one that is quick on every name: of two repetitions at
# most, and of none that is repeated as a whole.
_MOST_PATTERNS = 100
_NAME, _QUICK = (
    re.compile(r"[\w.]+"),
    re.compile(r"(?=.{1,200}\Z)(?!(?:.*(?<!\\)[*+?{]){3})(?!.*\)[*+?{]).*", re.DOTALL),
)
_A, _B = ".lora_A.weight", ".lora_B.weight"
# What is no name of a folder here may be one on the hub.
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+", re.ASCII)
MERGE_WHERE_TRAINED = (
    "merge it where it was trained (merge_and_unload and save_pretrained of PEFT, mlx_lm.fuse) and export the result, "
    "or train it with edgelm finetune."
)
_MOST_FAULTS = 16  # that an error lists; a model with experts has thousands of layers
_FLOATS = ("F32", "BF16", "F16", "F64")  # as safetensors calls them

# Kinds of LoRA that PEFT has besides, and the values with which they are off.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    **dict.fromkeys(
        (
            "use_dora", "lora_bias", "modules_to_save", "layer_replication",
            "trainable_token_indices", "target_parameters", "megatron_config", "alora_invocation_tokens", "use_qalora",
            "use_bdlora", "kasa_config", "monteclora_config", "velora_config", "arrow_config",
        ),
        (None, False, {}, []),
    ),
}  # fmt: skip
# Those that PEFT refuses to merge, or merges into layers that share one weight.
_UNMERGED = ("alora_invocation_tokens", "layer_replication")

# Ways of making a fresh adapter that leave the weights beside it as they are. The others (PiSSA, OLoRA, CorDA, LoftQ,
# LoRA-GA) take out of the base what the adapter begins with.
_INIT, _INITS = "init_lora_weights", (True, False, None, "gaussian", "eva", "orthogonal", "mica")


class Matrix(Protocol):
    """A matrix of numpy or of PyTorch."""

    @property
    def T(self) -> Self:  # noqa: N802  (both call it so)
        """The matrix turned around."""


_Tensor = TypeVar("_Tensor", bound=Matrix)
MatrixPairs = Mapping[str, tuple[_Tensor, _Tensor]]


def read_peft_config(folder: Path) -> dict[str, Any]:
    """Read the settings of an adapter.

    Raises:
        CheckpointError: they are missing or broken, the adapter is no plain LoRA, or it changed its base's weights.
    """
    path = folder / CONFIG_FILE
    try:
        values = read_json_object(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no adapter: there is no {CONFIG_FILE}.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.") from error
    values.pop(mlx_adapter.SCALE, None)  # which nobody but peft_settings says
    if weights_path(folder).name == mlx_adapter.WEIGHTS_FILE:
        values = mlx_adapter.peft_settings(values, path)
    elif not (folder / WEIGHTS_FILE).exists() and (folder / _PICKLE).exists():
        raise CheckpointError(
            f"{folder} has its weights in {_PICKLE}, which can run code when it is read, so edgelm does not. Where you "
            f"trust it, save_pretrained of PEFT writes {WEIGHTS_FILE}."
        )
    for key, plain in _PLAIN.items():
        if values.get(key, plain[0]) not in plain:
            way_out = "train one without it." if key in _UNMERGED else MERGE_WHERE_TRAINED
            raise CheckpointError(
                f"{path} has {key} = {values[key]!r:.60}; only plain LoRA adapters can be read: {way_out}"
            )
    if not isinstance(values.get(_ALPHAS), dict | None):
        raise CheckpointError(f"{path} has {_ALPHAS} = {values[_ALPHAS]!r:.60}; it must be an object, or null.")
    if not isinstance(values.get(_BASE), str | None):
        raise CheckpointError(f"{path} has {_BASE} = {values[_BASE]!r:.60}; it must be a text, or null.")
    if values.get(_INIT) not in _INITS:
        raise CheckpointError(
            f"{path} has {_INIT} = {values[_INIT]!r:.60}: the adapter learned beside other weights than its base has. "
            "Save it as one for the base, where it was trained: save_pretrained of PEFT with "
            "path_initial_model_for_weight_conversion; or merge it there (merge_and_unload)."
        )
    return values


def weights_path(folder: Path) -> Path:
    """Return the file that holds an adapter's matrices: PEFT's, or mlx-lm's where only that is there."""
    of_mlx = folder / mlx_adapter.WEIGHTS_FILE
    return of_mlx if of_mlx.exists() and not (folder / WEIGHTS_FILE).exists() else folder / WEIGHTS_FILE


def check_matrices(tensors: Mapping[str, tuple[str, Sequence[int]]], path: Path) -> None:
    """Make sure that the tensors of an adapter are matrices of floats, by their types and shapes in the file's header.

    Raises:
        CheckpointError: one is not.
    """
    for name, (dtype, shape) in tensors.items():
        if dtype not in _FLOATS or len(shape) != 2 or 0 in shape:
            raise CheckpointError(
                f"{path} is no plain LoRA adapter: {name[:200]} is {dtype} {list(shape)}; read are matrices with a row "
                f"and a column at least, in {', '.join(_FLOATS)}. If it learned more, {MERGE_WHERE_TRAINED}"
            )


def in_pairs(tensors: Mapping[str, _Tensor], path: Path) -> dict[str, tuple[_Tensor, _Tensor]]:
    """Return the matrices A and B of each layer, by the layer's name; `path` is what errors name.

    Raises:
        CheckpointError: a matrix lacks its partner, or a tensor is neither.
    """
    is_of_mlx = path.name == mlx_adapter.WEIGHTS_FILE
    end_a, end_b = mlx_adapter.ENDS if is_of_mlx else (_A, _B)
    layers = [name.removesuffix(end_a) for name in tensors if name.endswith(end_a)]
    expected = {layer + end for layer in layers for end in (end_a, end_b)}
    strange = sorted(tensors.keys() ^ expected)
    if strange or not layers:
        raise CheckpointError(
            f"{path} is no plain LoRA adapter; unpaired or unknown: {', '.join(strange[:5]) or 'all of it'}"
            + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
            + f". Copy it again if it is not whole. If it learned more, {MERGE_WHERE_TRAINED}"
        )
    if is_of_mlx:
        return {layer: (tensors[layer + end_a].T, tensors[layer + end_b].T) for layer in layers}
    return {layer.removeprefix(PREFIX): (tensors[layer + end_a], tensors[layer + end_b]) for layer in layers}


def does_not_fit(folder: Path, what: str, faults: Iterable[str]) -> str:
    """Say in what an adapter does not fit a `model` or a `package`, and what to do."""
    every = list(faults)
    listed = "".join(f"\n  {fault}" for fault in every[:_MOST_FAULTS])
    if len(every) > _MOST_FAULTS:
        listed += f"\n  and {len(every) - _MOST_FAULTS} more"
    ours = "put it into its base (edgelm merge), or " if what == "package" else ""
    return (
        f"The adapter in {folder} does not fit the {what}:{listed}\nName the {what} that it was trained for. If it is "
        f"that one, {ours}{MERGE_WHERE_TRAINED}"
    )


def is_base_ours(base_name: str | None) -> bool | None:
    """Tell whether an adapter's base is a checkpoint folder of edgelm, and not published; None where nothing tells.

    What has the form of a name on the hub, and is no folder here, is taken for one.
    """
    if not base_name:
        return None
    try:
        return SECTION in read_json_object(Path(base_name) / "config.json")
    except (OSError, ValueError):
        return False if _HUB_NAME.fullmatch(base_name) else None


def unknown_order(model_type: str, base_name: str | None, projections: Iterable[str], folder: Path) -> str:
    """Say that rows of projections stand in another order where an adapter was trained, or may."""
    return (
        f"The adapter in {folder} was trained on {base_name or 'a model that it does not name'}. In the folders that a "
        f"{model_type} is published in, the rows of {' and '.join(projections)} stand otherwise than in edgelm"
    )


def tensor_names(layer: str) -> tuple[str, str]:
    """Return the names that PEFT gives to the matrices A and B of a layer."""
    return PREFIX + layer + _A, PREFIX + layer + _B


def scale_of(values: Mapping[str, Any], layer: str, rank: int, folder: Path) -> float:
    """Return what the product of a layer's matrices is multiplied by; `layer` is its name where it was trained.

    Raises:
        CheckpointError: lora_alpha, or what alpha_pattern has for the layer, is no number, or none that float32 holds;
            or alpha_pattern is none.
    """
    key = mlx_adapter.SCALE if mlx_adapter.SCALE in values else "lora_alpha"
    numbers = {key: values.get(key)}
    pattern = _pattern_of(values, layer, folder)
    if pattern is not None:
        numbers[f"{_ALPHAS}[{pattern!r:.60}]"] = values[_ALPHAS][pattern]
    scale: float = 0
    for name, number in numbers.items():  # the last counts
        if not is_number(number) or not abs(number) < FLOAT32_END:
            raise CheckpointError(
                f"{folder / CONFIG_FILE} has {name} = {number!r:.60}; it must be a number that float32 holds."
            )
        scale = number
    if key == mlx_adapter.SCALE:
        return scale
    # Rank-stabilized LoRA (arXiv:2312.03732) divides by the root.
    return scale / (math.sqrt(rank) if values.get("use_rslora") else rank)


def _pattern_of(values: Mapping[str, Any], layer: str, folder: Path) -> str | None:
    """Return the first key of alpha_pattern that matches a layer, as get_pattern_key of PEFT does."""
    patterns = values.get(_ALPHAS) or {}
    slow = [key for key in patterns if not _NAME.fullmatch(key)]
    if len(slow) > _MOST_PATTERNS or not all(map(_QUICK.fullmatch, slow)):
        raise CheckpointError(
            f"{folder / CONFIG_FILE} has {_ALPHAS} = {patterns!r:.120}; of its keys at most {_MOST_PATTERNS} may be "
            "regular expressions, each of 200 characters and two repetitions at most, and of none behind a bracket. "
            "Write the layers' names."
        )
    try:
        return next((key for key in patterns if _matches(key, layer)), None)
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} has {_ALPHAS} = {patterns!r:.120}; its keys must be ends of layers' names, or "
            f"regular expressions for them ({error})."
        ) from error


def _matches(key: str, layer: str) -> bool:
    if _NAME.fullmatch(key):
        return f".{layer}".endswith(f".{key}")
    return re.match(rf"(.*\.)?({key})$", layer) is not None
