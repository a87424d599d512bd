"""Mixers across tokens: shape-preserving, residual, the identity at the start (EMOFM's feature-based mixers).

A mixer stands after any layer of a stage: its tokens are the groups in stage 1 and the types in stage 2. It takes
and returns n arrays [B, d] (docs/model.md, choice 4). A new one is a class with the fields of
`CrossAttentionMixer` and one line in `MIXERS`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.nn import layers


class CrossAttentionMixer(nn.Module):
    """Lets every token attend to the others and adds the result (EMOFM, feature-based mixers).

        q_i = u_i Wq_i,  k_j = u_j Wk_j,  v_j = u_j Wv_j
        out_i = u_i + (concat over heads of sum_{j != i} softmax_{j != i}(q_i . k_j / sqrt(d_att / H)) v_j) Wo_i

    Attributes:
      d_att: width of queries, keys and values, over all heads.
      num_heads: H.
      norm: none | layer: on u_i before the three products.
      dtype: of the products; the softmax is float32.
    """

    d_att: int = 64
    num_heads: int = 4
    norm: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Sequence[jax.Array]) -> list[jax.Array]:
        """Mixes n tokens.

        Parameters are `query_key_value` f32[n, d, 3 d_att] (Wq, Wk, Wv side by side) and `out` f32[n, d_att, d],
        which starts at zero. With n = 1 there is nobody to attend to: no parameters, the identity. With n = 2 the
        softmax is over one token, so Wq and Wk have no effect.

        Args:
          tokens: n arrays [B, d].

        Returns:
          n arrays [B, d], equal to `tokens` at the start.

        Raises:
          ValueError: `num_heads` does not divide `d_att`.
        """
        if self.d_att % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide d_att = {self.d_att}")
        n, d = len(tokens), tokens[0].shape[-1]
        if n == 1:
            return list(tokens)
        inputs = layers.TokenLayerNorm(name="norm")(tokens) if self.norm == "layer" else tokens
        kernel = self.param("query_key_value", layers.lecun, (n, d, 3 * self.d_att))
        out = self.param("out", nn.initializers.zeros, (n, self.d_att, d))
        projected = [layers.dot(u, w, self.dtype) for u, w in zip(inputs, layers.unstack(kernel))]
        mixed = attend(projected, self.num_heads)
        return [u + layers.dot(m, w, self.dtype) for u, m, w in zip(tokens, mixed, layers.unstack(out))]


def attend(projected: Sequence[jax.Array], num_heads: int) -> list[jax.Array]:
    """Multi-head attention of each of n tokens to the others.

    Args:
      projected: n arrays [B, 3 d_att], queries, keys and values side by side.
      num_heads: H.

    Returns:
      n arrays [B, d_att].
    """
    batch, d_head = projected[0].shape[0], projected[0].shape[1] // (3 * num_heads)
    split = [p.reshape(batch, 3, num_heads, d_head) for p in projected]  # [B, 3, H, d_head]
    mixed = []
    for i, ours in enumerate(split):
        others = [p for j, p in enumerate(split) if j != i]
        scores = [(ours[:, 0] * p[:, 1]).astype(jnp.float32).sum(-1) / d_head**0.5 for p in others]  # [B, H]
        share = jax.nn.softmax(jnp.stack(scores), axis=0).astype(projected[0].dtype)  # [n - 1, B, H]
        total = sum(a[..., None] * p[:, 2] for a, p in zip(share, others))
        mixed.append(total.reshape(batch, -1))
    return mixed


MIXERS = {"cross_attention": CrossAttentionMixer, "none": None}
