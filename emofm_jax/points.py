"""What an experiment file asks sweep.py to run: points, seeds, a reference, and ranges to search.

    def get_config(arg=""): ...               # as for train; the base of every point
    def sweep(arg=""):                        # (name, overrides) or (name, a whole config)
        yield "hmm", {}
        yield from points.one_at_a_time({"model.mixer.kind": ["graph", "mlp"], "model.mixer.d_att": [8, 256]})
    seeds = (0, 1, 2)                         # or a function of arg; else the one of the config
    reference = "hmm"                         # what the report compares with; else the first point
    ranges = {                                # or a function of arg: what --search=tpe draws from
        "optim.network.learning_rate": ("log", 1e-4, 1e-2),
        "model.dropout": ("uniform", 0.0, 0.5),
        "model.mixer.kind": ("choice", ["cross_attention", "graph"]),
    }

An override reaches the config as the flag `--config.FIELD=VALUE` would.
"""

import copy
import difflib
import importlib.util
import inspect
import itertools
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,99}")  # of a directory, on every system


class Point(NamedTuple):
    """A config with a name; `given` are the overrides that the file stated, none for a whole config."""

    name: str
    config: ConfigDict
    given: dict[str, Any]


class Plan(NamedTuple):
    """What an experiment file declares; `points` is empty where only `ranges` are wanted."""

    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    reference: str
    ranges: dict[str, Sequence]


def grid(fields: Mapping[str, Sequence]) -> Iterator[tuple[str, dict]]:
    """Every combination of the fields' values: ("kind=graph,d_att=8", {"model.mixer.kind": "graph", ...}), ..."""
    names = _short(list(fields))
    for values in itertools.product(*fields.values()):
        name = ",".join(f"{short}={_text(value)}" for short, value in zip(names, values))
        yield name, dict(zip(fields, values))


def one_at_a_time(fields: Mapping[str, Sequence]) -> Iterator[tuple[str, dict]]:
    """One field's value changed at a time: ("kind=graph", {"model.mixer.kind": "graph"}), ..."""
    for short, (path, values) in zip(_short(list(fields)), fields.items()):
        for value in values:
            yield f"{short}={_text(value)}", {path: value}


def load(path: str | Path) -> ModuleType:
    """Runs an experiment file as a module; another experiment may build on it.

    Raises:
      UserError: the file has an error, with its line.
    """
    path = Path(path)
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    _guard(path, lambda: spec.loader.exec_module(module))
    return module


def read(
    path: str | Path, arg: str | None, base: ConfigDict, given: Mapping[str, Any], search: bool
) -> Plan:
    """Reads an experiment file's points, all of them checked as far as no data or model is needed.

    Args:
      path: of the file.
      arg: what stood behind its colon; None if there was no colon.
      base: its config, with the command line's overrides.
      given: {dotted path: value}, these overrides.
      search: `ranges` are wanted, not points.

    Raises:
      UserError: no `sweep`, or no `ranges`; names that clash or cannot be directories; an override of an unknown field
        or of another type; a value out of range; a point that sets what the command line sets.
    """
    module, path = load(path), Path(path)
    seeds = _seeds(path, _value(path, module, "seeds", arg, (base.seed,)), given)
    if search:
        ranges = _value(path, module, "ranges", arg, None)
        if not isinstance(ranges, Mapping) or not ranges:
            raise UserError(
                f"{path}: --search needs `ranges`, and it has none; emofm_jax/points.py shows them"
            )
        if both := [field for field in ranges if field in given]:
            raise UserError(
                f"--config.{both[0]}={given[both[0]]}: {path} has a range of it; leave it out"
            )
        return Plan((), seeds, "", dict(ranges))
    if not callable(getattr(module, "sweep", None)):
        raise UserError(
            f"{path}: it has no sweep(); define one that yields (name, overrides), or run it with train"
        )
    points, known = [], {}
    for item in _guard(path, lambda: list(_call(module.sweep, arg))):
        if not (isinstance(item, Sequence) and len(item) == 2 and isinstance(item[0], str)):
            raise UserError(
                f"{path}: sweep() yields {item!r:.80}; it must yield (name, overrides or config)"
            )
        name, what = item
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{path}: the point {name!r} cannot name a directory; begin with a letter or digit, and use those and "
                "._+=,- only"
            )
        if name.lower() in known:  # some file systems know no case
            raise UserError(f"{path}: two points are called {name!r}; give each its own name")
        points.append(_point(f"{path}: point {name!r}", name, what, base, given))
        if points[-1].config.seed != base.seed:
            raise UserError(
                f"{path}: point {name!r} has a seed of its own; `seeds` of the file are those of every point"
            )
        known[name.lower()] = name
    if not points:
        raise UserError(f"{path}: sweep() yields no point; let it yield (name, overrides)")
    reference = _value(path, module, "reference", arg, points[0].name)
    if reference not in known.values():
        raise UserError(
            f"{path}: reference {reference!r} is no point; choose one of {', '.join(known.values())}"
        )
    return Plan(tuple(points), seeds, reference, {})


def apply(config: ConfigDict, overrides: Mapping[str, Any], where: str) -> ConfigDict:
    """A copy of the config with dotted fields set, validated.

    Raises:
      UserError: beginning with `where`: an unknown field, a value of another type or out of range.
    """
    config = put(config, overrides, where)
    try:
        config_lib.validate(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return config


def put(config: ConfigDict, overrides: Mapping[str, Any], where: str) -> ConfigDict:
    """As `apply`, but any value of the field's type will do."""
    config = copy.deepcopy(config)
    for path, value in _leaves(overrides):
        *parents, field = path.split(".")
        section = config
        for part in parents:
            section = section[part] if isinstance(section, ConfigDict) and part in section else None
        if not isinstance(section, ConfigDict) or field not in section:
            near = difflib.get_close_matches(path, list(config_lib.flatten(config)), n=1)
            hint = (
                f"; did you mean {near[0]!r}?"
                if near
                else "; emofm_jax/config.py lists every field"
            )
            raise UserError(f"{where}: there is no field {path!r}{hint}")
        try:
            section[field] = value
        except TypeError:
            kind = type(section[field]).__name__
            raise UserError(
                f"{where}: {path} = {value!r} is no {kind}; give a value of the field's type"
            ) from None
    return config


def _point(where: str, name: str, what: Any, base: ConfigDict, given: Mapping[str, Any]) -> Point:
    if isinstance(what, ConfigDict):
        if what.keys() != config_lib.default().keys():
            raise UserError(f"{where}: it is no config; start from emofm_jax.config.default()")
        return Point(name, apply(what, given, where), {})
    if not isinstance(what, Mapping):
        raise UserError(
            f"{where}: {what!r:.80} is neither overrides nor a config; give {{dotted field: value}}"
        )
    if both := [path for path, _ in _leaves(what) if path in given]:
        raise UserError(
            f"--config.{both[0]}={given[both[0]]}: {where} sets it itself; leave it out"
        )
    return Point(name, apply(base, what, where), dict(_leaves(what)))


def _leaves(overrides: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of overrides, sections among which count as overrides of their fields."""
    for path, value in overrides.items():
        if isinstance(value, Mapping) and path != "prepare.slots":
            yield from _leaves({f"{path}.{key}": inner for key, inner in value.items()})
        else:
            yield path, value


def _seeds(path: Path, seeds: Any, given: Mapping[str, Any]) -> tuple[int, ...]:
    if not isinstance(seeds, Sequence) or isinstance(seeds, str):
        raise UserError(
            f"{path}: seeds = {seeds!r:.80} is no list of seeds; write seeds = (0, 1, 2), or range(3)"
        )
    seeds = tuple(seeds)
    whole = all(
        isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in seeds
    )
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise UserError(
            f"{path}: seeds {seeds} must be different whole numbers, from 0 to 2**32 - 1"
        )
    if "seed" in given and seeds != (given["seed"],):
        raise UserError(
            f"--config.seed={given['seed']}: {path} has seeds {seeds} of its own; leave it out"
        )
    return seeds


def _value(path: Path, module: ModuleType, name: str, arg: str | None, default: Any) -> Any:
    """A value of the module, or what a function of that name makes of the argument."""
    value = getattr(module, name, default)
    return _guard(path, lambda: _call(value, arg)) if callable(value) else value


def _call(function: Callable, arg: str | None) -> Any:
    """Calls it with the argument, if it takes one."""
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or (arg is None and parameters[0].default is not inspect.Parameter.empty):
        return function()
    return function(arg or "")


def _guard(path: Path, work: Callable) -> Any:
    """Runs code of an experiment file; its errors are the user's."""
    try:
        return work()
    except UserError:
        raise
    except (
        Exception,
        SystemExit,
    ) as error:  # anything: an experiment file is a program of the user's
        frames = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path
        ]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1] if frames else None
        where = path if line is None else f"{path}:{line}"
        raise UserError(f"{where}: {type(error).__name__}: {error}; correct the file") from None


def _short(paths: list[str]) -> list[str]:
    """The shortest ends of dotted paths that tell them apart."""
    short = []
    for path in paths:
        parts = path.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        alone = lambda end: sum(f".{p}".endswith(f".{end}") for p in paths) == 1
        short.append(next((end for end in ends if alone(end)), path))
    return short


def _text(value: Any) -> str:
    """A value as part of a directory's name: (1, 2) is 1+2."""
    if isinstance(value, list | tuple):
        return "+".join(map(_text, value)) or "none"
    return re.sub(r"[^A-Za-z0-9._+=,-]", "", str(value)) or "none"
