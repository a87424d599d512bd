"""Charts as <svg> strings, without a plotting library: bars, dots, lines, scatter, reliability.

Every chart has a title and axes with units, tells its series apart by marks and dashes as well as
by colour, and follows the reader's light or dark mode. A value of None is left out.
"""

import html
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from emofm_jax import errors
from emofm_jax.evaluation.comparison import Interval, Spread
from emofm_jax.reports import axes

_WIDTH, _HEIGHT, _SQUARE = 600, 290, 340  # pixels of a chart, of a plot within it, of a square plot
_LEFT, _RIGHT = 84, 24  # beside the plot
_BELOW = 48  # for the numbers and label of the axis
_ROW = 22  # of a bar
_BESIDE = 210  # most room for names beside bars or dots
_MOST_LED = 60  # marks of a scatter whose names may stand away from them
# Places of a name beside its mark, the nearest first: its beginning (end, if left), its base line.
_PLACES = ((9, 4), (-9, 4), (0, -9), (0, 18)) + tuple(
    (side * (9 + far / 3), 4 + updown * far)
    for far in (12, 24, 38, 56)
    for updown in (-1, 1)
    for side in (1, -1)
)

_Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom
_Values: TypeAlias = Sequence[float | None]


class Series(NamedTuple):
    """A named row of values; its place in the list gives it its mark, dash and colour.

    Attributes:
      name: for the legend; empty = drawn thin and grey, without mark and entry.
      x, y: of its points.
      intervals: of each point, None for a point without one; empty without any.
    """

    name: str
    x: _Values
    y: _Values
    intervals: Sequence[Interval | None] = ()

    @classmethod
    def of(cls, name: str, x: _Values, spreads: Sequence[Spread]) -> "Series":
        """Means and their intervals."""
        y = [None if spread.mean != spread.mean else spread.mean for spread in spreads]
        return cls(name, x, y, [spread.interval for spread in spreads])

    def interval(self, i: int) -> Interval | None:
        """That of a point, if it has one."""
        return self.intervals[i] if self.intervals else None


def bars(title: str, names: Sequence[str], values: Sequence[float], *, unit: str) -> str:
    """Horizontal bars from zero, in the order given.

    Args:
      title: over the chart.
      names, values: of the bars; names are shortened where they are long.
      unit: label of the axis of values.

    Returns:
      A whole <svg>, which can stand in a page or a file.
    """
    left = min(_beside(names), _BESIDE)
    top, bottom = 40, 40 + _ROW * len(names)
    x = axes.scale(values, left, _WIDTH - 70, include=(0.0,))
    parts = axes.across(x, top, bottom, unit)
    for i, (name, value) in enumerate(zip(names, values)):
        y = top + _ROW * (i + 0.5)
        parts.append(axes.text(left - 8, y + 4, axes.shorten(name, left - 20), "e", name))

        start, stop = sorted((x(0.0), x(value)))
        size = f'x="{start:.1f}" y="{y - 7:.1f}" width="{stop - start:.1f}" height="14"'
        note = f"<title>{html.escape(errors.printable(f'{name}: {value:.6g}'))}</title>"
        parts.append(f'<rect {size} fill="var(--s0)" fill-opacity=".75">{note}</rect>')
        parts.append(axes.text(x(max(value, 0.0)) + 6, y + 4, axes.number(value), "k"))
    parts.append(axes.line(x(0.0), top, x(0.0), bottom, "a"))
    return axes.svg(_WIDTH, bottom + _BELOW, title, parts)


def dots(
    title: str,
    names: Sequence[str],
    series: Sequence[Series],
    *,
    unit: str,
    line: float | None = None,
) -> str:
    """A row per name with marks and intervals: for values that need not start at zero.

    Args:
      names: of the rows.
      series: `y` is the values of the rows, `x` is not read.
      unit: label of the axis of values.
      line: a value that is marked by an upright line.
    """
    above = 16 if _beside(names) > _BESIDE else 0  # long names stand over their rows
    left = 24 if above else _beside(names)
    legend, top = axes.legend(_named(series), left, _WIDTH - _RIGHT)
    row = max(_ROW, 9 * len(series) + 8) + above
    bottom = top + row * len(names)

    marked, values = [] if line is None else [line], _all(series)
    x = axes.scale(values, left + 8, _WIDTH - 32, include=marked)
    if line in (x.low, x.high):  # at the edge it would look like an axis
        x = axes.scale([*values, line], left + 8, _WIDTH - 32)
    parts = [*legend, *axes.across(x, top, bottom, unit)]
    parts += [axes.line(x(value), top, x(value), bottom, "a") for value in marked]

    for i, name in enumerate(names):
        middle = top + row * (i + 0.5) + above / 2
        if above:
            short = axes.shorten(name, _WIDTH - 60)
            parts.append(axes.text(left + 4, top + row * i + 13, short, "", name))
        else:
            parts.append(axes.text(left - 8, middle + 4, name, "e"))
        for j, one in enumerate(series):
            if (value := one.y[i]) is None:
                continue
            y = middle + 9 * (j - (len(series) - 1) / 2)
            if interval := one.interval(i):
                parts.append(_whisker(x, y, interval, axes.colour(j)))
            note = _note(f"{name}, {one.name}" if one.name else name, value, interval)
            parts.append(axes.marker(x(value), y, j, note))
    return axes.svg(_WIDTH, bottom + _BELOW, title, parts)


def lines(
    title: str,
    series: Sequence[Series],
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
    legend, top = axes.legend(_named(series), _LEFT, _WIDTH - _RIGHT)
    across, up = _scales(series, top, log_x, level)
    parts = _grid(across, up, x, y)
    if level is not None:
        parts.append(axes.line(across.start, up(level), across.stop, up(level), "a d"))

    parts += _curves(series, across, up, x, marks=marks)
    return axes.svg(_WIDTH, top + _HEIGHT + _BELOW, title, [*parts, *legend])


def reliability(title: str, series: Sequence[Series]) -> str:
    """Click rate against mean prediction, both logarithmic; on the dashed line they agree.

    Args:
      series: x = mean predictions, y = click rates, with intervals if known; rates of 0 are left
        out.
    """
    legend, top = axes.legend(_named(series), _LEFT, _SQUARE + _LEFT)
    pairs = [(p, rate) for one in series for p, rate in zip(one.x, one.y) if p and rate]
    both = [value for pair in pairs for value in pair]
    across = axes.scale(both, _LEFT, _LEFT + _SQUARE, log=True)
    up = axes.scale(both, top + _SQUARE, top, log=True)
    parts = _grid(across, up, "mean prediction (probability)", "click rate (clicks per row)")
    parts.append(axes.line(across.start, up.start, across.stop, up.stop, "a d"))

    parts += _curves(series, across, up, "click rate at mean prediction", size=3.5)
    return axes.svg(_LEFT + _SQUARE + 32, top + _SQUARE + _BELOW, title, [*parts, *legend])


def scatter(
    title: str, names: Sequence[str], points: Series, *, x: str, y: str, log_x: bool = False
) -> str:
    """A mark per name, the name beside it where there is room, else under the pointer.

    Args:
      names: of the points.
      points: their places; its own name is not read.
      x, y: labels of the axes, with units.
      log_x: of a logarithmic axis.
    """
    top = 44
    across, up = _scales([points], top, log_x)
    parts = _grid(across, up, x, y)
    spots = {i: (across(a), up(b)) for i, a, b in _shown(points, across, up)}
    taken = [(a - 6, b - 6, a + 6, b + 6) for a, b in spots.values()]
    for i, (a, _) in spots.items():
        if interval := points.interval(i):
            parts.append(_upright(a, up, interval, "var(--soft)"))
            taken.append((a - 4, up(interval.high), a + 4, up(interval.low)))

    room: _Box = (across.start, top, _WIDTH - 4, top + _HEIGHT)
    places = _PLACES if len(names) <= _MOST_LED else _PLACES[:4]
    for i, at, value in _shown(points, across, up):
        a, b = spots[i]
        note = _note(f"{names[i]}: {x} {axes.number(at)}; {y}", value, points.interval(i))
        parts.append(axes.marker(a, b, 0, note))

        name = axes.shorten(names[i], 150)
        for x0, y0 in places:
            box = _box(a + x0, b + y0, axes.text_width(name), _anchor(x0))
            if not _within(box, room) or any(_overlap(box, other) for other in taken):
                continue
            taken.append(box)
            if abs(y0 - 4) > 16:  # too far to be seen as its own
                parts.append(axes.line(a, b, a + 0.85 * x0, b + y0 - 4, "a"))
            parts.append(axes.text(a + x0, b + y0, name, _anchor(x0), names[i]))
            break
    return axes.svg(_WIDTH, top + _HEIGHT + _BELOW, title, parts)


def _beside(names: Sequence[str]) -> float:
    """Room that the longest name takes beside the plot."""
    return 24 + max((axes.text_width(name) for name in names), default=0)


def _named(series: Sequence[Series]) -> list[str]:
    """Names for the legend; a single series needs none."""
    return [one.name for one in series if one.name and len(series) > 1]


def _all(series: Sequence[Series]) -> list[float | None]:
    """Every value of y and every end of its interval."""
    values = []
    for one in series:
        known = [interval for interval in one.intervals if interval]
        values += [*one.y, *(i.low for i in known), *(i.high for i in known)]
    return values


def _shown(one: Series, across: axes.Scale, up: axes.Scale) -> Iterator[tuple[int, float, float]]:
    """Index, x and y of the points that have a place."""
    for i, (a, b) in enumerate(zip(one.x, one.y)):
        if a is not None and b is not None and across.shows(a) and up.shows(b):
            yield i, a, b


def _curves(
    series: Sequence[Series],
    across: axes.Scale,
    up: axes.Scale,
    x: str,
    *,
    marks: bool = True,
    size: float = 4.0,
) -> list[str]:
    """Lines and marks of each series, the last one behind; without `marks` only the last mark."""
    parts = []
    for j, one in reversed(list(enumerate(series))):
        shown = list(_shown(one, across, up))
        path = " ".join(f"{across(a):.1f},{up(b):.1f}" for _, a, b in shown)
        if not one.name:
            style = 'fill="none" stroke="var(--soft)" stroke-opacity=".35"'
            parts.append(f'<polyline points="{path}" {style}/>')
            continue
        title = f"<title>{html.escape(errors.printable(one.name))}</title>"
        parts.append(f'<polyline points="{path}" {axes.stroke(j)}>{title}</polyline>')
        for i, a, b in shown if marks else shown[-1:]:
            interval = one.interval(i) if marks else None
            if interval:
                parts.append(_upright(across(a), up, interval, axes.colour(j)))
            note = _note(f"{one.name}, {x} {axes.number(a)}", b, interval)
            parts.append(axes.marker(across(a), up(b), j, note, size))
    return parts


def _scales(
    series: Sequence[Series], top: float, log_x: bool, level: float | None = None
) -> tuple[axes.Scale, axes.Scale]:
    """Both scales of a chart."""
    x = [value for one in series for value in one.x]
    up = axes.scale([*_all(series), level], top + _HEIGHT, top)
    return axes.scale(x, _LEFT, _WIDTH - _RIGHT, log=log_x), up


def _grid(across: axes.Scale, up: axes.Scale, x: str, y: str) -> list[str]:
    """Both axes with their grid and labels."""
    return [
        *axes.across(across, up.stop, up.start, x),
        *axes.upwards(up, across.start, across.stop, y),
        axes.line(across.start, up.start, across.stop, up.start, "a"),
        axes.line(across.start, up.start, across.start, up.stop, "a"),
    ]


def _whisker(x: axes.Scale, y: float, interval: Interval, colour: str) -> str:
    path = f"M{x(interval.low):.1f} {y - 4:.1f}v8m0-4H{x(interval.high):.1f}m0-4v8"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _upright(x: float, up: axes.Scale, interval: Interval, colour: str) -> str:
    low, high = max(interval.low, up.low), min(interval.high, up.high)
    path = f"M{x - 4:.1f} {up(low):.1f}h8m-4 0V{up(high):.1f}m-4 0h8"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.2"/>'


def _note(what: str, value: float, interval: Interval | None) -> str:
    if interval is None:
        return f"{what}: {value:.6g}"
    return f"{what}: {value:.6g} (95% interval {interval.low:.6g} to {interval.high:.6g})"


def _anchor(x0: float) -> str:
    """Class of a text that ends, centres or begins at its place, by the side of its mark."""
    return "e" if x0 < 0 else "" if x0 else "m"


def _box(x: float, y: float, width: float, anchor: str) -> _Box:
    """What a text covers."""
    left, top = x - {"e": width, "m": width / 2, "": 0.0}[anchor], y - 10
    return left, top, left + width, top + 13


def _within(a: _Box, b: _Box) -> bool:
    return b[0] <= a[0] and a[2] <= b[2] and b[1] <= a[1] and a[3] <= b[3]


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
