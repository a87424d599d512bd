"""Reports of sweeps whose points have other data: ranked and compared within the same data only; shares across them."""

import json
import re
import shutil

import fake_sweep
import numpy as np
import pyarrow.parquet as pq
import pytest

from emofm_jax import report
from emofm_jax.data import files
from emofm_jax.reports import document, read
from emofm_jax.reports.sweep import findings

pytestmark = pytest.mark.fast

DRIFT, HASH = "prepare.synthetic.drift", "prepare.synthetic.hash_rows"


def points():
    """Two models at three drifts and with three sizes of hashing, and a rate for the first rows only."""
    found = {}
    for name, strength in (("dnn", 0.3), ("hmm", 1.0)):
        found[name] = (strength, {"model.name": name})
        found[f"{name}_fast"] = (strength, {"model.name": name, "optim.network.learning_rate": 0.5})
        for drift in (0.5, 2.0):
            found[f"{name}_drift_{drift:g}"] = (
                strength / 2,
                {"model.name": name, DRIFT: drift, "data.dir": f"d{drift}"},
            )
        for rows in (1000, 10_000, 100_000):
            data = {HASH: rows, "data.dir": f"h{rows}"}
            found[f"{name}_hash_{rows}"] = (
                strength + np.log10(rows) / 100,
                {"model.name": name} | data,
            )
    found["wm_drift_2"] = (0.8, {"model.name": "wm", DRIFT: 2.0, "data.dir": "d2.0"})
    return found


def run(workdir, *flags):
    assert report.main(["report", f"--workdir={workdir}", *flags]) == 0
    return (workdir / "report.md").read_text()


def section(text, name):
    return text.split(f"\n## {name}\n")[1].split("\n## ")[0]


def tables(text, name):
    """{words before it: [[cells]]} of the tables of a section of the Markdown."""
    found, before = {}, ""
    for block in section(text, name).split("\n\n"):
        if block.lstrip().startswith("|"):
            lines = block.strip().splitlines()
            found[before] = [re.split(r" \| ", line.strip("| ")) for line in (lines[0], *lines[2:])]
        else:
            before = block.strip()
    return found


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    made = fake_sweep.make(
        tmp_path_factory.mktemp("data") / "fake", points(), num_rows=2000, reference="hmm"
    )
    run(made)
    return made


@pytest.fixture(scope="module")
def text(sweep):
    return (sweep / "report.md").read_text()


def of(found, name):
    """The table whose words begin with a name."""
    (key,) = [k for k in found if k.startswith(f"**{name}**")]
    return key, found[key]


def test_points_are_ranked_within_their_data_and_compared_to_the_references_like(text):
    found = tables(text, "Results")
    assert len(found) == 6 and "6 different data" in section(text, "Summary")
    words, table = of(found, "drift = 2.0, hash_rows = 0")
    assert [row[0] for row in table[1:]] == [
        "`wm_drift_2`",
        "`hmm_drift_2` (compared to)",
        "`dnn_drift_2`",
    ]
    assert "as the reference `hmm`, but for the data" in words and table[1][-1] == "best"
    assert sum(row[-1] == "best" for t in found.values() for row in t) == 6
    against = tables(text, "Comparisons")
    assert len(against) == 2
    words, table = of(against, "On other data")
    assert "is as the reference `hmm`, but for the data" in words
    rows = [row[:3] for row in table if row[0] == "drift = 2.0, hash_rows = 0"]
    assert rows == [
        ["drift = 2.0, hash_rows = 0", f"`{p}_drift_2`", "`hmm_drift_2`"] for p in ("wm", "dnn")
    ]
    assert len(table) == 1 + 1 + 2 + 3
    words, table = of(against, "drift = 0.0, hash_rows = 0")
    assert "minus `hmm`" in words and {row[0] for row in table[1:]} == {
        "`dnn`",
        "`dnn_fast`",
        "`hmm_fast`",
    }


def test_across_data_shares_stand_side_by_side_without_a_verdict(sweep, text):
    ((_, table),) = tables(text, "Across data").items()
    assert table[0] == ["data", "attainable AUC", "hmm", "dnn"] and len(table) == 7
    lines = [files.from_json(line) for line in (sweep / "results.jsonl").read_text().splitlines()]
    test = [x["metrics"]["test"] for x in lines if x["point"] == "dnn_drift_2"]
    share = [(t["auc"] - 0.5) / (t["bayes"]["auc"] - 0.5) for t in test]
    (row,) = [row for row in table if row[0].startswith("drift = 2.0")]
    assert row[1::2] == [
        f"{test[0]['bayes']['auc']:.5f}",
        f"{np.mean(share):.4f} +/- {np.std(share, ddof=1):.4f}",
    ]
    assert "better" not in section(text, "Across data").replace("is better", "")


def test_numbers_of_the_data_are_fitted_in_shares_and_without_their_sentinel(text):
    (table,) = tables(text, "Sensitivity").values()
    rows = {(row[0], row[1], row[2]): row for row in table}
    drift, hashed = f"`{DRIFT}`", f"`{HASH}`"
    assert rows[drift, "hmm", "share of the attainable lift"][3:5] == ["0 to 2", "3"]
    assert rows[drift, "hmm", "share of the attainable lift"][-1] == "per unit"
    assert rows[hashed, "dnn", "share of the attainable lift"][3:5] == ["1k to 100k", "3"]
    assert rows[hashed, "dnn", "share of the attainable lift"][-1] == "per factor of ten"
    assert (
        f"`{HASH}` = 0 is left out" in section(text, "Sensitivity") and f"`{DRIFT}` = 0" not in text
    )
    # Memory grows with the strength, so it follows the drift; hashing moves it too little to be shown.
    assert float(rows[drift, "hmm", "peak memory (MiB)"][5].removeprefix("x ")) < 0.9
    assert not [key for key in rows if key[0] == hashed and "MiB" in key[2]]


def test_a_table_shows_peak_memory_and_other_costs_by_data(sweep, text):
    (table,) = [
        t
        for k, t in tables(text, "Results").items()
        if k.startswith("**drift = 0.0, hash_rows = 0**")
    ]
    at = table[0].index("peak memory (MiB)")
    assert {row[0]: row[at] for row in table[1:]}["`hmm` (reference)"] == f"{900 * 2 + 1:,}"
    page = (sweep / "report.html").read_text()
    assert 'aria-label="Test AUC against peak memory (drift = 0.0, hash_rows = 0)"' in page
    assert "against peak memory (drift = 2.0" not in page  # three points are no chart


def test_the_same_data_by_name_with_other_labels_get_no_verdict(sweep, tmp_path):
    """dnn's rows are other ones than its settings say: it is set apart, and nothing is said against it."""
    copy = shutil.copytree(sweep, tmp_path / "copy")
    for seed in range(3):
        path = copy / f"runs/dnn/seed-{seed}/predictions/test.parquet"
        table = pq.read_table(path)
        label = table["label"].to_numpy()[::-1].copy()
        pq.write_table(table.set_column(1, "label", [label]), path)
    text = run(copy)
    words = [k for k in tables(text, "Results") if "rows, " in k]
    assert len(words) == 2 and "7 different data" in text
    assert "`dnn`" not in section(text, "Comparisons") and "dnn_fast" in section(
        text, "Comparisons"
    )


def test_labels_that_differ_between_two_points_or_seeds_leave_no_interval(sweep, tmp_path):
    copy = shutil.copytree(sweep, tmp_path / "copy")
    path = copy / "runs/dnn/seed-2/predictions/test.parquet"
    pq.write_table(pq.read_table(path).slice(0, 1000), path)
    found = read.load(copy)
    aucs = findings.figure(found, lambda run: run.splits["test"].auc)
    for pair in (("dnn", "hmm"), ("hmm_drift_2", "hmm")):
        (other,) = findings.compare(found, "test", "auc", aucs, [pair[0]], [pair[1]])[pair[1]]
        assert other == findings.Comparison(pair[0], "auc", 3, why="other test rows")
        assert other.verdict == "" and other.interval is None
    assert "other test rows" in section(run(copy), "Comparisons")


def test_a_point_without_the_test_split_takes_all_to_the_validation_split(sweep, tmp_path):
    copy = shutil.copytree(sweep, tmp_path / "copy")
    lines = [files.from_json(line) for line in (copy / "results.jsonl").read_text().splitlines()]
    del lines[0]["metrics"]["test"]
    (copy / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = run(copy)
    assert (
        "valid AUC" in text and "Over rows it is not possible to compare" in text
    )  # test.parquet holds other rows


def test_points_without_a_value_or_a_rate(sweep, tmp_path, recwarn):
    """Of rows of one class, and of runs of one step."""
    copy = shutil.copytree(sweep, tmp_path / "copy")
    lines = [files.from_json(line) for line in (copy / "results.jsonl").read_text().splitlines()]
    for line in lines:
        line["metrics"]["train"]["rows_per_s"] = 0.0
        line["peak_memory_mib"] = (
            500.0 if line["point"] == "dnn" else None
        )  # as of the first run of a process
        if line["point"].endswith("_drift_2"):
            line["metrics"]["test"]["auc"] = None
    lines = [line for line in lines if line["point"] != "hmm_fast"]
    (copy / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = section(run(copy), "Results")
    assert (
        "Without a value of AUC: `dnn_drift_2`, `hmm_drift_2` and `wm_drift_2`; their test rows are"
        in words
    )
    assert (
        "Without a finished run: `hmm_fast`." in words
        and "rows/s" not in words
        and "memory" not in words
    )
    assert not [w for w in recwarn if w.category is RuntimeWarning]


def test_without_a_point_of_the_references_settings_its_model_then_the_first_stands_for_it(
    tmp_path,
):
    slow, data = {"optim.network.learning_rate": 1e-4}, {DRIFT: 1.0, "data.dir": "other"}
    made = fake_sweep.make(
        tmp_path / "few",
        {
            "wm": (0.5, {"model.name": "wm"}),
            "hmm": (1.0, {"model.name": "hmm"}),
            "lr_other": (0.2, {"model.name": "lr"} | data),
            "hmm_other": (1.0, {"model.name": "hmm"} | data | slow),
            "lr_far": (0.2, {"model.name": "lr"} | data | {DRIFT: 2.0}),
            "fm_far": (0.2, {"model.name": "fm"} | data | {DRIFT: 2.0}),
        },
        num_rows=500,
        reference="hmm",
    )
    for gone in (False, True):
        if gone:  # the overrides alone say the same
            shutil.rmtree(made / "runs")
        first, others = tables(run(made), "Comparisons").items()
        assert "minus `hmm`" in first[0] and [row[2] for row in others[1][1:]] == [
            "`hmm_other`",
            "`lr_far`",
        ]
        assert "the model of the reference `hmm`" in others[1][1][-1]
        assert "the first point of these data" in others[1][2][-1]


def test_the_reference_may_have_failed(tmp_path):
    points = {
        "hmm": (1.0, {}),
        "wm": (0.5, {"model.name": "wm"}),
        "lr": (0.2, {"model.name": "lr"}),
    }
    made = fake_sweep.make(
        tmp_path / "few", points, num_rows=500, fail=(("hmm", 0), ("hmm", 1), ("hmm", 2))
    )
    found = section(run(made), "Against wm")
    assert (
        "`hmm` has no finished run" in found
        and "Each point minus `wm`" in found
        and "the first point" in found
    )


def test_names_of_strangers_are_neither_html_nor_lines_nor_escape_codes():
    name = "<img src=x>\x1b[31m\n| forged |`<b>"
    table = document.Table(["head", name], [[document.Cell("1", 1.0), document.Cell(name)]])
    blocks = [document.Text(name), document.Items([name]), table]
    report = document.Report(name, [name], {name: blocks}, [(name, table)], [name])
    for text in (report.as_html(), report.as_markdown(), report.as_text()):
        assert "\x1b" not in text and "\\x1b[31m\\n" in text
        assert "\n| forged" not in text
    assert "<img" not in report.as_html() + report.as_markdown()
    tail = document.Text("`<img src=x>``").as_markdown()  # no code: of one sign and of two
    assert tail == "`&lt;img src=x>``"
