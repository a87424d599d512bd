"""The results of a sweep as they come: results.jsonl and results.csv, rebuilt after every run, and what is printed."""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from emofm_jax.evaluation import split_report

_COLUMNS = (
    "point",
    "seed",
    "status",
    "test_auc",
    "test_logloss",
    "test_pcoc",
    "test_gauc",
    "share",
    "p_over_true",
    "valid_auc",
    "valid_logloss",
    "parameters_embedding",
    "parameters_network",
    "rows_per_s",
    "steps",
    "seconds",
    "peak_memory_mib",
    "error",
)


class Table:
    """The records of the runs of some points and seeds, in their order.

    Args:
      workdir: of the sweep; results.jsonl and results.csv are written there.
      points, seeds: what is to be run.
    """

    def __init__(self, workdir: Path, points: Sequence[str], seeds: Sequence[int]):
        self._workdir, self._points, self._seeds = workdir, points, seeds
        self._records: dict[tuple[str, int], dict] = {}

    def add(self, records: Iterable[dict]) -> None:
        """Takes records (runs.record) and writes both files anew, each to a temporary name first."""
        for record in records:
            self._records[record["line"]["point"], record["line"]["seed"]] = record
        _replace(
            self._workdir / "results.jsonl",
            "".join(json.dumps(line) + "\n" for line in self.lines()),
        )
        _replace(self._workdir / "results.csv", self._csv())

    def lines(self) -> list[dict]:
        """The lines of results.jsonl."""
        return [record["line"] for record in self._ordered()]

    def failed(self) -> list[dict]:
        """Those of the runs that failed."""
        return [line for line in self.lines() if line["status"] != "ok"]

    def said(self, record: dict) -> str:
        """A run in one line."""
        line, total = record["line"], len(self._points) * len(self._seeds)
        text = f"[{len(self._records):>{len(str(total))}}/{total}] {line['point']} seed {line['seed']}: "
        if line["status"] != "ok":
            return f"{text}failed: {line['error']}"
        found = figures(line["metrics"])
        parts = [
            f"{name} {_cell(found[key], 6)}"
            for name, key in (("AUC", "auc"), ("logloss", "logloss"))
        ]
        if found["share"] is not None:
            parts.append(f"share {found['share']:.3f}")
        if found["rows_per_s"] is not None:
            parts.append(f"{found['rows_per_s']:,.0f} rows/s")
        return f"{text}{', '.join(parts)}, {line['seconds']:.0f} s"

    def as_text(self) -> str:
        """A line per point, mean +/- sd over its seeds, and how many runs are not in it."""
        width = max(len(name) for name in (*self._points, "point"))
        shown = (
            ("AUC", "auc", 6),
            ("logloss", "logloss", 6),
            ("share", "share", 3),
            ("rows/s", "rows_per_s", 0),
        )
        lines = [
            f"{'point':<{width}}  {'seeds':>5}" + "".join(f"{name:>22}" for name, _, _ in shown)
        ]
        for point in self._points:
            ok = [
                line for line in self.lines() if line["point"] == point and line["status"] == "ok"
            ]
            found = [figures(line["metrics"]) for line in ok]
            cells = [
                _mean([f[key] for f in found if f[key] is not None], digits)
                for _, key, digits in shown
            ]
            lines.append(
                f"{point:<{width}}  {len(ok):>5}" + "".join(f"{cell:>22}" for cell in cells)
            )
        lines += [
            f"failed: {line['point']} seed {line['seed']}: {line['error']}"
            for line in self.failed()
        ]
        return "\n".join(lines)

    def _ordered(self) -> list[dict]:
        keys = [(point, seed) for point in self._points for seed in self._seeds]
        return [self._records[key] for key in keys if key in self._records]

    def _csv(self) -> str:
        """A line per run; behind the fixed columns the fields in which some run differs from the sweep's base."""
        records = self._ordered()
        fields = list(
            dict.fromkeys(field for record in records for field in record["line"]["overrides"])
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, [*_COLUMNS, *fields], lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow(
                _row(record["line"])
                | {field: _flat(record["config"].get(field)) for field in fields}
            )
        return text.getvalue()


def figures(metrics: dict) -> dict:
    """What is shown of a run, of its test split, else of its validation split.

    Args:
      metrics: content of metrics.json.

    Returns:
      {"auc", "logloss", "pcoc", "gauc", "p_over_true", "share", "rows_per_s"}, None where something is unknown.
    """
    _, report = split_report.shown(metrics)
    keys = ("auc", "logloss", "pcoc", "gauc", "p_over_true", "share")
    found = {key: getattr(report, key) for key in keys}
    return found | {"rows_per_s": metrics["train"]["rows_per_s"] or None}  # 0: of one step only


def _row(line: dict) -> dict:
    row = {
        key: line[key] for key in ("point", "seed", "status", "seconds", "peak_memory_mib", "error")
    }
    if line["metrics"] is None:
        return row
    metrics, found = line["metrics"], figures(line["metrics"])
    if metrics.get("test"):
        row |= {f"test_{key}": found[key] for key in ("auc", "logloss", "pcoc", "gauc")}
    row |= {key: found[key] for key in ("share", "p_over_true", "rows_per_s")}
    row |= {f"valid_{key}": metrics["valid"][key] for key in ("auc", "logloss")}
    row |= {f"parameters_{key}": metrics["parameters"][key] for key in ("embedding", "network")}
    return row | {"steps": metrics["train"]["steps"]}


def _flat(value):
    return json.dumps(value) if isinstance(value, list | dict) else value


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):,.{digits}f}"
    return f"{mean} +/- {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else mean


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
