"""FinetuneConfig: the settings of fine-tuning, and what each method chooses where they are not set."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgelm.number_bounds import MOST, is_positive
from edgelm_training.settings.settings import SettingError, setting
from edgelm_training.settings.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a method is, and its defaults.

    preferences: learns which of two answers is better, instead of one answer. adapter: learns matrices of low rank
    beside the frozen ones. quantized: the frozen ones are in 4 bits.
    """

    learning_rate: float
    epochs: float
    preferences: bool = False
    adapter: bool = True
    quantized: bool = False


# Learning rates as in the papers and in PEFT's and TRL's recipes: an adapter bears, and needs, ten times that of a
# whole model (arXiv:2405.09673), preferences a fraction of it.
METHODS: dict[str, Method] = {
    "sft": Method(learning_rate=2e-5, epochs=3, adapter=False),
    "lora": Method(learning_rate=2e-4, epochs=3),
    "qlora": Method(learning_rate=2e-4, epochs=3, quantized=True),
    "dpo": Method(learning_rate=1e-5, epochs=1, preferences=True),
}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Settings of fine-tuning.

    Raises:
        SettingError: a value is outside its range; the message names the setting, the value and the range.
    """

    model: str | None = setting(None, "The checkpoint folder to start from; `edgelm import` makes one.")
    data: tuple[str, ...] = setting((), "Conversations, or with dpo preferences: files, folders, globs; several times.")
    method: str = setting("lora", "What learns, and from what.", choices=tuple(METHODS))
    epochs: float | None = setting(None, "Times to go through the data.  [default: 3; dpo: 1]")
    validation_fraction: float = setting(0.05, "Share of the data that is kept out of training, by a hash.")
    validation_data: tuple[str, ...] = setting((), "Validate on these files instead of a share of the data.")
    rank: int = setting(16, "The rank of an adapter's matrices; 0 with dpo: the whole model learns.")
    alpha: float | None = setting(None, "What an adapter adds is multiplied by alpha / rank.  [default: 2 · rank]")
    dropout: float = setting(0.0, "Share of an adapter's inputs that is dropped while it learns.")
    target_modules: tuple[str, ...] = setting((), "Layers with adapters, such as q_proj.  [default: all in the blocks]")
    source_language: str | None = setting(None, "For a translator: the language of the sources, such as eng_Latn.")
    target_language: str | None = setting(None, "For a translator: the language of the answers, such as fra_Latn.")
    dpo_beta: float = setting(0.1, "With dpo: how strongly the model is held to the one it began as.")
    base_sha256: str | None = setting(None, "Refuse another model than this; a run writes down its own.")

    # Where fine-tuning chooses, or is used to, other values than pretraining.
    max_steps: int | None = setting(None, "Train for this many steps.  [default: as many as `epochs` are]")
    sequence_length: int | None = setting(
        None, "Tokens in a row; longer conversations are left out.  [default: the longest one's, at most 2048]"
    )
    global_batch_size: int | None = setting(None, "Rows in a step, over all processes.  [default: 8]")
    learning_rate: float | None = setting(None, "The peak, after the warm-up.  [default: 2e-4; sft: 2e-5; dpo: 1e-5]")
    weight_decay: float = setting(0.0, "For matrices; norms, biases and embeddings have none.")
    beta2: float = setting(0.999, "AdamW's decay of the gradient's square.")
    save_every: int = setting(50, "Save a checkpoint each N steps (and at the end).")
    eval_every: int = setting(50, "Measure the validation loss at first, each N steps and before each save; 0: never.")
    sample_every: int = setting(50, "Let the model answer the sample prompts each N steps and at the end; 0: never.")
    sample_prompts: tuple[str, ...] = setting((), "A user's message that it answers; may be given several times.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise SettingError(f"epochs is {self.epochs}; it must be more than 0, and finite.")
        for name in ("validation_fraction", "dropout"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise SettingError(f"{name} is {share}; it must be from 0 to below 1.")
        if self.rank < (0 if self.method == "dpo" else 1):
            raise SettingError(f"rank is {self.rank}; it must be 1 or more. The whole model learns with --method sft.")
        if self.rank > MOST:
            raise SettingError(f"rank is {self.rank}; it must be at most {MOST}.")
        for name in ("alpha", "dpo_beta"):
            if (factor := getattr(self, name)) is not None and not is_positive(factor):
                raise SettingError(f"{name} is {factor}; it must be more than 0, and a number that float32 holds.")
        if self.qat is not None and self.has_adapter:
            raise SettingError(f"qat is {self.qat!r}, for which the whole model must learn: use --method sft.")
        if self.teacher is not None and METHODS[self.method].preferences:
            raise SettingError(
                "teacher is set, and method is 'dpo', which learns from preferences alone. Leave it out."
            )

    def idle(self) -> dict[str, str]:
        """Name the settings that change nothing beside these others, each with what it is for."""
        found = super().idle()
        if not METHODS[self.method].adapter:
            found |= dict.fromkeys(("rank", "alpha", "dropout", "target_modules"), "--method lora, qlora or dpo")
        elif self.rank == 0:
            found |= dict.fromkeys(("alpha", "dropout", "target_modules"), "an adapter, which --rank 0 has not")
        if METHODS[self.method].preferences:
            found["z_loss"] = "--method sft, lora or qlora"
        else:
            found["dpo_beta"] = "--method dpo"
        if self.validation_data:
            found["validation_fraction"] = "runs without --validation-data"
        return found

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter learns, not the model itself."""
        return METHODS[self.method].adapter and self.rank > 0
