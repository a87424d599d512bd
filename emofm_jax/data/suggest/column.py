"""One column of raw rows, and what was seen of it."""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import labels

NULLS = (
    "NULL",
    "null",
    "NA",
    "N/A",
    "n/a",
    "nan",
    "NaN",
    "None",
    "none",
    "\\N",
    "-",
    "?",
    "undefined",
)
_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?")  # 1.234,5; or two numbers: 12,5
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})*(\.\d+)?")  # 1,234.5


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was seen of a column.

    Attributes:
      name: its name.
      text: its values as text, null where missing; of a column of lists, their elements.
      lists: values a row at most, of a column of lists; 0 of another.
      floats: whether they are floats, of Parquet.
      weighted: whether they are ids with weights.
      unusable: why no slot can hold them, if none can.
    """

    name: str
    text: pa.Array
    lists: int = 0
    floats: bool = False
    weighted: bool = False
    unusable: str = ""

    @functools.cached_property
    def distinct(self) -> list[str]:
        """Its values, without missing ones, once each."""
        return pc.unique(self.text.drop_null()).to_pylist()

    @functools.cached_property
    def missing(self) -> float:
        """Share of missing values."""
        return self.text.null_count / max(len(self.text), 1)

    @functools.cached_property
    def odd(self) -> list[str]:
        """Values that are no numbers."""
        return [x for x in self.distinct if not labels.is_number(x)]

    @functools.cached_property
    def nulls(self) -> list[str]:
        """Spellings of a missing value among numbers."""
        known = [x for x in self.odd if x in NULLS]
        return known if known and len(known) == len(self.odd) < len(self.distinct) else []

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """f64, its distinct values, if they are numbers; else empty."""
        if not self.distinct or set(self.odd) - set(self.nulls):
            return np.zeros(0)
        return np.array([float(x) for x in self.distinct if x not in self.nulls])

    @property
    def decimals(self) -> bool:
        """Whether its values are numbers, some of them not whole."""
        return len(self.numbers) > 0 and bool((self.numbers % 1 != 0).any())

    @functools.cached_property
    def with_comma(self) -> tuple[str, str]:
        """A value and the number that it may be, if all may be numbers with a comma; else empty."""
        known = [x.strip() for x in self.distinct if x not in NULLS]
        if shown := next((x for x in known if "," in x), ""):
            if all(map(_COMMA.fullmatch, known)):
                return shown, shown.replace(".", "").replace(",", ".")
            if all(map(_THOUSANDS.fullmatch, known)):
                return shown, shown.replace(",", "")
        return "", ""

    @property
    def examples(self) -> str:
        """Three of its values."""
        short = [x if len(x) <= 20 else f"{x[:18]}.." for x in self.distinct[:3]]
        return ", ".join(map(repr, short)) or "nothing"

    @property
    def words(self) -> set[str]:
        """The words of its name, `userID` being user and id."""
        split = re.sub(r"([a-z])([A-Z])", r"\1_\2", self.name).lower()
        return {*re.split(r"[^a-z]+", split), split}


def by_name(seen: Sequence[Seen], names: Sequence[str]) -> Seen | None:
    """The column whose name stands first among the names, if one has such a name."""
    of = {one.name.strip().lower(): one for one in reversed(seen)}
    return next((of[name] for name in names if name in of), None)
