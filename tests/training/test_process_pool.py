"""Tasks in processes of their own."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from edgelm_training.texts import process_pool
from edgelm_training.texts.process_pool import _interrupts_held_back, run_tasks


def test_no_module_of_the_working_folder_is_run_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's corpus may hold a file of that name, and a process of multiprocessing looks there first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "multiprocessing.py").write_text("import os\nopen('run', 'w').close()\nos._exit(1)\n")

    assert sorted(run_tasks(abs, [1, -2], workers=2)) == [1, 2]
    assert not (tmp_path / "run").exists()


def test_a_containers_share_of_time_bounds_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = process_pool.available_cores()
    for quota, expected in ((0.5, 1), (1.5, 1), (allowed + 0.5, allowed)):
        monkeypatch.setattr(process_pool, "cpu_quota", lambda quota=quota: quota)
        assert process_pool.available_cores() == expected


def test_ctrl_c_is_heard_while_a_task_lasts_on_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """There Python hears of it when a wait is over."""
    waits = []

    class WatchedQueue(SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            waits.append(timeout)
            return super().get(block, timeout)

    monkeypatch.setattr(process_pool, "SimpleQueue", WatchedQueue)
    assert sorted(run_tasks(abs, [1, -2], workers=2)) == [1, 2]
    assert waits
    assert None not in waits


def test_ctrl_c_that_another_thread_gets_breaks_no_process_off_that_begins() -> None:
    go_on, begun = threading.Event(), []
    thread = threading.Thread(target=lambda: go_on.wait() and signal.raise_signal(signal.SIGINT))
    thread.start()

    def begin() -> None:
        with _interrupts_held_back():
            go_on.set()
            thread.join()
            begun.append(True)

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert begun
