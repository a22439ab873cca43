"""ModelConfig: every supported Transformer, described by its features and validated once."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import ConfigError
from edgelm.files.regular_file import check_json_values, read_text
from edgelm.layer_checks import check_layers
from edgelm.layer_features import CROSS_NORMS, KV_CACHES, NORM_PLACEMENTS, LayerFeatures
from edgelm.multipliers import Multipliers
from edgelm.number_bounds import FLOAT32_END, MOST
from edgelm.position_checks import check_positions
from edgelm.rope_scaling import RopeScaling
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
_AS_TRAINED, _NO_MULTIPLIERS = RopeScaling(), Multipliers()
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
_ROPE_WITH_ENCODER = ("default", "linear", "llama3", "yarn")  # that turn whole heads, in texts of all lengths alike

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

    `training/edgelm_training/model.py` (PyTorch) and `export/edgelm_export/decoder.py` (ONNX) both read it. The
    names are those of Hugging Face's config.json where it has one.

    encoder: the stack that reads the source text, each token of which sees all others; the decoder then begins with
    `decoder_prompt_ids`, and looks at what the encoder made of the source by a cross-attention in each block. Both
    have one embedding and one hidden size, unless the encoder has an own_embedding. A sliding_window of an encoder is
    how many tokens, itself one of them, a query sees each way.

    sliding_window: how many tokens, itself the last, a query sees in the layers of `layer_types` that say
    "sliding_attention"; in every layer where `layer_types` is empty. rope_local_theta: the base of the layers with a
    window, which no scaling stretches. attention_multiplier: of query times key; None is head_dim ** -0.5.

    global_head_dim, num_global_attention_heads, num_global_key_value_heads: of the layers that see all tokens, where
    others have a window; None is that of the others. attention_k_eq_v: in those layers, keys before norm and rope are
    the values too. num_kv_shared_layers: how many layers, the last ones, have no keys and values of their own, and look
    at those of the last layer of their kind that has. hidden_size_per_layer_input: how many features each layer has of
    a token beside the residual stream: from an embedding that all layers have a part of, and from what enters the first
    one; they gate what the layer adds last (Gemma 3n's per-layer embeddings). vocab_size_per_layer_input: the rows of
    that embedding; tokens beyond them have its first.

    altup_num_inputs: how many residual streams there are (AltUp, arXiv:2301.13310). Each layer predicts what leaves it,
    computes the first of them, and corrects all by what that prediction lacked; its features are added to the others.
    laurel_rank: of two matrices that read what attention does, beside it; both ways are summed over the root of two
    (LAuReL, arXiv:2411.07501). activation_sparsity_pattern: of each layer, the share of a feed-forward's gates that is
    nothing, if they are normally distributed: those below that quantile, which all others are lowered by.

    expert_norms: the router and the experts read the residual stream, each by a norm of its own, and the router's
    scores are multiplied by hidden_size ** -0.5; what the experts make together, and what the shared one makes, is
    normed too.

    kv_lora_rank: of multi-head latent attention (arXiv:2405.04434, 2.1). What is kept of a token is one head, keys and
    values in one: what turns of it, and a latent vector of this rank. Each query head has a matrix that makes what does
    not turn of it (qk_nope_head_dim) look for such vectors, and one that makes v_head_dim values of what it gathers of
    them. head_dim is the size of what is kept, num_key_value_heads one, and attention_multiplier has to be given.
    q_lora_rank: of the matrix that projects queries, where it is a product of two with a norm between them.

    layers_without_feed_forward: blocks that have one part alone, attention or what is in its place; those of
    `layer_types` that say "feed_forward" have the other (Nemotron-H, arXiv:2504.03624).

    conv_L_cache: how many tokens, itself the last, a token sees in the layers of `layer_types` that say "conv": they
    have a gated convolution over each channel in the place of attention (LFM2, arXiv:2511.23404).

    linear_…: of the layers that say "linear_attention" or "mamba2". In the place of keys and values of all tokens, each
    of their value heads has one matrix [key head dim, value head dim], into which every token writes and from which it
    reads (Gated DeltaNet, arXiv:2412.06464; Mamba 2, arXiv:2405.21060, whose B and C are keys and queries, and whose
    groups are key heads); neighbouring value heads share a key head, and what is projected goes through a convolution
    over `linear_conv_kernel_dim` tokens first. A layer that says "hybrid" has Mamba 2 beside attention: both read what
    one norm gives, and what they make is summed (Falcon-H1, arXiv:2507.22448). Of "mamba" (arXiv:2312.00752) each
    channel is a head with one value and one key head for all; each number of its matrix has a decay of its own.
    mamba_dt_rank: how many numbers the steps of all channels are made of.

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
    norm_placement: str = "pre"
    parallel_residual: bool = False  # attention and feed-forward both read the block's input
    final_norm: bool = True  # behind the last block
    embedding_norm: bool = False
    embedding_norm_first: bool = False  # before positions are added, not behind
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # of what each half of a block adds
    multipliers: Multipliers = _NO_MULTIPLIERS  # of what single projections give
    logits_scaling: float = 1.0  # divides the logits
    final_logit_softcapping: float | None = None  # c * tanh(logits / c)
    position: str = "rope"
    rope_theta: float = 10000.0
    rope_local_theta: float | None = None
    rope_scaling: RopeScaling = _AS_TRAINED
    partial_rotary_factor: float = 1.0  # the first part of each head that turns
    local_partial_rotary_factor: float | None = None  # the same in layers with rope_local_theta; None is that of others
    layers_without_rope: tuple[int, ...] = ()
    layers_without_input_norm: tuple[int, ...] = ()
    llama_4_scaling_beta: float | None = None  # queries grow with each original context behind them (Ministral 3)
    relative_attention_num_buckets: int = 32  # of distances, each with a score for each head (T5, arXiv:1910.10683)
    relative_attention_max_distance: int = 128  # from here on all are in the last one
    alibi_multiplier: float = 1.0  # of what a key's distance takes off a score
    relative_attention_per_layer: bool = False  # each layer has such scores of its own (umT5, arXiv:2304.09151)
    layer_types: tuple[str, ...] = ()
    sliding_window: int | None = None
    global_head_dim: int | None = None
    num_global_attention_heads: int | None = None
    num_global_key_value_heads: int | None = None
    num_kv_shared_layers: int = 0
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    v_head_dim: int | None = None
    hidden_size_per_layer_input: int = 0
    vocab_size_per_layer_input: int | None = None
    altup_num_inputs: int = 1
    altup_correct_scale: bool = False  # of each channel that gates the features: a learned factor
    laurel_rank: int = 0
    layer_scalar: bool = False  # a number of each layer, by which all that leaves it is multiplied
    conv_L_cache: int | None = None
    conv_bias: bool = False  # of the convolution and both its projections
    linear_num_key_heads: int | None = None
    linear_num_value_heads: int | None = None
    linear_key_head_dim: int | None = None
    linear_value_head_dim: int | None = None
    linear_conv_kernel_dim: int | None = None
    linear_allow_neg_eigval: bool = False  # a token may write up to twice its value (arXiv:2411.12537)
    linear_norm_eps: float | None = None  # of the norm of what linear attention reads; None is norm_eps
    linear_norm_placement: str | None = None  # of the layers that keep a state; None is norm_placement
    mamba_rms_norm: bool = True  # of what Mamba 2 reads and its gate lets through; in Mamba, of steps, keys and queries
    mamba_dt_rank: int | None = None
    hidden_act: str = "silu"
    mlp_gated: bool = True
    mlp_bias: bool = False
    activation_sparsity_pattern: tuple[float, ...] = ()
    use_double_wide_mlp: bool = False  # in layers without keys and values of their own
    num_experts: int = 0  # feed-forwards beside each other, of which a router chooses some for each token; 0 is one
    num_experts_per_tok: int = 0
    moe_intermediate_size: int | None = None  # of an expert; None is intermediate_size
    shared_expert_intermediate_size: int | None = None  # of a feed-forward beside them that every token goes through
    shared_expert_gate: bool = False  # which is multiplied by a sigmoid of a score of the token
    scoring_func: str = "softmax"  # of the router's scores, which makes them weights
    norm_topk_prob: bool = True  # the weights of the chosen experts sum to one
    routed_scaling_factor: float = 1.0  # of what those make together
    router_bias: bool = False
    n_group: int = 1  # of experts that lie beside each other; a token chooses among those of `topk_group` of them,
    topk_group: int = 1  # whose two best scores are the highest together (DeepSeek-V3, arXiv:2412.19437, 2.1.2)
    expert_choice_bias: bool = False  # of the weights, for the choice alone (DeepSeek-V3, arXiv:2412.19437)
    expert_norms: bool = False
    expert_scales: bool = False  # a learned factor of what each expert makes
    layers_without_experts: tuple[int, ...] = ()
    layers_without_feed_forward: tuple[int, ...] = ()
    swiglu_limit: float | None = None  # of experts: gate and up are clamped, and up is added one (GPT-OSS)
    swiglu_alpha: float = 1.0  # of such an expert: gate * sigmoid(alpha * gate)
    attention_sinks: bool = False  # a learned score for each query head, of a key that has no value
    attention_bias: bool = False  # of q_proj, k_proj and v_proj
    attention_output_bias: bool = False  # of o_proj
    attention_output_gate: bool = False  # what a head gathers is multiplied by a gate, projected like a query
    attention_gate_act: str = "sigmoid"  # of such gates
    attention_gate_per_head: bool = False  # one such gate for each head, in place of one for each of its numbers
    attention_multiplier: float | None = None
    attn_logit_softcapping: float | None = None
    qk_norm: bool = False  # of queries and keys, before rope
    # Each head by itself (behind rope: "turned_head"; with weights of its own: "own_head"), or all heads together.
    qk_norm_scope: str = "head"
    qk_norm_weights: bool = True  # without, those norms are RMS norms, whatever `norm` says (Llama 4)
    v_norm: bool = False  # of values, each head by itself, without weights
    attention_k_eq_v: bool = False
    sub_norms: bool = False  # of what attention gathers and a feed-forward makes, before its last projection (BitNet)
    tie_word_embeddings: bool = False
    lm_head_bias: bool = False
    head_transform: bool = False  # the head reads a norm of the activation of a projection (BERT, arXiv:1810.04805)
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    kv_cache: str = "fp32"  # what a package's graph keeps keys and values in
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
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{field} is {value!r}; it must be a whole number of 1 or more.")
            if value > MOST:
                raise ConfigError(f"{field} is a number of {value.bit_length()} bits; it must be {MOST} or less.")
        if self.num_hidden_layers > MAX_LAYERS:
            raise ConfigError(f"num_hidden_layers is {self.num_hidden_layers}; at most {MAX_LAYERS} are supported.")
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
        neutral = {field.name: field.default for field in dataclasses.fields(self)}
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
            for name in _DECODER_ONLY:
                if getattr(stack, name) != neutral[name]:
                    raise ConfigError(f"{name} is {getattr(stack, name)!r}, which no model with an encoder has.")

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
        longrope = self.position == "rope" and self.rope_scaling.rope_type == "longrope"
        return self.rope_scaling.original_max_position_embeddings if longrope else None

    @property
    def attention_scale(self) -> float:
        """What query times key is multiplied by."""
        return self.head_dim**-0.5 if self.attention_multiplier is None else self.attention_multiplier

    def _check_token_ids(self) -> None:
        for field in (
            "bos_token_id", "eos_token_ids", "decoder_start_token_id", "forced_bos_token_id", "suppressed_token_ids",
        ):  # fmt: skip
            value = getattr(self, field)
            ids = value if isinstance(value, tuple) else () if value is None else (value,)
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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; `from_dict` reads them back."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))  # tuples become lists
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build a config from `to_dict`'s values; an unknown or missing field is a ConfigError that names it."""
        fields = dict(values)
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
            raise ConfigError(f"The {SECTION!r} section of config.json does not fit this version: {error}.") from error

    @classmethod
    def load(cls, folder: str | Path) -> ModelConfig:
        """Read the config of a checkpoint folder or model package.

        Raises:
            ConfigError: config.json is missing, is not JSON, has no section of ours (a folder that edgelm did not
                write: `edgelm import` makes one of it), or was changed beside it.
        """
        path = Path(folder) / "config.json"
        try:
            check_json_values(text := read_text(path))
            values = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"Cannot read {path}: {error}.") from error
        if not isinstance(values, dict) or not isinstance(values.get(SECTION), dict):
            raise ConfigError(
                f"{path} has no {SECTION!r} section, so edgelm did not write it. "
                f"Make a checkpoint folder of it first: edgelm import {shell_word(folder)} -o checkpoint/"
            )
        from edgelm.architecture.config_section import config_of_section  # which stands on this module

        try:
            return config_of_section(values, folder)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
