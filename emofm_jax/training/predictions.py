"""A split and a trained state -> predictions of every row -> its report and its prediction file.

The forward is `models.build.predict` under pmap, the metrics are exact and on the host.
"""

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict
from tqdm import tqdm

from emofm_jax.data import batches, files
from emofm_jax.data import features as features_lib
from emofm_jax.data.shards import Split
from emofm_jax.errors import UserError
from emofm_jax.evaluation import split_report
from emofm_jax.training import state as state_lib
from emofm_jax.training.build import Parts
from emofm_jax.training.state import PlacedBatch, TrainState

_T = TypeVar("_T")
_WRITE_ROWS = 1 << 18  # rows of a prediction file that are put together at a time


class Predictions(NamedTuple):
    """An entry per row of a split, in its order; n rows, T types.

    None where the model or schema has no such thing.
    """

    label: np.ndarray  # i8[n]
    ftype: np.ndarray  # i8[n], -1 unknown
    weight: np.ndarray | None  # f32[n]
    gauc_key: np.ndarray | None  # i64[n]
    p: np.ndarray  # f32[n], p(y = 1 | x), the type unknown
    logit: np.ndarray  # f32[n]
    p_type: np.ndarray | None  # f32[n, T], p(t | x) of the auxiliary model
    p_given_type: np.ndarray | None  # f32[n, T], p(y = 1 | x, t)
    unknown: dict[str, float]  # {slot: share of its values that are missing or unknown}


def score(
    config: ConfigDict, split: Split, parts: Parts, state: TrainState
) -> tuple[Predictions, split_report.SplitReport]:
    """Predictions of a split, and their report."""
    found = predict_split(parts, state, split, config.data.eval_batch_size)
    return found, report(found, split)


def predict_split(parts: Parts, state: TrainState, split: Split, batch_size: int) -> Predictions:
    """Scores every row of a split, `batch_size` rows over all devices at a time.

    Raises:
      UserError: a score is not finite.
    """
    n, schema, devices = split.num_rows, split.schema, parts.devices
    optional = {"weight": schema.has_weight, "gauc_key": schema.has_gauc_key}
    known = ["label", "ftype", *(name for name, there in optional.items() if there)]
    dtypes = {"label": np.int8, "ftype": np.int8, "gauc_key": np.int64}
    out = {name: np.empty(n, dtypes.get(name, np.float32)) for name in ("p", "logit", *known)}
    unknown = features_lib.UnknownCounter(schema)

    def put(host: batches.HostBatch) -> tuple[batches.HostBatch, PlacedBatch]:
        unknown.add_ids(host.rows.ids)
        return host, state_lib.put_batch(host.batch, devices)

    source = batches.prefetch(batches.read(split, batch_size, num_devices=len(devices)), 2, put)
    scored = ((h, parts.eval_step(state.params, state.stats, batch)) for h, batch in source)
    look: dict[str, Any] = {"unit": " rows", "unit_scale": True, "leave": False}
    look |= {"desc": f"  {split.path.name}", "disable": not sys.stderr.isatty()}

    done = 0
    with tqdm(total=n, **look) as bar:
        for host, scores in _one_behind(scored):  # fetched while the next step runs
            rows = slice(done, done + host.num_rows)
            for name in known:
                out[name][rows] = getattr(host.rows, name)
            for name, array in jax.device_get(scores).items():
                if name not in out:  # of a typed model
                    out[name] = np.empty((n, *array.shape[2:]), np.float32)
                out[name][rows] = _by_row(array)[: host.num_rows]
            done = rows.stop
            bar.update(host.num_rows)

    finite = np.isfinite(out["logit"])
    if not finite.all():
        raise UserError(
            f"{split.path}: the score of row {int(np.argmin(finite))} is not finite; lower the "
            "learning rate and train again"
        )
    columns: dict[str, Any] = {name: out.get(name) for name in Predictions._fields}
    return Predictions(**columns | {"unknown": unknown.shares()})


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


def score_rows(parts: Parts, state: TrainState, rows: batches.Rows, batch_size: int) -> dict:
    """Scores decoded rows, `batch_size` at a time.

    Returns:
      {"p": f32[n], "logit": f32[n]}; of typed models also "p_type", "p_given_type" f32[n, T].

    Raises:
      UserError: a score is not finite.
    """
    n, found = len(rows.label), []
    for start in range(0, max(n, 1), batch_size):
        part = rows.take(slice(start, start + batch_size))
        batch = batches.pad(part, batch_size, len(parts.devices), parts.schema.num_rows)
        placed = state_lib.put_batch(batch, parts.devices)
        found.append(parts.eval_step(state.params, state.stats, placed))
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
        return None
    table = pq.read_table(path)
    if table.num_rows != split.num_rows:
        raise UserError(
            f"{path}: {table.num_rows} rows where the split has {split.num_rows}; prepare again"
        )
    truth = {"p": table["p"].to_numpy()}
    for name in {"p_type", "p_given_type"} & set(table.column_names):
        truth[name] = table[name].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    return truth


def report(predictions: Predictions, split: Split) -> split_report.SplitReport:
    """The split's part of metrics.json; `unknown` is of the data alone."""
    found = split_report.make(
        predictions.label,
        predictions.p,
        logit=predictions.logit,
        ftype=predictions.ftype,
        weight=predictions.weight,
        key=predictions.gauc_key,
        p_type=predictions.p_type,
        p_given_type=predictions.p_given_type,
        type_names=split.schema.types,
        truth=read_truth(split),
    )
    return dataclasses.replace(found, unknown=predictions.unknown)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes row, label, ftype, p and, for typed models, p_type and p_given_type as Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = _table(predictions, slice(0, 0)).schema
    with (
        files.whole(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for start in range(0, max(len(predictions.p), 1), _WRITE_ROWS):
            writer.write_table(_table(predictions, slice(start, start + _WRITE_ROWS)))


def _table(predictions: Predictions, rows: slice) -> pa.Table:
    label = predictions.label[rows]
    columns = {
        "row": np.arange(rows.start, rows.start + len(label), dtype=np.int64),
        "label": label,
        "ftype": predictions.ftype[rows],
        "p": predictions.p[rows],
    }
    for name in ("p_type", "p_given_type"):
        if (array := getattr(predictions, name)) is not None:
            flat = array[rows].reshape(-1)
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    return pa.table(columns)
