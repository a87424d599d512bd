"""Some rows of raw files, and what kind of files they are: format, separator, header, splits."""

import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from emofm_jax.data import raw_files
from emofm_jax.data.formats import int96, lines, tabular
from emofm_jax.data.labels import is_number
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.shards import SPLITS
from emofm_jax.errors import UserError

ROWS = 100_000  # that are looked at
_FILES = 20  # of many: the first, the last, and others at equal distances
_SEPARATORS = "\t,;|"
_LINES = 500  # that tell the kind of a text
_AGREE = 0.95  # share of these that must have as many cells
_BEGINS = {"train": ("train",), "valid": ("valid", "val", "dev"), "test": ("test",)}
_LIBSVM = re.compile(r"[+-]?\d+(\.\d+)?(\s+[^\s:]+:[^\s:]+(:[^\s:]+)?)+\s*")
_CTI = re.compile(r"[^\t]+(\t[01-]){1,9}\t\d+:\d+( \d+:\d+)*\s*")
_DIGEST = re.compile(r"[0-9a-f]{8,}")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Some rows.

    Attributes:
      format: tabular, libsvm or cti.
      source: the directory or file that the rows are of.
      splits: {"train", "valid", "test": a glob of files in `source`}; empty if the files are none.
      separator, quoting, header: of text of columns.
      columns: {name: its values}, text, or what Parquet has; of libsvm and cti rows {"row": text}.
      partitions: names of the columns that stand in the names of directories.
      passed_over: files in `source` that belong to no split.
      read: the files that the rows are of, as they are called in `source`.
      no_split: what is called as a split, or belongs to one, where not all three are there.
      num_files: how many there are, of training if the files are the splits.
    """

    format: str
    source: Path
    splits: dict[str, str]
    columns: dict[str, pa.Array]
    separator: str = ","
    quoting: str = "double"
    header: bool = True
    partitions: Sequence[str] = ()
    passed_over: Sequence[str] = ()
    read: Sequence[str] = ()
    no_split: Sequence[str] = ()
    num_files: int = 1

    @property
    def num_rows(self) -> int:
        """Rows that were looked at."""
        return len(next(iter(self.columns.values())))


def read(source: Path) -> Sample:
    """Reads up to `ROWS` rows of a file or directory, of the training files if they say so.

    Raises:
      UserError: nothing there, an unknown kind of file, text in which no columns are to be seen.
    """
    if not source.exists():
        raise UserError(f"--suggest={source}: no such file or directory; name raw rows")
    if (source / "schema.json").exists():
        raise UserError(f"--suggest={source}: it holds shards, not raw rows; name these")
    files = [file for file in raw_files.find(source) if file.path.stat().st_size]
    if not files:
        raise UserError(f"--suggest={source}: it holds no file with rows; name raw rows")
    splits, files, passed_over, no_split = _splits(source, files)
    last = len(files) - 1
    some = np.unique(np.linspace(0, last, min(len(files), _FILES)).round().astype(int)).tolist()
    chosen, most = [files[i] for i in some], ROWS // len(some)
    first = chosen[0]
    kinds = {raw_files.kind(file.path) == "parquet": file.path for file in reversed(chosen)}
    if len(kinds) > 1:
        both = f"{kinds[True]} is Parquet, {kinds[False]} is text"
        raise UserError(f"--suggest={source}: {both}; name one kind of files")

    if True in kinds:
        columns = _joined([_parquet(file.path, most) for file in chosen])
        if not any(map(len, columns.values())):
            raise UserError(f"--suggest={source}: {first.path}: it has no row; name raw rows")
        found = Sample("tabular", source, splits, columns)
    else:
        found = _text(source, splits, chosen, most)
    read = [str(f.path.relative_to(source)) for f in chosen] if source.is_dir() else []
    found = dataclasses.replace(found, passed_over=passed_over, no_split=no_split)
    found = dataclasses.replace(found, read=read, num_files=len(files))
    names = sorted({name for file in files for name in file.partitions})
    values = {name: [file.partitions.get(name) for file in files] for name in names}
    if names and found.format == "tabular":
        repeat = lambda text: pa.array(text * (found.num_rows // len(text) + 1))
        extra = {name: repeat(text).slice(0, found.num_rows) for name, text in values.items()}
        return dataclasses.replace(found, columns=found.columns | extra, partitions=names)
    return found


def _splits(
    source: Path, files: Sequence[RawFile]
) -> tuple[dict[str, str], list[RawFile], list[str], list[str]]:
    """Globs of the splits, if the files are such; the training files; files of no split.

    Without a glob, at last what is called as a split, but for training.
    """
    if not source.is_dir():
        return {}, list(files), [], []

    found: dict[str, set[str]] = {name: set() for name in SPLITS}
    train: list[RawFile] = []
    others: list[str] = []
    called: list[str] = []
    for file in files:
        top = file.path.relative_to(source).parts[0]
        name = next((n for n, words in _BEGINS.items() if top.lower().startswith(words)), "")
        if not name:
            others.append(top)
            continue
        found[name].add(re.match(r"[^.\d_-]*", top).group() + "*")  # type: ignore[union-attr]
        train += [file] if name == "train" else []
        called += [top] if name != "train" else []
    if any(len(globs) != 1 for globs in found.values()):
        return {}, list(files), [], list(dict.fromkeys(called))
    return {name: globs.pop() for name, globs in found.items()}, train, others, []


def _parquet(path: Path, most: int) -> pa.Table:
    file, batches, rows = tabular.open_parquet(path), [], 0
    file = int96.fitting(file, path, file.schema_arrow.names)
    for batch in file.iter_batches(1 << 14):
        batches.append(batch)
        rows += batch.num_rows
        if rows >= most:
            break
    return pa.Table.from_batches(batches, file.schema_arrow).slice(0, most)


def _joined(tables: Sequence[pa.Table]) -> dict[str, pa.Array]:
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    return {
        name: column.chunk(0) if column.num_chunks else pa.array([], column.type)
        for name, column in zip(table.column_names, table.columns)
    }


def _text(source: Path, splits: dict, chosen: Sequence[RawFile], most: int) -> Sample:
    begins = list(itertools.islice(_lines(chosen[0].path), _LINES))
    if begins[0].lstrip()[:2] in ("[{", '{"') or begins[0].strip() in ("{", "["):
        what = "it is JSON; write it as Parquet, or as text of columns"
        raise UserError(f"--suggest={source}: {chosen[0].path}: {what}")
    for name, pattern in (("cti", _CTI), ("libsvm", _LIBSVM)):
        if all(pattern.fullmatch(line) for line in begins):
            rows = [line for file in chosen for line in itertools.islice(_lines(file.path), most)]
            return Sample(name, source, splits, {"row": pa.array(rows, pa.string())})

    separator = _separator(begins)
    if not separator:
        what = "no columns are to be seen, with tab, comma, semicolon or bar between them"
        raise UserError(f"--suggest={source}: {chosen[0].path}: {what}; write the experiment file")
    quoting = "double" if _parses(chosen[0].path, separator) else "none"
    parts = [_cells(file.path, separator, quoting, most) for file in chosen]
    header = _is_header(parts[0])
    if header and (twice := [name for name in parts[0][0] if parts[0][0].count(name) > 1]):
        what = f"its first line has {twice[0]!r} twice; rename one of the two"
        raise UserError(f"--suggest={source}: {chosen[0].path}: {what}")
    for file, part in zip(chosen, parts):
        if header and {*part[0]} != {*parts[0][0]}:
            other = f"{file.path} has other columns than {chosen[0].path}"
            raise UserError(f"--suggest={source}: {other}; name one kind of files")
    names = parts[0][0] if header else _names(parts[0])
    cells: list[list[str]] = []
    for part in parts:
        places = [part[0].index(name) for name in names] if header else range(len(names))
        whole = (row for row in part[header:] if len(row) == len(names))
        cells += [[row[i] for i in places] for row in whole]
    if not cells:
        what = "it has no row"
        if len(parts[0]) > 1:
            what += f" of as many columns as its first line ({', '.join(names):.40})"
        raise UserError(f"--suggest={source}: {chosen[0].path}: {what}; name raw rows")
    columns = {name: pa.array(column, pa.string()) for name, column in zip(names, zip(*cells))}
    return Sample("tabular", source, splits, columns, separator, quoting, header)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends, a carriage return within one being a blank."""
    for block in lines.blocks(path):
        for line in io.StringIO(block.data.decode("utf-8", "replace"), newline="\n"):
            yield line.rstrip("\r\n").replace("\r", " ") + "\n"


def _separator(begins: Sequence[str]) -> str:
    """The separator that gives most lines the same number of cells, and the most of these.

    The first line tells it from the commas of decimals: the names of columns have none.
    """
    found: list[tuple[bool, int, str]] = []
    for separator in _SEPARATORS:
        counts = [len(row) for row in csv.reader(begins, delimiter=separator)]
        usual = max(set(counts), key=counts.count)
        if counts.count(usual) >= _AGREE * len(counts) and usual > 1:
            found.append((counts[0] == usual, usual, separator))
    return max(found, key=lambda one: one[:2], default=(False, 0, ""))[2]


def _parses(path: Path, separator: str) -> bool:
    """Whether double quotes stand around cells, wherever there are any in the first rows."""
    reader = csv.reader(_lines(path), delimiter=separator, strict=True)
    try:
        return any(reader.line_num >= _LINES for _ in reader) or reader.line_num > 0
    except csv.Error:
        return False


def _cells(path: Path, separator: str, quoting: str, most: int) -> list[list[str]]:
    rule: Any = csv.QUOTE_MINIMAL if quoting == "double" else csv.QUOTE_NONE
    reader = csv.reader(_lines(path), delimiter=separator, quoting=rule)
    return list(itertools.islice((row for row in reader if row), most + 1))


def _is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: words, no numbers, not seen below.

    One column may be without a name, as the index is that pandas writes.
    """
    first, below = rows[0], rows[1:_LINES]
    if first.count("") > 1 or not any(first):
        return False
    columns = [{row[i] for row in below if len(row) == len(first)} for i in range(len(first))]
    amounts = [name for name, cells in zip(first, columns) if any(cells) and _are_numbers(cells)]
    words = [name for name in amounts if name and not is_number(name)]
    if any(map(is_number, first)):  # a name may be one, as 2024 is
        return len(words) * 2 > len(amounts)
    return not below or sum(x in cells for x, cells in zip(first, columns)) * 2 < len(first)


def _are_numbers(cells: Iterable[str]) -> bool:
    return all(is_number(cell) for cell in cells if cell)


def _names(rows: Sequence[Sequence[str]]) -> list[str]:
    """Names for columns that have none: label, I1 .. of numbers, C1 .. of the others."""
    width, some = len(rows[0]), rows[:_LINES]
    columns = [[row[i] for row in some if len(row) == width] for i in range(width)]
    binary = [i for i, cells in enumerate(columns) if {*cells} == {"0", "1"}]
    digests = [any(cells) and all(_DIGEST.fullmatch(x) for x in cells if x) for cells in columns]
    hashed = any(digests)
    names, counts = [], {"I": 0, "C": 0}

    for i, cells in enumerate(columns):
        if binary and i == binary[0]:
            names.append("label")
            continue
        numbers = _are_numbers(cells) and any(cells)
        decimals = any(is_number(x) and "." in x for x in cells)
        # A digest may be of decimal digits alone.
        is_amount = numbers and (decimals or hashed and not digests[i])
        letter = "I" if is_amount else "C"
        counts[letter] += 1
        names.append(f"{letter}{counts[letter]}")
    return names
