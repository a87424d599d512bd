"""Shards -> batches of static shape: shuffled, padded, split over the devices and made ahead in a thread.

A batch is one row-wise slice of the matrix of global table rows, ids[row, column] = offset[slot] + local id;
padding (of a bag, and of the last batch) is V, one past the last row. The order of rows depends on the seed and
the epoch only, and any row of an epoch can be sought. No jax here.
"""

import concurrent.futures
import queue
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from emofm_jax.data.schema import Schema
from emofm_jax.data.shards import Split


class Batch(NamedTuple):
    """What the device gets; every array has a leading axis of P devices, b rows each.

    Attributes:
      ids: i32[P, b, N], global table rows; V = padding.
      value: f32[P, b, N], weight of each column's vector (1/len in a mean-pooled bag, the number of a numeric slot);
        None if the schema needs none.
      label: f32[P, b], 0 or 1.
      ftype: i32[P, b], interaction type, -1 if unknown.
      weight: f32[P, b], sample weight; 0 = padding.
    """

    ids: np.ndarray
    value: np.ndarray | None
    label: np.ndarray
    ftype: np.ndarray
    weight: np.ndarray


class HostBatch(NamedTuple):
    """A batch and what stays on the host.

    Attributes:
      batch: padded to the full size.
      num_rows: real rows, which stand first.
      rows_done: rows of the epoch up to and including this batch; the place to go on from.
      gauc_key: i64[num_rows] or None.
    """

    batch: Batch
    num_rows: int
    rows_done: int
    gauc_key: np.ndarray | None


class Rows(NamedTuple):
    """Decoded rows, n of them: the arrays of a Batch without a device axis, and the GAUC key."""

    ids: np.ndarray
    value: np.ndarray | None
    label: np.ndarray
    ftype: np.ndarray
    weight: np.ndarray
    gauc_key: np.ndarray | None

    def take(self, index) -> "Rows":
        """The rows at `index`, in fresh arrays."""
        return Rows(*(None if a is None else a[index] for a in self))


def to_rows(table: pa.Table, schema: Schema) -> Rows:
    """Decodes a table of `shards.arrow_schema` (label may be absent) into global ids and values."""
    n, num_columns = table.num_rows, schema.num_columns
    ids = np.empty((n, num_columns), np.int32)
    value = np.ones((n, num_columns), np.float32) if schema.has_values else None
    column = 0
    for slot, offset, width in zip(schema.slots, schema.offsets, schema.slot_widths):
        cells = table.column(slot.name)
        if slot.is_numeric:
            number = cells.to_numpy()
            missing = np.isnan(number)
            ids[:, column] = np.where(missing, offset, offset + 1)
            value[:, column] = np.where(missing, 1.0, number)
        elif slot.kind == "multi":
            ids[:, column : column + width], length = pad_bags(
                cells, width, int(offset), schema.num_rows
            )
            if slot.pooling == "mean":
                value[:, column : column + width] = (1.0 / np.maximum(length, 1)).astype(
                    np.float32
                )[:, None]
        else:
            np.add(cells.to_numpy(), offset, out=ids[:, column], casting="unsafe")
        column += width
    label, ftype, weight, key = (
        table.column(name).to_numpy(zero_copy_only=False) if name in table.column_names else None
        for name in ("label", "ftype", "weight", "gauc_key")
    )
    return Rows(
        ids,
        value,
        np.zeros(n, np.float32) if label is None else label.astype(np.float32),
        # A null type makes the column float with NaN.
        np.full(n, -1, np.int32)
        if ftype is None
        else np.nan_to_num(ftype, nan=-1).astype(np.int32),
        np.ones(n, np.float32) if weight is None else weight.astype(np.float32),
        None if key is None else key.astype(np.int64),
    )


def pad(rows: Rows, num_rows: int, num_devices: int, padding_id: int) -> Batch:
    """Pads to `num_rows` (weight 0, type unknown, ids out of range) and splits over the devices."""
    short = num_rows - len(rows.label)

    def shape(array, fill):
        if array is None:
            return None
        if short:
            array = np.concatenate([array, np.full((short, *array.shape[1:]), fill, array.dtype)])
        return array.reshape(num_devices, num_rows // num_devices, *array.shape[1:])

    return Batch(
        ids=shape(rows.ids, padding_id),
        value=shape(rows.value, 0),
        label=shape(rows.label, 0),
        ftype=shape(rows.ftype, -1),
        weight=shape(rows.weight, 0),
    )


def read(
    split: Split,
    batch_size: int,
    *,
    num_devices: int = 1,
    shuffle_rows: int = 0,
    seed: int = 0,
    epoch: int = 0,
    skip_rows: int = 0,
    window_rows: int = 1 << 17,
) -> Iterator[HostBatch]:
    """Batches of one epoch, each row exactly once; the last one is padded.

    Row groups are permuted, gathered into windows of at least `shuffle_rows` rows, and rows permuted within each
    window; the next window is decoded in a thread meanwhile.

    Args:
      split: complete split.
      batch_size: rows over all devices, a multiple of `num_devices`.
      num_devices: P, the leading axis.
      shuffle_rows: rows of a shuffling window; 0 = rows in their order.
      seed: decides the order, together with `epoch`.
      epoch: counted from 0.
      skip_rows: rows of the epoch to leave out at the start (`HostBatch.rows_done` of an earlier run).
      window_rows: rows decoded at a time when not shuffled.

    Yields:
      HostBatch, its arrays owned by the receiver.
    """
    schema = split.schema
    windows = _windows(split, shuffle_rows, seed, epoch, window_rows)
    done, first = 0, 0
    while first < len(windows) and done + windows[first][1] <= skip_rows:
        done += windows[first][1]
        first += 1
    rest, start = None, skip_rows - done
    done = skip_rows
    for number, rows in _load_ahead(split, windows, first):
        order = np.arange(len(rows.label))
        if shuffle_rows:
            order = np.random.default_rng((seed, epoch, 1, number)).permutation(order)
        order, start = order[start:], 0
        if rest is not None:
            need = batch_size - len(rest.label)
            rest = _concatenate(rest, rows.take(order[:need]))
            order = order[need:]
            if len(rest.label) < batch_size:
                continue
            done += batch_size
            yield HostBatch(
                pad(rest, batch_size, num_devices, schema.num_rows), batch_size, done, rest.gauc_key
            )
            rest = None
        whole = len(order) // batch_size * batch_size
        for at in range(0, whole, batch_size):
            part = rows.take(order[at : at + batch_size])
            done += batch_size
            yield HostBatch(
                pad(part, batch_size, num_devices, schema.num_rows), batch_size, done, part.gauc_key
            )
        if whole < len(order):
            rest = rows.take(order[whole:])
    if rest is not None:
        n = len(rest.label)
        yield HostBatch(
            pad(rest, batch_size, num_devices, schema.num_rows), n, done + n, rest.gauc_key
        )


def prefetch(items: Iterator, depth: int, transform: Callable = lambda item: item) -> Iterator:
    """Runs `items` and `transform` in a background thread, at most `depth` results ahead.

    An exception of the thread is raised where its item would have come. Closing the iterator ends the thread.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(entry) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((transform(item), None)):
                    break
            put((None, StopIteration()))
        except BaseException as error:  # handed to the consumer, whatever it is
            put((None, error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()


def _windows(
    split: Split, shuffle_rows: int, seed: int, epoch: int, window_rows: int
) -> list[tuple[list[int], int]]:
    """([row groups], rows) of each window, in the order of the epoch."""
    order = np.arange(len(split.row_groups))
    if shuffle_rows:
        order = np.random.default_rng((seed, epoch, 0)).permutation(order)
    windows, groups, rows = [], [], 0
    for group in order:
        groups.append(int(group))
        rows += split.row_groups[group][2]
        if rows >= (shuffle_rows or window_rows):
            windows.append((groups, rows))
            groups, rows = [], 0
    return windows + ([(groups, rows)] if rows else [])


def _load_ahead(split: Split, windows: list, first: int) -> Iterator[tuple[int, Rows]]:
    """(number, rows) of each window from `first` on, the next one being decoded while one is used."""
    if first >= len(windows):
        return
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(_load, split, windows[first][0])
        for number in range(first, len(windows)):
            rows = coming.result()
            if number + 1 < len(windows):
                coming = pool.submit(_load, split, windows[number + 1][0])
            yield number, rows
            del rows


def _load(split: Split, groups: list[int]) -> Rows:
    names = [slot.name for slot in split.schema.slots] + ["label"]
    names += ["ftype"] if split.schema.types else []
    names += ["weight"] if split.schema.has_weight else []
    names += ["gauc_key"] if split.schema.has_gauc_key else []
    parts = [to_rows(split.read_row_group(group, names), split.schema) for group in groups]
    return parts[0] if len(parts) == 1 else _concatenate(*parts)


def _concatenate(*parts: Rows) -> Rows:
    return Rows(*(None if arrays[0] is None else np.concatenate(arrays) for arrays in zip(*parts)))


def pad_bags(
    cells: pa.ChunkedArray | pa.ListArray, width: int, offset: int, padding_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """(i32[n, width] of ids + offset, padded with `padding_id`; lengths i64[n]) of a list column; null = empty."""
    cells = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    starts = cells.offsets.to_numpy().astype(np.int64)
    length = np.minimum(np.diff(starts), width)
    if cells.null_count:
        length = np.where(cells.is_null().to_numpy(zero_copy_only=False), 0, length)
    # `values`, not `flatten()`: offsets count from the start of the whole buffer.
    flat = cells.values.to_numpy(zero_copy_only=False)
    ids = np.full((len(length), width), padding_id, np.int32)
    inside = np.arange(width) < length[:, None]
    ids[inside] = flat[(starts[:-1, None] + np.arange(width))[inside]] + offset
    return ids, length
