"""Options that commands share: how the next token is chosen, what computes it, which model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from edgelm.cli.wrong_usage import wrong_usage
from edgelm.errors import EdgeLMError, ModelNotFoundError
from edgelm.generation_config import ABOVE_ZERO, PROMPT_LOOKUP, RANGES, WHOLE, GenerationConfig
from edgelm.library.library import Library
from edgelm.runtime.cpu import MOST_THREADS
from edgelm.runtime.providers import PROVIDERS
from edgelm.runtime.session_options import SessionOptions

# The library has no limit of its own; here nobody may be watching when a small model begins to repeat itself.
MAX_NEW_TOKENS = 1024


def _number(name: str) -> click.ParamType[Any]:
    """Return the type of an option that is a field of GenerationConfig; the help shows its range."""
    low, high = RANGES[name]
    number: click.IntRange | click.FloatRange
    if name in WHOLE:
        number = click.IntRange(int(low), None if high >= 2**31 else int(high))
    else:
        number = click.FloatRange(low, high, min_open=name in ABOVE_ZERO)
    number.name = "number"  # as errors call it; click's own name is "float range"
    return number


def _option(name: str, help_: str, **attributes: Any) -> Callable[..., Any]:
    """Return the option for a field of GenerationConfig that is a number."""
    metavar = "N" if name in WHOLE else "F"
    return click.option(f"--{name.replace('_', '-')}", type=_number(name), metavar=metavar, help=help_, **attributes)


context_shift_option = _option(
    "context_shift",
    "Where the context is full, go on with the first N tokens (or the system message) and the newest half.",
)
# The options of GenerationConfig that are numbers, and what the help says of each.
_NUMBERS = {
    "temperature": "0 takes the likeliest token; 1 samples freely.",
    "top_k": "Sample among the N likeliest tokens; 0: all.",
    "top_p": "Sample among the likeliest that make up this probability.",
    "min_p": "Drop tokens below this share of the likeliest one's.",
    "repetition_penalty": "Above 1: fewer of the tokens that were there already.",
    "presence_penalty": "Subtract this from each token that the answer has already.",
    "frequency_penalty": "Subtract this once for each time that the answer has the token.",
    "no_repeat_ngram_size": "Let no N tokens of prompt and answer come twice in the same order.",
    "min_new_tokens": "Let no end token and no --stop end the answer before so many tokens.",
    "seed": "The same seed gives the same answer.",
    "num_beams": "Search for the likeliest answer, N beginnings at a time.",
}
_OPTIONS = {
    "max_new_tokens": _option(
        "max_new_tokens", "Stop after this many tokens.", default=MAX_NEW_TOKENS, show_default=True
    ),
    **{name: _option(name, help_) for name, help_ in _NUMBERS.items()},
    "stop": click.option(
        "--stop", multiple=True, metavar="TEXT", help="Stop before this text; may be given several times."
    ),
    "context_shift": context_shift_option,
    "speculation": click.option(
        "--speculation",
        metavar="HOW",
        help=f"Guess tokens ahead where that is faster: {PROMPT_LOOKUP}, or a small model with the same tokenizer.",
    ),
}

threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    metavar="N",
    help="Threads that compute.  [default: the physical cores]",
)
_RUNTIME_OPTIONS = {
    "threads": threads_option,
    "provider": click.option(
        "--provider",
        type=click.Choice(tuple(PROVIDERS)),
        default=SessionOptions.provider,
        show_default=True,
        help="What computes: the execution provider.",
    ),
    "prefill_graph": click.option(
        "--prefill-graph/--no-prefill-graph",
        default=SessionOptions.prefill_graph,
        show_default=True,
        help="Read prompts by the graph that a package may have for them; without it, in less memory.",
    ),
}


def runtime_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of SessionOptions to a command, which receives those made of them as `runtime`."""

    @functools.wraps(command)
    def with_runtime(*positional: Any, **named: Any) -> None:
        runtime = SessionOptions(**{name: named.pop(name) for name in _RUNTIME_OPTIONS})
        command(*positional, **named, runtime=runtime)

    for option in reversed(_RUNTIME_OPTIONS.values()):
        with_runtime = option(with_runtime)
    return with_runtime


def generation_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of GenerationConfig to a command, which receives as `settings` those that were given.

    Options that are not given keep the defaults of the model's author. Values out of range are wrong usage.
    """

    @functools.wraps(command)
    def with_settings(*positional: Any, **named: Any) -> None:
        given = {name: named.pop(name) for name in _OPTIONS}
        settings = {name: value for name, value in given.items() if value not in (None, ())}
        if settings.get("num_beams", 1) > 1:
            settings.setdefault("temperature", 0.0)  # the model's author gave theirs for sampling
        if settings.get("speculation", PROMPT_LOOKUP) != PROMPT_LOOKUP:
            from edgelm.loading import load  # brings numpy and ONNX Runtime with it

            try:
                settings["speculation"] = load(settings["speculation"])
            except ModelNotFoundError as error:
                raise ModelNotFoundError(f"--speculation takes {PROMPT_LOOKUP}, or a model. {error}") from error
        with wrong_usage(settings):
            GenerationConfig(**settings)
        command(*positional, **named, settings=settings)

    for option in reversed(_OPTIONS.values()):
        with_settings = option(with_settings)
    return with_settings


def complete_model(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the models in the library, and folders, to a shell that completes."""
    return _names_or_paths("dir", incomplete, lambda library: [*library.packages(), *library.aliases()])


def complete_source(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the sources in the library, and files, to a shell that completes."""
    return _names_or_paths("file", incomplete, Library.sources)


def complete_kept(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer what `edgelm rm` removes to a shell that completes."""
    return _names(incomplete, lambda library: {*library.packages(), *library.sources(), *library.aliases()})


def complete_alias(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the aliases to a shell that completes."""
    return _names(incomplete, Library.aliases)


def _names_or_paths(kind: str, incomplete: str, names: Callable[[Library], Iterable[str]]) -> list[CompletionItem]:
    # The paths come first: click's script for bash forgets what was before them. It offers them where no name fits.
    return [CompletionItem(incomplete, type=kind), *_names(incomplete, names)]


def _names(incomplete: str, names: Callable[[Library], Iterable[str]]) -> list[CompletionItem]:
    try:
        return [CompletionItem(name) for name in sorted(names(Library())) if name.startswith(incomplete)]
    except EdgeLMError:  # a shell that completes has no place for messages
        return []
