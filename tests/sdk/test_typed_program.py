"""A program of somebody else's, with the calls as most people would write them, under mypy --strict."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgelm

PROGRAM = """
from collections.abc import Iterator
from contextlib import closing

import edgelm


def words(model: edgelm.LanguageModel) -> Iterator[str]:
    config = edgelm.GenerationConfig(stop="END", logit_bias={1: -2.0}, seed=1)
    for chunk in model.stream("The sea", config):
        yield chunk.text


def ask(question: str) -> str:
    model = edgelm.load("name", edgelm.SessionOptions(threads=2))
    messages: list[edgelm.Message] = [{"role": "user", "content": question}]
    config = edgelm.GenerationConfig(stop=["END", "STOP"], stop_token_ids=[1, 2], processors=[])
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    reply = model.chat(messages, config, tools=tools)
    messages.append(reply.message)
    return model.chat([*messages, {"role": "user", "content": "And now?"}]).text


def begin(model: edgelm.LanguageModel, cache: edgelm.KVCache) -> str:
    with closing(model.stream("The sea", cache=cache)) as chunks:
        return next(chunks).text


def plain_dicts(model: edgelm.LanguageModel, engine: edgelm.Engine, history: list[dict[str, str]]) -> str:
    question = [{"role": "user", "content": [{"type": "text", "text": "And in parts?"}]}]
    session = edgelm.ChatSession(model)
    session.restore(history)
    engine.submit_chat(history)
    return model.chat(history).text + model.chat(question).text + "".join(c.text for c in model.stream_chat(history))


def misspell() -> None:
    edgelm.lod("name")  # type: ignore[attr-defined]  # which --strict wants to be an error


async def read(engine: edgelm.Engine) -> str:
    return "".join([chunk.text async for chunk in engine.submit("The sea")])
"""


def test_a_program_of_a_user_passes_mypy_strict(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    sdk = Path(edgelm.__file__).parents[1]
    assert (sdk / "edgelm/py.typed").is_file()  # which mypy asks only of what is installed
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    # Types of NumPy and others are half of the work, and none of them is in the program.
    options = ["--strict", "--cache-dir", os.devnull, "--no-site-packages", "--follow-imports", "silent"]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "program.py"],
        cwd=tmp_path, env=os.environ | {"MYPYPATH": str(sdk)}, capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
