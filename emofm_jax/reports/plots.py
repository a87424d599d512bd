"""Charts as <svg> strings, without a plotting library: bars, dots with intervals, lines, scatter, calibration.

Every chart has a title and axes with units, tells its series apart by marks and dashes as well as by colour, and
follows the reader's light or dark mode. A value of None is left out.
"""

import html
from collections.abc import Sequence
from typing import NamedTuple

from emofm_jax.reports import axes

_WIDTH, _HEIGHT, _SQUARE = 600, 290, 340  # pixels of a chart, of a plot within it, of a square plot
_LEFT, _RIGHT = 84, 24  # beside the plot
_ROW = 22  # of a bar
_BESIDE = 210  # most room for names beside bars or dots
_MOST_LED = 60  # marks of a scatter whose names may stand away from them
# Of a name beside its mark, the nearest first: where its text begins (ends, if left of it) and its base line.
_PLACES = ((9, 4), (-9, 4), (0, -9), (0, 18)) + tuple(
    (side * (9 + far / 3), 4 + updown * far)
    for far in (12, 24, 38, 56)
    for updown in (-1, 1)
    for side in (1, -1)
)


class Series(NamedTuple):
    """A named row of values; its place in the list gives it its mark, dash and colour.

    Attributes:
      name: for the legend; empty = drawn thin and grey, without mark and entry.
      x, y: of its points.
      low, high: ends of each point's interval, None for a point without one.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


def bars(
    title: str,
    names: list[str],
    values: list[float],
    *,
    unit: str,
    errors: list[float] | None = None,
) -> str:
    """Horizontal bars from zero, in the order given.

    Args:
      title: over the chart.
      names, values: of the bars; shortened where they are long.
      unit: label of the axis of values.
      errors: half the width of each bar's interval, None for a bar without one.

    Returns:
      A whole <svg>, which can stand in a page or a file.
    """
    errors = [None] * len(names) if errors is None else errors
    left = min(24 + max([axes.text_width(name) for name in names] or [0]), _BESIDE)
    top = 40
    bottom = top + _ROW * len(names)
    ends = [
        v + side * (e or 0) for v, e in zip(values, errors) if v is not None for side in (-1, 1)
    ]
    x = axes.scale(ends, left, _WIDTH - 70, include=(0.0,))
    parts = axes.across(x, top, bottom, unit)
    for i, (name, value, error) in enumerate(zip(names, values, errors)):
        y = top + _ROW * (i + 0.5)
        parts.append(axes.text(left - 8, y + 4, axes.shorten(name, left - 20), "e", name))
        if value is None:
            parts.append(axes.text(x(0.0) + 6, y + 4, "-", "k"))
            continue
        start, stop = sorted((x(0.0), x(value)))
        note = html.escape(f"{name}: {value:.6g}" + (f" +/- {error:.2g}" if error else ""))
        parts.append(
            f'<rect x="{start:.1f}" y="{y - 7:.1f}" width="{stop - start:.1f}" height="14" fill="var(--s0)" '
            f'fill-opacity=".75"><title>{note}</title></rect>'
        )
        if error:
            parts.append(_whisker(x, y, value - error, value + error, "var(--ink)"))
        parts.append(
            axes.text(x(max(value + (error or 0), 0.0)) + 6, y + 4, axes.number(value), "k")
        )
    parts.append(axes.line(x(0.0), top, x(0.0), bottom, "a"))
    return axes.svg(_WIDTH, bottom + 48, title, parts)


def dots(
    title: str, names: list[str], series: list[Series], *, unit: str, line: float | None = None
) -> str:
    """A row per name with a mark, and perhaps an interval, per series: for values that need not start at zero.

    Args:
      names: of the rows.
      series: `y` is the values of the rows, `x` is not read.
      unit: label of the axis of values.
      line: a value that is marked by an upright line.
    """
    named = [s for s in series if s.name]
    beside = 24 + max([axes.text_width(name) for name in names] or [0])
    above = 16 if beside > _BESIDE else 0  # long names stand over their rows
    left = 24 if above else beside
    legend, top = axes.legend([s.name for s in named] if len(series) > 1 else [], left, _WIDTH - 24)
    row = max(_ROW, 9 * len(series) + 8) + above
    bottom = top + row * len(names)
    x = axes.scale(_all(series), left + 8, _WIDTH - 32, include=() if line is None else (line,))
    if line in (x.low, x.high):  # at the edge it would look like an axis
        x = axes.scale([*_all(series), line], left + 8, _WIDTH - 32)
    parts = [*legend, *axes.across(x, top, bottom, unit)]
    if line is not None:
        parts.append(axes.line(x(line), top, x(line), bottom, "a"))
    for i, name in enumerate(names):
        middle = top + row * (i + 0.5) + above / 2
        if above:
            parts.append(
                axes.text(left + 4, top + row * i + 13, axes.shorten(name, _WIDTH - 60), "", name)
            )
        else:
            parts.append(axes.text(left - 8, middle + 4, name, "e"))
        for j, one in enumerate(series):
            if one.y[i] is None:
                continue
            y = middle + 9 * (j - (len(series) - 1) / 2)
            low, high = _interval(one, i)
            if low is not None:
                parts.append(_whisker(x, y, low, high, axes.colour(j)))
            parts.append(axes.marker(x(one.y[i]), y, j, _note(name, one.name, one.y[i], low, high)))
    return axes.svg(_WIDTH, bottom + 48, title, parts)


def lines(
    title: str,
    series: list[Series],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    marks: bool = True,
    level: float | None = None,
) -> str:
    """Curves over common axes.

    Args:
      series: in order of importance; nameless ones lie behind.
      x, y: labels of the axes, with units.
      log_x: of a logarithmic axis; values <= 0 are left out.
      marks: draws the points and their intervals, not only the line through them.
      level: of a dashed line across, as of what would be perfect.
    """
    legend, top = axes.legend(
        [s.name for s in series if s.name and len(series) > 1], _LEFT, _WIDTH - 24
    )
    across, up, parts = _frame(series, top, x, y, log_x, level)
    if level is not None:
        parts.append(axes.line(across.start, up(level), across.stop, up(level), "a d"))
    for j, one in reversed(list(enumerate(series))):
        known = [
            i
            for i, (a, b) in enumerate(zip(one.x, one.y))
            if b is not None and not (log_x and a <= 0)
        ]
        path = " ".join(f"{across(one.x[i]):.1f},{up(one.y[i]):.1f}" for i in known)
        if not one.name:
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="var(--soft)" stroke-opacity=".35"/>'
            )
            continue
        parts.append(
            f'<polyline points="{path}" {axes.stroke(j)}><title>{html.escape(one.name)}</title></polyline>'
        )
        shown = known if marks else known[-1:]
        for i in shown:
            low, high = _interval(one, i) if marks else (None, None)
            if low is not None:
                parts.append(_upright(across(one.x[i]), up, low, high, axes.colour(j)))
            note = _note(one.name, f"{x} {axes.number(one.x[i])}", one.y[i], low, high)
            parts.append(axes.marker(across(one.x[i]), up(one.y[i]), j, note))
    return axes.svg(_WIDTH, top + _HEIGHT + 48, title, [*parts, *legend])


def scatter(
    title: str, names: list[str], points: Series, *, x: str, y: str, log_x: bool = False
) -> str:
    """A mark per name, with its name beside it where there is room (elsewhere it shows under the pointer).

    Args:
      names: of the points.
      points: their places; its own name is not read.
      x, y: labels of the axes, with units.
      log_x: of a logarithmic axis.
    """
    top = 44
    across, up, parts = _frame([points], top, x, y, log_x)
    placed = [
        i
        for i, (a, b) in enumerate(zip(points.x, points.y))
        if None not in (a, b) and not (log_x and a <= 0)
    ]
    spots = {i: (across(points.x[i]), up(points.y[i])) for i in placed}
    taken = [(a - 6, b - 6, a + 6, b + 6) for a, b in spots.values()]
    for i, (a, _) in spots.items():
        low, high = _interval(points, i)
        if low is not None:
            parts.append(_upright(a, up, low, high, "var(--soft)"))
            taken.append((a - 4, up(high), a + 4, up(low)))
    for i, (a, b) in spots.items():
        low, high = _interval(points, i)
        note = f"{names[i]}: {x} {axes.number(points.x[i])}; {_note(y, '', points.y[i], low, high)}"
        parts.append(axes.marker(a, b, 0, note))
        name = axes.shorten(names[i], 150)
        width = axes.text_width(name)
        for x0, y0 in _PLACES if len(names) <= _MOST_LED else _PLACES[:4]:
            box = (a + x0 - (width if x0 < 0 else width / 2 if x0 == 0 else 0), b + y0 - 10)
            box = (*box, box[0] + width, box[1] + 13)
            inside = (
                box[0] >= across.start
                and box[2] <= _WIDTH - 4
                and box[1] >= top
                and box[3] <= top + _HEIGHT
            )
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                if abs(y0 - 4) > 16:  # too far to be seen as its own
                    parts.append(axes.line(a, b, a + 0.85 * x0, b + y0 - 4, "a"))
                parts.append(
                    axes.text(
                        a + x0, b + y0, name, "e" if x0 < 0 else "m" if x0 == 0 else "", names[i]
                    )
                )
                break
    return axes.svg(_WIDTH, top + _HEIGHT + 48, title, parts)


def calibration(title: str, series: list[Series]) -> str:
    """Click rate against mean prediction of parts of the rows, both logarithmic; on the dashed line they agree.

    Args:
      series: x = mean predictions, y = click rates, with intervals if known; rates of 0 are left out.
    """
    legend, top = axes.legend([s.name for s in series if len(series) > 1], _LEFT, _SQUARE + _LEFT)
    both = [
        v
        for s in series
        for pair in zip(s.x, s.y)
        if None not in pair and min(pair) > 0
        for v in pair
    ]
    across = axes.scale(both, _LEFT, _LEFT + _SQUARE, log=True)
    up = axes.scale(both, top + _SQUARE, top, log=True)
    parts = _grid(across, up, "mean prediction (probability)", "click rate (clicks per row)")
    parts.append(axes.line(across.start, up.start, across.stop, up.stop, "a d"))
    for j, one in reversed(list(enumerate(series))):
        known = [
            i for i, pair in enumerate(zip(one.x, one.y)) if None not in pair and min(pair) > 0
        ]
        path = " ".join(f"{across(one.x[i]):.1f},{up(one.y[i]):.1f}" for i in known)
        parts.append(f'<polyline points="{path}" {axes.stroke(j)}/>')
        for i in known:
            low, high = _interval(one, i)
            if low is not None:
                low, high = max(low, up.low), min(high, up.high)
                parts.append(_upright(across(one.x[i]), up, low, high, axes.colour(j)))
            note = f"{one.name}: mean prediction {one.x[i]:.4g}, click rate {one.y[i]:.4g}"
            parts.append(axes.marker(across(one.x[i]), up(one.y[i]), j, note, 3.5))
    return axes.svg(_LEFT + _SQUARE + 32, top + _SQUARE + 48, title, [*parts, *legend])


def _all(series: list[Series]) -> list[float]:
    """Every value of y and every end of its interval."""
    return [v for s in series for part in (s.y, s.low, s.high) for v in part if v is not None]


def _interval(series: Series, i: int) -> tuple[float | None, float | None]:
    return (series.low[i], series.high[i]) if series.low else (None, None)


def _frame(
    series: list[Series], top: float, x: str, y: str, log_x: bool, level: float | None = None
):
    """Both scales of a chart, and its grid."""
    across = axes.scale(
        [v for s in series for v in s.x if v is not None], _LEFT, _WIDTH - _RIGHT, log=log_x
    )
    up = axes.scale([*_all(series), level], top + _HEIGHT, top)
    return across, up, _grid(across, up, x, y)


def _grid(across: axes.Scale, up: axes.Scale, x: str, y: str) -> list[str]:
    return [
        *axes.across(across, up.stop, up.start, x),
        *axes.upwards(up, across.start, across.stop, y),
        axes.line(across.start, up.start, across.stop, up.start, "a"),
        axes.line(across.start, up.start, across.start, up.stop, "a"),
    ]


def _whisker(x: axes.Scale, y: float, low: float, high: float, colour: str) -> str:
    a, b = x(low), x(high)
    return f'<path d="M{a:.1f} {y - 4:.1f}v8m0-4H{b:.1f}m0-4v8" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _upright(x: float, up: axes.Scale, low: float, high: float, colour: str) -> str:
    a, b = up(low), up(high)
    return f'<path d="M{x - 4:.1f} {a:.1f}h8m-4 0V{b:.1f}m-4 0h8" fill="none" stroke="{colour}" stroke-width="1.2"/>'


def _note(what: str, of: str, value: float, low: float | None, high: float | None) -> str:
    between = "" if low is None else f" (95% interval {low:.6g} to {high:.6g})"
    return f"{what}{f', {of}' if of else ''}: {value:.6g}{between}"


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
