"""The manifest of a model package, edgelm.json: what is in it, where it came from, and how good it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from edgelm.errors import PackageError
from edgelm.files import atomic
from edgelm.files.folder_entries import entries_of
from edgelm.files.regular_file import open_regular, parse_json, read_regular
from edgelm.files.schema_version import other_version
from edgelm.number_bounds import is_count

FILE_NAME = "edgelm.json"
SIGNATURE_NAME = "edgelm.sig"  # of all the files, by `edgelm sign`; the one file that the manifest cannot list
SCHEMA_VERSION = 1

# Far above what is written, and small enough that reading a hostile one costs neither time nor memory.
_MAX_BYTES = 1 << 19
_MAX_SIGNATURE_BYTES = 1 << 20
_MAX_FILES = 1000
_LARGEST_FIGURE = 1e300  # figures are divided to be shown, and Python's whole numbers can be too large for that
# The manifest's hash of itself, with this value empty. It shows damage; against a forger there are signatures.
_OWN_HASH = "manifest_sha256"
# Windows has devices for names, whatever follows their dot, and drops dots and spaces at an end.
_DEVICES = r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[1-9¹²³])"
_PLAIN_NAME = re.compile(rf"(?!{_DEVICES} *(?:\.|$))[^/\\:*?\"<>|]+(?<![. ])", re.IGNORECASE)
_MAX_NAME_BYTES = 255  # what Linux has room for; Windows and macOS have for as many characters


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the package: POSIX path relative to the folder, size in bytes, SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        is_size = is_count(self.size, 0, (1 << 63) - 1)
        if not (isinstance(self.path, str) and is_size and isinstance(self.sha256, str)):
            raise TypeError(f"a file has path {self.path!r}, size {self.size!r} and sha256 {self.sha256!r}")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The package's logits beside its fp32 source's, on the bundled text; measured after writing."""

    tokens: int
    perplexity: float
    source_perplexity: float
    max_logit_difference: float
    mean_kl_divergence: float  # nats per token, KL(source || package)
    top1_agreement: float  # share of positions at which both find the same token most likely
    greedy_tokens: int
    greedy_agreement: int  # how many of the package's greedy tokens the source would have chosen too, from the first
    # Of what follows a prompt that the prefill graph has read; None where the package has none.
    perplexity_after_prefill: float | None = None
    source_perplexity_after_prefill: float | None = None

    def __post_init__(self) -> None:
        measured = [name for name, value in dataclasses.asdict(self).items() if value is not None]
        always = [field_.name for field_ in dataclasses.fields(self) if field_.default is dataclasses.MISSING]
        require(self, (int, float), *always, *measured)

    @property
    def after_prefill(self) -> tuple[float, float] | None:
        """The perplexity behind what the prefill graph has read, and the source's there; None without such a graph."""
        pair = self.perplexity_after_prefill, self.source_perplexity_after_prefill
        return None if pair[0] is None or pair[1] is None else (pair[0], pair[1])


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a package that a loader checks and a person wants to know."""

    name: str
    architecture: str
    context_length: int
    precision: str
    recipe: tuple[Mapping[str, str], ...]  # ordered rows of {"pattern", "scheme"}: the first match quantizes a tensor
    opsets: Mapping[str, int]
    files: tuple[FileEntry, ...]
    source: Mapping[str, Any]  # format, file names, hashes, revision
    created_by: Mapping[str, str]  # tool -> version
    control_token_ids: tuple[int, ...] = ()
    license: str | None = None  # SPDX identifier
    quality: Quality | None = None
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not all(isinstance(id_, int) for id_ in self.control_token_ids):
            raise TypeError(f"control_token_ids are {self.control_token_ids!r}")
        require(self, str, "name", "architecture", "precision")
        if not is_count(self.context_length, 1):
            raise TypeError(f"context_length is {self.context_length!r:.60}")
        require(self, Mapping, "opsets", "source", "created_by")
        if not all(isinstance(version, int) for version in self.opsets.values()):
            raise TypeError(f"opsets are {self.opsets!r}")
        if not all(isinstance(version, str) for version in self.created_by.values()):
            raise TypeError(f"created_by is {self.created_by!r}")
        sources = self.source.get("files", [])
        if not (isinstance(sources, (list, tuple)) and all(isinstance(file, Mapping) for file in sources)):
            raise TypeError(f"the files of source are {sources!r}")
        if not all(
            isinstance(row, Mapping) and all(isinstance(text, str) for text in row.values()) for row in self.recipe
        ):
            raise TypeError(f"recipe is {self.recipe!r}")
        if not all(isinstance(note, str) for note in self.notes):
            raise TypeError(f"notes are {self.notes!r}")
        if not 1 <= len(self.files) <= _MAX_FILES:
            raise TypeError(f"{len(self.files)} files are listed; a package has 1 to {_MAX_FILES}")
        if self.license is not None:
            require(self, str, "license")

    @property
    def size(self) -> int:
        """The bytes of all files together."""
        return sum(entry.size for entry in self.files)

    def recipe_values(self, key: str) -> list[str]:
        """Return what the rows of the recipe say under a key: "scheme", "transform" or "prefill_graph"."""
        return [row[key] for row in self.recipe if key in row]

    def command(self, name: str) -> str:
        """Return the command that asks the package under a name: a chat, where it has a template for one."""
        if any(entry.path == "chat_template.jinja" for entry in self.files):
            return f"edgelm chat {name}"
        return f'edgelm run {name} "The sea is blue."'

    @property
    def fingerprint(self) -> str:
        """Identify the package by what is in it: a SHA-256 of its files' names and hashes, in hexadecimal."""
        listed = sorted(f"{entry.path} {entry.sha256}" for entry in self.files)
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write edgelm.json, atomically; it is the last file of a package."""
        values = dataclasses.asdict(self) | {_OWN_HASH: ""}
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        own_hash = hashlib.sha256(text.encode("utf-8")).hexdigest()
        atomic.write_text(folder / FILE_NAME, text.replace(f'"{_OWN_HASH}": ""', f'"{_OWN_HASH}": "{own_hash}"'))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read edgelm.json.

        Raises:
            PackageError: it is missing, is not JSON, has another schema version, or a field does not fit.
        """
        path = folder / FILE_NAME
        try:
            if not has_manifest(folder):
                if not folder.exists():  # removed, say, while a server had it
                    raise PackageError(f"There is no package at {folder}: it was removed or moved, or never there.")
                raise PackageError(
                    f"{folder} is not a model package: it has no {FILE_NAME}. `edgelm export` makes one of a "
                    "checkpoint; a graph that another program wrote can be run, and no more."
                )
            content = read_regular(path, _MAX_BYTES)
            values = parse_json(content)
        except ValueError as error:
            raise PackageError(f"Cannot read {path}: {error}. Export or download the package again.") from error
        if other := other_version(values, SCHEMA_VERSION, "Export or download the package again"):
            raise PackageError(f"{path} {other}")
        own_hash = values.pop(_OWN_HASH, None)
        try:
            values["files"] = tuple(FileEntry(**entry) for entry in values["files"])
            for name in ("recipe", "control_token_ids", "notes"):
                values[name] = tuple(values.get(name, ()))
            if values.get("quality") is not None:
                values["quality"] = Quality(**values["quality"])
                _check_figures(values["quality"])
            manifest = cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise PackageError(
                f"{path} does not fit schema version {SCHEMA_VERSION}: {error}. If a newer edgelm wrote it, update "
                "this one; if not, export or download the package again."
            ) from error
        _check_own_hash(path, content, own_hash)
        return manifest

    def entry(self, name: str) -> FileEntry:
        """Return what the manifest says of one file.

        Raises:
            PackageError: it does not list it.
        """
        for entry in self.files:
            if entry.path == name:
                return entry
        raise PackageError(f"The manifest of {self.name} lists no {name}. Export or download the package again.")

    def check_files(self, folder: Path, *, largest: int = 2**63) -> list[FileEntry]:
        """Check that every listed file is a regular file of the listed size, and has the listed hash.

        Files of more than `largest` bytes are not hashed, and returned: `check_hash` can do that beside other work.

        Raises:
            PackageError: names the first file that differs, and how.
        """
        self._check_names(folder)
        left: list[FileEntry] = []
        for entry in self.files:
            if entry.size > largest:
                _open_listed(folder / entry.path, entry).close()
                left.append(entry)
            else:
                check_hash(folder, entry)
        return left

    def _check_names(self, folder: Path) -> None:
        """Check that the manifest lists plain file names, each once, and that the folder holds no others."""
        listed: set[str] = set()
        for entry in self.files:
            name = entry.path
            folded = name.casefold()  # one file where the disk does not tell case apart
            if not is_plain_name(name) or folded in (FILE_NAME, SIGNATURE_NAME):
                raise PackageError(f"{folder / FILE_NAME} lists {name!r}, which is not a plain file name.")
            if folded in listed:
                raise PackageError(f"{folder / FILE_NAME} lists {name!r} twice.")
            listed.add(folded)
        own = {entry.path for entry in self.files} | {FILE_NAME, SIGNATURE_NAME}
        try:
            entries = entries_of(folder)
        except OSError as error:
            raise PackageError(f"{folder} cannot be read: {error}. Was it removed, or may you not list it?") from error
        for path in entries:
            if path.name == SIGNATURE_NAME:
                check_signature_file(path)
            if path.name not in own:
                raise PackageError(
                    f"{path} is not in the manifest. Remove it, or export or download the package again."
                )


def _check_own_hash(path: Path, content: bytes, own_hash: object) -> None:
    """Compare a manifest with the hash that it has of itself; packages of the first version have none."""
    if own_hash is None:
        return
    written = f'"{_OWN_HASH}": "{own_hash}"'.encode("utf-8", "replace")
    blank = content.replace(written, f'"{_OWN_HASH}": ""'.encode(), 1)
    if hashlib.sha256(blank).hexdigest() != own_hash:
        raise PackageError(
            f"{path} does not match its own SHA-256. It was changed or damaged: export or download the package again."
        )


def require(values: object, kind: type | tuple[type, ...], *names: str) -> None:
    """Check of what class fields of a manifest are, and raise a TypeError where one is of another."""
    for name in names:
        if not isinstance(getattr(values, name), kind):
            raise TypeError(f"{name} is {getattr(values, name)!r}")


def _check_figures(quality: Quality) -> None:
    """Check that figures that were read are such as an export writes: it refuses others, and says why."""
    for name, value in dataclasses.asdict(quality).items():
        if value is not None and (not abs(value) < _LARGEST_FIGURE or ("perplexity" in name and value <= 0)):
            raise TypeError(f"{name} is {value!r:.60}")


def has_manifest(folder: Path) -> bool:
    """Tell whether a folder is a package; one that may not be looked into counts, and says so when it is opened."""
    try:
        os.lstat(folder / FILE_NAME)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return False
    except OSError:
        return True
    return True


def is_plain_name(name: str) -> bool:
    """Tell whether a file of this name lies in the folder that it is put into, on every system."""
    is_plain = name.isprintable() and _PLAIN_NAME.fullmatch(name) is not None
    return is_plain and len(name.encode()) <= _MAX_NAME_BYTES


def check_signature_file(path: Path) -> None:
    """Check that a signature, whose size and hash no manifest can have, is a regular file of a signature's size.

    Raises:
        PackageError: it is not.
    """
    read_regular(path, _MAX_SIGNATURE_BYTES)


def check_hash(folder: Path, entry: FileEntry) -> None:
    """Check a file's size and SHA-256 against the manifest.

    Raises:
        PackageError: it differs, or is no regular file.
    """
    path = folder / entry.path
    with _open_listed(path, entry) as file:
        _compare_hash(path, hashlib.file_digest(file, "sha256").hexdigest(), entry)


def read_checked(folder: Path, entry: FileEntry) -> bytes:
    """Read a file whole, and return what was checked against the manifest: nobody can change it in between.

    Raises:
        PackageError: it differs, or is no regular file.
    """
    path = folder / entry.path
    with _open_listed(path, entry) as file:
        content = file.read(entry.size + 1)
    _compare_hash(path, hashlib.sha256(content).hexdigest(), entry)
    return content


def _open_listed(path: Path, entry: FileEntry) -> BufferedReader:
    """Open a file of the size that the manifest lists."""
    file = open_regular(path)
    size = os.fstat(file.fileno()).st_size
    if size != entry.size:
        file.close()
        raise PackageError(
            f"{path} has {size} bytes; the manifest says {entry.size}. "
            "It was changed or cut off: export or download its folder again."
        )
    return file


def _compare_hash(path: Path, found: str, entry: FileEntry) -> None:
    if found != entry.sha256:
        raise PackageError(
            f"{path} does not match the SHA-256 in the manifest. "
            "It was changed or damaged: export or download its folder again."
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(path: Path) -> FileEntry:
    """Measure and hash one file of a package."""
    return FileEntry(path=path.name, size=path.stat().st_size, sha256=sha256_of(path))
