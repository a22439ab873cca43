"""The export: a checkpoint in, a verified model package out, whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import onnx
from numpy.typing import NDArray

import edgelm
from edgelm.architecture.quantization_recipe import (
    DEFAULT_PRECISION,
    OPERATOR_SETS,
    PRECISIONS,
    STANDARD,
    Precision,
    precision_named,
    rule_for,
)
from edgelm.architecture.quantization_scheme import KEEP
from edgelm.config import SECTION, ModelConfig
from edgelm.errors import EdgeLMError, ExportError, VerificationError
from edgelm.files import atomic
from edgelm.files.folder_entries import entries_of
from edgelm.memory.cache_layout import cache_layout
from edgelm.memory.malloc import map_arrays_from
from edgelm.package.graph_file import (
    DATA_FILE,
    DECODER_FILE,
    ENCODER_FILE,
    GRAPH_FILE,
    PREFILL_DATA_FILE,
    PREFILL_FILE,
)
from edgelm.package.manifest import Manifest, Quality, describe_file
from edgelm.package.replaceable import is_same_folder, refuse_to_replace, why_not_a_package
from edgelm.package.spdx import spdx_identifier
from edgelm_export.checkpoints.checked import CheckedCheckpoint, Progress
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.decoder import build_decoder
from edgelm_export.encoder import build_encoder
from edgelm_export.genai_config import genai_config
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.graph.graph import opsets_of
from edgelm_export.kv_cache_scales import keep_in_int8, measure_scales
from edgelm_export.layers.experts import no_block_fits
from edgelm_export.prefill import build_prefill, refuse_prefill_graph
from edgelm_export.preparation import fitted, prepared
from edgelm_export.quantize.calibration_text import CalibrationOptions, CalibrationText
from edgelm_export.quantize.keep import moved_types, stored_types, types_of_4_bits, weights_of_4_bits
from edgelm_export.quantize.sensitivity import matrices
from edgelm_export.sources.package_checkpoint import PACKAGE_FORMAT, PackageCheckpoint
from edgelm_export.sources.text_tools import text_tools
from edgelm_export.standard_decoder import build_standard_decoder
from edgelm_export.tokenizers.tokenizer_json import json_text
from edgelm_export.verification.verify import MATRIX_BYTES, check_quality, known_marks, measure_quality

_DECODERS = {"onnxruntime": build_decoder, "standard": build_standard_decoder}  # a row for each of OPERATOR_SETS
_LARGE = 1_000_000_000  # weights from which on 4 bits save hundreds of megabytes, and steps wait for memory


def export_package(
    checkpoint: Checkpoint,
    target: str | Path,
    precision: str | Precision | None = None,
    *,
    name: str | None = None,
    calibration: CalibrationOptions | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Export a checkpoint to a model package, check it against its source, and only then give it its name.

    precision: a preset's name, or a recipe; None leaves it to `usual_precision`. calibration: for recipes that take
    one; with it, a preset finds its integers by gptq. Peak memory is that of the largest tensor and of the check (the
    package loaded once, one layer of the source); with calibration also of a layer's statistics and the text's
    activations.

    Raises:
        ExportError: `target` is the package that is read, holds something else than a model package or cannot be
            written; or the precision is unknown.
        VerificationError: the package does not reproduce its source within the precision's bound.
        CheckpointError: a tensor or a text file of the source is broken.
    """
    if precision is None and calibration is None:
        precision = usual_precision(checkpoint)
    if not isinstance(precision, Precision):
        preset = precision_named(precision or DEFAULT_PRECISION)
        precision = preset if calibration is None else preset.calibrated()
    target = checked_target(checkpoint, Path(target))
    with written_folder(target) as staging:
        return _write_package(
            checkpoint, staging, name or target.name, precision, calibration or CalibrationOptions(), progress
        )


@contextlib.contextmanager
def written_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the name of a package when the block ends without an error.

    Raises:
        ExportError: the disk is full, or the folder cannot be written.
    """
    try:
        with atomic.replace_folder(target) as staging:
            yield staging
    except OSError as error:
        kept = "What was there before is as it was; to write elsewhere, choose a folder with -o."
        raise ExportError(f"{target} cannot be written: {error}. {kept}") from error


def checked_target(checkpoint: Checkpoint, target: Path) -> Path:
    """Return the absolute path of `target`, where a package of a checkpoint may be written.

    Raises:
        ExportError: it may not; the message says why.
    """
    if isinstance(checkpoint, PackageCheckpoint) and is_same_folder(checkpoint.path, target):
        raise ExportError(f"{target} is the package that is read. Choose another folder with -o.")
    refuse_to_replace(target, why_not_a_package, ExportError)
    target = target.resolve()
    if target.name.encode("utf-8", "replace").decode() != target.name:
        raise ExportError(f"{target.name!r} is no UTF-8, and a package has its folder's name. Choose another with -o.")
    return target


def usual_precision(checkpoint: Checkpoint) -> Precision:
    """Return what a checkpoint is exported in where nobody says: int8; of a large source in 4 bits, those 4 bits."""
    usual = precision_named(DEFAULT_PRECISION)
    if not _is_large_in_4_bits(checkpoint):
        return usual
    return dataclasses.replace(precision_named(KEEP), fallback=usual)


def _write_package(
    checkpoint: Checkpoint,
    folder: Path,
    name: str,
    precision: Precision,
    calibration: CalibrationOptions,
    progress: Progress | None,
) -> Manifest:
    if precision.prefill_graph:
        refuse_prefill_graph(checkpoint.config)
    if precision.kv_cache == "int8" and checkpoint.config.kv_lora_rank is not None:
        raise ExportError(
            f"A {checkpoint.config.model_type} model has latent attention, whose keys and values are one and small: "
            "they are not kept in int8. Export it without --kv-cache int8."
        )
    map_arrays_from(MATRIX_BYTES)
    _write_text_files(checkpoint, folder)
    tokenizer, _ = text_tools(checkpoint)
    known_marks(tokenizer, checkpoint.config)
    control_token_ids = tuple(sorted(tokenizer.control_token_ids))
    del tokenizer  # it would stand in memory beside the package
    precision, text = fitted(precision, checkpoint), CalibrationText(calibration, folder, checkpoint.config)
    used, quality = _write_checked_graph(checkpoint, folder, precision, text, progress or (lambda *_: None))
    named = checkpoint.source.get("license")
    package = Manifest(
        name=name,
        architecture=checkpoint.config.model_type,
        context_length=checkpoint.config.max_position_embeddings,
        precision=precision.name,
        recipe=used.rows(checkpoint.config),
        opsets=opsets_of(used.operators),
        files=tuple(describe_file(path) for path in entries_of(folder)),
        source=checkpoint.source,
        created_by={"edgelm": edgelm.__version__, "onnx": onnx.__version__, "numpy": numpy.__version__},
        control_token_ids=control_token_ids,
        license=named and (spdx_identifier(named) or named),
        quality=quality,
        notes=_notes(checkpoint, precision, used, text),
    )
    package.save(folder)
    return package


def _write_checked_graph(
    checkpoint: Checkpoint, folder: Path, precision: Precision, text: CalibrationText, progress: Progress
) -> tuple[Precision, Quality]:
    """Write the graph by a recipe that passes the check: the one asked for, or that with what tames activations.

    Weights on MatMulNBits' grid meet activations in 8 bits, block by block. A model with massive ones fails the check
    until they are evened out (docs/results/quantization.md).
    """
    refusal: EdgeLMError | None = None
    for attempt in (precision, *precision.tamed()):
        try:
            with prepared(checkpoint, attempt, text, folder, progress) as stored:
                _write_text_files(stored, folder, operators=attempt.operators)
                _write_graphs(CheckedCheckpoint(stored, progress), attempt, folder, text, progress)
        except ExportError as error:
            if refusal is None and precision.fallback is None:
                raise
            refusal = refusal or error
            continue  # this model has no place for that transform
        quality = measure_quality(folder, checkpoint, progress)
        try:
            check_quality(quality, dataclasses.replace(attempt, name=precision.name))
        except VerificationError as error:
            refusal = error
            continue
        return attempt, quality
    assert refusal is not None  # the loop has run at least once
    raise refusal


def _write_graphs(
    checkpoint: CheckedCheckpoint, precision: Precision, folder: Path, text: CalibrationText, progress: Progress
) -> None:
    build = _DECODERS[precision.operators]
    (folder / PREFILL_FILE).unlink(missing_ok=True)  # of another attempt
    with ExternalData(folder / DATA_FILE) as data:
        if checkpoint.config.encoder is not None:
            _save(folder / ENCODER_FILE, build_encoder(checkpoint, precision, data))
            _save(folder / DECODER_FILE, build(checkpoint, precision, data))
        else:
            _save(folder / GRAPH_FILE, build(checkpoint, precision, data))
    checkpoint.refuse_unread()
    scales = _keep_cache_in_int8(checkpoint, folder, text, progress) if precision.kv_cache == "int8" else []
    if precision.prefill_graph:
        with ExternalData(folder / PREFILL_DATA_FILE, beside=data) as own_data:
            _save(folder / PREFILL_FILE, build_prefill(checkpoint, precision, own_data, scales))


def written_size(checkpoint: Checkpoint, precision: Precision, folder: Path, progress: Progress) -> int:
    """Return the bytes of graph and weights by a recipe that runs no text: written to `folder`, and removed again."""
    folder.mkdir()
    text = CalibrationText(CalibrationOptions(), folder, checkpoint.config)
    _write_graphs(CheckedCheckpoint(checkpoint, progress), precision, folder, text, progress)
    size = sum(path.stat().st_size for path in folder.iterdir())
    shutil.rmtree(folder)
    return size


def _keep_cache_in_int8(
    checkpoint: Checkpoint, folder: Path, text: CalibrationText, progress: Progress
) -> list[NDArray[numpy.float32]]:
    """Give the decoder's graph the scales that a text has in it, and return them."""
    scales = measure_scales(folder, text.sequences, progress)
    model = onnx.load_model(folder / GRAPH_FILE, load_external_data=False)
    keep_in_int8(model, scales)
    _save(folder / GRAPH_FILE, model)
    _write_text_files(checkpoint, folder, kv_cache="int8")
    return scales


def _save(path: Path, model: onnx.ModelProto) -> None:
    path.write_bytes(model.SerializeToString(deterministic=True))


def _write_text_files(
    checkpoint: Checkpoint, folder: Path, *, kv_cache: str = "fp32", operators: str = OPERATOR_SETS[0]
) -> None:
    section = dataclasses.replace(checkpoint.config, kv_cache=kv_cache).to_dict()
    config: dict[str, Any] = {**checkpoint.hf_config, SECTION: section}
    files = {
        "tokenizer_config.json": json_text({"tokenizer_class": "PreTrainedTokenizerFast"}),  # transformers.js wants one
        **checkpoint.text_files,
        "config.json": json_text(config),
    }
    # onnxruntime-genai has another form of models with an encoder, and of those whose layers keep different things.
    kept = [buffer[:2] for buffer in cache_layout(checkpoint.config)]
    heads = set(map(checkpoint.config.query_heads, range(checkpoint.config.num_hidden_layers)))
    are_alike = len(heads) == len(set(kept)) == 1 and len(kept) == 2 * checkpoint.config.num_hidden_layers
    if checkpoint.config.encoder is None and are_alike:
        files["genai_config.json"] = json_text(genai_config(checkpoint.config, shares_cache=operators != STANDARD))
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")


def _notes(checkpoint: Checkpoint, asked: Precision, used: Precision, text: CalibrationText) -> tuple[str, ...]:
    notes = list(checkpoint.notes)
    if checkpoint.source.get("format") == PACKAGE_FORMAT:
        package, precision = checkpoint.source["package"], checkpoint.source["precision"]
        notes.append(
            f"Made of the {precision} package {package}, not of its source: the figures compare it with that package, "
            "and what that one has lost comes on top."
        )
    added = " and ".join(name for name in used.transforms if name not in asked.transforms)
    if added:
        notes.append(f"Activations too large for 8 bits failed the check, until the weights had {added} folded in.")
    if used.rules != asked.rules:
        notes.append(f"In other blocks than {asked.name} has, since a package in those was refused.")
    if asked.transforms and not used.transforms:
        notes.append("Not smoothed: the model has a part that scales cannot be folded into, or failed the check so.")
    if used.kv_cache == "int8":
        notes.append("Keys and values are kept in int8, with a scale for each channel.")
    if used.operators == STANDARD:
        notes.append("In operators of the ONNX standard alone.")
    if used.prefill_graph:
        notes.append("Prompts are read by a graph of their own, with integers of 8 bits by the row and the token.")
    if used.only_smooths:
        notes.append(f"Smoothed on {text.options.for_smoothing().describe(text.smoothing_sequences)}.")
    if (used.needs_calibration and not used.only_smooths) or used.kv_cache == "int8":
        notes.append(f"Calibrated on {text.options.describe(text.sequences)}.")
    notes += [*_notes_on_rules(checkpoint.config, asked), *_notes_on_4_bits(checkpoint, used)]
    if _keeps(used):
        notes.append(_note_on_grids(checkpoint))
    if (used.schemes or _keeps(used)) and no_block_fits(config := checkpoint.config):
        sizes = f"{config.hidden_size} and {config.expert_size} inputs"
        notes.append(f"The experts are stored in floats: their operator has no blocks that divide {sizes}.")
    return tuple(notes)


def _notes_on_rules(config: ModelConfig, precision: Precision) -> list[str]:
    """Say which rules of a person's recipe have no effect; those of presets are written for many models."""
    recipe, names = precision.recipe(config), matrices(config)
    of_presets = {rule.pattern for preset in PRECISIONS.values() for rule in preset.rules}
    used = {rule_for(recipe, name) for name in names}
    notes = []
    for asked, rule in zip(precision.rules, recipe[-len(precision.rules) :], strict=True):
        if rule not in used and asked.pattern not in of_presets:
            why = "no tensor of this model matches it"
            if any(re.search(rule.pattern, name) for name in names):
                why = "rules before it take all tensors that match it"
            elif any(re.search(rule.pattern, name) for name in config.tensor_shapes()):
                why = "what it matches is float32 in any package"
            notes.append(f"The rule for {asked.pattern!r} has no effect: {why}.")
    return notes


def _note_on_grids(checkpoint: Checkpoint) -> str:
    """Say what `keep` has kept."""
    moved, (floats, grids) = moved_types(checkpoint), stored_types(checkpoint)
    if moved:
        return f"Stored in 8 bits, since no fast operator has their grids: {', '.join(moved)}."
    if not grids:
        return f"The source is on no grid: keep leaves its matrices in {', '.join(floats)}."
    return f"Every matrix keeps the grid of its source{', or stays in ' if floats else ''}{', '.join(floats)}."


def _keeps(precision: Precision) -> bool:
    return any(rule.scheme == KEEP for rule in precision.rules)


def _notes_on_4_bits(checkpoint: Checkpoint, used: Precision) -> list[str]:
    """Say what `keep` does better, where the source has a grid of 4 bits, or what int8 does, where they are kept."""
    bits = {scheme.bits for scheme in used.schemes}
    if _keeps(used) and _is_large_in_4_bits(checkpoint):
        kept = ", ".join(types_of_4_bits(checkpoint))
        return [
            f"In the source's own 4 bits ({kept}): --precision int8 takes half as many bytes again or more, and reads "
            "prompts faster."
        ]
    if 4 in bits:
        gain = "loses less"
    elif bits == {8} and used.operators != STANDARD and _is_large_in_4_bits(checkpoint):
        gain = "takes about two thirds of the bytes, and longer to read prompts"
    else:
        return []
    types = types_of_4_bits(checkpoint)
    return [f"The source has a grid of its own ({', '.join(types)}): --precision keep {gain}."] if types else []


def _is_large_in_4_bits(checkpoint: Checkpoint) -> bool:
    weights = checkpoint.config.count_parameters()
    return weights >= _LARGE and weights_of_4_bits(checkpoint) > weights / 2
