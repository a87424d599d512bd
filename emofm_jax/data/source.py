"""The raw files of a preparation: their chunks in order, and the split and day of each row."""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from emofm_jax.data import formats, growth
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats.lines import Chunk, EmptyFile
from emofm_jax.data.problems import Notes
from emofm_jax.data.raw_files import RawFile
from emofm_jax.errors import UserError

T = TypeVar("T")


class Empty(NamedTuple):
    """A file without a row; `error` says so of one in which there is nothing at all."""

    file: str
    error: str


@dataclasses.dataclass(frozen=True)
class Source:
    """The raw files, and how they are read.

    Attributes:
      recipe: `config.prepare` as a dict, with the types of cti data.
      files: of each split; under "" alone when the rows say their split.
      days: that rows were found of so far.
    """

    recipe: Mapping[str, Any]
    files: dict[str, list[RawFile]]
    days: set[str] = dataclasses.field(default_factory=set)

    def run(
        self,
        work: Callable[[Chunk], T],
        files: Sequence[RawFile],
        progress: Callable[[int], None] | None = None,
        num_threads: int = 0,
    ) -> Iterator[T | Empty]:
        """Yields work(chunk) of every chunk of some files, in order, and files without one.

        Args:
          work: may be called from several threads at once, if there are some.
          files: raw files.
          progress: is told how many more bytes of the files have been read.
          num_threads: that parse and work, a few chunks ahead; 0 = the one that asks.
        """

        def of_task(task: Callable[[], Chunk]) -> T:
            chunk = task()
            with formats.naming(chunk.file):
                return work(chunk)

        found = self._tasks(files, progress)
        if not num_threads:
            yield from (t if isinstance(t, Empty) else of_task(t) for t in found)
            return
        pending: deque[Callable[[], T | Empty]] = deque()
        pool = ThreadPoolExecutor(num_threads)
        try:
            for task in found:
                pending.append(
                    functools.partial(lambda empty: empty, task)
                    if isinstance(task, Empty)
                    else pool.submit(of_task, task).result
                )
                if len(pending) > num_threads:
                    yield pending.popleft()()
            while pending:
                yield pending.popleft()()
        finally:
            pool.shutdown(cancel_futures=True)

    def _tasks(
        self, files: Sequence[RawFile], progress: Callable[[int], None] | None
    ) -> Iterator[Callable[[], Chunk] | Empty]:
        """The tasks of files (`formats`), and those files that have none."""
        for file in files:
            error, some = "", False
            try:
                for task in formats.of_file(self.recipe, file, True, progress):
                    some = True
                    yield task
            except EmptyFile as empty:
                error = str(empty)
            if not some and file.span is None:
                yield Empty(str(file.path), error)

    def split_of(self, chunk: Chunk) -> np.ndarray:
        """i8[n] of each readable row, if the rows say their split: see `recipe.split_of`."""
        days = None
        if self.recipe["split"] == "day":
            days = recipe_lib.distinct_days(self.recipe, chunk.columns["_day"])
            self.days.update(filter(None, recipe_lib.days_of(self.recipe, days)))
        return recipe_lib.split_of(self.recipe, self._places[chunk.file], chunk.lines, days)

    def history(self, base: growth.Base | None) -> tuple[str, ...]:
        """The days of the base and of the train split (`Schema.days`), as far as rows were read.

        Raises:
          UserError: both have a day.
        """
        before, new = base.schema.days if base else (), [""]
        if self.recipe["split"] == "day":
            named = lambda name: set(recipe_lib.named_days(self.recipe, name))
            new = named("train_days") or self.days - named("valid_days") - named("test_days")
            new = new & self.days - named("replay_days")
            new = recipe_lib.in_order(new, strict=base is not None)
            if base:
                self._check_days(base, new)
        return (*before, *new)

    def _check_days(self, base: growth.Base, new: list[str]) -> None:
        """Raises UserError on days that a base does not go with."""
        where, moment = f"--base={base.place}", recipe_lib.moment
        before = {*map(moment, base.schema.days)}
        if both := recipe_lib.shared_days(new, base.schema.days):
            remedy = "name the new days in config.prepare.train_days, or these in replay_days"
            what = f"it has the rows of {', '.join(both)} already"
            apart = [other for day, other in both.items() if moment(day) != moment(other)]
            if apart:  # days against hours
                what = f"it has rows of {', '.join(both)} already, as {apart[0]}"
                remedy = "name days that come after it in config.prepare.train_days"
            raise UserError(f"{where}: {what}; {remedy}")

        recipe_lib.check_unseen(self.recipe, base.schema.days, where)
        replayed = recipe_lib.named_days(self.recipe, "replay_days")
        if never := [day for day in replayed if moment(day) not in before]:
            what = f"it has no rows of {never[0]}, which config.prepare.replay_days has"
            raise UserError(f"{where}: {what}; name days of its own, or put it in train_days")

    @property
    def of_training(self) -> dict[str, list[RawFile]]:
        """{split: the files that hold its rows}, of train, or of all ("") where the rows say it."""
        split = "train" if "train" in self.files else ""
        return {split: self.files[split]}

    def place(self, chunk: Chunk) -> int:
        """The place of a chunk's file among those of its split, or all."""
        return self._places[chunk.file]

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        """{file: its place} among the training files, or all where the rows say their split."""
        (files,) = self.of_training.values()
        return {str(file.path): i for i, file in enumerate(files)}


class Gaps:
    """The files of a split that have no row.

    Args:
      num_files: of the split.
    """

    def __init__(self, num_files: int):
        self._num_files, self._num_nothing = num_files, 0
        self._empty: list[str] = []

    def out_of(self, found: Iterable[T | Empty]) -> Iterator[T]:
        """Yields what is no `Empty`.

        Raises:
          UserError: there is nothing in any file.
        """
        for one in found:
            if not isinstance(one, Empty):
                yield one
                continue
            self._empty.append(one.file)
            if one.error:
                self._num_nothing += 1
                formats.check_some(one.error, self._num_nothing, self._num_files)

    @property
    def notes(self) -> Notes:
        """What is said of them, unless no file has a row."""
        return formats.note_of(self._empty if len(self._empty) < self._num_files else [])
