"""What happens to a checkpoint before its graph is written: transforms folded in, layers quantized by calibration."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.calibration_text import CalibrationOptions, calibration_sequences
from edgelm_export.checked import CheckedCheckpoint, Progress
from edgelm_export.checkpoint import Checkpoint
from edgelm_export.quantize import Precision
from edgelm_export.quantize.calibration import calibrate
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


@contextlib.contextmanager
def prepared(
    checkpoint: Checkpoint, precision: Precision, calibration: CalibrationOptions, package: Path, progress: Progress
) -> Iterator[tuple[Checkpoint, Precision]]:
    """Yield the checkpoint that the graph is to be made of, and the rules that are left for it.

    package: a folder with the tokenizer and chat template. What a calibration keeps on disk goes when the block is
    done, and stays for the next run where it is stopped.

    Raises:
        ExportError: the model cannot be transformed so, or the calibration text cannot be read.
    """
    if "rotate" in precision.transforms:
        checkpoint = RotatedCheckpoint(checkpoint)
    if precision.needs_calibration or precision.kv_cache == "int8":
        refuse_calibration(checkpoint.config)
    if not precision.needs_calibration:
        yield checkpoint, precision
        return
    config, tokenizer = checkpoint.config, Tokenizer.load(package)
    sequences = calibration_sequences(calibration, tokenizer, ChatTemplate.load(package), config)
    with contextlib.ExitStack() as stack:
        folder = calibration.cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgelm-")))
        result = calibrate(CheckedCheckpoint(checkpoint, None), precision, sequences, folder, progress)
        yield result, precision.with_layers_kept()
        shutil.rmtree(result.folder)
