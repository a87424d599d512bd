"""Ids over the days of a real log: `prepare --base` day by day, against all days at once.

    python benchmarks/growth.py --config=experiments/kuairand_daily.py:dnn --config.prepare.source=DIR

Prepares each day on the base of the day before it, in a temporary directory. Checks that ids of
earlier days never move, and that values and counts after the last day are those of all days at
once, in each slot with a vocabulary. Then once more with values that expire after --expire_days.
Prints the rows of the table after each day; ends with an AssertionError where ids are wrong.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from absl import flags as absl_flags
from ml_collections import ConfigDict

from emofm_jax import cli
from emofm_jax.data import preparation, vocabulary
from emofm_jax.data import schema as schema_lib


def _prepare(base: ConfigDict, directory: Path, days: Sequence[str], parent: Path | None) -> Path:
    config = ConfigDict(base.to_dict())
    config.prepare.train_days, config.prepare.valid_days = tuple(days), ()
    config.prepare.test_days, config.data.dir = (), str(directory)
    preparation.prepare(config, progress=False, base=parent)
    return directory


def _slots(directory: Path) -> list[str]:
    """The slots that have a vocabulary of values."""
    slots = schema_lib.load(directory).slots
    return [s.name for s in slots if s.encoding == "vocabulary" and s.kind != "numeric"]


def _chain(config: ConfigDict, root: Path, days: Sequence[str], expire_days: int) -> Path:
    """Prepares day by day; returns the shards of the last one."""
    config = ConfigDict(config.to_dict())
    config.prepare.expire_days = expire_days
    before, sizes, start = None, [], time.process_time()
    for day in days:
        now = _prepare(config, root / f"expire{expire_days}" / day, [day], before)
        for name in _slots(now) if before and not expire_days else ():
            old, new = (vocabulary.load(p, name).values.to_pylist() for p in (before, now))
            assert new[: len(old)] == old, f"{day}: ids of {name} have moved"
        sizes.append(f"{schema_lib.load(now).num_rows:,}")
        before = now
    seconds = time.process_time() - start
    print(
        f"expire_days={expire_days}: table rows {' '.join(sizes)}; {seconds:.0f} CPU s", flush=True
    )
    assert before is not None
    return before


def _counts(directory: Path, room: str, name: str) -> dict[str, int]:
    table = pq.read_table(directory / room / f"{name}.parquet")
    return dict(zip(table["value"].to_pylist(), table["count"].to_pylist(), strict=True))


def _main(flags: absl_flags.FlagValues) -> None:
    days = preparation.days(flags.config)
    with tempfile.TemporaryDirectory(prefix="emofm_jax_growth_") as directory:
        root = Path(directory)
        last = _chain(flags.config, root, days, 0)
        whole = _prepare(flags.config, root / "whole", days, None)
        for name in _slots(last):
            for room in ("vocabulary", "rare"):
                same = _counts(last, room, name) == _counts(whole, room, name)
                assert same, f"{room}/{name}: other values or counts than of all days at once"
        slots = len(_slots(last))
        print(f"{len(days)} days, {slots} slots: values and counts are those of all days at once")
        _chain(flags.config, root, days, flags.expire_days)


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    cli.define_config(flags, argv)
    after = "Days after which a value that was not seen expires, in the second part."
    absl_flags.DEFINE_integer("expire_days", 3, after, flag_values=flags)


if __name__ == "__main__":
    sys.exit(cli.run(_main, _define))
