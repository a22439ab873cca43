"""Library: the models of this user on this machine, by name."""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import re
import reprlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from edgelm.arguments import did_you_mean
from edgelm.errors import ConfigError, ModelNotFoundError
from edgelm.files import atomic
from edgelm.files.file_lock import file_lock
from edgelm.files.folders import HOME_VARIABLE, data_folder
from edgelm.files.held_folder import held_folder, holdable_folders
from edgelm.files.presence import is_there
from edgelm.library.catalogue import CATALOGUE
from edgelm.library.hub_address import as_reference
from edgelm.library.no_package import why_no_package
from edgelm.library.small_files import SmallFiles
from edgelm.package import manifest
from edgelm.package.foreign_graph import find_foreign_graph
from edgelm.shell_word import shell_word

# Letters, digits and inner punctuation: no name reaches outside the library, hides itself, or is an option.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,98}[A-Za-z0-9_+-])?")
# What Ollama puts behind a name that has no tag; a name here never has one.
TAG = ":latest"
# How alike two names must be for one to be suggested for the other: "smollm" still finds smollm2-135m-instruct.
ALIKE = 0.4


class Library:
    """Hold model packages and the downloaded originals that they are made from.

    `models/<name>/` is a package, `sources/<name>/` an original (one GGUF model, or a Hugging Face folder), and
    `downloads/<name>/` what an interrupted download goes on from. What stands in the first two is complete.
    `aliases/<name>` is a second name of a model, `origins/<name>` what a model was pulled as.

    root: the library's folder; None takes `folders.data_folder()` when it is first needed.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root

    @functools.cached_property
    def root(self) -> Path:
        """The library's folder.

        Raises:
            ConfigError: it has no place: no variable names one, and the user has no home folder.
        """
        return self._root or data_folder()

    def packages(self) -> list[str]:
        """Name the model packages, in alphabetical order."""
        return self._names("models")

    def sources(self) -> list[str]:
        """Name the downloaded originals, in alphabetical order."""
        return self._names("sources")

    @property
    def _aliases(self) -> SmallFiles:
        return SmallFiles(self.root / "aliases")

    @property
    def _origins(self) -> SmallFiles:
        return SmallFiles(self.root / "origins")

    def origin(self, name: str) -> str | None:
        """Return what the model `name` was pulled as; None where nobody knows, or it is not here.

        Raises:
            ConfigError: `name` is not a valid name of a model.
        """
        return self._origins.read(check_name(name)) if self._has(name) else None

    def set_origin(self, name: str, reference: str) -> None:
        """Write down what the model `name` is pulled as.

        Raises:
            OSError: the library cannot be written.
        """
        self._origins.write(name, reference)

    def aliases(self) -> dict[str, str]:
        """Return what each alias means, in alphabetical order; that model may be gone by now."""
        with self._reaching("read"):
            found = {name: self.resolve(name) for name in self._aliases}
        return {name: target for name, target in found.items() if target != name}

    def resolve(self, name: str) -> str:
        """Return the name of the model that an alias means; any other name comes back as it is."""
        try:
            if not _is_name(name) or self._has(name):
                return name
            target = self._aliases.read(name)
        except ConfigError:  # there is no library, or it cannot be read: no alias is known
            return name
        return target if target is not None and _is_name(target) else name

    def add_alias(self, name: str, target: str) -> str:
        """Let `name` mean a model of the library, whatever it meant before, and return that model's name.

        An alias of an alias means the model itself, so none ever leads in a circle.

        Raises:
            ModelNotFoundError: there is no model `target`.
            ConfigError: `name` is not a valid name, is that of a model here or in the catalogue, or means itself; or
                the library cannot be written.
        """
        model = self.resolve(target)
        with self.lock(name):  # no pull brings a model of this name meanwhile
            if name in (target, model):
                raise ConfigError(f"The alias {name!r} would mean itself. Choose another name for it.")
            if self._has(name) or name in CATALOGUE:
                where = "the library" if self._has(name) else "the catalogue of `edgelm pull`"
                raise ConfigError(f"{name!r} is a model of {where}, which an alias may not hide. Choose another name.")
            if not self._has(model):
                means = "An alias means a model of the library, not a folder. " if is_path(target) else ""
                raise ModelNotFoundError(f"{means}{self._no_model(target)}")
            with self.writing():
                self._aliases.write(name, model)
        return model

    def remove_alias(self, name: str) -> None:
        """Forget an alias; its model stays.

        Raises:
            ModelNotFoundError: there is no such alias.
            ConfigError: `name` is not a valid name, or the library cannot be written.
        """
        with self.writing():
            removed = self._aliases.remove(check_name(name))
        if not removed:
            there = ", ".join(self.aliases()) or "none"
            raise ModelNotFoundError(f"There is no alias {name!r}. There: {there}.")

    def refuse_alias(self, name: str) -> None:
        """Check that a model that is to be made does not take the name of an alias.

        Raises:
            ConfigError: it does.
        """
        target = self.resolve(name)
        if target != name:
            raise ConfigError(
                f"{name!r} is an alias of {target!r}. Choose another name for the new model, or forget the alias: "
                f"edgelm alias --remove {name}"
            )

    def _has(self, name: str) -> bool:
        with self._reaching("read"):
            folders = (self.root / kind / name for kind in ("models", "sources"))
            return _is_name(name) and any(folder.is_dir() for folder in folders)

    def has_package(self, name: str) -> bool:
        """Tell whether the package `name` is here, with its manifest: a folder alone is none."""
        return _is_name(name) and manifest.has_manifest(self.root / "models" / name)

    def package_path(self, name: str) -> Path:
        """Return the folder that the package `name` has or would have.

        Raises:
            ConfigError: `name` is not a valid name of a model.
        """
        return self.root / "models" / check_name(name)

    def source_path(self, name: str) -> Path:
        """Return the original of `name`: its GGUF file (the first of several), else the folder it has or would have.

        Raises:
            ConfigError: `name` is not a valid name of a model.
        """
        folder = self.root / "sources" / check_name(name)
        files = sorted(folder.glob("*.gguf"))
        return files[0] if files else folder

    def downloads_path(self, name: str) -> Path:
        """Return the folder for the unfinished download of `name`.

        Raises:
            ConfigError: `name` is not a valid name of a model.
        """
        return self.root / "downloads" / check_name(name)

    @property
    def calibration_path(self) -> Path:
        """The folder in which a calibration that was stopped goes on."""
        return self.root / "calibration"

    def find(self, name_or_path: str | Path) -> Path:
        """Return the folder of a package, given its name in the library or its path.

        A path is what contains a separator, starts with a dot, or is a package in the working folder. It may also lead
        to a graph that another program exported: its file, or its folder.

        Raises:
            ModelNotFoundError: nothing of that name or path is here; the message says what is, and how to get more.
        """
        if not isinstance(name_or_path, (str, os.PathLike)):
            raise ModelNotFoundError(
                f"{reprlib.repr(name_or_path)} is neither the name of a model nor a path. {self._what_is_here()}"
            )
        text = os.fspath(name_or_path)
        with reading_path(text):
            path = Path(text).expanduser()
            exists, file = is_here(text), path / manifest.FILE_NAME
            is_package = exists and is_there(file) and file.is_file()
        if not is_path(name_or_path) and not (text and is_package):
            name = self.resolve(text)
            if name in self.packages():
                return self.package_path(name)
            if name in self.sources():
                raise ModelNotFoundError(
                    f"Only the source of {name!r} is in the library. Make a package of it: edgelm export {name}"
                )
            if not text or not exists:
                raise ModelNotFoundError(self._no_model(text))
        if not exists:
            raise ModelNotFoundError(f"There is no model package at {path}. {self._instead_of(text)}")
        if not is_package and find_foreign_graph(path) is None:
            raise ModelNotFoundError(why_no_package(path))
        return path

    def find_source(self, name_or_path: str) -> Path:
        """Return the file or folder to make a package or a checkpoint of, given its path or its name in the library.

        A name means the source of that name, as everywhere, and what the working folder has of that name only where
        there is none. A path, which contains a separator or starts with a dot, is returned also where nothing is there.

        Raises:
            ModelNotFoundError: nothing of that name is here, or the system refuses to look at the path.
            ConfigError: it is neither a path nor a valid name of a model.
        """
        with reading_path(name_or_path):
            path = Path(name_or_path).expanduser()
            exists = is_here(name_or_path)
        if is_path(name_or_path):
            return path
        try:
            name, sources = self.resolve(name_or_path), self.sources()
        except ConfigError:
            if exists:
                return path  # without a library that can be read, a name is what lies here
            raise
        if name in sources:
            return self.source_path(name)
        if exists:
            return path
        package, there = self.package_path(name), ", ".join(sources) or "none"
        if package.is_dir():
            raise ModelNotFoundError(
                f"Of {name_or_path!r} there is the package alone, and no source of that name (there: {there}). To "
                f"read the weights from the package, as far as it holds them, name its folder: {package}"
            )
        raise ModelNotFoundError(
            f"There is no file or folder {name_or_path!r}, and no source of that name in the library "
            f"(there: {there}). Fetch a model: edgelm pull NAME --source-only"
        )

    def latest(self) -> str:
        """Return the package that was written last.

        Raises:
            ModelNotFoundError: there is none.
        """
        folders = self.packages()
        names = [name for name in folders if self.has_package(name)]
        if not names:
            broken = f"No package in the library has its {manifest.FILE_NAME}. " if folders else ""
            raise ModelNotFoundError(f"{broken}{self._what_is_here()}")
        return max(names, key=self._written)

    def _written(self, name: str) -> float:
        """Return when a package was written, in seconds since 1970; one that may not be looked at is the oldest."""
        try:
            return (self.package_path(name) / manifest.FILE_NAME).stat().st_mtime
        except OSError:
            return -math.inf

    def remove(self, name: str, *, source_only: bool = False, waiting: Callable[[str], None] | None = None) -> None:
        """Delete a model: its package, its source and its unfinished download; or all but its package.

        Each leaves the library in one step; a kill while the files are deleted leaves none that looks whole. A pull of
        it is waited for; `waiting` is as in `lock`.

        Raises:
            ModelNotFoundError: nothing of that name is in the library.
            ConfigError: the library cannot be written.
        """
        with self.writing():
            for path in self._parts(name, source_only):
                atomic.remove_leftovers(path)
        self.removable(name, source_only=source_only)
        with self.lock(name, waiting):
            present = self.removable(name, source_only=source_only)  # also what a pull that was waited for has brought
            with self.writing():
                for path in present:
                    atomic.remove_folder(path)
                if not self._has(name):
                    self._origins.remove(name)

    def remove_calibrations(self) -> int:
        """Delete what calibrations that were stopped have left; return how many run now, which keep theirs.

        Raises:
            ConfigError: the library cannot be written.
        """
        running = 0
        with self.writing():
            for folder in holdable_folders(self.calibration_path):
                with held_folder(folder) as is_ours:
                    running += not is_ours
                    if is_ours and folder.exists():
                        shutil.rmtree(folder)
        return running

    def removable(self, name: str, *, source_only: bool = False) -> list[Path]:
        """Return the folders that `remove` would delete.

        Raises:
            ModelNotFoundError: nothing of that name is in the library.
        """
        present = [path for path in self._parts(name, source_only) if path.exists() or path.is_symlink()]
        if not present:
            there = {other for kind in _removed_kinds(source_only) for other in self._names(kind)}
            names = sorted(there if source_only else {*there, *self.aliases()})
            raise ModelNotFoundError(
                f"There is no {'source of' if source_only else 'model'} {name!r} to remove."
                f"{did_you_mean(name, names, alike=ALIKE)} "
                f"{'With a source' if source_only else 'In the library'}: {', '.join(names) or 'none'}."
            )
        return present

    def _parts(self, name: str, source_only: bool) -> list[Path]:
        return [self.root / kind / check_name(name) for kind in _removed_kinds(source_only)]

    @contextlib.contextmanager
    def lock(self, name: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Keep other processes from pulling or removing `name`; wait for one that does.

        waiting: called once before a wait, with the process id of the one waited for.

        Raises:
            ConfigError: the library cannot be written.
        """
        path = self.root / "locks" / f"{check_name(name)}.lock"
        with contextlib.ExitStack() as stack:
            with self.writing():
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(file_lock(path, waiting))
            yield

    def _names(self, kind: str) -> list[str]:
        folder = self.root / kind
        with self._reaching("read"):
            try:
                entries = sorted(folder.iterdir())
            except FileNotFoundError:  # nothing has been pulled yet; a file in a folder's place is an error
                return []
            return [path.name for path in entries if _is_name(path.name) and path.is_dir()]

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Turn the failure to write into the library into an error that says what to do.

        Raises:
            ConfigError: the block raised an OSError.
        """
        return self._reaching("written")

    @contextlib.contextmanager
    def _reaching(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            way_out = "Make room: edgelm rm NAME" if is_full else f"Set {HOME_VARIABLE} to a folder of yours."
            if atomic.may_be_in_use(error):
                way_out = "End that program, such as a server, and try again."
            raise ConfigError(f"The model library {self.root} cannot be {verb}: {error}. {way_out}") from error

    def _no_model(self, wanted: str) -> str:
        name = self.resolve(wanted)
        message = f"There is no model {name!r}" + (f", which {wanted!r} is an alias of." if name != wanted else ".")
        known = {*self.packages(), *self.sources(), *self.aliases(), *CATALOGUE} - {wanted}
        if name in CATALOGUE:
            here = self._what_is_here() if self.packages() else f"No package is in the library {self.root}."
            return f"{message} {here} To fetch it: edgelm pull {name}"
        return f"{message}{did_you_mean(name, sorted(known), alike=ALIKE)} {self._what_is_here()}"

    def _instead_of(self, path: str) -> str:
        """Say what is here, or how to fetch what has the form of a repository's name: one command, not two."""
        on_hub = as_reference(path)
        if on_hub is None:
            return self._what_is_here()
        here = f"{self._what_is_here()} " if self.packages() else ""
        return f"{here}From the Hugging Face hub: edgelm pull {shell_word(on_hub)}"

    def _what_is_here(self) -> str:
        names, sources = self.packages(), self.sources()
        if names:
            return f"In the library: {', '.join(names)}."
        if sources:
            return f"Only sources are in the library. Make a package of one: edgelm export {sources[0]}"
        return f"The library {self.root} is empty. Fetch a small model: edgelm pull {next(iter(CATALOGUE))}"


def _removed_kinds(source_only: bool) -> tuple[str, ...]:
    return ("sources", "downloads") if source_only else ("models", "sources", "downloads")


def is_path(name_or_path: str | Path) -> bool:
    """Tell whether a model is meant by its path, not by its name in the library."""
    text = os.fspath(name_or_path)
    return isinstance(name_or_path, Path) or text.startswith((".", "~")) or "/" in text or os.sep in text


def is_here(name_or_path: str) -> bool:
    """Tell whether something lies at a path; nothing that a name may mean lies in a working folder that is closed.

    Raises:
        OSError, RuntimeError, ValueError: as `reading_path` tells of.
    """
    try:
        return is_there(Path(name_or_path).expanduser())
    except PermissionError:  # as in the home of the one who has called sudo -u
        if is_path(name_or_path):
            raise
        return False


@contextlib.contextmanager
def reading_path(text: str) -> Iterator[None]:
    """Turn the failure to look at the path `text` into an error that names both.

    Raises:
        ModelNotFoundError: the path is too long, it may not be read, or it begins with `~` and there is no such home.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise ModelNotFoundError(f"There is no model at {text!r}: {reason}. Check the path.") from error


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and manifest.is_plain_name(name)


def check_name(name: str) -> str:
    """Return `name` as it is, if it is a valid name of a model.

    Raises:
        ConfigError: it is not.
    """
    if not _is_name(name):
        untagged = name.removesuffix(TAG)
        is_tagged = untagged != name and _NAME.fullmatch(untagged)
        raise ConfigError(
            f"{name!r} is not a name for a model: use up to 100 letters from a to z, digits, and . _ + - between them, "
            "and none that is a device of Windows."
            + (f" Names have no tags here: write {untagged!r}." if is_tagged else "")
        )
    return name
