"""Made-up click logs of the CTI kind, whose true probabilities are known.

    ids        Zipf (exponent 1.05 to 1.2 in the large slots), nested as in a real log      data/synthetic/population.py
    type t     ~ softmax_t(main effects and interactions of a few well-populated slots)       data/synthetic/truth.py
    label      ~ sigmoid(bias_t + main effects_t + interactions_t within and across groups)

The data sets of the paper cannot be had, so their structure is simulated: 28 slots in the groups user, scene, ad and
session, 7 each, 4 of them bags, and T interaction types that a model may see in training only. The true p(y|x),
p(y|x, t) and p(t|x) of valid and test are written beside the shards, so that a result reads as a share of what is
attainable. Dials (`config.prepare.synthetic`): `type_strength` (0: all types alike), `cross_strength` (0: no
interactions across groups), `noise` (of the logit; the truth is then the expectation over it), `drift` and
`new_id_rate` (test rows only), `unseen_type` (train and valid never show it, test does), `num_types` (0: untyped).
What is written of the same rows: `hash_rows` (ids of the slots that grow with time collide in so many table rows) and
`group_slots` (the first slots of each group only, whose others still act, or more, which are noise and decide nothing).

The defaults, measured on their 50,000 test rows (`python -m emofm_jax.data.synthetic` prints them):

    Bayes AUC of p(y|x) 0.8135; of p(y|x, t) with the row's type 0.8682
    click rate 0.097; types' shares 0.40, 0.30, 0.20, 0.10, click rates 0.057, 0.114, 0.125, 0.150
    marginal entropy of the types minus the log-loss of p(t|x): 0.33 nats
    interactions: 0.39 of the variance of the row's logit, 0.56 of that across groups
    60,204 ids occur in train

Share of the lift (AUC - 0.5) / (Bayes AUC - 0.5) that the truth itself keeps when part of it is taken away, so what
not learning that part costs (seed 0, 50,000 other rows): ids with fewer than 50 train rows 0.999, with fewer than 50
of the row's type 0.996; the own effects of users, ads, items and terms 0.981; every interaction halved 0.961, none
across groups 0.896, none at all 0.782; p(t|x) replaced by the types' shares 0.918. The main effects of the types'
scores alone close 0.72 of the types' gap. No model was trained to choose these numbers.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emofm_jax.data import counts as counts_lib
from emofm_jax.data import shards
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.data.synthetic import population
from emofm_jax.data.synthetic import truth as truth_lib
from emofm_jax.data.synthetic.population import Dials, SlotPlan
from emofm_jax.data.synthetic.truth import Rows
from emofm_jax.data.vocabulary import hash_values
from emofm_jax.errors import UserError

_NOISE, _NOISE_IDS = (
    "_noise_",
    (1_000, 1.1),
)  # slots of noise: part of their names; ids and Zipf exponent


def write(recipe: Mapping, directory: Path, name: str, progress: bool) -> Schema:
    """Makes the three splits of shards, `truth.parquet` of valid and test, `schema.json` and `prepare.json`.

    Args:
      recipe: `config.prepare` as a dict; its `synthetic` section holds the dials, `gauc_key` may name a slot.
      directory: that is made, or filled.
      name: of the data set.
      progress: whether to report the rows written so far on stderr.

    Returns:
      The schema, with the train split's counts per type.

    Raises:
      UserError: a dial is out of range, or `gauc_key` names no slot with one id per row.
    """
    dials = Dials(**recipe["synthetic"])
    world, schema = truth_lib.make_world(dials), make_schema(dials, name, recipe)
    key = recipe.get("gauc_key", "")
    if key and key not in [s.name for s in schema.slots if s.kind == "categorical"]:
        raise UserError(
            f"config.prepare.gauc_key: {key!r} is no slot of single ids; choose one, such as 'user_id'"
        )
    tallies, done = counts_lib.Tally(schema), 0
    hashes = _hashes(schema, world)
    for split in shards.SPLITS:
        with (
            shards.Writer(directory, split, schema) as writer,
            _TruthWriter(writer.path, split, dials) as truth,
        ):
            for chunk, rows in enumerate(truth_lib.make_rows(world, split)):
                noise = _noise(schema, dials, split, chunk, len(rows.label))
                table = _table(rows, schema, key, noise, hashes)
                writer.write(table)
                truth.write(rows)
                tallies.add(split, table)
                done += table.num_rows
                if progress:
                    print(
                        f"\rsynthetic: {done:,} of {sum(dials.rows):,} rows",
                        end="",
                        file=sys.stderr,
                    )
    if progress:
        print(file=sys.stderr)
    schema = tallies.with_counts(schema)
    counts_lib.save(tallies.report(schema), directory)
    schema.save(directory)
    return schema


def make_schema(dials: Dials, name: str, recipe: Mapping) -> Schema:
    """The schema of the shards, without counts."""
    slots = []
    for plan in _plans(dials):
        rows, encoding = (
            1 + plan.size + (population.num_new_ids(plan) if dials.new_id_rate else 0),
            "identity",
        )
        if plan.grows and dials.hash_rows:
            rows, encoding = dials.hash_rows, "hash"
        kind, length = ("multi", population.MAX_LENGTH) if plan.bag else ("categorical", 1)
        slots.append(Slot(plan.name, plan.group, kind, encoding, rows, max_length=length))
    return Schema(
        name,
        tuple(slots),
        dials.types,
        has_gauc_key=bool(recipe.get("gauc_key")),
        recipe=dict(recipe),
    )


def facts(dials: Dials) -> dict[str, float]:
    """What the data is like, measured on the test split's true probabilities; ids on the train split.

    Returns:
      bayes_auc, known_type_auc: of p(y|x) and of p(y|x, t) with the row's type, expected over labels;
      click_rate; type_gap: marginal entropy of the types minus the expected log-loss of p(t|x), in nats;
      interactions: their share of the variance of the row's logit, and across_groups: the share of that; distinct_ids:
      that occur in train; share_t1, rate_t1, ...: share and click rate of each type (typed data only).
    """
    world = truth_lib.make_world(dials)
    chunks = list(truth_lib.make_rows(world, "test"))
    p, p_type, p_given_type = (
        np.concatenate([getattr(c, k) for c in chunks]) for k in Rows._fields[3:6]
    )
    ftype = np.concatenate([c.ftype for c in chunks])[:, None]
    main, within, across = (np.concatenate(part) for part in zip(*(c.parts for c in chunks)))
    row = lambda a: np.take_along_axis(a, ftype, 1)[:, 0]
    interaction, shares = row(within + across), p_type.mean(0)
    out = {
        "bayes_auc": expected_auc(p, p),
        "known_type_auc": expected_auc(row(p_given_type), row(p_given_type)),
        "click_rate": p.mean(),
        "type_gap": _entropy(shares) - np.mean(_entropy(p_type)),
        "interactions": np.var(interaction)
        / np.var(row(main) + interaction + world.label_test.bias[ftype[:, 0]]),
        "across_groups": np.var(row(across)) / (np.var(row(across)) + np.var(row(within))),
    }
    seen = {plan.name: np.zeros(len(world.latents[plan.name]), bool) for plan in population.SLOTS}
    for chunk in truth_lib.make_rows(world, "train"):
        for slot, ids in chunk.ids.items():
            seen[slot][ids[0] if isinstance(ids, tuple) else ids] = True
    out["distinct_ids"] = sum(int(s[1:].sum()) for s in seen.values())
    for t, name in enumerate(dials.types):
        out[f"share_{name}"] = shares[t]
        out[f"rate_{name}"] = (p_type[:, t] * p_given_type[:, t]).sum() / p_type[:, t].sum()
    return {key: float(value) for key, value in out.items()}


def expected_auc(score: np.ndarray, p: np.ndarray) -> float:
    """AUC of `score` f64[n] with every row counted as p a click and 1 - p none; scores without ties."""
    p = p[np.argsort(score)]
    below = np.cumsum(1 - p) - (1 - p)
    return float((p * below).sum() / (p.sum() * (1 - p).sum() - (p * (1 - p)).sum()))


def _entropy(p: np.ndarray) -> np.ndarray:
    """In nats, over the last axis; 0 log 0 = 0."""
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)


def _plans(dials: Dials) -> list[SlotPlan]:
    """The slots that are written: of each group its first ones, then slots of noise."""
    if not dials.group_slots:
        return list(population.SLOTS)
    plans = []
    for group, wanted in zip(
        dict.fromkeys(plan.group for plan in population.SLOTS), dials.group_slots
    ):
        own = [plan for plan in population.SLOTS if plan.group == group]
        extra = range(1, wanted - len(own) + 1)
        plans += own[:wanted] + [SlotPlan(f"{group}{_NOISE}{i}", group, *_NOISE_IDS) for i in extra]
    return plans


def _noise(
    schema: Schema, dials: Dials, split: str, chunk: int, num_rows: int
) -> dict[str, np.ndarray]:
    """Ids of the slots of noise, from a random stream of their own: the other slots, and labels, are as without."""
    size, zipf = _NOISE_IDS
    rng = np.random.default_rng(
        [dials.seed, population.STREAMS["noise"], shards.SPLITS.index(split), chunk]
    )
    cumulative = np.cumsum((np.arange(size) + 1.0) ** -zipf)
    draw = lambda: (
        1
        + np.searchsorted(
            cumulative[:-1] / cumulative[-1], rng.random(truth_lib.CHUNK_ROWS), side="right"
        )
    )
    return {
        slot.name: draw()[:num_rows].astype(np.int32)
        for slot in schema.slots
        if _NOISE in slot.name
    }


def _hashes(schema: Schema, world: truth_lib.World) -> dict[str, np.ndarray]:
    """Of hashed slots, i32: the table row of each id, as the encoding of raw value k = id - 1; 0 stays missing."""
    found = {}
    for slot in schema.slots:
        if slot.encoding == "hash":
            raw = pa.array(np.arange(len(world.latents[slot.name]) - 1)).cast(pa.string())
            rows = 1 + hash_values(raw, slot.seed) % np.uint64(slot.rows - 1)
            found[slot.name] = np.concatenate([[0], rows]).astype(np.int32)
    return found


def _table(rows: Rows, schema: Schema, gauc_key: str, noise: dict, hashes: dict) -> pa.Table:
    """The columns of a shard."""
    columns, drawn = {}, rows.ids | noise
    for slot in schema.slots:
        ids, starts = drawn[slot.name] if slot.kind == "multi" else (drawn[slot.name], None)
        ids = pa.array(hashes[slot.name][ids] if slot.name in hashes else ids)
        columns[slot.name] = (
            ids
            if starts is None
            else pa.ListArray.from_arrays(pa.array(starts.astype(np.int32)), ids)
        )
    columns["label"] = rows.label
    if schema.types:
        columns["ftype"] = rows.ftype
    if gauc_key:
        columns["gauc_key"] = rows.ids[gauc_key].astype(np.int64)
    return pa.table(columns)


class _TruthWriter:
    """Writes `truth.parquet` beside the shards of valid and test; of train, nothing."""

    def __init__(self, path: Path, split: str, dials: Dials):
        fields = [("p", pa.float64())]
        if dials.num_types:
            fields += [("p_given_type", pa.list_(pa.float64())), ("p_type", pa.list_(pa.float64()))]
        self.schema = pa.schema(fields)
        self.file = None
        if split != "train":
            self.file = pq.ParquetWriter(path / "truth.parquet", self.schema, compression="zstd")

    def write(self, rows: Rows) -> None:
        if self.file is not None:
            columns = [getattr(rows, name) for name in self.schema.names]
            columns = [
                c if c.ndim == 1 else pa.FixedSizeListArray.from_arrays(c.ravel(), c.shape[1])
                for c in columns
            ]
            arrays = [pa.array(c).cast(field.type) for c, field in zip(columns, self.schema)]
            self.file.write_table(pa.table(arrays, schema=self.schema))

    def __enter__(self) -> "_TruthWriter":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        if self.file is not None:
            self.file.close()


if __name__ == "__main__":
    for key, value in facts(Dials()).items():
        print(f"{key:16} {value:,.4f}" if value < 1000 else f"{key:16} {value:,.0f}")
