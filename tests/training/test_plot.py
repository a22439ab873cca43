"""`edgelm plot`: the curves of a run, in characters and as a picture."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import matplotlib
import pytest
from click.testing import Result
from command_line import invoke
from matplotlib import font_manager

from edgelm_training.runs import plot as plot_module
from edgelm_training.runs.plot import draw_text, read_curves


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A loss that falls in a line, a learning rate that stays, a norm that alternates."""
    folder = tmp_path / "run"
    folder.mkdir()
    entries = [
        {"step": step, "loss": 11.0 - step, "learning_rate": 0.5, "grad_norm": 1.0 + step % 2} for step in range(1, 11)
    ]
    entries.insert(5, {"step": 5, "validation_loss": 6.5})
    lines = [json.dumps(entry) for entry in entries]
    (folder / "log.jsonl").write_text("\n".join([*lines, "[" * 100_000, '{"step": 11, "lo']))
    return folder


def plot(*arguments: object) -> Result:
    return invoke("plot", *arguments)


def test_a_chart_in_characters_has_its_curve_and_its_ends(run: Path) -> None:
    chart = draw_text([run], width=32, height=10).splitlines()

    assert chart[0].strip() == "loss"
    rows = chart[1:11]
    assert rows[0] == "       10 ┤•"
    assert rows[9] == "        1 ┤" + " " * 19 + "•"
    # Ten steps of a line on ten rows: one mark in each, further right each time.
    places = [row.index("•") for row in rows]
    assert places == sorted(set(places))
    assert chart[12].split() == ["1", "10"]
    assert [line.strip() for line in chart if line.strip() in ("learning rate", "gradient norm")] == [
        "learning rate",
        "gradient norm",
    ]


def test_what_is_no_number_is_passed_over(run: Path) -> None:
    with (run / "log.jsonl").open("a") as file:
        file.write('\n{"step": 11, "loss": NaN, "grad_norm": null}\n{"step": 12, "loss": 0.5, "grad_norm": Infinity}\n')
    assert read_curves(run, "loss").steps == [*range(1, 11), 12]
    assert read_curves(run, "grad_norm").steps == [*range(1, 11)]


def test_a_log_with_numbers_beyond_a_float_or_steps_in_another_order_has_charts(run: Path) -> None:
    chart = draw_text([run], width=40)
    log = run / "log.jsonl"
    huge, *lines = "1" + "0" * 400, *reversed(log.read_text().splitlines())
    odd = [f'{{"step": {huge}, "loss": 1}}', f'{{"step": 3, "loss": {huge}}}', '{"step": 4, "loss": -1e308}']
    log.write_text("\n".join([*odd, *lines]))
    assert draw_text([run], width=40) == chart


def test_a_run_of_one_step_a_narrow_terminal_and_many_runs_have_charts(run: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "log.jsonl").write_text((run / "log.jsonl").read_text().splitlines()[0])

    chart = draw_text([one] * 7, width=3).splitlines()

    assert chart[0].strip() == "loss"
    assert chart[-1].count(str(one)) == 7
    assert max(map(len, chart[1:13])) == len("       10 ┤•")


def test_two_runs_have_two_marks(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "log.jsonl").write_text((run / "log.jsonl").read_text().replace('"loss": ', '"loss": 2'))

    result = plot(run, other)

    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"• {run}  + {other}"
    assert "+" in result.stdout.splitlines()[1]


def test_validation_losses_are_read_beside_the_steps(run: Path) -> None:
    curve = read_curves(run, "validation_loss")
    assert (curve.steps, curve.values) == ([5], [6.5])


@pytest.mark.parametrize(("name", "begins"), [("loss.png", b"\x89PNG"), ("loss.SVG", b"<?xml")])
def test_a_picture_is_drawn(name: str, begins: bytes, run: Path, tmp_path: Path) -> None:
    result = plot(run, "-o", tmp_path / name)

    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / name}\n")
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_the_line_of_a_picture_is_the_mean_around_each_step() -> None:
    values = [0.0, 6.0, 0.0, *[3.0] * 97]
    assert plot_module._smoothed(values) == [3.0, 2.0, 3.0, 2.0, *[3.0] * 96]  # of 100, one on either side


def test_a_run_may_have_any_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a$_{$\U0010fffd"  # no formula, and a character that no font has
    run.rename(name)
    with warnings.catch_warnings(action="error"):
        result = plot(name, "-o", "loss.png")
    assert (result.exit_code, result.stdout) == (0, "loss.png\n")
    assert result.stderr.startswith("No font of this machine has \U0010fffd: boxes stand in their place.")


def test_a_picture_takes_a_font_that_has_the_characters(run: Path, tmp_path: Path) -> None:
    symbols = next(font for font in font_manager.fontManager.ttflist if font.name == "STIXGeneral")
    own = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    only_there = chr(min(font_manager.get_font(symbols.fname).get_charmap().keys() - own.keys()))
    of_none = "\U0010fffd"
    with warnings.catch_warnings(action="error"):
        result = plot(run.rename(tmp_path / only_there), "-o", tmp_path / "loss.png")
        beside = plot((tmp_path / only_there).rename(tmp_path / f"{only_there}{of_none}"), "-o", tmp_path / "loss.png")
    assert (result.exit_code, result.stderr) == (0, "")
    assert beside.stderr.startswith(f"No font of this machine has {of_none}: boxes stand in their place.")


def test_a_picture_is_drawn_as_always_in_a_folder_with_settings_of_matplotlib(run: Path, tmp_path: Path) -> None:
    """They could have LaTeX run, on words of whoever made the folder."""
    with matplotlib.rc_context():  # as if one had been there when matplotlib was imported
        matplotlib.rcParams.update({"text.usetex": True, "axes.facecolor": "red"})
        assert plot(run, "-o", tmp_path / "loss.svg").exit_code == 0

    assert "#ff0000" not in (tmp_path / "loss.svg").read_text()


def test_a_suffix_that_is_no_picture_is_wrong_usage(run: Path, tmp_path: Path) -> None:
    result = plot(run, "-o", tmp_path / "loss.doc")
    assert (result.exit_code, "has no suffix of a picture: use .png, .svg or .pdf." in result.stderr) == (2, True)


def test_a_picture_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    result = plot(run, "-o", tmp_path / "none" / "loss.png")
    assert result.exit_code == 1
    assert f"Cannot write {tmp_path / 'none' / 'loss.png'}: No such file or directory." in result.stderr


def test_a_folder_without_a_log_is_an_error(tmp_path: Path) -> None:
    assert "Name the folder of a run." in plot(tmp_path).stderr
    (tmp_path / "log.jsonl").write_text('{"step": 1, "validation_loss": 3.0}\n')
    assert "has no loss yet." in plot(tmp_path).stderr


def test_a_picture_without_matplotlib_says_how_to_get_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelm.extras.importlib.util.find_spec", lambda _: None)
    result = plot(run, "-o", tmp_path / "loss.png")
    assert result.exit_code == 1
    assert 'pip install "edgelm[plot]"' in result.stderr


def test_settings_that_matplotlib_cannot_read_are_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "matplotlibrc").write_bytes("font.family: café".encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "matplotlib")  # which reads them as it is imported
    result = plot(run, "-o", "loss.png")
    assert result.exit_code == 2
    assert "matplotlib cannot read its settings: 'utf-8' codec can't decode byte 0xe9" in result.stderr
    assert "Mend or remove the file matplotlibrc (in this folder, " in result.stderr
