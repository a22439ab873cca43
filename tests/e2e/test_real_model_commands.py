"""The real model in the library: run, chat, list and remove it, with the commands that a user types."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from edgelm import ChatSession, GenerationConfig, load
from edgelm.decoding.answer import join

EDGELM = str(Path(sysconfig.get_path("scripts")) / "edgelm")


def edgelm(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [EDGELM, *arguments], input=stdin, capture_output=True, encoding="utf-8", timeout=240, check=False
    )


@pytest.mark.real_model
def test_a_model_answers_in_chat_and_run(smollm2_package: Path, own_library: Path) -> None:
    shutil.copytree(smollm2_package, own_library / "models" / "smollm2-135m-instruct")

    answer = edgelm("run", "smollm2-135m-instruct", "Hello", "--temperature", "0", "--max-new-tokens", "20")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "Hello! How can I assist you today?\n"  # as transformers says in fp32
    assert answer.stderr == ""

    turns = ["The capital of Italy is Rome.", "Which city did I name?"]
    chat = edgelm(
        "chat", "smollm2-135m-instruct", "--temperature", "0", "--max-new-tokens", "30", stdin="\n".join(turns)
    )
    assert chat.returncode == 0, chat.stderr
    session, fresh = (ChatSession(load("smollm2-135m-instruct")) for _ in range(2))
    config = GenerationConfig(max_new_tokens=30)
    first, second = (join(session.send(turn, config)).text for turn in turns)
    assert chat.stdout.split() == f"{first} {second}".split()
    assert second != join(fresh.send(turns[1], config)).text  # what the first turn said is known in the second

    assert "smollm2-135m-instruct  int8" in edgelm("list").stdout
    assert edgelm("rm", "smollm2-135m-instruct", "--yes").returncode == 0
    assert "smollm2" not in edgelm("list").stdout
