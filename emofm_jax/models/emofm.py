"""WM, HM and HMM: whole, hierarchical, and hierarchical MLPs with mixers (EMOFM, arXiv 2310.04482).

    WM(x)  = MLP([e_1 .. e_S, type])
    HM(x)  = MLP_2([MLP_1(x_1) .. MLP_G(x_G), type])        x_g: the embeddings of the slots of group g
    HMM(x) = HM with a mixer after every layer: across groups in stage 1, across types in stage 2

Each is a set of predictors, one per interaction type, which `ensemble.Typed` combines (docs/model.md, sections 2
to 6). Without types (`num_predictors = 0`) it is one predictor and nothing else.
"""

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.nn import layers, losses, mixers, typewise


class WM(nn.Module):
    """Whole MLP: all embeddings, and the type's, through one MLP a type.

    Attributes (those of `config.model` mean what config.py says; the others follow from the schema):
      embedding_dim: D.
      num_predictors: types that have a predictor; 0 = untyped.
      head_bias: logits at the start, one a predictor.
      axis_name: of the devices over which batch norm sums, or None.
      dtype: of the products; parameters, softmax, norms and logits are float32.
    """

    embedding_dim: int
    head_bias: Sequence[float] = (0.0,)
    num_predictors: int = 0
    hidden: Sequence[int] = (512, 256, 128)
    activation: str = "relu"
    norm: str = "none"
    dropout: float = 0.0
    init_scale: float = 0.01
    type_predictors: str = "per_type"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D], weight f32[B] or None (all 1) -> Outputs; rng `dropout`, collection `batch_stats`."""
        return _predict_per_type(self, _flat(self, e), weight, self.hidden, None, "tower", train)


class HM(nn.Module):
    """Hierarchical MLPs: one tower a group, then one tower a type over the concatenation of the groups.

    Attributes: as of `WM`, and
      group_sizes: slots of each group, in order.
    """

    embedding_dim: int
    group_sizes: Sequence[int]
    head_bias: Sequence[float] = (0.0,)
    num_predictors: int = 0
    stage1: Sequence[int] = (256, 128)
    stage2: Sequence[int] = (256, 128)
    activation: str = "relu"
    norm: str = "none"
    dropout: float = 0.0
    init_scale: float = 0.01
    type_predictors: str = "per_type"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D], weight f32[B] or None (all 1) -> Outputs; rng `dropout`, collection `batch_stats`."""
        return _two_stages(self, e, weight, (None, None), train)


class HMM(nn.Module):
    """HM with mixers: field-wise across groups in stage 1, type-wise across types in stage 2.

    With one predictor (untyped, or `type_predictors="shared"`) stage 2 has one token, so its mixers are the
    identity.

    Attributes: as of `HM`, and `mixer_X` for each field X of `config.model.mixer`.
    """

    embedding_dim: int
    group_sizes: Sequence[int]
    head_bias: Sequence[float] = (0.0,)
    num_predictors: int = 0
    stage1: Sequence[int] = (256, 128)
    stage2: Sequence[int] = (256, 128)
    activation: str = "relu"
    norm: str = "none"
    dropout: float = 0.0
    init_scale: float = 0.01
    mixer_kind: str = "cross_attention"
    mixer_stages: Sequence[int] = (1, 2)
    mixer_d_att: int = 64
    mixer_num_heads: int = 4
    mixer_norm: str = "none"
    type_predictors: str = "per_type"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, D], weight f32[B] or None (all 1) -> Outputs; rng `dropout`, collection `batch_stats`."""
        mixer = mixers.MIXERS[self.mixer_kind]
        make_mixer = mixer and functools.partial(
            _make_mixer, mixer, self.mixer_d_att, self.mixer_num_heads, self.mixer_norm, self.dtype
        )
        make_mixers = tuple(make_mixer if stage in self.mixer_stages else None for stage in (1, 2))
        return _two_stages(self, e, weight, make_mixers, train)


def _make_mixer(mixer, d_att, num_heads, norm, dtype, name):
    return mixer(d_att, num_heads, norm, dtype, name=name)


def _flat(model, e):
    """[B, S * D]"""
    chex.assert_shape(e, (None, None, model.embedding_dim))
    return e.reshape(e.shape[0], -1)


def _tower(model, widths, make_mixer, name):
    return layers.Tower(
        tuple(widths[1:]),
        model.activation,
        model.norm,
        model.dropout,
        make_mixer,
        model.axis_name,
        model.dtype,
        name=name,
    )


def _two_stages(model, e, weight, make_mixers, train):
    """HM and HMM, which differ in `make_mixers` (one a stage, or None)."""
    _flat(model, e)
    tokens = layers.GroupDense(
        tuple(model.group_sizes), model.stage1[0], model.dtype, name="group_dense"
    )(e)
    tokens = _tower(model, model.stage1, make_mixers[0], "stage1")(tokens, weight, train=train)
    x = jnp.concatenate(tokens, axis=1)  # [B, G * d]
    return _predict_per_type(model, x, weight, model.stage2, make_mixers[1], "stage2", train)


def _predict_per_type(model, x, weight, widths, make_mixer, name, train):
    """Towers and heads of the predictors on x [B, in]; shared: one of each, the types outermost in its rows."""
    shared, predictors = model.type_predictors == "shared", model.num_predictors
    if not widths:
        raise ValueError(f"{name}: a predictor needs at least one hidden layer")
    first = typewise.TypeDense(
        widths[0],
        predictors,
        shared,
        model.embedding_dim,
        model.init_scale,
        model.dtype,
        name="type_dense",
    )
    if shared and predictors and weight is not None:
        weight = jnp.tile(weight, predictors)
    tokens = _tower(model, widths, make_mixer, name)(first(x), weight, train=train)
    logits = typewise.TokenHead(tuple(model.head_bias), name="head")(tokens)
    if not predictors:
        return losses.Outputs(logits[0])
    if shared:
        logits = logits[0].reshape(predictors, -1)
    return losses.Outputs(jnp.stack(list(logits), axis=1))
