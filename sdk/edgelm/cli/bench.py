"""`edgelm bench`: how fast a model is here, beside what this machine's memory allows."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgelm.cli.generation_options import complete_model, runtime_options
from edgelm.cli.output import megabytes, one_line, print_json
from edgelm.cli.picture_file import picture_option
from edgelm.cli.progress import progress_line
from edgelm.counted import counted

if TYPE_CHECKING:
    from edgelm.runtime.session_options import SessionOptions
    from edgelm.speed import Rate, SpeedReport


@click.command()
@click.argument("model", shell_complete=complete_model)
@runtime_options
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Measure so many times.")
@click.option("--json", "as_json", is_flag=True, help="Print every measured value as JSON.")
@picture_option
def bench(model: str, rounds: int, as_json: bool, output: Path | None, runtime: SessionOptions) -> None:
    """Measure how fast a model is on this machine.

    Reads a prompt of 512 tokens, answers after 512 and after 32, and answers eight requests at once; shows the median
    and the range of all rounds. Below stands what the memory allows: a step cannot be faster than the weights are read
    (of packages of edgelm's own, on the CPU). The model needs a context of 576 tokens. Close other programs first.

    \b
    Examples:
      edgelm bench smollm2-135m-instruct
      edgelm bench package/ --rounds 9 -o speed.svg
      edgelm bench smollm2-135m-instruct --json | jq '.rates[] | {name, median}'
    """
    # Imported here, so that --help needs neither numpy nor ONNX Runtime.
    from edgelm.speed import measure

    with progress_line() as progress:
        report = measure(model, runtime, rounds=rounds, progress=progress)
    if output is not None:
        _draw(report, output)
    if as_json:
        print_json(_as_json(report))
        return
    click.echo(f"{one_line(report.name)} · {one_line(report.precision)} · {counted(report.threads, 'thread')}")
    for rate in report.rates:
        click.echo(f"  {rate.name:<26}{_number(rate.median, rate.unit):>18}   {_range(rate)}".rstrip())
    if report.peak_memory is not None:
        click.echo(f"  {'memory, at most':<26}{megabytes(report.peak_memory):>18}")
    bound = report.bound
    if bound is not None:
        allowed = f"{bound.tokens_per_second:.0f} tokens/s"
        what = f"{bound.bandwidth / 1e9:.1f} GB/s, {megabytes(bound.step_bytes)} a step"
        click.echo(f"  {'the memory allows':<26}{allowed:>18}   after {bound.after} tokens: {what}")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > report.threads + 1:
        click.echo(f"Other programs compute too (load {load:.1f}): these figures are too low.", err=True)


def _number(value: float, unit: str) -> str:
    return f"{value:.2f} {unit}" if value < 10 else f"{value:.0f} {unit}"


def _range(rate: Rate) -> str:
    if len(rate.values) < 2:
        return ""
    return f"{_number(min(rate.values), '').strip()} to {_number(max(rate.values), '').strip()}"


def _as_json(report: SpeedReport) -> dict[str, object]:
    values = dataclasses.asdict(report)
    values["rates"] = [{**dataclasses.asdict(rate), "median": rate.median} for rate in report.rates]
    if report.bound is not None:
        values["bound"] = {**dataclasses.asdict(report.bound), "tokens_per_second": report.bound.tokens_per_second}
    return values


def _draw(report: SpeedReport, output: Path) -> None:
    from edgelm.files import atomic
    from edgelm.pictures.bar_chart import Bar, Panel, draw

    answers = [rate for rate in report.rates if rate.name.startswith("answer")]
    bars = [Bar(label=rate.name, value=rate.median, is_ours=True) for rate in answers]
    if report.bound is not None:
        bars.append(Bar(label="what the memory allows", value=report.bound.tokens_per_second, is_ours=False))
    others = [rate for rate in report.rates if rate.unit == "tokens/s" and rate not in answers]
    title = (
        f"{one_line(report.name)}, {one_line(report.precision)}, {counted(report.threads, 'thread')}: tokens a second"
    )
    below = [Bar(label=rate.name, value=rate.median, is_ours=True) for rate in others]
    atomic.write_text(output, draw([Panel(title=title, bars=bars), Panel(title="", bars=below)]))
