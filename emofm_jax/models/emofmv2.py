"""EMOFMv2, our model: EMOFM's groups and types, with products across slots and pooled predictors.

    h_g     = MLP_g(x_g)                                            as HM, g = 1 .. G
    c       = cross network of x, of low rank                       as DCNv2 (arXiv 2008.13535)
    z       = [MLP([h_1 .. h_G, c]), c]                             of all types
    logit_t = z . (v + d_t) + b_t                                   t = 1 .. T
    p       = sum_t p_AM(t | x) sigmoid(logit_t)                    as EMOFM (arXiv 2310.04482)

and with `wide` a first-order part beside it, each with a loss of its own:

    logit_t = (z . (v + d_t) + b_t + sum_s (w_s + w_st) + b'_t) / 2

EMOFM leaves open what becomes of types with few rows, and which mixers serve best. Here predictors
pool: what is of type t alone (d_t, w_st) starts at zero and is added to what all rows teach. Fields
meet as products, in the cross network, which predictors read directly and through an MLP. The
auxiliary model has columns of the table of its own. What has no paper's name above is ours.
"""

from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.errors import UserError
from emofm_jax.models import emofm
from emofm_jax.nn import layers, losses, typewise
from emofm_jax.options import Numbers, option

# Steps of first-order weights, as multiples of those of embeddings; of a type's own, of all types'.
_WIDE, _OWN = 5.0, 0.3
_CROSSED = {"cross_layers": Numbers(least=1)}


class EMOFMv2(nn.Module):
    """Towers of groups and a cross network, then pooled predictors; first-order weights beside.

    Attributes:
      group_sizes: slots of each group, in order.
      num_predictors: types that have a predictor; 0 = untyped.
    """

    embedding_dim: int
    head_bias: Sequence[float]
    group_sizes: Sequence[int]
    num_predictors: int
    stage1: Sequence[int]
    stage2: Sequence[int]
    style: layers.Style
    towers: bool = option(True, "the towers of the groups; False = the cross network alone")
    cross_layers: int = option(3, "cross layers over all slots; 0 = none", low=0)
    cross_rank: int = option(64, "rank of a cross layer; 0 = a full matrix", low=0, needs=_CROSSED)
    cross_to_head: bool = option(
        True,
        "predictors read the cross network directly too, not only through the MLP",
        needs=_CROSSED,
    )
    wide: bool = option(
        False,
        "first-order weights beside the network, averaged with it; for data where they are strong",
    )
    pooled: bool = option(True, "False: predictors share nothing behind the towers, as HM's")
    am_reads = "own"
    weights_start_at_zero = True
    switches_off = {"towers=False": ("stage1",)}

    @property
    def own_columns(self) -> int:
        """First-order weights of all types, and of each."""
        return (1 + self.num_predictors) * self.wide

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D + own_columns] -> Outputs."""
        chex.assert_shape(e, (None, None, self.embedding_dim + self.own_columns))
        x, first_order = jnp.split(e, [self.embedding_dim], axis=2)
        join = lambda logits: jnp.stack(logits, axis=1) if self.num_predictors else logits[0]
        deep = join(self._predict(self._towers(x, weight, train), self._cross(x), weight, train))
        if not self.wide:
            return losses.Outputs(deep)
        parts = jnp.stack([deep, join(self._first_order(first_order))])
        return losses.Outputs(parts.mean(axis=0), parts=parts)

    @staticmethod
    def check(own: Mapping) -> None:
        """Raises UserError if nothing is left that reads the embeddings."""
        if not own["towers"] and not own["cross_layers"]:
            raise UserError(
                "config.model.emofmv2.cross_layers: 0 with towers=False leaves nothing that reads "
                "the embeddings; choose 1 or more"
            )

    def _towers(self, x, weight, train):
        """f32[B, d] of each group, a list."""
        return emofm.group_towers(self, x, weight, None, train) if self.towers else []

    def _cross(self, x):
        """Products of slots: [f32[B, S D]], or [] without cross layers."""
        if not self.cross_layers:
            return []
        flat = x.reshape(x.shape[0], -1)
        return [layers.cross(flat, self.cross_layers, self.cross_rank, self.style.dtype)]

    def _predict(self, towers, crossed, weight, train):
        """Stage 2: logits of all predictors, a list."""
        widths, style, bias = tuple(self.stage2), self.style, tuple(self.head_bias)
        beside = [x.astype(jnp.float32) for x in crossed] if self.cross_to_head else []
        join = lambda x: jnp.concatenate([x.astype(jnp.float32), *beside], axis=1)
        z = jnp.concatenate([*towers, *crossed], axis=1)
        if self.pooled:
            z = layers.MLP(widths, style, name="stage2")(z, weight, train=train)
            return typewise.PooledHead(bias, name="head")(join(z))

        tokens = layers.TokenDense(widths[0], style.dtype, name="dense")([z] * len(bias))
        tokens = layers.Tower(widths[1:], style, name="stage2")(tokens, weight, train=train)
        return typewise.TokenHead(bias, name="head")([join(z) for z in tokens])

    def _first_order(self, columns):
        """First-order logits of all predictors, from columns f32[B, S, 1 + T]."""
        bias = self.param("wide_bias", lambda key: jnp.asarray(self.head_bias, jnp.float32))
        shared, *own = jnp.unstack(_WIDE * columns.sum(axis=1), axis=1)
        if not self.num_predictors:
            return [shared + bias[0]]
        return [shared + _OWN * w + b for w, b in zip(own, bias)]
