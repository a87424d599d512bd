"""Files of rows -> a file of their scores, in constant memory; predict.py says what is in it."""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from tqdm import tqdm

from emofm_jax.data import batches, directories, encode, features, files, parquet, shards, unknown
from emofm_jax.data.problems import Notes
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError

if TYPE_CHECKING:  # which loads jax
    from emofm_jax.scoring.scorer import Scorer

BATCH_ROWS = 4096  # rows of a step, over all devices


@dataclasses.dataclass(frozen=True)
class Scored:
    """What became of a file: its rows, those without scores, {slot: share of unknown values}.

    Then what is to be said of what was read, by `counts.said_of_all`, and of slots that training
    knew and that are all unknown, by `unknown.said`.
    """

    num_rows: int
    num_bad: int
    unknown: dict[str, float]
    notes: Notes
    warnings: list[str]


def check(source: Path, output: Path) -> None:
    """Checks what can be seen before a model is loaded.

    Raises:
      UserError: there is no such input, or no such output can be written.
    """
    if output.suffix not in (".parquet", ".csv"):
        raise UserError(f"--output={output}: the ending must be .parquet or .csv")
    if not output.parent.is_dir():
        missing = f"there is no directory {output.parent}"
        raise UserError(f"--output={output}: {missing}; make it, or name another")
    if not source.exists():
        raise UserError(f"--input={source}: no such file or directory")
    if (source / "schema.json").exists():
        one = f"name one, as in --input={source / 'test'}"
        raise UserError(f"--input={source}: it holds splits of shards; {one}")
    if output.exists() and output.samefile(source):
        raise UserError(f"--output={output}: it is the input; name another file")
    if output.is_dir():
        raise UserError(f"--output={output}: it is a directory; name a file")


def score(scorer: "Scorer", source: Path, output: Path, progress: bool = False) -> Scored:
    """Scores the rows of a file; the output appears when it is whole.

    Args:
      scorer: of the run.
      source: a raw file or a directory of these, or a split of shards.
      output: .parquet, or .csv, which spells the lists of typed models `0.1^0.2`.
      progress: whether to show a bar.

    Raises:
      UserError: no rows; no row that could be read, after the output with its reasons was written;
        no finite score; a file that cannot be read or written.
    """
    counter = features.UnknownCounter(scorer.schema)
    unseen: Mapping[str, list[str]] = {}
    as_csv = output.suffix == ".csv"
    num_rows = num_bad = 0
    first_bad = ""
    notes = Notes()
    writer: Any = None
    schema: pa.Schema | None = None
    bar = tqdm(unit=" rows", unit_scale=True, disable=not progress)
    with bar, contextlib.ExitStack() as stack:
        temporary = stack.enter_context(files.whole(directories.place(output)))
        for chunk, inputs, finish in _started(scorer, source):
            counter.add(inputs)
            unseen = chunk.unseen
            notes.join(chunk.notes)
            table = _table(chunk, finish(), as_csv)
            schema = schema or table.schema
            with files.named(output, temporary):
                writer = writer or _open(temporary, schema, as_csv)
                writer.write(_with_row_ids(table, schema, source))

            num_rows += table.num_rows
            num_bad += table.num_rows - table["reason"].null_count
            first_bad = first_bad or next(filter(None, chunk.reasons), "")
            bar.update(table.num_rows)

        if not num_rows:
            raise UserError(f"--input={source}: it has no rows")
        with files.named(output, temporary):
            writer.close()
    if num_bad == num_rows:
        said = f"{num_rows:,} rows, of which none could be read; the first: {first_bad}"
        raise UserError(f"--input={source}: {said} (all of them: column `reason` of {output})")
    vocabularies = lambda: encode.load_vocabularies(scorer.schema, scorer.directory)
    counts = counter.counts()
    warnings = unknown.said(scorer.schema, counts, unseen, vocabularies, counter.rows)
    return Scored(num_rows, num_bad, counter.shares(), notes, warnings)


def _started(
    scorer: "Scorer", source: Path
) -> Iterator[tuple[encode.EncodedChunk, dict[str, np.ndarray], Callable]]:
    """Yields chunks, their features, and what waits for their scores; the next chunk is started."""
    if shards.is_split(source):
        chunks = _shard_chunks(source, scorer.schema)
    else:
        chunks = encode.read_encoded(scorer.schema, scorer.directory, source, labelled=False)
    with_features = lambda chunk: (chunk, features.from_table(chunk.table, scorer.schema))

    waiting: collections.deque = collections.deque()
    for chunk, inputs in batches.prefetch(chunks, 2, with_features):
        waiting.append((chunk, inputs, scorer.start(inputs, BATCH_ROWS)))
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def _shard_chunks(source: Path, schema: Schema) -> Iterator[encode.EncodedChunk]:
    split = shards.open_split(source.parent, source.name, schema)
    names = [slot.name for slot in schema.slots] + (["row_id"] if schema.row_id else [])
    done = 0
    for group, (_, _, n) in enumerate(split.row_groups):
        table = split.read_row_group(group, names)
        row_id = table["row_id"] if schema.row_id else pa.array(np.arange(done, done + n))
        done += n
        yield encode.EncodedChunk(table, np.ones(n, bool), [None] * n, row_id)


def _table(chunk: encode.EncodedChunk, scores: dict[str, np.ndarray], as_csv: bool) -> pa.Table:
    """Puts the scores in the places of their rows; a row without them gets null and a reason.

    Raises:
      UserError: no score is finite.
    """
    rows, finite = np.flatnonzero(chunk.kept), np.isfinite(scores["logit"])
    if len(rows) and not finite.any():
        diverged = "the run has diverged; lower its learning rate and train again"
        raise UserError(f"no score is finite: {diverged}")
    reasons = list(chunk.reasons)
    for row in rows[~finite]:
        unlike = "a number far outside those of training, or a run that has diverged"
        reasons[row] = f"its score is not finite: {unlike}"

    place = np.full(len(reasons), -1)
    place[rows[finite]] = np.flatnonzero(finite)
    index = pa.array(place, mask=place < 0)
    columns = {"row_id": chunk.row_id}
    for name in ("p", "p_std", "p_type", "p_given_type"):
        if name in scores:
            columns[name] = _column(scores[name], as_csv).take(index)
    return pa.table(columns | {"reason": pa.array(reasons, pa.string())})


def _with_row_ids(table: pa.Table, schema: pa.Schema, source: Path) -> pa.Table:
    """The table with row ids of the type that the first file had."""
    try:
        return table.cast(schema)
    except pa.ArrowInvalid:
        what = "row ids are integers in one file and text in another"
        raise UserError(f"--input={source}: {what}; score these files apart") from None


def _column(scores: np.ndarray, as_csv: bool) -> pa.Array:
    """Returns numbers, or lists, which a csv spells as text."""
    if scores.ndim == 1:
        return pa.array(scores)
    if as_csv:
        return pa.array(["^".join(f"{x:.9g}" for x in row) for row in scores.tolist()], pa.string())
    n, width = scores.shape
    offsets = np.arange(0, n * width + 1, width, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(scores.reshape(-1)))


def _open(path: Path, schema: pa.Schema, as_csv: bool) -> Any:
    return _Csv(path, schema) if as_csv else parquet.Writer(path, schema)


class _Csv:
    """Writes tables; not by pyarrow's own file, which says on stderr that it cannot be closed."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._sink = open(path, "wb")  # noqa: SIM115
        self._writer = pa.csv.CSVWriter(self._sink, schema)

    def write(self, table: pa.Table) -> None:
        self._writer.write(table)

    def close(self) -> None:
        self._writer.close()
        self._sink.close()
