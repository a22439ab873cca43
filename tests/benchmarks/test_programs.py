"""The programs of benchmarks: each says how it is called, and takes from edgelm what there is."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = {path.relative_to(FOLDER).as_posix(): path.read_text() for path in sorted(FOLDER.rglob("*.py"))}


def test_each_program_says_its_command_first() -> None:
    called = {name: text for name, text in PROGRAMS.items() if "/" not in name and "\nif __name__ == " in text}
    assert len(called) > 15
    heads = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in called.items()}
    assert [name for name, head in heads.items() if f"python benchmarks/{name}" not in head] == []


@cache
def names_in(module: str) -> set[str]:
    """Return the words of a module that is not imported, and what is in it where it is a folder."""
    found = importlib.util.find_spec(module)
    assert found is not None, module
    assert found.origin is not None
    inside = {path.stem for folder in found.submodule_search_locations or () for path in Path(folder).iterdir()}
    return inside | set(re.findall(r"\w+", Path(found.origin).read_text()))


def test_what_a_program_imports_is_there() -> None:
    taken = [
        (program, node.module or "", name.name)
        for program, text in PROGRAMS.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgelm")
        for name in node.names
    ]
    assert len(taken) > 50
    assert [one for one in taken if one[2] not in names_in(one[1])] == []
