"""Draws the README's picture, docs/images/types.svg, from the committed results of experiments/claims.py.

    python benchmarks/readme_picture.py

Each row is a model trained on 100,000 rows: its test AUC, mean of five seeds with the 95% t interval over them, once
with the interaction types known in training and once without. `tests/test_documents.py` fails where the committed
picture is not the one that this program makes.
"""

import json
from pathlib import Path

import numpy as np

from emofm_jax.evaluation import comparison
from emofm_jax.reports import plots

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "claims" / "results.jsonl"
PICTURE = ROOT / "docs" / "images" / "types.svg"

# How each model is written, and its point with types and without; EMOFM's networks were not run without.
POINTS = {
    "DCNv2": ("dcnv2_typed_100k", "dcnv2_100k"),
    "HMM (EMOFM)": ("hmm_100k", None),
    "FINAL": ("final_typed_100k", "final_100k"),
    "HM (EMOFM)": ("hm_100k", None),
    "DNN": ("dnn_typed_100k", "dnn_100k"),
    "FinalMLP": ("finalmlp_typed_100k", "finalmlp_100k"),
    "WM (EMOFM)": ("wm_100k", None),
    "DESTINE": ("destine_typed_100k", "destine_100k"),
    "LR": ("lr_typed_100k", "lr_100k"),
    "DeepFM": ("deepfm_typed_100k", "deepfm_100k"),
    "FM": ("fm_typed_100k", "fm_100k"),
    "EDCN": ("edcn_typed_100k", "edcn_100k"),
}


def picture() -> str:
    """Returns the whole <svg>; it follows the reader's light or dark mode by itself."""
    found = test_auc(RESULTS)
    names = sorted(POINTS, key=lambda name: -np.mean(found[POINTS[name][0]]))

    series = []
    for i, label in enumerate(("types known in training", "no types")):
        seeds = [np.array(found.get(POINTS[name][i], [])) for name in names]
        spreads = [comparison.spread(auc) for auc in seeds]
        series.append(plots.Series.of(label, (), spreads))

    title = "Test AUC of twelve models, with and without interaction types"
    unit = "test AUC, mean and 95% interval of 5 seeds"
    return plots.dots(title, names, series, unit=unit) + "\n"


def test_auc(path: Path) -> dict[str, list[float]]:
    """Returns {point: its seeds' test AUC} of a sweep's results.jsonl."""
    found = {}
    for line in path.read_text().splitlines():
        run = json.loads(line)
        found.setdefault(run["point"], []).append(run["metrics"]["test"]["auc"])
    return found


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(), encoding="utf-8")
    print(f"written: {PICTURE.relative_to(ROOT)}")
