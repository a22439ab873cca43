"""The card of a package on a hub: README.md, with what the manifest knows."""

from __future__ import annotations

import json
import re
from typing import Any

from edgelm.package.manifest import Manifest
from edgelm.package.spdx import hub_word

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def model_card(manifest: Manifest, repo: str) -> str:
    """Write the card of a package that stands in the repository `repo`: licence, base model, quality, how to run it.

    Source of the fields at its top: https://huggingface.co/docs/hub/model-cards (model card metadata).
    """
    name = _printable(manifest.name)
    base = base_model(manifest)
    head: dict[str, Any] = {
        **_license_fields(manifest.license),
        "library_name": "edgelm",
        "pipeline_tag": "text-generation",
        "tags": ["edgelm", "onnx", manifest.architecture, manifest.precision],
    }
    if base is not None:
        head |= {"base_model": base, "base_model_relation": "quantized"}
    lines = [
        "---",
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()),  # JSON is YAML too
        "---",
        "",
        f"# {name}",
        "",
        f"A package for [ONNX Runtime](https://onnxruntime.ai) in {_printable(manifest.precision)}, made by edgelm"
        + (f" from [{base}](https://huggingface.co/{base})." if base else "."),
        "",
        "## Run it",
        "```",
        'pip install "edgelm[cpu,chat]"',
        f"edgelm pull hf:{repo}",
        manifest.command(repo.partition("/")[2].lower()),
        "```",
        "",
        "## What it is",
        "| | |",
        "|---|---|",
        *(f"| {label} | {_cell(value)} |" for label, value in _facts(manifest)),
        "",
        "## How good it is",
        *_quality(manifest),
        "",
        *[f"- {_printable(note)}" for note in manifest.notes],
    ]
    return "\n".join(lines).rstrip() + "\n"


def base_model(manifest: Manifest) -> str | None:
    """Return the repository of the hub that a package was made from, as its manifest has it."""
    source: Any = manifest.source
    while isinstance(source, dict):
        repository = source.get("repository")
        if isinstance(repository, str) and _REPOSITORY.fullmatch(repository):
            return repository
        source = source.get("imported_from")
    return None


def _license_fields(license_: str | None) -> dict[str, str]:
    if license_ is None:
        return {}
    word = hub_word(license_)
    if word is not None:
        return {"license": word}
    return {"license": "other", "license_name": license_}


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    facts = [
        ("architecture", manifest.architecture),
        ("precision", manifest.precision),
        ("size", f"{manifest.size / 1e6:.1f} MB"),
        ("context", f"{manifest.context_length} tokens"),
        ("licence", manifest.license or "not stated"),
        ("made by", ", ".join(f"{tool} {version}" for tool, version in manifest.created_by.items())),
    ]
    for file in manifest.source.get("files", ()):
        facts.append(("made from", f"{file.get('path')}, SHA-256 {file.get('sha256')}"))
    return facts


def _quality(manifest: Manifest) -> list[str]:
    quality = manifest.quality
    if quality is None:
        return ["It was not measured."]
    after = quality.after_prefill
    return [
        f"Measured by the export, beside its source in fp32, on {quality.tokens} tokens of a text that edgelm brings:",
        "",
        "| | package | source |",
        "|---|---|---|",
        f"| perplexity | {quality.perplexity:.3f} | {quality.source_perplexity:.3f} |",
        *([] if after is None else [f"| perplexity behind a prompt | {after[0]:.3f} | {after[1]:.3f} |"]),
        f"| likeliest token as the source's | {quality.top1_agreement:.1%} of positions | |",
        f"| KL divergence | {quality.mean_kl_divergence:.5f} nats per token | |",
        f"| greedy tokens as the source's | the first {quality.greedy_agreement} of {quality.greedy_tokens} | |",
    ]


def _cell(text: str) -> str:
    return _printable(text).replace("|", "\\|")


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
