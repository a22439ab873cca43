"""make bench PAGE=NAME: measure edgelm beside llama.cpp and onnxruntime-genai, and write the page docs/results/NAME.

python benchmarks/run.py --page smollm2-135m-zen4    # what make runs; writes NAME.md, .json and .svg
python benchmarks/run.py --model gemma3-270m         # without a page: writes .cache/bench/results/
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
@click.option("--quick", is_flag=True, help="A rough look in some minutes.")
@click.option(
    "--only", multiple=True, type=click.Choice([contestant.name for contestant in CONTESTANTS]),
    help="Measure these only (repeatable).",
)  # fmt: skip
@click.option("--page", help="Write the page docs/results/PAGE.  [default: .cache/bench/results/MODEL]")
def main(name: str, rounds: int | None, quick: bool, only: tuple[str, ...], page: str | None) -> None:
    """Measure a model: edgelm beside llama.cpp and onnxruntime-genai, from the same weights."""
    if not sys.platform.startswith("linux"):
        raise click.ClickException("The benchmark reads memory and pages from /proc: it needs Linux.")
    if page is not None and (quick or only):
        raise click.UsageError("A page has a whole measurement: leave --quick and --only out, or --page.")
    model = MODELS[name]
    effort = model.quick if quick else model.full
    effort = dataclasses.replace(effort, rounds=rounds or effort.rounds)
    contestants = [contestant for contestant in model.contestants if not only or contestant.name in only]
    if missing := set(only) - {contestant.name for contestant in contestants}:
        raise click.UsageError(f"{name} is not measured with {', '.join(sorted(missing))}. {model.why}")
    if not any(contestant.timed for contestant in contestants):
        raise click.UsageError("None of these is timed: name one more with --only.")
    result = _measure(model, contestants, effort)
    target = CACHE / "results" / name if page is None else ROOT / "docs" / "results" / page
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
