"""Optimizers: one for the embedding table, one for everything else (config.optim).

    lr(t) = learning_rate * warm-up(t) * schedule(t),   t = 0 .. num_steps - 1

Only row-wise optimizers are here, whose update of a row depends on that row alone: the sparse step
applies them to slabs of rows, and a slab then moves as the whole table would. L2 is no part of
them: the step adds it to the gradient, before or after clipping (training/step.py).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


def make_schedule(section: Mapping, num_steps: int) -> Callable[[jax.Array], jax.Array]:
    """Learning rate as a function of the step's number, counted from 0.

    Warm-up: `warmup_steps` steps below the full rate, on the line from 0 (one step before the
    first) to it, so that no step is spent at rate 0. Then `constant`, or `cosine`: half a cosine
    from the full rate to 0 at `num_steps`. `plateau` is constant here; the loop lowers
    `TrainState.lr_scale`.
    """
    peak, warmup = section["learning_rate"], section["warmup_steps"]

    def schedule(count):
        rate = peak
        if section["schedule"] == "cosine":
            progress = jnp.clip((count - warmup) / max(num_steps - warmup, 1), 0.0, 1.0)
            rate = rate * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        if warmup:
            rate = rate * jnp.minimum(1.0, (count + 1) / (warmup + 1))
        return jnp.asarray(rate, jnp.float32)

    return schedule


class RowwiseState(NamedTuple):
    """State of row-wise Adagrad."""

    sums: jax.Array  # f32[V], of each row: the mean square of its gradients, summed over steps


def _scale_by_rows(initial: float, eps: float) -> optax.GradientTransformation:
    """Adagrad with one number a row: g / sqrt(a + eps), a = initial + sum over steps of mean_D g^2.

    A row is an entry of the first axis, a moment a D-th of the table.
    """

    def init(params):
        return RowwiseState(jax.tree.map(lambda x: jnp.full(x.shape[:1], initial), params))

    def update(grads, state, params=None):
        squares = lambda g: jnp.mean(jnp.square(g), axis=tuple(range(1, g.ndim)))
        sums = jax.tree.map(lambda a, g: a + squares(g), state.sums, grads)

        def scaled(g, a):
            root = jnp.where(a > 0, jax.lax.rsqrt(a + eps), 0.0)
            return g * root.reshape(root.shape + (1,) * (g.ndim - 1))

        return jax.tree.map(scaled, grads, sums), RowwiseState(sums)

    return optax.GradientTransformation(init, update)


def make_optimizer(section: Mapping, num_steps: int) -> optax.GradientTransformation:
    """Makes the optimizer of one section of `config.optim`, validated.

    Args:
      section: its fields; `l2` is the step's.
      num_steps: steps of the whole run, where a cosine ends.

    Returns:
      An optax transformation whose updates are added to the parameters.
    """
    rate, beta1, beta2 = make_schedule(section, num_steps), section["beta1"], section["beta2"]
    eps, decay = section["eps"], section["weight_decay"]
    match section["name"]:
        case "adam":
            return optax.adam(rate, beta1, beta2, eps)
        case "adamw":  # decays every parameter, biases too, as torch.optim.AdamW does
            return optax.adamw(rate, beta1, beta2, eps, weight_decay=decay)
        case "adagrad":  # eps stands inside the square root: g / sqrt(sum g^2 + eps)
            return optax.adagrad(rate, section["initial_accumulator"], eps)
        case "rowwise_adagrad":
            by_row = _scale_by_rows(section["initial_accumulator"], eps)
            return optax.chain(by_row, optax.scale_by_learning_rate(rate))
        case "sgd":
            return optax.sgd(rate, section["momentum"] or None)
        case name:
            raise ValueError(f"optimizer {name!r} is not known")
