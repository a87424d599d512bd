"""Optimizers: one for the embedding table, one for everything else (config.optim.embedding, config.optim.network).

    lr(t) = learning_rate * warm-up(t) * schedule(t),   t = 0 .. num_steps - 1

Only row-wise optimizers are listed, whose update of a row depends on that row alone: the sparse step applies
them to slabs of rows, and a slab then moves as the whole table would. L2 is no part of them: the step adds it
to the gradient, before or after clipping (training/step.py).
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import optax

from emofm_jax.errors import UserError


def make_schedule(section: Mapping, num_steps: int) -> Callable:
    """Learning rate as a function of the step's number, counted from 0.

    Warm-up: `warmup_steps` steps below the full rate, on the line from 0 (one step before the first) to it, so that
    no step is spent at rate 0. Then `constant`, or `cosine`: half a cosine from the full rate to 0 at `num_steps`.
    `plateau` is constant here; the loop lowers `TrainState.lr_scale`.

    Args:
      section: `learning_rate`, `schedule`, `warmup_steps`.
      num_steps: steps of the whole run.

    Raises:
      UserError: unknown schedule.
    """
    peak, warmup, name = section["learning_rate"], section["warmup_steps"], section["schedule"]
    if name not in ("constant", "cosine", "plateau"):
        raise UserError(
            f"config.optim: schedule {name!r} is not known; choose one of constant, cosine, plateau"
        )

    def schedule(count):
        rate = peak
        if name == "cosine":
            progress = jnp.clip((count - warmup) / max(num_steps - warmup, 1), 0.0, 1.0)
            rate = rate * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        if warmup:
            rate = rate * jnp.minimum(1.0, (count + 1) / (warmup + 1))
        return jnp.asarray(rate, jnp.float32)

    return schedule


def _adam(section: Mapping, schedule: Callable) -> optax.GradientTransformation:
    return optax.adam(schedule, b1=section["beta1"], b2=section["beta2"], eps=section["eps"])


def _adamw(section: Mapping, schedule: Callable) -> optax.GradientTransformation:
    # Decays every parameter of the section, biases too, as torch.optim.AdamW does.
    betas = section["beta1"], section["beta2"]
    return optax.adamw(schedule, *betas, eps=section["eps"], weight_decay=section["weight_decay"])


def _adagrad(section: Mapping, schedule: Callable) -> optax.GradientTransformation:
    # eps stands inside the square root: g / sqrt(sum g^2 + eps).
    return optax.adagrad(
        schedule, initial_accumulator_value=section["initial_accumulator"], eps=section["eps"]
    )


def _sgd(section: Mapping, schedule: Callable) -> optax.GradientTransformation:
    return optax.sgd(schedule, momentum=section["momentum"] or None)


OPTIMIZERS = {"adam": _adam, "adamw": _adamw, "adagrad": _adagrad, "sgd": _sgd}
# Which fields of a section an optimizer reads beside those that all do.
FIELDS = {
    "adam": {"beta1", "beta2", "eps"},
    "adamw": {"beta1", "beta2", "eps", "weight_decay"},
    "adagrad": {"eps", "initial_accumulator"},
    "sgd": {"momentum"},
}


def make_optimizer(section: Mapping, num_steps: int) -> optax.GradientTransformation:
    """Makes the optimizer of one section of `config.optim`.

    Args:
      section: `name`, `learning_rate`, `schedule`, `warmup_steps`, `weight_decay` (adamw only), `beta1`, `beta2`,
        `eps`, `momentum`, `initial_accumulator`; `l2` is the step's.
      num_steps: steps of the whole run, where a cosine ends.

    Returns:
      An optax transformation whose updates are added to the parameters.

    Raises:
      UserError: unknown name or schedule.
    """
    if section["name"] not in OPTIMIZERS:
        raise UserError(
            f"config.optim: optimizer {section['name']!r} is not known; choose one of {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[section["name"]](section, make_schedule(section, num_steps))
