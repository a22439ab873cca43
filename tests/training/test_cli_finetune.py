"""`edgelm finetune`: its arguments, what it shows, and what Ctrl-C and SIGTERM do to it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from click.testing import Result
from command_line import invoke
from tiny_training_runs import assert_a_signal_saves, finetune_settings

from edgelm_training.finetune import _GLOBAL_BATCH_SIZE, build_recipe
from edgelm_training.finetune_data import LONGEST_ROW
from edgelm_training.runs.train_log import SilentReporter
from edgelm_training.settings.finetune_config import METHODS, FinetuneConfig
from edgelm_training.settings.settings import read_settings, to_toml


def edgelm(*arguments: str | Path) -> Result:
    return invoke("finetune", *arguments)


@pytest.fixture
def toml(tiny_chat_model: Path, tiny_chats: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(FinetuneConfig(**finetune_settings(tiny_chat_model, tiny_chats, tmp_path / "run"))))
    return path


def test_the_help_shows_no_default_of_a_list_that_is_empty() -> None:
    text = edgelm("--help").output
    assert "[default: 50]" in text
    assert "()" not in text


def test_a_model_and_its_data_make_a_run(tiny_chat_model: Path, tiny_chats: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = ("--threads", "1", "--no-tensorboard", "--max-steps", "2", "--rank", "4")
    result = edgelm(tiny_chat_model, "--data", tiny_chats, "--target-modules", "q_proj", "-o", run, *common)

    assert result.exit_code == 0, result.output
    assert "conversations to train on," in result.stderr
    assert result.stdout.startswith(f"checkpoint  {run}/checkpoints/step-00000002 (validation loss ")
    saved = read_settings(run / "config.toml", FinetuneConfig)
    assert (saved["model"], saved["method"], saved["alpha"]) == (str(tiny_chat_model), "lora", 8.0)
    assert (saved["target_modules"], saved["learning_rate"]) == (("q_proj",), 2e-4)
    again = edgelm(tiny_chat_model, "--data", tiny_chats, "-o", run)
    assert again.stderr.startswith(f"error: {run} already holds a run, saved at step 2.")
    assert edgelm("-o", run, "--resume", "--max-steps", "3").exit_code == 0


def test_what_is_read_is_said_before_it_is_read(tiny_chat_model: Path, tiny_chats: Path, tmp_path: Path) -> None:
    said: list[str] = []
    reporter = SilentReporter()
    reporter.working = reporter.note = said.append  # type: ignore[method-assign, assignment]

    settings = finetune_settings(tiny_chat_model, tiny_chats, tmp_path / "run") | {"teacher": str(tiny_chat_model)}
    build_recipe(FinetuneConfig(**settings), reporter)

    kinds = ["Reading the model", "Reading the data", "conversations to train on", "Reading the model", "parameters"]
    kinds += ["Reading the teacher"]
    assert [kind in line for kind, line in zip(kinds, said, strict=True)] == [True] * 6


def test_help_says_what_is_chosen_where_nothing_is_set() -> None:
    shown = " ".join(edgelm("--help").stdout.split())

    assert "[default: ()]" not in shown
    rates = {name: method.learning_rate for name, method in METHODS.items()}
    assert rates == {"lora": 2e-4, "qlora": 2e-4, "sft": 2e-5, "dpo": 1e-5}
    assert "after the warm-up. [default: 2e-4; sft: 2e-5; dpo: 1e-5]" in shown
    assert f"over all processes. [default: {_GLOBAL_BATCH_SIZE}]" in shown
    assert f"[default: the longest one's, at most {LONGEST_ROW}]" in shown


def test_a_model_that_is_named_twice_is_wrong_usage(tiny_chat_model: Path) -> None:
    result = edgelm(tiny_chat_model, "--model", tiny_chat_model, "--data", "x.jsonl")
    assert result.exit_code == 2
    assert "The model is named twice" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model is not set: name the checkpoint folder to fine-tune."),
        (["MODEL", "--dpo-beta", "0.2"], "--dpo-beta changes nothing here: it is for --method dpo. Leave it out."),
        (["MODEL", "--method", "sft", "--rank", "8"], "--rank changes nothing here: it is for --method lora, qlora or"),
        (
            ["MODEL", "--method", "dpo", "--z-loss", "1e-4"],
            "--z-loss changes nothing here: it is for --method sft, lora or qlora. Leave it out.",
        ),
        (
            ["MODEL", "--validation-data", "DATA", "--validation-fraction", "0.2"],
            "--validation-fraction changes nothing here: it is for runs without --validation-data. Leave it out.",
        ),
        (
            ["MODEL", "--method", "dpo", "--rank", "0", "--target-modules", "q_proj"],
            "--target-modules changes nothing here: it is for an adapter, which --rank 0 has not. Leave it out.",
        ),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_wrong_usage(
    arguments: list[str], message: str, tiny_chat_model: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    given = {"MODEL": str(tiny_chat_model), "DATA": str(tiny_chats)}
    result = edgelm(*(given.get(argument, argument) for argument in arguments), "-o", tmp_path / "run")
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_file_may_hold_settings_of_other_methods(toml: Path, tmp_path: Path) -> None:
    toml.write_text(toml.read_text().replace("dpo_beta = 0.1", "dpo_beta = 0.2"))
    assert edgelm(toml, "--method", "sft", "--max-steps", "1").exit_code == 0
    resumed = edgelm("-o", tmp_path / "run", "--resume", "--max-steps", "2", "--dpo-beta", "0.2")
    assert resumed.exit_code == 0, resumed.output  # what the run has already


@pytest.mark.skipif(os.name != "posix", reason="SIGTERM is POSIX's")
def test_a_signal_saves_and_leaves(toml: Path, tmp_path: Path) -> None:
    assert_a_signal_saves(signal.SIGTERM, "edgelm_training.finetune", toml, tmp_path / "run")
    assert (tmp_path / "run/latest/adapter_model.safetensors").is_file()
