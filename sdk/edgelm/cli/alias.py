"""`edgelm alias`: second names of models."""

from __future__ import annotations

import click

from edgelm.cli.generation_options import complete_alias, complete_model
from edgelm.cli.output import print_json, print_table
from edgelm.cli.wrong_usage import wrong_usage
from edgelm.library.library import Library, check_name


@click.command()
@click.argument("name", required=False)
@click.argument("target", required=False, shell_complete=complete_model)
@click.option(
    "--remove", "removed", metavar="NAME", shell_complete=complete_alias, help="Forget an alias; its model stays."
)
@click.option("--json", "as_json", is_flag=True, help="Print the list as a JSON object: alias to model.")
def alias(name: str | None, target: str | None, removed: str | None, as_json: bool) -> None:
    """Give a model a second name, or list the aliases.

    An alias stands wherever a model's name does: in a command, a program, a request to the server. NAME may be an alias
    already; from now on it means TARGET, a model of the library. It may not be the name of a model.

    \b
    Examples:
      edgelm alias small smollm2-135m-instruct
      edgelm chat small
      edgelm alias
      edgelm alias --remove small
    """
    library = Library()
    if removed is not None:
        if name is not None or as_json:
            raise click.UsageError("--remove NAME stands alone.")
        library.remove_alias(removed)
        click.echo(f"Removed the alias {removed}.", err=True)
    elif name is None:
        _list(library, as_json)
    elif as_json:
        raise click.UsageError("--json is for the list, without NAME.")
    elif target is None:
        raise click.UsageError(f"Say which model {name!r} is to mean: edgelm alias {name} TARGET")
    else:
        with wrong_usage():
            check_name(name)
        before = library.aliases().get(name)
        model = library.add_alias(name, target)
        changed = f" (it was {before})" if before not in (None, model) else ""
        click.echo(f"{name} means {model} now{changed}: edgelm chat {name}", err=True)


def _list(library: Library, as_json: bool) -> None:
    aliases = library.aliases()
    if as_json:
        print_json(aliases)
    elif aliases:
        models = {*library.packages(), *library.sources()}
        rows = [(name, model if model in models else f"{model} (not here)") for name, model in aliases.items()]
        print_table(["ALIAS", "MODEL"], rows)
    else:
        click.echo("There are no aliases. Make one: edgelm alias NAME MODEL", err=True)
