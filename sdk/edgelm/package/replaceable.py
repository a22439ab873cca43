"""Whether a folder may be replaced, that is deleted: only if all that is in it is edgelm's own."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Callable, Iterable
from pathlib import Path

from edgelm.config import SECTION
from edgelm.errors import EdgeLMError, PackageError
from edgelm.files.folder_entries import entries_of
from edgelm.files.presence import is_there
from edgelm.files.regular_file import read_json_object
from edgelm.package.adapter import MANIFEST_FILE, WEIGHTS_FILE, AdapterManifest, is_adapter
from edgelm.package.manifest import FILE_NAME, SIGNATURE_NAME, Manifest, has_manifest

_CHECKPOINT_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


def refuse_to_replace(folder: Path, why_not: Callable[[Path], str | None], error_class: type[EdgeLMError]) -> None:
    """Raise `error_class` where `why_not`, such as those below, has something against replacing `folder`, or it
    lies in a model package.
    """
    refuse_inside_package(folder, error_class)
    reason = why_not(folder)
    if reason is not None:
        raise error_class(f"{folder} is not replaced: {reason}. Choose another folder, or remove it.")


def refuse_inside_package(folder: Path, error_class: type[EdgeLMError]) -> None:
    """Raise `error_class` where `folder` lies in a model package, which would not load any more, or nothing can."""
    try:
        is_there(folder)  # an error where it has a name that nothing may have, or lies where nobody may look
        packages = [parent for parent in folder.resolve().parents if (parent / FILE_NAME).is_file()]
    except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 have a RuntimeError for links that go in a circle
        raise error_class(f"{folder} is not written: {error}. Choose another folder.") from error
    if packages:
        raise error_class(
            f"{folder} is not written: {packages[0]} is a model package, which holds its own files alone. "
            "Choose another folder."
        )


def is_same_folder(folder: Path, other: Path) -> bool:
    """Tell whether two paths lead to one folder, also where the disk does not tell case apart."""
    try:
        folder, other = folder.resolve(), other.resolve()
        return folder.exists() and other.exists() and folder.samefile(other)
    except (OSError, RuntimeError):  # links that go in a circle, or a name that nothing may have
        return False


def why_not_a_checkpoint(folder: Path) -> str | None:
    """Say why `folder` may not be replaced by a checkpoint folder; None: it is absent, empty, or one of ours."""
    if is_free(folder):
        return None
    try:
        section = read_json_object(folder / "config.json").get(SECTION)
    except (OSError, ValueError):
        section = None
    if not isinstance(section, dict):
        return "it exists and is not a checkpoint folder of edgelm"
    return foreign_entry(folder, _CHECKPOINT_FILES, "a checkpoint")


def why_not_a_package(folder: Path) -> str | None:
    """Say why `folder` may not be replaced by a model package; None: it is absent, empty, or one of ours."""
    if is_free(folder):
        return None
    try:
        listed = [glob.escape(entry.path) for entry in Manifest.load(folder).files]
    except PackageError as error:
        return _unknown(error) if has_manifest(folder) else "it exists and is not a model package"
    return foreign_entry(folder, [FILE_NAME, SIGNATURE_NAME, *listed], "this package")


def why_not_an_adapter(folder: Path) -> str | None:
    """Say why `folder` may not be replaced by an exported adapter; None: it is absent, empty, or one of ours."""
    if is_free(folder):
        return None
    try:
        AdapterManifest.load(folder)
    except PackageError as error:
        return _unknown(error) if is_adapter(folder) else "it exists and is not an exported adapter"
    return foreign_entry(folder, [MANIFEST_FILE, WEIGHTS_FILE, SIGNATURE_NAME], "an adapter")


def _unknown(error: PackageError) -> str:
    """Say why what a newer edgelm may have written, or what is broken, is left alone."""
    return f"what it holds is unknown, since {str(error).rstrip('.')}"


def is_free(folder: Path) -> bool:
    """Tell whether nothing is lost where `folder` is replaced: it is absent or empty."""
    return not folder.exists() or (folder.is_dir() and not entries_of(folder))


def foreign_entry(folder: Path, own: Iterable[str], kind: str) -> str | None:
    """Say what in `folder` is none of the files of `kind`, whose names or patterns `own` lists; None: nothing."""
    patterns = tuple(own)
    for path in entries_of(folder):
        if path.is_dir() or not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns):
            return f"it holds {path.name}, which is no part of {kind}"
    return None
