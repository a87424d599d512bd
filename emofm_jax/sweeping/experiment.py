"""What an experiment file declares, read and checked as far as no data or model is needed.

emofm_jax/points.py shows such a file.
"""

import importlib.machinery
import importlib.util
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax.errors import UserError
from emofm_jax.options import plain
from emofm_jax.sweeping import overrides

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,99}")  # of a directory, on every system


class Point(NamedTuple):
    """A config with a name; `given` are the overrides that the file states, if any."""

    name: str
    config: ConfigDict
    given: dict[str, Any]


class Plan(NamedTuple):
    """What an experiment file declares; `points` is empty where only `ranges` are wanted."""

    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    reference: str
    ranges: dict[str, Sequence]


def load(path: str | Path) -> ModuleType:
    """Runs an experiment file as a module; another experiment may build on it.

    Raises:
      UserError: the file has an error, with its line.
    """
    path = Path(path)
    loader = importlib.machinery.SourceFileLoader(f"experiment {path.resolve()}", str(path))
    spec = importlib.machinery.ModuleSpec(loader.name, loader, origin=str(path))
    spec.has_location = True  # the module has a __file__
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look there
    _guard(path, lambda: loader.exec_module(module))
    return module


def read_config(path: str | Path, arg: str | None) -> ConfigDict:
    """The config of an experiment file, locked.

    Args:
      path: of the file.
      arg: what stood behind its colon; None if there was no colon.

    Raises:
      UserError: the file has an error, or no get_config, or one that returns something else.
    """
    module = load(path)
    if not callable(getattr(module, "get_config", None)):
        empty = not Path(path).stat().st_size
        what = "is empty; did the command that should write it fail? Else" if empty else "has no "
        what += " it needs a get_config()" if empty else "get_config()"
        raise UserError(f"{path}: it {what}; define one that returns a config")
    get_config, needed, most = module.get_config, *_arguments(module.get_config)
    if arg is not None and not most:
        raise UserError(f"{path}:{arg}: its get_config takes no argument; leave {arg!r} out")
    if arg is None and needed:
        raise UserError(f"{path}: its get_config needs an argument; write {path}:ARGUMENT")

    config = _guard(Path(path), lambda: get_config() if arg is None else get_config(arg))
    if not isinstance(config, ConfigDict) or config.keys() != config_lib.default().keys():
        must = "its get_config must return emofm_jax.config.default() with changes"
        raise UserError(f"{path}: {must}; correct it")
    return config.lock()


def read(
    path: str | Path, arg: str | None, base: ConfigDict, given: Mapping[str, Any], search: bool
) -> Plan:
    """Reads an experiment file.

    Args:
      path: of the file.
      arg: what stood behind its colon; None if there was no colon.
      base: its config, with the command line's overrides.
      given: {dotted field: value}, these overrides.
      search: `ranges` are wanted, not points.

    Raises:
      UserError: no `sweep`, or no `ranges`; names that clash or cannot be directories; an override
        of an unknown field or of another type; a value out of range; a point that sets what the
        command line sets.
    """
    module, path = load(path), Path(path)
    seeds = _seeds(path, _value(path, module, "seeds", arg, (base.seed,)), given)
    if search:
        return Plan((), seeds, "", _ranges(path, module, arg, given))
    if not callable(getattr(module, "sweep", None)):
        remedy = "define one that yields (name, overrides), or run it with train"
        raise UserError(f"{path}: it has no sweep(); {remedy}")

    points: list[Point] = []
    for item in _guard(path, lambda: list(_call(module.sweep, arg))):
        points.append(_point(path, item, base, given))
        name = points[-1].name
        if name.lower() in (point.name.lower() for point in points[:-1]):  # some disks know no case
            raise UserError(f"{path}: two points are called {name!r}; give each its own name")
    if not points:
        raise UserError(f"{path}: sweep() yields no point; let it yield (name, overrides)")

    names = [point.name for point in points]
    reference = _value(path, module, "reference", arg, names[0])
    if reference not in names:
        remedy = f"choose one of {', '.join(names)}"
        raise UserError(f"{path}: reference {reference!r} is no point; {remedy}")
    return Plan(tuple(points), seeds, reference, {})


def value(path: str | Path, arg: str | None, name: str, default: Any) -> Any:
    """A value that an experiment file declares, or what a function of that name returns.

    Args:
      path: of the file.
      arg: what stood behind its colon; None if there was no colon.
      name: of the value.
      default: where the file has none.
    """
    return _value(Path(path), load(path), name, arg, default)


def seeds(
    path: str | Path, arg: str | None, base: ConfigDict, given: Mapping[str, Any]
) -> tuple[int, ...]:
    """The seeds that an experiment file declares, else that of its config; raises UserError."""
    return _seeds(Path(path), value(path, arg, "seeds", (base.seed,)), given)


def _ranges(path: Path, module: ModuleType, arg: str | None, given: Mapping[str, Any]) -> dict:
    ranges = _value(path, module, "ranges", arg, None)
    if not isinstance(ranges, Mapping) or not ranges:
        remedy = "emofm_jax/points.py shows them"
        raise UserError(f"{path}: --search needs `ranges`, and it has none; {remedy}")

    for field in ranges:
        if field in given:
            flag = f"--config.{field}={given[field]}"
            raise UserError(f"{flag}: {path} has a range of it; leave it out")
    return plain(dict(ranges))


def _point(path: Path, item: Any, base: ConfigDict, given: Mapping[str, Any]) -> Point:
    """A point from what sweep() yields."""
    if not (isinstance(item, Sequence) and len(item) == 2 and isinstance(item[0], str)):
        remedy = "it must yield (name, overrides or config)"
        raise UserError(f"{path}: sweep() yields {item!r:.80}; {remedy}")
    name, what = item
    if not _NAME.fullmatch(name):
        remedy = "begin with a letter or digit, and use those and ._+=,- only"
        raise UserError(f"{path}: the point {name!r} cannot name a directory; {remedy}")

    where, stated = f"{path}: point {name!r}", {}
    if isinstance(what, ConfigDict):
        if what.keys() != config_lib.default().keys():
            raise UserError(f"{where}: it is no config; start from emofm_jax.config.default()")
        config = overrides.apply(what, given, where)
    elif isinstance(what, Mapping):
        stated = plain(dict(overrides.leaves(what)))
        if both := [field for field in stated if field in given]:
            flag = f"--config.{both[0]}={given[both[0]]}"
            raise UserError(f"{flag}: {where} sets it itself; leave it out")
        config = overrides.apply(base, what, where)
    else:
        remedy = "give {dotted field: value}"
        raise UserError(f"{where}: {what!r:.80} is neither overrides nor a config; {remedy}")

    if config.seed != base.seed:
        remedy = "`seeds` of the file are those of every point"
        raise UserError(f"{where} has a seed of its own; {remedy}")
    return Point(name, config, stated)


def _seeds(path: Path, seeds: Any, given: Mapping[str, Any]) -> tuple[int, ...]:
    seeds = plain(seeds)
    if not isinstance(seeds, Sequence) or isinstance(seeds, str):
        remedy = "write seeds = (0, 1, 2), or range(3)"
        raise UserError(f"{path}: seeds = {seeds!r:.80} is no list of seeds; {remedy}")

    seeds = tuple(seeds)
    whole = all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        must = "must be different whole numbers, from 0 to 2**32 - 1"
        raise UserError(f"{path}: seeds {seeds} {must}")

    if "seed" in given and seeds != (given["seed"],):
        flag = f"--config.seed={given['seed']}"
        raise UserError(f"{flag}: {path} has seeds {seeds} of its own; leave it out")
    return seeds


def _value(path: Path, module: ModuleType, name: str, arg: str | None, default: Any) -> Any:
    """A value of the module, or what a function of that name makes of the argument."""
    value = getattr(module, name, default)
    return _guard(path, lambda: _call(value, arg)) if callable(value) else value


def _call(function: Callable, arg: str | None) -> Any:
    """Calls it with the argument, if it takes one."""
    needed, most = _arguments(function)
    return function() if not most or (arg is None and not needed) else function(arg or "")


def _arguments(function: Callable) -> tuple[int, int]:
    """How many arguments a function needs, and how many it takes."""
    parameters = inspect.signature(function).parameters.values()
    needed = [p for p in parameters if p.default is inspect.Parameter.empty]
    return len(needed), len(parameters)


def _guard(path: Path, work: Callable) -> Any:
    """Runs code of an experiment file; its errors are the user's."""
    try:
        return work()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # anything: the file is a program of the user's
        where = _place(error, path)
        raise UserError(f"{where}: {type(error).__name__}: {error}; correct the file") from None


def _place(error: BaseException, path: Path) -> str:
    """The line of an experiment file that failed, and that of a file whose import fails there."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    loading = [(frame.filename, frame.lineno) for frame in frames if frame.name == "<module>"]
    if isinstance(error, SyntaxError) and error.filename:
        loading.append((error.filename, error.lineno))
        if error.filename == str(path):
            lines.append(error.lineno)

    where = f"{path}:{lines[-1]}" if lines and lines[-1] else str(path)
    ours = [x for x in loading if not any(map(Path(x[0]).is_relative_to, libraries))]
    if ours and Path(ours[-1][0]) != path and ours[-1][0].endswith(".py"):
        where += f" ({ours[-1][0]}:{ours[-1][1]})"
    return where
