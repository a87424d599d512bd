"""The schema: what a row means. One object, from which everything downstream derives.

A schema is an ordered list of field groups of slots, and the roles of the other columns. It stands as
`schema.json` beside the shards that it describes, is copied into every workdir, and fixes the layout of the
one embedding table: slot s owns the rows `offset[s] .. offset[s] + rows[s] - 1`, and row 0 of each slot is the
row of missing and unknown values.

    N columns of ids = one per categorical or numeric slot, `max_length` per bag        (`column_slots`)
    V rows of the table = sum of the rows of all slots that do not share another's      (`num_rows`)
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xxhash

from emofm_jax.errors import UserError

FORMAT_VERSION = 1
KINDS = ("categorical", "multi", "numeric")
ENCODINGS = ("vocabulary", "hash", "identity")
POOLINGS = ("mean", "sum")
TRANSFORMS = ("none", "log1p", "standardize", "bucket")
# Names of the columns of a shard that are not slots.
ROLE_COLUMNS = ("label", "ftype", "row_id", "weight", "gauc_key")
MAX_ROWS = (
    2**31 - 2**27
)  # table rows are int32, and the step numbers its scratch rows from V upwards


@dataclasses.dataclass(frozen=True)
class Slot:
    """One input column.

    Attributes:
      name: column of the shard.
      group: the field group that it belongs to.
      kind: `categorical` (one id), `multi` (a bag of ids) or `numeric` (one number).
      encoding: of ids: `vocabulary` (counted over the train split), `hash` (1 + xxh3_64 mod (rows - 1)) or
        `identity` (raw k is row k + 1).
      rows: rows of the table that the slot owns, row 0 included; a numeric slot has 2.
      seed: of the hash.
      min_count: train occurrences below which a value of a vocabulary is unknown.
      max_length: ids of a bag that are kept, the first ones.
      pooling: of a bag: `mean` or `sum` of its vectors.
      transform: of a number: `none`, `log1p` (sign(x) log(1 + |x|)), `standardize`, or `bucket`, which makes a
        categorical slot.
      mean, std: of the train split, for `standardize`.
      share: name of the slot whose table rows and encoding this one uses.
      digest: of the vocabulary's values, so that two vocabularies of one size differ.
    """

    name: str
    group: str
    kind: str = "categorical"
    encoding: str = "vocabulary"
    rows: int = 0
    seed: int = 0
    min_count: int = 1
    max_length: int = 1
    pooling: str = "mean"
    transform: str = "none"
    mean: float = 0.0
    std: float = 1.0
    share: str = ""
    digest: str = ""

    @property
    def is_numeric(self) -> bool:
        """Whether the shard holds a float, not ids: `bucket` turns a number into an id when prepared."""
        return self.kind == "numeric" and self.transform != "bucket"


@dataclasses.dataclass(frozen=True)
class Schema:
    """Ordered slots, grouped, and the roles of the other columns.

    Attributes:
      name: of the data set.
      slots: in the order of their groups.
      types: names of the T interaction types; empty for untyped data.
      has_weight, has_gauc_key: whether the shards hold a sample weight and a GAUC key.
      row_id: type of the row id column: `int64`, `string`, or empty when the position in the split is the id.
      rows_per_type, clicks_per_type: of the train split, T + 1 numbers, the last for rows of unknown type
        (one number for untyped data).
      recipe: the `prepare` section of the configuration that made the shards.
    """

    name: str
    slots: tuple[Slot, ...]
    types: tuple[str, ...] = ()
    has_weight: bool = False
    has_gauc_key: bool = False
    row_id: str = ""
    rows_per_type: tuple[int, ...] = ()
    clicks_per_type: tuple[int, ...] = ()
    recipe: Mapping = dataclasses.field(default_factory=dict, hash=False, compare=False)

    def __post_init__(self):
        _check(self)

    @property
    def num_slots(self) -> int:
        return len(self.slots)

    @property
    def num_types(self) -> int:
        return len(self.types)

    @functools.cached_property
    def groups(self) -> tuple[str, ...]:
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
        return np.array([offsets[slot.share or slot.name] for slot in self.slots], np.int64)

    @functools.cached_property
    def num_rows(self) -> int:
        """V, rows of the table."""
        return sum(slot.rows for slot in self.slots if not slot.share)

    @functools.cached_property
    def slot_widths(self) -> tuple[int, ...]:
        """Columns of each slot in `Batch.ids`: `max_length` for a bag, else 1."""
        return tuple(slot.max_length if slot.kind == "multi" else 1 for slot in self.slots)

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
        """Whether `Batch.value` is needed: some slot is numeric or pooled by mean."""
        return any(s.is_numeric or (s.kind == "multi" and s.pooling == "mean") for s in self.slots)

    def fingerprint(self) -> str:
        """16 hex digits of everything that decides what an id in a shard means (not counts, not the recipe)."""
        body = {
            k: v
            for k, v in _to_dict(self).items()
            if k not in ("rows_per_type", "clicks_per_type", "recipe")
        }
        return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())

    def save(self, directory: Path) -> None:
        (Path(directory) / "schema.json").write_text(json.dumps(_to_dict(self), indent=1) + "\n")


def load(directory: Path) -> Schema:
    """Reads `schema.json`.

    Raises:
      UserError: the file is missing, is no JSON, or has another format version.
    """
    path = Path(directory) / "schema.json"
    try:
        body = json.loads(path.read_text())
        version = body.pop("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: format version {version}, this program reads {FORMAT_VERSION}; prepare again"
            )
        slots = tuple(Slot(**slot) for slot in body.pop("slots"))
        return Schema(
            slots=slots, **{k: tuple(v) if isinstance(v, list) else v for k, v in body.items()}
        )
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; make it with `python -m emofm_jax.prepare`"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a schema ({error}); prepare again") from None


def difference(ours: Schema, theirs: Schema) -> str:
    """What differs between two schemas, in words; empty when shards of the two may be mixed."""
    a, b = _to_dict(ours), _to_dict(theirs)
    slots_a, slots_b = ({s["name"]: s for s in x.pop("slots")} for x in (a, b))
    skip = ("rows_per_type", "clicks_per_type", "recipe")
    parts = [f"{k} {a[k]!r} against {b[k]!r}" for k in a if k not in skip and a[k] != b[k]]
    if list(slots_a) != list(slots_b):
        only_a, only_b = slots_a.keys() - slots_b.keys(), slots_b.keys() - slots_a.keys()
        parts.append(
            f"slots {sorted(only_a)} against {sorted(only_b)}"
            if only_a or only_b
            else "order of slots"
        )
    for name in slots_a.keys() & slots_b.keys():
        x, y = slots_a[name], slots_b[name]
        parts += [f"slot {name!r} {k} {x[k]!r} against {y[k]!r}" for k in x if x[k] != y[k]]
    return ", ".join(parts)


def _to_dict(schema: Schema) -> dict:
    return {
        "format_version": FORMAT_VERSION,
        **dataclasses.asdict(schema),
        "recipe": dict(schema.recipe),
    }


def _check(schema: Schema) -> None:
    """Raises UserError on a schema that cannot be laid out as one table."""
    where, by_name = f"schema {schema.name!r}", {}
    if not schema.slots:
        raise UserError(
            f"{where}: it has no slot; name the slots of each group in config.prepare.groups"
        )
    for slot in schema.slots:
        for value, known, field in (
            (slot.kind, KINDS, "kind"),
            (slot.encoding, ENCODINGS, "encoding"),
            (slot.pooling, POOLINGS, "pooling"),
            (slot.transform, TRANSFORMS, "transform"),
        ):
            if value not in known:
                raise UserError(
                    f"{where}: slot {slot.name!r} has {field} {value!r}; known: {', '.join(known)}"
                )
        if not slot.group:
            raise UserError(
                f"{where}: slot {slot.name!r} is in no group; name it in config.prepare.groups"
            )
        if slot.name in by_name:
            raise UserError(f"{where}: slot {slot.name!r} stands twice; name it in one group only")
        if slot.name in ROLE_COLUMNS:
            raise UserError(f"{where}: a slot may not be called {slot.name!r}; rename the column")
        if slot.max_length < 1:
            raise UserError(
                f"{where}: slot {slot.name!r} has max_length {slot.max_length}; it must be at least 1"
            )
        by_name[slot.name] = slot
    for slot in schema.slots:
        if slot.share:
            owner = by_name.get(slot.share)
            if owner is None or owner.share or owner is slot:
                raise UserError(
                    f"{where}: slot {slot.name!r} shares the rows of {slot.share!r}, which is "
                    f"{'no slot' if owner is None else 'not the owner of its rows'}; name a slot with rows of its own"
                )
            same = ("rows", "encoding", "seed", "digest")
            if [getattr(slot, k) for k in same] != [getattr(owner, k) for k in same]:
                raise UserError(
                    f"{where}: slots {slot.name!r} and {slot.share!r} share rows but differ in {same}"
                )
    order = [slot.group for slot in schema.slots]
    if order != [group for group in schema.groups for _ in range(order.count(group))]:
        raise UserError(f"{where}: the slots of a group must stand together")
    if len(set(schema.types)) != len(schema.types):
        raise UserError(f"{where}: a type stands twice in {list(schema.types)}")
    if schema.num_rows > MAX_ROWS:
        raise UserError(
            f"{where}: {schema.num_rows} table rows; at most {MAX_ROWS} fit, use fewer hash rows"
        )
