"""The `prepare` section of a configuration, read: which slots, which files, a row's split.

Everything here takes the section as a plain dict (`config.prepare.to_dict()`, or `schema.recipe` as
it stands in schema.json), so that raw rows can be read again exactly as when the shards were made.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from emofm_jax.data import raw_files, storage, values
from emofm_jax.data.raw_files import RawFile
from emofm_jax.data.schema import CHOICES, LATER_OF_SLOT, Slot
from emofm_jax.data.shards import SPLITS
from emofm_jax.data.values import Distinct
from emofm_jax.errors import UserError

# Dates, and which of their numbers are year, month, day.
_DATES = (
    (re.compile(r"(\d{4})[-/.](\d\d?)[-/.](\d\d?)(\D.*)?"), (1, 2, 3)),
    (re.compile(r"(\d\d?)\.(\d\d?)\.(\d{4})(\D.*)?"), (3, 2, 1)),
)
_UNCLEAR = re.compile(r"\d\d?[-/]\d\d?[-/]\d{2,4}")  # is it the month that comes first?
_PIECES = re.compile(r"\d+|\D+")
# 20240310, and with hours behind it.
_DIGITS = re.compile(r"((?:19|20)\d\d)(0[1-9]|1[0-2])([0-3]\d)((?:\d\d){1,3})?")
_RANGE = re.compile(r"(.*?)(\d+)-\1(\d+)")
# What reading raw rows takes of a recipe, by the type that JSON gives it.
_OF_ROWS: dict[tuple[type, ...], str] = {
    (dict,): "slot slots",
    (str,): "split day_column separator quoting label ftype row_id weight gauc_key slot.separator "
    "slot.kind slot.encoding slot.keep slot.pooling slot.transform slot.share",
    (list, tuple): "columns null_values positive types ignore groups slot.null_values",
    (bool,): "header slot.weighted slot.respell",
    (int,): "day_length seed slot.rows slot.min_count slot.max_length slot.length",
}
# Options that came after release 0.1, with what every recipe before them meant.
_LATER: dict[str, Any] = {
    "positive": (),
    "quoting": "double",
    "train_days": (),
    "replay_days": (),
    "negative_keep_rate": 1.0,
    "keep_probability": "",
}
# What `split_of` gives a row beside an index into SPLITS.
NO_DAY, PASSED_OVER, REPLAYED = -1, -2, -3
# Roles that the rows of a format do not have.
_NO_ROLES = {
    "cti": ("ftype", "weight", "keep_probability", "row_id", "positive"),
    "libsvm": ("ftype", "types", "weight", "keep_probability", "row_id"),
}


def is_weighted(recipe: Mapping) -> bool:
    """Whether rows have a weight: a column of theirs, or what undoes a sampling."""
    sampling = later(recipe, "negative_keep_rate") < 1 or later(recipe, "keep_probability")
    return bool(recipe["weight"] or sampling)


def later(recipe: Mapping, field: str) -> Any:
    """The value of an option that recipes of release 0.1 do not have."""
    return recipe[field] if field in recipe else _LATER[field]


def check_whole(recipe: Mapping, where: str) -> None:
    """Checks a recipe of a file, as far as reading raw rows needs it.

    Raises:
      UserError: a field is missing, or of another type.
    """
    whole = _LATER | dict(recipe)
    if isinstance(of_slots := recipe.get("slot"), Mapping):
        whole |= {f"slot.{name}": value for name, value in {**LATER_OF_SLOT, **of_slots}.items()}
    if isinstance(slots_of := recipe.get("slots"), Mapping):
        whole |= {f"slots.{name}": value for name, value in slots_of.items()}

    wanted: dict[str, tuple] = {
        field: kinds for kinds, fields in _OF_ROWS.items() for field in fields.split()
    }
    wanted |= {field: (dict,) for field in whole if field.startswith("slots.")}
    for field, kinds in wanted.items():
        if type(value := whole.get(field)) not in kinds:
            shown = f"recipe.{field} is {str(value)[:100]!r}"
            shown = shown if field in whole else f"no recipe.{field}"
            raise UserError(f"{where}: not a schema ({shown}); prepare again")


def spelling(recipe: Mapping) -> int:
    """How values are called (`values`): as now, unless `encode.read_encoded` said otherwise."""
    return recipe.get("spelling", values.SPELLING)


def key_slot(recipe: Mapping, slots: Sequence[Slot]) -> Slot | None:
    """The slot that `gauc_key` names, None if it names another column.

    Raises:
      UserError: it is a slot of several values.
    """
    key = recipe.get("gauc_key")
    slot = next((slot for slot in slots if slot.name == key), None)
    if slot and (slot.is_bag or slot.is_vector) and spelling(recipe) != 1:
        problem = f"{key!r} must be a slot with one value"
        raise UserError(f"config.prepare.gauc_key: {problem}; name another")
    return slot


def slots(recipe: Mapping) -> tuple[Slot, ...]:
    """The slots that a recipe declares, in the order of their groups.

    Returns:
      Slots as far as they are known without data: vocabularies have 0 rows and no digest,
      `standardize` has no mean, `bucket` without `rows` has 0 rows. A slot that shares rows has the
      encoding, rows and seed of their owner.
    Raises:
      UserError: no group, a slot in no group, an unknown option or a value that it cannot have.
    """
    grouped = [(group, name) for group, spec in _pairs(recipe["groups"]) for name in members(spec)]
    names = [name for _, name in grouped]
    for name in recipe["slots"]:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "name it in config.prepare.groups"
            raise UserError(f"config.prepare.slots: {name!r} is a slot in no group; {hint}")
    options = {name: slot_options(recipe, name) for name in names}
    return tuple(_slot(recipe, group, name, options) for group, name in grouped)


def check_roles(recipe: Mapping) -> None:
    """Raises UserError on a role that has no effect on the format's rows, or is missing."""
    for problem in _problems_of_roles(recipe):
        raise UserError(f"config.prepare.{problem}")


def _problems_of_roles(recipe: Mapping) -> Iterator[str]:
    source, by_day = recipe["format"], recipe["split"] == "day"
    for field in _NO_ROLES.get(source, ()):
        if recipe.get(field):
            yield f"{field}: {recipe[field]!r} has no effect on {source} rows; leave it out"
    if source == "tabular" and not recipe["label"]:
        yield "label: it is empty; name the column of labels"
    if source == "tabular" and recipe["types"] and not recipe["ftype"]:
        yield "types: they have no effect without config.prepare.ftype; name its column"
    if source == "tabular" and by_day and not recipe["day_column"]:
        yield "day_column: it is empty; split=day needs the column that holds the day"
    if source == "cti" and by_day and recipe["day_column"] != "log_id":
        yield "day_column: cti rows have no other day column; set day_column to 'log_id'"
    if source == "libsvm" and by_day:
        yield "split: libsvm rows have no day column; choose split=files or split=share"

    for field in ("train_days", "replay_days"):
        if later(recipe, field) and not by_day:
            yield f"{field}: it has no effect on split={recipe['split']}; leave it out"
    names = [values.one(name) for name in recipe["types"]] if source == "tabular" else []
    if None in names:
        name = recipe["types"][names.index(None)]
        yield f"types: {name!r} is what a missing value is called; leave it out"
    elif twice := [name for name in names if names.count(name) > 1]:
        yield f"types: {twice[0]!r} stands twice in {tuple(recipe['types'])}; name it once"
    seen: dict[str, str] = {}
    for field in ("train_days", "replay_days", "valid_days", "test_days"):
        for day in named_days(recipe, field):
            if seen.setdefault(day, field) != field:
                yield f"{field}: {day!r} is one of {seen[day]}, too; name it once"


def members(spec: Any) -> list[str]:
    """Names of slots from a name, a range as in `C1-C26`, or a list of these."""
    where = "config.prepare.groups"
    if isinstance(spec, list | tuple):
        return [name for part in spec for name in members(part)]
    if not isinstance(spec, str):
        raise UserError(f"{where}: {spec!r} is no name of a slot; write it between quotes")

    found = _RANGE.fullmatch(spec)
    if not found:
        return [spec]
    prefix, first, last = found.groups()
    if int(first) > int(last):
        raise UserError(f"{where}: the range {spec!r} is empty; write the smaller number first")
    return [f"{prefix}{i}" for i in range(int(first), int(last) + 1)]


def slot_options(recipe: Mapping, name: str) -> dict[str, Any]:
    """`config.prepare.slot` with the exceptions of one slot, checked."""
    # In JSON a tuple is a list.
    as_tuple = lambda value: tuple(value) if isinstance(value, list) else value
    options = LATER_OF_SLOT | {k: as_tuple(value) for k, value in recipe["slot"].items()}
    for field, value in dict(recipe["slots"].get(name, {})).items():
        where, value = f"config.prepare.slots.{name}.{field}", as_tuple(value)
        if field not in options:
            raise UserError(f"{where}: there is no such field; known: {', '.join(sorted(options))}")
        if type(value) is not type(options[field]):
            kind = type(options[field]).__name__
            raise UserError(f"{where}: {value!r} must be of type {kind}; correct it")
        options[field] = value

    for field, said in _problems_of_options(options):
        raise UserError(f"config.prepare.slot.{field}: slot {name!r} has {said}")
    return options


def _problems_of_options(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, value and remedy) of what the options of a slot cannot be."""
    for field, known in CHOICES.items():
        if options[field] not in known:
            yield field, f"{options[field]!r}; choose one of {', '.join(known)}"
    kind = options["kind"]
    for field in ("min_count", "max_length"):
        if options[field] < 1:
            yield field, f"{options[field]}; it must be at least 1"

    if kind in ("multi", "vector") and not options["separator"]:
        yield "separator", "none; name what stands between its values"
    if kind == "vector" and options["length"] < 1:
        yield "length", f"{options['length']}; say how many numbers a vector has"
    if kind == "vector" and options["transform"] != "none":
        yield (
            "transform",
            f"{options['transform']!r}, but is a vector, whose numbers stay as they are",
        )
    if kind in ("numeric", "vector") and options["weighted"]:
        yield "weighted", f"True, but is {kind}; only ids have weights"
    if odd := [text for text in options["null_values"] if not isinstance(text, str)]:
        yield "null_values", f"{odd[0]!r}, which is no text; write it between quotes"


def to_evaluate(recipe: Mapping, also: Mapping[str, str]) -> dict[str, Any]:
    """The recipe that reads labelled rows which no split is made of.

    Roles must be there as in training, but for the day, which comes along where it is there;
    columns that the recipe does not know are passed over. The columns `also` come along with the
    slots and roles, each for the flag that names it.
    """
    knows_day = recipe["split"] == "day"
    return {**recipe, "split": "share", "also": dict(also), "knows_day": knows_day}


def files(recipe: Mapping, later: bool = False) -> dict[str, list[RawFile]]:
    """The raw files of each split; under the one key "" if the rows themselves say their split.

    Args:
      recipe: `config.prepare` as a dict.
      later: what lies at s3:// is fetched when it is read (`storage.reading`).

    Raises:
      UserError: the source, or a split's files, do not exist.
    """
    where, source = "config.prepare.source", storage.reading(recipe["source"], later=later)
    named = f"{where}: {str(source)!r}"
    if not recipe["source"]:
        raise UserError(f"{where}: it is empty; name the file or directory of the raw data")
    if not source.exists():
        raise UserError(f"{named} does not exist; name the raw data's file or directory")
    if recipe["split"] != "files":
        if found := raw_files.find(source):
            check_once(found)
            return {"": found}
        raise UserError(f"{named} holds no file; name the raw data's directory")
    if source.is_file():
        raise UserError(
            f"{named} is one file, but split=files wants a directory with one file per split; "
            "set config.prepare.split to share or day"
        )

    patterns = {split: recipe["files"][split] for split in SPLITS}
    if not patterns["train"]:
        raise UserError("config.prepare.files.train: it is empty; the train split is needed")
    found = {s: _split_files(source, s, pattern) for s, pattern in patterns.items() if pattern}
    check_once([file for files in found.values() for file in files], " from config.prepare.files")
    return found


def searched(recipe: Mapping, source: Path) -> list[Path]:
    """The directories of which all files are raw files.

    Args:
      recipe: `config.prepare` as a dict.
      source: where its source lies.
    """
    if recipe["split"] != "files":
        return [source] if source.is_dir() else []
    patterns = [recipe["files"][split] for split in SPLITS if recipe["files"][split]]
    found = (path for pattern in patterns for path in source.glob(pattern))
    return [path for path in found if path.is_dir()]


def _split_files(source: Path, split: str, pattern: str) -> list[RawFile]:
    """The files of a split: what `pattern` finds in the source, directories with all they hold."""
    where = f"config.prepare.files.{split}"
    if Path(pattern).is_absolute():
        problem = f"{pattern!r} must be relative to config.prepare.source"
        raise UserError(f"{where}: {problem}; shorten it")

    depth = len(source.parts)
    seen = lambda path: not any(map(raw_files.is_hidden, path.parts[depth:]))
    paths = sorted(filter(seen, source.glob(pattern)))
    # A pattern may find a directory and files in it.
    found = {file.path: file for path in paths for file in raw_files.find(path, source)}
    if not found:
        here = ", ".join(sorted(p.name for p in source.iterdir() if seen(p))[:8]) or "nothing"
        raise UserError(
            f"{source / pattern}: no such file (the directory holds {here}); "
            f"set {where}, empty for a split that you do not have"
        )
    files = list(found.values())
    check_once(files, f", or set {where}")
    return files


def check_once(files: Sequence[RawFile], remedy: str = "") -> None:
    """Raises a UserError if a file is there twice: by a link, or plain and compressed."""
    names: dict[Any, Path] = {}
    for path in (file.path for file in files):
        keys: list[Any] = [path.resolve()]
        if (about := path.stat()).st_nlink > 1 and about.st_size:
            keys.append((about.st_dev, about.st_ino))
        for first in [names.setdefault(key, path) for key in keys]:
            if first is not path:
                raise UserError(f"{path}: it is {first}, and would count twice; remove one{remedy}")

    plain: dict[Path, Path] = {}
    for path in (file.path for file in files):
        bare = raw_files.without_compression(path)
        if (first := plain.setdefault(bare, path)) is not path:
            what = "plain and compressed" if bare in (path, first) else "in two compressions"
            both = f"{bare}: it is there {what} ({first.name}, {path.name})"
            raise UserError(f"{both}; remove one{remedy}")


def distinct_days(recipe: Mapping, column: pa.Array) -> Distinct:
    """The distinct values of the day column of some rows."""
    return values.distinct(column, values.missing(recipe["null_values"]))


def days_of(recipe: Mapping, days: Distinct) -> list[str | None]:
    """The day of each distinct value of the day column; None for one that means there is none."""
    length = recipe["day_length"] or None
    texts = days.text.to_pylist()
    return [None if day is None else _time_of(day, length)[:length] for day in texts]


def in_order(days: Iterable[str], strict: bool = False) -> list[str]:
    """Days from the first to the last: 20240310, 2024-3-10, 10.3.2024, or texts by their numbers.

    Args:
      days: as `days_of` spells them.
      strict: whether something depends on the order.

    Raises:
      UserError: the order cannot be told (3/10/2024; mon, tue) and is asked for.
    """
    days = list(days)
    if all(map(str.isdecimal, days)):
        return sorted(days, key=int)
    if all(found := [_date(day) for day in days]):
        return [day for _, day in sorted(zip(found, days))]
    if strict:
        _check_order(days)
    numbers = lambda day: [(int(x), "") if x.isdecimal() else (-1, x) for x in _PIECES.findall(day)]
    return sorted(days, key=numbers)


def _check_order(days: Sequence[str]) -> None:
    """Raises UserError on days such as 3/10/2024, and on those that differ by more than numbers."""
    unclear = [day for day in days if _UNCLEAR.match(day)][:1]
    shapes = {re.sub(r"\d+", "0", day): day for day in sorted(days)}
    if not unclear and len(shapes) > 1:
        unclear = sorted(shapes.values())[:2]
    if unclear:
        what = f"days such as {' and '.join(map(repr, unclear))} have no order that all agree on"
        raise UserError(f"config.prepare.day_column: {what}; write them as 2024-03-10")


def _date(day: str) -> tuple[int, int, int, str] | None:
    """Year, month, day and what stands behind them; None of a text that is no date."""
    for pattern, order in _DATES:
        if m := pattern.fullmatch(day):
            year, month, number = (int(m[i]) for i in order)
            return year, month, number, m[4] or ""
    return None


def moment(day: str) -> tuple[int, int, int, str] | str:
    """What a day is, however it is spelled: 20240310, 2024-3-10 and 10.3.2024 are one."""
    if m := _DIGITS.fullmatch(day):
        return int(m[1]), int(m[2]), int(m[3]), m[4] or ""
    return _date(day) or day


def named_days(recipe: Mapping, name: str) -> list[str]:
    """The days of an option, `valid_days` and the like, as `days_of` spells them."""
    return [str(values.one(day)) for day in later(recipe, name)]


def check_unseen(recipe: Mapping, days: Collection[str], where: str) -> None:
    """Raises UserError if a validation or test day is one that a model or a base was trained on.

    Args:
      recipe: of the new rows.
      days: that were trained on.
      where: begins the error.
    """
    for name in ("valid_days", "test_days"):
        if seen := shared_days(named_days(recipe, name), days):
            (day, theirs), *_ = seen.items()
            what = day if moment(day) == moment(theirs) else f"{theirs}, with rows of {day}"
            what = f"it was trained on {what}, which config.prepare.{name} has"
            raise UserError(f"{where}: {what}; name later days")


def shared_days(days: Collection[str], others: Collection[str]) -> dict[str, str]:
    """{day: one of the others that has rows of it}, of those that have one.

    Days are what they are however they are spelled. Where one side has hours and the other has
    none, a date has the rows of its hours.
    """
    timed = [any(map(_is_time, side)) for side in (days, others)]
    what = moment if timed[0] == timed[1] else lambda day: moment(day)[:3]
    there = {what(other): other for other in reversed([*others])}
    return {day: there[what(day)] for day in days if what(day) in there}


def _is_time(day: str) -> bool:
    """Whether a day is a part of a date."""
    at = moment(day)
    return isinstance(at, tuple) and bool(at[3])


def _time_of(day: str, length: int | None) -> str:
    """A day with its midnight, where more than the date is looked at (`values` leaves it out)."""
    is_date = length is not None and length > 10 and re.fullmatch(r"\d{4}-\d\d-\d\d", day)
    return f"{day} 00:00:00" if is_date else day


def split_of(
    recipe: Mapping, file_index: int, lines: np.ndarray, days: Distinct | None
) -> np.ndarray:
    """Which split each row is in: an index into `shards.SPLITS`.

    Args:
      recipe: with split = share | day.
      file_index: of the rows' file among the source's files.
      lines: i64[n], lines of the rows in it. With `share` a row's split follows from the seed, its
        file's index and its line alone.
      days: values of the day column of the n rows (split=day).

    Returns:
      i8[n]; NO_DAY for a missing day, PASSED_OVER for one that is in no split, REPLAYED for one of
      the train split that the base has already.
    """
    if days is not None:
        places = {day: 0 for day in named_days(recipe, "train_days")}
        others = PASSED_OVER if places else 0
        places |= dict.fromkeys(named_days(recipe, "replay_days"), REPLAYED)
        places |= dict.fromkeys(named_days(recipe, "valid_days"), 1)
        places |= dict.fromkeys(named_days(recipe, "test_days"), 2)
        place = lambda day: NO_DAY if day is None else places.get(day, others)
        found = [place(day) for day in days_of(recipe, days)]
        return np.array([*found, NO_DAY], np.int8)[days.which]  # the last is for null

    edges = np.cumsum(recipe["shares"])[:2]
    drawn = _uniform(recipe["seed"], file_index, lines)
    return np.searchsorted(edges, drawn, side="right").astype(np.int8)


def sampled(recipe: Mapping, file_index: int, lines: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Which training rows are kept: every click, and of the others a share (negative_keep_rate).

    Args:
      recipe: whose seed decides, apart from that of split=share.
      file_index: of the rows' file among the split's files.
      lines: i64[n], of the rows in it.
      label: i8[n].

    Returns:
      bool[n].
    """
    rate = later(recipe, "negative_keep_rate")
    return (label > 0) | (_uniform(~recipe["seed"], file_index, lines) < rate)


def _uniform(seed: int, file_index: int, lines: np.ndarray) -> np.ndarray:
    """f64[n] in [0, 1), of the seed, a file and its lines alone."""
    key = np.uint64((seed * 0x9E3779B97F4A7C15 + (file_index << 40)) % 2**64)
    bits = _mix(_mix(key + np.asarray(lines, np.uint64))) >> np.uint64(11)
    return bits.astype(np.float64) / 2.0**53


def _slot(recipe: Mapping, group: str, name: str, options: dict[str, dict[str, Any]]) -> Slot:
    own = options[name]
    owner = options.get(own["share"], own)
    numeric = own["kind"] == "numeric"
    vector = own["kind"] == "vector"
    encoding = "identity" if numeric or vector else owner["encoding"]
    rows = owner["rows"]
    where = "config.prepare.slot"
    if (numeric or vector) and own["share"]:
        remedy = "only slots of ids can share rows"
        raise UserError(f"{where}.share: slot {name!r} is {own['kind']}; {remedy}")
    if not (numeric or vector) and encoding != "vocabulary" and rows < 2:
        found = f"{encoding} encoding and {rows} rows"
        raise UserError(f"{where}.rows: slot {name!r} has {found}; set at least 2")
    if vector:
        rows = own["length"] + 1
    elif numeric and own["transform"] != "bucket":
        rows = 2
    elif encoding == "vocabulary":
        rows = 0

    return Slot(
        name=name,
        group=group,
        kind=own["kind"],
        encoding=encoding,
        rows=rows,
        seed=recipe["seed"] if encoding == "hash" else 0,
        min_count=owner["min_count"],
        max_length=own["max_length"] if own["kind"] == "multi" else 1,
        keep=own["keep"] if own["kind"] == "multi" else "first",
        weighted=own["weighted"],
        pooling=own["pooling"],
        transform=own["transform"] if numeric else "none",
        length=own["length"] if vector else 0,
        null_values=tuple(own["null_values"]),
        share=own["share"],
        respell=owner["respell"],
    )


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the input moves half the bits of the output."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _pairs(groups: Any) -> list[tuple[str, Any]]:
    where = "config.prepare.groups"
    if not groups:
        raise UserError(f"{where}: there is no group; write ((group, (slot, ...)), ...)")
    for entry in groups:
        if isinstance(entry, str) or len(entry) != 2 or not isinstance(entry[0], str):
            raise UserError(
                f"{where}: {entry!r} is not a pair (group, members); write ('user', ('age',))"
            )
    return [(group, spec) for group, spec in groups]
