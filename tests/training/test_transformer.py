"""The PyTorch Transformer against transformers, and its own laws."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_features import ACROSS_TOKENS, FEATURES, config_with
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, ContextLengthError
from edgelm_training import model as model_file
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.layers.attention import Attention
from edgelm_training.model import Transformer, generate

LONG = 150  # tokens: more than the original contexts that features are stretched from


def randomize(model: torch.nn.Module) -> None:
    """Give every parameter a value of consequence: fresh biases are zero and fresh norms one, which hides mistakes."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
            if parameter.ndim == 1:
                parameter.add_(0.7)


def random_ids(config: ModelConfig, *shape: int) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def random_model(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    randomize(model)
    return model


@pytest.fixture(scope="module")
def featured(request: pytest.FixtureRequest) -> Transformer:
    """A random model of a row of FEATURES; pytest runs all tests of one after each other, and none changes it."""
    return random_model(config_with(FEATURES[request.param]))


def test_sinusoidal_positions_are_added_to_the_embeddings(tiny_config: ModelConfig) -> None:
    config = replace(tiny_config, position="sinusoidal", hidden_size=4)
    model = random_model(config)
    seen: list[Tensor] = []
    model.model.layers[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))

    model(torch.tensor([[7, 7, 9]]))

    positions = torch.tensor(
        [
            [0.0, 1.0, 0.0, 1.0],
            [np.sin(1.0), np.cos(1.0), np.sin(0.01), np.cos(0.01)],
            [np.sin(2.0), np.cos(2.0), np.sin(0.02), np.cos(0.02)],
        ],
        dtype=torch.float32,
    )
    expected = model.model.embed_tokens.weight[[7, 7, 9]] + positions
    torch.testing.assert_close(seen[0][0], expected, atol=1e-6, rtol=0)


def test_without_positions_the_order_of_earlier_tokens_does_not_matter(tiny_config: ModelConfig) -> None:
    one_layer = replace(tiny_config, position="none", num_hidden_layers=1)
    ids_BT = torch.tensor([[3, 4, 5, 6], [5, 3, 4, 6]])

    last_BV = random_model(one_layer)(ids_BT)[:, -1]

    torch.testing.assert_close(last_BV[0], last_BV[1], atol=1e-5, rtol=0)  # sums in another order; measured 4e-7
    rotated_BV = random_model(replace(one_layer, position="rope"))(ids_BT)[:, -1]
    assert (rotated_BV[0] - rotated_BV[1]).abs().max() > 0.01


@pytest.mark.parametrize("featured", ACROSS_TOKENS, indirect=True)
def test_a_later_token_does_not_change_earlier_logits(featured: Transformer) -> None:
    config = featured.config
    ids_BT = random_ids(config, 1, LONG)
    changed_BT = ids_BT.clone()
    changed_BT[0, 12] = (ids_BT[0, 12] + 1) % config.vocab_size

    with torch.no_grad():
        logits, changed = featured(ids_BT), featured(changed_BT)

    # A token that chooses another expert changes how many rows its products have, which then sum in another order.
    # Measured: 4.8e-7.
    atol = 1e-5 if config.num_experts else 0.0
    torch.testing.assert_close(changed[:, :12], logits[:, :12], atol=atol, rtol=0)
    assert not torch.equal(logits[:, 12], changed[:, 12])


def test_a_batch_gives_the_logits_of_its_rows(tiny_config: ModelConfig) -> None:
    model = random_model(tiny_config)
    ids_BT = random_ids(tiny_config, 3, 20)

    with torch.no_grad():
        together = model(ids_BT)
        alone = torch.cat([model(row_T[None]) for row_T in ids_BT])

    # Matrix products of another size sum in another order. Measured: 0.
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("featured", ACROSS_TOKENS, indirect=True)
def test_documents_in_one_row_give_the_logits_of_each_alone(featured: Transformer) -> None:
    ids_BT = random_ids(featured.config, 2, LONG)
    lengths = ((7, 1, LONG - 8), (25, 10, LONG - 35))
    # A number that comes back after another one is a new document.
    documents_BT = torch.stack([torch.tensor([4, 9, 4]).repeat_interleave(torch.tensor(row)) for row in lengths])

    with torch.no_grad():
        packed = featured(ids_BT, documents_BT)
        alone = [torch.cat([featured(part[None])[0] for part in ids_BT[b].split(row)]) for b, row in enumerate(lengths)]

    # Attention sums a masked row in another order. Measured: 1.5e-5 on logits of up to 9.2.
    torch.testing.assert_close(packed, torch.stack(alone), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", ["tiny", "keys and values of earlier layers, with wider feed-forwards"])
def test_activation_checkpointing_changes_neither_logits_nor_gradients(name: str) -> None:
    model = random_model(config_with(FEATURES[name])).train()
    ids_BT = random_ids(model.config, 2, 20)
    documents_BT = (torch.arange(20) // 7).expand(2, -1)
    seen = []
    blocks: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda *_: blocks.append(1))
    for recompute in (False, True):
        model.activation_checkpointing = recompute
        model.zero_grad()
        logits = model(ids_BT, documents_BT)
        logits.logsumexp(-1).sum().backward()
        seen.append([logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())])

    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))
    assert len(blocks) == 3  # once, then once more for the backward pass
    model.eval()(ids_BT)
    assert len(blocks) == 4


@pytest.mark.parametrize("featured", FEATURES, indirect=True)
def test_parameters_have_the_canonical_names_shapes_and_order_and_each_a_gradient(featured: Transformer) -> None:
    shapes = [(name, tuple(tensor.shape)) for name, tensor in featured.state_dict().items()]
    assert shapes == list(featured.config.tensor_shapes().items())

    featured(random_ids(featured.config, 2, 20)).logsumexp(-1).sum().backward()

    without = [k for k, v in featured.named_parameters() if v.grad is None or not v.grad.isfinite().all()]
    assert without == []


def test_a_parameter_that_no_checkpoint_could_hold_is_refused_before_anything_is_trained(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithTemperature(Attention):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.temperature = torch.nn.Parameter(torch.ones(4))

    monkeypatch.setattr(model_file, "Attention", WithTemperature)

    with pytest.raises(ConfigError, match=r"0\.self_attn\.temperature is \[4\] in the model and missing in .*; 2 such"):
        Transformer(tiny_config)


@pytest.mark.parametrize("norm", ["rms", "rms_offset", "rms_plain", "layer", "layer_offset"])
def test_norms_take_what_projections_give_in_bf16(norm: str, tiny_config: ModelConfig) -> None:
    """PyTorch warns where it has no kernel for what a norm is given, though only once a process."""
    config = replace(tiny_config, norm=norm, norm_placement="both", qk_norm=True)
    model, ids_BT = Transformer(config), torch.randint(61, (2, 9))
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
            warnings.simplefilter("error")
            logits_BTV = model(ids_BT)
    finally:
        torch.set_warn_always(False)
    with torch.no_grad():
        # Products rounded to 8 bits; logits are up to 0.4. Measured: 0.0033.
        torch.testing.assert_close(logits_BTV.float(), model(ids_BT), atol=0.01, rtol=0)


def test_the_same_seed_gives_the_same_fresh_weights(tiny_config: ModelConfig) -> None:
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(Transformer(tiny_config).state_dict())

    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["lm_head.weight"], states[2]["lm_head.weight"])


def test_fresh_weights_are_spread_as_in_gpt2(tiny_config: ModelConfig) -> None:
    config = replace(tiny_config, hidden_size=256, intermediate_size=512, num_hidden_layers=8, mlp_bias=True)
    torch.manual_seed(0)

    state = Transformer(config).state_dict()

    assert state["model.embed_tokens.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert state["model.layers.3.mlp.up_proj.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert state["model.layers.3.mlp.down_proj.weight"].std() == pytest.approx(0.02 / 4, rel=0.05)
    assert state["model.layers.3.self_attn.o_proj.weight"].std() == pytest.approx(0.02 / 4, rel=0.05)
    assert state["model.layers.3.mlp.up_proj.bias"].abs().max() == 0
    assert (state["model.norm.weight"] == 1).all()


def test_a_fresh_model_finds_every_token_about_as_likely(tiny_config: ModelConfig) -> None:
    torch.manual_seed(0)
    ids_BT = random_ids(tiny_config, 2, 50)

    logits = Transformer(tiny_config)(ids_BT)

    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())
    assert loss.item() == pytest.approx(np.log(tiny_config.vocab_size), abs=0.05)


def test_an_input_longer_than_the_context_is_an_error_with_both_counts(tiny_config: ModelConfig) -> None:
    model = Transformer(tiny_config)

    with pytest.raises(ContextLengthError, match=r"The input has 129 tokens; the model's context holds 128\."):
        model(random_ids(tiny_config, 1, 129))


def test_generate_takes_the_most_likely_token_each_time(tiny_config: ModelConfig) -> None:
    model = random_model(replace(tiny_config, eos_token_ids=()))

    new_ids = generate(model, [3, 4, 5], 8)

    assert len(new_ids) == 8
    logits_TV = model(torch.tensor([[3, 4, 5, *new_ids]]))[0]
    assert logits_TV[2:-1].argmax(-1).tolist() == new_ids
    for prompt in ([3, 4, 5], torch.tensor([3, 4, 5]), np.array([3, 4, 5])):
        assert generate(model, prompt, 8) == new_ids


def test_generate_stops_at_an_end_token_and_gives_it_last(tiny_config: ModelConfig) -> None:
    model = random_model(replace(tiny_config, eos_token_ids=()))
    endless = generate(model, [3, 4, 5], 8)
    end = endless[4]

    model.config = replace(tiny_config, eos_token_ids=(60, end))

    assert generate(model, [3, 4, 5], 8) == endless[: endless.index(end) + 1]


def test_generate_stops_where_the_context_is_full(tiny_config: ModelConfig) -> None:
    model = random_model(replace(tiny_config, max_position_embeddings=6, eos_token_ids=()))

    # The sixth token still has a place in the context, and the logits after it name one more.
    assert len(generate(model, [3, 4, 5], 100)) == 4


def test_generate_refuses_an_empty_prompt(tiny_config: ModelConfig) -> None:
    with pytest.raises(ContextLengthError, match="The prompt has no tokens"):
        generate(Transformer(tiny_config), [], 8)


def test_sampling_with_one_seed_gives_the_same_tokens(tiny_config: ModelConfig) -> None:
    model = random_model(replace(tiny_config, eos_token_ids=()))

    def sample(seed: int) -> list[int]:
        return generate(model, [3, 4], 20, temperature=1.0, generator=torch.Generator().manual_seed(seed))

    assert sample(7) == sample(7)
    assert sample(7) != sample(8)


def test_sampling_draws_from_the_tempered_softmax(tiny_config: ModelConfig) -> None:
    model = random_model(replace(tiny_config, vocab_size=5, num_hidden_layers=1, eos_token_ids=()))
    generator = torch.Generator().manual_seed(0)

    draws = [generate(model, [3, 4], 1, temperature=2.0, generator=generator)[0] for _ in range(500)]

    expected = torch.softmax(model(torch.tensor([[3, 4]]))[0, -1] / 2.0, dim=-1)
    shares = torch.bincount(torch.tensor(draws), minlength=5) / 500
    # Three standard deviations of a share of 500 draws are at most 0.067.
    torch.testing.assert_close(shares, expected.detach(), atol=0.07, rtol=0)


@pytest.mark.real_model
def test_smollm2_gives_the_logits_and_greedy_tokens_of_transformers(smollm2_checkpoint: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(smollm2_checkpoint, dtype=torch.float32).eval()
    ours = load_checkpoint(smollm2_checkpoint)
    tokenizer = Tokenizer.from_file(str(smollm2_checkpoint / "tokenizer.json"))
    ids = tokenizer.encode("The sea was calm that morning, and the fishermen pushed their boats down.").ids

    with torch.no_grad():
        expected, logits = theirs(torch.tensor([ids])).logits, ours(torch.tensor([ids]))
        continued = theirs.generate(torch.tensor([ids]), max_new_tokens=2, do_sample=False)[0, len(ids) :].tolist()

    # float32 on both sides through 30 layers. Measured: 4.9e-5 on logits of up to 32.6; from the same model in float64
    # ours differ by 4.3e-5, transformers' by 4.8e-5.
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert generate(ours, ids, 2) == continued
