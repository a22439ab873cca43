"""make bench: measure edgelm beside llama.cpp and onnxruntime-genai, and write docs/results/."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click

from contestants import CONTESTANTS, Contestant
from figures import ALL, NONE
from machine import describe_machine
from measure import Benchmark, import_seconds
from prepare import CACHE, ROOT, prepare_models
from report import write_report
from workload import FULL, QUICK, THREADS, Effort, read_text

RESULT = "smollm2-135m"


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), help=f"Interleaved rounds.  [default: {FULL.rounds}]")
@click.option("--quick", is_flag=True, help="A rough look in about a minute, written to .cache/bench/ alone.")
@click.option(
    "--only", multiple=True, type=click.Choice([contestant.name for contestant in CONTESTANTS]),
    help="Measure these only (repeatable), written to .cache/bench/ alone.",
)  # fmt: skip
def main(rounds: int | None, quick: bool, only: tuple[str, ...]) -> None:
    """Measure SmolLM2-135M-Instruct: edgelm beside llama.cpp and onnxruntime-genai, from the same weights."""
    if not sys.platform.startswith("linux"):
        raise click.ClickException("The benchmark reads memory and pages from /proc: it needs Linux.")
    effort = QUICK if quick else FULL
    effort = dataclasses.replace(effort, rounds=rounds or effort.rounds)
    contestants = [contestant for contestant in CONTESTANTS if not only or contestant.name in only]
    result = _measure(contestants, effort)
    folder = CACHE / "results" if quick or only else ROOT / "docs" / "results"
    write_report(result, folder / RESULT)
    click.echo(f"Written: {folder / RESULT}.md, .json and .svg", err=True)


def _measure(contestants: list[Contestant], effort: Effort) -> dict[str, Any]:
    models = prepare_models()
    benchmark = Benchmark(contestants, models, read_text(models / "checkpoint", effort), effort)
    return {
        "command": " ".join(["python benchmarks/run.py", *sys.argv[1:]]),
        "machine": describe_machine(),
        "threads": THREADS,
        "workloads": [{"name": workload.name, **dataclasses.asdict(workload)} for workload in effort.workloads],
        "effort": {"rounds": effort.rounds, "starts": effort.starts, "scored_tokens": benchmark.scored_tokens},
        "rounds": {NONE: benchmark.rounds(huge_pages=False), ALL: benchmark.rounds(huge_pages=True)},
        "starts": benchmark.starts(),
        "import_edgelm_seconds": import_seconds(effort.starts),
        "perplexity": benchmark.perplexities(),
        "bytes_on_disk": benchmark.sizes(),
    }


if __name__ == "__main__":
    main()
