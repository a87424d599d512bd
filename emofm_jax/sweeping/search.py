"""Where the next trial of `sweep --search=tpe` looks: a tree-structured Parzen estimator over declared ranges (Optuna).

A trial follows from the seed and from the results of the trials before it alone, so that a search that was killed goes
on as if it had not been.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax import points
from emofm_jax.errors import UserError
from emofm_jax.training import run as run_lib

KINDS = ("log", "uniform", "choice")
_TRIED = 256  # combinations of the ends of ranges, to see which have an effect


def check(ranges: Mapping[str, Sequence], base: ConfigDict) -> None:
    """Checks that Optuna is there, and that every range is one.

    Raises:
      UserError: Optuna is not installed; a field that does not exist, is of another type or has no effect; a range that
        is none.
    """
    _optuna()
    for field, drawn in ranges.items():
        where = f"ranges: {field!r}"
        if field not in config_lib.flatten(base):
            raise UserError(
                f"{where} is no field of the config; emofm_jax/config.py lists every field"
            )
        if field == "seed":
            raise UserError(f"{where}: every trial has all seeds; set `seeds` instead")
        if not _is_list(drawn) or not drawn or drawn[0] not in KINDS:
            raise UserError(
                f"{where}: {drawn!r:.80} is not known; write (kind, ...), kind one of {', '.join(KINDS)}"
            )
        kind, *bounds = drawn
        if kind == "choice":
            if len(bounds) != 1 or not _is_list(bounds[0]) or not bounds[0]:
                raise UserError(
                    f"{where}: {drawn!r:.80} is no choice; write ('choice', [value, ...])"
                )
            for value in bounds[0]:
                points.put(base, {field: value}, "ranges")
            continue
        whole = _is_whole(now := config_lib.get(base, field))
        if not whole and not isinstance(now, float):
            raise UserError(
                f"{where}: it is {now!r}, and only numbers have a range; write ('choice', [value, ...])"
            )
        numbers = len(bounds) == 2 and all(
            _is_whole(b) or (isinstance(b, float) and not whole) for b in bounds
        )
        if (
            not numbers
            or not -math.inf < bounds[0] < bounds[1] < math.inf
            or (kind == "log" and bounds[0] <= 0)
        ):
            raise UserError(
                f"{where}: {drawn!r:.80} is no range of {'whole ' * whole}numbers; write ('{kind}', low, high) with "
                "low < high, above 0 for log"
            )
    for field, what in _idle(ranges, base).items():
        raise UserError(f"ranges: {field!r} has no effect on {what}; leave it out")


def next_trial(
    ranges: Mapping[str, Sequence],
    base: ConfigDict,
    history: Sequence[tuple[Mapping[str, Any], float | None]],
    seed: int,
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
        field: _distribution(optuna, drawn, config_lib.get(base, field))
        for field, drawn in ranges.items()
    }
    sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + len(history)) % 2**32)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values, reached in history:
        params = {f: _position(drawn, values[f]) for f, drawn in ranges.items()}
        state = (
            optuna.trial.TrialState.FAIL if reached is None else optuna.trial.TrialState.COMPLETE
        )
        study.add_trial(
            optuna.trial.create_trial(
                state=state, params=params, distributions=distributions, value=reached
            )
        )
    params = study.ask(distributions).params
    return {
        f: drawn[1][params[f]] if drawn[0] == "choice" else params[f] for f, drawn in ranges.items()
    }


def _idle(ranges: Mapping[str, Sequence], base: ConfigDict) -> dict[str, str]:
    """{field: what it has no effect on} of those with none whatever the others are; {} if that is too much to try."""
    ends = {
        field: drawn[1] if drawn[0] == "choice" else drawn[1:] for field, drawn in ranges.items()
    }
    trials, idle = itertools.product(*ends.values()), None
    for values in itertools.islice(trials, _TRIED):
        try:
            config = points.apply(base, dict(zip(ends, values)), "")
            run_lib.check(config)
        except UserError:  # options that do not go together
            continue
        idle = {
            f: what
            for f, what in run_lib.without_effect(config).items()
            if f in (ranges if idle is None else idle)
        }
        if not idle:
            return {}
    return idle if idle and next(trials, None) is None else {}


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _optuna():
    try:
        import optuna
    except ImportError:
        raise UserError(
            "--search=tpe: Optuna is not installed; `pip install 'emofm_jax[search]'`"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna, drawn: Sequence, now: Any):
    """Choices are drawn by their position: Optuna takes no tuples."""
    if drawn[0] == "choice":
        return optuna.distributions.CategoricalDistribution(tuple(range(len(drawn[1]))))
    kind = (
        optuna.distributions.IntDistribution
        if _is_whole(now)
        else optuna.distributions.FloatDistribution
    )
    return kind(drawn[1], drawn[2], log=drawn[0] == "log")


def _position(drawn: Sequence, value: Any) -> Any:
    if drawn[0] != "choice":
        return value
    same = lambda a, b: (
        (list(a) if isinstance(a, tuple) else a) == (list(b) if isinstance(b, tuple) else b)
    )
    return next(i for i, choice in enumerate(drawn[1]) if same(choice, value))
