"""The command `edgelm finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgelm.cli.wrong_usage import wrong_usage
from edgelm_training.cli.live_line import loading_torch
from edgelm_training.cli.run_command import RunCommand
from edgelm_training.cli.setting_options import given_settings, setting_options, toml_or_folder
from edgelm_training.cli.train import EXIT_CODES, report_run, run_options
from edgelm_training.settings.finetune_config import FinetuneConfig

EXAMPLES = """
\b
Examples:
  edgelm import smollm2-135m-instruct -o ckpt/                  a model to start from
  edgelm finetune ckpt/ --data chats.jsonl -o ft/               an adapter (LoRA) learns from conversations
  edgelm finetune ckpt/ --data chats.jsonl --method sft -o ft/  the whole model learns
  edgelm finetune ckpt/ --data pairs.jsonl --method dpo -o ft/  from preferences
  edgelm finetune ft.toml --learning-rate 1e-4                  a file of settings; flags win
  edgelm finetune -o ft/ --resume                               go on with a run that was stopped
  edgelm plot ft/                                               its curves
  edgelm merge ft/ -o merged/                                   its best adapter and the base, as one checkpoint
  edgelm export merged/ -o pkg/                                 which becomes a package
  torchrun --nproc-per-node 8 -m edgelm_training.finetune ft.toml

\b
Methods:
  sft    the whole model learns                                 learning rate 2e-5, 3 epochs
  lora   an adapter learns beside the frozen model              2e-4, 3 epochs
  qlora  the same, and the frozen model is in 4 bits            2e-4, 3 epochs
  dpo    an adapter learns which of two answers is better       1e-5, 1 epoch

\b
Conversations are lines such as
  {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
in OpenAI's, ShareGPT's or Alpaca's form, or {"prompt": …, "completion": …}; preferences
  {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
"""


@click.command(cls=RunCommand, epilog=EXAMPLES + EXIT_CODES)
@click.argument("source", required=False, metavar="[MODEL|TOML]", type=click.Path(path_type=Path))
@setting_options(FinetuneConfig)
@run_options
def finetune(source: Path | None, resume: bool, as_json: bool, **flags: Any) -> None:
    """Fine-tune a model on conversations or preferences.

    MODEL is a checkpoint folder, TOML a file of settings; each of them is also a flag. The loss is on what the
    assistant says. Progress goes to standard error and to log.jsonl in the run's folder, beside the checkpoints.
    Ctrl-C and SIGTERM save a checkpoint and leave.
    """
    toml = toml_or_folder(source, flags, "model", "model")
    with wrong_usage():
        settings = given_settings(FinetuneConfig, flags, toml, resume=resume)
    with loading_torch():  # here, so that neither --help nor a wrong setting needs it
        from edgelm_training.finetune import finetune as run_finetune

    report_run(run_finetune, settings, resume=resume, as_json=as_json)
