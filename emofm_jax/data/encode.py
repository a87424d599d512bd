"""Raw columns -> the columns of a shard: how a value becomes an id (docs/data.md).

    hash        1 + xxh3_64(text, seed) mod (rows - 1)        vocabulary   1 .. n by falling count, unknown 0
    identity    k + 1, outside 0 .. rows - 2 a bad row        missing      0 (a bag: empty; a number: null)

The same code encodes the shards, and later the rows to predict.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import formats, shards
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data import vocabulary as vocabulary_lib
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.data.vocabulary import Vocabulary, as_text, hash_values
from emofm_jax.errors import UserError

BadRow = tuple[int, str, str]  # row of the chunk, kind, reason
_ABSENT = ("", "-")  # spellings of a label or type that is not known


def load_vocabularies(schema: Schema, directory: Path) -> dict[str, Vocabulary]:
    """The vocabularies that a schema needs, by the slot that owns the rows, from beside its shards."""
    owners = [
        slot.name for slot in schema.slots if slot.encoding == "vocabulary" and not slot.share
    ]
    return {name: vocabulary_lib.load(directory, name) for name in owners}


class Encoder:
    """Encodes chunks of raw columns; may be called from several threads at once.

    Args:
      schema: complete, that is with the rows of every slot.
      vocabularies: by the name of the slot that owns the rows (not of those that share them).
    """

    def __init__(self, schema: Schema, vocabularies: Mapping[str, Vocabulary]):
        self.schema, self.vocabularies = schema, vocabularies
        self.arrow_schema = shards.arrow_schema(schema)
        for vocabulary in vocabularies.values():
            vocabulary.ids(pa.array([""]))  # builds its index, before threads share it

    def encode(
        self, columns: Mapping[str, pa.Array], labelled: bool = True
    ) -> tuple[pa.Table, list[BadRow]]:
        """Encodes the rows of a chunk.

        Args:
          columns: of a `formats.Chunk`, n rows.
          labelled: False fills 0 for a label, type and weight that are absent or not readable.

        Returns:
          The good rows, with the columns of `shards.arrow_schema`, and (row, kind, reason) of the others, in order.
        """
        bad: dict[int, tuple[str, str]] = {}
        num_rows = len(next(iter(columns.values())))
        encoded = {
            slot.name: self.slot(slot, columns[slot.name], bad) for slot in self.schema.slots
        }
        encoded["label"] = _label(columns.get("label"), num_rows, bad if labelled else {})
        if self.schema.types:
            encoded["ftype"] = self._ftype(columns.get("ftype"), num_rows, bad if labelled else {})
        if self.schema.row_id:
            encoded["row_id"] = row_ids(columns["row_id"], self.schema.row_id, bad)
        if self.schema.has_weight:
            encoded["weight"] = _weight(columns.get("weight"), num_rows, bad if labelled else {})
        if self.schema.has_gauc_key:
            encoded["gauc_key"] = _gauc_key(columns.get("gauc_key"), num_rows)
        table = pa.table(
            [encoded[name] for name in self.arrow_schema.names], schema=self.arrow_schema
        )
        if bad:
            good = np.ones(num_rows, bool)
            good[list(bad)] = False
            table = table.filter(pa.array(good))
        return table, [(row, *bad[row]) for row in sorted(bad)]

    def slot(self, slot: Slot, column: pa.Array, bad: dict[int, tuple[str, str]]) -> pa.Array:
        """The column of a shard from a raw one; rows that cannot be read go to `bad`."""
        if slot.kind == "numeric":
            numbers = parse_numbers(column, slot.name, bad)
            if slot.transform == "bucket":
                return pa.array(bucket(numbers, slot.rows))
            return pa.array(transform(numbers, slot), from_pandas=True)
        if slot.kind == "multi":
            column, row_of = cut_bags(column, slot.max_length)
            offsets = np.searchsorted(row_of, np.arange(len(column) + 1)).astype(np.int32)
            return pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(self._ids(slot, column.flatten(), bad, row_of))
            )
        return pa.array(self._ids(slot, column, bad, None))

    def _ids(
        self, slot: Slot, values: pa.Array, bad: dict, row_of: np.ndarray | None
    ) -> np.ndarray:
        """i32[n]: the distinct values are encoded once."""
        coded = values if isinstance(values, pa.DictionaryArray) else values.dictionary_encode()
        distinct = as_values(coded.dictionary)
        known = distinct.drop_null()
        if slot.encoding == "hash":
            ids = (hash_values(known, slot.seed) % np.uint64(slot.rows - 1)).astype(np.int64) + 1
        elif slot.encoding == "vocabulary":
            ids = self.vocabularies[slot.share or slot.name].ids(known)
        else:
            ids = _identity(known, slot.rows)
        table = np.zeros(len(distinct) + 1, np.int32)  # the last one is for null
        table[np.flatnonzero(distinct.is_valid().to_numpy(zero_copy_only=False))] = ids
        result = table[coded.indices.fill_null(len(distinct)).to_numpy()]
        if len(ids) and ids.min() < 0:
            for i in np.flatnonzero(result < 0).tolist():
                reason = f"slot {slot.name!r} holds {values[i].as_py()!r}; its ids are 0 .. {slot.rows - 2}"
                bad.setdefault(i if row_of is None else int(row_of[i]), ("id out of range", reason))
        return result

    def _ftype(self, column: pa.Array | None, num_rows: int, bad: dict) -> pa.Array:
        if column is None:
            return pa.nulls(num_rows, pa.int8())
        text = as_text(column)
        index = pc.index_in(text, pa.array(self.schema.types, pa.string()))
        absent = pc.is_in(text, pa.array([None, *_ABSENT], pa.string()))
        for i in np.flatnonzero(
            pc.and_(pc.is_null(index), pc.invert(absent)).to_numpy(zero_copy_only=False)
        ):
            known = ", ".join(self.schema.types)
            bad.setdefault(
                int(i),
                (
                    "type",
                    f"the type {text[int(i)].as_py()!r} is not one of config.prepare.types ({known})",
                ),
            )
        return index.cast(pa.int8())


def row_ids(column: pa.Array, kind: str, bad: dict[int, tuple[str, str]]) -> pa.Array:
    """A row id column as `kind`, string or int64; what is no integer goes to `bad` and becomes null."""
    if kind == "string" or pa.types.is_integer(column.type):
        return column.cast(pa.string() if kind == "string" else pa.int64())
    text = as_text(column)
    fits = pc.match_substring_regex(text, r"^-?\d{1,18}$").fill_null(True)
    for i in np.flatnonzero(~fits.to_numpy(zero_copy_only=False)).tolist():
        bad.setdefault(
            i,
            ("row id", f"the row id is {text[i].as_py()!r}; it must be an integer, as in training"),
        )
    return pc.if_else(fits, text, pa.scalar(None, pa.string())).cast(pa.int64())


def parse_numbers(column: pa.Array, name: str, bad: dict[int, tuple[str, str]]) -> np.ndarray:
    """f64[n] of text or typed numbers, NaN for missing; what is no finite float32 goes to `bad`."""
    is_text = pa.types.is_string(column.type)
    if is_text:
        column = pc.utf8_trim_whitespace(column)
    try:
        numbers = column.cast(pa.float64())
        fits = pc.is_finite(numbers).fill_null(True) if is_text else None
    except pa.ArrowInvalid:
        fits = pc.match_substring_regex(
            column, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
        ).fill_null(True)
        numbers = pc.utf8_ltrim(pc.if_else(fits, column, pa.scalar(None, pa.string())), "+").cast(
            pa.float64()
        )
    if fits is not None and not pc.all(fits, min_count=0).as_py():
        for i in np.flatnonzero(~fits.to_numpy(zero_copy_only=False)).tolist():
            bad.setdefault(i, ("number", f"{name!r} is numeric but holds {column[i].as_py()!r}"))
    numbers = numbers.fill_null(np.nan).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        for i in np.flatnonzero(np.isinf(numbers.astype(np.float32))).tolist():
            bad.setdefault(
                i, ("number", f"{name!r} holds {column[i].as_py()!r}, which is not finite")
            )
    return numbers


def transform(numbers: np.ndarray, slot: Slot) -> np.ndarray:
    """f32[n]: f64[n] raw numbers, transformed; NaN stays."""
    if slot.transform == "log1p":
        numbers = np.sign(numbers) * np.log1p(np.abs(numbers))
    elif slot.transform == "standardize":
        numbers = (numbers - slot.mean) / slot.std
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def bucket(numbers: np.ndarray, rows: int) -> np.ndarray:
    """i32[n]: x > 2: 2 + floor(ln(x)^2), at most rows - 2; 0 <= x <= 2: 1; x < 0: rows - 1; NaN: 0."""
    large = 2 + np.floor(np.log(np.where(numbers > 2, numbers, 2.0)) ** 2)
    ids = np.where(numbers > 2, np.minimum(large, rows - 2), 1)
    return np.where(np.isnan(numbers), 0, np.where(numbers < 0, rows - 1, ids)).astype(np.int32)


def cut_bags(column: pa.Array, max_length: int) -> tuple[pa.Array, np.ndarray]:
    """The first `max_length` elements of each bag, and i64[m]: the row of each element; null is an empty bag."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    if lengths.max(initial=0) > max_length:
        lengths = np.minimum(lengths, max_length)
        column = pc.list_slice(column, 0, max_length, return_fixed_size_list=False)
    return column, np.repeat(np.arange(len(column)), lengths)


def as_values(column: pa.Array) -> pa.Array:
    """A plain column as string[n]; an empty text is a missing value, as an element of a bag too."""
    text = as_text(column)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _identity(text: pa.Array, rows: int) -> np.ndarray:
    """i64[n]: k + 1, or -1 where the text is no integer in 0 .. rows - 2."""
    digits = pc.match_substring_regex(text, r"^0*\d{1,10}$")
    k = pc.if_else(digits, text, "-2").cast(pa.int64()).to_numpy()
    return np.where((k >= 0) & (k <= rows - 2), k + 1, -1)


def _label(column: pa.Array | None, num_rows: int, bad: dict) -> pa.Array:
    if column is None:
        return pa.array(np.zeros(num_rows, np.int8))
    found: dict[int, tuple[str, str]] = {}
    numbers = parse_numbers(column, "label", found)
    for i in np.flatnonzero(~np.isin(numbers, (0, 1))).tolist():
        bad.setdefault(i, ("label", f"the label is {column[i].as_py()!r}; it must be 0 or 1"))
    return pa.array(np.where(numbers == 1, 1, 0).astype(np.int8))


def _weight(column: pa.Array | None, num_rows: int, bad: dict) -> pa.Array:
    if column is None:
        return pa.array(np.ones(num_rows, np.float32))
    numbers = parse_numbers(column, "weight", bad)
    for i in np.flatnonzero(~(numbers >= 0)).tolist():
        bad.setdefault(
            i, ("weight", f"the weight is {column[i].as_py()!r}; it must be a number of at least 0")
        )
    return pa.array(np.where(numbers >= 0, numbers, 0).astype(np.float32))


def _gauc_key(column: pa.Array | None, num_rows: int) -> pa.Array:
    """i64[n]: hashes of the values; 0 where missing."""
    if column is None:
        return pa.array(np.zeros(num_rows, np.int64))
    coded = as_text(column).dictionary_encode()
    hashes = np.append(hash_values(coded.dictionary, 0).view(np.int64), 0)
    return pa.array(hashes[coded.indices.fill_null(len(coded.dictionary)).to_numpy()])


@dataclasses.dataclass(frozen=True)
class EncodedChunk:
    """Raw rows, encoded, where every row keeps its place.

    Attributes:
      table: the rows that could be encoded, with the columns of `shards.arrow_schema`.
      kept: bool[n], which of the n rows they are.
      reasons: n texts, None for a row that was kept.
      row_id: of each of the n rows: its row id (null if the row could not be split into columns), or its 0-based
        position among all rows where the recipe names no row id column.
    """

    table: pa.Table
    kept: np.ndarray
    reasons: list[str | None]
    row_id: pa.Array


def read_encoded(
    schema: Schema, directory: Path, path: Path, labelled: bool = False
) -> Iterator[EncodedChunk]:
    """Reads raw rows, of the format that the schema's recipe says, and encodes them.

    Args:
      schema: of the shards that a model was trained on.
      directory: that holds `vocabulary/`.
      path: a file, or a directory of files, in the order of their names.
      labelled: whether labels must be there; otherwise a label that is absent is 0.

    Raises:
      UserError: missing or damaged file, columns that do not fit the recipe. A bad row is no error here.
    """
    if schema.recipe["format"] not in formats.FORMATS:
        raise UserError(
            f"{path}: {schema.recipe['format']} data has no raw rows; name a directory of shards"
        )
    if not Path(path).exists():
        raise UserError(f"{path}: no such file or directory; name the rows to predict")
    encoder = Encoder(schema, load_vocabularies(schema, directory))
    position = 0
    for chunk in formats.read(schema.recipe, recipe_lib.raw_files(Path(path)), labelled):
        encoded = _keep_places(encoder, chunk, labelled, position)
        position += len(encoded.kept)
        yield encoded


def _keep_places(
    encoder: Encoder, chunk: formats.Chunk, labelled: bool, position: int
) -> EncodedChunk:
    table, bad = encoder.encode(chunk.columns, labelled)
    lines = np.concatenate([chunk.lines, np.array([b.line for b in chunk.bad], np.int64)])
    place = np.empty(
        len(lines), np.int64
    )  # place[i]: where row i of (readable rows, then bad rows) stands
    place[np.argsort(lines, kind="stable")] = np.arange(len(lines))
    reasons: list[str | None] = [None] * len(lines)
    for row, _, reason in bad:
        reasons[place[row]] = f"{chunk.file}:{chunk.lines[row]}: {reason}"
    for i, b in enumerate(chunk.bad):
        reasons[place[len(chunk.lines) + i]] = f"{chunk.file}:{b.line}: {b.reason}"
    if encoder.schema.row_id:
        own = row_ids(chunk.columns["row_id"], encoder.schema.row_id, {})
        row_id = pa.concat_arrays([own, pa.nulls(len(chunk.bad), own.type)]).take(
            pa.array(np.argsort(place))
        )
    else:
        row_id = pa.array(position + np.arange(len(lines)))
    return EncodedChunk(table, np.array([r is None for r in reasons], bool), reasons, row_id)
