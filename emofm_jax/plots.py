"""Charts as <svg> strings, without a plotting library: bars, dots with intervals, lines, scatter, calibration.

Every chart has a title and axes with units, tells its series apart by marks and dashes as well as by colour, and
follows the reader's light or dark mode. A value of None is left out.
"""

import html

from emofm_jax import axes

_ROW = 22  # pixels of a bar


def bars(title: str, names: list[str], values: list[float], *, unit: str, errors: list[float] | None = None) -> str:
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
    left = min(24 + max([axes.text_width(name) for name in names] or [0]), 260)
    width, top = 720, 40
    bottom = top + _ROW * len(names)
    ends = [v + side * (e or 0) for v, e in zip(values, errors) if v is not None for side in (-1, 1)]
    x = axes.scale(ends, left, width - 70, include=(0.0,))
    parts = _value_axis(x, top, bottom, unit)
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
        parts.append(axes.text(x(max(value + (error or 0), 0.0)) + 6, y + 4, axes.number(value), "k"))
    parts.append(axes.line(x(0.0), top, x(0.0), bottom, "a"))
    return axes.svg(width, bottom + 46, title, parts)


def _value_axis(x: axes.Scale, top: float, bottom: float, label: str) -> list[str]:
    """A horizontal axis of values: grid lines, numbers below, label."""
    parts = []
    for value, written in _spaced(x, x.ticks()):
        parts.append(axes.line(x(value), top, x(value), bottom, "g"))
        parts.append(axes.text(x(value), bottom + 16, written, "m k"))
    parts.append(axes.text((x.start + x.stop) / 2, bottom + 36, label, "m"))
    return parts


def _spaced(x: axes.Scale, ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Every so many ticks that their numbers keep apart."""
    for every in range(1, len(ticks) + 1):
        kept = ticks[::every]
        gaps = [abs(x(b[0]) - x(a[0])) for a, b in zip(kept, kept[1:])]
        if all(gap >= axes.text_width(t[1]) + 8 for gap, t in zip(gaps, kept)):
            return kept
    return ticks[:1]


def _whisker(x: axes.Scale, y: float, low: float, high: float, colour: str) -> str:
    a, b = x(low), x(high)
    return f'<path d="M{a:.1f} {y - 4:.1f}v8m0-4H{b:.1f}m0-4v8" fill="none" stroke="{colour}" stroke-width="1.5"/>'
