"""Training speed and memory: edgelm beside a plain loop and transformers' Trainer, on one Llama of 8M parameters.

    python benchmarks/training.py                  a few minutes; prints a table, and writes what --output names
    python benchmarks/training.py --steps 6 --rounds 1
    python benchmarks/training.py --compile        all three with torch.compile

Each contestant trains the same weights on the same batches (bytes of Python's language reference) in the same
precision with the same fused AdamW, in a process of its own; rounds are interleaved, and the first steps do not count.
"""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import click
import torch
from torch.nn import functional

from edgelm.config import ModelConfig
from edgelm_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from edgelm_training.model import Transformer
from edgelm_training.rows.batches import Batch
from edgelm_training.runs.device import choose_device
from edgelm_training.runs.distributed import Workers
from edgelm_training.runs.loss import next_token_loss
from edgelm_training.runs.recipe import Recipe
from edgelm_training.runs.run_folder import RunFolder
from edgelm_training.runs.train_log import SilentReporter, StepRecord
from edgelm_training.settings.train_config import TrainConfig
from edgelm_training.trainer import Trainer
from machine import command, describe_machine

ROWS, LENGTH, WARM_UP_STEPS, RATE = 8, 256, 3, 1e-3
MODEL = ModelConfig(
    model_type="llama",
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=LENGTH,
    tie_word_embeddings=True,
)


class TextRows:
    """Rows of the text in order, each one document."""

    def __init__(self) -> None:
        self._ids = torch.tensor(list("\n".join(topics.values()).encode()))
        self.rows_per_epoch = len(self._ids) // LENGTH - 1

    def batch(self, first: int, count: int) -> Batch:
        starts = [(row % self.rows_per_epoch) * LENGTH for row in range(first, first + count)]
        rows = torch.stack([self._ids[start : start + LENGTH + 1] for start in starts])
        documents = torch.zeros(count, LENGTH, dtype=torch.int64)
        return Batch(ids_BT=rows[:, :-1], targets_BT=rows[:, 1:], documents_BT=documents)

    def describe(self, row: int) -> str:
        return f"row {row}"


@dataclass
class Measured:
    """What a contestant did: when each step ended (on the clock, and in this process's time), and its loss."""

    ends: list[tuple[float, float]]
    losses: list[float]


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def edgelm_trainer(checkpoint: Path, steps: int, precision: str, compiled: bool, folder: Path) -> Measured:
    measured = Measured(ends=[], losses=[])

    class Stopwatch(SilentReporter):
        def step(self, record: StepRecord) -> None:
            measured.ends.append(now())
            measured.losses.append(record.loss)

    config = TrainConfig(
        max_steps=steps, sequence_length=LENGTH, global_batch_size=ROWS, learning_rate=RATE, warmup_steps=0,
        schedule="constant", save_every=steps, precision=precision, tensorboard=False, device="cpu",
        threads=torch.get_num_threads(), compile=compiled,
    )  # fmt: skip
    recipe = Recipe(
        model=load_checkpoint(checkpoint),
        loss=next_token_loss,
        training_rows=TextRows(),
        validation_rows=None,
        data_fingerprint="",
        write_weights=lambda *_: None,
    )
    device = choose_device(config)
    run = RunFolder(folder / "run")
    run.open(resume=False)
    run.path.mkdir()
    Trainer(recipe, config, run=run, workers=Workers(), device=device, reporter=Stopwatch()).train()
    return measured


def plain_loop(checkpoint: Path, steps: int, precision: str, compiled: bool, _folder: Path) -> Measured:
    """As in nanoGPT's train.py: autocast, backward, clip, fused AdamW."""
    model, rows = load_checkpoint(checkpoint), TextRows()
    measured = Measured(ends=[], losses=[])
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)
    model.train()
    if compiled:
        model.compile()
    for step in range(steps):
        batch = rows.batch(step * ROWS, ROWS)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(batch.ids_BT)
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets_BT.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        measured.losses.append(loss.item())
        measured.ends.append(now())
    return measured


def transformers_trainer(checkpoint: Path, steps: int, precision: str, compiled: bool, folder: Path) -> Measured:
    import transformers

    measured = Measured(ends=[], losses=[])

    class Data(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[dict[str, Any]]:
            rows = TextRows()
            for row in range(steps * ROWS):
                batch = rows.batch(row, 1)
                targets_T = batch.targets_BT[0]
                # The model's own shift would leave the last token of each row without a target.
                yield {"input_ids": batch.ids_BT[0], "labels": targets_T, "shift_labels": targets_T}

    class Stopwatch(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            measured.ends.append(now())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                measured.losses.append(logs["loss"])

    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=ROWS, max_steps=steps, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.1, adam_beta2=0.95, optim="adamw_torch_fused", max_grad_norm=1.0,
        bf16=precision == "bf16", use_cpu=True, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
        remove_unused_columns=False, torch_compile=compiled,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    transformers.Trainer(model, arguments, train_dataset=Data(), callbacks=[Stopwatch()]).train()
    return measured


CONTESTANTS: dict[str, Callable[[Path, int, str, bool, Path], Measured]] = {
    "edgelm": edgelm_trainer,
    "plain loop": plain_loop,
    "transformers' Trainer": transformers_trainer,
}


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--steps", type=click.IntRange(min=WARM_UP_STEPS + 1), default=20, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Compile each model with torch.compile.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the losses of all over each other.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write all figures as JSON.")
@click.option("--worker", type=click.Choice(list(CONTESTANTS)), hidden=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), hidden=True)
def main(
    rounds: int, steps: int, threads: int, precision: str, compiled: bool, picture: Path | None, output: Path | None,
    worker: str | None, checkpoint: Path,
) -> None:  # fmt: skip
    """Measure training beside a plain loop and transformers' Trainer."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if worker is not None:
            measured = CONTESTANTS[worker](checkpoint, steps, precision, compiled, Path(folder))
            if len(measured.ends) != steps:
                raise click.ClickException(f"{worker} took {len(measured.ends)} of {steps} steps.")
            print(json.dumps(_figures(measured)))
            return
        torch.manual_seed(0)
        save_checkpoint(Transformer(MODEL), Path(folder) / "checkpoint")
        options = [
            "--steps",
            steps,
            "--threads",
            threads,
            "--precision",
            precision,
            *(["--compile"] if compiled else []),
        ]
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
        for _ in range(rounds):
            for name, runs in results.items():
                worker_command = [sys.executable, __file__, "--worker", name]
                worker_command += ["--checkpoint", Path(folder) / "checkpoint", *options]
                done = subprocess.run([*map(str, worker_command)], stdout=subprocess.PIPE, text=True, check=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
    _report(results, output)
    if picture is not None:
        _draw_losses(results, picture)


def _figures(measured: Measured) -> dict[str, Any]:
    steps = list(itertools.pairwise(measured.ends[WARM_UP_STEPS - 1 :]))
    return {
        "tokens_per_second": ROWS * LENGTH / statistics.median(end[0] - start[0] for start, end in steps),
        # Of all threads; where others use the machine too, this says more than the clock.
        "tokens_per_cpu_second": ROWS * LENGTH / statistics.median(end[1] - start[1] for start, end in steps),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": measured.losses,
    }


def _report(results: dict[str, list[dict[str, Any]]], output: Path | None) -> None:
    ours = results["edgelm"]
    print(f"{'':>22} tokens/s   edgelm against it (each round)   tokens/CPU s   peak memory   last loss")
    for name, runs in results.items():
        speed = statistics.median(run["tokens_per_second"] for run in runs)
        ratios = [us["tokens_per_second"] / it["tokens_per_second"] for us, it in zip(ours, runs, strict=True)]
        shown = f"{statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
        cpu_speed = statistics.median(run["tokens_per_cpu_second"] for run in runs)
        memory = statistics.median(run["peak_memory_bytes"] for run in runs) / 1e6
        print(f"{name:>22} {speed:8.0f}   {shown:<31}{cpu_speed:12.0f}{memory:10.0f} MB   {runs[-1]['losses'][-1]:.4f}")
    if output is not None:
        facts = {"command": command(), "machine": describe_machine()}
        output.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


def _draw_losses(results: dict[str, list[dict[str, Any]]], picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, runs), style in zip(results.items(), ("-", "--", ":"), strict=True):
        losses = runs[0]["losses"]
        axes.plot(range(1, len(losses) + 1), losses, style, label=name, linewidth=2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
