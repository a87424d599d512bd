"""LR and FM: logistic regression, and the factorization machine (Rendle, ICDM 2010).

    LR(x) = b + sum_s w_s
    FM(x) = b + sum_s w_s + sum_{s < r} e_s . e_r

The last sum is (|sum_s e_s|^2 - sum_s |e_s|^2) / 2.

w_s, the first-order weight of a slot's id, is one more column of the embedding table, the last of
e. All is stated; ours is that b starts at the log-odds of the click rate (`head_bias`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.nn import losses


class LR(nn.Module):
    """Logistic regression on the ids: the table has one column (and D for an AM).

    Attributes:
      head_bias: b at the start, one number.
    """

    head_bias: Sequence[float]
    embedding_dim = 0  # reads no embeddings
    own_columns = 1
    only_table = True

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, 1] -> Outputs."""
        bias = self.param("bias", nn.initializers.constant(self.head_bias[0]), ())
        return losses.Outputs(e[..., -1].sum(axis=1) + bias)


class FM(nn.Module):
    """Factorization machine.

    Attributes:
      embedding_dim: D.
      head_bias: b at the start, one number.
    """

    embedding_dim: int
    head_bias: Sequence[float]
    own_columns = 1
    only_table = True

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D + 1] -> Outputs."""
        bias = self.param("bias", nn.initializers.constant(self.head_bias[0]), ())
        return losses.Outputs(
            e[..., -1].sum(axis=1) + pairwise(e[..., : self.embedding_dim]) + bias
        )


def pairwise(e: jax.Array) -> jax.Array:
    """f32[B, S, D] -> f32[B]: the sum over pairs of slots of e_s . e_r, in time linear in S."""
    return 0.5 * (jnp.square(e.sum(axis=1)) - jnp.square(e).sum(axis=1)).sum(axis=1)
