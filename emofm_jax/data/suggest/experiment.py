"""What was guessed -> an experiment file that runs as it is, each line with what was seen."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emofm_jax.data import recipe
from emofm_jax.data.suggest import columns, sample
from emofm_jax.data.suggest.columns import Guess
from emofm_jax.data.suggest.sample import Sample
from emofm_jax.errors import UserError

_WIDTH = 100
_BATCHES = ((200_000, 4096), (20_000, 1024), (0, 256))  # rows of the sample -> rows of a step
_HEAD = '''"""{name}: a first experiment file, suggested from {rows:,} rows.

    python -m emofm_jax.prepare --config=FILE
    python -m emofm_jax.train --config=FILE --workdir=runs/{name}

FILE is this file. Comments say what was seen; docs/data.md says what the fields mean.
{questions}"""

from emofm_jax import config


def get_config(arg=""):
    c = config.recommended()  # our model and its recipe: docs/model.md, sections 10 and 11
    c.name = "{name}"
'''


def suggest(source: Path) -> str:
    """The text of an experiment file for raw rows.

    Raises:
      UserError: as `sample.read` and `columns.guess` do; what it makes would be raw files, too.
    """
    found = sample.read(source)
    if source.is_dir() and not found.splits and Path.cwd().is_relative_to(source.resolve()):
        what = "every file below it is read, so that neither the experiment file nor shards may lie"
        raise UserError(f"--suggest={source}: {what} here; start in a directory beside it")
    if found.format == "tabular":
        guess = columns.guess(found)
        lines, questions = _tabular(found, guess), guess.questions
        large = _of_large_tables(guess)
    else:
        lines, questions = _of_tokens(found), ["are all of the slots known before the click?"]
        large = []
    about = ""
    if found.num_files > 1:
        read = ", ".join(found.read)
        text = f"The rows are of {len(found.read)} of {found.num_files} files: {read}."
        about = f"\n{textwrap.fill(_in_docstring(text), _WIDTH)}\n"
    if found.passed_over:
        some = ", ".join(found.passed_over[:5])
        questions = [*questions, f"what are {some}? They belong to no split and are not read."]

    if found.no_split:
        some = ", ".join(found.no_split[:5])
        what = (
            "Their rows are split with all others, since not all of train, valid and test are there"
        )
        questions = [*questions, f"are {some} for evaluation alone? {what}: name one file of each"]

    name = re.sub(r"\W+", "_", source.resolve().name.split(".")[0]).strip("_").lower() or "mine"
    size = next(size for rows, size in _BATCHES if found.num_rows >= min(rows, sample.ROWS))
    lines += [
        "",
        _line("data.dir", f"data/{name}", "the shards go there"),
        _line("data.batch_size", size, ""),
        *large,
        "    return c",
    ]
    asked = [
        textwrap.fill(f"- {_in_docstring(text)}", _WIDTH, subsequent_indent="  ")
        for text in questions
    ]
    about += "\n".join(["", "Open questions:", *asked, ""]) if asked else ""
    head = _HEAD.format(name=name, rows=found.num_rows, questions=about)
    return head + "\n".join(_printable(line).rstrip() for line in lines) + "\n"


def _of_large_tables(guess: Guess) -> list[str]:
    """What hashed slots ask for: a pass over their whole table in every step would be slow."""
    if not any(slot.get("encoding") == "hash" for slot in guess.slots.values()):
        return []
    return [
        _line(
            "optim.embedding.updates", "lazy", "hashed: a step moves the rows of its batch alone"
        ),
        _line("optim.embedding.l2_rows", 0.0, ""),
        _line("train.average_epochs", 0.0, ""),
        _line("train.epochs", 1, ""),
    ]


def _printable(text: str) -> str:
    """The text in one line: a name of a column or a file adds none."""
    spelled = lambda sign: sign.encode("unicode_escape").decode()
    return "".join(sign if sign.isprintable() else spelled(sign) for sign in text)


def _in_docstring(text: str) -> str:
    """The text as it stands in a docstring, which it cannot end."""
    return _printable(text.replace("\\", "\\\\").replace('"', '\\"'))


def _tabular(found: Sample, guess: Guess) -> list[str]:
    lines = [_line("prepare.source", str(found.source), "")]
    if found.separator != ",":
        lines.append(_line("prepare.separator", found.separator, ""))
    if found.quoting != "double":
        lines.append(_line("prepare.quoting", found.quoting, "quotes do not stand around cells"))
    if not found.header:
        why = "the first line holds values"
        lines += [_line("prepare.header", False, why)]
        lines += _wrapped("prepare.columns", tuple(found.columns))
    if guess.nulls:
        why = "spellings of a missing number"
        lines.append(_line("prepare.null_values", ("", *guess.nulls), why))

    lines += ["", *_split(found, guess), ""]
    for field, name in (
        ("label", guess.label),
        ("row_id", guess.row_id),
        ("weight", guess.weight),
        ("gauc_key", guess.key),
    ):
        if name:
            why = "GAUC ranks the rows of one value among themselves" if field == "gauc_key" else ""
            lines.append(_line(f"prepare.{field}", name, why or guess.why.get(name, "")))
    if guess.max_rejected:
        why = "bad labels among the rows that were read; raise it if there are more"
        lines.append(_line("prepare.max_rejected", guess.max_rejected, why))
    if guess.types:
        for field, value in zip(("ftype", "types"), guess.types):
            lines.append(_line(f"prepare.{field}", value, "").replace("    ", "    # ", 1))
    if guess.ignore:
        lines += _wrapped("prepare.ignore", tuple(guess.ignore))
        lines += [f"    # {name or _spelled(name)}: {guess.why[name]}" for name in guess.ignore]
    return [*lines, "", *_slots(guess)]


def _split(found: Sample, guess: Guess) -> list[str]:
    if found.splits:
        lines = [_line("prepare.split", "files", "the files are the splits")]
        return lines + [_line(f"prepare.files.{k}", v, "") for k, v in found.splits.items()]
    if guess.day and guess.day not in guess.ignore:
        held = max(1, len(guess.days) // 7)
        days = tuple(guess.days)
        why = f"{len(days)} days in the rows that were read: name the last ones of all"
        return [
            _line("prepare.split", "day", "the past predicts the days to come"),
            _line("prepare.day_column", guess.day, guess.why[guess.day]),
            _line("prepare.day_length", len(days[0]), ""),
            _line("prepare.train_days", days[: -2 * held], "rows of other days are passed over"),
            _line("prepare.valid_days", days[-2 * held : -held], why),
            _line("prepare.test_days", days[-held:], ""),
        ]
    few = f"{columns.DAYS} days are needed" if guess.day else "no days"
    why = f"no files of splits, {few}: by a hash of the row"
    return [_line("prepare.split", "share", why), _line("prepare.shares", (0.8, 0.1, 0.1), "")]


def _slots(guess: Guess) -> list[str]:
    by_name = "    # Groups go by the names of the columns: move what stands in a wrong one."
    lines = [by_name] * (len(guess.groups) > 1) + ["    c.prepare.groups = ("]
    for group, names in guess.groups.items():
        lines.append(f"        ({_spelled(group)}, (")
        for name in columns.group_ranges(names):
            lines.append(_beside(f"            {_spelled(name)},", guess.why.get(name, "")))
            if name not in guess.why:
                why = {one: guess.why.get(one) for one in recipe.members(name)}
                lines += [f"            # {one}: {text}" for one, text in why.items() if text]
        lines.append("        )),")

    lines.append("    )")
    if guess.slots:
        lines.append("    c.prepare.slots = {")
        for name, options in guess.slots.items():
            lines.append(_beside(f"        {_spelled(name)}: {_spelled(options)},", ""))
        lines.append("    }")
    return lines


def _of_tokens(found: Sample) -> list[str]:
    """Rows of cti and libsvm: slots are what stands beside the ids."""
    counts = columns.tokens(found.columns["row"], found.format == "cti")
    flat = found.format == "libsvm" and all(
        token.count(":") == 1 for token in found.columns["row"][0].as_py().split()[1:]
    )
    if flat:
        longest = max(len(row.split()) - 1 for row in found.columns["row"].to_pylist())
        groups: dict[str, list[str]] = {"features": ["features"]}
        slots: dict[str, dict[str, Any]] = {
            "features": {"kind": "multi", "max_length": min(longest, 1000)}
        }
        why = {"features": f"rows of id:value, up to {longest} a row"}
    else:
        groups, slots, why = {}, {}, {}
        amounts = columns.amounts(found.columns["row"]) if found.format == "libsvm" else {}
        for name in sorted(counts, key=lambda name: (len(name), name)):
            group = f"of_{name[0]}" if found.format == "cti" else "all"
            groups.setdefault(group, []).append(name)
            why[name] = f"in {len(counts[name]) / found.num_rows:.0%} of the rows"
            if (most := max(counts[name])) > 1:
                length = max(2, int(np.percentile(counts[name], 99)))
                slots[name] = {"kind": "multi", "max_length": length}
                cut = f", {length} or fewer in 99% of these" if length < most else ""
                why[name] += f", up to {most} times{cut}"
            elif name in amounts:
                low, high = amounts[name].min(), amounts[name].max()
                slots[name] = columns.numeric(amounts[name])
                why[name] += f", one id with numbers, {low:g} to {high:g}"

    guess = Guess(groups=groups, slots=slots, why=why)
    lines = [
        _line("prepare.format", found.format, ""),
        _line("prepare.source", str(found.source), ""),
    ]
    return [*lines, "", *_split(found, guess), "", *_slots(guess)]


def _line(field: str, value: Any, why: str) -> str:
    return _beside(f"    c.{field} = {_spelled(value)}", why)


def _spelled(value: Any) -> str:
    """`repr`, with double quotes where they need no backslash."""
    if isinstance(value, str):
        single = repr(value)
        plain = single[0] == "'" and '"' not in value and "\\" not in single
        return f'"{value}"' if plain else single
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_spelled(k)}: {_spelled(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_spelled, value))}{',' * (len(value) == 1)})"
    return repr(value)


def _beside(code: str, why: str) -> str:
    """A line of code with a comment, if there is something to say."""
    why = "".join(c if c.isprintable() else " " for c in why)
    return f"{code}  # {why}" if why else code


def _wrapped(field: str, names: Sequence[str]) -> list[str]:
    """A tuple of names over as many lines as it needs."""
    inner = ", ".join(map(_spelled, names)) + ","
    return [
        f"    c.{field} = (",
        *textwrap.wrap(inner, _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8),
        "    )",
    ]
