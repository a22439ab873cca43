"""The command `edgelm train`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgelm.cli.output import print_json
from edgelm.cli.wrong_usage import wrong_usage
from edgelm_training.cli.live_line import LiveLine, loading_torch
from edgelm_training.cli.run_command import RunCommand
from edgelm_training.cli.setting_options import given_settings, setting_options
from edgelm_training.runs.launcher import launched_place
from edgelm_training.settings.pretrain_config import PretrainConfig
from edgelm_training.settings.settings import SettingError

if TYPE_CHECKING:
    from edgelm_training.trainer import Outcome

EXAMPLES = """
\b
Examples:
  edgelm train --data shards/ --params 15M -o run/            all else by published scaling rules
  edgelm train small.toml --max-steps 2000 --seed 7           a file of settings; flags win
  edgelm train -o run/ --resume                               go on with a run that was stopped
  edgelm train -o run/ --resume --max-steps 4000              go on for longer
  edgelm train --data shards/ --init ckpt/ -o run/            go on training an imported model
  edgelm plot run/                                            its curves
  edgelm export run/best -o pkg/                              its best checkpoint as a package
  torchrun --nproc-per-node 8 -m edgelm_training.pretrain big.toml

\b
A settings file has the flags' names with _ for -, and a table for the model:
  data = "shards/"
  output = "run/"
  params = "15M"
  max_steps = 2000
  [model]
  qk_norm = true
"""

EXIT_CODES = """
\b
Exit codes: 0 done, 1 an error, 2 wrong usage; 130 (Ctrl-C) and 143 (SIGTERM): stopped, with a checkpoint unless it says
that none was saved.
"""


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what every command that trains can be told of its run."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
    resume = click.option(
        "--resume", is_flag=True, help="Go on from the newest whole checkpoint; begin where none was saved."
    )
    return resume(as_json(command))


@click.command(cls=RunCommand, epilog=EXAMPLES + EXIT_CODES)
@click.argument("toml", required=False, type=click.Path(path_type=Path))
@setting_options(PretrainConfig)
@run_options
def train(toml: Path | None, resume: bool, as_json: bool, **flags: Any) -> None:
    """Train a Transformer on token shards, a new one or on from a checkpoint (--init).

    TOML is a file of settings; each of them is also a flag. Progress goes to standard error and to log.jsonl in the
    run's folder, beside the checkpoints. Ctrl-C and SIGTERM save a checkpoint and leave.
    """
    with wrong_usage():
        settings = given_settings(PretrainConfig, flags, toml, resume=resume)
    with loading_torch():  # here, so that neither --help nor a wrong setting needs it
        from edgelm_training.pretrain import pretrain

    report_run(pretrain, settings, resume=resume, as_json=as_json)


def report_run(recipe: Callable[..., Outcome], settings: Mapping[str, Any], *, resume: bool, as_json: bool) -> None:
    """Train with a recipe (`pretrain` or another), show how it goes on, and print how it ended.

    Raises:
        SystemExit: a signal stopped it, after a checkpoint was saved; 128 and its number.
        click.UsageError: a setting is missing, or refused.
        EdgeLMError: as the recipe.
    """
    rank, _, _ = launched_place()
    live_line = LiveLine() if rank == 0 else None
    try:
        outcome = recipe(settings, resume=resume, reporter=live_line)
    except SettingError as error:
        raise click.UsageError(str(error)) from error
    except (KeyboardInterrupt, SystemExit):  # before the first step, or Ctrl-C twice: else the run ends in order
        if live_line is not None:
            live_line.note("Stopped at once, without saving a checkpoint.")
        raise
    finally:
        if live_line is not None:
            live_line.close()
    if live_line is not None:
        print_outcome(outcome, as_json)
    if outcome.signal is not None:
        raise SystemExit(128 + outcome.signal)


def print_outcome(outcome: Outcome, as_json: bool) -> None:
    """Print how a run ended and where its checkpoints are."""
    best = outcome.best
    if as_json:
        facts = {
            "step": outcome.step,
            "loss": outcome.loss,
            "validation_loss": outcome.checkpoint.validation_loss,
            "checkpoint": str(outcome.checkpoint.path),
            "best_checkpoint": str(best.path) if best is not None else None,
            "best_validation_loss": best.validation_loss if best is not None else None,
            "signal": signal.Signals(outcome.signal).name if outcome.signal is not None else None,
        }
        print_json(facts)
        return
    if outcome.signal is not None:
        click.echo(f"Stopped by {signal.Signals(outcome.signal).name} after step {outcome.step}. Go on with --resume.")
    elif outcome.loss is None:
        click.echo(f"Nothing is left to do: the run has its {outcome.step} steps. For more: --resume --max-steps N.")
    rows = [("checkpoint", outcome.checkpoint), ("best", best)]
    for label, saved in rows:
        if saved is not None:
            loss = saved.validation_loss
            click.echo(f"{label:>10}  {saved.path}" + (f" (validation loss {loss:.4f})" if loss is not None else ""))
