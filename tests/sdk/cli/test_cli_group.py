"""The command `edgelm`: lazy, complete, extensible; its errors and exit codes."""

from __future__ import annotations

import errno
import io
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import click
import pytest
from command_line import invoke

from edgelm.cli import main as main_module
from edgelm.cli import other_words
from edgelm.cli.main import main
from edgelm.cli.start import with_home
from edgelm.errors import DownloadError

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
COMMANDS = sorted(PROJECT["entry-points"][main_module.COMMAND_GROUP])


class FakePackage:
    """What importlib.metadata tells of an installed package."""

    name = "other-package"

    def __init__(self, *requires: str) -> None:
        self.requires = list(requires)


def add_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, name: str = "extra", *requires: str):
    """Install a module of another package that offers a command."""
    module = f"module_of_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    point = metadata.EntryPoint(name, f"{module}:command", main_module.COMMAND_GROUP)
    vars(point)["dist"] = FakePackage(*requires)
    ours = list(metadata.entry_points(group=main_module.COMMAND_GROUP))
    monkeypatch.setattr(main_module.metadata, "entry_points", lambda group: [*ours, point])


def test_help_lists_each_command_with_the_first_line_of_its_docstring():
    result = invoke("-h")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.output
    assert re.search(r"\n  pull +Download a model and make a package of it\.\n", result.output)
    assert "(from edgelm)" not in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_examples(name):
    for flag in ("-h", "--help"):
        result = invoke(name, flag)
        assert result.exit_code == 0, result.output
        examples = result.output.partition("Examples:\n")[2]
        assert f"    edgelm {name}" in examples or f"| edgelm {name}" in examples


@pytest.mark.parametrize("name", COMMANDS)
def test_what_an_example_does_stands_below_it_where_the_terminal_is_too_narrow_for_both(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    examples = invoke(name, "-h").output.partition("Examples:\n")[2].partition("\n\n")[0]
    assert not [line for line in examples.splitlines() if len(line) > 80 and "  " in line.strip()]


def test_what_an_example_does_stands_beside_it_where_there_is_room(monkeypatch):
    def examples(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        return invoke("import", "-h").output.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()

    widest = max(map(len, examples(200)))
    assert len(examples(widest)) == len(examples(200)) == 3
    assert len(examples(widest - 1)) == 6


def test_a_misspelt_command_is_told_which_was_meant():
    result = invoke("chta")
    assert result.exit_code == 2
    assert "No such command 'chta'. Did you mean chat?" in result.stderr
    assert "No such command 'zzz'" in invoke("zzz").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls"], "No such command 'ls'. Here that is `edgelm list`."),
        (["ps"], "No such command 'ps'. Here that is `curl http://127.0.0.1:8080/api/ps`, which asks `edgelm serve`."),
        (["run", "m", "hi", "--temp", "0"], "No such option '--temp'. Here it is --temperature."),
        (["run", "--model", "m"], "No such option '--model'. MODEL is an argument, without a name before it."),
        (["export", "--hf-path", "m"], "No such option '--hf-path'. SOURCE is an argument, without a name before it."),
        (["run", "m", "-p", "hi"], "No such option '-p'. PROMPT is an argument, without a name before it."),
        (["serve", "-p", "9000"], "No such option '-p'. Here it is --port."),
        (["serve", "-m", "m"], "No such option '-m'. [MODEL]... is an argument, without a name before it."),
        (["run", "m", "hi", "-ngl", "99"], "No such option '-ngl'. Here it is --provider."),
        (["chat", "m", "-md=small"], "No such option '-md'. Here it is --speculation."),
        (["run", "m", "hi", "-fa", "on"], "No such option '-fa'. Leave it out: there is nothing to set."),
        (["run", "-f", "a.txt", "m"], "No such option '-f'. Standard input is read: `edgelm run MODEL < FILE`."),
        (["eval", "m", "-f", "a.txt"], "No such option '-f'. Here it is --data."),
        (["eval", "m", "-c", "512"], "No such option '-c'. Here it is --window."),
        (["finetune", "-c", "a.toml"], "No such option '-c'. [MODEL|TOML] is an argument, without a name before it."),
        (["train", "--lr", "1e-3"], "No such option '--lr'. Here it is --learning-rate."),
        (["train", "--block_size", "256"], "No such option '--block_size'. Here it is --sequence-length."),
        (["export", "m", "--block_size", "32"], "No such option '--block_size'. Here it is --recipe."),
        (["train", "--learning_rate=3e-4"], "No such option '--learning_rate'. Here it is --learning-rate."),
        (["train", "--train.max_steps", "9"], "No such option '--train.max_steps'. Here it is --max-steps."),
        (["train", "--model-name", "m"], "No such option '--model-name'. Here it is --init."),
        (["train", "--n_layer=6"], f"No such option '--n_layer'. {other_words.OF_ALL['--n_layer']}"),
        (["finetune", "--model_name_or_path", "m"], "No such option '--model_name_or_path'. Here it is --model."),
        (["finetune", "--num_train_epochs", "2"], "No such option '--num_train_epochs'. Here it is --epochs."),
        (["serve", "--top-k", "40"], f"No such option '--top-k'. {other_words.OF_ANSWERS['--top-k']}"),
        (["chat", "m", "--ctx-size", "512"], f"No such option '--ctx-size'. {other_words.OF_ANSWERS['-c']}"),
        (["run", "m", "- milk"], "No such option '- milk'. A text that begins with - stands last, behind --."),
        (["run", "m", "-5 degrees"], "No such option '-5 degrees'. A text that begins with - stands last, behind --."),
        (["run", "m", "--x y"], "No such option '--x y'. A text that begins with - stands last, behind --."),
        (["run", "m", "hi", "--think=false"], "Option '--think' does not take a value. Its opposite is --no-think."),
        (["manage"], "No such command 'manage'. Here that is `edgelm list` and `edgelm rm`."),
        (["run", "m", "hi", "--raw=no"], "Option '--raw' does not take a value."),
        (["run", "m", "hi", "-nkvo", "-n", "5"], "No such option '-n'. Here it is --max-new-tokens."),
    ],
)
def test_words_of_other_programs_are_told_ours(arguments, message):
    result = invoke(*arguments)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"Error: {message}")


def test_other_words_are_answered_by_click():
    for arguments, words in (
        (["list", "--outfile", "a"], "--outfile"),
        (["list", "-c"], "-c"),
        (["run", "--max-new-token", "3"], "-new-tokens"),
        (["run", "-nkvo"], "-n"),
        (["run", "m", "--stopp=a b"], "--stopp"),
        (["list", "-5"], "-5"),  # which takes no text
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert "Here it is" not in result.stderr
        assert "behind --" not in result.stderr


def test_each_word_of_ours_for_another_programs_exists():
    commands = {name: main.get_command(click.Context(main), name) for name in COMMANDS}
    ours = {name for command in commands.values() for param in command.params for name in param.opts}
    arguments = {param.human_readable_name for command in commands.values() for param in command.params}
    for theirs, names in other_words.OPTIONS.items():
        assert theirs not in arguments
        assert set(names) <= ours | arguments
    assert not other_words.COMMANDS.keys() & set(COMMANDS)
    ways = (*other_words.COMMANDS.values(), *other_words.OF_ANSWERS.values(), *other_words.OF_ALL.values())
    named = {name for what in ways for name in re.findall(r"`edgelm (\w+)", what)}
    assert named <= set(COMMANDS)


def test_the_version_is_the_packages():
    assert invoke("--version").output == f"edgelm, version {metadata.version('edgelm')}\n"


@pytest.mark.parametrize("value", ["0.1.0", "1"])
def test_a_variable_that_names_the_version_is_no_question_for_it(monkeypatch, own_library, value):
    monkeypatch.setenv("EDGELM_VERSION", value)
    result = invoke("list", "--json")
    assert (result.exit_code, result.stdout) == (0, "[]\n")


def test_help_and_lists_import_nothing_heavy():
    code = """
import sys
from edgelm.cli.main import main
heavy = {"torch", "onnx", "onnxruntime", "numpy", "tokenizers", "transformers", "rich", "huggingface_hub"}
for arguments in (["--version"], ["--help"], ["list"], ["chat", "--help"], ["run", "--help"]):
    main(arguments, standalone_mode=False)
    assert not heavy & set(sys.modules), (arguments, heavy & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_another_packages_command_shows_up_and_runs(monkeypatch, tmp_path):
    source = 'import click\n@click.command()\ndef command():\n    """Do more."""\n    click.echo("done")\n'
    add_command(monkeypatch, tmp_path, source)
    assert re.search(r"\n  extra +Do more\.\n", invoke("--help").output)
    assert invoke("extra").output == "done\n"


def test_a_call_looks_once_for_commands_among_all_that_is_installed(monkeypatch):
    found, looked_for = metadata.entry_points, []

    def entry_points(*, group):
        looked_for.append(group)
        return found(group=group)

    monkeypatch.setattr(main_module.metadata, "entry_points", entry_points)
    assert invoke("list").exit_code == 0
    assert looked_for == [main_module.COMMAND_GROUP]


def test_another_package_cannot_replace_our_commands(monkeypatch, tmp_path):
    add_command(monkeypatch, tmp_path, "raise SystemExit(9)", "list")
    assert invoke("list").exit_code == 0


def test_a_command_whose_help_cannot_be_read_is_listed_by_its_package(monkeypatch, tmp_path):
    add_command(monkeypatch, tmp_path, "import nothing_of_that_name")
    assert re.search(r"\n  extra +\(from other-package\)\n", invoke("--help").output)


def test_a_command_inside_of_an_archive_is_listed_with_its_docstring(monkeypatch, tmp_path):
    source = 'import click\n@click.command()\ndef command():\n    """Do more."""\n'
    add_command(monkeypatch, tmp_path, source)
    module = next(tmp_path.glob("module_of_*.py"))
    with zipfile.ZipFile(tmp_path / "program.pyz", "w") as archive:
        archive.write(module, module.name)
    module.unlink()
    monkeypatch.syspath_prepend(tmp_path / "program.pyz")
    assert re.search(r"\n  extra +Do more\.\n", invoke("--help").output)


@pytest.mark.parametrize("arguments", [["--help"], ["list"]])
def test_without_its_metadata_the_command_says_what_is_missing(monkeypatch, arguments):
    monkeypatch.setattr(main_module.metadata, "entry_points", lambda group: [])
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: edgelm's commands are entry points of its metadata")


def test_a_command_that_lacks_its_extra_says_the_pip_line(monkeypatch, tmp_path):
    source = "import some_missing_module"
    add_command(monkeypatch, tmp_path, source, "extra", "numpy", 'some-missing.module>=1; extra == "more"')
    result = invoke("extra")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: `edgelm extra` needs 'some_missing_module', which is not installed: "
        'pip install "other-package[more]"\n'
    )


def test_a_command_whose_part_is_packaged_elsewhere_says_so(monkeypatch, tmp_path):
    add_command(monkeypatch, tmp_path, "")
    next(tmp_path.glob("module_of_*.py")).unlink()
    result = invoke("extra")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: `edgelm extra` is not installed: other-package is here without its part 'module_of_" in result.stderr
    assert invoke("config").exit_code == 0


@pytest.mark.parametrize("module", ["edgelm.cli.of_before", "edgelm.room_of_before.extra"])
def test_a_clone_that_was_updated_and_not_installed_again_says_so(monkeypatch, module):
    point = metadata.EntryPoint("extra", f"{module}:extra", main_module.COMMAND_GROUP)
    vars(point)["dist"] = metadata.distribution("edgelm")
    monkeypatch.setattr(main_module.metadata, "entry_points", lambda group: [point])
    result = invoke("extra")
    assert (result.exit_code, result.stdout) == (1, "")
    again = "needs edgelm installed again: its metadata is older than its code. In the clone: pip install -e ."
    assert result.stderr == f"error: `edgelm extra` {again}\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import some_missing_module", "ModuleNotFoundError: No module named 'some_missing_module'"),
        ("from edgelm import no_such_name", "ImportError: cannot import name 'no_such_name' from 'edgelm' ("),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("other = 3", "has no attribute 'command'"),
    ],
)
def test_another_packages_command_that_cannot_be_imported_is_named_where_it_is_called(
    monkeypatch, tmp_path, source, reason
):
    add_command(monkeypatch, tmp_path, source, "extra", 'numpy; extra == "more"')
    result = invoke("extra")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: The command 'extra' of other-package cannot be imported (")
    assert reason in result.stderr
    assert result.stderr.endswith("or remove it: pip uninstall other-package\n")
    assert invoke("--version").exit_code == 0


def test_help_lists_a_command_in_a_package_that_cannot_be_imported(monkeypatch, tmp_path):
    add_command(monkeypatch, tmp_path, "1 / 0")
    module = next(tmp_path.glob("module_of_*.py"))
    vars(metadata.entry_points(group=main_module.COMMAND_GROUP)[-1])["value"] = f"{module.stem}.inner:command"
    module.with_suffix("").mkdir()
    module.rename(module.with_suffix("") / "__init__.py")
    assert re.search(r"\n  extra +\(from other-package\)\n", invoke("--help").output)


def test_an_import_error_of_our_own_command_passes_through(monkeypatch, tmp_path):
    add_command(monkeypatch, tmp_path, "import some_missing_module")
    monkeypatch.setattr(FakePackage, "name", "edgelm")
    assert isinstance(invoke("extra").exception, ModuleNotFoundError)


def test_what_is_no_command_is_an_error(monkeypatch, tmp_path):
    add_command(monkeypatch, tmp_path, "command = 3")
    result = invoke("extra")
    assert result.exit_code == 1
    assert result.stderr == "error: The command 'extra' of other-package is not a click command: 3.\n"


def failing_with(error: BaseException) -> click.Command:
    @click.command("fail")
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DownloadError("The line is dead."), 1, "error: The line is dead.\n"),
        (DownloadError("No \x1b]0;title\a in\n  a hub's name"), 1, "error: No ]0;title in\n  a hub's name\n"),
        (KeyboardInterrupt(), 130, ""),
        (click.UsageError("Not like this."), 2, "Error: Not like this.\n"),
    ],
)
def test_what_ends_a_command_has_its_exit_code(monkeypatch, error, code, message):
    monkeypatch.setattr(main_module.LazyGroup, "get_command", lambda *_: failing_with(error))
    result = invoke("fail")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.endswith(message)


def test_an_interrupt_at_a_question_ends_with_130_and_a_no_with_1(monkeypatch):
    @click.command("ask")
    def ask() -> None:
        click.confirm("Really?", abort=True)

    def interrupted(_prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module.LazyGroup, "get_command", lambda *_: ask)
    assert invoke("ask", stdin="n\n").exit_code == 1
    monkeypatch.setattr("click.termui.visible_prompt_func", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main.main(["ask"])


def test_an_unknown_command_or_option_is_wrong_usage():
    assert invoke("chatt").exit_code == 2
    assert invoke("list", "--nope").exit_code == 2


@pytest.mark.parametrize(
    ("words", "option", "command"),
    [
        ("run m --adapter a hi --adapter=b", "--adapter", "run"),
        ("train --output a -o b", "--output", "train"),
        ("data prepare texts --field a --field b", "--field", "data prepare"),
    ],
)
def test_a_second_value_of_an_option_that_takes_one_is_refused(words, option, command):
    result = invoke(*words.split())
    assert result.exit_code == 2
    assert f"Usage: main {command} [OPTIONS]" in result.stderr
    assert f"{option} is given 2 times; give it once." in result.stderr


def test_a_switch_a_number_and_an_option_that_takes_several_may_come_twice():
    for words in ("chat nowhere --adapter a --adapter b", "run nowhere hi --json --json --top-k 1 --top-k 2"):
        assert "There is no model 'nowhere'" in invoke(*words.split()).stderr


def test_a_shell_that_completes_hears_nothing_of_a_command_that_lacks_its_extra(monkeypatch, tmp_path):
    add_command(monkeypatch, tmp_path, "import some_missing_module", "extra", 'some_missing_module; extra == "more"')
    context = click.Context(main, resilient_parsing=True)
    assert main.get_command(context, "extra") is None


@pytest.mark.parametrize(("system", "code"), [("win32", 141), ("linux", 1)])
def test_a_reader_that_has_left_is_an_invalid_argument_to_windows(system, code, monkeypatch):
    error = OSError(errno.EINVAL, "Invalid argument")
    monkeypatch.setattr(main_module.LazyGroup, "get_command", lambda *_: failing_with(error))
    monkeypatch.setattr(sys, "platform", system)
    assert invoke("fail").exit_code == code


@pytest.mark.parametrize(
    ("system", "chosen", "encoding"),
    [("win32", None, "utf-8"), ("win32", "cp850", "cp1252"), ("linux", None, "cp1252")],
)
def test_what_windows_writes_into_a_pipe_is_utf8_unless_somebody_chose_otherwise(system, chosen, encoding, monkeypatch):
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    if chosen is not None:
        monkeypatch.setenv("PYTHONIOENCODING", chosen)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    main(["config"], standalone_mode=False)
    assert sys.stdout.encoding == encoding


_ON_WINDOWS = """
import click.core, os, sys
from edgelm.cli.start import main

class Windows:
    name = "nt"
    __getattr__ = staticmethod(os.__getattribute__)

click.core.os = Windows()
sys.argv = ["edgelm", "show", sys.argv[1]]
main()
"""


@pytest.mark.parametrize("word", ["what-is-$HOME", "*"])
def test_nothing_in_an_argument_is_replaced_on_windows(word):
    result = subprocess.run([sys.executable, "-c", _ON_WINDOWS, word], capture_output=True, text=True, check=False)
    assert repr(word) in result.stderr


def test_a_path_in_the_users_home_is_known_where_no_shell_writes_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert with_home(["-o", "~/pkg", "~ is what?", "~ada/x", "a~/b"]) == [
        "-o", "/home/ada/pkg", "~ is what?", "~ada/x", "a~/b",
    ]  # fmt: skip


def test_a_file_that_fails_is_named(monkeypatch):
    error = PermissionError(13, "Permission denied", "a file")
    monkeypatch.setattr(main_module.LazyGroup, "get_command", lambda *_: failing_with(error))
    result = invoke("fail")
    assert (result.exit_code, result.stderr) == (1, "error: [Errno 13] Permission denied: 'a file'.\n")


@pytest.mark.parametrize(("ending", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_a_signal_while_an_extension_module_is_imported_ends_with_its_code(monkeypatch, ending, code):
    error = ImportError("initialization failed")
    error.__cause__ = ending
    monkeypatch.setattr(main_module.LazyGroup, "get_command", lambda *_: failing_with(error))
    result = invoke("fail")
    assert (result.exit_code, result.output) == (code, "")
