"""The config file and the environment: what they set, what wins, what they refuse, and how `edgelm config` shows it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest
from command_line import invoke
from tiny_adapter import write_tiny_adapter

from edgelm.cli import config_file
from edgelm.cli import main as main_module
from edgelm.cli.adapter_options import NamedFolder
from edgelm.cli.config_file import config_path, settings
from edgelm.cli.main import main
from edgelm.errors import MissingExtraError
from edgelm.files.folders import config_folder
from edgelm.testing import tiny_model_path

TINY = str(tiny_model_path())


@click.command("probe")
@click.argument("model", required=False)
@click.argument("needed", default="x", required=True)
@click.option("--temperature", type=float, default=1.0, show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=80)
@click.option("--kind", type=click.Choice(["a", "b"]), default="a")
@click.option("-s", "--stop", multiple=True)
@click.option("--key-file", type=click.Path(dir_okay=False))
@click.option("--api-key", default="")
@click.option("--json", "as_json", is_flag=True)
def probe(**values: object) -> None:
    """Print what arrived."""
    click.echo(json.dumps(values))


@click.group("group")
@click.option("--loud", is_flag=True)
def group(loud: bool) -> None:
    """Hold a command."""


@group.command("inner")
@click.option("--size", type=int, default=1)
def inner(size: int) -> None:
    """Print its size."""
    click.echo(size)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `edgelm` have three commands: two of these tests, and config."""
    from edgelm.cli.config import config

    ours = {"probe": probe, "group": group, "config": config}
    monkeypatch.setattr(main_module.LazyGroup, "list_commands", lambda *_: sorted(ours))
    monkeypatch.setattr(main_module.LazyGroup, "get_command", lambda _self, _context, name: ours.get(name))


with_these_commands = pytest.mark.usefixtures("commands")


def write(text: str) -> Path:
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def probed(*arguments: str) -> dict[str, object]:
    result = invoke("probe", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@with_these_commands
def test_a_flag_wins_over_the_environment_that_over_the_file_and_that_over_the_default(monkeypatch):
    assert probed()["temperature"] == 1.0
    write("[probe]\ntemperature = 0.5\n")
    assert probed()["temperature"] == 0.5
    monkeypatch.setenv("EDGELM_PROBE_TEMPERATURE", "0.25")
    assert probed()["temperature"] == 0.25
    assert probed("--temperature", "0.125")["temperature"] == 0.125


@with_these_commands
def test_the_variable_of_an_option_has_its_long_name(monkeypatch):
    monkeypatch.setenv("EDGELM_PROBE_JSON", "1")
    monkeypatch.setenv("EDGELM_PROBE_STOP", "x y")
    monkeypatch.setenv("EDGELM_GROUP_INNER_SIZE", "3")
    assert probed()["as_json"] is True
    assert probed()["stop"] == ["x", "y"]
    assert invoke("group", "inner").stdout == "3\n"
    lines = [line.split() for line in invoke("config", "probe").stdout.splitlines()]
    assert ["probe.json", '"1"', "environment", "($EDGELM_PROBE_JSON)"] in lines


@with_these_commands
def test_every_kind_of_setting_arrives(own_library):
    write(
        '[probe]\nmodel = "tiny"\ntemperature = 2\nport = 9000\nkind = "b"\nstop = ["x", "y z"]\n'
        'key_file = "keys"\njson = true\n[group]\nloud = true\n[group.inner]\nsize = 7\n'
    )
    values = probed()
    assert values == {
        "model": "tiny", "needed": "x", "temperature": 2.0, "port": 9000, "kind": "b", "stop": ["x", "y z"],
        "key_file": str(own_library / "keys"), "api_key": "", "as_json": True,
    }  # fmt: skip
    assert invoke("group", "inner").stdout == "7\n"


@with_these_commands
def test_the_help_shows_the_default_that_is_in_force():
    write("[probe]\ntemperature = 0.5\n")
    assert "[default: 0.5]" in invoke("probe", "--help").stdout


@with_these_commands
@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[probe]\ntemprature = 1\n",
            "no setting 'temprature'. Did you mean temperature? There are model, ",
        ),
        ("[probe]\nneeded = 'y'\n", "[probe] has no setting 'needed'"),
        ("[probe]\nas_json = true\n", "[probe] has no setting 'as_json'"),
        ("[probe]\nkey-file = 'x'\n", "[probe] has no setting 'key-file'. Did you mean key_file?"),
        (
            "[prob]\n",
            "no command 'prob'. Did you mean probe? Its sections are named for the commands: config,",
        ),
        ("probe = 3\n", "probe is 3; it must be a section, [probe]."),
        ("[probe]\ntemperature = 'hot'\n", "[probe] temperature is 'hot'; it must be a number."),
        (f"[probe]\ntemperature = 1{'0' * 400}\n", "[probe] temperature is too large a number. Correct it."),
        ("[probe]\ntemperature = true\n", "[probe] temperature is True; it must be a number."),
        ("[probe]\nport = 1.5\n", "[probe] port is 1.5; it must be a whole number."),
        ("[probe]\nport = 70000\n", "[probe] port: 70000 is not in the range 0<=x<=65535. Correct it."),
        ("[probe]\njson = 'yes'\n", "[probe] json is 'yes'; it must be true or false."),
        ("[probe]\nkind = 'c'\n", "[probe] kind: 'c' is not one of 'a', 'b'. Correct it."),
        ("[probe]\nkind = 1\n", "[probe] kind is 1; it must be a text."),
        ("[probe]\nstop = 'x'\n", "[probe] stop is 'x'; it must be a list, in [ ]."),
        ("[probe]\nstop = ['x', 1]\n", "[probe] stop is 1; it must be a text."),
        ("[probe]\napi_key = ['secret']\n", "[probe] api_key is (hidden); it must be a text."),
        ("[group.inner]\nsize = 'x'\n", "[group.inner] size is 'x'; it must be a whole number."),
        ("[group]\ninner = 'x'\n", "group.inner is 'x'; it must be a section, [group.inner]."),
        ("[probe\n", "cannot be read: "),
        ("# " + "x" * 70_000, "cannot be read: "),
        ("[probe]\nstop = " + "[" * 100_000, "cannot be read: "),
        (f"[probe]\nport = 0x{'f' * 5000}\n", "cannot be read: "),
    ],
)
def test_a_mistake_is_an_error_that_names_the_file_and_the_key(text, message):
    path = write(text)
    result = invoke("group" if "group" in text else "probe", *(["inner"] if "group" in text else []))
    assert result.exit_code == 2
    error = result.stderr.splitlines()[-1]
    assert error.startswith(f"Error: {path}")
    assert message in error


@with_these_commands
def test_a_file_that_is_no_text_is_an_error(monkeypatch):
    path = write("")
    path.write_bytes(b"\xff")
    assert f"{path} cannot be read: " in invoke("probe").stderr
    assert "Correct it, or remove it." in invoke("probe").stderr
    monkeypatch.setenv("EDGELM_CONFIG", str(path.parent))  # a folder, which nobody should remove for that
    assert "it is not a regular file. Correct it, or unset EDGELM_CONFIG." in invoke("probe").stderr


@with_these_commands
def test_a_folder_that_may_not_be_entered_is_said_for_what_it_is(monkeypatch):
    """A home that may not be read has no file that anybody could correct."""

    def refuse(path, most):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(config_file, "read_text", refuse)
    error = invoke("probe").stderr
    assert "may not be read: Permission denied. Let this user read it and enter its folder, or set EDGELM_HOME" in error
    monkeypatch.setenv("EDGELM_CONFIG", "/root/mine.toml")
    assert "/root/mine.toml may not be read: Permission denied." in invoke("probe").stderr
    assert "or unset EDGELM_CONFIG." in invoke("probe").stderr


@with_these_commands
def test_a_mistake_in_the_section_of_another_command_waits_for_it():
    write("[group.inner]\nsize = 'x'\n")
    assert probed()["port"] == 80
    assert invoke("config").exit_code == 2


@with_these_commands
def test_the_general_help_needs_no_file():
    write("nonsense")
    assert invoke("--help").exit_code == 0
    assert invoke("--version").exit_code == 0


@with_these_commands
def test_another_file_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for missing in ("~/mine.toml", "~/mine.toml/in-a-file"):
        monkeypatch.setenv("EDGELM_CONFIG", missing)
        expected = f"EDGELM_CONFIG is {missing.replace('~', str(tmp_path))}, and there is no such file."
        assert expected in invoke("probe").stderr
        (tmp_path / "mine.toml").write_text("[probe]\nport = 1\nkey_file = '~/keys'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGELM_CONFIG", "mine.toml")
    assert invoke("config", "--path").stdout == f"{tmp_path / 'mine.toml'}\n"
    values = probed()
    assert (values["port"], values["key_file"]) == (1, str(tmp_path / "keys"))


@with_these_commands
@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG is the convention of other systems")
def test_the_file_lies_where_the_system_keeps_settings(monkeypatch, tmp_path):
    monkeypatch.delenv("EDGELM_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert config_path() == tmp_path / ".config/edgelm/edgelm.toml"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    assert config_folder() == tmp_path / "settings" / "edgelm"


@with_these_commands
def test_a_user_without_a_home_has_no_file_and_what_needs_none_runs(monkeypatch):
    monkeypatch.setenv("EDGELM_HOME", "~nosuchuser/x")
    assert probed()["port"] == 80
    result = invoke("config", "--path")
    assert "EDGELM_HOME is '~nosuchuser/x'" in result.stderr


@with_these_commands
def test_config_shows_what_is_set_and_from_where(monkeypatch):
    path = config_path()
    assert invoke("config").stdout == f"{path} (not written yet)\n"
    write('[probe]\nstop = ["a"]\napi_key = "very secret"\ntemperature = inf\n[group.inner]\nsize = 7\n')
    monkeypatch.setenv("EDGELM_PROBE_PORT", "81")
    lines = invoke("config").stdout.splitlines()
    assert lines[0] == str(path)
    assert [line.split() for line in lines[1:]] == [
        ["group.inner.size", "7", "file"],
        ["probe.temperature", '"inf"', "file"],
        ["probe.port", '"81"', "environment", "($EDGELM_PROBE_PORT)"],
        ["probe.stop", '["a"]', "file"],
        ["probe.api_key", '"(hidden)"', "file"],
    ]
    facts = json.loads(invoke("config", "--json").stdout, parse_constant=pytest.fail)
    assert (facts["path"], facts["exists"]) == (str(path), True)
    assert facts["settings"][0] == {
        "command": "group.inner", "name": "size", "value": 7, "source": "file", "variable": "EDGELM_GROUP_INNER_SIZE",
    }  # fmt: skip
    assert invoke("config", "--path").stdout == f"{path}\n"


@with_these_commands
@pytest.mark.parametrize("arguments", [(), ("probe",), ("--json",)])
def test_config_names_a_variable_that_is_misspelt(monkeypatch, arguments):
    other = {"probe-more": group}  # its variables begin as those of probe do
    get_command = main_module.LazyGroup.get_command
    monkeypatch.setattr(main_module.LazyGroup, "list_commands", lambda *_: ["config", "group", "probe", "probe-more"])
    monkeypatch.setattr(main_module.LazyGroup, "get_command", lambda *given: other.get(given[2]) or get_command(*given))
    monkeypatch.setenv("EDGELM_PROBE_MORE_LOUD", "1")
    monkeypatch.setenv("EDGELM_PROBE_TEMPERATUR", "0.5")
    monkeypatch.setenv("EDGELM_GROUP_INNER_SIZE", "3")
    monkeypatch.setenv("EDGELM_ELSEWHERE", "x")  # of another program
    result = invoke("config", *arguments)
    told = [line for line in result.stderr.splitlines() if "EDGELM_" in line]
    assert told == ["EDGELM_PROBE_TEMPERATUR sets nothing. Did you mean EDGELM_PROBE_TEMPERATURE?"]
    assert "TEMPERATUR " not in result.stdout


@with_these_commands
def test_config_shows_every_option_of_one_command():
    lines = [line.split() for line in invoke("config", "probe").stdout.splitlines()]
    assert ["probe.temperature", "1.0", "default", "($EDGELM_PROBE_TEMPERATURE)"] in lines
    assert ["probe.model", "default"] in lines
    assert len(lines) == len(settings(probe))
    result = invoke("config", "nothing")
    assert result.exit_code == 2
    assert "There is no command 'nothing'. There are config, group, probe." in result.stderr


@with_these_commands
@pytest.mark.parametrize(
    "error", [MissingExtraError('pip install "edgelm[group]"'), ModuleNotFoundError("No module named 'of_a_plug_in'")]
)
def test_a_command_that_cannot_be_imported_has_no_settings_to_show(error, monkeypatch):
    get_command = main_module.LazyGroup.get_command

    def lacking(group, context, name):
        if name == "group":
            raise error
        return get_command(group, context, name)

    monkeypatch.setattr(main_module.LazyGroup, "get_command", lacking)
    write("[probe]\nport = 1\n")
    assert invoke("config").stdout.splitlines()[1:] == [f"{'probe.port':<28} {'1':<24} file"]
    asked = invoke("config", "group")
    assert asked.exception is error or asked.stderr == f"error: {error}\n"


@pytest.mark.parametrize("place", ["file", "environment"])
def test_settings_that_no_generation_takes_together_say_where_to_look(monkeypatch, place):
    if place == "file":
        write("[run]\nnum_beams = 2\ntemperature = 0.5\n")
    else:
        monkeypatch.setenv("EDGELM_RUN_NUM_BEAMS", "2")
        monkeypatch.setenv("EDGELM_RUN_TEMPERATURE", "0.5")
    result = invoke("run", "x", "hi")
    assert result.exit_code == 2
    assert "num_beams is 2, and temperature is 0.5; beam search" in result.stderr
    assert "`edgelm config run` shows where it is set." in result.stderr


def test_config_finds_a_value_that_no_generation_takes():
    path = write("[run]\ntemperature = 900\n")
    result = invoke("config")
    assert result.exit_code == 2
    assert f"{path}: [run] temperature: 900.0 is not in the range 0.0<=x<=100.0. Correct it." in result.stderr


def test_a_value_of_the_environment_that_an_option_refuses_says_where_to_look(monkeypatch):
    where = "`edgelm config run` shows where it is set."
    assert where not in invoke("run", "x", "hi", "--temperature", "hot").stderr
    monkeypatch.setenv("EDGELM_RUN_TEMPERATURE", "hot")
    result = invoke("run", "x", "hi")
    assert result.exit_code == 2
    assert f"Invalid value for '--temperature': 'hot' is not a valid number. {where}" in result.stderr


@pytest.mark.parametrize("name", ["chat", "run", "serve", "cache", "export", "pull"])
def test_each_option_of_a_command_can_be_set(name):
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert {"help", "version"}.isdisjoint(settings(command))
    assert all(key.isidentifier() for key in settings(command))


@pytest.mark.parametrize(
    ("section", "arguments", "message"),
    [
        (
            "cache.clear]\nnames = ['a']",
            ["cache", "clear", "--calibration"],
            "leave the names out. `edgelm config cache`",
        ),
        ("run]\nregex = 'a'", ["run", "x", "hi", "--choice", "b"], "exclude each other; give one. `edgelm config run`"),
        ("run]\nraw = true", ["run", TINY, "hi", "--system", "x"], "--raw leaves it out. `edgelm config run`"),
        ("run]\nraw = true", ["run", TINY, "hi", "--think"], "--raw leaves it out. `edgelm config run`"),
        ("config]\njson = true", ["config", "--path"], "exclude each other; give one. `edgelm config config`"),
        ("show]\njson = true", ["show", TINY, "--bom"], "exclude each other; give one. `edgelm config show`"),
    ],
)
def test_options_that_do_not_go_together_say_where_to_look_if_one_of_them_was_not_typed(section, arguments, message):
    write(f"[{section}\n")
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert f"{message} shows where it is set." in " ".join(result.stderr.split())


def test_an_adapter_of_the_file_begins_at_the_file_whatever_its_name(tmp_path):
    folder = write_tiny_adapter(write("").parent / "adapter")
    expected = invoke("run", TINY, "Hello", "--max-new-tokens", "8", "--adapter", folder).stdout
    assert expected != invoke("run", TINY, "Hello", "--max-new-tokens", "8").stdout
    for value in ("adapter", "other=adapter"):
        write(f"[run]\nadapter = '{value}'\n[chat]\nadapter = ['{value}']\n")
        assert invoke("run", TINY, "Hello", "--max-new-tokens", "8").stdout == expected
        chat = invoke("chat", TINY, "--max-new-tokens", "8", stdin="Hello\n")
        assert chat.stdout.strip() == expected.strip()


def test_an_adapter_of_the_file_keeps_its_name_and_may_lie_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert NamedFolder().placed("shop=adapter", tmp_path) == f"shop={tmp_path / 'adapter'}"
    assert NamedFolder().placed("~/adapter", tmp_path) == str(tmp_path / "home" / "adapter")
