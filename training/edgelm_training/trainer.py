"""The training loop: batches in, better weights out, every step on the record and every checkpoint whole.

Step n reads rows (n - 1) · G to n · G - 1 of the data, where G is global_batch_size. Process r of W takes its W-th part
of them, in pieces of at most micro_batch_size rows.

Nothing in a step depends on what happened before it but the weights and the optimizer: data, learning rate and random
numbers are functions of its number. So a run that resumes is the run that was never interrupted, bit for bit where
the device computes alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from edgelm.config import ModelConfig
from edgelm.errors import TrainingError
from edgelm_training.rows.batches import Batch
from edgelm_training.runs.device import Device, emulates_bf16
from edgelm_training.runs.distributed import Workers, blocks, distribute, gradient_sync, whole
from edgelm_training.runs.interruption import Interruption
from edgelm_training.runs.loss import LossSums
from edgelm_training.runs.micro_batches import piece_tokens, split_share
from edgelm_training.runs.optimizer import build_optimizers, group_numbers, refuse_unsaved_state, set_learning_rate
from edgelm_training.runs.recipe import Recipe
from edgelm_training.runs.run_checkpoint import RunState, restore_run, save_run
from edgelm_training.runs.run_folder import RunFolder, SavedStep
from edgelm_training.runs.throughput import peak_flops, peak_memory_bytes
from edgelm_training.runs.train_log import Reporter, StepRecord, TrainLog, open_log
from edgelm_training.settings.schedule import Schedule
from edgelm_training.settings.settings import SettingError
from edgelm_training.settings.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `Trainer.train` ended."""

    step: int
    loss: float | None  # of the last step; None: there was none left to do
    checkpoint: SavedStep
    best: SavedStep | None
    signal: int | None  # that interrupted it


class Trainer:
    """Train a recipe's model in a run folder, after `restore` from its newest checkpoint on.

    config: with every setting that `TrainConfig.known` is asked for: max_steps, sequence_length, global_batch_size,
    learning_rate, warmup_steps.

    Raises:
        ConfigError: the batch cannot be split as asked.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: TrainConfig,
        *,
        run: RunFolder,
        workers: Workers,
        device: Device,
        reporter: Reporter,
    ) -> None:
        if device.precision == "fp16" and config.parallel == "fsdp":
            raise SettingError("precision is 'fp16' and parallel 'fsdp', which do not go together: use 'bf16'.")
        self.recipe, self.config = recipe, config
        self.run, self.workers, self.device, self.reporter = run, workers, device, reporter
        described = getattr(recipe.model, "config", None)
        shape = described if isinstance(described, ModelConfig) else None  # of other models nothing is known
        self._short_context = None if shape is None else shape.short_context
        self.pieces = split_share(config, workers.world_size, piece_tokens(shape, config, device) // recipe.texts_each)
        recipe.model.to(device.device)
        if config.compile:
            # FSDP gathers and frees a block's weights around it, which a graph of the whole model could not contain.
            sharded = config.parallel == "fsdp"
            for module in blocks(recipe.model) if sharded else [recipe.model]:
                module.compile()
        self.model = distribute(recipe.model, config.parallel, workers, device.device)
        self.optimizers = build_optimizers(recipe.model, config)
        self._group_numbers = group_numbers(self.optimizers)
        self._note_what_is_slow()
        self.scaler = device.scaler()
        self.schedule = Schedule(
            shape=config.schedule,
            peak=config.known("learning_rate"),
            warmup_steps=config.known("warmup_steps"),
            max_steps=config.known("max_steps"),
            decay_fraction=config.decay_fraction,
            min_ratio=config.min_learning_rate_ratio,
        )
        flops = recipe.flops_per_token
        peak = peak_flops(device) if flops is not None else None
        # In tokens a second, of all devices.
        self._peak_speed = None if peak is None or flops is None else peak * workers.world_size / flops
        self._state = RunState(recipe=recipe, optimizers=self.optimizers, scaler=self.scaler)
        # Exact enough that the mean does not depend on how the rows were split; Apple's GPUs have no float64.
        self._sum_type = torch.float32 if device.device.type == "mps" else torch.float64
        self._saved: SavedStep | None = None
        self._tokens = 0  # read since the run began
        self._validation: tuple[int, float] | None = None  # step, loss
        self._seconds: list[float] = []

    def _note_what_is_slow(self) -> None:
        if self.config.optimizer == "muon" and emulates_bf16(self.device.device):
            self.reporter.note(
                "muon computes in bfloat16, which this CPU has no instructions for: steps may take many times as long "
                "as with --optimizer adamw."
            )
        if self.device.emulates:
            self.reporter.note(
                f"precision is {self.device.precision}, for which this CPU has no instructions that torch uses: steps "
                "may take many times as long as with --precision fp32."
            )

    def restore(self) -> None:
        """Go on from the run's newest checkpoint, where it has one.

        Raises:
            TrainingError: the data is not that of the checkpoint, or the checkpoint does not fit the model; or another
                edgelm has saved it, or none is whole.
        """
        saved = self.workers.on_main(self.run.to_go_on_from)
        if saved is None:
            return
        if saved.state["data_fingerprint"] != self.recipe.data_fingerprint:
            raise TrainingError(
                f"The data changed since {saved.path} was saved: the run would go on with other texts. Bring the "
                "former data back, or begin another run."
            )
        restore_run(self._state, saved, self.workers)
        self.workers.on_main(lambda: self.run.keep(self.config.keep_last))  # a kill may have come before that
        self.reporter.note(f"Going on after step {saved.step}, from {saved.path}.")
        self._saved = saved
        self._tokens = saved.state.get("tokens", 0)  # earlier versions did not count

    @property
    def is_done(self) -> bool:
        """Whether no step is left to do."""
        return self._saved is not None and self._saved.step >= self.schedule.max_steps

    def train(self) -> Outcome:
        """Train to max_steps, or until a signal asks to stop; a checkpoint of the last step is saved either way.

        Raises:
            TrainingError: a loss is not a number, or the disk is full.
        """
        saved = self._saved
        step = saved.step if saved is not None else 0
        loss = None
        with self._open_log(saved) as log, Interruption(self.reporter.note) as interruption:
            stop = None
            if saved is None and self.config.eval_every:
                self._validate(log, step)  # without it a short run could not tell what it has brought
            while step < self.schedule.max_steps and stop is None:
                step += 1
                record = self._step(step)
                if loss is None:  # at the first step, not hours later at the first checkpoint
                    refuse_unsaved_state(self.optimizers, self._group_numbers)
                loss = record.loss
                self._record(log, record)
                stop = self._agreed_signal(interruption)
                last = step == self.schedule.max_steps or stop is not None
                saves = last or step % self.config.save_every == 0
                self._look(log, step, validate=saves)
                if saves:
                    saved = self._save(log, step)
        assert saved is not None  # a new run has at least one step
        return Outcome(step=step, loss=loss, checkpoint=saved, best=self.workers.on_main(self.run.best), signal=stop)

    @contextlib.contextmanager
    def _open_log(self, saved: SavedStep | None) -> Iterator[TrainLog | None]:
        if not self.workers.is_main:
            yield None
            return
        after = saved.step if saved is not None else -1  # a run that saved nothing measures step 0 anew too
        with open_log(self.run.log_file, after_step=after, tensorboard=self.config.tensorboard) as log:
            yield log

    def _step(self, step: int) -> StepRecord:
        start = time.perf_counter()
        # What a recipe draws (dropout) is a function of seed, step and process.
        torch.manual_seed(random_seed(self.config.seed, step, self.workers.rank))
        learning_rate = self.schedule.learning_rate(step)
        set_learning_rate(self.optimizers, learning_rate)
        batches = [self.recipe.training_rows.batch(first, count) for first, count in self._rows(step)]
        counts = torch.tensor([sum(map(self.recipe.count, batches)), sum(batch.ids_BT.numel() for batch in batches)])
        count, tokens = self.workers.sum(counts.to(self.device.device)).tolist()
        sums, bad_pieces = self._gradients(step, batches, max(count, 1))
        values = self.workers.sum(torch.stack([*sums.values()]))
        reported = dict(zip(sums, (values / max(count, 1)).tolist(), strict=True))
        for name, value in reported.items():
            if not math.isfinite(value):
                self._fail(step, f"The {name} is {value}", bad_pieces)
        grad_norm = self._update()
        # With a scaler a gradient beyond float16 is usual: the step is left out, and the scale made smaller.
        if not math.isfinite(grad_norm) and not self.scaler.is_enabled():
            self._fail(step, f"The norm of the gradient is {grad_norm}", bad_pieces)
        self._tokens += tokens
        seconds = time.perf_counter() - start
        speed = tokens / seconds
        return StepRecord(
            step=step,
            max_steps=self.schedule.max_steps,
            log_every=self.config.log_every,
            loss=reported.pop("loss"),
            reported=reported,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            tokens=self._tokens,
            seconds=seconds,
            tokens_per_second=speed,
            mfu=None if self._peak_speed is None else speed / self._peak_speed,
            memory_bytes=peak_memory_bytes(self.device.device),
            seconds_left=self._seconds_left(step, seconds),
        )

    def _rows(self, step: int) -> list[tuple[int, int]]:
        """Return the pieces (first row, count) of this process's share of a step."""
        share = self.config.known("global_batch_size") // self.workers.world_size
        first = (step - 1) * self.config.known("global_batch_size") + self.workers.rank * share
        size = share // self.pieces
        return [(first + piece * size, size) for piece in range(self.pieces)]

    def _gradients(self, step: int, batches: list[Batch], count: int) -> tuple[dict[str, Tensor], list[int]]:
        """Add up the gradients of the mean loss over all processes; return sums, and the pieces whose loss is bad."""
        self.model.train()
        sums: dict[str, Tensor] = {}
        objectives = []
        for number, batch in enumerate(batches):
            self.reporter.working(f"step {step}/{self.schedule.max_steps}, piece {number + 1} of {len(batches)}")
            with gradient_sync(self.model, enabled=number == len(batches) - 1):
                loss = self._loss(batch)
                # The processes' gradients are averaged, so each counts world_size times.
                scaled = self.scaler.scale(loss.objective * (self.workers.world_size / count))
                scaled.backward()
            objectives.append(loss.objective.detach())
            for name, value in loss.reported.items():
                sums[name] = sums.get(name, 0) + value.to(self._sum_type)
        bad = [number for number, value in enumerate(torch.stack(objectives).tolist()) if not math.isfinite(value)]
        return sums, bad

    def _loss(self, batch: Batch) -> LossSums:
        with self.device.autocast():
            return self.recipe.loss(self.model, batch.to(self.device.device, short_context=self._short_context))

    def _update(self) -> float:
        """Clip the gradients, take the optimizers' step, and return the norm that the gradients had.

        Where that is no number, no optimizer takes a step: a scaler by itself would hold back only those whose own
        gradients are beyond float16, and clipping has made zeros or NaN of the others'.
        """
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        parameters = [parameter for parameter in self.recipe.model.parameters() if parameter.grad is not None]
        limit = self.config.grad_clip or math.inf
        grad_norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, limit)))
        for optimizer in self.optimizers:
            if math.isfinite(grad_norm):
                self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        return grad_norm

    def _fail(self, step: int, what: str, bad_pieces: list[int]) -> None:
        pieces = self._rows(step)
        rows = [row for piece in bad_pieces for row in range(pieces[piece][0], sum(pieces[piece]))]
        bad_rows = [row for process in self.workers.gather(rows) for row in process]
        if not bad_rows:
            G = self.config.known("global_batch_size")
            bad_rows = list(range((step - 1) * G, step * G))
        rows_of_data = self.recipe.training_rows
        documents = dict.fromkeys(rows_of_data.describe(row) for row in bad_rows)
        self._stop(
            f"{what} at step {step}. The documents of the batch: {'; '.join(documents)}.",
            "Look at these documents, lower --learning-rate or --grad-clip, and go on with --resume.",
        )

    def _stop(self, what: str, way_out: str) -> None:
        """End a run whose weights give no numbers, and say from where it can go on."""

        def fail() -> None:
            newest = self.run.newest()
            saved = f"The last good checkpoint: {newest.path}." if newest else "No checkpoint was saved yet."
            message = f"{what} {saved} {way_out}"
            if newest is not None and self._saved is not None and newest.step == self._saved.step:
                message += (
                    " The run has just gone on from there: if it fails so again, remove that folder, and it goes on "
                    "from the checkpoint before, or begins anew."
                )
            raise TrainingError(message)

        self.workers.on_main(fail)

    def _agreed_signal(self, interruption: Interruption) -> int | None:
        """Return the signal that any process got, so that all stop at the same step."""
        if self.workers.world_size == 1:
            return interruption.signal
        got = torch.zeros(self.workers.world_size, dtype=torch.int64, device=self.device.device)
        got[self.workers.rank] = interruption.signal or 0
        return int(self.workers.sum(got).max()) or None

    def _record(self, log: TrainLog | None, record: StepRecord) -> None:
        if log is not None:
            log.write(record.to_json())
            self.reporter.step(record)

    def _look(self, log: TrainLog | None, step: int, *, validate: bool) -> None:
        """Measure the validation loss and write samples, where the step has them."""
        config = self.config
        if config.eval_every and (validate or step % config.eval_every == 0):
            self._validate(log, step)
        ends = step == self.schedule.max_steps
        if self.recipe.sample is not None and config.sample_every and (ends or step % config.sample_every == 0):
            self.recipe.model.eval()
            samples = self.recipe.sample(step)
            for sample in samples if log is not None else ():
                log.write({"step": step, "prompt": sample.prompt, "sample": sample.text})  # type: ignore[union-attr]
                self.reporter.note(f"step {step}: {sample.prompt}▸{sample.text}")

    def _validate(self, log: TrainLog | None, step: int) -> None:
        if self.recipe.validation_rows is None:
            return
        self.reporter.working(f"step {step}: validating")
        loss = self.validation_loss()
        if not math.isfinite(loss):
            self._stop(
                f"The validation loss is {loss} after step {step}.",
                "Lower --learning-rate or --grad-clip, and go on with --resume."
                if step
                else "So it is before anything was learned: look at the model, or choose another --precision.",
            )
        self._validation = step, loss
        if log is not None:
            log.write({"step": step, "validation_loss": loss})
            self.reporter.note(f"step {step}: validation loss {loss:.4f}")

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Return the mean loss on the first eval_rows rows of the validation data, shared among the processes."""
        rows = self.recipe.validation_rows
        assert rows is not None  # the caller has looked
        count = min(self.config.eval_rows, rows.rows_per_epoch)
        size = max(1, min(count // self.workers.world_size, self._rows(1)[0][1]))
        pieces = [(first, min(size, count - first)) for first in range(0, count, size)]
        self.model.eval()
        totals = torch.zeros(2, dtype=self._sum_type, device=self.device.device)
        rank, world_size = self.workers.rank, self.workers.world_size
        for turn in range(0, len(pieces), world_size):
            # Every process takes part in each turn, since FSDP gathers weights then; without a piece it counts nothing.
            mine = turn + rank < len(pieces)
            batch = rows.batch(*pieces[turn + rank if mine else 0])
            loss = self._loss(batch).reported["loss"]
            if mine:
                totals += torch.stack([loss.to(self._sum_type), totals.new_tensor(self.recipe.count(batch))])
        total, units = self.workers.sum(totals).tolist()
        return total / max(units, 1)

    @cached_property
    def _validated_on(self) -> str | None:
        """A hash of the rows that are validated on, by which a run tells losses that compare from others."""
        rows, digest = self.recipe.validation_rows, hashlib.sha256()
        for row in range(min(self.config.eval_rows, rows.rows_per_epoch) if rows is not None else 0):
            batch = rows.batch(row, 1)  # type: ignore[union-attr]
            for part in (batch.ids_BT, batch.targets_BT):
                digest.update(part.numpy().tobytes())
        return None if rows is None else digest.hexdigest()

    def _save(self, log: TrainLog | None, step: int) -> SavedStep:
        if log is not None:
            log.sync()
        measured = self._validation[1] if self._validation is not None and self._validation[0] == step else None
        numbers = {
            "step": step,
            "next_row": step * self.config.known("global_batch_size"),
            "tokens": self._tokens,
            "validation_loss": measured,
            "validated_on": None if measured is None else self._validated_on,
            "data_fingerprint": self.recipe.data_fingerprint,
        }
        save_run(self._state, self.run, numbers, self.workers)

        def finish() -> SavedStep:
            self.run.keep(self.config.keep_last)
            saved = self.run.newest()
            assert saved is not None  # it was just written
            return saved

        return self.workers.on_main(finish)

    def _seconds_left(self, step: int, seconds: float) -> float:
        """Estimate from the last steps; the first of a run is slower than those that follow."""
        self._seconds = [*self._seconds[-19:], seconds]
        typical = sorted(self._seconds)[len(self._seconds) // 2]
        return typical * (self.schedule.max_steps - step)


def random_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of all that a process draws in a step."""
    digest = hashlib.sha256(f"edgelm step {seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
