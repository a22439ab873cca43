"""Export a Llama of 1.7B random weights to int4, beside onnxruntime-genai's builder: time and peak memory.

    python benchmarks/large_export.py --tokenizer ckpt/ --work large/      # 6 GB on the disk
    python benchmarks/large_export.py --tokenizer ckpt/ --work small/ --layers 2

The shape is SmolLM2-1.7B's, in bfloat16; --tokenizer is a checkpoint folder of SmolLM2-135M, which has the same one.
Each exporter is a process of its own, called as a user calls it; edgelm's checks its package against the source too.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click

from machine import describe_machine
from prepare import genai_command
from random_llama import SHAPE, write_checkpoint

PRECISION = "int4"


def measure(command: list[str], package: Path) -> dict[str, float]:
    """Run an exporter: seconds, processor seconds, its highest resident memory, and the package's size, in MB."""
    shutil.rmtree(package, ignore_errors=True)
    started = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise click.ClickException(f"{' '.join(command)} failed.")
    return {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss * 1024 / 1e6,
        "package_mb": sum(path.stat().st_size for path in package.glob("model.onnx*")) / 1e6,
    }


@click.command()
@click.option("--tokenizer", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="A folder for what is made.")
@click.option("--layers", default=SHAPE.num_hidden_layers, show_default=True)
@click.option("--only", type=click.Choice(["edgelm", "onnxruntime-genai"]), help="One of the two.")
def main(tokenizer: Path, work: Path, layers: int, only: str | None) -> None:
    """Measure both exporters, and print a table."""
    checkpoint = work / "checkpoint"
    if not checkpoint.exists():
        # In a process of its own: Linux lets a child's peak begin at the one that its parent had.
        writer = multiprocessing.get_context("spawn").Process(
            target=write_checkpoint, args=(checkpoint, tokenizer, layers)
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            raise click.ClickException(f"The checkpoint in {checkpoint} was not written.")
    edgelm = [sys.executable, "-c", "from edgelm.cli.main import main; main()", "export", str(checkpoint)]
    commands = {
        "edgelm": ([*edgelm, "-o", str(work / "edgelm"), "--precision", PRECISION], work / "edgelm"),
        "onnxruntime-genai": (genai_command(checkpoint, work / "genai", PRECISION), work / "genai"),
    }
    click.echo(json.dumps(describe_machine()), err=True)
    click.echo("| exporter | seconds | processor seconds | peak memory | graph and weights |\n|---|---|---|---|---|")
    for name, (command, package) in commands.items():
        if only in (None, name):
            row = measure(command, package)
            click.echo(
                f"| {name} | {row['seconds']:.0f} | {row['cpu_seconds']:.0f} | {row['peak_mb']:.0f} MB "
                f"| {row['package_mb']:.0f} MB |"
            )


if __name__ == "__main__":
    main()
