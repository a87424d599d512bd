"""A scorer in other people's programs: x64 before and after, data frames, pickles, process pools, threads."""

import concurrent.futures
import copy
import multiprocessing
import pickle

import jax
import numpy as np
import pyarrow as pa
import pytest

import emofm_jax
from emofm_jax import export
from emofm_jax.data import features as features_lib
from emofm_jax.errors import UserError
from tests.test_scorer import close, rows_of


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "dnn"
    assert export.main(["export", f"--workdir={runs / 'dnn'}", f"--output={directory}"]) == 0
    return directory


@pytest.fixture(params=["run", "ensemble", "export"])
def scorer(request, runs, exported):
    paths = {"run": runs / "mine", "ensemble": [runs / "dnn", runs / "wm"], "export": exported}
    return emofm_jax.load_scorer(paths[request.param])


def raw_of(schema):
    """Two rows of anything for each slot."""
    made = {}
    for slot in schema.slots:
        single = [1.5, None] if slot.kind == "numeric" else ["1", None]
        made[slot.name] = [["1", "2"], []] if slot.is_bag else single
    return made


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])


def test_a_pickle_is_the_same_scorer_and_needs_no_file(scorer, tmp_path):
    raw = raw_of(scorer.schema)
    features = scorer.encode(raw)
    scores = scorer(features)  # compiled: nothing of it may travel
    object.__setattr__(scorer, "directory", tmp_path / "gone")
    for other in (pickle.loads(pickle.dumps(scorer)), copy.deepcopy(scorer)):
        same(other.encode(raw), features)
        close(other(features), scores)
        assert other.signature == scorer.signature and other.names == scorer.names


def test_a_calibrated_pickle(runs):
    scorer = emofm_jax.load_scorer(runs / "dnn")
    arrays = {"slope": np.float32(0.5), "intercept": np.float32(-1)}
    scorer.params["calibration"] = arrays
    features = scorer.encode(raw_of(scorer.schema))
    other = pickle.loads(pickle.dumps(scorer))
    close(other(features), scorer(features))
    assert not np.allclose(other(features)["p"], emofm_jax.load_scorer(runs / "dnn")(features)["p"])


def test_a_pool_of_processes_and_one_of_threads(runs):
    scorer = emofm_jax.load_scorer([runs / "dnn"] * 2)
    raw = raw_of(scorer.schema)
    features = scorer.encode(raw)
    wanted = scorer(features)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        same(pool.submit(scorer.encode, raw).result(), features)
        close(pool.submit(scorer, features).result(), wanted)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        fresh = emofm_jax.load_scorer([runs / "dnn"] * 2)
        for found in pool.map(lambda _: fresh(fresh.encode(raw)), range(8)):
            close(found, wanted)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["run", "export"])
def test_x64_changes_no_score(runs, exported, kind, late):
    """Switched on before the scorer is loaded, or after its first call."""
    path = runs / "dnn" if kind == "run" else exported
    scorer = emofm_jax.load_scorer(path)
    features = rows_of(runs / "data", 9)
    wanted = scorer(features)
    with jax.enable_x64(True):
        scorer = scorer if late else emofm_jax.load_scorer(path)
        found = [scorer(features), jax.jit(scorer.fn)(scorer.params, features)]
        found.append(scorer.start(features, 4)())
        grads = jax.grad(lambda params: scorer.fn(params, features)["logit"].sum())(scorer.params)
    for scores in found:
        close(scores, wanted)
        assert {x.dtype for x in scores.values()} == {np.dtype(np.float32)}
    assert {x.dtype for x in jax.tree.leaves(grads)} == {np.dtype(np.float32)}


class Stream:
    """A table of a library that speaks Arrow's C stream."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


class Frame:
    """A table of a library that speaks the interchange protocol alone."""

    def __init__(self, table):
        self._table = table

    def __dataframe__(self, nan_as_null=False, allow_copy=True):
        return self._table.__dataframe__(nan_as_null, allow_copy)


@pytest.fixture(scope="module")
def mine(runs):
    return emofm_jax.load_scorer(runs / "mine")


@pytest.mark.parametrize("kind", [Stream, pa.Table.from_batches, pa.Table.to_reader])
def test_tables_of_other_libraries(mine, kind):
    raw = raw_of(mine.schema)
    table = pa.table(raw | {"of no slot": [1, 2]})
    given = kind(table.to_batches()) if kind == pa.Table.from_batches else kind(table)
    same(mine.encode(given), mine.encode(raw))


def test_the_interchange_protocol(mine):
    names = [slot.name for slot in mine.schema.slots if not slot.is_bag]
    raw = raw_of(mine.schema)
    found = features_lib._by_name("data", Frame(pa.table({name: raw[name] for name in names})), ())
    assert {name: column.to_pylist() for name, column in found.items()} == {
        name: raw[name] for name in names
    }


def test_a_frame_of_pandas(mine):
    pandas = pytest.importorskip("pandas")
    raw = raw_of(mine.schema)
    features = mine.encode(raw)
    frame = pandas.DataFrame(raw | {"label": [0, 1], "of no slot": [object(), 2]})
    same(mine.encode(frame), features)
    same(mine.encode(frame.convert_dtypes()), features)
    same(mine.encode(frame.set_axis([7, "x"])), features)
    single = [slot.name for slot in mine.schema.slots if slot.kind == "categorical"]
    same(mine.encode(frame.astype(dict.fromkeys(single, "category"))), features)
    same(mine.encode(frame.set_index(single[:2])), features)  # as a file of it has them

    twice = frame.set_axis([*frame.columns[:-1], single[0]], axis=1)
    with pytest.raises(UserError, match=f"column '{single[0]}' stands twice"):
        mine.encode(twice)


def test_a_frame_of_polars(mine):
    polars = pytest.importorskip("polars")
    raw = raw_of(mine.schema)
    features = mine.encode(raw)
    frame = polars.DataFrame(raw | {"of no slot": [1, 2]})
    same(mine.encode(frame), features)
    single = [slot.name for slot in mine.schema.slots if slot.kind == "categorical"]
    same(mine.encode(frame.with_columns(polars.col(single).cast(polars.Categorical))), features)
    with pytest.raises(UserError, match=r"a LazyFrame is no table yet; give what its collect\(\)"):
        mine.encode(frame.lazy())


def test_what_is_no_table_is_named(mine):
    for given, kind in (([{"a": 1}], "list"), (None, "NoneType"), (np.zeros(3), "ndarray")):
        with pytest.raises(UserError, match=f"data: a {kind} is no mapping and no table"):
            mine.encode(given)
    with pytest.raises(UserError, match="features: a Table is no mapping; scorer.encode makes"):
        mine(pa.table({"a": [1]}))
