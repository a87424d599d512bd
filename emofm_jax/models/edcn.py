"""EDCN: a cross and a deep stream that meet after every layer (Chen et al., CIKM 2021).

    c_l, h_l = regulation_l(z_{l-1}),  z_0 = [e_1 .. e_S]       gates: softmax(g / temperature)
    c'_l = c_1 (w_l . c_l) + b_l [+ c_l],  h'_l = act(W_l h_l + b_l)
    z_l = bridge(c'_l, h'_l)                                      logit = w . [c'_L, h'_L, z_L] + b

All widths are S D. Stated: streams, gates, four bridges. Ours: dropout after h', the norm after the
gates and nowhere else (as in the public code), bridges that use weights with a ReLU of their own;
`residual=False` drops "+ c_l", as that code does.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.nn import layers, losses
from emofm_jax.options import option

BRIDGES = ("hadamard", "add", "concat", "attention")


class EDCN(nn.Module):
    """Enhanced deep & cross network."""

    embedding_dim: int
    head_bias: Sequence[float]
    style: layers.Style
    num_layers: int = option(3, "pairs of a cross and a deep layer", low=1)
    bridge: str = option("hadamard", "what joins the streams", choices=BRIDGES)
    temperature: float = option(1.0, "temperature of the gates' softmax", low=1e-6)
    residual: bool = option(True, "cross layers add their input")

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D] -> Outputs."""
        z, first = e.reshape(e.shape[0], -1), None
        plain = dataclasses.replace(self.style, norm="none")
        for i in range(self.num_layers):
            cross, deep = self._regulate(z, e.shape[1], weight, train, f"regulation_{i}")
            first = cross if first is None else first
            cross = self._cross(first, cross, i)
            deep = layers.MLP((z.shape[1],), plain, name=f"deep_{i}")(deep, train=train)
            z = self._bridge(cross, deep, f"bridge_{i}")

        x = jnp.concatenate([x.astype(jnp.float32) for x in (cross, deep, z)], axis=1)
        return losses.Outputs(layers.Head(self.head_bias[0], name="head")(x))

    def _regulate(self, z, num_slots, weight, train, name):
        """z [B, S D] for the cross and for the deep stream: every slot has a gate in each."""
        gates = self.param(f"{name}_gates", nn.initializers.ones, (2, num_slots))
        gates = jax.nn.softmax(gates / self.temperature)
        gates = jnp.repeat(gates, z.shape[1] // num_slots, axis=1)
        streams = [(z * gate).astype(self.style.dtype) for gate in gates]
        return layers.normalize(streams, weight, self.style, f"{name}_norm", train=train)

    def _cross(self, first, x, i):
        dense = layers.Dense(1, use_bias=False, dtype=self.style.dtype, name=f"cross_{i}")
        product = dense(x)  # [B, 1]
        bias = self.param(f"cross_{i}_bias", nn.initializers.zeros, (x.shape[1],))
        crossed = first * product + bias.astype(self.style.dtype)
        return crossed + x if self.residual else crossed

    def _bridge(self, cross, deep, name):
        width = cross.shape[1]
        if self.bridge == "hadamard":
            return cross * deep
        if self.bridge == "add":
            return cross + deep
        if self.bridge == "concat":
            dense = layers.Dense(width, dtype=self.style.dtype, name=name)
            return nn.relu(dense(jnp.concatenate([cross, deep], axis=1)))
        streams = (("cross", cross), ("deep", deep))
        return sum(self._attention(x, f"{name}_{stream}") * x for stream, x in streams)

    def _attention(self, x, name):
        """Shares of the entries of x [B, S D]: softmax(W2 relu(W1 x + b))."""
        width, dtype = x.shape[1], self.style.dtype
        hidden = nn.relu(layers.Dense(width, dtype=dtype, name=f"{name}_hidden")(x))
        scores = layers.Dense(width, use_bias=False, dtype=dtype, name=f"{name}_scores")(hidden)
        return jax.nn.softmax(scores.astype(jnp.float32)).astype(x.dtype)
