"""experiments/cti.py on its hand-made sample, against the rows as they stand in the files; sums over pieces."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from emofm_jax import prepare
from emofm_jax.data import counts as counts_lib
from emofm_jax.data import schema as schema_lib
from emofm_jax.data import shards

pytestmark = pytest.mark.fast


def test_cti_sample_and_its_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[1])
    sample = Path("data/examples/cti")
    assert (
        prepare.main(["p", "--config=experiments/cti.py", f"--config.data.dir={tmp_path / 'cti'}"])
        == 0
    )
    schema = schema_lib.load(tmp_path / "cti")
    assert schema.types == ("t1", "t2", "t3") and schema.groups == (
        "user",
        "scene",
        "ad",
        "session",
    )
    lines = [line.split("\t") for line in (sample / "train.tsv").read_text().splitlines()]
    filled = [[cell != "-" for cell in row[1:4]].index(True) for row in lines]
    train = pq.ParquetFile(tmp_path / "cti" / "train" / "part-00000.parquet").read()
    assert train["ftype"].to_pylist() == filled
    assert train["label"].to_pylist() == [int(row[1 + t]) for row, t in zip(lines, filled)]
    assert train["row_id"].to_pylist() == [row[0] for row in lines]
    clicks = [sum(int(r[1 + t]) for r, t in zip(lines, filled) if t == k) for k in range(3)]
    assert schema.clicks_per_type == (*clicks, 0)
    bags = [[f.split(":")[0] for f in row[4].split(" ") if f.endswith(":401")] for row in lines]
    values = pq.read_table(tmp_path / "cti" / "vocabulary" / "401.parquet")["value"].to_pylist()
    assert train["401"].to_pylist() == [[values.index(v) + 1 for v in bag] for bag in bags]
    for row, said in (("1\t0\t1\t-\t5:101", "2 of them filled"), ("1\t-\t-\t-\t5:101", "all '-'")):
        broken = tmp_path / "broken"
        broken.mkdir(exist_ok=True)
        for split in shards.SPLITS:
            (broken / f"{split}.tsv").write_text((sample / f"{split}.tsv").read_text() + row + "\n")
        flags = (f"--config.prepare.source={broken}", f"--config.data.dir={tmp_path / 'never'}")
        assert prepare.main(["p", "--config=experiments/cti.py", *flags]) == 2
        assert (
            f"train.tsv:141: t1, t2 and t3 are {said}; exactly one must be 0 or 1"
            in capsys.readouterr().err
        )
        assert not (tmp_path / "never").exists()


def test_one_cti_file_is_split_by_the_day_in_its_log_id(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[1])
    rows = Path("data/examples/cti/train.tsv").read_text().splitlines()
    days = ["0601", "0602", "0603", "0602"]
    rows = [f"{days[i % 4]}-{row}" for i, row in enumerate(rows)]
    (tmp_path / "log.tsv").write_text("\n".join(rows) + "\n")
    flags = [
        f"--config.prepare.source={tmp_path / 'log.tsv'}",
        f"--config.data.dir={tmp_path / 'out'}",
    ]
    flags += ["--config.prepare.split=day", "--config.prepare.day_length=4"]
    flags += ["--config.prepare.valid_days=('0601',)", "--config.prepare.test_days=('0603',)"]
    assert prepare.main(["p", "--config=experiments/cti.py", *flags]) == 2
    assert (
        "cti rows have no other day column; set day_column to 'log_id'" in capsys.readouterr().err
    )
    assert (
        prepare.main(
            ["p", "--config=experiments/cti.py", *flags, "--config.prepare.day_column=log_id"]
        )
        == 0
    )
    for split, ours in (("train", ["0602"]), ("valid", ["0601"]), ("test", ["0603"])):
        table = pq.ParquetFile(tmp_path / "out" / split / "part-00000.parquet").read()
        assert table["row_id"].to_pylist() == [
            row.split("\t")[0] for row in rows if row[:4] in ours
        ]


def test_files_of_another_number_of_types_and_options_without_effect(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[1])
    never = tmp_path.with_name(f"{tmp_path.name}_never")

    def run(*flags):
        flags = (
            f"--config.prepare.source={tmp_path}",
            f"--config.data.dir={never}",
            *flags,
        )
        assert prepare.main(["p", "--config=experiments/cti.py", *flags]) == 2
        assert not never.exists()
        return capsys.readouterr().err

    for split in shards.SPLITS:
        rows = (Path("data/examples/cti") / f"{split}.tsv").read_text().splitlines()
        # Without its second type the third would be read as the second.
        fewer = "\n".join("\t".join(row.split("\t")[:2] + row.split("\t")[3:]) for row in rows)
        (tmp_path / f"{split}.tsv").write_text(fewer if split == "valid" else "\n".join(rows))
    assert "valid.tsv:1: 2 columns of types, but the data has 3 types (t1, t2, t3)" in run()
    assert "config.prepare.ftype: 't1' has no effect on cti rows" in run(
        "--config.prepare.ftype=t1"
    )
    (tmp_path / "test.libsvm").write_text("1 101:5:1\n")
    libsvm = ("--config.prepare.format=libsvm", "--config.prepare.row_id=101")
    assert "config.prepare.row_id: '101' has no effect on libsvm rows" in run(*libsvm)
    day = (
        "--config.prepare.split=day",
        "--config.prepare.day_column=log_id",
        "--config.prepare.valid_days=('9',)",
    )
    for split in ("valid", "test"):
        (tmp_path / f"{split}.tsv").unlink()
    (tmp_path / "test.libsvm").unlink()
    error = run(*day)
    assert "config.prepare.valid_days: no row is of 9; check it, config.prepare.day_colu" in error
    assert error.endswith("and day_length (the rows have '1696118400977' to '1696118536780')\n"), (
        error
    )


def test_moments_of_pieces_are_those_of_the_whole():
    numbers = np.random.default_rng(0).normal(1e6, 1.0, 1000)
    moments = counts_lib.Moments()
    for piece in np.array_split(numbers, 9):
        moments.add(counts_lib.summary(np.append(piece, np.nan)))
    mean, std = moments.mean_and_std()
    assert mean == pytest.approx(numbers.mean(), rel=1e-12) and std == pytest.approx(
        numbers.std(), rel=1e-6
    )
    assert moments.count == 1000 and moments.largest == numbers.max()
    assert counts_lib.Moments().mean_and_std() == (0.0, 1.0)
