"""What training changes, how it starts, and how it and the batches get to the devices."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from emofm_jax.config import SECTIONS as SECTIONS  # keys of params, opt_state and lr_scale
from emofm_jax.data import placing
from emofm_jax.data.batches import Batch
from emofm_jax.data.placing import Layout, Share
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.models import build as model_lib
from emofm_jax.nn import embedding

AXIS = "data"  # name of the axis of the devices

Optimizers: TypeAlias = Mapping[str, optax.GradientTransformation]  # one for each of SECTIONS
Devices: TypeAlias = Sequence[jax.Device] | None  # None: all local ones
PlacedBatch: TypeAlias = Any  # a Batch whose arrays are on the devices


class TrainState(flax.struct.PyTreeNode):
    """All that training changes; the same on every device."""

    step: jax.Array  # i32[], steps taken
    params: dict  # {"embedding": f32[V, D + extra], "network": tree}
    opt_state: dict  # the same keys
    stats: dict  # batch statistics of the network, may be empty
    owner: jax.Array  # i32[V], scratch of the sparse step; holds nothing from step to step
    lr_scale: (
        dict  # {"embedding": f32[], "network": f32[]}, factors on the updates (schedule=plateau)
    )
    key: jax.Array  # u32[2], of dropout; here, so that one compiled step serves every seed
    # {"params", "stats"}, their moving averages; {} where none are kept
    average: dict = flax.struct.field(default_factory=dict)

    def scored(self) -> tuple[dict, dict]:
        """(params, stats) that evaluation uses: the averages where they are kept."""
        kept = self.average or {"params": self.params, "stats": self.stats}
        return kept["params"], kept["stats"]

    def with_intercept(self, value: float, devices: "Devices") -> "TrainState":
        """The state with something to be added to all logits that it scores with (`intercept`).

        It is not to be trained or saved.
        """
        params, stats = self.scored()
        placed = {model_lib.INTERCEPT: put_state(np.float32(value), devices)}
        return self.replace(average={"params": params, "stats": {**stats, **placed}})


def make_init(
    module: nn.Module,
    schema: Schema,
    optimizers: Optimizers,
    *,
    init_scale: float,
    averaged: bool = False,
    devices: Devices = None,
    layout: Layout | None = None,
) -> Callable[[jax.Array], TrainState]:
    """Makes `init(key) -> state`, on the devices, without a copy of the table on the host.

    Args:
      module: the network.
      schema: of the data; it lays out the table.
      optimizers: of table and network.
      init_scale: standard deviation of the table, which has D columns and a model's extra ones.
      averaged: keep moving averages of parameters and batch statistics.
      devices: that hold the replicas.
      layout: of the table over several devices; None: each has all of it.
    """

    def init(key):
        table_key, network_key = jax.random.split(key)
        variables = model_lib.init(module, network_key, schema)
        size = (schema.offsets, schema.num_rows, model_lib.table_width(module))
        if layout is None:
            table = embedding.init_table(table_key, *size, init_scale, schema.vectors)
        else:
            rows = _own_rows(layout, devices)
            table = embedding.init_rows(table_key, rows, *size, init_scale, schema.vectors)
        if (zero := model_lib.starts_at_zero(module)).any():
            table = jnp.where(zero, 0.0, table)
        params = {"embedding": table, "network": variables["params"]}
        stats = variables.get("batch_stats", {})
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state={k: optimizers[k].init(params[k]) for k in SECTIONS},
            stats=stats,
            average=jax.tree.map(jnp.copy, {"params": params, "stats": stats}) if averaged else {},
            owner=jnp.zeros(len(table), jnp.int32),
            lr_scale={k: jnp.ones((), jnp.float32) for k in SECTIONS},
            key=jax.random.key_data(key),
        )
        if layout is None:
            return state
        of_devices = lambda x: x.reshape(-1, layout.rows, *x.shape[1:])
        return of_rows(of_devices, state, len(table))

    whole, parted = (_sharding(devices, replicated=replicated) for replicated in (True, False))
    shardings: Any = whole
    if layout is not None:
        of_state = axes(optimizers["embedding"], layout.schema.num_rows, averaged)
        choose = lambda axis: whole if axis is None else parted
        shardings = jax.tree.map(choose, of_state, is_leaf=lambda x: x is None)
    return jax.jit(init, out_shardings=shardings)


def axes(optimizer: optax.GradientTransformation, num_rows: int, averaged: bool) -> TrainState:
    """For each leaf of a state that is spread over devices: 0, its axis of devices, or None.

    Args:
      optimizer: of the table.
      num_rows: V.
      averaged: whether the state has averages.
    """
    of_table = jax.eval_shape(optimizer.init, jax.ShapeDtypeStruct((num_rows, 1), jnp.float32))
    by_row = jax.tree.map(lambda x: 0 if is_by_row(x, num_rows) else None, of_table)
    params = {"embedding": 0, "network": None}
    found: dict[str, Any] = dict.fromkeys(("step", "stats", "lr_scale", "key"))
    found |= {"params": params, "opt_state": {"embedding": by_row, "network": None}, "owner": 0}
    found["average"] = {"params": params, "stats": None} if averaged else {}
    return TrainState(**found)


def is_by_row(leaf: Any, num_rows: int) -> bool:
    """Whether a leaf of the table, or of its optimizer's state, has an entry for each row."""
    return leaf.ndim > 0 and leaf.shape[0] == num_rows


def of_rows(change: Callable, state: TrainState, num_rows: int) -> TrainState:
    """A state with the leaves of the table, its moments and averages changed by a function."""
    rows = lambda tree: jax.tree.map(lambda x: change(x) if is_by_row(x, num_rows) else x, tree)
    part = lambda tree: tree and {**tree, "embedding": rows(tree["embedding"])}
    average = state.average
    if average:
        average = {**average, "params": part(average["params"])}

    return state.replace(
        params=part(state.params),
        opt_state=part(state.opt_state),
        owner=rows(state.owner),
        average=average,
    )


def spread(state: TrainState, layout: Layout, devices: Devices = None) -> TrainState:
    """A state on the host, its table in the order of its rows, as shares of these devices."""
    num_rows, own = layout.schema.num_rows, _own(layout, devices)
    first = own.start * layout.rows
    return of_rows(lambda x: Share(layout.spread(x)[own], first, num_rows), state, num_rows)


def shares(state: TrainState, layout: Layout, devices: Devices = None) -> TrainState:
    """A state of the devices as checkpoints have it: what has an entry a row is a `Share`."""
    num_rows, own = layout.schema.num_rows, _own(layout, devices)
    first, count = own.start * layout.rows, own.stop - own.start
    return of_rows(lambda x: Share(x, first, num_rows), state, count)


def like_shares(state: TrainState, layout: Layout, devices: Devices = None) -> TrainState:
    """The shapes of a state with its table as a whole -> those of `shares`."""
    num_rows, own = layout.schema.num_rows, _own(layout, devices)
    first, shape = own.start * layout.rows, (own.stop - own.start, layout.rows)
    like = lambda x: jax.ShapeDtypeStruct((*shape, *x.shape[1:]), x.dtype)
    return of_rows(lambda x: Share(like(x), first, num_rows), state, num_rows)


def put_shares(state: TrainState, devices: Devices = None) -> TrainState:
    """Sends a state of arrays and shares on the host to the devices."""
    is_share = lambda x: isinstance(x, Share)
    put = lambda x: put_batch(x.array, devices) if is_share(x) else put_state(x, devices)
    return jax.tree.map(put, state, is_leaf=is_share)


def _own(layout: Layout, devices: Devices) -> slice:
    """Which of all devices are those of this process."""
    count = len(local(devices))
    first = jax.process_index() * count if layout.num_devices > count else 0
    return slice(first, first + count)


def _own_rows(layout: Layout, devices: Devices) -> jax.Array:
    """i32[P' * R], the row of the table at each place of these devices; V and above: none."""
    own = _own(layout, devices)
    at = jnp.arange(own.start * layout.rows, own.stop * layout.rows, dtype=jnp.int32)
    return placing.rows_at(at, layout.schema.num_rows)


def put_state(state: Any, devices: Devices = None) -> Any:
    """Copies a state, or a part of one, to every device; on CPU it may share the host's memory."""
    return jax.device_put(state, _sharding(devices, replicated=True))


def put_batch(batch: Batch | np.ndarray, devices: Devices = None) -> PlacedBatch:
    """Sends a batch, or an array, [P, b, ...], to its P devices; it must not change afterwards."""
    return jax.device_put(batch, _sharding(devices, replicated=False))


def put_planned(batch: Batch, devices: Sequence[jax.Device], layout: Layout | None) -> PlacedBatch:
    """`put_batch` of a process's part of a batch, with a plan where the table is spread.

    Args:
      batch: arrays [P, b, ...]: of this process's devices, or of those of all processes.
      devices: of this process.
      layout: of the table.

    Raises:
      UserError: a device would ask too many rows of another one.
    """
    count = len(devices)
    if len(batch.label) > count:
        first = jax.process_index() * count
        batch = jax.tree.map(lambda array: array[first : first + count], batch)
    if layout is not None:
        batch = batch._replace(plan=layout.plan(batch.ids))
    return put_batch(batch, devices)


def num_devices() -> int:
    """The devices of all processes."""
    local()
    return jax.device_count()


def fetch(tree: Any) -> Any:
    """Copies arrays of the devices to the host, waiting until they are computed."""
    # On CPU a view would outlive the call, and a state of which a view exists is not donated.
    return jax.tree.map(lambda array: np.array(array, copy=True), jax.device_get(tree))


def local(devices: Devices = None) -> list[jax.Device]:
    """The devices, or all local ones.

    Raises:
      UserError: there is none, since JAX was told to use a platform that this machine has not.
    """
    if devices is not None:
        return list(devices)
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the second without CUDA's plugin
        config: Any = jax.config
        wanted = f"JAX_PLATFORMS={config.jax_platforms}"
        why = " ".join(str(error).split()).partition(" (set JAX_PLATFORMS")[0] or "no plugin of it"
        remedy = "unset it, or choose one that is installed, such as cpu"
        raise UserError(f"{wanted}: jax finds no such device here ({why}); {remedy}") from None


def _sharding(devices: Devices, replicated: bool) -> jax.sharding.NamedSharding:
    return _sharding_over(tuple(local(devices)), replicated)


@functools.cache  # a third of the time that sending a batch takes
def _sharding_over(devices: tuple[jax.Device, ...], replicated: bool) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    axes = [] if replicated else [AXIS]
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
