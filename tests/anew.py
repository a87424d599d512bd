"""What a new preparation of other raw rows would leave in the place of shards, without preparing."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from emofm_jax.data import schema as schema_lib
from emofm_jax.data import shards


def rewrite(directory, split, change):
    """Writes `change(table)` in the place of a split's rows; vocabularies and schema stay."""
    path, schema = Path(directory) / split, schema_lib.load(directory)
    table = pq.read_table(sorted(path.glob("part-*.parquet")))
    with shards.Writer(directory, split, schema) as writer:
        writer.write(change(table))
    (path / "truth.parquet").unlink(missing_ok=True)  # it is of the rows before
    dataclasses.replace(schema, digests=shards.digests(directory)).save(directory)


def reverse(directory, split="train"):
    """The same rows in another order; twice is as it was."""
    rewrite(directory, split, lambda table: table.take(np.arange(table.num_rows)[::-1]))
