"""Compiler options for CPUs: for pmapped functions, since pmap takes none, and for jitted ones.

The file may be deleted when neither option is worth its time any more: when a step and a scorer run
as fast without them (benchmarks/models.py, benchmarks/scorer.py), or when jaxlib knows neither. The
step then is what `jax.pmap` returns, and `compiled` calls `jax.jit`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend

# XLA:CPU hands products to YNNPACK. Left to Eigen a step took 0.5 to 0.98 of the time
# (docs/performance.md), but 1.25 of it where many small products are batched, as in DESTINE.
CPU_OPTIONS: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}

# For programs of a few microseconds an operation: one after another, not handed to threads (HMM,
# one row: 0.8 of the time).
ONE_BY_ONE: dict[str, str | bool] = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
}


def pmapped(mapped: Any, devices: Sequence[jax.Device]) -> Any:
    """The pmapped function, on CPU compiled with `CPU_OPTIONS`, unless it has batched products.

    Args:
      mapped: of `jax.pmap`. All arguments but the first may come in several structures and shapes,
        each compiled once; those of the first must stay as in the first call.
      devices: of the pmap.
    """
    # Over several processes only pmap itself makes arrays global.
    if devices[0].platform != "cpu" or jax.process_count() > 1:
        return mapped
    compiled = {}

    def call(*args):
        arrays, structure = jax.tree.flatten(args[1:])
        # Within another program, which has its own options.
        if any(isinstance(x, jax.core.Tracer) for x in arrays):
            return mapped(*args)

        key = structure, tuple((x.shape, x.dtype) for x in arrays)
        if key not in compiled:
            compiled[key] = _compile(mapped.lower(*args))
        return compiled[key](*args)

    call.lower = mapped.lower  # type: ignore[attr-defined]
    return call


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    if "batching_dims" in lowered.as_text():
        return lowered.compile()
    try:
        return lowered.compile(compiler_options=CPU_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()  # a jaxlib that has outgrown it


def jit(function: Callable, few_rows: bool = False) -> Callable:
    """`jax.jit` that on CPU compiles with `CPU_OPTIONS`, unless rows go through batched products.

    With the options HMM scored in 0.75 to 0.95 of the time, DESTINE in 1.2. A batched product of
    weights alone, as typed models have, is small here and does not count. The first call decides.
    For top-level calls only: JAX takes compiler options nowhere else, so inside another program
    call the function itself.

    Args:
      function: of arrays, the rows' in its last argument; compiled once for each set of shapes.
      few_rows: whether to add `ONE_BY_ONE`.
    """
    always = ONE_BY_ONE if few_rows else {}
    if jax.default_backend() != "cpu" or not _knows_options():
        return jax.jit(function)
    plain = jax.jit(function, compiler_options=always)
    chosen = None

    def call(*args):
        nonlocal chosen
        if chosen is None:
            jaxpr = plain.trace(*args).jaxpr.jaxpr
            batched = _has_batched_product(jaxpr, jaxpr.invars[-len(jax.tree.leaves(args[-1])) :])
            chosen = plain if batched else jax.jit(function, compiler_options=CPU_OPTIONS | always)
        return chosen(*args)

    # As of jax.jit, for tests.
    call._cache_size = lambda: chosen._cache_size() if chosen else 0  # type: ignore[attr-defined]
    return call


def _has_batched_product(jaxpr, rows) -> bool:
    """Whether a batched product depends on some of a program's inputs."""
    rows = set(rows)
    for equation in jaxpr.eqns:
        if not any(isinstance(x, jax.extend.core.Var) and x in rows for x in equation.invars):
            continue
        rows.update(equation.outvars)
        if equation.primitive.name == "dot_general" and equation.params["dimension_numbers"][1][0]:
            return True
        inner = jax.extend.core.jaxprs_in_params(equation.params)
        if any(_has_batched_product(program, program.invars) for program in inner):
            return True
    return False


@functools.cache
def _knows_options() -> bool:
    """Whether this jaxlib takes `CPU_OPTIONS` and `ONE_BY_ONE`."""
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=CPU_OPTIONS | ONE_BY_ONE)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
