"""Small charts as inline SVG: lines with bands, and ticks. No script, no font, no link."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 860, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 24, 40
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One model's curve. Element i of every column is one point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    margin: Sequence[float] = ()  # half-widths of a band; empty: none


@dataclass(frozen=True, slots=True)
class Tick:
    """Something that happened at a place on the x-axis."""

    x: float
    kind: str  # its CSS class
    title: str


def chart(lines: Sequence[Line], x_label: str, y_label: str, ticks: Sequence[Tick] = ()) -> str:
    """An SVG element. Line i has the CSS class `c{i}`, its band `b c{i}`."""
    xs = [*(x for line in lines for x in line.x), *(tick.x for tick in ticks)] or [0.0]
    tops = [high for line in lines for _, _, high in _band(line)] or [0.0]
    scale = _Scale(min(xs), max(xs), max(tops))
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(y_label)}">',
        *_axes(scale, x_label, y_label),
    ]
    for i, line in enumerate(lines):
        if line.margin:
            parts.append(_polygon(line, scale, i))
    for i, line in enumerate(lines):
        points = " ".join(scale.point(x, y) for x, y in zip(line.x, line.y, strict=True))
        parts.append(f'<polyline class="c{i}" points="{points}"/>')
        parts += [
            f'<circle class="c{i}" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="2.5">'
            f"<title>{html.escape(line.name)}: {y:.4g} at {x:,.0f}</title></circle>"
            for x, y in zip(line.x, line.y, strict=True)
        ]
    parts += [
        f'<path class="tick {tick.kind}" d="M{scale.x(tick.x):.1f} {_HEIGHT - _BOTTOM}v-12">'
        f"<title>{html.escape(tick.title)}</title></path>"
        for tick in ticks
    ]
    return "".join([*parts, "</svg>"])


class _Scale:
    """From values to places in the picture; y begins at 0."""

    def __init__(self, low: float, high: float, top: float) -> None:
        self.low, self.high = low, high if high > low else low + 1
        self.step = _round_step(top / _TICKS)
        self.top = max(math.ceil(top / self.step - 1e-9), 1) * self.step

    def x(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = min(max(value / self.top, 0.0), 1.0)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def point(self, x: float, y: float) -> str:
        return f"{self.x(x):.1f},{self.y(y):.1f}"


def _round_step(rough: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    if rough <= 0.0 or not math.isfinite(rough):
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next((power * digit for digit in (1, 2, 2.5, 5) if power * digit >= rough), power * 10)


def _band(line: Line) -> list[tuple[float, float, float]]:
    margin = line.margin or [0.0] * len(line.x)
    return [(x, y - m, y + m) for x, y, m in zip(line.x, line.y, margin, strict=True)]


def _polygon(line: Line, scale: _Scale, number: int) -> str:
    band = _band(line)
    upper = [scale.point(x, high) for x, _, high in band]
    lower = [scale.point(x, low) for x, low, _ in reversed(band)]
    return f'<polygon class="b c{number}" points="{" ".join(upper + lower)}"/>'


def _axes(scale: _Scale, x_label: str, y_label: str) -> list[str]:
    parts = []
    for i in range(round(scale.top / scale.step) + 1):
        value = i * scale.step
        y = scale.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="end">{value:.3g}</text>')
    step = _round_step((scale.high - scale.low) / (2 * _TICKS))
    if scale.high > 1:
        step = max(step, 1.0)  # periods and events are whole
    value = math.ceil(scale.low / step) * step
    while value <= scale.high + 1e-9:
        x = scale.x(value)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 22}" class="mid">{value:,.6g}</text>')
        value += step
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 5}" class="mid">{html.escape(x_label)}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP - 10}">{html.escape(y_label)}</text>')
    return parts
