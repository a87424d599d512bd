"""Every model on Frappe with three seeds, early stopping and published settings.

    python -m emofm_jax.prepare --config=experiments/frappe.py --config.prepare.source=DIR
    python -m emofm_jax.sweep --config=experiments/frappe_baselines.py --workdir=runs/frappe
    python -m emofm_jax.report --workdir=runs/frappe

Question: which differences between models on this file are larger than those between seeds?
Varied: the model, each with its own settings (experiments/frappe.py has them). Without prepared
data the sweep names the command that prepares them.

12 points, 36 runs, 77 minutes with --jobs=2 on two cores (AMD EPYC) that tests shared, November
2026. Result:
- FinalMLP, DESTINE, WM, DCNv2, FINAL, DNN and DeepFM (0.9845 to 0.9851) cannot be told apart in
  AUC.
- FINAL has the lowest logloss (0.1375). WM has 0.1492 and is not distinguishable from it.
- HM is 0.0009 and HMM 0.0016 behind WM; FM and LR are far behind.
- EDCN's seeds differ by 0.0017.
docs/results/frappe.md has it all.
"""

from pathlib import Path

from emofm_jax import points

HERE = Path(__file__).parent
frappe, tiny = (points.load(HERE / f"{name}.py") for name in ("frappe", "tiny"))
reference = "wm"
ORDER = ("wm", "hm", "hmm", "final", "finalmlp", "dcnv2")
ORDER += ("dnn", "deepfm", "edcn", "destine", "fm", "lr")


def get_config(arg: str = ""):
    return _config(arg, "wm")


def seeds(arg=""):
    return range(2 if tiny.wanted(arg) else 3)


def sweep(arg=""):
    return [(model, _config(arg, model)) for model in (("lr", "wm") if tiny.wanted(arg) else ORDER)]


def _config(arg, model):
    c = frappe.get_config(model)
    c.name = "frappe_baselines"
    if tiny.wanted(arg):  # synthetic data, which have other columns
        tiny.shrink(c)
        c.prepare.groups = ()
        c.prepare.gauc_key = "user_id"
        c.prepare.synthetic.num_types = 0
        c.train.epochs = 2
    return c
