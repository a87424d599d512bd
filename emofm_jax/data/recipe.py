"""The `prepare` section of a configuration, read: which slots there are, which files, which split a row is in.

Everything here takes the section as a plain dict (`config.prepare.to_dict()`, or `schema.recipe` as it stands in
schema.json), so that raw rows can be read again, long after, exactly as they were when the shards were made.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from emofm_jax.data.schema import ENCODINGS, KINDS, POOLINGS, TRANSFORMS, Slot
from emofm_jax.data.shards import SPLITS
from emofm_jax.errors import UserError

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}  # endings of text files
_RANGE = re.compile(r"(.*?)(\d+)-\1(\d+)")
_CHOICES = {"kind": KINDS, "encoding": ENCODINGS, "pooling": POOLINGS, "transform": TRANSFORMS}


def slots(recipe: Mapping) -> tuple[Slot, ...]:
    """The slots that a recipe declares, in the order of their groups.

    Returns:
      Slots as far as they are known without data: vocabularies have 0 rows and no digest, `standardize` has no
      mean, `bucket` without `rows` has 0 rows. A shared slot has the encoding, rows and seed of its owner.
    Raises:
      UserError: no group, an option for a slot in no group, an unknown option or a value that it cannot have.
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
    """Raises UserError on a role that the format's rows do not have (it would have no effect), or that they need."""
    kind = recipe["format"]
    absent = {
        "tabular": (),
        "cti": ("ftype", "weight", "row_id"),
        "libsvm": ("ftype", "types", "weight", "row_id"),
    }
    for field in absent[kind]:
        if recipe[field]:
            raise UserError(
                f"config.prepare.{field}: {recipe[field]!r} has no effect on {kind} rows; leave it out"
            )
    if kind == "tabular" and not recipe["label"]:
        raise UserError("config.prepare.label: it is empty; name the column of labels")
    if kind == "tabular" and recipe["types"] and not recipe["ftype"]:
        raise UserError(
            "config.prepare.types: they have no effect without config.prepare.ftype; name its column"
        )
    if kind == "tabular" and recipe["split"] == "day" and not recipe["day_column"]:
        raise UserError(
            "config.prepare.day_column: it is empty; split=day needs the column that holds the day"
        )
    if kind == "cti" and recipe["split"] == "day" and recipe["day_column"] != "log_id":
        raise UserError(
            "config.prepare.day_column: cti rows have no other day column; set day_column to 'log_id'"
        )
    if kind == "libsvm" and recipe["split"] == "day":
        raise UserError(
            "config.prepare.split: libsvm rows have no day column; choose split=files or split=share"
        )


def members(spec) -> list[str]:
    """Names of slots from a name, a range as in `C1-C26`, or a list of these."""
    if not isinstance(spec, str | list | tuple):
        raise UserError(
            f"config.prepare.groups: {spec!r} is no name of a slot; write it between quotes"
        )
    if not isinstance(spec, str):
        return [name for part in spec for name in members(part)]
    found = _RANGE.fullmatch(spec)
    if not found:
        return [spec]
    prefix, first, last = found.groups()
    if int(first) > int(last):
        raise UserError(
            f"config.prepare.groups: the range {spec!r} is empty; write the smaller number first"
        )
    return [f"{prefix}{i}" for i in range(int(first), int(last) + 1)]


def slot_options(recipe: Mapping, name: str) -> dict:
    """`config.prepare.slot` with the exceptions of one slot, checked."""
    options = dict(recipe["slot"])
    for field, value in dict(recipe["slots"].get(name, {})).items():
        where = f"config.prepare.slots.{name}.{field}"
        if field not in options:
            raise UserError(f"{where}: there is no such field; known: {', '.join(sorted(options))}")
        if type(value) is not type(options[field]):
            raise UserError(
                f"{where}: {value!r} must be of type {type(options[field]).__name__}; correct it"
            )
        options[field] = value
    for field, known in _CHOICES.items():
        if options[field] not in known:
            known = ", ".join(known)
            raise UserError(
                f"config.prepare.slot.{field}: slot {name!r} has {options[field]!r}; choose one of {known}"
            )
    for field in ("min_count", "max_length"):
        if options[field] < 1:
            raise UserError(
                f"config.prepare.slot.{field}: slot {name!r} has {options[field]}; it must be at least 1"
            )
    if options["kind"] == "multi" and not options["separator"]:
        raise UserError(
            f"config.prepare.slot.separator: slot {name!r} has none; name what stands between its values"
        )
    return options


def _slot(recipe: Mapping, group: str, name: str, options: dict[str, dict]) -> Slot:
    own = options[name]
    owner = options.get(own["share"], own)
    numeric = own["kind"] == "numeric"
    encoding = "identity" if numeric else owner["encoding"]
    rows = owner["rows"]
    if numeric and own["share"]:
        raise UserError(
            f"config.prepare.slot.share: slot {name!r} is numeric; only slots of ids can share rows"
        )
    if numeric and own["transform"] != "bucket":
        rows = 2
    elif encoding == "vocabulary":
        rows = 0
    elif rows < 2 and not numeric:
        raise UserError(
            f"config.prepare.slot.rows: slot {name!r} has {encoding} encoding and {rows} rows; set at least 2"
        )
    return Slot(
        name=name,
        group=group,
        kind=own["kind"],
        encoding=encoding,
        rows=rows,
        seed=recipe["seed"] if encoding == "hash" else 0,
        min_count=owner["min_count"],
        max_length=own["max_length"] if own["kind"] == "multi" else 1,
        pooling=own["pooling"],
        transform=own["transform"] if numeric else "none",
        share=own["share"],
    )


def files(recipe: Mapping) -> dict[str, list[Path]]:
    """The raw files of each split; under the one key "" when the rows themselves say which split they are in.

    Raises:
      UserError: the source, or a split's files, do not exist.
    """
    source = Path(recipe["source"])
    if not recipe["source"]:
        raise UserError(
            "config.prepare.source: it is empty; name the file or directory of the raw data"
        )
    if not source.exists():
        raise UserError(
            f"config.prepare.source: {str(source)!r} does not exist; name the raw data's file or directory"
        )
    if recipe["split"] != "files":
        found = [source] if source.is_file() else raw_files(source)
        if not found:
            raise UserError(
                f"config.prepare.source: {str(source)!r} holds no file; name the raw data's directory"
            )
        return {"": found}
    if source.is_file():
        raise UserError(
            f"config.prepare.source: {str(source)!r} is one file, but split=files wants a directory with one file "
            "per split; set config.prepare.split to share or day"
        )
    found = {}
    for split in SPLITS:
        pattern = recipe["files"][split]
        if Path(pattern).is_absolute():
            raise UserError(
                f"config.prepare.files.{split}: {pattern!r} must be relative to config.prepare.source; shorten it"
            )
        if pattern:
            found[split] = sorted(source.glob(pattern))
            plain = [
                path.with_suffix("") if path.suffix in COMPRESSED else path for path in found[split]
            ]
            if twice := [path for path in plain if plain.count(path) > 1]:
                raise UserError(
                    f"{twice[0]}: it is there plain and compressed; remove one, or set config.prepare.files.{split}"
                )
        if split == "train" and split not in found:
            raise UserError("config.prepare.files.train: it is empty; the train split is needed")
        if split in found and not found[split]:
            here = ", ".join(p.name for p in raw_files(source)[:8]) or "nothing"
            raise UserError(
                f"{source / recipe['files'][split]}: no such file (the directory holds {here}); "
                f"set config.prepare.files.{split}, empty for a split that you do not have"
            )
    return found


def raw_files(path: Path) -> list[Path]:
    """The files of a directory in the order of their names, hidden ones left out; or the file itself."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith((".", "_")))


def split_of(recipe: Mapping, file_index: int, lines: np.ndarray, days: list | None) -> np.ndarray:
    """Which split each row is in: an index into `shards.SPLITS`.

    Args:
      recipe: with split = share | day.
      file_index: of the rows' file among the source's files.
      lines: i64[n], lines of the rows in it. With `share` a row's split follows from the seed, its file's index
        and its line alone.
      days: n values of the day column (split=day).

    Returns:
      i8[n].
    """
    if recipe["split"] == "day":
        valid, test = set(map(str, recipe["valid_days"])), set(map(str, recipe["test_days"]))
        length = recipe["day_length"] or None
        day_split = {
            day: 2 if str(day)[:length] in test else int(str(day)[:length] in valid)
            for day in set(days)
        }
        return np.array([day_split[day] for day in days], np.int8)
    edges = np.cumsum(recipe["shares"])[:2]
    key = np.uint64((recipe["seed"] * 0x9E3779B97F4A7C15 + (file_index << 40)) % 2**64)
    uniform = (_mix(_mix(key + np.asarray(lines, np.uint64))) >> np.uint64(11)).astype(
        np.float64
    ) / 2.0**53
    return np.searchsorted(edges, uniform, side="right").astype(np.int8)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the input moves half the bits of the output."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _pairs(groups) -> list[tuple[str, object]]:
    if not groups:
        raise UserError(
            "config.prepare.groups: there is no group; write ((group, (slot, ...)), ...)"
        )
    for entry in groups:
        if isinstance(entry, str) or len(entry) != 2 or not isinstance(entry[0], str):
            raise UserError(
                f"config.prepare.groups: {entry!r} is not a pair (group, members); write ('user', ('age',))"
            )
    return [tuple(entry) for entry in groups]
