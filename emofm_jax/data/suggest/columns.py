"""What a column likely is, by its values and its name: label, key, day, and kinds of slots.

Names decide only what values allow. What stays open is a question, never silently a choice.
"""

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import bags, recipe, values
from emofm_jax.data.formats import tabular
from emofm_jax.data.schema import ROLE_COLUMNS
from emofm_jax.data.suggest import label as label_lib
from emofm_jax.data.suggest.column import Seen, by_name
from emofm_jax.data.suggest.sample import Sample
from emofm_jax.errors import UserError

_LISTS = "|^;,"  # what may stand between the values of a bag
_LIST_SHARE = 0.02  # of the cells that hold more than one value
_FEW, _MANY = 20, 1000  # distinct values: a small set; so many that rare ones are better unknown
_GROWS, _LARGE = 1.5, 20_000  # the second half of the rows brings so many new values: hash them
DAYS = 3  # that a split by day needs

_WEIGHTS = ("weight", "sample_weight", "w", "importance")
_USERS = ("user", "user_id", "userid", "uid", "user_hash", "member_id", "visitor_id", "client_id")
_USERS += ("visitor", "customer", "member", "client", "customer_id", "device_id", "device_ip")
_USERS += ("cookie_id", "session_id")
_TYPES = ("type", "ftype", "event", "event_type", "action_type", "behavior", "behaviour", "scene")
_TYPES += ("scenario", "channel", "segment", "tab", "tab6", "page", "placement", "interaction")
_DAY_NAMES = ("date", "day", "dt", "ds", "hour", "timestamp", "time", "event_time", "datetime")
_DATE = re.compile(r"(19|20)\d\d([-/]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])([T ]?\d.*)?")
_COUNTS = re.compile(
    r"(^|_)(n|num|cnt|count|counts|amount|price|cost|age|duration|length|seconds|minutes|days|qty|"
    r"quantity|score|rate|ratio|views|clicks|impressions|size|revenue|spend|history|income|ctr|"
    r"distance|weeks|months|years|balance|bid|ms|s)(_|$)"
)
_DAY, _MONTHS = r"(0?[1-9]|[12]\d|3[01])", "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_NO_DATES = (  # other ways to write a date
    rf"{_DAY}([-/.]){_DAY}\2(\d{{4}}|\d\d)",  # 3/9/2024, 9.3.24
    rf"\d{{4}}([-/.]){_DAY}\1{_DAY}",  # 2024.03.09, 2024-3-9
    rf"{_DAY}[-/. ]+{_MONTHS}[-/., ]+(\d{{4}}|\d\d)",  # 9 March 2024
    rf"{_MONTHS}\.? {_DAY},? \d{{4}}",  # Mar 9, 2024
)
_NO_DATE = [re.compile(rf"{date}([T ,]+\d.*)?", re.IGNORECASE) for date in _NO_DATES]
_CODE = re.compile(r"[+-]?0\d")  # a number that is a name, as a zip code is: 01234
# Words of a name -> a group.
_GROUPS = {
    "user": "user member customer visitor client age gender sex register registered fans fan "
    "follow friend friends profile income education occupation newbie recency onehot feat active "
    "streamer",
    "item": "item video ad ads product goods brand author music category cate campaign creative "
    "price title tag tags upload server article news app movie genre publisher advertiser shop sku",
    "context": "hour day weekday week time month date weather city country region zip zipcode code "
    "device os browser page position slot network isweekend daytime homework channel site domain "
    "connection banner cost",
}


@dataclasses.dataclass
class Guess:
    """What the columns are.

    Attributes:
      label, day, row_id, weight, key: names of columns, empty where there is none.
      types: what may be the type of an interaction, and its values.
      max_rejected: rows whose label is neither of its two values.
      days: of the sample, in order.
      groups: {group: names of its slots}.
      slots: {slot: options that are not the defaults}.
      why: {column: what was seen}.
      ignore: columns that are left out, each with a reason in `why`.
      questions: sentences.
      nulls: spellings of missing values beside the empty one.
    """

    label: str = ""
    types: tuple[str, Sequence[str]] | None = None
    max_rejected: int = 0
    day: str = ""
    days: Sequence[str] = ()
    row_id: str = ""
    weight: str = ""
    key: str = ""
    groups: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    slots: dict[str, dict] = dataclasses.field(default_factory=dict)
    why: dict[str, str] = dataclasses.field(default_factory=dict)
    ignore: list[str] = dataclasses.field(default_factory=list)
    questions: list[str] = dataclasses.field(default_factory=list)
    nulls: list[str] = dataclasses.field(default_factory=list)


def guess(sample: Sample) -> Guess:
    """Guesses what the columns of tabular rows are.

    Raises:
      UserError: no column can be the label, or nothing is left as a slot.
    """
    seen = [_seen(name, column) for name, column in sample.columns.items()]
    found = Guess()
    for one in [one for one in seen if not one.name]:
        found.ignore.append(one.name)
        found.why[one.name] = "a column without a name, as an index is that pandas writes"

    seen = [one for one in seen if one.name]
    found.nulls = sorted({x for one in seen for x in one.nulls})
    _roles(sample, seen, found)
    roles = {found.label, found.row_id, found.weight, found.day, *found.ignore}
    for one in seen:
        if one.name not in roles:
            _slot(one, found, sample.header)
    if not found.groups:
        raise UserError(f"--suggest={sample.source}: no column beside the label can be a slot")
    return found


def _seen(name: str, column: pa.Array) -> Seen:
    try:
        column = tabular.unwrapped(column)
    except pa.ArrowException:
        unusable = f"values of type {column.type} cannot be used"
        return Seen(name, pa.nulls(len(column), pa.string()), unusable=unusable)

    longest = 0
    if pa.types.is_list(column.type):
        longest = pc.max(pc.list_value_length(column)).as_py() or 1
        column = column.flatten()
    if weighted := pa.types.is_struct(column.type):
        column = bags.pairs(column)[0]
    column = values.unwrapped(column)
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    return Seen(name, _as_text(column), longest, pa.types.is_floating(column.type), weighted)


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_binary(column.type) or pa.types.is_nested(column.type):
        return pa.array([None if x is None else str(x) for x in column.to_pylist()], pa.string())
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), None, text)


def _roles(sample: Sample, seen: Sequence[Seen], found: Guess) -> None:
    """Finds label, day, key, weight and id of a row."""
    label, found.max_rejected, questions = label_lib.find(sample.source, seen)
    found.questions += questions
    found.label = label.name
    found.why[label.name] = f"two values: {label.examples}"
    single = [one for one in seen if not (one.lists or one.weighted)]
    rest = [one for one in single if one.name != label.name]
    _day(sample, rest, found)
    for one in rest:
        if _is_clock(one) and one.name != found.day:
            found.ignore.append(one.name)
            found.why[one.name] = "times since 1970; make a column of days of them to split by day"
            continue
        full = not one.missing and len(one.distinct) == sample.num_rows >= _FEW
        is_user = one.name.strip().lower() in _USERS
        amount = one.decimals or one.with_comma[0] or _is_quantity(one, sample.header)
        if full and not (amount or found.row_id or is_user or one.name == found.day):
            found.row_id = one.name
            found.why[one.name] = "another value in every row"
    weight = by_name(rest, _WEIGHTS)
    whole = weight and not (weight.odd or weight.missing) and len(weight.numbers)
    if weight and whole and weight.numbers.min() >= 0:
        found.weight, found.why[weight.name] = weight.name, "by its name; no number below 0"
        counts = "Else take c.prepare.weight out, and rename the column to use it"
        found.questions.append(f"does a row count {weight.name!r} times? {counts}")
    key = by_name([one for one in rest if one.name != found.row_id], _USERS)
    if key and 1 < len(key.distinct) < sample.num_rows:
        found.key = key.name

    known = {found.label, found.day, found.row_id, found.key}
    small = [one for one in rest if 1 < len(one.distinct) <= _FEW and one.name not in known]
    types = [one for one in small if one.name.lower() in _TYPES and not one.missing]
    if types:
        names = " or ".join(repr(one.name) for one in types)
        found.types = types[0].name, tuple(sorted(types[0].distinct))
        found.questions.append(
            f"is {names} the type of an interaction, known in training and not when scoring? "
            "Then take it out of c.prepare.groups, and the two lines of ftype and types below "
            "out of their comments"
        )


def _is_clock(one: Seen) -> bool:
    """Whether a column holds seconds, or parts of them, since 1970."""
    numbers = one.numbers
    named = bool(one.words & {"time", "timestamp", "ts", "date", "datetime", "ms"})
    return named and len(numbers) > _FEW and bool((numbers > 9e8).all())


def _day(sample: Sample, seen: Sequence[Seen], found: Guess) -> None:
    """Finds the day of a row: dates by which the rows are in order, or called so, or of a path."""
    dates = [one for one in seen if one.distinct and all(map(_DATE.fullmatch, one.distinct))]
    is_day = lambda one: one.name.lower() in _DAY_NAMES or one.name in sample.partitions
    for one in sorted(dates, key=is_day, reverse=True):
        length = 10 if one.distinct[0][4] in "-/" else 8
        days = [x[:length] for x in one.text.to_pylist() if x is not None]
        ordered = np.mean([a <= b for a, b in zip(days, days[1:])]) if len(days) > 1 else 0.0
        if one.missing or ordered < 0.999 and (found.day or not is_day(one)):
            continue
        if found.day:
            found.ignore.append(one.name)
            found.why[one.name] = "dates that rise with the rows; days to come were in no row"
            continue
        found.day, found.days = one.name, sorted({*days})
        found.why[one.name] = f"dates, {found.days[0]} to {found.days[-1]}"
        if sample.splits or len(found.days) < DAYS:
            found.ignore.append(one.name)
            found.why[one.name] += "; days to come were in no training row"

    dated = [one.name for one in dates]
    for one in seen if not found.day else []:
        if one.name in dated and not sample.splits:
            why = (
                f"{one.missing:.0%} of the rows have none" if one.missing else "the rows lie mixed"
            )
            remedy = f"c.prepare.split = 'day' and c.prepare.day_column = {one.name!r} split by it"
            found.questions.append(f"is {one.name!r} the day of a row, though {why}? {remedy}")
        elif one.distinct and any(all(map(way.fullmatch, one.distinct)) for way in _NO_DATE):
            found.questions.append(
                f"is {one.name!r} the day of a row? Write it as 2024-03-10, and the rows can be "
                "split by day"
            )


def _slot(one: Seen, found: Guess, named: bool) -> None:
    """Decides the kind of a slot, or leaves the column out."""
    if recipe.members(one.name) != [one.name]:
        found.ignore.append(one.name)
        found.why[one.name] = "its name reads as a range of slots; rename it to use it"
        return
    if one.name in ROLE_COLUMNS:
        found.ignore.append(one.name)
        found.why[one.name] = "no slot may be called so; rename it to use it"
        return
    if not one.distinct:
        found.ignore.append(one.name)
        found.why[one.name] = one.unusable or "no value in any row"
        return

    if len(one.distinct) == 1 and not one.missing:
        found.why[one.name] = f"one value, {one.examples}: it tells nothing in these rows"
    group = next((g for g, words in _GROUPS.items() if one.words & {*words.split()}), "other")
    found.groups.setdefault(group, []).append(one.name)
    options = _options(one, named, found)
    if options:
        found.slots[one.name] = options


def _options(one: Seen, named: bool, found: Guess) -> dict:
    """The options of a slot that differ from the defaults, and why."""
    missing = f", {one.missing:.0%} missing" if one.missing else ""
    counted = f"{len(one.distinct):,} values{missing}, as {one.examples}"
    if one.weighted:
        found.why[one.name] = "ids with weights" + (
            f", up to {one.lists} a row" if one.lists else ""
        )
        several = {"kind": "multi", "max_length": min(one.lists, 50)} if one.lists else {}
        return {**several, "weighted": True}
    if one.lists and one.floats:
        found.why[one.name] = f"lists of numbers, {one.lists} a row"
        return {"kind": "vector", "length": one.lists}
    if one.lists:
        found.why[one.name] = f"lists of up to {one.lists} values"
        return {"kind": "multi", "max_length": min(max(one.lists, 1), 50)}
    is_key = one.name == found.key  # of users: one value, whatever it is written with
    if not is_key and (separator := _list_separator(one)):
        lengths = [x.count(separator) + 1 for x in one.text.drop_null().to_pylist()]
        most = max(2, int(np.percentile(lengths, 99)))
        cut = f", {most} or fewer in 99% of the cells" if most < max(lengths) else ""
        found.why[one.name] = f"up to {max(lengths)} values a cell{cut}, {separator!r} between"
        if separator == "," and max(lengths) == 2:
            _ask_of_commas(one, "lists", found)
        return {"kind": "multi", "separator": separator, "max_length": most}
    if not is_key and _is_quantity(one, named):
        low, high = one.numbers.min(), one.numbers.max()
        found.why[one.name] = f"numbers, {low:g} to {high:g}{missing}"
        return numeric(one.numbers)

    if not is_key:
        _ask_of_commas(one, "names", found)
    found.why.setdefault(one.name, counted)
    if _grows(one):
        rows = 1 << int(np.ceil(np.log2(4 * len(one.distinct))))
        found.why[one.name] += "; new ones keep coming"
        return {"encoding": "hash", "rows": rows}
    return {"min_count": 2} if len(one.distinct) > _MANY else {}


def _ask_of_commas(one: Seen, what: str, found: Guess) -> None:
    """Asks whether cells, which are taken for something else, are numbers with a comma."""
    cell, number = one.with_comma
    if cell:
        remedy = f"Write {cell} as {number}: they are taken for {what}"
        found.questions.append(f"are the cells of {one.name!r} numbers with a comma? {remedy}")


def numeric(numbers: np.ndarray) -> dict[str, str]:
    """The options of a slot of numbers."""
    low, high = numbers.min(), numbers.max()
    spread = high - low > _FEW * max(float(np.median(np.abs(numbers))), 1e-9) or high > _MANY
    return {"kind": "numeric", "transform": "log1p" if spread else "standardize"}


def _is_quantity(one: Seen, named: bool) -> bool:
    """Whether a column holds numbers that mean an amount, and not the names of things."""
    if not len(one.numbers) or len(one.numbers) <= 2:
        return False
    if any(_CODE.match(x) for x in one.distinct):
        return False
    if one.floats and one.decimals or one.decimals:
        return True
    if not named:
        return one.name.startswith("I")  # as sample.py has named it
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", one.name).lower()
    return len(one.distinct) > _FEW and bool(_COUNTS.search(name))


def _list_separator(one: Seen) -> str:
    """What stands between the values of a bag; empty if cells hold one value each."""
    if len(one.numbers):
        return ""
    for separator in _LISTS:
        several = [x for x in one.distinct if separator in x.strip(separator)]
        if separator == "," and any(", " in x for x in several):
            continue  # a name with a comma in it
        counted = sum(separator in x for x in one.text.drop_null().to_pylist())
        if not several or counted < _LIST_SHARE * len(one.text):
            continue
        pieces = {piece for x in one.distinct for piece in x.split(separator)}
        if all(piece and len(piece) < 40 for piece in pieces) and len(pieces) < len(one.distinct):
            return separator
    return ""


def _grows(one: Seen) -> bool:
    """Whether the rows never stop to bring new values."""
    if len(one.distinct) < _LARGE:
        return False
    half = len(pc.unique(one.text.slice(0, len(one.text) // 2).drop_null()))
    return len(one.distinct) > _GROWS * max(half, 1)


def group_ranges(names: Sequence[str]) -> list[str]:
    """Names of slots, those that are numbered one after another as `C1-C26`."""
    found: list[str] = []
    run: list[str] = []
    for name in [*names, ""]:
        match = re.fullmatch(r"(.*?)(0|[1-9]\d*)", name)
        before = re.fullmatch(r"(.*?)(0|[1-9]\d*)", run[-1]) if run else None
        if match and before and match[1] == before[1] and int(match[2]) == int(before[2]) + 1:
            run.append(name)
            continue
        found += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else run
        run = [name] if name else []
    return found


def tokens(rows: pa.Array, with_slot_last: bool) -> Mapping[str, list[int]]:
    """{slot: how often it stands in a row, of each row that has it} of cti or libsvm rows."""
    found: dict[str, list[int]] = {}
    for row in rows.to_pylist():
        counts: dict[str, int] = {}
        pieces = row.rsplit("\t", 1)[1].split(" ") if with_slot_last else row.split()[1:]
        for token in pieces:
            slot = token.rsplit(":", 1)[1] if with_slot_last else token.split(":", 1)[0]
            slot = slot.strip()
            counts[slot] = counts.get(slot, 0) + 1
        for slot, count in counts.items():
            found.setdefault(slot, []).append(count)
    return found


def amounts(rows: pa.Array) -> dict[str, np.ndarray]:
    """{slot: its numbers f64[n]} of libsvm slots with the same id in each row and many values."""
    ids: dict[str, set[str]] = {}
    values: dict[str, list[str]] = {}
    for row in rows.to_pylist():
        for token in row.split()[1:]:
            name, _, rest = token.partition(":")
            one, _, value = rest.partition(":")
            ids.setdefault(name, set()).add(one)
            values.setdefault(name, []).append(value)

    found = {}
    for name in ids:
        if len(ids[name]) == 1 and len({*values[name]}) > _FEW:
            with contextlib.suppress(ValueError):  # a bad row, which `prepare` names
                found[name] = np.array(values[name], np.float64)
    return {name: numbers for name, numbers in found.items() if np.isfinite(numbers).all()}
