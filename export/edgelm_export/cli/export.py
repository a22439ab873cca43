"""The command `edgelm export`."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import click

from edgelm.architecture.layer_features import KV_CACHES
from edgelm.architecture.quantization_recipe import (
    DEFAULT_PRECISION,
    MIXED,
    OPERATOR_SETS,
    PRECISIONS,
    QUANTIZED,
    STANDARD,
    Precision,
    precision_named,
    read_recipe,
)
from edgelm.cli.generation_options import complete_source
from edgelm.cli.output import is_terminal, megabytes, print_json, print_rows
from edgelm.cli.picture_file import PictureFile
from edgelm.cli.progress import progress_line
from edgelm.cli.wrong_usage import refused, wrong_usage
from edgelm.errors import ExportError
from edgelm.files import atomic
from edgelm.files.gguf_part_names import name_of_whole
from edgelm.library.library import Library
from edgelm.package.manifest import Manifest
from edgelm.pictures.scatter_picture import Dot, draw_scatter
from edgelm.shell_word import shell_word
from edgelm_export.cli.byte_size import ByteSize
from edgelm_export.exporter import export_package, usual_precision
from edgelm_export.mixed import Budget, export_mixed, size_of_graph
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.quantize.frontier import Point
from edgelm_export.sources.sources import open_checkpoint

_FRONTIER_ROWS = 8
CALIBRATE = "Find the integers by gptq, on the bundled text: slower, better. Stopped, the same command goes on."
# At the end of a name in the library: how keys and values are kept, what reads prompts, and whose operators compute.
IN_INT8, WITH_PREFILL, IN_STANDARD = "-kv-int8", "-prefill", f"-{STANDARD}"
_NAME_LENGTH = 80  # of the 100 that a name may have: what tells packages of one source apart comes behind

EXAMPLES = """
\b
Examples:
  edgelm export smollm2-135m-instruct                       a source of the library, to the library, in int8
  edgelm export smollm2-135m-instruct --precision int4      beside it, as smollm2-135m-instruct-int4
  edgelm export ckpt/ -o pkg/ --precision fp32              a checkpoint folder to a folder
  edgelm export model.gguf -o pkg/ --precision keep         a GGUF file, on its own quantization grid
  edgelm export ckpt/ -o pkg/ --precision int4 --calibrate  4 bits found by running the model on a text: slower, better
  edgelm export ckpt/ -o pkg/ --precision int4 --calibration chats.jsonl      the same, on your own chats
  edgelm export ckpt/ -o pkg/ --precision mixed --target-size 90MB            the best mix of widths of that size
  edgelm export ckpt/ -o pkg/ --precision mixed --max-kl 0.02 --frontier f.svg
  edgelm export ckpt/ -o pkg/ --kv-cache int8               long texts in a quarter of the memory
  edgelm export ckpt/ -o pkg/ --prefill-graph               prompts read faster, for disk space and memory
  edgelm export ckpt/ -o pkg/ --operators standard          for OpenVINO, CoreML and other runtimes of ONNX
  edgelm export ckpt/ -o pkg/ --recipe mine.toml            your own rules (docs: guides/quantize)
"""


def _read_rules(_context: click.Context, _parameter: click.Parameter, path: Path | None) -> Precision | None:
    try:
        return None if path is None else read_recipe(path)
    except ExportError as error:
        raise click.BadParameter(str(error)) from error


recipe_option = click.option(
    "--recipe", type=click.Path(path_type=Path), callback=_read_rules,
    help="A TOML or JSON file of rules, instead of --precision.",
)  # fmt: skip
kv_cache_option = click.option(
    "--kv-cache", type=click.Choice(tuple(KV_CACHES)), default="fp32", show_default=True,
    help="How keys and values are kept: int8 takes a quarter of the memory, and longer for prompts that no "
    "--prefill-graph reads.",
)  # fmt: skip
prefill_graph_option = click.option(
    "--prefill-graph", is_flag=True,
    help="Add a graph that reads prompts faster on a CPU; it takes a byte a weight, on disk and in memory.",
)  # fmt: skip

operators_option = click.option(
    "--operators", type=click.Choice(OPERATOR_SETS), default=OPERATOR_SETS[0], show_default=True,
    help="standard: those of the ONNX standard alone, for providers and runtimes that know no others; slower on a CPU.",
)  # fmt: skip


@click.command(epilog=EXAMPLES)
@click.argument("source", shell_complete=complete_source)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The package folder.  [default: in the library]")
@click.option(
    "--precision", type=click.Choice([*PRECISIONS, MIXED]),
    help="How the weights are stored; int8-wide: faster alone, not in company; keep: the source's grid; "
    "mixed: by sensitivity.  [default: int8; of a source in 4 bits with a billion weights or more, keep]",
)  # fmt: skip
@recipe_option
@kv_cache_option
@prefill_graph_option
@operators_option
@click.option("--calibrate", is_flag=True, help=CALIBRATE)
@click.option(
    "--calibration", metavar="FILE", type=click.Path(path_type=Path),
    help="The same on your own text (.txt), or texts and chats (.jsonl).",
)  # fmt: skip
@click.option(
    "--calibration-tokens", type=click.IntRange(min=1),
    help="How much of the text is taken.  [default: 8192; 512 where weights are only smoothed]",
)  # fmt: skip
@click.option(
    "--target-size", metavar="SIZE", type=ByteSize(), help="For mixed: the size of graph and weights, such as 90MB."
)
@click.option(
    "--max-kl", metavar="NATS", type=click.FloatRange(min=0, min_open=True),
    help="For mixed: the KL divergence a token that is allowed.",
)  # fmt: skip
@click.option("--frontier", metavar="SVG", type=PictureFile(), help="For mixed: draw sizes against KL.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def export(
    source: str,
    output: Path | None,
    precision: str | None,
    recipe: Precision | None,
    kv_cache: str,
    prefill_graph: bool,
    operators: str,
    calibrate: bool,
    calibration: Path | None,
    calibration_tokens: int | None,
    target_size: int | None,
    max_kl: float | None,
    frontier: Path | None,
    as_json: bool,
) -> None:
    """Export a checkpoint to a model package, and check it against its source.

    SOURCE is a checkpoint folder, a Hugging Face folder, a GGUF file, or the name of a source in the library (./NAME
    where a folder here has it too). The package appears when it is complete and checked; until then an older one of the
    same name stays.
    """
    _refuse_contradictions(precision, recipe, target_size, max_kl, frontier)
    calibrates = calibrate or calibration is not None
    if precision == MIXED:
        in_vain = calibration_tokens is not None and not calibrates
        _refuse_beside_mixed(kv_cache, prefill_graph, operators, tokens_in_vain=in_vain)
    library = Library()
    points: list[Point] = []
    path = library.find_source(source)
    # Four bits of a source's own are neither looked for nor written in the standard's operators.
    in_8_bits = DEFAULT_PRECISION if calibrates or operators == STANDARD else None
    asked: str | Precision | None = recipe or precision or in_8_bits
    label = asked.name if isinstance(asked, Precision) else asked or DEFAULT_PRECISION
    if output is None:
        name = _package_name(path, library)
        name = name if label == DEFAULT_PRECISION else f"{name}-{label}"
        name += name_ending(kv_cache, prefill_graph, operators)
        library.refuse_alias(name)
        output = library.package_path(name)
    options = CalibrationOptions(text=calibration, max_tokens=calibration_tokens, cache=library.calibration_path)
    with open_checkpoint(path) as checkpoint, progress_line() as progress:
        if asked == MIXED:
            budget = Budget(size=target_size, divergence=max_kl)
            manifest, points = export_mixed(
                checkpoint, output, budget, calibration=options if calibrates else None, progress=progress
            )
        else:
            chosen = recipe_of(
                usual_precision(checkpoint) if asked is None else asked,
                kv_cache=kv_cache,
                prefill_graph=prefill_graph,
                operators=operators,
                calibrate=calibrate or (calibrates and recipe is None and not _only_keeps_cache(asked, kv_cache)),
            )
            if (calibration is not None or calibration_tokens is not None) and not chosen.reads_a_text:
                raise refused(
                    f"--calibration and --calibration-tokens are of no use here: {chosen.name} is made without running "
                    "the model on a text. Leave them out, or add --calibrate.",
                    "calibration", "calibration_tokens", "precision", "recipe",
                )  # fmt: skip
            manifest = export_package(checkpoint, output, chosen, calibration=options, progress=progress)
    if as_json:
        print_json(dataclasses.asdict(manifest))
    else:
        print_figures(manifest, output)
        if points:
            _print_frontier(points)
    if frontier is not None:
        atomic.write_text(frontier, _draw_frontier(points, manifest))


def _only_keeps_cache(asked: str | Precision | None, kv_cache: str) -> bool:
    """Tell whether a text is for the scales of keys and values alone: a preset's weights take none."""
    return kv_cache == "int8" and isinstance(asked, str) and not precision_named(asked).calibrated().calibrates


def name_ending(kv_cache: str, prefill_graph: bool, operators: str) -> str:
    """Return what stands behind the precision in the name of a package."""
    endings = {IN_INT8: kv_cache == "int8", WITH_PREFILL: prefill_graph, IN_STANDARD: operators == STANDARD}
    return "".join(ending for ending, is_asked in endings.items() if is_asked)


def recipe_of(
    precision: str | Precision, *, kv_cache: str, prefill_graph: bool, operators: str, calibrate: bool
) -> Precision:
    """Return the recipe that a preset's name or a recipe means with the options beside it.

    calibrate: to find a preset's integers by gptq; a recipe says itself how its are found.

    Raises:
        click.UsageError: there is nothing to calibrate, or one option excludes another.
    """
    recipe = precision_named(precision) if isinstance(precision, str) else precision
    recipe = recipe.calibrated() if calibrate and recipe is not precision else recipe
    if calibrate and not recipe.calibrates:
        what = f"There is nothing in {recipe.name} to calibrate"
        if reading := recipe.reading_transforms:
            what = (
                f"{recipe.name} reads the text for {' and '.join(reading)} anyway, and none of its schemes is found on "
                "one. Leave --calibrate out, or choose other schemes"
            )
        raise refused(
            f"{what}: --calibrate is for {', '.join(QUANTIZED)} and mixed, and for recipes with schemes that end in "
            "-gptq.",
            "calibrate", "precision", "recipe",
        )  # fmt: skip
    try:
        recipe = recipe.with_int8_cache() if kv_cache == "int8" else recipe
        recipe = recipe.with_prefill_graph() if prefill_graph else recipe
        return recipe.with_standard_operators() if operators == STANDARD else recipe
    except ExportError as error:
        raise refused(str(error), "operators", "precision", "recipe", "kv_cache", "prefill_graph") from error


def _refuse_contradictions(
    precision: str | None,
    recipe: Precision | None,
    target_size: int | None,
    max_kl: float | None,
    frontier: Path | None,
) -> None:
    if precision is not None and recipe is not None:
        raise refused(
            "Say how the weights are to be stored by one of them: either --precision or --recipe.",
            "precision",
            "recipe",
        )
    mixed = precision == MIXED
    if mixed and (target_size is None) == (max_kl is None):
        raise refused("--precision mixed takes either --target-size or --max-kl.", "precision", "target_size", "max_kl")
    if mixed:
        with wrong_usage(["max_kl"]):  # which is not refused as NaN by its range
            Budget(size=target_size, divergence=max_kl)
    if not mixed and not (target_size is None and max_kl is None and frontier is None):
        names = "target_size", "max_kl", "frontier"
        raise refused("--target-size, --max-kl and --frontier are for --precision mixed.", *names)


def _refuse_beside_mixed(kv_cache: str, prefill_graph: bool, operators: str, *, tokens_in_vain: bool) -> None:
    """Refuse what goes with no `--precision mixed`. tokens_in_vain: there are so many of a text that is not read."""
    for name, option, is_given in (
        ("kv_cache", "--kv-cache int8", kv_cache == "int8"),
        ("prefill_graph", "--prefill-graph", prefill_graph),
        ("operators", "--operators standard", operators == STANDARD),
        ("calibration_tokens", "--calibration-tokens without --calibrate", tokens_in_vain),
    ):
        if is_given:
            raise refused(f"{option} is not for --precision mixed.", name, "precision")


def _print_frontier(points: Sequence[Point]) -> None:
    """Print a few places of the frontier, evenly apart."""
    shown = sorted({round(i * (len(points) - 1) / (_FRONTIER_ROWS - 1)) for i in range(_FRONTIER_ROWS)})
    rows = [("", f"{points[i].size / 1e6:8.1f} MB  {points[i].divergence:.4f}") for i in shown]
    print_rows([("frontier", "size of the weights, KL divergence as predicted"), *rows])


def _draw_frontier(points: Sequence[Point], manifest: Manifest) -> str:
    quality = manifest.quality
    assert quality is not None  # every export measures it
    dots = [Dot(x=point.size / 1e6, y=point.divergence) for point in points]
    dots.append(Dot(x=size_of_graph(manifest) / 1e6, y=quality.mean_kl_divergence, label=f"{manifest.name}, measured"))
    return draw_scatter(
        f"{manifest.name}: mixed precision", "MB of weights", "KL divergence, nats per token", dots, line=len(points)
    )


def _package_name(source: Path, library: Library) -> str:
    """Return a source's name in the library, or make one of any other file's or folder's: `.2-1B` of it is no suffix.

    Raises:
        click.UsageError: it has no letter or digit that such a name may have, or others: without them, models that have
            little else in common would have one name, and one place.
    """
    sources = library.root / "sources"
    if sources in source.parents:
        return source.relative_to(sources).parts[0]
    path = Path(os.path.abspath(source))  # a file of the hub's cache is a link to a hash
    title = name_of_whole(path.name)
    if path.parent.name == "snapshots":  # models--ORG--NAME/snapshots/REVISION
        title = path.parents[1].name.rpartition("--")[2]
    whole = unicodedata.normalize("NFKD", title.lower().removesuffix(".gguf"))
    plain = whole.encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9._+-]+", "-", plain)[:_NAME_LENGTH].strip("-._+")
    if not name or any(character.isalnum() and not character.isascii() for character in whole):
        raise click.UsageError(
            f"{title!r} gives no name for the package, which has letters from a to z. Choose its folder with -o, or "
            "rename the source."
        )
    return name


def print_figures(manifest: Manifest, output: Path) -> None:
    """Show a finished package beside its source."""
    quality = manifest.quality
    assert quality is not None  # every export measures it
    after = quality.after_prefill
    rows = [
        ("package", f"{output} ({megabytes(manifest.size)}, {manifest.precision})"),
        ("perplexity", f"{quality.perplexity:.3f} (source {quality.source_perplexity:.3f}, {quality.tokens} tokens)"),
        *([] if after is None else [("behind a prompt", f"{after[0]:.3f} (source {after[1]:.3f})")]),
        ("KL divergence", f"{quality.mean_kl_divergence:.5f} nats per token"),
        ("logits", f"largest difference {quality.max_logit_difference:.2g}"),
        ("most likely token", f"the same at {quality.top1_agreement:.1%} of the positions"),
        ("greedy tokens", f"the first {quality.greedy_agreement} of {quality.greedy_tokens} are the source's own"),
        *(("note", note) for note in manifest.notes),
    ]
    print_rows(rows)
    if is_terminal(sys.stderr):
        in_library = output.parent == Library().root / "models"
        name = shell_word(output.name if in_library else str(output))
        click.echo(f"Try it: {manifest.command(name)}", err=True)
