"""Mixers across tokens: residual, the identity at the start (EMOFM, feature-based mixers).

    out_i = u_i + mixed_i Wo_i        mixed_i: attention, a gated graph network, or an MLP

A mixer stands after any layer of a stage: its tokens are the groups in stage 1 and the types in
stage 2. It takes and returns n arrays [B, d] (docs/model.md, section 4). With n = 1 it is the
identity, without parameters.

A new one is a class, whose fields are those options of `Mixing` that it reads and `dtype`, and one
line in `MIXERS`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.errors import check_heads
from emofm_jax.nn import layers
from emofm_jax.options import option, options_of


class CrossAttentionMixer(nn.Module):
    """Lets every token attend to the others and adds the result (EMOFM, feature-based mixers).

        q_i = u_i Wq_i,  k_j = u_j Wk_j,  v_j = u_j Wv_j
        out_i = u_i + (concat over heads of sum_j softmax_j(q_i . k_j / sqrt(d_att / H)) v_j) Wo_i

    Attributes:
      d_att: width of queries, keys and values, over all heads.
      num_heads: H.
      norm: none | layer: on u_i before the three products.
      dtype: of the products; the softmax is float32.
    """

    d_att: int
    num_heads: int
    norm: str = "none"
    dtype: jnp.dtype = jnp.float32
    own = False  # j runs over j != i; True: over all tokens

    @nn.compact
    def __call__(self, tokens: Sequence[jax.Array]) -> list[jax.Array]:
        """Mixes n tokens.

        Parameters are `query_key_value` f32[n, d, 3 d_att] (Wq, Wk, Wv side by side) and `out`
        f32[n, d_att, d], which starts at zero. With n = 1 there is nobody to attend to: no
        parameters, the identity, for either `own`. With n = 2 the softmax of cross-attention is
        over one token, so Wq and Wk have no effect.

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
        kernel = self.param("query_key_value", layers.lecun, (n, d, 3 * self.d_att))
        projected = _project(_normalize(tokens, self.norm), kernel, self.dtype)
        return _add_projected(self, tokens, attend(projected, self.num_heads, self.own))


class SelfAttentionMixer(CrossAttentionMixer):
    """The same, each token attending to itself too."""

    own = True


def attend(projected: Sequence[jax.Array], num_heads: int, own: bool = False) -> list[jax.Array]:
    """Multi-head attention of each of n tokens to the others.

    Args:
      projected: n arrays [B, 3 d_att], queries, keys and values side by side.
      num_heads: H.
      own: a token attends to itself too.

    Returns:
      n arrays [B, d_att].
    """
    batch, d_head = projected[0].shape[0], projected[0].shape[1] // (3 * num_heads)
    split = [p.reshape(batch, 3, num_heads, d_head) for p in projected]  # [B, 3, H, d_head]
    mixed = []

    for i, ours in enumerate(split):
        seen = [p for j, p in enumerate(split) if own or j != i]
        scores = [(ours[:, 0] * p[:, 1]).astype(jnp.float32).sum(-1) for p in seen]  # [B, H]
        scores = jnp.stack([s / d_head**0.5 for s in scores])  # [n - 1 or n, B, H]
        share = jax.nn.softmax(scores, axis=0).astype(projected[0].dtype)
        total = sum(a[..., None] * p[:, 2] for a, p in zip(share, seen))
        mixed.append(total.reshape(batch, -1))
    return mixed


class GraphMixer(nn.Module):
    """A gated graph network on the complete graph of the tokens (Fi-GNN, Li et al., CIKM 2019).

        h_i = first_i = u_i Ws_i
        A_ij = softmax over j != i of LeakyReLU(w . [first_i ; first_j])
        num_steps times:  a_i = (sum_{j != i} A_ij h_j W_out_j) W_in_i + b
                          h_i <- GRU(a_i, h_i) + first_i
        out_i = u_i + h_i Wo_i

    The paper's first states are embeddings after an attention layer and its results go to a scoring
    layer; Ws, Wo and the residual to u_i, which make a mixer of it, are ours, as is the slope 0.01
    of the LeakyReLU.

    Attributes:
      d_att: width of a state.
      norm: none | layer: on u_i before Ws.
      dtype: of the products; the softmax is float32.
      num_steps: how often states are exchanged; all steps have the same weights.
    """

    d_att: int
    norm: str = "none"
    dtype: jnp.dtype = jnp.float32
    num_steps: int = 2

    @nn.compact
    def __call__(self, tokens: Sequence[jax.Array]) -> list[jax.Array]:
        """Mixes n tokens.

        Each token has `state` f32[n, d, d_att] (Ws), `send` and `receive` f32[n, d_att, d_att]
        (W_out, W_in) and `out` f32[n, d_att, d], which starts at zero. All tokens share `edge`
        f32[2 d_att, 1] (w), `message_bias` f32[d_att] and `gru`. With n = 2 the softmax is over one
        neighbour, so `edge` has no effect.

        Args:
          tokens: n arrays [B, d].

        Returns:
          n arrays [B, d], equal to `tokens` at the start.
        """
        n, d, width = len(tokens), tokens[0].shape[-1], self.d_att
        if n == 1:
            return list(tokens)
        state = self.param("state", layers.lecun, (n, d, width))
        first = _project(_normalize(tokens, self.norm), state, self.dtype)
        shares = weigh_edges(first, self.param("edge", layers.lecun, (2 * width, 1)))
        send = self.param("send", layers.lecun, (n, width, width))
        receive = self.param("receive", layers.lecun, (n, width, width))
        bias = self.param("message_bias", nn.initializers.zeros, (width,)).astype(self.dtype)

        gru, states = GRU(self.dtype, name="gru"), first
        for _ in range(self.num_steps):
            sent = _project(states, send, self.dtype)
            seen = [_without(sent, i) for i in range(n)]
            heard = [sum(a * m for a, m in zip(*pair)) for pair in zip(shares, seen)]
            messages = [m + bias for m in _project(heard, receive, self.dtype)]
            states = [h + start for h, start in zip(gru(messages, states), first)]
        return _add_projected(self, tokens, states)


def weigh_edges(states: Sequence[jax.Array], edge: jax.Array) -> list[jax.Array]:
    """Weights of the edges, as in Fi-GNN: softmax_{j != i} LeakyReLU(w . [h_i ; h_j]).

    Args:
      states: n arrays [B, d_att], n > 1.
      edge: f32[2 d_att, 1], first the half that meets h_i.

    Returns:
      n arrays [n - 1, B, 1], the neighbours j != i in their order; in the states' dtype, computed
      in float32.
    """
    halves = jnp.concatenate(jnp.split(edge, 2), axis=1)  # [d_att, 2]
    parts = [layers.dot(h, halves, jnp.float32) for h in states]  # [B, 2]
    ours, theirs = [p[:, :1] for p in parts], [p[:, 1:] for p in parts]
    meets = lambda s, i: jnp.stack([jax.nn.leaky_relu(s + t) for t in _without(theirs, i)])
    scores = [meets(s, i) for i, s in enumerate(ours)]
    return [jax.nn.softmax(s, axis=0).astype(states[0].dtype) for s in scores]


class GRU(nn.Module):
    """The gated update of a state h by a message a, with one set of weights (Fi-GNN).

        z = sigmoid(a Wz + h Uz + bz),   r = sigmoid(a Wr + h Ur + br)
        c = tanh(a Wc + (r * h) Uc + bc)
        GRU(a, h) = (1 - z) * h + z * c

    Attributes:
      dtype: of the products.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, messages: Sequence[jax.Array], states: Sequence[jax.Array]
    ) -> list[jax.Array]:
        """n arrays [B, d_att] twice -> n arrays [B, d_att].

        Parameters are `message` f32[d_att, 3 d_att] (Wz, Wr, Wc side by side), `gates` f32[d_att, 2
        d_att] (Uz, Ur), `candidate` f32[d_att, d_att] (Uc) and `bias` f32[3 d_att] (bz, br, bc).
        """
        width = states[0].shape[-1]
        message = self.param("message", layers.lecun, (width, 3 * width))
        gates = self.param("gates", layers.lecun, (width, 2 * width))
        candidate = self.param("candidate", layers.lecun, (width, width))
        bias = self.param("bias", nn.initializers.zeros, (3 * width,)).astype(self.dtype)
        updated = []

        for a, h in zip(messages, states):
            heard = layers.dot(a, message, self.dtype) + bias
            gate, proposed = jnp.split(heard, [2 * width], axis=1)
            z, r = jnp.split(nn.sigmoid(gate + layers.dot(h, gates, self.dtype)), 2, axis=1)
            c = jnp.tanh(proposed + layers.dot(r * h, candidate, self.dtype))
            updated.append((1 - z) * h + z * c)
        return updated


class MLPMixer(nn.Module):
    """An MLP over the tokens (MLP-Mixer, Tolstikhin et al., NeurIPS 2021, equation 1).

        out_i = u_i + sum_k W2_ik gelu(sum_j W1_jk u_j + b1_k) + b2_i

    k = 1 .. token_expansion * n; the same for each of the d channels.

    Token mixing only: the layers of the towers are what mixes channels. gelu is in its tanh form.

    Attributes:
      norm: none | layer: on u_i before W1 (the paper's choice is layer).
      dtype: of the products.
      token_expansion: hidden units for each token; our choice.
    """

    norm: str = "none"
    dtype: jnp.dtype = jnp.float32
    token_expansion: int = 2

    @nn.compact
    def __call__(self, tokens: Sequence[jax.Array]) -> list[jax.Array]:
        """Mixes n tokens.

        Parameters are `hidden` f32[n, 2 n] (W1), `hidden_bias` f32[2 n], `out` f32[n, 2 n] (W2) and
        `out_bias` f32[n]; the last two start at zero.

        Args:
          tokens: n arrays [B, d].

        Returns:
          n arrays [B, d], equal to `tokens` at the start.
        """
        n = len(tokens)
        if n == 1:
            return list(tokens)

        width = self.token_expansion * n
        kernel = self.param("hidden", layers.lecun, (n, width))
        hidden_bias = self.param("hidden_bias", nn.initializers.zeros, (width,))
        out = self.param("out", nn.initializers.zeros, (n, width))
        out_bias = self.param("out_bias", nn.initializers.zeros, (n,))
        # The products are across tokens, so here they are stacked: two matrices times [n, B * d].
        stacked = jnp.stack(_normalize(tokens, self.norm)).reshape(n, -1)
        hidden = layers.dot(kernel.T, stacked, self.dtype) + hidden_bias[:, None].astype(self.dtype)
        hidden = nn.gelu(hidden)
        mixed = layers.dot(out, hidden, self.dtype) + out_bias[:, None].astype(self.dtype)
        return [u + m for u, m in zip(tokens, mixed.reshape(n, *tokens[0].shape))]


MIXERS: dict[str, Any] = {
    "cross_attention": CrossAttentionMixer,
    "self_attention": SelfAttentionMixer,
    "graph": GraphMixer,
    "mlp": MLPMixer,
    "none": None,
}


def _readers(field):
    """Kinds of mixers that have a field."""
    fields = {kind: getattr(mixer, "__dataclass_fields__", ()) for kind, mixer in MIXERS.items()}
    return {"kind": tuple(kind for kind in MIXERS if field in fields[kind])}


@dataclasses.dataclass(frozen=True)
class Mixing:
    """`config.model.mixer`: which mixers stand after the layers of hmm."""

    kind: str = option("cross_attention", "kind of the mixers", choices=tuple(MIXERS))
    stages: tuple = option(
        (1, 2), "stages that have mixers", of=int, choices=(1, 2), needs=_readers("norm")
    )
    d_att: int = option(
        64, "width of queries, keys, values; of a graph's states", low=1, needs=_readers("d_att")
    )
    num_heads: int = option(4, "H, a divisor of d_att", low=1, needs=_readers("num_heads"))
    norm: str = option(
        "none", "norm within a mixer", choices=("none", "layer"), needs=_readers("norm")
    )

    def check(self) -> None:
        """Raises a UserError where the heads do not divide the width."""
        if self.kind in _readers("num_heads")["kind"]:
            check_heads("config.model.mixer.num_heads", self.num_heads, self.d_att, "d_att")

    def make(self, name: str, dtype: jnp.dtype) -> nn.Module:
        """Makes one mixer; `kind` is not none."""
        mixer = MIXERS[self.kind]
        read = options_of(Mixing).keys() & mixer.__dataclass_fields__.keys()
        return mixer(**{f: getattr(self, f) for f in read}, dtype=dtype, name=name)


def _normalize(tokens, norm):
    """Within a mixer: its LayerNorm, if it has one."""
    return layers.TokenLayerNorm(name="norm")(tokens) if norm == "layer" else tokens


def _project(tokens, kernel, dtype):
    """Token by token: n arrays [B, in], kernel f32[n, in, out] -> n arrays [B, out]."""
    return [layers.dot(x, w, dtype) for x, w in zip(tokens, layers.unstack(kernel))]


def _add_projected(mixer, tokens, mixed):
    """u_i + mixed_i Wo_i, with Wo zero at the start."""
    out = mixer.param("out", nn.initializers.zeros, (len(tokens), mixer.d_att, tokens[0].shape[-1]))
    return [u + m for u, m in zip(tokens, _project(mixed, out, mixer.dtype))]


def _without(tokens, i):
    return [x for j, x in enumerate(tokens) if j != i]
