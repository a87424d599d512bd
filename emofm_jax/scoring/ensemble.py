"""An ensemble: the scores of several runs, averaged (nn/averaging.py)."""

from collections.abc import Callable, Mapping, Sequence

import jax

from emofm_jax.nn.averaging import average


class Ensemble:
    """The pure functions of several scorers; parameters and embeddings are tuples of theirs.

    Args:
      members: fn, embed and fn_from_embeddings of each, as `Scorer` has them.
      combine: one of `averaging.COMBINE`.
    """

    def __init__(self, members: Sequence[tuple[Callable, Callable, Callable]], combine: str):
        self._members, self._combine = tuple(members), combine

    def fn(self, params: Sequence, features: Mapping) -> dict[str, jax.Array]:
        """Features to the averaged scores."""
        scores = [fn(p, features) for (fn, _, _), p in zip(self._members, params)]
        return average(scores, self._combine)

    def embed(self, params: Sequence, features: Mapping) -> tuple:
        """Features to the embeddings of each member."""
        return tuple(embed(p, features) for (_, embed, _), p in zip(self._members, params))

    def fn_from_embeddings(self, params: Sequence, e: Sequence) -> dict[str, jax.Array]:
        """The embeddings of each member to the averaged scores."""
        scores = [score(p, x) for (_, _, score), p, x in zip(self._members, params, e)]
        return average(scores, self._combine)
