"""The line after the first evaluation: what was learnt, or why nothing was (a user's first question to a new run)."""

import math


def verdict(report: dict, prepared: dict | None, learning_rates: dict[str, float]) -> str:
    """What the first evaluation shows, in a line: the nats learnt, or the likely causes of having learnt nothing.

    Args:
      report: of `split_report`.
      prepared: content of prepare.json, or None.
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
            return f"verdict: {against}: {1 - nats / base:.0%} of its nats learnt; AUC {auc_value:.4f}"
        return f"verdict: {against}, though AUC {auc_value:.4f}: its rates are off (PCOC {report['pcoc']:.2f})"
    causes = _causes(report, prepared, learning_rates)
    likely = "; likely: " + "; ".join(causes) if causes else "; nothing unusual was found in the data or learning rates"
    return f"verdict: no better than a constant predictor ({against}; AUC {auc_value:.4f}){likely}"


def _causes(report: dict, prepared: dict | None, learning_rates: dict[str, float]) -> list[str]:
    causes = []
    for name, slot in (prepared or {"slots": {}})["slots"].items():
        if (unknown := slot.get("unknown", {}).get("valid") or 0) > 0.5:
            causes.append(f"{unknown:.0%} of slot {name!r} is unknown in valid")
        largest = max(abs(slot.get("min") or 0), abs(slot.get("max") or 0))
        if slot.get("transform") == "none" and largest > 100:
            causes.append(f"slot {name!r} reaches {largest:g} without a transform (log1p, standardize, bucket)")
    for key, rate in learning_rates.items():
        if rate == 0 or rate > 0.1:
            causes.append(f"optim.{key}.learning_rate is {rate:g}")
    rate = report["constant"]["p"]
    if min(rate, 1 - rate) < 1e-3:
        causes.append(f"the click rate is {rate:.2g}")
    return causes
