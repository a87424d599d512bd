"""The line after the first evaluation: what was learnt, or why nothing was (a user's first question to a new run)."""

import math


def line(report: dict, prepared: dict | None, learning_rates: dict[str, float]) -> str:
    """What the first evaluation shows, in a line: the nats learnt, or the likely causes of having learnt nothing.

    Args:
      report: of the validation split, by `split_report.make`.
      prepared: content of prepare.json; None if there is none.
      learning_rates: of "embedding" and "network".
    """
    auc_value, nats, base = report["auc"], report["logloss"], report["constant"]["logloss"]
    if auc_value is None:
        return f"verdict: nothing to compare ({'; '.join(report['notes'])})"
    against = f"logloss {nats:.4f} against {base:.4f} of a constant"
    # Standard error of the AUC of a score that knows nothing.
    clicks, rest = report["clicks"], report["rows"] - report["clicks"]
    if auc_value > 0.5 + 3 * math.sqrt((clicks + rest + 1) / (12 * clicks * rest)):
        if nats < base:
            return (
                f"verdict: {against}: {1 - nats / base:.0%} of its nats learnt; AUC {auc_value:.4f}"
            )
        return f"verdict: {against}, though AUC {auc_value:.4f}: its rates are off (PCOC {report['pcoc']:.2f})"
    causes = _causes(report, prepared, learning_rates)
    likely = (
        "; likely: " + "; ".join(causes)
        if causes
        else "; nothing unusual was found in the data or learning rates"
    )
    return f"verdict: no better than a constant predictor ({against}; AUC {auc_value:.4f}){likely}"


def _causes(report: dict, prepared: dict | None, learning_rates: dict[str, float]) -> list[str]:
    """What in the data and the options is known to keep a model from learning."""
    causes = []
    for name, slot in prepared["slots"].items() if prepared else ():
        unknown = slot["unknown"].get("valid", 0.0)  # numbers have none
        if unknown > 0.5:
            causes.append(f"{unknown:.0%} of slot {name!r} is unknown in the validation split")
        if (
            slot.get("max") is not None
            and (largest := max(abs(slot["min"]), abs(slot["max"]))) > 100
        ):
            causes.append(
                f"slot {name!r} reaches {largest:g} (transform {slot['encoding']}; log1p and standardize tame it)"
            )
    for key, rate in learning_rates.items():
        if rate == 0 or rate > 0.1:
            causes.append(f"config.optim.{key}.learning_rate is {rate:g}")
    if prepared and prepared["splits"]["train"]["clicks"] in (
        0,
        prepared["splits"]["train"]["rows"],
    ):
        causes.append("the labels of the training split are all the same")
    return causes
