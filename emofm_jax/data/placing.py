"""Which device has which row of the table, and which rows each device asks for in a step.

    s(r) = class(r) * ceil(V / K) + r // K,    class(r) = 613 r mod K,    K = 1024
    device = s // R,    its row = s mod R,    R = ceil(K ceil(V / K) / P)

The storage order s spreads neighbours, which are the frequent values of one slot, over all devices,
and does not depend on P. A device asks for each row once: `send` has what it asks of whom, `place`
where the answer of each occurrence is. Shapes are fixed: at most C rows of a device. Nothing is
dropped: more is an error. A range of s is a `Share`, which a process has, and a file of a
checkpoint. No jax here.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError

CLASSES = 1024  # K; P may be no more
_SPREAD = 613  # odd; near K times the golden ratio, so that any few neighbours are far apart
_NOWHERE = np.iinfo(np.int32).max


class Plan(NamedTuple):
    """What the devices of a process ask for; a leading axis of these devices.

    Attributes:
      send: i32[P', P, C], rows of each of P devices, as it numbers its own; R where none is asked.
      place: i32[P', M], where the row of each occurrence comes among P * C; P * C of none.
    """

    send: np.ndarray
    place: np.ndarray


@dataclasses.dataclass(frozen=True)
class Share:
    """A range, in the order of storage, of an array with an entry for each row of the table.

    Attributes:
      array: [P', R, ...], of each device of a process; what is behind the last place counts as 0.
      first: place of the first entry.
      num_rows: V, entries of the whole array.
    """

    array: Any
    first: int
    num_rows: int

    @property
    def size(self) -> int:
        """Places of the range."""
        count, rows = self.array.shape[:2]
        return max(0, min(count * rows, num_places(self.num_rows) - self.first))


def num_places(num_rows: int) -> int:
    """Places of V rows in the order of storage, whatever the number of devices."""
    return CLASSES * _stride(num_rows)


def places(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """s of rows of a table of V."""
    return (_SPREAD * rows) % CLASSES * _stride(num_rows) + rows // CLASSES


def rows_at(storage: Any, num_rows: int) -> Any:
    """Rows of a table of V that are at places s, an array; V and above where none is."""
    of_class, number = storage // _stride(num_rows), storage % _stride(num_rows)
    rows = pow(_SPREAD, -1, CLASSES) * of_class % CLASSES + CLASSES * number
    return rows + (of_class >= CLASSES) * num_rows


def _stride(num_rows: int) -> int:
    """Rows of a class."""
    return -(-num_rows // CLASSES)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The table of a schema over P devices.

    Attributes:
      schema: of the data.
      num_devices: P, at least 2.
      exchange_rows: C; 0 = as many as chance needs (`capacity`).
    """

    schema: Schema
    num_devices: int
    exchange_rows: int = 0

    @property
    def rows(self) -> int:
        """R, rows of a device."""
        return -(-num_places(self.schema.num_rows) // self.num_devices)

    def capacity(self, occurrences: int) -> int:
        """C, rows that a device may ask of another one: what M / P exceeds once in 1e9 steps."""
        mean = occurrences / self.num_devices
        enough = min(occurrences, self.rows)  # then nothing can be too much
        return min(enough, self.exchange_rows or math.ceil(mean + 6 * math.sqrt(mean) + 8))

    def scaled(self, rows: int, of: int) -> "Layout":
        """For batches of so many rows where `exchange_rows` is for those of another number."""
        more = -(-self.exchange_rows * max(rows, of) // of)
        return dataclasses.replace(self, exchange_rows=more)

    def spread(self, array: np.ndarray) -> np.ndarray:
        """[V, ...] -> [P, R, ...] in the order of storage; rows that are none are zero."""
        spread = np.zeros((self.num_devices * self.rows, *array.shape[1:]), array.dtype)
        spread[places(np.arange(len(array)), len(array))] = array
        return spread.reshape(self.num_devices, self.rows, *array.shape[1:])

    def plan(self, ids: np.ndarray) -> Plan:
        """Plans a step, i32[P', b, N] being the ids of each device of this process.

        Raises:
          UserError: a device asks more rows of another one than C.
        """
        plans = [self._plan(occurring(of_one, self.schema.vectors)) for of_one in ids]
        return Plan(*(np.stack(arrays) for arrays in zip(*plans)))

    def _plan(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`send` i32[P, C] and `place` i32[M] of one device, from the row of each occurrence."""
        count, most = self.num_devices, self.capacity(len(rows))
        encoded = pa.array(rows).dictionary_encode()
        distinct, inverse = encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
        real = distinct < self.schema.num_rows
        at = places(distinct.astype(np.int64), self.schema.num_rows)
        owner, local = np.divmod(at, self.rows)
        owner[~real] = count  # padding is asked of nobody

        # Rows in the order of their owners; the number of each among those of its owner.
        order = np.argsort(owner, kind="stable")
        sizes = np.bincount(owner, minlength=count + 1)
        number = np.empty(len(owner), np.int64)
        number[order] = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if sizes[:count].max(initial=0) > most:
            self._complain(distinct, owner, sizes, most)

        send = np.full((count, most), self.rows, np.int32)
        send[owner[real], number[real]] = local[real]
        place = np.where(real, owner * most + number, count * most).astype(np.int32)
        return send, place[inverse]

    def _complain(self, rows: np.ndarray, owner: np.ndarray, sizes: np.ndarray, most: int) -> None:
        device = int(np.argmax(sizes[: self.num_devices]))
        found = np.searchsorted(np.unique(self.schema.offsets), rows[owner == device], "right")
        first = np.unique(self.schema.offsets)[np.bincount(found).argmax() - 1]
        slot = self.schema.slots[int(np.flatnonzero(self.schema.offsets == first)[0])].name
        raise UserError(
            f"config.data.exchange_rows: a device asks {sizes[device]:,} rows of another one in a "
            f"step, most of them of slot {slot!r}, and there is room for {most:,}; set it to "
            f"{2 * sizes[device]}"
        )


def occurring(ids: np.ndarray, vectors: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """i32[M], the row of each occurrence of a batch, as `nn.embedding.read` has them, flat.

    Args:
      ids: i32[b, N], padding is V.
      vectors: `schema.vectors`; of each the rows stand behind those of all other columns.
    """
    if not vectors:
        return ids.reshape(-1)
    columns = [np.arange(column, column + length) for column, _, length in vectors]
    others = np.setdiff1d(np.arange(ids.shape[1]), np.concatenate(columns))
    rows = [ids[:, others].reshape(-1)]

    for column, first, length in vectors:
        lead, own = ids[:, column], np.arange(length + 1, dtype=np.int32)
        occurs = np.where(own == 0, (lead == first).any(), (lead == first + 1).any())
        rows.append(np.where(occurs, first + own, _NOWHERE).astype(np.int32))
    return np.concatenate(rows)
