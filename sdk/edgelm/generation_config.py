"""GenerationConfig: how the next token is chosen and when to stop, validated once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgelm.arguments import as_path, check_boolean, is_number, is_whole
from edgelm.errors import ConfigError
from edgelm.files.regular_file import read_json_object
from edgelm.structure.constraint import Constraint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgelm.language_model import LanguageModel

    # Changes the row in place, or returns another of its shape.
    LogitsProcessor = Callable[[NDArray[np.float32], Sequence[int]], NDArray[np.float32] | None]
    TokenSampler = Callable[[NDArray[np.float32], np.random.Generator], int]


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Choose the sampler, the logits processors and the stopping rules of one generation.

    Every default is neutral: greedy, until an end token or the context is full. Penalties see the prompt and the
    answer, as in Hugging Face's processors; `presence_penalty` and `frequency_penalty` count the answer alone, as
    OpenAI defines them. What each field does, and when it is off, is a table in docs/guides/embed.md.

    Raises:
        ConfigError: a field is outside its range; the message names the field, the value and the range.
    """

    # None: until an end token or the end of the context; with a context_shift, at most as many as the context has
    max_new_tokens: int | None = None
    min_new_tokens: int = 0  # neither an end token nor a stop ends the answer before; a constraint that is over does
    # None: a text ends where the context is full; n: it goes on, and the model reads its first n tokens, and the newest
    context_shift: int | None = None
    temperature: float = 0.0  # 0.0 is greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1.0: off
    min_p: float = 0.0  # 0.0: off
    typical_p: float = 1.0  # 1.0: off (arXiv:2202.00666)
    repetition_penalty: float = 1.0  # arXiv:1909.05858
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0  # 0: off; n: no n tokens of prompt and answer come twice in this order (1705.04304)
    encoder_no_repeat_ngram_size: int = 0  # 0: off; n: no n tokens of the source come in the answer in this order
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)  # a copy is kept
    dry_multiplier: float = 0.0  # 0.0: off; else the penalty of a repeated sequence (DRY), which grows ...
    dry_base: float = 1.75  # ... by this factor with each token ...
    dry_allowed_length: int = 2  # ... beyond this length
    dry_breakers: Sequence[str] = ("\n", ":", '"', "*")  # tokens with these begin sequences anew
    xtc_probability: float = 0.0  # 0.0: off; else how often the top choices are excluded (XTC) ...
    xtc_threshold: float = 0.1  # ... which are those of this probability and more
    top_n_sigma: float = 0.0  # 0.0: off (arXiv:2411.07641)
    mirostat_tau: float = 0.0  # 0.0: off; else the surprise in bits that the answer aims at (arXiv:2007.14966) ...
    mirostat_eta: float = 0.1  # ... and how fast it corrects itself
    processors: Sequence[LogitsProcessor] = ()  # called with the logits [V] to change and the tokens before
    sampler: TokenSampler | None = None  # called with the logits [V] and a Generator, in place of the draw
    seed: int | None = None  # None: a fresh one
    stop: Sequence[str] = ()  # one text, or a list of them; kept as a tuple, as all lists here
    stop_token_ids: Sequence[int] = ()  # besides the model's own end tokens
    ignore_eos: bool = False
    logprobs: int | None = None  # None: off; n: the chosen token's log-probability and the n best alternatives
    constraint: Constraint | None = None  # the form that the answer must have
    token_healing: bool = False  # let the answer begin inside the prompt's last token
    visible_control_tokens: Sequence[str] = ()  # control tokens that are part of the text, such as "<think>"
    begins_text: bool = False  # the answer goes on with no text, as in a conversation: no space stands before it
    adapter: str | None = None  # one that LanguageModel.load_adapter loaded, by name; None: the model alone
    # None: off; else guess tokens ahead and check several in one step, where that is faster: from the text itself, or
    # with a smaller model that has the same tokenizer.
    speculation: Literal["prompt_lookup"] | LanguageModel | None = None
    exact_speculation: bool = False  # give the very tokens that are given without speculation, for some of the speed
    # Of a model that translates between languages that `LanguageModel.languages` lists; None: what its author chose.
    source_language: str | None = None
    target_language: str | None = None
    num_beams: int = 1  # 1: off; else search for the likeliest answer among so many, which then comes in one piece ...
    length_penalty: float = 1.0  # ... by log-probability over length to this power: above 0 longer answers gain

    def __post_init__(self) -> None:
        self._make_tuples()
        self._check_numbers_and_switches()
        self._check_objects()
        self._check_together()

    def _make_tuples(self) -> None:
        """Make tuples of the fields that are lists, also where one text stands in the place of a list of texts."""
        for name in (*_TEXTS, "stop_token_ids", "processors"):
            value = getattr(self, name)
            if name in _TEXTS and isinstance(value, str):
                value = (value,)
            if not isinstance(value, Iterable) or isinstance(value, (bytes, bytearray, Mapping)):
                kind = "a text or a list of texts" if name in _TEXTS else "a list"
                raise ConfigError(f"{name} is {value!r}; it must be {kind}, [] for none.")
            object.__setattr__(self, name, tuple(value))
        for name, one in _TEXTS.items():
            texts = getattr(self, name)
            if any(not isinstance(text, str) or not text for text in texts):
                raise ConfigError(f"{name} is {texts!r}; each {one} must be a text of at least one character.")
        if not all(is_whole(id_) and id_ >= 0 for id_ in self.stop_token_ids):
            raise ConfigError(f"stop_token_ids is {self.stop_token_ids!r}; token ids are whole numbers of 0 or more.")

    def _check_numbers_and_switches(self) -> None:
        changed = {name: value for name, neutral in _neutral().items() if (value := getattr(self, name)) is not neutral}
        for name, (low, high) in RANGES.items():
            if name not in changed:
                continue
            value = changed[name]
            if not is_number(value) or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}; it must be a number from {low} to {high}.")
            if name in WHOLE and not is_whole(value):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number.")
            if name in ABOVE_ZERO and value == 0:
                raise ConfigError(f"{name} is {value!r}; it must be above 0.")
        for name, value in changed.items():
            if isinstance(_neutral()[name], bool):
                check_boolean(name, value)

    def _check_objects(self) -> None:
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise ConfigError(
                f"constraint is {self.constraint!r}; make one with edgelm.Constraint.json_schema and the like."
            )
        functions = self.processors if self.sampler is None else (*self.processors, self.sampler)
        for function in functions:
            if not callable(function):
                raise ConfigError(f"processors and sampler must be callables; {function!r} is none.")
        if self.speculation is not None and self.speculation != PROMPT_LOOKUP:
            from edgelm.language_model import LanguageModel  # which stands on this module

            if not isinstance(self.speculation, LanguageModel):
                raise ConfigError(
                    f"speculation is {self.speculation!r}; it must be {PROMPT_LOOKUP!r}, a LanguageModel that drafts, "
                    "or None."
                )
        for name in LANGUAGES:
            if not isinstance(getattr(self, name), str | None):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be the name of a language, or None.")
        if not isinstance(self.adapter, str | None):
            raise ConfigError(f"adapter is {self.adapter!r}; it must be the name of a loaded adapter, or None.")
        if not isinstance(self.logit_bias, Mapping):
            raise ConfigError(f"logit_bias is {self.logit_bias!r}; it must map token ids to numbers.")
        for id_, bias in self.logit_bias.items():
            if not is_whole(id_) or not is_number(bias) or not abs(bias) <= _MAX_BIAS:
                raise ConfigError(
                    f"logit_bias has {id_!r}: {bias!r}; it must map token ids to numbers "
                    f"from {-_MAX_BIAS:g} to {_MAX_BIAS:g}."
                )
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def _check_together(self) -> None:
        """Check that no field shuts out another, or keeps it from doing anything."""
        if self.token_healing and self.constraint is not None:
            raise ConfigError("token_healing and constraint exclude each other; leave one out.")
        if self.num_beams > 1 and (refused := [name for name in _NOT_WITH_BEAMS if getattr(self, name)]):
            raise ConfigError(
                f"num_beams is {self.num_beams}, and {refused[0]} is {getattr(self, refused[0])!r}; beam search "
                f"chooses every token itself. Set {refused[0]} to {getattr(type(self), refused[0])!r}."
            )
        if self.sampler is not None and self.mirostat_tau:
            raise ConfigError(
                f"mirostat_tau is {self.mirostat_tau!r}, and there is a sampler, which chooses in its place; leave one "
                "out."
            )
        for name in OF_CHANCE:
            if getattr(self, name) and self.temperature == 0 and self.sampler is None:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, and temperature is 0, at which the likeliest token is chosen, "
                    f"and none drawn. Set a temperature above 0, or leave {name} out."
                )

    @classmethod
    def load(cls, folder: str | Path, *, decoder_prompt: int = 0) -> GenerationConfig:
        """Read the defaults that a model's author wrote into generation_config.json (none: the neutral ones).

        decoder_prompt: with how many tokens the decoder of a model with an encoder begins, all of which `min_length`
        counts there, and all but the first `min_new_tokens`; 0: there is no encoder, and `min_length`, which counts the
        prompt, is passed over.

        Keys of other programs are passed over; Hugging Face's `do_sample: false` means greedy, its `stop_strings` are
        `stop`, and the tokens of its `suppress_tokens` have a `logit_bias` that bans them.

        Raises:
            ConfigError: the file cannot be read, is no JSON object, or has a value outside of its range.
        """
        path = as_path(folder) / "generation_config.json"
        try:
            values = read_json_object(path)
            values = {"stop": values.get("stop_strings"), **values}
            names = {f.name for f in fields(cls)} - _NOT_IN_FILES
            known = {name: value for name, value in values.items() if name in names and value is not None}
            if not values.get("do_sample", "temperature" in known):
                known = {name: value for name, value in known.items() if name not in OF_CHANCE} | {"temperature": 0.0}
            elif "temperature" not in known:
                known["temperature"] = 1.0
            known.pop("max_new_tokens", None)  # a library's habit, not the author's advice
            if (never := values.get("suppress_tokens")) is not None:
                if not isinstance(never, list) or not all(is_whole(id_) and id_ >= 0 for id_ in never):
                    raise ConfigError(f"suppress_tokens is {never!r:.80}; it must be a list of token ids.")
                known["logit_bias"] = dict.fromkeys(never, -_MAX_BIAS)
            if decoder_prompt:
                known["min_new_tokens"] = _least_behind(decoder_prompt, values)
            return cls(**known)
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (OSError, ValueError) as error:
            raise ConfigError(f"Cannot read {path}: {error}.") from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def check_fits(self, model: str, *, encodes: bool) -> None:
        """Check that nothing is asked of a model that those with an encoder, or those without, do not have.

        Raises:
            ConfigError: something is.
        """
        for name in _NOT_WITH_AN_ENCODER if encodes else LANGUAGES:
            if (value := getattr(self, name)) != getattr(GenerationConfig, name):
                kind = "an" if encodes else "no"
                raise ConfigError(f"{name} is {value!r}; {model} has {kind} encoder. Leave it out.")

    def replace(self, **changes: Any) -> GenerationConfig:
        """Return a copy with some fields changed; a temperature of 0 turns off what needs chance, if that is not given.

        What is changed is often a part of the settings: a request's, beside those of the model's author.
        """
        if changes.get("temperature") == 0 and changes.get("sampler", self.sampler) is None:
            changes = {**dict.fromkeys(OF_CHANCE, 0.0), **changes}
        return replace(self, **changes)


@functools.cache
def _neutral() -> Mapping[str, Any]:
    """Return the default of each field, which needs no check: of a request's settings most are left as they are."""
    return {field.name: field.default for field in fields(GenerationConfig)}


def _least_behind(decoder_prompt: int, values: Mapping[str, Any]) -> int:
    """Return how many tokens an answer has to have behind so many that the decoder begins with, as transformers counts
    them; `min_new_tokens` comes before `min_length` there.
    """
    for name, begun in (("min_new_tokens", decoder_prompt - 1), ("min_length", decoder_prompt)):
        if (least := values.get(name)) is not None:
            if not is_whole(least):
                raise ConfigError(f"{name} is {least!r:.80}; it must be a whole number.")
            return max(0, least - begun)
    return 0


PROMPT_LOOKUP = "prompt_lookup"
OF_CHANCE = ("mirostat_tau", "xtc_probability")  # what changes nothing where no token is drawn
LANGUAGES = ("source_language", "target_language")
_NOT_WITH_AN_ENCODER = ("speculation", "token_healing", "context_shift")
_NOT_IN_FILES = {
    "adapter",
    "constraint", "visible_control_tokens", "begins_text", "processors", "sampler", "speculation", "exact_speculation",
    "num_beams", "length_penalty", "context_shift",
}  # fmt: skip
_NOT_WITH_BEAMS = (
    "temperature", "mirostat_tau", "xtc_probability", "sampler", "constraint", "token_healing", "speculation"
)  # fmt: skip
_MAX_BIAS = 1e9  # far beyond every logit, and still exact enough in float32
_TEXTS = {"stop": "stop", "visible_control_tokens": "token", "dry_breakers": "breaker"}  # the field, and one of them
ABOVE_ZERO = ("top_p", "typical_p")  # 0 would leave no token
WHOLE = (
    "max_new_tokens", "min_new_tokens", "context_shift", "top_k", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "seed", "logprobs", "dry_allowed_length", "num_beams",
)  # fmt: skip
RANGES: Mapping[str, tuple[float, float]] = {
    "max_new_tokens": (1, 2**31),
    "min_new_tokens": (0, 2**31),
    "context_shift": (0, 2**31),
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),  # logits are divided by it, and have to stay finite
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0, 100)),  # each place keeps so many
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (1.0, 4.0),  # 4 ** 50 is still finite
    "dry_allowed_length": (1, 1000),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.001, 1.0),
    "top_n_sigma": (0.0, 100.0),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 1.0),
    "seed": (0, 2**63),
    "logprobs": (0, 100),
    "num_beams": (1, 64),
    "length_penalty": (-10.0, 10.0),
}
