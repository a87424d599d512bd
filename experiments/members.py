"""Members: what k networks in one program bring and cost beside one, on KuaiRand-Pure.

    python -m emofm_jax.prepare --config=experiments/kuairand.py --config.prepare.source=DIR
    python -m emofm_jax.sweep --config=experiments/members.py --workdir=runs/members --nocheckpoints

Data and options are those of kuairand.py, with up to 20 epochs. `all_4` is four members that learn every row; of
`split_4` each learns a quarter of every batch. Members share kernels and table but for factors;
`own_4` are four networks with tables of their own. `wide_128` and `wide_256` are one network of
larger layers.

Question: what do members gain for the time that they take? Means of three seeds on validation rows, AUC /
logloss, and seconds of a core (AMD EPYC), November 2026 (docs/results/kuairand.md has all):

    one  0.7140 / 0.6114, 28    split_4  0.7144 / 0.6110, 34    all_4  0.7150 / 0.6103, 72
"""

from pathlib import Path

from emofm_jax import points

reference, seeds = "one", (0, 1, 2)


def get_config(arg: str = ""):
    c = points.load(Path(__file__).with_name("kuairand.py")).get_config()
    c.name = "members"
    c.train.epochs = 20
    return c


def sweep(arg: str = ""):
    one = {"model.members": 1}
    yield "one", one
    for k in (2, 4, 8, 16):
        yield f"split_{k}", {"model.members": k, "model.members_rows": "split"}
    for width in (128, 256):
        yield f"wide_{width}", one | {"model.stage1": (width,), "model.stage2": (width,)}
    for k in (2, 4, 8, 16):
        yield f"all_{k}", {"model.members": k}
    yield "own_4", {"model.members": 4, "model.members_share": "none"}
