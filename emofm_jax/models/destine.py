"""DESTINE: disentangled self-attention over the slots (Xu et al., CIKM 2021).

    out_i = sum_j (softmax_j((q_i - mean q) . (k_j - mean k)) + softmax_j(u_j)) v_j [+ x_i Wr]     per head

q, k, v and the unary score u_j are linear in x_j; means are over the slots; `scale` divides the pairwise scores by
sqrt(d_att / H). Layers follow each other; logit = w . [out_1 .. out_S] + b [+ MLP([e_1 .. e_S])] [+ sum_s w_s].
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.nn import layers, losses

RESIDUALS = ("each_layer", "last_layer", "none")


class DESTINE(nn.Module):
    """Disentangled self-attention network.

    Attributes (those of `config.model` and `config.model.destine` mean what config.py says; the others follow from
    the schema):
      embedding_dim: D.
      head_bias: the logit at the start, one number.
      axis_name: of the devices over which batch norm sums, or None.
      dtype: of the products; parameters, softmax, norms and logits are float32.
    """

    embedding_dim: int
    head_bias: Sequence[float] = (0.0,)
    num_layers: int = 2
    d_att: int = 64
    num_heads: int = 2
    residual: str = "each_layer"
    scale: bool = False
    relu: bool = False
    attention_dropout: float = 0.1
    wide: bool = True
    deep: bool = True
    hidden: Sequence[int] = (512, 256, 128)
    activation: str = "relu"
    norm: str = "none"
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @property
    def own_columns(self) -> int:
        """1 for the first-order weights of the wide part."""
        return int(self.wide)

    @nn.compact
    def __call__(self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False) -> losses.Outputs:
        """f32[B, S, D (+ 1)], weight f32[B] or None (all 1) -> Outputs; rng `dropout`, collection `batch_stats`."""
        batch, slots, _ = e.shape
        e, first_order = e[..., : self.embedding_dim], e[..., self.embedding_dim :]
        x = e
        for i in range(self.num_layers):
            x = self._attend(x, train, f"attention_{i}")
        if self.residual == "last_layer":
            x = x + layers.Dense(self.d_att, dtype=self.dtype, name="residual")(e)
        logit = layers.Head(self.head_bias[0], name="head")(x.reshape(batch, slots * self.d_att))
        if self.wide:
            logit += first_order.sum(axis=(1, 2))
        if self.deep:
            mlp = layers.MLP(
                tuple(self.hidden), self.activation, self.norm, self.dropout, self.axis_name, self.dtype, name="mlp"
            )
            logit += layers.Head(name="deep_head")(mlp(e.reshape(batch, -1), weight, train=train))
        return losses.Outputs(logit)

    def _attend(self, x, train, name):
        """[B, S, d] -> [B, S, d_att]"""
        batch, slots, _ = x.shape
        heads, d_head = self.num_heads, self.d_att // self.num_heads

        def dense(width, part, use_bias=True):
            return layers.Dense(width, use_bias, self.dtype, name=f"{name}_{part}")

        # Without relu the mean takes a bias of queries and keys away; the softmax always takes that of the unary away.
        q, k = (dense(self.d_att, part, self.relu)(x) for part in ("query", "key"))
        v = dense(self.d_att, "value")(x)
        if self.relu:
            q, k, v = nn.relu(q), nn.relu(k), nn.relu(v)
        unary = dense(heads, "unary", False)(x).astype(jnp.float32)  # [B, S, H]
        q, k = (y - y.mean(axis=1, keepdims=True) for y in (q, k))
        q, k, v = (y.reshape(batch, slots, heads, d_head) for y in (q, k, v))
        scores = jnp.einsum("bihd,bjhd->bhij", q, k).astype(jnp.float32)
        if self.scale:
            scores = scores / d_head**0.5
        share = jax.nn.softmax(scores) + jax.nn.softmax(unary, axis=1).transpose(0, 2, 1)[:, :, None]
        if train and self.attention_dropout > 0:
            share = layers.drop(self.make_rng("dropout"), [share], self.attention_dropout)[0]
        out = jnp.einsum("bhij,bjhd->bihd", share.astype(self.dtype), v).reshape(batch, slots, self.d_att)
        if self.residual == "each_layer":
            out = out + dense(self.d_att, "residual")(x)
        return out
