"""DeepFM: a factorization machine and an MLP on the same embeddings (Guo et al., IJCAI 2017, arXiv 1703.04247).

    logit(x) = sum_s w_s + sum_{s < r} e_s . e_r + MLP([e_1 .. e_S]) + b

The two logits are added; the first-order weights w_s are one more column of the table (models/fm.py). Stated: the sum
and the shared embeddings. Ours: the widths (`hidden`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.models import fm
from emofm_jax.nn import layers, losses


class DeepFM(nn.Module):
    """FM beside an MLP.

    Attributes (those of `config.model` mean what config.py says; the others follow from the schema):
      embedding_dim: D.
      head_bias: the logit at the start, one number.
      axis_name: of the devices over which batch norm sums, or None.
      dtype: of the products; parameters, norms and logits are float32.
    """

    embedding_dim: int
    head_bias: Sequence[float] = (0.0,)
    hidden: Sequence[int] = (512, 256, 128)
    activation: str = "relu"
    norm: str = "none"
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    own_columns = 1

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D + 1], weight f32[B] or None (all 1) -> Outputs; rng `dropout`, collection `batch_stats`."""
        e, first_order = e[..., : self.embedding_dim], e[..., -1]
        mlp = layers.mlp_of(self, self.hidden, "mlp")
        deep = layers.Head(self.head_bias[0], name="head")(
            mlp(e.reshape(e.shape[0], -1), weight, train=train)
        )
        return losses.Outputs(first_order.sum(axis=1) + fm.pairwise(e) + deep)
