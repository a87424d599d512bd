"""FINAL: factorized interaction blocks, one or two, that teach each other (Zhu et al., SIGIR 2023).

    layer: h = [u, u * v] (residual=concat) or u + u * v (sum),  [u, v] = x W + b;  then norm, activation, dropout
    1B: logit = y_1
    2B: logit = (y_1 + y_2) / 2,  p = sigmoid(logit),  aux_loss = BCE(y_1, sg(p)) + BCE(y_2, sg(p))

With `gate` the first block reads [e, e * gate], the gate of a slot being linear in the same column of all slots.
Stated: the layer, two blocks, their distillation. Ours: one `activation` and `dropout` for both; the gate is as in
the published code.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.errors import UserError, check_choice
from emofm_jax.nn import layers, losses

RESIDUALS = ("concat", "sum")


def check(own: Mapping) -> None:
    """Raises a UserError for options `config.model.final` that are none, or an odd width that is to be halved."""
    check_choice("config.model.final.residual", own["residual"], RESIDUALS)
    for field in ("block1", "block2"):
        odd = [width for width in own[field] if width % 2]
        if odd and own["residual"] == "concat":
            raise UserError(
                f"config.model.final.{field}: residual=concat halves every width, and {odd[0]} is odd; choose even ones"
            )


class FINAL(nn.Module):
    """One or two factorized interaction blocks.

    Attributes (those of `config.model` and `config.model.final` mean what config.py says; the others follow from the
    schema):
      embedding_dim: D.
      head_bias: the logit at the start, one number.
      axis_name: of the devices over which batch norm sums, or None.
      dtype: of the products; parameters, norms and logits are float32.
    """

    embedding_dim: int
    head_bias: Sequence[float] = (0.0,)
    block1: Sequence[int] = (64, 64, 64)
    block2: Sequence[int] = (64, 64, 64)
    residual: str = "concat"
    gate: bool = False
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
        gates = jnp.einsum("bsd,sr->brd", e.astype(self.dtype), kernel.astype(self.dtype))
        gates = gates + bias.astype(self.dtype)[:, None]
        return jnp.concatenate([e, e * gates], axis=1).reshape(e.shape[0], -1)

    def _block(self, x, weight, train, widths, name):
        """The logit f32[B] of one block."""
        for i, width in enumerate(widths):
            half = width if self.residual == "sum" else width // 2
            u, v = jnp.split(
                layers.Dense(2 * half, dtype=self.dtype, name=f"{name}_{i}")(x), 2, axis=1
            )
            x = u + u * v if self.residual == "sum" else jnp.concatenate([u, u * v], axis=1)
            tower = layers.Tower(
                (),
                self.activation,
                self.norm,
                self.dropout,
                None,
                self.axis_name,
                self.dtype,
                name=f"{name}_{i}_after",
            )
            x = tower([x], weight, train=train)[0]
        return layers.Head(self.head_bias[0], name=f"{name}_head")(x)


def distill(y1: jax.Array, y2: jax.Array) -> jax.Array:
    """f32[B], nats: cross-entropy of each block's prediction with that of both, which teaches and does not learn."""
    p = jax.lax.stop_gradient(jax.nn.sigmoid(0.5 * (y1 + y2)))
    return sum(-p * jax.nn.log_sigmoid(y) - (1 - p) * jax.nn.log_sigmoid(-y) for y in (y1, y2))
