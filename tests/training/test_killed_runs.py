"""Runs killed at random points: what resumes is the run that nothing interrupted, bit for bit.

EDGELM_TEST_KILLS=50 kills that often (docs/results/training.md has what came of it); the default is quick.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from forked_processes import exit_status, fork
from tiny_training_runs import assert_same_run, settings

from edgelm_training.pretrain import pretrain
from edgelm_training.runs.train_log import SilentReporter

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork and SIGKILL are POSIX's")

KILLS = int(os.environ.get("EDGELM_TEST_KILLS", "4"))
KILLS_IN_A_SAVE = max(2, KILLS * 3 // 10)
SEED = int(os.environ.get("EDGELM_TEST_KILLS_SEED", "0"))

# What a save does to the disk.
DISK_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "shutil.rmtree")


class Killer(SilentReporter):
    """Kill this process after a number of steps: some time later, or when it touches the disk for the n-th time."""

    def __init__(self, *, steps: int, seconds: float, events: int | None) -> None:
        self._steps, self._seconds, self._events = steps, seconds, events

    def step(self, record: Any) -> None:
        self._steps -= 1
        if self._steps == 0 and self._events is None:
            threading.Timer(self._seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif self._steps == 0:
            sys.addaudithook(self._count)

    def _count(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count what changes the folder of the checkpoints: that is a save, and nothing else."""
        if event in DISK_EVENTS and "checkpoints" in str(arguments[0]) and is_change(event, arguments):
            self._events -= 1
            if self._events < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    return event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))


def test_a_run_killed_at_random_points_resumes_bit_for_bit(tiny_shards: Path, tmp_path: Path) -> None:
    values = {"max_steps": 6 * KILLS + 10, "save_every": 2, "eval_every": 2, "sample_every": 5}
    pretrain(settings(tiny_shards, tmp_path / "whole", **values))
    dice = random.Random(SEED)
    kinds = [True] * KILLS_IN_A_SAVE + [False] * (KILLS - KILLS_IN_A_SAVE)
    dice.shuffle(kinds)
    run = tmp_path / "killed"
    reached = []

    for in_a_save in kinds:
        killer = Killer(
            steps=dice.randint(1, 8), seconds=dice.uniform(0, 0.05), events=dice.randrange(24) if in_a_save else None
        )

        def train(killer: Killer = killer) -> None:
            pretrain(settings(tiny_shards, run, **values), resume=True, reporter=killer)

        assert exit_status(fork(train)) == -signal.SIGKILL
        log = run / "log.jsonl"
        reached.append(json.loads(log.read_bytes().splitlines()[-1])["step"] if log.exists() else 0)

    assert pretrain(settings(tiny_shards, run, **values), resume=True).step == values["max_steps"]
    assert_same_run(run, tmp_path / "whole")
    # The kills fell all along the way, and nothing half written is left.
    assert len(set(reached)) > KILLS // 2
    assert [path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith("step-")] == []
