"""DESTINE: disentangled self-attention over the slots (Xu et al., CIKM 2021, arXiv 2101.03654).

    out_i = sum_j (softmax_j((q_i - mean q) . (k_j - mean k)) + softmax_j(u_j)) v_j [+ x_i Wr + br]     per head

q, k, v and the unary score u_j are linear in x_j; means are over the slots; `scale` divides the pairwise scores by
sqrt(d_att / H). Layers follow each other; logit = w . [out_1 .. out_S] + b [+ MLP([e_1 .. e_S])] [+ sum_s w_s].
Stated: pairwise and unary shares, residuals. Ours: dropout on the shares; no bias that the means or the softmax take
away.

Without `relu` a layer is linear in x once its shares are known, so x is never formed while that is cheaper: it is
carried as z K, where z holds the shares' sums of the embeddings and K the product of the kernels, one small matrix a
batch. On Frappe's settings (4 layers of 128) this is a sixteenth of the multiply-adds, and the same numbers.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.errors import check_choice, check_heads
from emofm_jax.nn import layers, losses

RESIDUALS = ("each_layer", "last_layer", "none")


def check(own: Mapping) -> None:
    """Raises a UserError for options `config.model.destine` that are none, or heads that do not fit."""
    check_choice("config.model.destine.residual", own["residual"], RESIDUALS)
    check_heads("config.model.destine.num_heads", own["num_heads"], own["d_att"], "d_att")


def unread(own: Mapping) -> dict[str, str]:
    """{option of `config.model`: the other option that switches it off}."""
    fields = () if own["deep"] else ("hidden", "activation", "norm", "dropout")
    return dict.fromkeys(fields, "destine.deep=False")


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
        z, kernel = e.astype(self.dtype), None  # x = z kernel; None = the identity
        for i in range(self.num_layers):
            z, kernel = self._attend(z, kernel, train, f"attention_{i}")
        if self.residual == "last_layer":
            dense = self._weights(self.embedding_dim, self.d_att, "residual")
            kernel = jnp.eye(self.d_att) if kernel is None else kernel
            z = jnp.concatenate([z, e.astype(self.dtype), jnp.ones((batch, slots, 1), self.dtype)], axis=2)
            kernel = jnp.concatenate([kernel, *dense])
        out, bias = self._head(slots)
        out = out if kernel is None else out @ kernel.T  # [S, width of z]
        logit = (z.astype(jnp.float32) * out).sum(axis=(1, 2)) + bias
        if self.wide:
            logit += first_order.sum(axis=(1, 2))
        if self.deep:
            mlp = layers.MLP(
                tuple(self.hidden), self.activation, self.norm, self.dropout, self.axis_name, self.dtype, name="mlp"
            )
            logit += layers.Head(name="deep_head")(mlp(e.reshape(batch, -1), weight, train=train))
        return losses.Outputs(logit)

    def _head(self, slots):
        """(kernel [S, d_att], bias [])"""
        kernel = self.param("out_kernel", layers.lecun, (slots * self.d_att, 1))
        bias = self.param("out_bias", nn.initializers.constant(self.head_bias[0]), ())
        return kernel.reshape(slots, self.d_att), bias

    def _weights(self, width, features, name, use_bias=True):
        """(kernel [width, features], bias [1, features]), or the kernel alone."""
        kernel = self.param(f"{name}_kernel", layers.lecun, (width, features))
        if not use_bias:
            return kernel
        return kernel, self.param(f"{name}_bias", nn.initializers.zeros, (features,))[None]

    def _attend(self, z, kernel, train, name):
        """One layer, from x = z kernel to (z', kernel') of its output."""
        heads, d_head = self.num_heads, self.d_att // self.num_heads
        if self.relu and kernel is not None:
            z, kernel = layers.dot(z, kernel, self.dtype), None
        width = z.shape[2] if kernel is None else kernel.shape[1]  # of x
        through = (lambda w: w) if kernel is None else (lambda w: kernel @ w)
        # The mean takes a bias of queries and keys away, but for relu; the softmax always takes that of the unary away.
        query, key = (self._weights(width, self.d_att, f"{name}_{part}", self.relu) for part in ("query", "key"))
        value = self._weights(width, self.d_att, f"{name}_value")
        unary = layers.dot(z, through(self._weights(width, heads, f"{name}_unary", False)), self.dtype)  # [B, S, H]
        pairwise = self._scores_of_relu(z, query, key) if self.relu else self._scores(z, through(query), through(key))
        if self.scale:
            pairwise = pairwise / d_head**0.5
        unary = jax.nn.softmax(unary.astype(jnp.float32), axis=1).transpose(0, 2, 1)
        share = jax.nn.softmax(pairwise) + unary[:, :, None]  # [B, H, S, S]
        if train and self.attention_dropout > 0:
            share = layers.drop(self.make_rng("dropout"), [share], self.attention_dropout)[0]
        share = share.astype(self.dtype)
        z_1 = jnp.concatenate([z, jnp.ones((*z.shape[:2], 1), self.dtype)], axis=2)  # the last kernel row is a bias
        if self.relu:
            v = nn.relu(layers.dot(z_1, jnp.concatenate(value), self.dtype))
            out = [jnp.einsum("bij,bjd->bid", share[:, h], x) for h, x in enumerate(jnp.split(v, heads, axis=2))]
            pieces, kernels = out, [jnp.eye(self.d_att)]
        else:
            pieces = [jnp.einsum("bij,bjr->bir", share[:, h], z_1) for h in range(heads)]
            of_value = jnp.concatenate([through(value[0]), value[1]])
            kernels = [jnp.where(jnp.arange(self.d_att) // d_head == h, of_value, 0.0) for h in range(heads)]
        if self.residual == "each_layer":
            residual = self._weights(width, self.d_att, f"{name}_residual")
            pieces.append(z_1)
            kernels.append(jnp.concatenate([through(residual[0]), residual[1]]))
        z, kernel = jnp.concatenate(pieces, axis=2), jnp.concatenate(kernels)
        if z.shape[2] > self.d_att:
            z, kernel = layers.dot(z, kernel, self.dtype), None
        return z, kernel

    def _scores(self, z, query, key):
        """Pairwise scores f32[B, H, S, S] of z [B, S, r] with kernels [r, d_att]: per head z (Wq Wk^T) z^T, centred."""
        z = z - z.mean(axis=1, keepdims=True)
        heads = zip(*(jnp.split(w, self.num_heads, axis=1) for w in (query, key)))
        scores = [jnp.einsum("bir,bjr->bij", layers.dot(z, q @ k.T, self.dtype), z) for q, k in heads]
        return jnp.stack(scores, axis=1).astype(jnp.float32)

    def _scores_of_relu(self, x, query, key):
        """The same, of queries and keys after relu."""
        q, k = (nn.relu(layers.dot(x, w, self.dtype) + b.astype(self.dtype)) for w, b in (query, key))
        q, k = (y - y.mean(axis=1, keepdims=True) for y in (q, k))
        heads = zip(*(jnp.split(y, self.num_heads, axis=2) for y in (q, k)))
        return jnp.stack([jnp.einsum("bid,bjd->bij", q, k) for q, k in heads], axis=1).astype(jnp.float32)
