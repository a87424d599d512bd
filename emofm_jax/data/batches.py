"""Shards -> batches of static shape: shuffled, padded, split over devices, made ahead in a thread.

A batch is one row-wise slice of the matrix of global table rows, ids[row, column] = offset[slot] +
local id; padding (of a bag, and of the last batch) is V, one past the last row. The order of rows
depends on the seed and the epoch only, and any row of an epoch can be sought. No jax here.
"""

import collections
import concurrent.futures
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from emofm_jax.data import engines, placing, shards
from emofm_jax.data import features as features_lib
from emofm_jax.data.schema import Schema
from emofm_jax.data.shards import Split


class Batch(NamedTuple):
    """What the device gets; every array has a leading axis of P devices, b rows each.

    Attributes:
      ids: i32[P, b, N], global table rows; V = padding.
      value: f32[P, b, N], weight of each column's vector (1/len in a mean-pooled bag, a weight of
        a weighted one, the number of a numeric slot, each number of a vector); None if the schema
        needs none.
      label: f32[P, b], 0 or 1.
      ftype: i32[P, b], interaction type, -1 if unknown.
      weight: f32[P, b], sample weight; 0 = padding.
      stop: i32[P], 1 where a process was asked to stop; None if there is one process.
      plan: which rows of the table each device asks of whom; None if there is one device.
    """

    ids: np.ndarray
    value: np.ndarray | None
    label: np.ndarray
    ftype: np.ndarray
    weight: np.ndarray
    stop: np.ndarray | None = None
    plan: placing.Plan | None = None


class Rows(NamedTuple):
    """Decoded rows, n of them: the arrays of a Batch without the axis of devices; a GAUC key."""

    ids: np.ndarray
    value: np.ndarray | None
    label: np.ndarray
    ftype: np.ndarray
    weight: np.ndarray
    gauc_key: np.ndarray | None

    def take(self, index: np.ndarray | slice) -> "Rows":
        """The rows at `index`, in fresh arrays where it is an array."""
        taken: list[Any] = [None if a is None else a[index] for a in self]
        return Rows(*taken)


class HostBatch(NamedTuple):
    """A batch and what stays on the host.

    Attributes:
      batch: `rows`, padded to the full size.
      rows: as many as there are.
      rows_done: rows of the epoch up to and including this batch, of all processes; the place to
        go on from.
    """

    batch: Batch
    rows: Rows
    rows_done: int

    @property
    def num_rows(self) -> int:
        """Real rows, which stand first in the batch."""
        return len(self.rows.label)


def to_rows(table: pa.Table, schema: Schema) -> Rows:
    """Decodes a table of `shards.arrow_schema` (label may be absent) into global ids and values."""
    n, start = table.num_rows, 0
    ids = np.empty((n, schema.num_columns), np.int32)
    value = np.ones(ids.shape, np.float32) if schema.has_values else None
    for slot, offset in zip(schema.slots, schema.offsets.tolist()):
        features = features_lib.of_column(table[slot.name], slot)
        columns = slice(start, start + slot.width)
        start = columns.stop
        local = features_lib.local_ids(features, slot, np)
        ids[:, columns] = local + offset
        if slot.is_bag or slot.is_vector:
            ids[:, columns][local < 0] = schema.num_rows
        if value is not None and slot.has_values:
            value[:, columns] = features_lib.values(features, slot, np)

    def role(name: str, default: int, dtype: type) -> np.ndarray:
        if name not in table.column_names:
            return np.full(n, default, dtype)
        return table[name].fill_null(default).to_numpy().astype(dtype)

    has_key = "gauc_key" in table.column_names
    return Rows(
        ids,
        value,
        label=role("label", 0, np.float32),
        ftype=role("ftype", -1, np.int32),
        weight=role("weight", 1, np.float32),
        gauc_key=role("gauc_key", 0, np.int64) if has_key else None,
    )


def concatenate(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, one part after the other."""
    joined: list[Any] = [None if a[0] is None else np.concatenate(a) for a in zip(*parts)]
    return Rows(*joined)


def pad(rows: Rows, num_rows: int, num_devices: int, padding_id: int) -> Batch:
    """Pads to `num_rows` (weight 0, type unknown, ids out of range) and splits over the devices."""
    short = num_rows - len(rows.label)

    def shape(array: np.ndarray, fill: int) -> np.ndarray:
        if short:
            array = np.concatenate([array, np.full((short, *array.shape[1:]), fill, array.dtype)])
        return array.reshape(num_devices, num_rows // num_devices, *array.shape[1:])

    return Batch(
        ids=shape(rows.ids, padding_id),
        value=None if rows.value is None else shape(rows.value, 0),
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
    num_epochs: int = 1,
    skip_rows: int = 0,
    window_rows: int = 1 << 17,
    process: tuple[int, int] = (0, 1),
) -> Iterator[HostBatch]:
    """Batches of some epochs, in each every row exactly once; the last one of each is padded.

    Row groups are permuted and gathered into windows of at least `shuffle_rows` rows; rows are
    permuted within each window. The next windows, of the next epoch too, are decoded in threads
    meanwhile.

    Process i of n takes every n-th row group of the permutation, and B / n rows a step. All yield
    as many batches: one that has run out of rows yields padding.

    Args:
      split: complete split.
      batch_size: rows over all devices of all processes, a multiple of their number.
      num_devices: of this process, the leading axis.
      shuffle_rows: rows of a shuffling window; 0 = rows in their order.
      seed: decides the order, together with the epoch.
      epoch: the first one, counted from 0.
      num_epochs: that follow each other.
      skip_rows: rows to leave out at the start (`HostBatch.rows_done` of an earlier run).
      window_rows: rows decoded at a time when not shuffled.
      process: (i, n).

    Yields:
      HostBatch, its arrays owned by the receiver.
    """
    seeds = lambda epoch: (seed, epoch) if shuffle_rows else None
    how = (batch_size, shuffle_rows or window_rows, process)
    epochs = range(epoch, epoch + num_epochs)
    plans = (_Plan.make(split, *how, seeds(e), skip_rows if e == epoch else 0) for e in epochs)
    plans, ahead = itertools.tee(plans)
    loaded = _load_ahead(split, (window for plan in ahead for window in plan.windows[plan.first :]))

    for plan in plans:
        cut = _cut(plan.ordered(loaded), plan.steps.size)
        if process[1] == 1:
            yield from _batches(cut, batch_size, num_devices, split.schema, plan.done)
            continue
        nothing = to_rows(shards.arrow_schema(split.schema).empty_table(), split.schema)
        for step in range(plan.taken, plan.steps.total):
            rows = next(cut, nothing)
            batch = pad(rows, plan.steps.size, num_devices, split.schema.num_rows)
            yield HostBatch(batch, rows, plan.steps.rows_done(step + 1))


def num_steps(
    split: Split,
    batch_size: int,
    *,
    num_processes: int = 1,
    seed: int | None,
    epoch: int,
    rows_done: int = 0,
) -> int:
    """Steps that `read` makes of an epoch, or of its rest: those of the process with the most rows.

    Args:
      split: complete split.
      batch_size: rows over all devices of all processes.
      num_processes: that share the epoch.
      seed: of the order of rows; None: as they stand.
      epoch: counted from 0.
      rows_done: of all processes, after which the rest begins.
    """
    order = _order(split, None if seed is None else np.random.default_rng((seed, epoch, 0)))
    steps = _Steps.make(split, order, batch_size, num_processes)
    return steps.total - steps.taken(rows_done)


def gather(
    pieces: Iterator[Rows], batch_size: int, num_devices: int, schema: Schema
) -> Iterator[HostBatch]:
    """Batches of rows that come in pieces of any size, in their order; the last one is padded."""
    whole = ((rows, np.arange(len(rows.label))) for rows in pieces)
    yield from _batches(_cut(whole, batch_size), batch_size, num_devices, schema, 0)


def _batches(
    cut: Iterator[Rows], batch_size: int, num_devices: int, schema: Schema, done: int
) -> Iterator[HostBatch]:
    for rows in cut:
        done += len(rows.label)
        yield HostBatch(pad(rows, batch_size, num_devices, schema.num_rows), rows, done)


def prefetch(items: Iterator, depth: int, transform: Callable = lambda item: item) -> Generator:
    """Runs `items` and `transform` in a background thread, at most `depth` results ahead.

    An exception of the thread is raised where its item would have come. Closing the iterator ends
    the thread.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(entry: tuple[Any, BaseException | None]) -> bool:
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


class _Steps(NamedTuple):
    """The steps of an epoch: the rows of each process, and how many each takes a step."""

    rows: list[int]
    size: int

    @classmethod
    def make(cls, split: Split, order: Sequence[int], batch_size: int, count: int) -> "_Steps":
        """Of `count` processes that share the row groups in this order."""
        rows = lambda groups: sum(split.row_groups[group].rows for group in groups)
        return cls([rows(order[i::count]) for i in range(count)], batch_size // count)

    @property
    def total(self) -> int:
        """Those of the process with the most rows."""
        return -(-max(self.rows) // self.size)

    def rows_done(self, steps: int) -> int:
        """Rows of all processes after so many steps."""
        return sum(min(steps * self.size, rows) for rows in self.rows)

    def taken(self, rows_done: int) -> int:
        """Steps after which so many rows were done."""
        return next(k for k in range(self.total + 1) if self.rows_done(k) >= rows_done)


class _Window(NamedTuple):
    """Row groups that are decoded together, and their rows."""

    groups: list[int]
    num_rows: int


class _Plan(NamedTuple):
    """What a process reads of an epoch, and where it begins."""

    steps: _Steps
    windows: list[_Window]
    first: int  # window
    start: int  # rows of it that are left out
    done: int  # rows of all processes
    taken: int  # steps that this makes of several processes
    seeds: tuple[int, ...] | None  # of the order of the rows in a window; None: as they stand

    @classmethod
    def make(
        cls,
        split: Split,
        batch_size: int,
        min_rows: int,
        process: tuple[int, int],
        seeds: tuple[int, int] | None,
        skip_rows: int,
    ) -> "_Plan":
        """Of an epoch, `skip_rows` of which are done (`read`)."""
        (index, count), place, taken = process, (1,), 0
        order = _order(split, None if seeds is None else np.random.default_rng((*seeds, 0)))
        steps = _Steps.make(split, order, batch_size, count)
        start = skip_rows  # one process goes on after any row, with batches of another size too
        if count > 1:
            order, place = order[index::count], (1, index)
            taken = steps.taken(skip_rows)
            start = min(taken * steps.size, steps.rows[index])

        windows, first = _windows(split, order, min_rows), 0
        while first < len(windows) and windows[first].num_rows <= start:
            start -= windows[first].num_rows
            first += 1
        return cls(steps, windows, first, start, skip_rows, taken, seeds and (*seeds, *place))

    def ordered(self, loaded: Iterator[Rows]) -> Iterator[tuple[Rows, np.ndarray]]:
        """The windows, and which of their rows come in which order."""
        for number in range(self.first, len(self.windows)):
            rows = next(loaded)
            order = np.arange(len(rows.label))
            if self.seeds is not None:
                order = np.random.default_rng((*self.seeds, number)).permutation(order)
            yield rows, order[self.start :] if number == self.first else order
            del rows


def _order(split: Split, rng: np.random.Generator | None) -> list[int]:
    """All row groups: permuted, or without `rng` in the order of the files."""
    order = np.arange(len(split.row_groups))
    return (order if rng is None else rng.permutation(order)).tolist()


def _windows(split: Split, order: Sequence[int], min_rows: int) -> list[_Window]:
    """Row groups in an order, gathered into windows."""
    windows, groups, num_rows = [], [], 0
    for group in order:
        groups.append(group)
        num_rows += split.row_groups[group].rows
        if num_rows >= min_rows:
            windows.append(_Window(groups, num_rows))
            groups, num_rows = [], 0
    return windows + ([_Window(groups, num_rows)] if num_rows else [])


def _load_ahead(split: Split, windows: Iterator[_Window]) -> Iterator[Rows]:
    """The rows of each window; the next ones are decoded while one is used."""
    # A thread decodes a million rows of 64 columns a second: enough for a CPU, not for a GPU.
    threads = max(1, min(4, engines.num_cores() // 2))
    pool, coming = concurrent.futures.ThreadPoolExecutor(threads), collections.deque()
    try:
        for window in itertools.islice(windows, threads):
            coming.append(pool.submit(_load, split, window))
        while coming:
            rows = coming.popleft().result()
            for window in itertools.islice(windows, 1):
                coming.append(pool.submit(_load, split, window))
            yield rows
            del rows
    finally:
        pool.shutdown(cancel_futures=True)


def _load(split: Split, window: _Window) -> Rows:
    names = [name for name in shards.columns(split.schema) if name != "row_id"]
    tables = [split.read_row_group(group, names) for group in window.groups]
    return to_rows(pa.concat_tables(tables), split.schema)


def _cut(windows: Iterator[tuple[Rows, np.ndarray]], batch_size: int) -> Iterator[Rows]:
    """The rows at the indices of windows, `batch_size` at a time; the last ones may be fewer."""
    rest: Rows | None = None
    for rows, order in windows:
        if rest is not None:
            need = batch_size - len(rest.label)
            rest = concatenate([rest, rows.take(order[:need])])
            order = order[need:]
            if len(rest.label) < batch_size:
                continue
            yield rest
        whole = len(order) // batch_size * batch_size
        for at in range(0, whole, batch_size):
            yield rows.take(order[at : at + batch_size])
        rest = rows.take(order[whole:]) if whole < len(order) else None
    if rest is not None:
        yield rest
