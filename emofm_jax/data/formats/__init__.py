"""Raw files -> chunks of raw columns, one format a file; nothing after `encode` notices which.

A format is a function `tasks(recipe, file, labelled, progress)`, which reads one file front to back
and yields functions of no argument: each parses one block into a `Chunk`, on whatever thread calls.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import pyarrow as pa

from emofm_jax.data import raw_files
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats import cti, libsvm, lines, tabular
from emofm_jax.data.formats.lines import Chunk, EmptyFile
from emofm_jax.data.problems import Notes
from emofm_jax.data.raw_files import RawFile
from emofm_jax.errors import UserError

FORMATS = {"tabular": tabular.tasks, "libsvm": libsvm.tasks, "cti": cti.tasks}


def read(recipe: Mapping, files: Sequence[RawFile], labelled: bool = True) -> Iterator[Chunk]:
    """Reads raw files in order.

    Args:
      recipe: the `prepare` section of a configuration, as a plain dict.
      files: raw files; those without a row are passed over, and noted in the last chunk.
      labelled: False reads rows to predict: labels and types may be absent, or "-".

    Yields:
      `Chunk`s, in the order of the rows.
    Raises:
      UserError: a missing or damaged file, columns that do not fit the recipe, or nothing at all in
        any file.
    """
    for task in tasks(recipe, files, labelled):
        yield task()


def tasks(
    recipe: Mapping,
    files: Sequence[RawFile],
    labelled: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Callable[[], Chunk]]:
    """Like `read`, but yields functions that make the chunks, so that threads can share the work.

    Args:
      progress: is told how many more bytes of the files have been read.
    """
    last, empty, num_nothing = None, [], 0
    for file in files:
        before = last
        try:
            for task in of_file(recipe, file, labelled, progress):
                if last is not None:
                    yield last
                last = task
        except EmptyFile as error:
            num_nothing += 1
            check_some(error, num_nothing, len(files))
        if last is before:
            empty.append(str(file.path))
    if last is not None:
        yield functools.partial(_with_note, last, empty) if empty else last


def of_file(
    recipe: Mapping,
    file: RawFile,
    labelled: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Callable[[], Chunk]]:
    """The `tasks` of one file; raises EmptyFile if there is nothing in it."""
    source = recipe["format"]
    if source not in FORMATS:
        remedy = f"choose one of {', '.join(FORMATS)}"
        raise UserError(f"config.prepare.format: {source!r} has no raw files; {remedy}")
    with naming(str(file.path)):
        for task in FORMATS[source](recipe, file, labelled, progress):
            yield functools.partial(_named, str(file.path), task)


def parts(recipe: Mapping, file: RawFile, size: int) -> list[RawFile]:
    """A file as parts of about so many bytes, whose tasks, one after another, are the file's.

    What is compressed, or Parquet, is one part; so is a file that cannot be read, as its tasks say.
    """
    try:
        quoted = recipe["format"] == "tabular" and recipe_lib.later(recipe, "quoting") != "none"
        if file.path.stat().st_size <= size or raw_files.kind(file.path) != "text":
            return [file]
        separator = recipe["separator"] if quoted else ""
        return [file._replace(span=span) for span in lines.spans(file.path, separator, size)]
    except (UserError, OSError):
        return [file]


def check_some(error: EmptyFile | str, num_nothing: int, num_files: int) -> None:
    """Raises UserError if so many files hold nothing that it is all of them."""
    if num_nothing == num_files:
        also = f"; so are all of the {num_files:,d} files" if num_files > 1 else ""
        raise UserError(f"{error}{also}") from None


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Names what cannot be read where Arrow says that its values cannot: a UserError."""
    try:
        yield
    except pa.ArrowException as error:
        if isinstance(error, MemoryError):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{what}: it cannot be read ({reason}); give plain values") from None


def _named(file: str, task: Callable[[], Chunk]) -> Chunk:
    """The chunk of a task."""
    with naming(file):
        return task()


def _with_note(task: Callable[[], Chunk], empty: Sequence[str]) -> Chunk:
    """The chunk of a task, and that some files are empty."""
    chunk, notes = task(), Notes()
    notes.join(chunk.notes)
    notes.join(note_of(empty))
    return dataclasses.replace(chunk, notes=notes)


def note_of(empty: Sequence[str]) -> Notes:
    """What is said of files without a row."""
    notes = Notes()
    if empty:
        notes.add("", "empty files", len(empty), empty[0])
    return notes
