"""The data of a fine-tuning: what is read for a method and a model, in rows, and what the user is told of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from edgelm.config import ModelConfig
from edgelm.counted import counted
from edgelm.errors import DataError
from edgelm_training.conversations.chats import Chats, load_chats
from edgelm_training.conversations.preferences import load_preferences
from edgelm_training.rows.chat_rows import ChatRows
from edgelm_training.rows.preference_rows import PreferenceRows
from edgelm_training.rows.source_rows import SourceRows, load_pairs
from edgelm_training.runs.train_log import Reporter
from edgelm_training.settings.finetune_config import METHODS, FinetuneConfig
from edgelm_training.settings.settings import SettingError
from edgelm_training.texts.corpus import SEARCHED_FOR_OBJECTS, describe_passed_over

# Rows are as long as the longest conversation needs, in steps of 64 and up to this, where the config does not say.
LONGEST_ROW = 2048

AnyRows = ChatRows | PreferenceRows | SourceRows


def load_data(config: FinetuneConfig, model: ModelConfig) -> tuple[AnyRows, AnyRows | None, FinetuneConfig]:
    """Return the rows to train and to validate on, and the config with their length.

    Raises:
        SettingError: the method does not fit the model, or the rows are longer than its context.
        DataError: the data is missing or broken, does not fit the rows, or is of another tokenizer than the model.
    """
    load, rows = _reading(config, model)
    folder = config.known("model")
    fraction = 0.0 if config.validation_data else config.validation_fraction
    training, held_out = load(config.data, folder, validation_fraction=fraction)
    if config.validation_data:
        held_out, _ = load(config.validation_data, folder)
    if training.vocab_size > model.vocab_size:
        raise DataError(
            f"The tokenizer in {folder} has {training.vocab_size} tokens, the model {model.vocab_size}: they do "
            "not belong together. Import the model again."
        )
    length = config.sequence_length or _row_length(model, training, held_out)
    if length > _context(model):
        raise SettingError(f"sequence_length is {length}, longer than the model's context of {_context(model)} tokens.")
    try:
        training_rows = rows(training, sequence_length=length, seed=config.seed)
    except DataError as error:
        raise DataError(f"{error} {_what_takes_them_in(length, _context(model))}") from error
    held_out_rows = None
    if len(held_out):
        try:
            held_out_rows = rows(held_out, sequence_length=length, seed=config.seed)
        except DataError as error:
            raise DataError(
                f"Of what is kept to validate on: {error} Shorten it, or validate on another file (--validation-data)."
            ) from error
    return training_rows, held_out_rows, replace(config, sequence_length=length)


def _reading(
    config: FinetuneConfig, model: ModelConfig
) -> tuple[Callable[..., tuple[Chats, Chats]], Callable[..., AnyRows]]:
    """Return what reads the data for a method and a model, and what makes rows of it."""
    preferences = METHODS[config.method].preferences
    if model.encoder is None:
        return (load_preferences, PreferenceRows) if preferences else (load_chats, ChatRows)
    if preferences:
        raise SettingError(
            f"method is {config.method!r}, and {config.model} has an encoder, which learns from pairs of source and "
            "answer. Use --method sft or lora."
        )
    load = partial(
        load_pairs, config=model, source_language=config.source_language, target_language=config.target_language
    )
    return load, partial(SourceRows, begin=len(model.decoder_prompt_ids))


def _row_length(model: ModelConfig, *splits: Chats) -> int:
    longest = max(int(np.diff(chats.ends, prepend=0).max()) for chats in splits if len(chats))
    return min(math.ceil(longest / 64) * 64, LONGEST_ROW, _context(model))


def _context(model: ModelConfig) -> int:
    return min(stack.max_position_embeddings for stack in (model, model.encoder or model))


def note_data(
    config: FinetuneConfig, training: AnyRows, validation: AnyRows | None, model: ModelConfig, reporter: Reporter
) -> None:
    """Say what was read, and what of it will not be learned, or not validated, as one may think."""
    kinds, group = training.kinds, training.chats_each
    splits = [rows for rows in (training, validation) if rows is not None]
    if passed_over := describe_passed_over((*config.data, *config.validation_data), searched=SEARCHED_FOR_OBJECTS):
        reporter.note(passed_over)
    taken = [len(rows.chats) // group - len(rows.left_out) for rows in splits]
    reporter.note(
        f"{counted(taken[0], *kinds)} to train on, {sum(taken[1:])} to validate; rows of "
        f"{training.sequence_length} tokens."
    )
    if validation is None and config.validation_fraction:
        reporter.note(
            "There is one alone, or one several times, so none is left to validate on: the run has no validation loss "
            "and no best checkpoint, only the latest."
        )
    left_out = [rows.chats.places[group * number] for rows in splits for number in rows.left_out]
    if left_out:
        reporter.note(
            f"Too long and left out: {counted(len(left_out), *kinds)}: "
            f"{', '.join(f'{file}:{line}' for file, line in left_out[:3])}"
            f"{', …' if len(left_out) > 3 else ''}. " + _what_takes_them_in(training.sequence_length, _context(model))
        )
    if validation is not None and (shared := _count_shared(training.chats, validation.chats) // group):
        reporter.note(
            f"{shared} of the {kinds[1]} to validate on are trained on too: neither the validation loss nor the best "
            "checkpoint says how well the rest is answered."
        )
    if not _has_end(training.chats, model):
        reporter.note(
            "No answer has a token at which the model stops, so it does not learn to stop. Let the chat template "
            "write eos_token behind an answer, in the {% generation %} block where it has one."
        )


def _what_takes_them_in(length: int, context: int) -> str:
    return "To take them in: --sequence-length." if length < context else "The model's context holds no more."


def _count_shared(training: Chats, validation: Chats) -> int:
    """Count the conversations of the validation data that are in the training data too."""
    trained = {training[number][0].tobytes() for number in range(len(training))}
    return sum(validation[number][0].tobytes() in trained for number in range(len(validation)))


def _has_end(chats: Chats, model: ModelConfig) -> bool:
    """Tell whether any answer has a token at which the model stops; templates may learn a line's end behind it."""
    return bool(np.isin(chats.token_ids[chats.learned], model.eos_token_ids).any())
