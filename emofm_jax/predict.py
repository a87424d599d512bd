"""Scores rows with a trained run: raw files of the run's format, labels or not, or prepared shards.

    python -m emofm_jax.predict --workdir=runs/mine --input=new.csv --output=scores.parquet
    python -m emofm_jax.predict --workdir=runs/quickstart --input=data/quickstart/test --output=scores.csv
    python -m emofm_jax.predict --workdir=runs/a,runs/b --calibrated --input=new.parquet --output=scores.parquet

The workdir may be a run, one of its checkpoints, what `export` wrote, or several of these with commas: an ensemble.
Output: one row per row of the input, in its order: `row_id` (the run's row id column, or the row's position), `p`
(click probability, the type unknown), for typed models `p_type` and `p_given_type` (a list, one entry per type), and
`reason`: null, or why the row could not be read; it then has no scores. Memory does not grow with the input. The output
appears when it is whole: after a kill the same command starts over.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from absl import flags as absl_flags
from tqdm import tqdm

from emofm_jax import cli
from emofm_jax.data import batches, encode, features, shards
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.evaluation import summary

BATCH_ROWS = 4096  # rows of a step, over all devices


class Chunk(NamedTuple):
    """Some rows of the input: features of those that could be read, which those are, why the others not, row ids."""

    features: dict[str, np.ndarray]
    kept: np.ndarray
    reasons: list[str | None]
    row_id: pa.Array


def _main(flags: absl_flags.FlagValues) -> None:
    source, output = Path(flags.input), Path(flags.output)
    if output.suffix not in (".parquet", ".csv"):
        raise UserError(f"--output={output}: the ending must be .parquet or .csv")
    if not output.parent.is_dir():
        raise UserError(
            f"--output={output}: there is no directory {output.parent}; make it, or name another"
        )
    if not source.exists():
        raise UserError(f"--input={source}: no such file or directory")
    if (source / "schema.json").exists():
        raise UserError(
            f"--input={source}: it holds splits of shards; name one, as in --input={source / 'test'}"
        )
    if output.exists() and output.samefile(source):
        raise UserError(f"--output={output}: it is the input; name another file")
    from emofm_jax.scoring import scorer as scorer_lib  # loads jax: after the cheap checks

    scorer = scorer_lib.load_scorer(
        cli.workdirs(flags), calibrated=flags.calibrated, combine=flags.combine
    )
    schema = scorer.schema
    is_split = (source / "_SUCCESS").exists()
    chunks = (
        _shard_chunks(source, schema) if is_split else _raw_chunks(source, schema, scorer.directory)
    )
    num_rows = num_bad = 0
    unknown = features.UnknownCounter(schema)
    temporary = output.with_name(f".{output.name}.partial")
    writer = None
    try:
        with tqdm(unit=" rows", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
            for chunk, scores in _ahead(scorer, batches.prefetch(chunks, 2)):
                unknown.add(chunk.features)
                chunk, scores = _finite(chunk, scores)
                table = _table(scores, chunk.kept, chunk.reasons, chunk.row_id)
                with _writing(output):
                    if writer is None:
                        writer = _open(temporary, table.schema, output.suffix)
                    writer.write_table(table)
                num_rows, num_bad = num_rows + len(chunk.kept), num_bad + int((~chunk.kept).sum())
                bar.update(len(chunk.kept))
        if not num_rows:
            raise UserError(f"--input={source}: it has no rows")
        with _writing(output):
            writer.close()
            temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    bad = f"; {num_bad:,} of {num_rows:,} could not be read (column `reason`)" if num_bad else ""
    if shares := summary.unknown(unknown.shares()):
        print(shares)
    print(
        f"{num_rows - num_bad:,} rows scored with {' + '.join(scorer.names)}{bad}; written: {output}"
    )


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    cli.define_scorer(flags)
    absl_flags.DEFINE_string(
        "input", None, "Raw file, directory of raw files, or a split of shards.", flag_values=flags
    )
    absl_flags.DEFINE_string("output", None, "File to write, .parquet or .csv.", flag_values=flags)


def _ahead(scorer, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, dict[str, np.ndarray]]]:
    """(chunk, scores), the next chunk being scored while one is used."""
    pending = None
    for chunk in chunks:
        started = scorer.start(chunk.features, BATCH_ROWS)
        if pending is not None:
            yield pending[0], pending[1]()
        pending = chunk, started
    if pending is not None:
        yield pending[0], pending[1]()


def _finite(chunk: Chunk, scores: dict[str, np.ndarray]) -> tuple[Chunk, dict[str, np.ndarray]]:
    """Without the scores that are not finite, whose rows get a reason; raises UserError if all are so."""
    finite = np.isfinite(scores["logit"])
    if finite.all():
        return chunk, scores
    if not finite.any():
        raise UserError(
            "no score is finite: the run has diverged; lower its learning rate and train again"
        )
    rows, kept, reasons = np.flatnonzero(chunk.kept), chunk.kept.copy(), list(chunk.reasons)
    kept[rows[~finite]] = False
    for row in rows[~finite]:
        reasons[row] = (
            "its score is not finite: a number far outside those of training, or a run that has diverged"
        )
    return chunk._replace(kept=kept, reasons=reasons), {
        name: x[finite] for name, x in scores.items()
    }


@contextlib.contextmanager
def _writing(output: Path):
    """An error of the disk is one of the output."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--output={output}: cannot be written ({error.strerror or error})"
        ) from None


def _raw_chunks(source: Path, schema: Schema, directory: Path) -> Iterator[Chunk]:
    for chunk in encode.read_encoded(schema, directory, source, labelled=False):
        yield Chunk(
            features.from_table(chunk.table, schema), chunk.kept, chunk.reasons, chunk.row_id
        )


def _shard_chunks(source: Path, schema: Schema) -> Iterator[Chunk]:
    split = shards.open_split(source.parent, source.name, schema)
    names = [slot.name for slot in schema.slots] + (["row_id"] if schema.row_id else [])
    done = 0
    for group, (_, _, n) in enumerate(split.row_groups):
        table = split.read_row_group(group, names)
        row_id = table["row_id"] if schema.row_id else pa.array(np.arange(done, done + n))
        done += n
        yield Chunk(features.from_table(table, schema), np.ones(n, bool), [None] * n, row_id)


def _table(scores: dict[str, np.ndarray], kept: np.ndarray, reasons: list, row_id) -> pa.Table:
    """Puts the scores of the kept rows back in the place of their rows, null elsewhere."""
    place = np.where(kept, np.cumsum(kept) - 1, -1)
    index = pa.array(place, mask=~kept)
    columns = {"row_id": row_id}
    for name in ("p", "p_type", "p_given_type"):
        if name in scores:
            array = scores[name]
            values = pa.array(array) if array.ndim == 1 else _lists(array)
            columns[name] = values.take(index)
    columns["reason"] = pa.array(reasons, pa.string())
    return pa.table(columns)


def _lists(array: np.ndarray) -> pa.ListArray:
    n, width = array.shape
    return pa.ListArray.from_arrays(
        np.arange(0, n * width + 1, width, dtype=np.int32), pa.array(array.reshape(-1))
    )


class _CsvWriter:
    """A csv with lists spelt `0.1^0.2`, with the interface of ParquetWriter that is used here."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._schema = pa.schema(
            [pa.field(f.name, pa.string()) if pa.types.is_list(f.type) else f for f in schema]
        )
        self._writer = pa.csv.CSVWriter(path, self._schema)

    def write_table(self, table: pa.Table) -> None:
        columns = []
        for name in table.column_names:
            column = table[name]
            if pa.types.is_list(column.type):
                texts = [
                    None if v is None else "^".join(f"{x:.9g}" for x in v)
                    for v in column.to_pylist()
                ]
                column = pa.array(texts, pa.string())
            columns.append(column)
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


def _open(path: Path, schema: pa.Schema, suffix: str):
    return (
        _CsvWriter(path, schema)
        if suffix == ".csv"
        else pq.ParquetWriter(path, schema, compression="zstd")
    )


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, or 2 after one line of error."""
    return cli.run(_main, _define, argv)


if __name__ == "__main__":
    sys.exit(main())
