"""The memory that an import of a model takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Not getrusage: a process inherits the ru_maxrss of the one that started it.
_IMPORT = """
import sys
from pathlib import Path
from edgelm_export.importer import import_checkpoint
import_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
status = Path('/proc/self/status')
print(status.read_text().partition('VmHWM:')[2].split()[0] if status.exists() else 0)
"""


def import_measured(source: Path, target: Path) -> int:
    """Import a model in a process of its own; return the kB that it took at most, and 0 where no /proc says."""
    command = [sys.executable, "-c", _IMPORT, str(source), str(target)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
