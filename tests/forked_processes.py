"""Processes for tests, forked from this one, so that none of them imports torch again (3 s each)."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def fork(action: Callable[[], None]) -> int:
    """Run `action` in a child, and return the child's process id; it leaves with 0, or with 1 after an error."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        action()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def exit_status(child: int) -> int:
    """Wait for a child; a signal that ended it is a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_processes(action: Callable[[], None], count: int) -> list[int]:
    """Run `action` in `count` children with the variables that torchrun sets, and return how each ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def worker(rank: int) -> None:
        values = (rank, count, rank, "127.0.0.1", port)
        os.environ.update({name: str(value) for name, value in zip(LAUNCHER_VARIABLES, values, strict=True)})
        action()

    return [exit_status(child) for child in [fork(lambda rank=rank: worker(rank)) for rank in range(count)]]
