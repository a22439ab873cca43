"""Merging: an adapter's products added to the weights of its base, which gives a checkpoint like any other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, ConfigError
from edgelm.extras import entry_point
from edgelm.package.adapter import why_not_trained
from edgelm.package.peft_format import CONFIG_FILE as ADAPTER_CONFIG_FILE
from edgelm.package.replaceable import is_same_folder
from edgelm_training.adaptation.lora import linear_names
from edgelm_training.adaptation.quantized_linear import on_grid
from edgelm_training.checkpoints.adapter import Adapter, check_layers, read_adapter
from edgelm_training.checkpoints.answer_end import with_end_of_answers
from edgelm_training.checkpoints.checkpoint import check_is_checkpoint, read_weights, save_weights, weights_sha256
from edgelm_training.model import Transformer
from edgelm_training.runs.device import TYPES
from edgelm_training.runs.run_folder import RunFolder

DTYPES = ("same", *TYPES)
_NAMES = {kind: name for name, kind in TYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What was merged.

    checked: whether the adapter says which base it belongs to, and it was this one. notes: what was done with its
    layers, for the user.
    """

    output: Path
    adapter: Path
    base: Path
    layers: int
    checked: bool
    notes: tuple[str, ...] = ()


def merge_adapter(
    folder: str | Path, output: str | Path, *, base: str | Path | None = None, dtype: str = "same"
) -> Merged:
    """Write the checkpoint folder of a base with an adapter merged into it, whole or not at all.

    folder: an adapter of `edgelm finetune` or PEFT, or the folder of a run, whose best adapter is taken (the newest
    where nothing was validated). base: the checkpoint folder; None: the one that the adapter names. dtype: of the
    weights, one of DTYPES; `same` keeps those of the base. Sums are in float32, and rounded once.

    An adapter that learned on a base in 4 bits is merged into that base: its layers are put on their grid first.

    Raises:
        ConfigError: dtype is unknown, no base is known, or it is the output too.
        CheckpointError: there is no adapter, it belongs to another base, it does not fit, what comes of it is not
            finite, or the output is refused.
        MissingExtraError: another program trained the adapter, and the extra `export` is not installed.
        TrainingError: another version of edgelm has saved a checkpoint of the run.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    adapter = read_adapter(adapter_folder(folder))
    base = _base_folder(adapter, base)
    if is_same_folder(Path(output), base):
        raise ConfigError(
            f"output is {output}, the base, without which its runs cannot go on. Choose another folder: -o FOLDER."
        )
    checked = _check_base(adapter, base)
    config, weights = read_weights(base)
    notes: tuple[str, ...] = ()
    if adapter.base.sha256 is None:
        adapter, notes = _with_layers_of(config, adapter)
    check_layers(adapter, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    wanted = {name: TYPES.get(dtype, tensor.dtype) for name, tensor in weights.items()}
    if adapter.base.grid is not None:
        with torch.device("meta"):
            linears = [f"{name}.weight" for name in linear_names(Transformer(config))]
        weights |= {name: on_grid(weights[name]) for name in linears}
    for layer, (a, b) in adapter.matrices.items():
        name = f"{layer}.weight"
        weights[name] = weights[name].float() + adapter.scales[layer] * (b.float() @ a.float())
    merged = {name: tensor.to(wanted[name]).contiguous() for name, tensor in weights.items()}
    for layer in adapter.matrices:
        if not merged[f"{layer}.weight"].isfinite().all():
            kind = wanted[f"{layer}.weight"]
            raise CheckpointError(
                f"{layer} with the adapter in {adapter.folder} has values that {_NAMES.get(kind, kind)} does not hold: "
                "the adapter is damaged, or its lora_alpha is too large. fp16 holds the least: --dtype fp32."
            )
    config = replace(config, eos_token_ids=with_end_of_answers(config.eos_token_ids, base))
    save_weights(merged, config, output, text_files_from=base)
    return Merged(
        output=Path(output),
        adapter=adapter.folder,
        base=base,
        layers=len(adapter.matrices),
        checked=checked,
        notes=notes,
    )


def adapter_folder(folder: str | Path) -> Path:
    """Return the adapter's own folder: of a run, that of its best checkpoint, else of its newest.

    Raises:
        CheckpointError: there is none.
        TrainingError: another version of edgelm has saved a checkpoint of the run.
    """
    folder = Path(folder)
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return folder
    run = RunFolder(folder)
    saved = run.best() or run.newest()
    if saved is None or not (saved.path / ADAPTER_CONFIG_FILE).is_file():
        raise CheckpointError(why_not_trained(folder))
    return saved.path


def _base_folder(adapter: Adapter, base: str | Path | None) -> Path:
    named = base or adapter.base.name
    if named is None or not (Path(named) / "config.json").is_file():
        raise ConfigError(
            f"The base of the adapter in {adapter.folder} is {named or 'not known'}, which is no checkpoint folder "
            "here. Name it: --base. `edgelm import` makes one of a downloaded model."
        )
    check_is_checkpoint(named)
    return Path(named)


def _with_layers_of(config: ModelConfig, adapter: Adapter) -> tuple[Adapter, tuple[str, ...]]:
    """Return an adapter of PEFT's with the base's layers, and notes: the exporter knows what families call them."""
    purpose = "An adapter that another program trained"
    layers_of_checkpoint = entry_point("edgelm.adapter_layers", "checkpoint", extra="export", purpose=purpose)
    scaled = {
        layer: (a.float().numpy(), (adapter.scales[layer] * b.float()).numpy())
        for layer, (a, b) in adapter.matrices.items()
    }
    matrices, notes = layers_of_checkpoint(scaled, config, adapter.base.name, adapter.folder)
    tensors = {layer: (torch.from_numpy(a), torch.from_numpy(b)) for layer, (a, b) in matrices.items()}
    return replace(adapter, matrices=tensors, scales=dict.fromkeys(tensors, 1.0)), notes


def _check_base(adapter: Adapter, base: Path) -> bool:
    if adapter.base.sha256 is None:
        return False
    found = weights_sha256(base)
    if found != adapter.base.sha256:
        raise CheckpointError(
            f"The adapter in {adapter.folder} was trained on {adapter.base.name} (weights {adapter.base.sha256[:12]}…)"
            f"; the weights in {base} are others ({found[:12]}…). Name the right base: --base."
        )
    return True
