"""Mixers, one thing at a time: kind, stage, width of the attention and of the embeddings, on HMM.

    python -m emofm_jax.sweep --config=experiments/mixers.py --workdir=runs/mixers
    python -m emofm_jax.report --workdir=runs/mixers

Question (EMOFM, section 4.4): does it matter how towers exchange what they know, and in which
stage? How sensitive is the result to d_att (8 to 256) and embedding_dim (4 to 64)?

Everything else is the quickstart's HMM on 100,000 of its rows. The learning rates are those of
d_att 64 and embedding_dim 16 throughout. `kind=none` is HM; `stages` has effect with the default
kind. 5 seeds; read differences of points as differences of pairs of seeds (the report).

18 points, 90 runs, half an hour on two cores (AMD EPYC), November 2026. Result:
- Kind, stage, d_att and heads are not distinguishable from each other nor from no mixers (test AUC
  0.742 to 0.744, sd over seeds 0.001 to 0.002).
- LayerNorm in the mixers costs 0.014.
- Each tenfold of embedding_dim brings 0.007.
docs/results/mixers.md has it all.
"""

from pathlib import Path

from emofm_jax import points

HERE = Path(__file__).parent
quickstart, tiny = (points.load(HERE / f"{name}.py") for name in ("quickstart", "tiny"))
FACTORS = {
    "model.mixer.kind": ("self_attention", "graph", "mlp", "none"),
    "model.mixer.stages": ((1,), (2,)),
    "model.mixer.d_att": (8, 16, 32, 128, 256),
    "model.mixer.num_heads": (1,),
    "model.mixer.norm": ("layer",),
    "model.embedding_dim": (4, 8, 32, 64),
}


def get_config(arg: str = ""):
    c = quickstart.get_config("hmm")
    c.name = "mixers"
    c.prepare.synthetic.rows = (100_000, 50_000, 50_000)
    c.data.dir = "data/rows_100000"
    return tiny.shrink(c) if tiny.wanted(arg) else c


def seeds(arg=""):
    return range(2 if tiny.wanted(arg) else 5)


def sweep(arg=""):
    yield "hmm", {}
    yield from points.one_at_a_time(
        {"model.mixer.kind": ("none",)} if tiny.wanted(arg) else FACTORS
    )
