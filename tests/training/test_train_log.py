"""The log of a run: what reaches the disk, and where it is cut off when a run goes on."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from edgelm.errors import TrainingError
from edgelm_training.runs.train_log import StepRecord, TrainLog, open_log


@pytest.mark.parametrize("name", ["step", "tokens", "validation_loss"])
def test_a_figure_of_a_recipe_does_not_replace_one_of_the_log(name: str) -> None:
    record = StepRecord(
        step=3, max_steps=8, log_every=1, loss=2.5, reported={"z_loss": 0.5, name: 7.0}, learning_rate=0.1,
        grad_norm=1.0, tokens=64, seconds=1.0, tokens_per_second=64.0, mfu=None, memory_bytes=None, seconds_left=5.0,
    )  # fmt: skip
    with pytest.raises(TrainingError, match=rf"reports '{name}', which the log has already"):
        record.to_json()
    assert replace(record, reported={"z_loss": 0.5}).to_json() == {
        "step": 3, "loss": 2.5, "z_loss": 0.5, "learning_rate": 0.1, "grad_norm": 1.0, "tokens": 64, "seconds": 1.0,
        "tokens_per_second": 64.0, "mfu": None, "memory_bytes": None,
    }  # fmt: skip


def test_a_full_disk_under_the_log_is_an_error() -> None:
    log = TrainLog(Path("/dev/full"), None)
    with pytest.raises(TrainingError, match=r"Cannot write /dev/full: .*No space left on device.*--resume"):
        log.write({"step": 1})
    log.close()  # what could not be written was said


def test_a_log_that_does_not_reach_the_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        open_log(tmp_path / "log.jsonl", after_step=0, tensorboard=False) as log,
        pytest.raises(TrainingError, match=r"Cannot write .*log\.jsonl: .*No space left on device.*--resume"),
    ):
        log.sync()


def test_a_log_is_cut_off_behind_the_step_that_is_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')

    with open_log(path, after_step=2, tensorboard=False) as log:
        log.write({"step": 3, "loss": 1.0})

    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.0}\n'


def test_tensorboard_forgets_the_steps_that_are_trained_anew(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for after_step, written in ((0, {1: 4.0, 2: 3.0, 3: 2.0}), (1, {2: 2.5})):
        with open_log(tmp_path / "log.jsonl", after_step=after_step, tensorboard=True) as log:
            for step, loss in written.items():
                log.write({"step": step, "loss": loss})

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 4.0), (2, 2.5)]


def test_tensorboard_gets_the_figures_and_the_samples(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with open_log(tmp_path / "log.jsonl", after_step=0, tensorboard=True) as log:
        log.write({"step": 1, "loss": 2.5})
        log.write({"step": 1, "prompt": "The sea", "sample": " is blue."})
        log.sync()

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.5)]
    assert events.Tensors("sample/text_summary")[0].tensor_proto.string_val == [b"The sea is blue."]
