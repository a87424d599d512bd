"""EDCN: a cross and a deep stream that exchange what they know after every layer (Chen et al., CIKM 2021).

    c_l, h_l = regulation_l(z_{l-1}),  z_0 = [e_1 .. e_S]         a gate a slot and stream: softmax(g / temperature)
    c'_l = c_1 (w_l . c_l) + b_l [+ c_l],  h'_l = act(W_l h_l + b_l)
    z_l = bridge(c'_l, h'_l)                                      logit = w . [c'_L, h'_L, z_L] + b

All widths are S D. Stated: streams, gates, four bridges. Ours: dropout after h', the norm after the gates and nowhere
else (as in the public code), bridges that use weights with a ReLU of their own; `residual=False` drops "+ c_l", as
that code does.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.errors import check_choice
from emofm_jax.nn import layers, losses

BRIDGES = ("hadamard", "add", "concat", "attention")


def check(own: Mapping) -> None:
    """Raises a UserError for options `config.model.edcn` that are none."""
    check_choice("config.model.edcn.bridge", own["bridge"], BRIDGES)


class EDCN(nn.Module):
    """Enhanced deep & cross network.

    Attributes (those of `config.model` and `config.model.edcn` mean what config.py says; the others follow from the
    schema):
      embedding_dim: D.
      head_bias: the logit at the start, one number.
      axis_name: of the devices over which batch norm sums, or None.
      dtype: of the products; parameters, gates, norms and logits are float32.
    """

    embedding_dim: int
    head_bias: Sequence[float] = (0.0,)
    num_layers: int = 3
    bridge: str = "hadamard"
    temperature: float = 1.0
    residual: bool = True
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
        z, first = e.reshape(e.shape[0], -1), None
        for i in range(self.num_layers):
            cross, deep = self._regulate(z, e.shape[1], weight, train, f"regulation_{i}")
            first = cross if first is None else first
            cross = self._cross(first, cross, i)
            deep = layers.MLP(
                (z.shape[1],),
                self.activation,
                "none",
                self.dropout,
                dtype=self.dtype,
                name=f"deep_{i}",
            )(deep, train=train)
            z = self._bridge(cross, deep, f"bridge_{i}")
        head = layers.Head(self.head_bias[0], name="head")
        return losses.Outputs(
            head(jnp.concatenate([x.astype(jnp.float32) for x in (cross, deep, z)], axis=1))
        )

    def _regulate(self, z, num_slots, weight, train, name):
        """z [B, S D] for the cross and for the deep stream: every slot has a gate in each."""
        gates = self.param(f"{name}_gates", nn.initializers.ones, (2, num_slots))
        gates = jnp.repeat(
            jax.nn.softmax(gates / self.temperature), z.shape[1] // num_slots, axis=1
        )
        streams = [(z * gate).astype(self.dtype) for gate in gates]
        if self.norm == "batch":
            streams = layers.WeightedBatchNorm(self.axis_name, name=f"{name}_norm")(
                streams, weight, train=train
            )
        elif self.norm == "layer":
            streams = layers.TokenLayerNorm(name=f"{name}_norm")(streams)
        return streams

    def _cross(self, first, x, i):
        product = layers.Dense(1, use_bias=False, dtype=self.dtype, name=f"cross_{i}")(x)  # [B, 1]
        bias = self.param(f"cross_{i}_bias", nn.initializers.zeros, (x.shape[1],)).astype(
            self.dtype
        )
        crossed = first * product + bias
        return crossed + x if self.residual else crossed

    def _bridge(self, cross, deep, name):
        width = cross.shape[1]
        if self.bridge == "hadamard":
            return cross * deep
        if self.bridge == "add":
            return cross + deep
        if self.bridge == "concat":
            dense = layers.Dense(width, dtype=self.dtype, name=name)
            return nn.relu(dense(jnp.concatenate([cross, deep], axis=1)))
        return sum(
            self._attention(x, f"{name}_{stream}") * x
            for stream, x in (("cross", cross), ("deep", deep))
        )

    def _attention(self, x, name):
        """Shares of the entries of x [B, S D]: softmax(W2 relu(W1 x + b))."""
        hidden = nn.relu(layers.Dense(x.shape[1], dtype=self.dtype, name=f"{name}_hidden")(x))
        scores = layers.Dense(x.shape[1], use_bias=False, dtype=self.dtype, name=f"{name}_scores")(
            hidden
        )
        return jax.nn.softmax(scores.astype(jnp.float32)).astype(x.dtype)
