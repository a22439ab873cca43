"""The command `edgelm eval`."""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING

import click

from edgelm.arguments import as_path
from edgelm.cli.generation_options import complete_model, threads_option
from edgelm.cli.output import one_line, print_json
from edgelm.cli.progress import progress_line, status
from edgelm.cli.wrong_usage import wrong_usage
from edgelm.counted import counted
from edgelm.errors import MissingExtraError, ModelNotFoundError
from edgelm.files.run_checkpoint import checkpoint_of_run
from edgelm.library.library import Library, is_path
from edgelm.package.adapter import is_trained_adapter
from edgelm.package.foreign_graph import find_foreign_graph
from edgelm.package.manifest import FILE_NAME
from edgelm.shell_word import shell_word
from edgelm_training.texts.corpus import describe_passed_over
from edgelm_training.texts.documents import DocumentConfig

if TYPE_CHECKING:
    from edgelm_training.evaluation.perplexity import Perplexity, Scorer

EXAMPLES = """
\b
Examples:
  edgelm eval pkg/ --data held-out.txt                  a package, by ONNX Runtime
  edgelm eval run/best --data held-out.txt              a checkpoint, by PyTorch: the same figures
  edgelm eval smollm2-135m-instruct --data texts.jsonl --max-tokens 20000
  edgelm eval run/best --data shards/                   the validation split that training has not seen
  edgelm eval pkg/ --data book.txt --window 2048 --stride 256 --json
"""


@click.command("eval", epilog=EXAMPLES)
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--data", "paths", metavar="PATH", multiple=True, required=True,
    help="Texts, JSONL or Parquet (files, folders, globs), or a folder of shards; may be given several times.",
)  # fmt: skip
@click.option("--field", default=DocumentConfig.field, show_default=True, help="The key or column that holds the text.")
@click.option("--split-on", metavar="LINE", help="The line between the documents of a text file ('': an empty line).")
@click.option(
    "--split", type=click.Choice(["train", "validation"]), help="Which split of shards.  [default: validation]"
)
@click.option("--window", type=int, metavar="N", help="Tokens that are read at once.  [default: 1024, or the context]")
@click.option("--stride", type=int, metavar="N", help="Tokens from one window to the next.  [default: half a window]")
@click.option("--max-tokens", type=int, metavar="N", help="Stop after so many scored tokens.")
@click.option("--device", default="auto", show_default=True, help="For a checkpoint: cpu, cuda, cuda:1, mps.")
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def eval_(
    model: str,
    paths: tuple[str, ...],
    field: str,
    split_on: str | None,
    split: str | None,
    window: int | None,
    stride: int | None,
    max_tokens: int | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how well a model predicts a text: perplexity and bits per byte.

    MODEL is a checkpoint folder, or a package (a folder, or a name from the library); both are scored alike. Each
    document is scored by itself. One that is longer than a window is read in overlapping windows, and each token is
    scored once, with at least window - stride tokens before it. Perplexities compare models of one tokenizer; bits per
    byte compare all.
    """
    # Imported here, so that --help needs no tokenizers.
    from edgelm_training.evaluation.held_out import held_out_documents, is_shards
    from edgelm_training.evaluation.perplexity import WindowConfig, measure_perplexity

    with wrong_usage():
        config = WindowConfig(window=window, stride=stride, max_tokens=max_tokens)
    with status("Loading"):
        scorer = _open(model, device, threads)
    texts = [path for path in paths if not is_shards(path)]
    if texts and (passed_over := describe_passed_over(texts)):
        click.echo(one_line(passed_over), err=True)
    documents = held_out_documents(
        paths,
        scorer.tokenizer,
        scorer.folder,
        field=field,
        split_on=split_on,
        split=split,
        max_tokens=max_tokens,
    )
    with wrong_usage(), progress_line() as progress, contextlib.ExitStack() as reading:
        reading.enter_context(status("Reading"))  # until the first window is scored

        def scored(label: str, done: int, total: int | None) -> None:
            reading.close()
            progress(label, done, total)

        measured = measure_perplexity(scorer, documents, config, progress=scored)
    _print(scorer, measured, as_json)


def _open(model: str, device: str, threads: int | None) -> Scorer:
    """Open a checkpoint where the folder is one, else what the library or the folder has as a package."""
    folder = as_path(model)
    is_package = (folder / FILE_NAME).is_file() or find_foreign_graph(folder) is not None
    if (folder / "config.json").is_file() and not is_package:
        try:
            from edgelm_training.evaluation.checkpoint_scorer import CheckpointScorer
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "safetensors"):
                raise
            raise MissingExtraError(
                f'Scoring a checkpoint needs {error.name!r}, which is not installed: pip install "edgelm[train]". '
                "A package needs neither."
            ) from error
        return CheckpointScorer(folder, device=device, threads=threads)
    if is_trained_adapter(folder):
        raise ModelNotFoundError(
            f"{model} holds an adapter, which is no model by itself. Merge it into its base first: edgelm merge "
            f"{shell_word(model)} -o merged/"
        )
    checkpoint = checkpoint_of_run(folder)
    if checkpoint is not None:
        raise ModelNotFoundError(f"{model} is the folder of a run. Name one of its checkpoints: {checkpoint}.")
    if is_path(model) and not folder.exists():
        raise ModelNotFoundError(f"There is no checkpoint or package at {model}.")
    from edgelm.runtime.session_options import SessionOptions
    from edgelm_training.evaluation.package_scorer import PackageScorer

    if device not in ("auto", "cpu"):
        raise click.UsageError(f"--device {device} is for checkpoints; a package is scored on the CPU.")
    return PackageScorer(Library().find(model), SessionOptions(threads=threads))


def _print(scorer: Scorer, measured: Perplexity, as_json: bool) -> None:
    if as_json:
        facts = {
            "model": os.fspath(scorer.folder),
            "kind": scorer.kind,
            "perplexity": measured.perplexity,
            "bits_per_byte": measured.bits_per_byte,
            "nats": measured.nats,
            "tokens": measured.tokens,
            "bytes": measured.bytes,
            "documents": measured.documents,
            "window": measured.window,
            "stride": measured.stride,
        }
        # JSON has no word for what a broken model gives: no number, or one beyond all floats.
        lost = {name: None for name, fact in facts.items() if isinstance(fact, float) and not math.isfinite(fact)}
        print_json({**facts, **lost})
        return
    click.echo(f"  perplexity     {measured.perplexity:.4f}")
    click.echo(f"  bits per byte  {measured.bits_per_byte:.4f}")
    documents = counted(measured.documents, "document")
    click.echo(
        f"  over {measured.tokens} tokens ({measured.bytes} bytes) of {documents}, in windows of {measured.window} "
        f"with a stride of {measured.stride}"
    )
