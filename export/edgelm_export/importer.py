"""The import: any checkpoint in, a checkpoint folder of ours out, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.config_section import with_section
from edgelm.errors import CheckpointError
from edgelm.files import atomic
from edgelm.files.safetensors_index import WEIGHTS_FILE
from edgelm.package.replaceable import refuse_to_replace, why_not_a_checkpoint
from edgelm_export.checkpoints.checked import CheckedCheckpoint, Progress
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.safetensors_writer import SOURCE_KEY, TensorSpec, write_safetensors
from edgelm_export.checkpoints.tensor_map import GATHERED, HEAD, PER_LAYER_EMBEDDING
from edgelm_export.quantize.keep import FLOAT_TYPES
from edgelm_export.quantize.portions import portions_of
from edgelm_export.sources.sources import open_checkpoint
from edgelm_export.sources.text_tools import text_tools
from edgelm_export.tokenizers.tokenizer_json import json_text


def import_checkpoint(source: str | Path, target: str | Path, *, progress: Progress | None = None) -> None:
    """Write any checkpoint as a checkpoint folder, which training, the exporter and transformers read.

    Weights keep a 16-bit type; quantized ones become float32. An older checkpoint folder at `target` is replaced in one
    step, and stands until then.

    Raises:
        CheckpointError: the source is broken or not supported, has values that are not finite or (but for what is
            inside of a GGUF file) text files that do not load, `target` holds something else, or it cannot be written.
    """
    with open_checkpoint(source) as checkpoint:
        write_checkpoint(checkpoint, Path(target), progress=progress)


def write_checkpoint(checkpoint: Checkpoint, target: Path, *, progress: Progress | None = None) -> tuple[str, ...]:
    """Write an open checkpoint as a checkpoint folder, and return what a person should know of it.

    `import_checkpoint` says the rest.
    """
    refuse_to_replace(target, why_not_a_checkpoint, CheckpointError)
    texts = dict(checkpoint.text_files)
    texts["config.json"] = json_text(with_section(checkpoint.hf_config, checkpoint.config))
    checked = CheckedCheckpoint(checkpoint, progress)
    tensors = {
        name: TensorSpec(dtype=_written_type(checkpoint.stored_type(name)), shape=shape)
        for name, shape in checkpoint.config.tensor_shapes().items()
    }
    metadata = {SOURCE_KEY: json.dumps(checkpoint.source)}
    try:
        notes = (*checkpoint.notes, *_faults(checkpoint))
        with atomic.replace_folder(target) as staging:
            write_safetensors(staging / WEIGHTS_FILE, tensors, partial(_portions, checked), metadata)
            for name, text in texts.items():
                (staging / name).write_text(text, encoding="utf-8", newline="")
    except OSError as error:  # the readers turn their own into CheckpointError
        raise CheckpointError(f"{target} cannot be written: {error}. What was there before is as it was.") from error
    return notes


def _portions(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[np.float32]]:
    """Read a tensor; tables of tokens, which are larger than all others, some rows at a time."""
    is_table = name == HEAD or name in GATHERED
    # What is packed otherwise would be unpacked as a whole for each of its portions.
    if not is_table or (name != PER_LAYER_EMBEDDING and checkpoint.stored_type(name) not in FLOAT_TYPES):
        yield checkpoint.tensor(name)
        return
    for rows in portions_of(checkpoint.config.tensor_shapes()[name]):
        yield checkpoint.rows(name, rows.start, rows.stop)


def _faults(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Say what does not load of a GGUF file's text files, which can be mended in the new folder alone.

    Raises:
        CheckpointError: a text file of a folder does not load.
    """
    try:
        text_tools(checkpoint)
    except CheckpointError as error:
        if not checkpoint.path.is_file():
            raise
        return (str(error),)
    return ()


def _written_type(stored: str) -> str:
    """Choose the narrowest type that holds every value: bfloat16 has the exponents of MXFP4 and 8, and more digits."""
    if stored in ("F16", "BF16"):
        return stored
    return "BF16" if stored in ("MXFP4", "MXFP8") else "F32"
