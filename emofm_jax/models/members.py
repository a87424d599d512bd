"""Members: k networks in one program, each with a loss of its own, averaged at prediction.

    L = mean over members of L_m            logit = mean over members of logit_m

`members_share` says what they have in common:

    none      nothing: e is [columns of member 1 | columns of member 2 | ..]
    table     the table
    factors   the table and all kernels; member m's kernel is K_m = r_m s_m^T * K

The gradient of what they share is the mean over the members. What is a member's own has the
gradient of its own loss, not a k-th of it, so that rates and L2 mean the same for any k. (But for
`none` and `split` with lazy updates of the table: a row that one member learns moves in the columns
of all, by their momentum and L2.)

`members_rows` says what a member learns of a batch: every row; or every k-th, so that each row is
of one member and a step costs what one network's does (BatchEnsemble's own way to train).

`factors` is BatchEnsemble (Wen et al., ICLR 2020), ((r * x) K) * s + b = x (r s^T * K) + b, around
any network. Of each member are its factors, biases, norms, heads (kernels with one output) and
batch statistics. Ours: how the factors start (docs/model.md, section 9).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from emofm_jax.models import copies, typed
from emofm_jax.nn import losses, random

SHARES = ("none", "table", "factors")
ROWS = ("all", "split")


class Members(nn.Module):
    """k members of a network, typed or not.

    Attributes:
      network: of one member.
      num_members: k, 2 or more.
      share: of `SHARES`.
      rows: of `ROWS`; what a member learns of a batch: every row, or every k-th.
    """

    network: nn.Module
    num_members: int
    share: str
    rows: str = "all"

    @property
    def drop_type(self) -> int:
        """The type without a predictor, -1 for none."""
        return getattr(self.network, "drop_type", -1)

    @nn.compact
    def __call__(
        self, e: jax.Array, weight: jax.Array | None = None, *, train: bool = False
    ) -> losses.Outputs:
        """f32[B, S, columns] -> Outputs whose arrays have a leading axis k.

        In training with `rows=split` there is no such axis: each row is of one member.
        """
        count = self.num_members
        networks = [self.network.clone(parent=None, name=None)] * count
        own_loss = lambda x: _of_a_member(x, count) if train else x
        inputs = [e] * count
        if self.share == "none":
            inputs = jnp.split(own_loss(e), count, axis=-1)
        if self.is_initializing():
            self._draw(networks, inputs)

        stats = self.has_variable("batch_stats", "members")
        own = copies.unstack(jax.tree.map(own_loss, self.get_variable("params", "members")), count)
        if self.share == "factors":
            shared = self.get_variable("params", "shared")
            own = [_with_factors(shared, of_member) for of_member in own]
        variables = [{"params": params} for params in own]
        if stats:
            of_members = copies.unstack(self.get_variable("batch_stats", "members"), count)
            variables = [v | {"batch_stats": x} for v, x in zip(variables, of_members)]

        weights, is_split = [weight] * count, train and self.rows == "split"
        if is_split:
            inputs = [x[m::count] for m, x in enumerate(inputs)]
            weights = [None if weight is None else weight[m::count] for m in range(count)]
        outputs, updated = copies.apply(self, networks, variables, inputs, weights, train)
        if train and stats and not self.is_initializing():
            self.put_variable("batch_stats", "members", copies.stack(updated))
        if not is_split:
            return copies.stack(outputs)
        for of_one, x in zip(outputs, inputs):
            losses.check(of_one, len(x))  # joined along another axis, they may look right
        return _interleave(outputs)

    def _draw(self, networks, inputs):
        """Initial variables: of the members stacked, and what they share."""
        drawn = copies.stack(copies.draw(self, networks, inputs))
        if self.share == "factors":
            shared, drawn["params"] = _shared_and_own(self.make_rng("params"), drawn["params"])
            self.put_variable("params", "shared", shared)
        for collection, start in drawn.items():
            self.put_variable(collection, "members", start)


def table_width(module: nn.Module) -> int:
    """Columns of the embedding table that a model reads."""
    if isinstance(module, Members):
        own = module.num_members if module.share == "none" else 1
        return own * typed.table_width(module.network)
    return typed.table_width(module)


def columns(module: nn.Module) -> list[tuple]:
    """What each column of the table is, [table_width]: the same name in models of other types."""
    if not isinstance(module, Members):
        return [(0, *name) for name in typed.columns(module)]
    own = range(module.num_members if module.share == "none" else 1)
    return [(member, *name) for member in own for name in typed.columns(module.network)]


def first_order(module: nn.Module) -> np.ndarray:
    """bool[table_width]: the columns that hold first-order weights."""
    return _of_all(module, typed.first_order)


def starts_at_zero(module: nn.Module) -> np.ndarray:
    """bool[table_width]: the columns that are zero at the start."""
    return _of_all(module, typed.starts_at_zero)


def _of_all(module, of_one):
    if not isinstance(module, Members):
        return of_one(module)
    return np.tile(of_one(module.network), module.num_members if module.share == "none" else 1)


def with_axis(module: nn.Module, axis_name: str) -> nn.Module:
    """The model whose batch norms sum their statistics over the devices of a pmap axis."""
    if isinstance(module, Members):
        return module.clone(network=typed.with_axis(module.network, axis_name))
    return typed.with_axis(module, axis_name)


def _interleave(outputs: list[losses.Outputs]) -> losses.Outputs:
    """Of member m the rows m, m + k, .. -> those of all B rows, in their order."""
    num_rows = sum(x.logits.shape[0] for x in outputs)
    place = np.argsort(np.argsort(np.arange(num_rows) % len(outputs), kind="stable"))

    def joined(of_members, axis):
        if of_members[0] is None:
            return None
        return jnp.take(jnp.concatenate(of_members, axis), place, axis)

    logits, type_logits, aux_loss, parts = zip(*outputs)
    of_rows = joined(logits, 0), joined(type_logits, 0), joined(aux_loss, 0)
    return losses.Outputs(*of_rows, joined(parts, 1))


def _of_a_member(x: jax.Array, count: int) -> jax.Array:
    """x, whose gradient is k times as large: of the mean of the losses that of a member's own."""
    still = jax.lax.stop_gradient(x)
    return still + count * (x - still)


def _shared_and_own(key: jax.Array, params: Any) -> tuple[Any, Any]:
    """Of drawn parameters f32[k, ..]: kernels that all share, and what is of each member."""
    shared, own = {}, {}
    for i, (path, leaf) in enumerate(sorted(traverse_util.flatten_dict(params).items())):
        if _is_own(path, leaf):
            own["own", *path] = leaf
            continue
        shared[path] = leaf[0]
        positive = random.bernoulli(jax.random.fold_in(key, i), 0.5, leaf.shape[:-1])
        own["input", *path] = jnp.where(positive, 1.0, -1.0)
        own["output", *path] = jnp.ones((*leaf.shape[:-2], leaf.shape[-1]))
    return traverse_util.unflatten_dict(shared), traverse_util.unflatten_dict(own)


def _is_own(path: tuple[str, ...], leaf: jax.Array) -> bool:
    """Whether an array f32[k, ..] is no kernel that can be shared: bias, scale, or head."""
    name = path[-1]
    return leaf.ndim < 3 or leaf.shape[-1] == 1 or name.startswith(("bias", "scale"))


def _with_factors(shared: Any, own: Any) -> Any:
    """Parameters of a member's network."""
    of = lambda name: traverse_util.flatten_dict(own.get(name, {}))
    params, inputs, outputs = of("own"), of("input"), of("output")
    for path, kernel in traverse_util.flatten_dict(shared).items():
        params[path] = inputs[path][..., :, None] * outputs[path][..., None, :] * kernel
    return traverse_util.unflatten_dict(params)
