"""What every chart of plots.py stands on: scales, ticks, text that fits, and the <svg> around it.

Lengths are pixels of the drawing. Colours are CSS variables that follow the reader's light or dark
mode; every <svg> carries its own style, so that it can stand in a page or in a file of its own.
Text is measured by an estimate that errs on the wide side: no label is clipped, whatever sans-serif
font the reader has.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

from emofm_jax import errors

FONT = 12  # pixels
_COLOURS = ("#0b5fa5", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be185d", "#475569")
_DARK = ("#6cb6ff", "#ff9b6a", "#6fd08c", "#c9a2ff", "#f2cc60", "#5fd4e0", "#ff8ac1", "#b0b8c4")
DASHES = ("", "8 3", "2 3", "10 3 2 3", "5 3", "12 3 2 3 2 3", "4 2 1 2", "1 4")
SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross", "plus", "ring")
NUM_STYLES = len(SHAPES)  # series that can be told apart, in greyscale too
# Spans below which a scale does not go: of the largest value, of a decade.
_LEAST, _LEAST_LOG = 1e-4, 0.02
_LETTERS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def _variables(colours: tuple[str, ...]) -> str:
    return "".join(f"--s{i}:{colour};" for i, colour in enumerate(colours))


STYLE = (
    f".chart{{--ink:#1f2328;--soft:#5f6875;--grid:#e4e7eb;--paper:#fff;{_variables(_COLOURS)}"
    f"font:{FONT}px system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',Arial,sans-serif}}"
    "@media(prefers-color-scheme:dark){.chart{--ink:#e6e9ed;--soft:#9aa4b2;--grid:#30363d;"
    f"--paper:#0f1318;{_variables(_DARK)}}}}}"
    ".chart text{fill:var(--ink)}.chart .t{font-weight:600;font-size:14px}"
    ".chart .k{fill:var(--soft)}.chart .e{text-anchor:end}.chart .m{text-anchor:middle}"
    ".chart .g{stroke:var(--grid)}.chart .a{stroke:var(--soft)}.chart .d{stroke-dasharray:4 4}"
)


def text_width(text: str, size: float = FONT) -> float:
    """Pixels that a text takes in a wide sans-serif font."""
    narrow, broad = "iljtfrI.,:;'|()[]/ ", "mwMW@%"

    def ems(c: str) -> float:
        if c in narrow:
            return 0.36
        return 0.95 if c in broad else 0.74 if c.isupper() else 0.6

    return sum(map(ems, text)) * size


def shorten(text: str, width: float, size: float = FONT) -> str:
    """The text, or its two ends around an ellipsis where it is wider than `width` pixels."""
    if text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: kept - kept // 3]}…{text[len(text) - kept // 3 :]}"
        if text_width(short, size) <= width:
            return short
    return "…"


def text(x: float, y: float, content: str, style: str = "", full: str = "") -> str:
    """A <text>; `full` is shown when the pointer rests on it, for texts that were shortened."""
    title = f"<title>{_escape(full)}</title>" if full and full != content else ""
    style = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}>{title}{_escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line in a class of STYLE: g of the grid, a of an axis, d dashed."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def marker(x: float, y: float, series: int, title: str = "", size: float = 4.0) -> str:
    """The mark of a series: its shape tells it apart where its colour does not."""
    s, shape, fill = size, SHAPES[series % NUM_STYLES], colour(series)
    tall, wide, deep = 1.2 * s, 2.4 * s, 2.1 * s
    side, far = 1.35 * s, f"{2 * s}"
    diamond = f"l{side:.1f} {side:.1f}l{-side:.1f} {side:.1f}l{-side:.1f} {-side:.1f}z"
    paths = {
        "square": f"M{x - s:.1f} {y - s:.1f}h{far}v{far}h-{far}z",
        "triangle": f"M{x:.1f} {y - tall:.1f}l{tall:.1f} {deep:.1f}h{-wide:.1f}z",
        "down": f"M{x:.1f} {y + tall:.1f}l{tall:.1f} {-deep:.1f}h{-wide:.1f}z",
        "diamond": f"M{x:.1f} {y - side:.1f}{diamond}",
        "cross": f"M{x - s:.1f} {y - s:.1f}l{far} {far}m0 -{far}l-{far} {far}",
        "plus": f"M{x - tall:.1f} {y:.1f}h{wide:.1f}m{-tall:.1f} {-tall:.1f}v{wide:.1f}",
    }
    paint = f'fill="{fill}"'
    if shape in ("cross", "plus", "ring"):
        paint = f'fill="none" stroke="{fill}" stroke-width="2"'

    inner = f"<title>{_escape(title)}</title>" if title else ""
    if shape in paths:
        return f'<path d="{paths[shape]}" {paint}>{inner}</path>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s}" {paint}>{inner}</circle>'


def svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """The whole <svg>, its title drawn at the top left and read out by screen readers."""
    head = text(12, 22, shorten(title, width - 24, 14), "t", title)
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" '
        f'aria-label="{_escape(title)}" {size}><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="var(--paper)"/>{head}{"".join(parts)}</svg>'
    )


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` onto pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def shows(self, value: float | None) -> bool:
        """Whether the value has a place."""
        return value is not None and (value > 0 or not self.log)

    def ticks(self, count: int = 6) -> list[tuple[float, str]]:
        """At most about `count` round values within the scale, and how they are written."""
        if self.log:
            values = _log_ticks(self.low, self.high, count)
            if len(values) >= 2:
                return [(value, number(value)) for value in values]
        values = _round_ticks(self.low, self.high, count)
        return list(zip(values, _apart(values)))


def scale(
    values: Sequence[float | None],
    start: float,
    stop: float,
    *,
    log: bool = False,
    include: Sequence[float] = (),
) -> Scale:
    """A scale with room around the values, also a single one; `include` is on it without room.

    Values that are alike to four digits, or on a logarithmic scale to 5%, get room as if they were
    not: what noise does shall not fill the chart.
    """
    given = [v for v in (*values, *include) if v is not None and math.isfinite(v)]
    found = [v for v in given if v > 0 or not log]
    low, high = (min(found), max(found)) if found else (1.0, 2.0)
    start_of, stop_of = (math.log10(low), math.log10(high)) if log else (low, high)
    spread = stop_of - start_of

    least = _LEAST_LOG if log else _LEAST * max(abs(low), abs(high))
    if not spread:
        rooms = [0.3 if log else abs(high) * 0.05 or 1.0] * 2
    elif spread < least:
        rooms = [0.5 * (least - spread)] * 2
    else:
        rooms = [0.0 if v in include else 0.06 * spread for v in (low, high)]
    low, high = start_of - rooms[0], stop_of + rooms[1]
    return Scale(10**low, 10**high, start, stop, log) if log else Scale(low, high, start, stop)


def across(x: Scale, top: float, bottom: float, label: str) -> list[str]:
    """A horizontal axis: grid lines from `top` to `bottom`, numbers that keep apart, a label."""
    parts = []
    for value, written in _spaced(x, x.ticks()):
        parts.append(line(x(value), top, x(value), bottom, "g"))
        parts.append(text(x(value), bottom + 18, written, "m k"))
    return [*parts, text((x.start + x.stop) / 2, bottom + 38, label, "m")]


def upwards(y: Scale, left: float, right: float, label: str) -> list[str]:
    """An upright axis: grid lines from `left` to `right`, numbers, a label read from below."""
    parts = []
    for value, written in y.ticks():
        parts.append(line(left, y(value), right, y(value), "g"))
        parts.append(text(left - 7, y(value) + 4, written, "e k"))
    place = f"translate(16 {(y.start + y.stop) / 2:.1f}) rotate(-90)"
    return [*parts, f'<g transform="{place}">{text(0, 0, label, "m")}</g>']


def legend(names: Sequence[str], left: float, right: float) -> tuple[list[str], float]:
    """Mark, dash and name of each series, in lines, and where the drawing below may begin."""
    parts: list[str] = []
    x, y = left, 44.0
    for i, name in enumerate(names):
        short = shorten(name, right - left - 44)
        width = 40 + text_width(short)
        if x + width > right and x > left:
            x, y = left, y + 20
        parts.append(f'<path d="M{x:.1f} {y:.1f}h26" {stroke(i)}/>{marker(x + 13, y, i)}')
        parts.append(text(x + 32, y + 4, short, "", name))
        x += width + 12
    return parts, y + 20 if names else 40.0


def colour(series: int) -> str:
    """The CSS colour of a series."""
    return f"var(--s{series % NUM_STYLES})"


def stroke(series: int) -> str:
    """Attributes of the line of a series: its colour and its dash."""
    dash = DASHES[series % NUM_STYLES]
    return f'fill="none" stroke="{colour(series)}" stroke-width="1.8" stroke-dasharray="{dash}"'


def _spaced(x: Scale, ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Every so many ticks that their numbers keep apart."""
    for every in range(1, len(ticks) + 1):
        kept = ticks[::every]
        gaps = [abs(x(b[0]) - x(a[0])) for a, b in zip(kept, kept[1:])]
        if all(gap >= text_width(t[1]) + 8 for gap, t in zip(gaps, kept)):
            return kept
    return ticks[:1]


def number(value: float) -> str:
    """A short way to write a number: 0.05, 12, 1.5k, 40k, 2M."""
    for size, letter in _LETTERS:
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _apart(values: Sequence[float]) -> list[str]:
    """Evenly spaced values with the decimals that tell them apart, or a letter for thousands."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(values[0]) or 1.0
    largest = max(map(abs, values), default=0)
    for size, letter in _LETTERS:
        if largest >= max(size, 10_000) and step / size >= 0.01:
            letters = [letter if abs(v) > step / 1e6 else "" for v in values]
            return [_fixed(v / size, step / size) + end for v, end in zip(values, letters)]
    return [_fixed(value, step) for value in values]


def _round_ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / max(count, 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in (range(1, 10), (1, 2, 5), (1, 3), (1,)):
        every = (d * 10.0**e for e in range(first, last + 1) for d in digits)
        values = [value for value in every if low <= value <= high]
        if len(values) <= count + 1:
            return values
    return values[:: -(-len(values) // count)]


def _fixed(value: float, step: float) -> str:
    """With the decimals that tell values `step` apart."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(round(step, decimals) - step) > 1e-6 * step:
        decimals += 1  # steps of 2.5
    if decimals > 8:
        return f"{value:.2g}"
    return f"{value:.{decimals}f}" if abs(value) > step / 1e6 else "0"


def _escape(text: str) -> str:
    return html.escape(errors.printable(text))
