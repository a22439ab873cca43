"""The command `edgelm inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from edgelm.cli.generation_options import threads_option
from edgelm.cli.output import clean_text, piped_lines
from edgelm.cli.progress import status
from edgelm.errors import CheckpointError, ConfigError

EXAMPLES = """
\b
Examples:
  edgelm inspect run/best "The sea is blue because"            writes inspection.html
  edgelm inspect ckpt/ "Once upon a time" -o time.html
  edgelm inspect ckpt/ - < poem.txt                            a text from standard input
  edgelm import smollm2-135m-instruct -o ckpt/                 makes a checkpoint folder of a downloaded model
"""


@click.command(epilog=EXAMPLES)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("text")
@click.option(
    "-o", "--output", default="inspection.html", show_default=True, type=click.Path(path_type=Path), help="The page."
)
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens of the text.")
@click.option(
    "--guesses", type=click.IntRange(min=1), default=10, show_default=True, help="Likely tokens for each place."
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@threads_option
def inspect(
    model: Path, text: str, output: Path, max_tokens: int, guesses: int, device: str, threads: int | None
) -> None:
    """Show what a model does with a text, as one HTML page.

    MODEL is a checkpoint folder. The page shows the text's tokens, how expected each was and what the model thought
    likelier, the attention of every head, and the length of the residual stream. It is one file that loads nothing.
    """
    # Imported here, so that --help needs no torch.
    from edgelm.files import atomic
    from edgelm.package.graph_file import ENCODER_FILE
    from edgelm.text.tokenizer import Tokenizer
    from edgelm_training.checkpoints.checkpoint import check_is_checkpoint, load_checkpoint
    from edgelm_training.evaluation.inspection import HAS_ENCODER, inspect_text
    from edgelm_training.evaluation.inspection_page import inspection_page
    from edgelm_training.runs.device import choose_device
    from edgelm_training.settings.train_config import TrainConfig

    if (model / ENCODER_FILE).is_file():  # a package, and a checkpoint made of it could not be inspected either
        raise ConfigError(HAS_ENCODER)
    check_is_checkpoint(model)
    with status("Running"):
        where = choose_device(TrainConfig(device=device, precision="fp32", threads=threads)).device
        tokenizer, loaded = Tokenizer.load(model), load_checkpoint(model).to(where)
        ids = tokenizer.encode_prompt("".join(piped_lines()) if text == "-" else clean_text(text))
        inspection = inspect_text(loaded, tokenizer, ids[:max_tokens], guesses=guesses)
        page = inspection_page(inspection, model=model.resolve().name, cut=max(0, len(ids) - max_tokens))
    try:
        atomic.write_text(output, page)
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written: {error.strerror or error}.") from error
    if len(ids) > max_tokens:
        click.echo(f"Of {len(ids)} tokens the first {max_tokens} are shown. For more: --max-tokens.", err=True)
    click.echo(str(output))
