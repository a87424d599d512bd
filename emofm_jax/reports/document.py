"""A report as data -> one self-contained HTML page, or Markdown.

Both are made from the same sections of blocks, so that they cannot say different things; charts are in the page only.
Texts know two marks, `code` and **bold**. The page asks the network for nothing: its style, its charts and the few
lines of script that sort a table by a click on its head are inside it.
"""

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

NOT_POSSIBLE = "not possible"
_NOTHING = ("", "-", NOT_POSSIBLE)
_LONG = 36  # characters of a cell that may be broken into lines


class Cell(NamedTuple):
    """What a cell says, and the number it is sorted by (None: by its text)."""

    text: str
    key: float | None = None


class Text(NamedTuple):
    """A paragraph; `loud` ones stand in a box."""

    text: str
    loud: bool = False


class Items(NamedTuple):
    """A list."""

    texts: Sequence[str]


class Table(NamedTuple):
    """Cells under heads; rows of another length than the heads are an error. `strong` is the row that stands out."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    strong: int | None = None


class Charts(NamedTuple):
    """Drawings (<svg>) side by side where there is room."""

    drawings: Sequence[str]


class Section(NamedTuple):
    """A head and its blocks; those without blocks are left out."""

    title: str
    blocks: Sequence[Text | Items | Table | Charts]


def number(value: float | None, digits: int, sign: bool = False) -> Cell:
    """A cell of so many decimals, or a dash."""
    if value is None or value != value:
        return Cell("-")
    return Cell(f"{value:{'+' if sign else ''},.{digits}f}", float(value))


def mean_sd(mean: float, sd: float, digits: int, sign: bool = False) -> Cell:
    """A cell `mean +/- sd`; NaN stands for what is not known."""
    cell = number(mean, digits, sign)
    return (
        cell if sd != sd or cell.key is None else Cell(f"{cell.text} +/- {sd:.{digits}f}", cell.key)
    )


def ends(interval: Sequence[float] | None, digits: int, sign: bool = True) -> Cell:
    """A cell `low to high` of (mean, low, high, ...), or a dash."""
    if interval is None:
        return Cell("-")
    low, high = (f"{end:{'+' if sign else ''}.{digits}f}" for end in interval[1:3])
    return Cell(f"{low} to {high}", float(interval[1]))


def compact(table: Table) -> Table:
    """The table without the columns that say nothing in any row."""
    kept = [
        i for i in range(len(table.heads)) if any(row[i].text not in _NOTHING for row in table.rows)
    ]
    return Table(
        [table.heads[i] for i in kept], [[row[i] for i in kept] for row in table.rows], table.strong
    )


def as_html(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The page.

    Args:
      title: of the page.
      lead: short facts under it.
      sections: in order.
    """
    sections = [section for section in sections if section.blocks]
    links = " ".join(f'<a href="#s{i}">{html.escape(s.title)}</a>' for i, s in enumerate(sections))
    body = "".join(
        f'<section id="s{i}"><h2>{html.escape(s.title)}</h2>{"".join(map(_block, s.blocks))}</section>'
        for i, s in enumerate(sections)
    )
    facts = "".join(f"<li>{_inline(fact)}</li>" for fact in lead)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body><header>'
        f"<h1>{html.escape(title)}</h1><ul>{facts}</ul><nav>{links}</nav></header><main>{body}</main>"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def as_markdown(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The same without the charts."""
    parts = [f"# {title}", "\n".join(f"- {fact}" for fact in lead)]
    for section in sections:
        blocks = [_markdown(block) for block in section.blocks if not isinstance(block, Charts)]
        if blocks:
            parts += [f"## {section.title}", *blocks]
    return "\n\n".join(parts) + "\n"


def as_text(table: Table) -> str:
    """A table in columns, for a terminal."""
    rows = [[*table.heads], *([cell.text.replace("`", "") for cell in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.heads))]
    right = _numeric(table)
    lines = (
        "  ".join(t.rjust(w) if r else t.ljust(w) for t, w, r in zip(row, widths, right))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _block(block) -> str:
    if isinstance(block, Text):
        return f"<p{' class=loud' if block.loud else ''}>{_inline(block.text)}</p>"
    if isinstance(block, Items):
        return f"<ul>{''.join(f'<li>{_inline(text)}</li>' for text in block.texts)}</ul>"
    if isinstance(block, Charts):
        return f'<div class="charts">{"".join(block.drawings)}</div>'
    heads = "".join(
        f'<th scope="col"><button type="button">{_inline(head)}</button></th>'
        for head in block.heads
    )
    rows, numeric = [], _numeric(block)
    for i, row in enumerate(block.rows):
        assert len(row) == len(block.heads), (block.heads, row)
        cells = []
        for cell, right in zip(row, numeric):
            style = "n" if right else "w" if len(cell.text) > _LONG else ""
            key = "" if cell.key is None else f' data-key="{cell.key:.10g}"'
            style = f' class="{style}"' if style else ""
            cells.append(f"<td{style}{key}>{_inline(cell.text)}</td>")
        rows.append(f"<tr{' class=strong' if i == block.strong else ''}>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _markdown(block) -> str:
    if isinstance(block, Text):
        return f"> {block.text}" if block.loud else block.text
    if isinstance(block, Items):
        return "\n".join(f"- {text}" for text in block.texts)
    line = lambda cells: f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    rule = f"|{'|'.join('---:' if right else '---' for right in _numeric(block))}|"
    return "\n".join(
        [line(block.heads), rule, *(line([cell.text for cell in row]) for row in block.rows)]
    )


def _numeric(table: Table) -> list[bool]:
    """Of each column, whether it holds numbers."""
    return [any(row[i].key is not None for row in table.rows) for i in range(len(table.heads))]


def _inline(text: str) -> str:
    """Escaped, with `code` and **bold**, and a sign for +/-."""
    text = text.replace(" +/- ", " \u00b1 ")
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)


_STYLE = """
:root{--ink:#1f2328;--soft:#5f6875;--line:#dde1e6;--paper:#fff;--band:#f5f7f9;--mark:#0b5fa5;--loud:#fff4dc}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa4b2;--line:#30363d;--paper:#0f1318;--band:#171c23;
--mark:#6cb6ff;--loud:#33280f}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1290px;padding:24px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',Arial,sans-serif}
h1{margin:0 0 8px;font-size:26px;line-height:1.25}h2{margin:36px 0 10px;font-size:19px}
header{border-bottom:1px solid var(--line);padding-bottom:14px}
header ul{margin:0;padding:0;list-style:none;color:var(--soft);font-size:13px}
nav{margin-top:10px;font-size:14px}nav a{margin-right:14px;display:inline-block}
a{color:var(--mark);text-decoration:none}a:hover{text-decoration:underline}
p{max-width:82ch;margin:10px 0}main li{max-width:100ch;margin:2px 0}
.loud{background:var(--loud);padding:10px 14px;border-radius:6px;border-left:4px solid #d69e2e}
code{font:.9em ui-monospace,'SF Mono',Menlo,'DejaVu Sans Mono',monospace}
.scroll,.charts{display:inline-block;vertical-align:top;max-width:100%;margin:10px 24px 10px 0}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:4px 6px 4px 5px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td{white-space:nowrap}td.n{text-align:right}td.w{white-space:normal;min-width:30ch}
th{background:var(--band);vertical-align:bottom}
th button{all:unset;cursor:pointer;font-weight:600}th button:focus-visible{outline:2px solid var(--mark)}
th button::after{content:"\\2195";color:var(--soft);padding-left:4px;font-weight:400}
th[aria-sort=ascending] button::after{content:"\\2191"}th[aria-sort=descending] button::after{content:"\\2193"}
tr.strong td{background:var(--band)}tr.strong td:first-child{font-weight:600}tbody tr:hover td{background:var(--band)}
.charts{display:inline-flex;flex-wrap:wrap;gap:16px;align-items:flex-start}.charts svg{max-width:100%;height:auto}
@media print{nav,th button::after{display:none}section{break-inside:avoid-page}}
""".strip().replace("\n", "")

_SCRIPT = """
document.querySelectorAll("th button").forEach(function(button){button.addEventListener("click",function(){
var head=button.parentNode,table=head.closest("table"),body=table.tBodies[0],column=head.cellIndex;
var down=head.getAttribute("aria-sort")!=="descending",sign=down?-1:1;
table.querySelectorAll("th").forEach(function(other){other.removeAttribute("aria-sort")});
head.setAttribute("aria-sort",down?"descending":"ascending");
var numeric=!!body.querySelector("td:nth-child("+(column+1)+")[data-key]");
Array.from(body.rows).sort(function(a,b){a=a.cells[column];b=b.cells[column];
if(!numeric)return sign*a.textContent.localeCompare(b.textContent,"en",{numeric:true});
var p="key" in a.dataset,q="key" in b.dataset;
return p&&q?sign*(a.dataset.key-b.dataset.key):q-p}).forEach(function(row){body.appendChild(row)})})})
""".strip().replace("\n", "")
