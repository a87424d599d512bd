"""An ensemble: the scores of several runs, averaged.

combine = "logit"    p = sigmoid(mean of the logits)        combine = "p"    p = mean of the p
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

COMBINE = ("logit", "p")


class Ensemble:
    """The pure functions of several scorers; parameters and embeddings are tuples of theirs.

    Args:
      members: fn, embed and fn_from_embeddings of each, as `Scorer` has them.
      combine: one of `COMBINE`.
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


def average(scores: Sequence[dict], combine: str) -> dict[str, jax.Array]:
    """Averages the scores of the members, each as `models.build.predict` returns them.

    Returns:
      "p" and "logit". If all members are typed, also "p_type", the mean of theirs, and
      "p_given_type", averaged as `combine` says.
    """
    logits = [s["logit"] for s in scores]
    if combine == "logit":
        logit = _mean(logits)
        combined = {"p": jax.nn.sigmoid(logit), "logit": logit}
        join = lambda given: jax.nn.sigmoid(_mean([_log_odds(p) for p in given]))
    else:
        # In log space: f32 p would be 1 where the logit is 17.
        log_p, log_not_p = (_log_sum([jax.nn.log_sigmoid(s * z) for z in logits]) for s in (1, -1))
        combined = {"p": jnp.exp(log_p) / len(scores), "logit": log_p - log_not_p}
        join = _mean

    if all("p_type" in s for s in scores):
        combined["p_type"] = _mean([s["p_type"] for s in scores])
        combined["p_given_type"] = join([s["p_given_type"] for s in scores])
    return combined


def _mean(values: Sequence[Any]) -> Any:
    return sum(values) / len(values)


def _log_sum(logs: Sequence[jax.Array]) -> jax.Array:
    return jax.nn.logsumexp(jnp.stack(logs), axis=0)


def _log_odds(p: jax.Array) -> jax.Array:
    p = jnp.clip(p, 1e-30, 1 - 2.0**-24)  # f32 p is 1 from a logit of 17 on
    return jnp.log(p) - jnp.log1p(-p)
