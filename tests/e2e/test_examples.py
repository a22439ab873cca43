import importlib
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from make_tiny_model import make_checkpoint

from edgelm.testing import scripted_model, tiny_model_path

EXAMPLES = {path.stem: path for path in sorted((Path(__file__).parents[2] / "examples").glob("*.py"))}
STAYS_ALIVE = {"fastapi_app", "tk_window"}  # test_example_apps.py uses them as their users do
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example with arguments in an empty folder, in this process, and return what it prints."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [str(EXAMPLES[name]), *map(str, arguments)])
        runpy.run_path(str(EXAMPLES[name]), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    "name", sorted(EXAMPLES.keys() - STAYS_ALIVE - {"cancel_from_a_thread", "finetune_to_laptop", "ray_data_batches"})
)
def test_an_example_runs_and_says_something(name: str, run: Run) -> None:
    assert run(name, tiny_model_path()).strip()


def test_an_answer_is_stopped_from_another_thread(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = threading.Timer
    monkeypatch.setattr(threading, "Timer", lambda _, press: timer(0.02, press))
    assert run("cancel_from_a_thread", tiny_model_path()).endswith("[cancelled]\n")


def test_a_model_learns_answers_and_is_chatted_with(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = pytest.importorskip("edgelm_training.runs.device")
    monkeypatch.setattr(device, "usable_cores", lambda: 1)  # its threads would wait for each other
    assert run("finetune_to_laptop", make_checkpoint(tmp_path / "ckpt")).count("> ") == 3


def test_ray_answers_many_prompts(tmp_path: Path) -> None:
    # As in conftest.py: Ray starts ten processes, each of which imports jsonschema.
    (tmp_path / "rfc3987_syntax.py").write_text("raise ImportError")
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(EXAMPLES["ray_data_batches"]), str(tiny_model_path())],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The number ") == 16


@pytest.mark.parametrize("question", ["??", "What is NEAR?"])
def test_any_question_may_be_asked_of_local_files(run: Run, tmp_path: Path, question: str) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "note.md").write_text("The station is near the harbour.")
    said = run("retrieval_with_citations", tiny_model_path(), tmp_path / "notes", question)
    assert ("[1] note.md" in said) == (question != "??")


def test_in_the_command_llm_the_system_prompt_of_the_first_question_holds_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("llm")
    monkeypatch.syspath_prepend(str(EXAMPLES["llm_plugin"].parent))
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
    assert [name for name in EXAMPLES if f"`{name}.py`" not in guide] == []


def test_examples_are_short() -> None:
    assert {name: lines for name, path in EXAMPLES.items() if (lines := len(path.read_text().splitlines())) > 40} == {}
