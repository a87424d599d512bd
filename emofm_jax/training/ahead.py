"""Compiling pmapped functions ahead of their first call, since pmap itself takes no compiler options."""

from collections.abc import Callable, Sequence

import jax

# XLA:CPU hands products to YNNPACK; left to Eigen a step took 0.5 to 0.98 of the time (docs/performance.md), but 1.25
# of it where many small products are batched, as in DESTINE's attention.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


def compile_ahead(mapped: Callable, devices: Sequence[jax.Device]) -> Callable:
    """The pmapped function, on CPU compiled with `CPU_OPTIONS`, unless it has batched products.

    Args:
      mapped: of `jax.pmap`. Its last argument, a batch, may come in several shapes, each compiled once; the shapes of
        the others must stay those of the first call.
      devices: of the pmap.
    """
    if devices[0].platform != "cpu" or jax.process_count() > 1:  # only pmap itself makes arrays global
        return mapped
    compiled = {}

    def call(*args):
        batch = jax.tree.leaves(args[-1])
        if any(isinstance(x, jax.core.Tracer) for x in batch):  # within another program, which has its own options
            return mapped(*args)
        key = tuple((x.shape, x.dtype) for x in batch)
        if key not in compiled:
            compiled[key] = _compile(mapped.lower(*args))
        return compiled[key](*args)

    call.lower = mapped.lower
    return call


def _compile(lowered):
    if "batching_dims" in lowered.as_text():
        return lowered.compile()
    try:
        return lowered.compile(compiler_options=CPU_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()  # a jaxlib that has outgrown it


def jit(function: Callable) -> Callable:
    """`jax.jit` that compiles for a CPU as `compile_ahead` does (its docstring says why and when not).

    Args:
      function: of arguments whose shapes decide the program: each new set of shapes is compiled once.
    """
    if jax.default_backend() != "cpu":
        return jax.jit(function)
    plain, fast = jax.jit(function), jax.jit(function, compiler_options=CPU_OPTIONS)
    return fast
