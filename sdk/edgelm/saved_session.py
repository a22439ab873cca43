"""Saved sessions: conversations on the disk, each with the keys and values that were computed for it."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.arguments import as_path, did_you_mean
from edgelm.completion import Message
from edgelm.errors import ConfigError, EdgeLMError, PackageError
from edgelm.files import atomic, schema_version
from edgelm.files.file_lock import file_lock
from edgelm.files.folder_entries import entries_of
from edgelm.files.folders import HOME_VARIABLE, state_folder
from edgelm.files.modified import modified
from edgelm.files.presence import is_there
from edgelm.files.regular_file import has_more_values, read_text
from edgelm.package.manifest import is_plain_name

if TYPE_CHECKING:
    from edgelm.chat_session import ChatSession
    from edgelm.language_model import LanguageModel
    from edgelm.memory.kv_cache import KVCache

CONVERSATION_FILE, CACHE_FILE = "conversation.json", "cache.npz"
SCHEMA_VERSION = 1
_KINDS: dict[str, Any] = {
    "model": str, "fingerprint": str, "system": (str, type(None)), "messages": list, "tokens": int
}  # fmt: skip
_FIELDS = {*_KINDS, "adapter", schema_version.KEY}
_TURN_FIELDS = {"role", "content"}
# Of a conversation: four contexts of a million tokens, and 87,000 messages.
_MAX_BYTES, _MAX_VALUES = 1 << 24, 1 << 18
_NAMING_WORDS, _NAMING_LENGTH, _NAMING_BYTES = 6, 40, 60  # twenty characters of Chinese, which take forty columns
_NAMED = 10  # of the sessions that there are, how many an error names
_MOST_NAME_BYTES = 100
_MOST_PARTS = 4  # of a letter with its marks
# Accents of Latin letters, and the marks that say how an emoji is drawn.
_LEFT_OUT = re.compile("(?<=[a-z])[\u0300-\u036f]+|[\ufe0e\ufe0f\u20e3]")


@dataclass(frozen=True, kw_only=True)
class SavedSession:
    """What a saved session is, without its content.

    size: of its files, in bytes; cache_size: of the keys and values among them. saved: when, in local time. model,
    fingerprint: of what held it, its name for itself and its `Manifest.fingerprint`. messages, tokens: how many there
    are, tokens in the cache. problem: why it cannot be read; None where it can.
    """

    name: str
    folder: Path
    size: int
    cache_size: int
    saved: datetime.datetime
    model: str = ""
    fingerprint: str = ""
    messages: int = 0
    tokens: int = 0
    problem: str | None = None


class SavedSessions:
    """Hold the sessions of this user by name, as folders below `root`.

    root: None takes the folder `sessions` in $EDGELM_HOME, or where that is not set, in the system's place for what a
    program leaves behind (~/.local/state/edgelm on Linux).

    A session's conversation is small and cannot be made again. Its KV cache is large, and can: without it, the next
    turn computes the conversation once more.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = state_folder() / "sessions" if root is None else as_path(root)

    def __repr__(self) -> str:
        return f"<SavedSessions in {str(self.root)!r}>"

    def new_name(self, text: str) -> str:
        """Make a name that no session has of the first words of a text, such as `why-is-the-sea-blue-2`.

        Letters from a to z lose their accents; a text without letters and digits gives `chat`.

        Raises:
            ConfigError: the disk cannot be read.
        """
        base = _first_words(text) or "chat"
        names = (base if number == 1 else f"{base}-{number}" for number in itertools.count(1))
        with _reaching(self.root, "read"):
            return next(name for name in names if is_plain_name(name) and not is_there(self.root / name))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from choosing a name meanwhile, as several would choose one; wait for one that does.

        Raises:
            ConfigError: the disk cannot be written.
        """
        path = self.root / ".lock"

        def tidy() -> None:
            with suppress(PermissionError):  # on Windows one that another process has open stays
                path.unlink(missing_ok=True)

        with ExitStack() as stack:
            with _reaching(self.root, "written"):
                self._make_root()
                stack.enter_context(file_lock(path, tidy=tidy))
            yield

    def save(self, name: str, session: ChatSession, *, with_cache: bool = True) -> None:
        """Write a session under a name; what the name stood for is replaced. `with_cache` is as in ChatSession.save.

        Raises:
            ConfigError: `name` is no name for a session, or the disk cannot be written.
        """
        folder = self.root / _check_name(name)
        with _reaching(self.root, "written"):
            self._make_root()
        session.save(folder, with_cache=with_cache)

    def _make_root(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)  # conversations are nobody else's business

    def load(self, name: str, model: LanguageModel, *, any_model: bool = False) -> ChatSession:
        """Go on with a session. `any_model` is as in ChatSession.load.

        Raises:
            ConfigError: there is none of that name.
            PackageError: it belongs to another model, or is broken.
        """
        from edgelm.chat_session import ChatSession

        return ChatSession.load(model, self._find(name), any_model=any_model)

    def describe(self, name: str) -> SavedSession:
        """Describe one session.

        Raises:
            ConfigError: there is none of that name.
        """
        return _describe(self._find(name))

    def names(self) -> list[str]:
        """Name all sessions, the one saved last first; none of them is read.

        Raises:
            ConfigError: the disk cannot be read.
        """
        with _reaching(self.root, "read"):
            entries = list(self.root.iterdir()) if is_there(self.root) else []
            saved: dict[str, float] = {}
            for path in entries:
                if path.is_dir() and _is_name(path.name):
                    with suppress(FileNotFoundError):  # it was removed just now
                        saved[path.name] = path.stat().st_mtime
        return sorted(saved, key=saved.__getitem__, reverse=True)

    def sessions(self) -> list[SavedSession]:
        """Describe all sessions, the one saved last first.

        Raises:
            ConfigError: the disk cannot be read.
        """
        found = []
        for folder in (self.root / name for name in self.names()):
            try:
                session = _describe(folder)
            except ConfigError:
                if folder.exists():
                    raise
            else:
                if session.problem is None or folder.exists():  # else it was removed while it was read
                    found.append(session)
        return found

    def forget_cache(self, name: str) -> None:
        """Delete a session's KV cache; its conversation stays.

        Raises:
            ConfigError: there is none of that name, or the disk cannot be written.
        """
        folder = self._find(name)
        with _reaching(folder, "written"):
            (folder / CACHE_FILE).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Delete a session, in one step.

        Raises:
            ConfigError: there is none of that name, or the disk cannot be written.
        """
        with _reaching(self.root, "written"):
            atomic.remove_leftovers(self.root / _check_name(name))
        folder = self._find(name)
        with _reaching(folder, "written"):
            atomic.remove_folder(folder)

    def _find(self, name: str) -> Path:
        folder = self.root / _check_name(name)
        with _reaching(self.root, "read"):
            is_saved = is_there(folder) and folder.is_dir()
        if not is_saved:
            names = self.names()
            meant = did_you_mean(name, names)
            saved = ", ".join(names[:_NAMED]) or "none"
            more = f", and {len(names) - _NAMED} more (edgelm cache lists them)" if len(names) > _NAMED else ""
            raise ConfigError(f"There is no saved session {name!r}.{meant} Saved: {saved}{more}.")
        return folder


def write(
    folder: Path,
    *,
    model: LanguageModel,
    system: str | None,
    messages: Sequence[Message],
    cache: KVCache,
    with_cache: bool,
) -> None:
    """Write a session to a folder, as ChatSession.save does."""
    from edgelm.package.replaceable import refuse_inside_package  # brings numpy with it

    refuse_inside_package(folder, ConfigError)
    with _reaching(folder, "read"):
        entries = {path.name for path in entries_of(folder)} if is_there(folder) and folder.is_dir() else set()
        is_foreign = folder.is_file() or (entries and CONVERSATION_FILE not in entries)
    if is_foreign:
        raise ConfigError(f"{folder} exists and is not a saved session; it is left alone. Choose another folder.")
    if others := sorted(entries - {CONVERSATION_FILE, CACHE_FILE}):
        raise ConfigError(
            f"{folder} is not replaced: it holds {others[0]}, which is no part of a saved session. Choose another "
            "folder, or move that elsewhere."
        )
    # An adapter that has computed nothing yet counts as none: it may be unloaded by now.
    adapter = model.adapters[cache.adapter].file.sha256 if cache.adapter is not None and cache.length else None
    conversation = {
        schema_version.KEY: SCHEMA_VERSION,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "adapter": adapter,  # what the cache was computed with
        "system": system,
        "messages": list(messages),
        "tokens": cache.length,
    }
    text = json.dumps(conversation, indent=2, ensure_ascii=False) + "\n"
    text = text.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair as JSON's escape for it
    with _reaching(folder, "written"), atomic.replace_folder(folder) as staging:
        atomic.write_text(staging / CONVERSATION_FILE, text)
        if with_cache:
            with (staging / CACHE_FILE).open("xb") as file:
                cache.write(file, _owner(model, adapter))


def read(folder: Path, model: LanguageModel, *, any_model: bool) -> tuple[str | None, list[Message], KVCache | None]:
    """Read a session's system message, turns and KV cache (None: there is none any more), as ChatSession.load does."""
    from edgelm.memory.kv_cache import KVCache

    conversation = _read_conversation(folder)
    is_its_own = conversation["fingerprint"] == model.fingerprint
    if not is_its_own and not any_model:
        raise PackageError(
            f"The session {folder} belongs to the model {conversation['model']} "
            f"({conversation['fingerprint'][:12]}), not to {model.name} ({model.fingerprint[:12]}). Load that model, "
            "or begin a new session."
        )
    path, adapter = folder / CACHE_FILE, conversation.get("adapter")
    cache = None
    loaded = [name for name, manifest in model.adapters.items() if manifest.file.sha256 == adapter]
    if is_its_own and path.exists() and (adapter is None or loaded):
        try:
            cache = KVCache.load(path, model.config, _owner(model, adapter))
        except PackageError:
            if path.exists():  # else it was cleared just now
                raise
        else:
            default = model.generation_config.adapter  # what answers next: by another name of it nothing is reused
            cache.adapter = default if default in loaded else next(iter(loaded), None)
            model.session.adopt(cache)
    return conversation["system"], conversation["messages"], cache


def _owner(model: LanguageModel, adapter: str | None) -> str:
    """Identify what computes a cache: the package, and the adapter by the hash of its weights."""
    return model.fingerprint if adapter is None else f"{model.fingerprint}+{adapter}"


def _read_conversation(folder: Path) -> dict[str, Any]:
    path = folder / CONVERSATION_FILE
    try:
        text = read_text(path, _MAX_BYTES, encoding="utf-8")
        if has_more_values(text, _MAX_VALUES):
            raise ValueError(f"it has more than {_MAX_VALUES} values")
        values = json.loads(text)
        values = {schema_version.KEY: SCHEMA_VERSION} | values  # the first that were saved have no number
        if other := schema_version.other_version(values, SCHEMA_VERSION, "Begin a new session"):
            raise PackageError(f"The saved session {path} {other}")
        wrong = [name for name, kind in _KINDS.items() if not isinstance(values[name], kind)]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PackageError(
            f"There is no saved session in {folder}: it has no {CONVERSATION_FILE}, which ChatSession.save writes."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackageError(f"Cannot read the saved session {path}: {error}.") from error
    if wrong:
        raise PackageError(f"The saved session {path} has a {wrong[0]} that does not fit: {values[wrong[0]]!r:.200}.")
    turns = [turn for turn in values["messages"] if isinstance(turn, dict)]
    if unknown := sorted((set(values) - _FIELDS).union(*(set(turn) - _TURN_FIELDS for turn in turns))):
        # The next turn writes the file anew, without what this version does not know.
        raise PackageError(
            f"The saved session {path} has {unknown[0]!r:.80}, which this edgelm does not know. If a newer one wrote "
            "it, update this one; if not, remove that from the file."
        )
    return dict(values)


def _describe(folder: Path) -> SavedSession:
    with _reaching(folder, "read"):
        saved = datetime.datetime.fromtimestamp(modified(folder.stat()), datetime.UTC).astimezone()
    sizes: dict[str, int] = {}
    try:
        with _reaching(folder, "read"):
            sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        conversation, problem = _read_conversation(folder), None
    except EdgeLMError as error:  # one broken session must not hide the others
        conversation, problem = {"model": "", "fingerprint": "", "messages": (), "tokens": 0}, str(error)
    return SavedSession(
        name=folder.name,
        folder=folder,
        size=sum(sizes.values()),
        cache_size=sizes.get(CACHE_FILE, 0),
        saved=saved,
        problem=problem,
        model=conversation["model"],
        fingerprint=conversation["fingerprint"],
        messages=len(conversation["messages"]),
        tokens=conversation["tokens"],
    )


def _check_name(name: str) -> str:
    if not isinstance(name, str) or not _is_name(name):
        raise ConfigError(
            f"{name!r} is not a name for a session: use letters, digits, and . _ - between them, up to "
            f"{_MOST_NAME_BYTES} bytes in UTF-8, and no name of a device of Windows."
        )
    return name


def _is_name(name: str) -> bool:
    return (
        is_plain_name(name)
        and len(name.encode()) <= _MOST_NAME_BYTES
        and name[0].isalnum()
        and all(_is_letter(character) or character in "._-" for character in name)
    )


def _is_letter(character: str) -> bool:
    """Tell a letter, a digit, or a mark that stands by one."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _first_words(text: str) -> str:
    """Join the first words of a text by hyphens, as far as a folder's name has room; "" where there are none."""
    apart = unicodedata.normalize("NFD", text[: _MOST_PARTS * _NAMING_LENGTH].casefold())
    # Cut after its characters are composed again: a Korean syllable would lose a part of itself.
    plain = unicodedata.normalize("NFC", _LEFT_OUT.sub("", apart))[:_NAMING_LENGTH]
    spaced = "".join(character if _is_letter(character) else " " for character in plain)
    words = [word for word in spaced.split() if word[0].isalnum()]
    name = "-".join(words[:_NAMING_WORDS]).encode("utf-8")[:_NAMING_BYTES].decode("utf-8", "ignore").rstrip("-")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # a system whose names of files have other characters
        return ""
    return name


@contextmanager
def _reaching(folder: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be {verb}: {error}. Sessions are kept in {HOME_VARIABLE}, or where it is not set, where "
            "the system keeps a program's state."
        ) from error
