"""What happens to a checkpoint before its graph is written: transforms folded in, layers quantized by calibration."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgelm.architecture.block_grid import exact_grid, in_blocks
from edgelm.architecture.quantization_recipe import Precision, integer_scheme_for, scheme_for
from edgelm.architecture.quantization_scheme import FLOATS
from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm.files.held_folder import held_folder
from edgelm_export.checkpoints.checked import CheckedCheckpoint, Progress
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.tensor_map import head_name
from edgelm_export.quantize.calibration import calibrate, calibration_name
from edgelm_export.quantize.calibration_text import CalibrationText
from edgelm_export.quantize.channel_scales import CHANNEL_SCALES_FILE, ChannelScales, PlainHead, ScaledCheckpoint
from edgelm_export.quantize.folding import choose_scales
from edgelm_export.quantize.rotation import RotatedCheckpoint


def refuse_calibration(config: ModelConfig) -> None:
    """Refuse what the calibration cannot run.

    Raises:
        ExportError: the model has an encoder, or relative positions.
    """
    if config.encoder is not None or config.position == "relative":
        raise ExportError(
            f"A {config.model_type} model with {'an encoder' if config.encoder else 'relative positions'} is quantized "
            "without calibration: export with --precision fp32, fp16, bf16, int8 or int4, and an fp32 KV cache."
        )


def fitted(precision: Precision, checkpoint: Checkpoint) -> Precision:
    """Return a precision as it suits one checkpoint.

    A preset's fallback stands in where its transforms have no place in the model. Weights that lie on the grid of one
    of the two already, as quantization-aware training and other packages leave them, stay there without transforms.
    """
    precision = dataclasses.replace(precision.for_model(checkpoint.config), name=precision.name)
    each: Precision | None = precision
    while each is not None and each.fallback is not None:
        if _lies_on_grid(checkpoint, each):
            return dataclasses.replace(each, name=precision.name, transforms=())
        each = each.fallback
    return precision


def _lies_on_grid(checkpoint: Checkpoint, precision: Precision) -> bool:
    """Tell whether the first matrix that a precision stores as integers lies on its grid already.

    Most of its blocks are enough: where a package has been read back, float32's rounding hides the grid of a few.
    """
    recipe = precision.recipe(checkpoint.config)
    for name, shape in checkpoint.config.tensor_shapes().items():
        scheme = integer_scheme_for(recipe, name) if len(shape) == 2 and ".layers." in name else None
        if scheme is not None:
            return bool(exact_grid(in_blocks(checkpoint.tensor(name), scheme.block_size), scheme)[1].mean() > 0.5)
    return False


@contextlib.contextmanager
def prepared(
    checkpoint: Checkpoint, precision: Precision, text: CalibrationText, package: Path, progress: Progress
) -> Iterator[Checkpoint]:
    """Yield the checkpoint that the graph is to be made of.

    package: the folder that gets the scales that are folded into the weights. What a calibration keeps on disk goes
    when the block is done, and stays for the next run where it is stopped.

    Raises:
        ExportError: the model cannot be transformed so, or the calibration text cannot be read.
    """
    if scheme_for(precision.recipe(checkpoint.config), head_name(checkpoint.config)) in FLOATS:
        checkpoint = PlainHead(checkpoint)
    if "rotate" in precision.transforms:
        checkpoint = RotatedCheckpoint(checkpoint)
    if precision.reads_a_text:
        refuse_calibration(checkpoint.config)
    (package / CHANNEL_SCALES_FILE).unlink(missing_ok=True)  # of another attempt
    if not precision.needs_calibration:
        yield checkpoint
        return
    sequences = text.smoothing_sequences if precision.only_smooths else text.sequences
    checkpoint = _scaled(checkpoint, precision, sequences, package, progress)
    if not precision.calibrates:
        yield checkpoint
        return
    checked = CheckedCheckpoint(checkpoint, None)
    with _kept(text.options.cache, calibration_name(checked, precision, sequences)) as folder:
        yield calibrate(checked, precision, sequences, folder, progress)
        shutil.rmtree(folder)


@contextlib.contextmanager
def _kept(cache: Path | None, name: str) -> Iterator[Path]:
    """Yield the folder of a calibration in the cache; a temporary one where there is none, or another export has it.

    To wait for that export would save nothing: what is kept goes when it is done.
    """
    with contextlib.ExitStack() as stack:
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            if stack.enter_context(held_folder(cache / name)):
                yield cache / name
                return
        yield Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgelm-")))


def _scaled(
    checkpoint: Checkpoint, precision: Precision, sequences: list[list[int]], package: Path, progress: Progress
) -> Checkpoint:
    """Fold in the scales that the precision's transforms choose, one after the other, and keep them in the package."""
    every: ChannelScales | None = None
    for transform in precision.reading_transforms:
        checked = CheckedCheckpoint(checkpoint, None)
        scales = choose_scales(checked, transform, precision.recipe(checkpoint.config), sequences, progress)
        checkpoint = ScaledCheckpoint(checkpoint, scales)
        every = scales if every is None else every.times(scales)
    if every is not None:
        every.save(package)
    return checkpoint
