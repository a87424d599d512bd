"""Charts: well-formed, nothing clipped or overlapping, marks where the numbers are, apart in greyscale, dark mode."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emofm_jax.evaluation.comparison import Interval
from emofm_jax.reports import axes, plots
from emofm_jax.reports.plots import Series

pytestmark = pytest.mark.fast

NAMES = [
    "hmm",
    "wm <&\"'>",
    "a_very_long_name_of_a_point_with+mixer.kind=self_attention",
    "d_att=128",
]
Y = [0.757, 0.7571, None, 0.75]
AROUND = [None if y is None else Interval(y, y - 0.002, y + 0.002) for y in Y]
CHARTS = {
    "bars": plots.bars("Importance", NAMES, [0.03, 0.001, 0.0, -0.002], unit="AUC lost"),
    "bars of nothing": plots.bars("None", [], [], unit="AUC lost"),
    "bars of zero": plots.bars("Zero", ["a"], [0.0], unit="rows/s"),
    "dots": plots.dots(
        "AUC", NAMES, [Series("a", (), Y, AROUND), Series("b", (), Y)], unit="AUC", line=0.757
    ),
    "lines": plots.lines(
        "Curves " * 30,
        [Series(f"{name}{i}", (1, 2, 3, 4), Y, AROUND) for i in range(2) for name in NAMES],
        x="steps",
        y="AUC",
    ),
    "one point": plots.lines(
        "One", [Series("a", (8,), (0.7,)), Series("", (8,), (0.7,))], x="d", y="AUC", log_x=True
    ),
    "scatter": plots.scatter(
        "Cost",
        NAMES,
        Series("", (1e5, 1e6, None, 1e7), Y, AROUND),
        x="rows/s",
        y="AUC",
        log_x=True,
    ),
    "reliability": plots.reliability(
        "Reliability",
        [
            Series("a", (0.01, 0.1, 0.3), (0.0, 0.12, 0.28)),
            Series("b", (0.02, 0.1, 0.3), (0.01, 0.12, None)),
        ],
    ),
}


def boxes(svg):
    """(text, left, top, right, bottom) of every text, by the measure that charts are laid out with."""
    root = ET.fromstring(svg)
    turned = root.findall(".//{*}g/{*}text")
    for text in [text for text in root.findall(".//{*}text") if text not in turned]:
        style, x, y = text.get("class", "").split(), float(text.get("x")), float(text.get("y"))
        content = (
            "".join(part for part in text.itertext() if part)
            if text.find("{*}title") is None
            else text[0].tail
        )
        width = axes.text_width(content, 14 if "t" in style else axes.FONT)
        left = x - width if "e" in style else x - width / 2 if "m" in style else x
        yield content, left, y - 10, left + width, y + 3


def check_layout(svg):
    root = ET.fromstring(svg)
    width, height = float(root.get("width")), float(root.get("height"))
    found = list(boxes(svg))
    assert found
    for content, left, top, right, bottom in found:
        assert left >= 0 and right <= width and top >= 0 and bottom <= height, (
            f"{content!r} is clipped"
        )
    for i, (a, *one) in enumerate(found):
        for b, *other in found[i + 1 :]:
            apart = (
                one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
            )
            assert apart, f"{a!r} and {b!r} overlap"


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_whole_files_with_nothing_clipped_or_overlapping(name):
    svg = CHARTS[name]
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "nan" not in svg and "inf" not in svg
    check_layout(svg)


@pytest.mark.parametrize("name", CHARTS)
def test_colours_follow_the_reader_and_come_from_the_style_alone(name):
    style, rest = (
        re.search(r"<style>(.*?)</style>", CHARTS[name])[1],
        re.sub(r"<style>.*?</style>", "", CHARTS[name]),
    )
    assert "@media(prefers-color-scheme:dark)" in style
    assert not re.search(r"#[0-9a-fA-F]{3}|rgb\(|\b(black|white|red|blue)\b", rest)
    light, dark = style.split("@media")
    used = set(re.findall(r"var\((--\w+)\)", rest))
    assert used and all(f"{name}:" in light and f"{name}:" in dark for name in used)


def luminance(colour):
    return np.dot([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], [0.2126, 0.7152, 0.0722])


def test_contrast_and_difference_without_colour():
    light, dark = ([luminance(c) for c in colours] for colours in (axes._COLOURS, axes._DARK))
    assert max(light) < 0.5 and min(dark) > 0.5  # on white, on nearly black
    assert len(set(zip(axes.SHAPES, axes.DASHES))) == len(set(axes.DASHES)) == axes.NUM_STYLES
    marks = [re.sub(r"--s\d", "", axes.marker(50, 50, i)) for i in range(axes.NUM_STYLES)]
    assert len(set(marks)) == axes.NUM_STYLES


def test_bars_are_as_long_as_their_values():
    svg = plots.bars("x", ["a", "b", "c"], [1.0, 2.0, -0.5], unit="AUC lost")
    rects = ET.fromstring(svg).findall("{*}rect")[1:]
    widths = np.array([float(r.get("width")) for r in rects])
    np.testing.assert_allclose(widths / widths[0], [1, 2, 0.5], rtol=1e-2)
    assert float(rects[2].get("x")) < float(rects[0].get("x"))


def test_whiskers_reach_from_one_end_to_the_other():
    ends = [(0.9, 1.1), None, (-0.7, -0.3)]
    intervals = [end and Interval(sum(end) / 2, *end) for end in ends]
    svg = plots.dots("x", list("abc"), [Series("", (), (1.0, 2.0, -0.5), intervals)], unit="AUC")
    x = [float(mark.get("cx")) for mark in ET.fromstring(svg).iter() if mark.get("cx")]
    whiskers = re.findall(r"M([\d.]+) [\d.]+v8m0-4H([\d.]+)", svg)
    widths = [(float(b) - float(a)) / (x[1] - x[0]) for a, b in whiskers]
    np.testing.assert_allclose(widths, [0.2, 0.4], rtol=2e-2)
    middles = [(float(a) + float(b)) / 2 for a, b in whiskers]
    np.testing.assert_allclose(middles, [x[0], x[2]], atol=0.1)


def test_points_stand_where_their_numbers_are():
    svg = plots.lines(
        "x", [Series("a", (1, 10, 100), (0.1, 0.3, 0.2))], x="d_att", y="AUC", log_x=True
    )
    (points,) = re.findall(r'polyline points="([^"]*)"', svg)
    x, y = np.array([p.split(",") for p in points.split()], float).T
    np.testing.assert_allclose(x[1] - x[0], x[2] - x[1], atol=0.2)  # equal factors, equal steps
    np.testing.assert_allclose((y[0] - y[2]) / (y[0] - y[1]), 0.5, atol=0.01)
    assert re.findall(r"<title>(.*?)</title>", svg)[-1] == "a, d_att 100: 0.2"
    kept = plots.lines(
        "x", [Series("a", (0, 10, 100), (0.1, 0.3, 0.2))], x="d_att", y="AUC", log_x=True
    )
    assert len(re.findall(r'polyline points="([^"]*)"', kept)[0].split()) == 2


def test_nameless_series_have_no_mark_and_no_place_in_the_legend():
    svg = plots.lines(
        "x", [Series("a", (1, 2), (0.1, 0.3)), Series("", (1, 2), (0.2, 0.2))], x="steps", y="AUC"
    )
    assert svg.count("<circle") == 3 and svg.count("<polyline") == 2  # two points and the legend


def test_the_diagonal_of_reliability_is_where_both_axes_agree():
    svg = plots.reliability("c", [Series("a", (0.01, 0.1, 0.5), (0.01, 0.1, 0.5))])
    x1, y1, x2, y2 = map(
        float,
        re.search(
            r'x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" class="a d"', svg
        ).groups(),
    )
    for cx, cy in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg):
        np.testing.assert_allclose(
            (float(cx) - x1) / (x2 - x1), (float(cy) - y1) / (y2 - y1), atol=0.01
        )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    low=st.floats(-1e6, 1e6),
    span=st.floats(1e-6, 1e6),
    count=st.integers(3, 10),
)
def test_ticks_are_round_within_the_scale_and_written_apart(low, span, count):
    span = max(span, abs(low) * 1e-4)
    scale = axes.Scale(low, low + span, 0, 100)
    values, labels = zip(*scale.ticks(count))
    assert 1 <= len(values) <= count + 1 and all(
        low - 1e-9 * span <= v <= low + span * (1 + 1e-9) for v in values
    )
    assert len(set(labels)) == len(labels)
    if abs(low) + span < 10_000:
        np.testing.assert_allclose([float(x) for x in labels], values, atol=span * 1e-6, rtol=1e-9)
    steps = np.diff(values)
    if len(steps):
        mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
        assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5, 10)) < 1e-4


@settings(max_examples=200, deadline=None, derandomize=True)
@given(low=st.floats(1e-6, 1e6), factor=st.floats(1.05, 1e6))
def test_logarithmic_ticks(low, factor):
    scale = axes.Scale(low, low * factor, 0, 100, log=True)
    values = [value for value, _ in scale.ticks()]
    assert 2 <= len(values) <= 9 and all(low * 0.999 <= v <= low * factor * 1.001 for v in values)
    labels = [label for _, label in scale.ticks()]
    assert len(set(labels)) == len(labels)
    np.testing.assert_allclose(scale(math.sqrt(low * low * factor)), 50, atol=1e-6)


def test_labels_tell_large_and_close_numbers_apart():
    written = lambda low, high, log=False: [
        label for _, label in axes.Scale(low, high, 0, 100, log).ticks()
    ]
    assert written(153_800, 156_100) == ["154.0k", "154.5k", "155.0k", "155.5k", "156.0k"]
    assert written(0, 40_000) == ["0", "10k", "20k", "30k", "40k"]
    assert written(0.31601, 0.31634, log=True) == ["0.3161", "0.3162", "0.3163"]
    assert written(0, 3_000_000)[-1] == "3.0M" and written(1_000_000, 1_000_100)[1] == "1000.02k"


@pytest.mark.parametrize(
    "values, log, least", [([0.7, 0.7 + 1e-9], False, 6e-5), ([0.316, 0.3161], True, 0.01)]
)
def test_a_scale_is_not_filled_by_noise(values, log, least):
    scale = axes.scale(values, 0, 100, log=log)
    assert scale.high - scale.low > least and scale.low < values[0] < values[1] < scale.high
    shown = [scale(v) for v in values]
    assert 0 < shown[1] - shown[0] < 20 and 40 < shown[0] < 60


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.text("abmMW_=+<&é1", min_size=1, max_size=60),
            st.floats(-1e3, 1e7).map(lambda x: round(x, 6)),
            st.floats(1, 1e8),
        ),
        min_size=1,
        max_size=45,
    ),
    st.booleans(),
)
def test_any_names_and_values_fit(rows, log):
    names, y, x = map(list, zip(*rows))
    scale = max(map(abs, y)) or 1.0
    check_layout(plots.bars(names[0], names, y, unit="AUC"))
    check_layout(plots.dots(names[0], names, [Series(n, (), y) for n in names[:8]], unit="AUC"))
    check_layout(
        plots.scatter(
            names[0], names, Series("", x, [v / scale for v in y]), x="rows/s", y="AUC", log_x=log
        )
    )
    order = np.argsort(x)
    series = [Series(n, [x[i] for i in order], [y[i] for i in order]) for n in names[:8]]
    check_layout(plots.lines(names[0], series, x="steps", y="AUC", log_x=log))


def test_numbers_are_short():
    assert [axes.number(v) for v in (0.05, 12, 1500, 40_000, 2_000_000, 0)] == [
        "0.05",
        "12",
        "1.5k",
        "40k",
        "2M",
        "0",
    ]


def test_a_long_name_keeps_its_ends_and_shows_whole_under_the_pointer():
    short = axes.shorten("group_user_interaction_sequence_length", 100)
    assert short.startswith("group") and short.endswith("gth") and axes.text_width(short) <= 100
    assert "<title>a &lt; b" in axes.text(0, 0, "a…", "", "a < b")


@pytest.mark.parametrize(
    ("name", "down"), [("group_slots = (12, 12, 13, 13), rows[0] = 100,000", 14), ("a", -4)]
)
def test_names_too_long_to_stand_beside_their_dots_stand_above_them(name, down):
    chart = ET.fromstring(plots.dots("AUC", [name, "b"], [Series("", (), [0.5, 0.6])], unit="AUC"))
    rows = [float(text.get("y")) for text in chart.iter() if text.text in (name, "b")]
    marks = [float(mark.get("cy")) for mark in chart.iter() if mark.get("cy")]
    assert len(rows) == 2, "whole"
    assert [round(mark - row) for mark, row in zip(marks, rows)] == [down] * 2, (
        "from the base line of the name"
    )
