"""A compiled call from host arrays to scores that costs little beside its products, for one row as for thousands.

Features go in as one array (scoring/matrix.py), which is checked in the same pass: 28 arguments cost more than a small
network. For few rows the network's parameters are constants of the program, so that XLA takes slices of stacked
weights when it compiles instead of at each call (HMM: 0.45 of the time for one row, 0.8 for four); each number of
rows then holds a copy of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emofm_jax.data.schema import Schema
from emofm_jax.scoring import matrix as matrix_lib
from emofm_jax.training import compilation

_FEW = 8  # rows
_CONSTANT = 1 << 24  # numbers that all constants together may have


def make(schema: Schema, params: Any, fn: Callable) -> Callable[[Mapping], dict | None]:
    """Makes call(features) -> scores, or None where the features do not fit: their mistake is then to be named.

    Args:
      schema: of the rows.
      params: tree of arrays.
      fn: `fn(params, features)`, pure.
    """
    large, unite = _partition(params)
    as_float = lambda x: jax.lax.bitcast_convert_type(x, jnp.float32)
    layout = matrix_lib.layout(schema)
    to_features = lambda matrix: matrix_lib.to_features(matrix, layout, as_float)
    of_few = compilation.jit(
        lambda large, matrix: fn(unite(large), to_features(matrix)), few_rows=True
    )
    of_many = compilation.jit(lambda params, matrix: fn(params, to_features(matrix)))

    def call(features):
        matrix = matrix_lib.of_features(features, layout) if isinstance(features, Mapping) else None
        if matrix is None:
            return None
        return of_few(large, matrix) if len(matrix) <= _FEW else of_many(params, matrix)

    call.programs = of_few, of_many
    return call


def _partition(params: Any) -> tuple[list[jax.Array], Callable[[list], Any]]:
    """The parameters that stay arguments (tables, or all where they are many), and the function from these to all."""
    found, structure = jax.tree.flatten_with_path(params)
    is_table = [any(getattr(key, "key", None) == "embedding" for key in path) for path, _ in found]
    many = sum(x.size for (_, x), table in zip(found, is_table) if not table) > _CONSTANT

    def unite(arguments):
        rest = iter(arguments)
        return structure.unflatten(
            [next(rest) if many or table else x for (_, x), table in zip(found, is_table)]
        )

    return [x for (_, x), table in zip(found, is_table) if many or table], unite
