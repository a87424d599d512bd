"""Made-up click logs of the CTI kind, whose true probabilities are known.

    ids       Zipf (exponent 1.05 to 1.2 in large slots), nested as in a real log    (population.py)
    type t    ~ softmax_t(main effects and interactions of a few well-populated slots)    (truth.py)
    label     ~ sigmoid(bias_t + main effects_t + interactions_t within and across groups)

The data sets of the paper are not public, so their structure is simulated: 28 slots in the groups
user, scene, ad and session, 7 each, 4 of them bags, and T interaction types that a model may see in
training only. The true p(y|x), p(y|x, t) and p(t|x) of valid and test are written beside the
shards, so that a result reads as a share of what is attainable. facts.py measures the data.

`population.Dials` says what can be changed. `drift` and `new_id_rate` are of test rows only; train
and valid never show the `unseen_type`. `hash_rows` and `group_slots` change what is written of the
same rows: a slot that is left out still acts, and one beyond the 7 of its group is noise.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from emofm_jax.data import counts as counts_lib
from emofm_jax.data import parquet, sampling, shards
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data.problems import Notes
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.data.synthetic import population
from emofm_jax.data.synthetic import truth as truth_lib
from emofm_jax.data.synthetic.population import Bags, Dials, Ids, SlotPlan
from emofm_jax.data.synthetic.truth import Rows
from emofm_jax.data.vocabulary import hash_values
from emofm_jax.errors import UserError

# Slots of noise: part of their names, how many ids they have, and their Zipf exponent.
_NOISE, _NOISE_SIZE, _NOISE_ZIPF = "_noise_", 1_000, 1.1


def write(
    recipe: Mapping[str, Any], directory: Path, name: str, progress: bool
) -> counts_lib.Report:
    """Makes the splits, `truth.parquet` of valid and test, `schema.json` and `prepare.json`.

    Args:
      recipe: `config.prepare` as a dict; `synthetic` holds the dials, `gauc_key` may name a slot.
      directory: made, or filled.
      name: of the data set.
      progress: reports the rows written so far on stderr.

    Raises:
      UserError: a dial is out of range, or `gauc_key` names no slot with one id per row.
    """
    dials = Dials(**recipe["synthetic"])
    world, schema = truth_lib.make_world(dials), make_schema(dials, name, recipe)
    key = recipe["gauc_key"]
    if key and key not in [slot.name for slot in schema.slots if not slot.is_bag]:
        remedy = "choose one, such as 'user_id'"
        raise UserError(f"config.prepare.gauc_key: {key!r} is no slot of single ids; {remedy}")
    hashes = _hashes(schema, world)
    tally, done = counts_lib.Tally(schema), 0
    for split in shards.SPLITS:
        writer = shards.Writer(directory, split, schema)
        with _TruthWriter(writer, split, dials) as truth, writer:
            for chunk, rows in enumerate(truth_lib.make_rows(world, split)):
                ids = {**rows.ids, **_noise(schema, dials, split, chunk, len(rows.label))}
                table = _table(rows, ids, schema, hashes)
                done += table.num_rows
                if split == "train":
                    table = _thin(recipe, chunk, table, tally)
                writer.write(table)
                truth.write(rows)
                tally.add(split, counts_lib.count(schema, table))

                if progress:
                    said = f"synthetic: {done:,} of {sum(dials.rows):,} rows"
                    print(f"\r{said}", end="", file=sys.stderr)
    if progress:
        print(file=sys.stderr)
    return tally.save(directory, {})


def make_schema(dials: Dials, name: str, recipe: Mapping[str, Any]) -> Schema:
    """The schema of the shards, without counts."""
    return Schema(
        name,
        tuple(_slot(plan, dials) for plan in _plans(dials)),
        dials.types,
        has_weight=recipe_lib.is_weighted(recipe),
        has_gauc_key=bool(recipe.get("gauc_key")),
        recipe=dict(recipe),
    )


def _slot(plan: SlotPlan, dials: Dials) -> Slot:
    new_ids = population.num_new_ids(plan) if dials.new_id_rate else 0
    rows, encoding = 1 + plan.size + new_ids, "identity"
    if plan.grows and dials.hash_rows:
        rows, encoding = dials.hash_rows, "hash"
    kind, length = ("multi", population.MAX_LENGTH) if plan.bag else ("categorical", 1)
    return Slot(plan.name, plan.group, kind, encoding, rows, max_length=length)


def _plans(dials: Dials) -> list[SlotPlan]:
    """The slots that are written: of each group its first ones, then slots of noise."""
    if not dials.group_slots:
        return list(population.SLOTS)
    plans = []
    for group, wanted in zip(population.GROUPS, dials.group_slots):
        own = [plan for plan in population.SLOTS if plan.group == group]
        noise = [f"{group}{_NOISE}{i + 1}" for i in range(wanted - len(own))]
        plans += own[:wanted]
        plans += [SlotPlan(name, group, _NOISE_SIZE, _NOISE_ZIPF) for name in noise]
    return plans


def _noise(
    schema: Schema, dials: Dials, split: str, chunk: int, num_rows: int
) -> dict[str, np.ndarray]:
    """Ids of the slots of noise, from a random stream of their own: all else is as without them."""
    rng = population.stream(dials, "noise", shards.SPLITS.index(split), chunk)
    cumulative = np.cumsum((np.arange(_NOISE_SIZE) + 1.0) ** -_NOISE_ZIPF)
    edges = cumulative[:-1] / cumulative[-1]

    ids = {}
    for slot in schema.slots:
        if _NOISE in slot.name:
            drawn = np.searchsorted(edges, rng.random(truth_lib.CHUNK_ROWS), side="right")
            ids[slot.name] = (1 + drawn[:num_rows]).astype(np.int32)
    return ids


def _thin(
    recipe: Mapping[str, Any], chunk: int, table: pa.Table, tally: counts_lib.Tally
) -> pa.Table:
    """The training rows that `negative_keep_rate` keeps, with the weights that undo it."""
    if recipe_lib.later(recipe, "negative_keep_rate") == 1:
        return table
    kept, table = sampling.thin(recipe, chunk, np.arange(table.num_rows), table)
    notes = Notes()
    first = f"row {np.argmin(kept)} of chunk {chunk}"
    notes.add("", "sampled", int(np.count_nonzero(~kept)), first)
    tally.note(notes)
    return table


def _hashes(schema: Schema, world: truth_lib.World) -> dict[str, np.ndarray]:
    """i32 table row of each id of the hashed slots, by the raw value id - 1; 0 stays missing."""
    found = {}
    for slot in schema.slots:
        if slot.encoding == "hash":
            raw = pa.array(np.arange(len(world.latents[slot.name]) - 1)).cast(pa.string())
            rows = 1 + hash_values(raw, slot.seed) % np.uint64(slot.rows - 1)
            found[slot.name] = np.concatenate([[0], rows]).astype(np.int32)
    return found


def _table(rows: Rows, ids: Ids, schema: Schema, hashes: dict[str, np.ndarray]) -> pa.Table:
    """The columns of a shard; `ids` are of its slots."""
    columns: dict[str, pa.Array] = {}
    for slot in schema.slots:
        found = ids[slot.name]
        own = found.ids if isinstance(found, Bags) else found
        column = pa.array(hashes[slot.name][own] if slot.name in hashes else own)
        if isinstance(found, Bags):
            column = pa.ListArray.from_arrays(pa.array(found.starts.astype(np.int32)), column)
        columns[slot.name] = column

    columns["label"] = pa.array(rows.label)
    if schema.types:
        columns["ftype"] = pa.array(rows.ftype)
    if schema.has_weight:
        columns["weight"] = pa.array(np.ones(len(rows.label), np.float32))
    if schema.has_gauc_key:
        columns["gauc_key"] = pa.array(rows.ids[schema.recipe["gauc_key"]]).cast(pa.int64())
    return pa.table(columns)


class _TruthWriter:
    """Writes `truth.parquet` beside the shards of valid and test; of train, nothing.

    It is closed after the shards, whose digest it holds.
    """

    def __init__(self, shards_writer: shards.Writer, split: str, dials: Dials):
        self.shards_writer = shards_writer
        fields = [("p", pa.float64())]
        if dials.num_types:
            fields += [("p_given_type", pa.list_(pa.float64())), ("p_type", pa.list_(pa.float64()))]
        self.schema = pa.schema(fields)
        self.file = None
        if split != "train":
            path = shards_writer.path / "truth.parquet"
            self.file = parquet.Writer(path, self.schema)

    def write(self, rows: Rows) -> None:
        if self.file is not None:
            arrays = []
            for field in self.schema:
                x = getattr(rows, field.name)
                x = x if x.ndim == 1 else pa.FixedSizeListArray.from_arrays(x.ravel(), x.shape[1])
                arrays.append(pa.array(x).cast(field.type))
            self.file.write(pa.table(arrays, schema=self.schema))

    def __enter__(self) -> "_TruthWriter":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        if self.file is not None:
            digest = shards.digest_of(self.shards_writer.digests)
            self.file.note({shards.DIGEST: digest.encode()})
            self.file.close()
