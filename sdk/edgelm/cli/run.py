"""`edgelm run`: one prompt in, one answer out, for terminals and pipes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgelm.cli.adapter_options import adapter_option, with_adapters
from edgelm.cli.constraint_options import constraint_options
from edgelm.cli.generation_options import complete_model, generation_options, runtime_options
from edgelm.cli.output import clean_text, is_terminal, piped_lines, print_json, printable, timing_line
from edgelm.cli.progress import status
from edgelm.cli.thinking import show_thinking, think_option, think_variables
from edgelm.cli.wrong_usage import refused
from edgelm.counted import counted
from edgelm.shell_word import shell_word

if TYPE_CHECKING:
    from edgelm.completion import Chunk, Completion
    from edgelm.language_model import LanguageModel
    from edgelm.runtime.session_options import SessionOptions


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.argument("prompt", nargs=-1)
@click.option("--raw", is_flag=True, help="Continue the prompt as it stands, without the chat template.")
@click.option("--system", metavar="TEXT", help="Tell the model how to behave (needs a chat template).")
@click.option("--to", "target_language", metavar="LANGUAGE", help="Translate to it; `edgelm show` lists them.")
@click.option("--from", "source_language", metavar="LANGUAGE", help="The language of PROMPT.")
@think_option
@generation_options
@constraint_options
@adapter_option
@runtime_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
@click.option("--stats", is_flag=True, help="Print speed and token counts on standard error.")
def run(
    model: str,
    prompt: tuple[str, ...],
    raw: bool,
    system: str | None,
    target_language: str | None,
    source_language: str | None,
    think: bool | None,
    adapter: tuple[str | None, Path] | None,
    as_json: bool,
    stats: bool,
    runtime: SessionOptions,
    settings: dict[str, Any],
) -> None:
    """Answer one prompt on standard output.

    MODEL is a name from the library or a folder. PROMPT may be several words without quotes. What is piped in follows
    it, or is the prompt. Only the answer goes to standard output; what a model thinks before it, to standard error
    where that is a terminal. Without options for it, words are chosen as the model's author recommends; where nothing
    is recommended, always the likeliest one.

    \b
    Examples:
      edgelm run smollm2-135m-instruct "Write one sentence about the sea."
      cat notes.txt | edgelm run smollm2-135m-instruct "Summarize:"
      edgelm run package/ --raw --temperature 0.8 --seed 1 "Once upon a time"
      edgelm run package/ --json --max-new-tokens 20 "Hello" | jq .text
      edgelm run package/ --json-schema person.json "Anna is 31." | jq .age
      edgelm run package/ --adapter adapter/ "When do you open?"
      edgelm run package/ --choice yes --choice no "Is the sea blue?"
      edgelm run nllb/ --from eng_Latn --to fra_Latn "The sea is blue."
    """
    text = _whole_prompt(model, " ".join(prompt))
    with status(f"Loading {model}"):
        # Imported here, so that --help needs neither numpy nor ONNX Runtime.
        from edgelm.decoding.answer import join
        from edgelm.loading import load

        loaded = load(model, runtime)
        loaded = with_adapters(loaded, [] if adapter is None else [adapter])
    if system is not None and (raw or loaded.chat_template is None):
        why = "--raw leaves it out" if raw else f"{loaded.name} has none"
        raise refused(f"--system needs the chat template; {why}.", "system", "raw")
    if think is not None and raw:
        raise refused("--think and --no-think need the chat template; --raw leaves it out.", "think", "raw")
    languages = {"source_language": source_language, "target_language": target_language}
    settings |= {name: value for name, value in languages.items() if value is not None}
    chunks = _answer(loaded, text, raw, system, think_variables(loaded, think), settings)
    completion = join(chunks if as_json else _echo(show_thinking(chunks)))
    if as_json:
        print_json({"model": loaded.name, **_values(completion)}, indent=None)
    elif completion.finish_reason == "length":
        nothing_said = bool(completion.reasoning) and not completion.text
        if nothing_said or "constraint" in settings or is_terminal(sys.stderr):
            tokens = completion.usage.completion_tokens
            place = "while the model thought" if nothing_said else f"after {counted(tokens)}"
            shift = "" if loaded.config.encoder else "; --context-shift 0 goes on"
            is_full = tokens < settings["max_new_tokens"]
            more = f"the context is full{shift}" if is_full else "--max-new-tokens N allows more"
            click.echo(f"The answer was cut off {place}: {more}.", err=True)
    if stats:
        click.echo(timing_line(completion.usage, completion.timings, completion.finish_reason), err=True)


def _values(completion: Completion) -> dict[str, object]:
    """Return what `--json` prints of an answer."""
    usage, timings = completion.usage, completion.timings
    speeds = ("prefill_tokens_per_second", "decode_tokens_per_second")
    return {
        "text": completion.text,
        "reasoning": completion.reasoning,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "usage": dataclasses.asdict(usage) | {"total_tokens": usage.total_tokens},
        "timings": dataclasses.asdict(timings) | {speed: getattr(timings, speed) for speed in speeds},
    }


def _whole_prompt(model: str, prompt: str) -> str:
    piped = "" if is_terminal(sys.stdin) else "".join(piped_lines()).strip("\n")
    parts = [part for part in (clean_text(prompt), piped) if part.strip()]
    if not parts:
        from edgelm.library.library import Library

        Library().find(model)  # which is an error where the only word is a prompt
        raise click.UsageError(
            f"There is no prompt: give one as an argument, or pipe one in. To talk with it: "
            f"edgelm chat {shell_word(model)}"
        )
    return "\n\n".join(parts)


def _answer(
    model: LanguageModel,
    text: str,
    raw: bool,
    system: str | None,
    variables: dict[str, object],
    settings: dict[str, Any],
) -> Iterator[Chunk]:
    from edgelm.completion import Message

    config = model.generation_config.replace(**settings)
    if config.target_language is None and not model.languages.is_chosen:
        click.echo("No language to translate to was chosen (--to), so the model chooses one.", err=True)
    if raw or model.chat_template is None:
        return model.stream(text, config)
    messages = [Message(role="system", content=clean_text(system))] if system is not None else []
    turns = [*messages, Message(role="user", content=text)]
    return model.stream_chat(turns, config, template_variables=variables)


def _echo(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Print the chunks as they pass, and a newline behind the last; on a terminal also where the answer is stopped."""
    on_terminal = is_terminal(sys.stdout)
    last_text, is_whole = "", False
    try:
        for chunk in chunks:
            last_text = chunk.text or last_text
            click.echo(printable(chunk.text) if on_terminal else chunk.text, nl=False)
            yield chunk
        is_whole = True
    finally:
        if (is_whole or (on_terminal and last_text)) and not last_text.endswith("\n"):
            click.echo()
