"""Words of a command that a message tells the reader to type."""

from __future__ import annotations

import shlex
import sys

import pytest

from edgelm.errors import ModelNotFoundError
from edgelm.library.library import Library
from edgelm.shell_word import shell_word


@pytest.mark.parametrize("word", ["run/best", "my models/it's $HOME", "a&b", ""])
def test_a_shell_reads_a_word_as_it_was(word: str) -> None:
    assert shlex.split(shell_word(word)) == [word]


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        (r"C:\Users\Ada\run\best", r"C:\Users\Ada\run\best"),
        (r"C:\My models\tiny", r'"C:\My models\tiny"'),
        (r"R&D\tiny", r'"R&D\tiny"'),
        ("größe/模型", "größe/模型"),
    ],
)
def test_a_path_of_windows_is_in_double_quotes_or_none(word: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert shell_word(word) == shown


def test_a_message_on_windows_names_a_command_that_cmd_exe_reads(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my model").mkdir()
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ModelNotFoundError, match=r'edgelm export ".*my model" -o package/'):
        Library(tmp_path).find(tmp_path / "my model")
