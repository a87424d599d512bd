"""DNN: the plain MLP that every click model is compared with (Covington et al., RecSys 2016).

    logit(x) = w . MLP([e_1 .. e_S]) + b

WM without types; it never sees them unless `type_aware`. The widths are ours (`hidden`).
"""

from collections.abc import Sequence

import jax
from flax import linen as nn

from emofm_jax.nn import layers, losses


class DNN(nn.Module):
    """One MLP over the concatenated embeddings."""

    embedding_dim: int
    head_bias: Sequence[float]
    hidden: Sequence[int]
    style: layers.Style

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D] -> Outputs."""
        mlp = layers.MLP(tuple(self.hidden), self.style, name="mlp")
        x = mlp(e.reshape(e.shape[0], -1), weight, train=train)
        return losses.Outputs(layers.Head(self.head_bias[0], name="head")(x))
