"""Where rows and columns stand in a block of text: what quotes enclose, which rows are bad.

A row ends at a line end that stands in no quoted cell. A quoted cell opens at the start of a row or
behind a separator, and closes with a quote before a separator or a line end, at most 1 MiB later; a
quote inside is doubled. A quote that opens a cell and is closed by none, or by one with text behind
it, is a stray one: its row is bad and ends with its line, so that it costs no other row.

A row of several lines is bad, with all its lines, where a later line has by itself the right number
of columns, and the first one has so too, or the row has not: the file may be one that never quotes
(`quoting`).
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from emofm_jax.data.problems import Bad, Notes

_MAX_CELL_BYTES = 1 << 20
_CLOSING = re.compile(rb'[^"]*+(?:""[^"]*+)*+"')  # from behind the opening quote
_STRAY = (
    "a cell opens with a double quote that none closes; double it, or set config.prepare.quoting "
    "to 'none' if the file never quotes"
)
_AMBIGUOUS = (
    "each is a row by itself; set config.prepare.quoting to 'none' if the file never quotes, or to "
    "'multiline' if such cells are meant"
)


class Sieved(NamedTuple):
    """The good rows of a block, as bytes, the lines on which they start, and what is odd."""

    data: bytes
    lines: np.ndarray  # i64[n]
    bad: Iterable[Bad]  # in order, made as they are asked for: there may be millions
    notes: Notes


class _Quotes(NamedTuple):
    """Cells in quotes, from the opening quote to behind the closing one, and stray quotes."""

    starts: np.ndarray  # i64[m]
    stops: np.ndarray  # i64[m]
    stray: np.ndarray  # i64[k], opening quotes
    undecided: int  # opening quote of a cell that may close behind the end of the data; or -1

    def hide(self, positions: np.ndarray) -> np.ndarray:
        """bool[n]: whether each of i64[n] positions stands in a cell in quotes."""
        at = np.searchsorted(self.starts, positions, side="right") - 1
        return (at >= 0) & (positions < np.append(self.stops, 0)[at])


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Rows of a block: n rows, l lines."""

    data: bytes
    quotes: _Quotes
    newlines: np.ndarray  # i64[l or l - 1]: positions of all line ends
    starts: np.ndarray  # i64[n]
    ends: np.ndarray  # i64[n], behind the line end
    stops: np.ndarray  # i64[n], before the line end

    def row_of(self, positions: np.ndarray) -> np.ndarray:
        """i64[m]: the row of each of m positions."""
        return np.searchsorted(self.ends, positions, side="right")

    def line_of(self, positions: np.ndarray) -> np.ndarray:
        """i64[m]: the line of each of m positions, the block's first one being 0."""
        return np.searchsorted(self.newlines, positions, side="left")

    def flag(self, positions: np.ndarray) -> np.ndarray:
        """bool[n]: whether a row holds one of some positions."""
        flags = np.zeros(len(self.starts), bool)
        flags[self.row_of(positions)] = True
        return flags


class _Problem(NamedTuple):
    """What is wrong with some of n rows: a kind for counting, and the reason of each row."""

    kind: str
    wrong: np.ndarray  # bool[n]
    reason: Callable[[int], str]


@dataclasses.dataclass(frozen=True)
class _BadRows:
    """The bad rows of a block, in order.

    Attributes:
      layout: of all rows of the block.
      first, last: i64[n], the lines that a row begins and ends on.
      problems: of the rows; of each the first one is told.
      bad: bool[n], rows of which one is told.
      torn: bool[n], rows of which each line is bad.
    """

    layout: _Layout
    first: np.ndarray
    last: np.ndarray
    problems: list[_Problem]
    bad: np.ndarray
    torn: np.ndarray

    def __iter__(self) -> Iterator[Bad]:
        which = np.zeros(len(self.bad), np.uint8)
        for i, problem in reversed(list(enumerate(self.problems))):
            which[problem.wrong] = i
        for row in np.flatnonzero(self.bad | self.torn).tolist():
            if self.torn[row]:
                yield from self._lines(row)
            else:
                problem = self.problems[which[row]]
                yield Bad(int(self.first[row]), problem.kind, problem.reason(row))

    def _lines(self, row: int) -> Iterator[Bad]:
        first, layout = int(self.first[row]), self.layout
        reason = f"a cell in quotes joins lines {first} to {self.last[row]}, though {_AMBIGUOUS}"
        text = layout.data[layout.starts[row] : layout.stops[row]].split(b"\n")
        for i, part in enumerate(text):
            if part.strip(b"\r"):
                yield Bad(first + i, "quote", reason)


def whole(data: bytes, separator: str) -> int:
    """Length of the leading rows of `data` that are whole, whatever follows.

    Args:
      separator: between columns, if double quotes may enclose a cell; else empty.
    """
    if not separator or b'"' not in data:
        return data.rfind(b"\n") + 1
    quotes = _quotes(data, separator, last=False)
    end = data.rfind(b"\n", 0, None if quotes.undecided < 0 else quotes.undecided)

    for start, stop in zip(quotes.starts[::-1], quotes.stops[::-1]):
        if start < end < stop:
            end = data.rfind(b"\n", 0, start)
        elif stop <= end:
            break
    return end + 1


def sieve(
    file: str, line: int, data: bytes, separator: str, quoting: str, num_columns: int
) -> Sieved:
    """Tells the good rows of a block from the bad ones, and from blank lines, which are neither.

    Args:
      file, line: where the block stands.
      data: whole rows, as `whole` cuts them.
      quoting: `config.prepare.quoting`.
      num_columns: that each row must have.
    """
    layout = _layout(data, separator, quoting)
    blank = layout.starts == layout.stops
    problems, notes = _problems(layout, separator, num_columns), Notes()
    wrong = np.logical_or.reduce([problem.wrong for problem in problems])
    first, last = (line + layout.line_of(at) for at in (layout.starts, layout.ends - 1))
    _note(notes, "blank lines", file, first[blank])

    several = last > first
    torn = np.zeros(len(blank), bool)
    if quoting == "double" and several.any():
        torn = several & _ambiguous(layout, separator, num_columns, wrong)
    bad = _BadRows(layout, first, last, problems, wrong & ~blank, torn)

    good = ~(wrong | blank | torn)
    _note(notes, "rows over lines", file, first[several & good])
    return Sieved(_only(layout, good), first[good], bad, notes)


def _quotes(data: bytes, separator: str, last: bool) -> _Quotes:
    """Finds the cells in quotes of text that starts with a row; `last` if no text follows."""
    behind = {separator.encode(), b"\n"}
    opening = re.compile(rb"(?:\A|(?<=[\n" + re.escape(separator.encode()) + rb']))"')
    starts, stops, stray = [], [], []
    undecided, at = -1, 0
    while match := opening.search(data, at):
        start, limit = match.start(), match.start() + _MAX_CELL_BYTES
        closing = _CLOSING.match(data, match.end(), limit)
        stop = closing.end() if closing else min(limit, len(data))
        if data[stop : stop + 1] in behind or data[stop : stop + 2] == b"\r\n":
            closed = closing is not None and stop < limit
        elif stop < limit and data[stop:] in (b"", b"\r"):  # the end of the data
            if not last:
                undecided = start
                break
            closed = closing is not None
        else:
            closed = False

        if closed:
            starts.append(start)
            stops.append(stop)
        else:
            stray.append(start)
            stop = data.find(b"\n", start)
            if stop < 0:
                break
        at = stop
    array = lambda found: np.array(found, np.int64)
    return _Quotes(array(starts), array(stops), array(stray), undecided)


def _layout(data: bytes, separator: str, quoting: str) -> _Layout:
    nothing = np.zeros(0, np.int64)
    quotes = _Quotes(nothing, nothing, nothing, -1)
    if quoting != "none" and b'"' in data:
        quotes = _quotes(data, separator, last=True)
    characters = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(characters == ord("\n"))
    ends = newlines[~quotes.hide(newlines)] + 1
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(data))

    starts = np.append(0, ends[:-1])
    stops = ends - (characters[ends - 1] == ord("\n"))
    stops -= (stops > starts) & (characters[stops - 1] == ord("\r"))
    return _Layout(data, quotes, newlines, starts, ends, stops)


def _problems(layout: _Layout, separator: str, num_columns: int) -> list[_Problem]:
    """What is wrong with the rows, in the order in which it is told."""
    characters = np.frombuffer(layout.data, np.uint8)
    nul = layout.flag(np.flatnonzero(characters == 0))
    stray = layout.flag(layout.quotes.stray)

    returns = np.flatnonzero(characters == ord("\r"))
    inside = returns < layout.stops[layout.row_of(returns)]
    inside &= ~layout.quotes.hide(returns)
    said = "a carriage return inside the row"

    separators = np.flatnonzero(characters == ord(separator))
    of_rows = layout.row_of(separators[~layout.quotes.hide(separators)])
    found = np.bincount(of_rows, minlength=len(layout.starts)) + 1
    reason = lambda row: f"{found[row]} columns where {num_columns} are expected"
    return [
        _Problem("nul", nul, lambda _: "a NUL byte"),
        _Problem("encoding", _undecodable(layout), lambda row: _why_undecodable(layout, row)),
        _Problem("quote", stray, lambda _: _STRAY),
        _Problem("line end", layout.flag(returns[inside]), lambda _: said),
        _Problem("columns", found != num_columns, reason),
    ]


def _undecodable(layout: _Layout) -> np.ndarray:
    """bool[n]: rows that are not UTF-8."""
    wrong = np.zeros(len(layout.starts), bool)
    try:
        layout.data.decode()
    except UnicodeDecodeError:
        for row, (start, stop) in enumerate(zip(layout.starts.tolist(), layout.stops.tolist())):
            try:
                layout.data[start:stop].decode()
            except UnicodeDecodeError:
                wrong[row] = True
    return wrong


def _why_undecodable(layout: _Layout, row: int) -> str:
    text = layout.data[layout.starts[row] : layout.stops[row]]
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return f"invalid UTF-8, byte 0x{text[error.start]:02x}"
    raise AssertionError("asked of a row that is UTF-8")


def _ambiguous(layout: _Layout, separator: str, num_columns: int, bad: np.ndarray) -> np.ndarray:
    """bool[n]: rows of which a later line is a whole row, as is the first, or which are `bad`."""
    if num_columns == 1:
        return np.zeros(len(layout.starts), bool)  # any line has one
    # Separators in a cell of one line are no separators of columns; in a longer one they may be.
    quotes = layout.quotes
    short = layout.line_of(quotes.starts) == layout.line_of(quotes.stops)
    short_quotes = quotes._replace(starts=quotes.starts[short], stops=quotes.stops[short])
    separators = np.flatnonzero(np.frombuffer(layout.data, np.uint8) == ord(separator))
    lines = layout.line_of(separators[~short_quotes.hide(separators)])
    fits = np.bincount(lines, minlength=len(layout.newlines) + 1) + 1 == num_columns

    before = np.append(0, np.cumsum(fits))
    first, last = layout.line_of(layout.starts), layout.line_of(layout.ends - 1)
    return (fits[first] | bad) & (before[last + 1] > before[first + 1])


def _note(notes: Notes, kind: str, file: str, lines: np.ndarray) -> None:
    """Notes what stands on some lines."""
    if len(lines):
        notes.add("", kind, len(lines), f"{file}:{lines[0]}")


def _only(layout: _Layout, good: np.ndarray) -> bytes:
    """The bytes of the good rows."""
    if good.all():
        return layout.data
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good, [0]])))
    runs = zip(layout.starts[edges[::2]].tolist(), layout.ends[edges[1::2] - 1].tolist())
    return b"".join(layout.data[start:end] for start, end in runs)
