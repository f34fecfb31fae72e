"""Charts as inline SVG, for a page that is light or dark: colours come from the page's style sheet, by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

# Units of the view box. A chart is shown 330 to 520 pixels wide, so that its text stays near the size it has here.
WIDTH, HEIGHT = 440.0, 280.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 12.0, 46.0
MOST = 2000  # points drawn of one series: more are slow to draw and cannot be told apart
RADIUS = 2.6
LETTER = 8.2  # width of a digit where letters are largest, on a phone


@dataclass(frozen=True)
class Series:
    """Data drawn in one colour.

    Attributes:
        name: in the legend; "" to leave it out there.
        shape: `points`, `line`, or `steps`, which keeps each value until the next.
        style: the class that the style sheet colours.
        titles: the tooltip of each point.
        y2: if given, the area between `y` and `y2` is filled.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    shape: str = "points"
    style: str = "trial"
    titles: Sequence[str] = ()
    y2: Sequence[float] = ()


@dataclass(frozen=True)
class Axis:
    """An axis of a chart.

    Attributes:
        label: what is measured, with its unit.
        form: how a tick is written.
        low, high: the range that is always shown.
        cut: the lowest value that is shown; lower ones are drawn at the edge.
    """

    label: str
    form: Callable[[float], str] = "{:g}".format
    low: float = math.inf
    high: float = -math.inf
    cut: float = -math.inf


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Chart:
    """A chart and what its legend lists.

    Attributes:
        svg: the drawing.
        legend: name and style of each series that has a name.
    """

    svg: Markup
    legend: list[tuple[str, str]] = field(default_factory=list)


def chart(description: str, series: Sequence[Series], x: Axis, y: Axis, limits: Sequence[float] = ()) -> Chart | None:
    """A chart of several series; None if no series has a point.

    Args:
        description: alternative text for people who cannot see the chart.
        limits: positions along `x` of dashed vertical lines.
    """
    shown = [_thinned(one) for one in series if len(one.x)]
    if not shown:
        return None
    across = _scale(x, [*(v for one in shown for v in one.x), *limits], LEFT, WIDTH - RIGHT)
    up = _scale(y, [v for one in shown for v in (*one.y, *one.y2)], HEIGHT - BOTTOM, TOP)
    parts = [_grid(x, y, across, up)]
    parts += [
        Markup('<line class="limit" x1="{0:.1f}" y1="{1}" x2="{0:.1f}" y2="{2}"/>').format(across(at), TOP, HEIGHT - BOTTOM)
        for at in limits
    ]
    parts += [_drawn(one, across, up) for one in shown]
    head = Markup('<svg class="chart" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, description)
    return Chart(head + Markup("").join(parts) + Markup("</svg>"), [(one.name, one.style) for one in shown if one.name])


def _thinned(one: Series) -> Series:
    """At most `MOST` points of a series, evenly spaced, the last always among them."""
    if len(one.x) <= MOST:
        return one
    chosen = np.unique(np.linspace(0, len(one.x) - 1, MOST).astype(int))

    def some(values: Sequence[Any]) -> Sequence[Any]:
        return [values[i] for i in chosen] if len(values) else ()

    return replace(one, x=some(one.x), y=some(one.y), titles=some(one.titles), y2=some(one.y2))


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> _Scale:
    low, high = max(min([axis.low, *values]), axis.cut), max([axis.high, *values])
    room = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return _Scale(low if low == axis.low else low - room, high if high == axis.high else high + room, start, end)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within a range: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _grid(x: Axis, y: Axis, across: _Scale, up: _Scale) -> Markup:
    bottom = HEIGHT - BOTTOM
    parts = [
        Markup('<line class="grid" x1="{0}" y1="{1:.1f}" x2="{2}" y2="{1:.1f}"/>').format(LEFT, up(at), WIDTH - RIGHT)
        + Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 7, up(at) + 4, y.form(at))
        for at in ticks(up.low, up.high)
    ]
    parts += [
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(across(at), bottom + 17, x.form(at))
        for at in _readable(x, across)
    ]
    middle = (TOP + bottom) / 2
    labels = Markup(
        '<text class="label" x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
        '<text class="label" transform="translate(13 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
    ).format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x.label, middle, y.label)
    return Markup("").join(parts) + labels


def _readable(axis: Axis, scale: _Scale) -> list[float]:
    """As many ticks as fit side by side."""
    for most in (5, 4, 3, 2, 1):
        found = ticks(scale.low, scale.high, most)
        if sum(len(axis.form(at)) + 2 for at in found) * LETTER < scale.end - scale.start:
            break
    return found


def _drawn(one: Series, across: _Scale, up: _Scale) -> Markup:
    places = [(across(x), up(y)) for x, y in zip(one.x, one.y, strict=True)]
    drawn = Markup("")
    if len(one.y2):
        back = [(across(x), up(y)) for x, y in zip(one.x, one.y2, strict=True)]
        drawn += Markup('<path class="area {}" d="{}"/>').format(one.style, _path([*places, *reversed(back)]) + "Z")
    elif one.shape == "line":
        drawn += Markup('<path class="line {}" d="{}"/>').format(one.style, _path(places))
    elif one.shape == "steps":
        corners = [(later[0], before[1]) for before, later in pairwise(places)]
        line = [place for pair in zip(places, [*corners, places[-1]], strict=True) for place in pair]
        drawn += Markup('<path class="line {}" d="{}"/>').format(one.style, _path(line))
    if one.shape == "points" or one.titles:
        radius = 2 * RADIUS if len(places) == 1 else RADIUS
        titles = one.titles or [""] * len(places)
        drawn += Markup("").join(_point(place, radius, one.style, title) for place, title in zip(places, titles, strict=True))
    return drawn


def _point(place: tuple[float, float], radius: float, style: str, title: str) -> Markup:
    inside = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:g}">{}</circle>').format(style, *place, radius, inside)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def lower_edge(scores: NDArray[np.float64]) -> float:
    """The lowest score that a chart shows, so that a few very poor ones do not squeeze all others."""
    best, typical, worst = float(scores.max()), float(np.median(scores)), float(scores.min())
    return max(worst, best - 4 * max(best - typical, 0.02 * (best - worst)))  # most of them may be the best
