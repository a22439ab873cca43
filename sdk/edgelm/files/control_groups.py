"""The control groups of Linux that bound what this process gets of the machine, as those of a container do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def own_groups(controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process's groups, and of those around them, with the version (1 or 2) of their files.

    controller: what is bounded, "cpu" or "memory". A folder need not be there: a container may see its own group alone,
    as the outermost. Source: the Linux kernel's cgroup v2 and v1.
    """
    try:
        content = os.fsdecode(_OWN_GROUPS.read_bytes())
    except OSError:
        return
    for line in content.removesuffix("\n").split("\n"):  # not splitlines: a name may have what else ends lines
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = _GROUPS / controller if controllers else _GROUPS
        own = PurePosixPath(path.lstrip("/"))
        for group in (own, *own.parents):
            yield top / group, 1 if controllers else 2
