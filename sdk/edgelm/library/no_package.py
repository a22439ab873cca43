"""What stands where a model package was looked for, said with the command that makes a package of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from edgelm.files.run_checkpoint import checkpoint_of_run
from edgelm.package import manifest
from edgelm.shell_word import shell_word


def why_no_package(path: Path) -> str:
    """Return the sentence for a path that is there and leads to no package."""
    from edgelm.package.adapter import is_adapter, is_trained_adapter  # bring numpy with them

    if is_adapter(path):
        return (
            f"{path} is an adapter, which is no model by itself. Name the package that it was exported for, and it "
            f"beside: --adapter {shell_word(path)}"
        )
    if is_trained_adapter(path):
        quoted = shell_word(path)
        return (
            f"{path} holds an adapter, which is no model by itself. Put it beside the package of its base: edgelm "
            f"export-adapter {quoted} --base PACKAGE -o adapter/ (or merge it: edgelm merge {quoted} -o merged/)."
        )
    export = f"edgelm export {shell_word(path)} -o package/"
    if path.suffix.lower() == ".gguf" or _begins_with(path, b"GGUF"):  # a blob of Ollama's has no suffix
        return f"{path} is a GGUF file, not a model package. Make one of it: {export}"
    checkpoint = checkpoint_of_run(path)
    if checkpoint is not None:
        return (
            f"{path} is the folder of a run. Make a package of its {checkpoint.name} checkpoint: edgelm export "
            f"{shell_word(checkpoint)} -o package/"
        )
    if path.is_file() and (path.parent / manifest.FILE_NAME).is_file():
        return f"{path} is a file of the package {path.parent}. Name the folder: {shell_word(path.parent)}"
    if path.is_file() and _begins_with(path, b"PK") and path.suffix == ".zip":
        return f"{path} is a zip archive. Unpack it, and name the folder in it that has {manifest.FILE_NAME}."
    if path.is_file():
        whole = path.parent if (path.parent / "config.json").is_file() else path
        return (
            f"{path} is a file, not a model package. Name the folder of one; of a checkpoint, make one: "
            f"edgelm export {shell_word(whole)} -o package/"
        )
    return (
        f"{path} is not a model package: it has no {manifest.FILE_NAME}. If it is a checkpoint, make a package of it: "
        f"{export}"
    )


def _begins_with(path: Path, beginning: bytes) -> bool:
    if not path.is_file():  # opening a pipe waits for ever
        return False
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(beginning)) == beginning
    return False
