"""What a sweep's report says in plain words, from the numbers alone: a paragraph or two, and a line per other data."""

from emofm_jax.evaluation import comparison
from emofm_jax.reports.sweep import findings
from emofm_jax.reports.sweep.findings import Comparison
from emofm_jax.reports.sweep.same_data import Group
from emofm_jax.reports.sweep.view import NAMES, View

_EQUAL = "not distinguishable"
_FEW = 2  # seeds whose interval says little: it is 12.7 standard errors to each side
_LARGE = 4  # points of a group that is said to be compared, too
_MANY = 5  # comparisons of which chance is worth a word


def summary(v: View) -> list[str]:
    """Paragraphs: of the data of the reference, and of what chance does."""
    name, first = NAMES[v.metric], v.groups[0]
    if not v.known:
        return [f"{name} has no value on the {v.split} split: its rows are of one class."]
    if sum(len(group.order) for group in v.groups) == 1:
        point = v.sweep.points[first.order[0]]
        return [
            f"One point is finished: `{point}`, {_result(v, first)}. There is nothing to compare it to."
        ]
    texts = []
    if len(v.groups) > 1:
        texts.append(
            f"The points were trained and tested on {len(v.groups)} different data. They are ranked and compared "
            "within the same data only"
            + (
                "; across data the share of the attainable lift is set side by side."
                if _shares(v)
                else "."
            )
        )
    texts.append(_best(v, first))
    best = v.sweep.points[first.order[0]]
    if best != first.partner and first.compared:
        texts.append(_against(v, first))
    every = [c for group in v.groups for c in group.compared if c.verdict]
    if len(every) >= 2:
        texts.append(_chance(v, every))
    if len(v.sweep.seeds) == _FEW and any(c.seeds for c in every):
        texts.append(
            "With two seeds an interval over seeds reaches 12.7 standard errors to each side: it calls few differences."
        )
    basis = {c.basis for group in v.groups for c in (*group.compared, *group.rivals) if c.basis}
    if basis == {"rows"}:
        texts.append(
            "With one seed a point, nothing is known of what another training run would give: the verdicts are about "
            "these very models on other test rows."
        )
    elif basis == {"seeds"}:
        texts.append(
            "The verdicts are about other seeds on these very rows: the predictions cannot be compared row by row."
        )
    return texts


def by_data(v: View) -> list[str]:
    """A line for each group of data but the first."""
    lines = []
    for group in v.groups[1:] if v.known else []:
        best = v.sweep.points[group.order[0]]
        text = f"**{group.name}**: "
        if len(group.order) == 1:
            lines.append(f"{text}`{best}` alone, {_result(v, group)}.")
            continue
        text += f"`{best}` has the {_first(v)} {_result(v, group)}"
        equal, few, worse, unsure = _sorted(v, group.rivals)
        parts = (
            [f"not distinguishable from it: {findings.listed([c.point for c in equal])}"]
            if equal
            else []
        )
        parts += [f"worse: {findings.listed([c.point for c in worse])}"] if worse else []
        parts += [f"too few seeds to tell: {_behind(v, group, few)}"] if few else []
        parts += (
            [f"no interval tells for {findings.listed([c.point for c in unsure])}"]
            if unsure
            else []
        )
        text = f"{'; '.join([text, *parts])}."
        if best != group.partner and len(group.order) >= _LARGE:
            text += f" {_against(v, group)}"
        lines.append(text)
    return lines


def told(v: View, c: Comparison) -> str:
    """The verdict for a table: with the seeds where some are missing; what is missing where there is none."""
    if not c.verdict:
        return c.why
    return c.verdict + (f" ({c.num_seeds} seeds)" if 2 <= c.num_seeds < len(v.sweep.seeds) else "")


def _best(v: View, group: Group) -> str:
    """The sentences about the best of the reference's data."""
    best, of = (
        v.sweep.points[group.order[0]],
        f" on the data of `{group.partner}`," if len(v.groups) > 1 else "",
    )
    if len(group.order) == 1:
        return f"On the data of `{best}` there is no other point; it has {_result(v, group)}."
    text = f"Of {len(group.order)} points{of} **`{best}` has the {_first(v)} mean {_result(v, group, bold=True)}."
    equal, few, worse, unsure = _sorted(v, group.rivals)
    if equal:
        text += f" Not distinguishable from it: {findings.listed([c.point for c in equal])}."
    if few:
        text += f" Too few seeds to tell: {_behind(v, group, few)}."
    if worse:
        last = v.sweep.points[group.order[-1]]
        gap = abs(v.mean(v.metric, group.order[-1]) - v.mean(v.metric, group.order[0]))
        others = f"{len(worse)} other{' is' if len(worse) == 1 else 's are'}"
        others = "every other point is" if len(worse) == len(group.rivals) else others
        text += f" {others[0].upper()}{others[1:]} worse; `{last}` comes last, {gap:.5f} behind."
    if unsure:
        text += f" No interval tells for {findings.listed([c.point for c in unsure])}."
    return text


def _against(v: View, group: Group) -> str:
    """The sentence about the reference, or what stands for it."""
    equal, few, worse, _ = _sorted(v, group.compared)
    parts = [
        f"{verdict} {'is' if len(found) == 1 else 'are'} {findings.listed([c.point for c in found])}"
        for verdict, found in (
            ("better", [c for c in group.compared if c.verdict == "better"]),
            ("worse", worse),
        )
        if found
    ]
    if equal:
        is_or_are = "is" if len(equal) == 1 else "are"
        parts.append(
            f"not distinguishable from it {is_or_are} {findings.listed([c.point for c in equal])}"
        )
    if few:
        parts.append(f"too few seeds to tell have {findings.listed([c.point for c in few])}")
    which = f"`{group.partner}` ({group.why})" if group.why else f"the reference `{group.partner}`"
    return f"Against {which}: {'; '.join(parts) or 'nothing can be said'}."


def _chance(v: View, compared: list[Comparison]) -> str:
    """How many verdicts chance alone would give, and which stay when that is accounted for, data by data."""
    called = [c.point for c in compared if c.verdict != _EQUAL]
    with_what = f"with `{v.groups[0].partner}`" if len(v.groups) == 1 else "of all data"
    if not called:
        return f"None of the {len(compared)} comparisons {with_what} shows a difference."
    kept, asked = [], []
    for group in v.groups:
        of_group = [c for c in group.compared if c.verdict]
        holds = comparison.holm([c.best_interval().p for c in of_group])
        kept += [c.point for c, k in zip(of_group, holds) if k]
        asked += [
            (len(of_group), c.num_seeds)
            for c, k in zip(of_group, holds)
            if c.verdict != _EQUAL and not k
        ]
    text = (
        f"Chance alone would call about {0.05 * len(compared):.2g} of the {len(compared)} comparisons {with_what} "
        f"different; {len(called)} {'is' if len(called) == 1 else 'are'}."
    )
    right = "all comparisons" if len(v.groups) == 1 else "all comparisons of the same data"
    if not kept:
        text += f" None of these stays when {right} shall be right together (Holm): take them with care."
    else:
        every = "This" if len(kept) == 1 else "All"
        which = every if len(kept) == len(called) else f"Of these, {findings.listed(kept)}"
        text += f" {which} {'stays' if len(kept) == 1 else 'stay'} when {right} shall be right together (Holm)."
    number, seeds = max(asked, default=(0, 0))
    if number >= _MANY and 2 <= seeds <= 3:
        reach = comparison.first_step_of_holm(seeds, number)
        text += (
            f" With {seeds} seeds it asks the clearest of {number} comparisons for {reach:.0f} standard errors, so "
            "that next to nothing can stay; more seeds would tell."
        )
    return text


def _sorted(v: View, compared: list[Comparison]) -> tuple[list, list, list, list]:
    """Not distinguishable, not distinguishable for want of seeds, worse, without verdict."""
    wanting = len(v.sweep.seeds) > _FEW
    equal = [c for c in compared if c.verdict == _EQUAL]
    few = [c for c in equal if wanting and c.num_seeds == _FEW]
    unsure = [c for c in compared if not c.verdict and v.sweep.done(c.point)]
    return (
        [c for c in equal if c not in few],
        few,
        [c for c in compared if c.verdict == "worse"],
        unsure,
    )


def _behind(v: View, group: Group, few: list[Comparison]) -> str:
    """Points with their seeds and how far they are from the best."""
    best, texts = v.mean(v.metric, group.order[0]), []
    for c in few[:_MANY]:
        gap = abs(v.mean(v.metric, v.sweep.points.index(c.point)) - best)
        texts.append(f"`{c.point}` ({c.num_seeds} seeds, {gap:.5f} behind)")
    return ", ".join(texts) + (f" and {len(few) - _MANY} more" if len(few) > _MANY else "")


def _first(v: View) -> str:
    return "highest" if comparison.HIGHER_IS_BETTER[v.metric] else "lowest"


def _result(v: View, group: Group, bold: bool = False) -> str:
    """Of the best: split, metric, mean, deviation, share."""
    mean, sd, _ = findings.spread(v.figures[v.metric][group.order[0]])
    lift = v.mean("share", group.order[0])
    lift = f", {lift:.1%} of the attainable lift" if lift == lift else ""
    shown = f"{mean:.5f}{f' +/- {sd:.5f}' if sd == sd else ''}"
    return f"{v.split} {NAMES[v.metric]}{':' if bold else ''} {shown}{'**' if bold else ''}{lift}"


def _shares(v: View) -> bool:
    return any(v.mean("share", i) == v.mean("share", i) for _, i in v.placed())
