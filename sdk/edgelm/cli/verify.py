"""`edgelm verify`: check all that can be checked of a model package without running it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgelm.cli.generation_options import complete_model, complete_source
from edgelm.cli.output import one_line, print_json
from edgelm.cli.progress import progress_line, status
from edgelm.cli.wrong_usage import refused
from edgelm.errors import EdgeLMError
from edgelm.extras import entry_point
from edgelm.library.library import Library

if TYPE_CHECKING:
    from edgelm.package.package_check import Finding


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--public-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Check the signature too, with this key (PEM). Default: the one of --require-signature, if there is one.",
)
@click.option(
    "--source",
    metavar="CHECKPOINT",
    shell_complete=complete_source,
    help="Compute the quality again too, from what the package was exported from.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def verify(model: str, public_key: Path | None, source: str | None, as_json: bool) -> None:
    """Check that a package is whole and holds nothing foreign.

    MODEL is a name from the library or a folder. Checked: every file's size and hash, that no other file is there, the
    graph's operators and tensors, the tokenizer, the chat template and the configs. With --source also that the
    perplexity, logits, KL divergence and agreement are as the manifest claims. Of an exported adapter's folder, its
    manifest, weights and signature. The exit code is 1 if a check fails.

    \b
    Examples:
      edgelm verify smollm2-135m-instruct
      edgelm verify package/ --public-key publisher.pub
      edgelm verify package/ --source checkpoint/
      edgelm verify package/ --json | jq -r '.findings[] | select(.problem)'
    """
    # Imported here, so that --help needs neither numpy nor tokenizers.
    from edgelm.package.adapter import is_adapter
    from edgelm.package.package_check import Finding, check_adapter, check_package
    from edgelm.package.signature import check_signature, required_key

    if is_adapter(Path(model)):
        if source is not None:
            raise refused("--source measures a package; an adapter is checked without it.", "source")
        folder, check = Path(model), check_adapter
    else:
        folder, check = Library().find(model), check_package
    with status("Checking the package"):
        findings = list(check(folder))
    public_key = public_key or required_key()
    if public_key is not None:
        try:
            check_signature(folder, public_key)
            findings.append(Finding(step="signature", detail=f"made with the key of {public_key}"))
        except EdgeLMError as error:
            findings.append(Finding(step="signature", detail="", problem=str(error)))
    if source is not None:
        findings += _check_quality(folder, source)
    good = all(finding.problem is None for finding in findings)
    if as_json:
        facts = {"path": str(folder), "good": good, "findings": [dataclasses.asdict(finding) for finding in findings]}
        print_json(facts)
    else:
        for finding in findings:
            mark = "ok    " if finding.problem is None else "FAILED"
            click.echo(f"{mark}  {finding.step:<26}{one_line(finding.problem or finding.detail)}")
    if not good:
        raise SystemExit(1)


def _check_quality(folder: Path, source: str) -> list[Finding]:
    """Let the exporter measure the package again: it alone reads checkpoints."""
    from edgelm.package.package_check import Finding

    check = entry_point("edgelm.verifiers", "quality", extra="export", purpose="--source")
    try:
        with progress_line() as progress:
            findings: list[Finding] = check(folder, source, progress)
    except EdgeLMError as error:
        return [Finding(step="quality", detail="", problem=str(error))]
    return findings
