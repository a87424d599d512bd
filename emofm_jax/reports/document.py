"""A report as data -> one self-contained HTML page, or Markdown.

Both are made from the same sections of blocks, so that they cannot say different things; charts are
in the page only. Texts know two marks, `code` and **bold**. The page asks the network for nothing:
its style (page.css), its charts and the few lines of script that sort a table by a click on its
head (page.js) are inside it.
"""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from emofm_jax import errors
from emofm_jax.evaluation.comparison import Interval, Spread

NOT_POSSIBLE = "not possible"
_NOTHING = ("", "-", NOT_POSSIBLE)
_LONG = 36  # characters of a cell that may be broken into lines


class Text(NamedTuple):
    """A paragraph; `loud` ones stand in a box."""

    text: str
    loud: bool = False

    def as_html(self) -> str:
        """The paragraph as HTML."""
        return f"<p{' class=loud' if self.loud else ''}>{_inline(self.text)}</p>"

    def as_markdown(self) -> str:
        """The paragraph as Markdown."""
        return f"> {_plain(self.text)}" if self.loud else _plain(self.text)


class Items(NamedTuple):
    """A list."""

    texts: Sequence[str]

    def as_html(self) -> str:
        """The list as HTML."""
        return f"<ul>{''.join(f'<li>{_inline(text)}</li>' for text in self.texts)}</ul>"

    def as_markdown(self) -> str:
        """The list as Markdown."""
        return "\n".join(f"- {_plain(text)}" for text in self.texts)


class Charts(NamedTuple):
    """Drawings (<svg>) side by side where there is room, under a text on them, if any."""

    drawings: Sequence[str]
    text: str = ""

    def as_html(self) -> str:
        """The text and the drawings as HTML."""
        text = Text(self.text).as_html() if self.text else ""
        return f'{text}<div class="charts">{"".join(self.drawings)}</div>'

    def as_markdown(self) -> str:
        """Nothing: Markdown has no drawings."""
        return ""


class Cell(NamedTuple):
    """What a cell says, and the number it is sorted by (None: by its text)."""

    text: str
    key: float | None = None


class Table(NamedTuple):
    """Cells under heads, as many in each row; `strong` is the row that stands out."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    strong: int | None = None

    def compact(self) -> "Table":
        """The table without the columns that say nothing in any row."""
        columns = range(len(self.heads))
        kept = [i for i in columns if any(row[i].text not in _NOTHING for row in self.rows)]
        rows = [[row[i] for i in kept] for row in self.rows]
        return Table([self.heads[i] for i in kept], rows, self.strong)

    def as_html(self) -> str:
        """A <table> whose heads sort it; numbers stand at the right."""
        button = '<th scope="col"><button type="button">{}</button></th>'
        heads = "".join(button.format(_inline(head)) for head in self.heads)
        rows, numeric = [], self._numeric()

        for i, row in enumerate(self.rows):
            assert len(row) == len(self.heads), (self.heads, row)
            cells = []
            for cell, right in zip(row, numeric):
                style = "n" if right else "w" if len(cell.text) > _LONG else ""
                style = f' class="{style}"' if style else ""
                key = "" if cell.key is None else f' data-key="{cell.key:.10g}"'
                cells.append(f"<td{style}{key}>{_inline(cell.text)}</td>")
            rows.append(f"<tr{' class=strong' if i == self.strong else ''}>{''.join(cells)}</tr>")
        inner = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
        return f'<div class="scroll"><table>{inner}</table></div>'

    def as_markdown(self) -> str:
        """The table between bars."""
        cell = lambda text: _plain(text).replace("|", "\\|")
        line = lambda texts: f"| {' | '.join(map(cell, texts))} |"
        rule = "|".join("---:" if right else "---" for right in self._numeric())
        rows = [line([cell.text for cell in row]) for row in self.rows]
        return "\n".join([line(self.heads), f"|{rule}|", *rows])

    def as_text(self) -> str:
        """The table in columns, for a terminal."""
        shown = lambda cell: errors.printable(cell.text.replace("`", ""))
        rows = [[*map(shown, row)] for row in self.rows]
        rows = [[*map(errors.printable, self.heads)], *rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.heads))]
        right = self._numeric()
        place = lambda text, width, right: text.rjust(width) if right else text.ljust(width)
        return "\n".join("  ".join(map(place, row, widths, right)).rstrip() for row in rows)

    def _numeric(self) -> list[bool]:
        """Of each column, whether it holds numbers."""
        return [any(row[i].key is not None for row in self.rows) for i in range(len(self.heads))]


Block: TypeAlias = Text | Items | Charts | Table


class Report(NamedTuple):
    """A whole report.

    Attributes:
      title: of the page.
      lead: short facts under it.
      sections: {title: blocks}; those without blocks are left out.
      results: what it comes to: tables under a name or none, first of what the program prints.
      said: sentences on them.
    """

    title: str
    lead: Sequence[str]
    sections: Mapping[str, Sequence[Block]]
    results: Sequence[tuple[str, Table]]
    said: Sequence[str]

    def as_html(self) -> str:
        """The page."""
        title, links, body = html.escape(errors.printable(self.title)), [], []
        for head, blocks in self.sections.items():
            if blocks:
                head, mark = html.escape(errors.printable(head)), f"s{len(body)}"
                inner = "".join(block.as_html() for block in blocks)
                links.append(f'<a href="#{mark}">{head}</a>')
                body.append(f'<section id="{mark}"><h2>{head}</h2>{inner}</section>')

        facts = "".join(f"<li>{_inline(fact)}</li>" for fact in self.lead)
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
            f"<style>{_beside('page.css')}</style></head><body><header><h1>{title}</h1>"
            f"<ul>{facts}</ul><nav>{' '.join(links)}</nav></header><main>{''.join(body)}</main>"
            f"<script>{_beside('page.js')}</script></body></html>\n"
        )

    def as_markdown(self) -> str:
        """The same without the charts; which sections are nothing else, it says last."""
        facts = (f"- {_plain(fact)}" for fact in self.lead)
        parts = [f"# {_plain(self.title)}", "\n".join(facts)]
        drawn = []
        for head, blocks in self.sections.items():
            texts = [text for block in blocks if (text := block.as_markdown())]
            parts += [f"## {_plain(head)}", *texts] if texts else []
            drawn += [_plain(head)] if blocks and not texts else []
        parts += [f"In report.html only, as charts: {', '.join(drawn)}."] if drawn else []
        return "\n\n".join(parts) + "\n"

    def as_text(self) -> str:
        """Results and the sentences on them, for a terminal."""
        shown = errors.printable
        parts = [f"{shown(name)}\n{table.as_text()}".strip("\n") for name, table in self.results]
        said = (shown(text).replace("`", "").replace("**", "") for text in self.said)
        parts.append("\n".join(said))
        return "\n\n".join(parts)


def code(text: str) -> Cell:
    """A cell of a name in the code's font."""
    return Cell(f"`{text}`")


def number(value: float | None, digits: int, sign: bool = False) -> Cell:
    """A cell of so many decimals, or a dash."""
    if value is None or value != value:
        return Cell("-")
    return Cell(f"{value:{'+' if sign else ''},.{digits}f}", float(value))


def mean_sd(spread: Spread, digits: int, sign: bool = False) -> Cell:
    """A cell `mean +/- sd`, as far as these are known."""
    cell = number(spread.mean, digits, sign)
    if spread.sd != spread.sd or cell.key is None:
        return cell
    return Cell(f"{cell.text} +/- {spread.sd:.{digits}f}", cell.key)


def ends(interval: Interval | None, digits: int, sign: bool = True) -> Cell:
    """A cell `low to high`, or a dash."""
    if interval is None:
        return Cell("-")
    low, high = (f"{x:{'+' if sign else ''}.{digits}f}" for x in (interval.low, interval.high))
    return Cell(f"{low} to {high}", float(interval.low))


def _inline(text: str) -> str:
    """Escaped, with `code` and **bold**, and a sign for +/-."""
    text = errors.printable(text).replace(" +/- ", " \u00b1 ")
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)


def _plain(text: str) -> str:
    """Markdown in which no name of a stranger is HTML, or ends a line."""
    parts = re.split(r"((?<!`)`[^`]+`(?!`))", errors.printable(text))
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]  # between them, code
    return "".join(parts)


def _beside(name: str) -> str:
    """A file beside this one, without indentation and line ends."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return "".join(line.strip() for line in text.splitlines())
