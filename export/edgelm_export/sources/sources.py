"""Opening a checkpoint, whatever it is on disk."""

from __future__ import annotations

from pathlib import Path

from edgelm.errors import CheckpointError, ModelNotFoundError
from edgelm.files.gguf_part_names import one_of_each_model
from edgelm.files.presence import is_there
from edgelm.files.run_checkpoint import checkpoint_of_run
from edgelm.files.safetensors_index import INDEX_FILE, WEIGHTS_FILE
from edgelm.library.hub_address import as_reference
from edgelm.library.library import reading_path
from edgelm.package.manifest import FILE_NAME
from edgelm.package.peft_format import CONFIG_FILE as ADAPTER_CONFIG_FILE
from edgelm_export.gguf.file import MAGIC
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint
from edgelm_export.sources.unsupported_source import FIRST_BYTES, why_no_checkpoint_file, why_no_checkpoint_folder


def open_checkpoint(path: str | Path) -> HuggingFaceCheckpoint | GGUFCheckpoint | PackageCheckpoint:
    """Open a GGUF file, a Hugging Face folder, a checkpoint folder of ours, a package, or a folder with one GGUF model.

    The checkpoint is a context manager that closes its files.

    Raises:
        ModelNotFoundError: nothing is at `path`, or the system refuses to look there.
        CheckpointError: it is none of these, or it is broken or not supported.
    """
    path = Path(path)
    with reading_path(str(path)):
        exists = is_there(path)
    if not exists:
        other = checkpoint_of_run(path.parent)
        on_hub = as_reference(str(path))
        instead = f" From the Hugging Face hub: edgelm pull {on_hub}" if on_hub else ""
        instead = instead if other is None else f" The run has {other}."  # without validation it has no best one
        raise ModelNotFoundError(f"There is no file or folder {path}.{instead}")
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():  # opening a pipe waits for ever
        raise CheckpointError(f"{path} is a pipe or a device, and not a file. Give a GGUF file or a folder.")
    try:
        with path.open("rb") as file:
            beginning = file.read(FIRST_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if beginning.startswith(MAGIC):
        return GGUFCheckpoint(path)
    raise CheckpointError(why_no_checkpoint_file(path, beginning))


def _open_folder(folder: Path) -> HuggingFaceCheckpoint | GGUFCheckpoint | PackageCheckpoint:
    has_weights = any((folder / name).exists() for name in (WEIGHTS_FILE, INDEX_FILE))
    if has_weights and (folder / "config.json").exists():
        return HuggingFaceCheckpoint(folder)
    if not has_weights and (folder / FILE_NAME).exists():
        return PackageCheckpoint(folder)
    gguf_files = [] if has_weights else one_of_each_model(path.name for path in folder.glob("*.gguf"))
    if len(gguf_files) == 1 and not (folder / ADAPTER_CONFIG_FILE).exists():
        return open_checkpoint(folder / gguf_files[0])
    raise CheckpointError(why_no_checkpoint_folder(folder))
