"""LayerFeatures: what a ModelConfig says of one layer or another, where not all are alike."""

from __future__ import annotations

from functools import cached_property
from statistics import NormalDist

from edgelm.errors import ConfigError
from edgelm.multipliers import Multipliers
from edgelm.rope_scaling import RopeScaling

# The norms of a block, by the names that Hugging Face gives them in each case: before and after attention, before and
# after the feed-forward. "shared" is one norm before both, which then run side by side; "residual" norms the sum of
# what a part was given and what it adds (arXiv:1706.03762), where "post" norms only what it adds.
NORM_PLACEMENTS: dict[str, tuple[str | None, str | None, str | None, str | None]] = {
    "pre": ("input_layernorm", None, "post_attention_layernorm", None),
    "post": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "both": (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
    ),
    "shared": ("input_layernorm", None, "input_layernorm", None),
    "residual": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
}  # fmt: skip
_OF_SOME_LAYERS = {"pre", "post", "both"}  # those that not all layers of a model need to have
# Of cross-attention, before and after it.
CROSS_NORMS: dict[str, tuple[str | None, str | None]] = {
    "pre": ("pre_cross_attention_layernorm", None),
    "residual": (None, "post_cross_attention_layernorm"),
}

# Those of the stream that the router and the experts read, and of what the experts and the shared one make.
EXPERT_NORMS = ("router_norm", "experts_norm", "post_experts_norm", "post_shared_experts_norm")

KV_CACHES = {"fp32": 4, "int8": 1}  # and how many bytes a number takes
_MAX_EXPERTS, _MAX_EXPERTS_IN_ALL = 4096, 1 << 16  # each makes names of tensors; in use are up to 512, and 48,000
MAX_CONV = 64  # in use are 3 and 4; each is a few nodes of a graph
MOST = 2**31 - 1  # of any size: products of a few still fit the numbers of every library
# Of the norms inside latent attention: what DeepSeek, GLM, MiniCPM 3 and Youtu have, whatever their other norms have.
LATENT_NORM_EPS = 1e-6
# Each makes names of tensors; in use are up to 7,808 (128 heads in 61 layers).
_MAX_LATENT_HEADS = 1 << 16
LEAST_POWER = 1e-5  # of a projection that several streams are made of or merged by: what its power is divided by
_MAX_STREAMS = 64  # each makes names of tensors; in use are 4
# The layers that keep a state of a text: in the place of keys and values of its tokens, or beside them.
STATE_LAYERS = {
    "linear_attention": "linear attention", "mamba2": "layers of Mamba 2", "hybrid": "Mamba 2 beside attention",
}  # fmt: skip
_WITHOUT_KEYS = ("conv", "linear_attention", "mamba2", "feed_forward")  # the layers without attention to tokens
# Of these: the least of each, and the largest, which is 256 in use; products of all are still numbers.
_LINEAR_FIELDS = {
    "linear_num_key_heads": 1, "linear_num_value_heads": 1, "linear_key_head_dim": 1, "linear_value_head_dim": 1,
    "linear_conv_kernel_dim": 2,
}  # fmt: skip
_MAX_LINEAR = 1 << 16


class LayerFeatures:
    """The part of ModelConfig that answers for single layers; the fields, and what they say, stand there."""

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    norm: str
    position: str
    partial_rotary_factor: float
    rope_local_theta: float | None
    rope_scaling: RopeScaling
    attention_multiplier: float | None
    layer_types: tuple[str, ...]
    norm_placement: str
    sliding_window: int | None
    linear_num_key_heads: int | None
    linear_num_value_heads: int | None
    linear_key_head_dim: int | None
    linear_value_head_dim: int | None
    linear_conv_kernel_dim: int | None
    linear_norm_placement: str | None
    parallel_residual: bool
    residual_multiplier: float
    global_head_dim: int | None
    num_global_key_value_heads: int | None
    num_kv_shared_layers: int
    kv_lora_rank: int | None
    q_lora_rank: int | None
    qk_nope_head_dim: int | None
    v_head_dim: int | None
    hidden_size_per_layer_input: int
    vocab_size: int
    vocab_size_per_layer_input: int | None
    altup_num_inputs: int
    altup_correct_scale: bool
    laurel_rank: int
    layer_scalar: bool
    activation_sparsity_pattern: tuple[float, ...]
    use_double_wide_mlp: bool
    num_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    shared_expert_intermediate_size: int | None
    shared_expert_gate: bool
    expert_norms: bool
    swiglu_limit: float | None
    hidden_act: str
    mlp_gated: bool
    multipliers: Multipliers
    sub_norms: bool
    moe_intermediate_size: int | None
    layers_without_experts: tuple[int, ...]
    layers_without_feed_forward: tuple[int, ...]
    attention_sinks: bool
    attention_output_gate: bool
    attention_gate_per_head: bool
    attention_k_eq_v: bool
    attention_bias: bool
    llama_4_scaling_beta: float | None
    qk_norm: bool
    v_norm: bool
    kv_cache: str

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that have attention."""
        raise NotImplementedError

    @property
    def conv_channels(self) -> int:
        """How many channels the convolutions of all layers have together."""
        raise NotImplementedError

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of a head, from the first, turn with its position."""
        if self.kv_lora_rank is not None:
            return self.head_dim - self.kv_lora_rank
        return int(self.head_dim * self.partial_rotary_factor)

    def rotary_width(self, kind: str) -> int:
        """Return how many dimensions of a head turn with its position in layers of a `rope_kind`.

        Dimension i turns with dimension i + half of them, some by no angle where the scaling says so (proportional).
        """
        if kind == "local" or self.kv_lora_rank is not None:
            return self.rotary_dim
        return int((self.global_head_dim or self.head_dim) * self.partial_rotary_factor)

    def turning_dim(self, kind: str) -> int:
        """Return how many of these dimensions turn by an angle: the first of each half."""
        width, scaling = self.rotary_width(kind), self.rope_scaling
        if kind == "local" or scaling.rope_type != "proportional":
            return width
        return 2 * int(scaling.partial_rotary_factor * width // 2)

    def kind(self, layer: int) -> str | None:
        """Return what `layer_types` says of a layer; None where it says nothing of any."""
        return self.layer_types[layer] if self.layer_types else None

    def mixes(self, layer: int) -> bool:
        """Tell whether a layer looks at earlier tokens: whether it has attention, or something in its place."""
        return self.kind(layer) != "feed_forward"

    def attends(self, layer: int) -> bool:
        """Tell whether a layer has attention to tokens, of which it keeps keys and values."""
        return self.kind(layer) not in _WITHOUT_KEYS

    def has_feed_forward(self, layer: int) -> bool:
        """Tell whether a layer has a feed-forward, or experts."""
        return layer not in self.layers_without_feed_forward

    def block_norms(self, layer: int) -> tuple[str | None, str | None, str | None, str | None]:
        """Return the names of a block's norms, as in `NORM_PLACEMENTS`; None for those of a part that it has not."""
        own = self.linear_norm_placement if self.has_state(layer) else None
        before_attention, after_attention, before_mlp, after_mlp = NORM_PLACEMENTS[own or self.norm_placement]
        around_attention = (before_attention, after_attention) if self.mixes(layer) else (None, None)
        around_mlp = (before_mlp, after_mlp) if self.has_feed_forward(layer) else (None, None)
        return *around_attention, *around_mlp

    def has_state(self, layer: int) -> bool:
        """Tell whether a layer keeps a state of a text."""
        return self.kind(layer) in STATE_LAYERS

    def has_mamba2(self, layer: int) -> bool:
        """Tell whether a layer has Mamba 2, in the place of attention or beside it."""
        return self.kind(layer) in ("mamba2", "hybrid")

    @property
    def state_layers(self) -> tuple[int, ...]:
        """The layers that keep a state of a text: that of one place in it."""
        return tuple(layer for layer in range(self.num_hidden_layers) if self.has_state(layer))

    @property
    def state_kinds(self) -> str:
        """What those layers have, for a message: nothing where there is none."""
        return " and ".join(name for kind, name in STATE_LAYERS.items() if kind in self.layer_types)

    @property
    def linear_channels(self) -> int:
        """How many channels the queries, keys and values of a layer that keeps a state have together."""
        keys = (self.linear_num_key_heads or 0) * (self.linear_key_head_dim or 0)
        return 2 * keys + (self.linear_num_value_heads or 0) * (self.linear_value_head_dim or 0)

    @property
    def state_bytes(self) -> int:
        """How many bytes the states of a text take beside keys and values, however long it is."""
        convolution = self.linear_channels * ((self.linear_conv_kernel_dim or 1) - 1)
        heads, key, value = self.linear_num_value_heads, self.linear_key_head_dim, self.linear_value_head_dim
        numbers = convolution + (heads or 0) * (key or 0) * (value or 0)
        return len(self.state_layers) * numbers * KV_CACHES["fp32"]

    def slides(self, layer: int) -> bool:
        """Tell whether a layer is of the kind that has a window."""
        if self.layer_types:
            return self.layer_types[layer] == "sliding_attention"
        return self.sliding_window is not None

    @property
    def cached_layers(self) -> tuple[int, ...]:
        """The layers that have keys and values of their own."""
        return tuple(layer for layer in self.attention_layers if self.keys_of(layer) == layer)

    def keys_of(self, layer: int) -> int:
        """Return the layer at whose keys and values a layer with attention looks: itself, or an earlier one."""
        return layer if layer <= self.last_kept_layer else self._sources_of_keys[self.slides(layer)]

    @property
    def last_kept_layer(self) -> int:
        """The last layer of which a cache keeps something: those behind it look at what it has of earlier ones."""
        return self.num_hidden_layers - self.num_kv_shared_layers - 1

    @cached_property
    def _sources_of_keys(self) -> dict[bool, int]:
        """Name the last layer with keys and values of its own, of those that have a window and of those that do not."""
        return {self.slides(layer): layer for layer in range(self.last_kept_layer + 1)}

    def head_size(self, layer: int) -> int:
        """Return the size of a head in a layer with attention."""
        return self.head_dim if self.slides(layer) else self.global_head_dim or self.head_dim

    def kv_heads(self, layer: int) -> int:
        """Return how many heads of keys and values a layer with attention has."""
        own = None if self.slides(layer) else self.num_global_key_value_heads
        return own or self.num_key_value_heads

    @property
    def kept_parts(self) -> tuple[str, ...]:
        """What a cache keeps of a layer: keys and values, which are one with latent attention."""
        return ("key", "value") if self.kv_lora_rank is None else ("key",)

    @property
    def kept_buffers(self) -> int:
        """How many buffers a cache has of all layers' keys and values."""
        return len(self.kept_parts) * len(self.cached_layers)

    def keys_are_values(self, layer: int) -> bool:
        """Tell whether what a layer projects for its keys is its values too."""
        return self.attention_k_eq_v and not self.slides(layer)

    def feed_forward_size(self, layer: int) -> int:
        """Return how many features the feed-forward of a layer has between its projections."""
        return self._widened(self.intermediate_size, layer)

    def shared_expert_size(self, layer: int) -> int:
        """Return how many features the feed-forward beside the experts of a layer has; 0 is none."""
        return self._widened(self.shared_expert_intermediate_size or 0, layer)

    def _widened(self, size: int, layer: int) -> int:
        is_wide = self.use_double_wide_mlp and layer > self.last_kept_layer
        return size * (2 if is_wide else 1)

    @property
    def expert_size(self) -> int:
        """How many features an expert has between its projections."""
        return self.intermediate_size if self.moe_intermediate_size is None else self.moe_intermediate_size

    def has_experts(self, layer: int) -> bool:
        """Tell whether the feed-forward of a layer is a choice of experts."""
        return self.num_experts > 0 and self.has_feed_forward(layer) and layer not in self.layers_without_experts

    def gate_cutoff(self, layer: int) -> float | None:
        """Return by how many standard deviations a gate of a layer's feed-forward has to be above their mean to be
        something; None is not at all.
        """
        share = self.activation_sparsity_pattern[layer] if self.activation_sparsity_pattern else 0
        return NormalDist().inv_cdf(share) if share else None

    @property
    def per_layer_rows(self) -> int:
        """How many tokens have a row of their own in the embedding that all layers have a part of."""
        return self.vocab_size if self.vocab_size_per_layer_input is None else self.vocab_size_per_layer_input

    @property
    def per_layer_width(self) -> int:
        """How many features all layers together have of a token beside the residual stream."""
        return self.num_hidden_layers * self.hidden_size_per_layer_input

    @property
    def kv_bytes_per_token(self) -> int:
        """How many bytes the keys and values of one token take, and what convolutions keep of it."""
        numbers = sum(self.kv_heads(layer) * self.head_size(layer) for layer in self.cached_layers)
        return len(self.kept_parts) * numbers * KV_CACHES[self.kv_cache] + self.conv_channels * KV_CACHES["fp32"]

    def check_linear_attention(self) -> None:
        """Check the fields of the layers that keep a state.

        Raises:
            ConfigError: as from `check_own_features`; or there is such a layer, and one is not set.
        """
        for name, least in _LINEAR_FIELDS.items():
            size, most = getattr(self, name), MAX_CONV if name == "linear_conv_kernel_dim" else _MAX_LINEAR
            if size is None and self.state_layers:
                kind = self.kind(self.state_layers[0])
                raise ConfigError(f"layer_types has {kind!r}, which needs a {name}.")
            if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not least <= size <= most):
                raise ConfigError(f"{name} is {size!r:.60}; it must be a whole number from {least} to {most}.")
        placements = {self.linear_norm_placement, self.norm_placement}
        if self.linear_norm_placement is not None and (
            not placements <= _OF_SOME_LAYERS or self.parallel_residual or self.residual_multiplier != 1
        ):
            raise ConfigError(
                f"linear_norm_placement is {self.linear_norm_placement!r} and norm_placement {self.norm_placement!r}; "
                f"both must be one of {', '.join(sorted(_OF_SOME_LAYERS))}, with neither parallel_residual nor a "
                "residual_multiplier."
            )
        if self.state_layers and (self.linear_num_value_heads or 0) % (self.linear_num_key_heads or 1):
            raise ConfigError(
                f"linear_num_value_heads ({self.linear_num_value_heads}) is not a multiple of linear_num_key_heads "
                f"({self.linear_num_key_heads})."
            )

    def check_experts(self) -> None:
        """Check the fields of experts.

        Raises:
            ConfigError: as from `check_own_features`.
        """
        for field, least in (
            ("num_experts", 0),
            ("num_experts_per_tok", min(1, self.num_experts)),
            ("n_group", 1),
            ("topk_group", 1),
            ("moe_intermediate_size", 1),
            ("shared_expert_intermediate_size", 1),
        ):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ConfigError(f"{field} is {value!r}; it must be a whole number of {least} or more.")
        if self.num_experts > _MAX_EXPERTS:
            raise ConfigError(f"num_experts is {self.num_experts}; at most {_MAX_EXPERTS} are supported.")
        if self.num_experts * self.num_hidden_layers > _MAX_EXPERTS_IN_ALL:
            raise ConfigError(
                f"num_experts is {self.num_experts} and num_hidden_layers {self.num_hidden_layers}; at most "
                f"{_MAX_EXPERTS_IN_ALL} experts in all layers are supported."
            )
        if self.num_experts_per_tok > self.num_experts:
            raise ConfigError(
                f"num_experts_per_tok is {self.num_experts_per_tok}; the model has {self.num_experts} experts."
            )
        in_group = self.num_experts // self.n_group
        fits = in_group * self.n_group == self.num_experts and in_group >= 2 and self.topk_group <= self.n_group
        if self.n_group > 1 and not (fits and self.num_experts_per_tok <= self.topk_group * in_group):
            raise ConfigError(
                f"n_group is {self.n_group} and topk_group {self.topk_group}; {self.num_experts} experts do not lie in "
                f"such groups of two or more, or those chosen have fewer than {self.num_experts_per_tok}."
            )
        if self.shared_expert_gate and self.shared_expert_intermediate_size is None:
            raise ConfigError("shared_expert_gate is set, which needs a shared_expert_intermediate_size.")
        if self.num_experts and self.hidden_act == "xielu":
            raise ConfigError(f"num_experts is {self.num_experts}, with hidden_act 'xielu', which no experts have.")
        if self.expert_norms and (self.shared_expert_intermediate_size is None or self.norm_placement != "both"):
            raise ConfigError(
                "expert_norms is set, which needs a shared_expert_intermediate_size, and norm_placement 'both'."
            )
        if self.num_experts and self.sub_norms:
            raise ConfigError("sub_norms is true, which no model with experts has.")
        in_every_layer = all(map(self.has_experts, range(self.num_hidden_layers)))
        gated_by_silu = self.mlp_gated and self.hidden_act == "silu"
        if self.swiglu_limit is not None and not (in_every_layer and gated_by_silu):
            raise ConfigError("swiglu_limit is set, which is for models with experts gated by silu in every layer.")

    def check_latent_attention(self) -> None:
        """Check the fields of multi-head latent attention.

        Raises:
            ConfigError: as from `check_own_features`; or one is set where others are not that it needs.
        """
        rank = self.kv_lora_rank
        for name in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim"):
            size, needed = getattr(self, name), rank is not None and name != "q_lora_rank"
            if size is not None and rank is None:
                raise ConfigError(f"{name} is {size!r:.60}, which needs a kv_lora_rank.")
            whole = isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= MOST
            if not whole and (size is not None or needed):
                raise ConfigError(f"{name} is {size!r:.60}; it must be a whole number from 1 to {MOST}.")
        if rank is None:
            return
        heads, multiplier = self.num_key_value_heads, self.attention_multiplier
        if heads != 1 or rank >= self.head_dim or multiplier is None:
            raise ConfigError(
                f"kv_lora_rank is {rank}, with num_key_value_heads {heads}, head_dim {self.head_dim} and "
                f"attention_multiplier {multiplier}; it needs one head that is larger, and an attention_multiplier."
            )
        if self.position != "rope" or self.norm not in ("rms", "rms_offset"):
            raise ConfigError(
                f"position is {self.position!r} and norm {self.norm!r}; with a kv_lora_rank they must be 'rope' and "
                "'rms' or 'rms_offset'."
            )
        if self.num_attention_heads * self.num_hidden_layers > _MAX_LATENT_HEADS:
            raise ConfigError(
                f"num_attention_heads is {self.num_attention_heads} and num_hidden_layers {self.num_hidden_layers}; at "
                f"most {_MAX_LATENT_HEADS} heads with a kv_lora_rank are supported in all layers."
            )
        others = {
            "qk_norm": self.qk_norm, "v_norm": self.v_norm, "sub_norms": self.sub_norms,
            "attention_bias": self.attention_bias, "attention_output_gate": self.attention_output_gate,
            "attention_k_eq_v": self.attention_k_eq_v, "num_kv_shared_layers": bool(self.num_kv_shared_layers),
            "global_head_dim": self.global_head_dim is not None, "kv_cache": self.kv_cache != "fp32",
            "num_global_key_value_heads": self.num_global_key_value_heads is not None,
            "llama_4_scaling_beta": self.llama_4_scaling_beta is not None,
            "partial_rotary_factor": self.partial_rotary_factor != 1,
            "rope_local_theta": self.rope_local_theta is not None,
        }  # fmt: skip
        for name, is_set in others.items():
            if is_set:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, which no model with a kv_lora_rank has.")

    def check_streams(self) -> None:
        """Check the fields of several residual streams, of what is beside attention, and of gates that are nothing.

        Raises:
            ConfigError: as from `check_own_features`.
        """
        fields = {"altup_num_inputs": (1, _MAX_STREAMS), "laurel_rank": (0, MOST)}
        if self.vocab_size_per_layer_input is not None:
            fields["vocab_size_per_layer_input"] = (1, MOST)
        for name, (least, most) in fields.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ConfigError(f"{name} is {value!r:.60}; it must be a whole number from {least} to {most}.")
        pattern, layers = self.activation_sparsity_pattern, self.num_hidden_layers
        if pattern and (self.num_experts or not self.mlp_gated):
            raise ConfigError("activation_sparsity_pattern is set, which is for gated feed-forwards without experts.")
        if pattern and len(pattern) != layers:
            raise ConfigError(f"activation_sparsity_pattern has {len(pattern)} entries; the model has {layers} layers.")
        for share in pattern:
            if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share < 1:
                raise ConfigError(f"activation_sparsity_pattern has {share!r:.60}; it must be from 0 to below 1.")
        others = {
            "parallel_residual": self.parallel_residual, "layer_scalar": self.layer_scalar,
            "residual_multiplier": self.residual_multiplier != 1,
            "norm_placement": self.norm_placement not in ("pre", "both"),
            "norm": self.norm not in ("rms", "rms_offset"),
            "layer_types": not all(map(self.attends, range(layers))) or bool(self.state_layers),
            "layers_without_feed_forward": bool(self.layers_without_feed_forward),
        }  # fmt: skip
        for field, is_set in (("altup_num_inputs", self.altup_num_inputs > 1), ("laurel_rank", self.laurel_rank > 0)):
            wrong = next((name for name, is_wrong in others.items() if is_wrong), None)
            if is_set and wrong is not None:
                raise ConfigError(
                    f"{wrong} is {getattr(self, wrong)!r:.80}, which no model with {field} {getattr(self, field)} has."
                )
        if self.altup_num_inputs > 1 and not self.hidden_size_per_layer_input:
            raise ConfigError(f"altup_num_inputs is {self.altup_num_inputs}; it needs a hidden_size_per_layer_input.")
        if self.altup_correct_scale and self.altup_num_inputs == 1:
            raise ConfigError("altup_correct_scale is true, which needs altup_num_inputs of 2 or more.")

    def check_own_features(self) -> None:
        """Check the fields that tell layers apart.

        Raises:
            ConfigError: one has a value outside its range, or two contradict each other.
        """
        sizes = {"global_head_dim": self.global_head_dim, "num_global_key_value_heads": self.num_global_key_value_heads}
        sizes = {name: size for name, size in sizes.items() if size is not None}
        counts = {name: getattr(self, name) for name in ("num_kv_shared_layers", "hidden_size_per_layer_input")}
        for name, size in (sizes | counts).items():
            least = 1 if name in sizes else 0
            if not isinstance(size, int) or isinstance(size, bool) or not least <= size <= MOST:
                raise ConfigError(f"{name} is {size!r:.60}; it must be a whole number from {least} to {MOST}.")
        if self.num_attention_heads % (self.num_global_key_value_heads or 1):
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of num_global_key_value_heads "
                f"({self.num_global_key_value_heads})."
            )
        needed = [self.attention_multiplier, self.rope_local_theta if self.position == "rope" else 1.0]
        if self.global_head_dim is not None and None in needed:
            raise ConfigError(
                "global_head_dim is set, which needs an attention_multiplier, and with rope a rope_local_theta of the "
                "layers with a window."
            )
        if self.attention_gate_per_head and not self.attention_output_gate:
            raise ConfigError("attention_gate_per_head is set, which needs an attention_output_gate.")
        if self.multipliers.mlp_gate != 1 and not self.mlp_gated:
            raise ConfigError(f"The multiplier mlp_gate is {self.multipliers.mlp_gate}, which needs mlp_gated.")
        if self.num_kv_shared_layers == 0:
            return
        if len(self.attention_layers) < self.num_hidden_layers or self.state_layers or self.attention_sinks:
            raise ConfigError("num_kv_shared_layers is set, which is for models with plain attention in every layer.")
        kinds = {self.slides(layer) for layer in range(self.num_hidden_layers)}
        if kinds != self._sources_of_keys.keys():
            raise ConfigError(
                f"num_kv_shared_layers is {self.num_kv_shared_layers} of {self.num_hidden_layers}; before those must "
                "be a layer of each kind that they have, whose keys and values they look at."
            )
