"""Load a model package: the checks of its files, and what is made of them."""

from __future__ import annotations

import traceback
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from edgelm.arguments import as_path, or_default
from edgelm.config import ModelConfig
from edgelm.errors import EdgeLMError, OutOfMemoryError, PackageError
from edgelm.files.modified import state_of_file
from edgelm.language_model import LanguageModel
from edgelm.library.library import Library
from edgelm.memory.available_memory import available_memory
from edgelm.memory.huge_pages import in_huge_pages
from edgelm.memory.malloc import return_freed_memory
from edgelm.package.load_memory import memory_to_load
from edgelm.package.manifest import FILE_NAME, Manifest, check_hash
from edgelm.package.package import folder_of_package, open_package
from edgelm.package.signature import check_required_signature
from edgelm.runtime.providers import CPU
from edgelm.runtime.session import DecoderSession
from edgelm.runtime.session_options import SessionOptions
from edgelm.runtime.thread_limit import thread_errors_told
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer

_LARGE = 1 << 24  # bytes: what takes more than about 10 ms to hash
_LARGE_TOKENIZER = 1 << 23
_MOST_LOADS = 8  # of what is replaced meanwhile


def load(
    name_or_path: str | Path,
    options: SessionOptions | None = None,
    *,
    provider: str | None = None,
    public_key: str | Path | None = None,
) -> LanguageModel:
    """Load a model package: a folder, or a name from the model library.

    Every file is checked against the manifest's sizes and hashes before it is used. A folder that onnxruntime-genai's
    builder or Optimum wrote, or a graph in it, loads too; without a manifest, nothing of it is checked but the graph.
    provider: what computes ("cuda"), one of those that `SessionOptions` lists; None is what the options say.
    public_key: a file (PEM) with the key that the package must be signed with; None takes $EDGELM_REQUIRE_SIGNATURE,
    and without that none is required. Where another package takes its place meanwhile, that one is loaded.

    Raises:
        ModelNotFoundError: nothing of that name or path is here.
        PackageError: the package is broken, was changed or is replaced all the time, or is not signed as required.
        ProviderError: ONNX Runtime is not installed or refuses the graph, or the provider is not here.
        MissingExtraError: a signature is required, and model-signing is not installed.
        OutOfMemoryError: its weights do not fit the memory that is free.
        ThreadLimitError: the system lets this process start no more threads.
    """
    options = or_default("options", options, SessionOptions())
    if provider is not None:
        options = replace(options, provider=provider)
    path, key = Library().find(name_or_path), None if public_key is None else as_path(public_key)
    for _ in range(_MOST_LOADS):
        written = state_of_file(path / FILE_NAME)
        try:
            model = _load(path, options, key)
        except EdgeLMError as error:
            # Its frames and the results in them refer to each other, and so keep a session in memory beside the next.
            traceback.clear_frames(error.__traceback__)
            if state_of_file(path / FILE_NAME) in (written, None):
                raise
            continue
        if state_of_file(path / FILE_NAME) in (written, None):
            return model
        del model  # its weights may be of another package than what they were checked by
    raise PackageError(f"{path}: another package takes its place whenever it is loaded. Load it when that has ended.")


def _load(path: Path, options: SessionOptions, public_key: Path | None) -> LanguageModel:
    check_required_signature(folder_of_package(path), public_key)
    package = open_package(path)
    folder = package.folder
    large = package.check_files(largest=_LARGE)
    config = package.config()
    if options.provider == CPU:
        _check_memory(package.manifest, config, prefill_graph=options.prefill_graph)
    with thread_errors_told(), in_huge_pages(), ThreadPoolExecutor(1) as worker:
        # In a thread beside the session, one after the other. Hashing the weights releases the interpreter, and they
        # may be checked late: they are numbers that nothing parses, in a file of the right size. The tokenizer holds
        # the interpreter, and comes when the session does not need it any more. But what reading it takes is on top of
        # the peak then: where that matters more than a tenth of a second, it comes first.
        has_large_tokenizer = _has_large_tokenizer(folder)
        spares_memory = has_large_tokenizer or config.kv_cache == "int8"
        early = worker.submit(_load_tokenizer, folder) if spares_memory else None
        hashes = [worker.submit(check_hash, folder, entry) for entry in large]
        tokenizer = early or worker.submit(_load_tokenizer, folder)
        if has_large_tokenizer:
            wait([tokenizer])
        try:
            session = DecoderSession(
                folder,
                config,
                options,
                manifest=None if package.foreign_graph else package.manifest,
                foreign_graph=package.foreign_graph,
            )
        finally:
            for checked in hashes:
                checked.result()
        recommended = package.generation_config()
        # transformers passes over what it is to suppress and the model has not.
        banned = {id_: bias for id_, bias in recommended.logit_bias.items() if id_ < config.vocab_size}
        return LanguageModel(
            session=session,
            tokenizer=tokenizer.result(),
            chat_template=ChatTemplate.load(folder),
            generation_config=recommended.replace(logit_bias=banned),
            manifest=package.manifest,
        )


def _has_large_tokenizer(folder: Path) -> bool:
    """Tell whether reading the tokenizer takes so much memory that the session waits until that is freed.

    It is 14 times the file: Gemma's 15 MB take 220 MB, of which 85 stay.
    """
    try:
        return (folder / "tokenizer.json").stat().st_size > _LARGE_TOKENIZER
    except OSError:  # reading it says what is wrong
        return False


def _check_memory(manifest: Manifest, config: ModelConfig, *, prefill_graph: bool) -> None:
    """Refuse a model that the free memory cannot hold: Linux kills who fills it, without a word.

    What fits may still be too much for an answer. Of experts the rows may stay in the file: they are not counted.
    """
    free = available_memory(with_swap=True)
    if free is None or config.num_experts:
        return
    needed = memory_to_load(manifest, config, prefill_graph=prefill_graph)
    if needed > free:
        raise OutOfMemoryError(
            f"To load {manifest.name} takes about {needed / 1e6:,.0f} MB of memory, and {free / 1e6:,.0f} MB are free. "
            "Free memory, or take a smaller model or one of fewer bits (edgelm quantize MODEL --precision int4)."
        )


def _load_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    return_freed_memory()  # before the session is whole: what reading it took is not on top of the peak
    return tokenizer
