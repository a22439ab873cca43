"""Pretraining: a Transformer learns to predict the next token of a corpus.

`edgelm train` is its command. On many devices: torchrun --nproc-per-node 8 -m edgelm_training.pretrain big.toml
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from edgelm.config import ModelConfig
from edgelm.errors import ConfigError
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.adaptation.fake_quantization import quantized_precision, train_for
from edgelm_training.checkpoints.answer_end import with_end_of_answers
from edgelm_training.checkpoints.checkpoint import check_is_checkpoint, load_checkpoint, write_checkpoint
from edgelm_training.distillation import text_loss
from edgelm_training.model import Transformer
from edgelm_training.rows.batches import Batches
from edgelm_training.run import execute_run
from edgelm_training.runs.distributed import launched_workers
from edgelm_training.runs.memory_needed import check_memory, check_row_memory
from edgelm_training.runs.micro_batches import rows_of_step
from edgelm_training.runs.recipe import Recipe
from edgelm_training.runs.run_folder import RunFolder
from edgelm_training.runs.samples import check_prompts, write_samples
from edgelm_training.runs.train_log import Reporter
from edgelm_training.settings.pretrain_config import PretrainConfig
from edgelm_training.settings.scaling import LONGEST_CONTEXT, model_shape, parse_params, training_budget, usual_context
from edgelm_training.settings.schedule import warmup_or_usual
from edgelm_training.settings.settings import SettingError, unknown_key
from edgelm_training.texts.shards import Shards
from edgelm_training.trainer import Outcome

Config = TypeVar("Config", bound=PretrainConfig)

# What the steps of a run were made with.
FIXED = ("params", "model", "init")


def pretrain(settings: Mapping[str, Any], *, resume: bool = False, reporter: Reporter | None = None) -> Outcome:
    """Train a Transformer on shards; `settings` are fields of PretrainConfig.

    Raises:
        EdgeLMError: settings, data or run folder do not allow it, or the run failed; see `execute_run`.
    """
    return execute_run(PretrainConfig, settings, build_recipe, resume=resume, fixed=FIXED, reporter=reporter)


def build_recipe(config: Config, reporter: Reporter) -> tuple[Config, Recipe]:
    """Choose every setting that has no value, and make the model and its data.

    Raises:
        ConfigError: the size of the model is missing or contradictory, or its context is shorter than the rows.
        DataError: the shards are missing, empty, broken, or made with another tokenizer.
        CheckpointError: `init` or the teacher is no checkpoint folder, or it is broken.
    """
    if config.data is None:
        raise SettingError("data is not set: name a folder of shards (--data); `edgelm data prepare` makes one.")
    # A run that goes on has all of it in its own checkpoint: the one that it began with may be gone.
    saved = None if config.init is None else RunFolder(config.output).newest()
    init = config.init if saved is None else str(saved.path)
    for folder in (init, config.teacher):
        if folder is not None:
            check_is_checkpoint(folder)
    if config.qat is not None:
        quantized_precision(config.qat)  # a typo shows before a model is read or made, not after it
    shards = Shards.open(config.data)
    torch.manual_seed(config.seed)
    reporter.working("Making the model" if config.init is None else "Reading the model")
    model = _make_model(config, init, shards)
    model.activation_checkpointing = config.activation_checkpointing
    config = _with_budget(config, model.config, shards)
    _note_budget(config, model.config, shards, reporter)
    for_export = train_for(model, config.qat)
    if config.teacher is not None:
        reporter.working("Reading the teacher")
    loss, flops = text_loss(config, model, shards.folder)
    rows = partial(Batches, sequence_length=config.known("sequence_length"), seed=config.seed)
    validation = Shards.open(shards.folder, "validation")
    tokenizer = Tokenizer.load(shards.folder)
    if init is not None and saved is None:  # a run goes on from any folder
        config = replace(config, init=str(Path(init).absolute()))

    def encode(prompt: str) -> list[int]:
        # As `edgelm run --raw` reads it, so that both write the same; nothing is the beginning of a document.
        return tokenizer.encode_prompt(prompt) if prompt else list(shards.start_token_ids)

    check_prompts(config, encode, model.config.max_position_embeddings)
    recipe = Recipe(
        model=model,
        loss=loss,
        training_rows=rows(shards),
        validation_rows=rows(validation) if validation.num_tokens else None,
        data_fingerprint=shards.fingerprint,
        write_weights=lambda weights, folder: write_checkpoint(
            for_export(weights), model.config, folder, text_files_from=shards.folder
        ),
        sample=lambda step: write_samples(model, tokenizer, encode, config, step),
        flops_per_token=flops,
    )
    return config, recipe


def _make_model(config: PretrainConfig, init: str | None, shards: Shards) -> Transformer:
    if init is None:
        model, way_out = _model_config(config, shards), "Train a smaller one: --params."
    else:
        shards.check_tokenizer(init)
        model, way_out = _stored_config(config, init), "Go on with a smaller one: --init."
    _check_fit(model, config, shards)
    check_memory(model.count_parameters(), config, way_out)
    check_row_memory(model, _row_length(config, model), config)
    return Transformer(model) if init is None else load_checkpoint(init)


def _stored_config(config: PretrainConfig, folder: str) -> ModelConfig:
    """Return the config of the checkpoint to go on with, which no setting may change."""
    model = ModelConfig.load(folder)
    stored = model.to_dict()
    # Compared as configs: a file of settings has no place for a None inside of a table.
    changed = [
        name for name, value in (config.model or {}).items() if ModelConfig.from_dict(stored | {name: value}) != model
    ]
    if changed or config.params is not None:
        raise SettingError(f"init is {folder!r}, whose shape is settled; leave out {', '.join(changed) or 'params'}.")
    return model


def _model_config(config: PretrainConfig, shards: Shards) -> ModelConfig:
    if config.params is None and not config.model:
        raise SettingError("The size of the model is not set: --params 15M, or a table [model] in the TOML file.")
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in config.model or {}:
        if name not in fields:
            raise SettingError(f"[model] {unknown_key(name, fields)}")
    shape: dict[str, Any] = {"model_type": "llama", "vocab_size": shards.vocab_size}
    if config.params is not None:
        shape = model_shape(parse_params(config.params), shards.vocab_size)
    if config.sequence_length is not None:
        shape["max_position_embeddings"] = config.sequence_length
    ends = shards.end_token_ids or shards.start_token_ids
    end_ids = list(with_end_of_answers(ends, shards.folder))
    shape |= {"bos_token_id": next(iter(shards.start_token_ids), None), "eos_token_ids": end_ids}
    shape |= config.model or {}
    missing = [
        field.name
        for field in dataclasses.fields(ModelConfig)
        if field.default is dataclasses.MISSING and field.name not in shape
    ]
    if missing:
        raise SettingError(f"[model] lacks {', '.join(missing)}. Set them, or let --params choose what you do not set.")
    try:
        return ModelConfig.from_dict(shape)
    except ConfigError as error:
        raise SettingError(str(error)) from error


def _check_fit(model: ModelConfig, config: PretrainConfig, shards: Shards) -> None:
    if model.vocab_size < shards.vocab_size:
        raise SettingError(
            f"The model's vocab_size is {model.vocab_size}; the shards in {shards.folder} have {shards.vocab_size} "
            "different tokens. Leave vocab_size out, or prepare the shards with the model's tokenizer."
        )
    length = config.sequence_length
    if length is not None and length > model.max_position_embeddings:
        raise SettingError(
            f"sequence_length is {length}, longer than the model's context (max_position_embeddings is "
            f"{model.max_position_embeddings}). Shorten the rows, or give the model a longer context."
        )


def _row_length(config: PretrainConfig, model: ModelConfig) -> int:
    if config.sequence_length is not None:
        return config.sequence_length
    usual = LONGEST_CONTEXT if config.init is None else usual_context(model.count_parameters())
    return min(model.max_position_embeddings, usual)


def _with_budget(config: Config, model: ModelConfig, shards: Shards) -> Config:
    """Return the config with the model it has, and with the numbers that the scaling rules choose."""
    length = _row_length(config, model)
    budget = training_budget(
        model.count_active_parameters(),
        length,
        max_steps=config.max_steps,
        global_batch_size=rows_of_step(config, launched_workers().world_size),
        goes_on_with=None if config.init is None else shards.num_tokens,
    )
    return replace(
        config,
        model=model.to_dict(),
        sequence_length=length,
        global_batch_size=budget.global_batch_size,
        max_steps=budget.max_steps,
        learning_rate=config.learning_rate or budget.learning_rate,
        warmup_steps=warmup_or_usual(config.warmup_steps, budget.max_steps),
    )


def _note_budget(config: PretrainConfig, model: ModelConfig, shards: Shards, reporter: Reporter) -> None:
    steps, rows, length = (config.known(name) for name in ("max_steps", "global_batch_size", "sequence_length"))
    params, active = model.count_parameters(), model.count_active_parameters()
    context = model.max_position_embeddings
    of_context = f" (of a context of {context:,})" if config.init is None and length < context else ""
    size = f"{params:,} parameters" + ("" if active == params else f", {active:,} of them for a token")
    reporter.note(
        f"{size}; {steps:,} steps of {rows:,} rows of {length:,} tokens{of_context}: "
        f"{steps * rows * length:,}, of data that has {shards.num_tokens:,}; learning rate up to "
        f"{config.learning_rate:.3g}."
    )


if __name__ == "__main__":
    from edgelm.cli.main import main

    main(["train", *sys.argv[1:]])
