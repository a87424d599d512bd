"""Raw columns -> the columns of a shard: how a value becomes an id (docs/data.md).

    hash          1 + xxh3_64(text, seed) mod (rows - 1)
    vocabulary    1 .. n by falling count, unknown 0
    identity      k + 1, outside 0 .. rows - 2 a bad row
    missing       0 (a bag: empty; a number: null)

What a value is called, whatever carried it, says `values`. The same code encodes the shards, and
later the rows to predict.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import bags, formats, list_text, numeric, raw_files, shards, unknown, values
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data import vocabulary as vocabulary_lib
from emofm_jax.data.formats import tabular
from emofm_jax.data.formats.lines import Chunk
from emofm_jax.data.labels import Labels
from emofm_jax.data.problems import Notes, Problems
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.data.values import Distinct
from emofm_jax.data.vocabulary import Vocabulary, hash_values
from emofm_jax.errors import UserError

# Values of roles that the rows lack.
_DEFAULTS = {"label": 0, "ftype": None, "weight": 1, "gauc_key": 0}
_NO_TYPE = ("-",)  # spellings of a type that is not known


def load_vocabularies(schema: Schema, directory: Path) -> dict[str, Vocabulary]:
    """The vocabularies beside the shards of a schema, by the slot that owns the rows."""
    counted = _counted(schema)
    return {s.name: vocabulary_lib.load(directory, s.name, s.digest) for s in counted}


def copy_vocabularies(schema: Schema, source: Path, target: Path) -> None:
    """Copies the vocabularies of a schema, one after another, when they are those of the schema."""
    for slot in _counted(schema):
        vocabulary_lib.load(source, slot.name, slot.digest).save(target, slot.name)


def copy_rare(schema: Schema, source: Path, target: Path) -> None:
    """Copies the counts of values that have no id yet, for who prepares on the base of a run."""
    for slot in _counted(schema):
        found = vocabulary_lib.load_rare(source, slot.name, slot.digest) if slot.digest else None
        if found is not None:
            vocabulary_lib.save_rare(target, slot.name, found, slot.digest)


def _counted(schema: Schema) -> list[Slot]:
    return [slot for slot in schema.slots if slot.encoding == "vocabulary" and not slot.share]


class Encoder:
    """Encodes chunks of raw columns; may be called from several threads at once.

    Args:
      schema: complete, that is with the rows of every slot.
      vocabularies: by the name of the slot that owns the rows (not of those that share them); None
        where rows are judged and counted only.

    Attributes:
      unseen: {slot: raw values that its vocabulary has not}, a few of what was encoded.
      labels: their reader, which knows how those so far were spelled.
    """

    def __init__(self, schema: Schema, vocabularies: Mapping[str, Vocabulary] | None):
        self.schema, self.vocabularies = schema, vocabularies
        self.unseen: dict[str, list[str]] = {}
        self.missing = values.missing(self._null_values(), schema.spelling)
        self._missing = {slot.name: self._missing_of(slot) for slot in schema.slots}
        self._separators: dict[str, str] = {}  # of slots whose cells were text so far
        self.labels = Labels(recipe_lib.later(schema.recipe, "positive"), self.missing)
        of_types = (*self._null_values(), *_NO_TYPE)
        self._no_type = values.missing(of_types, schema.spelling)
        types = pa.array(schema.types, pa.string())
        self._types = values.spell(types, spelling=schema.spelling)
        self._roles = {
            "label": self._label,
            "ftype": self._ftype,
            "weight": self._weight,
            "gauc_key": self._gauc_key,
        }
        self.arrow_schema = shards.arrow_schema(schema)
        for vocabulary in (vocabularies or {}).values():
            vocabulary.ids(pa.array([""]))  # builds its index, before threads share it

    def encode(
        self, columns: Mapping[str, pa.Array], labelled: bool = True
    ) -> tuple[pa.Table, Problems, Notes]:
        """Encodes the rows of a chunk.

        Args:
          columns: of a `formats.Chunk`, n rows.
          labelled: False makes every label 0, and fills 0 for a type and weight that are absent or
            not readable.

        Returns:
          The good rows, with the columns of `shards.arrow_schema`; the problems of the others; and
          what is to be said of the values.
        """
        problems, notes, schema = Problems(), Notes(), self.schema
        of_labels = problems if labelled else Problems()
        num_rows = len(next(iter(columns.values())))
        given = lambda slot: self._given(slot, columns[slot.name])
        encoded = [self.slot(slot, given(slot), problems, notes) for slot in schema.slots]

        for field in list(self.arrow_schema)[schema.num_slots :]:
            column = columns.get(field.name) if labelled or field.name != "label" else None
            if field.name == "row_id":
                encoded.append(row_ids(column, schema.row_id, problems))
            elif field.name == "weight" and "keep_probability" in columns:
                encoded.append(self._sampled_weight(columns, of_labels))
            elif column is None:
                encoded.append(pa.repeat(pa.scalar(_DEFAULTS[field.name], field.type), num_rows))
            else:
                encoded.append(self._role(field.name, column, of_labels))

        table = pa.table(encoded, schema=self.arrow_schema)
        if problems:
            table = table.filter(pa.array(problems.good(num_rows)))
        return table, problems, notes

    def judge(self, columns: Mapping[str, pa.Array]) -> Problems:
        """The problems that `encode` finds in labelled rows, before there are vocabularies."""
        problems = Problems()
        for slot in self.schema.slots:
            column = self._given(slot, columns[slot.name])
            if _is_pairs(column):
                # libsvm rows that have weights; whether the slot has is what is learnt.
                slot = dataclasses.replace(slot, weighted=True)
            # A single value that is plain text always has an id.
            plain = slot.kind == "categorical" and not slot.weighted and column.type == pa.string()
            if not plain or slot.encoding == "identity":
                self.slot(slot, column, problems)
            else:
                self._mark_unreadable(repr(slot.name), column, problems)

        for name in ("label", "ftype", "weight"):
            if name in columns and name in self.arrow_schema.names:
                self._role(name, columns[name], problems)
        if "keep_probability" in columns:
            self._sampled_weight(columns, problems)
        if self.schema.row_id == "int64":
            row_ids(columns["row_id"], "int64", problems)
        return problems

    def _given(self, slot: Slot, column: pa.Array) -> pa.Array:
        """The column of a slot of rows; in libsvm rows without a pair, each id weighs 1."""
        of_pairs = slot.weighted and self.schema.recipe.get("format") == "libsvm"
        return bags.weighing(column, "1") if of_pairs and not _is_pairs(column) else column

    def slot(
        self, slot: Slot, column: pa.Array, problems: Problems, notes: Notes | None = None
    ) -> pa.Array:
        """The column of a shard from a raw one; rows that cannot be read go to `problems`."""
        self._mark_unreadable(repr(slot.name), column, problems)
        if slot.kind == "numeric":
            numbers = self.numbers(slot, column, problems)
            if slot.transform == "bucket":
                return pa.array(numeric.bucket(numbers, slot.rows))
            return pa.array(numeric.transform(numbers, slot), from_pandas=True)
        if slot.is_vector:
            return bags.vectors(slot, self._lists(slot, column, problems), problems)

        ids, weights, lengths, found = self.elements(slot, column, problems, notes)
        row_of = _rows(lengths)
        encoded = pa.array(self._ids(slot, ids, found, row_of, problems))
        if row_of is not None or weights is not None:
            self._mark_unreadable(f"slot {slot.name!r}", ids, problems, row_of)
        if notes is not None:
            _note_respelled(slot, found, notes)
        if weights is not None:
            is_missing = found.each(found.text.is_null(), True)
            number = bags.weights(slot, ids, weights, is_missing, row_of, problems)
            if slot.weighted:
                fields = [encoded, pa.array(number)]
                encoded = pa.StructArray.from_arrays(fields, fields=list(shards.WEIGHTED))
        if lengths is None:
            return encoded
        offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), encoded)

    def numbers(self, slot: Slot, column: pa.Array, problems: Problems) -> np.ndarray:
        """f64[n], the raw numbers of a numeric slot; NaN for missing."""
        return numeric.parse(column, slot.name, problems, self._missing[slot.name])

    def elements(
        self, slot: Slot, column: pa.Array, problems: Problems, notes: Notes | None = None
    ) -> tuple[pa.Array, pa.Array | None, np.ndarray | None, Distinct]:
        """The values of a slot of ids that are kept.

        Returns:
          The values; a weight of each, or None where none is given; i32[n], how many values are of
          each row, or None where it is one; what `distinct` says of the values.
        """
        if not slot.is_bag:
            ids, weights = self._pairs(slot, column, problems, None)
            return ids, weights, None, self.distinct(slot, ids)
        lists = self._without_padding(slot, self._lists(slot, column, problems))
        kept, lengths = bags.cut(lists, slot.max_length, slot.keep)
        if notes is not None:
            _note_cut(slot, pc.list_value_length(lists), notes)

        ids, weights = self._pairs(slot, kept, problems, lengths)
        found = self.distinct(slot, ids)
        if self.schema.spelling == 1:
            return ids, weights, lengths, found
        return _without_missing(ids, weights, lengths, lists, found)

    def _pairs(
        self, slot: Slot, column: pa.Array, problems: Problems, lengths: np.ndarray | None
    ) -> tuple[pa.Array, pa.Array | None]:
        """Values and, where there are some, their weights; one a row, or `lengths` of each."""
        if not (slot.weighted or pa.types.is_struct(column.type)):
            return column, None
        self._mark_unreadable(f"slot {slot.name!r}", column, problems, _rows(lengths))
        return bags.pairs(column)

    def distinct(self, slot: Slot, column: pa.Array) -> Distinct:
        """The distinct values of a slot, spelled as the schema says; no lists."""
        missing, spelling = self._missing[slot.name], self.schema.spelling
        if slot.kind == "numeric" and spelling != 1:
            column, missing = numeric.spelled(column), numeric.spelled(missing).drop_null()
        return values.distinct(column, missing, slot.respell, spelling)

    def missing_of(self, slot: Slot) -> tuple[str, ...]:
        """What a missing value of a slot may be called, besides None and the like."""
        return (*self._null_values(), *slot.null_values)

    def _null_values(self) -> tuple[str, ...]:
        """The recipe's; those of release 0.1 are of whole cells, which are null by now."""
        return () if self.schema.spelling == 1 else tuple(self.schema.recipe.get("null_values", ()))

    def _missing_of(self, slot: Slot) -> pa.Array:
        """What a missing value of a slot may be called."""
        if not slot.null_values:
            return self.missing
        return values.missing(self.missing_of(slot), self.schema.spelling)

    def _lists(self, slot: Slot, column: pa.Array, problems: Problems) -> pa.Array:
        """Cells of several values as list[n]; text is split."""
        if pa.types.is_list(column.type):
            return column
        if slot.name not in self._separators:
            options = recipe_lib.slot_options(self.schema.recipe, slot.name)
            self._separators[slot.name] = options["separator"]
        separator = self._separators[slot.name]
        if self.schema.spelling == 1:
            return pc.split_pattern(column.cast(pa.string()), separator)

        text = column if column.type == pa.string() else values.spell(column, respell=False)
        gone = pc.is_in(values.trimmed(text), values.MISSING_TEXTS)
        text = values.only(pc.invert(gone), text) if gone.true_count else text
        if separator.isspace():  # several blanks are one
            bare = values.trimmed(text)
            text = pc.replace_substring_regex(bare, f"{re.escape(separator)}+", separator)
        lists, wrong = list_text.split(text, separator, slot.weighted)
        reason = lambda i: f"slot {slot.name!r} holds {text[i].as_py()!r}, which is no plain list"
        problems.mark(wrong, "list", reason)
        return lists

    def _without_padding(self, slot: Slot, column: pa.Array) -> pa.Array:
        """The bags list[n] without what fills them up, the slot's own `null_values`."""
        if not slot.null_values:
            return column
        ids = column.flatten()
        if slot.weighted or pa.types.is_struct(ids.type):
            ids = bags.pairs(ids)[0]

        found = values.distinct(ids, respell=slot.respell)
        padding = values.at_width(values.missing(slot.null_values), values.unwrapped_type(ids.type))
        gone = np.asarray(pc.and_(found.text.is_valid(), pc.is_in(found.text, padding)))
        if "" not in slot.null_values:
            return bags.without(column, found.each(gone, False))
        gone = found.each(gone | np.asarray(found.text.is_null()), True)
        return bags.without(column, gone & ~values.unreadable(ids))

    def _ids(
        self,
        slot: Slot,
        column: pa.Array,
        found: Distinct,
        row_of: np.ndarray | None,
        problems: Problems,
    ) -> np.ndarray:
        """i32[n] of n values, one a row or in the rows `row_of`; distinct ones are encoded once."""
        known = found.text.drop_null() if found.text.null_count else found.text
        if slot.encoding == "hash":
            ids = (hash_values(known, slot.seed) % np.uint64(slot.rows - 1)).astype(np.int64) + 1
        elif slot.encoding == "identity":
            ids = _identity(known, slot.rows)
        elif self.vocabularies is None:
            ids = np.zeros(len(known), np.int32)
        else:
            ids = self.vocabularies[slot.owner].ids(known)

        table = np.zeros(len(found.text) + 1, np.int32)  # the last one is for null
        if len(known) == len(found.text):
            table[:-1] = ids
        else:
            table[np.flatnonzero(np.asarray(found.text.is_valid()))] = ids
        result = table[found.which]
        if slot.encoding == "vocabulary" and self.vocabularies is not None and not ids.all():
            self._note_unseen(slot, found, ids)
        if len(ids) and ids.min() < 0:
            holds, said = f"slot {slot.name!r} holds", f"its ids are 0 .. {slot.rows - 2}"
            reason = lambda i: f"{holds} {values.said(column, i)}; {said}"
            problems.mark(result < 0, "id out of range", reason, row_of)
        return result

    def _note_unseen(self, slot: Slot, found: Distinct, ids: np.ndarray) -> None:
        examples = self.unseen.setdefault(slot.name, [])
        if len(examples) < unknown.EXAMPLES:
            known = np.flatnonzero(np.asarray(found.text.is_valid()))
            for at in known[ids == 0][: unknown.EXAMPLES]:
                # Not `str`: Python has no time of nanoseconds.
                example = values.spell(found.raw.slice(int(at), 1), respell=False)[0].as_py()
                examples += [example] if example not in examples else []

    def _role(self, name: str, column: pa.Array, problems: Problems) -> pa.Array:
        """The column of a role of a shard from a raw one."""
        self._mark_unreadable(repr(name), column, problems)
        return self._roles[name](column, problems)

    def _label(self, column: pa.Array, problems: Problems) -> pa.Array:
        return pa.array(self.labels.read(column, problems))

    def _ftype(self, column: pa.Array, problems: Problems) -> pa.Array:
        found = values.distinct(column, self._no_type, spelling=self.schema.spelling)
        which = found.each(pc.index_in(found.text, self._types).fill_null(-1), -1)
        absent = found.each(found.text.is_null(), True)

        known = f"is not one of config.prepare.types ({', '.join(self.schema.types)})"
        reason = lambda i: f"the type {values.said(column, i)} {known}"
        problems.mark((which < 0) & ~absent, "type", reason)
        return pa.array(which, pa.int8(), mask=which < 0)

    def _weight(self, column: pa.Array, problems: Problems) -> pa.Array:
        numbers = numeric.parse(column, "weight", problems, self.missing)
        needs = "it must be a number of at least 0"
        reason = lambda i: f"the weight is {_given(column, numbers, i)}; {needs}"
        problems.mark(~(numbers >= 0), "weight", reason)
        return pa.array(np.where(numbers >= 0, numbers, 0).astype(np.float32))

    def _sampled_weight(self, columns: Mapping[str, pa.Array], problems: Problems) -> pa.Array:
        """f32[n]: the weight, or 1, over the probability that the row was kept."""
        column = columns["keep_probability"]
        rate = numeric.parse(column, "keep probability", problems, self.missing)
        known = (rate > 0) & (rate <= 1)
        needs = "it must be above 0 and at most 1"
        reason = lambda i: f"the keep probability is {_given(column, rate, i)}; {needs}"
        problems.mark(~known, "keep_probability", reason)
        own = self._weight(columns["weight"], problems) if "weight" in columns else None
        weight = np.ones(len(rate)) if own is None else own.to_numpy().astype(np.float64)
        with np.errstate(over="ignore"):
            weight = weight / np.where(known, rate, 1.0)

        large = weight > bags.MAX_WEIGHT
        gives = f"which gives the row a weight above {bags.MAX_WEIGHT:g}; give a larger one"
        reason = lambda i: f"the keep probability is {_given(column, rate, i)}, {gives}"
        problems.mark(large, "keep_probability", reason)
        return pa.array(np.where(large, 0, weight).astype(np.float32))

    def _gauc_key(self, column: pa.Array, problems: Problems) -> pa.Array:
        """i64[n]: hashes of the values, spelled as those of its slot, if it is one; 0: missing."""
        recipe = {**self.schema.recipe, "spelling": self.schema.spelling}
        if slot := recipe_lib.key_slot(recipe, self.schema.slots):
            column = self._given(slot, column)
            if slot.weighted or _is_pairs(column):  # of these the id is the key
                column = bags.pairs(column)[0]
                self._mark_unreadable("'gauc_key'", column, problems)
            found = self.distinct(slot, column)
        else:
            found = values.distinct(column, self.missing, spelling=self.schema.spelling)

        known = np.asarray(found.text.is_valid())
        hashes = np.zeros(len(known) + 1, np.int64)
        hashes[:-1][known] = hash_values(found.text.drop_null(), 0).view(np.int64)
        return pa.array(hashes[found.which])

    def _mark_unreadable(
        self, what: str, column: pa.Array, problems: Problems, row_of: np.ndarray | None = None
    ) -> None:
        """Marks bytes that are no text, and texts with a NUL; one a row, or in the rows `row_of`.

        Release 0.1 took a NUL as it takes any character.
        """
        if values.is_readable(column):
            return
        if (wrong := values.undecodable(column)).any():
            reason = lambda i: f"{what} holds {column[i].as_py()!r}, no text in UTF-8"
            problems.mark(wrong, "encoding", reason, row_of)
        if self.schema.spelling != 1 and (wrong := values.with_nul(column)).any():
            reason = lambda i: f"{what} holds {column[i].as_py()!r}, with a NUL byte"
            problems.mark(wrong, "nul", reason, row_of)


def _given(column: pa.Array, numbers: np.ndarray, i: int) -> str:
    """A number as it was given; `missing`, and what stands there, if it is a null value."""
    said = values.said(column, i)
    return f"missing ({said})" if np.isnan(numbers[i]) and said != "missing" else said


def _is_pairs(column: pa.Array) -> bool:
    """Whether values, or elements of lists, are ids with weights."""
    return pa.types.is_struct(getattr(column.type, "value_type", column.type))


def _rows(lengths: np.ndarray | None) -> np.ndarray | None:
    """i64[m]: the row of each of m elements; None where each row has one (`Encoder.elements`)."""
    return None if lengths is None else np.repeat(np.arange(len(lengths)), lengths)


def _without_missing(
    ids: pa.Array,
    weights: pa.Array | None,
    lengths: np.ndarray,
    column: pa.Array,
    found: Distinct,
) -> tuple[pa.Array, pa.Array | None, np.ndarray, Distinct]:
    """What `elements` returns: a bag of one missing value, without a weight, is a missing cell.

    So "-1", "-1.0", [-1] and a column of integers are one bag, where "-1" is a null value. Bytes
    that are no text are not missing: they stay, for `slot` to refuse. `column` are all of the bags.
    """
    if not found.text.null_count and not (found.which == len(found.text)).any():
        return ids, weights, lengths, found
    rows = np.flatnonzero(np.asarray(pc.list_value_length(column).fill_null(0)) == 1)
    places = (np.cumsum(lengths) - lengths)[rows]
    gone = found._replace(which=found.which[places]).each(found.text.is_null(), True)
    rows, places = rows[gone], places[gone]
    gone = ~values.unreadable(ids.take(pa.array(places)))
    if weights is not None:
        gone &= numeric.absent(weights.take(pa.array(places)))
    if not gone.any():
        return ids, weights, lengths, found

    kept = np.ones(len(ids), bool)
    kept[places[gone]] = False
    lengths = lengths.copy()
    lengths[rows[gone]] = 0
    of_kept, found = pa.array(kept), found._replace(which=found.which[kept])
    weights = None if weights is None else weights.filter(of_kept)
    return ids.filter(of_kept), weights, lengths, found


def row_ids(column: pa.Array, kind: str, problems: Problems) -> pa.Array:
    """A row id column as `kind`, string or int64; what is no such integer becomes null."""
    if kind == "string":
        return row_names(column)
    if pa.types.is_integer(column.type) and column.type != pa.uint64():
        return column.cast(pa.int64())

    found = values.distinct(column)
    fits = [int(x) if x is not None and _is_int64(x) else None for x in found.text.to_pylist()]
    wrong = found.each([x is None for x in fits], False)
    known = found.each(found.text.is_valid(), False) | values.unreadable(column)
    said = "it must be an integer of 64 bits, as in the first file"
    reason = lambda i: f"the row id is {values.said(column, i)}; {said}"
    problems.mark(wrong & known, "row id", reason)
    return pa.array([*fits, None], pa.int64()).take(pa.array(found.which))


def row_names(column: pa.Array) -> pa.Array:
    """string[n]: row ids as they came, whatever they are; bytes that are no text as \\xff\\x00."""
    kind = values.unwrapped_type(column.type)
    if not values.is_text(kind):
        return values.distinct(column).column()
    text, odd = values.spell(column, respell=False), values.undecodable(column)
    if not odd.any():
        return text
    odd = pa.array(odd)
    digits = ["".join(f"\\x{b:02x}" for b in value) for value in column.filter(odd).to_pylist()]
    return pc.replace_with_mask(text, odd, pa.array(digits, pa.string()))


def _is_int64(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and -(2**63) <= int(text) < 2**63


def _identity(text: pa.Array, rows: int) -> np.ndarray:
    """i64[n]: k + 1, or -1 where the text is no integer in 0 .. rows - 2."""
    digits = pc.match_substring_regex(text, r"^0*\d{1,10}$")
    k = pc.if_else(digits, text, "-2").cast(pa.int64()).to_numpy()
    return np.where((k >= 0) & (k <= rows - 2), k + 1, -1)


def _note_cut(slot: Slot, lengths: pa.Array, notes: Notes) -> None:
    """Notes the bags that are longer than what is kept of them."""
    long = pc.greater(lengths, slot.max_length).fill_null(False)
    if number := pc.sum(long).as_py():
        first = lengths.filter(long)[0].as_py()
        example = f"one of {first} of which the {slot.keep} {slot.max_length} are kept"
        notes.add(slot.name, "cut", number, example)


def _note_respelled(slot: Slot, found: Distinct, notes: Notes) -> None:
    """Notes the texts that count as a number, truth value or time in another spelling."""
    if not found.respelled:
        return
    raw = values.spell(found.raw, respell=False)
    other = np.asarray(pc.not_equal(raw, found.text).fill_null(False))
    if other.any():
        first = int(np.argmax(other))
        example = f"{raw[first].as_py()!r}, which is {found.text[first].as_py()}"
        notes.add(slot.name, "respelled", int(found.counts()[other].sum()), example)


@dataclasses.dataclass(frozen=True)
class EncodedChunk:
    """Raw rows, encoded, where every row keeps its place."""

    table: pa.Table  # the rows that could be encoded, with the columns of `shards.arrow_schema`
    kept: np.ndarray  # bool[n], which of the n rows they are
    reasons: list[str | None]  # n texts, None for a row that was kept
    # n row ids, null if a row could not be split into columns; without a column of row ids the
    # 0-based positions among all rows.
    row_id: pa.Array
    also: dict[str, pa.Array] = dataclasses.field(default_factory=dict)  # of the table's rows
    notes: Notes = dataclasses.field(default_factory=Notes)  # on rows, files and values
    unseen: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)  # of the `Encoder`
    # Of labelled rows whose day is known, where the schema's rows were split by day.
    days: frozenset[str] = frozenset()


def read_encoded(
    schema: Schema,
    directory: Path,
    path: Path | Sequence[RawFile],
    labelled: bool = False,
    also: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[EncodedChunk]:
    """Reads raw rows, of the format that the schema's recipe says, and encodes them.

    Args:
      schema: of the shards that a model was trained on.
      directory: that holds `vocabulary/`.
      path: a file, or a directory of files, in the order of their names; or files that were found
        before (`raw_files.find`) and checked.
      labelled: True if labels and the other roles must be there, as in training; otherwise a label
        that is absent is 0.
      also: {name: flag that asks for it} of columns that come along as text, null where missing:
        slots, or any columns of tabular rows. Only of labelled rows.

    Raises:
      UserError: missing or damaged file, columns that do not fit the recipe; never for a bad row.
    """
    source = schema.recipe.get("format", "such")  # a schema that prepare did not write
    if source not in formats.FORMATS:
        first = path if isinstance(path, Path) else path[0].path
        raise UserError(f"{first}: {source} data has no raw rows; name a directory of shards")
    recipe_lib.check_whole(schema.recipe, str(directory / "schema.json"))
    files = _found(path) if isinstance(path, Path) else path

    # Row ids are only given back here: whatever they are, they cost no row its score.
    as_text = dataclasses.replace(schema, row_id=schema.row_id and "string")
    encoder = Encoder(as_text, load_vocabularies(schema, directory))
    recipe = recipe_lib.to_evaluate(schema.recipe, also) if labelled else schema.recipe
    recipe = {**recipe, "spelling": schema.spelling}
    position = 0
    for chunk in formats.read(recipe, files, labelled):
        with formats.naming(chunk.file):
            encoded = _keep_places(encoder, chunk, labelled, position, also)
            if "_day" in chunk.columns:
                days = recipe_lib.distinct_days(recipe, chunk.columns["_day"])
                found = frozenset(filter(None, recipe_lib.days_of(recipe, days)))
                encoded = dataclasses.replace(encoded, days=found)
        position += len(encoded.kept)
        yield encoded


def _found(path: Path) -> list[RawFile]:
    """The files of raw rows at a path."""
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; name raw rows")
    files = raw_files.find(path)
    recipe_lib.check_once(files)
    return files


def _keep_places(
    encoder: Encoder, chunk: Chunk, labelled: bool, position: int, also: Iterable[str]
) -> EncodedChunk:
    """Encodes a chunk; `position` rows stand before it."""
    table, problems, notes = encoder.encode(chunk.columns, labelled)
    notes.join(chunk.notes)
    good = pa.array(problems.good(len(chunk.lines)))
    beside = {name: _also(encoder, chunk, name).filter(good) for name in also}
    unread = list(chunk.bad)
    bad = [*unread, *chunk.bad_rows(problems)]
    unreadable = np.array([b.line for b in unread], np.int64)
    lines = np.sort(np.concatenate([chunk.lines, unreadable]))

    reasons: list[str | None] = [None] * len(lines)
    for place, b in zip(np.searchsorted(lines, [b.line for b in bad]), bad):
        reasons[place] = f"{chunk.file}:{b.line}: {b.reason}"
    kept = np.array([reason is None for reason in reasons], bool)

    if not encoder.schema.row_id:
        row_id = pa.array(position + np.arange(len(lines)))
        return EncodedChunk(table, kept, reasons, row_id, beside, notes, encoder.unseen)
    own = chunk.columns["row_id"]
    own = own if pa.types.is_integer(own.type) else row_names(own)
    index = np.full(len(lines), -1)
    index[np.searchsorted(lines, chunk.lines)] = np.arange(len(chunk.lines))
    row_id = own.take(pa.array(index, mask=index < 0))
    return EncodedChunk(table, kept, reasons, row_id, beside, notes, encoder.unseen)


def _also(encoder: Encoder, chunk: Chunk, name: str) -> pa.Array:
    """string[n]: a column that comes along, spelled as a slot is."""
    column = tabular.also(chunk.columns, name)
    several = [slot.name for slot in encoder.schema.slots if slot.width > 1 or slot.weighted]
    if column is None or name in several or pa.types.is_nested(column.type):
        problem = "no slot of single values" if column is None else "a slot of bags"
        raise UserError(f"{chunk.file}: {name!r} is {problem}; name another column")

    for slot in encoder.schema.slots:
        if slot.name == name:
            return encoder.distinct(slot, column).column()
    if values.unreadable(column).any():  # values of their own, not missing ones
        column = pc.replace_substring(row_names(column), "\0", "\\x00")
    return values.distinct(column, encoder.missing, spelling=encoder.schema.spelling).column()
