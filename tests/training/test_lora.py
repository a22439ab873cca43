"""LoRA and the base in 4 bits: what each computes, and what learns."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from model_features import LINEAR, MAMBA
from torch import nn

from edgelm.architecture.quantization_scheme import parse_scheme
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import unpack
from edgelm_training.adaptation.lora import (
    LoraConfig,
    LoraLinear,
    adapter_weights,
    adapters_off,
    add_adapters,
    linear_names,
    quantize_linear,
    target_names,
)
from edgelm_training.adaptation.quantized_linear import GRID_NAME, QuantizedLinear, on_grid
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.model import Transformer

IDS = torch.tensor([[5, 17, 3, 44, 8, 60]])


@pytest.fixture
def model(tiny_config: ModelConfig) -> Transformer:
    torch.manual_seed(0)
    return Transformer(tiny_config)


def with_adapters(model: Transformer, *kinds: str, dropout: float = 0.0) -> Transformer:
    """Put adapters of rank 3 on a model, with a B of consequence: a fresh one is zero."""
    config = LoraConfig(rank=3, alpha=6.0, dropout=dropout, target_modules=kinds)
    add_adapters(model, target_names(model, kinds), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model


def test_an_adapter_is_the_product_of_its_matrices_beside_the_weight() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 7)
    layer = LoraLinear(linear, rank=2, scale=1.5)
    nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(3, 5)

    merged = linear.weight + 1.5 * layer.lora_B.weight @ layer.lora_A.weight
    torch.testing.assert_close(layer(x), x @ merged.T + linear.bias)  # sums of 5 float32 numbers in another order


def test_a_fresh_adapter_changes_nothing_and_one_that_is_off_neither(model: Transformer) -> None:
    before = model(IDS)
    # Dropout is of what the adapter reads, not of what the base does.
    add_adapters(model, linear_names(model), LoraConfig(rank=3, alpha=6.0, dropout=0.5, target_modules=()))
    assert torch.equal(model.train()(IDS), before)
    with_off = with_adapters(Transformer(model.config), "q_proj")
    with adapters_off(with_off):
        off = with_off(IDS)
    assert not torch.equal(with_off(IDS), off)
    names = {name.replace(".base.", "."): tensor for name, tensor in with_off.state_dict().items()}
    plain = Transformer(model.config)
    plain.load_state_dict({name: tensor for name, tensor in names.items() if "lora" not in name})
    assert torch.equal(off, plain(IDS))


@pytest.mark.parametrize("kind", ["conv", "linear_attention", "mamba", "mamba2"])
def test_what_is_in_the_place_of_attention_takes_adapters_too(kind: str, tiny_config: ModelConfig) -> None:
    sizes = MAMBA if kind == "mamba" else LINEAR
    config = dataclasses.replace(tiny_config, layer_types=(kind, "full_attention"), conv_L_cache=3, **sizes)
    model = Transformer(config)
    before = model(IDS)
    add_adapters(model, linear_names(model), LoraConfig(rank=3, alpha=6.0, dropout=0.0, target_modules=()))
    assert torch.equal(model(IDS), before)


def test_only_adapters_learn_and_only_where_they_are_asked_for(model: Transformer) -> None:
    with_adapters(model, "q_proj", "down_proj")(IDS).sum().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    places = [f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")]
    assert learned == {f"{place}.lora_{matrix}.weight" for place in places for matrix in "AB"}
    assert adapter_weights(model.state_dict()).keys() == learned


def test_dropout_is_for_training_alone(model: Transformer) -> None:
    with_adapters(model, "q_proj", dropout=0.5)
    assert not torch.equal(model.train()(IDS), model(IDS))
    assert torch.equal(model.eval()(IDS), model(IDS))


def test_a_layer_that_the_model_lacks_is_named_with_those_it_has(model: Transformer) -> None:
    with pytest.raises(ConfigError, match=r"target_modules has 'c_attn'; the layers of this model have q_proj, k_proj"):
        target_names(model, ["q_proj", "c_attn"])
    with pytest.raises(ConfigError, match="target_modules has 'lm_head'"):  # it is outside the blocks
        target_names(model, ["lm_head"])


@pytest.mark.parametrize("columns", [64, 128, 40, 200])  # whole blocks, and a last one that is padded
def test_the_base_in_4_bits_is_what_the_exporter_writes(columns: int) -> None:
    weight = np.random.default_rng(columns).standard_normal((9, columns), np.float32)
    exported = unpack(quantize_alone(weight, parse_scheme(GRID_NAME)))
    linear = nn.Linear(columns, 9, bias=False)
    linear.weight.data = torch.from_numpy(weight)

    assert np.array_equal(on_grid(linear.weight).numpy(), exported)
    assert np.array_equal(QuantizedLinear(linear).weight().numpy(), exported)


def test_a_layer_in_4_bits_passes_the_gradient_of_its_weight_on() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 9)
    layer = QuantizedLinear(linear)
    x = torch.randn(2, 3, 40, requires_grad=True)
    y = layer(x)
    plain = nn.functional.linear(x, layer.weight(), linear.bias)
    assert torch.equal(y, plain)
    seed = torch.randn_like(y)

    (ours,) = torch.autograd.grad(y, x, seed)
    (theirs,) = torch.autograd.grad(plain, x, seed)

    torch.testing.assert_close(ours, theirs)  # the same product, in another shape
    assert [parameter.requires_grad for parameter in layer.parameters()] == [False] * 3


def test_a_layer_in_4_bits_computes_in_the_precision_around_it() -> None:
    layer = QuantizedLinear(nn.Linear(64, 8))
    x = torch.randn(4, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_a_model_in_4_bits_holds_no_other_weights_of_its_blocks(model: Transformer) -> None:
    for name in linear_names(model):
        quantize_linear(model, name)
    held = [parameter for name, parameter in model.named_parameters() if "_proj" in name and "bias" not in name]
    assert {parameter.dtype for parameter in held} == {torch.uint8, torch.float32}
    assert max(parameter.numel() for parameter in held) == 40 * 64 // 2  # a matrix of 40 rows, in one block of 64


def test_a_checkpoint_is_read_into_4_bits_one_layer_at_a_time(
    tiny_chat_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_checkpoint(tiny_chat_model)
    alive: list[weakref.ref[nn.Module]] = []

    def quantize(model: Transformer, name: str) -> None:
        assert [layer() for layer in alive if layer() is not None] == []
        alive.append(weakref.ref(model.get_submodule(name)))
        quantize_linear(model, name)

    monkeypatch.setattr("edgelm_training.checkpoints.checkpoint.quantize_linear", quantize)
    read = load_checkpoint(tiny_chat_model, quantized=True)

    assert len(alive) == len(linear_names(read)) == len(linear_names(whole))
    for name in linear_names(whole):
        quantize_linear(whole, name)
    states = read.state_dict(), whole.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_router_gets_no_adapter(tiny_config: ModelConfig) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_bias": False}
    names = linear_names(Transformer(dataclasses.replace(tiny_config, **experts)))
    assert "model.layers.0.mlp.experts.3.up_proj" in names
    assert not [name for name in names if name.endswith(".gate")]
