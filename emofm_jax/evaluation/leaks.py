"""Slots that alone tell the label: likely known only after the click, a leak."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from emofm_jax.data.schema import Slot
from emofm_jax.data.shards import Split
from emofm_jax.evaluation import metrics

_AUC = 0.99  # of a slot alone, from which on it is named
_FEWEST = 5  # clicks, and other rows, that an AUC is judged by


def find(train: Split, valid: Split) -> dict[str, float]:
    """{slot: AUC} of the slots that alone nearly give the label.

    A slot's score of a validation row is the click rate of its id among training rows, its number,
    whether it has none, or the weight of its id. The first row group of each split is looked at;
    bags and vectors are not.
    """
    slots = [slot for slot in train.schema.slots if not (slot.is_bag or slot.is_vector)]
    names = ["label", *(slot.name for slot in slots)]
    if not (slots and train.num_rows and valid.num_rows):
        return {}
    seen, judged = (split.read_row_group(0, names) for split in (train, valid))
    clicked, label = (table["label"].to_numpy() for table in (seen, judged))
    if min(label.sum(), (label == 0).sum()) < _FEWEST:
        return {}

    found = {}
    for slot in slots:
        auc = 0.5
        if slot.holds_ids:
            score = _rates(_ids(seen[slot.name]), clicked, _ids(judged[slot.name]))
            auc = _auc(label, score)
        if numbers := _numbers(slot, judged[slot.name]):
            either = (_auc(label, score) for score in numbers)
            auc = max(auc, *(max(one, 1 - one) for one in either))
        if auc > _AUC:
            found[slot.name] = auc
    return found


def said(alone: Mapping[str, float]) -> str:
    """What is to be said of slots that alone nearly give the label; empty of none."""
    if not alone:
        return ""
    slots = ", ".join(f"{name!r} (AUC {auc:.4f})" for name, auc in alone.items())
    known = "leave out what is known only after the click"
    return f"likely a leak: alone, slot {slots} nearly gives the label; {known}"


def _auc(label: np.ndarray, score: np.ndarray) -> float:
    found = metrics.auc(label, score)
    return 0.5 if found is None else found  # 0 is one that tells the label, too


def _numbers(slot: Slot, column: Any) -> list[np.ndarray]:
    """f64[n] each: the number or weight of each row, and whether there is none; none of ids."""
    if slot.holds_ids and not slot.weighted:
        return []
    numbers = column.flatten()[-1].to_numpy()  # null is NaN
    return [np.nan_to_num(numbers), np.isnan(numbers).astype(float)]


def _ids(column: Any) -> np.ndarray:
    """i32[n]: the ids of a column of a shard, a ChunkedArray; they may stand beside weights."""
    return column.flatten()[0].to_numpy()  # the first field, or the column itself


def _rates(seen: np.ndarray, clicked: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """f64[m]: click rate of ids `judged` i32[m] among `seen` i32[n]; near the mean where few."""
    _, which = np.unique(np.concatenate([seen, judged]), return_inverse=True)
    own, other = which[: len(seen)], which[len(seen) :]
    size = int(which.max()) + 1
    rows, clicks = np.bincount(own, minlength=size), np.bincount(own, clicked, size)
    return ((clicks + clicked.mean()) / (rows + 1))[other]
