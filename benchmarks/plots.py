"""Plots as SVG text: bars with their spread, bars in groups, lines over logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.arena import Spread

__all__ = ["bars", "groups", "lines"]

_OWN, _OTHER = "#0b6e4f", "#9aa5b1"
_PALETTE = (
    "#0b6e4f", "#d1495b", "#2e86ab", "#edae49", "#6a4c93", "#5c6b73", "#a0522d", "#7cb518",
)  # fmt: skip
_FONT = 'font-family="system-ui, sans-serif" font-size="13" fill="#1f2933"'


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    )
    # A white background: the page that shows it may be dark.
    ground = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    heading = f'<text x="12" y="24" {_FONT} font-weight="600">{escape(title)}</text>'
    return "\n".join([head, ground, heading, *parts, "</svg>"]) + "\n"


def bars(title: str, unit: str, figures: Mapping[str, Spread], *, own: str = "jsonckpt") -> str:
    """A bar for each figure. Bars whose label contains ``own`` have another colour.

    A thin line on a bar goes from the minimum to the maximum.
    """
    left, scale, row = 430, 420, 28
    most = max(figure.high for figure in figures.values()) or 1.0
    parts = []
    for number, (label, figure) in enumerate(figures.items()):
        y = 44 + row * number
        length = scale * figure.median / most
        colour = _OWN if own in label else _OTHER
        low, high = (left + scale * end / most for end in (figure.low, figure.high))
        name = escape(label.replace("**", ""))
        parts += [
            f'<text x="{left - 8}" y="{y + 15}" {_FONT} text-anchor="end">{name}</text>',
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="20" fill="{colour}"/>',
            f'<path d="M{low:.1f} {y + 10}H{high:.1f}" stroke="#1f2933" stroke-width="1.5"/>',
            f'<text x="{max(high, left + length) + 6:.1f}" y="{y + 15}" {_FONT}>'
            f"{figure.median:,.0f} {escape(unit)}</text>",
        ]
    return _svg(left + scale + 110, 56 + row * len(figures), title, parts)


def groups(title: str, figures: Mapping[str, Mapping[str, float]]) -> str:
    """For each group a heading, and under it a thin bar for each of its ratios.

    The bars of a label have one colour in all groups, and a line marks the ratio 1.
    """
    left, scale, row, heading = 240, 460, 15, 24
    most = (
        max((ratio for group in figures.values() for ratio in group.values()), default=1.0) or 1.0
    )
    labels = list(dict.fromkeys(label for group in figures.values() for label in group))
    parts = []
    y = 44.0
    for name, group in figures.items():
        parts.append(_text(12, y + 12, name, "start", ' font-weight="600"'))
        y += heading
        for label, ratio in group.items():
            colour = _PALETTE[labels.index(label) % len(_PALETTE)]
            length = scale * ratio / most
            parts += [
                _text(left - 8, y + 11, label.replace("**", ""), "end"),
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{row - 4}" '
                f'fill="{colour}"/>',
                _text(left + length + 6, y + 11, f"{ratio:.3f}", "start"),
            ]
            y += row
        y += 6
    one = left + scale / most
    parts.append(f'<path d="M{one:.1f} 44V{y:.1f}" stroke="#1f2933" stroke-dasharray="2 3"/>')
    return _svg(left + scale + 70, round(y) + 12, title, parts)


def lines(
    title: str, x_label: str, y_label: str, series: Mapping[str, Sequence[tuple[float, float]]]
) -> str:
    """A line through the points of each series; both axes logarithmic."""
    left, top, width, height = 70, 60, 520, 260
    points = [point for line in series.values() for point in line]
    x_ticks, y_ticks = (_ticks([point[axis] for point in points]) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + width * _share(x, x_ticks[0], x_ticks[-1]),
            top + height * (1 - _share(y, y_ticks[0], y_ticks[-1])),
        )

    parts = []
    for tick in x_ticks:
        x, _ = place(tick, y_ticks[0])
        parts.append(f'<path d="M{x:.1f} {top}v{height}" stroke="#e4e7eb"/>')
        parts.append(_text(x, top + height + 18, _number(tick), "middle"))
    for tick in y_ticks:
        _, y = place(x_ticks[0], tick)
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#e4e7eb"/>')
        parts.append(_text(left - 8, y + 4, _number(tick), "end"))
    parts.append(_text(left + width / 2, top + height + 38, x_label, "middle"))
    parts.append(_text(left - 8, top - 14, y_label, "end"))
    for number, (label, line) in enumerate(series.items()):
        colour = _PALETTE[number % len(_PALETTE)]
        places = [place(*point) for point in line]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        y_key = top + 14 + 20 * number
        parts.append(
            f'<rect x="{left + width + 16}" y="{y_key - 8}" width="14" height="4" fill="{colour}"/>'
        )
        parts.append(_text(left + width + 36, y_key, label.replace("**", ""), "start"))
    return _svg(left + width + 300, top + height + 54, title, parts)


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" {_FONT}{more} text-anchor="{anchor}">{escape(text)}</text>'
    )


def _share(value: float, low: float, high: float) -> float:
    return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))


def _ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, … from below the minimum to above the maximum."""
    low, high = min(values), max(values)
    ticks = [
        base * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for base in (1, 2, 5)
    ]
    first = max((n for n, tick in enumerate(ticks) if tick <= low), default=0)
    last = min((n for n, tick in enumerate(ticks) if tick >= high), default=len(ticks) - 1)
    shown = ticks[first : max(last, first + 1) + 1]
    if len(shown) > 9:
        shown = [tick for tick in shown if f"{tick:e}".startswith("1")]
        if shown[0] > low:
            shown.insert(0, shown[0] / 10)
        if shown[-1] < high:
            shown.append(shown[-1] * 10)
    return shown


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"
