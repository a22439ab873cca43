"""Fine-tuning: a trained Transformer learns from conversations or preferences, whole or through an adapter.

`edgelm finetune` is its command. On many devices: torchrun --nproc-per-node 8 -m edgelm_training.finetune ft.toml
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgelm.config import ModelConfig
from edgelm.errors import TrainingError
from edgelm.generation_config import LANGUAGES
from edgelm.text.chat_encoding import encode_chat
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.languages import Languages
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.adaptation.fake_quantization import quantized_precision, train_for
from edgelm_training.adaptation.lora import (
    LoraConfig,
    adapter_weights,
    adapters_off,
    add_adapters,
    linear_names,
    target_names,
)
from edgelm_training.adaptation.quantized_linear import GRID_NAME
from edgelm_training.checkpoints.adapter import Base, write_adapter
from edgelm_training.checkpoints.answer_end import with_end_of_answers
from edgelm_training.checkpoints.checkpoint import (
    check_is_checkpoint,
    load_checkpoint,
    weights_sha256,
    write_checkpoint,
)
from edgelm_training.distillation import Loss, text_loss
from edgelm_training.dpo import answer_log_probabilities, count_pairs, dpo_loss
from edgelm_training.finetune_data import load_data, note_data
from edgelm_training.model import Transformer
from edgelm_training.rows.batches import Batch
from edgelm_training.run import execute_run
from edgelm_training.runs.distributed import launched_workers
from edgelm_training.runs.loss import count_targets
from edgelm_training.runs.memory_needed import FROZEN, LEARNING, check_memory
from edgelm_training.runs.micro_batches import rows_of_step
from edgelm_training.runs.recipe import Recipe, Sample
from edgelm_training.runs.samples import check_prompts, write_samples
from edgelm_training.runs.throughput import flops_per_token
from edgelm_training.runs.train_log import Reporter
from edgelm_training.settings.finetune_config import METHODS, FinetuneConfig
from edgelm_training.settings.schedule import warmup_or_usual
from edgelm_training.settings.settings import SettingError
from edgelm_training.trainer import Outcome

_GLOBAL_BATCH_SIZE = 8
# What the steps of a run were made with.
_FIXED = (
    "method",
    "rank",
    "alpha",
    "dropout",
    "target_modules",
    "dpo_beta",
    "base_sha256",
    "validation_fraction",
)


def finetune(settings: Mapping[str, Any], *, resume: bool = False, reporter: Reporter | None = None) -> Outcome:
    """Fine-tune a model on conversations or preferences; `settings` are fields of FinetuneConfig.

    With an adapter, the checkpoints of the run are adapters in PEFT's format; else they are whole models.

    Raises:
        EdgeLMError: settings, model, data or run folder do not allow it, or the run failed; see `execute_run`.
    """
    if "epochs" in settings and "max_steps" in settings:
        raise SettingError("epochs and max_steps both say how long to train; leave one of them out.")
    return execute_run(FinetuneConfig, settings, build_recipe, resume=resume, fixed=_FIXED, reporter=reporter)


def build_recipe(config: FinetuneConfig, reporter: Reporter) -> tuple[FinetuneConfig, Recipe]:
    """Choose every setting that has no value, and make the model and its data.

    Raises:
        ConfigError: the model is missing, or a setting does not fit it.
        CheckpointError: the model is no checkpoint folder, or it is broken.
        DataError: the data is missing or broken; the message begins with file and line.
        TrainingError: the model is not the one that the run began with.
    """
    reporter.working("Reading the model")
    model_config, config = _base_config(config)
    _check_memory(config, model_config.count_parameters())
    reporter.working("Reading the data")
    training, validation, config = load_data(config, model_config)
    config = _with_defaults(config, training.rows_per_epoch)
    note_data(config, training, validation, model_config, reporter)
    reporter.working("Reading the model")
    model, lora = _make_model(config)
    model.config = model_config
    model.activation_checkpointing = config.activation_checkpointing
    if lora is not None:
        _note_parameters(model, reporter)
    method = METHODS[config.method]
    if config.teacher is not None:
        reporter.working("Reading the teacher")
    loss, flops = _loss(config, model)
    for_export = train_for(model, config.qat)
    recipe = Recipe(
        model=model,
        loss=loss,
        training_rows=training,
        validation_rows=validation,
        data_fingerprint=training.chats.fingerprint,
        write_weights=_writer(config, model.config, lora, for_export),
        texts_each=2 if method.preferences or model.config.encoder is not None else 1,
        count=count_pairs if method.preferences else count_targets,
        sample=_sampler(config, model) if config.sample_prompts else None,
        flops_per_token=flops if model.config.encoder is None else None,  # a token of a source takes other ones
    )
    return config, recipe


def _base_config(config: FinetuneConfig) -> tuple[ModelConfig, FinetuneConfig]:
    if config.model is None:
        raise SettingError("model is not set: name the checkpoint folder to fine-tune.")
    if not config.data:
        raise SettingError("data is not set: name a file of conversations (--data), of dpo one of preferences.")
    for folder in (config.model, config.teacher):
        if folder is not None:
            check_is_checkpoint(folder)
    if config.qat is not None:
        quantized_precision(config.qat)  # a typo shows before the data is read, not after it
    model_config = _answering(config, ModelConfig.load(config.model))
    sha256 = weights_sha256(config.model)
    if config.base_sha256 not in (None, sha256):
        raise TrainingError(
            f"The weights in {config.model} are not those of the run: their hash is {sha256[:12]}…, base_sha256 is "
            f"{config.base_sha256[:12]}…. Name the folder of the right model (--model)."
        )
    return model_config, replace(config, base_sha256=sha256)


def _check_memory(config: FinetuneConfig, params: int) -> None:
    method = METHODS[config.method]
    if config.has_adapter:
        if not method.quantized:
            check_memory(params, config, "Less: --method qlora, or a smaller model.", bytes_each=FROZEN)
        return
    way_out = "Less: --rank 16, or a smaller model." if method.preferences else "Less: --method lora, or qlora."
    # A model that learns preferences is compared with a frozen copy of what it was.
    check_memory(params, config, way_out, bytes_each=LEARNING + FROZEN * method.preferences)


def _answering(config: FinetuneConfig, model: ModelConfig) -> ModelConfig:
    """Return the model's config, with how it learns to end an answer; with an encoder, with the language that it learns
    to answer in, and will answer in by itself.
    """
    folder = config.known("model")
    if model.encoder is None:
        for name in LANGUAGES:
            if (value := getattr(config, name)) is not None:
                raise SettingError(f"{name} is {value!r}; {folder} has no encoder. Leave it out.")
        return replace(model, eos_token_ids=with_end_of_answers(model.eos_token_ids, folder))
    languages = Languages(Tokenizer.load(folder), model)
    if config.target_language is None and not languages.is_chosen:
        raise SettingError(
            f"target_language is not set, and {folder} answers in {len(languages)} languages. Name the answers', "
            f"such as {next(iter(languages))}."
        )
    return languages.config_for(config.target_language)


def _with_defaults(config: FinetuneConfig, rows_per_epoch: int) -> FinetuneConfig:
    method = METHODS[config.method]
    batch = rows_of_step(config, launched_workers().world_size) or _GLOBAL_BATCH_SIZE
    max_steps = config.max_steps
    if config.epochs is not None or max_steps is None:
        max_steps = max(1, math.ceil((config.epochs or method.epochs) * rows_per_epoch / batch))
    return replace(
        config,
        epochs=None,  # said by max_steps from here on
        max_steps=max_steps,
        global_batch_size=batch,
        learning_rate=config.learning_rate or method.learning_rate,
        warmup_steps=warmup_or_usual(config.warmup_steps, max_steps),
        alpha=config.alpha or 2.0 * config.rank or None,
    )


def _make_model(config: FinetuneConfig) -> tuple[Transformer, LoraConfig | None]:
    quantized = METHODS[config.method].quantized
    if quantized and config.parallel == "fsdp":
        raise SettingError("parallel is 'fsdp', which cannot shard a base in 4 bits. Use 'ddp', or --method lora.")
    model = load_checkpoint(config.known("model"), quantized=quantized)
    if not config.has_adapter:
        return model, None
    kinds = config.target_modules or tuple(dict.fromkeys(name.rpartition(".")[2] for name in linear_names(model)))
    names = target_names(model, kinds)
    lora = LoraConfig(
        rank=config.rank, alpha=config.known("alpha"), dropout=config.dropout, target_modules=tuple(kinds)
    )
    torch.manual_seed(config.seed)
    add_adapters(model, names, lora)
    return model, lora


def _loss(config: FinetuneConfig, model: Transformer) -> tuple[Loss, float]:
    """Return the loss, and the operations of a token's passes."""
    flops = flops_per_token(model.config, config.known("sequence_length"))
    # A frozen base has only two of the three passes: forward, and back to the activations; none to its weights.
    saved = flops / 3 if config.has_adapter else 0.0
    if not METHODS[config.method].preferences:
        loss, flops = text_loss(config, model, Path(config.known("model")))
        return loss, flops - saved
    return _preference_loss(config, model), flops * 4 / 3 - saved


def _preference_loss(config: FinetuneConfig, model: Transformer) -> Loss:
    if config.has_adapter:

        def base(wrapped: nn.Module, batch: Batch) -> Tensor:
            with adapters_off(model):
                return answer_log_probabilities(wrapped, batch)

        return partial(dpo_loss, reference=base, beta=config.dpo_beta)
    first = copy.deepcopy(model).requires_grad_(False).eval()

    def before(_: nn.Module, batch: Batch) -> Tensor:
        return answer_log_probabilities(first.to(batch.ids_BT.device), batch)

    return partial(dpo_loss, reference=before, beta=config.dpo_beta)


def _writer(
    config: FinetuneConfig,
    model_config: ModelConfig,
    lora: LoraConfig | None,
    for_export: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> Callable[[dict[str, Tensor], Path], None]:
    folder = Path(config.known("model"))
    if lora is None:
        return lambda weights, target: write_checkpoint(
            for_export(weights), model_config, target, text_files_from=folder
        )
    grid = GRID_NAME if METHODS[config.method].quantized else None
    base = Base(name=str(folder.absolute()), sha256=config.base_sha256, grid=grid)
    return lambda weights, target: write_adapter(adapter_weights(weights), lora, base, target)


def _sampler(config: FinetuneConfig, model: Transformer) -> Callable[[int], list[Sample]]:
    folder = config.known("model")
    template, tokenizer = ChatTemplate.load(folder), Tokenizer.load(folder)
    if model.config.encoder is not None:
        languages = Languages(tokenizer, model.config)
        encode_source = partial(languages.source_ids, source=config.source_language, target=config.target_language)
        # The answer takes no room of the encoder's context.
        check_prompts(config, encode_source, model.config.encoder.max_position_embeddings + 1)
        return lambda step: write_samples(model, tokenizer, encode_source, config, step)
    assert template is not None  # the data was encoded with it

    def encode(prompt: str) -> list[int]:
        return encode_chat(template, tokenizer, [{"role": "user", "content": prompt}])

    check_prompts(config, encode, model.config.max_position_embeddings)
    return lambda step: write_samples(model, tokenizer, encode, config, step)


def _note_parameters(model: Transformer, reporter: Reporter) -> None:
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    reporter.note(f"{learned:,} parameters learn beside {model.config.count_parameters():,} frozen ones.")


if __name__ == "__main__":
    from edgelm.cli.main import main

    main(["finetune", *sys.argv[1:]])
