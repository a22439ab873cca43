"""Measure keys and values in int8: python benchmarks/kv_cache.py PACKAGE PACKAGE > kv-cache.md

PACKAGE twice: of one model and precision, without and with `edgelm export --kv-cache int8`. Every ratio is within one
round, in which the packages take turns. About three minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median

import click

import edgelm
from edgelm import GenerationConfig, LanguageModel, SessionOptions
from edgelm.decoding.generate import decode, prefill
from edgelm.decoding.sampling import Sampler
from ratio_report import print_heading, spread, timed
from workload import THREADS

NEW_TOKENS = 32
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long a prompt takes, and the median of the steps behind it, in ms."""

    prompt: float
    step: float


@click.command()
@click.argument("floats", type=_FOLDER)
@click.argument("integers", type=_FOLDER)
@click.option("--rounds", default=3, show_default=True, help="Interleaved, of each length.")
@click.option("--tokens", "lengths", multiple=True, default=(512, 2048, 8000), show_default=True, help="Of a prompt.")
def main(floats: Path, integers: Path, rounds: int, lengths: tuple[int, ...]) -> None:
    """Print the results as Markdown."""
    models = [edgelm.load(folder, SessionOptions(threads=THREADS)) for folder in (floats, integers)]
    ids = models[0].tokenizer.encode("\n".join(topics[name] for name in sorted(topics)))
    for model in models:  # fills every buffer, and does not count
        measure(model, ids[: lengths[0]])
    times = {length: [[measure(model, ids[:length]) for model in models] for _ in range(rounds)] for length in lengths}
    print_heading("Keys and values in int8", models[1])
    print("| tokens | keys and values | prompt, tokens/s | of float32 | answer, tokens/s | of float32 | perplexity |")
    print("|---|---|---|---|---|---|---|")
    for length, rows in times.items():
        for i, model in enumerate(models):
            prompts = [row[0].prompt / row[i].prompt for row in rows]
            steps = [row[0].step / row[i].step for row in rows]
            cells = [
                str(length),
                f"{model.config.kv_cache}, {model.config.kv_bytes_per_token * length / 1e6:.0f} MB",
                f"{1000 * length / median(row[i].prompt for row in rows):.0f}",
                spread(prompts) if i else "1.00 x",
                f"{1000 / median(row[i].step for row in rows):.0f}",
                spread(steps) if i else "1.00 x",
                f"{model.score(ids[:length]).perplexity:.3f}",
            ]
            print(f"| {' | '.join(cells)} |")


def measure(model: LanguageModel, ids: list[int]) -> Times:
    """Let a model read a prompt, and answer NEW_TOKENS."""
    session, sampler = model.session, Sampler(GenerationConfig(temperature=0.0))
    cache = session.new_cache()
    prompt = timed(lambda: prefill(session, ids[:-1], cache))
    # The prompt's last token is a step of its own here, so that every step is timed alike.
    steps = decode(session, session.forward(ids[-1:], cache)[0], cache, sampler)
    next(steps)
    return Times(prompt=prompt, step=median(timed(lambda: next(steps)) for _ in range(NEW_TOKENS)))


if __name__ == "__main__":
    main()
