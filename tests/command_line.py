"""The command `edgelm`, run in the process of the tests."""

from __future__ import annotations

from click.testing import CliRunner, Result

from edgelm.cli.main import main


def invoke(*arguments: object, stdin: str | bytes = "", **environment: str) -> Result:
    """Run `edgelm` with these arguments; return what it printed, and its exit code."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin, env=environment)
