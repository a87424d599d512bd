"""Scores of several networks averaged: the members of a model, or the runs of an ensemble.

combine = "logit"    p = sigmoid(mean of the logits)        combine = "p"    p = mean of the p
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

COMBINE = ("logit", "p")


def of_members(scores: Sequence[dict]) -> dict[str, jax.Array]:
    """The scores of a model: its members' mean by logits, with "p_std"; of one member its own."""
    if len(scores) == 1:
        return dict(scores[0])
    return average(scores, "logit") | {"p_std": spread(scores)}


def average(scores: Sequence[dict], combine: str) -> dict[str, jax.Array]:
    """Averages the scores of n networks.

    Args:
      scores: of each "p" and "logit" f32[B]; if typed "p_type" and "p_given_type" f32[B, T]; if it
        is an average itself "p_std" f32[B].
      combine: one of `COMBINE`.

    Returns:
      "p" and "logit". If all are typed, also "p_type", the mean of theirs, and "p_given_type",
      averaged as `combine` says. If one has "p_std", also that of all (`spread`).
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
    if any("p_std" in s for s in scores):
        combined["p_std"] = spread(scores)
    if all("p_type" in s for s in scores):
        combined["p_type"] = _mean([s["p_type"] for s in scores])
        combined["p_given_type"] = join([s["p_given_type"] for s in scores])
    return combined


def spread(scores: Sequence[dict]) -> jax.Array:
    """f32[B]: the standard deviation of their "p", divided by n; exactly 0 where they are equal.

    Of averages it is that of all that they average: the variance within each counts, too.
    """
    differences = jnp.stack([s["p"] - scores[0]["p"] for s in scores])
    variance = jnp.square(differences - differences.mean(axis=0)).mean(axis=0)
    within = [jnp.square(s["p_std"]) for s in scores if "p_std" in s]
    variance += sum(within) / len(scores)
    # The root's gradient is infinite at 0, and an export has gradients.
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def _mean(values: Sequence[Any]) -> Any:
    return sum(values) / len(values)


def _log_sum(logs: Sequence[jax.Array]) -> jax.Array:
    return jax.nn.logsumexp(jnp.stack(logs), axis=0)


def _log_odds(p: jax.Array) -> jax.Array:
    p = jnp.clip(p, 1e-30, 1 - 2.0**-24)  # f32 p is 1 from a logit of 17 on
    return jnp.log(p) - jnp.log1p(-p)
