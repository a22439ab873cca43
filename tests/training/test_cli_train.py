"""`edgelm train`: flags and files, what it shows, and what Ctrl-C and SIGTERM do to it."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result
from command_line import invoke
from tiny_training_runs import assert_a_signal_saves, losses, settings

from edgelm_training.cli.live_line import LiveLine, duration, step_line
from edgelm_training.pretrain import build_recipe
from edgelm_training.runs.train_log import SilentReporter, StepRecord
from edgelm_training.settings.pretrain_config import PretrainConfig
from edgelm_training.settings.settings import read_settings, to_toml
from edgelm_training.trainer import Trainer

RECORD = StepRecord(
    step=10,
    max_steps=2000,
    log_every=1000,
    loss=3.21987,
    reported={"z_loss": 0.0123456},
    learning_rate=3e-4,
    grad_norm=0.876,
    tokens=81920,
    seconds=2.0,
    tokens_per_second=4096.4,
    mfu=0.314,
    memory_bytes=1_230_000_000,
    seconds_left=3980.0,
)


def edgelm(*arguments: str) -> Result:
    return invoke("train", *arguments)


@pytest.fixture
def toml(tiny_shards: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(PretrainConfig(**settings(tiny_shards, tmp_path / "run"))))
    return path


def test_a_file_and_flags_make_a_run(toml: Path, tmp_path: Path) -> None:
    result = edgelm(str(toml), "--max-steps", "4", "--log-every", "2", "--model", "num_hidden_layers=1")

    assert result.exit_code == 0, result.output
    shown = [line.partition(" · ")[0] for line in result.stderr.splitlines() if " · loss " in line]
    assert shown[:2] == ["step 1/4", "step 2/4"]
    assert "step 0: validation loss " in result.stderr
    assert "step 4: validation loss " in result.stderr
    assert "step 3: ▸" in result.stderr
    checkpoint = tmp_path / "run/checkpoints/step-00000004"
    assert result.stdout.splitlines()[0].startswith(f"checkpoint  {checkpoint} (validation loss ")
    assert result.stdout.splitlines()[1].lstrip().startswith("best  ")
    saved = read_settings(tmp_path / "run/config.toml", PretrainConfig)
    assert (saved["max_steps"], saved["model"]["num_hidden_layers"], saved["model"]["vocab_size"]) == (4, 1, 320)


def test_a_run_that_goes_on_shows_as_many_steps_as_before(toml: Path, tmp_path: Path) -> None:
    begun = edgelm(str(toml), "--max-steps", "2", "--log-every", "3")
    resumed = edgelm("-o", str(tmp_path / "run"), "--resume", "--max-steps", "8")
    changed = edgelm("-o", str(tmp_path / "run"), "--resume", "--max-steps", "11", "--log-every", "1")

    shown = [
        [int(line.partition("/")[0].removeprefix("step ")) for line in run.stderr.splitlines() if " · loss " in line]
        for run in (begun, resumed, changed)
    ]
    assert shown == [[1, 2], [3, 6, 8], [9, 10, 11]]


def test_one_number_makes_a_model_and_the_run_goes_on_without_saying_it_again(
    tiny_shards: Path, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    common = ("--params", "60K", "--sequence-length", "16", "--threads", "1", "--no-tensorboard", "--sample-every", "0")
    first = edgelm("--data", str(tiny_shards), "-o", run, "--max-steps", "2", *common)
    again = edgelm("--data", str(tiny_shards), "-o", run, "--max-steps", "2", *common)
    longer = edgelm("-o", run, "--resume", "--max-steps", "3", "--json")

    assert first.exit_code == 0, first.output
    assert again.exit_code == 1
    assert again.stderr.startswith(f"error: {run} already holds a run, saved at step 2.")
    assert f"Going on after step 2, from {run}/checkpoints/step-00000002." in longer.stderr
    outcome = json.loads(longer.stdout)
    assert (outcome["step"], outcome["signal"]) == (3, None)
    assert outcome["checkpoint"] == f"{run}/checkpoints/step-00000003"
    assert outcome["best_validation_loss"] <= outcome["validation_loss"]
    finished = edgelm("-o", run, "--resume")
    assert finished.stdout.startswith("Nothing is left to do: the run has its 3 steps.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-steps", "x"], "'x' is not a valid integer"),
        (["--schedule", "cos"], "'cos' is not one of"),
        (["--nonsense"], "No such option"),
        (["--max-steps", "-1"], "max_steps is -1; it must be 1 or more."),
        (["--momentum", "0.9"], "--momentum changes nothing here: it is for --optimizer muon. Leave it out."),
        (["--decay-fraction", "0.1"], "--decay-fraction changes nothing here: it is for --schedule wsd."),
        (["--teacher-weight", "0.5"], "--teacher-weight changes nothing here: it is for --teacher FOLDER."),
        (
            ["--schedule", "constant", "--min-learning-rate-ratio", "0.5"],
            "--min-learning-rate-ratio changes nothing here: it is for a --schedule that falls. Leave it out.",
        ),
        (["--eval-every", "0", "--eval-rows", "9"], "--eval-rows changes nothing here: it is for a run that validates"),
        (["--sample-every", "0", "--sample-tokens", "9"], "--sample-tokens changes nothing here: it is for samples"),
        (["none.toml"], "Cannot read none.toml: "),
        (["--data", "SHARDS", "--params", "15X"], "params is '15X'; it must be a number such as 15M"),
        (["--data", "SHARDS", "--params", "60K", "--model", "rope_theta=-1"], "rope_theta is -1; it must be"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], message: str, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = edgelm(*(str(tiny_shards) if argument == "SHARDS" else argument for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("Usage: ")


def test_a_run_that_goes_on_with_a_wrong_setting_is_wrong_usage(toml: Path) -> None:
    assert edgelm(str(toml)).exit_code == 0
    result = edgelm(str(toml), "--resume", "--learning-rate", "-1")
    assert (result.exit_code, "learning_rate is -1.0; it must be" in result.stderr) == (2, True)


def test_a_broken_checkpoint_to_go_on_with_is_an_error(toml: Path, tiny_shards: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_shards / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").touch()
    result = edgelm(str(toml), "--init", str(tmp_path))
    assert result.exit_code == 1
    assert f"error: Cannot read {tmp_path / 'config.json'}" in result.stderr


def test_help_shows_every_setting_and_imports_no_torch() -> None:
    program = (
        "import sys\nfrom edgelm.cli.main import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    for name in ("--params", "--global-batch-size", "--z-loss", "--resume", "--compile / --no-compile"):
        assert name in done.stdout
    assert "[default: cosine]" in done.stdout
    assert "torchrun --nproc-per-node 8" in done.stdout


def test_the_settings_file_of_the_help_makes_a_model(tiny_shards: Path, tmp_path: Path) -> None:
    shown = edgelm("--help").stdout.partition("a table for the model:")[2].partition("Exit codes")[0]
    (tmp_path / "help.toml").write_text(shown.replace("15M", "20K"))
    given = read_settings(tmp_path / "help.toml", PretrainConfig)
    config, recipe = build_recipe(PretrainConfig(**{**given, "data": str(tiny_shards)}), SilentReporter())
    assert config.max_steps == 2000
    assert any("q_norm" in name for name, _ in recipe.model.named_parameters())


@pytest.mark.skipif(os.name != "posix", reason="SIGTERM is POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(number: signal.Signals, toml: Path, tmp_path: Path) -> None:
    step = assert_a_signal_saves(number, "edgelm_training.pretrain", toml, tmp_path / "run")
    assert len(losses(tmp_path / "run")) == step


def test_a_signal_before_the_first_step_is_told(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "restore", lambda _: signal.raise_signal(signal.SIGTERM))
    result = edgelm(str(toml), "--resume")
    assert result.exit_code == 128 + signal.SIGTERM
    assert result.stderr.endswith("Stopped at once, without saving a checkpoint.\n")
    assert not (tmp_path / "run/latest").exists()


def test_the_line_of_a_step_says_where_how_well_and_how_fast() -> None:
    assert step_line(RECORD) == (
        "step 10/2000 · loss 3.2199 · z_loss 0.01235 · lr 3.00e-04 · norm 0.88 · 4,096 tokens/s · MFU 31% · "
        "66 min left · 1.23 GB"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (750, "12 min"), (11100, "3 h 05 min"), (187200, "2 d 4 h")]
)
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_terminal_alone_gets_what_is_computed_before_the_first_step_ends(
    on_terminal: bool, toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelm_training.cli.live_line.can_redraw", lambda _: on_terminal)

    result = edgelm(str(toml), "--max-steps", "2", "--warmup-steps", "0", "--grad-accum-steps", "2")

    working = [
        "Loading PyTorch",
        "Making the model",
        "step 0: validating",
        "step 1/2, piece 1 of 2",
        "step 1/2, piece 2 of 2",
    ]
    shown = [text for text in re.split(r"(?:\r\x1b\[K|\n)+", result.stderr) if text.endswith(" …")]
    assert shown == ([f"{text} …" for text in working] if on_terminal else [])
    assert result.stderr.endswith("\r\x1b[K" if on_terminal else "\n")  # the line is left empty


def test_a_terminal_gets_some_steps_and_the_last_no_wider_than_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter((100.0, 100.05, 100.2, 100.21))
    monkeypatch.setattr("edgelm_training.cli.live_line.can_redraw", lambda _: True)
    monkeypatch.setattr("edgelm_training.cli.live_line.columns_of_stderr", lambda: 30)
    monkeypatch.setattr("edgelm_training.cli.live_line.time", SimpleNamespace(monotonic=lambda: next(clock)))
    line = LiveLine()

    for step in (10, 11, 12, 2000):
        line.step(replace(RECORD, step=step))
    line.working("what would wipe the last step away")

    shown = capsys.readouterr().err.split("\r\x1b[K")[1:]
    assert [text.partition("/")[0] for text in shown] == ["step 10", "step 12", "step 2000"]
    assert {len(text.rstrip("\n")) for text in shown} == {29}
    assert [text.endswith("\n") for text in shown] == [False, False, True]


def test_a_terminal_gets_one_line_that_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgelm_training.cli.live_line.can_redraw", lambda _: True)
    line = LiveLine()

    line.step(RECORD)
    line.note("step 10: a\x1b[31m\nb")
    line.close()

    shown = capsys.readouterr().err
    assert shown.startswith("\r\x1b[Kstep 10/2000 · loss")
    assert shown.endswith("\r\x1b[Kstep 10: a[31m⏎b\n\r\x1b[K")


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_run_goes_on_where_its_terminal_is_gone(on_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            tried.append(True)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    tried: list[bool] = []
    monkeypatch.setattr("edgelm_training.cli.live_line.can_redraw", lambda _: on_terminal)
    monkeypatch.setattr(sys, "stderr", Gone())
    line = LiveLine()

    line.working("Reading the data")
    line.step(replace(RECORD, step=1))
    line.note("step 1: validation loss 2.5")
    line.close()

    assert tried
