"""The paper's claims on CTI-like data: every model, both ablations, each type's predictor removed.

    python -m emofm_jax.sweep --config=experiments/claims.py --workdir=runs/claims
    python -m emofm_jax.report --workdir=runs/claims

Claim (EMOFM, section 4): the types, and predictors of their own for the types, raise AUC when the
types are hidden at test time; HMM >= HM, and WM >= the baselines.

Varied: the model, and
    _shared     one predictor for all types (type_predictors)
    _untyped    no use of the types (use_ftype)
    _typed      a baseline with a copy per type
    _drop_t1 .. without the predictor of that type
    _100k       100,000 rows: every model. The quickstart's 400,000 rows: WM, HM, HMM and their
                ablations. Compare within one size.

5 seeds. Data and settings are the quickstart's, which were tuned on its validation split for DNN
(untyped) and HMM (typed). Each typed run's metrics.json says as `test.true_am` what a perfect
auxiliary model would bring.

34 points, 170 runs, 56 minutes with --jobs=2 on two cores (AMD EPYC), November 2026. Result:
- Without the types WM, HM and HMM lose 0.008 to 0.013 AUC.
- With one predictor for all types HM and HMM lose 0.006 and 0.007, WM not
  distinguishably.
- HMM and WM are level; HM is 0.006 behind.
- A perfect auxiliary model would bring 0.003.
- Every predictor is missed, by 0.016 to 0.040.
- On 100,000 rows HMM is ahead of every baseline without types; DCNv2 with them is 0.011 ahead of
  HMM.
docs/results/claims.md has it all.
"""

from pathlib import Path

from emofm_jax import points

HERE = Path(__file__).parent
quickstart, tiny = (points.load(HERE / f"{name}.py") for name in ("quickstart", "tiny"))
reference = "hmm"
EMOFM = ("wm", "hm", "hmm")
BASELINES = ("lr", "fm", "deepfm", "dnn", "dcnv2", "edcn", "final", "finalmlp", "destine")
ABLATIONS = {"shared": {"model.type_predictors": "shared"}, "untyped": {"model.use_ftype": False}}
PART = {"prepare.synthetic.rows": (100_000, 50_000, 50_000), "data.dir": "data/rows_100000"}
OF_TINY = ("hmm", "lr_100k")


def get_config(arg: str = ""):
    return _config(arg, "hmm")


def seeds(arg=""):
    return range(2 if tiny.wanted(arg) else 5)


def sweep(arg=""):
    return [
        (name, _config(arg, *what))
        for name, what in _points()
        if not tiny.wanted(arg) or name in OF_TINY
    ]


def _points():
    """(name, (model, overrides)) of each point."""
    for model in EMOFM:
        yield model, (model, {})
        for ablation, changes in ABLATIONS.items():
            yield f"{model}_{ablation}", (model, changes)
    for model in EMOFM + BASELINES:
        yield f"{model}_100k", (model, PART)
    for model in BASELINES:
        yield f"{model}_typed_100k", (f"{model}_typed", PART)
    for name in ("t1", "t2", "t3", "t4"):
        yield f"hmm_drop_{name}_100k", ("hmm", PART | {"model.drop_type": name})


def _config(arg, model, changes=None):
    c = points.apply(quickstart.get_config(model), changes or {}, f"claims: {model}")
    c.name = "claims"
    return tiny.shrink(c) if tiny.wanted(arg) else c
