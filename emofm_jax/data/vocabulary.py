"""Values and their ids: the hash of every value, and the counted vocabulary of a slot.

    id = 1 .. n by falling count in the train split (equal counts: by value); 0 for a value that is
    missing, unknown or rarer than min_count

Of a vocabulary that goes on from another (`growth`) the ids of that stay, and the new values follow
by their counts. Rarer values are kept beside it, with their counts, in `rare/`.

A value is text (`values`). Memory grows with the number of distinct values, not of rows.
"""

import functools
import itertools
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from emofm_jax import errors
from emofm_jax.data import files, parquet
from emofm_jax.errors import UserError

_MERGE_ROWS = 1 << 20
_LONGEST = 200  # bytes of a name; systems take 255, of which a temporary name needs some
_RARE = "rare"  # directory of values that have no id yet
_BESIDE = b"emofm_jax.vocabulary"  # key of their metadata: the digest of the vocabulary
_SCHEMA = pa.schema([("value", pa.string()), ("count", pa.int64()), ("seen", pa.int32())])


def hash_values(values: pa.Array, seed: int) -> np.ndarray:
    """u64[n]: xxh3_64 of the UTF-8 bytes of string[n], no nulls."""
    texts = values.cast(pa.binary()).to_pylist()
    digests = map(xxhash.xxh3_64_intdigest, texts, itertools.repeat(seed))
    return np.fromiter(digests, np.uint64, len(texts))


class Vocabulary:
    """The values of one slot (and of those that share its rows), in the order of their ids.

    Attributes:
      values: string[n]; `values[i]` has the id i + 1.
      counts: int64[n], occurrences in the train split, and in those of its bases.
      seen: int32[n], number of the last day on which each was seen, as `Schema.days` has them; None
        if all were on the last one.
    """

    def __init__(self, values: pa.Array, counts: pa.Array, seen: pa.Array | None = None):
        self.values, self.counts, self.seen = values, counts, seen

    @property
    def rows(self) -> int:
        """Table rows that the slot needs: its values and row 0."""
        return len(self.values) + 1

    def digest(self) -> str:
        """16 hex digits of the values in their order."""
        state = xxhash.xxh3_64()
        for piece in self._pieces():
            state.update(pc.binary_length(piece).to_numpy().astype("<i4").tobytes())
            state.update("".join(piece.to_pylist()).encode())
        return state.hexdigest()

    def ids(self, values: pa.Array) -> np.ndarray:
        """Ids of values.

        Args:
          values: string[n], no nulls; fastest when they are distinct.

        Returns:
          i32[n], 0 for a value that is not in the vocabulary.
        """
        if not len(self.values) or not len(values):
            return np.zeros(len(values), np.int32)

        seed, hashes, order = self._index
        at = np.searchsorted(hashes, hash_values(values, seed))
        rows = order[np.minimum(at, len(order) - 1)]
        # Equal hashes are not yet equal values.
        same = pc.equal(self.values.take(pa.array(rows)), values).to_numpy(zero_copy_only=False)
        return np.where(same, rows + 1, 0).astype(np.int32)

    def save(self, directory: Path, slot: str) -> None:
        """Writes `<directory>/vocabulary/<slot>.parquet`."""
        path = _path(directory, slot)
        files.make_directory(path.parent)
        with files.whole(path) as temporary:
            found = table(self.values, self.counts, self.on_day(0).seen)
            parquet.write(found if self.seen is not None else found.drop(["seen"]), temporary)

    def on_day(self, day: int) -> "Vocabulary":
        """The vocabulary with `seen`, which is the number of the day where it is not known."""
        if self.seen is not None:
            return self
        return Vocabulary(
            self.values, self.counts, pa.array(np.full(len(self.values), day, np.int32))
        )

    @functools.cached_property
    def _index(self) -> tuple[int, np.ndarray, np.ndarray]:
        """(seed, sorted hashes, index of the value of each): 12 bytes a value; a dict takes 150."""
        seed = 0
        while True:
            hashes = np.concatenate([hash_values(piece, seed) for piece in self._pieces()])
            order = np.argsort(hashes)
            hashes = hashes[order]
            # Where two values collide, another seed parts them.
            if (hashes[1:] != hashes[:-1]).all():
                return seed, hashes, order.astype(np.int32)
            seed += 1

    def _pieces(self) -> Iterator[pa.Array]:
        starts = range(0, len(self.values), _MERGE_ROWS)
        return (self.values.slice(start, _MERGE_ROWS) for start in starts)


def load(directory: Path, slot: str, digest: str = "") -> Vocabulary:
    """Reads the vocabulary that `save` wrote.

    Args:
      directory: of the shards, or of a run.
      slot: that owns the table rows.
      digest: that the vocabulary must have; empty if that is not known.

    Raises:
      UserError: the file is missing or damaged, or of another preparation.
      FileError: the system cannot read it.
    """
    path = _path(directory, slot)
    try:
        found = _vocabulary(parquet.open_file(path).read())
    except FileNotFoundError:
        problem = f"the vocabulary of slot {slot!r} is missing"
        raise UserError(f"{path}: {problem}; prepare the data again") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        damage = f"{path}: it cannot be read ({error}); prepare the data again"
        raise errors.unreadable(path, error, damage) from None

    if digest and found.digest() != digest:
        what = f"its values have the digest {found.digest()}, those of the schema {digest}"
        raise UserError(f"{path}: {what}; use the files of one preparation, or start again")
    return found


def save_rare(directory: Path, slot: str, rare: pa.Table, digest: str) -> None:
    """Writes `<directory>/rare/<slot>.parquet`: value, count, seen of what has no id yet.

    Args:
      directory: of the shards, or of a run.
      slot: that owns the table rows.
      rare: columns value, count, seen.
      digest: of the vocabulary beside it.
    """
    path = _path(directory, slot, _RARE)
    files.make_directory(path.parent)
    with files.whole(path) as temporary:
        parquet.write(rare.replace_schema_metadata({_BESIDE: digest.encode()}), temporary)


def load_rare(directory: Path, slot: str, digest: str) -> pa.Table | None:
    """Reads what `save_rare` wrote; None where nothing was kept.

    Raises:
      UserError: the file is damaged, or stands beside another vocabulary than it was written with.
    """
    path = _path(directory, slot, _RARE)
    try:
        found = parquet.read(path, None, "prepare the data again")
    except FileNotFoundError:
        return None

    beside = (found.schema.metadata or {}).get(_BESIDE, b"").decode(errors="replace")
    if beside != digest:
        what = f"it belongs to a vocabulary of digest {beside}, not {digest}"
        raise UserError(f"{path}: {what}; use the files of one preparation")
    return found


class Counter:
    """Counts distinct values in memory that grows with their number only."""

    def __init__(self) -> None:
        self._merged = _counts([], [])
        self._pending: list[pa.Table] = []
        self._pending_rows = 0

    def add(self, values: pa.Array, counts: np.ndarray) -> None:
        """Counts string[n], each as often as `counts` says; nulls are no values."""
        known = values.is_valid()
        counted = pa.array(counts, pa.int64()).filter(known)
        self._pending.append(_counts(values.drop_null(), counted))
        self._pending_rows += len(counted)
        if self._pending_rows > max(_MERGE_ROWS, self._merged.num_rows):
            self._merge()

    def counts(self) -> pa.Table:
        """Columns value, count: all values, in no order."""
        self._merge()
        return self._merged

    def _merge(self) -> None:
        rows = pa.concat_tables([self._merged, *self._pending])
        grouped = rows.group_by("value", use_threads=False).aggregate([("count", "sum")])
        self._merged = _counts(grouped["value"], grouped["count_sum"])
        self._pending, self._pending_rows = [], 0


def table(values: Any, counts: Any, seen: Any) -> pa.Table:
    """Columns value, count, seen."""
    return pa.table([values, counts, seen], schema=_SCHEMA)


def _vocabulary(found: pa.Table) -> Vocabulary:
    """A vocabulary from its columns."""
    seen = found["seen"].combine_chunks() if "seen" in found.column_names else None
    return Vocabulary(found["value"].combine_chunks(), found["count"].combine_chunks(), seen)


def _path(directory: Path, slot: str, place: str = "vocabulary") -> Path:
    """The file of a slot; of a name that is too long for one, its beginning and its hash."""
    name, parent = urllib.parse.quote(slot, safe=" "), Path(directory) / place
    plain = parent / f"{name}.parquet"
    if len(name) <= _LONGEST or os.path.exists(plain):  # release 0.1 wrote some that are longer
        return plain
    return parent / f"{name[: _LONGEST - 17]}-{xxhash.xxh3_64_hexdigest(slot.encode())}.parquet"


def _counts(values: pa.Array | list, counts: pa.Array | list) -> pa.Table:
    return pa.table([values, counts], schema=_SCHEMA.remove(2))
