"""A scatter plot as SVG: sizes across, a cost upwards on a logarithmic scale; readable on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 30, 50, 60
_TICKS = 5
_FLOOR = 1e-6  # what a cost of zero is drawn at
# The page's own colour scheme chooses: an <img> of an SVG follows prefers-color-scheme.
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px }
.axis { stroke: #8c959f; fill: none }
.line { stroke: #0969da; fill: none; stroke-width: 2 }
.dot { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .axis { stroke: #6e7681 }
  .line { stroke: #4493f8 }
  .dot { fill: #4493f8 }
}
"""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One place in the plot; those of a curve need no label."""

    x: float
    y: float
    label: str = ""


def draw_scatter(title: str, x_label: str, y_label: str, dots: Sequence[Dot], *, line: int = 0) -> str:
    """Return an SVG of dots with labels; the first `line` of them are a curve. `y` is on a logarithmic scale."""
    xs, ys = [dot.x for dot in dots], [math.log10(max(dot.y, _FLOOR)) for dot in dots]
    x_low, x_high = _widened(min(xs), max(xs))
    y_low, y_high = _widened(min(ys), max(ys))

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def upwards(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<text class="title" x="{_LEFT}" y="24">{escape(title)}</text>',
        f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 14}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="{_LEFT}" y="42">{escape(y_label)}</text>',
        f'<path class="axis" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>',
    ]
    for i in range(_TICKS):
        x, y = (low + (high - low) * i / (_TICKS - 1) for low, high in ((x_low, x_high), (y_low, y_high)))
        parts.append(
            f'<text x="{across(x):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{x:.4g}</text>'
            f'<text x="{_LEFT - 8}" y="{upwards(y) + 4:.1f}" text-anchor="end">{10**y:.2g}</text>'
        )
    places = [(across(x), upwards(y)) for x, y in zip(xs, ys, strict=True)]
    if line:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places[:line])
        parts.append(f'<polyline class="line" points="{joined}"/>')
    for (x, y), dot in zip(places[line:], dots[line:], strict=True):
        # A label that would leave the picture stands on the other side of its dot.
        left = x > (_LEFT + _WIDTH) / 2
        anchor, shift = ("end", -9) if left else ("start", 9)
        parts.append(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
            f'<text x="{x + shift:.1f}" y="{y - 6:.1f}" text-anchor="{anchor}">{escape(dot.label)}</text>'
        )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}">'
    )
    return "\n".join([head, f"<style>{_STYLE}</style>", *parts, "</svg>"]) + "\n"


def _widened(low: float, high: float) -> tuple[float, float]:
    """Leave room around the values, and some extent where they are all the same."""
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - room, high + room
