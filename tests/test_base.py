"""prepare --base: ids that stay from day to day, what is appended, what expires, and what is refused."""

import collections
import itertools
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emofm_jax import prepare
from emofm_jax.data import files, growth, recipe, vocabulary
from emofm_jax.data import schema as schema_lib
from emofm_jax.data import values as values_lib
from emofm_jax.errors import UserError
from tests import daily_shop
from tests.daily_shop import DAYS, make_rows
from tests.reference import growth as reference

pytestmark = pytest.mark.fast

COUNTED = ("user", "item", "tags")


# Two values have expired, of different days, and one of them must go.
@example([[], ["b", "e"], ["c"], ["d"], ["c", "d", "c", "f", "b", "e", "c"]], 1, 1)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(0, 2),
)
def test_growth_is_that_of_the_loops(days, min_count, expire_days):
    base, said = None, []
    for day, values in enumerate(days, 1):
        counts = sorted(collections.Counter(values).items())
        counted = pa.table({"value": [v for v, _ in counts], "count": [n for _, n in counts]})
        counted = counted.cast(pa.schema([("value", pa.string()), ("count", pa.int64())]))
        grown = growth.grow(counted, min_count, day, base, expire_days)
        base = grown.vocabulary.on_day(day), grown.rare
        said.append(tuple(grown.growth))
    ids, counts, expected = reference.grow(days, min_count, expire_days)
    values = grown.vocabulary.values.to_pylist()
    assert {value: i for i, value in enumerate(values, 1)} == ids
    assert said == expected
    words = grown.vocabulary.on_day(len(days))
    held = pa.concat_tables([vocabulary.table(words.values, words.counts, words.seen), grown.rare])
    assert dict(zip(held["value"].to_pylist(), held["count"].to_pylist())) == counts


def test_with_expiry_the_table_is_bounded():
    """A hundred days of ten new values each: never more rows than two days need."""
    base = None
    for day in range(1, 101):
        counted = pa.table({"value": [f"{day}-{i}" for i in range(10)], "count": [1] * 10})
        grown = growth.grow(counted, 1, day, base, expire_days=1)
        base = grown.vocabulary.on_day(day), grown.rare
    assert grown.vocabulary.rows == 11 and not grown.rare.num_rows
    assert set(grown.vocabulary.values.to_pylist()) == {f"100-{i}" for i in range(10)}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A function (argv...) -> exit code that prepares days of a small csv shop, in its directory."""
    monkeypatch.chdir(tmp_path)
    daily_shop.write(tmp_path)

    def run(target, *argv, days=()):
        named = [f"--config.prepare.train_days={tuple(days)!r}"] if days else []
        where = f"--config.data.dir={target}"
        return prepare.main(["prepare", "--config=shop.py", where, *named, *argv])

    return run


def values_of(texts):
    return values_lib.distinct(pa.array(texts), values_lib.missing([""]))


def values(directory, slot):
    return vocabulary.load(directory, slot).values.to_pylist()


def decoded(directory, slot):
    """The values of the train rows of a slot, None where unknown."""
    table = pq.read_table(directory / "train" / "part-00000.parquet")
    names = [None, *values(directory, slot)]
    return [names[i] for i in table[slot].to_pylist()]


def test_ids_of_earlier_days_never_move(shop, tmp_path, capsys):
    assert shop("d0", days=DAYS[:1]) == 0
    for i in range(1, 4):
        assert shop(f"d{i}", f"--base=d{i - 1}", days=[DAYS[i]]) == 0
        for slot in COUNTED:
            before = values(f"d{i - 1}", slot)
            assert values(f"d{i}", slot)[: len(before)] == before
    assert len(values("d3", "user")) > len(values("d0", "user"))

    # All days at once: the same values and counts, in another order, and the same that are rare.
    assert shop("all") == 0
    for slot in COUNTED:
        count = lambda t: dict(zip(t["value"].to_pylist(), t["count"].to_pylist()))
        kept = [pq.read_table(f"{d}/vocabulary/{slot}.parquet") for d in ("d3", "all")]
        assert count(kept[0]) == count(kept[1])
        rare = [pq.read_table(f"{d}/rare/{slot}.parquet") for d in ("d3", "all")]
        assert count(rare[0]) == count(rare[1])
    assert schema_lib.load("d3").days == schema_lib.load("all").days == tuple(DAYS)

    # What a row holds is its value, if that is known by now.
    raw = [line.split(",")[1] for line in make_rows(3)]
    known = set(values("d3", "user"))
    assert decoded(tmp_path / "d3", "user") == [u if u in known else None for u in raw]

    # What became of hashes and numbers is as it was on the first day.
    first, last = ({s.name: s for s in schema_lib.load(d).slots} for d in ("d0", "d3"))
    for name in ("price", "size", "device"):
        assert first[name] == last[name]

    body = files.read_json(tmp_path / "d3" / "prepare.json")["base"]
    assert body["place"] == "d2" and body["days"] == DAYS[:3]
    assert body["identity"] == schema_lib.load("d2").identity
    out = capsys.readouterr().out
    assert "goes on from d2" in out and "slot 'price': standardize is that of the base" in out
    assert "180 rows are of days that are in no split and are passed over" in out
    user = body["slots"]["user"]
    assert user["known"] + user["appended"] == len(values("d3", "user"))
    before = set(values("d2", "user"))
    assert user["new"] == len({u for u in raw if u not in before})


def test_replayed_days_are_trained_on_and_not_counted(shop):
    assert shop("d0", days=DAYS[:1]) == 0
    assert shop("alone", "--base=d0", days=[DAYS[1]]) == 0
    replay = f"--config.prepare.replay_days={(DAYS[0],)!r}"
    assert shop("both", "--base=d0", replay, days=[DAYS[1]]) == 0
    for slot in COUNTED:
        one, other = vocabulary.load("alone", slot), vocabulary.load("both", slot)
        assert all(getattr(one, k).equals(getattr(other, k)) for k in ("values", "counts", "seen"))
    rows = [
        files.read_json(f"{d}/prepare.json")["splits"]["train"]["rows"] for d in ("alone", "both")
    ]
    assert rows == [60, 120] and schema_lib.load("both").days == tuple(DAYS[:2])


def test_days_may_be_whole_preparations(shop):
    """Without a day column each preparation is a day, and expired rows are given away."""
    share = [
        "--config.prepare.split=share",
        "--config.prepare.day_column=",
        "--config.prepare.ignore=('day', 'page')",
    ]
    share += ["--config.prepare.shares=(1.0, 0.0, 0.0)", "--config.prepare.expire_days=1"]
    for i, day in enumerate(DAYS):
        base = [f"--base=p{i - 1}"] if i else []
        assert shop(f"p{i}", f"--config.prepare.source=raw/{day}.csv", *share, *base) == 0
    assert schema_lib.load("p3").days == ("",) * 4
    said = [files.read_json(f"p{i}/prepare.json")["base"]["slots"]["user"] for i in (1, 2, 3)]
    assert sum(s["expired"] for s in said) > 0
    for i, s in enumerate(said, 1):
        grown = len(values(f"p{i}", "user")) - len(values(f"p{i - 1}", "user"))
        assert grown == s["appended"] - s["expired"]


def test_new_slots_start_and_are_said(shop, capsys):
    few = (
        Path("shop.py")
        .read_text()
        .replace('("item", "price", "tags", "size")', '("price", "size")')
    )
    few = few.replace('"tags": {"kind": "multi"},', "").replace("return c", "IGNORED\n    return c")
    few = few.replace("IGNORED", 'c.prepare.ignore += ("item", "tags")')
    Path("few.py").write_text(few)
    argv = ["prepare", "--config=few.py", "--config.data.dir=few"]
    assert prepare.main([*argv, f"--config.prepare.train_days={(DAYS[0],)}"]) == 0
    assert shop("d1", "--base=few", days=[DAYS[1]]) == 0
    out = capsys.readouterr().out
    assert "slot 'item' is not in the base and starts here" in out and "slot 'tags' is not" in out
    assert shop("new", days=[DAYS[1]]) == 0
    assert values("d1", "item") == values("new", "item") and values("d1", "tags") == values(
        "new", "tags"
    )
    capsys.readouterr()
    argv[2] = "--config.data.dir=back"
    assert prepare.main([*argv, f"--config.prepare.train_days={(DAYS[2],)}", "--base=d1"]) == 0
    assert "slot 'item' of the base is left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--base=nowhere"], "--base=nowhere: no run or data there (no schema.json); name"),
        (["--base=d1"], "--base=d1: it is config.data.dir, which is replaced"),
        (["--base="], "--base: it is empty; name a path, or leave it out"),
        (["--base=d0"], "--base=d0: it has the rows of 2024-01-01 already; name the new days"),
        (
            ["--base=d0", "--config.prepare.train_days=('2024-02-30',)"],
            "config.prepare.train_days: no row is of 2024-02-30; check",
        ),
        (
            [
                "--base=d0",
                f"--config.prepare.valid_days=('{DAYS[2]}', '2024-02-30')",
                f"--config.prepare.train_days={(DAYS[1],)}",
            ],
            "config.prepare.valid_days: no row is of 2024-02-30; check",
        ),
        (
            [f"--config.prepare.replay_days={(DAYS[0],)}"],
            "config.prepare.replay_days: ('2024-01-01',); without --base",
        ),
        (
            ["--config.prepare.split=share", f"--config.prepare.train_days={(DAYS[0],)}"],
            "config.prepare.train_days: it has no effect on split=share",
        ),
        (
            [
                f"--config.prepare.replay_days={(DAYS[0],)}",
                f"--config.prepare.train_days={(DAYS[0],)}",
            ],
            "config.prepare.replay_days: '2024-01-01' is one of train_days, too",
        ),
        (["--base=d0", "--config.prepare.slots.device.rows=8"], "slot 'device' rows 16 against 8"),
        (["--base=d0", "--config.prepare.slots.price.transform=log1p"], "slot 'price' transform"),
        (["--base=d0", "--config.prepare.null_values=('','-1')"], "null_values [] against ['-1']"),
        (["--base=d0", "--config.prepare.positive=(1.0,)"], "prepare.positive [] against ['1']"),
    ],
)
def test_mistakes_are_one_line(shop, tmp_path, capsys, argv, said):
    assert shop("d0", days=DAYS[:1]) == 0
    before = schema_lib.load("d0").identity
    assert shop("d1", *argv) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "d1").exists() and schema_lib.load("d0").identity == before


def test_a_base_that_was_mixed_is_told(shop, capsys):
    assert shop("d0", days=DAYS[:1]) == 0 and shop("all") == 0
    shutil.copy("all/rare/user.parquet", "d0/rare/user.parquet")
    assert shop("d1", "--base=d0", days=[DAYS[1]]) == 2
    assert "d0/rare/user.parquet: it belongs to a vocabulary of digest" in capsys.readouterr().err


def test_a_base_without_rare_counts_is_said(shop, capsys):
    assert shop("d0", days=DAYS[:1]) == 0
    shutil.rmtree("d0/rare")
    assert shop("d1", "--base=d0", days=[DAYS[1]]) == 0
    said = "slot 'user': the base did not keep counts of rarer values, they start at 0"
    assert said in capsys.readouterr().out


def test_a_day_without_a_click_is_said(shop, capsys):
    rows = [line.replace("1,", "0,", 1) if line[0] == "1" else line for line in make_rows(1)]
    Path(f"raw/{DAYS[1]}.csv").write_text(daily_shop.HEAD + "\n".join(rows) + "\n")
    assert shop("d0", days=DAYS[:1]) == 0
    capsys.readouterr()
    assert shop("d1", "--base=d0", days=[DAYS[1]]) == 0
    assert "no row of the train split is a click" in capsys.readouterr().out
    assert files.read_json(Path("d1/prepare.json"))["splits"]["train"]["clicks"] == 0


def test_days_that_a_base_has_or_has_not_are_refused(shop, capsys):
    assert shop("d0", days=DAYS[:1]) == 0
    for option, day, said in (
        (
            "valid_days",
            DAYS[0],
            "it was trained on 2024-01-01, which config.prepare.valid_days has",
        ),
        ("test_days", DAYS[0], "it was trained on 2024-01-01, which config.prepare.test_days has"),
        (
            "replay_days",
            DAYS[2],
            "it has no rows of 2024-01-03, which config.prepare.replay_days has",
        ),
    ):
        assert shop("d1", "--base=d0", f"--config.prepare.{option}={(day,)!r}", days=[DAYS[1]]) == 2
        assert f"--base=d0: {said}" in capsys.readouterr().err


@pytest.mark.parametrize("spelled", ["{} 05:00", "{} 05", "{}T05:30:00"])
def test_a_day_has_the_rows_of_its_hours(shop, capsys, spelled):
    """A base by days against rows by hours, and the other way round: no row counts twice."""
    hours = [spelled.format(day) for day in DAYS]
    for day, hour in zip(DAYS, hours):
        rows = Path(f"raw/{day}.csv").read_text().splitlines()
        half = [row.replace(day, hour) if i % 2 else row for i, row in enumerate(rows)]
        Path(f"raw/{day}.csv").write_text("\n".join(half) + "\n")
    hours = [recipe.days_of({"day_length": 0}, values_of([hour]))[0] for hour in hours]
    assert shop("by_day", days=DAYS[:1]) == 0 and shop("by_hour", days=hours[:1]) == 0
    for base, days, theirs in (("by_day", hours, DAYS), ("by_hour", DAYS, hours)):
        assert shop("d1", f"--base={base}", days=days[:2]) == 2
        said = f"--base={base}: it has rows of {days[0]} already, as {theirs[0]}; name days that"
        assert said in (error := capsys.readouterr().err) and error.count("\n") == 1
        valid = f"--config.prepare.valid_days={(days[0],)!r}"
        assert shop("d1", f"--base={base}", valid, days=days[1:2]) == 2
        said = f"it was trained on {theirs[0]}, with rows of {days[0]}, which config.prepare.valid"
        assert said in capsys.readouterr().err
        assert shop(f"after_{base}", f"--base={base}", days=days[1:2]) == 0


@pytest.mark.parametrize(
    ("days", "others", "shared"),
    [
        (["2024-03-05"], ["20240305"], {"2024-03-05": "20240305"}),
        # Midnight is spelled as its date: beside other hours it is one of them.
        (["2024-03-05", "2024-03-05 02"], ["2024-03-05 01", "2024-03-06"], {}),
        (["2024-03-05", "2024-03-05 02"], ["2024-03-05", "2024-03-06 02"], {"2024-03-05": 0}),
        (["2024030501", "2024030601"], ["20240305"], {"2024030501": "20240305"}),
        (["mon"], ["tue", "mon"], {"mon": "mon"}),
        (["mon"], ["2024-03-05 02"], {}),
    ],
)
def test_days_that_share_rows(days, others, shared):
    shared = {day: other or "2024-03-05" for day, other in shared.items()}
    assert recipe.shared_days(days, others) == shared


def test_new_types_stand_behind_those_of_the_base(shop, capsys):
    """Types are numbered as they are named, and models have a predictor of each number."""
    typed = lambda names, *argv: prepare.main(
        ["prepare", "--config=shop.py:wm", f"--config.prepare.types={names!r}", *argv]
    )
    first = [f"--config.prepare.train_days={(DAYS[0],)!r}", "--config.data.dir=d0"]
    then = [f"--config.prepare.train_days={(DAYS[1],)!r}", "--config.data.dir=d1", "--base=d0"]
    assert typed(("home", "cart"), *first) == 0
    for names in (("aside", "home", "cart"), ("cart", "home"), ("home", "cat", "cart")):
        capsys.readouterr()
        assert typed(names, *then) == 2
        behind = ("home", "cart", *(name for name in names if name not in ("home", "cart")))
        said = f"types ['home', 'cart'] against {list(names)}; new types stand behind: {behind!r}"
        assert said in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert typed(("home", "cart", "aside"), *then) == 0
    assert "type 'aside' is not in the base and comes behind its types" in capsys.readouterr().out


def test_values_that_only_the_base_has_are_not_new(shop):
    """A value of the validation day that the base knows has an id, whether today's rows show it or not."""
    head, *again = Path(f"raw/{DAYS[0]}.csv").read_text().splitlines()
    again = [row.replace(DAYS[0], DAYS[2]) for row in again]  # the third day is the first once more
    Path(f"raw/{DAYS[2]}.csv").write_text("\n".join([head, *again]) + "\n")
    assert shop("d0", days=DAYS[:1]) == 0
    valid = f"--config.prepare.valid_days={(DAYS[2],)!r}"
    assert shop("d1", valid, "--base=d0", days=[DAYS[1]]) == 0
    slots = files.read_json("d1/prepare.json")["slots"]
    ids = pq.read_table("d1/valid")["user"].to_numpy()
    train = set(pq.read_table("d1/train")["user"].to_pylist())
    assert slots["user"]["unknown"]["valid"] == pytest.approx(np.mean(ids == 0))
    assert any(i > 0 and i not in train for i in ids.tolist())  # else the test says nothing


@pytest.mark.parametrize(
    "days",
    [
        ["9", "10", "20240309"],
        ["2024-3-9", "2024-3-10", "2024-11-02"],
        ["2024-03-09 07:00", "2024-03-09 11:00", "2024-03-10"],
        ["28.02.2024", "01.03.2024", "2.3.2024"],
        ["day9", "day10", "day11"],
        ["2024-03-09", "10.3.2024", "2024/3/11"],
        ["2024-W9", "2024-W10"],
    ],
)
def test_days_stand_in_the_order_of_time(days):
    for order in itertools.permutations(days):
        assert recipe.in_order(order, strict=True) == days


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (["3/10/2024", "3/9/2024"], "days such as '3/10/2024' have no order"),
        (["tue", "mon", "wed"], "days such as 'mon' and 'tue' have no order"),
        (["Jan 2024", "Feb 2024"], "days such as 'Feb 2024' and 'Jan 2024' have no order"),
        (["20240304", "2024-03-05"], "days such as '2024-03-05' and '20240304' have no order"),
    ],
)
def test_days_without_an_order_are_refused_where_it_counts(days, said):
    assert len(recipe.in_order(days)) == len(days)
    with pytest.raises(UserError, match=said):
        recipe.in_order(days, strict=True)


@pytest.mark.parametrize("spelled", ["20240101", "2024-1-1", "1.1.2024", "2024/01/01"])
def test_a_day_is_the_same_however_it_is_spelled(shop, capsys, spelled):
    assert shop("d0", days=DAYS[:1]) == 0
    for day, other in ((DAYS[0], spelled), (DAYS[1], "later")):
        path = Path(f"raw/{day}.csv")
        path.write_text(path.read_text().replace(day, other))
    valid = f"--config.prepare.valid_days={(spelled,)!r}"
    for days, more, said in (
        ([spelled], [], f"it has the rows of {spelled} already; name the new days"),
        (["later"], [valid], f"it was trained on {spelled}, which config.prepare.valid_days has"),
    ):
        assert shop("d1", "--base=d0", *more, days=days) == 2
        assert f"--base=d0: {said}" in capsys.readouterr().err
    replayed = f"--config.prepare.replay_days={(spelled,)!r}"
    assert shop("d1", "--base=d0", replayed, days=["later"]) == 0
