"""Policies of a backtest: which days a model is trained on before it scores a day.

    frozen     the first days, once
    warm       yesterday, from the model of the day before
    warm+K     yesterday and the K days before it once more, from the model of the day before
    last-W     the last W days, anew
    all        all days before, anew

Every policy begins as `all` on the days before the first that is scored (`last-W` on the last W of
them). Nothing here knows of files: days are texts in their order.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emofm_jax.errors import UserError
from emofm_jax.options import plain
from emofm_jax.sweeping import experiment
from emofm_jax.sweeping import overrides as overrides_lib

# Fields that the backtest sets in every config; of train.init_moments it takes what it finds.
DECIDED = {f"prepare.{split}_days" for split in ("train", "replay", "valid", "test")}
DECIDED |= {"seed", "data.dir", "prepare.split", "train.init_from"}
_NAME = re.compile(r"(frozen|warm|all)|(warm)\+([1-9]\d*)|(last)-([1-9]\d*)")


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy.

    Attributes:
      name: as the experiment file has it.
      kind: `frozen`, `warm`, `last` or `all`.
      days: K of warm+K, W of last-W; else 0.
      overrides: {dotted field: value} of its configs.
    """

    name: str
    kind: str
    days: int = 0
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def task(self, days: Sequence[str], first: int, at: int) -> "Task":
        """What is done before days[at] is scored; days[first] is the first that is."""
        day, before = days[at], tuple(days[:at])
        if self.kind == "frozen":
            return Task(day, tuple(days[:first]), trains=at == first)
        if self.kind == "last":
            return Task(day, before[-self.days :])
        if self.kind == "all" or at == first:
            return Task(day, before)
        replayed = before[-1 - self.days : -1] if self.days else ()
        return Task(day, before[-1:], replayed, days[at - 1])


@dataclasses.dataclass(frozen=True)
class Task:
    """A day and what is done for it.

    Attributes:
      day: that is scored.
      train: days that are trained on.
      replayed: days of the parent that are trained on once more.
      parent: the day whose model it starts from; empty: anew.
      trains: False if the model is there already.
    """

    day: str
    train: tuple[str, ...]
    replayed: tuple[str, ...] = ()
    parent: str = ""
    trains: bool = True


@dataclasses.dataclass(frozen=True)
class Declared:
    """What an experiment file says of its backtest.

    Attributes:
      policies: in order; the others are compared with the first.
      first_days: days before the first that is scored.
      days: that are lived; () = all of the data.
    """

    policies: tuple[Policy, ...]
    first_days: int = 1
    days: tuple[str, ...] = ()


def read(path: Path, arg: str | None) -> Declared:
    """Reads `policies`, `first_days` and `days` of an experiment file.

    Raises:
      UserError: no policies, an unknown one, one that overrides what the backtest decides, or
        numbers that are none.
    """
    value = lambda name, default: plain(experiment.value(path, arg, name, default))
    given, first, days = value("policies", None), value("first_days", 1), value("days", ())
    if not given or not isinstance(given, Mapping | Sequence) or isinstance(given, str):
        remedy = 'write policies = ("frozen", "warm", "all"), or {name: overrides}'
        raise UserError(f"{path}: it has no policies; {remedy}")
    if type(first) is not int or first < 1:
        raise UserError(f"{path}: first_days = {first!r}; it must be a whole number of at least 1")

    named = given if isinstance(given, Mapping) else {name: {} for name in given}
    if len(named) < len(given):
        raise UserError(f"{path}: a policy stands twice in {list(given)}; name it once")
    found = tuple(_policy(path, name, overrides) for name, overrides in named.items())
    return Declared(found, first, tuple(map(str, days)))


def _policy(path: Path, name: Any, overrides: Any) -> Policy:
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        known = "frozen, warm, warm+K (K days of replay), last-W (W days), all"
        raise UserError(f"{path}: policy {name!r} is not known; choose of {known}")
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        remedy = "give {dotted field: value}"
        raise UserError(f"{path}: policy {name!r} has {overrides!r:.80} for overrides; {remedy}")

    alone, warm, replayed, _, last = match.groups()
    kind = alone or warm or "last"
    for field, value in overrides_lib.leaves(overrides):
        where = f"{path}: policy {name!r}: {field} = {value!r}"
        if field in DECIDED:
            raise UserError(f"{where}: the backtest decides it; leave it out")
        if field == "train.init_moments" and value and kind != "warm":
            raise UserError(f"{where}: it starts from no model that has moments; leave it out")
    return Policy(name, kind, int(replayed or last or 0), overrides)
