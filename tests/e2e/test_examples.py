import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from make_tiny_model import make_checkpoint

from edgelm.testing import scripted_model, tiny_model_path

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
TAKES_A_CHECKPOINT = {"finetune_to_laptop"}
STAYS_ALIVE = {"fastapi_app", "tk_window"}  # test_example_apps.py uses them as their users do


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.stem not in STAYS_ALIVE], ids=lambda path: path.stem
)
def test_an_example_runs_and_says_something(path: Path, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "ckpt") if path.stem in TAKES_A_CHECKPOINT else tiny_model_path()
    # As in conftest.py: Ray starts ten processes, each of which imports jsonschema.
    (tmp_path / "rfc3987_syntax.py").write_text("raise ImportError")
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(path), str(model)], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("question", ["??", "What is NEAR?"])
def test_any_question_may_be_asked_of_local_files(question: str, tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("The station is near the harbour.")
    program = next(path for path in EXAMPLES if path.stem == "retrieval_with_citations")
    command = [sys.executable, str(program), str(tiny_model_path()), str(tmp_path), question]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert ("[1] note.md" in done.stdout) == (question != "??")


def test_in_the_command_llm_the_system_prompt_of_the_first_question_holds_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("llm")
    monkeypatch.syspath_prepend(str(EXAMPLES[0].parent))
    plugin = importlib.import_module("llm_plugin")
    model, asked = scripted_model("Yes."), []
    stream_chat = model.stream_chat
    monkeypatch.setattr(
        model, "stream_chat", lambda messages, config: asked.append(messages) or stream_chat(messages, config)
    )
    monkeypatch.setattr(plugin.edgelm, "load", lambda name: model)
    conversation = plugin.LocalModel("name").conversation()
    assert conversation.prompt("Is it?", system="Be brief.").text() == "Yes."
    assert conversation.prompt("And now?").text() == "Yes."
    assert [message["content"] for message in asked[1]] == ["Be brief.", "Is it?", "Yes.", "And now?"]


def test_the_guide_lists_every_example() -> None:
    guide = (Path(__file__).parents[2] / "docs/guides/embed.md").read_text()
    assert [path.name for path in EXAMPLES if f"`{path.name}`" not in guide] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40
