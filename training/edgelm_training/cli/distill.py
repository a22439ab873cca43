"""The command `edgelm distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgelm.cli.wrong_usage import wrong_usage
from edgelm_training.cli.live_line import loading_torch
from edgelm_training.cli.run_command import RunCommand
from edgelm_training.cli.setting_options import given_settings, setting_options, toml_or_folder
from edgelm_training.cli.train import EXIT_CODES, report_run, run_options
from edgelm_training.settings.distill_config import DistillConfig

EXAMPLES = """
\b
Examples:
  edgelm distill student/ --teacher teacher/ --data shards/ -o out/      a small checkpoint learns from a large one
  edgelm distill --params 15M --teacher teacher/ --data shards/ -o out/  a new model does
  edgelm distill ckpt/ --teacher ckpt/ --data shards/ --qat int4 --teacher-weight 1 --teacher-temperature 1 -o out/
  edgelm distill distill.toml --learning-rate 1e-4                       a file of settings; flags win
  edgelm distill -o out/ --resume                                        go on with a run that was stopped
  edgelm eval out/best --data held-out.txt                               what came of it
  torchrun --nproc-per-node 8 -m edgelm_training.distill distill.toml
"""


@click.command(cls=RunCommand, epilog=EXAMPLES + EXIT_CODES)
@click.argument("source", required=False, metavar="[STUDENT|TOML]", type=click.Path(path_type=Path))
@setting_options(DistillConfig)
@run_options
def distill(source: Path | None, resume: bool, as_json: bool, **flags: Any) -> None:
    """Let a student learn what a teacher predicts on the texts of a corpus.

    STUDENT is a checkpoint folder, TOML a file of settings; each of them is also a flag. Both models have the tokenizer
    of the shards. Progress goes to standard error and to log.jsonl in the run's folder, beside the checkpoints. Ctrl-C
    and SIGTERM save a checkpoint and leave.
    """
    toml = toml_or_folder(source, flags, "init", "student")
    with wrong_usage():
        settings = given_settings(DistillConfig, flags, toml, resume=resume)
    with loading_torch():  # here, so that neither --help nor a wrong setting needs it
        from edgelm_training.distill import distill as run_distill

    report_run(run_distill, settings, resume=resume, as_json=as_json)
