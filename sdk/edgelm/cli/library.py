"""`edgelm list`, `edgelm show` and `edgelm rm`: what is in the model library."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from edgelm.cli.generation_options import complete_kept, complete_model
from edgelm.cli.output import is_terminal, megabytes, one_line, print_json, print_table, say_waiting
from edgelm.cli.wrong_usage import refused
from edgelm.config import ModelConfig
from edgelm.counted import counted
from edgelm.errors import EdgeLMError
from edgelm.files.gguf_part_names import names_of_parts
from edgelm.library.catalogue import CATALOGUE
from edgelm.library.disk_use import size_of
from edgelm.library.library import Library
from edgelm.package.bom import bill_of_materials
from edgelm.package.graph_file import PREFILL_DATA_FILE, PREFILL_FILE
from edgelm.package.manifest import Manifest
from edgelm.package.package import open_package

_FACTS = ("license", "terms", "size", "precision", "context_length", "is_run", "description")  # of a known model


@click.command("list")
@click.option("--available", is_flag=True, help="List the models that `edgelm pull` knows by name.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_models(available: bool, as_json: bool) -> None:
    """List the models in the library, or those that can be pulled.

    QUALITY is a package's perplexity beside its source's, from its certificate: ×1.000 is as good as the source.

    \b
    Examples:
      edgelm list
      edgelm list --available
      edgelm list --json | jq -r '.[].name'
    """
    library = Library()
    rows = _available(library) if available else _here(library)
    if as_json:
        print_json(rows)
    elif available:
        _print_available(rows)
    elif rows:
        _print_here(rows)
    else:
        advice = "Fetch a small model: edgelm pull smollm2-135m-instruct"
        click.echo(f"The library {library.root} is empty. {advice}", err=True)


def _here(library: Library) -> list[dict[str, Any]]:
    rows = [_package_row(library, name) for name in library.packages()]
    rows += [_source_row(library, name) for name in library.sources()]
    rows += [{"name": name, "kind": "alias", "target": target} for name, target in library.aliases().items()]
    return sorted(rows, key=lambda row: str(row["name"]))


def _available(library: Library) -> list[dict[str, Any]]:
    present = {*library.packages(), *library.sources()}
    return [
        {"name": name, **{fact: getattr(model, fact) for fact in _FACTS}, "is_here": name in present}
        for name, model in CATALOGUE.items()
    ]


def _package_row(library: Library, name: str) -> dict[str, Any]:
    folder = library.package_path(name)
    row: dict[str, Any] = {"name": name, "kind": "package", "size": size_of(folder.resolve()), "path": str(folder)}
    try:
        manifest = Manifest.load(folder)
    except EdgeLMError as error:  # one broken package must not hide the others
        return row | {"kind": "broken", "problem": str(error)}
    quality = manifest.quality
    return row | {
        "precision": manifest.precision,
        "context_length": manifest.context_length,
        "license": manifest.license,
        "perplexity": quality.perplexity if quality else None,
        "perplexity_over_source": quality.perplexity / quality.source_perplexity if quality else None,
    }


def _source_row(library: Library, name: str) -> dict[str, Any]:
    path = library.source_path(name)
    parts = [path.with_name(part) for part in names_of_parts(path.name)]
    return {"name": name, "kind": "source", "size": sum(map(size_of, parts)), "path": str(path)}


def _print_here(rows: list[dict[str, Any]]) -> None:
    here = {row["name"] for row in rows if row["kind"] != "alias"}
    print_table(
        ["NAME", "PRECISION", "SIZE", "CONTEXT", "QUALITY"],
        [
            (
                row["name"],
                row.get("precision") or f"({row['kind']})",
                megabytes(row["size"]) if "size" in row else _target(row["target"], here),
                str(row.get("context_length") or ""),
                f"×{row['perplexity_over_source']:.3f}" if row.get("perplexity_over_source") is not None else "",
            )
            for row in rows
        ],
    )
    for row in rows:
        if "problem" in row:
            click.echo(f"warning: {row['name']}: {one_line(row['problem'])}", err=True)


def _target(name: str, here: set[str]) -> str:
    return name if name in here else f"{name} (not here)"


def _print_available(rows: list[dict[str, Any]]) -> None:
    print_table(
        ["NAME", "LICENSE", "SIZE", "PRECISION", "CONTEXT", ""],
        [
            (
                row["name"],
                row["license"],
                megabytes(row["size"]),
                row["precision"],
                str(row["context_length"]),
                "here" if row["is_here"] else "" if row["is_run"] else "not yet tried",
            )
            for row in rows
        ],
    )
    click.echo("Fetch one: edgelm pull NAME; any other model of a supported family: edgelm pull hf:ORG/REPO", err=True)


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.option("--bom", is_flag=True, help="Print a bill of materials (CycloneDX 1.6, JSON).")
def show(model: str, as_json: bool, bom: bool) -> None:
    """Show what a model is and how good it is.

    MODEL is a name from the library or a folder; also one that onnxruntime-genai's builder or Optimum wrote.

    \b
    Examples:
      edgelm show smollm2-135m-instruct
      edgelm show package/ --json | jq .manifest.quality
      edgelm show package/ --bom > bom.cdx.json
    """
    if as_json and bom:
        raise refused("--json and --bom exclude each other; give one.", "as_json", "bom")
    folder = Library().find(model)
    package = open_package(folder)
    folder, manifest = package.folder, package.manifest
    if bom:
        print_json(bill_of_materials(manifest))
        return
    config = package.config()
    languages = _languages(folder, config)
    # The type of the cache of another program's graph stands only in the graph.
    kv_bytes = config.kv_bytes_per_token if package.foreign_graph is None else None
    if as_json:
        facts = {
            "path": str(folder),
            "size": size_of(folder.resolve()),
            "kv_cache_bytes_per_token": kv_bytes,
            "state_bytes": config.state_bytes,
            "config": config.to_dict(),
            "languages": languages,
            "manifest": dataclasses.asdict(manifest),
        }
        print_json(facts)
        return
    for label, value in [*_facts(folder, manifest, config, kv_bytes, languages), *_quality(manifest)]:
        click.echo(f"{label:<22}{one_line(value)}")
    click.echo("files")
    for entry in manifest.files:
        click.echo(f"  {one_line(entry.path):<28}{megabytes(entry.size):>10}  sha256 {entry.sha256[:12]}…")


def _languages(folder: Path, config: ModelConfig) -> list[str]:
    if config.encoder is None:
        return []
    from edgelm.text.languages import Languages  # which brings numpy and tokenizers
    from edgelm.text.tokenizer import Tokenizer

    return list(Languages(Tokenizer.load(folder), config))


def _encoder_facts(config: ModelConfig, languages: list[str]) -> list[tuple[str, str]]:
    if config.encoder is None:
        return []
    encoder = config.encoder
    facts = [("encoder layers", f"{encoder.num_hidden_layers}, context {encoder.max_position_embeddings} tokens")]
    return [*facts, ("languages", f"{len(languages)}: {', '.join(languages)}")] if languages else facts


def _prefill_facts(manifest: Manifest) -> list[tuple[str, str]]:
    schemes = manifest.recipe_values("prefill_graph")
    if not schemes:
        return []
    size = sum(entry.size for entry in manifest.files if entry.path in (PREFILL_FILE, PREFILL_DATA_FILE))
    return [("prefill graph", f"{schemes[0]}, {megabytes(size)}, also in memory (--no-prefill-graph leaves it out)")]


def _in_windows(config: ModelConfig) -> str:
    from edgelm.memory.kv_cache import most_bytes  # which brings numpy

    windows = [window for i in range(config.last_kept_layer + 1) if (window := config.window(i)) is not None]
    if not windows:
        return ""
    return (
        f" ({megabytes(most_bytes(config))} on Linux: {counted(len(windows), 'layer')} with a window of {windows[0]})"
    )


def _cache_facts(manifest: Manifest, config: ModelConfig, kv_bytes: int | None) -> tuple[str, str]:
    if kv_bytes is None:
        return "KV cache", "not stated"
    full = f"{megabytes(kv_bytes * manifest.context_length)} when full{_in_windows(config)}"
    states = config.state_bytes
    beside = f"; {megabytes(states)} of states, however long the text" if states else ""
    return "KV cache", f"{config.kv_cache}, {kv_bytes / 1024:.1f} KiB per token, {full}{beside}"


def _facts(
    folder: Path, manifest: Manifest, config: ModelConfig, kv_bytes: int | None, languages: list[str]
) -> list[tuple[str, str]]:
    facts = [
        ("name", manifest.name),
        ("path", str(folder)),
        ("architecture", manifest.architecture),
        ("precision", manifest.precision),
        ("size", megabytes(size_of(folder.resolve()))),
        ("context length", f"{manifest.context_length} tokens"),
        ("layers", f"{config.num_hidden_layers}, hidden size {config.hidden_size}"),
        *_encoder_facts(config, languages),
        ("attention heads", f"{config.num_attention_heads}, key-value heads {config.num_key_value_heads}"),
        ("vocabulary", f"{config.vocab_size} tokens"),
        _cache_facts(manifest, config, kv_bytes),
        *_prefill_facts(manifest),
        ("license", manifest.license or "not stated"),
        ("source", ", ".join(f"{key} {value}" for key, value in manifest.source.items() if isinstance(value, str))),
        ("made by", ", ".join(f"{tool} {version}" for tool, version in manifest.created_by.items()) or "not stated"),
    ]
    return facts + [("note", note) for note in manifest.notes]


def _quality(manifest: Manifest) -> list[tuple[str, str]]:
    quality = manifest.quality
    if quality is None:
        return [("quality", "not measured")]
    after = quality.after_prefill
    return [
        ("perplexity", f"{quality.perplexity:.3f} (source {quality.source_perplexity:.3f}; {quality.tokens} tokens)"),
        *([] if after is None else [("behind a prompt", f"{after[0]:.3f} (source {after[1]:.3f})")]),
        ("same likeliest token", f"{quality.top1_agreement:.1%} of positions"),
        ("KL divergence", f"{quality.mean_kl_divergence:.5f} nats per token"),
        ("greedy tokens", f"the first {quality.greedy_agreement} of {quality.greedy_tokens} are the source's"),
    ]


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_kept)
@click.option("--source-only", is_flag=True, help="Remove what a package was made from; the package stays.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def rm(names: tuple[str, ...], source_only: bool, yes: bool) -> None:
    """Remove models from the library.

    A model's package goes, its source, and an unfinished download of it. Of an alias, only the alias goes; with
    --source-only it stays, and its model is meant. On a terminal you are asked first; a script is not.

    \b
    Examples:
      edgelm rm smollm2-135m-instruct
      edgelm rm smollm2-135m-instruct --source-only
      edgelm rm old-model older-model --yes
    """
    library = Library()
    # An alias has no source to lose: its model is meant.
    names = tuple(dict.fromkeys(library.resolve(name) if source_only else name for name in names))
    for name in names:
        if library.resolve(name) == name:  # a missing one is an error before anything is asked
            library.removable(name, source_only=source_only)
    if not yes and is_terminal(sys.stdin):
        what = "the sources of " if source_only else ""
        click.confirm(f"Remove {what}{', '.join(names)} from the library?", abort=True, err=True)
    for name in names:
        target = library.resolve(name)
        if target != name:
            library.remove_alias(name)
            is_here = target in (*library.packages(), *library.sources())
            what = f"{target}; {target} stays" if is_here else f"{target}, which is not here"
            click.echo(f"Removed {name}, an alias of {what}.", err=True)
            continue
        library.remove(name, source_only=source_only, waiting=say_waiting(name))
        click.echo(f"Removed {'the source of ' if source_only else ''}{name}.", err=True)
