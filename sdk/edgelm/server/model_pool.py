"""ModelPool: the models that the server offers, loaded when first asked for and unloaded when idle."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.batching.engine import Engine, EngineOptions
from edgelm.errors import ConfigError, EdgeLMError, PackageError, ThreadLimitError
from edgelm.files.modified import state_of_file
from edgelm.library.library import TAG, Library, check_name, is_path
from edgelm.memory.available_memory import available_memory
from edgelm.memory.kv_batch import longest_row
from edgelm.package.adapter import MANIFEST_FILE, AdapterManifest, read_adapter
from edgelm.package.graph_file import ENCODER_FILE
from edgelm.package.load_memory import memory_to_load
from edgelm.package.package import Package, open_package
from edgelm.package.signature import check_required_signature
from edgelm.runtime.thread_limit import no_more_threads
from edgelm.server.api_error import RETRY_LATER, ApiError
from edgelm.server.loaded_model import LoadedModel
from edgelm.server.turns import Turns
from edgelm.shell_word import shell_word

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel
    from edgelm.server.options import ServerOptions

logger = logging.getLogger("edgelm.server")

_ROOM_FOR_ANSWERS = 1.25  # memory of a model with the caches of its answers, as a multiple of that without
# Of an adapter's file, which holds no zeros; what projections of one product have, does (docs/results/adapters.md).
_HELD_OF_ADAPTER = 1.5
_SWEEP_SECONDS = 1.0
# Texts of an answer that nobody has read: 2 MB of log-probabilities (0.2 kB each), or 5 MB of chunks (0.6 kB each).
_MAX_UNREAD = 1 << 13


@dataclass(frozen=True, kw_only=True)
class _Offer:
    """An adapter that is offered, the name of its model, and its weights: the SHA-256, and bytes of the file."""

    folder: Path
    base: str
    digest: str
    size: int


class ModelPool:
    """Hold the models by name. Not safe between threads: it belongs to the server's event loop.

    models: names of the library, and folders of packages, which have the name that their manifest gives; none offers
    the whole library, also what comes into it later, but for models with an encoder, which no engine computes.

    Raises:
        ModelNotFoundError: one of the models is not here.
        ConfigError: two of them have one name, one has an encoder, an adapter's package is not among them, a context
            shift keeps more than half of a context, or the library cannot be read.
        PackageError: a manifest or an adapter is broken, or an adapter is not signed where that is required.
    """

    def __init__(self, models: tuple[str, ...], options: ServerOptions) -> None:
        self._options = options
        self._library = Library()
        if not models:
            self._library.packages()  # one that cannot be read is said now, and not to the first client
        self._folders = _named_folders(self._library, models)
        self._loaded: dict[str, LoadedModel] = {}
        self._replaced: list[LoadedModel] = []  # of a former package, and still in use
        self._kept_for: dict[str, float | None] = {}  # the keep_alive of models that were replaced
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Lock()  # held while memory is made free for a model
        self._adapters: dict[str, _Offer] = {}
        for name, folder in options.adapters:
            self._offer(name, folder)
        if options.context_shift:
            self._check_context_shift(options.context_shift)

    def folders(self) -> Mapping[str, Path]:
        """Return the folder of each model that is offered; of an adapter it is that of its package.

        Raises:
            ApiError: 503, the library cannot be read.
        """
        models = self._models()
        adapters = {name: models[offer.base] for name, offer in self._adapters.items() if offer.base in models}
        return {**models, **adapters}

    def parent(self, name: str) -> str | None:
        """Return the name of the model that an adapter belongs to; None for a model."""
        return self._adapters[name].base if name in self._adapters else None

    def _offer(self, name: str | None, folder: Path) -> None:
        manifest = AdapterManifest.load(folder)
        name = check_name(name or manifest.name)
        packages = {model: package for model, package in self.packages().items() if not self.parent(model)}
        names = {package.manifest.fingerprint: model for model, package in packages.items()}
        if manifest.base_fingerprint not in names:
            raise ConfigError(
                f"The adapter in {folder} belongs to the package {manifest.base} ({manifest.base_fingerprint[:12]}), "
                "which is not served. Serve that one: edgelm serve PACKAGE --adapter FOLDER"
            )
        if name in self.folders():
            raise ConfigError(f"There is a model {name!r} already. Name the adapter: --adapter NAME={folder}")
        base = names[manifest.base_fingerprint]
        check_required_signature(folder)
        package = packages[base]
        read_adapter(folder, package.manifest, package.config())  # one that is broken would keep its model from loading
        self._adapters[name] = _Offer(folder=folder, base=base, digest=manifest.file.sha256, size=manifest.file.size)

    def _check_context_shift(self, keep: int) -> None:
        """Refuse to keep more than half of the context of a model that was named, or of all in the library."""
        most = {name: context_of(package) // 2 for name, package in self.packages().items()}
        short = [name for name in most if keep > most[name]]
        if short and (self._folders or len(short) == len(most)):
            name = min(short, key=most.__getitem__) if self._folders else max(short, key=most.__getitem__)
            raise ConfigError(
                f"context_shift is {keep}; of a text, {name} can keep {most[name]} tokens, half of its context. Lower "
                f"it: --context-shift {most[name]}"
            )

    def _models(self) -> Mapping[str, Path]:
        if self._folders:
            return self._folders
        try:
            names = self._library.packages()
        except ConfigError as error:
            logger.error("%s", error)
            raise ApiError(503, "The models cannot be listed; the server's log says why.") from error
        folders = {name: self._library.package_path(name) for name in names if self._library.has_package(name)}
        return {name: folder for name, folder in folders.items() if not _has_encoder(folder)}

    def packages(self) -> dict[str, Package]:
        """Return the package of each model that is offered; a broken one must not hide the others."""
        readable: dict[str, Package] = {}
        for name, folder in self.folders().items():
            with contextlib.suppress(EdgeLMError):
                readable[name] = open_package(folder)
        return readable

    def package(self, name: str) -> Package:
        """Return a model's package.

        Raises:
            ApiError: 404, no model has that name.
            PackageError: it cannot be read.
        """
        return open_package(self._folder(name))

    def digest(self, name: str, package: Package) -> str:
        """Return the SHA-256 of the largest file of a model's package; of an adapter that of its weights."""
        if name in self._adapters:
            offer = self._adapters[name]
            try:
                return AdapterManifest.load(offer.folder).file.sha256
            except PackageError:  # it must not hide the others
                return offer.digest
        return max(package.manifest.files, key=lambda entry: entry.size).sha256

    def loaded(self) -> list[LoadedModel]:
        """Return the models that are in memory, as far as their packages are what was loaded."""
        return [loaded for loaded in self._loaded.values() if not loaded.is_replaced]

    def resolve(self, name: str | None) -> str:
        """Return the name of the model that a request means; it may leave the name out where there is only one.

        Raises:
            ApiError: 404, no model has that name; 400, no name is given and there are several.
        """
        folders = self.folders()
        if name is None:
            models = self._models()
            if len(models) == 1:
                return next(iter(models))
            raise ApiError(400, f"model is missing. {_what_is_here(folders)}", param="model")
        name = name.removesuffix(TAG)
        self._folder(name)
        return self._library.resolve(name) if name not in folders else name

    async def acquire(self, name: str) -> LoadedModel:
        """Return a model, loaded; whoever gets it calls its `release`. Requests that come together load it once.

        A package that was replaced is loaded anew; whoever uses the old model ends with it.

        Raises:
            ApiError: 404, no model has that name; 503, there is no memory for it, or a file of it is broken.
            ThreadLimitError: the system lets this process start no more threads.
        """
        base = self.parent(name) or name
        # A loop, since it may be unloaded, or its package replaced, before this goes on.
        while True:
            await self._unload_replaced()
            loaded = self._loaded.get(base)
            if loaded is not None:
                break
            folder = self._folder(base)
            task = self._loading.get(base)
            if task is None:
                task = self._loading[base] = asyncio.create_task(self._load(base, folder))
            await asyncio.shield(task)  # a client that leaves must not end the loading for others
        if base != name and name not in loaded.model.adapters:
            raise _broken(name)
        loaded.users += 1
        return loaded if base == name else loaded.adapted(name)

    async def _load(self, name: str, folder: Path) -> None:
        try:
            self._loaded[name] = await self._load_model(name, folder)
        finally:
            del self._loading[name]  # not in a callback, before which `acquire` could find the task that has ended

    async def _load_model(self, name: str, folder: Path) -> LoadedModel:
        started = time.perf_counter()
        try:
            async with self._room:
                package = open_package(folder)
                manifest = package.manifest
                offers = {other: offer for other, offer in self._adapters.items() if offer.base == name}
                adapters = {other: offer.folder for other, offer in offers.items()}
                files = [package.last_file, *(adapter / MANIFEST_FILE for adapter in adapters.values())]
                made_of = {path: state_of_file(path) for path in files}
                # The estimate knows little or nothing of a graph that another program wrote.
                reads_prompts = self._options.runtime.prefill_graph
                needed = max(manifest.size, memory_to_load(manifest, package.config(), prefill_graph=reads_prompts))
                learned = _HELD_OF_ADAPTER * sum(offer.size for offer in offers.values())
                await self._make_room(int(needed * _ROOM_FOR_ANSWERS + learned))
                model, engine = await asyncio.to_thread(_load, folder, adapters, self._options)
        except ApiError:
            raise
        except (EdgeLMError, MemoryError) as error:
            logger.error("Cannot load %s: %s", name, error)
            if isinstance(error, ThreadLimitError):
                raise
            raise _broken(name) from error
        logger.info("Loaded %s in %.1f s", name, time.perf_counter() - started)
        return LoadedModel(
            name=name,
            model=model,
            engine=engine,
            turns=Turns(engine, self._options.max_batch + self._options.max_queue),
            max_batch=self._options.max_batch,
            keep_alive=self._kept_for.pop(name, self._options.keep_alive),
            made_of=made_of,
        )

    async def _make_room(self, needed: int) -> None:
        """Unload idle models, the longest unused first, until so many bytes are free."""
        while (available := available_memory()) is not None and available < needed:
            idle = [(model.last_used, name) for name, model in self._loaded.items() if not model.users]
            if not idle:
                raise ApiError(
                    503,
                    f"There is no memory for this model: {available >> 20} MiB are left, it needs about "
                    f"{needed >> 20}. Try again later, or ask for a smaller one.",
                    code="out_of_memory",
                    headers=RETRY_LATER,
                )
            await self._unload(min(idle)[1])

    async def _unload(self, name: str) -> None:
        # By its name: as long as a caller has the model itself, its memory is not free.
        if name not in self._loaded:  # somebody else has unloaded it meanwhile
            return
        await _close_aside([self._loaded.pop(name)])
        logger.info("Unloaded %s", name)

    async def _unload_replaced(self) -> None:
        """Stop offering models that were replaced or removed, and unload those of them that nobody uses."""
        for name in [name for name, model in self._loaded.items() if model.is_replaced]:
            logger.info("The package of %s, or an adapter, was replaced or removed", name)
            replaced = self._loaded.pop(name)
            self._replaced.append(replaced)
            if replaced.keep_alive != 0:  # else it was to go
                self._kept_for[name] = replaced.keep_alive
        idle = [model for model in self._replaced if not model.users]
        self._replaced = [model for model in self._replaced if model.users]
        if idle:
            await _close_aside(idle)

    async def unload(self, name: str) -> None:
        """Unload a model, at once or when its last user has left."""
        name = self.parent(name) or name
        self._kept_for.pop(name, None)
        if name in self._loaded:
            self._loaded[name].keep_alive = 0
            if not self._loaded[name].users:
                await self._unload(name)

    async def sweep(self) -> None:
        """Unload idle models, until this is cancelled."""
        keep_alive = self._options.keep_alive
        interval = _SWEEP_SECONDS if keep_alive is None else min(_SWEEP_SECONDS, max(keep_alive / 2, 0.01))
        while True:
            await asyncio.sleep(interval)
            for name in list(self._loaded):
                if name in self._loaded and self._loaded[name].is_expired:
                    await self._unload(name)
            await self._unload_replaced()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep house in the block, and unload everything at its end."""
        sweeping = asyncio.create_task(self.sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            for name in list(self._loaded):
                await self._unload(name)
            await _close_aside(self._replaced)

    def _folder(self, name: str) -> Path:
        folders = self.folders()
        if name not in folders:
            name = self._library.resolve(name)
        if name not in folders:
            # A package without an encoder is one that came just now.
            is_left_out = not self._folders and self._library.has_package(name)
            is_left_out = is_left_out and _has_encoder(self._library.package_path(name))
            why = _not_served(name, name) if is_left_out else f"There is no model {name[:100]!r} here."
            raise ApiError(404, f"{why} {_what_is_here(folders)}", param="model", code="model_not_found")
        return folders[name]


def context_of(package: Package) -> int:
    """Return how long a text may be that the engine answers: with LongRoPE, as long as the original context."""
    context_length = package.manifest.context_length
    try:
        return min(context_length, _longest_row(package.folder, package.modified))
    except EdgeLMError:  # whoever loads the model is told what is wrong with its config
        return context_length


@functools.lru_cache(maxsize=1024)
def _longest_row(folder: Path, _modified: float) -> int:
    """Read a config once for each of its states: that takes three times as long as its manifest."""
    return longest_row(open_package(folder).config())


@contextlib.contextmanager
def reading_package(name: str) -> Iterator[None]:
    """Keep from a client what is wrong with a package, whose errors name paths; the log has it.

    Raises:
        ApiError: 503, the block raised another error of edgelm.
    """
    try:
        yield
    except ApiError:
        raise
    except EdgeLMError as error:
        logger.error("%s", error)
        raise _broken(name) from error


def _load(folder: Path, adapters: Mapping[str, Path], options: ServerOptions) -> tuple[LanguageModel, Engine]:
    # Imported here, in the thread that loads: it brings ONNX Runtime.
    from edgelm.loading import load

    model = load(folder, options.runtime)
    for name, adapter in adapters.items():
        try:
            model.load_adapter(adapter, name)
        except EdgeLMError as error:  # it must not take its model, and the other adapters, with it
            logger.error("Cannot load %s: %s", name, error)
    model.generation_config = model.generation_config.replace(
        speculation=None if model.config.state_layers else options.speculation, context_shift=options.context_shift
    )
    # Twice as many as one caller may have: the second half is for callers who have none (Turns).
    limits = EngineOptions(max_batch=options.max_batch, max_queue=2 * options.max_queue, max_unread=_MAX_UNREAD)
    return model, Engine(model, limits)


def _named_folders(library: Library, models: tuple[str, ...]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for given in models:
        folder = library.find(given)
        name = library.resolve(given)
        if is_path(given) or name not in library.packages():
            name = _name_of(folder)
        if _has_encoder(folder):
            raise ConfigError(_not_served(name, given))
        if name in folders and folders[name] != folder:
            raise ConfigError(f"Both {folders[name]} and {folder} are called {name!r}. Serve one of them.")
        folders[name] = folder
    return folders


def _has_encoder(folder: Path) -> bool:
    return os.path.exists(folder / ENCODER_FILE)  # False where the folder may not be read, which loading reports


def _not_served(name: str, given: str) -> str:
    return (
        f"{name} has an encoder, and is not served: its answers are not computed together with others. Ask it in the "
        f"terminal: edgelm run {shell_word(given)}; or in a program: edgelm.load."
    )


def _name_of(folder: Path) -> str:
    """Return the name that a package gives itself, where it is one for a model."""
    try:
        return check_name(open_package(folder).manifest.name)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error} Export the package to a folder that has one (-o).") from error


async def _close_aside(models: list[LoadedModel]) -> None:
    """Close models in a thread, or here where the system lets none start."""
    try:
        await asyncio.to_thread(_close, models)
    except RuntimeError as error:
        if no_more_threads(error) is None:
            raise
        _close(models)


def _close(models: list[LoadedModel]) -> None:
    while models:
        models.pop().engine.close()


def _broken(name: str) -> ApiError:
    return ApiError(503, f"The model {name!r} cannot be loaded; the server's log says why.")


def _what_is_here(folders: Mapping[str, Path]) -> str:
    return f"Here are: {', '.join(folders)}." if folders else "No model is here; fetch one with `edgelm pull`."
