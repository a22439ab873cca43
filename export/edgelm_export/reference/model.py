"""The forward pass in plain numpy: the oracle that exported packages are checked against.

It shares no code with the ONNX graph or the PyTorch model, and follows ModelConfig feature by feature.
Shapes: T tokens, S keys, D hidden, W what goes from layer to layer (wide_stream.py; of most models D), F intermediate,
E experts, N query heads, K kv heads, H head dim, R its part that turns, V vocabulary, L layers, P features of a layer's
own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.layer_features import CROSS_NORMS
from edgelm.architecture.relative_positions import alibi_slopes, distances_name, relative_buckets
from edgelm.architecture.rope import cos_sin_tables, query_factors, sinusoidal_table
from edgelm.config import SINUSOIDS, SUPPRESSED_LOGIT, ModelConfig
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.tensor_map import EMBEDDING, ENCODER_EMBEDDING, PER_LAYER_EMBEDDING, head_name
from edgelm_export.reference.activations import ACTIVATIONS
from edgelm_export.reference.altup import corrected, merged, predicted, spread, with_laurel
from edgelm_export.reference.feed_forward import experts, feed_forward
from edgelm_export.reference.latent_attention import latent_keys, latent_queries, latent_values
from edgelm_export.reference.linear_attention import linear_attention, mamba, mamba2, short_convolution
from edgelm_export.reference.rotation import rotate, rows_of_positions
from edgelm_export.reference.weights import Array, Weights, linear, norm, over_rms, rows_of_sequences
from edgelm_export.reference.wide_stream import WideStream

# cos and sin of each position, for each kind of layer (ModelConfig.rope_kind).
Tables = Mapping[str, tuple[Array, Array]]

# Queries meet the keys in blocks: 512 x 8192 scores of one head take 16 MB.
_QUERY_BLOCK = 512
_DISTANCES = "relative_attention_bias.weight"  # what a layer reads: its stack's, or its own


def reference_logits(
    checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], sources: Sequence[Sequence[int]] = ()
) -> Iterator[Array]:
    """Yield the logits [T, V] of each sequence of token ids, in float32.

    sources: with an encoder, what it reads for each sequence. Each layer is read once, for all sequences, and dropped:
    memory is one layer, the activations, and the logits of one sequence.
    """
    config = checkpoint.config
    tables = position_tables(config, sequences)
    if config.encoder is not None:
        hidden = _read_and_answered(checkpoint, sequences, sources, tables)
    else:
        lengths = [len(ids) for ids in sequences]
        hidden_TD = np.concatenate(embed(checkpoint, sequences))  # one product of all rows is quicker than one of each
        for layer in range(config.num_hidden_layers):
            hidden_TD = run_layer(config, layer, layer_weights(checkpoint, layer), hidden_TD, tables, lengths=lengths)
        hidden = np.split(hidden_TD, np.cumsum(lengths)[:-1])
    yield from head_logits(checkpoint, hidden)


def _read_and_answered(
    checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], sources: Sequence[Sequence[int]], tables: Tables
) -> list[Array]:
    """Return what leaves the decoder's last layer for each sequence, behind what the encoder makes of its source."""
    config = checkpoint.config
    assert config.encoder is not None  # the caller has looked
    read = _read(checkpoint, config.encoder, sources)
    hidden = embed(checkpoint, sequences)
    for layer in range(config.num_hidden_layers):
        weights = layer_weights(checkpoint, layer)
        hidden = [
            run_layer(config, layer, weights, hidden_TD, tables, read_SD=read_SD)
            for hidden_TD, read_SD in zip(hidden, read, strict=True)
        ]
    return hidden


def _read(checkpoint: Checkpoint, encoder: ModelConfig, sources: Sequence[Sequence[int]]) -> list[Array]:
    """Return what the encoder makes of each source, [S, D]."""
    hidden, tables = embed(checkpoint, sources, encoder), position_tables(encoder, sources)
    for layer in range(encoder.num_hidden_layers):
        weights = layer_weights(checkpoint, layer, encoder)
        hidden = [run_layer(encoder, layer, weights, hidden_SD, tables, both_ways=True) for hidden_SD in hidden]
    return last_normed(checkpoint, hidden, encoder)


def _stack_name(checkpoint: Checkpoint, config: ModelConfig) -> str:
    return "model.encoder" if config is checkpoint.config.encoder else checkpoint.config.decoder_name


def position_tables(config: ModelConfig, sequences: Sequence[Sequence[int]]) -> Tables:
    """Return what `run_layer` rotates by: cosines and sines for the longest sequence, for each kind of layer."""
    longest = max((len(ids) for ids in sequences), default=0)
    kinds = {config.rope_kind(layer) for layer in range(config.num_hidden_layers)}
    return {kind: cos_sin_tables(config, longest, kind) for kind in kinds if kind is not None}


def embed(checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], config: ModelConfig | None = None) -> list[Array]:
    """Return what enters the first layer of the decoder, or of the encoder where `config` is its; [T, W] for each
    sequence of token ids.
    """
    config = config or checkpoint.config
    stack = _stack_name(checkpoint, config)
    longest = max((len(ids) for ids in sequences), default=0)
    embedding_VD = checkpoint.tensor(ENCODER_EMBEDDING if config.own_embedding else EMBEDDING)
    multiplier = np.float32(config.embedding_multiplier)
    hidden = [embedding_VD[np.asarray(ids, np.int64)] * multiplier for ids in sequences]
    del embedding_VD
    if config.embedding_norm_first:
        hidden = _normed_embedding(checkpoint, config, hidden)
    if config.position in ("learned", *SINUSOIDS):
        if config.position == "learned":
            positions_TD = checkpoint.tensor(f"{stack}.embed_positions.weight")
        else:
            positions_TD = sinusoidal_table(config, longest)
        hidden = [hidden_TD + positions_TD[: len(hidden_TD)] for hidden_TD in hidden]
    if config.embedding_norm and not config.embedding_norm_first:
        hidden = _normed_embedding(checkpoint, config, hidden)
    own = _features_of_layers(checkpoint, sequences, hidden)
    if config.altup_num_inputs > 1:
        hidden = [spread(hidden_TD, _stream_projections(checkpoint, "altup_projections")) for hidden_TD in hidden]
    return [WideStream(config).begun(*pair) for pair in zip(hidden, own, strict=True)]


def _normed_embedding(checkpoint: Checkpoint, config: ModelConfig, hidden: Sequence[Array]) -> list[Array]:
    weights = _weights(checkpoint, f"{_stack_name(checkpoint, config)}.embed_norm.")
    return [norm(config, weights, "", hidden_TD) for hidden_TD in hidden]


def _features_of_layers(
    checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], hidden: Sequence[Array]
) -> list[Array | None]:
    """Return the features [T, L * P] that layers have of the tokens beside the stream; None where they have none."""
    config = checkpoint.config
    P = config.hidden_size_per_layer_input
    if not P:
        return [None] * len(sequences)
    embedded = looked_up(checkpoint, PER_LAYER_EMBEDDING, sequences)
    weights = _weights(checkpoint, "model.per_layer_")
    own: list[Array | None] = []
    for hidden_TD, embedded_TF in zip(hidden, embedded, strict=True):
        projected_TF = linear(weights, "model_projection", hidden_TD) * np.float32(config.hidden_size**-0.5)
        normed_TLP = norm(config, weights, "projection_norm.", projected_TF.reshape(len(hidden_TD), -1, P))
        both_TF = normed_TLP.reshape(embedded_TF.shape) + embedded_TF * np.float32(P**0.5)
        own.append(both_TF * np.float32(2**-0.5))
    return own


def looked_up(checkpoint: Checkpoint, name: str, sequences: Sequence[Sequence[int]]) -> list[Array]:
    """Return the rows of token ids in a table, which is not read as a whole: it may be as large as all the rest."""
    if name == PER_LAYER_EMBEDDING:
        rows = checkpoint.config.per_layer_rows
        sequences = [[id_ if id_ < rows else 0 for id_ in each] for each in sequences]
    ids = np.unique(np.concatenate([np.asarray(each, np.int64) for each in sequences]))
    rows_UF = np.concatenate([checkpoint.rows(name, id_, id_ + 1) for id_ in ids.tolist()])
    return [rows_UF[np.searchsorted(ids, np.asarray(each, np.int64))] for each in sequences]


def layer_weights(checkpoint: Checkpoint, layer: int, config: ModelConfig | None = None) -> Weights:
    """Read the tensors of one layer of a stack, named without their prefix, such as "self_attn.q_proj.weight"."""
    config = config or checkpoint.config
    stack = _stack_name(checkpoint, config)
    weights = dict(_weights(checkpoint, f"{stack}.layers.{layer}."))
    if config.position == "relative":
        weights[_DISTANCES] = checkpoint.tensor(distances_name(config, stack, layer))
    return weights


def head_logits(
    checkpoint: Checkpoint, hidden: Sequence[Array], product: Callable[[Array], Array] | None = None
) -> Iterator[Array]:
    """Yield the logits [T, V] of what left the last layer, one sequence after the other.

    product: by the head's weights; None is that of the checkpoint.
    """
    config = checkpoint.config
    product = product or _product_by(checkpoint.tensor(head_name(config)))
    bias_V = checkpoint.tensor("lm_head.bias") if config.lm_head_bias else np.float32(0)
    for hidden_TD in last_normed(checkpoint, hidden):
        logits_TV = (product(hidden_TD) + bias_V) / np.float32(config.logits_scaling)
        logits_TV = _soft_cap(logits_TV, config.final_logit_softcapping)
        logits_TV[:, list(config.suppressed_token_ids)] = SUPPRESSED_LOGIT
        yield logits_TV


def _product_by(head_VD: Array) -> Callable[[Array], Array]:
    return lambda read_TD: read_TD @ head_VD.T


def log_softmax(logits_TV: Array) -> NDArray[np.float64]:
    """Return log-probabilities, in float64: divergences are smaller than float32's rounding of one."""
    shifted = logits_TV.astype(np.float64) - logits_TV.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def last_normed(checkpoint: Checkpoint, hidden: Sequence[Array], config: ModelConfig | None = None) -> list[Array]:
    """Norm what left the last layer [T, D], where a norm is there, and transform it where it is: what the head reads.

    config: that of an encoder, for what left its own last layer.
    """
    config = config or checkpoint.config
    if config.altup_num_inputs > 1:
        projections, wide = _stream_projections(checkpoint, "altup_unembed_projections"), WideStream(config)
        hidden = [merged(wide.streams(hidden_TW), projections) for hidden_TW in hidden]
    hidden = [hidden_TW[:, : config.hidden_size] for hidden_TW in hidden]
    stack = _stack_name(checkpoint, config)
    if config.final_norm:
        weights = _weights(checkpoint, f"{stack}.norm.")
        hidden = [norm(config, weights, "", hidden_TD) for hidden_TD in hidden]
    if config.head_transform:
        weights = _weights(checkpoint, f"{stack}.head_")
        bent = [ACTIVATIONS[config.hidden_act](linear(weights, "dense", hidden_TD)) for hidden_TD in hidden]
        hidden = [norm(config, weights, "norm.", bent_TD) for bent_TD in bent]
    return hidden


def _stream_projections(checkpoint: Checkpoint, name: str) -> list[Array]:
    return list(_weights(checkpoint, f"model.{name}.").values())


def _weights(checkpoint: Checkpoint, prefix: str) -> Weights:
    names = [name for name in checkpoint.config.tensor_shapes() if name.startswith(prefix)]
    return {name.removeprefix(prefix): checkpoint.tensor(name) for name in names}


# What stands in the place of attention in the layers of a kind, or beside it.
_BESIDE_ATTENTION = {
    "conv": short_convolution, "linear_attention": linear_attention, "mamba": mamba, "mamba2": mamba2, "hybrid": mamba2,
}  # fmt: skip


@dataclass(frozen=True)
class _Layer:
    """A layer of a stack, by its number, and its weights."""

    config: ModelConfig
    number: int
    weights: Weights

    def normed(self, name: str | None, x: Array) -> Array:
        """Norm the last dimension, where a norm is there."""
        return x if name is None else norm(self.config, self.weights, f"{name}.", x)

    def added(self, x_TD: Array, part_TD: Array, name: str | None) -> Array:
        """Add what a part of the layer makes to the residual stream, with the norm behind that part."""
        multiplier = np.float32(self.config.residual_multiplier)
        if self.config.norm_placement == "residual":
            return self.normed(name, x_TD + multiplier * part_TD)
        return x_TD + multiplier * self.normed(name, part_TD)

    def fed_forward(self, hidden_TD: Array, attended_TD: Array) -> Array:
        """Return what is behind the feed-forward. hidden_TD, attended_TD: what is before and behind attention."""
        config, (_, _, before, after) = self.config, self.config.block_norms(self.number)
        input_TD = hidden_TD if config.parallel_residual else attended_TD
        if config.has_experts(self.number):
            made_TD = experts(config, self.weights, self.normed(before, input_TD), input_TD)
        elif config.has_feed_forward(self.number):
            cutoff = config.gate_cutoff(self.number)
            made_TD = feed_forward(config, self.weights, self.normed(before, input_TD), "mlp", cutoff)
        else:
            return attended_TD
        return self.added(attended_TD, made_TD, after)


def run_layer(
    config: ModelConfig,
    layer: int,
    weights: Weights,
    hidden_TW: Array,
    tables: Tables,
    *,
    read_SD: Array | None = None,
    both_ways: bool = False,
    lengths: Sequence[int] = (),
) -> Array:
    """Return what leaves layer number `layer` for what enters it, both [T, W].

    read_SD: what the encoder made of a source. both_ways: the layer is an encoder's, and sees later tokens too.
    lengths: of the sequences that stand behind each other in T; nothing is one sequence.
    """
    this, lengths = _Layer(config, layer, weights), lengths or (len(hidden_TW),)
    before_attention, after_attention, _, _ = config.block_norms(layer)
    wide, kept = WideStream(config), list[Array]()
    hidden_TD, has_streams = hidden_TW[:, : wide.D], config.altup_num_inputs > 1
    if has_streams:
        streams_TAD = predicted(config, weights, wide.streams(hidden_TW))
        hidden_TD = streams_TAD[:, 0]
    attended_TD, input_TD, found = hidden_TD, this.normed(before_attention, hidden_TD), list[Array]()
    if config.attends(layer):
        source = config.keys_of(layer)
        given = None if source == layer else wide.kept(hidden_TW, source)
        looked_TD, *kept = _attention(this, input_TD, tables, both_ways, lengths, given)
        found.append(looked_TD)
    if beside := _BESIDE_ATTENTION.get(config.kind(layer) or ""):
        found.append(beside(config, weights, input_TD, lengths))
    if found:
        attended_TD = this.added(hidden_TD, sum(found[1:], found[0]), after_attention)
    if config.laurel_rank:
        attended_TD = with_laurel(config, weights, attended_TD, input_TD)
    if read_SD is not None:
        before_cross, after_cross = CROSS_NORMS[config.norm_placement]
        looked_TD = _cross_attention(config, weights, this.normed(before_cross, attended_TD), read_SD)
        attended_TD = this.added(attended_TD, looked_TD, after_cross)
    hidden_TD = this.fed_forward(hidden_TD, attended_TD)
    if has_streams:
        streams_TAD, hidden_TD = corrected(config, weights, streams_TAD, hidden_TD)
    if config.hidden_size_per_layer_input:
        gate_TP = ACTIVATIONS[config.hidden_act](linear(weights, "per_layer_input_gate", hidden_TD))
        part_TD = linear(weights, "per_layer_projection", gate_TP * wide.own(hidden_TW, layer))
        part_TD = this.normed("post_per_layer_input_norm", part_TD)
        hidden_TD = hidden_TD + part_TD
    if has_streams:
        streams_TAD[:, 1:] += part_TD[:, None]
        hidden_TD = streams_TAD.reshape(len(part_TD), -1)
    if config.layer_scalar:
        hidden_TD = hidden_TD * weights["layer_scalar"]
    return wide.followed(hidden_TW, hidden_TD, kept, layer)


def _soft_cap(x: Array, cap: float | None) -> Array:
    return x if cap is None else np.asarray(np.float32(cap) * np.tanh(x / np.float32(cap)))


def _cross_attention(config: ModelConfig, weights: Weights, hidden_TD: Array, read_SD: Array) -> Array:
    T, N, H = len(hidden_TD), config.num_attention_heads, config.head_dim
    sharing = N // config.num_key_value_heads
    q_TD = linear(weights, "encoder_attn.q_proj", hidden_TD)
    k_SD, v_SD = (linear(weights, f"encoder_attn.{part}_proj", read_SD) for part in "kv")
    q_NTH = q_TD.reshape(T, N, H).swapaxes(0, 1)
    k_NSH, v_NSH = (x.reshape(len(x), -1, H).swapaxes(0, 1).repeat(sharing, axis=0) for x in (k_SD, v_SD))
    scores_NTS = q_NTH @ k_NSH.swapaxes(1, 2) * np.float32(config.attention_scale)
    scores_NTS = _soft_cap(scores_NTS, config.attn_logit_softcapping)
    scores_NTS = np.exp(scores_NTS - scores_NTS.max(-1, keepdims=True))
    out_NTH = scores_NTS @ v_NSH / scores_NTS.sum(-1, keepdims=True)
    return linear(weights, "encoder_attn.o_proj", out_NTH.swapaxes(0, 1).reshape(T, N * H))


def _attention(
    this: _Layer,
    hidden_TD: Array,
    tables: Tables,
    both_ways: bool,
    lengths: Sequence[int],
    given: tuple[Array, Array] | None,
) -> tuple[Array, Array, Array]:
    """Return what the queries gather, projected [T, D], and the keys, turned, and values that they looked at [K, T, H].

    given: those of another layer, at which this one looks.
    """
    config, layer, weights = this.config, this.number, this.weights
    T, H = len(hidden_TD), config.head_size(layer)
    kind, scope = config.rope_kind(layer), config.qk_norm_scope if config.qk_norm else ""

    def normed(x: Array, name: str) -> Array:
        if scope == "own_head":
            centred = x if config.norm == "rms" else x - x.mean(-1, keepdims=True)
            weight_N1H = weights[f"self_attn.{name}.weight"].reshape(len(x), 1, H)
            return over_rms(centred, config.norm_eps) * weight_N1H
        return this.normed(f"self_attn.{name}", x) if config.qk_norm_weights else over_rms(x, config.norm_eps)

    def heads(x_TD: Array, name: str) -> Array:
        """Return heads [N or K, T, H], normed and turned."""
        x_TD = normed(x_TD, name) if scope == "projection" else x_TD
        x_NTH = x_TD.reshape(T, -1, H).swapaxes(0, 1)
        x_NTH = normed(x_NTH, name) if scope in ("head", "own_head") else x_NTH
        if kind is not None:
            x_NTH = rotate(x_NTH, *(rows_of_positions(config, kind, table, lengths) for table in tables[kind]))
        return normed(x_NTH, name) if scope == "turned_head" else x_NTH

    is_latent = config.kv_lora_rank is not None
    q_TD = latent_queries(config, weights, hidden_TD) if is_latent else linear(weights, "self_attn.q_proj", hidden_TD)
    q_NTH = heads(q_TD, "q_norm")
    if kind is not None and config.llama_4_scaling_beta is not None:
        places_T = np.concatenate([np.arange(length) for length in lengths])
        q_NTH = q_NTH * query_factors(config, places_T)[:, None]
    if given is not None:
        k_KSH, v_KSH = given
    elif is_latent:
        k_KSH = v_KSH = heads(latent_keys(config, weights, hidden_TD), "")
    else:
        k_SD = linear(weights, "self_attn.k_proj", hidden_TD)
        v_SD = k_SD if config.keys_are_values(layer) else linear(weights, "self_attn.v_proj", hidden_TD)
        k_KSH, v_KSH = heads(k_SD, "k_norm"), v_SD.reshape(T, -1, H).swapaxes(0, 1)
        if config.v_norm:
            v_KSH = over_rms(v_KSH, config.norm_eps)
    out_TD = np.empty_like(q_TD)
    for own in rows_of_sequences(lengths):
        out_TD[own] = _attended(this, q_NTH[:, own], k_KSH[:, own], v_KSH[:, own], both_ways)
    if is_latent:
        out_TD = latent_values(config, weights, out_TD)
    if config.attention_output_gate:
        projected_TD = linear(weights, "self_attn.gate_proj", hidden_TD)
        is_sigmoid = config.attention_gate_act == "sigmoid"
        gate_TD = 1 / (1 + np.exp(-projected_TD)) if is_sigmoid else np.logaddexp(0, projected_TD)
        out_TD *= np.repeat(gate_TD, out_TD.shape[1] // gate_TD.shape[1], axis=1)
    if config.sub_norms:
        out_TD = this.normed("self_attn.attn_sub_norm", out_TD)
    output_TD = linear(weights, "self_attn.o_proj", out_TD) * np.float32(config.multipliers.attention_out)
    return output_TD, k_KSH, v_KSH


def _attended(this: _Layer, q_NTH: Array, k_KSH: Array, v_KSH: Array, both_ways: bool) -> Array:
    """Return what the queries of one sequence gather, [T, N * H]."""
    config, weights = this.config, this.weights
    N, T, H = q_NTH.shape
    K = len(k_KSH)
    window, scale = config.window(this.number) or T, np.float32(config.attention_scale)
    out_TNH = np.empty((T, N, H), np.float32)
    for start in range(0, T, _QUERY_BLOCK):
        end = min(start + _QUERY_BLOCK, T)
        seen = T if both_ways else end
        distances_TS = np.arange(start, end)[:, None] - np.arange(seen)
        unseen_TS = np.abs(distances_TS) >= window if both_ways else (distances_TS < 0) | (distances_TS >= window)
        buckets_TS = None
        if config.position == "relative":
            buckets_TS = relative_buckets(config, -distances_TS, both_ways=both_ways)
        for n in range(N):
            scores_TS = q_NTH[n, start:end] @ k_KSH[n * K // N, :seen].T
            scores_TS *= scale
            scores_TS = _soft_cap(scores_TS, config.attn_logit_softcapping)
            if buckets_TS is not None:
                scores_TS += weights[_DISTANCES][buckets_TS, n]
            if config.position == "alibi":
                scores_TS -= alibi_slopes(config)[n] * distances_TS
            np.copyto(scores_TS, -np.inf, where=unseen_TS)
            sink = weights["self_attn.sinks"][n] if config.attention_sinks else np.float32(-np.inf)
            largest_T1 = np.maximum(scores_TS.max(-1, keepdims=True), sink)
            scores_TS -= largest_T1
            np.exp(scores_TS, out=scores_TS)
            sums_T1 = scores_TS.sum(-1, keepdims=True) + np.exp(sink - largest_T1)
            out_TNH[start:end, n] = scores_TS @ v_KSH[n * K // N, :seen] / sums_T1
    return out_TNH.reshape(T, N * H)
