"""The hooks that PyInstaller runs when a program with edgelm inside is frozen."""

from __future__ import annotations

import importlib.util
import pkgutil
import runpy
import sys
import tomllib
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOOKS = {
    path.stem.removeprefix("hook-"): path
    for folder in pkgutil.resolve_name(PROJECT["entry-points"]["pyinstaller40"]["hook-dirs"])()
    for path in Path(folder).glob("hook-*.py")
}


def run(hook: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a hook with functions in the place of PyInstaller's that say what they were asked to collect."""
    hooks = types.ModuleType("PyInstaller.utils.hooks")
    answers = {
        "collect_data_files": lambda package: [("data", package)],
        "collect_entry_point": lambda group: (
            [("metadata", group)],
            [entry_point.module for entry_point in metadata.entry_points(group=group)],
        ),
        "copy_metadata": lambda name: [("metadata", name)],
        "can_import_module": lambda name: importlib.util.find_spec(name) is not None,
    }
    vars(hooks).update(answers)
    for name, module in (("PyInstaller", hooks), ("PyInstaller.utils", hooks), ("PyInstaller.utils.hooks", hooks)):
        monkeypatch.setitem(sys.modules, name, module)
    return runpy.run_path(str(HOOKS[hook]))


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_each_hook_is_named_for_a_module_that_is_there(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.util.find_spec(hook) is not None
    assert run(hook, monkeypatch)["datas"]


def test_every_file_beside_the_source_is_collected_with_what_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    collected = {package for hook in HOOKS for kind, package in run(hook, monkeypatch)["datas"] if kind == "data"}

    folders = {}
    for name in ("edgelm", "edgelm_export", "edgelm_training"):
        root = Path(importlib.util.find_spec(name).origin).parent
        files = [path for path in root.rglob("*.*") if path.suffix not in (".py", ".pyc", ".typed") and path.is_file()]
        folders |= {path: ".".join([name, *path.relative_to(root).parts[:-1]]) for path in files}
    assert HOOKS
    assert folders
    assert [path for path, folder in folders.items() if not any(folder.startswith(name) for name in collected)] == []


def test_the_command_is_frozen_with_every_command_and_the_source_of_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("edgelm.cli.main", monkeypatch)

    assert {"edgelm.cli.serve", "edgelm_export.cli.export", "edgelm_training.cli.train"} <= {*found["hiddenimports"]}
    assert set(found["module_collection_mode"].values()) == {"pyz+py"}
    assert found["module_collection_mode"].keys() == {*found["hiddenimports"]}


def test_llguidance_comes_with_its_version_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    found = run("edgelm.structure.constraint_matcher", monkeypatch)

    assert found["hiddenimports"] == ["llguidance"]
    assert found["datas"] == [("metadata", "llguidance")]
