"""A slot that alone gives the label is named; one that helps, or many new ids, are not."""

import numpy as np
import pyarrow as pa
import pytest

from emofm_jax import prepare
from emofm_jax.data import shards
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.evaluation import leaks, split_report, summary

pytestmark = pytest.mark.fast

SLOTS = (
    Slot("good", "g", rows=50),
    Slot("bought", "g", rows=3),
    Slot("seconds", "g", kind="numeric", encoding="identity", rows=2),
    Slot("user", "g", rows=5000),
)


def make(tmp_path, rows=2000, valid_rows=1000):
    """Clicks that `good` explains in part; `bought` follows from them, as do the seconds after one."""
    r = np.random.default_rng(0)
    schema = Schema("shop", SLOTS)
    for split, n in (("train", rows), ("valid", valid_rows)):
        good = r.integers(1, 50, n)
        label = r.random(n) < good / 100
        columns = {
            "good": good,
            "bought": 1 + (label ^ (r.random(n) < 0.002)),
            "seconds": np.where(label, 5 + r.random(n), r.random(n)),
            "user": r.integers(1, 5000, n),
            "label": label,
        }
        with shards.Writer(tmp_path, split, schema) as writer:
            arrow = shards.arrow_schema(schema)
            arrays = [pa.array(columns[f.name]).cast(f.type) for f in arrow]
            writer.write(pa.table(arrays, schema=arrow))
    schema.save(tmp_path)
    return [shards.open_split(tmp_path, split) for split in ("train", "valid")]


def test_slots_that_alone_give_the_label_are_found(tmp_path):
    found = leaks.find(*make(tmp_path))
    assert found.keys() == {"bought", "seconds"}
    assert 0.99 < found["bought"] < 1 and found["seconds"] == 1


def test_a_number_that_is_there_for_clicks_only_and_a_weight_that_tells_them(tmp_path):
    r = np.random.default_rng(0)
    label = r.integers(0, 2, 1000)
    slots = [Slot(f"n{i}", "g", kind="numeric", encoding="identity", rows=2) for i in range(2)]
    slots += [Slot(f"w{i}", "g", rows=9, weighted=True) for i in range(2)]
    around = lambda gone: pa.array(r.normal(size=1000), pa.float32(), mask=gone)
    weigh = lambda weight: [pa.array(np.ones(1000, np.int32)), pa.array(weight, pa.float32())]
    pairs = [weigh(np.where(label, 1, 0.1)), weigh(r.random(1000))]
    numbers = [around(label == 0), around(r.random(1000) < 0.5)]
    schema = Schema("shop", tuple(slots))
    for split in ("train", "valid"):
        with shards.Writer(tmp_path, split, schema) as writer:
            arrow = shards.arrow_schema(schema)
            weighted = [pa.StructArray.from_arrays(x, fields=list(shards.WEIGHTED)) for x in pairs]
            arrays = [*numbers, *weighted]
            arrays.append(pa.array(label).cast(arrow.field("label").type))
            writer.write(pa.table(arrays, schema=arrow))
    schema.save(tmp_path)
    opened = [shards.open_split(tmp_path, split) for split in ("train", "valid")]
    assert leaks.find(*opened) == {"n0": 1.0, "w0": 1.0}


def test_a_few_rows_are_no_ground_to_judge_by(tmp_path):
    assert leaks.find(*make(tmp_path, valid_rows=8)) == {}


def test_prepare_names_them(tmp_path, capsys):
    r = np.random.default_rng(1)
    label, other = r.integers(0, 2, 400), r.integers(0, 9, 400)
    rows = "".join(f"{y},{'yes' if y else 'no'},{x}\n" for y, x in zip(label, other))
    (tmp_path / "rows.csv").write_text(f"label,bought,other\n{rows}")
    text = "from emofm_jax import config\ndef get_config():\n    c = config.default()\n"
    text += f"    c.prepare.source, c.data.dir = '{tmp_path}/rows.csv', '{tmp_path}/d'\n"
    text += "    c.prepare.split, c.prepare.groups = 'share', (('g', ('bought', 'other')),)\n    return c\n"
    (tmp_path / "x.py").write_text(text)
    assert prepare.main(["prepare", f"--config={tmp_path}/x.py"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "leak" in x]
    assert line.startswith(
        "likely a leak: alone, slot 'bought' (AUC 1.0000) nearly gives the label"
    )


def test_the_verdict_names_them_or_an_auc_that_is_too_good():
    label = np.repeat([0.0, 1.0], 50)
    p = np.where(label > 0, 0.9, 0.1).astype(np.float32)
    report = split_report.make(label, p)
    alone = {"bought": 0.998}
    line = summary.verdict(report, (), {"network": 1e-3}, 9, alone)
    assert (
        line.count("\n") == 0 and "likely a leak: alone, slot 'bought' (AUC 0.9980) nearly" in line
    )
    assert "likely a leak: an AUC over 0.999" in summary.verdict(report, (), {"network": 1e-3}, 9)
    worse = split_report.make(label, np.roll(p, 5))
    assert "leak" not in summary.verdict(worse, (), {"network": 1e-3}, 9, {})


def test_ids_with_weights_are_judged_by_their_ids():
    plain = pa.chunked_array([pa.array([3, 1], pa.int32())])
    fields = [plain.chunk(0), pa.array([0.5, 2.0], pa.float32())]
    weighted = pa.chunked_array([pa.StructArray.from_arrays(fields, ["id", "weight"])])
    assert leaks._ids(plain).tolist() == leaks._ids(weighted).tolist() == [3, 1]


def test_the_rate_of_an_id_is_near_the_mean_where_it_has_few_rows():
    seen = np.int32([1, 1, 1, 2])
    found = leaks._rates(seen, np.array([1, 0, 1, 1]), np.int32([1, 2, 3]))
    np.testing.assert_allclose(found, [(2 + 0.75) / 4, (1 + 0.75) / 2, 0.75])
