"""Tasks in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgelm_training.process_pool import run_tasks


def test_no_module_of_the_working_folder_is_run_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's corpus may hold a file of that name, and a process of multiprocessing looks there first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "multiprocessing.py").write_text("import os\nopen('run', 'w').close()\nos._exit(1)\n")

    assert sorted(run_tasks(abs, [1, -2], workers=2)) == [1, 2]
    assert not (tmp_path / "run").exists()
