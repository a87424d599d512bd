"""Problems of raw rows: why a row cannot be used, for the count of its kind and in words."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa


class Bad(NamedTuple):
    """A row that cannot be used: its line, a short kind for counting, and the reason in words."""

    line: int
    kind: str
    reason: str


class Problems(dict[int, tuple[str, str]]):
    """The first problem of each bad row of a chunk: {0-based row: (kind, reason)}."""

    def mark(
        self,
        wrong: np.ndarray | pa.Array,
        kind: str,
        reason: Callable[[int], str],
        row_of: np.ndarray | None = None,
    ) -> None:
        """Adds a problem for every value that is wrong.

        Args:
          wrong: bool[n].
          reason: position of the value -> words.
          row_of: i64[n], the row of each value; by default the value's position.
        """
        for i in np.flatnonzero(np.asarray(wrong)).tolist():
            self.setdefault(i if row_of is None else int(row_of[i]), (kind, reason(i)))

    def good(self, num_rows: int) -> np.ndarray:
        """bool[num_rows]: the rows without a problem."""
        good = np.ones(num_rows, bool)
        good[list(self)] = False
        return good


class Notes(dict[tuple[str, str], tuple[int, str]]):
    """Remarks on the values of slots: {(slot, kind): (how many values, an example)}.

    Those on rows and files stand under the slot "" (no slot has that name), the example being the
    first of them, as file:line.
    """

    def add(self, slot: str, kind: str, number: int, example: str) -> None:
        """Adds `number` values; the first example stays."""
        before, first = self.get((slot, kind), (0, example))
        self[slot, kind] = before + number, first

    def join(self, other: "Notes") -> None:
        """Adds the notes of other rows."""
        for (slot, kind), (number, example) in other.items():
            self.add(slot, kind, number, example)

    def of(self, slot: str) -> dict[str, tuple[int, str]]:
        """{kind: (how many, an example)} of one slot."""
        return {kind: found for (name, kind), found in self.items() if name == slot}
