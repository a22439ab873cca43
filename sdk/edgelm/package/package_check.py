"""The whole check of a package: every file, the graph, and that all that is read of it opens. Runs nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.config import ModelConfig
from edgelm.counted import counted
from edgelm.errors import EdgeLMError, PackageError
from edgelm.files.regular_file import MAX_JSON_BYTES, parse_json, read_regular
from edgelm.generation_config import GenerationConfig
from edgelm.package.adapter import AdapterManifest
from edgelm.package.graph_file import graph_files, read_graph
from edgelm.package.manifest import Manifest, check_hash, is_plain_name
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer

# All keys that edgelm writes (edgelm_export/genai_config.py). By others onnxruntime-genai loads libraries and
# compiled contexts, and writes profiles and models; each provider has some of its own.
_GENAI_KEYS = {
    "attention_mask", "bos_token_id", "context_length", "decoder", "do_sample", "eos_token_id", "filename",
    "head_size", "hidden_size", "input_ids", "inputs", "log_id", "logits", "max_length", "model",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "outputs", "pad_token_id", "past_key_names",
    "past_present_share_buffer", "past_value_names", "present_key_names", "present_value_names", "provider_options",
    "search", "session_options", "type", "vocab_size",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one step of the check found; `problem` is None where all is well."""

    step: str
    detail: str
    problem: str | None = None


def check_package(folder: Path) -> Iterator[Finding]:
    """Check a package step by step; a step that fails does not end the check, unless nothing can follow it.

    Steps: manifest, files (sizes, hashes, nothing else in the folder), graph (the walk; domains against the manifest),
    config, tokenizer (control tokens against the manifest), chat template, generation config, and the genai config,
    which edgelm itself never reads.
    """
    try:
        manifest = Manifest.load(folder)
    except EdgeLMError as error:
        yield Finding(step="manifest", detail="", problem=str(error))
        return
    yield Finding(step="manifest", detail=f"{manifest.name}, schema version {manifest.schema_version}")
    for step, look in (
        ("files", _files),
        ("graph", _graph),
        ("config", _config),
        ("tokenizer", _tokenizer),
        ("chat template", _chat_template),
        ("generation config", _generation_config),
        ("genai config", _genai_config),
    ):
        try:
            yield Finding(step=step, detail=look(folder, manifest))
        except EdgeLMError as error:
            yield Finding(step=step, detail="", problem=str(error))


def check_adapter(folder: Path) -> Iterator[Finding]:
    """Check an exported adapter: its manifest, and the size and hash of its weights."""
    try:
        manifest = AdapterManifest.load(folder)
        yield Finding(step="manifest", detail=f"{manifest.name}, an adapter for {manifest.base}")
    except EdgeLMError as error:
        yield Finding(step="manifest", detail="", problem=str(error))
        return
    try:
        check_hash(folder, manifest.file)
        yield Finding(step="weights", detail=f"{manifest.file.size} bytes, as listed")
    except EdgeLMError as error:
        yield Finding(step="weights", detail="", problem=str(error))


def _files(folder: Path, manifest: Manifest) -> str:
    manifest.check_files(folder)
    return f"{counted(len(manifest.files), 'file')}, {manifest.size} bytes, all as listed"


def _graph(folder: Path, manifest: Manifest) -> str:
    operators: set[tuple[str, str]] = set()
    for name in graph_files(manifest):
        _, facts = read_graph(folder / name, manifest.entry(name))
        if dict(facts.opsets) != dict(manifest.opsets):
            raise PackageError(
                f"{folder / name} uses the operator sets {dict(facts.opsets)}; the manifest says "
                f"{dict(manifest.opsets)}. Export the package again."
            )
        operators |= facts.operators
    return f"{len(operators)} operators, all known"


def _config(folder: Path, manifest: Manifest) -> str:
    config = ModelConfig.load(folder)
    if config.max_position_embeddings != manifest.context_length:
        raise PackageError(
            f"{folder / 'config.json'} has a context of {config.max_position_embeddings} tokens; the manifest says "
            f"{manifest.context_length}. Export the package again."
        )
    return f"{counted(config.num_hidden_layers, 'layer')}, context of {config.max_position_embeddings} tokens"


def _tokenizer(folder: Path, manifest: Manifest) -> str:
    tokenizer = Tokenizer.load(folder)
    if tokenizer.control_token_ids != set(manifest.control_token_ids):
        differing = sorted(tokenizer.control_token_ids ^ set(manifest.control_token_ids))
        raise PackageError(
            f"{folder / 'tokenizer.json'} and the manifest disagree about the control tokens {differing[:10]}. "
            "Export the package again."
        )
    return f"{tokenizer.vocab_size} tokens, {len(tokenizer.control_token_ids)} of them control tokens"


def _chat_template(folder: Path, _manifest: Manifest) -> str:
    return "none" if ChatTemplate.load(folder) is None else "compiles"


def _genai_config(folder: Path, _manifest: Manifest) -> str:
    """Look for what onnxruntime-genai would load as code, or from outside of the folder."""
    path = folder / "genai_config.json"
    if not path.exists():
        return "none"
    try:
        # As that program reads it: it takes a key that is there twice both times.
        stack: list[Any] = [parse_json(read_regular(path, MAX_JSON_BYTES))]
    except ValueError as error:
        raise PackageError(f"Cannot read {path}: {error}.") from error
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack += value
        if not isinstance(value, dict):
            continue
        for key, item in value.items():
            if key not in _GENAI_KEYS or (key == "filename" and not (isinstance(item, str) and is_plain_name(item))):
                raise PackageError(
                    f"{path} has {key!r:.80}: {item!r:.200}. No package of edgelm has it, and onnxruntime-genai may "
                    "load or write a file by it. Do not open this package with onnxruntime-genai."
                )
            stack.append(item)
    return "names no code and no file outside"


def _generation_config(folder: Path, _manifest: Manifest) -> str:
    GenerationConfig.load(folder, decoder_prompt=len(ModelConfig.load(folder).decoder_prompt_ids))
    return "fits"
