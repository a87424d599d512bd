"""A split and a trained state -> predictions of every row -> the split's metrics and its prediction file.

The forward is `models.predict` under pmap (`step.make_eval_step`), the metrics are exact and on the host.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from emofm_jax.data import batches, shards
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.evaluation import split_report
from emofm_jax.training import step as step_lib

_WRITE_ROWS = 1 << 18  # rows of a prediction file that are put together at a time


class Predictions(NamedTuple):
    """One entry per row of a split, in its order; n rows, T types. None where the model or schema has no such thing.

    Attributes:
      label: i8[n].
      ftype: i8[n], -1 unknown.
      weight: f32[n]; None if the schema has none.
      gauc_key: i64[n].
      p: f32[n], p(y = 1 | x), the type unknown.
      logit: f32[n].
      p_type: f32[n, T], p(t | x) of the auxiliary model.
      p_given_type: f32[n, T], p(y = 1 | x, t).
      unknown: f64[S], not a row each: the share of a slot's values (of a bag: of its ids) that are missing or unknown.
    """

    label: np.ndarray
    ftype: np.ndarray
    weight: np.ndarray | None
    gauc_key: np.ndarray | None
    p: np.ndarray
    logit: np.ndarray
    p_type: np.ndarray | None
    p_given_type: np.ndarray | None
    unknown: np.ndarray


def predict_split(
    eval_step: Callable,
    params,
    stats,
    split: shards.Split,
    batch_size: int,
    *,
    devices,
    progress=False,
):
    """Scores every row of a split.

    Args:
      eval_step: from `step.make_eval_step`.
      params, stats: of a TrainState.
      split: to score.
      batch_size: rows of a step over all devices.
      devices: local devices that share a batch.
      progress: whether to show a bar.

    Returns:
      Predictions.
    """
    n, schema = split.num_rows, split.schema
    typed = (n, schema.num_types)
    out = {"p": np.empty(n, np.float32), "logit": np.empty(n, np.float32)}
    label, ftype = np.empty(n, np.int8), np.empty(n, np.int8)
    weight = np.empty(n, np.float32) if schema.has_weight else None
    key = np.empty(n, np.int64) if schema.has_gauc_key else None

    counts = np.zeros((2, schema.num_columns), np.int64)

    def put(host: batches.HostBatch):
        np.add(counts, _count_unknown(schema, host.batch.ids), out=counts)
        return host, step_lib.put_batch(host.batch, devices)

    done, pending = 0, None
    source = batches.prefetch(batches.read(split, batch_size, num_devices=len(devices)), 2, put)
    with tqdm(
        total=n,
        unit=" rows",
        unit_scale=True,
        desc=f"  {split.path.name}",
        disable=not progress,
        leave=False,
    ) as bar:

        def collect(rows: slice, scores: dict) -> None:
            for name, array in jax.device_get(scores).items():
                array = array.reshape(-1, *array.shape[2:])[: rows.stop - rows.start]
                if name not in out:
                    out[name] = np.empty(typed, np.float32)
                out[name][rows] = array
            bar.update(rows.stop - rows.start)

        for host, batch in source:
            rows = slice(done, done + host.num_rows)
            for array, part in (
                (label, host.batch.label),
                (ftype, host.batch.ftype),
                (weight, host.batch.weight),
            ):
                if array is not None:
                    array[rows] = part.reshape(-1)[: host.num_rows]
            if key is not None:
                key[rows] = host.gauc_key
            scores = eval_step(params, stats, batch)
            if pending is not None:  # fetched while the next step runs
                collect(*pending)
            pending, done = (rows, scores), rows.stop
        if pending is not None:
            collect(*pending)
    if not np.isfinite(out["logit"]).all():
        row = int(np.flatnonzero(~np.isfinite(out["logit"]))[0])
        raise UserError(
            f"{split.path}: the score of row {row} is not finite; lower the learning rate and train again"
        )
    unknown, values = (np.bincount(schema.column_slots, x) for x in counts)
    typed = (out.get("p_type"), out.get("p_given_type"))
    return Predictions(
        label, ftype, weight, key, out["p"], out["logit"], *typed, unknown / np.maximum(values, 1)
    )


def _count_unknown(schema: Schema, ids: np.ndarray) -> np.ndarray:
    """i64[2, N]: of each column of ids i32[P, b, N], how many are row 0 of their slot, and how many no padding."""
    first = schema.offsets[schema.column_slots].astype(np.int32)
    counts = [
        np.count_nonzero(ids == rows, axis=(0, 1)) for rows in (first, np.int32(schema.num_rows))
    ]
    return np.stack([counts[0], ids[..., 0].size - counts[1]])


def score_rows(
    eval_step: Callable, params, stats, rows: batches.Rows, schema, batch_size: int, *, devices
) -> dict:
    """Scores decoded rows: {"p": f32[n], "logit": f32[n], and for typed models "p_type", "p_given_type" f32[n, T]}."""
    n, parts = len(rows.label), []
    for start in range(0, max(n, 1), batch_size):
        part = rows.take(slice(start, start + batch_size))
        batch = batches.pad(part, batch_size, len(devices), schema.num_rows)
        parts.append(eval_step(params, stats, step_lib.put_batch(batch, devices)))
    parts = jax.device_get(parts)
    scores = {
        k: np.concatenate([x[k].reshape(-1, *x[k].shape[2:]) for x in parts])[:n] for k in parts[0]
    }
    if not np.isfinite(scores["logit"]).all():
        raise UserError(
            "a score is not finite: the run has diverged; lower its learning rate and train again"
        )
    return scores


def read_truth(split: shards.Split) -> dict[str, np.ndarray] | None:
    """The true probabilities beside a synthetic split: p f64[n], p_type and p_given_type f64[n, T]; else None."""
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


def report(predictions: Predictions, split: shards.Split) -> split_report.SplitReport:
    """The split's part of `metrics.json`; `unknown` is of the data alone."""
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
    names = [slot.name for slot in split.schema.slots]
    return dataclasses.replace(found, unknown=dict(zip(names, predictions.unknown.tolist())))


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes row, label, ftype, p and, for typed models, p_type and p_given_type as Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    writer = None
    for start in range(0, max(len(predictions.p), 1), _WRITE_ROWS):
        table = _table(predictions, slice(start, start + _WRITE_ROWS))
        writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
        writer.write_table(table)
    writer.close()
    temporary.replace(path)


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
            columns[name] = pa.FixedSizeListArray.from_arrays(
                array[rows].reshape(-1), array.shape[1]
            )
    return pa.table(columns)
