"""Optimizers: one for the embedding table, one for everything else (config.optim).

    lr(t) = learning_rate * warm-up(t) * schedule(t),   t = 0 .. num_steps - 1

Only row-wise optimizers are here, whose update of a row depends on that row alone: the sparse step
applies them to slabs of rows, and a slab then moves as the whole table would. L2 is no part of
them: the step adds it to the gradient, before or after clipping (training/step.py).
"""

from collections.abc import Callable, Mapping

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
        case "sgd":
            return optax.sgd(rate, section["momentum"] or None)
        case name:
            raise ValueError(f"optimizer {name!r} is not known")
