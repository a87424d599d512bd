"""Rows of text are never lost or made: any text, in every dialect, against a loop over characters."""

import numpy as np
import pytest

from emofm_jax.data import problems
from emofm_jax.data.formats import lines, rows
from emofm_jax.data.problems import Notes
from tests.reference import rows as reference

pytestmark = pytest.mark.fast

QUOTINGS = ("double", "multiline", "none")
BOM = b"\xef\xbb\xbf"
SEPARATORS = (",", "\t", ";", "|", " ")


def read(path, separator, quoting, num_columns, block_bytes):
    """({line: cells}, {line: kind} of bad rows, notes) of a file."""
    names = [f"c{i}" for i in range(num_columns)]
    dialect = lines.Dialect(names, separator, quoting)
    good, bad, notes = {}, {}, Notes()
    quoted = "" if quoting == "none" else separator
    whole = [lines.Block(str(path), 1, path.read_bytes().removeprefix(BOM))]
    pieces = lines.blocks(path, separator=quoted, block_bytes=block_bytes)
    for block in pieces if block_bytes else whole:
        chunk = lines.parse(block, dialect, names)
        cells = zip(*(chunk.columns[name].to_pylist() for name in names))
        good |= dict(zip(chunk.lines.tolist(), map(list, cells)))
        bad |= {b.line: b.kind for b in chunk.bad}
        notes.join(chunk.notes)
    return good, bad, notes


def random_text(rng, separator, num_columns):
    """Bytes of rows that are mostly right, with anything between."""
    cells = ["x", "yy", "", "é", "点", '"q"', f'"a{separator}b"', '"d""d"', '"l\nm"', '"l\r\nm"']
    odd = [
        '"',
        '""',
        '"open',
        'shut"',
        "\r",
        "\0",
        "\n",
        "\ufeff",
        "\u2028",
        f'"{separator}',
        'a"b',
    ]
    parts = []
    for _ in range(rng.integers(1, 7)):
        n = num_columns if rng.random() < 0.85 else rng.integers(1, 6)
        take = lambda: rng.choice(odd if rng.random() < 0.15 else cells)
        parts += [separator.join(take() for _ in range(n)), rng.choice(["\n", "\r\n"])]
        if rng.random() < 0.15:
            parts.append(rng.choice(["\n", "\r\n", "\n\n", "\r"]))
    data = "".join(parts[:-1] if rng.random() < 0.3 else parts).encode()
    return data.replace(b"yy", b"\xff") if rng.random() < 0.1 else data


@pytest.mark.slow
def test_any_text_in_any_dialect(tmp_path, monkeypatch):
    rng = np.random.default_rng(20)
    path, seen = tmp_path / "a.txt", {"good": 0, "bad": 0, "blank": 0, "long": 0}
    for i in range(1000):
        separator, num_columns = str(rng.choice(SEPARATORS)), int(rng.integers(1, 5))
        data = random_text(rng, separator, num_columns)
        data = data if data.removeprefix(BOM) else b"x"  # nothing but a BOM is an empty file
        path.write_bytes(data)
        data = data.removeprefix(BOM)
        quoting, block_bytes = QUOTINGS[i % 3], int(rng.choice([0, 0, 0, 0, 1, 30]))
        # Some texts are one piece for pyarrow, some are many, or of rows that are too long for one.
        monkeypatch.setattr(lines, "CACHED_BYTES", (8, 32, 1 << 19)[i // 3 % 3])
        good, bad, notes = read(path, separator, quoting, num_columns, block_bytes)
        expected = reference.read(data, separator, quoting, num_columns)

        what = f"{data!r} {separator!r} {quoting} {num_columns} {block_bytes}"
        decoded = {n: [c.encode("latin-1").decode() for c in r] for n, r in expected.good.items()}
        assert good == decoded, what
        assert set(bad) == expected.bad, what
        counts = {"blank lines": expected.num_blank, "rows over lines": expected.num_long}
        found = {kind: number for (_, kind), (number, _) in notes.items()}
        assert found == {kind: number for kind, number in counts.items() if number}, what
        for key, n in zip(seen, (len(good), len(bad), expected.num_blank, expected.num_long)):
            seen[key] += n
    assert min(seen.values()) > 100, seen  # each of them was tried


def test_blank_lines_are_counted_and_bad_rows_are_told_as_they_are_asked_for(monkeypatch):
    told = []
    monkeypatch.setattr(rows, "Bad", lambda *of: told.append(of) or problems.Bad(*of))
    found = rows.sieve("f", 1, b"\n" * 1000 + b"a,b\n" + b"a\n" * 1000, ",", "double", 2)
    assert found.lines.tolist() == [1001] and not told
    assert found.notes["", "blank lines"] == (1000, "f:1")
    first = (1002, "columns", "1 columns where 2 are expected")
    assert next(iter(found.bad)) == first and told == [first]
    assert len(list(found.bad)) == 1000


def test_a_block_of_many_lines_is_several_and_no_row_is_cut(tmp_path, monkeypatch):
    data = b'a,b\n"x\n\n\ny",c\nd,e\nf,g\n"1\n2\n3\n4\n5\n6",h\ni,j'
    (tmp_path / "a").write_bytes(data)
    monkeypatch.setattr(lines, "MAX_LINES", 3)
    found = list(lines.blocks(tmp_path / "a", separator=","))
    assert b"".join(block.data for block in found) == data
    at = [1 + data[: data.index(block.data)].count(b"\n") for block in found]
    assert [block.line for block in found] == at == [1, 2, 8, 14]


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 100])
def test_lines_are_counted_in_pieces(monkeypatch, size):
    monkeypatch.setattr(lines, "CACHED_BYTES", 7)
    data = np.random.default_rng(size).choice([10, 13, 97], size).astype(np.uint8).tobytes()
    assert lines.num_lines(data) == data.count(b"\n")
