"""DCNv2: a cross network with matrix weights, alone, before or beside an MLP (Wang et al., WWW 2021, arXiv 2008.13535).

    x_{l+1} = x_0 * (W_l x_l + b_l) + x_l
    x_{l+1} = sum_k G_k(x_l) x_0 * (U_lk tanh(C_lk tanh(V_lk^T x_l)) + b_l) + x_l

The second, of `low_rank` > 0, mixes experts of that rank. Stated: layers, structures, experts. Ours: the gate,
softmax over k of g_k . x_l with g shared by the layers, and b_l common to the experts, as in the public
implementations.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.errors import check_choice
from emofm_jax.nn import layers, losses

# structure: (MLP after the cross network, MLP beside it)
STRUCTURES = {
    "cross": (False, False),
    "stacked": (True, False),
    "parallel": (False, True),
    "both": (True, True),
}


def check(own: Mapping) -> None:
    """Raises a UserError for options `config.model.dcnv2` that are none."""
    check_choice("config.model.dcnv2.structure", own["structure"], STRUCTURES)


def unread(own: Mapping) -> dict[str, str]:
    """{option of `config.model`: the other option that switches it off}."""
    found = {} if own["low_rank"] else {"dcnv2.num_experts": "dcnv2.low_rank=0"}
    if own["structure"] == "cross":
        found |= dict.fromkeys(("hidden", "activation", "norm", "dropout"), "dcnv2.structure=cross")
    return found


class DCNv2(nn.Module):
    """Deep & Cross Network v2.

    Attributes (those of `config.model` and `config.model.dcnv2` mean what config.py says; the others follow from
    the schema):
      embedding_dim: D.
      head_bias: the logit at the start, one number.
      axis_name: of the devices over which batch norm sums, or None.
      dtype: of the products; parameters, gates, norms and logits are float32.
    """

    embedding_dim: int
    head_bias: Sequence[float] = (0.0,)
    structure: str = "parallel"
    num_layers: int = 3
    low_rank: int = 0
    num_experts: int = 4
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
        x = e.reshape(e.shape[0], -1)
        stacked, parallel = STRUCTURES[self.structure]
        crossed = (self._mixture if self.low_rank else self._full)(x)
        outputs = [
            layers.mlp_of(self, self.hidden, "stacked")(crossed, weight, train=train)
            if stacked
            else crossed
        ]
        if parallel:
            outputs.append(layers.mlp_of(self, self.hidden, "parallel")(x, weight, train=train))
        head = layers.Head(self.head_bias[0], name="head")
        return losses.Outputs(
            head(jnp.concatenate([y.astype(jnp.float32) for y in outputs], axis=1))
        )

    def _full(self, x_0):
        x = x_0
        for i in range(self.num_layers):
            x = x_0 * layers.Dense(x_0.shape[-1], dtype=self.dtype, name=f"cross_{i}")(x) + x
        return x

    def _mixture(self, x_0):
        """Experts side by side: V and U are one product for all of them."""
        width, experts, rank = x_0.shape[-1], self.num_experts, self.low_rank
        gate = self.param("gate", layers.lecun, (width, experts))
        x = x_0
        for i in range(self.num_layers):
            v = self.param(f"v_{i}", layers.lecun, (width, experts * rank))
            c = self.param(f"c_{i}", layers.lecun, (experts, rank, rank))
            u = self.param(f"u_{i}", layers.lecun, (experts, rank, width))
            bias = self.param(f"bias_{i}", nn.initializers.zeros, (width,))
            share = jax.nn.softmax(x.astype(jnp.float32) @ gate).astype(x.dtype)  # [B, experts]
            low = jnp.split(jnp.tanh(layers.dot(x, v, self.dtype)), experts, axis=1)
            low = [
                share[:, k : k + 1] * jnp.tanh(layers.dot(y, c[k], self.dtype))
                for k, y in enumerate(low)
            ]
            # The shares add up to 1, so the bias, common to the experts, is added once.
            mixed = layers.dot(
                jnp.concatenate(low, axis=1), u.reshape(experts * rank, width), self.dtype
            )
            x = x_0 * (mixed + bias.astype(self.dtype)) + x
        return x
