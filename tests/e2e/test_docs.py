"""The documentation builds without a warning, is complete, says what the program does, and loads from no other host."""

import ast
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from importlib import metadata
from pathlib import Path
from types import ModuleType

import click
import pytest

import edgelm
import edgelm_export
import edgelm_training
from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm.cli.main import COMMAND_GROUP, EXIT_CLOSED_PIPE, EXIT_INTERRUPTED, main
from edgelm.files.regular_file import MAX_TOML_BYTES
from edgelm.runtime.providers import PROVIDERS
from edgelm.server.routes import ROUTES
from edgelm.server.sampling_fields import SAMPLING
from edgelm.structure.tool_formats import FORMATS
from edgelm_export.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    program = "import gc; gc.disable(); from mkdocs.__main__ import cli; cli()"  # a tenth of the time
    done = subprocess.run(
        [sys.executable, "-c", program, "build", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "INFO" in done.stderr  # where it says nothing, it passes over broken links
    return folder


def test_every_command_has_a_page_with_its_help(site: Path) -> None:
    for entry_point in metadata.entry_points(group=COMMAND_GROUP):
        assert f"Usage: edgelm {entry_point.name}" in (site / "commands" / f"{entry_point.name}.html").read_text()


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "api" / "runtime.html").read_text()
    names = [name for name in edgelm.__all__ if f'id="edgelm.{name}"' not in page]
    assert names == ["__version__"]


def test_an_example_in_a_docstring_is_shown_as_code(site: Path) -> None:
    page = (site / "api" / "runtime.html").read_text()
    assert "<blockquote>" not in page
    assert '<span class="kn">import</span>' in page


def test_links_in_text_are_told_by_more_than_their_colour(site: Path) -> None:
    assert 'href="stylesheets/readable.css"' in (site / "index.html").read_text()
    assert "text-decoration: underline" in (site / "stylesheets" / "readable.css").read_text()


def test_every_page_of_the_folder_is_in_the_navigation(site: Path) -> None:
    start = (site / "index.html").read_text()
    by_make_bench = ROOT / "docs/results/smollm2-135m-here.md"
    kept = (path for path in (ROOT / "docs").rglob("*.md") if path != by_make_bench)
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in kept]
    assert [str(page) for page in pages if f'href="{page.as_posix()}"' not in start] == []


def test_the_first_page_leads_to_every_guide() -> None:
    start = (ROOT / "docs/index.md").read_text()
    guides = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs/guides").glob("*.md")]
    assert [guide for guide in guides if f"({guide})" not in start] == []


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_every_link_of_a_page_outside_of_the_site_leads_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", (ROOT / page).read_text()):
        path = ROOT / (target or page)
        assert path.exists(), target
        if anchor:
            text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    loads = re.compile(r"""<(?:script|img|iframe)[^>]+src=["']?https?:|<link[^>]+stylesheet[^>]+href=["']?https?:""")
    assert [path for path in site.rglob("*.html") if loads.search(path.read_text())] == []


def test_the_guide_names_every_setting_of_a_generation_with_its_default() -> None:
    table = (ROOT / "docs/guides/embed.md").read_text().partition("## Settings")[2].partition("\n### ")[0]
    told: dict[str, object] = {}
    for names, default in re.findall(r"^\| (`\w+`.*?) \| (.+?) \| ", table, re.MULTILINE):
        several = re.findall(r"`(\w+)`", names)
        values = ast.literal_eval(f"[{default}]")
        told |= dict(zip(several, values if len(values) > 1 else values * len(several), strict=True))
    expected = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(edgelm.GenerationConfig)
    }
    assert told == expected


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table behind some words of a page."""
    table = re.search(r"(?:^\|.*\n)+", (ROOT / page).read_text().partition(heading)[2], re.MULTILINE)
    assert table is not None
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in table[0].splitlines()[2:]]


def test_the_guide_to_the_server_names_every_endpoint_and_what_a_request_may_say_of_sampling() -> None:
    table = rows("docs/guides/server.md", "## What it answers")
    told = {path for paths, _ in table for path in re.findall(r"`(?:[A-Z]+ )?(/\S+)`", paths)}
    assert told == {row.path.replace("{model}", "{id}") for row in ROUTES if row.media == "text/plain"}
    of_openai = {"temperature", "top_p", "presence_penalty", "frequency_penalty"}
    assert SAMPLING.keys() - of_openai <= set(re.findall(r"`(\w+)`", table[0][1]))


def test_the_guide_to_tools_has_a_row_for_each_format() -> None:
    told = [name.strip() for name, *_ in rows("docs/guides/tools.md", "## Formats")]
    assert sorted(told) == sorted(row.name for row in FORMATS)


def test_the_guide_to_devices_has_a_row_for_each_provider() -> None:
    told = [name.strip(" `") for name, *_ in rows("docs/guides/devices.md", "## The providers")]
    assert sorted(told) == sorted(PROVIDERS)


def test_the_page_of_models_has_every_family_and_the_first_pages_count_them() -> None:
    table = rows("docs/models.md", "# Models")
    types, names = ({name for row in table for name in re.findall(r"`([\w.-]+)`", row[cell])} for cell in (1, 3))
    assert types == ARCHITECTURES.keys()
    known = [row.gguf for row in ARCHITECTURES.values() if row.gguf is not None]
    assert names == {name for gguf in known for name in (gguf.architecture, *gguf.also_called)}
    assert f"[{len(types)} families](docs/models.md)" in (ROOT / "README.md").read_text()
    counted = f"- {len(types)} families from Hugging Face folders, and {len(known)} of them from GGUF files too"
    assert counted in (ROOT / "CHANGELOG.md").read_text()


def test_the_guide_names_the_largest_config_file() -> None:
    assert f"The file may have {MAX_TOML_BYTES >> 10} KiB." in (ROOT / "docs/guides/configuration.md").read_text()


def test_each_table_that_a_new_thing_needs_a_row_in_is_in_a_file_named_beside_it() -> None:
    folders = ("sdk", "export", "training", "tests", "benchmarks")
    python = {path.as_posix(): path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    for thing, where in rows("docs/architecture.md", "## One place for each new thing"):
        files = ["/" + name.rpartition("…")[2].lstrip("/") for name in re.findall(r"`([\w/…-]+\.py)`", where)]
        beside = {name: [text for path, text in python.items() if path.endswith(name)] for name in files}
        assert [name for name, texts in beside.items() if not texts] == [], thing
        for table in re.findall(r"`(_?[A-Z][A-Z0-9_]+)`", where):
            assigned = re.compile(rf"^{table}\b", re.MULTILINE)
            assert any(assigned.search(text) for texts in beside.values() for text in texts), f"{thing}: {table}"


@pytest.mark.parametrize("package", [edgelm, edgelm_export, edgelm_training], ids=lambda package: package.__name__)
def test_each_room_has_a_place_in_the_plan_of_the_house(package: ModuleType) -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.partition(f"**The rooms of `{package.__name__}`")[2].partition("\n\n")[2].partition("\n\n")[0]
    told = re.findall(r"`(\w+)(?:/|\.py)`", table)
    there = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]
    assert sorted(told) == sorted(there)


def test_the_guide_names_the_recipe_and_the_bound_of_every_precision() -> None:
    page = (ROOT / "docs/guides/quantize.md").read_text()
    table = page.partition("What the names stand for")[2].partition("\n### ")[0]
    told = {}
    for names, recipe, bounds in re.findall(r"^\| (`.+?) \| (.+) \| ([\d., ]+) \|$", table, re.MULTILINE):
        for name, bound in zip(re.findall(r"`([\w-]+)`", names), bounds.split(", "), strict=True):
            told[name] = (set(re.findall(r"`(int\d-block\S+?)`", recipe)), float(bound))
    assert told == {
        name: ({rule.scheme for rule in precision.rules if rule.scheme.startswith("int")}, precision.perplexity_bound)
        for name, precision in PRECISIONS.items()
    }


def test_the_page_for_those_who_come_from_elsewhere_names_what_there_is() -> None:
    page = (ROOT / "docs/guides/coming-from.md").read_text()
    here = [cell for row in page.splitlines() if row.startswith("|") for cell in row.split("|")[2:]]
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    options = {name for command in commands.values() if command for param in command.params for name in param.opts}
    assert set(re.findall(r"`edgelm ([\w-]+)", "".join(here))) <= commands.keys()
    ours = {
        option for cell in here for option in re.findall(r"[` ](--[\w-]+)", cell.replace("ollama show --modelfile", ""))
    }
    assert len(ours) > 15
    assert ours <= options | {"--no-think"}


def commands_of(line: str) -> Iterator[list[str]]:
    """Yield what `edgelm` is called with on a line of the shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;<>&")
    lexer.whitespace_split = True
    for command in re.split(r"\0[|;&]+\0", "\0".join(lexer)):
        words = re.sub(r"\0[<>]+\0[^\0]+", "", command).split("\0")
        while re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        if words[0] == "edgelm":
            yield words[1:]


def check_that_it_is_taken(words: list[str]) -> None:
    """Raise click's error where a command, an option or a choice does not exist, or an argument is too many or missing.

    No file is looked at: those of the pages are the reader's.
    """
    # A command keeps the option for help that it has first been parsed with.
    context = click.Context(main, info_name="edgelm", **main.context_settings)
    given, rest, _ = main.make_parser(context).parse_args(words)
    while rest and isinstance(context.command, click.Group):
        name, command, rest = context.command.resolve_command(context, rest)
        assert command is not None
        context = click.Context(command, info_name=name, parent=context)
        given, rest, _ = command.make_parser(context).parse_args(rest)
    if rest:
        raise click.UsageError(f"{rest} is too much")
    for parameter in context.command.params:
        value = given.get(parameter.name)
        if parameter.required and not value:
            raise click.MissingParameter(ctx=context, param=parameter)
        if value is not None and isinstance(parameter.type, click.Choice | click.types.IntParamType):
            parameter.type_cast_value(context, value)


def pages_of_help(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the help of a command, and of all that are in it."""
    yield f"{command.help}\n\n{command.epilog}"
    for name in command.list_commands(context) if isinstance(command, click.Group) else ():
        inner = command.get_command(context, name)
        assert inner is not None
        yield from pages_of_help(inner, context)


def test_each_command_in_the_pages_and_in_the_help_is_one_that_is_taken() -> None:
    pages = [path.read_text() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))]
    lines = [
        line
        for page in pages
        for block in re.findall(r"^ *```sh\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)
        for line in block.replace("\\\n", "").splitlines()
        if "edgelm" in line
    ]
    for page in pages_of_help(main, click.Context(main)):
        lines += [
            line.partition("  ")[0] for line in re.findall(r"^ +((?:[A-Z_]+=\S+ |.*\| )?edgelm .*)", page, re.MULTILINE)
        ]
    found = [words for line in lines for words in commands_of(line)]
    assert len(found) > 300
    for words in found:
        try:
            check_that_it_is_taken(words)
        except click.UsageError as error:
            pytest.fail(f"edgelm {shlex.join(words)}: {error.format_message()}")


@pytest.mark.parametrize("code", [EXIT_CLOSED_PIPE, EXIT_INTERRUPTED])
def test_the_help_and_the_guide_name_the_exit_codes(code: int) -> None:
    guide = (ROOT / "docs/guides/configuration.md").read_text().partition("## Exit codes")[2]
    assert re.search(rf"^\| .*\b{code}\b", guide, re.MULTILINE)
    assert main.help is not None
    assert str(code) in main.help
