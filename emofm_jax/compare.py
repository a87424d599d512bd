"""Is one trained model better than another? Compares any number with the first, on the same rows.

    python -m emofm_jax.compare --workdirs=runs/monday,runs/tuesday --input=wednesday.csv
    python -m emofm_jax.compare --workdirs=runs/a,runs/b,runs/c --by=device,country
    python -m emofm_jax.compare --workdirs=runs/monday,runs/tuesday --input=wednesday.csv \\
        --cluster=user_id --require="auc >= -0.0005, logloss.high <= 0.001" --output=compared

A model is a run, one of its checkpoints, or what `export` wrote. Prints AUC, logloss, PCOC and GAUC
of each, the differences from the first with intervals of 95% and a verdict (better, worse, not
distinguishable), and the same for each type and for each value of the columns of --by.

--input=FILE, a directory, or several with commas, are raw rows with labels; each model reads them
through its own vocabularies, so models of different days and recipes can be compared. Rows that not
all of them can read are left out of all, counted and named. Where models weigh rows differently,
all are judged by the weights of the first, and that is said. --data=DIR are prepared rows, of which
--split says the split. With neither, the rows are the runs' own split, which must be one and the
same.

The differences are paired: both models score the same rows. Rows count as independent, unless
--cluster names a column whose equal values hang together, as those of one user do. By how much that
widens the intervals is printed.

--require is a gate for pipelines, of conditions with commas: `auc`, `logloss` and `gauc` stand for
the difference of a model from the first, `auc.low` and `auc.high` for the ends of its interval,
`auc.value` for the model's own; `pcoc`, `pcoc.low`, `pcoc.high` are the model's own. Exit code: 0;
1 if a condition does not hold for a model, or cannot be told; 2 after a line of error.

--output=DIR gets compare.html, a page that stands alone, and compare.json.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emofm_jax.training import huge_pages

if __name__ == "__main__":  # before what takes time to load
    huge_pages.use(__file__)
else:
    huge_pages.use_in_command()

import numpy as np
from absl import flags as absl_flags

from emofm_jax import cli
from emofm_jax import config as config_lib
from emofm_jax.data import coded as coded_lib
from emofm_jax.data import files, seen, shards, storage
from emofm_jax.data.coded import Coded
from emofm_jax.data.raw_rows import RawRows
from emofm_jax.errors import UserError
from emofm_jax.evaluation import by_value, contest, paired
from emofm_jax.evaluation.contest import Condition, Contest
from emofm_jax.reports import compare_page

if TYPE_CHECKING:  # which load jax
    from emofm_jax.scoring.labelled import Labelled
    from emofm_jax.scoring.scorer import Scorer


def _main(flags: absl_flags.FlagValues) -> bool:
    """Compares; returns whether every condition of the gate holds."""
    gate = contest.conditions(flags.require)
    names = _check(flags)
    from emofm_jax.scoring import scorer as scorer_lib  # after the cheap checks

    scorers = [scorer_lib.load_scorer(name, calibrated=flags.calibrated) for name in names]
    found = _compare(flags, names, scorers)
    report = compare_page.report(found, gate)
    print(report.as_text())
    if flags.output:
        output = Path(flags.output)
        files.make_directory(output)
        written = [output / "compare.html", output / "compare.json"]
        files.write_text(written[0], report.as_html())
        files.write_json(written[1], dataclasses.asdict(found))
        print(f"written: {', '.join(map(str, written))}")
    return _holds(gate, found)


def _compare(
    flags: absl_flags.FlagValues, names: Sequence[str], scorers: Sequence["Scorer"]
) -> Contest:
    from emofm_jax.scoring import labelled

    by = flags.by.split(",") if flags["by"].present else []
    cluster_by = [flags.cluster] if flags.cluster else []
    for scorer in scorers:
        coded_lib.check(scorer.schema, by, of_shards=not flags.input)
        coded_lib.check(scorer.schema, cluster_by, of_shards=not flags.input, flag="cluster")
    columns = {**dict.fromkeys(cluster_by, "cluster"), **dict.fromkeys(by, "by")}
    opened = [_open(flags, *pair, columns) for pair in zip(names, scorers)]
    _check_same_split(names, opened)
    scored = [labelled.score(s, rows, [*columns]) for s, rows in zip(scorers, opened)]
    scored, notes = _aligned(names, scored)

    first = scored[0]
    tables = [*_types(scorers, scored), *(first.coded[column] for column in by)]
    cluster = None
    if flags.cluster:
        cluster, words = _clusters(first, flags.cluster, scorers[0], bool(flags.input))
        notes += words
    key = next((one.key for one in scored if one.key is not None), None)
    keys = {
        scorer.schema.recipe.get("gauc_key") for scorer in scorers if scorer.schema.has_gauc_key
    }
    if len(keys) > 1:
        notes.append(f"GAUC is by the first key of {', '.join(sorted(map(str, keys)))}")
    rows = paired.Rows(first.label, first.weight, key, cluster)
    if cluster is not None and paired.count(cluster) < 2:
        one = "all rows have the same value, so there is no interval"
        raise UserError(f"--cluster={flags.cluster}: {one}; name another column")
    about = {"source": _source(opened[0]), "cluster": flags.cluster, "notes": notes}
    if flags.input or flags.data:
        about["warnings"] = _of_seen_days(names, scorers, opened)
    scores = [(one.p, one.logit) for one in scored]
    return contest.make(names, scores, rows, tables, most=flags.by_values, **about)


def _open(
    flags: absl_flags.FlagValues, name: str, scorer: "Scorer", columns: Mapping[str, str]
) -> shards.Split | RawRows:
    """The rows, as a model reads them."""
    if flags.input:
        paths = [storage.reading(path) for path in cli.paths("input", flags.input, "file")]
        return RawRows(scorer.schema, scorer.directory, paths, columns)
    if flags.data:
        return shards.open_split(storage.reading(flags.data), flags.split, scorer.schema)
    if not (scorer.directory / "config.json").exists():
        raise UserError(
            f"{name}: it is no run, and has no rows of its own; name rows (--input or --data)"
        )
    from emofm_jax.training.run_data import RunData

    config = config_lib.load(scorer.directory)
    return RunData(scorer.directory, config, scorer.schema).open(flags.split)


def _of_seen_days(
    names: Sequence[str], scorers: Sequence["Scorer"], opened: Sequence[shards.Split | RawRows]
) -> list[str]:
    """What is to be said of models that were trained on days of the rows."""
    from emofm_jax.scoring import origin

    warnings = []
    for name, scorer, rows in zip(names, scorers, opened):
        trained = {*scorer.schema.days}.union(*map(origin.trained_days, scorer.origins))
        if words := seen.said(rows, trained):
            warnings.append(f"{name} was {words} to compare by")
    return warnings


def _check_same_split(names: Sequence[str], opened: Sequence[shards.Split | RawRows]) -> None:
    """Raises UserError if splits are not one and the same."""
    splits = [rows for rows in opened if isinstance(rows, shards.Split)]
    for name, split in zip(names, splits):
        same = split.digest == splits[0].digest and split.num_rows == splits[0].num_rows
        if not same or not (split.digest or split.path.samefile(splits[0].path)):
            other = f"its rows ({split.path}) are not those of {names[0]} ({splits[0].path})"
            raise UserError(f"{name}: {other}; give all the same rows, raw ones by --input")


def _aligned(
    names: Sequence[str], scored: Sequence["Labelled"]
) -> tuple[list["Labelled"], list[str]]:
    """The rows that all models can read and that count, and what is to be said of the others.

    Raises:
      UserError: there is none, or models do not agree on a label.
    """
    position = functools.reduce(np.intersect1d, [one.position for one in scored])
    notes = []
    by: dict[tuple[int, str], list[str]] = {}
    for name, one in zip(names, scored):
        if one.rejected:
            by.setdefault((len(one.rejected), one.rejected[0][1]), []).append(name)
    for (count, first), readers in by.items():
        left_out = f"{count:,} rows could not be read by {' and by '.join(readers)}"
        notes.append(f"{left_out} and are left out of all; the first: {first}")
    same = [one.take(np.searchsorted(one.position, position)) for one in scored]
    if not len(position):
        raise UserError("no row can be read by all models; compare models of the same columns")

    first = same[0]
    weight = lambda one: np.ones(len(position)) if one.weight is None else one.weight
    for name, one in zip(names[1:], same[1:]):
        if (differs := one.label != first.label).any():
            row = f"row {position[np.argmax(differs)]} has another label than for {names[0]}"
            raise UserError(f"{name}: {row}; compare models that read the label alike")
        if (differs := weight(one) != weight(first)).any():
            row = f"{name} gives row {position[np.argmax(differs)]} another weight"
            notes.append(f"{row}; all are judged by the weights of {names[0]}, the first")
    if first.weight is not None and not (counts := first.weight > 0).all():
        notes.append(f"{np.count_nonzero(~counts):,} rows have the weight 0 and are left out")
        same = [one.take(np.flatnonzero(counts)) for one in same]
    return same, notes


def _types(scorers: Sequence["Scorer"], scored: Sequence["Labelled"]) -> list[Coded]:
    """The rows by type, as the first model has them that knows types."""
    for scorer, one in zip(scorers, scored):
        types = scorer.schema.types
        if types and (one.ftype >= 0).any():
            code = np.where(one.ftype < 0, len(types), one.ftype).astype(np.int32)
            return [Coded("type", code, [*types, None], "of unknown type")]
    return []


def _clusters(
    rows: "Labelled", column: str, scorer: "Scorer", raw: bool
) -> tuple[np.ndarray, list[str]]:
    """A cluster for each value of a column, rows without one being alone; what is to be said."""
    if not raw and rows.key is not None and scorer.schema.recipe.get("gauc_key") == column:
        # Hashes of the values, which shards have of unknown ones, too.
        return paired.of_key(rows.key), []

    found = rows.coded[column]
    none = [code for code, value in enumerate(found.values) if value is None]
    alone, notes = np.isin(found.code, none), []
    if not raw and alone.any():
        notes.append(
            f"{np.count_nonzero(alone):,} rows have no known {column} and count as independent, so "
            "that intervals are too narrow; raw rows (--input) have their values"
        )
    return np.where(alone, paired.ALONE, found.code.astype(np.int64)), notes


def _source(rows: shards.Split | RawRows) -> str:
    return rows.name if isinstance(rows, RawRows) else str(rows.path)


def _holds(gate: Sequence[Condition], found: Contest) -> bool:
    return all(condition.holds(model) for condition in gate for model in found.models[1:])


def _check(flags: absl_flags.FlagValues) -> list[str]:
    """The models, after the checks that need none of them."""
    names = cli.paths("workdirs", flags.workdirs, "model")
    given = f"--workdirs={flags.workdirs}"
    if len(names) < 2:
        raise UserError(f"{given}: a comparison needs two models; name them with commas")
    places = [Path(name).resolve() for name in names]
    if twice := next((n for n, p in zip(names, places) if places.count(p) > 1), ""):
        raise UserError(f"{given}: {twice} stands twice; name it once")
    for name in [name for name in ("require", "cluster") if flags[name].present]:
        if not str(flags[name].value).strip():  # a variable of a pipeline that is not set, say
            raise UserError(f"--{name}: it is empty; fill it in, or leave it out")

    if flags.by_values < 1:
        raise UserError(f"--by_values={flags.by_values}: it must be at least 1; give a number")
    if flags.input and (flags["split"].present or flags.data):
        one = "data" if flags.data else "split"
        raise UserError(f"--{one}: raw rows are no shards; leave it out, or --input")
    if storage.local("--output", flags.output, "pages are written locally").is_file():
        raise UserError(f"--output={flags.output}: it is a file; name a directory")
    return names


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    for name, default, meaning in (
        ("workdirs", None, "Runs, checkpoints or exports with commas; the first is compared to."),
        ("input", "", "Raw rows with labels: a file, a directory, or several with commas."),
        ("data", "", "Directory of prepared rows, if not the runs' own."),
        ("split", "test", "Which split of these: train, valid or test."),
        ("by", "", "Columns, with commas, for each of whose values to compare."),
        ("cluster", "", "Column whose equal values hang together, as a user's rows do."),
        ("require", "", "Conditions with commas, as in 'auc >= -0.0005'; else exit code 1."),
        ("output", "", "Directory for compare.html and compare.json."),
    ):
        absl_flags.DEFINE_string(name, default, meaning, flag_values=flags)

    most = "Values of a column that are shown, the most frequent ones."
    absl_flags.DEFINE_integer("by_values", by_value.MOST, most, flag_values=flags)
    cli.define_calibrated(flags)


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, 1 if a condition does not hold, 2 after one line of error."""
    return cli.run(_main, _define, argv)


if __name__ == "__main__":
    sys.exit(main())
