"""FINAL: factorized interaction blocks, one or two, that teach each other (Zhu et al., SIGIR 2023).

    layer: h = [u, u * v] (residual=concat) or u + u * v (sum),  [u, v] = x W + b
    1B: logit = y_1
    2B: logit = (y_1 + y_2) / 2,  p = sigmoid(logit),  aux_loss = BCE(y_1, sg(p)) + BCE(y_2, sg(p))

Norm, activation and dropout follow every layer. With `gate` the first block reads [e, e * gate],
the gate of a slot being linear in the same column of all slots.
Stated: the layer, two blocks, their distillation. Ours: one `activation` and `dropout` for both;
the gate is as in the published code.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.errors import UserError
from emofm_jax.nn import layers, losses
from emofm_jax.options import option


class FINAL(nn.Module):
    """One or two factorized interaction blocks."""

    embedding_dim: int
    head_bias: Sequence[float]
    style: layers.Style
    block1: Sequence[int] = option((64, 64, 64), "widths of the first", of=int, low=1, empty=False)
    block2: Sequence[int] = option((64, 64, 64), "widths of the second; () = 1B", of=int, low=1)
    residual: str = option(
        "concat", "how a layer ends; concat halves every width", choices=("concat", "sum")
    )
    gate: bool = option(False, "gates of the slots before the first block")

    @staticmethod
    def check(own: Mapping) -> None:
        """Raises a UserError for an odd width that is to be halved."""
        for field in ("block1", "block2"):
            odd = [width for width in own[field] if width % 2]
            if odd and own["residual"] == "concat":
                raise UserError(
                    f"config.model.final.{field}: residual=concat halves every width, and {odd[0]} "
                    "is odd; choose even ones"
                )

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D] -> Outputs."""
        x = e.reshape(e.shape[0], -1)
        y1 = self._block(self._gated(e) if self.gate else x, weight, train, self.block1, "block1")
        if not self.block2:
            return losses.Outputs(y1)
        y2 = self._block(x, weight, train, self.block2, "block2")
        return losses.Outputs(0.5 * (y1 + y2), aux_loss=distill(y1, y2) if train else None)

    def _gated(self, e):
        """[B, 2 S D]"""
        num_slots = e.shape[1]
        kernel = self.param("gate_kernel", nn.initializers.zeros, (num_slots, num_slots))
        bias = self.param("gate_bias", nn.initializers.ones, (num_slots,))
        gates = jnp.einsum(
            "bsd,sr->brd", e.astype(self.style.dtype), kernel.astype(self.style.dtype)
        )
        gates = gates + bias.astype(self.style.dtype)[:, None]
        return jnp.concatenate([e, e * gates], axis=1).reshape(e.shape[0], -1)

    def _block(self, x, weight, train, widths, name):
        """The logit f32[B] of one block."""
        for i, width in enumerate(widths):
            half = width if self.residual == "sum" else width // 2
            y = layers.Dense(2 * half, dtype=self.style.dtype, name=f"{name}_{i}")(x)
            u, v = jnp.split(y, 2, axis=1)
            x = u + u * v if self.residual == "sum" else jnp.concatenate([u, u * v], axis=1)
            tower = layers.Tower((), self.style, name=f"{name}_{i}_after")
            x = tower([x], weight, train=train)[0]
        return layers.Head(self.head_bias[0], name=f"{name}_head")(x)


def distill(y1: jax.Array, y2: jax.Array) -> jax.Array:
    """f32[B], nats: cross-entropy of each block's prediction with that of both, their teacher."""
    p = jax.lax.stop_gradient(jax.nn.sigmoid(0.5 * (y1 + y2)))
    entropy = lambda y: -p * jax.nn.log_sigmoid(y) - (1 - p) * jax.nn.log_sigmoid(-y)
    return entropy(y1) + entropy(y2)
