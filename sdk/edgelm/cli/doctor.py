"""`edgelm doctor`: find what is wrong or slow on this machine, and say what fixes it."""

from __future__ import annotations

import dataclasses
import os

import click

from edgelm.cli.config_file import ConfigFile
from edgelm.cli.generation_options import complete_model
from edgelm.cli.output import print_json, printable

_SIGNS = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "error": ("BAD", "red")}


@click.command()
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def doctor(context: click.Context, model: str | None, as_json: bool) -> None:
    """Find what is wrong or slow on this machine, and say what fixes it.

    Looks at Python, ONNX Runtime's builds and devices, the processor, threads, memory, the model library and its
    packages; of MODEL, a name or a folder, at what is slow on a CPU. The exit code is 1 where something does not work;
    what is merely slow leaves it 0.

    \b
    Examples:
      edgelm doctor
      edgelm doctor downloaded/onnx/model_q4.onnx
      edgelm doctor --json | jq '.[] | select(.state != "ok")'
    """
    # Imported here, so that --help needs no numpy.
    from edgelm.doctor import examine

    findings = []
    for finding in examine(model, _threads_of(ConfigFile.load())):
        findings.append(finding)
        if not as_json:
            sign, colour = _SIGNS[finding.state]
            text = printable(f"{finding.topic:<12} {finding.found}")
            click.echo(f"{click.style(f'{sign:<5}', fg=colour)}{text}")
            if finding.fix is not None:
                click.echo(f"{'':<18}→ {printable(finding.fix)}")
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    if any(finding.state == "error" for finding in findings):
        context.exit(1)


def _threads_of(file: ConfigFile) -> dict[str, int]:
    """Return the threads that the file gives commands, by their places; where the environment says it, that counts."""
    found = {}
    for name, section in file.sections.items():
        threads = section.get("threads") if isinstance(section, dict) else None
        if isinstance(threads, int) and f"EDGELM_{name}_threads".upper() not in os.environ:
            found[f"[{name}] threads in {file.path}"] = threads
    return found
