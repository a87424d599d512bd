"""WM, HM and HMM: whole, hierarchical, and hierarchical MLPs with mixers (EMOFM, arXiv 2310.04482).

    WM(x)  = MLP([e_1 .. e_S, type])
    HM(x)  = MLP_2([MLP_1(x_1) .. MLP_G(x_G), type])        x_g: embeddings of the slots of group g
    HMM(x) = HM with a mixer after every layer: across groups in stage 1, types in stage 2

Each is a set of predictors, one per interaction type, which `typed.Typed` combines (docs/model.md,
sections 2 to 6). Without types (`num_predictors = 0`) it is one predictor and nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.nn import layers, losses, mixers, typewise


class WM(nn.Module):
    """Whole MLP: all embeddings, and the type's, through one MLP a type.

    Attributes:
      num_predictors: types that have a predictor; 0 = untyped.
    """

    embedding_dim: int
    head_bias: Sequence[float]
    num_predictors: int
    hidden: Sequence[int]
    style: layers.Style
    init_scale: float
    type_predictors: str

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D] -> Outputs."""
        chex.assert_shape(e, (None, None, self.embedding_dim))
        x = e.reshape(e.shape[0], -1)
        return _predict_per_type(self, x, weight, self.hidden, None, "tower", train)


class HM(nn.Module):
    """Hierarchical MLPs: one tower a group, then one tower a type over all groups.

    Attributes:
      group_sizes: slots of each group, in order.
      num_predictors: types that have a predictor; 0 = untyped.
    """

    embedding_dim: int
    head_bias: Sequence[float]
    group_sizes: Sequence[int]
    num_predictors: int
    stage1: Sequence[int]
    stage2: Sequence[int]
    style: layers.Style
    init_scale: float
    type_predictors: str

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D] -> Outputs."""
        chex.assert_shape(e, (None, None, self.embedding_dim))
        tokens = group_towers(self, e, weight, self._make_mixer(1), train)
        x = jnp.concatenate(tokens, axis=1)  # [B, G * d]
        return _predict_per_type(self, x, weight, self.stage2, self._make_mixer(2), "stage2", train)

    def _make_mixer(self, stage: int) -> Callable[[str], nn.Module] | None:
        """Makes the mixer of a name, for a stage that has mixers."""
        return None


class HMM(HM):
    """HM with mixers: field-wise across groups in stage 1, type-wise across types in stage 2.

    With one predictor (untyped, or `type_predictors="shared"`) stage 2 has one token, so its mixers
    are the identity.
    """

    mixer: mixers.Mixing

    def _make_mixer(self, stage: int) -> Callable[[str], nn.Module] | None:
        if self.mixer.kind == "none" or stage not in self.mixer.stages:
            return None
        return lambda name: self.mixer.make(name, self.style.dtype)


def group_towers(
    model: Any,
    e: jax.Array,
    weight: jax.Array | None,
    make_mixer: Callable[[str], nn.Module] | None,
    train: bool,
) -> list[jax.Array]:
    """Stage 1 of a model, called in it: f32[B, S, D] -> a tower's output [B, d] for each group."""
    style, widths = model.style, tuple(model.stage1)
    sizes = tuple(model.group_sizes)
    first = layers.GroupDense(sizes, widths[0], style.dtype, name="group_dense")
    tower = layers.Tower(widths[1:], style, make_mixer, name="stage1")
    return tower(first(e), weight, train=train)


def _predict_per_type(model, x, weight, widths, make_mixer, name, train):
    """Towers and heads on x [B, in]; of shared predictors types are outermost in the rows."""
    shared, predictors = model.type_predictors == "shared", model.num_predictors
    if not widths:
        raise ValueError(f"{name}: a predictor needs at least one hidden layer")
    dim, scale, dtype = model.embedding_dim, model.init_scale, model.style.dtype
    first = typewise.TypeDense(widths[0], predictors, shared, dim, scale, dtype, name="type_dense")
    if shared and predictors and weight is not None:
        weight = jnp.tile(weight, predictors)
    tower = layers.Tower(tuple(widths[1:]), model.style, make_mixer, name=name)
    tokens = tower(first(x), weight, train=train)

    logits = typewise.TokenHead(tuple(model.head_bias), name="head")(tokens)
    if not predictors:
        return losses.Outputs(logits[0])
    if shared:
        logits = logits[0].reshape(predictors, -1)
    return losses.Outputs(jnp.stack(list(logits), axis=1))
