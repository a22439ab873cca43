"""Opening a checkpoint, whatever it is on disk."""

from __future__ import annotations

from pathlib import Path

from edgelm.errors import CheckpointError, ModelNotFoundError
from edgelm.package.manifest import FILE_NAME
from edgelm_export.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.huggingface import INDEX_FILE, WEIGHTS_FILE, HuggingFaceCheckpoint
from edgelm_export.package_checkpoint import PackageCheckpoint

_GGUF_MAGIC = b"GGUF"
_ADAPTER = "adapter_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def open_checkpoint(path: Path) -> HuggingFaceCheckpoint | GGUFCheckpoint | PackageCheckpoint:
    """Open a GGUF file, a Hugging Face folder, a checkpoint folder of ours, a package, or a folder with one GGUF file.

    The checkpoint is a context manager that closes its files.

    Raises:
        ModelNotFoundError: nothing is at `path`.
        CheckpointError: it is none of these, or it is broken or not supported.
    """
    if not path.exists():
        raise ModelNotFoundError(f"There is no file or folder {path}.")
    if path.is_dir():
        return _open_folder(path)
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if magic == _GGUF_MAGIC:
        return GGUFCheckpoint(path)
    raise CheckpointError(
        f"{path} is not a GGUF file (it begins with {magic!r}). For safetensors, name the folder that also holds "
        "config.json and tokenizer.json."
    )


def _open_folder(folder: Path) -> HuggingFaceCheckpoint | GGUFCheckpoint | PackageCheckpoint:
    has_weights = any((folder / name).exists() for name in (WEIGHTS_FILE, INDEX_FILE))
    if has_weights and (folder / "config.json").exists():
        return HuggingFaceCheckpoint(folder)
    if not has_weights and (folder / FILE_NAME).exists():
        return PackageCheckpoint(folder)
    if (folder / _ADAPTER).exists() and not has_weights:
        raise CheckpointError(
            f"{folder} holds an adapter, which is no model by itself. Merge it into its base first: "
            f"edgelm merge {folder} -o merged/ (or put it beside the base's package: edgelm export-adapter)."
        )
    if (folder / "checkpoints").is_dir() and (folder / "best").is_dir():
        raise CheckpointError(
            f"{folder} is the folder of a run. Name one of its checkpoints, such as {folder / 'best'}; adapters are "
            "merged first (edgelm merge)."
        )
    gguf_files = sorted(folder.glob("*.gguf"))
    if len(gguf_files) == 1 and not has_weights:
        return open_checkpoint(gguf_files[0])
    if len(gguf_files) > 1 and not has_weights:
        names = ", ".join(path.name for path in gguf_files)
        raise CheckpointError(f"{folder} has several GGUF files: {names}. Name one of them.")
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles and not has_weights:
        raise CheckpointError(
            f"{folder} has its weights in {', '.join(pickles)} alone. Such pickle files can run code when they are "
            "read, so edgelm does not. Take the model's safetensors, or convert them where you trust them."
        )
    raise CheckpointError(
        f"{folder} is not a checkpoint: looked for config.json with {WEIGHTS_FILE} or {INDEX_FILE}, {FILE_NAME}, or "
        "one .gguf file."
    )
