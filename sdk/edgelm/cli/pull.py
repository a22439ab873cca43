"""`edgelm pull`: bring a model into the library, and make a package of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from edgelm.architecture.quantization_recipe import DEFAULT_PRECISION, MIXED
from edgelm.cli.output import ask, say_waiting
from edgelm.cli.progress import progress_line
from edgelm.cli.wrong_usage import refused, wrong_usage
from edgelm.errors import ConfigError, MissingExtraError, PackageError
from edgelm.library import sources
from edgelm.library.catalogue import CATALOGUE
from edgelm.library.fetch_options import FetchOptions
from edgelm.library.known_source import KnownSource
from edgelm.library.library import Library, check_name
from edgelm.package.manifest import Manifest

# Bytes of a package for each byte of its original. int8 takes 1.46 of SmolLM2-135M's 4-bit GGUF file (143 of 98 MB),
# and about 0.55 of weights in 16 bits. With less room a pull is refused at once; what needs more, the exporter refuses.
_PACKAGE_SHARE = 1.5


def _complete_names(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name, help=CATALOGUE[name].description) for name in CATALOGUE if name.startswith(incomplete)]


@click.command()
@click.argument("model", shell_complete=_complete_names)
@click.option("--precision", metavar="NAME", help="Precision of the package, as `edgelm export` takes it.")
@click.option("--name", metavar="NAME", help="Name in the library.  [default: the model's own]")
@click.option("--source-only", is_flag=True, help="Download only; make no package.")
@click.option("--accept-license", is_flag=True, help="Agree to the model's terms, where it has any, without asking.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File with the token for the hub.  [default: HF_TOKEN, or what `hf auth login` left]",
)
@click.option(
    "--connections",
    type=int,
    metavar="N",
    default=FetchOptions.connections,
    show_default=True,
    help="Connections over which a large file comes.",
)
@click.pass_context
def pull(
    context: click.Context,
    model: str,
    precision: str | None,
    name: str | None,
    source_only: bool,
    accept_license: bool,
    token_file: Path | None,
    connections: int,
) -> None:
    """Download a model and make a package of it.

    MODEL is a known name (see `edgelm list --available`), hf:ORG/REPO (safetensors, or a package that `edgelm push`
    wrote) or hf:ORG/REPO/FILE.gguf, the last two with @REVISION behind them or without. An interrupted download goes on
    where it stopped: run the same command again. The source stays in the library: `edgelm export` makes packages with
    other settings of it.

    \b
    Examples:
      edgelm pull smollm2-135m-instruct
      edgelm pull hf:HuggingFaceTB/SmolLM2-360M-Instruct --precision int4
      edgelm pull hf:ORG/REPO/model-q8_0.gguf --source-only
      edgelm pull hf:ORG/REPO/model-00001-of-00003.gguf       and the other parts of the model
      edgelm export smollm2-135m-instruct --prefill-graph     once it is pulled
      HF_ENDPOINT=https://mirror.example edgelm pull qwen3-0.6b
    """
    library = Library()
    model = library.resolve(model)
    if library.has_package(model) and precision is None and name is None and not source_only:
        _say(f"{model} is in the library already: {_command(library, model)}")
        return
    source = sources.resolve(_reference(model, library))
    name = name or (model if model in library.sources() else source.name)
    share = 0.0 if source_only else _PACKAGE_SHARE
    with wrong_usage():
        _check_name(name)
        options = FetchOptions(connections=connections, token_file=token_file, package_share=share, precision=precision)
    with library.lock(name, say_waiting(name)):
        sources.refuse_other(source, library, name)
        here = None if source_only else _package_of(library, name, precision)
        if here is not None:
            _say(f"{here} is in the library already: {_command(library, here)}")
            return
        exporter = None if source_only else _Exporter.find(context)
        package = name if exporter is None else exporter.package_name(name, precision)
        library.refuse_alias(package)
        if name not in library.sources():
            _agree_to_terms(source, accept_license)
        path = _fetch(source, library, name, options)
        if path == library.package_path(name):
            package = name
        elif source_only:
            return
        elif exporter is None:
            _say(f'To make a package of it: pip install "edgelm[export]" and then: edgelm export {name}')
            return
        else:
            exporter.export(path, library.package_path(package), precision)
    _say(f"Try it: {_command(library, package)}")


def _check_name(name: str) -> None:
    try:
        check_name(name)
    except ConfigError as error:  # many a file of the hub has spaces in its name
        raise ConfigError(f"{error} To choose one: --name NAME") from error


def _agree_to_terms(source: sources.Source, accepted: bool) -> None:
    """Show the terms of a model that has any, and end here where the user does not agree to them."""
    terms = source.model.terms if isinstance(source, KnownSource) else None
    if terms is None:
        return
    _say(f"{source.name} is under terms of its own: {terms}")
    if not accepted:
        ask("Do you agree to them?", "read the terms, and add --accept-license to agree to them.")


def _say(text: str) -> None:
    click.echo(text, err=True)


def _command(library: Library, name: str) -> str:
    return _manifest(library, name).command(name)


def _manifest(library: Library, name: str) -> Manifest:
    """Read the manifest of a package; one that cannot be read is not replaced by a pull."""
    folder = library.package_path(name)
    try:
        return Manifest.load(folder)
    except PackageError as error:
        raise PackageError(f"{error} To pull it anew, remove {folder} first.") from error


def _reference(model: str, library: Library) -> str:
    """Return what `model` was pulled as, where it is the name of a source in the library."""
    if model not in library.sources():
        return model
    record = sources.read_record(library.root / "sources" / model)
    return str(record.get("reference", model))


def _package_of(library: Library, name: str, precision: str | None) -> str | None:
    """Return the package that the library has of `name`, in any precision or in the one that is asked for."""
    for package in (name, f"{name}-{precision}"):
        if not library.has_package(package):
            continue
        if precision in (None, _manifest(library, package).precision):
            return package
    return None


class _Exporter:
    """`edgelm export`, found as any command is: this package may not import the exporter's."""

    def __init__(self, context: click.Context, command: click.Command) -> None:
        self._context, self._command = context, command

    @classmethod
    def find(cls, context: click.Context) -> _Exporter | None:
        """Return None where the extra of the exporter is missing."""
        group = context.find_root().command
        assert isinstance(group, click.Group)
        try:
            command = group.get_command(context, "export")
        except MissingExtraError:
            return None
        return None if command is None else cls(context, command)

    def package_name(self, name: str, precision: str | None) -> str:
        """Return the name that `edgelm export` would choose; a wrong precision ends here, before any download."""
        option = next(option for option in self._command.params if option.name == "precision")
        if precision == MIXED:
            raise refused(
                "--precision mixed goes with a size or a loss, which `edgelm export` takes: pull it with "
                f"--source-only, and then: edgelm export {name} --precision mixed --target-size 90MB",
                "precision",
            )
        if precision is None or option.type.convert(precision, option, self._context) == DEFAULT_PRECISION:
            return name
        return f"{name}-{precision}"

    def export(self, source: Path, target: Path, precision: str | None) -> None:
        arguments = [str(source), "-o", str(target)]
        if precision is not None:
            arguments += ["--precision", precision]
        with self._command.make_context("export", arguments, parent=self._context) as child:
            self._command.invoke(child)


def _fetch(source: sources.Source, library: Library, name: str, options: FetchOptions) -> Path:
    known = name in library.sources()
    with progress_line() as progress:
        path = sources.fetch(source, library, name, dataclasses.replace(options, progress=progress, say=_say))
    what = "package" if path == library.package_path(name) else f"source of {name}"
    _say(f"The {what} is {'in the library already' if known else 'here'}: {path}")
    return path
