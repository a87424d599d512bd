"""Several networks that run beside one another in one program, unrolled.

On CPU n products are faster than a batched one (docs/model.md, "Precision and speed"). Their
variables are kept by the module that calls (`typed.Copies`, `members.Members`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from emofm_jax.nn import layers, losses


def draw(owner: nn.Module, networks: Sequence[nn.Module], inputs: Sequence[jax.Array]) -> list:
    """Initial variables of each network, for its input f32[B, S, columns]."""
    keys = jax.random.split(owner.make_rng("params"), len(networks))
    return [network.init(key, x[:1]) for network, key, x in zip(networks, keys, inputs)]


def apply(
    owner: nn.Module,
    networks: Sequence[nn.Module],
    variables: Sequence[dict],
    inputs: Sequence[jax.Array],
    weights: Sequence[jax.Array | None],
    train: bool,
) -> tuple[list[losses.Outputs], list[dict]]:
    """Runs each network with its variables on its input; dropout differs between them.

    Args:
      owner: the module whose stream `dropout` is theirs, if it has one.
      networks: n of them.
      variables: of each.
      inputs: of each, f32[B, S, columns].
      weights: of the rows of each, f32[B], or None where it is 1 in every row.
      train: as of a model.

    Returns:
      The outputs of each, and its new batch statistics, {} of a network without.
    """
    key = owner.make_rng("dropout") if owner.has_rng("dropout") else None
    outputs, updated = [], []
    for i, (network, own, x, weight) in enumerate(zip(networks, variables, inputs, weights)):
        rngs = {} if key is None else {"dropout": jax.random.fold_in(key, i)}
        call: dict[str, Any] = {"train": train, "rngs": rngs, "mutable": ["batch_stats"]}
        output, new = network.apply(own, x, weight, **call)
        outputs.append(output)
        updated.append(new.get("batch_stats", {}))
    return outputs, updated


def stack(trees: Sequence[Any]) -> Any:
    """One tree of n, its arrays with a leading axis n."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any, count: int) -> list:
    """The n trees of `stack`."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [layers.unstack(leaf) for leaf in leaves]
    return [jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in range(count)]
