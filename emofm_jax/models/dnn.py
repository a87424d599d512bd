"""DNN: the plain MLP that every click model is compared with (Covington et al., RecSys 2016).

    logit(x) = w . MLP([e_1 .. e_S]) + b

WM without types; it never sees them unless `type_aware`. The widths are ours (`hidden`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.nn import layers, losses


class DNN(nn.Module):
    """One MLP over the concatenated embeddings.

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

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D], weight f32[B] or None (all 1) -> Outputs; rng `dropout`, collection `batch_stats`."""
        mlp = layers.mlp_of(self, self.hidden, "mlp")
        x = mlp(e.reshape(e.shape[0], -1), weight, train=train)
        return losses.Outputs(layers.Head(self.head_bias[0], name="head")(x))
