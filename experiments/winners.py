"""What searches found, five seeds each: the second half of a comparison on equal terms.

    python -m emofm_jax.prepare --config=experiments/hillstrom.py --config.prepare.source=DIR
    for a in emofmv2 dnn dnn_typed; do python -m emofm_jax.sweep --config=experiments/equal_terms.py:hillstrom.$a --workdir=runs/search/$a --search=tpe --trials=20 --nocheckpoints; done
    python -m emofm_jax.sweep --config=experiments/winners.py:runs/search --workdir=runs/winners --nocheckpoints
    python -m emofm_jax.report --workdir=runs/winners

The argument is a directory of searches, and of nothing else. Each is a point, called as its directory
is; its config is that of its best trial, by validation rows, of which the first is the config that the
search began with. Figures of test rows are to be read here, and nowhere before: a search has none.

Question: which model is ahead once all were tuned alike? docs/results/recipe.md has the answer for Hillstrom.
"""

from pathlib import Path

from emofm_jax import points
from emofm_jax.errors import UserError

seeds = range(5)


def get_config(arg: str = "runs/search"):
    return next(iter(_winners(arg).values()))


def sweep(arg: str = "runs/search"):
    yield from _winners(arg).items()


def _winners(arg):
    """{name: config} of the searches of a directory, ours first."""
    place = Path(arg or "runs/search")
    found = sorted(path.parent for path in place.glob("*/sweep.json"))
    if not found:
        raise UserError(f"{place}: no directory in it holds a search; run equal_terms.py's first")
    found.sort(key=lambda path: not path.name.startswith("emofmv2"))
    return {path.name: points.best_trial(path) for path in found}
