"""The optimizers of a run: AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from edgelm.errors import TrainingError
from edgelm_training.layers.mamba import Mamba
from edgelm_training.settings.train_config import TrainConfig

Named = dict[str, nn.Parameter]


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Return the optimizers of all parameters that require a gradient; their learning rate is set before each step.

    Matrices decay; norms, biases, embeddings (a tied head among them) and Mamba's rates do not. A group's `lr_factor`
    multiplies the learning rate of the run.

    Raises:
        TrainingError: one of them is in no optimizer, or a group has a learning rate of its own.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizers = _BUILDERS[config.optimizer](trained, _tables(model), config)
    held = {parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]}
    if left := [name for name, parameter in trained.items() if parameter not in held]:
        raise TrainingError(
            f"The optimizer {config.optimizer!r} leaves {len(left)} parameters as they are, {left[0]} the first, while "
            "they take gradients. Give each to one, or freeze it: requires_grad_(False)."
        )
    for optimizer in optimizers:
        if own := {group.get("lr") for group in optimizer.param_groups} - {optimizer.defaults.get("lr")}:
            raise TrainingError(
                f"The optimizer {config.optimizer!r} has a group with the learning rate {own.pop():g}, in whose place "
                "each step sets that of the run. Give the group a factor of that one instead: lr_factor."
            )
    return optimizers


def set_learning_rate(optimizers: Iterable[Optimizer], learning_rate: float) -> None:
    """Set the learning rate of all groups, times the `lr_factor` of those that have one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_factor", 1.0)


def _tables(model: nn.Module) -> set[nn.Parameter]:
    """Return what has the shape of a matrix and is none: embeddings, and the logs of the rates at which Mamba forgets,
    which a decay would pull to one (its authors' code has none for them either).
    """
    embeddings = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return embeddings | {module.A_log for module in model.modules() if isinstance(module, Mamba)}


def _adamw(trained: Named, tables: set[nn.Parameter], config: TrainConfig) -> list[Optimizer]:
    decayed = [parameter for parameter in trained.values() if parameter.ndim >= 2 and parameter not in tables]
    plain = [parameter for parameter in trained.values() if parameter.ndim < 2 or parameter in tables]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    # One kernel for all steps of an update; the loop over tensors is slower, and the results differ in the last bit.
    fused = all(parameter.device.type in ("cpu", "cuda", "mps", "xpu") for parameter in trained.values())
    return [
        torch.optim.AdamW(
            [group for group in groups if group["params"]],
            betas=(config.beta1, config.beta2),
            eps=config.adam_epsilon,
            fused=fused,
        )
    ]


def _muon(trained: Named, tables: set[nn.Parameter], config: TrainConfig) -> list[Optimizer]:
    """Orthogonalize the updates of hidden matrices (Keller Jordan, kellerjordan.github.io/posts/muon).

    Updates are scaled to the size of AdamW's (arXiv:2502.16982), so that one learning rate and one weight decay serve
    both. The head is no hidden matrix: its rows are the logits of single tokens.
    """
    matrices = {
        name: parameter
        for name, parameter in trained.items()
        if parameter.ndim == 2 and parameter not in tables and not name.startswith("lm_head.")
    }
    rest = {name: parameter for name, parameter in trained.items() if name not in matrices}
    optimizers = _adamw(rest, tables, config) if rest else []
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                list(matrices.values()),
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


_BUILDERS: dict[str, Callable[[Named, set[nn.Parameter], TrainConfig], list[Optimizer]]] = {
    "adamw": _adamw,
    "muon": _muon,
}


def state_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """Return the optimizers' tensors by name, `MODEL PARAMETER.STATE`: the tensors themselves, not copies.

    Before the first step there are none; `initialize_state` makes them.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def group_numbers(optimizers: Iterable[Optimizer]) -> list[dict[str, Any]]:
    """Return the numbers of each group but its learning rate: settings, which no step changes."""
    return [
        {key: value for key, value in group.items() if isinstance(value, (int, float)) and key != "lr"}
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]


def refuse_unsaved_state(optimizers: Sequence[Optimizer], numbers: list[dict[str, Any]]) -> None:
    """Check, behind a step, that optimizers keep what steps depend on where a checkpoint has it: in tensors.

    numbers: their `group_numbers` before the step.

    Raises:
        TrainingError: one keeps something else with a parameter, or in a group: a run could not go on, or would be
            another run.
    """
    kept = [
        (optimizer, f"{key} of a parameter")
        for optimizer in optimizers
        for state in optimizer.state.values()
        for key, value in state.items()
        if not isinstance(value, Tensor)
    ]
    owners = [optimizer for optimizer in optimizers for _ in optimizer.param_groups]
    kept += [
        (owner, f"{key} of a group")
        for owner, before, now in zip(owners, numbers, group_numbers(optimizers), strict=True)
        for key in now
        if now[key] != before.get(key)
    ]
    if kept:
        optimizer, place = kept[0]
        raise TrainingError(
            f"The optimizer {type(optimizer).__name__} keeps {place}, which is no tensor, so no checkpoint holds it: "
            "the run could not go on as if nothing had interrupted it. Let it keep a tensor with each parameter."
        )


def initialize_state(optimizers: Iterable[Optimizer], parameters: Collection[nn.Parameter]) -> None:
    """Make the state tensors of these parameters, without a step of the weights: they are to be overwritten by those of
    a checkpoint. A parameter that never had a gradient has none.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter) if parameter in parameters else None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
