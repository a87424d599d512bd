"""Where the next trial of `sweep --search=tpe` looks: a tree-structured Parzen estimator (Optuna).

The first trial is the base itself, where the ranges hold its values: a search ends no worse than
where it began. Another follows from the seed and from the results of the trials before it alone, so
that a search that was killed goes on as if it had not been.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax.errors import UserError
from emofm_jax.options import flatten, get
from emofm_jax.sweeping import overrides, trials
from emofm_jax.sweeping import run as sweep_run
from emofm_jax.sweeping.experiment import Point
from emofm_jax.sweeping.results import Results
from emofm_jax.sweeping.sweep import Sweep
from emofm_jax.training import run as run_lib

KINDS = ("log", "uniform", "choice")
_TRIED = 256  # combinations of the ends of ranges, to see which have an effect


def check(ranges: Mapping[str, Sequence], base: ConfigDict) -> None:
    """Checks that Optuna is there, and that every range is one.

    Raises:
      UserError: Optuna is not installed; a field that does not exist, is of another type or has no
        effect; a range that is none.
    """
    _optuna()
    for field, drawn in ranges.items():
        _check_range(field, drawn, base)
    for field, what in _idle(ranges, base).items():
        raise UserError(f"ranges: {field!r} has no effect on {what}; leave it out")


def run(
    sweep: Sweep, ranges: Mapping[str, Sequence], names: Sequence[str], results: Results, lock: int
) -> str:
    """Runs trial after trial, each drawn from the results of those before.

    Args:
      sweep: its base is what trials override.
      ranges: checked.
      names: of the trials, one each.
      results: gains those of the trials.
      lock: descriptor that holds the lock of the workdir.

    Returns:
      A line that says which trial was best.
    """
    base, watched = sweep.base, sweep.base.train.monitor or "auc"
    for field, drawn in ranges.items():
        if not _holds(drawn, now := get(base, field)):
            print(f"note: {field} = {now!r} is outside its range; the first trial draws one")
    history: list[tuple[dict[str, Any], float | None]] = []
    for name in names:
        values = next_trial(ranges, base, history, base.seed)
        try:
            config = overrides.apply(base, values, name)
            run_lib.check(config)
        except UserError as error:  # options that do not go together
            for refused in sweep.runs_of(Point(name, base, {})):
                refused = dataclasses.replace(refused, overrides=values)
                results.end(sweep_run.end(refused, error=str(error)))
        else:
            sweep.train(sweep.runs_of(Point(name, config, {})), results, lock)

        reached = trials.reached(results.of(name), watched, len(sweep.seeds))
        history.append((values, reached))
    return _best(names, history, watched)


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
      history: of each trial before, its {field: value} and what it reached (more is better), None
        if it failed.
      seed: of the search.
    """
    optuna = _optuna()
    distributions = {
        field: _distribution(optuna, drawn, get(base, field)) for field, drawn in ranges.items()
    }
    sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + len(history)) % 2**32)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    states = optuna.trial.TrialState
    for values, reached in history:
        trial = optuna.trial.create_trial(
            state=states.FAIL if reached is None else states.COMPLETE,
            params={field: _position(drawn, values[field]) for field, drawn in ranges.items()},
            distributions=distributions,
            value=reached,
        )
        study.add_trial(trial)

    params = study.ask(distributions).params
    found = {
        field: drawn[1][params[field]] if drawn[0] == "choice" else params[field]
        for field, drawn in ranges.items()
    }
    if history:
        return found
    now = {field: get(base, field) for field in ranges}
    return {f: now[f] if _holds(ranges[f], now[f]) else value for f, value in found.items()}


def _check_range(field: str, drawn: Any, base: ConfigDict) -> None:
    where = f"ranges: {field!r}"
    if field not in flatten(base):
        remedy = "emofm_jax/config.py lists every field"
        raise UserError(f"{where} is no field of the config; {remedy}")
    if field == "seed":
        raise UserError(f"{where}: every trial has all seeds; set `seeds` instead")
    if not _is_list(drawn) or not drawn or drawn[0] not in KINDS:
        remedy = f"write (kind, ...), kind one of {', '.join(KINDS)}"
        raise UserError(f"{where}: {drawn!r:.80} is not known; {remedy}")

    kind, *bounds = drawn
    if kind == "choice":
        if len(bounds) != 1 or not _is_list(bounds[0]) or not bounds[0]:
            remedy = "write ('choice', [value, ...])"
            raise UserError(f"{where}: {drawn!r:.80} is no choice; {remedy}")
        for value in bounds[0]:
            overrides.put(base, {field: value}, "ranges")
        return

    now = get(base, field)
    whole = _is_whole(now)
    if not whole and not isinstance(now, float):
        remedy = "write ('choice', [value, ...])"
        raise UserError(f"{where}: it is {now!r}, and only numbers have a range; {remedy}")
    numbers = all(_is_whole(bound) or (isinstance(bound, float) and not whole) for bound in bounds)
    rising = numbers and len(bounds) == 2 and -math.inf < bounds[0] < bounds[1] < math.inf
    if not rising or (kind == "log" and bounds[0] <= 0):
        what = f"no range of {'whole ' * whole}numbers"
        remedy = f"write ('{kind}', low, high) with low < high, above 0 for log"
        raise UserError(f"{where}: {drawn!r:.80} is {what}; {remedy}")


def _idle(ranges: Mapping[str, Sequence], base: ConfigDict) -> dict[str, str]:
    """{field: what it has no effect on} of those with none whatever the others are.

    Empty if that is too much to try.
    """
    ends = {f: drawn[1] if drawn[0] == "choice" else drawn[1:] for f, drawn in ranges.items()}
    combinations, idle = itertools.product(*ends.values()), None
    for values in itertools.islice(combinations, _TRIED):
        try:
            config = overrides.apply(base, dict(zip(ends, values)), "")
            run_lib.check(config)
        except UserError:  # options that do not go together
            continue

        candidates = ranges if idle is None else idle
        found = config_lib.without_effect(config)
        idle = {field: what for field, what in found.items() if field in candidates}
        if not idle:
            return {}
    return idle if idle and next(combinations, None) is None else {}


def _best(names: Sequence[str], history: Sequence[tuple], watched: str) -> str:
    reached = {i: value for i, (_, value) in enumerate(history) if value is not None}
    if not reached:
        why = "runs failed, or its rows are of one class"
        return f"no trial has a validation {watched} with every seed: {why}\n"

    best = max(reached, key=reached.__getitem__)
    value = -reached[best] if watched == "logloss" else reached[best]
    chosen = ", ".join(f"{field}={value!r}" for field, value in history[best][0].items())
    return f"best: {names[best]}, validation {watched} {value:.6f}: {chosen}\n"


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        remedy = "`pip install 'emofm_jax[search]'`"
        raise UserError(f"--search=tpe: Optuna is not installed; {remedy}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: Any, drawn: Sequence, now: Any) -> Any:
    """Choices are drawn by their position: Optuna takes no tuples."""
    kinds = optuna.distributions
    if drawn[0] == "choice":
        return kinds.CategoricalDistribution(tuple(range(len(drawn[1]))))
    kind = kinds.IntDistribution if _is_whole(now) else kinds.FloatDistribution
    return kind(drawn[1], drawn[2], log=drawn[0] == "log")


def _position(drawn: Sequence, value: Any) -> Any:
    """What Optuna calls a value: of a choice its place."""
    if drawn[0] != "choice":
        return value
    return [_plain(choice) for choice in drawn[1]].index(_plain(value))


def _holds(drawn: Sequence, value: Any) -> bool:
    if drawn[0] == "choice":
        return _plain(value) in [_plain(choice) for choice in drawn[1]]
    return drawn[1] <= value <= drawn[2]


def _plain(value: Any) -> Any:
    """A value of a choice, of which lists count as tuples."""
    return tuple(map(_plain, value)) if _is_list(value) else value
