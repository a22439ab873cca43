from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from edgelm.architecture.rope import sinusoidal_table
from edgelm.config import ACTIVATIONS as ACTIVATION_NAMES
from edgelm.config import ModelConfig
from edgelm_export import reference_activations
from edgelm_export.huggingface import HuggingFaceCheckpoint
from edgelm_export.reference import reference_logits
from edgelm_export.reference_activations import ACTIVATIONS
from edgelm_export.sources import open_checkpoint

SaveLlama = Callable[..., LlamaForCausalLM]

CONFIGS: dict[str, dict[str, Any]] = {
    "grouped queries and a tied head": {},
    "as many kv heads as heads, and a head of its own": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "one kv head": {"num_key_value_heads": 1},
    "a head_dim that is not hidden / heads": {"head_dim": 24},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "exact gelu": {"hidden_act": "gelu"},
    "tanh gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}},
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "rope_theta": 5e5,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 256,
        }
    },
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_logits_are_those_of_transformers(tmp_path: Path, save_llama: SaveLlama, changes: dict[str, Any]) -> None:
    model = save_llama(tmp_path, **changes)
    random = np.random.default_rng(0)
    # One token, a few, and more than one block of queries.
    sequences = [random.integers(0, 320, length).tolist() for length in (1, 7, 600)]
    for ids, logits_TV in zip(sequences, reference_logits(HuggingFaceCheckpoint(tmp_path), sequences), strict=True):
        assert logits_TV.dtype == np.float32
        with torch.no_grad():
            expected_TV = model(torch.tensor([ids])).logits[0].numpy()
        # Both sum in float32, in another order. Measured: at most 1.5e-5, with logits up to 5.8.
        np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4)


class MemoryCheckpoint:
    """A checkpoint of random tensors, for features that no Llama has."""

    hf_config: dict[str, Any] = {}  # noqa: RUF012
    text_files: dict[str, str] = {}  # noqa: RUF012
    source: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        random = np.random.default_rng(0)
        self._tensors = {
            name: 0.15 * random.standard_normal(shape).astype(np.float32) + np.float32(len(shape) == 1)
            for name, shape in config.tensor_shapes().items()
        }

    def stored_type(self, name: str) -> str:
        return "F32"

    def tensor(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def quantized_blocks(self, name: str, rows: slice = slice(None)) -> None:
        return None


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "none"])
def test_layer_norm_plain_feed_forward_and_position_embeddings_give_torchs_own_blocks_logits(position: str) -> None:
    """torch.nn's pre-norm encoder layer with a causal mask is this block, written by others."""
    config = ModelConfig(
        model_type="custom",
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=40,
        norm="layer",
        position=position,
        hidden_act="gelu",
        mlp_gated=False,
        mlp_bias=True,
        attention_bias=True,
        attention_output_bias=True,
    )
    checkpoint = MemoryCheckpoint(config)
    ids = np.random.default_rng(1).integers(0, 50, 30).tolist()

    def weight(name: str) -> torch.Tensor:
        return torch.from_numpy(checkpoint.tensor(name))

    hidden_TD = weight("model.embed_tokens.weight")[ids]
    if position == "learned":
        hidden_TD = hidden_TD + weight("model.embed_positions.weight")[:30]
    if position == "sinusoidal":
        hidden_TD = hidden_TD + torch.from_numpy(sinusoidal_table(config, 30))
    for i in range(2):
        block = torch.nn.TransformerEncoderLayer(32, 4, 48, 0.0, "gelu", batch_first=True, norm_first=True).eval()
        prefix = f"model.layers.{i}"
        state = {}
        for kind in ("weight", "bias"):
            qkv = [weight(f"{prefix}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            state[f"self_attn.in_proj_{kind}"] = torch.cat(qkv)
            state[f"self_attn.out_proj.{kind}"] = weight(f"{prefix}.self_attn.o_proj.{kind}")
            state[f"linear1.{kind}"] = weight(f"{prefix}.mlp.up_proj.{kind}")
            state[f"linear2.{kind}"] = weight(f"{prefix}.mlp.down_proj.{kind}")
            state[f"norm1.{kind}"] = weight(f"{prefix}.input_layernorm.{kind}")
            state[f"norm2.{kind}"] = weight(f"{prefix}.post_attention_layernorm.{kind}")
        block.load_state_dict(state)
        mask = torch.nn.Transformer.generate_square_subsequent_mask(30)
        with torch.no_grad():
            hidden_TD = block(hidden_TD[None], src_mask=mask)[0]
    final_TD = torch.nn.functional.layer_norm(
        hidden_TD, (32,), weight("model.norm.weight"), weight("model.norm.bias"), 1e-5
    )
    expected_TV = (final_TD @ weight("lm_head.weight").T).numpy()
    (logits_TV,) = reference_logits(checkpoint, [ids])
    # Float32 sums in another order. Measured: at most 1.7e-6, with logits up to 3.3.
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-5)


def test_every_activation_of_the_config_is_there_and_is_torchs() -> None:
    assert set(ACTIVATIONS) | {"xielu"} == set(ACTIVATION_NAMES)  # which has weights
    x = np.concatenate([np.linspace(-12, 12, 100_001), [-1e4, 1e4, 0.0]]).astype(np.float32)
    functional = torch.nn.functional
    theirs = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_pytorch_tanh": lambda value: functional.gelu(value, approximate="tanh"),
        "relu": functional.relu,
        "relu2": lambda value: functional.relu(value).square(),
    }
    for name, activation in ACTIVATIONS.items():
        expected = theirs[name](torch.from_numpy(x).double()).numpy()
        # Theirs in float64. Measured: 4.6e-7 absolute for the two gelus, 2e-7 relative for silu.
        np.testing.assert_allclose(activation(x), expected, rtol=3e-7, atol=6e-7, err_msg=name)


def test_the_error_function_is_within_its_stated_error() -> None:
    x = np.linspace(-7, 7, 1_234_567)
    exact = torch.erf(torch.from_numpy(x)).numpy()
    assert np.abs(reference_activations._erf(x) - exact).max() < 4.1e-9  # measured: 4.06e-9


def test_each_tensor_is_read_once_for_all_sequences_and_a_tied_head_once_more(
    tmp_path: Path, save_llama: SaveLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_llama(tmp_path)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    read, tensor = [], checkpoint.tensor
    monkeypatch.setattr(checkpoint, "tensor", lambda name: read.append(name) or tensor(name))
    list(reference_logits(checkpoint, [[1, 2], [3]]))
    assert sorted(read) == sorted([*checkpoint.config.tensor_shapes(), "model.embed_tokens.weight"])


@pytest.mark.real_model
def test_logits_of_the_real_model_are_those_of_transformers(smollm2_gguf: Path, smollm2_checkpoint: Path) -> None:
    """The checkpoint folder is what transformers reads, the GGUF file what we read."""
    ids = np.random.default_rng(0).integers(0, 49152, 200).tolist()
    ids[:6] = [1, 4093, 198, 504, 6136, 314]
    model = AutoModelForCausalLM.from_pretrained(smollm2_checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected_TV = model(torch.tensor([ids])).logits[0].numpy()
    with open_checkpoint(smollm2_gguf) as checkpoint:
        (logits_TV,) = reference_logits(checkpoint, [ids])
    # 30 layers of float32 sums in another order; measured: 9.0e-5, with logits up to 37.
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=3e-4)
