"""Layers over n tokens at once, with stacked weights (docs/model.md, sections 2 and 3).

    y_i = x_i K_i + b_i            i = 1 .. n: groups, types, or n = 1 for a plain network

Between layers the tokens stay apart, as a list of n arrays [B, d]: on CPU, stacking them and
multiplying by one batched product is the slower way, and on GPU XLA sees the same graph. Parameters
are stacked on a leading axis n.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emofm_jax.nn import random
from emofm_jax.options import option

ACTIVATIONS = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "none": lambda x: x,
}
# Our choice: an average over the last 10 batches, which a run of 50 steps has reached.
BATCH_NORM_MOMENTUM = 0.9
NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Style:
    """What all layers of a network have in common.

    Attributes:
      axis_name: devices over which batch norm sums its statistics, or None.
      dtype: of the products; parameters, softmax, norms and logits are float32.
    """

    activation: str = option("relu", "activation of hidden layers", choices=tuple(ACTIVATIONS))
    norm: str = option("none", "norm in the towers", choices=("none", "layer", "batch"))
    dropout: float = option(0.0, "rate, after each hidden layer", low=0, high=0.99)
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32


def lecun(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Initial kernels f32[..., in, out] from N(0, 1 / in)."""
    return random.normal(key, shape) * shape[-2] ** -0.5


def dot(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x [..., in] times kernel [in, out] in `dtype`, accumulated in float32, rounded once."""
    return x.astype(dtype) @ kernel.astype(dtype)


class TokenDense(nn.Module):
    """n dense layers, one a token.

    Attributes:
      features: width of the result.
      dtype: of the products.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Sequence[jax.Array]) -> list[jax.Array]:
        """n arrays f32[B, in] -> n arrays [B, features]."""
        shape = (len(tokens), tokens[0].shape[-1], self.features)
        kernel = self.param("kernel", lecun, shape)
        bias = self.param("bias", nn.initializers.zeros, (shape[0], self.features))
        return [
            dot(x, k, self.dtype) + b
            for x, k, b in zip(tokens, unstack(kernel), cast(bias, self.dtype))
        ]


class GroupDense(nn.Module):
    """The first layer of the towers of stage 1: token g sees the slots of group g only.

    Attributes:
      group_sizes: slots of each group.
      features: width of the result.
      dtype: of the products.
    """

    group_sizes: Sequence[int]
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, e: jax.Array) -> list[jax.Array]:
        """f32[B, S, D] -> G arrays [B, features].

        `kernel` is f32[S * D, features]: the rows of group g are those of its slots, drawn for its
        own fan-in.
        """
        batch, slots, dim = e.shape
        edges = dim * np.cumsum(self.group_sizes)
        if edges[-1] != slots * dim:
            raise ValueError(f"groups of {tuple(self.group_sizes)} slots do not add up to {slots}")

        def init(key, shape):
            fan_in = np.repeat(dim * np.array(self.group_sizes), dim * np.array(self.group_sizes))
            return random.normal(key, shape) * jnp.asarray(fan_in[:, None] ** -0.5, jnp.float32)

        kernel = self.param("kernel", init, (slots * dim, self.features))
        bias = self.param("bias", nn.initializers.zeros, (len(edges), self.features))
        inputs = jnp.split(e.reshape(batch, slots * dim), edges[:-1], axis=1)
        kernels = jnp.split(kernel, edges[:-1])
        return [
            dot(x, k, self.dtype) + b for x, k, b in zip(inputs, kernels, cast(bias, self.dtype))
        ]


class WeightedBatchNorm(nn.Module):
    """Batch norm with statistics weighted by row, summed over devices, a token each.

        y = (x - mean) / sqrt(var + eps) * scale + bias
        mean = sum w x / sum w,  var = sum w (x - mean)^2 / sum w

    A row of weight 0 has no part in the statistics. Running statistics (collection `batch_stats`)
    move by a tenth of the way each training step, but for one with fewer than two rows of weight:
    a single row, as an epoch's or a member's last may be, has a variance of 0.

    Attributes:
      axis_name: of the devices over which statistics are summed, or None.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, tokens: Sequence[jax.Array], weight: jax.Array | None, *, train: bool
    ) -> list[jax.Array]:
        """n arrays [B, F], weight f32[B] or None (all 1) -> n arrays [B, F]."""
        shape = (len(tokens), tokens[0].shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        mean, var = running_mean.value, running_var.value
        if train:
            mean, var, count = self._statistics(tokens, weight)
            if not self.is_initializing():
                step = jnp.where(count > 1, 1 - BATCH_NORM_MOMENTUM, 0.0)
                running_mean.value += step * (mean - running_mean.value)
                running_var.value += step * (var - running_var.value)

        factor = scale * jax.lax.rsqrt(var + NORM_EPSILON)
        shift = bias - mean * factor
        return [(x * f + s).astype(x.dtype) for x, f, s in zip(tokens, factor, shift)]

    def _statistics(self, tokens, weight):
        """Weighted mean and variance f32[n, F], and the number of rows of weight, in two passes."""
        weight = jnp.ones(tokens[0].shape[0]) if weight is None else weight
        real = weight[:, None] > 0
        rows = [jnp.where(real, x.astype(jnp.float32), 0.0) for x in tokens]
        total, count = self._sum(jnp.stack([weight.sum(), real.sum()]))
        divisor = jnp.where(total > 0, total, 1.0)
        mean = self._sum(jnp.stack([weight @ x for x in rows])) / divisor
        squares = jnp.stack([weight @ jnp.square(x - m) for x, m in zip(rows, mean)])
        return mean, self._sum(squares) / divisor, count

    def _sum(self, x):
        return x if self.axis_name is None else jax.lax.psum(x, self.axis_name)


class TokenLayerNorm(nn.Module):
    """Layer norm of each token, with a scale and a bias of its own."""

    @nn.compact
    def __call__(self, tokens: Sequence[jax.Array]) -> list[jax.Array]:
        """n arrays [B, d] -> n arrays [B, d]."""
        shape = (len(tokens), tokens[0].shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        return [(_standardize(x) * s + b).astype(x.dtype) for x, s, b in zip(tokens, scale, bias)]


def _standardize(x):
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + NORM_EPSILON)


def normalize(
    tokens: Sequence[jax.Array], weight: jax.Array | None, style: Style, name: str, *, train: bool
) -> Sequence[jax.Array]:
    """n arrays [B, d] through the norm of a style, if it has one; called within a module."""
    if style.norm == "batch":
        return WeightedBatchNorm(style.axis_name, name=name)(tokens, weight, train=train)
    return TokenLayerNorm(name=name)(tokens) if style.norm == "layer" else tokens


class Tower(nn.Module):
    """What follows the first layer of n towers: norm, activation, dropout, mixer, next layer.

    The first dense layers differ by what feeds them (`GroupDense`, `typewise.TypeDense`,
    `TokenDense`), so the caller makes them; from there on the towers of a stage have the same
    widths.

    Attributes:
      widths: of the layers after the first.
      style: of all of them.
      make_mixer: called with the name of each mixer, one after every layer; None = no mixers.
    """

    widths: Sequence[int]
    style: Style = Style()
    make_mixer: Callable[[str], nn.Module] | None = None

    @nn.compact
    def __call__(
        self, tokens: Sequence[jax.Array], weight: jax.Array | None, *, train: bool
    ) -> list[jax.Array]:
        """n arrays [B, first width] before activation -> n arrays [B, last width] after it."""
        style = self.style
        for i in range(len(self.widths) + 1):
            tokens = normalize(tokens, weight, style, f"norm_{i}", train=train)
            tokens = [ACTIVATIONS[style.activation](x) for x in tokens]
            if train and style.dropout > 0:
                tokens = drop(self.make_rng("dropout"), tokens, style.dropout)
            if self.make_mixer is not None:
                tokens = self.make_mixer(f"mixer_{i}")(tokens)
            if i < len(self.widths):
                tokens = TokenDense(self.widths[i], style.dtype, name=f"hidden_{i + 1}")(tokens)
        return list(tokens)


class MLP(nn.Module):
    """A plain tower: dense layers, each with norm, activation and dropout after it.

    Attributes:
      widths: of all layers.
      style: of all of them.
    """

    widths: Sequence[int]
    style: Style = Style()

    @nn.compact
    def __call__(self, x: jax.Array, weight: jax.Array | None = None, *, train: bool) -> jax.Array:
        """[B, in] -> [B, last width], after its activation; without widths: x itself."""
        if not self.widths:
            return x
        tokens = TokenDense(self.widths[0], self.style.dtype, name="hidden_0")([x])
        tower = Tower(tuple(self.widths[1:]), self.style, name="tower")
        return tower(tokens, weight, train=train)[0]


class Dense(nn.Module):
    """x K + b.

    Attributes:
      features: width of the result.
      use_bias: False = without b.
      dtype: of the product.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., features]."""
        kernel = self.param("kernel", lecun, (x.shape[-1], self.features))
        y = dot(x, kernel, self.dtype)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


def cross(x_0: jax.Array, num_layers: int, rank: int, dtype: jnp.dtype) -> jax.Array:
    """Cross layers on x_0 [B, in], full or of a rank (DCNv2, arXiv 2008.13535); called in a module.

    x_{l+1} = x_0 * (W_l x_l + b_l) + x_l          of a rank W_l = U_l V_l; 0 = a full matrix
    """
    x = x_0
    for i in range(num_layers):
        y = x
        if rank:
            y = Dense(rank, use_bias=False, dtype=dtype, name=f"cross_down_{i}")(x)
        x = x_0 * Dense(x_0.shape[-1], dtype=dtype, name=f"cross_{i}")(y) + x
    return x


class Head(nn.Module):
    """The last layer: one logit a row, in float32.

    Attributes:
      bias: logit at the start.
    """

    bias: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, in] -> f32[B]."""
        kernel = self.param("kernel", lecun, (x.shape[-1], 1))
        bias = self.param("bias", nn.initializers.constant(self.bias), ())
        return (x.astype(jnp.float32) @ kernel)[:, 0] + bias


def drop(key: jax.Array, tokens: Sequence[jax.Array], rate: float) -> list[jax.Array]:
    """Zeroes entries of n arrays [B, d] with probability `rate`; divides the others by 1 - rate."""
    dropped = random.bernoulli(key, rate, (len(tokens), *tokens[0].shape))
    return [jnp.where(gone, 0, x / (1 - rate)).astype(x.dtype) for x, gone in zip(tokens, dropped)]


def unstack(kernel: jax.Array) -> Sequence[jax.Array]:
    """Splits the leading axis off; its gradient is one concatenation."""
    return jnp.unstack(kernel)


def cast(bias: jax.Array, dtype: jnp.dtype) -> Sequence[jax.Array]:
    """Rows of stacked biases in `dtype`."""
    return jnp.unstack(bias.astype(dtype))
