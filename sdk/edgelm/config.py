"""ModelConfig: every supported Transformer, described by its features and validated once."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import ConfigError

NORMS = ("rms", "layer")
POSITIONS = ("rope", "learned", "sinusoidal", "none")
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

# The section of a config.json that holds our ModelConfig, beside the keys that transformers reads.
SECTION = "edgelm"


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context, in Hugging Face's keys.

    `linear` divides positions by `factor`; `llama3` and `yarn` (arXiv:2309.00071) blend per frequency.
    """

    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise ConfigError(f"rope_type is {self.rope_type!r}; supported: {', '.join(ROPE_TYPES)}.")
        if not self.factor >= 1.0:
            raise ConfigError(f"The rope factor is {self.factor}; it must be 1.0 or more.")
        if self.rope_type in ("llama3", "yarn") and self.original_max_position_embeddings < 1:
            raise ConfigError(f"rope_type {self.rope_type!r} needs original_max_position_embeddings.")
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if not 0 < getattr(self, low) < getattr(self, high):
                raise ConfigError(
                    f"{low} is {getattr(self, low)!r} and {high} is {getattr(self, high)!r}; "
                    "both must be above 0, and the first below the second."
                )
        if self.attention_factor is not None and not self.attention_factor > 0:
            raise ConfigError(f"attention_factor is {self.attention_factor!r}; it must be above 0.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Describe a decoder-only Transformer by its features.

    `training/edgelm_training/model.py` (PyTorch) and `export/edgelm_export/decoder.py` (ONNX) both read it. The
    names are those of Hugging Face's config.json where it has one.

    Raises:
        ConfigError: a field has a value outside its range, or two fields contradict each other.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    norm: str = "rms"
    norm_eps: float = 1e-5
    position: str = "rope"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    hidden_act: str = "silu"
    mlp_gated: bool = True
    mlp_bias: bool = False
    attention_bias: bool = False  # of q_proj, k_proj and v_proj
    attention_output_bias: bool = False  # of o_proj
    qk_norm: bool = False  # of each query and key head, before rope
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{field} is {value!r}; it must be a whole number of 1 or more.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})."
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rope needs an even one.")
        for field, allowed in (("norm", NORMS), ("position", POSITIONS), ("hidden_act", ACTIVATIONS)):
            if getattr(self, field) not in allowed:
                raise ConfigError(f"{field} is {getattr(self, field)!r}; supported: {', '.join(allowed)}.")
        for field, low in (("norm_eps", 0), ("rope_theta", 1)):
            if not low < getattr(self, field) < math.inf:
                raise ConfigError(f"{field} is {getattr(self, field)!r}; it must be a number above {low}.")
        self._check_switches_and_token_ids()

    def _check_switches_and_token_ids(self) -> None:
        for field in (
            "mlp_gated",
            "mlp_bias",
            "attention_bias",
            "attention_output_bias",
            "qk_norm",
            "tie_word_embeddings",
        ):
            if not isinstance(getattr(self, field), bool):
                raise ConfigError(f"{field} is {getattr(self, field)!r}; it must be true or false.")
        ids = self.eos_token_ids if self.bos_token_id is None else (self.bos_token_id, *self.eos_token_ids)
        if not all(isinstance(id_, int) and not isinstance(id_, bool) and id_ >= 0 for id_ in ids):
            raise ConfigError(
                f"bos_token_id is {self.bos_token_id!r} and eos_token_ids are {self.eos_token_ids!r}; "
                "token ids are whole numbers of 0 or more."
            )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """List every tensor of a checkpoint by its canonical name (Hugging Face's Llama names), in file order."""
        D, F, H = self.hidden_size, self.intermediate_size, self.head_dim
        NH, KH = self.num_attention_heads * H, self.num_key_value_heads * H
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, D)}

        def norm(name: str, size: int) -> None:
            shapes[f"{name}.weight"] = (size,)
            if self.norm == "layer":
                shapes[f"{name}.bias"] = (size,)

        def linear(name: str, rows: int, columns: int, bias: bool) -> None:
            shapes[f"{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{name}.bias"] = (rows,)

        if self.position == "learned":
            shapes["model.embed_positions.weight"] = (self.max_position_embeddings, D)
        for i in range(self.num_hidden_layers):
            layer = f"model.layers.{i}"
            norm(f"{layer}.input_layernorm", D)
            linear(f"{layer}.self_attn.q_proj", NH, D, self.attention_bias)
            linear(f"{layer}.self_attn.k_proj", KH, D, self.attention_bias)
            linear(f"{layer}.self_attn.v_proj", KH, D, self.attention_bias)
            linear(f"{layer}.self_attn.o_proj", D, NH, self.attention_output_bias)
            if self.qk_norm:
                norm(f"{layer}.self_attn.q_norm", H)
                norm(f"{layer}.self_attn.k_norm", H)
            norm(f"{layer}.post_attention_layernorm", D)
            if self.mlp_gated:
                linear(f"{layer}.mlp.gate_proj", F, D, self.mlp_bias)
            linear(f"{layer}.mlp.up_proj", F, D, self.mlp_bias)
            linear(f"{layer}.mlp.down_proj", D, F, self.mlp_bias)
        norm("model.norm", D)
        if not self.tie_word_embeddings:
            linear("lm_head", self.vocab_size, D, False)
        return shapes

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; `from_dict` reads them back."""
        return dataclasses.asdict(self) | {"eos_token_ids": list(self.eos_token_ids)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build a config from `to_dict`'s values; an unknown or missing field is a ConfigError that names it."""
        fields = dict(values)
        try:
            fields["rope_scaling"] = RopeScaling(**fields.get("rope_scaling", {}))
            fields["eos_token_ids"] = tuple(fields.get("eos_token_ids", ()))
            return cls(**fields)
        except TypeError as error:
            raise ConfigError(f"The {SECTION!r} section of config.json does not fit this version: {error}.") from error

    @classmethod
    def load(cls, folder: str | Path) -> ModelConfig:
        """Read the config of a checkpoint folder or model package.

        Raises:
            ConfigError: config.json is missing, is not JSON, or has no section of ours (a folder that edgelm did not
                write: `edgelm import` makes one of it).
        """
        path = Path(folder) / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"Cannot read {path}: {error}.") from error
        if not isinstance(values, dict) or not isinstance(values.get(SECTION), dict):
            raise ConfigError(
                f"{path} has no {SECTION!r} section, so edgelm did not write it. "
                f"Make a checkpoint folder of it first: edgelm import {folder} -o checkpoint/"
            )
        return cls.from_dict(values[SECTION])
