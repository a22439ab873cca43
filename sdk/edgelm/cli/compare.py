"""`edgelm compare`: several packages side by side: size, speed and quality, as a table and as one picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from edgelm.cli.columns import columns, padded
from edgelm.cli.generation_options import complete_model, threads_option
from edgelm.cli.output import one_line, print_json
from edgelm.cli.picture_file import picture_option
from edgelm.cli.progress import progress_line
from edgelm.errors import ConfigError
from edgelm.library.library import Library
from edgelm.package.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One package's figures; speeds in tokens a second, None where they were not measured."""

    name: str
    path: str
    precision: str
    bytes: int
    perplexity: float
    perplexity_over_source: float
    mean_kl_divergence: float
    top1_agreement: float
    prompt_speed: float | None = None
    answer_speed: float | None = None


@click.command()
@click.argument("models", nargs=-1, required=True, shell_complete=complete_model)
@threads_option
@click.option(
    "--rounds",
    type=click.IntRange(0, 100),
    default=3,
    show_default=True,
    help="Rounds in which speed is measured; 0: none.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@picture_option
def compare(models: tuple[str, ...], threads: int | None, rounds: int, as_json: bool, output: Path | None) -> None:
    """Compare packages: size, speed and quality.

    MODELS are names from the library or folders. Quality is what each export measured against its own source, on the
    same text; `edgelm verify --source` computes it again. Where sources differ, a line says so. Speed is measured here,
    one package after the other in each round, so that fast and slow minutes of the machine meet all of them.

    \b
    Examples:
      edgelm compare smollm2-135m-instruct smollm2-135m-instruct-int4
      edgelm compare int8/ int4/ mixed/ -o packages.svg
      edgelm compare int8/ int4/ --rounds 0 --json | jq '.[] | {name, bytes, mean_kl_divergence}'
    """
    folders = [Library().find(model) for model in models]
    manifests = [Manifest.load(folder) for folder in folders]
    rows = [_row(folder, manifest) for folder, manifest in zip(folders, manifests, strict=True)]
    if len(set(map(_origin, manifests))) > 1:
        click.echo("Not all are made of one source: what each has lost is beside its own.", err=True)
    if rounds:
        rows = _with_speeds(folders, rows, threads, rounds)
    if output is not None:
        _draw(_told_apart(rows), output)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    _print_table(_told_apart(rows))


def _told_apart(rows: Sequence[_Row]) -> list[_Row]:
    """Name packages by their folders where two have one name."""
    names = [row.name for row in rows]
    return [replace(row, name=row.path) if names.count(row.name) > 1 else row for row in rows]


def _origin(manifest: Manifest) -> tuple[str, ...]:
    """Return the hashes of what a package was made of, or of what that was imported from and has the weights of."""
    source: Mapping[str, Any] = manifest.source
    while isinstance(source.get("imported_from"), Mapping):
        source = source["imported_from"]
    files = source.get("files")
    listed = files if isinstance(files, (list, tuple)) else ()
    return tuple(sorted(str(file.get("sha256")) for file in listed if isinstance(file, Mapping)))


def _row(folder: Path, manifest: Manifest) -> _Row:
    quality = manifest.quality
    if quality is None:
        raise ConfigError(f"{folder} has no figures of quality in its manifest. Export it again with this edgelm.")
    return _Row(
        name=manifest.name,
        path=str(folder),
        precision=manifest.precision,
        bytes=manifest.size,
        perplexity=quality.perplexity,
        perplexity_over_source=quality.perplexity / quality.source_perplexity,
        mean_kl_divergence=quality.mean_kl_divergence,
        top1_agreement=quality.top1_agreement,
    )


def _with_speeds(folders: Sequence[Path], rows: Sequence[_Row], threads: int | None, rounds: int) -> list[_Row]:
    # Imported here, so that comparing sizes and quality needs no ONNX Runtime.
    from edgelm.runtime.session_options import SessionOptions
    from edgelm.speed import measure

    prompts: list[list[float]] = [[] for _ in folders]
    answers: list[list[float]] = [[] for _ in folders]
    options, left_out = SessionOptions(threads=threads), set[int]()
    with progress_line() as progress:
        for round_ in range(rounds):
            for i, folder in enumerate(folders):
                progress("Measuring", round_ * len(folders) + i, rounds * len(folders))
                if i in left_out:
                    continue
                try:
                    report = measure(folder, options, rounds=1)
                except ConfigError as error:  # a short context, or an encoder: size and quality can still be compared
                    click.echo(f"{error} Its speeds are left out.", err=True)
                    left_out.add(i)
                    continue
                speeds = [rate for rate in report.rates if rate.unit == "tokens/s"]
                prompts[i].append(next(rate.median for rate in speeds if rate.name.startswith("prompt")))
                answers[i].append(next(rate.median for rate in speeds if rate.name.startswith("answer")))
    return [
        replace(row, prompt_speed=statistics.median(prompt), answer_speed=statistics.median(answer)) if prompt else row
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
    ]


def _print_table(rows: Sequence[_Row]) -> None:
    width = max(columns(one_line(row.name)) for row in rows)
    second = max(columns(one_line(text)) for text in ("precision", *(row.precision for row in rows)))
    head = f"{'':<{width}}  {'precision':<{second}} {'MB':>8}{'prompt/s':>10}{'answer/s':>10}{'perplexity':>12}"
    click.echo(f"{head}{'over source':>13}{'KL, nats':>10}{'top-1':>8}")
    for row in rows:
        speeds = "".join(
            f"{'-' if speed is None else f'{speed:.0f}':>10}" for speed in (row.prompt_speed, row.answer_speed)
        )
        click.echo(
            f"{padded(one_line(row.name), width)}  {padded(one_line(row.precision), second)} "
            f"{row.bytes / 1e6:>8.1f}{speeds}"
            f"{row.perplexity:>12.3f}{row.perplexity_over_source - 1:>+z13.1%}{row.mean_kl_divergence:>10.4f}"
            f"{row.top1_agreement:>8.1%}"
        )


def _draw(rows: Sequence[_Row], output: Path) -> None:
    from edgelm.files import atomic
    from edgelm.pictures.scatter_picture import Dot, draw_scatter

    dots = []
    for row in rows:
        speed = "" if row.answer_speed is None else f", {row.answer_speed:.0f} tokens/s"
        dots.append(Dot(x=row.bytes / 1e6, y=row.mean_kl_divergence, label=f"{one_line(row.name)}{speed}"))
    title = "Size and quality (lower left is better)"
    atomic.write_text(output, draw_scatter(title, "MB", "KL divergence from the source, nats per token", dots))
