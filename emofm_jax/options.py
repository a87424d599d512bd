"""An option as data: its default, what it means, what it may be, and when it is read.

    num_layers: int = option(3, "cross layers", low=1)          # a field of a module in models/

From these come `config.default()`, its checks, `--help`, "has no effect on" and docs/options.md.
The options of a model stand in its own file, all others in config.py.
"""

import dataclasses
import datetime
import decimal
import enum
import functools
import math
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from emofm_jax.errors import UserError

IDENTITY, FREE, END = "identity", "free", "end"
_OF_64_BITS = "a number of 64 bits"
_SLOTS = "prepare.slots."
_OF: dict[type | None, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "text, between quotes"),
    bool: (bool, "True or False"),
}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Values of `Option.needs`: the numbers below one, or from one on."""

    below: float | None = None
    least: float | None = None

    def __contains__(self, value: Any) -> bool:
        return (self.below is None or value < self.below) and (
            self.least is None or value >= self.least
        )

    def __iter__(self) -> Iterator[str]:
        said = f"below {self.below}" if self.least is None else f"of at least {self.least}"
        return iter([f"a number {said}"])


@dataclasses.dataclass(frozen=True)
class Option:
    """One field of a config.

    Attributes:
      default: its type is the type of every value.
      meaning: what it is, with its unit.
      choices: the values that it may have; of a tuple, its elements; () = any.
      low, high: smallest and largest number; of a tuple, of its elements.
      of: type of a tuple's elements; None = not checked.
      empty: whether a tuple may be ().
      needs: {other option: values}: this one has no effect unless the other has one of these
        values. A name is of the same section; one that begins with "." is a whole path. Of "a | b"
        it is enough that one has such a value.
      resume: what a run does that goes on with another value. IDENTITY: it refuses, for it would be
        another run. FREE: nothing, since no number depends on it. END: it ends elsewhere.
    """

    default: Any
    meaning: str
    choices: tuple = ()
    low: float | None = None
    high: float | None = None
    of: type | None = None
    empty: bool = True
    needs: Mapping[str, Collection | Numbers] = dataclasses.field(default_factory=dict)
    resume: str = IDENTITY

    @property
    def bounds(self) -> str:
        """The range in words; empty where there is none."""
        if self.high is not None:
            low = "at most" if self.low is None else f"between {self.low} and"
            return f"{low} {self.high}"
        return "" if self.low is None else f"at least {self.low}"

    def describe(self) -> str:
        """Meaning, choices or range, and needs, in one line."""
        parts = [self.meaning]
        if self.choices:
            parts.append(" | ".join(str(choice) or '""' for choice in self.choices))
        if self.bounds:
            parts.append(f"each {self.bounds}" if self.of else self.bounds)
        for names, values in self.needs.items():
            others = " or ".join(name.removeprefix(".") for name in names.split(" | "))
            parts.append(f"needs {others} = {' | '.join(map(str, values))}")
        return "; ".join(parts)

    def check(self, where: str, value: Any) -> None:
        """Raises a UserError that names the option, the value and what it may be."""
        if value is None:
            raise UserError(f"{where}: None is no {type(self.default).__name__}; leave it out")
        if isinstance(self.default, tuple):
            self._check_tuple(where, tuple(value))
        elif self.choices and value not in self.choices:
            known = ", ".join(c if str(c).isidentifier() else repr(c) for c in self.choices)
            raise UserError(f"{where}: {value!r} is not known; choose one of {known}")
        elif not self._within(value):
            wanted = self._wanted(value)
            raise UserError(f"{where}: {_short(value)} is out of range; it must be {wanted}")

    def _check_tuple(self, where: str, value: tuple) -> None:
        kind, said = _OF.get(self.of, (object, ""))
        for element in value:
            is_number = self.of in (int, float) and isinstance(element, bool)  # to Python
            if is_number or not isinstance(element, kind):
                raise UserError(f"{where}: its element {element!r} must be {said}")

        if not (value or self.empty):
            raise UserError(f"{where}: () is empty; give it an element or more")
        for element in value:
            if not self._within(element):
                problem = f"its element {_short(element)} is out of range"
                raise UserError(f"{where}: {problem}; it must be {self._wanted(element)}")
        if self.choices and not set(value) <= set(self.choices):
            raise UserError(
                f"{where}: {value} may hold {' and '.join(map(str, self.choices))} only"
            )

    def _wanted(self, value: Any) -> str:
        """The range in words, of a number beyond it: what else one must be."""
        if not self.bounds or self.high is not None or value < self.low or value != value:
            return self.bounds or _OF_64_BITS
        return f"{self.bounds}, and {_OF_64_BITS if isinstance(value, int) else 'finite'}"

    def _within(self, value: Any) -> bool:
        if isinstance(value, int) and abs(value) >= 1 << 63:
            return False
        if not self.bounds:
            return True
        low = -math.inf if self.low is None else self.low
        return math.isfinite(value) and low <= value <= (
            math.inf if self.high is None else self.high
        )


def _short(value: Any) -> str:
    """A value in a message."""
    text = str(value)
    return text if len(text) <= 100 else f"{text[:50]}... ({len(text)} digits)"


def option(default: Any, meaning: str, **details: Any) -> Any:
    """A dataclass field that is an option; `details` are attributes of `Option`."""
    described = Option(default, meaning, **details)
    return dataclasses.field(default=default, metadata={"option": described})


def widths(default: tuple[int, ...], meaning: str, empty: bool = True) -> Option:
    """Widths of layers."""
    return Option(default, f"widths {meaning}", of=int, low=1, empty=empty)


def options_of(owner: type) -> dict[str, Option]:
    """{field: option} of a dataclass, such as a linen module."""
    fields = dataclasses.fields(owner)
    return {f.name: f.metadata["option"] for f in fields if "option" in f.metadata}


def without_effect(options: Mapping[str, Option], values: Mapping[str, Any]) -> dict[str, str]:
    """{path: the value, as "dcnv2.low_rank=0", because of which an option has no effect}.

    Args:
      options: {dotted path: option}.
      values: {dotted path: value} of the whole config.
    """
    found = {}
    for path, described in options.items():
        section = path.rpartition(".")[0]
        for names, wanted in described.needs.items():
            others = [_absolute(section, name) for name in names.split(" | ")]
            if not any(values[other] in wanted for other in others):
                said = (f"{other}={values[other] or repr(values[other])}" for other in others)
                found[path] = " and ".join(said)
    return found


def to_json(options: Mapping[str, Option]) -> dict[str, dict]:
    """What `json.dumps` takes of {path: option}."""
    kinds = {path: described.of and described.of.__name__ for path, described in options.items()}
    return {path: dataclasses.asdict(options[path]) | {"of": kinds[path]} for path in options}


def from_json(body: Mapping[str, Mapping]) -> dict[str, Option]:
    """The options of `to_json`; raises KeyError, TypeError or AttributeError for anything else."""
    kinds = {None: None} | {kind.__name__: kind for kind in _OF if kind}
    found = {}
    for path, fields in body.items():
        fields = {name: as_tuple(value) for name, value in fields.items()}
        values_of = lambda x: Numbers(**x) if isinstance(x, Mapping) else as_tuple(x)
        needs = {names: values_of(values) for names, values in fields["needs"].items()}
        found[path] = Option(**fields | {"of": kinds[fields["of"]], "needs": needs})
    return found


def _absolute(section: str, name: str) -> str:
    return name[1:] if name.startswith(".") else f"{section}.{name}"


def flatten(section: Mapping, prefix: str = "") -> dict[str, Any]:
    """{dotted path: value} of nested mappings, tuples for lists."""
    flat = {}
    for key in section:
        value = section[key]
        if hasattr(value, "items"):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = as_tuple(value)
    return flat


def parts(path: str) -> list[str]:
    """The keys of a dotted path; the name of a slot, in `prepare.slots`, may hold dots itself."""
    if path.startswith(_SLOTS):
        slot = path.removeprefix(_SLOTS).rsplit(".", 1)
        return [*_SLOTS.rstrip(".").split("."), *slot]
    return path.split(".")


def get(section: Mapping, path: str) -> Any:
    """The value at a dotted path."""
    return functools.reduce(lambda inner, part: inner[part], parts(path), section)


def plain(value: Any) -> Any:
    """A value as JSON can hold it, at any depth.

    Numbers and arrays of numpy are those of Python, days and times are ISO texts, durations texts
    of seconds, decimals, UUIDs and paths texts, and members of an Enum their values.
    """
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, dict):
        return {plain(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [*map(plain, value)] if isinstance(value, list) else tuple(map(plain, value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()

    if isinstance(value, datetime.timedelta):
        microseconds = value // datetime.timedelta(microseconds=1)
        value = decimal.Decimal(microseconds) / 10**6
    if type(value).__name__ == "datetime64" or isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    if hasattr(value, "tolist"):  # a number or an array of numpy
        found = value.tolist()
        return plain(tuple(found) if isinstance(found, list) else found)
    return value


def as_tuple(value: Any) -> Any:
    """A value, tuples for lists at any depth."""
    return tuple(map(as_tuple, value)) if isinstance(value, list | tuple) else value
