"""Groups of experts, of which a token chooses some before it chooses experts (arXiv:2412.19437, 2.1.2).

Shapes are suffixes: P positions, E experts, G groups of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DECIDING = 2  # scores of a group


def within_groups(preferred_PE: Tensor, n_group: int, topk_group: int) -> Tensor:
    """Return the scores that experts are chosen by, with no chance for those of other groups."""
    if n_group == 1:
        return preferred_PE
    by_group_PGE = preferred_PE.unflatten(-1, (n_group, -1))
    best_PG = by_group_PGE.topk(_DECIDING).values.sum(-1)
    kept_PG = torch.zeros_like(best_PG, dtype=torch.bool).scatter(-1, best_PG.topk(topk_group).indices, True)
    return by_group_PGE.masked_fill(~kept_PG[..., None], -torch.inf).flatten(-2)
