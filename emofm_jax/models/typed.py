"""A predictor per interaction type around any network, combined by the AM (EMOFM).

    p(y | x) = sum_t p_AM(t | x) sigmoid(logit_t(x))

logit_t is of WM, HM, HMM, or of the t-th copy of a baseline.

A network maps e to `Outputs` with logits f32[B, n], one column a predictor. EMOFM's own do so by
themselves; `Copies` makes such a network of any baseline (docs/model.md, sections 6 and 8).

Columns of e: [D | shared | own of predictor 1 | own of predictor 2 .. | of the AM], where
`network.shared_columns` are read by all (FinalMLP's contexts) and `network.own_columns` are
first-order weights.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emofm_jax.models import copies
from emofm_jax.nn import layers, losses, typewise


def table_width(module: nn.Module) -> int:
    """Columns of the embedding table that a model reads: D and its extra ones."""
    return sum(_widths(module))


def columns(module: nn.Module) -> list[tuple[str, int, int]]:
    """What each column of the table is, [table_width]: the same name in models of other types."""
    embeddings, weights, of_am = _widths(module)
    network = module.network if isinstance(module, Typed) else module
    own = max(_extra_columns(network.network)[1], 1) if isinstance(network, Copies) else weights
    of_weights = [("own", i // own, i % own) for i in range(weights)]
    of_all = [("all", 0, i) for i in range(embeddings)]
    return [*of_all, *of_weights, *(("am", 0, i) for i in range(of_am))]


def first_order(module: nn.Module) -> np.ndarray:
    """bool[table_width]: the columns that hold first-order weights."""
    embeddings, weights, of_am = _widths(module)
    return np.repeat([False, True, False], [embeddings, weights, of_am])


def starts_at_zero(module: nn.Module) -> np.ndarray:
    """bool[table_width]: the columns that are zero at the start."""
    network = module.network if isinstance(module, Typed) else module
    return first_order(module) & getattr(network, "weights_start_at_zero", False)


def _widths(module):
    """Columns of embeddings, of first-order weights, of the auxiliary model."""
    network, predictors, of_am = module, 1, 0
    if isinstance(network, Typed):
        network, of_am = network.network, network.am_columns
    if isinstance(network, Copies):
        network, predictors = network.network, len(network.head_bias)
    shared, own = _extra_columns(network)
    return module.embedding_dim + shared, predictors * own, of_am


def with_axis(module: nn.Module, axis_name: str) -> nn.Module:
    """The model whose batch norms sum their statistics over the devices of a pmap axis."""
    found: dict[str, Any] = {}
    if isinstance(module, Typed | Copies):
        found["network"] = with_axis(module.network, axis_name)
    if style := getattr(module, "style", None):
        found["style"] = dataclasses.replace(style, axis_name=axis_name)
    return module.clone(**found) if found else module


class Typed(nn.Module):
    """A network of one predictor a type, and the auxiliary model that weighs them.

    Attributes:
      network: from e to logits f32[B, n], n types that have a predictor.
      embedding_dim: D.
      am_reads: what the AM reads: the first D columns of e (embeddings), the last `am_columns`
        (own), or both.
      am_columns: columns of the AM's own; 0 where it reads none.
      am_joint: gradients of the AM reach the first D columns; they always reach its own.
      type_bias: type logits of the AM at the start, T numbers.
      drop_type: index of the type without a predictor, -1 for none.
      style: of the AM; its norm only where it has columns of its own.
    """

    network: nn.Module
    embedding_dim: int
    type_bias: Sequence[float]
    drop_type: int
    am_hidden: Sequence[int]
    am_joint: bool
    am_reads: str
    am_columns: int
    style: layers.Style

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D + extra] -> Outputs of T types."""
        of_network = e[..., : e.shape[-1] - self.am_columns]
        logits, _, aux_loss, parts = self.network(of_network, weight, train=train)
        hidden, bias = tuple(self.am_hidden), tuple(self.type_bias)
        style = self.style if self.am_columns else dataclasses.replace(self.style, norm="none")
        auxiliary = typewise.AuxiliaryModel(hidden, bias, style, name="auxiliary")
        type_logits = auxiliary(self._of_auxiliary(e), weight, train=train)

        if self.drop_type >= 0:
            fill = lambda x: typewise.fill_dropped(x, type_logits, self.drop_type)
            logits = fill(logits)
            parts = None if parts is None else jnp.stack([fill(part) for part in parts])
            if aux_loss is not None:
                aux_loss = jnp.insert(aux_loss, self.drop_type, 0.0, axis=1)
        return losses.Outputs(logits, type_logits, aux_loss, parts)

    def _of_auxiliary(self, e):
        """What the auxiliary model reads, [B, in]."""
        found = []
        if self.am_reads != "own":
            x = e[..., : self.embedding_dim].reshape(e.shape[0], -1)
            found.append(x if self.am_joint else jax.lax.stop_gradient(x))
        if self.am_columns:
            found.append(e[..., e.shape[-1] - self.am_columns :].reshape(e.shape[0], -1))
        return jnp.concatenate(found, axis=1)


class Copies(nn.Module):
    """n copies of a network, each with weights and batch statistics of its own.

    Parameters are those of the network with a leading axis n. The copies are unrolled: on CPU n
    products are faster than a batched one (docs/model.md, "Precision and speed").

    Attributes:
      network: from e to logits f32[B]; its `head_bias` is replaced.
      embedding_dim: D of the table (a network may read less: LR reads none of them).
      head_bias: logits at the start, n of them.
    """

    network: nn.Module
    embedding_dim: int
    head_bias: Sequence[float]

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D + extra] -> Outputs with logits (and aux_loss) f32[B, n]."""
        clone = lambda bias: self.network.clone(parent=None, name=None, head_bias=(bias,))
        networks = [clone(bias) for bias in self.head_bias]
        inputs = [self._columns(e, t) for t in range(len(networks))]
        if self.is_initializing():
            drawn = copies.draw(self, networks, inputs)
            for collection, start in copies.stack(drawn).items():
                self.put_variable(collection, "copies", start)

        kept = [name for name in ("params", "batch_stats") if self.has_variable(name, "copies")]
        variables = {name: self.get_variable(name, "copies") for name in kept}
        own = copies.unstack(variables, len(networks))
        weights = [weight] * len(networks)
        outputs, updated = copies.apply(self, networks, own, inputs, weights, train)

        if train and "batch_stats" in variables and not self.is_initializing():
            self.put_variable("batch_stats", "copies", copies.stack(updated))
        logits, _, aux_losses, _ = zip(*outputs)
        aux_loss = None if aux_losses[0] is None else jnp.stack(aux_losses, axis=1)
        return losses.Outputs(jnp.stack(logits, axis=1), None, aux_loss)

    def _columns(self, e, t):
        """The columns of e that copy t reads."""
        shared, own = _extra_columns(self.network)
        of_all = self.embedding_dim + shared
        start = of_all + t * own
        ranges = [
            (0, self.network.embedding_dim),
            (self.embedding_dim, of_all),
            (start, start + own),
        ]
        return jnp.concatenate([e[..., first:end] for first, end in ranges], axis=-1)


def _extra_columns(network):
    """(shared, own of a predictor)"""
    return getattr(network, "shared_columns", 0), getattr(network, "own_columns", 0)
