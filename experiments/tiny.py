"""Makes an experiment run in seconds, for tests: the argument `tiny` of every sweep."""

from ml_collections import ConfigDict

WIDTHS = {
    **dict.fromkeys(("hidden", "stage1", "stage2", "am_hidden"), (8,)),
    **dict.fromkeys(
        ("final.block1", "final.block2", "finalmlp.mlp1", "finalmlp.mlp2", "finalmlp.gate_hidden"),
        (4,),
    ),
    **dict.fromkeys(("mixer.d_att", "destine.d_att"), 8),
    **dict.fromkeys(("mixer.num_heads", "destine.num_heads"), 2),
    "embedding_dim": 2,
}


def wanted(arg: str) -> bool:
    """Returns whether the argument asks for it; there is no other one."""
    if arg not in ("", "tiny"):
        raise ValueError(f"{arg!r} is not known; give `tiny`, or no argument")
    return arg == "tiny"


def shrink(c: ConfigDict) -> ConfigDict:
    """Returns the config itself, with synthetic data of a few hundred rows and narrow layers."""
    c.prepare.format = "synthetic"
    c.prepare.synthetic.rows = (600, 300, 300)
    c.data.dir = f"{c.data.dir}_tiny"
    c.data.batch_size = 256
    c.model.update_from_flattened_dict(WIDTHS)
    return c
