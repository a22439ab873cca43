"""The command `edgelm quantize`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgelm.architecture.quantization_recipe import PRECISIONS, Precision
from edgelm.cli.generation_options import complete_model, complete_source
from edgelm.cli.output import one_line, print_json
from edgelm.cli.progress import progress_line
from edgelm.cli.wrong_usage import refused
from edgelm.errors import ExportError
from edgelm.files.gguf_part_names import names_of_parts
from edgelm.library.library import Library
from edgelm.package.manifest import Manifest, sha256_of
from edgelm.package.replaceable import is_same_folder
from edgelm.shell_word import shell_word
from edgelm_export.cli.export import (
    CALIBRATE,
    IN_INT8,
    IN_STANDARD,
    WITH_PREFILL,
    kv_cache_option,
    name_ending,
    operators_option,
    prefill_graph_option,
    print_figures,
    recipe_of,
    recipe_option,
)
from edgelm_export.exporter import export_package
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.sources.package_checkpoint import PackageCheckpoint
from edgelm_export.sources.sources import open_checkpoint

# What fewer bits have lost of a model cannot be told from the model any more.
_FEWEST_BITS = 8

EXAMPLES = """
\b
Examples:
  edgelm quantize smollm2-135m-instruct --precision int4      to the library, as smollm2-135m-instruct-int4
  edgelm quantize package-fp32/ -o package/ --precision int8
  edgelm quantize package/ -o smaller/ --precision int4 --source checkpoint/ --calibrate
  edgelm quantize package/ -o long/ --precision int8 --kv-cache int8     long texts in a quarter of the memory
  edgelm quantize package/ -o mine/ --recipe mine.toml
"""


@click.command(epilog=EXAMPLES)
@click.argument("package", shell_complete=complete_model)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The new folder.  [default: in the library]")
@click.option("--precision", type=click.Choice([*PRECISIONS]), help="How the weights are to be stored.")
@recipe_option
@kv_cache_option
@prefill_graph_option
@operators_option
@click.option(
    "--source", metavar="CHECKPOINT", shell_complete=complete_source,
    help="What the package was exported from, where it is not found.",
)  # fmt: skip
@click.option("--calibrate", is_flag=True, help=CALIBRATE)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def quantize(
    package: str,
    output: Path | None,
    precision: str | None,
    recipe: Precision | None,
    kv_cache: str,
    prefill_graph: bool,
    operators: str,
    source: str | None,
    calibrate: bool,
    as_json: bool,
) -> None:
    """Make a package of another precision from a package, and check it.

    PACKAGE is a name from the library or a folder. The weights are read from what it was exported from, where that is
    in the library or named by --source; else from the package itself, if it has them as floats or in 8 bits.
    """
    if (precision is None) == (recipe is None):
        raise refused("Say how the weights are to be stored: either --precision or --recipe.", "precision", "recipe")
    library = Library()
    folder = library.find(package)
    manifest = Manifest.load(folder)
    chosen = recipe_of(
        recipe or str(precision),
        kv_cache=kv_cache,
        prefill_graph=prefill_graph,
        operators=operators,
        calibrate=calibrate,
    )
    label = chosen.name + name_ending(kv_cache, prefill_graph, operators)
    if output is None:
        # A package that was pulled under another name, or renamed, still has its maker's name inside.
        of_package = folder.name if folder.parent == library.root / "models" else manifest.name
        name = f"{_base_name(of_package, manifest.precision)}-{label}"
        library.refuse_alias(name)
        output = library.package_path(name)
    if is_same_folder(output, folder):
        raise ExportError(f"{output} is the package that is read. Choose another folder with -o.")
    path = _weights(folder, manifest, source, library)
    options = CalibrationOptions(cache=library.calibration_path)
    with open_checkpoint(path) as checkpoint, progress_line() as progress:
        made = export_package(checkpoint, output, chosen, calibration=options, progress=progress)
    if as_json:
        print_json(dataclasses.asdict(made))
    else:
        print_figures(made, output)


def _base_name(name: str, precision: str) -> str:
    name = name.removesuffix(IN_STANDARD)
    return name.removesuffix(WITH_PREFILL).removesuffix(IN_INT8).removesuffix(f"-{precision}")


def _weights(folder: Path, manifest: Manifest, source: str | None, library: Library) -> Path:
    """Choose what the weights are read from, and say so.

    Raises:
        ExportError: the named source is another one, or there is none and the package has lost too much.
    """
    path = library.find_source(source) if source is not None else _source_in(library, manifest)
    if path is not None:
        if not _is_source(path, manifest.source):
            raise ExportError(
                f"{path} is not what {manifest.name} was exported from: the hashes of its files differ. To make a "
                f"package of it all the same: edgelm export {shell_word(path)}"
            )
        click.echo(f"The weights are read from the package's source, {path}.", err=True)
        return path
    with PackageCheckpoint(folder) as checkpoint:
        bits = checkpoint.fewest_bits
    if bits is None:
        click.echo(f"The weights are read from the package, which has them as floats ({manifest.precision}).", err=True)
        return folder
    if bits < _FEWEST_BITS:
        raise ExportError(
            f"{manifest.name} has weights in {bits} bits, too few to quantize them again, and its source "
            f"({_described(manifest.source)}) is not in the library. Fetch it with `edgelm pull NAME --source-only`, "
            "or name it with --source."
        )
    warning = (
        f"warning: The source of {manifest.name} ({_described(manifest.source)}) is not in the library: requantized "
        f"from {manifest.precision}, whose loss comes on top of the new one. --source names the source."
    )
    click.echo(one_line(warning), err=True)
    return folder


def _source_in(library: Library, manifest: Manifest) -> Path | None:
    """Find in the library what a package was exported from."""
    paths = (library.source_path(name) for name in library.sources())
    return next((path for path in paths if _is_source(path, manifest.source)), None)


def _is_source(path: Path, source: Mapping[str, Any]) -> bool:
    """Tell whether a file or folder has the weight files that a manifest names, by their hashes."""
    files = source.get("files", ())
    if path.is_file():
        found = [path.with_name(name) for name in names_of_parts(path.name)]
    else:
        found = [path / Path(str(file.get("path"))).name for file in files]
    return 0 < len(files) == len(found) and all(
        one.is_file() and one.stat().st_size == file.get("size") and sha256_of(one) == file.get("sha256")
        for one, file in zip(found, files, strict=True)
    )


def _described(source: Mapping[str, Any]) -> str:
    return ", ".join(str(file.get("path")) for file in source.get("files", ())) or "which its manifest does not name"
