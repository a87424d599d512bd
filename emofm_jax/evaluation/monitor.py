"""What a monitor (config.train.monitor) makes of an evaluation, and which step a run keeps."""

from collections.abc import Callable

# Name -> value of (AUC, log-loss in nats) of the validation split; more is better.
MONITORS: dict[str, Callable[..., float]] = {
    "auc": lambda auc, logloss: auc,
    "logloss": lambda auc, logloss: -logloss,
    "auc - logloss": lambda auc, logloss: auc - logloss,
}


def value(monitor: str, auc: float | None, logloss: float | None) -> float | None:
    """Returns what a monitor makes of an evaluation, more being better.

    Args:
      monitor: one of MONITORS.
      auc, logloss: of the validation split; None where they are not defined.

    Returns:
      None if the monitor needs a number that is not defined.
    """
    found = {"auc": auc, "logloss": logloss}
    if any(figure is None and name in monitor for name, figure in found.items()):
        return None
    return MONITORS[monitor](**found)


def kept_step(monitor: str, best_step: int, last_step: int) -> int:
    """Returns the step whose state evaluate, predict, export and the scorer use.

    Args:
      monitor: of the run, empty for none.
      best_step: by the monitor; -1 if it never had a value.
      last_step: that the run has taken.
    """
    return best_step if monitor and best_step >= 0 else last_step
