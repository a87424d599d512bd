"""FinalMLP: two MLPs on differently selected features, fused bilinearly (Mao et al., AAAI 2023, arXiv 2304.00902).

    x_i = e * 2 sigmoid(gate_i(context_i)),  h_i = MLP_i(x_i),  i = 1, 2
    logit = b + w_1 . h_1 + w_2 . h_2 + sum over heads k of h_1k^T W_k h_2k

context_i: embeddings of their own of the slots `context1`, `context2`, which are further columns of the one table;
without slots, a learned vector. The halves h_ik are the heads' shares of h_i. All is stated; ours are the widths, the
gates' ReLU without norm or dropout, and the start of W_k.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emofm_jax.errors import UserError, check_heads
from emofm_jax.nn import layers, losses, random


def check(own: Mapping) -> None:
    """Raises a UserError for heads of `config.model.finalmlp` that do not fit, or empty streams."""
    for field in ("mlp1", "mlp2"):
        if not own[field]:
            raise UserError(f"config.model.finalmlp.{field}: () must be positive widths")
        check_heads(
            "config.model.finalmlp.num_heads",
            own["num_heads"],
            own[field][-1],
            f"the last width of {field}",
        )


def unread(own: Mapping) -> dict[str, str]:
    """{option of `config.model`: the other option that switches it off}."""
    fields = () if own["selection"] else ("gate_hidden", "context1", "context2")
    return {f"finalmlp.{field}": "finalmlp.selection=False" for field in fields}


class FinalMLP(nn.Module):
    """Two-stream MLP.

    Attributes (those of `config.model` and `config.model.finalmlp` mean what config.py says; the others follow from
    the schema):
      embedding_dim: D.
      head_bias: the logit at the start, one number.
      context1, context2: numbers of the slots.
      axis_name: of the devices over which batch norm sums, or None.
      dtype: of the products; parameters, norms and logits are float32.
    """

    embedding_dim: int
    head_bias: Sequence[float] = (0.0,)
    mlp1: Sequence[int] = (64, 64, 64)
    mlp2: Sequence[int] = (64, 64, 64)
    num_heads: int = 1
    selection: bool = True
    gate_hidden: Sequence[int] = (64,)
    context1: Sequence[int] = ()
    context2: Sequence[int] = ()
    activation: str = "relu"
    norm: str = "none"
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @property
    def shared_columns(self) -> int:
        """2 D: contexts of the first stream, then of the second; D or none where a stream has no slots."""
        return self.embedding_dim * sum(bool(slots) for slots in self._contexts())

    def _contexts(self):
        return (self.context1, self.context2) if self.selection else ((), ())

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D + 2 D], weight f32[B] or None (all 1) -> Outputs; rng `dropout`, collection `batch_stats`."""
        start, streams = self.embedding_dim, []
        x = e[..., :start].reshape(e.shape[0], -1)
        for i, (slots, widths) in enumerate(zip(self._contexts(), (self.mlp1, self.mlp2)), 1):
            selected = x
            if self.selection:
                # Slot by slot: an index array would be a scatter in the gradient.
                of_slots = [e[:, slot, start : start + self.embedding_dim] for slot in slots]
                context = jnp.concatenate(of_slots, axis=1) if slots else None
                selected = x * self._gate(context, x.shape[1], f"gate{i}")
                start += self.embedding_dim * bool(slots)
            mlp = layers.mlp_of(self, widths, f"mlp{i}")
            streams.append(mlp(selected, weight, train=train).astype(jnp.float32))
        linear = layers.Head(self.head_bias[0], name="head")(jnp.concatenate(streams, axis=1))
        return losses.Outputs(linear + self._fuse(*streams))

    def _gate(self, context, width, name):
        """Factors [B, width] (or [1, width] without slots) in (0, 2) from context [B, slots * D]."""
        if context is None:
            # At zero it would stay there: the ReLU after it would be at its corner.
            context = self.param(f"{name}_context", layers.lecun, (1, self.embedding_dim))
        hidden = layers.MLP(tuple(self.gate_hidden), "relu", dtype=self.dtype, name=name)(
            context, train=False
        )
        return 2 * nn.sigmoid(layers.Dense(width, dtype=self.dtype, name=f"{name}_out")(hidden))

    def _fuse(self, h1, h2):
        """f32[B]: the heads' bilinear forms, summed."""
        d1, d2 = h1.shape[1] // self.num_heads, h2.shape[1] // self.num_heads
        # As published with its code, N(0, 2 / entries): N(0, 1 / d1) starts with a term that outweighs the linear one.
        init = lambda key, shape: random.normal(key, shape) * (2 / (np.prod(shape) + 1)) ** 0.5
        kernel = self.param("bilinear", init, (self.num_heads, d1, d2))
        left = [
            layers.dot(x, k, self.dtype)
            for x, k in zip(jnp.split(h1, self.num_heads, axis=1), kernel)
        ]
        return (jnp.concatenate(left, axis=1).astype(jnp.float32) * h2).sum(axis=1)
