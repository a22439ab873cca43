"""Measure requests in company against one alone: python benchmarks/batching.py [PACKAGE] > batching.md

Every figure is a ratio within one run, its two sides taken in turn, on caches that are filled. About two minutes.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import click

import edgelm
from edgelm import Engine, EngineOptions, GenerationConfig, LanguageModel, PrefixCache, SessionOptions
from edgelm.decoding.answer import join
from edgelm.decoding.generate import prefill
from edgelm.memory.kv_batch import KVBatch
from prepare import prepare_models
from ratio_report import print_heading, spread, timed
from workload import FULL, THREADS, read_text

ROWS = (1, 2, 4, 8)
FILLED = 256
LONG, SHORT = 2000, 24
REUSED = (256, 2000)


def measure_steps(model: LanguageModel, ids: list[int], rounds: int) -> dict[int, float]:
    """Milliseconds of a step of 1, 2, 4 and 8 rows, each with FILLED tokens; the steps take turns."""
    batches = {}
    for rows in ROWS:
        batch = batches[rows] = KVBatch(model.config)
        for _ in range(rows):
            row = batch.add()
            prefill(model.session, ids[:FILLED], row)
            batch.activate(row)
        model.session.forward_rows([ids[0]] * rows, batch)
    times: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(rounds):
        for rows, batch in batches.items():
            times[rows].append(timed(lambda rows=rows, batch=batch: model.session.forward_rows([ids[0]] * rows, batch)))
    return {rows: median(taken) for rows, taken in times.items()}


def measure_throughput(engine: Engine, ids: list[int], rounds: int) -> list[tuple[float, float]]:
    """Tokens per second of one request and of eight at once, from prompt to last token, round by round."""
    config = GenerationConfig(max_new_tokens=64, ignore_eos=True)
    rates = []
    for _ in range(rounds):
        pair = []
        for requests in (1, 8):
            start = time.perf_counter()
            generations = [engine.submit(ids[i * 32 : i * 32 + 32], config) for i in range(requests)]
            tokens = sum(join(generation).usage.completion_tokens for generation in generations)
            pair.append(tokens / (time.perf_counter() - start))
        rates.append((pair[0], pair[1]))
    return rates


def measure_first_tokens(engine: Engine, ids: list[int], rounds: int) -> list[tuple[float, float]]:
    """Milliseconds to the first token of a short prompt, alone and beside a long one, round by round.

    It arrives when the long one is at another place each time, and never when that is read.
    """
    one = GenerationConfig(max_new_tokens=1, ignore_eos=True)

    def first(start: int) -> float:
        return timed(lambda: next(engine.submit(ids[start : start + SHORT], one)))

    whole = timed(lambda: next(engine.submit(ids[:LONG], one))) / 1000
    pairs = []
    for i in range(rounds):
        alone = first(LONG + i)
        long = engine.submit(ids[:LONG], one)
        time.sleep(whole * (i + 0.5) / (rounds + 1))
        pairs.append((alone, first(LONG + rounds + i)))
        long.cancel()
        join(long)
    return pairs


def measure_reuse(model: LanguageModel, ids: list[int], tokens: int) -> tuple[float, float]:
    """Milliseconds to compute a beginning, and to copy it from the prefix cache."""
    prefixes = PrefixCache(model.config, 1 << 30)
    cache = model.session.new_cache()
    computed = timed(lambda: prefill(model.session, ids[:tokens], cache))
    prefixes.keep(cache, tokens)
    return computed, median(timed(lambda: prefixes.fill(model.session.new_cache(), ids[:tokens])) for _ in range(5))


@click.command()
@click.argument("package", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=8, show_default=True, help="Of each measurement.")
def main(package: Path | None, rounds: int) -> None:
    """Print the results as Markdown; PACKAGE is an int8 package [default: SmolLM2-135M-Instruct]."""
    folder = package or prepare_models("edgelm-int8") / "edgelm-int8"
    model = edgelm.load(folder, SessionOptions(threads=THREADS))
    model.prefixes = PrefixCache(model.config, 0)
    ids = [id_ for window in read_text(folder, FULL).windows for id_ in window]
    steps = measure_steps(model, ids, 5 * rounds)
    with Engine(model, EngineOptions(max_batch=8)) as engine:
        throughput = measure_throughput(engine, ids, max(3, rounds // 2))
        first_tokens = measure_first_tokens(engine, ids, rounds)
    print_heading("Requests in company", model)
    print(f"| rows, {FILLED} tokens each | ms a step | tokens a second, of one row's |\n|---|---|---|")
    for rows, taken in steps.items():
        print(f"| {rows} | {taken:.1f} | {rows * steps[1] / taken:.2f} x |")
    print("\n| in company | of the request alone | alone | in company |\n|---|---|---|---|")
    print(f"| eight requests of 32 + 64 tokens: tokens/s | {in_company(throughput)} |")
    print(f"| {SHORT} tokens that arrive in a prefill of {LONG}: ms to the first token | {in_company(first_tokens)} |")
    print("\n| beginning of | computed, ms | copied from the prefix cache, ms |\n|---|---|---|")
    for tokens in REUSED:
        computed, copied = measure_reuse(model, ids, tokens)
        print(f"| {tokens} tokens | {computed:.0f} | {copied:.1f} |")


def in_company(pairs: list[tuple[float, float]]) -> str:
    """Write the ratios of pairs (alone, in company), and the medians of both sides."""
    alone, beside = (median(pair[side] for pair in pairs) for side in (0, 1))
    return f"{spread([beside / alone for alone, beside in pairs])} | {alone:.0f} | {beside:.0f}"


if __name__ == "__main__":
    main()
