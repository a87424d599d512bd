"""train --init_from: what a run takes from another one, row by row and array by array, and what is refused."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from emofm_jax import config as config_lib
from emofm_jax import prepare, train
from emofm_jax.data import encode, files, shards
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError
from emofm_jax.sweeping import experiment
from emofm_jax.training import build, checkpoint, checkpoint_files, run_data, start
from emofm_jax.training import predictions as predictions_lib
from emofm_jax.training import state as state_lib
from tests import daily_shop
from tests.daily_shop import DAYS


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with runs on the first day, `dnn` and `wm` (typed), and data of later days on their base."""
    home = tmp_path_factory.mktemp("shop")
    daily_shop.write(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name in ("dnn_plain", "wm"):
            made(name, f"{name}_d0", DAYS[:1])
        averaged = "--config.train.average_epochs=0.5"
        assert trained("dnn_plain", DAYS[:1], "dnn_plain_d0", "dnn", averaged) == 0
        assert trained("wm", DAYS[:1], "wm_d0", "wm") == 0
        made("dnn_plain", "d1", DAYS[1:2], "--base=dnn")
        made("dnn_plain", "anew", DAYS[:2])
        yield home


def flags(name, data, days):
    """Of the days of a data set, behind which is the one of the validation split."""
    behind = DAYS[DAYS.index(days[-1]) + 1]
    named = {"train_days": tuple(days), "valid_days": (behind,)}
    config = [f"--config=shop.py:{name}", f"--config.data.dir={data}"]
    return [*config, *(f"--config.prepare.{field}={value}" for field, value in named.items())]


def made(name, target, days, *argv):
    assert prepare.main(["prepare", *flags(name, target, days), *argv]) == 0


def trained(name, days, data, workdir, *argv):
    """Trains two epochs."""
    where = [f"--workdir={workdir}", "--config.train.epochs=2"]
    return train.main(["train", *flags(name, data, days), *where, *argv])


def begin(data, parent, name="dnn_plain", **changes):
    """What a run on prepared data starts with: (Start, parts)."""
    config = experiment.read_config("shop.py", name)
    changes = {"data.dir": data, "seed": 1, "train.init_from": parent} | changes
    config.update_from_flattened_dict(changes)
    parts = build.make_parts(config, schema_lib.load(Path(data)))
    return start.make(config, parts), parts


def kept(workdir):
    """The state that a run is evaluated with, on the host."""
    config, schema = config_lib.load(Path(workdir)), schema_lib.load(Path(workdir))
    parts = build.make_parts(config, schema)
    return state_lib.fetch(build.restore_kept(config, Path(workdir), parts)[0]), parts


def by_value(schema, directory, table):
    """{(slot, value or id): row of the table}."""
    words, found = encode.load_vocabularies(schema, Path(directory)), {}
    for slot, offset in zip(schema.slots, schema.offsets):
        names = range(slot.rows)
        if slot.name in words:
            names = [None, *words[slot.name].values.to_pylist()]
        found |= {(slot.name, name): table[offset + i] for i, name in enumerate(names)}
    return found


@pytest.mark.parametrize("data", ["d1", "anew"])
def test_rows_are_carried_over_by_value(home, data):
    """Whether the ids went on from those of the other run, or are others altogether."""
    found, parts = begin(data, "dnn")
    old, of_old = kept("dnn")
    params, stats = old.scored()
    rows = by_value(parts.schema, data, found.state.params["embedding"])
    there = by_value(of_old.schema, "dnn", params["embedding"])
    fresh = state_lib.fetch(parts.init())
    init = by_value(parts.schema, data, fresh.params["embedding"])
    assert set(there) < set(rows) and parts.schema.num_rows > of_old.schema.num_rows
    for key, row in rows.items():
        np.testing.assert_array_equal(row, there.get(key, init[key]), err_msg=str(key))

    # The network whole, with the statistics of its batch norms; moments and step at their start.
    network = found.state.params["network"], found.state.stats
    jax.tree.map(np.testing.assert_array_equal, network, (params["network"], stats))
    jax.tree.map(np.testing.assert_array_equal, found.state.opt_state, fresh.opt_state)
    assert found.state.step == 0 and not found.state.average
    assert found.parent["rows"] == len(there) and found.parent["fresh"] == []


def test_scores_are_the_same_to_the_bit(home):
    """Rows of the first day, all of whose values are known, under other ids in a larger table."""
    found, parts = begin("anew", "dnn")
    old, of_old = kept("dnn")

    def scores(parts, state, data):
        split, state = (
            shards.open_split(Path(data), "train"),
            state_lib.put_state(state, parts.devices),
        )
        return predictions_lib.predict_split(parts, state, split, 32)

    ours, theirs = scores(parts, found.state, "anew"), scores(of_old, old, "dnn_plain_d0")
    ids = [
        pq.read_table(f"{d}/train/part-00000.parquet")["user"][:60]
        for d in ("anew", "dnn_plain_d0")
    ]
    assert len(theirs.logit) == 60 and ids[0] != ids[1]
    np.testing.assert_array_equal(ours.label[:60], theirs.label)
    np.testing.assert_array_equal(ours.logit[:60], theirs.logit)


def test_averages_and_moments_come_along(home):
    """A run that keeps averages goes on with them; moments follow their rows."""
    changes = {"train.average_epochs": 0.5, "train.init_moments": True}
    found, parts = begin("d1", "dnn", **changes)
    old, of_old = kept("dnn")
    for tree, other in ((found.state.average, old.average), (found.state.params, old.params)):
        for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(other)):
            if ours.shape == theirs.shape:
                np.testing.assert_array_equal(ours, theirs)
    moments = [leaf for leaf in jax.tree.leaves(found.state.opt_state["embedding"]) if leaf.ndim]
    before = [leaf for leaf in jax.tree.leaves(old.opt_state["embedding"]) if leaf.ndim]
    assert len(moments) == len(before) == 2
    for ours, theirs in zip(moments, before):
        ours, theirs = by_value(parts.schema, "d1", ours), by_value(of_old.schema, "dnn", theirs)
        for key, row in ours.items():
            np.testing.assert_array_equal(row, theirs.get(key, np.zeros(4)), err_msg=str(key))
    whole = lambda x: x.dtype == np.int32
    counts = lambda state: [int(x) for x in jax.tree.leaves(state.opt_state) if whole(x)]
    assert counts(old) == [4, 4, 4, 4]  # two epochs of two steps, of moments and of the schedule
    assert counts(found.state) == [4, 0, 4, 0]
    assert found.parent["moments"] is True


def test_what_an_expired_value_left_is_nobodys(home):
    """The row goes to another value, which starts as any new one, with moments of its own."""
    more = "--config.prepare.expire_days=1"
    made("dnn_plain", "d2", DAYS[2:3], "--base=d1", more)
    slots = files.read_json(Path("d2/prepare.json"))["base"]["slots"]
    assert slots["user"]["expired"] > 0
    changes = {"train.init_moments": True, "train.average_epochs": 0.5}
    found, parts = begin("d2", "dnn", **changes)
    rows = by_value(parts.schema, "d2", found.state.params["embedding"])
    moments = by_value(parts.schema, "d2", jax.tree.leaves(found.state.opt_state["embedding"])[1])
    known = set(
        encode.load_vocabularies(schema_lib.load(Path("dnn")), Path("dnn"))[
            "user"
        ].values.to_pylist()
    )
    init = by_value(parts.schema, "d2", np.array(parts.init().params["embedding"]))
    new = [key for key in rows if key[0] == "user" and key[1] not in known | {None}]
    assert new
    for key in new:
        np.testing.assert_array_equal(rows[key], init[key])
        assert not moments[key].any()


def test_moments_of_one_number_a_row_follow_their_values(home):
    """Row-wise Adagrad has f32[V]: it moves as the rows do."""
    name = ["--config.optim.embedding.name=rowwise_adagrad"]
    assert trained("dnn_plain", DAYS[:1], "dnn_plain_d0", "adagrad", *name) == 0
    changes = {"train.init_moments": True, "optim.embedding.name": "rowwise_adagrad"}
    found, parts = begin("d1", "adagrad", **changes)
    per_row = lambda state: next(
        x for x in jax.tree.leaves(state.opt_state["embedding"]) if np.ndim(x) == 1
    )
    like = state_lib.fetch(parts.init())
    old_config = experiment.read_config("shop.py", "dnn_plain")
    old_config.optim.embedding.name = "rowwise_adagrad"
    old_schema = schema_lib.load(Path("adagrad"))
    old = checkpoint.restore(
        Path("adagrad/checkpoints"),
        build.without_scratch(jax.eval_shape(build.make_parts(old_config, old_schema).init)),
    ).state
    before = by_value(old_schema, "adagrad", per_row(old))
    after = by_value(parts.schema, "d1", per_row(found.state))
    fresh = by_value(parts.schema, "d1", per_row(like))
    moved = [key for key in before if key in after and before[key] != fresh.get(key)]
    assert moved
    for key, value in after.items():
        assert value == before.get(key, fresh[key])


def test_new_types_and_slots_start_afresh_and_are_said(home):
    text = Path("shop.py").read_text().replace('("home", "cart")', '("home", "cart", "search")')
    Path("more.py").write_text(text)
    argv = flags("wm", "typed", DAYS[1:2])
    assert prepare.main(["prepare", "--config=more.py:wm", *argv[1:], "--base=wm"]) == 0
    found, parts = begin("typed", "wm", "wm")
    old, _ = kept("wm")
    assert "type 'search' is new" in found.said()
    ours, theirs = (dict(checkpoint.flatten(s.params["network"])[0]) for s in (found.state, old))
    init = checkpoint.flatten(state_lib.fetch(parts.init()).params["network"])[0]
    grown = [name for name in ours if ours[name].shape != theirs[name].shape]
    assert grown
    for name in ours:
        same = tuple(slice(size) for size in theirs[name].shape)
        np.testing.assert_array_equal(ours[name][same], theirs[name])
        if name in grown:
            rest = np.ones(ours[name].shape, bool)
            rest[same] = False
            np.testing.assert_array_equal(ours[name][rest], init[name][rest])

    # A type without a predictor: those of the others stay.
    assert trained("wm", DAYS[:1], "wm_d0", "dropped", "--config.model.drop_type=home") == 0
    found, parts = begin(
        "typed", "dropped", "wm", **{"model.drop_type": "home", "model.activation": "gelu"}
    )
    assert found.parent["fresh"] == ["type 'search' is new"]
    assert found.said().endswith("  differs: model.activation 'relu' there, 'gelu' here")
    ours, theirs = found.state.params["network"], kept("dropped")[0].params["network"]
    heads = [dict(checkpoint.flatten(p)[0])["network/head/kernel"] for p in (ours, theirs)]
    assert len(heads[0]) == 2 and len(heads[1]) == 1
    np.testing.assert_array_equal(heads[0][:1], heads[1])
    with pytest.raises(UserError, match="model.drop_type 'home' there, 'cart' here"):
        begin("typed", "dropped", "wm", **{"model.drop_type": "cart"})

    text = text.replace('"tags", "size")', '"tags", "size", "page")')
    Path("wide.py").write_text(text)
    assert (
        prepare.main(
            [
                "prepare",
                "--config=wide.py:dnn_plain",
                "--config.prepare.ignore=()",
                *flags("", "wide", DAYS[1:2])[1:],
                "--base=dnn",
            ]
        )
        == 0
    )
    found, parts = begin("wide", "dnn")
    assert found.parent["fresh"][0] == "slot 'page' is new"
    (kernel,) = found.parent["fresh"][1:]
    assert kernel == "params/network/mlp/hidden_0/kernel [1, 28, 8], [1, 24, 8] there"


@pytest.mark.parametrize(
    ("fields", "mixes"),
    [
        ({"name": "hmm"}, True),
        ({"name": "hmm", "mixer.stages": (1,)}, False),
        ({"name": "hmm", "mixer.kind": "none"}, False),
        ({"name": "hmm", "type_predictors": "shared"}, False),
        ({"name": "wm"}, False),
    ],
)
def test_predictors_that_see_a_new_type_are_said(fields, mixes):
    config = config_lib.default()
    config.update_from_flattened_dict({f"model.{name}": value for name, value in fields.items()})
    assert start._mixes_types(config) is mixes


@pytest.mark.parametrize("model", ["emofmv2", "deepfm"])
def test_columns_of_types_go_to_their_types(home, model):
    """[embeddings | weights of type 1 | .. | of the auxiliary model]: a new type's are in between."""
    own = {
        "emofmv2": ["stage1=(4,)", "stage2=(4,)", "emofmv2.wide=True"],
        "deepfm": ["type_aware=True", "am_reads=own"],
    }
    of_model = [f"--config.model.{option}" for option in [f"name={model}", *own[model]]]
    assert trained("wm", DAYS[:1], "wm_d0", model, *of_model) == 0
    text = Path("shop.py").read_text().replace('("home", "cart")', '("home", "cart", "search")')
    Path("more.py").write_text(text)
    if not Path("three").exists():
        argv = flags("wm", "three", DAYS[1:2])[1:]
        assert prepare.main(["prepare", "--config=more.py:wm", *argv, "--base=wm"]) == 0
    config = config_lib.load(Path(model))
    config.prepare.types = ("home", "cart", "search")
    config.data.dir, config.train.init_from, config.train.init_moments = "three", model, True
    parts = build.make_parts(config, schema_lib.load(Path("three")))
    found = start.make(config, parts).state
    old, of_old = kept(model)

    first = 4 + {"emofmv2": 3, "deepfm": 2}[model]  # embeddings, weights of two types (and of all)
    moments = lambda state: next(
        x for x in jax.tree.leaves(state.opt_state["embedding"]) if np.ndim(x) == 2
    )
    fresh = state_lib.fetch(parts.init())
    for table in (lambda state: state.params["embedding"], moments):
        ours = by_value(parts.schema, "three", table(found))
        theirs = by_value(of_old.schema, model, table(old))
        init = by_value(parts.schema, "three", table(fresh))
        assert {len(row) for row in theirs.values()} == {first + 8}
        for key, row in theirs.items():
            if key in ours:
                np.testing.assert_array_equal(np.delete(ours[key], first), row)
                assert ours[key][first] == init[key][first]


def test_the_program_starts_stops_and_goes_on_without_its_parent(home, capsys):
    shutil.copytree("dnn", "gone")
    argv = (
        "dnn_plain",
        DAYS[1:2],
        "d1",
        "child",
        "--init_from=gone",
        "--config.train.average_epochs=0.5",
    )
    assert trained(*argv) == 0
    assert "starts from gone (step 4): " in capsys.readouterr().out
    body = files.read_json(Path("child/parent.json"))
    assert body["place"] == "gone" and body["days"] == DAYS[:1] and body["identity"]
    assert schema_lib.load(Path("child")).days == tuple(DAYS[:2])
    shutil.rmtree("gone")
    assert trained(*argv) == 0
    assert "the run is finished (4 steps)" in capsys.readouterr().out
    assert trained(*argv[:-2], argv[-1]) == 2
    assert "train.init_from 'gone' there, '' now" in capsys.readouterr().err


def test_days_that_it_has_seen_evaluate_nothing(tmp_path):
    days = {"valid_days": ("2024-03-06",), "test_days": (20240307,)}
    schema = Schema("x", (Slot("s", "g", "categorical", "hash", 4),), recipe=days)
    with_days = dataclasses.replace(schema, days=("a", "b"))
    assert run_data.trained_days(tmp_path, with_days) == ["a", "b"]
    files.write_json(tmp_path / run_data.PARENT, {"days": ["z", "a"]})
    assert run_data.trained_days(tmp_path, with_days) == ["z", "a", "b"]
    recipe_lib.check_unseen(schema.recipe, ["2024-03-05"], "--init_from=a")
    for day, name in (("2024-03-06", "valid_days"), ("20240307", "test_days")):
        with pytest.raises(
            UserError, match=f"it was trained on {day}, which config.prepare.{name}"
        ):
            recipe_lib.check_unseen(schema.recipe, ["2024-03-05", day], "--init_from=a")


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--init_from=nowhere"], "--init_from=nowhere: no run there (no config.json); name"),
        (["--init_from=d0"], "--init_from=d0: no run there (no config.json); name"),
        (["--init_from=wm"], "(types ['home', 'cart'] there, [] here; slot 'price' transform"),
        (
            ["--init_from=dnn", "d1_std"],
            "its schema differs by more than growth (slot 'price' transform",
        ),
        (
            ["--init_from=dnn", "--config.model.hidden=(6,)"],
            "another model (model.hidden (8,) there, (6,) here)",
        ),
        (
            [
                "--init_from=dnn",
                "--config.train.init_moments=True",
                "--config.optim.embedding.name=sgd",
            ],
            "another model (optim.embedding.name 'adam' there, 'sgd' here)",
        ),
        (
            [
                "--init_from=dnn",
                "--config.train.init_moments=True",
                "--config.optim.network.name=sgd",
            ],
            "(optim.network.name 'adam' there, 'sgd' here); take its options, or leave out train.init",
        ),
        (
            ["--config.train.init_moments=True"],
            "config.train.init_moments: it has no effect without",
        ),
        (["--init_from=begun"], "--init_from=begun: its run has not ended"),
        (["--init_from="], "--init_from: it is empty; name a path, or leave it out"),
    ],
)
def test_mistakes_are_one_line(home, capsys, argv, said):
    data = "d1"
    if "d1_std" in argv:  # prepared afresh
        data = argv[-1]
        argv = [*argv[:-1], "--config.prepare.slots.price.transform=standardize"]
        if not Path(data).exists():
            made("dnn_plain", data, DAYS[1:2], argv[-1])
    if "begun" in argv[0] and not Path("begun").exists():
        shutil.copytree("dnn", "begun")
        for path in Path("begun/checkpoints").glob("step_*/state.json"):
            body = checkpoint_files.read_index(path.parent)
            body.info["finished"] = False
            checkpoint_files.write_index(path.parent, body)
    assert trained("dnn_plain", DAYS[1:2], data, "mistake", *argv) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert not Path("mistake").exists()
