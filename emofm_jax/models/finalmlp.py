"""FinalMLP: two MLPs on differently selected features, fused bilinearly.

Mao et al., AAAI 2023, arXiv 2304.00902.

    x_i = e * 2 sigmoid(gate_i(context_i)),  h_i = MLP_i(x_i),  i = 1, 2
    logit = b + w_1 . h_1 + w_2 . h_2 + sum over heads k of h_1k^T W_k h_2k

context_i: embeddings of their own of the slots `context1`, `context2`, which are further columns of
the one table; without slots, a learned vector. The halves h_ik are the heads' shares of h_i. All is
stated; ours are the widths, the gates' ReLU without norm or dropout, and the start of W_k.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError, check_heads
from emofm_jax.nn import layers, losses, random
from emofm_jax.options import option

_GATED = {"selection": (True,)}


class FinalMLP(nn.Module):
    """Two-stream MLP.

    Attributes:
      context1, context2: numbers of the slots.
    """

    embedding_dim: int
    head_bias: Sequence[float]
    style: layers.Style
    mlp1: Sequence[int] = option((64, 64, 64), "widths, first stream", of=int, low=1, empty=False)
    mlp2: Sequence[int] = option((64, 64, 64), "widths, second stream", of=int, low=1, empty=False)
    num_heads: int = option(1, "heads of the fusion; a divisor of the last widths", low=1)
    selection: bool = option(True, "gates on the features, one set a stream")
    gate_hidden: Sequence[int] = option(
        (64,), "widths of the gates' MLPs", of=int, low=1, needs=_GATED
    )
    context1: Sequence = option(
        (), "slots that the first stream's gates depend on", of=str, needs=_GATED
    )
    context2: Sequence = option((), "the same of the second stream", of=str, needs=_GATED)

    @staticmethod
    def check(own: Mapping) -> None:
        """Raises a UserError for heads that do not fit."""
        for field in ("mlp1", "mlp2"):
            of = f"the last width of {field}"
            check_heads("config.model.finalmlp.num_heads", own["num_heads"], own[field][-1], of)

    @staticmethod
    def derive(schema: Schema, own: Mapping) -> dict:
        """The contexts as numbers of slots; raises a UserError for an unknown or repeated name."""
        if not own["selection"]:
            return {}
        return {key: _slot_numbers(schema, key, own[key]) for key in ("context1", "context2")}

    @property
    def shared_columns(self) -> int:
        """Contexts of the first stream, then of the second: D each, none without slots."""
        return self.embedding_dim * sum(bool(slots) for slots in self._contexts())

    def _contexts(self):
        return (self.context1, self.context2) if self.selection else ((), ())

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D + 2 D] -> Outputs."""
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
            mlp = layers.MLP(tuple(widths), self.style, name=f"mlp{i}")
            streams.append(mlp(selected, weight, train=train).astype(jnp.float32))
        linear = layers.Head(self.head_bias[0], name="head")(jnp.concatenate(streams, axis=1))
        return losses.Outputs(linear + self._fuse(*streams))

    def _gate(self, context, width, name):
        """Factors [B, width] in (0, 2) from context [B, slots * D]; [1, width] without slots."""
        if context is None:
            # At zero it would stay there: the ReLU after it would be at its corner.
            context = self.param(f"{name}_context", layers.lecun, (1, self.embedding_dim))
        dtype = self.style.dtype
        plain = layers.Style("relu", dtype=dtype)
        hidden = layers.MLP(tuple(self.gate_hidden), plain, name=name)(context, train=False)
        return 2 * nn.sigmoid(layers.Dense(width, dtype=dtype, name=f"{name}_out")(hidden))

    def _fuse(self, h1, h2):
        """f32[B]: the heads' bilinear forms, summed."""
        d1, d2 = h1.shape[1] // self.num_heads, h2.shape[1] // self.num_heads
        # As published with its code, N(0, 2 / entries): N(0, 1 / d1) starts with a term that
        # outweighs the linear one.
        init = lambda key, shape: random.normal(key, shape) * (2 / (np.prod(shape) + 1)) ** 0.5
        kernel = self.param("bilinear", init, (self.num_heads, d1, d2))
        heads = zip(jnp.split(h1, self.num_heads, axis=1), kernel)
        left = [layers.dot(x, k, self.style.dtype) for x, k in heads]
        return (jnp.concatenate(left, axis=1).astype(jnp.float32) * h2).sum(axis=1)


def _slot_numbers(schema, field, names):
    known = [slot.name for slot in schema.slots]
    for name in names:
        if name not in known:
            raise UserError(
                f"config.model.finalmlp.{field}: {name!r} is no slot of {schema.name!r}; "
                f"its slots: {', '.join(known)}"
            )

    if len(set(names)) < len(names):
        raise UserError(
            f"config.model.finalmlp.{field}: {tuple(names)} names a slot twice; name it once"
        )
    return tuple(known.index(name) for name in names)
