"""metrics.json -> the tables that `train` and `evaluate` end with."""

from collections.abc import Mapping

_MOST_SLOTS = 5  # that the line of unknown values names
_SHARE_WORTH_KNOWING = 0.001


def table(metrics: dict, split: str = "test") -> str:
    """The metrics of one split in lines of fixed columns: the model beside what is attainable and a constant.

    Args:
      metrics: as in `metrics.json`.
      split: which of its splits.
    """
    report = metrics[split]
    constant, bayes = report["constant"], report.get("bayes")
    lines = [f"{split + ' split':<28}{'AUC':>10}{'logloss':>10}{'PCOC':>8}{'GAUC':>10}{'rows':>12}"]
    lines.append(_line("model", report, report["rows"]))
    if bayes:
        lines.append(_line("Bayes-optimal", bayes))
    if report.get("true_am"):
        lines.append(_line("model, true p(type | x)", report["true_am"]))
    lines.append(_line("constant predictor", constant))
    if bayes and report["auc"] is not None and bayes["auc"] not in (None, 0.5):
        share = (report["auc"] - 0.5) / (bayes["auc"] - 0.5)
        over = report.get("p_over_true")
        calibrated = f"; sum of p / sum of true p {over:.3f}" if over is not None else ""
        lines.append(
            f"  share of the attainable lift (AUC - 0.5) / (Bayes AUC - 0.5): {share:.3f}{calibrated}"
        )
    if report.get("types"):
        lines += ["", "by interaction type, the type given"]
        for part in report["types"]:
            lines.append(_line(f"  {part['name']}", part, part["rows"]))
            if part.get("bayes"):
                lines.append(_line("    Bayes-optimal", part["bayes"]))
    if report.get("am"):
        lines += ["", _auxiliary(report["am"])]
    if line := unknown(report.get("unknown", {})):
        lines += ["", line]
    for note in report.get("notes", []):
        lines.append(f"note: {note}")
    return "\n".join(lines)


def footer(metrics: dict) -> str:
    """Parameters and speed of the run."""
    parameters, train = metrics["parameters"], metrics["train"]
    counted = lambda n, what: f"{n:,} {what}{'s' if n != 1 else ''}"
    rate = (
        f"{train['rows_per_s']:,.0f} rows/s"
        if train["rows_per_s"]
        else "one step, too few for a rate"
    )
    return (
        f"parameters: {parameters['embedding']:,} in the embedding table, {parameters['network']:,} in the network\n"
        f"training: {rate}, {train['input_wait']:.1%} of the time waiting for input; "
        f"{counted(train['steps'], 'step')}, {counted(train['epochs'], 'epoch')}, {train['seconds']:.0f} seconds"
    )


def unknown(shares: Mapping[str, float]) -> str:
    """The slots with the most missing and unknown values, at most five; empty if none has 0.1%.

    Args:
      shares: {slot: share of its values}.
    """
    order = sorted(shares, key=lambda name: -shares[name])
    shown = [name for name in order[:_MOST_SLOTS] if shares[name] >= _SHARE_WORTH_KNOWING]
    if not shown:
        return ""
    text = "unknown values: " + ", ".join(f"{name} {shares[name]:.1%}" for name in shown)
    if len(shown) == len(order):
        return text
    most = shares[order[len(shown)]]
    return text + (
        f" (others under {_SHARE_WORTH_KNOWING:.1%})"
        if most < _SHARE_WORTH_KNOWING
        else f" (others up to {most:.1%})"
    )


def calibration(fit: dict, split: str) -> str:
    """Figures of a split before and after calibration.

    Args:
      fit: "method", "split" and "rows" that it was fitted on, "before" and "after" {"auc", "logloss", "pcoc", "ece"}.
      split: whose figures these are.
    """
    head = f"{fit['method']}, {split} split"
    lines = [f"{head:<28}{'AUC':>10}{'logloss':>10}{'PCOC':>8}{'ECE':>10}"]
    for name in ("before", "after"):
        lines.append(_cells(f"  {name}", fit[name], "ece"))
    own = ", the same rows" if fit["split"] == split else ""
    return "\n".join([*lines, f"  fitted on {fit['rows']:,} rows of the {fit['split']} split{own}"])


def importance(found: dict) -> str:
    """Slots by the AUC that is lost when their values are permuted over the rows; `found` as in importance.json."""
    width = max(len(slot["name"]) for slot in found["slots"])
    lines = [f"{'slot':<{width}}  {'group':<16}{'AUC drop':>12}{'logloss rise':>14}"]
    for slot in found["slots"]:
        lines.append(
            f"{slot['name']:<{width}}  {slot['group']:<16}{slot['auc_drop']:>12.6f}{slot['logloss_rise']:>14.6f}"
        )
    return "\n".join(lines)


def _line(name: str, report: dict, rows: int | None = None) -> str:
    counted = "" if rows is None else f"{rows:,}"
    return f"{_cells(name, report, 'gauc')}{counted:>12}"


def _cells(name: str, report: dict, last: str) -> str:
    """A name, then AUC, logloss, PCOC and one more."""

    def cell(key: str, width: int, digits: int) -> str:
        value = report.get(key)
        return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"

    return f"{name:<28}{cell('auc', 10, 6)}{cell('logloss', 10, 6)}{cell('pcoc', 8, 3)}{cell(last, 10, 6)}"


def _auxiliary(am: dict) -> str:
    entropy = am["marginal_entropy"]
    text = (
        f"auxiliary model: accuracy {am['accuracy']:.4f} (majority type {am['majority']:.4f}), "
        f"log-loss {am['logloss']:.4f} nats (marginal entropy {entropy:.4f}"
    )
    if am.get("bayes_logloss") in (None, entropy):  # equal: a single type
        return text + ")"
    closed = (entropy - am["logloss"]) / (entropy - am["bayes_logloss"])
    return text + f", true {am['bayes_logloss']:.4f}): {closed:.2f} of the gap closed"
