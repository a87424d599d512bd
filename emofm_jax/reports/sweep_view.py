"""What all parts of a sweep's report are made of, and what it says in plain words: facts and summary."""

from typing import NamedTuple

import numpy as np

from emofm_jax import comparison
from emofm_jax.reports import findings, results

NAMES = {"auc": "AUC", "logloss": "logloss"}


class View(NamedTuple):
    """What all sections are made of.

    Attributes:
      sweep: the results.
      metric: that points are ordered and compared by.
      split: that was evaluated.
      figures: {name: matrix}: auc, logloss, pcoc, share, parameters, rows_per_s.
      order: indices of the points that have runs, the best first.
      changed: from `findings.differences`.
      compared: from `findings.compare`: against the reference and against the best.
    """

    sweep: results.Sweep
    metric: str
    split: str
    figures: dict[str, np.ndarray]
    order: list[int]
    changed: dict
    compared: dict

    def mean(self, name: str, point: int) -> float:
        """Over the seeds there are; NaN without any."""
        return findings.spread(self.figures[name][point])[0]

    def names(self) -> list[str]:
        """Of the points, the best first."""
        return [self.sweep.points[i] for i in self.order]

    def best(self) -> str:
        """The point with the best mean."""
        return self.sweep.points[self.order[0]]


def view(sweep: results.Sweep, metric: str, reference: str) -> View:
    """Reads and compares everything; `reference` replaces that of sweep.json."""
    sweep = sweep._replace(reference=reference)
    split = results.split_of(sweep.all_done())
    values = {key: lambda m, key=key: m[split].get(key) for key in ("auc", "logloss", "pcoc")}
    values |= {
        "share": lambda m: findings.share(m[split]),
        "parameters": lambda m: (m.get("parameters") or {}).get("total"),
        "rows_per_s": lambda m: (m.get("train") or {}).get("rows_per_s"),
    }
    figures = {name: findings.matrix(sweep, value) for name, value in values.items()}
    means = np.array([findings.spread(row)[0] for row in figures[metric]])
    order = np.argsort(-means if comparison.HIGHER_IS_BETTER[metric] else means, kind="stable")
    order = [int(i) for i in order if np.isfinite(means[i])] or [
        i for i, point in enumerate(sweep.points) if sweep.done(point)
    ]
    against = dict.fromkeys(point for point in (reference, sweep.points[order[0]]) if sweep.done(point))
    compared = findings.compare(sweep, metric, figures[metric], list(against)) if np.isfinite(means).any() else {}
    return View(sweep, metric, split, figures, order, findings.differences(sweep), compared)


def lead(v: View) -> list[str]:
    """What was run, where and when."""
    sweep, runs = v.sweep, v.sweep.all_done()
    facts = [
        f"experiment `{sweep.experiment}`: {len(sweep.points)} points, seeds {', '.join(map(str, sweep.seeds))}, "
        f"reference `{sweep.reference}`"
    ]
    if machine := results.machine(runs[0]):
        facts.append(machine)
    if days := sorted(day for run in runs if (day := results.day(run))):
        seconds = sum(run.seconds or 0 for run in sweep.runs.values())
        facts.append(
            " to ".join(dict.fromkeys((days[0], days[-1]))) + (f"; {_time(seconds)} in all" if seconds else "")
        )
    rows = {(run.metrics[v.split].get("rows"), run.metrics[v.split].get("clicks")) for run in runs}
    if len(rows) == 1 and None not in (only := rows.pop()):
        facts.append(f"{v.split} split: {only[0]:,} rows, {only[1]:,} clicks")
    return facts


def summary(v: View) -> list[str]:
    """What came out, in a paragraph or two, from the numbers alone."""
    sweep, name, best = v.sweep, NAMES[v.metric], v.best()
    mean, sd, _ = findings.spread(v.figures[v.metric][v.order[0]])
    if mean != mean:
        return [f"{name} has no value on the {v.split} split: its rows are of one class."]
    shown = f"{mean:.5f}{f' +/- {sd:.5f}' if sd == sd else ''}"
    lift = v.mean("share", v.order[0])
    lift = f", {lift:.1%} of the attainable lift" if lift == lift else ""
    finished = sum(1 for point in sweep.points if sweep.done(point))
    first = "highest" if comparison.HIGHER_IS_BETTER[v.metric] else "lowest"
    if finished == 1:
        return [f"One point is finished: `{best}`, {v.split} {name} {shown}{lift}. There is nothing to compare it to."]
    text = f"Of {finished} points **`{best}` has the {first} mean {v.split} {name}: {shown}**{lift}."
    rivals = v.compared.get(best, [])
    equal, unsure = (
        _with(rivals, "not distinguishable"),
        [c.point for c in rivals if not c.verdict and sweep.done(c.point)],
    )
    worse = len(_with(rivals, "worse"))
    if equal:
        text += f" Not distinguishable from it: {findings.listed(equal)}."
    if worse:
        last = sweep.points[v.order[-1]]
        gap = abs(v.mean(v.metric, v.order[-1]) - mean)
        others = "every other point is" if worse == len(rivals) else f"{worse} other{' is' if worse == 1 else 's are'}"
        text += f" {others[0].upper()}{others[1:]} worse; `{last}` comes last, {gap:.5f} behind."
    if unsure:
        text += f" No interval tells for {findings.listed(unsure)}."
    texts = [text]
    if sweep.reference in v.compared and best != sweep.reference:
        texts.append(_reference(v))
    compared = [c for c in v.compared.get(sweep.reference, []) if c.verdict]
    if len(compared) > 1:
        texts.append(_chance(compared))
    basis = {c.basis for group in v.compared.values() for c in group if c.basis}
    if basis == {"rows"}:
        texts.append(
            "With one seed a point, nothing is known of what another training run would give: the verdicts are about "
            "these very models on other test rows."
        )
    elif basis == {"seeds"}:
        texts.append(
            "The verdicts are about other seeds on these very test rows: the predictions cannot be compared row by row."
        )
    return texts


def _reference(v: View) -> str:
    """The sentence about the reference."""
    group = v.compared[v.sweep.reference]
    parts = [
        f"{verdict} {'is' if len(names) == 1 else 'are'} {findings.listed(names)}"
        for verdict in ("better", "worse")
        if (names := _with(group, verdict))
    ]
    if equal := _with(group, "not distinguishable"):
        parts.append(f"not distinguishable from it {'is' if len(equal) == 1 else 'are'} {findings.listed(equal)}")
    return f"Against the reference `{v.sweep.reference}`: {'; '.join(parts) or 'nothing can be said'}."


def _chance(compared: list[findings.Comparison]) -> str:
    """How many of the verdicts chance alone would give, and which stay when that is accounted for."""
    expected = 0.05 * len(compared)
    called = [c.point for c in compared if c.verdict != "not distinguishable"]
    if not called:
        return f"None of the {len(compared)} comparisons with the reference shows a difference."
    kept = comparison.holm([c.best_interval().p for c in compared])
    kept = [c.point for c, k in zip(compared, kept) if k]
    text = (
        f"Chance alone would call about {expected:.2g} of the {len(compared)} comparisons with the reference "
        f"different; {len(called)} {'is' if len(called) == 1 else 'are'}."
    )
    if not kept:
        return f"{text} None of these stays when all comparisons shall be right together (Holm): take them with care."
    which = "All" if len(kept) == len(called) else f"Of these, {findings.listed(kept)}"
    return f"{text} {which} {'stays' if len(kept) == 1 else 'stay'} when all shall be right together (Holm)."


def _with(group: list[findings.Comparison], verdict: str) -> list[str]:
    return [c.point for c in group if c.verdict == verdict]


def _time(seconds: float) -> str:
    """Hours, minutes or seconds."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
