"""DESTINE: disentangled self-attention over the slots (Xu et al., CIKM 2021, arXiv 2101.03654).

    out_i = sum_j (softmax_j((q_i - mean q) . (k_j - mean k)) + softmax_j(u_j)) v_j [+ x_i Wr + br]

This is one head. q, k, v and the unary score u_j are linear in x_j; means are over the slots;
`scale` divides the pairwise scores by sqrt(d_att / H). Layers follow each other; logit = w . [out_1
.. out_S] + b [+ MLP([e_1 .. e_S])] [+ sum_s w_s]. Stated: pairwise and unary shares, residuals.
Ours: dropout on the shares; no bias that the means or the softmax take away.

Without `relu` a layer is linear in x once its shares are known, so x is never formed while that is
cheaper: it is carried as z K, where z holds the shares' sums of the embeddings and K the product of
the kernels, one small matrix a batch. On Frappe's settings (4 layers of 128) this is a sixteenth of
the multiply-adds, and the same numbers. tests/reference/baselines.py has the plain version.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError, check_heads
from emofm_jax.nn import layers, losses
from emofm_jax.options import option


class DESTINE(nn.Module):
    """Disentangled self-attention network."""

    embedding_dim: int
    head_bias: Sequence[float]
    hidden: Sequence[int]
    style: layers.Style
    num_layers: int = option(2, "attention layers", low=1)
    d_att: int = option(64, "width of queries, keys and values, over all heads", low=1)
    num_heads: int = option(2, "heads, a divisor of d_att", low=1)
    residual: str = option(
        "each_layer", "where inputs are added", choices=("each_layer", "last_layer", "none")
    )
    scale: bool = option(False, "pairwise scores are divided by sqrt(d_att / num_heads)")
    relu: bool = option(False, "ReLU on queries, keys and values")
    attention_dropout: float = option(0.1, "rate, on the attention's shares", low=0, high=0.99)
    wide: bool = option(True, "first-order weights beside it")
    deep: bool = option(True, "an MLP (`hidden`) beside it")
    switches_off = {"deep=False": ("hidden", "activation", "norm", "dropout")}

    @staticmethod
    def check(own: Mapping) -> None:
        """Raises a UserError for heads that do not fit."""
        check_heads("config.model.destine.num_heads", own["num_heads"], own["d_att"], "d_att")

    @staticmethod
    def derive(schema: Schema, own: Mapping) -> dict:
        """Nothing; raises a UserError on one slot."""
        if schema.num_slots == 1:
            raise UserError(
                f"config.model.name: 'destine' attends from slot to slot, and {schema.name!r} has "
                "one slot; choose another"
            )
        return {}

    @property
    def own_columns(self) -> int:
        """1 for the first-order weights of the wide part."""
        return int(self.wide)

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D (+ 1)] -> Outputs."""
        batch, slots, _ = e.shape
        e, first_order = e[..., : self.embedding_dim], e[..., self.embedding_dim :]
        of_e = self._with_one(e.astype(self.style.dtype))
        z, kernel = of_e
        for i in range(self.num_layers):
            shares, values, added = self._attend(z, kernel, train, f"attention_{i}")
            if i + 1 < self.num_layers:
                z, kernel = self._sum_up(shares, values, added)
        if self.residual == "last_layer":
            weights = self._weights(self.embedding_dim, self.d_att, "residual")
            added.append((of_e[0], _affine(of_e[1], weights)))

        logit = self._last(shares, values, added, slots)
        if self.wide:
            logit += first_order.sum(axis=(1, 2))
        if self.deep:
            mlp = layers.MLP(tuple(self.hidden), self.style, name="mlp")
            x = mlp(e.reshape(batch, -1), weight, train=train)
            logit += layers.Head(name="deep_head")(x)
        return losses.Outputs(logit)

    def _last(self, shares, values, added, slots):
        """f32[B]: w . [out_1 .. out_S] + b of the last layer, which is not formed either."""
        kernel = self.param("out_kernel", layers.lecun, (slots * self.d_att, 1))
        kernel = kernel.reshape(slots, self.d_att)
        logit = self.param("out_bias", nn.initializers.constant(self.head_bias[0]), ())
        # w_i . sum_j share_ij v_j k = sum_j share_ij (v_j k w_i)
        for share, (v, k) in zip(shares, values):
            seen = layers.dot(v, k @ kernel.T, self.style.dtype).swapaxes(1, 2)  # [B, i, j]
            logit += (share * seen).astype(jnp.float32).sum(axis=(1, 2))

        for x, k in added:
            logit += (x * (kernel @ k.T)).astype(jnp.float32).sum(axis=(1, 2))
        return logit

    def _weights(self, width, features, name, use_bias=True):
        """(kernel [width, features], bias [features] or 0)"""
        kernel = self.param(f"{name}_kernel", layers.lecun, (width, features))
        if not use_bias:
            return kernel, 0.0
        return kernel, self.param(f"{name}_bias", nn.initializers.zeros, (features,))

    def _with_one(self, x):
        """x [B, S, d] as (z, kernel), x = z kernel; z is [1 | x]: row 0 of a kernel is a bias."""
        z = jnp.concatenate([jnp.ones((*x.shape[:2], 1), x.dtype), x], axis=2)
        return z, jnp.eye(x.shape[2] + 1, x.shape[2], -1)

    def _attend(self, z, kernel, train, name):
        """One layer on x = z kernel, not yet summed.

        Returns:
          shares: [B, S, S] of each head. values: (v, k) of each head, whose part of the output is
          sum_j share_ij v_j k, k being zero outside of the head's columns. added: (x, k) where the
          output has x k besides.
        """
        heads, d_att, dtype = self.num_heads, self.d_att, self.style.dtype
        d_head = d_att // heads
        if self.relu:
            z, kernel = self._with_one(layers.dot(z, kernel, dtype))
        width = kernel.shape[1]
        of_x = lambda features, part, use_bias: _affine(
            kernel, self._weights(width, features, f"{name}_{part}", use_bias)
        )
        # The mean takes a bias of queries and keys away, but for relu; the softmax always that of
        # the unary.
        query, key = (of_x(d_att, part, self.relu) for part in ("query", "key"))
        value = of_x(d_att, "value", True)
        unary = layers.dot(z, of_x(heads, "unary", False), dtype)
        pairwise = self._scores(z, query, key)  # [B, H, S, S]
        if self.scale:
            pairwise = pairwise / d_head**0.5

        unary = jax.nn.softmax(unary.astype(jnp.float32), axis=1).transpose(0, 2, 1)
        share = jax.nn.softmax(pairwise) + unary[:, :, None]
        if train and self.attention_dropout > 0:
            share = layers.drop(self.make_rng("dropout"), [share], self.attention_dropout)[0]

        v = z
        if self.relu:
            v, value = nn.relu(layers.dot(z, value, dtype)), jnp.eye(d_att)
        of_head = jnp.arange(d_att) // d_head
        values = [(v, jnp.where(of_head == h, value, 0.0)) for h in range(heads)]
        added = [(z, of_x(d_att, "residual", True))] if self.residual == "each_layer" else []
        return [share[:, h].astype(dtype) for h in range(heads)], values, added

    def _sum_up(self, shares, values, added):
        """The output of a layer as (z, kernel)."""
        dtype = self.style.dtype
        z, kernel = jnp.ones((*values[0][0].shape[:2], 1), dtype), jnp.zeros((1, self.d_att))
        if added:
            z, kernel = added[0]

        sums = [jnp.einsum("bij,bjr->bir", a, v) for a, (v, _) in zip(shares, values)]
        z = jnp.concatenate([z, *sums], axis=2)
        kernel = jnp.concatenate([kernel, *(k for _, k in values)])
        if z.shape[2] > self.d_att:
            return self._with_one(layers.dot(z, kernel, dtype))
        return z, kernel

    def _scores(self, z, query, key):
        """Pairwise scores f32[B, H, S, S] of z [B, S, r] and kernels [r, d_att].

        Only queries are centred: what the keys' mean takes off a row of scores is the same along
        the row, and the softmax takes it away. Queries are centred in the scores, where they are
        small.
        """
        dtype, heads = self.style.dtype, self.num_heads
        if self.relu:
            query, key = (nn.relu(layers.dot(z, w, dtype)) for w in (query, key))
        scores = []
        for q, k in zip(jnp.split(query, heads, axis=-1), jnp.split(key, heads, axis=-1)):
            y, z_k = (q, k) if self.relu else (layers.dot(z, q @ k.T, dtype), z)
            scores.append(jnp.einsum("bir,bjr->bij", y, z_k).astype(jnp.float32))
        scores = jnp.stack(scores, axis=1)
        return scores - scores.mean(axis=2, keepdims=True)


def _affine(kernel, weights):
    """The kernel on z, where x = z kernel, that does to z what the weights do to x."""
    return (kernel @ weights[0]).at[0].add(weights[1])
