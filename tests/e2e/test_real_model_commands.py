"""The real model in the library: run, chat, list and remove it, with the commands that a user types."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import invoke

from edgelm import ChatSession, GenerationConfig, load
from edgelm.decoding.answer import join


@pytest.mark.real_model
def test_a_model_answers_in_chat_and_run(smollm2_package: Path, own_library: Path) -> None:
    shutil.copytree(smollm2_package, own_library / "models" / "smollm2-135m-instruct")

    answer = invoke("run", "smollm2-135m-instruct", "Hello", "--temperature", "0", "--max-new-tokens", "20")
    assert answer.exit_code == 0, answer.stderr
    assert answer.stdout == "Hello! How can I assist you today?\n"  # as transformers says in fp32
    assert answer.stderr == ""

    turns = ["The capital of Italy is Rome.", "Which city did I name?"]
    chat = invoke(
        "chat", "smollm2-135m-instruct", "--temperature", "0", "--max-new-tokens", "16", stdin="\n".join(turns)
    )
    assert chat.exit_code == 0, chat.stderr
    model = load("smollm2-135m-instruct")
    session, fresh = (ChatSession(model) for _ in range(2))
    config = GenerationConfig(max_new_tokens=16)
    first, second = (join(session.send(turn, config)).text for turn in turns)
    assert chat.stdout.split() == f"{first} {second}".split()
    assert second != join(fresh.send(turns[1], config)).text  # what the first turn said is known in the second

    assert "smollm2-135m-instruct  int8" in invoke("list").stdout
    assert invoke("rm", "smollm2-135m-instruct", "--yes").exit_code == 0
    assert "smollm2" not in invoke("list").stdout
