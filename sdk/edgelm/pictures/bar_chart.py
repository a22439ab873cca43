"""A bar chart as SVG, in colours that are readable on light and on dark pages."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _LABELS, _NUMBERS = 860, 300, 60
_ROW, _BAR, _TITLE = 26, 18, 38
# The page's own colour scheme chooses: an <img> of an SVG follows prefers-color-scheme.
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px }
.ours { fill: #0969da }
.peer { fill: #8c959f }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .ours { fill: #4493f8 }
  .peer { fill: #6e7681 }
}
"""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One value; `is_ours` tells the colour: the thing itself, or what it is compared with."""

    label: str
    value: float
    is_ours: bool


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Bars of one scale under a title."""

    title: str
    bars: list[Bar]


def draw(panels: list[Panel]) -> str:
    """Return an SVG with the panels one below the other."""
    parts, y = [], 0
    for panel in panels:
        parts.append(f'<text class="title" x="0" y="{y + 22}">{escape(panel.title)}</text>')
        y += _TITLE
        scale = (_WIDTH - _LABELS - _NUMBERS) / max(bar.value for bar in panel.bars)
        for bar in panel.bars:
            parts.append(_row(bar, y, bar.value * scale))
            y += _ROW
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *parts, "</svg>"]) + "\n"


def _row(bar: Bar, y: int, width: float) -> str:
    middle = y + _BAR - 4
    kind = "ours" if bar.is_ours else "peer"
    return (
        f'<text x="{_LABELS - 10}" y="{middle}" text-anchor="end">{escape(bar.label)}</text>'
        f'<rect class="{kind}" x="{_LABELS}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>'
        f'<text x="{_LABELS + width + 8:.1f}" y="{middle}">{bar.value:.0f}</text>'
    )
