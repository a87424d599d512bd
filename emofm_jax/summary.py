"""metrics.json -> the table that `train` and `evaluate` end with."""


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
    lines.append(_line("constant predictor", constant))
    if bayes and report["auc"] is not None and bayes["auc"] not in (None, 0.5):
        share = (report["auc"] - 0.5) / (bayes["auc"] - 0.5)
        over = report.get("p_over_true")
        calibrated = f"; sum of p / sum of true p {over:.3f}" if over is not None else ""
        lines.append(f"  share of the attainable lift (AUC - 0.5) / (Bayes AUC - 0.5): {share:.3f}{calibrated}")
    if report.get("types"):
        lines += ["", "by interaction type, the type given"]
        for part in report["types"]:
            lines.append(_line(f"  {part['name']}", part, part["rows"]))
            if part.get("bayes"):
                lines.append(_line("    Bayes-optimal", part["bayes"]))
    if report.get("am"):
        lines += ["", _auxiliary(report["am"])]
    for note in report.get("notes", []):
        lines.append(f"note: {note}")
    return "\n".join(lines)


def footer(metrics: dict) -> str:
    """Parameters and speed of the run."""
    parameters, train = metrics["parameters"], metrics["train"]
    return (
        f"parameters: {parameters['embedding']:,} in the embedding table, {parameters['network']:,} in the network\n"
        f"training: {train['rows_per_s']:,.0f} rows/s, {train['input_wait']:.1%} of the time waiting for input; "
        f"{train['steps']:,} steps, {train['epochs']} epoch{'s' if train['epochs'] != 1 else ''}, "
        f"{train['seconds']:.0f} seconds"
    )


def _line(name: str, report: dict, rows: int | None = None) -> str:
    def cell(key: str, width: int, digits: int) -> str:
        value = report.get(key)
        return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"

    counted = "" if rows is None else f"{rows:,}"
    return (
        f"{name:<28}{cell('auc', 10, 6)}{cell('logloss', 10, 6)}{cell('pcoc', 8, 3)}{cell('gauc', 10, 6)}{counted:>12}"
    )


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
