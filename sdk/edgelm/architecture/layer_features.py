"""LayerFeatures: what a ModelConfig says of one layer or another, where not all are alike."""

from __future__ import annotations

import math
from functools import cached_property
from statistics import NormalDist

from edgelm.architecture.model_fields import ModelFields

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
# Of cross-attention, before and after it.
CROSS_NORMS: dict[str, tuple[str | None, str | None]] = {
    "pre": ("pre_cross_attention_layernorm", None),
    "residual": (None, "post_cross_attention_layernorm"),
    "both": ("pre_cross_attention_layernorm", "post_cross_attention_layernorm"),
}

# Those of the stream that the router and the experts read, and of what the experts and the shared one make.
EXPERT_NORMS = ("router_norm", "experts_norm", "post_experts_norm", "post_shared_experts_norm")

KV_CACHES = {"fp32": 4, "int8": 1}  # and how many bytes a number takes
MAX_CONV = 64  # in use are 3 and 4; each is a few nodes of a graph
# Of the norms inside latent attention: what DeepSeek, GLM, MiniCPM 3 and Youtu have, whatever their other norms have.
LATENT_NORM_EPS = 1e-6
LEAST_POWER = 1e-5  # of a projection of AltUp's streams: so much at least its power is taken for, to divide by it
# The layers that keep a state of a text: in the place of keys and values of its tokens, or beside them.
STATE_LAYERS = {
    "linear_attention": "linear attention", "mamba": "layers of Mamba", "mamba2": "layers of Mamba 2",
    "hybrid": "Mamba 2 beside attention",
}  # fmt: skip
LAYER_TYPES = ("full_attention", "sliding_attention", "conv", *STATE_LAYERS, "feed_forward")
LAYERS_WITHOUT = (
    "layers_without_rope", "layers_without_experts", "layers_without_feed_forward", "layers_without_input_norm",
)  # fmt: skip
# The layers without attention to tokens.
_WITHOUT_KEYS = ("conv", "linear_attention", "mamba", "mamba2", "feed_forward")


class LayerFeatures(ModelFields):
    """The part of ModelConfig that answers for single layers."""

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that have attention to tokens; others have a convolution, or a state, in its place."""
        return tuple(filter(self.attends, range(self.num_hidden_layers)))

    @property
    def conv_channels(self) -> int:
        """How many channels the convolutions of all layers have together."""
        return sum(map(self.is_conv, range(self.num_hidden_layers))) * self.hidden_size

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
        if self.kv_lora_rank is not None:
            return self.rotary_dim
        if kind == "local":
            part = self.local_partial_rotary_factor
            return self.rotary_dim if part is None else int(self.head_dim * part)
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

    def is_conv(self, layer: int) -> bool:
        """Tell whether a layer has a convolution in the place of attention."""
        return self.kind(layer) == "conv"

    def window(self, layer: int) -> int | None:
        """Return how many tokens a query of this layer sees; None is all of them."""
        if self.is_conv(layer):
            return self.conv_L_cache
        window = self.sliding_window
        if self.has_state(layer) or window is None or window >= self.max_position_embeddings:
            return None
        return None if self.kind(layer) == "full_attention" else window

    def has_feed_forward(self, layer: int) -> bool:
        """Tell whether a layer has a feed-forward, or experts."""
        return layer not in self.layers_without_feed_forward

    def block_norms(self, layer: int) -> tuple[str | None, str | None, str | None, str | None]:
        """Return the names of a block's norms, as in `NORM_PLACEMENTS`; None for those of a part that it has not."""
        own = self.linear_norm_placement if self.has_state(layer) else None
        before_attention, after_attention, before_mlp, after_mlp = NORM_PLACEMENTS[own or self.norm_placement]
        before_attention = None if layer in self.layers_without_input_norm else before_attention
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
        """How many channels a layer that keeps a state has a convolution over: those of its queries, keys and values
        together; in Mamba those of its values, of which the others are made.
        """
        are_made = "mamba" in self.layer_types
        keys = 0 if are_made else (self.linear_num_key_heads or 0) * (self.linear_key_head_dim or 0)
        return 2 * keys + (self.linear_num_value_heads or 0) * (self.linear_value_head_dim or 0)

    @property
    def state_shapes(self) -> tuple[tuple[int, int], tuple[int, int, int]]:
        """The state of a layer that keeps one: what its convolution reads [W, L - 1], and its matrices [N, X, Y]
        (edgelm_export/layers/linear_attention.py).
        """
        heads, key, value = self.linear_num_value_heads, self.linear_key_head_dim, self.linear_value_head_dim
        return (self.linear_channels, (self.linear_conv_kernel_dim or 1) - 1), (heads or 0, key or 0, value or 0)

    @property
    def state_bytes(self) -> int:
        """How many bytes the states of a text take beside keys and values, however long it is."""
        return len(self.state_layers) * sum(map(math.prod, self.state_shapes)) * KV_CACHES["fp32"]

    def rope_kind(self, layer: int) -> str | None:
        """Return which rotation a layer has: "global", "local" (of `rope_local_theta`), or None."""
        if self.position != "rope" or layer in self.layers_without_rope or not self.attends(layer):
            return None
        return "local" if self.slides(layer) and self.rope_local_theta is not None else "global"

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
        return layer if layer <= self.last_kept_layer else self.sources_of_keys[self.slides(layer)]

    @property
    def last_kept_layer(self) -> int:
        """The last layer of which a cache keeps something: those behind it look at what it has of earlier ones."""
        return self.num_hidden_layers - self.num_kv_shared_layers - 1

    @cached_property
    def sources_of_keys(self) -> dict[bool, int]:
        """Name the last layer with keys and values of its own, of those that have a window and of those that do not."""
        return {self.slides(layer): layer for layer in range(self.last_kept_layer + 1)}

    def head_size(self, layer: int) -> int:
        """Return the size of a head in a layer with attention."""
        return self.head_dim if self.slides(layer) else self.global_head_dim or self.head_dim

    def query_heads(self, layer: int) -> int:
        """Return how many heads of queries a layer with attention has."""
        own = None if self.slides(layer) else self.num_global_attention_heads
        return own or self.num_attention_heads

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
