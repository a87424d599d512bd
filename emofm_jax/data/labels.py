"""Labels as files spell them -> 0 and 1 (docs/data.md)."""

import re
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from emofm_jax.data import values
from emofm_jax.data.problems import Problems
from emofm_jax.errors import UserError

_WORDS = {"true": 1, "yes": 1, "t": 1, "y": 1, "false": 0, "no": 0, "f": 0, "n": 0}
_NUMBERS: dict[float | Decimal, int] = {1.0: 1, 0.0: 0, -1.0: 0}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?")
_EXACT = 2**53  # floats hold every whole number up to it
_USUAL = "0 or 1 (or true/false, yes/no, t/f, y/n, -1/1)"


class Labels:
    """Reads labels, chunk by chunk; several threads may do so at once.

    Args:
      positive: values that mean a click, all others mean none; by default the usual spellings.
      missing: what a missing label may be called (`values.missing`).
    """

    def __init__(self, positive: Sequence[Any] = (), missing: pa.Array | None = None):
        self._missing = values.missing(()) if missing is None else missing
        self._positive = {_key(str(value)) for value in positive}
        self._negative: set[float] = set()  # numbers that meant no click so far

    def read(self, column: pa.Array, problems: Problems) -> np.ndarray:
        """i8[n] of n labels; those that cannot be read are 0 and go to `problems`.

        Raises:
          UserError: both 0 and -1 occur, so that one of them is not what it seems.
        """
        distinct = values.distinct(column, self._missing)
        text = distinct.text.to_pylist()
        meanings = [*map(self._meaning, text), None]  # the last one is for null
        self._check_signs(set(map(_key, filter(None, text))))

        index = distinct.which
        unread = np.array([meaning is None for meaning in meanings])
        found = np.array([meaning or 0 for meaning in meanings], np.int8)
        problems.mark(unread[index], "label", lambda i: _said([*text, None][index[i]]))
        return found[index]

    @property
    def negative(self) -> frozenset[float]:
        """The numbers, of 0 and -1, that meant no click so far."""
        return frozenset(self._negative)

    def see(self, negative: Collection[float]) -> None:
        """Adds what another reader of other rows has as `negative`; raises as `read` does."""
        self._check_signs(negative)

    def _meaning(self, text: str | None) -> int | None:
        """1 for a click, 0 for none, None for what is no label."""
        if text is None or not text.strip():
            return None
        key = _key(text)
        if key != key:  # NaN
            return None
        if self._positive:
            return int(key in self._positive)
        return _WORDS.get(key.lower()) if isinstance(key, str) else _NUMBERS.get(key)

    def _check_signs(self, keys: Collection[str | float | Decimal]) -> None:
        if self._positive:
            return
        self._negative.update({0.0, -1.0}.intersection(keys))
        if len(self._negative) == 2:
            raise UserError(
                "config.prepare.label: the labels hold both 0 and -1, and -1 may mean that none is "
                "known; name the values that mean a click in config.prepare.positive, as in (1,), "
                "or those that are no label in config.prepare.null_values"
            )


def is_number(text: str) -> bool:
    """Whether a text is a plain decimal number, blanks around it apart."""
    return _NUMBER.fullmatch(text.strip()) is not None


def _key(text: str) -> str | float | Decimal:
    """What makes two spellings one value: the number, or the text without blanks around it.

    Numbers of the same value are equal and hash alike, whole ones at any size.
    """
    text = text.strip()
    if is_number(text):
        number = Decimal(text)
        is_large = not -_EXACT <= number <= _EXACT
        return number if is_large and number == number.to_integral_value() else float(text)
    if text.lower() == "nan":
        return float(text)
    return {"true": 1.0, "false": 0.0}.get(text.lower(), text)


def _said(text: str | None) -> str:
    found = "missing" if text is None or not text.strip() else repr(text)
    remedy = "or name the values that mean a click in config.prepare.positive"
    return f"the label is {found}; it must be {_USUAL}, {remedy}"
