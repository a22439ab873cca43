"""ModelFields: what every stack of a Transformer is described by, a field for each feature."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.architecture.multipliers import Multipliers
from edgelm.architecture.rope_scaling import RopeScaling

_AS_TRAINED, _NO_MULTIPLIERS = RopeScaling(), Multipliers()


@dataclass(frozen=True, kw_only=True)
class ModelFields:
    """The fields of a ModelConfig, which checks them; their names are those of Hugging Face's config.json where it has
    one.

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
