"""One value, one text: what a raw value is called, whatever carried it (a table in docs/data.md).

    17, 17.0, "17.0", Decimal("17.00")               17
    0.5, "0.50"                                      0.5
    True, "true", "True", "TRUE", 1                  1
    date, timestamp at midnight, "2024-03-05 00:00"  2024-03-05
    timestamp of any unit and zone                   2024-03-05 10:00:00.25, in UTC
    bytes                                            the text that they are in UTF-8
    None, null, NaN, NaT, "", "nan", "NaN", "NaT"    missing

A number that is a spelling of a missing value is one at the width that carried it: where "-999.9"
is, so is what 16 bits make of it, -1000.

Text that is no plain number, truth value or ISO time stays as it is: "007", "1e5", "+1", "1.2.0".
"""

import datetime
import decimal
import functools
import numbers
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SPELLING = 2  # of data that are prepared now; 1 is that of release 0.1
MISSING = ("", "nan", "NaN", "NaT")

# Texts that are a number, truth value or time, but not as it is spelled here.
_ZEROS = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]*0|-0")
# As C, Java, JavaScript and decimals write numbers. "1e5" and "12E4" may be ids in hexadecimal.
_POWER = re.compile(r"-?[0-9](?:\.[0-9]+)?[eE][+-][0-9]{1,3}|-?[0-9]\.[0-9]+E[0-9]{1,3}")
_TRUTH = {"true": "1", "True": "1", "TRUE": "1", "false": "0", "False": "0", "FALSE": "0"}
_CLOCK = r"([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)?"
_TIME_OF_DAY = re.compile(_CLOCK)
_INSTANT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]"
    + _CLOCK
    + r" ?(?:(Z|UTC)|([+-])([0-9]{2}):?([0-9]{2})?(?::([0-9]{2}))?)?"
)
_RESPELLED = (
    rf"^(?:{_ZEROS.pattern}|{_POWER.pattern}|[Tt]rue|TRUE|false|False|FALSE"
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9].*|[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]*0)$"
)
# One of these stands in every text that may be respelled, and in no number in hexadecimal.
_SIGNS = (b".", b"-", b"+", b"ru", b"RU", b"al", b"AL")

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")  # as they are spelled here
# Ids of types, since Arrow's own tests of a type take a while.
_BYTES = {kind.id for kind in (pa.binary(), pa.large_binary(), pa.binary(1), pa.binary_view())}
_TEXT = {kind.id for kind in (pa.string(), pa.large_string(), pa.string_view())} | _BYTES
_LARGE = {pa.large_string().id, pa.large_binary().id}
_STRING = pa.string().id
_MAY_HAVE_VIEWS = {
    *(pa.string_view().id, pa.binary_view().id, pa.dictionary(pa.int8(), pa.null()).id),
    *(pa.list_(pa.null()).id, pa.large_list(pa.null()).id, pa.list_(pa.null(), 1).id),
    pa.struct([]).id,
}
# Types that Arrow has no table of distinct values for.
_NOT_LOOKED_UP = (pa.types.is_float16, pa.types.is_decimal32, pa.types.is_decimal64)

_DAY = 86_400  # seconds
MISSING_TEXTS = pa.array(MISSING)
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Of release 0.1; integers may be too large for Arrow.
_SPELLED_BY_ARROW = (
    *(float, np.floating, decimal.Decimal, np.datetime64, np.timedelta64),
    *(datetime.date, datetime.time, datetime.timedelta),
)
_FINER = ("ps", "fs", "as")  # units of numpy


class Distinct(NamedTuple):
    """The distinct values of n: text string[d] (null = missing), which i[n] (d = null)."""

    text: pa.Array
    which: np.ndarray  # i32[n] or i64[n]
    raw: pa.Array  # d values as they came
    respelled: bool  # whether they are text, some of it in another spelling

    def column(self) -> pa.Array:
        """string[n]: the values."""
        return self.text.take(pa.array(self.which, mask=self.which == len(self.text)))

    def each(self, of_distinct: Any, of_null: Any) -> np.ndarray:
        """[n]: what belongs to each value, from what belongs to the d distinct ones and to null."""
        return np.append(np.asarray(of_distinct), of_null)[self.which]

    def counts(self) -> np.ndarray:
        """i64[d]: how often each occurs."""
        return np.bincount(self.which, minlength=len(self.text) + 1)[:-1]


def missing(spellings: Collection[str], spelling: int = SPELLING) -> pa.Array:
    """string[..]: what a missing value may be called, where `spellings` are some names for it."""
    known = ("",) if spelling == 1 else MISSING
    respelled = spell(pa.array(list(spellings), pa.string()), spelling=spelling)
    return pa.array([*known, *spellings, *respelled.drop_null().to_pylist()], pa.string())


def distinct(
    column: pa.Array,
    missing: pa.Array = MISSING_TEXTS,
    respell: bool = True,
    spelling: int = SPELLING,
) -> Distinct:
    """The distinct values of a plain column, spelled.

    Args:
      column: n values of any plain type; no lists. Text that is `unreadable` is null.
      missing: what a missing value may be called (`missing`).
      respell: False leaves text as it is.
      spelling: 1 spells as release 0.1 did.
    """
    coded = column if isinstance(column, pa.DictionaryArray) else unwrapped(column)
    kind = unwrapped_type(coded.type)
    if not isinstance(coded, pa.DictionaryArray):
        if any(test(kind) for test in _NOT_LOOKED_UP):
            coded = _spelled(coded, False, spelling)
        coded = coded.dictionary_encode()

    plain = _spelled(coded.dictionary, False, spelling)
    is_spelled = not respell or spelling == 1 or not is_text(unwrapped_type(coded.dictionary.type))
    text = plain if is_spelled else _respelled(plain)
    gone = pc.is_in(text, missing if spelling == 1 else at_width(missing, kind))
    if spelling != 1 and _may_hold_nul(text):
        gone = pc.or_(gone, pc.match_substring(text, "\0"))
    known = only(pc.invert(gone), text) if gone.true_count else text
    which = coded.indices
    if which.null_count or which.type != pa.int32():
        which = which.cast(pa.int64()).fill_null(len(known))
    return Distinct(known, which.to_numpy(), coded.dictionary, text is not plain)


def at_width(missing: pa.Array, kind: pa.DataType) -> pa.Array:
    """string[..]: what a missing value may be called, and the numbers in it as floats of a type."""
    if not pa.types.is_floating(kind):
        return missing
    numbers = [float(text) for text in missing.to_pylist() if _NUMBER.fullmatch(text)]
    return pa.array([*missing.to_pylist(), *map(_of_float, rounded(numbers, kind))], pa.string())


def rounded(numbers: Sequence[float], kind: pa.DataType) -> np.ndarray:
    """Numbers as they are at the width of an Arrow type, if it is of floats; else in 64 bits."""
    wide = np.array(numbers, np.float64)
    with np.errstate(over="ignore"):
        return wide.astype(f"f{kind.bit_width // 8}") if pa.types.is_floating(kind) else wide


def spell(column: pa.Array, respell: bool = True, spelling: int = SPELLING) -> pa.Array:
    """A plain column as string[n], null where missing; bytes that are no UTF-8 are missing too.

    Args:
      column: n values of any plain type; no lists.
      respell: False leaves text as it is.
      spelling: 1 spells as release 0.1 did.
    """
    text = _spelled(column, respell, spelling)
    known = ("",) if spelling == 1 or not respell else MISSING
    return only(pc.invert(pc.is_in(text, pa.array(known))), text)


def _spelled(column: pa.Array, respell: bool, spelling: int) -> pa.Array:
    """As `spell`, but text that means a missing value is still there."""
    column = unwrapped(column)
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    kind = column.type
    if spelling == 1:
        plain = column.cast(pa.int8()) if pa.types.is_boolean(kind) else column
        return _decoded(plain) if is_text(kind) else plain.cast(pa.string())

    if is_text(kind):
        text = column if kind == pa.string() else _decoded(column)
        return _respelled(text) if respell else text
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_boolean(kind):
        return column.cast(pa.int8()).cast(pa.string())
    if pa.types.is_floating(kind):
        return _of_floats(column)
    if pa.types.is_decimal(kind):
        return pa.array([None if x is None else _plain(x) for x in column.to_pylist()], pa.string())
    return _of_times(column)


def one(
    value: Any,
    respell: bool = True,
    spelling: int = SPELLING,
    missing: tuple[str, ...] = (),
) -> str | None:
    """The text of one value of Python, numpy or pandas; None if it is missing.

    Args:
      value: of any plain type.
      respell: False leaves text as it is.
      spelling: 1 spells as release 0.1 did.
      missing: what a missing value may be called; a number that is one of these at the width that
        it has is called so, since a text has no width.

    Raises:
      TypeError, ArrowInvalid: a value of another kind.
      ValueError: bytes that are no UTF-8, a time that is finer than nanoseconds.
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if spelling == 1 and isinstance(value, _SPELLED_BY_ARROW):
        return spell(pa.array([value], from_pandas=True), respell, spelling)[0].as_py()
    for exact in ("to_datetime64", "to_timedelta64"):  # of pandas, to the nanosecond
        value = getattr(value, exact)() if hasattr(value, exact) else value
    if isinstance(value, np.datetime64 | np.timedelta64):  # the latter passes for an integer
        return spell(pa.array(in_unit_of_arrow(np.array([value]))))[0].as_py()
    value = bytes(value) if isinstance(value, bytearray | memoryview) else value
    if isinstance(value, str | bytes):
        # What a class of texts, such as an Enum, makes of `str` is not what the text is.
        text = value.decode() if isinstance(value, bytes) else str.__str__(value)
        return spell(pa.array([text], pa.string()), respell, spelling)[0].as_py()
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return _plain(value)

    if isinstance(value, decimal.Decimal):  # infinite, or NaN
        value = float(value)
    if isinstance(value, numbers.Real):  # numpy's too
        return None if value != value else _of_number(value, missing)
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return _of_text(value.isoformat())
    if isinstance(value, datetime.timedelta):
        return spell(pa.array([value]))[0].as_py()
    if type(value).__name__ == "UUID":
        return str(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def said(column: pa.Array, i: int) -> str:
    """A value in a message: text and bytes in quotes, others as they are spelled here."""
    if is_text(unwrapped_type(column.type)):
        value = column[i].as_py()
        return "missing" if value is None else repr(value)
    return spell(column.slice(i, 1))[0].as_py() or "missing"


def in_unit_of_arrow(times: np.ndarray) -> np.ndarray:
    """Times or durations of numpy in a unit that Arrow has, too.

    Raises:
      TypeError: durations of months or years, which have no length.
      ValueError: times that are finer than nanoseconds.
    """
    unit = np.datetime_data(times.dtype)[0]
    if unit in UNITS or (unit == "generic" and not np.isnat(times).all()):
        return times  # the latter is an error of Arrow's
    if unit in ("Y", "M") and times.dtype.kind == "m":
        raise TypeError("durations in months or years have no length")
    made = times.astype(f"{times.dtype.kind}8[{'ns' if unit in _FINER else 's'}]")
    if unit in _FINER and ((made.astype(times.dtype) != times) & ~np.isnat(times)).any():
        raise ValueError(f"times in {unit} that are no whole nanoseconds")
    return made


def is_text(kind: pa.DataType) -> bool:
    """Whether values of a type are text, or bytes."""
    return kind.id in _TEXT


def undecodable(column: pa.Array) -> np.ndarray:
    """bool[n]: values that are bytes, but no text in UTF-8."""
    column, kind = unwrapped(column), unwrapped_type(column.type)
    if kind.id not in _BYTES:
        return np.zeros(len(column), bool)
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    return np.asarray(pc.and_not(column.is_valid(), _decoded(column).is_valid()))


def with_nul(column: pa.Array) -> np.ndarray:
    """bool[n]: texts, or bytes, that hold a NUL, as none in a file of text may."""
    column = unwrapped(column)
    if isinstance(column, pa.DictionaryArray):
        which = column.indices.fill_null(len(column.dictionary)).to_numpy()
        return np.append(with_nul(column.dictionary), False)[which]
    if not is_text(column.type) or not _may_hold_nul(column):
        return np.zeros(len(column), bool)
    if pa.types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary())
    return np.asarray(pc.match_substring(column, "\0").fill_null(False))


def is_readable(column: pa.Array) -> bool:
    """Whether it is seen at a glance that no value is `unreadable`: plain text without a NUL."""
    return column.type.id == _STRING and not _may_hold_nul(column)


def unreadable(column: pa.Array) -> np.ndarray:
    """bool[n]: values that are `undecodable`, or `with_nul`."""
    return undecodable(column) | with_nul(column)


def trimmed(text: pa.Array) -> pa.Array:
    """string[n] without the blanks around each; most columns of text have none."""
    data = _bytes_of(text)
    is_bare = not data.size or (data.min() > ord(" ") and data.max() < 128)
    return text if is_bare else pc.utf8_trim_whitespace(text)


def holds(text: pa.Array, signs: Sequence[bytes]) -> bool:
    """Whether one of some pieces of text stands in string[n]."""
    data = _bytes_of(text).tobytes()
    there = {sign: sign in data for sign in {*b"".join(signs)}}  # one byte is found at memory speed
    return any(all(map(there.__getitem__, sign)) and sign in data for sign in signs)


def _may_hold_nul(column: pa.Array) -> bool:
    """Whether a NUL stands in the bytes of plain texts."""
    if pa.types.is_fixed_size_binary(column.type):
        return True
    data = _bytes_of(column)
    return bool(data.size) and not data.min()


def _bytes_of(column: pa.Array) -> np.ndarray:
    """u8[..]: the bytes of texts, one after another."""
    _, offsets, data = column.buffers()
    if data is None or not len(column):
        return np.zeros(0, np.uint8)
    is_large = column.type.id in _LARGE
    ends = np.frombuffer(offsets, np.int64 if is_large else np.int32)
    first, last = ends[column.offset], ends[column.offset + len(column)]
    return np.frombuffer(data, np.uint8)[first:last]


def unwrapped(column: pa.Array) -> pa.Array:
    """The values of extension types and run-end encoded arrays; no views, as Arrow reads few.

    Raises:
      ArrowInvalid: a period or interval of pandas, whose storage is no value.
    """
    while isinstance(column, pa.ExtensionArray | pa.RunEndEncodedArray):
        if not isinstance(column, pa.ExtensionArray):
            column = _of_runs(column)
        elif column.type.extension_name == "arrow.uuid":
            text = [None if x is None else str(x) for x in column.to_pylist()]
            column = pa.array(text, pa.string())
        elif column.type.extension_name == "arrow.bool8":
            column = pc.not_equal(column.storage, 0)
        elif column.type.extension_name.startswith("pandas."):
            raise pa.ArrowInvalid(f"values of type {column.type} have no text")
        else:
            column = column.storage
    return without_views(column)


def _of_runs(column: pa.RunEndEncodedArray) -> pa.Array:
    """The values of runs; Arrow decodes runs of plain values only."""
    places = pa.array(range(len(column.values)), pa.int32())
    index = pa.RunEndEncodedArray.from_arrays(column.run_ends, places)
    index = pc.run_end_decode(index.slice(column.offset, len(column)))
    return without_views(column.values).take(index)


def without_views(column: pa.Array) -> pa.Array:
    """The column with plain text and bytes where it has views of these, as those of polars."""
    if column.type.id not in _MAY_HAVE_VIEWS:
        return column
    plain = _without_views(column.type)
    return column if plain == column.type else column.cast(plain)


def _without_views(kind: pa.DataType) -> pa.DataType:
    """The type without views of text or bytes; `bags.as_lists` sees to views of lists."""
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _without_views(kind.value_type), kind.ordered)
    if pa.types.is_list(kind):
        return pa.list_(_without_views(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_without_views(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_without_views(kind.value_type), kind.list_size)
    return kind


def unwrapped_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values of dictionaries, extension types and run-end encoded arrays."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def _respelled(text: pa.Array) -> pa.Array:
    """string[n]: numbers, truth values and times as they are spelled here."""
    if not holds(text, _SIGNS):
        return text
    odd = pc.match_substring_regex(text, _RESPELLED).fill_null(False)
    if not pc.any(odd).as_py():
        return text
    new = [_of_text(value) for value in text.filter(odd).to_pylist()]
    return pc.replace_with_mask(text, odd, pa.array(new, pa.string()))


def _of_text(text: str) -> str:
    """The text in this module's spelling, if it is a number, truth value or time."""
    if text in _TRUTH:
        return _TRUTH[text]
    if _ZEROS.fullmatch(text):
        return _plain(decimal.Decimal(text))
    if _POWER.fullmatch(text):
        return _of_power(text)
    if found := _INSTANT.fullmatch(text):
        return _of_instant(text, *found.groups())

    if found := _TIME_OF_DAY.fullmatch(text):
        hour, minute, second, fraction = found.groups()
        if second:
            return f"{hour}:{minute}:{second}{_fraction(fraction or '')}"
    return text


def _of_power(text: str) -> str:
    """A number with an exponent: a float, or a decimal where no float has these up to 17 digits."""
    number, exact = float(text), decimal.Decimal(text)
    if np.isinf(number) or (number == 0 and exact):
        return text
    num_digits = len(exact.as_tuple().digits)
    is_float = num_digits <= 17 and decimal.Decimal(f"{number:.{num_digits - 1}e}") == exact
    return _of_float(number) if is_float else _plain(exact)


def _of_instant(text: str, date: str, *parts: str | None) -> str:
    """An ISO time, in UTC; the text itself if there is no such time."""
    hour, minute, second, fraction, _, sign, *offset = parts
    try:
        clock = datetime.time(int(hour or 0), int(minute or 0), int(second or 0))
        time = datetime.datetime.combine(datetime.date.fromisoformat(date), clock)
        if sign:
            hours, minutes, seconds = (int(part or 0) for part in offset)
            ahead = datetime.timedelta(hours=hours, minutes=minutes, seconds=seconds)
            time += -ahead if sign == "+" else ahead
    except (ValueError, OverflowError):
        return text
    return _of_datetime(time.isoformat(" ") + _fraction(fraction or ""))


def _of_datetime(text: str) -> str:
    """A date and time, without a time of midnight."""
    return text.removesuffix(" 00:00:00")


def _of_number(value: Any, missing: tuple[str, ...]) -> str:
    """A number of Python or numpy; or the spelling of a missing value that it is at its width."""
    text = _of_float(value)
    return _called(missing, getattr(value, "dtype", np.dtype(float))).get(text, text)


@functools.lru_cache(maxsize=64)
def _called(missing: tuple[str, ...], kind: np.dtype) -> dict[str, str]:
    """{number at a width: the spelling of a missing value that it is}."""
    if kind.itemsize > 8:
        return {}
    of = pa.from_numpy_dtype(kind)
    pairs = ((at_width(pa.array([text]), of)[1:].to_pylist(), text) for text in missing)
    return {found: text for each, text in pairs for found in each}


def _of_float(value: Any) -> str:
    """The fewest decimal digits that are this number among those of its width, no exponent."""
    if np.isinf(value):
        return "inf" if value > 0 else "-inf"
    text = np.format_float_positional(value, unique=True, trim="-")
    return "0" if text == "-0" else text


def _plain(value: decimal.Decimal) -> str:
    """A number without exponent, zeros behind it, or a sign of zero."""
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _of_floats(column: pa.Array) -> pa.Array:
    """string[n] of floats; NaN is missing."""
    if pa.types.is_float16(column.type):
        values = np.array([np.nan if x is None else x for x in column.to_pylist()], np.float16)
    else:
        values = column.fill_null(np.nan).to_numpy(zero_copy_only=False)

    known = ~np.isnan(values)
    # Most floats that are ids are whole numbers, and small enough that each has its own digits.
    whole = known & (np.abs(values.astype(np.float64)) < 2.0 ** (np.finfo(values.dtype).nmant + 1))
    whole[whole] = values[whole] == np.floor(values[whole])
    integers = np.where(whole, values, 0).astype(np.int64)
    text = only(pa.array(known), pa.array(integers).cast(pa.string()))
    rest = known & ~whole
    if not rest.any():
        return text
    return pc.replace_with_mask(
        text, pa.array(rest), pa.array([_of_float(x) for x in values[rest]], pa.string())
    )


def _of_times(column: pa.Array) -> pa.Array:
    """string[n] of dates, timestamps, times of day and durations (in seconds)."""
    kind = column.type
    if pa.types.is_date64(kind):
        column, kind = column.cast(pa.timestamp("ms")), pa.timestamp("ms")
    if pa.types.is_date(kind):
        days = column.cast(pa.int32()).to_pylist()
        made = [None if x is None else _date(x) for x in days]
    elif pa.types.is_timestamp(kind):
        ticks, per_second = column.cast(pa.int64()).to_pylist(), UNITS[kind.unit]
        made = [None if x is None else _instant(x, per_second) for x in ticks]
    elif pa.types.is_time(kind):
        whole = column.cast(pa.int32() if pa.types.is_time32(kind) else pa.int64())
        made = [None if x is None else _clock(x, UNITS[kind.unit]) for x in whole.to_pylist()]
    elif pa.types.is_duration(kind):
        ticks = column.cast(pa.int64()).to_pylist()
        seconds = lambda x: _plain(decimal.Decimal(x) / UNITS[kind.unit])
        made = [None if x is None else seconds(x) for x in ticks]
    else:
        raise pa.ArrowInvalid(f"values of type {kind} have no text")
    return pa.array(made, pa.string())


def _instant(ticks: int, per_second: int) -> str:
    days, rest = divmod(ticks, _DAY * per_second)
    return _of_datetime(f"{_date(days)} {_clock(rest, per_second)}")


def _date(days: int) -> str:
    return str(np.datetime64(days, "D"))


def _clock(ticks: int, per_second: int) -> str:
    seconds, rest = divmod(ticks, per_second)
    digits = str(rest + per_second)[1:]
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{_fraction(digits)}"


def _fraction(digits: str) -> str:
    """The digits of a fraction of a second, with their point."""
    digits = digits.rstrip("0")
    return f".{digits}" if digits else ""


def _decoded(column: pa.Array) -> pa.Array:
    """Text of any Arrow type, or bytes, as string[n]; null where it is no UTF-8."""
    try:
        if pa.types.is_fixed_size_binary(column.type):
            column = column.cast(pa.binary())
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array(
            [_utf8(value) for value in column.cast(pa.binary()).to_pylist()], pa.string()
        )


def _utf8(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def only(where: pa.Array, text: pa.Array) -> pa.Array:
    """The text where bool[n] is true; null elsewhere."""
    if not where.null_count and not where.false_count:
        return text
    return pc.if_else(where, text, pa.scalar(None, pa.string()))
