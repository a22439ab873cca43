"""The command `edgelm`: finds its subcommands through entry points, and imports one only when it is called."""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib.util
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from edgelm._version import __version__
from edgelm.arguments import did_you_mean
from edgelm.cli.config_file import ConfigFile, name_variables
from edgelm.cli.help_page import fold_examples
from edgelm.cli.other_words import COMMANDS, in_our_words, with_its_other_way
from edgelm.cli.output import is_dumb, printable
from edgelm.cli.termination import unwinding
from edgelm.cli.wrong_usage import refuse_given_twice, where_set, wrong_usage
from edgelm.errors import ConfigError, EdgeLMError, MissingExtraError
from edgelm.extras import has_moved, older_metadata
from edgelm.package.signature import REQUIRE_VARIABLE

COMMAND_GROUP = "edgelm.commands"
# As a program that the signal itself had ended (128 + its number).
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141


class ReportedError(click.ClickException):
    """An error of edgelm, as the command line shows it."""

    def show(self, file: Any = None) -> None:
        """Print `error: …` on standard error."""
        # It may hold names that a package or a hub has chosen.
        message = click.style("error: ", fg="red", bold=True) + printable(self.format_message())
        click.echo(message, file=file, err=True, color=self.show_color)


class LazyGroup(click.Group):
    """A group of commands that come from entry points, other packages' too; edgelm's own names cannot be replaced."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Name the commands without importing them."""
        return sorted(_entry_points(context))

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import one command.

        Raises:
            MissingExtraError: the command needs an optional dependency that is not installed.
            ConfigError: what another package offers as a command is none, or cannot be imported.
        """
        entry_point = _entry_points(context).get(name)
        if entry_point is None:
            return None
        try:
            command = entry_point.load()
        except Exception as error:
            if context.resilient_parsing:  # a shell completes: no place for messages
                return None
            raise _not_loaded(entry_point, error) from error
        if not isinstance(command, click.Command):
            raise ConfigError(f"The command {name!r} of {_owner(entry_point)} is not a click command: {command!r}.")
        fold_examples(command)
        return command

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Read our own options; --help and --version are answered here already."""
        with _writing():
            return super().parse_args(context, args)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called, and let the config file set what its options are by default.

        Raises:
            click.UsageError: the config file is broken, or sets what the command does not have; or an option that
                takes one value has two.
        """
        if not context.resilient_parsing:
            self._refuse_misspelt(context, args[0])
        name, command, rest = super().resolve_command(context, args)
        if name is not None and command is not None and not context.resilient_parsing:
            with wrong_usage():
                file = ConfigFile.load()
                file.check_sections(self.list_commands(context))
                context.default_map = {name: file.defaults(name, command)}
            name_variables(command, f"{context.auto_envvar_prefix}_{name}")
            refuse_given_twice(command, name, rest, context)
        return name, command, rest

    def _refuse_misspelt(self, context: click.Context, name: str) -> None:
        """Name the command that was meant: click does so only for commands that it holds itself."""
        known = self.list_commands(context)
        if name in COMMANDS and name not in known:
            context.fail(f"No such command {name!r}. Here that is {COMMANDS[name]}.")
        if name not in known and (meant := did_you_mean(name, known, most=1)):
            context.fail(f"No such command {name!r}.{meant}")

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the commands without importing them."""
        names = [name for name in self.list_commands(context) if name.startswith(incomplete)]
        return [CompletionItem(name) for name in names] + click.Command.shell_complete(self, context, incomplete)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, each with the first line of its docstring, read from its source without importing it."""
        found = sorted(_entry_points(context).items())
        rows = [(name, _first_docstring_line(entry_point)) for name, entry_point in found]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, context: click.Context) -> Any:
        """Run the command, and turn what ends it into a message and an exit code."""
        if os.environ.get("NO_COLOR") or is_dumb():  # no-color.org; click leaves both to programs
            context.color = False
        words = tuple(context.args)  # click takes them away
        try:
            with unwinding(), _writing():
                return super().invoke(context)
        except EdgeLMError as error:
            raise ReportedError(str(error)) from error
        except click.NoSuchOption as error:
            raise in_our_words(error, words) from None
        except click.BadOptionUsage as error:
            command = self.get_command(context, context.invoked_subcommand or "")
            raise with_its_other_way(error, command) from None
        except click.BadParameter as error:
            raise _naming_the_environment(error) from None
        except KeyboardInterrupt:
            raise SystemExit(EXIT_INTERRUPTED) from None
        except click.Abort as error:
            if (ending := _ending_behind(error)) is None:  # the answer was no, or there was none
                raise
            click.echo("Aborted!", err=True)
            raise ending from None
        except ImportError as error:
            # An extension module that is being imported makes an ImportError of Ctrl-C, and of SIGTERM.
            if (ending := _ending_behind(error)) is not None:
                raise ending from None
            called = _entry_points(context).get(context.invoked_subcommand or "")
            if isinstance(error, ModuleNotFoundError) and called is not None:  # commands import late what is slow
                extra = _missing_extra(called, error)
                if extra is not None:
                    raise ReportedError(str(extra)) from error
            raise


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Turn an output that cannot be written, or a file that cannot be opened, into a message and an exit code."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise ReportedError(f"{error}.") from error
        # Without a file's name it comes from a stream: the disk behind it is full, or it is gone.
        _discard_output()
        if _has_no_reader(error):
            raise SystemExit(EXIT_CLOSED_PIPE) from None
        raise ReportedError(f"Cannot write the output: {error}.") from error


def _has_no_reader(error: OSError) -> bool:
    """Tell whether whoever read our output has left, which Windows calls an invalid argument."""
    return isinstance(error, BrokenPipeError) or (sys.platform == "win32" and error.errno == errno.EINVAL)


def _discard_output() -> None:
    """Let what Python still holds for a stream that has failed not fail again at exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _ending_behind(error: BaseException | None) -> SystemExit | None:
    """Return the exit of the signal whose exception became this error; None where there was none."""
    while error is not None and not isinstance(error, (KeyboardInterrupt, SystemExit)):
        error = error.__cause__ or error.__context__
    return SystemExit(EXIT_INTERRUPTED) if isinstance(error, KeyboardInterrupt) else error


def _entry_points(context: click.Context) -> dict[str, metadata.EntryPoint]:
    """Return the commands by name; they are looked up once for each call of the program."""
    if COMMAND_GROUP not in context.meta:
        context.meta[COMMAND_GROUP] = _found_entry_points()
    found: dict[str, metadata.EntryPoint] = context.meta[COMMAND_GROUP]
    return found


def _found_entry_points() -> dict[str, metadata.EntryPoint]:
    found: dict[str, metadata.EntryPoint] = {}
    for entry_point in metadata.entry_points(group=COMMAND_GROUP):
        # Looked up for names that come twice alone: it parses the owner's metadata, in a third of a millisecond.
        if entry_point.name not in found or _owner(found[entry_point.name]) != "edgelm":
            found[entry_point.name] = entry_point
    if not found:
        raise ReportedError(
            "edgelm's commands are entry points of its metadata (edgelm-….dist-info), which is not here. Install "
            "edgelm, or freeze the program with its metadata."
        )
    return found


def _owner(entry_point: metadata.EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else "an unknown package"


def _naming_the_environment(error: click.BadParameter) -> click.BadParameter:
    """Say of a bad value that it comes from the environment; those of the config file have errors of their own."""
    context, param = error.ctx, error.param
    if context is None or param is None or param.name is None:
        return error
    if context.get_parameter_source(param.name) is not ParameterSource.ENVIRONMENT:
        return error
    return click.BadParameter(f"{error.message} {where_set(context)}", context, param, error.param_hint)


def _not_loaded(entry_point: metadata.EntryPoint, error: Exception) -> Exception:
    """Say why a command cannot be imported; what is broken in edgelm itself passes through as it is."""
    owner = _owner(entry_point)
    extra = _missing_extra(entry_point, error) if isinstance(error, ModuleNotFoundError) else None
    if extra is not None:
        return extra
    if owner == "edgelm" or _ending_behind(error) is not None:
        raise error
    return ConfigError(
        f"The command {entry_point.name!r} of {owner} cannot be imported ({type(error).__name__}: {error}). Install a "
        f"version of {owner} that fits edgelm {__version__}, or remove it: pip uninstall {owner}"
    )


def _missing_extra(entry_point: metadata.EntryPoint, error: ModuleNotFoundError) -> MissingExtraError | None:
    """Name the extra that brings a missing module, if there is one.

    Of several it is the one with the command's own name, or else the first.
    """
    package, owner = (error.name or "").partition(".")[0], _owner(entry_point)
    if owner == "edgelm" and has_moved(entry_point.module, error):
        return older_metadata(f"`edgelm {entry_point.name}`")
    if error.name == entry_point.module.partition(".")[0]:  # our own, of which a distribution may have a part
        return MissingExtraError(
            f"`edgelm {entry_point.name}` is not installed: {owner} is here without its part {package!r}. Install that "
            f"from where {owner} came, or all of it: pip install {owner}"
        )
    requirements: Iterable[str] = (entry_point.dist.requires if entry_point.dist is not None else None) or ()
    found = [re.match(r"""([\w.-]+).*\bextra == ['"]([\w-]+)['"]""", requirement) for requirement in requirements]
    extras = [match[2] for match in found if match and re.sub(r"[-.]", "_", match[1]).lower() == package.lower()]
    if not extras:
        return None
    extra = entry_point.name if entry_point.name in extras else extras[0]
    return MissingExtraError(
        f'`edgelm {entry_point.name}` needs {package!r}, which is not installed: pip install "{owner}[{extra}]"'
    )


def _first_docstring_line(entry_point: metadata.EntryPoint) -> str:
    try:
        spec = importlib.util.find_spec(entry_point.module)
        # The loader has it of a module inside of an archive or of a frozen program too.
        loader = spec.loader if spec is not None else None
        get_source = getattr(loader, "get_source", lambda _: None)
        tree = ast.parse(get_source(entry_point.module) or "")
    except Exception:  # of any kind: to find a module, Python runs the packages that it lies in
        return f"(from {_owner(entry_point)})"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == entry_point.attr:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return f"(from {_owner(entry_point)})"


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "EDGELM"},
)
@click.version_option(__version__, prog_name="edgelm", allow_from_autoenv=False)  # images set EDGELM_VERSION to one
@click.option(
    "--require-signature",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    metavar="KEY",
    allow_from_autoenv=False,  # the variable of that name is read where packages are loaded
    help="Load only packages that are signed with this public key (PEM).",
)
def main(require_signature: str | None) -> None:
    """Run GPT-style Transformers on this machine: in a terminal, in a pipe, offline.

    \b
    Start here:
      edgelm pull smollm2-135m-instruct     fetch a small model
      edgelm chat                           talk to it
      cat notes.txt | edgelm run smollm2-135m-instruct "Summarize:"

    \b
    Exit codes: 0 done, 1 an error, 2 wrong usage, 130 stopped by Ctrl-C, 143 by
    SIGTERM, 129 by a terminal that closed, 141 the reader of the output has left.
    Models are kept in $EDGELM_HOME, or where the system keeps a user's data.
    `edgelm config` shows what sets options beside flags.

    \b
    Completion of commands, options and model names (or zsh_source, fish_source):
      eval "$(_EDGELM_COMPLETE=bash_source edgelm)"
    """
    if require_signature is not None:  # for every load in this process, and in those that it starts
        os.environ[REQUIRE_VARIABLE] = require_signature
    # What is piped in is read as UTF-8 everywhere, with a byte order mark or without. A terminal has the encoding of
    # the user's locale, and so has all output; what that cannot show becomes a question mark, not an error. On Windows
    # that would be a code page of 256 characters for files and pipes, so output is UTF-8 there too.
    if isinstance(sys.stdin, io.TextIOWrapper):
        on_terminal = sys.stdin.isatty()
        sys.stdin.reconfigure(
            encoding=None if on_terminal else "utf-8-sig", errors="replace" if on_terminal else "surrogateescape"
        )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            in_code_page = sys.platform == "win32" and not stream.isatty() and "PYTHONIOENCODING" not in os.environ
            stream.reconfigure(encoding="utf-8" if in_code_page else None, errors="replace")
