"""Where the next trial of `sweep --search=tpe` looks: a tree-structured Parzen estimator over declared ranges (Optuna).

A trial follows from the seed and from the results of the trials before it alone, so that a search that was killed goes
on as if it had not been.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax.errors import UserError

KINDS = ("log", "uniform", "choice")


def check(ranges: Mapping[str, tuple], base: ConfigDict) -> None:
    """Checks that Optuna is there, and that every range is one.

    Raises:
      UserError: Optuna is not installed; a field that does not exist; a range that is none.
    """
    _optuna()
    for field, drawn in ranges.items():
        where = f"ranges: {field!r}"
        if field not in config_lib.flatten(base):
            raise UserError(f"{where} is no field of the config; emofm_jax/config.py lists every field")
        kind, *bounds = drawn
        if kind not in KINDS:
            raise UserError(f"{where}: {kind!r} is not known; choose one of {', '.join(KINDS)}")
        if kind == "choice":
            if len(bounds) != 1 or isinstance(bounds[0], str) or not len(bounds[0]):
                raise UserError(f"{where}: {drawn} is no choice; write ('choice', [value, ...])")
            continue
        numbers = len(bounds) == 2 and all(isinstance(bound, int | float) for bound in bounds)
        if not numbers or not bounds[0] < bounds[1] or (kind == "log" and bounds[0] <= 0):
            raise UserError(
                f"{where}: {drawn} is no range; write ('{kind}', low, high) with low < high, above 0 for log"
            )


def next_trial(
    ranges: Mapping[str, tuple], base: ConfigDict, history: Sequence[tuple[Mapping[str, Any], float | None]], seed: int
) -> dict[str, Any]:
    """The overrides of the trial after those of `history`.

    Args:
      ranges: checked.
      base: config that is overridden; where it has a whole number, whole numbers are drawn.
      history: of each trial before, its {field: value} and what it reached (more is better), None if it failed.
      seed: of the search.
    """
    optuna = _optuna()
    distributions = {
        field: _distribution(optuna, drawn, config_lib.get(base, field)) for field, drawn in ranges.items()
    }
    sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + len(history)) % 2**32)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values, reached in history:
        params = {f: _position(drawn, values[f]) for f, drawn in ranges.items()}
        state = optuna.trial.TrialState.FAIL if reached is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(state=state, params=params, distributions=distributions, value=reached)
        )
    params = study.ask(distributions).params
    return {f: drawn[1][params[f]] if drawn[0] == "choice" else params[f] for f, drawn in ranges.items()}


def _optuna():
    try:
        import optuna
    except ImportError:
        raise UserError("--search=tpe: Optuna is not installed; `pip install 'emofm_jax[search]'`") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna, drawn: tuple, now: Any):
    """Choices are drawn by their position: Optuna takes no tuples."""
    if drawn[0] == "choice":
        return optuna.distributions.CategoricalDistribution(tuple(range(len(drawn[1]))))
    whole = isinstance(now, int) and not isinstance(now, bool)
    kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
    return kind(drawn[1], drawn[2], log=drawn[0] == "log")


def _position(drawn: tuple, value: Any) -> Any:
    if drawn[0] != "choice":
        return value
    same = lambda a, b: (list(a) if isinstance(a, tuple) else a) == (list(b) if isinstance(b, tuple) else b)
    return next(i for i, choice in enumerate(drawn[1]) if same(choice, value))
