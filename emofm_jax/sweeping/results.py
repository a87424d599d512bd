"""The results of a sweep: in results.jsonl and results.csv after every run, and as printed."""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from emofm_jax.data import files
from emofm_jax.evaluation import split_report
from emofm_jax.sweeping.record import Header, Result

_COLUMNS = "point seed status test_auc test_logloss test_pcoc test_gauc share p_over_true valid_auc"
_COLUMNS += " valid_logloss parameters_embedding parameters_network rows_per_s steps seconds"
_COLUMNS += " peak_memory_mib error"

# Heads of what is printed of a point, the figure below each and its digits. AUC and logloss are of
# one split, which is named before AUC.
_SHOWN = {
    "AUC": ("auc", 6),
    "logloss": ("logloss", 6),
    "share": ("share", 3),
    "rows/s": ("rate", 0),
}
# What the printed table says of its columns, where it has them.
_SD = "+/- is the standard deviation over seeds"
_SHARE = "share is that of the attainable lift, (AUC - 0.5) / (Bayes AUC - 0.5)"
_WORDS = {"test": "test", "valid": "validation"}


class Results:
    """The results of some points and seeds, in their order.

    Args:
      workdir: of the sweep; results.jsonl and results.csv are written there.
      header: what is to be run.
    """

    def __init__(self, workdir: Path, header: Header):
        self._workdir, self._points, self._sweep = workdir, header.points, header.digest()
        self._order = [(point, seed) for point in header.points for seed in header.seeds]
        self._found: dict[tuple[str, int], Result] = {}

    def add(self, results: Iterable[Result]) -> None:
        """Takes results and writes both files."""
        self._found |= {(result.point, result.seed): result for result in results}
        of_sweep = {"sweep": self._sweep}
        lines = (files.as_json(result.line() | of_sweep) + "\n" for result in self.all())
        files.write_text(self._workdir / "results.jsonl", "".join(lines))
        files.write_text(self._workdir / "results.csv", _csv(self.all()))

    def all(self) -> list[Result]:
        """Returns the results that there are."""
        return [self._found[key] for key in self._order if key in self._found]

    def of(self, point: str) -> list[Result]:
        """Returns those of a point."""
        return [result for result in self.all() if result.point == point]

    def failed(self) -> list[Result]:
        """Returns those of the runs that failed."""
        return [result for result in self.all() if not result.ok]

    def end(self, result: Result) -> None:
        """Adds a result as it comes, and prints its line."""
        self.add([result])
        print(self._said(result), flush=True)

    def as_text(self) -> str:
        """A line per point, mean +/- sd over its seeds, then the runs that failed.

        Share and rows/s are left out where no run has them.
        """
        width = max(len(name) for name in (*self._points, "point"))
        splits = {split_report.shown(r.metrics)[0] for r in self.all() if r.metrics}
        of = f"{_WORDS[splits.pop()]} " if len(splits) == 1 else ""
        figures = {
            point: [_figures(r.metrics) for r in self.of(point) if r.metrics]
            for point in self._points
        }
        every = [f for found in figures.values() for f in found]
        known = {key for f in every for key in f if f[key] is not None} | {"auc", "logloss"}
        shown = {name: (key, digits) for name, (key, digits) in _SHOWN.items() if key in known}
        heads = "".join(f"{of * (name == 'AUC') + name:>22}" for name in shown)
        lines = [f"{'point':<{width}}  {'seeds':>5}{heads}"]

        for point, found in figures.items():
            means = (_mean([f[key] for f in found], digits) for key, digits in shown.values())
            cells = "".join(f"{mean:>22}" for mean in means)
            lines.append(f"{point:<{width}}  {len(found):>5}{cells}")

        said = [_SD] if any(len(found) > 1 for found in figures.values()) else []
        said += [_SHARE] if "share" in known else []
        lines += [f"({'; '.join(said)})"] if said else []
        lines += [f"failed: {run.point} seed {run.seed}: {run.error}" for run in self.failed()]
        return "\n".join(lines)

    def _said(self, result: Result) -> str:
        """A run in one line."""
        total = len(self._order)
        head = f"[{len(self._found):>{len(str(total))}}/{total}] {result.point} seed {result.seed}"
        if result.metrics is None:
            return f"{head}: failed: {result.error}"

        found = _figures(result.metrics)
        of = _WORDS[split_report.shown(result.metrics)[0]]
        parts = [_cell(f"{of} AUC", found["auc"], ".6f"), _cell("logloss", found["logloss"], ".6f")]
        if found["share"] is not None:
            parts.append(_cell("share", found["share"], ".3f"))
        if found["rate"] is not None:
            parts.append(f"{found['rate']:,.0f} rows/s")
        return f"{head}: {', '.join(parts)}, {result.seconds:.0f} s"


def _figures(metrics: dict[str, Any]) -> dict[str, float | None]:
    """What is shown of a run; None where something is unknown."""
    _, report = split_report.shown(metrics)
    rate = metrics["train"]["rows_per_s"] or None  # 0: of one step only
    keys = ("auc", "logloss", "pcoc", "gauc", "share", "p_over_true")
    return {key: getattr(report, key) for key in keys} | {"rate": rate}


def _csv(results: Sequence[Result]) -> str:
    """A line per run; last the fields in which some run differs from the sweep's base."""
    fields = list(dict.fromkeys(field for result in results for field in result.overrides))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_COLUMNS.split(), *fields], lineterminator="\n")

    writer.writeheader()
    for result in results:
        values = {field: _flat(result.config.get(field)) for field in fields}
        writer.writerow(_row(result) | values)
    return text.getvalue()


def _row(result: Result) -> dict[str, Any]:
    """The columns that are the same in every sweep."""
    kept = ("point", "seed", "status", "seconds", "peak_memory_mib", "error")
    row = {key: value for key, value in result.line().items() if key in kept}
    if (metrics := result.metrics) is None:
        return row

    found = _figures(metrics)
    if metrics.get("test"):
        row |= {f"test_{key}": found[key] for key in ("auc", "logloss", "pcoc", "gauc")}
    row |= {key: found[key] for key in ("share", "p_over_true")}
    row |= {f"valid_{key}": metrics["valid"][key] for key in ("auc", "logloss")}
    row |= {f"parameters_{key}": metrics["parameters"][key] for key in ("embedding", "network")}
    return row | {"rows_per_s": found["rate"], "steps": metrics["train"]["steps"]}


def _flat(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.fmean(known):,.{digits}f}"
    return f"{mean} +/- {statistics.stdev(known):,.{digits}f}" if len(known) > 1 else mean


def _cell(name: str, value: float | None, form: str) -> str:
    return f"{name} -" if value is None else f"{name} {value:{form}}"
