"""make bench: measure edgelm beside llama.cpp and onnxruntime-genai, and write docs/results/.

python benchmarks/run.py --model gemma3-270m
python benchmarks/run.py --model llama-1.7b      # 20 GB on the disk and 12 GB of memory
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

import click

from contestants import CONTESTANTS, Contestant
from figures import ALL, NONE
from machine import command, describe_machine
from measure import Benchmark, import_seconds
from models import MODELS, SMOLLM2, Model
from prepare import CACHE, ROOT, prepare_models
from report import write_report
from workload import THREADS, Effort, read_text


@click.command()
@click.option("--model", "name", type=click.Choice(list(MODELS)), default=SMOLLM2, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), help="Interleaved rounds.  [default: as the model's row says]")
@click.option("--quick", is_flag=True, help="A rough look in about a minute, written to .cache/bench/ alone.")
@click.option(
    "--only", multiple=True, type=click.Choice([contestant.name for contestant in CONTESTANTS]),
    help="Measure these only (repeatable), written to .cache/bench/ alone.",
)  # fmt: skip
@click.option("--page", help="The name of what is written, for a second machine's page.  [default: the model's]")
def main(name: str, rounds: int | None, quick: bool, only: tuple[str, ...], page: str | None) -> None:
    """Measure a model: edgelm beside llama.cpp and onnxruntime-genai, from the same weights."""
    if not sys.platform.startswith("linux"):
        raise click.ClickException("The benchmark reads memory and pages from /proc: it needs Linux.")
    model = MODELS[name]
    effort = model.quick if quick else model.full
    effort = dataclasses.replace(effort, rounds=rounds or effort.rounds)
    contestants = [contestant for contestant in model.contestants if not only or contestant.name in only]
    result = _measure(model, contestants, effort)
    folder = CACHE / "results" if quick or only else ROOT / "docs" / "results"
    target = folder / (page or name)
    write_report(result, target)
    click.echo(f"Written: {target}.md, .json and .svg", err=True)


def _measure(model: Model, contestants: list[Contestant], effort: Effort) -> dict[str, Any]:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # imports are timed as users have them: from bytecode
    models = prepare_models(*(contestant.name for contestant in contestants), model=model)
    benchmark = Benchmark(contestants, models, read_text(models / "checkpoint", effort), effort)
    found = {NONE: benchmark.rounds(huge_pages=False), ALL: benchmark.rounds(huge_pages=True)}
    return {
        "model": model.name,
        "command": command(),
        "machine": describe_machine(),
        "threads": THREADS,
        "workloads": [{"name": workload.name, **dataclasses.asdict(workload)} for workload in effort.workloads],
        "effort": {"rounds": effort.rounds, "starts": effort.starts, "scored_tokens": benchmark.scored_tokens},
        "rounds": {pages: by_name for pages, (by_name, _) in found.items()},
        "read_bandwidth": {pages: bandwidths for pages, (_, bandwidths) in found.items()},
        "weight_bytes": benchmark.weights(),
        "starts": benchmark.starts(),
        "import_edgelm_seconds": import_seconds(effort.starts),
        "perplexity": benchmark.perplexities(),
        "bytes_on_disk": benchmark.sizes(),
    }


if __name__ == "__main__":
    main()
