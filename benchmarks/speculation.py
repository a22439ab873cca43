"""Measure guessed tokens against the plain loop: python benchmarks/speculation.py [PACKAGE]

Every figure is a ratio within one run, its sides taken in turn. About ten minutes; with --rounds 1, two.
docs/results/speculation.md has what came out, and what was tried besides.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median

import click

import edgelm
from edgelm import Engine, GenerationConfig, LanguageModel, PrefixCache, SessionOptions
from edgelm.decoding.generate import prefill
from edgelm.runtime.single_steps import MOST_ROWS
from prepare import prepare_models
from ratio_report import print_heading, spread, timed
from workload import THREADS

FILLED = 512
LENGTHS = (1, 2, 4, 8, 16)
# Passages of Python's language reference, which is installed with it.
PASSAGES = ("assert", "while", "return")
PASSAGE_CHARACTERS = 700
# Of the requests in company, which the same text would answer alike.
COMPANY = ("assert", "while", "return", "import", "raise", "global", "lambda", "for")
REQUESTS = (2, 4, 8)
# What is asked about a passage; the last two repeat nothing, or nearly so.
TASKS = {
    "rewriting": "Repeat the following text exactly, word for word:\n\n{passage}",
    "editing": 'Repeat the following text, but write "instruction" instead of "statement":\n\n{passage}',
    "extraction": "Copy all sentences of this text that have the word {topic!r} in them:\n\n{passage}",
    "summarizing with quotations": "Summarize this text. Quote its most important sentences:\n\n{passage}",
    "code": "Write a Python class for a stack with push, pop and peek, and show how to use it for {topic!r}.",
    "open text": "Write a short story about a dog who finds a {topic!r}.",
}
MODES = {
    "plain": GenerationConfig(),
    "lookup": GenerationConfig(speculation="prompt_lookup"),
    "exact": GenerationConfig(speculation="prompt_lookup", exact_speculation=True),
}


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What one answer took: milliseconds a token, and how many of its tokens were guessed right."""

    token_ms: float
    right: float


def measure_steps(model: LanguageModel, rounds: int) -> dict[str, dict[int, float]]:
    """Milliseconds of a step of 1 to 16 tokens behind FILLED ones, as one call and as rows; the steps take turns."""
    session, cache, exact = model.session, model.session.new_cache(), model.session.new_cache()
    ids = model.tokenizer.encode("\n".join(topics[name] for name in PASSAGES))[: FILLED + max(LENGTHS)]
    for one in (cache, exact):
        prefill(session, ids[:FILLED], one)
    times: dict[str, dict[int, list[float]]] = {"as one call": {}, "exact": {}}
    for _ in range(rounds + 1):  # the first one sets up
        for length in LENGTHS:
            piece = ids[FILLED : FILLED + length]
            taken = timed(lambda piece=piece: session.forward(piece, cache, all_logits=True))
            times["as one call"].setdefault(length, []).append(taken)
            cache.truncate(FILLED)
            if length <= session.most_single_steps():
                taken = timed(lambda piece=piece: session.forward_single_steps(piece, exact))
                times["exact"].setdefault(length, []).append(taken)
                exact.truncate(FILLED)
    return {way: {length: median(taken[1:]) for length, taken in of.items()} for way, of in times.items()}


def prompt_of(model: LanguageModel, task: str, topic: str) -> list[int]:
    passage = " ".join(topics[topic].split())[:PASSAGE_CHARACTERS]
    return model.encode_chat([{"role": "user", "content": TASKS[task].format(passage=passage, topic=topic)}])


def answer(model: LanguageModel, task: str, topic: str, mode: str, new_tokens: int) -> Rate:
    prompt = prompt_of(model, task, topic)
    completion = model.generate(prompt, MODES[mode].replace(max_new_tokens=new_tokens, ignore_eos=False))
    timings = completion.timings
    tokens = max(1, timings.decode_tokens)
    return Rate(token_ms=1000 * timings.decode_seconds / tokens, right=timings.accepted_tokens / tokens)


def measure_tasks(model: LanguageModel, rounds: int, new_tokens: int) -> dict[tuple[str, str], list[tuple[Rate, Rate]]]:
    """Pairs of the plain loop's rate and another's, by task and mode, over rounds and passages."""
    pairs: dict[tuple[str, str], list[tuple[Rate, Rate]]] = {}
    for topic in PASSAGES[:1]:
        for mode in MODES:  # learns the costs of steps, and keeps the prompts' beginnings
            answer(model, "rewriting", topic, mode, new_tokens)
    for _ in range(rounds):
        for task in TASKS:
            for topic in PASSAGES:
                plain = answer(model, task, topic, "plain", new_tokens)
                for mode in ("lookup", "exact"):
                    pairs.setdefault((task, mode), []).append((plain, answer(model, task, topic, mode, new_tokens)))
    return pairs


def measure_company(model: LanguageModel, rounds: int, new_tokens: int) -> dict[tuple[str, int], list[float]]:
    """How much faster so many requests at once are answered with guesses than without, by task and requests."""
    speedups: dict[tuple[str, int], list[float]] = {}
    with Engine(model) as engine:

        def take(task: str, requests: int, mode: str) -> float:
            config = MODES[mode].replace(max_new_tokens=new_tokens, ignore_eos=False)
            prompts = [prompt_of(model, task, topic) for topic in COMPANY[:requests]]
            for prompt in prompts:  # keeps the prompts' beginnings
                edgelm.join(engine.submit(prompt, config.replace(max_new_tokens=1)))
            started = time.perf_counter()
            answers = [edgelm.join(each) for each in [engine.submit(prompt, config) for prompt in prompts]]
            tokens = sum(answer.usage.completion_tokens for answer in answers)
            return 1000 * (time.perf_counter() - started) / tokens

        for requests in REQUESTS:
            take("rewriting", requests, "lookup")  # learns the costs of steps
        for _ in range(rounds):
            for task in ("rewriting", "summarizing with quotations", "open text"):
                for requests in REQUESTS:
                    ratio = take(task, requests, "plain") / take(task, requests, "lookup")
                    speedups.setdefault((task, requests), []).append(ratio)
    return speedups


@click.command()
@click.argument("package", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True, help="Of each measurement.")
@click.option("--new-tokens", default=160, show_default=True, help="Of each answer, at most.")
def main(package: Path | None, rounds: int, new_tokens: int) -> None:
    """Print the results as Markdown; PACKAGE is an int8 package [default: SmolLM2-135M-Instruct]."""
    model = edgelm.load(package or prepare_models("edgelm-int8") / "edgelm-int8", SessionOptions(threads=THREADS))
    model.prefixes = PrefixCache(model.config, 1 << 30, answers=False)  # computes each prompt once
    probe_ms = timed(lambda: model.session.most_single_steps())
    steps = measure_steps(model, 4 * rounds)
    pairs = measure_tasks(model, rounds, new_tokens)
    company = measure_company(model, rounds, new_tokens)
    print_heading("Guessed tokens", model)
    print("| task | prompt lookup, to the plain loop | in exact mode | tokens guessed right |\n|---|---|---|---|")
    for task in TASKS:
        lookup, exact = pairs[task, "lookup"], pairs[task, "exact"]
        print(f"| {task} | {speedup(lookup)} | {speedup(exact)} | {right(lookup)} |")
    print()
    print_row([f"tokens in a step, after {FILLED}", *map(str, LENGTHS)])
    print("|---" * (len(LENGTHS) + 1) + "|")
    for way, of in steps.items():
        print_row([way, *(f"{of[length] / of[1]:.2f} x" if length in of else "" for length in LENGTHS)])
    print(
        f"\nA step of one token took {steps['as one call'][1]:.1f} ms; to try exact steps of up to {MOST_ROWS} tokens,"
    )
    print(f"once for the model, {probe_ms:.0f} ms.\n")
    print_row(["requests at once, with guesses to without", *map(str, REQUESTS)])
    print("|---" * (len(REQUESTS) + 1) + "|")
    for task in dict.fromkeys(task for task, _ in company):
        print_row([task, *(spread(company[task, requests]) for requests in REQUESTS)])


def print_row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |")


def speedup(pairs: list[tuple[Rate, Rate]]) -> str:
    return spread([plain.token_ms / other.token_ms for plain, other in pairs])


def right(pairs: list[tuple[Rate, Rate]]) -> str:
    return f"{100 * median(other.right for _, other in pairs):.0f} %"


if __name__ == "__main__":
    main()
