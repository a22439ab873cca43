"""The export: a checkpoint in, a verified model package out, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import onnx

import edgelm
from edgelm import atomic
from edgelm.chat_template import ChatTemplate
from edgelm.config import SECTION
from edgelm.errors import EdgeLMError, ExportError
from edgelm.generation_config import GenerationConfig
from edgelm.manifest import Manifest, describe_file
from edgelm.replaceable import why_not_a_package
from edgelm.session import GRAPH_FILE
from edgelm.tokenizer import Tokenizer
from edgelm_export.checked import CheckedCheckpoint, Progress
from edgelm_export.checkpoint import Checkpoint
from edgelm_export.decoder import build_decoder
from edgelm_export.external_data import ExternalData
from edgelm_export.genai_config import genai_config
from edgelm_export.graph import OPSETS
from edgelm_export.quantize import KEEP, Precision, precision_named
from edgelm_export.quantize.keep import moved_types
from edgelm_export.verify import check_quality, measure_quality

DEFAULT_PRECISION = "int8"  # nearly lossless, and the fastest at that quality (docs/results/smollm2-135m.md)


def export_package(
    checkpoint: Checkpoint,
    target: Path,
    precision_name: str = DEFAULT_PRECISION,
    *,
    name: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Export a checkpoint to a model package, check it against its source, and only then give it its name.

    Peak memory is that of the largest tensor and of the check (the package loaded once, one layer of the source).

    Raises:
        ExportError: `target` holds something else than a model package or cannot be written, the precision is unknown,
            or the source's text files are broken.
        VerificationError: the package does not reproduce its source within the precision's bound.
        CheckpointError: a tensor is broken.
    """
    precision = precision_named(precision_name)
    target = target.resolve()
    reason = why_not_a_package(target)
    if reason is not None:
        raise ExportError(f"{target} is not replaced: {reason}. Choose another folder, or remove it.")
    try:
        with atomic.replace_folder(target) as staging:
            return _write_package(checkpoint, staging, name or target.name, precision_name, precision, progress)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error}. What was there before is as it was.") from error


def _write_package(
    checkpoint: Checkpoint,
    folder: Path,
    name: str,
    precision_name: str,
    precision: Precision,
    progress: Progress | None,
) -> Manifest:
    report = progress or (lambda *_: None)
    tokenizer = _write_text_files(checkpoint, folder)
    _write_graph(CheckedCheckpoint(checkpoint, progress), precision, folder)
    report("check", 0, 1)
    quality = measure_quality(folder, checkpoint)
    check_quality(quality, precision, precision_name)
    report("check", 1, 1)
    package = Manifest(
        name=name,
        architecture=checkpoint.config.model_type,
        context_length=checkpoint.config.max_position_embeddings,
        precision=precision_name,
        recipe=tuple({"pattern": rule.pattern, "scheme": rule.scheme} for rule in precision.recipe(checkpoint.config)),
        opsets=OPSETS,
        files=tuple(describe_file(path) for path in sorted(folder.iterdir())),
        source=checkpoint.source,
        created_by={"edgelm": edgelm.__version__, "onnx": onnx.__version__, "numpy": numpy.__version__},
        control_token_ids=tuple(sorted(tokenizer.control_token_ids)),
        license=checkpoint.source.get("license"),
        quality=quality,
        notes=_notes(checkpoint, precision),
    )
    package.save(folder)
    return package


def _write_graph(checkpoint: Checkpoint, precision: Precision, folder: Path) -> None:
    with ExternalData(folder / f"{GRAPH_FILE}.data") as data:
        model = build_decoder(checkpoint, precision, data)
    (folder / GRAPH_FILE).write_bytes(model.SerializeToString(deterministic=True))


def _write_text_files(checkpoint: Checkpoint, folder: Path) -> Tokenizer:
    """Write and open what a loader will open: a broken tokenizer or template shows before the work, not after it."""
    config: dict[str, Any] = {**checkpoint.hf_config, SECTION: checkpoint.config.to_dict()}
    files = {
        **checkpoint.text_files,
        "config.json": _json(config),
        "genai_config.json": _json(genai_config(checkpoint.config)),
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    try:
        tokenizer = Tokenizer.load(folder)
        ChatTemplate.load(folder)
        GenerationConfig.load(folder)
    except EdgeLMError as error:
        raise ExportError(f"The source's text files do not load: {error}") from error
    return tokenizer


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _notes(checkpoint: Checkpoint, precision: Precision) -> tuple[str, ...]:
    if all(rule.scheme != KEEP for rule in precision.rules):
        return ()
    moved = moved_types(checkpoint)
    if not moved:
        return ("Every matrix keeps the grid of its source.",)
    return (
        f"Stored in 8 bits, since MatMulNBits is slow on their grids (a float offset per block): {', '.join(moved)}.",
    )
