"""How Parquet files are written and read: with a checksum in each page, and errors that name them.

What one program writes, another reads years later: a flipped bit is an error, never another number.
Parquet has no checksum of its footer, so a key of its metadata has one of the columns and rows.
Files of release 0.1, and of others, have neither; they are read as they are.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from emofm_jax import errors
from emofm_jax.errors import UserError

_T = TypeVar("_T")
_SHAPE = b"emofm_jax.shape"
_BUFFER = 1 << 16  # bytes
_FORM: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


class Writer:
    """Writes the tables of a file, one after another; raises UserError where that fails.

    Args:
      path: of the file. Nobody sees it before it is whole, if it stands in a directory, or under a
        name, that is moved at the end (files, directories).
      schema: of the tables.
    """

    def __init__(self, path: Path, schema: pa.Schema):
        self._path, self._rows, self._columns = path, 0, _columns(schema)
        self._file: Any = None
        # Not pyarrow's own: where that cannot be closed, it says so on stderr once more.
        self._sink: Any = None
        self._sink = self._do(lambda: open(path, "wb", buffering=_BUFFER))  # noqa: SIM115
        self._file = self._do(lambda: pq.ParquetWriter(self._sink, schema, **_FORM))

    def write(self, table: pa.Table, row_group_size: int | None = None) -> None:
        """Appends the rows of a table."""
        self._rows += table.num_rows
        self._do(lambda: self._file.write_table(table, row_group_size=row_group_size))

    def note(self, values: dict[bytes, bytes]) -> None:
        """Adds to the metadata of the file, unless it could not be written."""
        if self._file is not None:
            self._file.add_key_value_metadata(values)

    def close(self) -> None:
        """Completes the file, unless it could not be written."""
        if self._file is None:
            return
        self.note({_SHAPE: _shape(self._columns, self._rows)})
        self._do(self._file.close)
        self._do(self._sink.close)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        """Completes the file; what the block raised comes before what that raises."""
        try:
            self.close()
        except UserError:
            if error_type is None:
                raise

    def _do(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except (OSError, pa.ArrowException) as error:
            self._give_up()
            raise errors.of_file(self._path, error) from None

    def _give_up(self) -> None:
        """Keeps pyarrow from closing the file once more, with a traceback, as it is collected."""
        file, self._file = self._file, None
        if file is not None:
            file.is_open = False
        if self._sink is not None:
            with contextlib.suppress(OSError):
                self._sink.close()


def write(table: pa.Table, path: Path) -> None:
    """Writes a table as a file; raises UserError where that fails."""
    with Writer(path, table.schema) as writer:
        writer.write(table)


def open_file(path: Path, **options: Any) -> pq.ParquetFile:
    """Opens a file, whose checksums are compared as it is read.

    Raises:
      OSError, pa.ArrowException: as pyarrow does; its columns or rows are not those written.
    """
    try:
        # Of a relative path pyarrow would take a ~ for the user's home.
        file = pq.ParquetFile(path.absolute(), page_checksum_verification=True, **options)
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"the name of a column: {error}") from None

    found = file.metadata
    written = (found.metadata or {}).get(_SHAPE)
    num_rows = sum(found.row_group(i).num_rows for i in range(found.num_row_groups))
    same = found.num_rows == num_rows and written == _shape(file.schema_arrow, num_rows)
    if written is not None and not same:
        file.close()
        raise pa.ArrowInvalid("its columns or its number of rows are not those that were written")
    return file


def _shape(columns: pa.Schema, num_rows: int) -> bytes:
    """A digest of names and types of the columns, as they are read, and of the number of rows."""
    text = "\n".join([str(num_rows), *(f"{field.name}: {field.type}" for field in columns)])
    return xxhash.xxh3_64_hexdigest(text.encode()).encode()


def _columns(schema: pa.Schema) -> pa.Schema:
    """The columns as they are read: Parquet has other names for what is in lists."""
    file = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), file, **_FORM)
    return pq.read_schema(pa.BufferReader(file.getvalue()))


def read(path: Path, columns: Sequence[str] | None, remedy: str) -> pa.Table:
    """Those columns of a file that it has, by default all.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is damaged; ends with the remedy.
      FileError: the system cannot read it.
    """
    try:
        with open_file(path, memory_map=True) as file:
            there = file.schema_arrow.names
            wanted = there if columns is None else [name for name in columns if name in there]
            return file.read(wanted, use_threads=False)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        damage = f"{path}: not readable as Parquet ({errors.reason(error)}); {remedy}"
        raise errors.unreadable(path, error, damage) from None
