"""Architecture: how one model family's config and tensors map to ours, as data and small functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gguf_header
from edgelm_export.checkpoints.tensor_map import CANONICAL, TensorLayout, pattern_of

_NO_TENSORS: Mapping[str, tuple[int, ...]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class GGUFHeader:
    """What a GGUF file says of its model before any large tensor is read, with the keys of its family.

    shapes: the tensors by GGUF name, each in numpy's order (rows first). rope_factors: by their names, the tensors
    [R/2] by which llama.cpp divides each rotary frequency (`ROPE_FACTORS`), those that the file has.
    """

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    rope_factors: Mapping[str, NDArray[np.float32]]

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the family, before each of its keys."""
        return str(self.metadata["general.architecture"])

    def changed(self, changes: Mapping[str, Any]) -> GGUFHeader:
        """Return the header with other values of the family's keys, which are named without what stands before each."""
        own = {f"{self.architecture}.{key}": value for key, value in changes.items()}
        return dataclasses.replace(self, metadata={**self.metadata, **own})


# Llama 3's factors, and LongRoPE's within and beyond the original context.
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")


@dataclass(frozen=True, kw_only=True)
class GGUFFamily:
    """How llama.cpp knows a family.

    architecture: the file's general.architecture. to_hf_config: makes config.json's values of a header, so that both
    ways meet in `Architecture.to_model_config`; with a `model_type` where they are a sibling's. has_experts: whether
    the row is for files with experts. also_called: its other names for models of the family, such as those that also
    read images. computed: makes the tensors, by their names in the layout, that a file holds as metadata.
    has_multiplied_weights: whether files have a config's multipliers of projections in their weights.
    """

    architecture: str
    to_hf_config: Callable[[GGUFHeader], dict[str, Any]] = gguf_header.to_hf_config
    layout: TensorLayout
    has_experts: bool = False
    also_called: tuple[str, ...] = ()
    computed: Callable[[GGUFHeader], Mapping[str, NDArray[np.float32]]] = lambda header: {}
    has_multiplied_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One row of `ARCHITECTURES`.

    defaults: what transformers, or the models' code, takes where config.json has no such key. null_keys: those whose
    null is a value, in a family where that of others means the key's absence; None where no null does. fixed: what
    config.json may say of a key, if anything. renamed: keys to those that config.json may have in their place, which
    count where they are not null. read_config: makes the features, for `to_model_config`, of a dict of its own:
    config.json's values over the defaults, under the keys that are so renamed. reads_single_layers: whether it reads
    what transformers 5 may say of single layers, per_layer_config. features: fields of ModelConfig that the whole
    family has alike. layout: of the tensors in safetensors. layout_of: the same where it depends on the config. mlx:
    the same in folders that mlx-lm wrote, where it has other names, or other shapes of convolutions. stacked: the same
    where all experts of a layer are one tensor. is_in_transformers: not where its models bring their own code. gguf:
    None where llama.cpp does not know the family.
    """

    model_type: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    null_keys: frozenset[str] | None = None
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    read_config: Callable[[dict[str, Any]], ModelConfig]
    reads_single_layers: bool = False
    features: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layout: TensorLayout = CANONICAL
    layout_of: Callable[[ModelConfig], TensorLayout] | None = None
    mlx: TensorLayout | None = None
    stacked: TensorLayout | None = None
    is_in_transformers: bool = True
    gguf: GGUFFamily | None

    def to_model_config(self, values: Mapping[str, Any]) -> ModelConfig:
        """Read config.json's values as those of the family.

        Raises:
            CheckpointError: a feature is not supported.
            ConfigError: a size is outside its range, or contradicts another.
        """
        if (kept := self.null_keys) is not None:
            values = {key: value for key, value in values.items() if value is not None or key in kept}
        for key, supported in self.fixed.items():
            if values.get(key, supported) != supported:
                raise CheckpointError(f"config.json: {key} is {values[key]!r:.60}; supported is {supported!r}.")
        if (own := values.get("per_layer_config")) and not self.reads_single_layers:
            raise CheckpointError(
                f"config.json: per_layer_config is {own!r:.60}; of {self.model_type} models supported are the same "
                "settings for all layers."
            )
        values = {**self.defaults, **values}
        renamed = {ours: theirs for ours, theirs in self.renamed.items() if theirs in values}
        for ours, theirs in renamed.items():
            if values[theirs] is not None or ours not in values:
                values[ours] = values[theirs]
        try:
            config = self.read_config(values)
        except CheckpointError as error:
            problem = str(error)
            for ours, theirs in renamed.items():
                problem = problem.replace(f"config.json: {ours} ", f"config.json: {theirs} ")
            raise CheckpointError(problem) from error
        return dataclasses.replace(config, model_type=self.model_type, **self.features)

    def layout_for(self, config: ModelConfig, present: Mapping[str, tuple[int, ...]] = _NO_TENSORS) -> TensorLayout:
        """Return the layout of the tensors of one model, whose names and shapes in safetensors are `present`."""
        if self.mlx is not None and _has_convolutions_of(self.mlx, present):
            return self.mlx
        for other in (self.mlx, self.stacked):
            if other is not None and self._has_names_of(other, present):
                return other
        return self.layout if self.layout_of is None else self.layout_of(config)

    def _has_names_of(self, other: TensorLayout, present: Collection[str]) -> bool:
        names = self.layout.names.keys() | other.names.keys()
        own = {other.names.get(name, name) for name in names} - {self.layout.names.get(name, name) for name in names}
        patterns = {pattern_of(name)[0] for name in present}
        return not own.isdisjoint(patterns | {pattern.rpartition(".")[0] for pattern in patterns})


def _has_convolutions_of(layout: TensorLayout, present: Mapping[str, tuple[int, ...]]) -> bool:
    """Tell whether a convolution is [C, K, 1], as mlx has it: in a family without experts nothing else differs."""
    return any(
        len(shape) == 3 and shape[1] != 1 and shape[2] == 1 and pattern_of(name)[0] in layout.ones_elsewhere
        for name, shape in present.items()
    )
