"""What a sweep's report says in words, from the numbers alone."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from emofm_jax.evaluation import comparison
from emofm_jax.reports.sweep.findings import Comparison
from emofm_jax.reports.sweep.same_data import SameData
from emofm_jax.reports.sweep.view import View

_BETTER, _WORSE, _EQUAL = comparison.VERDICTS
_FEW = 2  # seeds whose interval says little
OF_TWO = "Of two seeds a 95% interval is 12.7 standard errors to each side: run three or more."
_REMEDY = "run three seeds or more (five are usual; add them to the file, the same command goes on)"
_WIDE = (
    "With two seeds an interval over seeds reaches 12.7 standard errors to each side, so it calls "
    f"few differences: {_REMEDY}."
)
_LARGE = 4  # points of the same data that are said to be compared, too
_MANY = 5  # comparisons of which chance is worth a word
_NAMED = 8  # points that a sentence lists at most


class _Verdicts(NamedTuple):
    """Points by their verdict; `few` are equal for want of seeds, `unsure` have none."""

    better: list[str]
    worse: list[str]
    equal: list[Comparison]
    few: list[Comparison]
    unsure: list[str]


def listed(names: Sequence[str]) -> str:
    """`a`, `b` and `c`; the first few of many."""
    quoted = [f"`{name}`" for name in names]
    if len(quoted) > _NAMED:
        return f"{', '.join(quoted[:_NAMED])} and {len(quoted) - _NAMED} more"
    return " and ".join(filter(None, [", ".join(quoted[:-1]), *quoted[-1:]]))


def summary(v: View) -> list[str]:
    """Paragraphs: of the data of the reference, and of what chance does."""
    first = v.data[0]
    if not v.known:
        return [f"{v.name} has no value on the {v.split} split: its rows are of one class."]
    if len(v.placed()) == 1:
        result = f"`{first.points[0]}`, {_result(v, first)}"
        return [f"One point is finished: {result}. There is nothing to compare it to."]

    texts = []
    if len(v.data) > 1:
        shares = "; across data the share of the attainable lift is set side by side"
        texts.append(
            f"The points were trained and tested on {len(v.data)} different data. They are ranked "
            f"and compared within the same data only{shares if v.has('share') else ''}."
        )
    texts.append(_best(v, first))
    if first.points[0] != first.partner and first.compared:
        texts.append(_against(v, first))
    if two_seeds(v) and any(c.seeds for same in v.data for c in _open(same)):
        texts[-1] += f" {_WIDE}"

    every = [c for same in v.data for c in same.compared if c.verdict]
    if len(every) >= 2:
        texts.append(_chance(v, every))
    return [*texts, *_caveats(v)]


def by_data(v: View) -> list[str]:
    """A line for each data but the first."""
    lines = []
    for same in v.data[1:] if v.known else []:
        best, found = same.points[0], _sorted(v, same.rivals)
        if len(same.points) == 1:
            lines.append(f"**{same.name}**: `{best}` alone, {_result(v, same)}.")
            continue
        parts = [f"**{same.name}**: `{best}` has the {_first(v)} {_result(v, same)}"]
        for what, points in (
            ("not distinguishable from it:", _equal(found.equal)),
            ("worse:", listed(found.worse)),
            ("too few seeds to tell:", _behind(v, same, found.few)),
            ("no interval tells for", listed(found.unsure)),
        ):
            parts += [f"{what} {points}"] if points else []
        text = f"{'; '.join(parts)}."
        if best != same.partner and len(same.points) >= _LARGE:
            text += f" {_against(v, same)}"
        lines.append(text)
    return lines


def told(v: View, c: Comparison, verdict: str = "") -> str:
    """A verdict, by default the final one, with the seeds if some are missing; else what is."""
    verdict = verdict or c.verdict
    if not verdict:
        return c.why
    some = 2 <= c.num_seeds < len(v.sweep.seeds)
    return f"{verdict} ({c.num_seeds} seeds)" if some else verdict


def two_seeds(v: View) -> bool:
    """Whether the sweep has two seeds, whose intervals say little."""
    return len(v.sweep.seeds) == _FEW


def _open(same: SameData) -> list[Comparison]:
    """Comparisons with the best or the partner that tell nothing."""
    return [c for c in (*same.rivals, *same.compared) if c.verdict == _EQUAL]


def _best(v: View, same: SameData) -> str:
    """The sentences about the best of the reference's data."""
    best, last = same.points[0], same.points[-1]
    if len(same.points) == 1:
        return f"On the data of `{best}` there is no other point; it has {_result(v, same)}."
    of = f" on the data of `{same.partner}`," if len(v.data) > 1 else ""
    result = _result(v, same, bold=True)
    text = f"Of {len(same.points)} points{of} **`{best}` has the {_first(v)} mean {result}."

    found = _sorted(v, same.rivals)
    if found.equal:
        text += f" Not distinguishable from it: {_equal(found.equal)}."
    if found.few:
        text += f" Too few seeds to tell: {_behind(v, same, found.few)}."
    if worse := len(found.worse):
        others = f"{worse} other{' is' if worse == 1 else 's are'}"
        others = "Every other point is" if worse == len(same.rivals) else others
        text += f" {others} worse; `{last}` comes last, {_gap(v, last, best)} behind."
    if found.unsure:
        text += f" No interval tells for {listed(found.unsure)}."
    return text


def _against(v: View, same: SameData) -> str:
    """The sentence about the reference, or what stands for it."""
    found = _sorted(v, same.compared)
    parts = []
    for what, points in (
        (_BETTER, found.better),
        (_WORSE, found.worse),
        ("not distinguishable from it", _points(found.equal)),
    ):
        if points:
            parts.append(f"{listed(points)} {_are(points)} {what}")
    parts += [f"over rows alone {said}"] if (said := _over_rows(found.equal)) else []
    if found.few:
        have = "has" if len(found.few) == 1 else "have"
        parts.append(f"{listed(_points(found.few))} {have} too few seeds to tell")
    which = f"`{same.partner}` ({same.why})" if same.why else f"the reference `{same.partner}`"
    return f"Against {which}: {'; '.join(parts) or 'nothing can be said'}."


def _chance(v: View, compared: Sequence[Comparison]) -> str:
    """How many verdicts chance alone would give, and which stay when that is accounted for."""
    called = [c for c in compared if c.verdict != _EQUAL]
    with_what = f"with `{v.data[0].partner}`" if len(v.data) == 1 else "of all data"
    comparisons = f"{len(compared)} comparisons {with_what}"
    if not called:
        return f"None of the {comparisons} shows a difference."

    kept, asked = [], [(0, 0)]  # points; (comparisons of the same data, seeds) of those that fall
    for same in v.data:
        intervals = [(c, c.interval.p) for c in same.compared if c.interval]
        holds = comparison.holm([p for _, p in intervals])
        for (c, _), stays in zip(intervals, holds):
            if stays:
                kept.append(c.point)
            elif c.verdict != _EQUAL:
                asked.append((len(intervals), c.num_seeds))

    by_chance = f"{0.05 * len(compared):.2g}"
    text = (
        f"Chance alone would call about {by_chance} of the {comparisons} different; "
        f"{len(called)} {_are(called)}."
    )
    right = "all comparisons" if len(v.data) == 1 else "all comparisons of the same data"
    when = f"when {right} shall be right together (Holm)"
    if not kept:
        text += f" None of these stays {when}: take them with care."
    else:
        every = "This" if len(kept) == 1 else "All"
        which = every if len(kept) == len(called) else f"Of these, {listed(kept)}"
        text += f" {which} {'stays' if len(kept) == 1 else 'stay'} {when}."

    number, seeds = max(asked)
    if number >= _MANY and 2 <= seeds <= 3:
        reach = comparison.first_step_of_holm(seeds, number)
        text += (
            f" With {seeds} seeds it asks the clearest of {number} comparisons for {reach:.0f} "
            "standard errors, so that next to nothing can stay; more seeds would tell."
        )
    return text


def _caveats(v: View) -> list[str]:
    """What the verdicts do not say."""
    texts = []
    every = [c for same in v.data for c in (*same.compared, *same.rivals) if c.interval]
    if every and not any(c.seeds for c in every):
        texts.append(
            "With one seed a point, nothing is known of what another training run would give: "
            f"the verdicts are about these very models on other test rows; {_REMEDY}."
        )
    if every and not any(c.rows for c in every):
        texts.append(
            "The verdicts are about other seeds on these very rows: "
            "the predictions cannot be compared row by row."
        )
    return texts


def _sorted(v: View, compared: Sequence[Comparison]) -> _Verdicts:
    of = lambda verdict: [c for c in compared if c.verdict == verdict]
    wanting = len(v.sweep.seeds) > _FEW
    few = [c for c in of(_EQUAL) if wanting and c.num_seeds == _FEW]
    equal = [c for c in of(_EQUAL) if c not in few]
    unsure = _points(c for c in of("") if v.sweep.done(c.point))
    return _Verdicts(_points(of(_BETTER)), _points(of(_WORSE)), equal, few, unsure)


def _equal(compared: Sequence[Comparison]) -> str:
    """Points that cannot be told from one, and what the rows alone say."""
    said = _over_rows(compared)
    return listed(_points(compared)) + (f" (over rows alone {said})" if said else "")


def _over_rows(compared: Sequence[Comparison]) -> str:
    """Which of the points the rows alone call better or worse."""
    parts = []
    for verdict in (_BETTER, _WORSE):
        points = _points(c for c in compared if c.rows and c.verdict_of(c.rows) == verdict)
        parts += [f"{listed(points)} {_are(points)} {verdict}"] if points else []
    return ", ".join(parts)


def _points(compared: Iterable[Comparison]) -> list[str]:
    return [c.point for c in compared]


def _are(things: Sequence) -> str:
    return "is" if len(things) == 1 else "are"


def _behind(v: View, same: SameData, few: Sequence[Comparison]) -> str:
    """Points with their seeds and how far they are from the best."""
    texts = []
    for c in few[:_MANY]:
        gap = _gap(v, c.point, same.points[0])
        texts.append(f"`{c.point}` ({c.num_seeds} seeds, {gap} behind)")
    return ", ".join(texts) + (f" and {len(few) - _MANY} more" if len(few) > _MANY else "")


def _gap(v: View, point: str, best: str) -> str:
    return f"{abs(v.mean(point) - v.mean(best)):.5f}"


def _first(v: View) -> str:
    return "highest" if comparison.HIGHER_IS_BETTER[v.metric] else "lowest"


def _result(v: View, same: SameData, bold: bool = False) -> str:
    """Of the best: split, metric, mean, deviation, share."""
    mean, sd, _ = v.spread(same.points[0])
    share = v.mean(same.points[0], "share")
    lift = f", {share:.1%} of the attainable lift" if share == share else ""
    shown = f"{mean:.5f}{f' +/- {sd:.5f}' if sd == sd else ''}"
    return f"{v.split} {v.name}{':' if bold else ''} {shown}{'**' if bold else ''}{lift}"
