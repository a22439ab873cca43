"""Runs of the tiny model for tests: their settings, and what two equal runs have in common."""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forked_processes import exit_status, fork
from safetensors.torch import load_file

from edgelm_training.adaptation.lora import LoraLinear, linear_names, quantize_linear
from edgelm_training.checkpoints.adapter import read_adapter
from edgelm_training.model import Transformer
from edgelm_training.runs.train_log import Reporter, SilentReporter, StepRecord, read_log
from edgelm_training.trainer import Outcome

_MEASURED = ("seconds", "tokens_per_second", "mfu", "memory_bytes")  # what two runs of one kind differ in
MODEL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}


def settings(shards: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Return the settings of a run of 8 steps of 4 rows, in float32 on one thread."""
    values = {
        "data": str(shards),
        "output": str(output),
        "model": MODEL,
        "max_steps": 8,
        "global_batch_size": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "save_every": 2,
        "eval_rows": 2,
        "sample_every": 3,
        "sample_tokens": 3,
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
        "tensorboard": False,
    }
    return values | changes


def loss_log(run: Path) -> list[dict[str, Any]]:
    """Return a run's log without what a clock or the memory decides."""
    return [
        {key: value for key, value in entry.items() if key not in _MEASURED} for entry in read_log(run / "log.jsonl")
    ]


def losses(run: Path) -> list[float]:
    """Return the loss of each step."""
    return [entry["loss"] for entry in loss_log(run) if "loss" in entry]


def saved_tensors(run: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a run's newest checkpoint, of model or adapter and optimizer."""
    folder = run / "latest"
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    for path in sorted((folder / "trainer").glob("*.safetensors")):
        tensors |= {f"trainer {name}": tensor for name, tensor in load_file(path).items()}
    return tensors


def assert_same_run(run: Path, other: Path) -> None:
    """Check that two runs are equal bit for bit: log, weights, optimizer and numbers."""
    assert loss_log(run) == loss_log(other)
    ours, theirs = saved_tensors(run), saved_tensors(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    states = [json.loads((folder / "latest/trainer/state.json").read_text()) for folder in (run, other)]
    assert states[0] == states[1]


class StopAt(SilentReporter):
    """Send this process SIGTERM at a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, record: StepRecord) -> None:
        if record.step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_at(step: int, train: Callable[[Reporter], Outcome]) -> None:
    """Train until a signal stops it after a step."""
    outcome = train(StopAt(step))
    assert (outcome.step, outcome.signal) == (step, signal.SIGTERM)


def assert_same_run_but_for_extra_saves(run: Path, other: Path, stopped_at: int) -> None:
    """A stop saves a checkpoint, and so measures a validation loss, that the other run has not."""
    log = run / "log.jsonl"
    kept = [line for line in log.read_text().splitlines() if not _is_extra(json.loads(line), stopped_at)]
    log.write_text("\n".join(kept) + "\n")
    assert_same_run(run, other)


def _is_extra(entry: dict[str, Any], stopped_at: int) -> bool:
    return entry["step"] == stopped_at and "validation_loss" in entry


def finetune_settings(model: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Return the settings of a fine-tuning of 8 steps of 4 rows, in float32 on one thread."""
    values = {
        "model": str(model),
        "data": (str(data),),
        "output": str(output),
        "max_steps": 8,
        "global_batch_size": 4,
        "learning_rate": 5e-3,
        "rank": 4,
        "save_every": 2,
        "eval_every": 2,
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
        "tensorboard": False,
    }
    return values | changes


def assert_a_signal_saves(number: signal.Signals, module: str, toml: Path, run: Path) -> int:
    """Send a signal to a training program in its midst; check that it saves and leaves, and return the step."""
    outputs = [run.with_name(name) for name in ("stdout", "stderr")]

    def train() -> None:
        sys.stdout, sys.stderr = (path.open("w", encoding="utf-8") for path in outputs)
        sys.argv[1:] = [str(toml), "--max-steps", "100000", "--save-every", "100000", "--eval-every", "0"]
        runpy.run_module(module, run_name="__main__")  # as `python -m` does

    child = fork(train)
    log = run / "log.jsonl"
    while not (log.exists() and log.stat().st_size > 300):
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    os.kill(child, number)
    status = exit_status(child)
    stdout, stderr = (path.read_text(encoding="utf-8") for path in outputs)

    assert status == 128 + number
    assert stderr.count("Ending after this step, with a checkpoint. Ctrl-C again ends without one") == 1
    step: int = loss_log(run)[-1]["step"]
    assert stdout.startswith(f"Stopped by {number.name} after step {step}. Go on with --resume.")
    assert (run / "latest").resolve().name == f"step-{step:08d}"
    return step


def put_adapter_on(model: Transformer, folder: Path) -> None:
    """Put a saved adapter on the model that it was trained on, as while it learned; a base in 4 bits on its grid."""
    adapter = read_adapter(folder)
    for name in linear_names(model) if adapter.base.grid is not None else ():
        quantize_linear(model, name)
    for name, (a, b) in adapter.matrices.items():
        layer = LoraLinear(model.get_submodule(name), len(a), adapter.scales[name])  # type: ignore[arg-type]
        with torch.no_grad():
            layer.lora_A.weight.copy_(a)
            layer.lora_B.weight.copy_(b)
        model.set_submodule(name, layer)
