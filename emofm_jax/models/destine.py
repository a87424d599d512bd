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
    num_heads: int = option(2, "a divisor of d_att", low=1)
    residual: str = option(
        "each_layer", "where inputs are added", choices=("each_layer", "last_layer", "none")
    )
    scale: bool = option(False, "pairwise scores are divided by sqrt(d_att / num_heads)")
    relu: bool = option(False, "on queries, keys and values")
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
            added.append(
                (
                    of_e[0],
                    _affine(of_e[1], self._weights(self.embedding_dim, self.d_att, "residual")),
                )
            )
        kernel = self.param("out_kernel", layers.lecun, (slots * self.d_att, 1)).reshape(
            slots, self.d_att
        )
        logit = self.param("out_bias", nn.initializers.constant(self.head_bias[0]), ())
        for share, (v, k) in zip(
            shares, values
        ):  # w_i . sum_j share_ij v_j k = sum_j share_ij (v_j k w_i)
            seen = layers.dot(v, k @ kernel.T, self.style.dtype).swapaxes(1, 2)  # [B, i, j]
            logit += (share * seen).astype(jnp.float32).sum(axis=(1, 2))
        for x, k in added:
            logit += (x * (kernel @ k.T)).astype(jnp.float32).sum(axis=(1, 2))
        if self.wide:
            logit += first_order.sum(axis=(1, 2))
        if self.deep:
            mlp = layers.MLP(tuple(self.hidden), self.style, name="mlp")
            logit += layers.Head(name="deep_head")(mlp(e.reshape(batch, -1), weight, train=train))
        return losses.Outputs(logit)

    def _weights(self, width, features, name, use_bias=True):
        """(kernel [width, features], bias [features] or 0)"""
        kernel = self.param(f"{name}_kernel", layers.lecun, (width, features))
        return kernel, self.param(
            f"{name}_bias", nn.initializers.zeros, (features,)
        ) if use_bias else 0.0

    def _with_one(self, x):
        """x [B, S, d] as (z, kernel) with x = z kernel: z is [1 | x], so row 0 of a kernel on z is a bias."""
        z = jnp.concatenate([jnp.ones((*x.shape[:2], 1), x.dtype), x], axis=2)
        return z, jnp.eye(x.shape[2] + 1, x.shape[2], -1)

    def _attend(self, z, kernel, train, name):
        """One layer on x = z kernel, not yet summed.

        Returns:
          shares: [B, S, S] of each head. values: (v, k) of each head, whose part of the output is sum_j share_ij v_j k,
          k being zero outside of the head's columns. added: (x, k) where the output has x k besides.
        """
        heads, d_head = self.num_heads, self.d_att // self.num_heads
        if self.relu:
            z, kernel = self._with_one(layers.dot(z, kernel, self.style.dtype))
        width = kernel.shape[1]
        # The mean takes a bias of queries and keys away, but for relu; the softmax always takes that of the unary away.
        query, key = (
            _affine(kernel, self._weights(width, self.d_att, f"{name}_{part}", self.relu))
            for part in ("query", "key")
        )
        value = _affine(kernel, self._weights(width, self.d_att, f"{name}_value"))
        unary = layers.dot(
            z,
            _affine(kernel, self._weights(width, heads, f"{name}_unary", False)),
            self.style.dtype,
        )
        pairwise = self._scores(z, query, key)  # [B, H, S, S]
        if self.scale:
            pairwise = pairwise / d_head**0.5
        unary = jax.nn.softmax(unary.astype(jnp.float32), axis=1).transpose(0, 2, 1)
        share = jax.nn.softmax(pairwise) + unary[:, :, None]
        if train and self.attention_dropout > 0:
            share = layers.drop(self.make_rng("dropout"), [share], self.attention_dropout)[0]
        v = z
        if self.relu:
            v, value = nn.relu(layers.dot(z, value, self.style.dtype)), jnp.eye(self.d_att)
        of_head = jnp.arange(self.d_att) // d_head
        values = [(v, jnp.where(of_head == h, value, 0.0)) for h in range(heads)]
        residual = []
        if self.residual == "each_layer":
            residual = [(z, _affine(kernel, self._weights(width, self.d_att, f"{name}_residual")))]
        return [share[:, h].astype(self.style.dtype) for h in range(heads)], values, residual

    def _sum_up(self, shares, values, added):
        """The output of a layer as (z, kernel)."""
        z, kernel = (
            added[0]
            if added
            else (
                jnp.ones((*values[0][0].shape[:2], 1), self.style.dtype),
                jnp.zeros((1, self.d_att)),
            )
        )
        z = jnp.concatenate(
            [z, *(jnp.einsum("bij,bjr->bir", a, v) for a, (v, _) in zip(shares, values))], axis=2
        )
        kernel = jnp.concatenate([kernel, *(k for _, k in values)])
        return (
            self._with_one(layers.dot(z, kernel, self.style.dtype))
            if z.shape[2] > self.d_att
            else (z, kernel)
        )

    def _scores(self, z, query, key):
        """Pairwise scores f32[B, H, S, S] of z [B, S, r] and kernels [r, d_att].

        Only queries are centred: what the keys' mean takes off a row of scores is the same along the row, and the
        softmax takes it away. Queries are centred in the scores, where they are small.
        """
        scores = []
        if self.relu:
            query, key = (nn.relu(layers.dot(z, w, self.style.dtype)) for w in (query, key))
        for q, k in zip(
            jnp.split(query, self.num_heads, axis=-1), jnp.split(key, self.num_heads, axis=-1)
        ):
            y, z_k = (q, k) if self.relu else (layers.dot(z, q @ k.T, self.style.dtype), z)
            scores.append(jnp.einsum("bir,bjr->bij", y, z_k).astype(jnp.float32))
        scores = jnp.stack(scores, axis=1)
        return scores - scores.mean(axis=2, keepdims=True)


def _affine(kernel, weights):
    """The kernel on z, where x = z kernel, that does to z what the weights do to x."""
    return (kernel @ weights[0]).at[0].add(weights[1])
