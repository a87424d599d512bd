"""Rows of named columns: csv, tsv and the like, plain or compressed, a header or none; and Parquet.

    label,user,item,tags,price
    1,u17,i4,red^small,3.5

Cells may stand in double quotes, unless `config.prepare.quoting` says otherwise. Columns are found
by name, so files may differ in their order. Every column must be a slot, have a role, or be left
out on purpose (`config.prepare.ignore`).
"""

import csv
import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emofm_jax.data import bags, raw_files, shards, storage, values
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.formats import int96, release_0_1
from emofm_jax.data.formats import lines as lines_lib
from emofm_jax.data.formats.lines import Block, Chunk
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.schema import ROLE_COLUMNS, Slot
from emofm_jax.errors import UserError

_PARQUET_ROWS = 1 << 16
# Before the names of columns that a recipe to evaluate with (`recipe.to_evaluate`) takes along.
_ALSO = "also:"
# Roles that a row to predict may lack.
_ONLY_TRAINING = ("label", "ftype", "weight", "keep_probability", "gauc_key")


def tasks(
    recipe: Mapping, file: RawFile, labelled: bool, progress: Callable[[int], None] | None
) -> Iterator[Callable[[], Chunk]]:
    """Yields functions that each make the chunk of one block of the file (see `formats`)."""
    if raw_files.kind(file.path) == "parquet":
        return _parquet_tasks(recipe, file, labelled, progress)
    return _text_tasks(recipe, file, labelled, progress)


def integer_row_id(recipe: Mapping, files: Sequence[RawFile]) -> bool:
    """True if the row id column holds integers: only Parquet says so, text stays text."""
    if not recipe["row_id"]:
        return False
    first = raw_files.first_full(files)
    if raw_files.kind(first.path) != "parquet":
        return False

    schema = open_parquet(first.path).schema_arrow
    names = [*schema.names, *first.partitions, *first.above]
    if recipe["row_id"] not in names:
        problem = f"there is no column {recipe['row_id']!r} (config.prepare.row_id)"
        raise UserError(f"{first.path}: {problem}")
    if recipe["row_id"] not in schema.names:
        return False
    kind = schema.field(recipe["row_id"]).type
    return pa.types.is_integer(kind) and kind != pa.uint64()


def plain_columns(
    where: str, recipe: Mapping, columns: Mapping[str, pa.Array], slots: Sequence[Slot]
) -> dict[str, pa.Array]:
    """Arrow columns of any type as plain ones and, for bags and vectors, lists of these.

    Where ids have weights, a value is a struct of id and weight.

    Raises:
      UserError: a type that cannot be used, lists in a column of single values.
    """
    plain = {}
    of_one = {s.name for s in slots if s.kind == "categorical" and not s.weighted}
    for name, column in columns.items():
        # A day that is nice to know is left out where it is none.
        is_needed = name != "_day" or not recipe.get("knows_day")
        if not is_needed and pa.types.is_nested(values.unwrapped_type(column.type)):
            continue
        try:
            plain[name] = _plain(recipe, column, name in of_one)
        except pa.ArrowException as error:
            if not is_needed:
                continue
            name = name.removeprefix(_ALSO)
            reason = " ".join(str(error).split())
            what = f"column {name!r} of type {column.type} cannot be used ({reason})"
            raise UserError(f"{where}: {what}; give text, numbers or lists of these") from None
    _check_lists(plain, slots, recipe.get("also") or {})
    return plain


def _text_tasks(
    recipe: Mapping, file: RawFile, labelled: bool, progress: Callable[[int], None] | None
) -> Iterator[Callable[[], Chunk]]:
    slots, quoting = recipe_lib.slots(recipe), recipe_lib.later(recipe, "quoting")
    separator = recipe["separator"]
    if len(separator.encode()) != 1 or separator in '"\r\n':
        problem = f"{separator!r} must be one character, such as ',' or '\\t'"
        raise UserError(f"config.prepare.separator: {problem}")
    quoted = separator if quoting != "none" else ""
    blocks = lines_lib.blocks(file.path, separator=quoted, progress=progress, span=file.span)
    first = next(blocks)
    if first.line == 1 and first.data.isspace() and not first.data.strip(b"\r\n"):
        if (second := next(blocks, None)) is None:
            return  # no row
        blocks = itertools.chain([second], blocks)

    begins = first.line == 1
    head = first.first_row() if begins else lines_lib.first_row(file.path)
    names = _names(recipe, file.path, head, labelled)
    sources = _sources(recipe, file, names, labelled, slots)
    _check_unique(file.path, names, sources.values())
    wanted = _own(names, sources)
    dialect = lines_lib.Dialect(names, separator, quoting, recipe["null_values"])

    def parse(block: Block) -> Chunk:
        chunk = lines_lib.parse(block, dialect, wanted)
        columns = _with_partitions(recipe, file, sources, chunk.columns, len(chunk.lines))
        return dataclasses.replace(chunk, columns=columns)

    if recipe["header"] and begins:
        first = first.behind_first_row()
    for block in itertools.chain([first] if first.data else [], blocks):
        yield functools.partial(parse, block)


def _parquet_tasks(
    recipe: Mapping, file: RawFile, labelled: bool, progress: Callable[[int], None] | None
) -> Iterator[Callable[[], Chunk]]:
    slots, path = recipe_lib.slots(recipe), file.path
    parquet = open_parquet(path)
    if not parquet.metadata.num_rows:
        return
    names = parquet.schema_arrow.names
    sources = _sources(recipe, file, names, labelled, slots)
    _check_unique(path, names, sources.values())
    wanted = _own(names, sources)

    def parse(lines: np.ndarray, batch: pa.RecordBatch) -> Chunk:
        found = {name: batch.column(name) for name in wanted}
        columns = _with_partitions(recipe, file, sources, found, len(lines))
        return Chunk(str(path), lines, plain_columns(str(path), recipe, columns, slots))

    row, size, rows = 1, path.stat().st_size, parquet.metadata.num_rows
    try:
        parquet = int96.fitting(parquet, path, wanted)
        for batch in parquet.iter_batches(_PARQUET_ROWS, columns=wanted):
            if progress is not None:
                progress(size * batch.num_rows // rows)
            lines = row + np.arange(batch.num_rows)
            row += batch.num_rows
            yield functools.partial(parse, lines, batch)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: it cannot be read to its end ({error}); copy it again") from None


def _own(names: Sequence[str], sources: Mapping[str, str]) -> list[str]:
    """The columns that are read from the file itself, at least one."""
    return list(dict.fromkeys(n for n in sources.values() if n in names)) or list(names[:1])


def _check_unique(path: Path, names: Sequence[str], wanted: Collection[str]) -> None:
    """Raises a UserError if a column that is read stands twice."""
    twice = sorted({name for name in names if name in wanted and names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: column {twice[0]!r} stands twice; rename one of the two")


def _with_partitions(
    recipe: Mapping,
    file: RawFile,
    sources: Mapping[str, str],
    columns: Mapping[str, pa.Array],
    num_rows: int,
) -> dict[str, pa.Array]:
    """{slot or role: column}, from the columns of a file or the names of its directories."""
    found = {}
    for key, name in sources.items():
        if name in columns:
            found[key] = columns[name]
            continue
        value = {**file.above, **file.partitions}[name]
        value = None if value in recipe["null_values"] else value
        found[key] = pa.repeat(pa.scalar(value, pa.string()), num_rows)
    return found


def _check_lists(
    columns: Mapping[str, pa.Array], slots: Sequence[Slot], also: Mapping[str, str]
) -> None:
    """Raises UserError where lists, or pairs of id and weight, are not what a slot is."""
    known = {slot.name: slot for slot in slots}
    for name, column in columns.items():
        slot, kind = known.get(name), column.type
        is_list = pa.types.is_list(kind)
        is_pair = pa.types.is_struct(kind.value_type if is_list else kind)
        if name == "gauc_key" and is_pair and not is_list:
            continue  # of a weighted slot (`recipe.key_slot`)
        if slot is None and (is_list or is_pair):
            one = "its column holds lists; name one of single values"
            raise UserError(f"{_asked(name, also)}: {one}")
        if slot is None:
            continue

        where, what = "config.prepare.slots", f"slot {name!r} holds"
        if is_list and not (slot.is_bag or slot.is_vector):
            raise UserError(f"{where}: {what} lists but is {slot.kind}; {_remedy(column)}")
        if is_pair and not slot.weighted:
            remedy = "set weighted=True, or give ids alone"
            raise UserError(f"{where}: {what} pairs of id and weight, but no weights; {remedy}")
        if is_pair and slot.is_bag and not is_list:
            raise UserError(f"{where}: {what} one pair a row but is multi; make it categorical")
        is_single = not is_list and not values.is_text(values.unwrapped_type(kind))
        if slot.is_vector and is_single and not pa.types.is_null(kind):
            raise UserError(f"{where}: {what} single numbers but is a vector; make it numeric")


def _remedy(column: pa.Array) -> str:
    """What a slot may be whose column holds lists."""
    element = values.unwrapped_type(column.type.value_type)
    lengths = pc.unique(pc.list_value_length(column).drop_null()).to_pylist()
    if not (pa.types.is_floating(element) or pa.types.is_decimal(element)):
        return "make it multi"
    length = str(lengths[0]) if len(lengths) == 1 else "how many"
    return f"make it kind='vector', length={length}; a bag of values is kind='multi'"


def _names(recipe: Mapping, path: Path, first_row: bytes, labelled: bool) -> list[str]:
    """Names of the file's columns, in order."""
    try:
        first = _cells(first_row.decode(), recipe)
    except (UnicodeDecodeError, csv.Error) as error:
        problem = f"the first row cannot be read ({error})"
        if isinstance(error, csv.Error) and b"\r" in first_row:
            problem = (
                "its lines end in carriage returns, not in line feeds, or one is within a cell"
            )
        raise UserError(f"{path}:1: {problem}; is it a text file of columns?") from None

    names = first if recipe["header"] else list(recipe["columns"])
    if not names and recipe["header"]:
        problem = "the first line is empty, where the names of the columns should stand"
        raise UserError(f"{path}:1: {problem}; add them")
    if not names:
        problem = "with header=False it must name the columns of the file, in order"
        raise UserError(f"config.prepare.columns: {problem}")

    # Rows to predict may lack the label, the label and the type, or those and the weight.
    roles = [recipe[role] for role in ("label", "ftype", "weight") if recipe[role]]
    short = len(names) - len(first)
    if not labelled and 0 < short <= len(roles):
        return [name for name in names if name not in roles[:short]]
    return names


def _cells(row: str, recipe: Mapping) -> list[str]:
    """The cells of one row of text."""
    if recipe_lib.later(recipe, "quoting") == "none":
        return row.split(recipe["separator"]) if row else []
    return next(csv.reader([row], delimiter=recipe["separator"], strict=True), [])


def _sources(
    recipe: Mapping, file: RawFile, own: Sequence[str], labelled: bool, slots: Sequence[Slot]
) -> dict[str, str]:
    """{slot or role: column of the file or of its directories}, after checking that they agree."""
    path, names = file.path, [*own, *file.partitions, *file.above]
    recipe_lib.key_slot(recipe, slots)
    roles = {role: recipe[role] for role in ROLE_COLUMNS if recipe[role]}
    if kept := recipe_lib.later(recipe, "keep_probability"):
        roles["keep_probability"] = kept
    day = recipe["day_column"]
    if labelled and (
        recipe["split"] == "day" or (recipe.get("knows_day") and names.count(day) == 1)
    ):
        roles["_day"] = day
    for role in () if labelled else _ONLY_TRAINING:
        if roles.get(role) not in names:
            roles.pop(role, None)
    sources = {slot.name: slot.name for slot in slots} | roles
    for slot in slots:
        if roles.get(slot.name, slot.name) != slot.name:
            problem = f"a slot may not be called {slot.name!r} here; rename the column"
            raise UserError(f"config.prepare.groups: {problem}")
    also = recipe.get("also")
    # The name of a role serves where no column has it: `ftype`, say.
    sources |= {_ALSO + name: name for name in also or () if name in names or name not in roles}

    missing = [name for name in dict.fromkeys(sources.values()) if name not in names]
    if missing:
        key = next(key for key, name in sources.items() if name == missing[0])
        is_slot = any(slot.name == key for slot in slots)
        what = "a slot of config.prepare.groups" if is_slot else _asked(key, also or {})
        has = _has([*own, *file.partitions], missing[0], recipe["separator"])
        if key == "keep_probability" and also is not None:  # new rows, which nobody sampled
            has += "; add it, 1 in each row where none was left out"
        if key == "ftype" and also is not None:
            has += "; add it, empty where the type is not known"
        raise UserError(f"{path}: there is no column {missing[0]!r} ({what}); {has}")
    used = {*sources.values(), *recipe["ignore"]}
    extra = [name for name in (*own, *file.partitions) if name not in used]
    if extra and labelled and also is None:
        remedy = "name it in config.prepare.groups or config.prepare.ignore"
        raise UserError(f"{path}: column {extra[0]!r} is a slot in no group; {remedy}")
    return sources


def _has(names: Sequence[str], missing: str, separator: str) -> str:
    """Which columns a file has, where one is missing, and what may be wrong."""
    has = f"the file has {', '.join(names)}"
    if near := [name for name in names if name.strip() == missing.strip()]:
        return f"the file has {near[0]!r}, with other blanks; name it so, or remove them"
    others = [sign for sign in ",;\t|" if sign != separator and sign in names[0]]
    if len(names) == 1 and others:
        return f"{has}; is config.prepare.separator {others[0]!r}?"
    return has


def also(columns: Mapping[str, pa.Array], name: str) -> pa.Array | None:
    """A column that came along, or else the slot of this name; None if the rows have neither."""
    return columns.get(_ALSO + name, columns.get(name))


def _asked(key: str, also: Mapping[str, str]) -> str:
    """Who asks for a column that is no slot: the option of a role, or a flag of a program."""
    if key.startswith(_ALSO):
        name = key.removeprefix(_ALSO)
        return f"--{also[name]}={name}"
    return f"config.prepare.{'day_column' if key == '_day' else key}"


def _plain(recipe: Mapping, column: pa.Array, of_one: bool) -> pa.Array:
    """A column of any type as a plain one, or lists; null for a text of `null_values`.

    Among single ids (`of_one`) `values.distinct` finds these texts, each once.
    """
    if recipe_lib.spelling(recipe) == 1:
        found = release_0_1.plain(column, recipe["null_values"])
        if found is not None:
            return found
    elif of_one:
        return unwrapped(column)
    return _without_nulls(unwrapped(column), recipe["null_values"])


def _without_nulls(column: pa.Array, spellings: Sequence[str]) -> pa.Array:
    """Null for text that is a spelling of a missing value: a whole cell, of a bag too."""
    if not values.is_text(values.unwrapped_type(column.type)):
        return column
    is_string = pa.types.is_string(column.type)
    text = column if is_string else values.spell(column, respell=False)
    missing = pc.is_in(text, _as_array(tuple(spellings)))
    if not missing.true_count:
        return column
    plain = column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
    return pc.if_else(missing, pa.scalar(None, plain.type), plain)


@functools.lru_cache(maxsize=64)
def _as_array(texts: tuple[str, ...]) -> pa.Array:
    return pa.array(texts, pa.string())


def unwrapped(column: pa.Array) -> pa.Array:
    """Values without dictionaries of lists, extension types and the like; all lists are `list`.

    Raises:
      ArrowException: values that no slot can hold, such as lists of lists.
    """
    if column.type == pa.string():
        return column
    column = values.unwrapped(column)
    if isinstance(column, pa.DictionaryArray) and pa.types.is_nested(column.type.value_type):
        column = column.dictionary_decode()
    kind = column.type
    if not pa.types.is_nested(kind):
        values.spell(column.slice(0, 0))  # an error if its values cannot be text
        return column

    if not pa.types.is_struct(kind):
        column = bags.as_lists(column)
        kind = values.unwrapped_type(column.type.value_type)
    else:
        column = values.without_views(column)
    parts = [field.type for field in kind] if pa.types.is_struct(kind) else [kind]
    if any(pa.types.is_nested(values.unwrapped_type(part)) for part in parts):
        raise pa.ArrowInvalid("neither single values nor lists of these")
    if pa.types.is_struct(kind) and len(parts) != 2:
        raise pa.ArrowInvalid(f"a pair is an id and its weight, but it has {len(parts)} fields")
    return column


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens raw rows; raises UserError on a file that is none, or a shard."""
    storage.need(path)
    try:
        file = pq.ParquetFile(path.absolute())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a complete Parquet file ({error}); copy it again") from None

    if shards.FINGERPRINT in (file.metadata.metadata or {}):
        # Its ids would pass for raw values, and every score would be wrong.
        remedy = "name raw rows, or the directory of a complete split"
        raise UserError(f"{path}: it is a shard, not raw rows; {remedy}")
    return file
