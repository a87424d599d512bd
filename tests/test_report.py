"""Reports of a sweep and of a run: their numbers against numpy's, their words, what is missing, and bad input."""

import html.parser
import json
import re
import shutil

import fake_sweep
import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sk

from emofm_jax import report
from emofm_jax.data import files
from emofm_jax.evaluation.comparison import Interval
from emofm_jax.reports import curves, plots
from tests.reference import metrics as reference

POINTS = {
    "hmm": (0.5, {}),
    "strong": (1.6, {"model.name": "wm"}),
    "same": (0.5, {"model.norm": "layer"}),
    "weak": (0.05, {"model.name": "lr"}),
    "d8": (0.3, {"model.mixer.d_att": 8, "model.mixer.num_heads": 4}),
    "d32": (0.4, {"model.mixer.d_att": 32}),
    "d512": (0.6, {"model.mixer.d_att": 512}),
}


def run(workdir, *flags):
    return report.main(["report", f"--workdir={workdir}", *flags])


def page_of(workdir):
    return (workdir / "report.html").read_text()


def rows_of(text, section):
    """{first cell: [cells]} of the first table of a section of the Markdown."""
    body = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [
        re.split(r" \| ", line.strip("| ")) for line in body.splitlines() if line.startswith("| ")
    ]
    return {line[0].strip("`").split("`")[0]: line for line in reversed(lines)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep with a report, one of whose points fails with one seed."""
    made = fake_sweep.make(
        tmp_path_factory.mktemp("sweep") / "fake", POINTS, num_rows=3000, fail=(("d32", 2),)
    )
    assert run(made) == 0
    return made


@pytest.fixture
def copy(sweep, tmp_path):
    return shutil.copytree(sweep, tmp_path / "copy")


def aucs(sweep, point):
    lines = map(files.from_json, (sweep / "results.jsonl").read_text().splitlines())
    return np.array(
        [r["metrics"]["test"]["auc"] for r in lines if r["point"] == point and r["metrics"]]
    )


def test_the_table_has_the_means_and_their_spread(sweep):
    rows = rows_of((sweep / "report.md").read_text(), "Results")
    for point in POINTS:
        found = aucs(sweep, point)
        assert rows[point][1] == f"{found.mean():.5f} +/- {found.std(ddof=1):.5f}"
        half = {3: 4.30265, 2: 12.7062}[len(found)] * found.std(ddof=1) / np.sqrt(len(found))
        low, high = map(float, rows[point][2].split(" to "))
        np.testing.assert_allclose(
            (low, high), (found.mean() - half, found.mean() + half), atol=1.1e-5
        )
    assert (
        list(rows)[0] == "weak" and list(rows)[-2] == "strong"
    )  # the best first, read from the end
    assert rows["d32"][9] == "2 of 3, 1 failed" and rows["hmm"][9] == "3 of 3"


def test_the_verdicts_are_what_the_numbers_say(sweep):
    text = (sweep / "report.md").read_text()
    rows = rows_of(text, "Against hmm")
    assert rows["point"][2:] == [
        f"{verdict}{kind}"
        for kind in ("over seeds", "over rows", "together")
        for verdict in ("", "verdict ")
    ]
    assert [rows[point][-1] for point in ("strong", "same", "weak")] == [
        "**better**",
        "**not distinguishable**",
        "**worse**",
    ]
    assert "**" not in "".join(rows["weak"][:-1]), "bold is what counts"
    difference = aucs(sweep, "weak") - aucs(sweep, "hmm")
    assert rows["weak"][1] == f"{difference.mean():+.5f}"
    assert set(rows) == {"point", *POINTS} - {"hmm"}
    # Its two seeds alone count on both sides, over rows too.
    assert sum(map(float, rows["d32"][4].split(" to "))) / 2 == pytest.approx(
        float(rows["d32"][1]), abs=1.1e-5
    )
    assert rows["d32"][1] == f"{(aucs(sweep, 'd32') - aucs(sweep, 'hmm')[:2]).mean():+.5f}"
    summary = text.split("## Summary")[1].split("## ")[0]
    assert "Of 7 points **`strong` has the highest mean test AUC" in summary
    assert (
        "Against the reference `hmm`: `strong` is better; `weak` and `d8` are worse; `same` and "
        "`d512` are not distinguishable from it; over rows alone `d512` is better; `d32` has too "
        "few seeds to tell."
    ) in summary
    assert "standard errors to each side" not in text, "three seeds"
    assert re.search(r"Too few seeds to tell: `d32` \(2 seeds, 0\.\d{5} behind\)", summary)
    few = "not distinguishable (2 seeds)"
    assert rows_of(text, "Results")["d32"][-1] == few and rows["d32"][7] == f"**{few}**"
    assert "With 3 seeds it asks the clearest of 6 comparisons for 11 standard errors" in summary
    assert (
        "1 of 21 runs failed" in summary and "loss is not finite; lower the learning rate" in text
    )


def test_the_verdict_is_over_seeds_and_rows_together(tmp_path):
    """Seeds that always differ by the same, on rows that are too few to tell."""
    made = fake_sweep.make(
        tmp_path / "few", {"a": (0.9, {}), "b": (0.95, {})}, num_rows=300, seed_noise=0.0
    )
    lines = [files.from_json(line) for line in (made / "results.jsonl").read_text().splitlines()]
    for line in lines:
        line["metrics"]["test"]["auc"] = 0.7 + 0.01 * (line["point"] == "b") + 1e-4 * line["seed"]
    (made / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run(made) == 0
    row = rows_of((made / "report.md").read_text(), "Against a")["b"]
    assert row[3] == "better" and row[5] == "not distinguishable" and row[7] == f"**{row[5]}**"
    assert "Not distinguishable from it: `a`." in (made / "report.md").read_text()


def test_two_seeds_say_what_the_rows_alone_tell_and_what_to_do(tmp_path):
    points = {"a": (1.0, {}), "b": (1.0, {}), "far": (0.3, {})}
    made = fake_sweep.make(tmp_path / "two", points, seeds=(0, 1), seed_noise=0.1)
    assert run(made, "--reference=far") == 0
    summary = (made / "report.md").read_text().split("## Summary")[1].split("## ")[0]
    assert "and `far` (over rows alone `far` is worse)." in summary
    assert "are not distinguishable from it; over rows alone `" in summary
    assert summary.count("run three seeds or more") == 1
    assert "run three or more" in (made / "report.md").read_text().split("## Results")[1]
    made = fake_sweep.make(tmp_path / "clear", points, seeds=(0, 1), seed_noise=0.0)
    lines = [files.from_json(line) for line in (made / "results.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["point"] != "b"]
    (made / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run(made) == 0
    text = (made / "report.md").read_text()
    assert "Every other point is worse" in text and "run three seeds" not in text


def test_the_title_names_the_directory_where_it_is_another(sweep, copy):
    assert (sweep / "report.md").read_text().startswith("# Sweep: fake\n")
    assert run(copy) == 0 and "# Sweep: fake (in copy)\n" in (copy / "report.md").read_text()


def test_the_comparison_over_rows_centres_on_the_mean_of_the_seeds_aucs(sweep):
    runs = {}
    for point in ("strong", "hmm"):
        paths = [sweep / f"runs/{point}/seed-{s}/predictions/test.parquet" for s in range(3)]
        tables = [pq.read_table(path, columns=["label", "p"]) for path in paths]
        runs[point] = [(table["label"].to_numpy(), table["p"].to_numpy()) for table in tables]

    def mean_auc(point, take, auc=lambda label, p: reference.auc(label, p, np.ones(len(p)))):
        return np.mean([auc(label[take], p[take]) for label, p in runs[point]])

    found = rows_of((sweep / "report.md").read_text(), "Against hmm")["strong"]
    low, high = map(float, found[4].split(" to "))
    everything = np.arange(3000)
    wanted = np.subtract(*(mean_auc(x, everything, sk.roc_auc_score) for x in ("strong", "hmm")))
    np.testing.assert_allclose((low + high) / 2, wanted, atol=1e-5)
    rng = np.random.default_rng(0)
    draws = [
        mean_auc("strong", take) - mean_auc("hmm", take)
        for take in rng.integers(0, 3000, (100, 3000))
    ]
    np.testing.assert_allclose(
        (high - low) / 2 / 1.96, np.std(draws, ddof=1), rtol=0.25
    )  # 100 draws know it to 7%


def test_the_sensitivity_to_a_number_is_found_and_fitted(sweep):
    row = rows_of((sweep / "report.md").read_text(), "Sensitivity")["model.mixer.d_att"]
    assert row[2:4] == ["8 to 512", "4"]
    points = {8: "d8", 32: "d32", 64: "hmm", 512: "d512"}
    y = np.array([aucs(sweep, p)[:2] for p in points.values()])  # the seeds that all of them have
    slopes = np.polyfit(np.log10(list(points)), y, 1)[0]
    np.testing.assert_allclose(float(row[4]), slopes.mean(), atol=1e-5)
    assert "Test AUC against model.mixer.d_att" in page_of(sweep)


def test_every_section_is_there_with_its_charts(sweep):
    text = page_of(sweep)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Summary",
        "Results",
        "Against hmm",
        "Sensitivity",
        "By type",
        "Auxiliary model",
        "Cost",
        "Learning curves",
        "Reliability",
        "Configurations",
        "Failed runs",
        "How to read this",
    ]
    for chart in (
        "Test AUC: mean and 95% interval over seeds",
        "Test AUC minus that of hmm, with 95% intervals",
        "Test AUC by type, mean over seeds",
        "Test AUC against parameters",
        "Test AUC against rows/s",
        "Validation AUC during training",
        "Training logloss of the last steps",
        "Reliability on the test split",
    ):
        assert f'aria-label="{chart}"' in text, chart
    markdown = (sweep / "report.md").read_text()
    assert rows_of(markdown, "Configurations")["strong"][1] == "model.name = `wm` (`hmm`)"
    assert "AUC gained by it" in markdown and "<svg" not in markdown
    assert markdown.endswith(
        "In report.html only, as charts: Cost, Learning curves, Reliability.\n"
    )
    assert "dashed line" in text and "dashed line" not in markdown and "Means over" not in markdown


class Balanced(html.parser.HTMLParser):
    """Fails on a tag that is closed in the wrong place; keeps addresses and what runs or loads."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        self.addresses += [
            v for k, v in attrs if k in ("src", "href", "srcset", "action", "data") and v[0] != "#"
        ]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_the_network_for_nothing(sweep):
    text = page_of(sweep)
    parser = Balanced()
    parser.feed(text)
    assert not parser.open and parser.addresses == ["data:,"]
    without = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(
        r"//\w|@import|url\(|fetch\(|XMLHttpRequest|<(img|iframe|object|embed)\b", without
    )
    assert text.count("<script>") == 1 and "nan" not in re.sub(
        r"distinguish\w+", "", text.split("<main>")[1]
    )


def test_a_point_far_behind_does_not_shrink_the_charts_of_the_others(tmp_path):
    points = {
        name: (strength, {}) for name, strength in zip("abcdef", (1.0, 1.03, 1.06, 1.1, 1.2, 0.0))
    }
    assert run(fake_sweep.make(tmp_path / "far", points)) == 0
    page = page_of(tmp_path / "far")
    assert (
        "over seeds, the best 5 of 6 points" in page
        and "minus that of a, with 95% intervals, 4 of 5 points" in page
    )
    table = rows_of((tmp_path / "far/report.md").read_text(), "Results")
    assert set(table) >= set("abcdef"), "it is left out of charts only"


def test_parts_far_off_are_left_to_the_logarithmic_chart():
    ends = [Interval(0.01, 0.005, 0.02), Interval(0.2, 0.1, 0.3), Interval(0.5, 0.4, 0.6)]
    chart = curves.ratio_chart([plots.Series("x", [1e-9, 0.1, 0.5], [0.01, 0.2, 0.5], ends)])
    assert "part by part, up to 10 times off" in chart and chart.count("95% interval") == 2
    assert "times off" not in curves.ratio_chart([plots.Series("x", [0.1, 0.5], [0.2, 0.4])])


def test_two_hundred_points_make_a_small_page(tmp_path):
    """The rows add nothing to it; benchmarks/report.py times the real size."""
    made = fake_sweep.many(tmp_path / "many", 200, 1, 100)
    assert run(made) == 0
    assert len(page_of(made).encode()) < 5e6
    assert len(rows_of((made / "report.md").read_text(), "Results")) == 201
    assert "the best 40 of 200 points" in page_of(made)


def test_another_reference_and_metric(copy, capsys):
    assert run(copy, "--reference=weak", "--metric=logloss") == 0
    rows = rows_of((copy / "report.md").read_text(), "Against weak")
    assert rows["strong"][-1] == "**better**" and float(rows["strong"][1]) < 0
    out = capsys.readouterr().out
    assert "has the lowest mean test logloss" in out and "report.html" in out


def test_one_seed_leaves_the_rows_and_says_so(tmp_path, capsys):
    made = fake_sweep.make(
        tmp_path / "one", {k: POINTS[k] for k in ("hmm", "same", "weak")}, seeds=(0,)
    )
    assert run(made) == 0
    row = rows_of((made / "report.md").read_text(), "Against hmm")["weak"]
    assert len(row) == 5 and row[3:] == ["**worse**", "1 seed in common"]
    assert "Over seeds it is not possible to compare" in (made / "report.md").read_text()
    assert "nothing is known of what another training run would give" in capsys.readouterr().out


def test_without_predictions_the_seeds_are_left(copy):
    for path in copy.glob("runs/*/*/predictions/test.parquet"):
        path.unlink()
    assert run(copy) == 0
    row = rows_of((copy / "report.md").read_text(), "Against hmm")["weak"]
    assert row[3:] == ["**worse**", "no predictions"]
    assert "Over rows it is not possible to compare" in (copy / "report.md").read_text()


def test_a_sweep_of_which_only_the_results_were_kept(copy):
    shutil.rmtree(copy / "runs")
    assert run(copy) == 0
    assert (
        rows_of((copy / "report.md").read_text(), "Configurations")["strong"][1]
        == "model.name = `wm` (default)"
    )


def test_a_half_finished_sweep_is_reported_as_far_as_it_is(tmp_path, capsys):
    skip = [(point, seed) for point in POINTS for seed in (1, 2) if point != "hmm"] + [("d8", 0)]
    made = fake_sweep.make(tmp_path / "half", POINTS, skip=tuple(skip))
    assert run(made) == 0
    assert "Unfinished: 8 of 21 runs are in." in capsys.readouterr().out
    text = (made / "report.md").read_text()
    assert (
        "**Unfinished: 8 of 21 runs are in.**" in text
        and rows_of(text, "Results")["d8"][9] == "0 of 3"
    )
    for more in ((), ("--reference=strong",)):  # which has options of its own
        assert run(made, *more) == 0
        assert rows_of((made / "report.md").read_text(), "Configurations")["d8"][1] == "no run yet"


def test_labels_of_one_class_have_no_auc_and_no_comparison(copy, capsys):
    lines = [files.from_json(line) for line in (copy / "results.jsonl").read_text().splitlines()]
    for line in lines:
        if line["metrics"]:
            line["metrics"]["test"] |= {"auc": None, "pcoc": None}
    (copy / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run(copy) == 0
    assert "AUC has no value on the test split" in capsys.readouterr().out


def test_a_run_of_its_own(sweep, tmp_path, capsys):
    made = shutil.copytree(sweep / "runs/strong/seed-1", tmp_path / "single")
    slots = [
        {"name": "user_id", "auc_drop": 0.05, "logloss_rise": 0.01},
        {"name": "ad", "auc_drop": -0.001, "logloss_rise": 0.0},
    ]
    (made / "predictions/test.importance.json").write_text(
        json.dumps({"slots": slots, "rows": 3000, "seed": 0})
    )
    assert run(made) == 0
    text, found = (
        (made / "report.md").read_text(),
        files.read_json(made / "metrics.json")["test"],
    )
    assert (
        text.startswith("# fake: wm, seed 1\n")
        and f"AUC **{found['auc']:.5f}** on 3,000 rows" in text
    )
    assert rows_of(text, "Importance of the slots")["user_id"][1:] == ["+0.050000", "+0.010000"]
    assert rows_of(text, "By type")["buy"][1] == f"{found['types'][2]['auc']:.5f}"
    assert rows_of(text, "Configuration")["model.name"][1:] == ["'wm'", "'emofmv2'"]
    for chart in (
        "AUC during training",
        "Logloss during training",
        "Reliability on the test split",
        "Importance of the slots",
    ):
        assert f'aria-label="{chart}"' in page_of(made), chart
    assert "model" in capsys.readouterr().out
    body = files.read_json(made / "metrics.json")
    (made / "metrics.json").write_text(json.dumps({k: v for k, v in body.items() if k != "test"}))
    (made / "predictions/valid.importance.json").write_text(
        json.dumps({"slots": slots[:1], "rows": 7, "seed": 0})
    )
    assert run(made) == 0
    assert "over 7 rows" in (made / "report.md").read_text(), "of the split that is shown"


def test_a_single_evaluation_is_no_curve(copy):
    lines = [files.from_json(line) for line in (copy / "results.jsonl").read_text().splitlines()]
    for line in lines:
        if line["metrics"]:
            del line["metrics"]["train"]["evaluations"][1:]
            log = copy / line["workdir"] / "log.jsonl"
            log.write_text(log.read_text().splitlines()[0] + "\n")
            (copy / line["workdir"] / "metrics.json").write_text(json.dumps(line["metrics"]))
    (copy / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for workdir in (copy, copy / "runs/hmm/seed-0"):
        assert run(workdir) == 0 and "Learning curves" not in page_of(workdir)


def test_a_cost_is_fitted_where_it_follows_the_number(tmp_path):
    """Memory of the fake runs is 900 * 2^strength; over the range it must change by a fifth."""
    for strengths, follows in (((0.5, 0.6, 0.9), True), ((0.5, 0.5, 0.5), False)):
        names = {f"d{d}": (s, {"model.mixer.d_att": d}) for d, s in zip((8, 32, 64), strengths)}
        made = fake_sweep.make(tmp_path / str(follows), names, seed_noise=0.0)
        assert run(made) == 0
        body = (made / "report.md").read_text().split("\n## Sensitivity\n")[1].split("\n## ")[0]
        assert "Test AUC" in body or "test AUC" in body
        assert ("peak memory" in body) == follows
