"""The optimizers: which parameters decay, which Muon takes, and that its updates are orthogonal."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from model_features import FEATURES, config_with
from tiny_training_runs import loss_log, settings

from edgelm.config import ModelConfig
from edgelm.errors import TrainingError
from edgelm_training.model import Transformer
from edgelm_training.pretrain import pretrain
from edgelm_training.runs.optimizer import (
    _BUILDERS,
    build_optimizers,
    group_numbers,
    initialize_state,
    refuse_unsaved_state,
    set_learning_rate,
    state_tensors,
)
from edgelm_training.settings.train_config import OPTIMIZERS, TrainConfig


@pytest.fixture(params=[False, True], ids=["own head", "tied head"])
def model(request: pytest.FixtureRequest, tiny_config: ModelConfig) -> Transformer:
    torch.manual_seed(0)
    return Transformer(dataclasses.replace(tiny_config, tie_word_embeddings=request.param, attention_bias=True))


def names_of(model: Transformer, parameters: list[torch.nn.Parameter]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if any(parameter is other for other in parameters)}


def test_the_optimizers_have_the_settings_that_were_given(model: Transformer) -> None:
    given = {"beta1": 0.8, "beta2": 0.7, "adam_epsilon": 1e-5, "weight_decay": 0.3, "momentum": 0.6}
    adamw, muon = build_optimizers(model, TrainConfig(optimizer="muon", **given))
    set_learning_rate([adamw, muon], 0.02)

    assert {(group["betas"], group["eps"]) for group in adamw.param_groups} == {((0.8, 0.7), 1e-5)}
    assert {(group["momentum"], group["weight_decay"]) for group in muon.param_groups} == {(0.6, 0.3)}
    assert {group["lr"] for optimizer in (adamw, muon) for group in optimizer.param_groups} == {0.02}


def test_matrices_decay_and_norms_biases_and_embeddings_do_not(model: Transformer) -> None:
    (adamw,) = build_optimizers(model, TrainConfig(weight_decay=0.3))

    decayed, plain = (names_of(model, group["params"]) for group in adamw.param_groups)

    assert [group["weight_decay"] for group in adamw.param_groups] == [0.3, 0.0]
    assert decayed | plain == {name for name, _ in model.named_parameters()}
    assert plain == {name for name in decayed | plain if "norm" in name or name.endswith("bias") or "embed" in name}
    assert adamw.defaults["fused"]


def test_the_rates_at_which_mamba_forgets_are_no_matrices() -> None:
    jamba = Transformer(config_with(FEATURES["Mamba"]))
    rates = {name for name, _ in jamba.named_parameters() if name.endswith("A_log")}
    assert len(rates) == 2

    (adamw,), (plain, muon) = (build_optimizers(jamba, TrainConfig(optimizer=name)) for name in ("adamw", "muon"))

    assert rates <= names_of(jamba, adamw.param_groups[1]["params"])
    assert rates <= names_of(jamba, plain.param_groups[1]["params"])
    assert not rates & names_of(jamba, muon.param_groups[0]["params"])


def test_muon_takes_the_matrices_of_the_blocks(model: Transformer) -> None:
    adamw, muon = build_optimizers(model, TrainConfig(optimizer="muon"))

    matrices = names_of(model, [parameter for group in muon.param_groups for parameter in group["params"]])
    rest = names_of(model, [parameter for group in adamw.param_groups for parameter in group["params"]])

    assert matrices == {name for name, _ in model.named_parameters() if "proj.weight" in name}
    assert not matrices & rest
    assert matrices | rest == {name for name, _ in model.named_parameters()}


def test_an_update_of_muon_has_equal_singular_values_of_adamws_size(model: Transformer) -> None:
    _, muon = build_optimizers(model, TrainConfig(optimizer="muon", weight_decay=0.0))
    matrix = model.model.layers[0].mlp.up_proj.weight  # 40 x 24
    before = matrix.detach().clone()
    matrix.grad = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    set_learning_rate([muon], 0.01)

    muon.step()

    singular = torch.linalg.svdvals((before - matrix.detach()) / (0.01 * 0.2 * 40**0.5))
    # Five bfloat16 Newton-Schulz steps bring them near 1, by design not nearer. Measured: 0.70 to 1.20.
    assert 0.6 < singular.min() < singular.max() < 1.3


def test_parameters_without_gradient_are_left_alone(model: Transformer) -> None:
    model.model.embed_tokens.requires_grad_(False)
    (adamw,) = build_optimizers(model, TrainConfig())
    names = names_of(model, [parameter for group in adamw.param_groups for parameter in group["params"]])
    assert "model.embed_tokens.weight" not in names


class _Counting(torch.optim.SGD):
    """An optimizer of a researcher, which counts its steps with each parameter, or in its groups."""

    in_group = False

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for counter in [group] if self.in_group else [self.state[parameter] for parameter in group["params"]]:
                counter["steps"] = counter.get("steps", 0) + 1


@pytest.mark.parametrize(("in_group", "place"), [(False, "of a parameter"), (True, "of a group")])
def test_an_optimizer_whose_state_no_checkpoint_would_hold_is_refused(
    in_group: bool, place: str, model: Transformer
) -> None:
    adamw, counting = *build_optimizers(model, TrainConfig()), _Counting([model.model.embed_tokens.weight])
    counting.in_group = in_group
    numbers = group_numbers([adamw, counting])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate([adamw, counting], 0.5)
    adamw.step()
    refuse_unsaved_state([adamw, counting], numbers)
    counting.step()
    with pytest.raises(TrainingError, match=rf"optimizer _Counting keeps steps {place}, which is no .* keep a tensor"):
        refuse_unsaved_state([adamw, counting], numbers)


def test_a_run_by_such_an_optimizer_ends_with_its_first_step(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_BUILDERS, "adamw", lambda trained, *_: [_Counting(list(trained.values()))])
    with pytest.raises(TrainingError, match="optimizer _Counting keeps steps"):
        pretrain(settings(tiny_shards, tmp_path / "run", eval_every=0))
    assert len(loss_log(tmp_path / "run")) == 0


def test_a_parameter_that_no_optimizer_holds_is_refused(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_BUILDERS, "adamw", lambda *_: [torch.optim.SGD([model.model.embed_tokens.weight])])
    left = len(list(model.parameters())) - 1
    with pytest.raises(TrainingError, match=rf"'adamw' leaves {left} parameters .*, model\.layers\.0\..* the first"):
        build_optimizers(model, TrainConfig())


def test_a_group_learns_by_a_factor_of_the_runs_rate_and_by_no_rate_of_its_own(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = list(model.parameters())

    def build(name: str, value: float) -> list[torch.optim.Optimizer]:
        groups = [{"params": parameters[:1], name: value}, {"params": parameters[1:]}]
        monkeypatch.setitem(_BUILDERS, "adamw", lambda *_: [torch.optim.SGD(groups)])
        return build_optimizers(model, TrainConfig())

    with pytest.raises(
        TrainingError, match=r"'adamw' has a group with the learning rate 0\.5, .* instead: lr_factor\."
    ):
        build("lr", 0.5)
    optimizers = build("lr_factor", 0.1)
    set_learning_rate(optimizers, 0.02)
    assert [group["lr"] for group in optimizers[0].param_groups] == [pytest.approx(0.002), 0.02]


def test_every_optimizer_of_the_settings_is_built(model: Transformer) -> None:
    assert all(build_optimizers(model, TrainConfig(optimizer=name)) for name in OPTIMIZERS)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_is_made_without_a_change_of_the_weights(optimizer: str, model: Transformer) -> None:
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert state_tensors(model, optimizers) == {}

    initialize_state(optimizers, set(model.parameters()))

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    names = state_tensors(model, optimizers)
    assert "model.norm.weight.exp_avg" in names
    assert ("model.layers.0.mlp.up_proj.weight.momentum_buffer" in names) == (optimizer == "muon")
