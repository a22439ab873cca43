"""What may be killed at any moment: each operation with its old state, its run, and a look at what is there.

As a program it runs operations, each in a process of its own, which kills itself with SIGKILL before the call to the
file system of a given number, or writes at the end how many there were.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from edgelm import ChatSession, GenerationConfig, LanguageModel, load
from edgelm.completion import Message
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, EdgeLMError, ModelNotFoundError, PackageError
from edgelm.files import atomic
from edgelm.library.download import download
from edgelm.library.fetch_options import FetchOptions
from edgelm.library.library import Library
from edgelm.library.remote_file import RemoteFile
from edgelm.library.sources import fetch, read_record
from edgelm.memory.kv_cache import KVCache
from edgelm.package.manifest import Manifest
from edgelm.package.signature import check_signature, sign
from edgelm.saved_session import SavedSessions
from edgelm.testing import tiny_model_path

# What goes through the file system; opening for reading is among it, which does no harm.
EVENTS = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "shutil.rmtree",
)
PULLED = bytes(range(256)) * 1200


@dataclass(frozen=True, kw_only=True)
class Operation:
    """`state` says "old" or "new", and raises for anything between."""

    prepare: Callable[[Path], None]
    run: Callable[[Path], None]
    state: Callable[[Path], str]


def checkpoint(folder: Path, seed: int) -> Path:
    from make_tiny_model import make_checkpoint

    return make_checkpoint(folder / f"source-{seed}", seed=seed)


def prepare_import(folder: Path) -> None:
    from edgelm_export.importer import import_checkpoint

    checkpoint(folder, 1)
    import_checkpoint(checkpoint(folder, 0), folder / "checkpoint")


def run_import(folder: Path) -> None:
    from edgelm_export.importer import import_checkpoint

    import_checkpoint(folder / "source-1", folder / "checkpoint")


def imported_state(folder: Path) -> str:
    from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

    found = tensor_of(HuggingFaceCheckpoint(folder / "checkpoint"))
    for seed, state in ((0, "old"), (1, "new")):
        if np.array_equal(found, tensor_of(HuggingFaceCheckpoint(folder / f"source-{seed}"))):
            return state
    raise AssertionError("the checkpoint is neither the old nor the new one")


def tensor_of(checkpoint: Any) -> Any:
    tensors = [checkpoint.tensor(name).ravel() for name in checkpoint.config.tensor_shapes()]
    return np.concatenate(tensors)


def prepare_export(folder: Path) -> None:
    checkpoint(folder, 1)
    shutil.copytree(tiny_model_path(), folder / "package")


def run_export(folder: Path) -> None:
    from edgelm_export.exporter import export_package
    from edgelm_export.sources.sources import open_checkpoint

    with open_checkpoint(folder / "source-1") as source:
        export_package(source, folder / "package", "fp32", name="new")


def exported_state(folder: Path) -> str:
    manifest = Manifest.load(folder / "package")
    manifest.check_files(folder / "package")
    return {"tiny-random": "old", "new": "new"}[manifest.name]


def run_quantize(folder: Path) -> None:
    """Quantize with calibration, whose work between the layers is kept in a cache."""
    from edgelm_export.exporter import export_package
    from edgelm_export.quantize.calibration_text import CalibrationOptions
    from edgelm_export.sources.sources import open_checkpoint

    options = CalibrationOptions(max_tokens=64, cache=folder / "calibration")
    with open_checkpoint(folder / "source-1") as source:
        export_package(source, folder / "package", "int8", name="new", calibration=options)


def prepare_chat(folder: Path) -> None:
    keep_chat(folder, 2)


def run_chat(folder: Path) -> None:
    keep_chat(folder, 4)


def keep_chat(folder: Path, turns: int) -> None:
    session = ChatSession(tiny_model(), system="Be brief.")
    session.restore([Message(role=("user", "assistant")[i % 2], content=f"turn {i}") for i in range(turns - 2)])
    for _ in session.send("What now?", GenerationConfig(max_new_tokens=2, ignore_eos=True)):
        pass
    SavedSessions(folder).save("talk", session)


def chat_state(folder: Path) -> str:
    session = SavedSessions(folder).load("talk", tiny_model())
    return {2: "old", 4: "new"}[len(session.messages)]


@functools.cache
def tiny_model() -> LanguageModel:
    return load(tiny_model_path())


def prepare_history(folder: Path) -> None:
    from edgelm.cli.typed_history import TypedHistory

    TypedHistory(folder / "history").store_string("first")


def run_history(folder: Path) -> None:
    from edgelm.cli.typed_history import TypedHistory

    TypedHistory(folder / "history").store_string("second")


def history_state(folder: Path) -> str:
    from edgelm.cli.typed_history import TypedHistory

    # What was typed before a kill may stand there twice after the next run, as it was typed twice.
    entries = list(TypedHistory(folder / "history").load_history_strings())
    return {("first",): "old", ("second", "first"): "new", ("second", "second", "first"): "new"}[tuple(entries)]


def prepare_save(folder: Path) -> None:
    save(folder, 3)


def run_save(folder: Path) -> None:
    save(folder, 200)


def save(folder: Path, length: int) -> None:
    cache = KVCache(ModelConfig.load(tiny_model_path()))
    cache.reserve(length)
    cache.token_ids = list(range(length))
    cache.save(folder / "session", "tiny")


def saved_state(folder: Path) -> str:
    cache = KVCache.load(folder / "session", ModelConfig.load(tiny_model_path()), "tiny")
    return {3: "old", 200: "new"}[cache.length]


class LocalSource:
    """A source on a server, whose address is in the environment."""

    reference, name = "local:model", "model"

    def fetch(self, staging: Path, options: FetchOptions) -> tuple[Path, dict[str, Any]]:
        folder = staging / "model"
        folder.mkdir(exist_ok=True)
        for name in ("model.gguf", "tokenizer.json"):
            download(
                RemoteFile(url=f"{os.environ['SERVER']}/{name}", size=len(PULLED)), folder / name, options.progress
            )
        return folder, {"license": "Apache-2.0"}


def prepare_pull(folder: Path) -> None:
    shutil.copytree(tiny_model_path(), folder / "models" / "other")


def run_pull(folder: Path) -> None:
    library = Library(folder)
    with library.lock("model"):
        fetch(LocalSource(), library, "model")


def pulled_state(folder: Path) -> str:
    Manifest.load(folder / "models" / "other").check_files(folder / "models" / "other")
    source = folder / "sources" / "model"
    if "model" not in Library(folder).sources():
        return "old"
    assert sorted(os.listdir(source)) == ["model.gguf", "source.json", "tokenizer.json"]
    assert read_record(source)["license"] == "Apache-2.0"
    assert all((source / name).read_bytes() == PULLED for name in ("model.gguf", "tokenizer.json"))
    return "new"


def prepare_remove(folder: Path) -> None:
    for name in ("other", "model"):
        shutil.copytree(tiny_model_path(), folder / "models" / name)


def run_remove(folder: Path) -> None:
    with contextlib.suppress(ModelNotFoundError):  # after a kill it may be gone already
        Library(folder).remove("model")


def removed_state(folder: Path) -> str:
    library = Library(folder)
    for name in library.packages():
        Manifest.load(library.package_path(name)).check_files(library.package_path(name))
    return {("model", "other"): "old", ("other",): "new"}[tuple(library.packages())]


def prepare_aliases(folder: Path) -> None:
    prepare_remove(folder)
    Library(folder).add_alias("small", "model")


def run_alias(folder: Path) -> None:
    Library(folder).add_alias("small", "other")


def run_remove_alias(folder: Path) -> None:
    with contextlib.suppress(ModelNotFoundError):
        Library(folder).remove_alias("small")


def alias_state(folder: Path) -> str:
    return {"model": "old", "other": "new", None: "new"}[Library(folder).aliases().get("small")]


def prepare_remove_chat(folder: Path) -> None:
    keep_chat(folder, 2)
    shutil.copytree(folder / "talk", folder / "another")


def run_remove_chat(folder: Path) -> None:
    try:
        SavedSessions(folder).remove("talk")
    except ConfigError:
        if (folder / "talk").exists():  # after a kill it may be gone already
            raise


def removed_chat_state(folder: Path) -> str:
    sessions = SavedSessions(folder).sessions()
    assert all(session.problem is None and session.cache_size for session in sessions)
    return {("another", "talk"): "old", ("another",): "new"}[tuple(sorted(session.name for session in sessions))]


def prepare_sign(folder: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem, public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    private, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    for name in ("old", "new"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{name}.key").write_bytes(key.private_bytes(pem, private, plain))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(pem, public))
    sign(Path(shutil.copytree(tiny_model_path(), folder / "package")), folder / "old.key")


def run_sign(folder: Path) -> None:
    sign(folder / "package", folder / "new.key")


def signed_state(folder: Path) -> str:
    Manifest.load(folder / "package").check_files(folder / "package")
    for name in ("old", "new"):
        with contextlib.suppress(PackageError):
            check_signature(folder / "package", folder / f"{name}.pub")
            return name
    raise AssertionError("the signature is neither the old nor the new one")


def run_text(folder: Path) -> None:
    atomic.write_text(folder / "settings.json", json.dumps({"state": "new"}))


OPERATIONS: dict[str, Operation] = {
    "import": Operation(prepare=prepare_import, run=run_import, state=imported_state),
    "export": Operation(prepare=prepare_export, run=run_export, state=exported_state),
    "quantize": Operation(prepare=prepare_export, run=run_quantize, state=exported_state),
    "chat": Operation(prepare=prepare_chat, run=run_chat, state=chat_state),
    "history": Operation(prepare=prepare_history, run=run_history, state=history_state),
    "session save": Operation(prepare=prepare_save, run=run_save, state=saved_state),
    "pull": Operation(prepare=prepare_pull, run=run_pull, state=pulled_state),
    "remove": Operation(prepare=prepare_remove, run=run_remove, state=removed_state),
    "alias": Operation(prepare=prepare_aliases, run=run_alias, state=alias_state),
    "remove alias": Operation(prepare=prepare_aliases, run=run_remove_alias, state=alias_state),
    "remove chat": Operation(prepare=prepare_remove_chat, run=run_remove_chat, state=removed_chat_state),
    "sign": Operation(prepare=prepare_sign, run=run_sign, state=signed_state),
    "text": Operation(
        prepare=lambda folder: atomic.write_text(folder / "settings.json", json.dumps({"state": "old"})),
        run=run_text,
        state=lambda folder: str(json.loads((folder / "settings.json").read_text())["state"]),
    ),
}


def run_operation(name: str, folder: Path, die_after: int | None) -> int:
    """Run one operation; print how many calls to the file system it made. Return the exit status."""
    count = 0
    inside = str(folder)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "fsync" or (event in EVENTS and str(arguments[0]).startswith(inside)):
            count += 1
            if die_after is not None and count > die_after:
                os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        watch("fsync", ())
        fsync(descriptor)

    os.fsync = watched_fsync
    sys.addaudithook(watch)
    try:
        OPERATIONS[name].run(folder)
    except EdgeLMError as error:
        print(error, file=sys.stderr)
        return 3
    except OSError as error:  # of the functions that leave it to their caller, as open() does
        print(f"OSError: {error}", file=sys.stderr)
        return 4
    print(count)
    return 0


def main() -> None:
    """Run the operations that are asked for in lines of JSON, each in a fork: Python and its imports start once."""
    import model_signing.signing
    import model_signing.verifying  # noqa: F401

    import edgelm.cli.typed_history  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            child = os.fork()
            if not child:
                os.dup2(output.fileno(), sys.stdout.fileno())
                os.dup2(errors.fileno(), sys.stderr.fileno())
                os.environ.update(asked["environment"])
                status = 1
                try:
                    status = run_operation(asked["name"], Path(asked["folder"]), asked["die_after"])
                except BaseException:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
            _, status = os.waitpid(child, 0)
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read().decode())
        print(json.dumps([os.waitstatus_to_exitcode(status), *texts]), flush=True)


if __name__ == "__main__":
    main()
