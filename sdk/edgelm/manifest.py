"""The manifest of a model package, edgelm.json: what is in it, where it came from, and how good it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgelm import atomic
from edgelm.errors import PackageError

FILE_NAME = "edgelm.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the package: POSIX path relative to the folder, size in bytes, SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if not (isinstance(self.path, str) and isinstance(self.size, int) and isinstance(self.sha256, str)):
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

    def __post_init__(self) -> None:
        _require(self, (int, float), *(field_.name for field_ in dataclasses.fields(self)))


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
    notes: tuple[str, ...] = field(default=())
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not all(isinstance(id_, int) for id_ in self.control_token_ids):
            raise TypeError(f"control_token_ids are {self.control_token_ids!r}")
        _require(self, str, "name", "architecture", "precision")
        _require(self, int, "context_length")
        _require(self, Mapping, "opsets", "source", "created_by")
        if self.license is not None:
            _require(self, str, "license")

    def save(self, folder: Path) -> None:
        """Write edgelm.json, atomically; it is the last file of a package."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        atomic.write_text(folder / FILE_NAME, text + "\n")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read edgelm.json.

        Raises:
            PackageError: it is missing, is not JSON, has another schema version, or a field does not fit.
        """
        path = folder / FILE_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise PackageError(f"{folder} is not a model package: it has no {FILE_NAME}.") from error
        except (OSError, ValueError, RecursionError) as error:
            raise PackageError(f"Cannot read {path}: {error}.") from error
        if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
            found = values.get("schema_version") if isinstance(values, dict) else None
            raise PackageError(f"{path} has schema_version {found!r}; this edgelm reads {SCHEMA_VERSION}.")
        try:
            values["files"] = tuple(FileEntry(**entry) for entry in values["files"])
            for name in ("recipe", "control_token_ids", "notes"):
                values[name] = tuple(values.get(name, ()))
            if values.get("quality") is not None:
                values["quality"] = Quality(**values["quality"])
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise PackageError(f"{path} does not fit schema version {SCHEMA_VERSION}: {error}.") from error

    def check_files(self, folder: Path, *, largest: int = 2**63) -> list[FileEntry]:
        """Check that every listed file is a regular file of the listed size, and has the listed hash.

        Files of more than `largest` bytes are not hashed, and returned: `check_hash` can do that beside other work.

        Raises:
            PackageError: names the first file that differs, and how.
        """
        left: list[FileEntry] = []
        for entry in self.files:
            path = folder / entry.path
            if Path(entry.path).name != entry.path or entry.path in (".", ".."):
                raise PackageError(f"{folder / FILE_NAME} lists {entry.path!r}, which is not a plain file name.")
            if path.is_symlink() or not path.is_file():
                raise PackageError(f"{path} is missing or not a regular file. Export or download the package again.")
            if path.stat().st_size != entry.size:
                raise PackageError(
                    f"{path} has {path.stat().st_size} bytes; the manifest says {entry.size}. "
                    "It was changed or cut off: export or download the package again."
                )
            if entry.size > largest:
                left.append(entry)
            else:
                check_hash(folder, entry)
        listed = {entry.path for entry in self.files}
        for path in sorted(folder.iterdir()):
            if path.name not in listed and path.name != FILE_NAME:
                raise PackageError(
                    f"{path} is not in the manifest. Remove it, or export or download the package again."
                )
        if not listed:
            raise PackageError(f"{folder / FILE_NAME} lists no files.")
        return left


def _require(values: object, kind: type | tuple[type, ...], *names: str) -> None:
    for name in names:
        if not isinstance(getattr(values, name), kind):
            raise TypeError(f"{name} is {getattr(values, name)!r}")


def check_hash(folder: Path, entry: FileEntry) -> None:
    """Check a file's SHA-256 against the manifest.

    Raises:
        PackageError: it differs.
    """
    if sha256_of(folder / entry.path) != entry.sha256:
        raise PackageError(
            f"{folder / entry.path} does not match the SHA-256 in the manifest. "
            "It was changed or damaged: export or download the package again."
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(path: Path) -> FileEntry:
    """Measure and hash one file of a package."""
    return FileEntry(path=path.name, size=path.stat().st_size, sha256=sha256_of(path))
