"""What docs/data.md says about rows of text, one character at a time."""

from typing import NamedTuple

QUOTE, NEWLINE, RETURN = '"', "\n", "\r"


class Read(NamedTuple):
    """Good rows as {line: cells}, bad lines, numbers of blank lines and of rows over lines."""

    good: dict[int, list[str]]
    bad: set[int]
    num_blank: int
    num_long: int


class Row(NamedTuple):
    """Cells, where they stand in the text (start, end, whether in quotes), where the row ends."""

    cells: list[str]
    spans: list[tuple[int, int, bool]]
    end: int
    stray: bool


def read(data: bytes, separator: str, quoting: str, num_columns: int) -> Read:
    """Reads bytes; they are Latin-1 here, so that a character is a byte."""
    text = data.decode("latin-1")
    good: dict[int, list[str]] = {}
    bad: set[int] = set()
    at, line, num_blank, num_long = 0, 1, 0, 0
    while at < len(text):
        row = _row(text, at, separator, quoting)
        lines = text[at : row.end].removesuffix(NEWLINE).split(NEWLINE)
        fits = [n == num_columns for n in _columns_of_lines(text, at, row, separator)]
        whole = NEWLINE.join(lines).removesuffix(RETURN)
        wrong = row.stray or len(row.cells) != num_columns or "\0" in whole or not _is_utf8(whole)
        for cell, (_, _, quoted) in zip(row.cells, row.spans):
            wrong = wrong or (RETURN in cell and not quoted)

        torn = quoting == "double" and num_columns > 1 and any(fits[1:]) and (wrong or fits[0])
        if not whole:
            num_blank += 1
        elif torn:
            bad |= {line + i for i, part in enumerate(lines) if part.strip(RETURN)}
        elif wrong:
            bad.add(line)
        else:
            good[line] = row.cells
            num_long += len(lines) > 1
        at, line = row.end, line + len(lines)
    return Read(good, bad, num_blank, num_long)


def _row(text: str, at: int, separator: str, quoting: str) -> Row:
    """The row that starts at a position."""
    cells, spans = [], []
    while True:
        cell, end, quoted = _cell(text, at, separator, quoting)
        if end < 0:
            line_end = text.find(NEWLINE, at)
            return Row([], spans, len(text) if line_end < 0 else line_end + 1, True)
        cells.append(cell)
        spans.append((at, end, quoted))
        if text[end : end + 1] == separator:
            at = end + 1
            continue
        line_end = text.find(NEWLINE, end)
        return Row(cells, spans, len(text) if line_end < 0 else line_end + 1, False)


def _cell(text: str, at: int, separator: str, quoting: str) -> tuple[str, int, bool]:
    """A cell, the position behind it (-1 if it opens with a stray quote), whether it is quoted."""
    end = at
    if quoting == "none" or text[at : at + 1] != QUOTE:
        while end < len(text) and text[end] not in (separator, NEWLINE):
            end += 1
        if text[at:end].endswith(RETURN) and text[end : end + 1] != separator:
            end -= 1
        return text[at:end], end, False

    end, cell = at + 1, ""
    while end < len(text):
        if text[end] != QUOTE:
            cell += text[end]
            end += 1
        elif text[end + 1 : end + 2] == QUOTE:
            cell += QUOTE
            end += 2
        else:
            rest = text[end + 1 : end + 3]
            closed = rest in ("", RETURN, RETURN + NEWLINE) or rest[0] in (separator, NEWLINE)
            return cell, end + 1 if closed else -1, True
    return "", -1, True


def _columns_of_lines(text: str, at: int, row: Row, separator: str) -> list[int]:
    """Columns of each line of a row; a separator in a quoted cell of one line divides none."""
    hidden: set[int] = set()
    for start, end, quoted in row.spans:
        if quoted and NEWLINE not in text[start:end]:
            hidden |= {*range(start, end)}
    counts = [1]
    for i in range(at, row.end):
        if text[i] == NEWLINE:
            counts.append(1)
        elif text[i] == separator and i not in hidden:
            counts[-1] += 1
    return counts[:-1] if text[at : row.end].endswith(NEWLINE) else counts


def _is_utf8(text: str) -> bool:
    try:
        text.encode("latin-1").decode()
    except UnicodeDecodeError:
        return False
    return True
