"""Does fine-tuning pay on a laptop? SmolLM2-135M-Instruct learns to define words as JSON, before and after compared.

Then the fine-tuned model is trained for 4 bits with itself as teacher, and its int4 package is measured beside it.

    python benchmarks/finetune_proof.py
    python benchmarks/finetune_proof.py --work look --words 40 --steps 4 --rows 2 --test-words 2 --other-tokens 256

The task and its scores are those of definitions.py; the test words are others than those of the training. Everything is
done as a user does it: edgelm import, finetune, merge, export. What is done is not done again: a second call with the
same --work goes on where the first was stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from definitions import fetch_wordnet, measure, split_entries, table, write_chats
from edgelm.runtime.cpu import physical_cores
from machine import command, describe_machine

PRECISIONS = ("int8", "int4")


def run(*arguments: str | Path | float) -> None:
    program = [sys.executable, "-c", "from edgelm.cli.main import main; main()"]
    click.echo(f"$ edgelm {' '.join(map(str, arguments))}", err=True)
    subprocess.run([*program, *map(str, arguments)], check=True)


@click.command()
@click.option("--model", default="smollm2-135m-instruct", show_default=True, help="What `edgelm import` takes.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("finetune-proof"), show_default=True)
@click.option("--wordnet", type=click.Path(path_type=Path, exists=True), help="A folder with index.noun, data.noun, …")
@click.option("--words", default=3000, show_default=True, help="To train on.")
@click.option("--test-words", default=100, show_default=True)
@click.option("--steps", default=60, show_default=True)
@click.option("--rows", default=4, show_default=True, help="Of a step, of 256 tokens each.")
@click.option("--learning-rate", default=5e-4, show_default=True)
@click.option("--method", type=click.Choice(["lora", "qlora", "sft"]), default="lora", show_default=True)
@click.option("--qat-steps", default=60, show_default=True, help="Of quantization-aware training.")
@click.option("--qat-learning-rate", default=1e-4, show_default=True)
@click.option("--threads", default=physical_cores(), show_default=True)
@click.option("--other-tokens", default=4096, show_default=True, help="Of the other text.")
def main(
    model: str, work: Path, wordnet: Path | None, words: int, test_words: int, steps: int, rows: int,
    learning_rate: float, method: str, qat_steps: int, qat_learning_rate: float, threads: int, other_tokens: int,
) -> None:  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    training, test = split_entries(wordnet or fetch_wordnet(work / "wordnet"), test=test_words)
    chats, base, tuned, merged = work / "chats.jsonl", work / "base", work / "run", work / "merged"
    write_chats(training[:words], chats)
    outcome = work / "figures.json"
    figures = json.loads(outcome.read_text(encoding="utf-8"))["figures"] if outcome.exists() else {}

    def compare(stage: str, checkpoint: Path, precisions: Sequence[str] = PRECISIONS) -> None:
        """Measure a checkpoint, and the packages that it becomes."""
        for kind in ("PyTorch", *precisions):
            folder, label = (checkpoint if kind == "PyTorch" else work / f"{stage}-{kind}"), f"{stage}, {kind}"
            if label in figures:
                continue
            if not folder.exists():
                run("export", checkpoint, "-o", folder, "--precision", kind)
            figures[label] = measure(folder, test, other_tokens=other_tokens, threads=threads)
            facts = {"machine": describe_machine(), "command": command(), "figures": figures}
            outcome.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            click.echo(table({label: figures[label]}), err=True)

    if not base.exists():
        run("import", model, "-o", base)
    compare("before", base)

    def finetune(start: Path, output: Path, steps: int, *options: str | Path | float) -> None:
        run(
            "finetune", start, "--data", chats, "-o", output, "--max-steps", steps, "--sequence-length", 256,
            "--global-batch-size", rows, "--save-every", max(1, steps // 4), "--eval-rows", 8, "--threads", threads,
            "--resume", *options,
        )  # fmt: skip

    finetune(base, tuned, steps, "--method", method, "--learning-rate", learning_rate)
    if method != "sft" and not merged.exists():
        run("merge", tuned, "-o", merged)
    twin = tuned / "best" if method == "sft" else merged
    compare("after", twin)
    quantized = ("--method", "sft", "--qat", "int4", "--teacher", twin, "--learning-rate", qat_learning_rate)
    finetune(twin, work / "qat", qat_steps, *quantized)
    compare("after, for 4 bits", work / "qat" / "best", ["int4"])
    click.echo(table(figures))
    for label, row in figures.items():
        click.echo(f"{label}: {row['answers'][0]}")


if __name__ == "__main__":
    main()
