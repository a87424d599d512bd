"""What a model returns, and the loss: L = L_ctr + am_weight * L_am (docs/model.md, section 6).

    L_ctr = sum w BCE(logit_{t(row)}, y) / sum w          over rows that have a predictor
    L_am  = sum w CE(type_logits, t(row)) / sum w         over rows of known type

A device sums over ITS rows and divides by the weights of ALL rows, so that gradients are summed
over devices once.

Of rows without a click a share r may have been kept, each with 1 / r of its own weight w'. Then
L_ctr is of w' and shifted logits (prior correction; docs/model.md, section 6):

    L_ctr = sum w' BCE(logit_{t(row)} + log(1 / r), y) / sum w'

Rows of weight 0 are masked, not multiplied: what stands in them, NaN included, has no effect.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from emofm_jax.nn import typewise


class Outputs(NamedTuple):
    """What every model returns; of `Members` each array has a leading axis k.

    Attributes:
      logits: f32[B, T], one column per type; f32[B] of an untyped model.
      type_logits: f32[B, T] of the auxiliary model, or None of an untyped model.
      aux_loss: f32[B], or f32[B, T] of a typed model, in nats, what a model adds to a row's loss;
        or None.
      parts: f32[P, ...] as `logits`, or None. Then `logits` is their mean, and each part has a loss
        of its own: L_ctr is the sum of the parts' losses, so that each learns as if it were alone.
    """

    logits: jax.Array
    type_logits: jax.Array | None = None
    aux_loss: jax.Array | None = None
    parts: jax.Array | None = None


def members(outputs: Outputs) -> list[Outputs]:
    """The outputs of each member (models/members.py); of any other model a list of one."""
    if outputs.logits.ndim == 1 + (outputs.type_logits is not None):
        return [outputs]
    count = len(outputs.logits)
    of_all = [[None] * count if x is None else jnp.unstack(x) for x in outputs]
    return [Outputs(*of_one) for of_one in zip(*of_all)]


class Denominators(NamedTuple):
    """Summed weights of the rows of all devices, 1 where that is zero: f32[] each.

    Attributes:
      ctr: of rows that have a predictor: all but those of the dropped type. The rows' own weights
        where the sampling is undone in the logit.
      am: of rows of known type.
    """

    ctr: jax.Array
    am: jax.Array


def denominators(
    label: jax.Array,
    ftype: jax.Array,
    weight: jax.Array,
    axis_name: str | None,
    *,
    drop_type: int,
    keep_rate: float = 1.0,
) -> Denominators:
    """Sums the weights that `total` divides by; no gradient goes through them.

    Args:
      label: f32[B], 0 or 1.
      ftype: i32[B], -1 = unknown.
      weight: f32[B], 0 = padding.
      axis_name: of the devices to sum over, or None.
      drop_type: index of the type without a predictor, -1 for none (`models.dropped_type`).
      keep_rate: as of `total`.
    """
    both = _rows(ftype, weight, drop_type)
    weights = (_own_weight(label, weight, keep_rate), weight)
    pairs = zip(both, weights)
    sums = jnp.stack([jnp.sum(jnp.where(rows, weight, 0.0)) for rows, weight in pairs])
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    return Denominators(*jax.lax.stop_gradient(jnp.where(sums > 0, sums, 1.0)))


def total(
    outputs: Outputs,
    label: jax.Array,
    ftype: jax.Array,
    weight: jax.Array,
    *,
    am_weight: float,
    drop_type: int,
    denominators: Denominators,
    keep_rate: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of these rows, to be summed over devices.

    A row of unknown type is judged by the mixture, with the AM's distribution under stop_gradient.
    Rows of the dropped type are in L_am only. An untyped model ignores `ftype`, except that it has
    no L_am. Of members it is the mean of their losses, and its parts are.

    Args:
      outputs: of the model, for B rows.
      label: f32[B], 0 or 1.
      ftype: i32[B], -1 = unknown.
      weight: f32[B], 0 = padding.
      am_weight: of L_am.
      drop_type: index of the type without a predictor, -1 for none.
      denominators: what `denominators` returned for the same rows, `drop_type` and `keep_rate`.
      keep_rate: r, the share of the rows without a click that were kept, to be undone in the logit;
        1 where none was left out, or where the weights undo it.

    Returns:
      f32[], nats; and its parts as weighted sums over these rows, not divided: `logloss_sum` (of
      `weight` and logits as they are, whatever `keep_rate`), `am_sum` (typed models) and `aux_sum`
      (models that have an aux_loss).
    """
    chex.assert_equal_shape([label, ftype, weight])
    check(outputs, len(label))
    how = (label, ftype, weight, am_weight, drop_type, denominators, keep_rate)
    of_members = [_total(of_one, *how) for of_one in members(outputs)]
    if len(of_members) == 1:
        return of_members[0]
    return jax.tree.map(lambda *x: sum(x) / len(x), *of_members)


def check(outputs: Outputs, num_rows: int) -> None:
    """Raises a ValueError if what a model returns has not the shapes of `Outputs`."""
    typed = outputs.type_logits is not None
    shape = outputs.logits.shape
    where = "(emofm_jax/nn/losses.py: Outputs)"
    if outputs.logits.ndim not in (1 + typed, 2 + typed) or shape[-1 - typed] != num_rows:
        wanted = "[B, T]" if typed else "[B]"
        raise ValueError(
            f"the model's logits are of shape {shape} for B = {num_rows} rows; return f32{wanted}, "
            f"of members f32[k, {wanted[1:]} {where}"
        )
    axis = len(shape) - 1 - typed  # of rows; parts stand before it
    legal = {"type_logits": [shape], "aux_loss": [shape, shape[: axis + 1]]}
    if outputs.parts is not None:
        count = outputs.parts.shape[axis : axis + 1]
        legal["parts"] = [(*shape[:axis], *count, *shape[axis:])]
    for name, shapes in legal.items():
        found = getattr(outputs, name)
        if found is not None and found.shape not in shapes:
            raise ValueError(
                f"the model's {name} are of shape {found.shape} beside logits of {shape}; return "
                f"f32{' or f32'.join(str([*x]) for x in dict.fromkeys(shapes))} {where}"
            )


def _total(outputs, label, ftype, weight, am_weight, drop_type, denominators, keep_rate):
    """`total` of one member."""
    scored, known = _rows(ftype, weight, drop_type)
    own_weight = _own_weight(label, weight, keep_rate)
    logits, type_logits, aux_loss = (_mask(x, weight > 0) for x in outputs[:3])
    typed = type_logits is not None

    def logloss(logits, weight=own_weight, keep_rate=keep_rate):
        """Sum over the rows, of a model or of a part of it."""
        log_p, log_not_p = _log_p(logits, type_logits, ftype, drop_type, keep_rate)
        return _sum(-(label * log_p + (1.0 - label) * log_not_p), weight, scored)

    parts = {"logloss_sum": logloss(logits, weight, 1.0)}
    own = [parts["logloss_sum"] if keep_rate == 1 else logloss(logits)]
    if outputs.parts is not None:
        own = [logloss(_mask(part, weight > 0)) for part in outputs.parts]
    loss = sum(own) / denominators.ctr

    if typed:
        ours = jax.nn.one_hot(ftype, logits.shape[1], dtype=bool)  # [B, T], no column if unknown
        cross_entropy = -jnp.sum(jnp.where(ours, jax.nn.log_softmax(type_logits), 0.0), axis=1)
        parts["am_sum"] = _sum(cross_entropy, weight, known)
        loss += am_weight * parts["am_sum"] / denominators.am
    if aux_loss is not None:
        if aux_loss.ndim == 2:  # of the row's own predictor; of unknown type: as the mixture has it
            probs = typewise.type_probs(jax.lax.stop_gradient(type_logits), drop_type)
            aux_loss = jnp.sum(jnp.where(known[:, None], ours, probs) * aux_loss, axis=1)
        parts["aux_sum"] = _sum(aux_loss, own_weight, scored)
        loss += parts["aux_sum"] / denominators.ctr
    return loss, parts


def _log_p(logits, type_logits, ftype, drop_type, keep_rate):
    """log p(y = 1), log p(y = 0) of each row: by its type's predictor, else by the mixture.

    Among the rows that are kept: a click's odds are 1 / keep_rate of what they were.
    """
    shift = math.log(1 / keep_rate)
    if type_logits is None:
        logits = logits + shift if shift else logits
        return jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)

    ours, known = jax.nn.one_hot(ftype, logits.shape[1], dtype=bool), ftype >= 0
    mix = typewise.mixture(logits, jax.lax.stop_gradient(type_logits), drop_type)
    log_p, log_not_p = mix.log_p, mix.log_not_p
    logit = jnp.sum(jnp.where(ours, logits, 0.0), axis=1)
    if shift:
        logit, mixed = logit + shift, mix.logit + shift
        log_p, log_not_p = jax.nn.log_sigmoid(mixed), jax.nn.log_sigmoid(-mixed)
    log_p = jnp.where(known, jax.nn.log_sigmoid(logit), log_p)
    return log_p, jnp.where(known, jax.nn.log_sigmoid(-logit), log_not_p)


def _own_weight(label, weight, keep_rate):
    """The weights without what a sampling has put on those of rows without a click."""
    return weight if keep_rate == 1 else jnp.where(label > 0, weight, weight * keep_rate)


def _rows(ftype, weight, drop_type):
    """bool[B] twice: rows in L_ctr, rows in L_am."""
    real = weight > 0
    return real & ((ftype != drop_type) | (ftype < 0)), real & (ftype >= 0)


def _mask(x, rows):
    return None if x is None else jnp.where(rows if x.ndim == 1 else rows[:, None], x, 0.0)


def _sum(values, weight, rows):
    return jnp.sum(jnp.where(rows, weight * values, 0.0))
