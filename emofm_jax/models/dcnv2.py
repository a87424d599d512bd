"""DCNv2: a cross network with matrix weights, alone, before or beside an MLP.

Wang et al., WWW 2021, arXiv 2008.13535.

    x_{l+1} = x_0 * (W_l x_l + b_l) + x_l
    x_{l+1} = sum_k G_k(x_l) x_0 * (U_lk tanh(C_lk tanh(V_lk^T x_l)) + b_l) + x_l

The second, of `low_rank` > 0, mixes experts of that rank. Stated: layers, structures, experts.
Ours: the gate, softmax over k of g_k . x_l with g shared by the layers, and b_l common to the
experts, as in the public implementations.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.nn import layers, losses
from emofm_jax.options import Numbers, option

# structure: (MLP after the cross network, MLP beside it)
STRUCTURES = {
    "cross": (False, False),
    "stacked": (True, False),
    "parallel": (False, True),
    "both": (True, True),
}


class DCNv2(nn.Module):
    """Deep & Cross Network v2."""

    embedding_dim: int
    head_bias: Sequence[float]
    hidden: Sequence[int]
    style: layers.Style
    structure: str = option(
        "parallel", "where an MLP stands: after it, beside it", choices=tuple(STRUCTURES)
    )
    num_layers: int = option(3, "cross layers", low=1)
    low_rank: int = option(0, "rank of a cross layer's experts; 0 = one full matrix", low=0)
    num_experts: int = option(
        4, "experts of a cross layer", low=1, needs={"low_rank": Numbers(least=1)}
    )
    switches_off = {"structure=cross": ("hidden", "activation", "norm", "dropout")}

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D] -> Outputs."""
        x = e.reshape(e.shape[0], -1)
        stacked, parallel = STRUCTURES[self.structure]
        if self.low_rank:
            crossed = self._mixture(x)
        else:
            crossed = layers.cross(x, self.num_layers, 0, self.style.dtype)
        outputs = [self._mlp("stacked")(crossed, weight, train=train) if stacked else crossed]
        if parallel:
            outputs.append(self._mlp("parallel")(x, weight, train=train))

        x = jnp.concatenate([y.astype(jnp.float32) for y in outputs], axis=1)
        return losses.Outputs(layers.Head(self.head_bias[0], name="head")(x))

    def _mlp(self, name):
        return layers.MLP(tuple(self.hidden), self.style, name=name)

    def _mixture(self, x_0):
        """Experts side by side: V and U are one product for all of them."""
        width, experts, rank, dtype = (
            x_0.shape[-1],
            self.num_experts,
            self.low_rank,
            self.style.dtype,
        )
        gate = self.param("gate", layers.lecun, (width, experts))
        x = x_0
        for i in range(self.num_layers):
            v = self.param(f"v_{i}", layers.lecun, (width, experts * rank))
            c = self.param(f"c_{i}", layers.lecun, (experts, rank, rank))
            u = self.param(f"u_{i}", layers.lecun, (experts, rank, width))
            bias = self.param(f"bias_{i}", nn.initializers.zeros, (width,))

            share = jax.nn.softmax(x.astype(jnp.float32) @ gate).astype(x.dtype)  # [B, experts]
            low = jnp.split(jnp.tanh(layers.dot(x, v, dtype)), experts, axis=1)
            low = [jnp.tanh(layers.dot(y, c[k], dtype)) for k, y in enumerate(low)]
            low = [share[:, k : k + 1] * y for k, y in enumerate(low)]

            # The shares add up to 1, so the bias, common to the experts, is added once.
            u = u.reshape(experts * rank, width)
            mixed = layers.dot(jnp.concatenate(low, axis=1), u, dtype)
            x = x_0 * (mixed + bias.astype(dtype)) + x
        return x
