"""Parquet timestamps of 96 bits, as Spark, Hive and Impala write them: any day, to the nanosecond.

Arrow holds them as nanoseconds, which end in 1677 and 2262 and wrap round behind, or as
microseconds, which hold 9999-12-31 and 0001-01-01.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emofm_jax.errors import UserError

_FAR = 2**63 // 1000  # microseconds that nanoseconds of 64 bits cannot hold
_BATCH_ROWS = 1 << 16


def fitting(file: pq.ParquetFile, path: Path, names: Sequence[str]) -> pq.ParquetFile:
    """The file as its times of 96 bits are to be read: in microseconds where one of them is far.

    Args:
      file: of Parquet, opened by default.
      path: of it.
      names: columns that are read.

    Raises:
      UserError: a far time stands beside one that is finer than a microsecond.
    """
    leaves = map(file.metadata.schema.column, range(len(file.metadata.schema)))
    of_96 = {leaf.path.split(".")[0] for leaf in leaves if leaf.physical_type == "INT96"}
    if not (wanted := sorted(of_96.intersection(names))):
        return file
    wide = pq.ParquetFile(path.absolute(), coerce_int96_timestamp_unit="us")
    is_far = is_fine = False
    batches = (of.iter_batches(_BATCH_ROWS, columns=wanted) for of in (wide, file))
    for coarse, fine in zip(*batches):
        for a, b in zip(_times(coarse.to_struct_array()), _times(fine.to_struct_array())):
            far = np.abs(a) > _FAR
            is_far |= bool(far.any())
            is_fine |= bool((b[~far] % 1000 != 0).any())

    if is_far and is_fine:
        what = f"its times of 96 bits ({', '.join(wanted)}) are some before 1677 or after 2262"
        remedy = "write timestamps of microseconds"
        raise UserError(f"{path}: {what}, and some finer than a microsecond; {remedy}")
    return wide if is_far else file


def _times(column: pa.Array) -> Iterator[np.ndarray]:
    """i64[..] of each leaf of a column: its timestamps that are not null."""
    if pa.types.is_struct(column.type):
        for field in column.flatten():
            yield from _times(field)
    elif pa.types.is_map(column.type):
        yield from (*_times(column.keys), *_times(column.items))
    elif pa.types.is_nested(column.type):
        yield from _times(column.flatten())
    elif pa.types.is_timestamp(column.type):
        yield column.drop_null().cast(pa.int64()).to_numpy()
