"""What each position goes through by itself: a feed-forward, or the few of many that a router chooses for it.

Shapes are suffixes, as in model.py; P positions, C chosen experts, G groups of experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgelm.architecture.layer_features import EXPERT_NORMS
from edgelm.config import SPARSEMIXER_MARGIN, ModelConfig
from edgelm_training.layers.activations import ACTIVATIONS, XIELU, thinned
from edgelm_training.layers.attention import make_norm, scaled

_DECIDING = 2  # how many of its best scores decide whether a group of experts is chosen


class FeedForward(nn.Module):
    """Transform each position by itself: up to F, an activation, down to D; with a gate, SwiGLU and its kin.

    A gate (arXiv:2002.05202) multiplies the plain projection by an activated one.
    """

    def __init__(self, config: ModelConfig, size: int, cutoff: float | None = None) -> None:
        super().__init__()
        D, F = config.hidden_size, size
        self.config, self.cutoff = config, cutoff
        if config.mlp_gated:
            self.gate_proj = nn.Linear(D, F, bias=config.mlp_bias)
        self.up_proj = nn.Linear(D, F, bias=config.mlp_bias)
        self.down_proj = nn.Linear(F, D, bias=config.mlp_bias)
        self.ffn_sub_norm = make_norm(config, F) if config.sub_norms else nn.Identity()
        self.act_fn = XIELU() if config.hidden_act == "xielu" else None

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the transformed positions [B, T, D]."""
        activation, limit = self.act_fn or ACTIVATIONS[self.config.hidden_act], self.config.swiglu_limit
        up_BTF = self.up_proj(hidden_BTD)
        if not self.config.mlp_gated:
            return self._projected(activation(up_BTF))
        gate_BTF = scaled(self.gate_proj(hidden_BTD), self.config.multipliers.mlp_gate)
        if self.cutoff is not None:
            gate_BTF = thinned(gate_BTF, self.cutoff)
        if limit is None:
            return self._projected(activation(gate_BTF) * up_BTF)
        gate_BTF, up_BTF = gate_BTF.clamp(max=limit), up_BTF.clamp(-limit, limit)
        return self._projected(gate_BTF * torch.sigmoid(self.config.swiglu_alpha * gate_BTF) * (up_BTF + 1))

    def _projected(self, inner_BTF: Tensor) -> Tensor:
        return scaled(self.down_proj(self.ffn_sub_norm(inner_BTF)), self.config.multipliers.mlp_down)


class Experts(nn.Module):
    """Transform each position by the few feed-forwards that a router chooses for it (arXiv:1701.06538).

    Their outputs are weighted by what the router gives them. Nothing here evens out how often each is chosen: a bias of
    the choice, which did so where the model was made (arXiv:2412.19437), stays as it is.
    """

    router_norm: nn.Module
    experts_norm: nn.Module
    post_experts_norm: nn.Module
    post_shared_experts_norm: nn.Module

    def __init__(self, config: ModelConfig, shared: int) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=config.router_bias)
        if config.expert_scales:
            self.gate.register_parameter("per_expert_scale", nn.Parameter(torch.ones(config.num_experts)))
        if config.expert_choice_bias:
            self.gate.register_buffer("e_score_correction_bias", torch.zeros(config.num_experts))
        self.experts = nn.ModuleList(FeedForward(config, config.expert_size) for _ in range(config.num_experts))
        self.shared_experts = FeedForward(config, shared) if shared else None
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False) if config.shared_expert_gate else None
        for name in EXPERT_NORMS:
            self.add_module(name, make_norm(config, config.hidden_size) if config.expert_norms else nn.Identity())

    def forward(self, hidden_BTD: Tensor, stream_BTD: Tensor) -> Tensor:
        """Return the transformed positions [B, T, D]; `stream_BTD` is what `hidden_BTD` is the norm of."""
        flat_PD = hidden_BTD.flatten(0, 1)  # P positions
        stream_PD = stream_BTD.flatten(0, 1) if self.config.expert_norms else flat_PD
        read_PD, scores_PE = self.experts_norm(stream_PD), self.gate(self.router_norm(stream_PD)).float()
        if self.config.expert_norms:
            scores_PE = scores_PE * self.config.hidden_size**-0.5
        weights_PC, chosen_PC = self._chosen(scores_PE)
        if self.config.norm_topk_prob:
            weights_PC = weights_PC / weights_PC.sum(-1, keepdim=True)
        weights_PC = scaled(weights_PC, self.config.routed_scaling_factor)
        if self.config.expert_scales:
            weights_PC = weights_PC * self.gate.get_parameter("per_expert_scale")[chosen_PC]
        summed_PD = torch.zeros_like(flat_PD)
        for number, expert in enumerate(self.experts):
            # One that no position chose computes nothing, and still has a gradient, which is zero.
            positions, places = (chosen_PC == number).nonzero(as_tuple=True)
            output_D = expert(read_PD[positions]) * weights_PC[positions, places, None]
            summed_PD = summed_PD.index_add(0, positions, output_D.to(summed_PD))
        summed_PD = self.post_experts_norm(summed_PD)
        if self.shared_experts is not None:
            shared_PD = self.shared_experts(flat_PD)
            if self.shared_expert_gate is not None:
                shared_PD = shared_PD * torch.sigmoid(self.shared_expert_gate(flat_PD))
            summed_PD = summed_PD + self.post_shared_experts_norm(shared_PD)
        return summed_PD.view_as(hidden_BTD)

    def _chosen(self, scores_PE: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights [P, C] of the chosen experts, and which they are."""
        if self.config.scoring_func == "sparsemixer":
            return sparsemixer(scores_PE, self.config.num_experts_per_tok)
        weights_PE = scores_PE.sigmoid() if self.config.scoring_func == "sigmoid" else scores_PE.softmax(-1)
        preferred_PE = weights_PE
        if self.config.expert_choice_bias:
            preferred_PE = weights_PE + self.gate.get_buffer("e_score_correction_bias")
        preferred_PE = within_groups(preferred_PE, self.config.n_group, self.config.topk_group)
        chosen_PC = preferred_PE.topk(self.config.num_experts_per_tok).indices  # C chosen experts
        return weights_PE.gather(-1, chosen_PC), chosen_PC


def sparsemixer(scores_PE: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the weights of the `count` best experts and which they are: of each, its share among those that are left
    and close to it (arXiv:2409.12136, without the sampling of its training).
    """
    best_PC, chosen_PC = scores_PE.topk(count)
    left_PE, weights = scores_PE, []
    for best_P1, chosen_P1 in zip(best_PC.split(1, -1), chosen_PC.split(1, -1), strict=True):
        is_far_PE = (best_P1 - scores_PE) / torch.maximum(scores_PE.abs(), best_P1) > SPARSEMIXER_MARGIN
        close_PE = left_PE.masked_fill(is_far_PE, -torch.inf)
        weights.append(torch.exp(best_P1 - close_PE.logsumexp(-1, keepdim=True)))
        left_PE = left_PE.scatter(-1, chosen_P1, -torch.inf)
    return torch.cat(weights, -1), chosen_PC


def within_groups(preferred_PE: Tensor, n_group: int, topk_group: int) -> Tensor:
    """Return the scores that experts are chosen by, with no chance for those outside the chosen groups
    (arXiv:2412.19437, 2.1.2).
    """
    if n_group == 1:
        return preferred_PE
    by_group_PGE = preferred_PE.unflatten(-1, (n_group, -1))
    best_PG = by_group_PGE.topk(_DECIDING).values.sum(-1)
    kept_PG = torch.zeros_like(best_PG, dtype=torch.bool).scatter(-1, best_PG.topk(topk_group).indices, True)
    return by_group_PGE.masked_fill(~kept_PG[..., None], -torch.inf).flatten(-2)
