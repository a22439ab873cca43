"""The tensors of a checkpoint: which ones a ModelConfig has, by canonical name, and their shapes."""

from __future__ import annotations

import functools

from edgelm.architecture.layer_features import CROSS_NORMS, EXPERT_NORMS
from edgelm.architecture.relative_positions import distances_name
from edgelm.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(config: ModelConfig) -> Shapes:
    """List every tensor in file order: the embedding, the encoder's if there is one, the decoder's, the head."""
    return dict(_tensor_shapes(config))


# An export asks for each of hundreds of tensors: of 30 layers, a second in all; of thousands of experts, minutes.
@functools.lru_cache(maxsize=4)
def _tensor_shapes(config: ModelConfig) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    if config.encoder is not None:
        _Stack(config.encoder, "model.encoder", shapes).add()
    source = None if config.encoder is None else config.encoder.hidden_size
    _Stack(config, config.decoder_name, shapes).add(source)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    if config.lm_head_bias:
        shapes["lm_head.bias"] = (config.vocab_size,)
    return shapes


class _Stack:
    """The tensors between the embedding and the head; `name` is what theirs begin with."""

    def __init__(self, config: ModelConfig, name: str, shapes: Shapes) -> None:
        self._config, self._name, self._shapes = config, name, shapes

    def add(self, source: int | None = None) -> None:
        """Add them all; source: the size of what cross-attention looks at."""
        config, D = self._config, self._config.hidden_size
        if config.own_embedding:
            self._shapes[f"{self._name}.embed_tokens.weight"] = (config.vocab_size, D)
        if config.position == "learned":
            self._shapes[f"{self._name}.embed_positions.weight"] = (config.max_position_embeddings, D)
        if config.position == "relative" and not config.relative_attention_per_layer:
            self._distances(0)
        if config.embedding_norm:
            self._norm(f"{self._name}.embed_norm", D)
        if config.hidden_size_per_layer_input:
            self._shapes[f"{self._name}.embed_tokens_per_layer.weight"] = (
                config.per_layer_rows,
                config.per_layer_width,
            )
            self._linear(f"{self._name}.per_layer_model_projection", config.per_layer_width, D, False)
            self._norm(f"{self._name}.per_layer_projection_norm", config.hidden_size_per_layer_input)
        for part in ("altup_projections", "altup_unembed_projections"):
            for stream in range(config.altup_num_inputs - 1):
                self._linear(f"{self._name}.{part}.{stream}", D, D, False)
        for i in range(config.num_hidden_layers):
            self._layer(i, f"{self._name}.layers.{i}", source)
        if config.final_norm:
            self._norm(f"{self._name}.norm", D)
        if config.head_transform:
            self._linear(f"{self._name}.head_dense", D, D, False)
            self._norm(f"{self._name}.head_norm", D)

    def _layer(self, i: int, layer: str, source: int | None) -> None:
        config, D = self._config, self._config.hidden_size
        before_attention, after_attention, before_mlp, after_mlp = (
            name and f"{layer}.{name}" for name in config.block_norms(i)
        )
        if config.layer_scalar:
            self._shapes[f"{layer}.layer_scalar"] = (1,)
        self._norm(before_attention, D)
        if config.is_conv(i):
            self._convolution(f"{layer}.conv")
        elif config.kind(i) == "linear_attention":
            self._linear_attention(f"{layer}.linear_attn")
        elif config.kind(i) == "mamba":
            self._mamba(f"{layer}.mamba")
        if config.attends(i):
            self._self_attention(f"{layer}.self_attn", i)
        if config.has_mamba2(i):
            self._mamba2(f"{layer}.mamba")
        if config.laurel_rank:
            self._linear(f"{layer}.laurel.linear_left", config.laurel_rank, D, False)
            self._linear(f"{layer}.laurel.linear_right", D, config.laurel_rank, False)
            self._norm(f"{layer}.laurel.post_laurel_norm", D)
        self._norm(after_attention, D)
        if source is not None:
            before, after = (name and f"{layer}.{name}" for name in CROSS_NORMS[config.norm_placement])
            self._norm(before, D)
            self._attention(f"{layer}.encoder_attn", i, source)
            self._norm(after, D)
        self._norm(before_mlp, D)
        if config.has_experts(i):
            self._experts(f"{layer}.mlp", i)
        elif config.has_feed_forward(i):
            self._feed_forward(f"{layer}.mlp", config.feed_forward_size(i))
        self._norm(after_mlp, D)
        if config.hidden_size_per_layer_input:
            self._linear(f"{layer}.per_layer_input_gate", config.hidden_size_per_layer_input, D, False)
            self._linear(f"{layer}.per_layer_projection", D, config.hidden_size_per_layer_input, False)
            self._norm(f"{layer}.post_per_layer_input_norm", D)
        if config.altup_num_inputs > 1:
            self._altup(f"{layer}.altup", config.altup_num_inputs)

    def _altup(self, name: str, streams: int) -> None:
        D = self._config.hidden_size
        if self._config.altup_correct_scale:
            self._shapes[f"{name}.correct_output_scale"] = (D,)
        self._norm(f"{name}.router_norm", D)
        self._linear(f"{name}.modality_router", streams, D, False)
        self._linear(f"{name}.prediction_coefs", streams**2, streams, False)
        self._linear(f"{name}.correction_coefs", streams, streams, False)

    def _convolution(self, name: str) -> None:
        config, D = self._config, self._config.hidden_size
        self._linear(f"{name}.in_proj", 3 * D, D, config.conv_bias)
        self._shapes[f"{name}.conv.weight"] = (D, 1, config.conv_L_cache or 0)
        if config.conv_bias:
            self._shapes[f"{name}.conv.bias"] = (D,)
        self._linear(f"{name}.out_proj", D, D, config.conv_bias)

    def _linear_attention(self, name: str) -> None:
        config, D = self._config, self._config.hidden_size
        heads, width = config.linear_num_value_heads or 0, config.linear_value_head_dim or 0
        self._shapes[f"{name}.A_log"] = self._shapes[f"{name}.dt_bias"] = (heads,)
        self._linear(f"{name}.in_proj_qkv", config.linear_channels, D, False)
        self._linear(f"{name}.in_proj_z", heads * width, D, False)
        self._linear(f"{name}.in_proj_b", heads, D, False)
        self._linear(f"{name}.in_proj_a", heads, D, False)
        self._shapes[f"{name}.conv1d.weight"] = (config.linear_channels, 1, config.linear_conv_kernel_dim or 0)
        self._shapes[f"{name}.norm.weight"] = (width,)
        self._linear(f"{name}.out_proj", D, heads * width, False)

    def _mamba(self, name: str) -> None:
        config, D, channels = self._config, self._config.hidden_size, self._config.linear_channels
        rank, keys = config.mamba_dt_rank or 0, config.linear_key_head_dim or 0
        self._shapes |= {f"{name}.A_log": (channels, keys), f"{name}.D": (channels,), f"{name}.dt_bias": (channels,)}
        for part in ("x", "z"):
            self._linear(f"{name}.in_proj_{part}", channels, D, False)
        self._shapes[f"{name}.conv1d.weight"] = (channels, 1, config.linear_conv_kernel_dim or 0)
        self._shapes[f"{name}.conv1d.bias"] = (channels,)
        self._linear(f"{name}.x_proj", rank + 2 * keys, channels, False)
        if config.mamba_rms_norm:
            for part, size in (("dt", rank), ("b", keys), ("c", keys)):
                self._norm(f"{name}.{part}_layernorm", size)
        self._linear(f"{name}.dt_proj", channels, rank, False)
        self._linear(f"{name}.out_proj", D, channels, False)

    def _mamba2(self, name: str) -> None:
        config, D, channels = self._config, self._config.hidden_size, self._config.linear_channels
        heads, width = config.linear_num_value_heads or 0, config.linear_value_head_dim or 0
        for part in ("A_log", "D", "dt_bias"):
            self._shapes[f"{name}.{part}"] = (heads,)
        for part, rows in (("z", heads * width), ("xbc", channels), ("dt", heads)):
            self._linear(f"{name}.in_proj_{part}", rows, D, False)
        self._shapes[f"{name}.conv1d.weight"] = (channels, 1, config.linear_conv_kernel_dim or 0)
        self._shapes[f"{name}.conv1d.bias"] = (channels,)
        if config.mamba_rms_norm:
            self._shapes[f"{name}.norm.weight"] = (heads * width,)
        self._linear(f"{name}.out_proj", D, heads * width, False)

    def _self_attention(self, name: str, i: int) -> None:
        config, H = self._config, self._config.head_size(i)
        if config.attention_sinks:
            self._shapes[f"{name}.sinks"] = (config.query_heads(i),)
        if config.kv_lora_rank is not None:
            self._latent_attention(name, config.kv_lora_rank)
            return
        self._attention(name, i)
        if config.position == "relative" and config.relative_attention_per_layer:
            self._distances(i)
        if config.attention_output_gate:
            rows = config.query_heads(i) * (1 if config.attention_gate_per_head else H)
            self._linear(f"{name}.gate_proj", rows, config.hidden_size, config.attention_bias)
        if config.qk_norm and config.qk_norm_weights:
            self._norm_of_heads(f"{name}.q_norm", config.query_heads(i), H)
            if config.keys_of(i) == i:
                self._norm_of_heads(f"{name}.k_norm", config.kv_heads(i), H)
        if config.sub_norms:
            self._norm(f"{name}.attn_sub_norm", config.query_heads(i) * H)

    def _distances(self, i: int) -> None:
        rows, heads = self._config.relative_attention_num_buckets, self._config.num_attention_heads
        self._shapes[distances_name(self._config, self._name, i)] = (rows, heads)

    def _norm_of_heads(self, name: str, heads: int, head_dim: int) -> None:
        scope = self._config.qk_norm_scope
        if scope == "own_head":  # without a bias
            self._shapes[f"{name}.weight"] = (heads * head_dim,)
        else:
            self._norm(name, heads * head_dim if scope == "projection" else head_dim)

    def _latent_attention(self, name: str, rank: int) -> None:
        config, D, N = self._config, self._config.hidden_size, self._config.num_attention_heads
        nope, values = config.qk_nope_head_dim or 0, config.v_head_dim or 0
        rows = N * (nope + config.rotary_dim)
        if config.q_lora_rank is None:
            self._linear(f"{name}.q_proj", rows, D, False)
        else:
            self._linear(f"{name}.q_a_proj", config.q_lora_rank, D, False)
            self._norm(f"{name}.q_a_layernorm", config.q_lora_rank)
            self._linear(f"{name}.q_b_proj", rows, config.q_lora_rank, False)
        self._linear(f"{name}.kv_a_proj_with_mqa", config.head_dim, D, False)
        self._norm(f"{name}.kv_a_layernorm", rank)
        for head in range(N):
            self._linear(f"{name}.heads.{head}.k_b_proj", rank, nope, False)
            self._linear(f"{name}.heads.{head}.v_b_proj", values, rank, False)
        self._linear(f"{name}.o_proj", D, N * values, config.attention_output_bias)

    def _attention(self, name: str, i: int, source: int | None = None) -> None:
        config, D = self._config, self._config.hidden_size
        looked_at = D if source is None else source
        NH, KH = (heads * config.head_size(i) for heads in (config.query_heads(i), config.kv_heads(i)))
        self._linear(f"{name}.q_proj", NH, D, config.attention_bias)
        if config.keys_of(i) == i:
            self._linear(f"{name}.k_proj", KH, looked_at, config.attention_bias)
            if not config.keys_are_values(i):
                self._linear(f"{name}.v_proj", KH, looked_at, config.attention_bias)
        self._linear(f"{name}.o_proj", D, NH, config.attention_output_bias)

    def _experts(self, name: str, i: int) -> None:
        config, D, E = self._config, self._config.hidden_size, self._config.num_experts
        self._linear(f"{name}.gate", E, D, config.router_bias)
        if config.expert_scales:
            self._shapes[f"{name}.gate.per_expert_scale"] = (E,)
        if config.expert_choice_bias:
            self._shapes[f"{name}.gate.e_score_correction_bias"] = (E,)
        for expert in range(E):
            self._feed_forward(f"{name}.experts.{expert}", config.expert_size)
        if config.shared_expert_intermediate_size:
            self._feed_forward(f"{name}.shared_experts", config.shared_expert_size(i))
        if config.shared_expert_gate:
            self._linear(f"{name}.shared_expert_gate", 1, D, False)
        if config.expert_norms:
            for norm in EXPERT_NORMS:
                self._norm(f"{name}.{norm}", D)

    def _feed_forward(self, name: str, size: int) -> None:
        config, D = self._config, self._config.hidden_size
        if config.mlp_gated:
            self._linear(f"{name}.gate_proj", size, D, config.mlp_bias)
        self._linear(f"{name}.up_proj", size, D, config.mlp_bias)
        self._linear(f"{name}.down_proj", D, size, config.mlp_bias)
        if config.sub_norms:
            self._norm(f"{name}.ffn_sub_norm", size)
        if config.hidden_act == "xielu":
            self._shapes |= {f"{name}.act_fn.alpha_{side}": (1,) for side in "pn"}

    def _linear(self, name: str, rows: int, columns: int, bias: bool) -> None:
        self._shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            self._shapes[f"{name}.bias"] = (rows,)

    def _norm(self, name: str | None, size: int) -> None:
        if name is not None and not self._config.norm.endswith("_plain"):
            self._shapes[f"{name}.weight"] = (size,)
        if name is not None and self._config.norm in ("layer", "layer_offset"):
            self._shapes[f"{name}.bias"] = (size,)
