"""A model of somebody's own code, as the guide to exports brings it in."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast
from unchecked_export import export_unchecked

import edgelm
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

GUIDE = Path(__file__).parents[3] / "docs/guides/export.md"
HEADS, KV_HEADS, SIZE = 8, 4, 8  # the guide's, and the numbers of a head


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (
            nn.Linear(HEADS * SIZE, heads * SIZE, bias=False) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (project(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for project in (self.wq, self.wk, self.wv))
        angles = torch.outer(torch.arange(x.shape[1]), 10000.0 ** -(torch.arange(0, SIZE, 2) / SIZE))
        turns = torch.polar(torch.ones_like(angles), angles)  # of neighbours, as Meta's code has them
        q, k = (
            torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)
            for part in (q, k)
        )
        return self.wo(
            functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
        )


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(HEADS * SIZE, 96, bias=False) for _ in range(2))
        self.w2 = nn.Linear(96, HEADS * SIZE, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(), FeedForward()
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(HEADS * SIZE, eps=1e-5) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Net(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab_size, HEADS * SIZE)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm = nn.RMSNorm(HEADS * SIZE, eps=1e-5)
        self.output = nn.Linear(HEADS * SIZE, vocab_size, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


def test_a_model_of_ones_own_code_becomes_a_package_by_the_lines_of_the_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = Net(len(bpe_tokenizer))
    for weight in net.parameters():  # norms and projections that tell the tensors apart
        nn.init.normal_(weight, 1.0 if weight.ndim == 1 else 0.0, 0.3)
    section = GUIDE.read_text(encoding="utf-8").partition("## A model of your own code")[2]
    (lines,) = re.findall(r"```python\n(.*?)\n```", section.partition("\n## ")[0], re.DOTALL)
    exec(lines, {"net": net})
    bpe_tokenizer.save_pretrained("ckpt")
    with HuggingFaceCheckpoint(tmp_path / "ckpt") as checkpoint:
        export_unchecked(checkpoint, tmp_path / "pkg", "fp32")
    ids = [5, 17, 3, 60, 9, 44, 2, 31]
    scored = [token.logprob for token in edgelm.load("pkg").score(ids).tokens]
    with torch.no_grad():
        logprobs_TV = net(torch.tensor([ids])).log_softmax(-1)[0].numpy()
    # Measured: 4e-6; without putting the rows in order, 2.7.
    np.testing.assert_allclose(scored, logprobs_TV[np.arange(len(ids) - 1), ids[1:]], atol=1e-4)
