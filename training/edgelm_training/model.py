"""The Transformer: a decoder that reads token ids and gives, at every position, the logits of the next token.

`edgelm.config.ModelConfig` describes it; every branch below is one of its fields. The graph that ONNX Runtime runs is
built by edgelm_export/decoder.py from the same fields in the same order, and this file is its oracle: it keeps
no cache, fuses nothing, and computes the whole prefix for every new token.

    ids ─► embeddings ─► block ─► … ─► block ─► norm ─► head ─► logits
                         block: x + attention(norm(x)), then x + feed_forward(norm(x))

A model with an encoder has two such stacks, and the decoder's blocks look at the encoder's result.

Shapes are suffixes: B batch, T tokens (each is a query and a key), S tokens of a source, D hidden size, N query heads,
K key-value heads, H head dimension, R its part that turns, F feed-forward size, E experts, A streams, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from edgelm.architecture import rope
from edgelm.architecture.layer_features import CROSS_NORMS
from edgelm.architecture.relative_positions import alibi_slopes, relative_buckets
from edgelm.config import SINUSOIDS, ModelConfig
from edgelm.errors import ConfigError, ContextLengthError, TrainingError
from edgelm_training.layers.activations import ACTIVATIONS
from edgelm_training.layers.altup import AltUp, Laurel, merged, spread, stream_projections
from edgelm_training.layers.attention import (
    Attention,
    Distances,
    Kept,
    make_norm,
    scaled,
    scores_of_distances,
    soft_cap,
    unseen,
)
from edgelm_training.layers.convolution import Convolution
from edgelm_training.layers.feed_forward import Experts, FeedForward
from edgelm_training.layers.latent_attention import LatentAttention
from edgelm_training.layers.linear_attention import LinearAttention
from edgelm_training.layers.mamba import Mamba
from edgelm_training.layers.mamba2 import Mamba2
from edgelm_training.layers.view import Rotary, Rotation, SourceView, View, check_length

# What the encoder made of a source [B, S, D], and which of it is no padding [B, 1, 1, S]; None: all.
Memory = tuple[Tensor, Tensor | None]

# Standard deviation of a fresh weight, as in GPT-2.
INITIAL_STD = 0.02


class Transformer(nn.Module):
    """Compute next-token logits with the model that a ModelConfig describes.

    Fresh weights are random: normal with a standard deviation of 0.02, less where a block adds to the residual stream.
    The same `torch.manual_seed` gives the same ones. `state_dict()` has the names and shapes of
    `config.tensor_shapes()`, in its order.

    activation_checkpointing: while training, keep only each block's input for the backward pass and compute the rest
    again, which saves most of the memory for about a third more time (arXiv:1604.06174).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.model: Decoder | EncoderDecoder = Decoder(config) if config.encoder is None else EncoderDecoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        elif config.lm_head_bias:
            self.lm_head = nn.ParameterDict({"bias": torch.zeros(config.vocab_size)})  # type: ignore[assignment]
        self._check_names()
        if not self.model.embed_tokens.weight.is_meta:  # there are no numbers to set on the meta device
            self._initialize()

    def forward(self, ids_BT: Tensor, documents_BT: Tensor | None = None, sources_BS: Tensor | None = None) -> Tensor:
        """Return the logits [B, T, V] of the token after each of `ids_BT` (int64).

        documents_BT: int64 numbers, the same for neighbouring tokens of one document. A token then sees its own
        document alone and has its position there, so several documents in one row give what each gives by itself.
        sources_BS: with an encoder, and only then: the ids (int64) of what each row answers, padded with numbers below
        0 at the end.

        Raises:
            ContextLengthError: T or S is more than the model's context.
            ConfigError: there are sources without an encoder, or none with one.
        """
        recompute = self.activation_checkpointing and self.training
        if (sources_BS is None) != (self.config.encoder is None):
            raise ConfigError(
                "The model has an encoder, so it needs a source text: pairs of source and answer."
                if sources_BS is None
                else "The model has no encoder, so it takes no source text: one text with both."
            )
        given = (ids_BT, documents_BT) if sources_BS is None else (ids_BT, documents_BT, sources_BS)
        stack = self.model if isinstance(self.model, Decoder) else self.model.decoder
        hidden_BTD = stack.read_by_head(self.model(*given, recompute=recompute))
        # A tied head asks: which token's embedding does the last hidden state point at?
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        logits_BTV = functional.linear(hidden_BTD, head.weight, self.lm_head.bias if self.config.lm_head_bias else None)
        return soft_cap(scaled(logits_BTV, 1 / self.config.logits_scaling), self.config.final_logit_softcapping)

    def _check_names(self) -> None:
        """Check that the model has the tensors by which checkpoints are read, and no others.

        Raises:
            ConfigError: a tensor is here alone, or in `config.tensor_shapes()`, or has another shape there.
        """
        listed = self.config.tensor_shapes()
        own = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        if differing := [name for name in own | listed if own.get(name) != listed.get(name)]:
            name = differing[0]
            here, there = (list(shapes[name]) if name in shapes else "missing" for shapes in (own, listed))
            raise ConfigError(
                f"{name} is {here} in the model and {there} in config.tensor_shapes(), by which checkpoints are read; "
                f"{len(differing)} such tensors. What is new in one belongs into the other: edgelm_training/model.py, "
                "edgelm/architecture/tensor_shapes.py."
            )

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # Each block adds twice to the residual stream. Smaller weights there keep the sum's variance the same at any
        # depth (GPT-2 report, 2.3).
        for name, module in self.model.named_modules():
            if name.endswith((".o_proj", ".out_proj", ".down_proj")):
                nn.init.normal_(module.weight, std=INITIAL_STD / math.sqrt(2 * self.config.num_hidden_layers))


class Stack(nn.Module):
    """Turn embedded tokens into hidden states: positions, blocks, final norm.

    embedding: of the tokens, where the stack has one for itself. is_encoder: every token sees all others.
    source_size: of the result of an encoder that each block looks at too, where there is one.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        embedding: nn.Embedding | None = None,
        is_encoder: bool = False,
        source_size: int | None = None,
    ) -> None:
        super().__init__()
        self.config, self.is_encoder = config, is_encoder
        context = config.max_position_embeddings
        if embedding is not None:
            self.embed_tokens = embedding
        if config.position == "learned":
            self.embed_positions = nn.Embedding(context, config.hidden_size)
        if config.position == "relative" and not config.relative_attention_per_layer:
            self.relative_attention_bias = scores_of_distances(config)
        if config.embedding_norm:
            self.embed_norm = make_norm(config, config.hidden_size)
        if config.hidden_size_per_layer_input:
            self.embed_tokens_per_layer = nn.Embedding(config.per_layer_rows, config.per_layer_width)
            self.per_layer_model_projection = nn.Linear(config.hidden_size, config.per_layer_width, bias=False)
            self.per_layer_projection_norm = make_norm(config, config.hidden_size_per_layer_input)
        if config.altup_num_inputs > 1:
            self.altup_projections, self.altup_unembed_projections = stream_projections(config)
        self.layers = nn.ModuleList(
            Block(config, layer, is_encoder=is_encoder, source_size=source_size)
            for layer in range(config.num_hidden_layers)
        )
        if config.final_norm:
            self.norm = make_norm(config, config.hidden_size)
        if config.head_transform:
            self.head_dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.head_norm = make_norm(config, config.hidden_size)
        # Computed, not learned, so no part of a checkpoint.
        if config.position in SINUSOIDS:
            self.sinusoids_TD = nn.Buffer(torch.from_numpy(rope.sinusoidal_table(config, context)), persistent=False)
        kinds = {kind for layer in range(config.num_hidden_layers) if (kind := config.rope_kind(layer)) is not None}
        self.rotary = nn.ModuleDict({kind: Rotary(config, kind) for kind in sorted(kinds)})

    def forward(
        self,
        embedded_BTD: Tensor,
        view: View,
        memory: Memory | None = None,
        *,
        ids_BT: Tensor | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Return the hidden states [B, T, D] after the final norm; `recompute` keeps only the blocks' inputs.

        ids_BT: what was embedded, where each layer has features of a token beside the stream.
        """
        hidden_BTD = scaled(embedded_BTD, self.config.embedding_multiplier)
        norm = self.embed_norm if self.config.embedding_norm else nn.Identity()
        if self.config.embedding_norm_first:
            hidden_BTD = norm(hidden_BTD)
        if self.config.position == "learned":
            hidden_BTD = hidden_BTD + self.embed_positions(view.positions)
        if self.config.position in SINUSOIDS:
            hidden_BTD = hidden_BTD + self.sinusoids_TD[view.positions]
        if not self.config.embedding_norm_first:
            hidden_BTD = norm(hidden_BTD)
        rotations: dict[str | None, Rotation] = {kind: rotary(view) for kind, rotary in self.rotary.items()}
        windows = {self.config.window(layer) for layer in self.config.attention_layers}
        masks = {window: self._mask(view, window) for window in windows}
        beside = self._beside(ids_BT, hidden_BTD)
        has_streams, kept = self.config.altup_num_inputs > 1, Kept()
        hidden_BTD = spread(hidden_BTD, self.altup_projections) if has_streams else hidden_BTD
        for layer, block in enumerate(self.layers):
            rotation, window = rotations.get(self.config.rope_kind(layer)), self.config.window(layer)
            given = (hidden_BTD, rotation, masks.get(window), view.positions, memory, kept, beside[layer])
            hidden_BTD = checkpoint(block, *given, use_reentrant=False) if recompute else block(*given)
        hidden_BTD = merged(hidden_BTD, self.altup_unembed_projections) if has_streams else hidden_BTD
        return self.norm(hidden_BTD) if self.config.final_norm else hidden_BTD

    def read_by_head(self, hidden_BTD: Tensor) -> Tensor:
        """Return what the head reads of what `forward` returns, [B, T, D]."""
        if not self.config.head_transform:
            return hidden_BTD
        return self.head_norm(ACTIVATIONS[self.config.hidden_act](self.head_dense(hidden_BTD)))

    def _beside(self, ids_BT: Tensor | None, hidden_BTD: Tensor) -> Sequence[Tensor | None]:
        """Return each layer's features of the tokens beside the stream [B, T, P]: embedded, and of what enters it."""
        P = self.config.hidden_size_per_layer_input
        if ids_BT is None or not P:
            return [None] * len(self.layers)
        projected_BTLP = scaled(self.per_layer_model_projection(hidden_BTD), self.config.hidden_size**-0.5)
        rows_BT = ids_BT.where(ids_BT < self.config.per_layer_rows, 0)
        embedded_BTLP = scaled(self.embed_tokens_per_layer(rows_BT), P**0.5).unflatten(-1, (-1, P))
        normed_BTLP = self.per_layer_projection_norm(projected_BTLP.unflatten(-1, (-1, P)))
        return ((normed_BTLP + embedded_BTLP) * 2**-0.5).unbind(2)

    def _mask(self, view: View, window: int | None) -> Tensor | Distances | None:
        """Return the view's mask; with relative positions, what is added to the scores [N, T, T] or [B, N, T, T], or
        the distances of which each block makes that.
        """
        if self.config.position == "alibi":
            slopes_N11 = torch.from_numpy(alibi_slopes(self.config)[:, None, None])
            return unseen(slopes_N11.to(view.distances.device) * view.distances, view.sees(window))
        if self.config.position != "relative":
            return view.mask(window)
        buckets_TT = relative_buckets(self.config, view.distances.cpu().numpy(), both_ways=self.is_encoder)
        distances = Distances(torch.from_numpy(buckets_TT).to(view.distances.device), view.sees(window))
        per_layer = self.config.relative_attention_per_layer
        return distances if per_layer else distances.scores(self.relative_attention_bias)


class Decoder(Stack):
    """A stack that reads token ids: all of a model without an encoder but its head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, embedding=nn.Embedding(config.vocab_size, config.hidden_size))

    def forward(self, ids_BT: Tensor, documents_BT: Tensor | None = None, *, recompute: bool = False) -> Tensor:  # type: ignore[override]
        """Return the hidden states [B, T, D] after the final norm; `recompute` keeps only the blocks' inputs."""
        check_length("input", ids_BT, self.config)
        view = View(ids_BT, documents_BT)
        return super().forward(self.embed_tokens(ids_BT), view, ids_BT=ids_BT, recompute=recompute)


class EncoderDecoder(nn.Module):
    """The Transformer of arXiv:1706.03762: an encoder reads a source, and a decoder writes while it looks at it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.encoder is not None  # the caller has looked
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        source_size = config.encoder.hidden_size
        own = nn.Embedding(config.vocab_size, source_size) if config.encoder.own_embedding else None
        self.encoder = Stack(config.encoder, embedding=own, is_encoder=True)
        self.decoder = Stack(config, source_size=source_size)

    def forward(
        self, ids_BT: Tensor, documents_BT: Tensor | None, sources_BS: Tensor, *, recompute: bool = False
    ) -> Tensor:
        """Return the decoder's hidden states [B, T, D]; the rest is as of `Transformer.forward`."""
        check_length("source", sources_BS, self.encoder.config)
        check_length("answer", ids_BT, self.decoder.config)
        source = SourceView(sources_BS)
        embedding = self.encoder.embed_tokens if self.encoder.config.own_embedding else self.embed_tokens
        read_BSD = self.encoder(embedding(sources_BS.clamp(min=0)), source, recompute=recompute)
        view = View(ids_BT, documents_BT)
        memory = (read_BSD, source.mask(None))
        return self.decoder(self.embed_tokens(ids_BT), view, memory, recompute=recompute)


# A kind of layers -> the name and the class of what they have in the place of attention, or beside it.
_BESIDE_ATTENTION: dict[str, tuple[str, type[Convolution] | type[LinearAttention] | type[Mamba] | type[Mamba2]]] = {
    "conv": ("conv", Convolution),
    "linear_attention": ("linear_attn", LinearAttention),
    "mamba": ("mamba", Mamba),
    "mamba2": ("mamba", Mamba2),
    "hybrid": ("mamba", Mamba2),
}


class Block(nn.Module):
    """Add to each position what attention (or what a layer has in its place, or beside it) brings from earlier ones,
    then what the feed-forward makes of it; some blocks have one of the two alone.

    Norms stand before each part and the residual stream itself is never normalized ("pre-norm", arXiv:2002.04745);
    other placements norm what a part adds, or both, or the stream itself behind each part. In parallel, both parts read
    the same input (GPT-J). With an encoder, cross-attention stands between the two.
    """

    self_attn: Attention | LatentAttention
    encoder_attn: Attention  # the cross-attention, where there is an encoder
    mlp: FeedForward | Experts
    per_layer_input_gate: nn.Linear  # these three where layers have features of their own beside the stream
    per_layer_projection: nn.Linear
    post_per_layer_input_norm: nn.Module
    laurel: Laurel
    altup: AltUp

    def __init__(self, config: ModelConfig, layer: int, *, is_encoder: bool, source_size: int | None) -> None:
        super().__init__()
        self.config = config
        before_attention, after_attention, before_mlp, after_mlp = self._norms = config.block_norms(layer)
        # Not learned, as in transformers.
        self.layer_scalar = nn.Buffer(torch.ones(1)) if config.layer_scalar else None
        parts: dict[str | None, nn.Module | None] = {before_attention: None}
        self._attends = config.attends(layer)
        if self._attends:
            attention = Attention if config.kv_lora_rank is None else LatentAttention
            parts["self_attn"] = looking = attention(config, layer, causal=not is_encoder)
            if config.relative_attention_per_layer:
                looking.relative_attention_bias = scores_of_distances(config)
        # What else looks at earlier tokens.
        self._mixing, mixing = _BESIDE_ATTENTION.get(config.kind(layer) or "", ("", None))
        if mixing is not None:
            parts[self._mixing] = mixing(config)
        if config.laurel_rank:
            parts["laurel"] = Laurel(config)
        parts[after_attention] = None
        if source_size is not None:
            before_cross, after_cross = CROSS_NORMS[config.norm_placement]
            crossing = Attention(config, layer, causal=False, source_size=source_size)
            parts |= {before_cross: None, "encoder_attn": crossing, after_cross: None}
        parts[before_mlp] = None
        if config.has_experts(layer):
            parts["mlp"] = Experts(config, config.shared_expert_size(layer))
        elif config.has_feed_forward(layer):
            parts["mlp"] = FeedForward(config, config.feed_forward_size(layer), config.gate_cutoff(layer))
        self._feeds_forward = "mlp" in parts
        parts[after_mlp] = None
        if config.hidden_size_per_layer_input:
            D, P = config.hidden_size, config.hidden_size_per_layer_input
            parts["per_layer_input_gate"] = nn.Linear(D, P, bias=False)
            parts["per_layer_projection"] = nn.Linear(P, D, bias=False)
            parts["post_per_layer_input_norm"] = None
        if config.altup_num_inputs > 1:
            parts["altup"] = AltUp(config)
        for name, part in parts.items():
            if name is not None:
                self.add_module(name, part or make_norm(config, config.hidden_size))

    def forward(
        self,
        hidden_BTD: Tensor,
        rotation: Rotation | None,
        mask: Tensor | Distances | None,
        positions: Tensor,
        memory: Memory | None = None,
        kept: Kept | None = None,
        beside_BTP: Tensor | None = None,
    ) -> Tensor:
        """Return the residual stream [B, T, D], or streams [B, T, A, D], behind this block; no `mask` is all before.

        mask: as of `Attention.forward`, or the distances that the layer's own scores are of, since FSDP gathers a
        block's parameters for this call alone. positions: of the tokens in their texts, [T] or [B, T]. kept: keys and
        values of earlier layers. beside_BTP: the layer's own features of the tokens.
        """
        before_attention, after_attention, before_mlp, after_mlp = self._norms
        streams_BTAD = self.altup.predicted(hidden_BTD) if self.config.altup_num_inputs > 1 else None
        if streams_BTAD is not None:
            hidden_BTD = streams_BTAD[:, :, 0]
        attended_BTD = hidden_BTD
        if isinstance(mask, Distances):
            mask = mask.scores(self.self_attn.get_submodule("relative_attention_bias")) if self._attends else None
        if self._attends or self._mixing:
            input_BTD = self._normed(before_attention, hidden_BTD)
            found = [self.self_attn(input_BTD, rotation, mask, None, kept)] if self._attends else []
            found += [self.get_submodule(self._mixing)(input_BTD, positions)] if self._mixing else []
            attended_BTD = self._added(hidden_BTD, sum(found[1:], found[0]), after_attention)
            if self.config.laurel_rank:
                attended_BTD = (attended_BTD + self.laurel(input_BTD)) * 2**-0.5
        if memory is not None:
            before_cross, after_cross = CROSS_NORMS[self.config.norm_placement]
            looked_BTD = self.encoder_attn(self._normed(before_cross, attended_BTD), None, memory[1], memory[0])
            attended_BTD = self._added(attended_BTD, looked_BTD, after_cross)
        mlp_input_BTD = hidden_BTD if self.config.parallel_residual else attended_BTD
        hidden_BTD = attended_BTD
        if self._feeds_forward:
            read_BTD = self._normed(before_mlp, mlp_input_BTD)
            is_choice = isinstance(self.mlp, Experts)
            transformed_BTD = self.mlp(read_BTD, mlp_input_BTD) if is_choice else self.mlp(read_BTD)
            hidden_BTD = self._added(attended_BTD, transformed_BTD, after_mlp)
        if streams_BTAD is not None:
            streams_BTAD = self.altup.corrected(streams_BTAD, hidden_BTD)
            hidden_BTD = self.altup.gating(streams_BTAD)
        if beside_BTP is not None:
            gate_BTP = ACTIVATIONS[self.config.hidden_act](self.per_layer_input_gate(hidden_BTD))
            added_BTD = self.post_per_layer_input_norm(self.per_layer_projection(gate_BTP * beside_BTP))
            if streams_BTAD is not None:
                return self.altup.added(streams_BTAD, added_BTD)
            hidden_BTD = hidden_BTD + added_BTD
        return hidden_BTD if self.layer_scalar is None else hidden_BTD * self.layer_scalar

    def _added(self, hidden_BTD: Tensor, part_BTD: Tensor, norm: str | None) -> Tensor:
        """Add what a part makes to the residual stream, behind the norm or before it."""
        multiplier = self.config.residual_multiplier
        if self.config.norm_placement == "residual":
            return self._normed(norm, hidden_BTD + scaled(part_BTD, multiplier))
        return hidden_BTD + scaled(self._normed(norm, part_BTD), multiplier)

    def _normed(self, name: str | None, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD if name is None else self.get_submodule(name)(hidden_BTD)


@torch.no_grad()
def generate(
    model: Transformer,
    input_ids: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Continue `input_ids`, and return the new tokens; an end token of the config is the last of them.

    With an encoder `input_ids` are its source, and the answer follows the config's `decoder_prompt_ids`.

    temperature 0.0 takes the most likely token; above, it draws from softmax(logits / temperature) with `generator`.
    It also stops where the context is full.

    Raises:
        ContextLengthError: `input_ids` is empty, or longer than the context.
        TrainingError: the logits are no numbers.
    """
    given = [int(id_) for id_ in input_ids]  # of a tensor or an array too
    if not given:
        raise ContextLengthError("The prompt has no tokens; there is nothing to continue.")
    device = next(model.parameters()).device
    sources_BS = None if model.config.encoder is None else torch.tensor([given], device=device)
    ids = given if sources_BS is None else list(model.config.decoder_prompt_ids)
    new_ids: list[int] = []
    while len(new_ids) < max_new_tokens:
        logits_V = model(torch.tensor([ids], device=device), None, sources_BS)[0, -1].float()
        if bool(logits_V.isnan().any()):
            raise TrainingError(
                "The model's logits are no numbers: training has ruined its weights. Lower --learning-rate, and begin "
                "again, or go on from an earlier checkpoint."
            )
        logits_V[list(model.config.suppressed_token_ids)] = -torch.inf
        if temperature == 0.0:
            next_id = int(logits_V.argmax())
        else:
            probabilities_V = torch.softmax(logits_V / temperature, dim=-1)
            next_id = int(torch.multinomial(probabilities_V, 1, generator=generator))
        ids.append(next_id)
        new_ids.append(next_id)
        if next_id in model.config.eos_token_ids or len(ids) > model.config.max_position_embeddings:
            break
    return new_ids
