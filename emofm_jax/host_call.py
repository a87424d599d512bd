"""A compiled call from host arrays to scores that costs little beside its products, for one row as for thousands.

Features go in as one array (data/matrix.py), which is checked in the same pass: 28 arguments cost more than a small
network. For few rows small parameters are constants of the program, so that XLA takes slices of stacked weights when
it compiles instead of at each call (HMM, one row: a third of the time); large ones, as a table, stay arguments.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emofm_jax.data import matrix as matrix_lib
from emofm_jax.data.schema import Schema
from emofm_jax.training import ahead

_FEW = 64  # rows; for more the weights are a small part of the work, and constants would only fill memory
_CONSTANT = 1 << 21  # numbers of an array that may be a constant; all constants together may have eight times that


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
    of_few = ahead.jit(lambda large, matrix: fn(unite(large), matrix_lib.to_features(matrix, layout, as_float)))
    of_many = ahead.jit(lambda params, matrix: fn(params, matrix_lib.to_features(matrix, layout, as_float)))

    def call(features):
        matrix = matrix_lib.of_features(features, layout) if isinstance(features, Mapping) else None
        if matrix is None:
            return None
        return of_few(large, matrix) if len(matrix) <= _FEW else of_many(params, matrix)

    call.programs = of_few, of_many
    return call


def _partition(params: Any) -> tuple[list[jax.Array], Callable[[list], Any]]:
    """The large parameters, and the function from these to all of them."""
    leaves, structure = jax.tree.flatten(params)
    few = sum(x.size for x in leaves if x.size <= _CONSTANT) <= 8 * _CONSTANT
    is_large = [x.size > _CONSTANT or not few for x in leaves]

    def unite(large):
        rest = iter(large)
        return structure.unflatten([next(rest) if is_argument else x for x, is_argument in zip(leaves, is_large)])

    return [x for x, is_argument in zip(leaves, is_large) if is_argument], unite
