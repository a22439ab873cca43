"""The measurements: interleaved rounds of all runtimes, starts of fresh processes, perplexities."""

from __future__ import annotations

import contextlib
import math
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from contestants import Contestant
from prepare import CACHE, size_on_disk
from weights import weight_bytes
from worker import Worker
from workload import THREADS, Effort, Text, Workload

# ONNX Runtime's and OpenMP's threads spin for some milliseconds after their last work.
_PAUSE_SECONDS = 0.2
_IMPORT = "import time; start = time.perf_counter(); import edgelm; print(time.perf_counter() - start)"


class Benchmark:
    """Measure some contestants with their models in one folder.

    Every result is by contestant's name; times are in seconds, memory in bytes.
    """

    def __init__(self, contestants: Sequence[Contestant], models: Path, text: Text, effort: Effort) -> None:
        self._contestants, self._models, self._text, self._effort = contestants, models, text, effort
        self._timed = [contestant for contestant in contestants if contestant.timed]

    def rounds(self, *, huge_pages: bool) -> tuple[dict[str, dict[str, Any]], list[float]]:
        """Round after round, load all runtimes, then let each generate in turn: only one computes at a time.

        Where a process's memory lies makes its steps up to a tenth slower or faster, so each round has new processes,
        and begins with another runtime: the first gets what the last round's processes gave back, page by page.

        Returns what was measured of each, and the bytes a second that were read from memory in each round.
        """
        label = "all on huge pages" if huge_pages else "none on huge pages"
        first, *_ = self._effort.workloads
        memory: dict[str, list[dict[str, int]]] = defaultdict(list)
        generated: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        bandwidths = []
        for number in range(self._effort.rounds):
            click.echo(f"Round {number + 1} of {self._effort.rounds}, {label} ...", err=True)
            with contextlib.ExitStack() as stack:
                workers = []
                for contestant in in_turn(self._timed, number, self._effort.rounds):
                    worker = stack.enter_context(self._worker(contestant, huge_pages=huge_pages))
                    if huge_pages:
                        worker.ask("collapse")
                    self._generate(worker, first)  # fills every buffer, before any time counts
                    if huge_pages:
                        worker.ask("collapse")  # what that run allocated
                    memory[worker.name].append(worker.ask("memory"))
                    workers.append(worker)
                time.sleep(_PAUSE_SECONDS)
                bandwidths.append(_read_bandwidth())
                for workload in self._effort.workloads:
                    for worker in workers:
                        time.sleep(_PAUSE_SECONDS)
                        generated[worker.name][workload.name].append(self._generate(worker, workload))
        return {name: {**_medians(memory[name]), "workloads": generated[name]} for name in generated}, bandwidths

    def _generate(self, worker: Worker, workload: Workload) -> dict[str, Any]:
        prompt_ids = self._text.prompts[workload.name]
        answer, noise = worker.ask_watched("generate", prompt_ids=prompt_ids, new_tokens=workload.new_tokens)
        token_ids, steps, python = answer["token_ids"], answer["steps"], answer["python"]
        if len(token_ids) != workload.new_tokens:
            raise click.ClickException(f"{worker.name} gave {len(token_ids)} of {workload.new_tokens} tokens.")
        return {
            "first_token": answer["first_token"],
            "step_median": statistics.median(steps),
            "step_mean": statistics.fmean(steps),
            "python_median": None if python is None else statistics.median(python),
            "others_cpus": noise,
            "first_tokens": token_ids[:8],
        }

    def starts(self) -> dict[str, dict[str, list[float]]]:
        """Measure the import and the load of each runtime in fresh processes, interleaved; files are in the cache."""
        results: dict[str, dict[str, list[float]]] = {}
        for number in range(self._effort.starts):
            click.echo(f"Start {number + 1} of {self._effort.starts} ...", err=True)
            for contestant in self._timed:
                with self._worker(contestant, huge_pages=False) as worker:
                    for name, seconds in worker.start.items():
                        results.setdefault(contestant.name, {}).setdefault(name, []).append(seconds)
                time.sleep(_PAUSE_SECONDS)
        return results

    def perplexities(self) -> dict[str, float]:
        """Score the same tokens with every runtime, in a process of its own; nothing where no text is scored."""
        results: dict[str, float] = {}
        if not self._text.windows:
            return results
        for contestant in self._contestants:
            click.echo(f"Perplexity of {contestant.label} ...", err=True)
            with self._worker(contestant, huge_pages=False, scored=True) as worker:
                total = sum(worker.ask("log_likelihood", ids=ids)["log_likelihood"] for ids in self._text.windows)
            results[contestant.name] = math.exp(-total / self.scored_tokens)
        return results

    @property
    def scored_tokens(self) -> int:
        """Count the tokens that have a probability: all but the first of each window."""
        return sum(len(ids) - 1 for ids in self._text.windows)

    def sizes(self) -> dict[str, int]:
        return {contestant.name: size_on_disk(self._models / contestant.model) for contestant in self._contestants}

    def weights(self) -> dict[str, int]:
        """Count the bytes of weights that a step of each runtime reads."""
        return {contestant.name: weight_bytes(self._models / contestant.model) for contestant in self._timed}

    def _worker(self, contestant: Contestant, *, huge_pages: bool, scored: bool = False) -> Worker:
        model = contestant.scored_model if scored and contestant.scored_model else contestant.model
        log = CACHE / "logs" / f"{contestant.name}.log"
        return Worker(contestant, self._models / model, huge_pages=huge_pages, log=log)


def in_turn(contestants: Sequence[Contestant], number: int, rounds: int) -> list[Contestant]:
    """Order the contestants of one round, so that over all rounds each is about as often among the first."""
    first = number * len(contestants) // rounds
    return [*contestants[first:], *contestants[:first]]


def _read_bandwidth() -> float:
    """Measure it in a process of its own: a runtime's would be slower afterwards."""
    command = [sys.executable, "-c", f"from edgelm.speed import read_bandwidth; print(read_bandwidth({THREADS}))"]
    return float(subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout)


def _medians(rows: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: statistics.median_low(row[name] for row in rows) for name in rows[0]}


def import_seconds(count: int) -> list[float]:
    """Measure `import edgelm` in fresh processes."""
    command = [sys.executable, "-c", _IMPORT]
    outputs = (subprocess.run(command, capture_output=True, encoding="utf-8", check=True) for _ in range(count))
    return [float(output.stdout) for output in outputs]
