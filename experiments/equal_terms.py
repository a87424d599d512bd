"""On equal terms: the same search for every model, on KuaiRand-Pure or other data.

    python -m emofm_jax.prepare --config=experiments/kuairand.py --config.prepare.source=DIR
    python -m emofm_jax.sweep --config=experiments/equal_terms.py:dnn --workdir=runs/search/dnn --search=tpe --trials=20 --nocheckpoints
    python -m emofm_jax.sweep --config=experiments/winners.py:runs/search --workdir=runs/winners --nocheckpoints
    python -m emofm_jax.report --workdir=runs/winners

The argument is emofmv2, lr, fm, or dnn, dcnv2 or final, with or without _typed: a copy per type, and
an auxiliary model with columns of its own. Data and groups are those of kuairand.py, or of another file
here that stands before the model: hillstrom.dnn. Each model begins with `config.recommended()`, the
first trial, and trials are judged by validation AUC of seed 0. What 20 trials found on KuaiRand-Pure
stands in docs/results/recipe/search.jsonl; then the recipe's dropout was 0.3, and no trial of its own.

Question: is our model ahead of the others once all were tuned alike? Five seeds each of the best of 20
trials, or of where they began where that was better (DNN, typed DCNv2), test AUC / logloss, November 2026 (docs/results/kuairand.md):

    emofmv2  0.7085 / 0.6198      dnn  0.7038 / 0.6224      dcnv2  0.7027 / 0.6237
    final    0.7020 / 0.6240      fm   0.7042 / 0.6251      lr     0.7039 / 0.6228

With a copy per type: dnn_typed 0.7057 / 0.6210, dcnv2_typed 0.7065 / 0.6205, final_typed 0.7034 / 0.6223.
"""

from pathlib import Path

from emofm_jax import points

ablation, kuairand = (
    points.load(Path(__file__).with_name(name)) for name in ("ablation.py", "kuairand.py")
)


def get_config(arg: str = ""):
    data, name = _parts(arg)
    c = ablation.get_config(data)
    c.name = "equal_terms"
    kuairand.choose(c, name)
    return c


def _parts(arg):
    """The data's experiment, and the model."""
    data, _, name = arg.rpartition(".")
    return data or "kuairand", name or "emofmv2"


def ranges(arg: str = ""):
    name = _parts(arg)[1].removesuffix("_typed")
    found = {
        "optim.embedding.l2_rows": ("log", 100.0, 20_000.0),
        "optim.embedding.learning_rate": ("log", 5e-4, 3e-2),
    }
    if name == "lr":  # its weights are logits
        return found | {"optim.embedding.l2_rows": ("log", 0.1, 1_000.0)}
    found |= {"model.embedding_dim": ("choice", [8, 16])}
    if name == "fm":  # it has no network; its first-order weights are logits
        return found | {"optim.embedding.l2_rows": ("log", 0.1, 20_000.0)}
    found |= {
        "optim.network.learning_rate": ("log", 5e-4, 1e-2),
        "model.dropout": ("uniform", 0.0, 0.5),
    }
    return found | ({"model.emofmv2.wide": ("choice", [False, True])} if name == "emofmv2" else {})
