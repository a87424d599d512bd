"""Rows and a trained state -> predictions of every row -> their report and prediction file.

The forward is `models.build.predict` under pmap, the metrics are exact and on the host.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict
from tqdm import tqdm

from emofm_jax import errors
from emofm_jax.data import batches, counts, files, parquet, shards
from emofm_jax.data import features as features_lib
from emofm_jax.data.raw_rows import RawRows
from emofm_jax.data.schema import Schema
from emofm_jax.data.shards import Split
from emofm_jax.errors import UserError
from emofm_jax.evaluation import split_report
from emofm_jax.training import processes
from emofm_jax.training import state as state_lib
from emofm_jax.training.build import Parts
from emofm_jax.training.state import PlacedBatch, TrainState

_T = TypeVar("_T")
_WRITE_ROWS = 1 << 18  # rows of a prediction file that are put together at a time


class Predictions(NamedTuple):
    """An entry per row of a split, or of raw rows, in their order; n rows, T types.

    None where the model or schema has no such thing.
    """

    label: np.ndarray  # i8[n]
    ftype: np.ndarray  # i8[n], -1 unknown
    weight: np.ndarray | None  # f32[n]
    gauc_key: np.ndarray | None  # i64[n]
    p: np.ndarray  # f32[n], p(y = 1 | x), the type unknown
    logit: np.ndarray  # f32[n]
    p_std: np.ndarray | None  # f32[n], standard deviation of the members' p
    p_type: np.ndarray | None  # f32[n, T], p(t | x) of the auxiliary model
    p_given_type: np.ndarray | None  # f32[n, T], p(y = 1 | x, t)
    unknown: dict[str, float]  # {slot: share of its values that are missing or unknown}


def score(
    config: ConfigDict, rows: Split | RawRows, parts: Parts, state: TrainState
) -> tuple[Predictions, split_report.SplitReport]:
    """Predictions of a split, or of those raw rows that can be read, and their report.

    Raises:
      UserError: no raw row can be read, or a score is not finite.
    """
    size = config.data.eval_batch_size
    if isinstance(rows, Split):
        found = predict_split(parts, state, rows, size)
        return found, _agreed(lambda: _report(found, rows.schema, read_truth(rows)))

    source = batches.gather(iter(rows), size, parts.num_devices, rows.schema)
    found = _predict(parts, state, source, rows.schema, rows.name)
    made, notes = _report(found, rows.schema, None), []
    if rows.rejected:
        left_out = f"{len(rows.rejected):,} of {rows.num_read:,} rows could not be read"
        notes = [f"{left_out} and are left out; the first: {rows.rejected[0][1]}"]
    notes += [*counts.said_of_all(rows.notes), *made.notes]
    return found, dataclasses.replace(made, rejected=len(rows.rejected), notes=notes)


def _agreed(make: Callable[[], split_report.SplitReport]) -> split_report.SplitReport:
    """A report as process 0 makes it: all go by the same figures, whatever machines they are on."""
    if processes.count() == 1:
        return make()
    made = make().to_json() if processes.is_first() else None
    return split_report.SplitReport.from_json(processes.gather(made)[0])


@jax.enable_x64(False)
def predict_split(parts: Parts, state: TrainState, split: Split, batch_size: int) -> Predictions:
    """Scores every row of a split, `batch_size` rows over all devices at a time.

    Raises:
      UserError: a score is not finite; fewer or more rows than were counted.
    """
    source = batches.read(split, batch_size, num_devices=parts.num_devices)
    found = _predict(parts, state, source, split.schema, str(split.path), split.num_rows)
    if (read := len(found.label)) != split.num_rows:
        counted = f"{read} rows were read where _SUCCESS counts {split.num_rows}"
        raise UserError(f"{split.path}: {counted}; prepare again")
    return found


def _predict(
    parts: Parts,
    state: TrainState,
    source: Iterator[batches.HostBatch],
    schema: Schema,
    name: str,
    num_rows: int = 0,
) -> Predictions:
    """Scores the rows of batches: `num_rows` of them, as far as that is known."""
    optional = {"weight": schema.has_weight, "gauc_key": schema.has_gauc_key}
    known = ["label", "ftype", *(name for name, there in optional.items() if there)]
    dtypes = {"label": np.int8, "ftype": np.int8, "gauc_key": np.int64}
    names = ("p", "logit", *known)
    out = {name: np.empty(num_rows, dtypes.get(name, np.float32)) for name in names}
    unknown = features_lib.UnknownCounter(schema)

    def put(host: batches.HostBatch) -> tuple[batches.HostBatch, PlacedBatch]:
        unknown.add_ids(host.rows.ids)
        return host, state_lib.put_planned(host.batch, parts.devices, parts.scoring_layout)

    placed = batches.prefetch(source, 2, put)
    weights = state.scored()
    scored = ((h, parts.eval_step(*weights, batch)) for h, batch in placed)
    look: dict[str, Any] = {"unit": " rows", "unit_scale": True, "leave": False}
    look |= {
        "desc": f"  {Path(name).name}",
        "disable": not (processes.is_first() and sys.stderr.isatty()),
    }

    done = 0
    with tqdm(total=num_rows or None, **look) as bar:
        for host, scores in _one_behind(scored):  # fetched while the next step runs
            rows = slice(done, done + host.num_rows)
            found = {name: _by_row(array) for name, array in jax.device_get(scores).items()}
            found |= {key: getattr(host.rows, key) for key in known}
            _put_rows(out, rows, found)
            done = rows.stop
            bar.update(host.num_rows)

    out = {key: array[:done] for key, array in out.items()}
    finite = np.isfinite(out["logit"])
    if not finite.all():
        raise UserError(
            f"{name}: the score of row {int(np.argmin(finite))} is not finite; lower the "
            "learning rate and train again"
        )
    columns: dict[str, Any] = {name: out.get(name) for name in Predictions._fields}
    return Predictions(**columns | {"unknown": unknown.shares()})


def _put_rows(out: dict[str, np.ndarray], rows: slice, found: Mapping[str, np.ndarray]) -> None:
    """Writes what is known of rows, and of the padding behind them, to their places in `out`."""
    for key in found.keys() - out.keys():  # of a typed model
        out[key] = np.empty((len(out["p"]), *found[key].shape[1:]), np.float32)
    _make_room(out, rows.stop)
    for key, array in found.items():
        out[key][rows] = array[: rows.stop - rows.start]


def _make_room(arrays: dict[str, np.ndarray], num_rows: int) -> None:
    """Lets the arrays hold so many rows; what they hold stays."""
    for array in arrays.values():
        if len(array) < num_rows:
            array.resize((max(num_rows, 2 * len(array)), *array.shape[1:]), refcheck=False)


def _one_behind(items: Iterable[_T]) -> Iterator[_T]:
    """The items, each handed on when the next is there."""
    before = None
    for item in items:
        if before is not None:
            yield before
        before = item
    if before is not None:
        yield before


def _by_row(array: np.ndarray) -> np.ndarray:
    """[P, b, ...] -> [P * b, ...]."""
    return array.reshape(-1, *array.shape[2:])


@jax.enable_x64(False)
def score_rows(parts: Parts, state: TrainState, rows: batches.Rows, batch_size: int) -> dict:
    """Scores decoded rows, `batch_size` at a time.

    Returns:
      {"p": f32[n], "logit": f32[n]}; of typed models also "p_type", "p_given_type" f32[n, T]; with
      members "p_std" f32[n].

    Raises:
      UserError: a score is not finite.
    """
    n, found = len(rows.label), []
    for start in range(0, max(n, 1), batch_size):
        part = rows.take(slice(start, start + batch_size))
        batch = batches.pad(part, batch_size, len(parts.devices), parts.schema.num_rows)
        placed = state_lib.put_planned(batch, parts.devices, parts.scoring_layout)
        found.append(parts.eval_step(*state.scored(), placed))
    found = jax.device_get(found)

    scores = {k: np.concatenate([_by_row(x[k]) for x in found])[:n] for k in found[0]}
    if not np.isfinite(scores["logit"]).all():
        raise UserError(
            "a score is not finite: the run has diverged; lower its learning rate and train again"
        )
    return scores


def read_truth(split: Split) -> dict[str, np.ndarray] | None:
    """p f64[n], p_type and p_given_type f64[n, T], the truth of a synthetic split; else None."""
    path = split.path / "truth.parquet"
    if not path.exists():
        split.check()
        if not path.exists():  # not even now, that the data are known to be in their place
            return None
    try:
        with parquet.open_file(path) as file:
            digest, table = shards.digest_in(file.metadata), file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: not there any more; {shards.ANEW}") from None
    except (pa.ArrowException, OSError) as error:
        damage = f"{path}: cannot be read ({error}); prepare again"
        raise errors.unreadable(path, error, damage) from None

    if digest != split.digest:
        raise UserError(f"{path}: not of the rows that were scored; {shards.ANEW}")
    if table.num_rows != split.num_rows:
        raise UserError(
            f"{path}: {table.num_rows} rows where the split has {split.num_rows}; prepare again"
        )
    truth = {"p": table["p"].to_numpy()}
    for name in {"p_type", "p_given_type"} & set(table.column_names):
        truth[name] = table[name].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    return truth


def _report(
    predictions: Predictions, schema: Schema, truth: dict[str, np.ndarray] | None
) -> split_report.SplitReport:
    """The rows' part of metrics.json; `unknown` is of the data alone."""
    found = split_report.make(
        predictions.label,
        predictions.p,
        logit=predictions.logit,
        ftype=predictions.ftype,
        weight=predictions.weight,
        key=predictions.gauc_key,
        p_type=predictions.p_type,
        p_given_type=predictions.p_given_type,
        type_names=schema.types,
        truth=truth,
    )
    return dataclasses.replace(found, unknown=predictions.unknown)


def write_predictions(path: Path, predictions: Predictions, rows: Any = None) -> None:
    """Writes what there is of row, row_id, label, ftype, weight, gauc_key, logit, p, p_std, ..

    Every metric of the rows can be computed from the file alone.

    Args:
      path: of the Parquet file.
      predictions: of the rows.
      rows: raw ones have positions of their own, and ids; of a split `row` is the position in it.
    """
    files.make_directory(path.parent)
    table = functools.partial(_table, predictions)
    is_raw = isinstance(rows, RawRows)
    row = rows.positions if is_raw else np.arange(len(predictions.p))
    row_id = rows.row_id if is_raw else None
    schema = table(slice(0, 0), row, row_id).schema

    with (
        files.whole(path) as temporary,
        parquet.Writer(temporary, schema) as writer,
    ):
        for start in range(0, max(len(predictions.p), 1), _WRITE_ROWS):
            writer.write(table(slice(start, start + _WRITE_ROWS), row, row_id))


def _table(
    predictions: Predictions, rows: slice, row: np.ndarray, row_id: pa.ChunkedArray | None
) -> pa.Table:
    columns = {"row": row[rows]}
    if row_id is not None:
        columns["row_id"] = row_id.slice(rows.start, rows.stop - rows.start)
    for name in ("label", "ftype", "weight", "gauc_key", "logit", "p", "p_std"):
        if (array := getattr(predictions, name)) is not None:
            columns[name] = array[rows]

    for name in ("p_type", "p_given_type"):
        if (array := getattr(predictions, name)) is not None:
            flat = array[rows].reshape(-1)
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    return pa.table(columns)
