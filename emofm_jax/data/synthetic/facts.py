"""Facts about synthetic data: `python -m emofm_jax.data.synthetic.facts` measures the defaults.

On their 50,000 test rows:

    Bayes AUC of p(y|x) 0.8135; of p(y|x, t) with the row's type 0.8682
    click rate 0.097; shares of the types 0.40, 0.30, 0.20, 0.10
    click rates of the types 0.057, 0.114, 0.125, 0.150
    marginal entropy of the types minus the log-loss of p(t|x): 0.33 nats
    interactions: 0.39 of the variance of the row's logit, 0.56 of that across groups
    60,204 ids occur in train

What not learning a part of the truth costs: the share of the lift (AUC - 0.5) / (Bayes AUC - 0.5)
that the truth itself keeps when the part is taken away (seed 0, 50,000 other rows).

    ids with fewer than 50 train rows            0.999    every interaction halved     0.961
    with fewer than 50 of the row's type         0.996    none across groups           0.896
    own effects of users, ads, items, terms      0.981    no interaction               0.782
    p(t|x) replaced by the shares of the types   0.918

The main effects of the types' scores alone close 0.72 of the types' gap. No model was trained to
choose these numbers.
"""

import numpy as np

from emofm_jax.data.synthetic import population
from emofm_jax.data.synthetic import truth as truth_lib
from emofm_jax.data.synthetic.population import Dials


def measure(dials: Dials) -> dict[str, float]:
    """What the data is like, by the true probabilities of the test split.

    Returns:
      bayes_auc, known_type_auc: of p(y|x) and of p(y|x, t) with the row's type, over labels;
      click_rate;
      type_gap: marginal entropy of the types minus the expected log-loss of p(t|x), in nats;
      interactions: their share of the variance of the row's logit; across_groups: of that variance;
      distinct_ids: how many occur in train;
      share_t1, rate_t1, ...: share and click rate of each type (typed data only).
    """
    world = truth_lib.make_world(dials)
    chunks = list(truth_lib.make_rows(world, "test"))
    joined = lambda field: np.concatenate([getattr(chunk, field) for chunk in chunks])
    p, p_type, p_given_type = joined("p"), joined("p_type"), joined("p_given_type")
    ftype = joined("ftype")[:, None]
    of_row = lambda array: np.take_along_axis(array, ftype, 1)[:, 0]
    parts = zip(*(chunk.parts for chunk in chunks))
    main, within, across = (of_row(np.concatenate(part)) for part in parts)

    interaction = within + across
    logit = main + interaction + world.label_test.bias[ftype[:, 0]]
    known, shares = of_row(p_given_type), p_type.mean(0)
    out = {
        "bayes_auc": expected_auc(p, p),
        "known_type_auc": expected_auc(known, known),
        "click_rate": p.mean(),
        "type_gap": _entropy(shares) - np.mean(_entropy(p_type)),
        "interactions": np.var(interaction) / np.var(logit),
        "across_groups": np.var(across) / (np.var(across) + np.var(within)),
        "distinct_ids": _distinct_ids(world),
    }
    for t, name in enumerate(dials.types):
        out[f"share_{name}"] = shares[t]
        out[f"rate_{name}"] = (p_type[:, t] * p_given_type[:, t]).sum() / p_type[:, t].sum()
    return {key: float(value) for key, value in out.items()}


def expected_auc(score: np.ndarray, p: np.ndarray) -> float:
    """AUC of `score` f64[n], without ties; every row counts as p a click and as 1 - p none."""
    p = p[np.argsort(score)]
    below = np.cumsum(1 - p) - (1 - p)
    return float((p * below).sum() / (p.sum() * (1 - p).sum() - (p * (1 - p)).sum()))


def _distinct_ids(world: truth_lib.World) -> int:
    """How many ids occur in train."""
    seen = {slot.name: np.zeros(len(world.latents[slot.name]), bool) for slot in population.SLOTS}
    for chunk in truth_lib.make_rows(world, "train"):
        for name, ids in chunk.ids.items():
            seen[name][ids[0] if isinstance(ids, tuple) else ids] = True
    return sum(int(rows[1:].sum()) for rows in seen.values())


def _entropy(p: np.ndarray) -> np.ndarray:
    """In nats, over the last axis; 0 log 0 = 0."""
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)


if __name__ == "__main__":
    for key, value in measure(Dials()).items():
        print(f"{key:16} {value:,.4f}" if value < 1000 else f"{key:16} {value:,.0f}")
