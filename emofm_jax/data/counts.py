"""What prepare counted: rows and clicks per split and type, and what the ids and numbers of each slot look like.

Memory is 4 bytes per table row of a slot and split, as far as the rows are used, whatever the number of rows of data.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emofm_jax.data import shards
from emofm_jax.data.schema import Schema


class Moments:
    """Count, mean, standard deviation, smallest and largest of numbers that arrive in pieces."""

    def __init__(self):
        self.count, self._mean, self._squares = 0, 0.0, 0.0
        self.smallest, self.largest = np.inf, -np.inf

    def add(self, numbers: np.ndarray) -> None:
        """Adds f[n]; NaN and infinity are left out."""
        numbers = numbers[np.isfinite(numbers)].astype(np.float64)
        if not len(numbers):
            return
        mean, total = numbers.mean(), self.count + len(numbers)
        # Chan's update: sums of squares around the mean, which do not cancel as sums of raw squares do.
        self._squares += ((numbers - mean) ** 2).sum() + (
            mean - self._mean
        ) ** 2 * self.count * len(numbers) / total
        self._mean += (mean - self._mean) * len(numbers) / total
        self.count = total
        self.smallest, self.largest = (
            min(self.smallest, numbers.min()),
            max(self.largest, numbers.max()),
        )

    def mean_and_std(self) -> tuple[float, float]:
        """The mean and the population's standard deviation; 1 in place of a deviation of 0."""
        std = float(np.sqrt(self._squares / max(self.count, 1)))
        return float(self._mean), std if std > 0 else 1.0


def count_ids(schema: Schema, table: pa.Table) -> dict[str, pa.StructArray]:
    """(id, occurrences) of the distinct ids of each slot that has ids; the costly half of `Tally.add`, for threads."""
    counted = {}
    for slot in schema.slots:
        if not slot.is_numeric:
            column = table[slot.name].combine_chunks()
            counted[slot.name] = pc.value_counts(
                column.flatten() if slot.kind == "multi" else column
            )
    return counted


class Tally:
    """Counts over encoded rows: `add` each table, then `report`.

    Attributes:
      rejected: {split: {kind: rows}}, set by the caller.
    """

    def __init__(self, schema: Schema):
        self.schema = schema
        self.rejected: dict[str, dict[str, int]] = {}
        self._ids: dict[tuple[str, str], np.ndarray] = {}
        self._numbers: dict[str, Moments] = {}
        self._types: dict[str, np.ndarray] = {}

    def add(
        self, split: str, table: pa.Table, ids: dict[str, pa.StructArray] | None = None
    ) -> None:
        """Counts encoded rows of a split; `ids` is what `count_ids` made of the same table, if it was called before."""
        ids = count_ids(self.schema, table) if ids is None else ids
        for slot in self.schema.slots:
            if slot.is_numeric:
                if split == "train":
                    column = table[slot.name].combine_chunks()
                    self._numbers.setdefault(slot.name, Moments()).add(
                        column.fill_null(np.nan).to_numpy(False)
                    )
                continue
            if (split, slot.name) not in self._ids:
                self._ids[split, slot.name] = np.zeros(slot.rows, np.int32)
            # A random access per distinct id of the table, not per row: np.add.at over the rows took 4 times as long.
            values, counts = ids[slot.name].field(0).to_numpy(), ids[slot.name].field(1).to_numpy()
            self._ids[split, slot.name][values] += counts.astype(np.int32)
        label = table["label"].to_numpy()
        ftype = (
            table["ftype"].fill_null(-1).to_numpy()
            if self.schema.types
            else np.zeros(len(label), np.int64)
        )
        types = max(self.schema.num_types + 1, 1) if self.schema.types else 1
        counts = self._types.setdefault(split, np.zeros((2, types), np.int64))
        which = np.where(ftype < 0, types - 1, ftype)  # the last one is for rows of unknown type
        counts[0] += np.bincount(which, minlength=types)
        counts[1] += np.bincount(which[label == 1], minlength=types)

    def with_counts(self, schema: Schema) -> Schema:
        """The schema with the rows and clicks per type of the train split."""
        rows, clicks = (tuple(map(int, counts)) for counts in self._types["train"])
        return dataclasses.replace(schema, rows_per_type=rows, clicks_per_type=clicks)

    def report(self, schema: Schema) -> dict:
        """What `prepare.json` holds.

        Returns:
          slots: {name: {kind, rows, distinct, unknown: {split: share of occurrences whose id is 0 or does not occur
          in train}, top_share, and for numbers min, mean, max}}, where `distinct`, `top_share` and the numbers are
          of the train split, as encoded; splits: {split: {rows, rejected: {kind: rows}, clicks, types: {name: {rows,
          clicks}}}}.
        """
        return {
            "slots": {slot.name: self._slot(slot) for slot in schema.slots},
            "splits": {
                split: self._split(split) for split in shards.SPLITS if split in self._types
            },
        }

    def _slot(self, slot) -> dict:
        found = {"kind": slot.kind, "encoding": slot.encoding, "rows": slot.rows}
        if slot.is_numeric:
            moments = self._numbers.get(slot.name, Moments())
            some = moments.count > 0
            missing = 1 - moments.count / max(int(self._types["train"][0].sum()), 1)
            mean = moments.mean_and_std()[0]
            return found | {
                "encoding": slot.transform,
                "distinct": None,
                "unknown": {"train": missing},
                "top_share": None,
                "min": float(moments.smallest) if some else None,
                "mean": mean if some else None,
                "max": float(moments.largest) if some else None,
            }
        train = self._ids["train", slot.name]
        unknown = {}
        for split in shards.SPLITS:
            counts = self._ids.get((split, slot.name))
            if counts is not None:
                new = counts[0] + counts[1:][train[1:] == 0].sum(dtype=np.int64)
                unknown[split] = float(new / max(counts.sum(dtype=np.int64), 1))
        return found | {
            "distinct": int(np.count_nonzero(train[1:])),
            "unknown": unknown,
            "top_share": float(train[1:].max(initial=0) / max(train.sum(dtype=np.int64), 1)),
            "min": None,
            "mean": None,
            "max": None,
        }

    def _split(self, split: str) -> dict:
        rows, clicks = self._types[split].tolist()
        names = [*self.schema.types, "unknown"] if self.schema.types else []
        return {
            "rows": sum(rows),
            "rejected": self.rejected.get(split, {}),
            "clicks": sum(clicks),
            "types": {name: {"rows": r, "clicks": c} for name, r, c in zip(names, rows, clicks)},
        }


def save(report: dict, directory: Path) -> None:
    """Writes `prepare.json`."""
    (Path(directory) / "prepare.json").write_text(json.dumps(report, indent=1) + "\n")


def as_text(report: dict) -> str:
    """The report as two tables."""
    lines = [f"{'split':12s} {'rows':>11s} {'rejected':>9s} {'clicks':>10s} {'click rate':>10s}"]
    for split, found in report["splits"].items():
        rejected = sum(found["rejected"].values())
        rate = found["clicks"] / max(found["rows"], 1)
        lines.append(
            f"{split:12s} {found['rows']:11,d} {rejected:9,d} {found['clicks']:10,d} {rate:10.4f}"
        )
        for name, counts in found["types"].items():
            if counts["rows"]:
                rate = counts["clicks"] / counts["rows"]
                lines.append(
                    f"  {name:10s} {counts['rows']:11,d} {'':9s} {counts['clicks']:10,d} {rate:10.4f}"
                )
        for kind, number in found["rejected"].items():
            lines.append(f"  rejected for its {kind}: {number:,d}")
    width = max(len(name) for name in [*report["slots"], "slot"])
    lines += [
        "",
        f"{'slot':{width}s} {'kind':11s} {'encoding':11s} {'rows':>10s} {'distinct':>10s} {'top value':>9s}",
    ]
    lines[-1] += "".join(
        f"{'new in ' + split:>14s}" for split in shards.SPLITS[1:] if split in report["splits"]
    )
    for name, slot in report["slots"].items():
        start = f"{name:{width}s} {slot['kind']:11s} {slot['encoding']:11s} {slot['rows']:10,d}"
        if slot["distinct"] is None:
            numbers = [slot[key] for key in ("min", "mean", "max")]
            said = (
                "no number"
                if numbers[0] is None
                else "min {:.6g}, mean {:.6g}, max {:.6g}".format(*numbers)
            )
            lines.append(f"{start} {said}, missing {slot['unknown']['train']:.2%}")
            continue
        new = "".join(
            f"{share:14.2%}" for split, share in slot["unknown"].items() if split != "train"
        )
        lines.append(f"{start} {slot['distinct']:10,d} {slot['top_share']:9.2%}{new}")
    return "\n".join(lines)
