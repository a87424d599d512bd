"""What more rows and more slots bring, and what they cost.

    python -m emofm_jax.sweep --config=experiments/scaling.py --workdir=runs/scaling
    python -m emofm_jax.report --workdir=runs/scaling          # has the fitted slopes

Questions: how much of the attainable lift does each tenfold of training rows bring (1e5 to 3e6)?
How do rows/s and memory follow the number of slots (10 to 100)?

Data and settings are the quickstart's, except for that number. 10 slots are the first ones of each
group, so part of the truth is out of reach. Beyond 28, further slots are noise. 3 seeds.

21 points, 63 runs, 77 minutes with --jobs=2 on two cores (AMD EPYC), November 2026. Result:
- From 100,000 to 1,000,000 rows 0.17 (HMM) to 0.19 (DNN, WM) of the attainable lift, from 300,000
  to 3,000,000 0.09 to 0.11.
- WM overtakes HMM and reaches 0.975 (HMM 0.960, DNN 0.957).
- 72 slots of noise cost 0.04.
- Ten times the slots cost DNN and WM 3.6 to 4 times the time, HMM 1.3.
docs/results/scaling.md has it all.
"""

from pathlib import Path

from emofm_jax import points

HERE = Path(__file__).parent
quickstart, tiny = (points.load(HERE / f"{name}.py") for name in ("quickstart", "tiny"))
reference = "hmm_rows_100000"
ROWS = (100_000, 300_000, 1_000_000, 3_000_000)
MODELS = ("dnn", "wm", "hmm")
# Slots in all -> of each group.
SLOTS = {10: (2, 2, 3, 3), 28: (7, 7, 7, 7), 50: (12, 12, 13, 13), 100: (25, 25, 25, 25)}
OF_TINY = ("hmm_rows_100000", "dnn_slots_10")


def get_config(arg: str = ""):
    return _config(arg, "hmm", ROWS[0], 28)


def seeds(arg=""):
    return range(2 if tiny.wanted(arg) else 3)


def sweep(arg=""):
    return [
        (name, _config(arg, *what))
        for name, what in _points()
        if not tiny.wanted(arg) or name in OF_TINY
    ]


def _points():
    """(name, (model, rows, slots)) of each point, the cheap ones first."""
    for model in MODELS:
        for slots in (10, 50, 100):
            yield f"{model}_slots_{slots}", (model, ROWS[0], slots)
    for rows in ROWS:
        for model in MODELS:
            yield f"{model}_rows_{rows}", (model, rows, 28)


def _config(arg, model, rows, slots):
    c = quickstart.get_config(model)
    c.name = "scaling"
    c.data.dir = f"data/rows_{rows}_slots_{slots}"
    c.prepare.synthetic.rows = (rows, 50_000, 50_000)
    if tiny.wanted(arg):
        c.data.dir = c.data.dir.replace("rows", "scaling")
        tiny.shrink(c).prepare.synthetic.rows = (rows // 200, 300, 300)
    c.prepare.synthetic.group_slots = SLOTS[slots]
    return c
