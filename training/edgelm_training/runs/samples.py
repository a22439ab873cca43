"""Texts that a model writes while it is trained, to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from edgelm.text.tokenizer import Tokenizer
from edgelm_training.model import Transformer, generate
from edgelm_training.runs.recipe import Sample
from edgelm_training.settings.settings import SettingError
from edgelm_training.settings.train_config import TrainConfig


def check_prompts(config: TrainConfig, encode: Callable[[str], Sequence[int]], context: int) -> None:
    """Check that there is room to go on with each of the config's prompts, before a run begins.

    Raises:
        SettingError: a prompt fills the context, in tokens as `encode` makes them.
    """
    for prompt in config.sample_prompts if config.sample_every else ():
        if (count := len(encode(prompt))) >= context:
            raise SettingError(
                f"sample_prompts has a prompt of {count} tokens, {prompt!r:.60}; the model's context of {context} has "
                "no room for more behind it. Shorten it, or leave it out."
            )


def write_samples(
    model: Transformer, tokenizer: Tokenizer, encode: Callable[[str], Sequence[int]], config: TrainConfig, step: int
) -> list[Sample]:
    """Continue each of the config's prompts with the naive loop; the same weights and step give the same texts.

    encode: turns a prompt into the tokens that the model continues.
    """
    samples = []
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed + step)
    # A compiled model would be compiled anew for each length.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for prompt in config.sample_prompts:
            ids = list(encode(prompt)) or [0]
            begun = len(ids) if model.config.encoder is None else 0
            room = model.config.max_position_embeddings - begun
            new_ids = generate(
                model, ids, min(config.sample_tokens, room), temperature=config.sample_temperature, generator=generator
            )
            samples.append(Sample(prompt=prompt, text=tokenizer.decode(new_ids)))
    return samples
