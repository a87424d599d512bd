"""Negative sampling: what is left out, what it weighs, and that nothing after it is off."""

import csv
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from emofm_jax import evaluate, prepare, train
from emofm_jax.data import files
from emofm_jax.data import schema as schema_lib
from emofm_jax.models import build as model_lib
from emofm_jax.training import intercept

FILE = """
from emofm_jax import config

def get_config(arg=""):
    c = config.default()
    c.name, c.data.dir = "shop", "data"
    p = c.prepare
    p.source, p.split, p.shares, p.ignore = "log.csv", "share", (0.6, 0.2, 0.2), ("keep",)
    p.groups = (("user", ("user",)), ("item", ("item",)))
    c.model.name, c.model.embedding_dim, c.model.hidden = "dnn", 4, (8,)
    c.data.batch_size = c.data.eval_batch_size = 256
    c.optim.embedding.learning_rate = c.optim.network.learning_rate = 0.01
    c.train.epochs = 4
    return c
"""


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A log of 6,000 rows of which one in ten is a click; `keep` is 1 of a click, else 0.25."""
    monkeypatch.chdir(tmp_path)
    r = random.Random(0)
    rows = []
    for _ in range(6000):
        user, item = r.randrange(20), r.randrange(30)
        label = int(r.random() < 0.04 + 0.12 * ((user + item) % 2))
        rows.append([label, f"u{user}", f"i{item}", 1 if label else 0.25])
    write("log.csv", rows)
    Path("shop.py").write_text(FILE)
    return rows


def write(name, rows):
    with open(name, "w", newline="") as file:
        csv.writer(file).writerows([["label", "user", "item", "keep"], *rows])


def prepared(*flags):
    assert prepare.main(["prepare", "--config=shop.py", *flags]) == 0
    return {s: pq.read_table(f"data/{s}").to_pydict() for s in ("train", "valid", "test")}


def test_a_share_of_the_negatives_is_left_out_of_training_counted_and_weighed(log, capsys):
    whole = prepared()
    some = prepared("--config.prepare.negative_keep_rate=0.2")
    said = capsys.readouterr().out
    label, weight = (np.array(some["train"][name]) for name in ("label", "weight"))
    assert label.sum() == sum(whole["train"]["label"])  # every click
    negatives, kept = whole["train"]["label"].count(0), int((label == 0).sum())
    assert abs(kept / negatives - 0.2) < 4 * np.sqrt(0.16 / negatives)
    np.testing.assert_allclose(weight, np.where(label > 0, 1, 5))
    for split in ("valid", "test"):
        assert some[split]["label"] == whole[split]["label"] and set(some[split]["weight"]) == {1}
    assert f"{negatives - kept:,} rows without a click are left out of the train split" in said
    notes = files.read_json(Path("data/prepare.json"))["notes"]
    assert notes["sampled"][0] == negatives - kept
    again = prepared("--config.prepare.negative_keep_rate=0.2")
    assert again == some


def test_the_start_is_the_rate_of_all_rows(log):
    prepared("--config.prepare.negative_keep_rate=0.2")
    schema = schema_lib.load(Path("data"))
    clicks, rows = sum(schema.clicks_per_type), sum(schema.rows_per_type)
    true = clicks / (clicks + (rows - clicks) / 0.2)
    from emofm_jax import config

    options = config.default().model.to_dict() | {"name": "lr"}
    module = model_lib.make_model(schema, options)
    assert schema.keep_rate == 0.2 and module.head_bias[0] == pytest.approx(
        np.log(true / (1 - true)), abs=0.01
    )


@pytest.mark.parametrize("how", ["logit", "weight", "column"])
def test_predictions_are_of_the_rows_before_sampling(log, how):
    """Clicks of rows that nobody sampled are as many as are predicted; without weights they are not."""
    if how == "column":  # sampled before: the log has lost negatives, test rows have not
        r = random.Random(1)
        kept = [row for i, row in enumerate(log) if i > 4500 or row[0] or r.random() < 0.25]
        write(
            "log.csv",
            [row if i < len(kept) - 1499 else [*row[:3], 1] for i, row in enumerate(kept)],
        )
        flags = ["--config.prepare.keep_probability=keep", "--config.prepare.ignore=()"]
    else:
        flags = ["--config.prepare.negative_keep_rate=0.2"]
    prepared(*flags)
    if how != "column":
        flags.append(f"--config.train.sampling_correction={how}")
    assert train.main(["train", "--config=shop.py", "--workdir=run", *flags]) == 0
    part = files.read_json(Path("run/metrics.json"))["test"]
    assert part["pcoc"] == pytest.approx(1, abs=0.2)
    write("new.csv", [[*row[:3], 1] for row in log])
    assert evaluate.main(["evaluate", "--workdir=run", "--input=new.csv"]) == 0
    new = files.read_json(Path("run/predictions/input@new.json"))
    assert new["pcoc"] == pytest.approx(1, abs=0.15) and new["rows"] == len(log)


@pytest.mark.parametrize(
    ("how", "keep_rate", "weights"), [("logit", 0.2, {1}), ("weight", 1, {1, 5})]
)
def test_an_intercept_is_of_the_rows_that_were_kept(
    log, monkeypatch, capsys, how, keep_rate, weights
):
    """Training makes their sum right, with the weights and logits of the loss."""
    found, solve = [], intercept.solve
    monkeypatch.setattr(intercept, "solve", lambda *args: found.append(args) or solve(*args))
    flags = ["--config.prepare.negative_keep_rate=0.2"]
    prepared(*flags)
    flags += [f"--config.train.sampling_correction={how}", "--config.train.intercept_rows=100000"]
    assert train.main(["train", "--config=shop.py", "--workdir=run", *flags]) == 0
    sampled = "train rows as they were sampled was" in capsys.readouterr().out
    assert sampled == (keep_rate < 1)
    ((*_, weight, of_loss),) = found
    assert of_loss == keep_rate and set(weight.round(5)) == weights
    body = files.read_json(Path("run/metrics.json"))
    assert body["intercept"]["pcoc"] == pytest.approx(1, abs=0.1)
    assert body["test"]["pcoc"] == pytest.approx(1, abs=0.2)


def test_a_column_of_keep_probabilities_is_undone_by_weights_alone(log, capsys):
    """Its clicks may have been left out, too, so no one number shifts the logits."""
    flags = ["--config.prepare.keep_probability=keep", "--config.prepare.ignore=()"]
    prepared(*flags)
    flags.append("--config.train.sampling_correction=logit")
    capsys.readouterr()
    assert train.main(["train", "--config=shop.py", "--workdir=run", *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "weights" in said and "prepare.keep_probability" in said
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("flags", "cell", "line"),
    [
        (["--config.prepare.negative_keep_rate=0.0"], None, "negative_keep_rate: 0.0"),
        (["--config.prepare.negative_keep_rate=1.5"], None, "negative_keep_rate: 1.5"),
        (
            ["--config.prepare.keep_probability=keep", "--config.prepare.ignore=()"],
            0,
            "the keep probability is '0'; it must be above 0",
        ),
        (
            ["--config.prepare.keep_probability=keep", "--config.prepare.ignore=()"],
            1.5,
            "at most 1",
        ),
        (
            ["--config.prepare.keep_probability=keep", "--config.prepare.ignore=()"],
            1e-310,  # 1 / it is infinite
            "which gives the row a weight above 1e+30",
        ),
        (
            ["--config.prepare.keep_probability=gone"],
            None,
            "there is no column 'gone' (config.prepare.keep_probability); the file has label, ",
        ),
    ],
)
def test_rates_that_cannot_be(log, flags, cell, line, capsys):
    if cell is not None:
        write("log.csv", [*log[:9], [*log[9][:3], cell], *log[10:]])
    assert prepare.main(["prepare", "--config=shop.py", *flags]) == 2
    assert line in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert not Path("data").exists()
