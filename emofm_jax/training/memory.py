"""Memory and traffic of a training step, from shapes alone, before anything is allocated.

    python -m emofm_jax.train --config=... --plan --num_devices=64

State is exact. Activations are what the forward keeps for the backward; gradients and buffers stand
beside them (docs/scaling.md: against what XLA:CPU compiles).
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.models import build as model_lib
from emofm_jax.training import state as state_lib
from emofm_jax.training.build import Parts
from emofm_jax.training.state import TrainState

# Operations that move numbers, or repeat them. Not products with few: XLA:CPU keeps these.
_MOVES = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "slice", "unstack", "copy"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes on one device of P, and what it receives in a step."""

    num_devices: int  # P
    num_rows: int  # b, rows of a batch on one of them
    table_rows: int  # V
    width: int  # columns of the table
    device_rows: int  # R, rows of it on one device
    capacity: int  # C, rows that it may ask of another one; 0 where it has all
    table: int
    moments: int  # the optimizer's state of the table
    averages: int  # of all parameters; 0 where none are kept
    scratch: int  # of the sparse step
    network: int  # with its optimizer's state
    activations: int  # of the network
    gradients: int  # of the network, and of a dense table
    occurrences: int  # rows that the batch names, and their gradients, beside the activations
    batches: int  # made ahead
    received: int  # a step

    @property
    def state(self) -> int:
        """What lasts from step to step."""
        return self.table + self.moments + self.averages + self.scratch + self.network

    @property
    def peak(self) -> int:
        """All of it at once."""
        return self.state + self.activations + self.gradients + self.occurrences + self.batches

    @property
    def copied(self) -> int:
        """Of the state, to the host, while a checkpoint is written: on a CPU beside all of it."""
        return self.state - self.scratch

    def lines(self) -> list[str]:
        """What `--plan` prints."""
        shown = ("table", "moments", "averages", "scratch", "network", "activations")
        shown += ("gradients", "occurrences", "batches")
        words = {"moments": "moments of the table", "scratch": "scratch of the sparse step"}
        words |= {"network": "network and its moments", "batches": "batches made ahead"}
        words |= {"occurrences": "the batch's rows and gradients"}
        sizes = [(words.get(name, name), getattr(self, name)) for name in shown]
        sizes += [("in all", self.peak), ("received a step", self.received)]
        sizes += [("copied for a checkpoint", self.copied)]
        rows = f"{self.num_devices:,} devices, {self.num_rows:,} rows of a batch on each"
        place = f"table of {self.table_rows:,} rows x {self.width} columns"

        if self.num_devices > 1:
            place += f", {self.device_rows:,} rows on each, which asks {self.capacity:,} of another"
        line = lambda word, size: f"  {word:30}{_in_words(size):>12}{size:>20,} bytes"
        return [rows, place, *(line(*entry) for entry in sizes if entry[1])]


@jax.enable_x64(False)
def plan(config: ConfigDict, parts: Parts) -> Plan:
    """The plan of a config's step on `parts.num_devices`, wherever those are."""
    state, count = jax.eval_shape(parts.init), parts.num_devices
    rows, network = config.data.batch_size // count, state.params["network"]
    width = state.params["embedding"].shape[1]
    layout, num_rows = parts.layout, parts.schema.num_rows
    device_rows = layout.rows if layout else num_rows
    sizes = _state_sizes(state, num_rows, device_rows)

    lazy = config.optim.embedding.updates == "lazy"
    occurrences = _occurrences(parts.schema, rows)
    capacity = layout.capacity(occurrences) if layout else 0
    asked = capacity * count or occurrences  # rows that come and go
    if layout:  # beside its own: gradients of what it asked for, and those that came, or their sum
        held, came = occurrences + 2 * asked, capacity * (4 + 8 * width)
    else:  # those of all devices of all processes
        held, came = occurrences * count, occurrences * (4 + 4 * width)
    activations = _kept(parts, state, rows)
    held *= 4 + 4 * width
    if lazy and not layout:  # when these are gone: rows, gradients, their sums, and six numbers
        held = max(held, occurrences * (24 + 12 * width) - activations)
    planned = 4 * (asked + occurrences) if layout else 0
    columns = parts.schema.num_columns * (8 if parts.schema.has_values else 4)
    # Of sums over devices each sends and receives all parts but its own, twice.
    summed = 2 * _num_bytes(network) * (count - 1) // count
    return Plan(
        num_devices=count,
        num_rows=rows,
        table_rows=num_rows,
        width=width,
        device_rows=device_rows,
        capacity=capacity,
        **sizes,
        activations=activations,
        gradients=_num_bytes(network) + (0 if lazy else sizes["table"]),
        occurrences=held,
        batches=(config.data.prefetch + 1) * (rows * (columns + 12) + planned),
        received=summed + (count - 1) * came,
    )


def _state_sizes(state: TrainState, num_rows: int, device_rows: int) -> dict[str, int]:
    """Bytes of the state on a device that has so many rows of what has an entry for each row."""

    def part(leaf):
        each = _num_bytes(leaf) // num_rows
        return each * device_rows if state_lib.is_by_row(leaf, num_rows) else _num_bytes(leaf)

    of_table = {"table": state.params["embedding"], "moments": state.opt_state["embedding"]}
    of_table |= {"averages": state.average, "scratch": state.owner}
    sizes = {name: sum(map(part, jax.tree.leaves(tree))) for name, tree in of_table.items()}
    whole = sum(_num_bytes(tree) for tree in of_table.values())
    return sizes | {"network": _num_bytes(state) - whole}


def _occurrences(schema: Schema, num_rows: int) -> int:
    """M, rows of the table that so many rows of a batch name (data/placing.py)."""
    of_vectors = [length for _, _, length in schema.vectors]
    return num_rows * (schema.num_columns - sum(of_vectors)) + sum(of_vectors) + len(of_vectors)


def check(config: ConfigDict, parts: Parts) -> str:
    """Returns in words what training takes on a device.

    Raises:
      UserError: it is more than the machine (an accelerator: the device) has.
    """
    found = plan(config, parts)
    here = parts.devices[0]
    limit = (here.memory_stats() or {}).get("bytes_limit") if here.platform != "cpu" else None
    where = here.device_kind if limit else "this machine"
    # Devices of a CPU share its memory, in which each checkpoint is a copy.
    copied = 0 if limit else found.copied
    total = found.peak if limit else (found.peak + copied) * len(parts.devices)
    total -= found.network * (len(parts.devices) - 1) if copied else 0  # which is copied once
    limit = limit or _of_machine()
    if total > limit:
        of = f"table and moments {_in_words(found.table + found.moments)}"
        of += f", activations {_in_words(found.activations)} of each device"
        of += f", a checkpoint's copy {_in_words(copied)}" if copied else ""
        raise UserError(
            f"config.model: training it takes up to about {_in_words(total)} ({of}; --plan has "
            f"all), {where} has {_in_words(limit)}; choose a smaller model, embedding_dim or "
            "data.batch_size"
        )
    more = f" ({_in_words(found.peak + copied)} while a checkpoint is written)" if copied else ""
    return f"{_in_words(found.peak)}{more}"


def _kept(parts: Parts, state: TrainState, num_rows: int) -> int:
    """Bytes that the forward pass of that many rows keeps for the backward, parameters apart."""
    module, network = parts.module, state.params["network"]
    shape = (num_rows, parts.schema.num_slots, model_lib.table_width(module))
    rows = jax.ShapeDtypeStruct(shape, np.float32)
    leaves, tree = jax.tree.flatten((network, state.stats, rows))
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)

    try:
        found = _residuals(module, tree, shapes)
    except TypeError:  # a model of one's own may have a field without a hash
        found = _residuals.__wrapped__(module, tree, shapes)
    return found


# A tenth of a second for each trace, which the next run of a sweep need not take again.
@functools.lru_cache(maxsize=16)
def _residuals(module: nn.Module, tree: jax.tree_util.PyTreeDef, shapes: tuple) -> int:
    """Bytes that the backward of a module needs, for (network, stats, rows) of these shapes."""

    def residuals(network, stats, e):
        def forward(network, e):
            variables = {"params": network, "batch_stats": stats}
            options: dict[str, Any] = {"rngs": {"dropout": jax.random.key(0)}}
            options["mutable"] = ["batch_stats"]
            return module.apply(variables, e, None, train=True, **options)[0]

        return jax.tree.leaves(jax.vjp(forward, network, e)[1])

    given = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    traced = jax.make_jaxpr(residuals)(*given).jaxpr
    return _num_distinct_bytes(traced, len(jax.tree.leaves(given[0])))


def _num_distinct_bytes(traced: Any, num_params: int) -> int:
    """Bytes of what a traced function gives, but for its first arguments: each value once.

    The same operation on the same values gives one, as the compiler finds, and what it would rather
    compute again (`_MOVES`) none: a product of each two tokens keeps no copy of them a pair.
    """
    of_variable: dict[Any, int] = {}
    sizes: list[int] = []
    roots: list[int] = []  # what each value is made of again
    known: dict[Any, list[int]] = {}

    def new(variable: Any, source: int | None = None) -> int:
        roots.append(len(sizes) if source is None else roots[source])
        sizes.append(_num_bytes(variable.aval))
        return len(sizes) - 1

    of_variable.update((variable, new(variable)) for variable in traced.constvars + traced.invars)
    params = {of_variable[variable] for variable in traced.invars[:num_params]}
    for equation in traced.eqns:
        operands = [of_variable[x] if _is_variable(x) else str(x) for x in equation.invars]
        key = (equation.primitive.name, str(equation.params), tuple(operands))
        if key not in known:
            moved = operands[0] if equation.primitive.name in _MOVES else None
            source = moved if isinstance(moved, int) else None
            known[key] = [new(x, source) for x in equation.outvars]
        of_variable.update(zip(equation.outvars, known[key]))

    kept = {roots[of_variable[x]] for x in traced.outvars if _is_variable(x)}
    return sum(sizes[value] for value in kept - params)


def _is_variable(operand: Any) -> bool:
    return not hasattr(operand, "val")  # a literal has one


def _num_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _of_machine() -> int:
    """Bytes; of the container, if it has a limit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else ""
    return min(memory, int(text)) if text.isdigit() else memory


def _in_words(num_bytes: float) -> str:
    unit = 2**30 if num_bytes >= 2**30 else 2**20
    return f"{max(num_bytes / unit, 0.1):.1f} {'GiB' if unit == 2**30 else 'MiB'}"
