"""Gradient boosting with out-of-fold click rates of the ids, beside trained runs on the same test rows.

    pip install lightgbm pandas
    python benchmarks/lightgbm_baseline.py --source=DIR --config=experiments/kuairand.py [--workdirs=runs/a,runs/b]

DIR holds train.csv.gz, valid.csv.gz and test.csv.gz. Slots are those of the experiment's groups: numbers as they are,
values coded by rank, and for each value its click rate in the other folds of the training rows (5 folds, 20 rows of
the mean rate on top); valid and test rows get the rates of all training rows. The number of trees is chosen on
validation AUC, and so is one of three sizes of a tree; nothing else is tuned. No seed's test rows are looked at before
that. Prints AUC and logloss of validation and test, and of each run its difference from the boosted trees with
intervals over seeds and rows (`--seeds`) or over rows alone.
"""

import argparse
import sys
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from emofm_jax import points
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.evaluation import comparison, metrics

FOLDS, PRIOR = 5, 20.0
LEAVES = (31, 63, 127)


def rates(
    train: pd.DataFrame, others: list[pd.DataFrame], column: str, label: str
) -> list[np.ndarray]:
    """Smoothed click rates by the values of a column: of the training rows out of fold, then of the others."""
    overall = train[label].mean()
    fold = np.random.default_rng(0).integers(0, FOLDS, len(train))
    own = np.empty(len(train))
    for i in range(FOLDS):
        rest = train[fold != i].groupby(column, dropna=False)[label].agg(["sum", "count"])
        own[fold == i] = smoothed(rest, train.loc[fold == i, column], overall)
    whole = train.groupby(column, dropna=False)[label].agg(["sum", "count"])
    return [own, *(smoothed(whole, frame[column], overall) for frame in others)]


def smoothed(found: pd.DataFrame, values: pd.Series, overall: float) -> np.ndarray:
    there = found.reindex(values).fillna(0.0)
    return ((there["sum"] + PRIOR * overall) / (there["count"] + PRIOR)).to_numpy()


def matrices(source: Path, config) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Features and labels of train, valid and test."""
    recipe = config.prepare.to_dict()
    frames = [
        pd.read_csv(source / f"{split}.csv.gz", dtype=str) for split in ("train", "valid", "test")
    ]
    label = recipe["label"]
    for frame in frames:
        frame[label] = frame[label].astype(float)
    columns: list[list[np.ndarray]] = [[], [], []]
    names = []
    for slot in recipe_lib.slots(recipe):
        if slot.kind == "numeric":
            for part, frame in zip(columns, frames):
                part.append(pd.to_numeric(frame[slot.name], errors="coerce").to_numpy())
            names.append(slot.name)
            continue
        order = {value: i for i, value in enumerate(frames[0][slot.name].value_counts().index)}
        for part, frame in zip(columns, frames):
            part.append(frame[slot.name].map(order).to_numpy(float))
        for part, found in zip(columns, rates(frames[0], frames[1:], slot.name, label)):
            part.append(found)
        names += [slot.name, f"{slot.name}_rate"]
    return (
        [np.stack(part, 1) for part in columns],
        [frame[label].to_numpy() for frame in frames],
        names,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument(
        "--workdirs", default="", help="runs whose predictions/test.parquet are compared"
    )
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    config = points.load(options.config).get_config()
    features, labels, names = matrices(options.source, config)
    train = lightgbm.Dataset(features[0], labels[0], feature_name=names)
    valid = lightgbm.Dataset(features[1], labels[1], reference=train)
    best = None
    for leaves in LEAVES:
        tuned = {
            "objective": "binary",
            "metric": "auc",
            "learning_rate": 0.03,
            "num_leaves": leaves,
        }
        tuned |= {
            "min_data_in_leaf": 100,
            "feature_fraction": 0.5,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
        }
        tuned |= {"verbose": -1, "seed": 0, "num_threads": 2}
        stop = lightgbm.early_stopping(100, verbose=False)
        model = lightgbm.train(tuned, train, 3000, valid_sets=[valid], callbacks=[stop])
        auc = model.best_score["valid_0"]["auc"]
        print(f"{leaves} leaves: valid AUC {auc:.5f}, {model.best_iteration} trees", flush=True)
        if best is None or auc > best[0]:
            best = auc, tuned
    found = []
    for seed in range(options.seeds):
        stop = lightgbm.early_stopping(100, verbose=False)
        model = lightgbm.train(
            best[1] | {"seed": seed}, train, 3000, valid_sets=[valid], callbacks=[stop]
        )
        found.append([model.predict(x).astype(np.float32) for x in features[1:]])
    for i, split in enumerate(("valid", "test"), 1):
        for name in ("auc", "logloss"):
            values = [getattr(metrics, name)(labels[i], scores[i - 1]) for scores in found]
            print(f"{split} {name}: {np.mean(values):.4f} +/- {np.std(values, ddof=1):.4f}")
    runs = [path for path in options.workdirs.split(",") if path]
    if not runs:
        return
    theirs = [
        pq.read_table(f"{run}/predictions/test.parquet", columns=["label", "p"]) for run in runs
    ]
    assert all((np.array(table["label"]) == labels[2]).all() for table in theirs), "other test rows"
    scores = [np.array(table["p"]) for table in theirs]
    for name in ("auc", "logloss"):
        value = lambda p, name=name: getattr(metrics, name)(labels[2], p)
        parts = lambda all_p, name=name: [
            np.mean(x, axis=0)
            for x in zip(*(comparison.row_parts(name, labels[2], p) for p in all_p))
        ]
        k = min(len(scores), len(found))
        differences = np.array([value(a) - value(b[1]) for a, b in zip(scores, found)])[:k]
        rows = comparison.over_rows(parts(scores[:k]), parts([b[1] for b in found[:k]]))
        both = comparison.together(differences, rows) if k > 1 else rows
        print(
            f"runs minus boosted trees, {name}: {both.mean:+.4f} ({both.low:+.4f} to {both.high:+.4f})"
        )


if __name__ == "__main__":
    main()
