"""Raw files -> chunks of raw columns, one format a file; nothing after `encode` notices which.

A format is a function `tasks(recipe, path, labelled, progress)`, which reads one file front to back
and yields functions of no argument: each parses one block into a `Chunk`, on whatever thread calls.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from emofm_jax.data.formats import cti, libsvm, tabular
from emofm_jax.data.formats.lines import Chunk
from emofm_jax.errors import UserError

FORMATS = {"tabular": tabular.tasks, "libsvm": libsvm.tasks, "cti": cti.tasks}


def read(recipe: Mapping, files: Sequence[Path], labelled: bool = True) -> Iterator[Chunk]:
    """Reads raw files in order.

    Args:
      recipe: the `prepare` section of a configuration, as a plain dict.
      files: paths of raw files.
      labelled: False reads rows to predict: labels and types may be absent, or "-".

    Yields:
      `Chunk`s, in the order of the rows.
    Raises:
      UserError: missing, empty or damaged file, or columns that do not fit the recipe.
    """
    for task in tasks(recipe, files, labelled):
        yield task()


def tasks(
    recipe: Mapping,
    files: Sequence[Path],
    labelled: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Callable[[], Chunk]]:
    """Like `read`, but yields functions that make the chunks, so that threads can share the work.

    Args:
      progress: is told how many more bytes of the files have been read.
    """
    source = recipe["format"]
    if source not in FORMATS:
        remedy = f"choose one of {', '.join(FORMATS)}"
        raise UserError(f"config.prepare.format: {source!r} has no raw files; {remedy}")
    for path in files:
        yield from FORMATS[source](recipe, Path(path), labelled, progress)
