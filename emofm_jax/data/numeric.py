"""Numbers from text or typed columns, and what a numeric slot makes of them (docs/data.md)."""

import contextlib
import re
from collections.abc import Callable, Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import values
from emofm_jax.data.problems import Problems
from emofm_jax.data.schema import Slot
from emofm_jax.errors import UserError

_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_NUMERIC = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)


def parse(
    column: pa.Array,
    name: str,
    problems: Problems,
    missing: pa.Array | None = None,
    row_of: np.ndarray | None = None,
    what: str = "is numeric but holds",
) -> np.ndarray:
    """f64[n] of text or typed numbers, NaN for missing; what is no finite float32 is a problem.

    Args:
      name: of the column, for messages.
      missing: what a missing number may be called (`values.missing`); "-1" is -1 and -1.0.
      row_of: i64[n], the row of each number; by default one a row.
      what: what is said of text that is no number, before it.

    Raises:
      UserError: a column of another type, such as a timestamp.
    """
    called = [] if missing is None else missing.to_pylist()
    numbers = read(column, name, problems, called, row_of, what)
    numbers = np.where(among(column, numbers, called), np.nan, numbers)
    mark_infinite(column, numbers, name, problems, row_of)
    return numbers


def read(
    column: pa.Array,
    name: str,
    problems: Problems,
    missing: Collection[str],
    row_of: np.ndarray | None,
    what: str,
) -> np.ndarray:
    """As `parse`, but infinite numbers and those that mean a missing one are still there."""
    column = values.unwrapped(column)
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if values.is_text(column.type):
        wrong = lambda i: f"{name!r} {what} {values.said(column, i)}"
        numbers = _text_numbers(column, missing, problems, wrong, row_of)
    else:
        numbers = _typed_numbers(column, name)
    return numbers + 0.0  # -0 is 0


def mark_infinite(
    column: pa.Array, numbers: np.ndarray, name: str, problems: Problems, row_of: np.ndarray | None
) -> None:
    """Marks numbers f64[n] of a column that are no finite float32."""
    said = lambda i: "not finite" if np.isinf(numbers[i]) else "too large for 32 bits"
    infinite = lambda i: f"{name!r} holds {values.said(column, i)}, which is {said(i)}"
    with np.errstate(over="ignore"):
        problems.mark(np.isinf(numbers.astype(np.float32)), "number", infinite, row_of)


def among(column: pa.Array, numbers: np.ndarray, texts: Collection[str]) -> np.ndarray:
    """bool[n]: which numbers are one of the texts, at the width that carried them.

    Args:
      column: the n numbers as they came: -999.9 in 32 bits is not -999.9 in 64.
      numbers: f64[n], what `parse` makes of them.
      texts: spellings of missing numbers, say; those of no number are none here.
    """
    of = [float(text) for text in texts if re.fullmatch(_NUMBER, text)]
    if not of:
        return np.zeros(len(numbers), bool)
    of = values.rounded(of, values.unwrapped_type(column.type)).astype(np.float64)
    return np.isin(numbers, of)


def spelled(column: pa.Array) -> pa.Array:
    """Text, and decimals, with their numbers as those of a number are called: " 5", "+5", "5.0".

    A whole number is called so at any size, as in a column of integers; others are what they are in
    64 bits. What is no number, such as a missing one, is without the blanks around it.
    """
    kind = values.unwrapped_type(column.type)
    if not (values.is_text(kind) or pa.types.is_decimal(kind)):
        return column
    coded = values.spell(column, respell=False).dictionary_encode()
    texts = [_number_spelled(text) for text in coded.dictionary.to_pylist()]
    return pa.array(texts, pa.string()).take(coded.indices)


def _number_spelled(text: str) -> str:
    bare = text.strip()
    if re.fullmatch(r"[+-]?\d+(\.0*)?", bare, re.A):
        return str(int(bare.partition(".")[0])) if len(bare) <= 400 else bare
    is_number = re.fullmatch(_NUMBER, bare, re.A)
    return str(values.one(float(bare))) if is_number else bare


def absent(column: pa.Array) -> np.ndarray:
    """bool[n]: numbers that are missing, typed or as text."""
    text = values.spell(column, respell=False)
    return np.asarray(values.spell(values.trimmed(text)).is_null())


def _typed_numbers(column: pa.Array, name: str) -> np.ndarray:
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif not any(test(kind) for test in _NUMERIC):
        remedy = "make it categorical, or give a number made of it"
        what = f"column {name!r} must hold numbers, but its type is {kind}"
        raise UserError(f"config.prepare: {what}; {remedy}")
    if pa.types.is_float16(kind):
        column = column.cast(pa.float32())
    if pa.types.is_decimal(kind):  # Arrow's own cast is off by the last bit
        column = column.cast(pa.string())
    numbers = column.cast(pa.float64(), safe=False)  # above 2^53 integers are rounded
    return numbers.fill_null(np.nan).to_numpy(zero_copy_only=False)


def _text_numbers(
    column: pa.Array,
    missing: Collection[str],
    problems: Problems,
    wrong: Callable[[int], str],
    row_of: np.ndarray | None,
) -> np.ndarray:
    if column.type == pa.string():
        with contextlib.suppress(pa.ArrowInvalid):  # most columns hold numbers alone
            found = values.trimmed(column).cast(pa.float64())
            plain = found.to_numpy(zero_copy_only=False)
            if np.count_nonzero(~np.isfinite(plain)) == found.null_count:
                return plain

    text = values.trimmed(values.spell(column, respell=False))
    absent = pa.array([*values.MISSING, *missing], pa.string())
    text = values.only(pc.invert(pc.is_in(text, absent)), text)
    try:
        numbers = text.cast(pa.float64())
        fits = pc.is_finite(numbers)
    except pa.ArrowInvalid:
        text = values.spell(text)  # truth values are 0 and 1 here too
        fits = pc.match_substring_regex(text, f"^{_NUMBER}$")
        numbers = pc.utf8_ltrim(values.only(fits, text), "+").cast(pa.float64())
    problems.mark(pc.invert(fits).fill_null(False), "number", wrong, row_of)
    if (undecodable := values.undecodable(column)).any():
        problems.mark(undecodable, "encoding", wrong, row_of)
    return numbers.fill_null(np.nan).to_numpy(zero_copy_only=False)


def transform(numbers: np.ndarray, slot: Slot) -> np.ndarray:
    """f32[n]: f64[n] raw numbers, transformed; NaN stays."""
    if slot.transform == "log1p":
        numbers = np.sign(numbers) * np.log1p(np.abs(numbers))
    elif slot.transform == "standardize":
        numbers = (numbers - slot.mean) / slot.std
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def bucket(numbers: np.ndarray, rows: int) -> np.ndarray:
    """i32[n]: NaN: 0; 0 .. 2: 1; x > 2: 2 + floor(ln(x)^2), at most rows - 2; x < 0: rows - 1."""
    large = 2 + np.floor(np.log(np.where(numbers > 2, numbers, 2.0)) ** 2)
    ids = np.where(numbers > 2, np.minimum(large, rows - 2), 1)
    return np.where(np.isnan(numbers), 0, np.where(numbers < 0, rows - 1, ids)).astype(np.int32)
