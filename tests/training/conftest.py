from __future__ import annotations

import pytest
import torch

from edgelm.config import ModelConfig


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny_config() -> ModelConfig:
    """A Llama of two layers, with grouped queries and a head_dim of its own."""
    return ModelConfig(
        model_type="llama",
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_ids=(2,),
    )
