"""The curves of runs: loss, learning rate and gradient norm, as a picture or in characters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import ConfigError, TrainingError
from edgelm.extras import require
from edgelm.files import atomic
from edgelm_training.runs.run_folder import LOG_FILE
from edgelm_training.runs.train_log import read_log

# Key in the log -> title.
PANELS = {"loss": "loss", "learning_rate": "learning rate", "grad_norm": "gradient norm"}
VALIDATION = "validation_loss"

_MARKS = "•+x*o#"
_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
# The logged losses vary from step to step; a mean over this part of a run shows where they go.
_SMOOTHED_PART = 0.02
# Of numbers below it, sums and differences are still numbers; those of a run are of float32.
_BEYOND = 1e100
# matplotlib's own, and what it draws boxes with
_FONT, _BOXES = "DejaVu Sans", "Last Resort"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The values of a log's key, by step."""

    run: str
    steps: list[int]
    values: list[float]


def read_curves(run: str | Path, key: str) -> Curve:
    """Read one key of a run's log; the steps without it are passed over.

    Raises:
        TrainingError: the folder has no log, or nothing of the key in it.
    """
    entries = [entry for entry in read_log(Path(run) / LOG_FILE) if _is_finite(entry.get(key))]
    if not entries and key != VALIDATION:
        raise TrainingError(f"{Path(run) / LOG_FILE} has no {PANELS.get(key, key)} yet.")
    return Curve(run=str(run), steps=[entry["step"] for entry in entries], values=[entry[key] for entry in entries])


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < _BEYOND


def draw_picture(runs: Sequence[str | Path], output: Path) -> str:
    """Draw the panels one above the other, a color for each run; validation losses are dashed.

    The suffix of `output` chooses the format: .png, .svg, .pdf. Return what boxes stand for: the characters in
    the names of the runs that neither matplotlib's font has nor another of this machine.

    Raises:
        MissingExtraError: matplotlib is not installed.
        TrainingError: a run has no log, or the picture cannot be written.
        ConfigError: the suffix is none that matplotlib writes, or matplotlib cannot read its settings.
    """
    try:
        require("matplotlib", "plot", "A picture of the curves")
    except ValueError as error:  # it reads them as it is imported
        raise ConfigError(
            f"matplotlib cannot read its settings: {error}. Mend or remove the file matplotlibrc (in this folder, in "
            "$MATPLOTLIBRC, or in ~/.config/matplotlib) and MPLBACKEND, where they are set."
        ) from error
    from matplotlib import style

    fonts, lacking = _fonts_for("".join(map(str, runs)))
    # A matplotlibrc in the working folder, which may be anybody's, could have LaTeX run for each word.
    with style.context(["default", {"font.family": fonts, "text.parse_math": False}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        _draw(runs, output)
    return lacking


def _fonts_for(text: str) -> tuple[list[str], str]:
    """Return the fonts for a text, and those of its characters that none has: where one has all that matplotlib's own
    lacks, that one, else each that has some of it.
    """
    from matplotlib import font_manager, ft2font

    def lacking(path: str, characters: set[int]) -> set[int]:
        try:
            return characters - ft2font.FT2Font(path).get_charmap().keys()
        except (OSError, RuntimeError):  # a file of this machine that is no whole font
            return characters

    fonts, missing = [_FONT], lacking(font_manager.findfont(_FONT), set(map(ord, text)))
    others = [font for font in font_manager.fontManager.ttflist if missing and not font.name.startswith(_BOXES)]
    with_all = next((font for font in others if not lacking(font.fname, missing)), None)
    for font in others if with_all is None else [with_all]:
        rest = lacking(font.fname, missing)
        if rest != missing:
            fonts.append(font.name)
            missing = rest
    return fonts, "".join(map(chr, sorted(missing)))


def _draw(runs: Sequence[str | Path], output: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure, suffix = Figure(figsize=(9, 9), layout="constrained"), output.suffix.lstrip(".").lower()
    if suffix not in FigureCanvasAgg(figure).get_supported_filetypes():
        raise ConfigError(f"{output} has no suffix of a picture: use .png, .svg or .pdf.")
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    for panel, (key, title) in zip(panels, PANELS.items(), strict=True):
        for number, run in enumerate(runs):
            color = _COLORS[number % len(_COLORS)]
            curve = read_curves(run, key)
            panel.plot(curve.steps, curve.values, color=color, alpha=0.25, linewidth=0.8)
            panel.plot(curve.steps, _smoothed(curve.values), color=color, label=curve.run)
            if key == "loss":
                validation = read_curves(run, VALIDATION)
                panel.plot(validation.steps, validation.values, "o--", color=color, markersize=3, label="validation")
        panel.set_ylabel(title)
        panel.grid(alpha=0.3)
    panels[0].legend()
    panels[-1].set_xlabel("step")
    try:
        with atomic.replace_file(output) as file:
            figure.savefig(file, dpi=110, format=suffix)
    except OSError as error:
        raise TrainingError(f"Cannot write {output}: {error.strerror or error}.") from error


def _smoothed(values: Sequence[float]) -> list[float]:
    """Average each value with those around it."""
    reach = round(len(values) * _SMOOTHED_PART / 2)
    windows = (values[max(0, place - reach) : place + reach + 1] for place in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def draw_text(runs: Sequence[str | Path], *, width: int, height: int = 12) -> str:
    """Draw the panels in characters, a mark for each run.

    Raises:
        TrainingError: a run has no log.
    """
    charts = [_chart(title, [read_curves(run, key) for run in runs], width, height) for key, title in PANELS.items()]
    legend = "  ".join(f"{_MARKS[number % len(_MARKS)]} {run}" for number, run in enumerate(runs))
    return "\n\n".join([*charts, legend])


def _chart(title: str, curves: Sequence[Curve], width: int, height: int) -> str:
    low = min(min(curve.values) for curve in curves)
    high = max(max(curve.values) for curve in curves)
    first = min(min(curve.steps) for curve in curves)  # a log that was put together has them in any order
    last = max(max(curve.steps) for curve in curves)
    columns = max(10, width - 12)
    grid = [[" "] * columns for _ in range(height)]
    for number, curve in enumerate(curves):
        for column, value in _columns(curve, first, last, columns).items():
            row = round((high - value) / (high - low) * (height - 1)) if high > low else height // 2
            grid[row][column] = _MARKS[number % len(_MARKS)]
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    lines = [f"{labels.get(row, ''):>9} ┤{''.join(cells).rstrip()}" for row, cells in enumerate(grid)]
    axis = f"{'':>9} └{'─' * columns}"
    ends = f"{'':>11}{first}{last:>{max(1, columns - len(str(first)))}}"
    return "\n".join([f"{'':>11}{title}", *lines, axis, ends])


def _columns(curve: Curve, first: int, last: int, columns: int) -> dict[int, float]:
    """Average the values that fall into one column."""
    grouped: dict[int, list[float]] = {}
    for step, value in zip(curve.steps, curve.values, strict=True):
        grouped.setdefault(round((step - first) / max(1, last - first) * (columns - 1)), []).append(value)
    return {column: sum(values) / len(values) for column, values in grouped.items()}
