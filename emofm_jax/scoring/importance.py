"""Permutation importance: what a model loses when a slot's values are dealt anew (Breiman, 2001).

    auc_drop[s] = AUC(x) - AUC(x, slot s permuted)
    logloss_rise[s] = logloss(x, slot s permuted) - logloss(x)

All columns of a bag move together, ids with their values; the distribution of each slot stays as it
is, only what it says about the rest of its row is gone. Slots that say the same as each other look
less important than they are together. A slot that the model does not read has exactly 0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from emofm_jax.data import batches, shards
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.evaluation import metrics


def sample(split: shards.Split, num_rows: int, seed: int) -> batches.Rows:
    """Draws rows of a split, each equally likely, in their order; all if there are not more.

    Reads the split once and keeps what was drawn.

    Raises:
      UserError: the split has no rows.
    """
    if not split.num_rows:
        raise UserError(f"{split.path}: it has no rows; choose another split")
    rng = np.random.default_rng((seed, 0))
    drawn = np.sort(rng.choice(split.num_rows, min(num_rows, split.num_rows), replace=False))

    parts, done = [], 0
    for host in batches.read(split, shards.ROW_GROUP_ROWS):
        own = drawn[slice(*np.searchsorted(drawn, (done, done + host.num_rows)))] - done
        parts.append(host.rows.take(own))
        done += host.num_rows
    return batches.concatenate(parts)


def permuted(rows: batches.Rows, schema: Schema, slot: int, seed: int) -> batches.Rows:
    """Permutes the columns of one slot over the rows alike, by the seed and the slot alone."""
    order = np.random.default_rng((seed, 1, slot)).permutation(len(rows.label))
    columns = np.flatnonzero(schema.column_slots == slot)
    changed: dict[str, Any] = {}
    for name in ("ids", "value"):
        array = getattr(rows, name)
        if array is not None:
            changed[name] = array.copy()
            changed[name][:, columns] = array[order[:, None], columns]
    return rows._replace(**changed)


def importance(
    score: Callable[[batches.Rows], dict[str, np.ndarray]],
    rows: batches.Rows,
    schema: Schema,
    seed: int,
    progress: bool = False,
) -> dict[str, Any]:
    """Computes the importance of each slot over the rows.

    Args:
      score: rows -> {"logit": f32[n], ...}, each row by itself.
      rows: of the split; their weights count.
      schema: of the rows.
      seed: of the permutations.
      progress: whether to show a bar.

    Returns:
      {"slots": [{"name", "group", "auc_drop", "logloss_rise"}, by falling drop], "rows", "seed",
      "auc", "logloss"}, the last two of the rows as they are.

    Raises:
      UserError: the rows have one class, so there is no AUC.
    """
    label, weight = rows.label, rows.weight if schema.has_weight else None

    def figures(rows: batches.Rows) -> tuple[Any, Any]:  # None where one is not defined
        logit = score(rows)["logit"]
        nats = metrics.logloss_from_logits(label, logit, weight)
        return metrics.auc(label, logit, weight), nats

    auc, logloss = figures(rows)
    if auc is None:
        raise UserError(
            f"--importance: the {len(label):,} rows have one class, so there is no AUC that could "
            "drop; choose another --split or more --importance_rows"
        )
    bar = tqdm(schema.slots, unit=" slots", desc="  importance", disable=not progress, leave=False)
    slots = []
    for s, slot in enumerate(bar):
        lost, risen = figures(permuted(rows, schema, s, seed))
        found = {"auc_drop": auc - lost, "logloss_rise": risen - logloss}
        slots.append({"name": slot.name, "group": slot.group, **found})
    slots.sort(key=lambda slot: (-slot["auc_drop"], -slot["logloss_rise"]))
    return {"slots": slots, "rows": len(label), "seed": seed, "auc": auc, "logloss": logloss}
