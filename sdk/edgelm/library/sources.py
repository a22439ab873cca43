"""Fetch the original of a model into the library, whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.arguments import did_you_mean
from edgelm.errors import ConfigError, ModelNotFoundError, PackageError
from edgelm.files import atomic
from edgelm.files.regular_file import read_json_object
from edgelm.library.catalogue import CATALOGUE
from edgelm.library.fetch_options import FetchOptions
from edgelm.library.hub_address import as_reference
from edgelm.library.hub_source import HUB_PREFIX, HubSource
from edgelm.library.known_source import KnownSource
from edgelm.library.library import ALIKE, Library, check_name, is_here, reading_path
from edgelm.package.manifest import FILE_NAME, Manifest, describe_file
from edgelm.shell_word import shell_word

# Beside the files of a source: where they came from, and their hashes.
RECORD_NAME = "source.json"
_FACTS = ("repository", "revision", "package", "version", "license")  # of them, what a manifest passes on
# A place that a model's original comes from. `fetch` brings the files into one folder inside `staging`, going on from
# what an earlier call left there; it returns that folder, and what is known of the files: licence, revision and more.
Source = KnownSource | HubSource


def resolve(reference: str) -> Source:
    """Find the source that `reference` names: a name of the catalogue, or hf:ORG/REPO.

    Raises:
        ModelNotFoundError: it names none.
        ConfigError: it starts with hf: and goes on wrongly.
    """
    if reference.startswith(HUB_PREFIX):
        return HubSource.parse(reference)
    if reference in CATALOGUE:
        return KnownSource(name=reference, model=CATALOGUE[reference])
    with reading_path(reference):
        lies_here = bool(reference) and is_here(reference)
    if lies_here:
        raise ModelNotFoundError(
            f"{reference!r} is on this machine already. Make a package of it: edgelm export {shell_word(reference)}"
        )
    on_hub = as_reference(reference)
    meant = f" Did you mean {on_hub}?" if on_hub else did_you_mean(reference, CATALOGUE, alike=ALIKE)
    raise ModelNotFoundError(
        f"No model {reference!r} is known.{meant} Known by name: {', '.join(CATALOGUE)}. "
        f"Any other comes from the hub: edgelm pull {HUB_PREFIX}ORG/REPO"
    )


def refuse_other(source: Source, library: Library, name: str) -> None:
    """Check that what the library has under `name` was pulled as `source` is, or was not pulled.

    Raises:
        ConfigError: another model has that name.
    """
    record = read_record(library.root / "sources" / check_name(name))
    owner = record.get("reference") or library.origin(name)
    if owner not in (None, source.reference):
        raise ConfigError(
            f"The name {name!r} belongs to {owner} in the library. Choose another for "
            f"{source.reference}: edgelm pull {shell_word(source.reference)} --name NAME"
        )


def fetch(source: Source, library: Library, name: str, options: FetchOptions | None = None) -> Path:
    """Bring a source into the library under `name`, and return its path; one that is there already needs no network.

    What arrives as a package of edgelm, whose manifest it must match, becomes one of the library. The caller holds
    `library.lock(name)`. Killed at any point, the next call goes on where this one stopped.

    Raises:
        DownloadError: it does not arrive, or not whole.
        PackageError: it is a package, and does not match its manifest.
        ConfigError: another model or an alias has that name, a package has another precision than is wanted, or the
            library cannot be written.
    """
    refuse_other(source, library, name)
    target = library.root / "sources" / name
    if target.is_dir():
        return library.source_path(name)
    library.refuse_alias(name)
    staging = library.downloads_path(name)
    with library.writing():
        staging.mkdir(parents=True, exist_ok=True)
        try:
            taken = name if library.package_path(name).exists() else None
            folder, known = source.fetch(staging, dataclasses.replace(options or FetchOptions(), taken_name=taken))
            is_package = (folder / FILE_NAME).exists()
            if is_package:
                _check_package(folder)
        except BaseException:
            for left in (*staging.iterdir(), staging):
                with contextlib.suppress(OSError):  # not empty: the next call goes on from there
                    left.rmdir()
            raise
        if is_package:
            target = library.package_path(name)
        else:
            _write_record(folder, {"reference": source.reference, **known})
        target.parent.mkdir(exist_ok=True)
        library.set_origin(name, source.reference)
        atomic.fsync_path(folder)  # the names of its files
        atomic.rename(folder, target)
        atomic.fsync_path(target.parent)
        shutil.rmtree(staging, ignore_errors=True)
    return target if is_package else library.source_path(name)


def _check_package(folder: Path) -> None:
    """Check a package that came whole; one that cannot be kept is deleted."""
    try:
        Manifest.load(folder).check_files(folder)
    except PackageError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_record(folder: Path, known: Mapping[str, Any]) -> None:
    files = [
        dataclasses.asdict(describe_file(path)) | {"path": path.relative_to(folder).as_posix()}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    record = {**known, "files": files}
    atomic.write_text(folder / RECORD_NAME, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """Read what is known of a source's files; empty for a folder that `fetch` did not make."""
    try:
        return read_json_object(folder / RECORD_NAME)
    except (OSError, ValueError):
        return {}


def fetched_facts(folder: Path) -> dict[str, str]:
    """Return where the files in a folder were fetched from, and their licence; empty for files from elsewhere."""
    record = read_record(folder)
    return {name: record[name] for name in _FACTS if isinstance(record.get(name), str)}
