"""ModelConfig: every supported Transformer, described by its features and validated once."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.architecture.layer_checks import check_layers, refuse_features
from edgelm.architecture.layer_features import CROSS_NORMS, KV_CACHES, NORM_PLACEMENTS, LayerFeatures
from edgelm.architecture.multipliers import Multipliers
from edgelm.architecture.position_checks import check_positions
from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.arguments import as_path
from edgelm.errors import ConfigError
from edgelm.files.regular_file import read_json_object
from edgelm.number_bounds import FLOAT32_END, MOST, check_count
from edgelm.shell_word import shell_word

# "offset" multiplies by 1 + weight, "plain" by nothing, and adds no bias.
NORMS = ("rms", "rms_offset", "rms_plain", "layer", "layer_offset", "layer_no_bias", "layer_plain")
# The fixed sinusoids have a sine and a cosine in turn, or all sines before all cosines ("halves"); in fairseq's halves
# the last pair turns by 1 / 10,000 a token, and the first token has the place 2.
SINUSOIDS = ("sinusoidal", "sinusoidal_halves", "sinusoidal_fairseq")
POSITIONS = ("rope", "learned", *SINUSOIDS, "relative", "alibi", "none")  # "alibi": arXiv:2108.12409
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2", "xielu")
XIELU_BETA = 0.5  # its slope at zero (arXiv:2411.13010)
GATE_ACTIVATIONS = ("sigmoid", "softplus")  # of what attention gathers
QK_NORM_SCOPES = ("head", "turned_head", "own_head", "projection")
# "sparsemixer" weights each expert that is chosen by the softmax of its score and of those close below (PhiMoE,
# arXiv:2409.12136): by less than this share of their own.
SCORING_FUNCS = ("softmax", "sigmoid", "sparsemixer")
SPARSEMIXER_MARGIN = 0.02
MAX_LAYERS = 4096  # in use are up to 126
# What no stack of an encoder-decoder model has.
_DECODER_ONLY = (
    "parallel_residual", "residual_multiplier", "num_experts", "attention_sinks", "global_head_dim",
    "num_global_attention_heads", "num_global_key_value_heads", "partial_rotary_factor", "llama_4_scaling_beta",
    "local_partial_rotary_factor", "qk_norm", "sub_norms", "kv_cache", "conv_L_cache", "num_kv_shared_layers", "v_norm",
    "layer_scalar", "hidden_size_per_layer_input", "attention_k_eq_v", "use_double_wide_mlp", "attention_output_gate",
    "linear_conv_kernel_dim", "mamba_dt_rank", "layers_without_feed_forward", "kv_lora_rank", "multipliers",
    "altup_num_inputs", "laurel_rank", "activation_sparsity_pattern", "vocab_size_per_layer_input",
    "head_transform",
)  # fmt: skip
_ROPE_WITH_ENCODER = ("default", "linear", "llama3", "yarn")  # these turn whole heads, and texts of all lengths alike

SUPPRESSED_LOGIT = -1e9  # of suppressed_token_ids: below every other, and finite, as sampling wants it
# The section of a config.json that holds our ModelConfig, beside the keys that transformers reads.
SECTION = "edgelm"
# What a field that is declared so must be; whole numbers have their bounds beside them.
_TYPES: dict[str, tuple[Any, str]] = {
    "bool": (bool, "true or false"),
    "float": ((int, float), "a number"),
    "str": (str, "a text"),
    "tuple": (tuple, "a list"),
}


def _listed(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(LayerFeatures):
    """Describe a Transformer by its features: a decoder, and where it has one, the encoder that it looks at.

    `edgelm_training/model.py` (PyTorch) and `edgelm_export/decoder.py` (ONNX) both read it. Its fields
    are those of ModelFields, and what follows.

    encoder: the stack that reads the source text, each token of which sees all others; the decoder then begins with
    `decoder_prompt_ids`, and looks at what the encoder made of the source by a cross-attention in each block. Both
    have one embedding and one hidden size, unless the encoder has an own_embedding. A sliding_window of an encoder is
    how many tokens, itself one of them, a query sees each way.

    Raises:
        ConfigError: a field has a value outside its range, or two fields contradict each other.
    """

    encoder: ModelConfig | None = None
    own_embedding: bool = False  # of an encoder: beside the decoder's, of a hidden size that may be another
    decoder_start_token_id: int | None = None
    forced_bos_token_id: int | None = None  # the answer's first token, such as the language to write in
    suppressed_token_ids: tuple[int, ...] = ()  # never generated

    def __post_init__(self) -> None:
        self._make_tuples()
        for field in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings",
        ):  # fmt: skip
            check_count(self, field, 1, MAX_LAYERS if field == "num_hidden_layers" else MOST)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})."
            )
        for field, allowed in (
            ("norm", NORMS),
            ("norm_placement", tuple(NORM_PLACEMENTS)),
            ("position", POSITIONS),
            ("hidden_act", ACTIVATIONS),
            ("qk_norm_scope", QK_NORM_SCOPES),
            ("scoring_func", SCORING_FUNCS),
            ("attention_gate_act", GATE_ACTIVATIONS),
            ("kv_cache", tuple(KV_CACHES)),
        ):
            if getattr(self, field) not in allowed:
                raise ConfigError(f"{field} is {getattr(self, field)!r}; supported: {', '.join(allowed)}.")
        if self.norm_placement == "shared" and not self.parallel_residual:
            raise ConfigError("norm_placement is 'shared', which needs parallel_residual.")
        self._check_types()
        self._check_numbers()
        self._check_token_ids()
        check_layers(self)
        check_positions(self)
        if self.encoder is not None:
            self._check_encoder(self.encoder)

    def _make_tuples(self) -> None:
        """Make tuples of the fields that are lists: a config has a hash."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if str(field.type).startswith("tuple") and isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            kind, _, other = str(field.type).partition(" | ")
            types, word = _TYPES.get(kind.partition("[")[0], (None, ""))
            value = getattr(self, field.name)
            if types is None or (other and value is None):
                continue
            if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
                raise ConfigError(f"{field.name} is {value!r:.80}; it must be {word}.")

    def _check_numbers(self) -> None:
        for field in (
            "norm_eps", "linear_norm_eps", "rope_theta", "rope_local_theta", "llama_4_scaling_beta",
            "embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier",
            "attn_logit_softcapping", "final_logit_softcapping", "alibi_multiplier", "swiglu_limit", "swiglu_alpha",
            "routed_scaling_factor",
        ):  # fmt: skip
            value, low = getattr(self, field), 1 if field in ("rope_theta", "rope_local_theta") else 0
            if value is not None and not low < value < FLOAT32_END:
                raise ConfigError(f"{field} is {value!r:.60}; it must be a number above {low}.")

    def _check_encoder(self, encoder: ModelConfig) -> None:
        if encoder.encoder is not None or encoder.position == "alibi":
            raise ConfigError(
                f"The encoder has position {encoder.position!r} and {'an' if encoder.encoder else 'no'} encoder of its "
                "own; it must have other positions than alibi, and none."
            )
        if self.own_embedding:
            raise ConfigError("own_embedding is true of a decoder with an encoder; it is for the encoder alone.")
        for field in ("vocab_size", "norm", *(() if encoder.own_embedding else ("hidden_size",))):
            if getattr(encoder, field) != getattr(self, field):
                raise ConfigError(
                    f"The encoder's {field} is {getattr(encoder, field)!r}, the decoder's {getattr(self, field)!r}; "
                    "they must be the same."
                )
        if not isinstance(self.decoder_start_token_id, int):
            raise ConfigError(
                f"decoder_start_token_id is {self.decoder_start_token_id!r}; a decoder with an encoder needs a token "
                "to begin with."
            )
        self._check_in_vocabulary("decoder_prompt_ids")
        for stack in (self, encoder):
            if stack.norm_placement not in CROSS_NORMS:
                raise ConfigError(
                    f"norm_placement is {stack.norm_placement!r}; with an encoder it must be {_listed(CROSS_NORMS)}."
                )
            if stack.position == "rope" and stack.rope_scaling.rope_type not in _ROPE_WITH_ENCODER:
                raise ConfigError(
                    f"rope_type is {stack.rope_scaling.rope_type!r}; with an encoder it must be "
                    f"{_listed(_ROPE_WITH_ENCODER)}."
                )
            refuse_features(stack, _DECODER_ONLY, "an encoder")

    @property
    def decoder_name(self) -> str:
        """What the names of the decoder's tensors begin with."""
        return "model" if self.encoder is None else "model.decoder"

    @property
    def layer_counts(self) -> tuple[int, ...]:
        """How many layers each stack has."""
        return (*(() if self.encoder is None else self.encoder.layer_counts), self.num_hidden_layers)

    @property
    def decoder_prompt_ids(self) -> tuple[int, ...]:
        """The tokens that the decoder of an encoder-decoder model begins with; none without an encoder."""
        return tuple(id_ for id_ in (self.decoder_start_token_id, self.forced_bos_token_id) if id_ is not None)

    @property
    def short_context(self) -> int | None:
        """With LongRoPE, the longest text that turns by `short_factor`; a longer one turns otherwise from the start."""
        if self.position != "rope" or self.rope_scaling.rope_type != "longrope":
            return None
        return min(self.rope_scaling.original_max_position_embeddings, self.max_position_embeddings)

    @property
    def attention_scale(self) -> float:
        """What query times key is multiplied by."""
        return self.head_dim**-0.5 if self.attention_multiplier is None else self.attention_multiplier

    def _check_token_ids(self) -> None:
        for field in (
            "bos_token_id", "eos_token_ids", "decoder_start_token_id", "forced_bos_token_id", "suppressed_token_ids",
        ):  # fmt: skip
            value = getattr(self, field)
            if value is None:
                continue
            ids = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(id_, int) and not isinstance(id_, bool) and id_ >= 0 for id_ in ids):
                raise ConfigError(f"{field} is {value!r}; token ids are whole numbers of 0 or more.")
        self._check_in_vocabulary("suppressed_token_ids")

    def _check_in_vocabulary(self, field: str) -> None:
        if max(getattr(self, field), default=0) >= self.vocab_size:
            raise ConfigError(f"{field} are {getattr(self, field)}; the vocabulary has {self.vocab_size} tokens.")

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """List every tensor of a checkpoint by its canonical name (Hugging Face's Llama names), in file order."""
        from edgelm.architecture.tensor_shapes import tensor_shapes  # which stands on this module

        return tensor_shapes(self)

    def count_parameters(self) -> int:
        """Count the numbers that the model has learned, embeddings included."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def count_active_parameters(self) -> int:
        """Count those that compute one token: of experts beside each other, the ones that it goes through."""
        experts = sum(math.prod(shape) for name, shape in self.tensor_shapes().items() if ".experts." in name)
        idle = experts * (self.num_experts - self.num_experts_per_tok) // max(1, self.num_experts)
        return self.count_parameters() - idle

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; `from_dict` reads them back."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))  # tuples become lists
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build a config from `to_dict`'s values; an unknown or missing field is a ConfigError that names it."""
        fields = dict(values)
        for name in ("rope_scaling", "multipliers", "encoder"):
            value = fields.get(name, {})
            if not isinstance(value, dict) and (name != "encoder" or value is not None):
                raise ConfigError(f"{name} is {value!r:.60}; it must be a dictionary.")
        try:
            scaling = dict(fields.get("rope_scaling", {}))
            factors = {name: scaling.get(name) for name in ("short_factor", "long_factor")}
            scaling |= {name: tuple(each) for name, each in factors.items() if isinstance(each, list)}
            fields["rope_scaling"] = RopeScaling(**scaling)
            fields["multipliers"] = Multipliers(**fields.get("multipliers", {}))
            encoder = fields.get("encoder")
            if encoder is not None:
                # An encoder has none of its own, however deep a hostile file nests them.
                fields["encoder"] = cls.from_dict({**encoder, "encoder": None})
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"The {SECTION!r} section of config.json does not fit this version: {error}. If a newer edgelm wrote "
                "it, update this one; if not, import or export the model again."
            ) from error

    @classmethod
    def load(cls, folder: str | Path) -> ModelConfig:
        """Read the config of a checkpoint folder or model package.

        Raises:
            ConfigError: config.json is missing, is not JSON, has no section of ours (a folder that edgelm did not
                write: `edgelm import` makes one of it), or was changed beside it.
        """
        path = as_path(folder) / "config.json"
        try:
            values = read_json_object(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"Cannot read {path}: {error}.") from error
        if not isinstance(values.get(SECTION), dict):
            raise ConfigError(
                f"{path} has no {SECTION!r} section, so edgelm did not write it. "
                f"Make a checkpoint folder of it first: edgelm import {shell_word(folder)} -o checkpoint/"
            )
        from edgelm.architecture.config_section import config_of_section  # which stands on this module

        try:
            return config_of_section(values, folder)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
