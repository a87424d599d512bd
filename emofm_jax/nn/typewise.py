"""One predictor per interaction type, and the auxiliary model that weighs them (EMOFM).

    p(y | x) = sum_t p_AM(t | x) sigmoid(logit_t(x))           (docs/model.md, section 6)

Everything is in log space. `drop_type` names a type without a predictor: the sum leaves it out and
the AM's mass is renormalised over the others.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.nn import layers, random


class Mixture(NamedTuple):
    """log p(y = 1 | x), log p(y = 0 | x) and their difference, the logit: f32[B] each."""

    log_p: jax.Array
    log_not_p: jax.Array
    logit: jax.Array


def mixture(logits: jax.Array, type_logits: jax.Array, drop_type: int = -1) -> Mixture:
    """Mixes the predictors by the AM's distribution.

    Args:
      logits: f32[B, T] of the predictors; column `drop_type` is not read.
      type_logits: f32[B, T] of the AM.
      drop_type: index of the type without a predictor, -1 for none.
    """
    kept = [t for t in range(logits.shape[1]) if t != drop_type]
    if drop_type >= 0:
        logits, type_logits = (x[:, jnp.array(kept)] for x in (logits, type_logits))
    log_type = jax.nn.log_softmax(type_logits)
    log_p = jax.nn.logsumexp(log_type + jax.nn.log_sigmoid(logits), axis=1)
    log_not_p = jax.nn.logsumexp(log_type + jax.nn.log_sigmoid(-logits), axis=1)
    return Mixture(log_p, log_not_p, log_p - log_not_p)


def type_probs(type_logits: jax.Array, drop_type: int = -1) -> jax.Array:
    """p(t | x) of the AM, f32[B, T]: a dropped type has none of it."""
    if drop_type >= 0:
        type_logits = type_logits.at[:, drop_type].set(-jnp.inf)
    return jax.nn.softmax(type_logits)


def fill_dropped(kept_logits: jax.Array, type_logits: jax.Array, drop_type: int) -> jax.Array:
    """f32[B, T - 1] of the predictors -> f32[B, T]; column `drop_type` is the mixture's logit."""
    before, after = kept_logits[:, :drop_type], kept_logits[:, drop_type:]
    hole = jnp.zeros_like(kept_logits[:, :1])
    logits = jnp.concatenate([before, hole, after], axis=1)
    logit = mixture(logits, jax.lax.stop_gradient(type_logits), drop_type).logit
    return jnp.concatenate([before, logit[:, None], after], axis=1)


class TypeDense(nn.Module):
    """The first layer of the predictors; predictor t sees its type embedding beside x.

        per type:  y_t = [x, embedding_t] K_t + b_t            shared:  y_t = [x, embedding_t] K + b

    The embedding of a type is the same for every row, so its product is added to the bias.

    Attributes:
      features: width of the result.
      num_predictors: number of types that have a predictor; 0 = one predictor, no type.
      shared: one set of weights for all types.
      embedding_dim: D, of `type_embedding` f32[num_predictors, D].
      init_scale: standard deviation of `type_embedding` at the start.
      dtype: of the products.
    """

    features: int
    num_predictors: int
    shared: bool
    embedding_dim: int
    init_scale: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """[B, in] -> an array [B, features] a type; shared: one [types * B, features] for all."""
        if not self.num_predictors:
            return layers.TokenDense(self.features, self.dtype, name="dense")([x])
        width, weights = x.shape[-1], 1 if self.shared else self.num_predictors
        kernel_shape = (weights, width + self.embedding_dim, self.features)
        kernel = self.param("kernel", layers.lecun, kernel_shape)
        bias = self.param("bias", nn.initializers.zeros, (weights, self.features))
        embedding_shape = (self.num_predictors, self.embedding_dim)
        embedding = self.param("type_embedding", self._init_embedding, embedding_shape)
        if self.shared:
            y = layers.dot(x, kernel[0, :width], self.dtype)
            offset = (embedding @ kernel[0, width:] + bias).astype(self.dtype)  # [T, features]
            return [(y + offset[:, None]).reshape(-1, self.features)]

        offset = jnp.einsum("td,tdf->tf", embedding, kernel[:, width:]) + bias
        products = [layers.dot(x, k, self.dtype) for k in layers.unstack(kernel[:, :width])]
        return [y + o for y, o in zip(products, layers.cast(offset, self.dtype))]

    def _init_embedding(self, key, shape):
        return self.init_scale * random.normal(key, shape)


class TokenHead(nn.Module):
    """The last layer: one logit a token, in float32.

    Attributes:
      bias: logits at the start, one a token.
    """

    bias: Sequence[float]

    @nn.compact
    def __call__(self, tokens: Sequence[jax.Array]) -> list[jax.Array]:
        """n arrays [B, d] -> n arrays f32[B]."""
        shape = (len(tokens), tokens[0].shape[-1], 1)
        kernel = self.param("kernel", layers.lecun, shape)
        start = lambda key: jnp.asarray(self.bias, jnp.float32)
        bias = self.param("bias", start)
        rows = zip(tokens, layers.unstack(kernel), bias)
        return [(x.astype(jnp.float32) @ k)[:, 0] + b for x, k, b in rows]


class PooledHead(nn.Module):
    """Heads of n predictors that learn from one another (partial pooling), in float32.

        logit_t = x . (w + d_t) + b_t

    w is of all types. What is of type t alone, d_t, starts at zero, so a type begins as the others
    are, at its own rate.

    Attributes:
      bias: logits at the start, n of them.
    """

    bias: Sequence[float]

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """[B, in] -> n arrays f32[B]."""
        shape = (x.shape[-1], len(self.bias))
        kernel = self.param("kernel", layers.lecun, (shape[0], 1))
        own = self.param("own_kernel", nn.initializers.zeros, shape)
        bias = self.param("bias", lambda key: jnp.asarray(self.bias, jnp.float32))
        return list(jnp.unstack(x.astype(jnp.float32) @ (kernel + own) + bias, axis=1))


class AuxiliaryModel(nn.Module):
    """AM: an MLP from the embeddings to the distribution over types.

    Attributes:
      hidden: widths.
      bias: type logits at the start: the log of the smoothed shares of the types.
      style: of its layers.
    """

    hidden: Sequence[int]
    bias: Sequence[float]
    style: layers.Style = layers.Style()

    @nn.compact
    def __call__(self, x: jax.Array, weight: jax.Array | None = None, *, train: bool) -> jax.Array:
        """[B, in] -> f32[B, T]; whether gradients reach x is the caller's matter."""
        x = layers.MLP(tuple(self.hidden), self.style, name="mlp")(x, weight, train=train)
        head = nn.Dense(
            len(self.bias),
            kernel_init=lambda key, shape, _: layers.lecun(key, shape),
            bias_init=lambda *_: jnp.asarray(self.bias, jnp.float32),
            name="head",
        )
        return head(x.astype(jnp.float32))
