"""What `metrics.json` says of a split: metrics, by type too, beside a constant and the truth."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np

from emofm_jax.evaluation import metrics
from emofm_jax.evaluation.by_value import ByValue

_T = TypeVar("_T")

# Keys that the file has only where there is something to say, behind all others.
_OPTIONAL = ("p_over_true", "bayes", "true_am", "am", "types", "unknown", "data", "calibration_fit")
_OPTIONAL += ("by", "rejected", "step")


@dataclasses.dataclass(frozen=True)
class Reached:
    """What another predictor reaches on the same rows: AUC and log-loss, None if undefined."""

    auc: float | None = None
    logloss: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What a model reaches on some rows. None where a figure is not defined; the notes say why.

    Attributes:
      auc, logloss, gauc, pcoc: see metrics.py.
      rows, clicks: counted without weights.
      notes: sentences.
      bayes: what the true probabilities reach, where they are known.
    """

    auc: float | None = None
    logloss: float | None = None
    gauc: float | None = None
    pcoc: float | None = None
    rows: int = 0
    clicks: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)
    bayes: Reached | None = None

    @property
    def bayes_auc(self) -> float | None:
        """The attainable AUC; None where the truth is not known."""
        return self.bayes.auc if self.bayes else None

    @property
    def share(self) -> float | None:
        """Share of the attainable lift, (AUC - 0.5) / (Bayes AUC - 0.5); None without one."""
        best = self.bayes_auc
        if self.auc is None or best is None or best == 0.5:
            return None
        return (self.auc - 0.5) / (best - 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TypeFigures(Figures):
    """Figures of the rows of one interaction type, the type given to the model."""

    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitReport(Figures):
    """A split's part of `metrics.json`.

    Attributes:
      constant: the best constant predictor.
      reliability: mean prediction beside click rate; "calibration" in the file.
      ece: expected calibration error of these.
      p_over_true: sum of p / sum of true p, where the truth is known.
      true_am: what the model would reach beside a perfect auxiliary model: with
        p = sum_t true p(t | x) p_given_type[:, t].
      am: the auxiliary model; None without types, or where none is known.
      types: of a model with types.
      unknown: {slot: share of its values that are missing or unknown}.
      data: path of the split, if it is not of the run's own data, or of the raw rows.
      calibration_fit: figures before and after the calibration that evaluate fitted.
      by: figures by the values of columns, where `evaluate --by` was asked for them.
      rejected: of raw rows: how many could not be read.
      step: of the state that the rows were scored in; None where the file's run says it.
    """

    constant: metrics.Constant | None = None
    reliability: list[metrics.Bin] = dataclasses.field(default_factory=list)
    ece: float | None = None
    p_over_true: float | None = None
    true_am: Reached | None = None
    am: metrics.Auxiliary | None = None
    types: list[TypeFigures] = dataclasses.field(default_factory=list)
    unknown: dict[str, float] = dataclasses.field(default_factory=dict)
    data: str = ""
    calibration_fit: dict[str, Any] | None = None
    by: list[ByValue] = dataclasses.field(default_factory=list)
    rejected: int | None = None
    step: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of the file, without the keys that have nothing to say."""
        body = dataclasses.asdict(self)
        body["types"] = [{"name": part["name"]} | _trimmed(part) for part in body["types"]]

        trimmed = _trimmed(body, "am" if self.types else "")
        return {"calibration" if k == "reliability" else k: v for k, v in trimmed.items()}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Reads what `to_json` gave, now or in an earlier version."""
        bins = [_read(metrics.Bin, part) for part in body.get("calibration", ())]
        types = [_read(TypeFigures, part) for part in body.get("types", ())]
        by = [ByValue.from_json(part) for part in body.get("by", ())]
        return _read(cls, {**body, "reliability": bins, "types": types, "by": by})


_RECORDS: dict[str, type] = {
    "constant": metrics.Constant,
    "bayes": Reached,
    "true_am": Reached,
    "am": metrics.Auxiliary,
}


def shown(found: Mapping[str, Any]) -> tuple[str, SplitReport]:
    """The split of metrics.json that a run is judged by, test if it has one, and its report."""
    name = "test" if found.get("test") else "valid"
    return name, SplitReport.from_json(found[name])


def make(
    label: np.ndarray,
    p: np.ndarray,
    *,
    logit: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    key: np.ndarray | None = None,
    ftype: np.ndarray | None = None,
    p_type: np.ndarray | None = None,
    p_given_type: np.ndarray | None = None,
    type_names: Sequence[str] = (),
    truth: Mapping[str, np.ndarray] | None = None,
) -> SplitReport:
    """Computes the report of a split.

    Args:
      label, p, logit, weight, key: as for `figures`.
      ftype: i32[n], -1 unknown.
      p_type, p_given_type: f32[n, T], None for a model without types.
      type_names: of the T types.
      truth: of made-up data: "p" [n] and, if typed, "p_type" and "p_given_type" [n, T].
    """
    bins = metrics.reliability(label, p, weight)
    found: dict[str, Any] = {**vars(figures(label, p, logit=logit, weight=weight, key=key))}
    found |= {"constant": metrics.constant(label, weight), "reliability": bins}
    found["ece"] = metrics.expected_calibration_error(bins)

    if truth is not None:
        found["p_over_true"] = metrics.pcoc(truth["p"], p, weight)
        found["bayes"] = _reached(label, truth["p"], weight)
    if p_type is None or p_given_type is None or ftype is None:
        return SplitReport(**found)

    true_p_type = None if truth is None else truth["p_type"]
    if true_p_type is not None:
        mixed = np.einsum("nt,nt->n", true_p_type, p_given_type)
        found["true_am"] = _reached(label, mixed, weight)
    found["am"], notes = metrics.auxiliary(ftype, p_type, weight, type_names, true_p_type)
    if no_type := int(np.count_nonzero(ftype < 0)):
        notes.append(f"{_rows_are(no_type)} of no known type, and left out of the types' figures")
    found["notes"] = found["notes"] + notes

    found["types"] = []
    for t, name in enumerate(type_names):
        rows = np.flatnonzero(ftype == t)
        w, k = (None if x is None else x[rows] for x in (weight, key))
        own = figures(label[rows], p_given_type[rows, t], weight=w, key=k)
        true = None
        if truth is not None:
            true = _reached(label[rows], truth["p_given_type"][rows, t], w)
        found["types"].append(TypeFigures(**vars(own) | {"name": name, "bayes": true}))
    return SplitReport(**found)


def figures(
    label: np.ndarray,
    p: np.ndarray,
    *,
    logit: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    key: np.ndarray | None = None,
) -> Figures:
    """Figures of probabilities p f32[n].

    AUC, GAUC and logloss are taken from `logit`, f32[n], where it is given, since f32 p ties near
    1. `key`, i64[n]: the groups of GAUC, `metrics.NO_KEY` for none.
    """
    score = p if logit is None else logit
    auc, pcoc = metrics.auc(label, score, weight), metrics.pcoc(label, p, weight)
    if logit is None:
        nats = metrics.logloss(label, p, weight)
    else:
        nats = metrics.logloss_from_logits(label, logit, weight)

    notes, gauc = [], None
    if nats is None:
        notes.append("no rows" if not len(label) else "no row has a weight")
    elif auc is None:
        notes.append(f"one class only: no AUC{' and no PCOC' if pcoc is None else ''}")
    no_weight = 0 if weight is None else int(np.count_nonzero(weight == 0))
    if no_weight and nats is not None:
        notes.append(f"{_rows_are(no_weight)} of weight 0, and left out of every figure")
    if key is not None:
        of_groups = metrics.gauc(label, score, key, weight)
        gauc = of_groups.value
        notes.append(_gauc_note(of_groups))

    rows, clicks = len(label), int(np.count_nonzero(label > 0))
    found: dict[str, Any] = {"rows": rows, "clicks": clicks, "notes": notes}
    return Figures(auc=auc, logloss=nats, gauc=gauc, pcoc=pcoc, **found)


def _gauc_note(found: metrics.Gauc) -> str:
    """What a GAUC stands on, and what is left out of it."""
    one_class = f"{found.one_class:,} have one class and are left out"
    text = f"GAUC of {found.groups:,} groups; {one_class}"
    if not found.no_key:
        return text
    rows = f"{found.no_key:,} row{'s have' if found.no_key > 1 else ' has'} no key"
    return f"{text}; {rows} and {'are' if found.no_key > 1 else 'is'} left out"


def _rows_are(number: int) -> str:
    return f"{number:,} row{'s are' if number > 1 else ' is'}"


def _reached(label: np.ndarray, p: np.ndarray, weight: np.ndarray | None) -> Reached:
    return Reached(metrics.auc(label, p, weight), metrics.logloss(label, p, weight))


def _trimmed(body: dict[str, Any], kept: str = "") -> dict[str, Any]:
    """The optional keys behind the others, those with nothing to say left out, but for one."""
    said = [key for key in _OPTIONAL if body.get(key) not in (None, [], {}, "") or key == kept]
    always = {key: value for key, value in body.items() if key not in _OPTIONAL}
    return always | {key: body[key] for key in said}


def _read(kind: type[_T], body: Mapping[str, Any]) -> _T:
    """A record of what a file says; keys of other versions are passed over."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    made = {key: value for key, value in body.items() if key in names}
    for key, inner in _RECORDS.items():
        if made.get(key):
            made[key] = _read(inner, made[key])
    return kind(**made)
