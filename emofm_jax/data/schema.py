"""The schema: what a row means. One object, from which everything downstream derives.

A schema is an ordered list of field groups of slots, and the roles of the other columns. It stands
as `schema.json` beside the shards that it describes and is copied into every workdir. It fixes the
layout of the one embedding table: slot s owns the rows `offset[s] .. offset[s] + rows[s] - 1`, and
row 0 of each slot is the row of missing and unknown values.

    N columns of ids = 1 per categorical or numeric slot, `max_length` per bag, `length` per vector
                                                                                    (`column_slots`)
    V rows of the table = sum of the rows of all slots that share no other's rows       (`num_rows`)
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from emofm_jax.data import files
from emofm_jax.errors import UserError

FORMAT_VERSION = 1
# What these fields of a slot may be.
CHOICES = {
    "kind": ("categorical", "multi", "numeric", "vector"),
    "encoding": ("vocabulary", "hash", "identity"),
    "keep": ("first", "last"),
    "pooling": ("mean", "sum"),
    "transform": ("none", "log1p", "standardize", "bucket"),
}
# Names of the columns of a shard that are not slots.
ROLE_COLUMNS = ("label", "ftype", "row_id", "weight", "gauc_key")
# Table rows are int32, and the step numbers its scratch rows from V upwards.
MAX_ROWS = 2**31 - 2**27
MAX_TYPES = 127  # the type of a row is int8
# Fields of a schema that do not decide what an id means.
_DESCRIPTIVE = ("rows_per_type", "clicks_per_type", "unknown_per_slot", "recipe", "digests", "days")
# Fields that came after release 0.1, with what every schema before them meant: they stand in the
# fingerprint only where they differ from that, so that older shards keep theirs.
_LATER: dict[str, Any] = {"spelling": 1}
LATER_OF_SLOT: dict[str, Any] = {
    "respell": True,
    "keep": "first",
    "weighted": False,
    "length": 0,
    "null_values": (),
}
# Fields that slots of the same rows have in common.
_SHARED = ("rows", "encoding", "seed", "digest")


@dataclasses.dataclass(frozen=True)
class Slot:
    """One input column.

    Attributes:
      name: column of the shard.
      group: the field group that it belongs to.
      kind: `categorical` (one id), `multi` (a bag of ids), `numeric` (one number) or `vector`
        (`length` numbers).
      encoding: of ids: `vocabulary` (counted over the train split), `hash` (1 + xxh3_64 mod
        (rows - 1)) or `identity` (raw k is row k + 1).
      rows: rows of the table that the slot owns, row 0 included; a numeric slot has 2, a vector
        length + 1.
      seed: of the hash.
      min_count: train occurrences below which a value of a vocabulary is unknown.
      max_length: ids of a bag that are kept.
      keep: which end of a longer bag is kept: its `first` ids or its `last`.
      weighted: whether each id has a weight, a number that multiplies its vector.
      pooling: of a bag: `mean` or `sum` of its vectors; of a weighted one sum w e / sum w, or
        sum w e.
      length: numbers of a vector.
      null_values: spellings of a missing value, or of what fills a bag up, of this slot.
      transform: of a number: `none`, `log1p` (sign(x) log(1 + |x|)), `standardize`, or `bucket`,
        which makes a categorical slot.
      mean, std: of the train split, for `standardize`.
      share: name of the slot whose table rows and encoding this one uses.
      digest: of the vocabulary's values, so that two vocabularies of one size differ.
      respell: of ids: whether text that is a number, truth value or time is the same value as it
        (`values`); False leaves text as it is.
    """

    name: str
    group: str
    kind: str = "categorical"
    encoding: str = "vocabulary"
    rows: int = 0
    seed: int = 0
    min_count: int = 1
    max_length: int = 1
    keep: str = "first"
    weighted: bool = False
    pooling: str = "mean"
    length: int = 0
    null_values: tuple[str, ...] = ()
    transform: str = "none"
    mean: float = 0.0
    std: float = 1.0
    share: str = ""
    digest: str = ""
    respell: bool = True

    @property
    def is_numeric(self) -> bool:
        """True if the shard holds a float; `bucket` makes an id of a number when prepared."""
        return self.kind == "numeric" and self.transform != "bucket"

    @property
    def is_bag(self) -> bool:
        """Whether a row has any number of ids."""
        return self.kind == "multi"

    @property
    def is_mean(self) -> bool:
        """Whether the slot's vector is a mean over its ids."""
        return self.is_bag and self.pooling == "mean"

    @property
    def is_vector(self) -> bool:
        """Whether a row has `length` numbers."""
        return self.kind == "vector"

    @property
    def holds_ids(self) -> bool:
        """True if the shard holds ids; False if it holds numbers."""
        return not (self.is_numeric or self.is_vector)

    @property
    def weights(self) -> str:
        """Name of the array of the weights beside that of the ids; empty without weights."""
        return f"{self.name}:weight" if self.weighted else ""

    @property
    def width(self) -> int:
        """Columns of the slot in `Batch.ids`: a bag's `max_length`, a vector's `length`, or 1."""
        return {"multi": self.max_length, "vector": self.length}.get(self.kind, 1)

    @property
    def has_values(self) -> bool:
        """True if the columns of the slot have values in `Batch.value` that are not 1."""
        return self.weighted or not self.holds_ids or self.is_mean

    @property
    def owner(self) -> str:
        """Name of the slot whose table rows and vocabulary this one uses, itself or another."""
        return self.share or self.name


@dataclasses.dataclass(frozen=True)
class Schema:
    """Ordered slots, grouped, and the roles of the other columns.

    Attributes:
      name: of the data set.
      slots: in the order of their groups.
      types: names of the T interaction types; empty for untyped data.
      has_weight, has_gauc_key: whether the shards hold a sample weight and a GAUC key.
      row_id: type of the row id column, `int64` or `string`; empty when the position is the id.
      rows_per_type, clicks_per_type: of the train split, T + 1 numbers, the last for rows of
        unknown type (one number for untyped data).
      spelling: how a raw value became text (data/values.py): 2, or 1 in data of release 0.1.
      recipe: the `prepare` section of the configuration that made the shards.
      digests: {split: 16 hex digits of its encoded rows}; empty in data of release 0.1.
      unknown_per_slot: share of each slot's values that are missing or unknown, in the train or the
        valid split, whichever has more; empty in data of release 0.1.
      days: of the train split, in order, behind those of the base (`growth`); "" for a preparation
        whose split is not made of days.
    """

    name: str
    slots: tuple[Slot, ...]
    types: tuple[str, ...] = ()
    has_weight: bool = False
    has_gauc_key: bool = False
    row_id: str = ""
    rows_per_type: tuple[int, ...] = ()
    clicks_per_type: tuple[int, ...] = ()
    spelling: int = 1
    recipe: Mapping = dataclasses.field(default_factory=dict, hash=False, compare=False)
    digests: Mapping = dataclasses.field(default_factory=dict, hash=False, compare=False)
    unknown_per_slot: tuple[float, ...] = dataclasses.field(default=(), hash=False, compare=False)
    days: tuple[str, ...] = dataclasses.field(default=(), hash=False, compare=False)

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise UserError(f"schema {self.name!r}: {problem}")

    @property
    def keep_rate(self) -> float:
        """Share of the training rows without a click that are kept (`negative_keep_rate`)."""
        return float(self.recipe.get("negative_keep_rate", 1.0))

    @property
    def num_slots(self) -> int:
        """S, the number of slots."""
        return len(self.slots)

    @property
    def num_types(self) -> int:
        """T, the number of interaction types; 0 for untyped rows."""
        return len(self.types)

    @functools.cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in the order of their first slots."""
        return tuple(dict.fromkeys(slot.group for slot in self.slots))

    @functools.cached_property
    def group_sizes(self) -> tuple[int, ...]:
        """Slots of each group; slots of a group stand together."""
        return tuple(sum(slot.group == group for slot in self.slots) for group in self.groups)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """i64[S]: first table row of each slot."""
        offsets, next_row = {}, 0
        for slot in self.slots:
            if not slot.share:
                offsets[slot.name] = next_row
                next_row += slot.rows
        return np.array([offsets[slot.owner] for slot in self.slots], np.int64)

    @functools.cached_property
    def num_rows(self) -> int:
        """V, rows of the table."""
        return sum(slot.rows for slot in self.slots if not slot.share)

    @functools.cached_property
    def slot_widths(self) -> tuple[int, ...]:
        """Columns of each slot in `Batch.ids`, N in all."""
        return tuple(slot.width for slot in self.slots)

    @property
    def num_columns(self) -> int:
        """N, columns of `Batch.ids`."""
        return sum(self.slot_widths)

    @functools.cached_property
    def column_slots(self) -> np.ndarray:
        """i64[N]: the slot of each column of `Batch.ids`."""
        return np.repeat(np.arange(self.num_slots), self.slot_widths)

    @property
    def has_values(self) -> bool:
        """True if `Batch.value` is needed: some slot has numbers, weights or is pooled by mean."""
        return any(slot.has_values for slot in self.slots)

    @property
    def vectors(self) -> tuple[tuple[int, int, int], ...]:
        """(first column of `Batch.ids`, first table row, length) of each vector."""
        columns = np.cumsum([0, *self.slot_widths]).tolist()
        places = zip(self.slots, columns, self.offsets.tolist())
        return tuple((at, first, slot.length) for slot, at, first in places if slot.is_vector)

    def fingerprint(self) -> str:
        """16 hex digits of everything that decides what an id in a shard means."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        body = {k: v for k, v in self.to_json().items() if k not in _DESCRIPTIVE}
        body = _without(body, _LATER)
        body["slots"] = [_without(slot, LATER_OF_SLOT) for slot in body["slots"]]
        return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())

    @property
    def identity(self) -> str:
        """16 hex digits of a preparation: what its ids mean, and every row; empty if not known.

        The same rows prepared again in the same way have the same.
        """
        if not self.digests:
            return ""
        parts = [self.fingerprint(), *(f"{k}:{v}" for k, v in sorted(self.digests.items()))]
        return xxhash.xxh3_64_hexdigest(" ".join(parts).encode())

    def to_json(self) -> dict[str, Any]:
        """Content of schema.json."""
        same = {"recipe": dict(self.recipe), "digests": dict(self.digests)}
        fields = dataclasses.asdict(self) | same
        return {"format_version": FORMAT_VERSION, **fields}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "Schema":
        """The schema that `to_json` wrote; KeyError, TypeError or AttributeError if it is none."""
        fields: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in body.items()}
        fields["slots"] = tuple(_slot(slot) for slot in fields["slots"])
        del fields["format_version"]
        schema = cls(**_typed(cls, fields))
        for name, (kind, count) in _elements(schema).items():
            values = getattr(schema, name)
            is_number = kind != (str,)
            fits = all(type(x) in kind and (not is_number or x >= 0) for x in values)
            if len(values) not in (0, count) or not fits:
                raise TypeError(f"{name} is {str(values)[:100]}")

        clicks, rows = schema.clicks_per_type, schema.rows_per_type
        if len(clicks) != len(rows) or any(x > y for x, y in zip(clicks, rows)):
            raise TypeError("a type has more clicks than rows")
        return schema

    def save(self, directory: Path) -> None:
        """Writes schema.json."""
        files.write_json(Path(directory) / "schema.json", self.to_json())


def load(directory: Path) -> Schema:
    """Reads `schema.json`.

    Raises:
      UserError: the file is missing, is no JSON, or has another format version.
    """
    path = Path(directory) / "schema.json"
    try:
        body = files.read_json(path)
        version = body["format_version"]
        if version != FORMAT_VERSION:
            ours = f"this program reads {FORMAT_VERSION}"
            raise UserError(f"{path}: format version {version}, {ours}; prepare again")
        return _named(path, body)
    except FileNotFoundError:
        remedy = "make it with `python -m emofm_jax.prepare`"
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a schema ({error}); prepare again") from None


def _named(path: Path, body: dict[str, Any]) -> Schema:
    """The schema of a file's content, whose problems name the file."""
    try:
        return Schema.from_json(body)
    except UserError as error:
        raise UserError(f"{path}: not a schema ({error}); prepare again") from None


def difference(ours: Schema, theirs: Schema) -> str:
    """What differs between two schemas, in words; empty when shards of the two may be mixed."""
    a, b = ours.to_json(), theirs.to_json()
    slots_a, slots_b = ({s["name"]: s for s in x.pop("slots")} for x in (a, b))
    parts = [f"{k} {a[k]!r} against {b[k]!r}" for k in a if k not in _DESCRIPTIVE and a[k] != b[k]]

    if list(slots_a) != list(slots_b):
        only_a, only_b = sorted(slots_a.keys() - slots_b), sorted(slots_b.keys() - slots_a)
        parts.append(f"slots {only_a} against {only_b}" if only_a or only_b else "order of slots")
    for name, x in slots_a.items():
        y = slots_b.get(name, x)
        parts += [f"slot {name!r} {k} {x[k]!r} against {y[k]!r}" for k in x if x[k] != y[k]]
    return ", ".join(parts)


def remedy(run: Schema, data: Schema, usual: str) -> str:
    """What helps where the schema of data is not the run's; `usual`, but for a run of release 0.1.

    Preparing its data again gives another schema each time.
    """
    if run.spelling >= data.spelling:
        return usual
    spelled = "prepare spells values in another way since release 0.1, of which the run is"
    return f"{spelled}: evaluate the raw rows (--input), or train again in another --workdir"


def other_rows(run: Schema, data: Schema) -> str:
    """What tells that a run is of other rows than these data, in words; empty if nothing does.

    Where one of them is of release 0.1, which noted no identity, the counts are compared.
    """
    if run.identity and data.identity:
        if run.identity == data.identity:
            return ""
        return f"preparation {data.identity}, the run is of {run.identity}"
    for name in ("rows_per_type", "clicks_per_type"):
        ours, theirs = getattr(run, name), getattr(data, name)
        if ours and theirs and tuple(ours) != tuple(theirs):
            return f"{name} {tuple(theirs)} of the train split, the run is of {tuple(ours)}"
    return ""


def _without(body: dict[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """The fields but for those that have the value which they had before they existed."""
    return {k: v for k, v in body.items() if k not in later or v != later[k]}


def _problems(schema: Schema) -> Iterator[str]:
    """What keeps a schema from being laid out as one table."""
    if not schema.slots:
        yield "it has no slot; name the slots of each group in config.prepare.groups"
    by_name: dict[str, Slot] = {}
    for slot in schema.slots:
        if not slot.name:
            yield "a slot has no name; name its column, in the file as in config.prepare.groups"
        yield from (f"slot {slot.name!r} {problem}" for problem in _problems_of_slot(slot))
        if slot.name in by_name:
            yield f"slot {slot.name!r} stands twice; name it in one group only"
        if any(slot.name == other.weights for other in schema.slots):
            yield f"slot {slot.name!r} has the name of another's weights; rename the column"
        if slot.name in ROLE_COLUMNS:
            yield f"a slot may not be called {slot.name!r}; rename the column"
        by_name[slot.name] = slot

    for slot in schema.slots:
        owner = by_name.get(slot.owner)
        if slot.share and (owner is None or owner.share):
            what = "no slot" if owner is None else "not the owner of its rows"
            shares = f"slot {slot.name!r} shares the rows of {slot.share!r}"
            yield f"{shares}, which is {what}; name a slot with rows of its own"
        if any(getattr(slot, field) != getattr(owner, field) for field in _SHARED):
            yield f"slots {slot.name!r} and {slot.share!r} share rows but differ in {_SHARED}"

    order = [slot.group for slot in schema.slots]
    if order != [group for group in schema.groups for _ in range(order.count(group))]:
        yield "the slots of a group must stand together"
    if len(set(schema.types)) != len(schema.types):
        yield f"a type stands twice in {list(schema.types)}"
    if len(schema.types) > MAX_TYPES:
        yield f"{len(schema.types)} types; at most {MAX_TYPES} fit a shard, join the rare ones"
    if schema.num_rows > MAX_ROWS:
        yield f"{schema.num_rows} table rows; at most {MAX_ROWS} fit, use fewer hash rows"


def _slot(body: dict[str, Any]) -> Slot:
    """The slot of a JSON object, whose lists are tuples."""
    fields: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in body.items()}
    return Slot(**_typed(Slot, fields))


def _typed(owner: type, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of an object; raises TypeError where one is not what its default is."""
    for field in dataclasses.fields(owner):
        default = () if field.name == "slots" else ""
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        kind, value = type(default), fields.get(field.name, default)
        is_whole = kind is float and type(value) is int
        if type(value) is not kind and not is_whole:
            raise TypeError(f"{field.name} is {str(value)[:100]!r}")
    return fields


def _elements(schema: Schema) -> dict[str, tuple[tuple[type, ...], int]]:
    """Of fields that are lists: of what they are, and how many there are if any."""
    return {
        "rows_per_type": ((int,), schema.num_types + 1),
        "clicks_per_type": ((int,), schema.num_types + 1),
        "unknown_per_slot": ((int, float), schema.num_slots),
        "types": ((str,), schema.num_types),
        "days": ((str,), len(schema.days)),
    }


def _problems_of_slot(slot: Slot) -> Iterator[str]:
    for field, known in CHOICES.items():
        if getattr(slot, field) not in known:
            yield f"has {field} {getattr(slot, field)!r}; known: {', '.join(known)}"

    if not slot.group:
        yield "is in no group; name it in config.prepare.groups"
    if slot.max_length < 1:
        yield f"has max_length {slot.max_length}; it must be at least 1"
    if slot.is_vector and slot.length < 1:
        yield f"is a vector of length {slot.length}; say how many numbers it has"
    if slot.weighted and slot.kind not in ("categorical", "multi"):
        yield f"is {slot.kind}, and has no ids that could be weighted; leave `weighted` out"
