"""Members: what k networks in one program bring and cost beside one, on KuaiRand-Pure.

    python -m emofm_jax.sweep --config=experiments/members.py --workdir=runs/members --nocheckpoints --config.prepare.source=DIR

Data and options are those of kuairand.py. `all_4` is four members that learn every row; of
`split_4` each learns a quarter of every batch. Members share kernels and table but for factors;
`own_4` are four networks with tables of their own. `wide_128` and `wide_256` are one network of
larger layers.

Question: what do members gain for the time that they take?
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
