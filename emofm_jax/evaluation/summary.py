"""Records of a run -> what programs print: the tables that they end with, and the verdict."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from emofm_jax import errors
from emofm_jax.evaluation import leaks
from emofm_jax.evaluation.by_value import ByValue, ValueFigures
from emofm_jax.evaluation.metrics import Auxiliary
from emofm_jax.evaluation.split_report import SplitReport

_FEW_ROWS, _FEW_STEPS = 1000, 100  # too few to learn from, likely
_NAME = 24  # characters of a value that a line shows
_MOST_SLOTS = 5  # that the line of unknown values names
_SHARE_WORTH_KNOWING = 0.001
_TOO_GOOD = 0.999  # AUC of clicks


def table(report: SplitReport, title: str) -> str:
    """Metrics of some rows in fixed columns: the model beside what is attainable and a constant."""
    lines = [f"{title:<28}{'AUC':>10}{'logloss':>10}{'PCOC':>8}{'GAUC':>10}{'rows':>12}"]
    lines.append(_line("model", report))
    if report.bayes:
        lines.append(_line("Bayes-optimal", report.bayes))
    if report.true_am:
        lines.append(_line("model, true p(type | x)", report.true_am))
    lines.append(_line("constant predictor", report.constant))

    if report.share is not None:
        lift = "share of the attainable lift (AUC - 0.5) / (Bayes AUC - 0.5)"
        over = report.p_over_true
        calibrated = f"; sum of p / sum of true p {over:.3f}" if over is not None else ""
        lines.append(f"  {lift}: {report.share:.3f}{calibrated}")

    if report.types:
        lines += ["", "by interaction type, the type given"]
    for part in report.types:
        lines.append(_line(f"  {errors.printable(part.name)}", part))
        if part.bayes:
            lines.append(_line("    Bayes-optimal", part.bayes))

    if report.am:
        lines += ["", _auxiliary(report.am)]
    if line := unknown(report.unknown):
        lines += ["", line]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def footer(metrics: Mapping[str, Any]) -> str:
    """Parameters and speed of the run whose metrics.json these are, and why it ended."""
    parameters, train = metrics["parameters"], metrics["train"]
    counted = lambda n, what: f"{n:,} {what}{'s' if n != 1 else ''}"
    kept = train.get("kept_step", train["steps"])
    better = f"; the state of step {kept:,} was the best" if kept != train["steps"] else ""
    ended = f"\nended by {train['ended']}" if train.get("ended") else ""
    return (
        f"parameters: {parameters['embedding']:,} in the embedding table, "
        f"{parameters['network']:,} in the network\n"
        f"training: {rate(train)}, {train['input_wait']:.1%} of the time waiting for input; "
        f"{counted(train['steps'], 'step')}, {counted(train['epochs'], 'epoch')}, "
        f"{train['seconds']:.0f} seconds{better}{ended}{_intercept(metrics.get('intercept'))}"
    )


def _intercept(fitted: Mapping[str, Any] | None) -> str:
    """A line on what was added to all logits."""
    if fitted is None:
        return ""
    before, rows = fitted["pcoc"], f"{fitted['rows']:,} train rows"
    if before is None:
        return f"\nintercept: none, those of the {rows} that count are of one class"
    if fitted.get("keep_rate", 1) < 1:
        rows += " as they were sampled"
    what = f"sum of p / clicks of {rows} was {before:.3f}, and is 1 with it"
    return f"\nintercept: {fitted['value']:+.4f} to every logit; {what}"


def rate(train: Mapping[str, Any]) -> str:
    """Speed of a run, from "train" of metrics.json; one of a single step is not known."""
    rows_per_s = train["rows_per_s"]
    return f"{rows_per_s:,.0f} rows/s" if rows_per_s else "one step, too few for a rate"


def unknown(shares: Mapping[str, float]) -> str:
    """The slots with the most missing and unknown values, at most five; empty if none has 0.1%.

    Args:
      shares: {slot: share of its values}.
    """
    order = sorted(shares, key=lambda name: -shares[name])
    shown = [name for name in order[:_MOST_SLOTS] if shares[name] >= _SHARE_WORTH_KNOWING]
    if not shown:
        return ""

    text = "unknown values: " + ", ".join(
        f"{errors.printable(name)} {shares[name]:.1%}" for name in shown
    )
    if len(shown) == len(order):
        return text
    most = shares[order[len(shown)]]
    if most < _SHARE_WORTH_KNOWING:
        return f"{text} (others under {_SHARE_WORTH_KNOWING:.1%})"
    return f"{text} (others up to {most:.1%})"


def calibration(fit: Mapping[str, Any], title: str) -> str:
    """Figures of some rows before and after calibration.

    Args:
      fit: "method", "split" and "rows" that it was fitted on, "evaluated", whose figures these are,
        "reversed" if the higher logit gets the lower p, "before" and "after" {"auc", "logloss",
        "pcoc", "ece"}.
      title: what the rows are called.
    """
    head = f"{fit['method']}, {title}"
    lines = [f"{head:<28}{'AUC':>10}{'logloss':>10}{'PCOC':>8}{'ECE':>10}"]
    for name in ("before", "after"):
        lines.append(_cells(f"  {name}", fit[name], "ece"))

    own = ", the same rows" if fit["split"] == fit["evaluated"] else ""
    lines.append(f"  fitted on {fit['rows']:,} rows of the {fit['split']} split{own}")
    if fit.get("reversed"):
        why = "the model ranks those rows worse than chance; train it longer, or leave it as it is"
        lines.append(f"  warning: the calibration turns the order of the scores round: {why}")
    return "\n".join(lines)


def by_value(found: ByValue) -> str:
    """Figures by the values of a column, a line each."""
    heads = "rows clicks rate mean_p PCOC interval AUC interval logloss chance"
    widths = [11, 9, 9, 9, 8, 17, 8, 15, 9, 10]
    line = lambda cells: "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths))
    lines = [f"by {errors.printable(found.column)}: {errors.printable(found.said)}"]
    lines.append(f"{'value':<{_NAME}}{line([head.replace('_', ' ') for head in heads.split()])}")

    for name, value in found.named:
        name = "".join(c if c.isprintable() else " " for c in name)
        short = name if len(name) < _NAME else f"{name[: _NAME - 3]}.."
        lines.append(f"{short:<{_NAME}}{line(_value_cells(value))}")
    return "\n".join(lines)


def _value_cells(value: ValueFigures) -> list[str]:
    number = lambda x, digits: "-" if x is None else f"{x:,.{digits}f}"

    def interval(ends: tuple[float, float | None] | None, digits: int) -> str:
        if ends is None:
            return "-"
        high = "inf" if ends[1] is None else number(ends[1], digits)
        return f"{number(ends[0], digits)} to {high}"

    return [
        number(value.rows, 0),
        number(value.clicks, 0),
        number(value.rate, 4),
        number(value.mean_p, 4),
        number(value.pcoc, 3),
        interval(value.pcoc_interval, 3),
        number(value.auc, 4),
        interval(value.auc_interval, 3),
        number(value.logloss, 5),
        "-" if value.chance is None else f"{value.chance:.2g}",
    ]


def importance(found: Mapping[str, Any]) -> str:
    """Slots by the AUC that is lost when they are permuted; `found` as in importance.json."""
    names = [errors.printable(slot["name"]) for slot in found["slots"]]
    width = max(map(len, names))
    by = f"their values are permuted over {found['rows']:,} rows"
    lines = [f"slots by the AUC that is lost when {by}"]
    lines += [f"{'slot':<{width}}  {'group':<16}{'AUC drop':>12}{'logloss rise':>14}"]
    for name, slot in zip(names, found["slots"]):
        figures = f"{slot['auc_drop']:>12.6f}{slot['logloss_rise']:>14.6f}"
        lines.append(f"{name:<{width}}  {errors.printable(slot['group']):<16}{figures}")
    return "\n".join(lines)


def verdict(
    report: SplitReport,
    in_data: Sequence[str],
    learning_rates: Mapping[str, float],
    steps: int,
    alone: Mapping[str, float] | None = None,
) -> str:
    """What the first evaluation shows, in a line: the nats learnt, or why likely nothing was.

    Args:
      report: of the validation split.
      in_data: what `causes_in` found.
      learning_rates: of "embedding" and "network".
      steps: that were taken.
      alone: {slot: its AUC} of slots that alone nearly give the label.
    """
    learnt = _learnt(report, in_data, learning_rates, steps)
    leak = leaks.said(alone or {}) or _too_good(report.auc)
    return f"verdict: {learnt}{f'; {leak}' if leak else ''}"


def _too_good(auc: float | None) -> str:
    if auc is None or auc <= _TOO_GOOD:
        return ""
    slots = "look for slots that are known only after the click"
    return f"likely a leak: an AUC over {_TOO_GOOD} is too good for clicks; {slots}"


def _learnt(
    report: SplitReport, in_data: Sequence[str], learning_rates: Mapping[str, float], steps: int
) -> str:
    auc, nats, constant = report.auc, report.logloss, report.constant
    if auc is None or nats is None or constant is None or constant.logloss is None:
        return f"nothing to compare ({'; '.join(report.notes)})"

    against = f"logloss {nats:.4f} against {constant.logloss:.4f} of a constant"
    # Standard error of the AUC of a score that knows nothing.
    clicks, rest = report.clicks, report.rows - report.clicks
    if auc > 0.5 + 3 * math.sqrt((clicks + rest + 1) / (12 * clicks * rest)):
        if nats < constant.logloss:
            learnt = f"{1 - nats / constant.logloss:.0%} of its nats learnt"
            return f"{against}: {learnt}; AUC {auc:.4f}"
        off = f"its rates are off (PCOC {report.pcoc:.2f})"
        return f"{against}, though AUC {auc:.4f}: {off}"

    causes = [*in_data, *_causes(learning_rates, steps)]
    unusual = (
        "nothing unusual was found in the data, learning rates or steps: perhaps the columns do "
        "not tell"
    )
    likely = f"likely: {'; '.join(causes)}" if causes else unusual
    if nats < constant.logloss:
        chance = f"an AUC of {auc:.4f} may be chance with {clicks:,} clicks"
        return f"not distinguishable from a constant predictor ({against}; {chance}); {likely}"
    return f"no better than a constant predictor ({against}; AUC {auc:.4f}); {likely}"


def causes_in(prepared: dict) -> list[str]:
    """What in the data is known to keep a model from learning, from the content of prepare.json.

    KeyError, TypeError or AttributeError if it is none.
    """
    causes = []
    for name, slot in prepared["slots"].items():
        share = slot["unknown"].get("valid", 0.0)  # numbers have none
        if share > 0.5:
            causes.append(f"{share:.0%} of slot {name!r} is unknown in the validation split")
        largest = max(abs(slot.get("min") or 0), abs(slot.get("max") or 0))
        if largest > 100:
            tame = f"(transform {slot['encoding']}; log1p and standardize tame it)"
            causes.append(f"slot {name!r} reaches {largest:g} {tame}")

    train = prepared["splits"]["train"]
    if train["clicks"] in (0, train["rows"]):
        causes.append("the labels of the training split are all the same")
    if train["rows"] < _FEW_ROWS:
        causes.append(f"the training split has {train['rows']:,} rows only")
    return causes


def _causes(learning_rates: Mapping[str, float], steps: int) -> list[str]:
    """What in the options is known to keep a model from learning."""
    causes = []
    for key, rate in learning_rates.items():
        if rate == 0 or rate > 0.1:
            causes.append(f"config.optim.{key}.learning_rate is {rate:g}")
    if steps < _FEW_STEPS:
        more = "later epochs add to them; so does a smaller config.data.batch_size"
        causes.append(f"{steps:,} step{'s' if steps != 1 else ''} only so far ({more})")
    return causes


def _line(name: str, figures: Any) -> str:
    rows = getattr(figures, "rows", None)
    counted = "" if rows is None else f"{rows:,}"
    return f"{_cells(name, vars(figures), 'gauc')}{counted:>12}"


def _cells(name: str, figures: Mapping[str, Any], last: str) -> str:
    """A name, then AUC, logloss, PCOC and one more."""

    def cell(key: str, width: int, digits: int) -> str:
        value = figures.get(key)
        return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"

    cells = cell("auc", 10, 6), cell("logloss", 10, 6), cell("pcoc", 8, 3), cell(last, 10, 6)
    return f"{name:<28}{''.join(cells)}"


def _auxiliary(am: Auxiliary) -> str:
    entropy, true = am.marginal_entropy, am.bayes_logloss
    text = (
        f"auxiliary model: accuracy {am.accuracy:.4f} (majority type {am.majority:.4f}), "
        f"log-loss {am.logloss:.4f} nats (marginal entropy {entropy:.4f}"
    )
    if true is None or true == entropy:  # equal: a single type
        return text + ")"
    closed = (entropy - am.logloss) / (entropy - true)
    return text + f", true {true:.4f}): {closed:.2f} of the gap closed"
