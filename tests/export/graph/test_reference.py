from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from edgelm.config import ACTIVATIONS as ACTIVATION_NAMES
from edgelm_export.reference import activations as reference_activations
from edgelm_export.reference.activations import ACTIVATIONS
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.sources import open_checkpoint

SaveLlama = Callable[..., LlamaForCausalLM]


def test_logits_are_those_of_transformers_whatever_the_length(tmp_path: Path, save_llama: SaveLlama) -> None:
    model = save_llama(tmp_path)
    random = np.random.default_rng(0)
    # One token, a few, and more than one block of queries.
    sequences = [random.integers(0, 320, length).tolist() for length in (1, 7, 600)]
    for ids, logits_TV in zip(sequences, reference_logits(HuggingFaceCheckpoint(tmp_path), sequences), strict=True):
        assert logits_TV.dtype == np.float32
        with torch.no_grad():
            expected_TV = model(torch.tensor([ids])).logits[0].numpy()
        # Both sum in float32, in another order. Measured: at most 1.5e-5, with logits up to 5.8.
        np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4)


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
    ids = np.random.default_rng(0).integers(0, 49152, 64).tolist()
    ids[:6] = [1, 4093, 198, 504, 6136, 314]
    model = AutoModelForCausalLM.from_pretrained(smollm2_checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected_TV = model(torch.tensor([ids])).logits[0].numpy()
    with open_checkpoint(smollm2_gguf) as checkpoint:
        (logits_TV,) = reference_logits(checkpoint, [ids])
    # 30 layers of float32 sums in another order; measured: 9.0e-5, with logits up to 37.
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=3e-4)
