"""DeepFM: a factorization machine and an MLP on the same embeddings.

Guo et al., IJCAI 2017, arXiv 1703.04247.

    logit(x) = sum_s w_s + sum_{s < r} e_s . e_r + MLP([e_1 .. e_S]) + b

The two logits are added; the first-order weights w_s are one more column of the table
(models/fm.py). Stated: the sum and the shared embeddings. Ours: the widths (`hidden`).
"""

from collections.abc import Sequence

import jax
from flax import linen as nn

from emofm_jax.models import fm
from emofm_jax.nn import layers, losses


class DeepFM(nn.Module):
    """FM beside an MLP."""

    embedding_dim: int
    head_bias: Sequence[float]
    hidden: Sequence[int]
    style: layers.Style
    own_columns = 1

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D + 1] -> Outputs."""
        e, first_order = e[..., : self.embedding_dim], e[..., -1]
        mlp = layers.MLP(tuple(self.hidden), self.style, name="mlp")
        x = mlp(e.reshape(e.shape[0], -1), weight, train=train)
        deep = layers.Head(self.head_bias[0], name="head")(x)
        return losses.Outputs(first_order.sum(axis=1) + fm.pairwise(e) + deep)
